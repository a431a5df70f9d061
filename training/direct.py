"""The conventional method, for comparison: the figures straight from the crop, with no picture of the bone in between.

It has the decomposer's encoder and sees the same examples for the same number of steps, so that what differs is the method.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dicomnode.domain.measurement import Region
from dicomnode.inference.canonical import canonical_figures
from dicomnode.inference.channels import CANONICAL, REGIONS
from dicomnode.inference.frame import FramedHip, cut
from dicomnode.inference.network import SPREAD_RANGE, Encoder, pooled
from dicomnode.inference.predictor import VIEWS, network_inputs

_HIDDEN = 128
"""As wide as the decomposer's head."""


class DirectNet(nn.Module):
    """Regression from the crop to what `inference.network.CanonicalHead` states."""

    centre: Tensor

    def __init__(self, inputs: int, widths: tuple[int, ...], factors: int) -> None:
        super().__init__()
        self.encoder = Encoder(inputs, widths, factors)
        features, answers = 2 * widths[-1], 2 * len(REGIONS) * len(CANONICAL)
        self.mix = nn.Sequential(
            # Each feature by itself: one that grows large must not drown the others, as it would in a LayerNorm.
            nn.BatchNorm1d(features),
            nn.Linear(features, _HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, answers),
        )
        self.register_buffer("centre", torch.zeros(len(REGIONS), len(CANONICAL)))

    def forward(self, image: Tensor, technique: Tensor | None = None) -> Tensor:
        """Read the figures.

        Args:
            image: (b, inputs, h, w).
            technique: (b, factors), see `inference.technique`.

        Returns:
            (b, 2, regions, quantities): logarithms of the figures, and of their spreads.
        """
        coarse, _ = self.encoder(image, technique)
        answer = self.mix(pooled(coarse).float())
        difference, spread = answer.reshape(-1, 2, len(REGIONS), len(CANONICAL)).unbind(1)
        return torch.stack([self.centre + difference, spread.clamp(*SPREAD_RANGE)], 1)


def direct_figures(network: DirectNet, hip: FramedHip) -> Mapping[Region, dict[str, float]]:
    """Figures by region and quantity: the mean of the looks that the decomposition is given too."""
    looks, told = network_inputs([cut(hip, *view) for view in VIEWS], hip.kilovolt)
    with torch.inference_mode():
        answer = network(torch.from_numpy(looks), torch.from_numpy(told)).mean(0).numpy()
    table = canonical_figures(answer)
    return {region: {name: figure.value for name, figure in figures.items()} for region, figures in table.items()}
