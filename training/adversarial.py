"""Discriminators that learn to tell predicted maps from true ones, and what the decomposer learns from them.

Three PatchGAN discriminators on a pyramid, least-squares loss and feature matching as in pix2pixHD (Wang 2018,
doi:10.1109/CVPR.2018.00917; LSGAN: Mao 2017, doi:10.1109/ICCV.2017.304). Other than there, spectral normalisation (Miyato
2018, arXiv 1802.05957) takes the place of instance normalisation, which would hide the level of a density map: the very
thing that is measured. Radiograph and maps are shown together, and nothing where no maps are learned (`losses.learned_from`).
"""

import torch
from lightning_fabric import Fabric
from monai.networks.nets.patchgan_discriminator import PatchDiscriminator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from training.losses import MAP_SCALES, HipBatch, known_maps, learned_from, masked_mean

SCALES = 3
FEATURE_MATCHING = 10.0
"""Relative to the adversarial term: Wang 2018, section 3.2."""
_WIDTH = 64
_LAYERS = 3
_LEARNING_RATE = 1e-4
_BETAS = (0.5, 0.999)
"""Learning rate and momenta: Gu 2023, arXiv 2307.11513."""

Features = list[list[Tensor]]
"""By scale, then by layer; the last layer's are the scores."""


class Discriminators(nn.Module):
    """One patch discriminator for each level of a pyramid."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            PatchDiscriminator(2, _WIDTH, inputs, num_layers_d=_LAYERS, norm=None, bias=True)  # type: ignore[arg-type]
            for _ in range(SCALES)
        )
        for module in list(self.modules()):
            if isinstance(module, nn.Conv2d):
                spectral_norm(module)

    def forward(self, shown: Tensor) -> Features:
        """Judge (b, inputs, h, w) at each scale, fine to coarse."""
        pyramid = [shown]
        for _ in range(SCALES - 1):
            pyramid.append(F.avg_pool2d(pyramid[-1], 3, 2, 1, count_include_pad=False))
        return [judge(level) for judge, level in zip(self.scales, pyramid, strict=True)]


class Adversary:
    """The discriminators of one stage with an optimizer of their own; a new stage begins with new ones."""

    def __init__(self, fabric: Fabric, radiograph_channels: int, seed: int) -> None:
        with torch.random.fork_rng():  # their first weights depend on the seed alone, not on what was drawn before
            torch.manual_seed(seed)
            discriminators = Discriminators(radiograph_channels + len(MAP_SCALES))
        optimizer = torch.optim.AdamW(discriminators.parameters(), _LEARNING_RATE, _BETAS)
        self.fabric = fabric
        self.discriminators, self.optimizer = fabric.setup(discriminators, optimizer)

    def terms(self, maps: Tensor, batch: HipBatch) -> dict[str, Tensor]:
        """What the decomposer loses by maps (b, 4, h, w) that are told from true ones."""
        # Past the wrapper that joins gradients over processes: these are the decomposer's, and its own wrapper joins them.
        judge = self.discriminators.module.requires_grad_(False)
        with self.fabric.autocast():
            features = judge(_shown(maps, batch))
        judge.requires_grad_(True)
        made, true = _halves(features)
        weight = learned_from(batch)
        return {
            "adversarial": _squares(made, weight, 1.0),
            "features": FEATURE_MATCHING * _feature_distance(made, true, weight),
        }

    def learn(self, maps: Tensor, batch: HipBatch) -> dict[str, Tensor]:
        """Take one step towards telling these maps from the true ones; returns the loss before it."""
        made, true = _halves(self.discriminators(_shown(maps.detach(), batch)))
        weight = learned_from(batch)
        loss = 0.5 * (_squares(made, weight, 0.0) + _squares(true, weight, 1.0))
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        self.optimizer.step()
        return {"discriminators": loss.detach()}


def _shown(maps: Tensor, batch: HipBatch) -> Tensor:
    """(2 b, c, h, w): radiograph with predicted maps, then with the true ones, in comparable units, where they are learned."""
    scales = maps.new_tensor(MAP_SCALES)[None, :, None, None]
    both = [
        torch.cat([batch.network_input, scales * one], 1) for one in (maps.float(), known_maps(batch, maps.float()))
    ]
    return torch.cat(both) * learned_from(batch)[:, None].repeat(2, 1, 1, 1)


def _halves(features: Features) -> tuple[Features, Features]:
    pairs = [[layer.float().chunk(2) for layer in scale] for scale in features]
    return tuple([[pair[half] for pair in scale] for scale in pairs] for half in (0, 1))  # type: ignore[return-value]


def _squares(features: Features, weight: Tensor, wanted: float) -> Tensor:
    """Mean squared distance of the scores from the wanted one, over scales."""
    return torch.stack([_mean((scale[-1] - wanted).square(), weight) for scale in features]).mean()


def _feature_distance(made: Features, true: Features, weight: Tensor) -> Tensor:
    """L1 of all layers' features but the scores, mean over layers and scales."""
    layers = [
        pair for ours, theirs in zip(made, true, strict=True) for pair in zip(ours[:-1], theirs[:-1], strict=True)
    ]
    return torch.stack([_mean((ours - theirs.detach()).abs(), weight) for ours, theirs in layers]).mean()


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of (b, c, rows, columns) where the weight (b, h, w) lies, each place by the share of it that is seen."""
    return masked_mean(values.mean(1), F.adaptive_avg_pool2d(weight[:, None], (values.shape[2], values.shape[3]))[:, 0])
