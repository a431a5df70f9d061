"""The conventional method, for comparison: the figures straight from the crop, with no picture of the bone in between.

A residual network (He et al. 2016, doi:10.1109/CVPR.2016.90); it learns from measurable hips alone, for it refuses nothing, in
stages of its own, and is read at the same looks.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dicomnode.domain.measurement import Region
from dicomnode.inference.canonical import canonical_figures
from dicomnode.inference.channels import CANONICAL, REGIONS
from dicomnode.inference.frame import FramedHip, cut
from dicomnode.inference.network import SPREAD_RANGE, ResidualBlock
from dicomnode.inference.predictor import VIEWS, network_inputs

_UNSHUFFLE = 4
"""Every pixel's information at a sixteenth of the places: figures need no picture at full resolution."""
_PLACE_FEATURES = 32
_GRID = (8, 6)
"""Places at which the coarsest features are read: the frame lies on the femoral head, so that a place means a part of the bone."""
_HIDDEN = 128
"""As wide as the decomposer's head."""


class DirectNet(nn.Module):
    """Regression from the crop to what `inference.network.CanonicalHead` states."""

    centre: Tensor

    def __init__(self, inputs: int, widths: tuple[int, ...], factors: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(_UNSHUFFLE**2 * inputs, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.level_0 = ResidualBlock(widths[0], widths[0])
        self.levels = nn.Sequential(
            *(nn.Sequential(ResidualBlock(a, b, stride=2), ResidualBlock(b, b)) for a, b in pairwise(widths))
        )
        self.reduce = nn.Conv2d(widths[-1], _PLACE_FEATURES, 1)
        self.mix = nn.Sequential(
            nn.Linear(_PLACE_FEATURES * _GRID[0] * _GRID[1] + factors, _HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, 2 * len(REGIONS) * len(CANONICAL)),
        )
        self.register_buffer("centre", torch.zeros(len(REGIONS), len(CANONICAL)))

    def forward(self, image: Tensor, technique: Tensor) -> Tensor:
        """Read the figures.

        Args:
            image: (b, inputs, h, w).
            technique: (b, factors), see `inference.technique`.

        Returns:
            (b, 2, regions, quantities): logarithms of the figures, and of their spreads.
        """
        x = F.pixel_unshuffle(image, _UNSHUFFLE)  # (b, 16 * inputs, h/4, w/4)
        x = self.levels(self.level_0(self.stem(x)))  # (b, widths[-1], coarsest)
        places = F.adaptive_avg_pool2d(self.reduce(x), _GRID)  # (b, places' features, *grid)
        answer = self.mix(torch.cat([places.flatten(1), technique], 1).float())
        difference, spread = answer.reshape(-1, 2, len(REGIONS), len(CANONICAL)).unbind(1)
        return torch.stack([self.centre + difference, spread.clamp(*SPREAD_RANGE)], 1)


def direct_figures(network: DirectNet, hip: FramedHip) -> Mapping[Region, dict[str, float]]:
    """Figures by region and quantity: the mean of the looks that the decomposition is given too."""
    looks, told = network_inputs([cut(hip, *view) for view in VIEWS], hip.kilovolt)
    with torch.inference_mode():
        answer = network(torch.from_numpy(looks), torch.from_numpy(told)).mean(0).numpy()
    table = canonical_figures(answer)
    return {region: {name: figure.value for name, figure in figures.items()} for region, figures in table.items()}
