"""The networks, with the shape on each line. Shapes are (b, c, h, w)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dicomnode.inference.channels import CANONICAL, INDEX, LABELS, LABELS_OF_REGION, REGIONS
from dicomnode.inference.frame import SPACING_MM

SPREAD_RANGE = (-5.0, 1.0)
"""Of the logarithm of a canonical figure's spread, in training and serving alike: from below 1 % to what says nothing, so that no
input makes an interval without end."""
_UNSHUFFLE = 4
"""Every pixel's information at a sixteenth of the places: figures need no picture at full resolution."""
_PLACE_FEATURES = 32
_GRID = (8, 6)
"""Places at which the coarsest features are read: the frame lies on the femoral head, so that a place means a part of the bone."""
_HIDDEN = 128
_VERDICT_HIDDEN = 64
_LEAST_VARIANCE = 1e-4
"""Keeps a feature that hardly ever changes from being blown up; standard deviations in model 0.8.1 are 0.009 to 0.78."""


@dataclass(frozen=True)
class NetworkShape:
    """Everything that is needed to build a `HipNet` before its weights are loaded; part of the bundle."""

    inputs: int
    outputs: int
    widths: tuple[int, ...]
    """Channels per level; level 0 works at half of the input's resolution."""
    verdicts: int = 0
    """Number of scalar logits that are read from the coarsest level (0: none)."""
    canonical: bool = False
    """Whether figures of the canonical pose are read; `outputs` are then those of `channels.CHANNELS`."""
    factors: int = 0
    """Technique factors that are told beside the picture, see `inference.technique`; 0: the picture alone."""
    regional_verdicts: int = 0
    """Number of scalar logits that are read from what is seen of each region (0: none); `outputs` as for `canonical`."""


@dataclass(frozen=True)
class RegressorShape:
    """Everything that is needed to build a `Regressor` before its weights are loaded; part of the bundle."""

    inputs: int
    widths: tuple[int, ...]
    """Channels per level; level 0 works at a quarter of the input's resolution."""
    factors: int


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut; keeps the spatial size unless `stride` is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.convolve_1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm_1 = nn.BatchNorm2d(outputs)
        self.convolve_2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm_2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm_1(self.convolve_1(x)))
        y = self.norm_2(self.convolve_2(y))
        return F.relu(y + self.shortcut(x))


class GlobalContext(nn.Module):
    """Scales and shifts each channel by what the whole crop says.

    How much mineral a grey level means depends on the whole radiograph (thickness, dose, vendor's curve), which the
    receptive field of a convolution does not see, and on the technique factors, which no picture shows.
    """

    def __init__(self, width: int, factors: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 2 * width))
        # From zero: a network that was trained without them goes on from what it reads.
        self.told = nn.Parameter(torch.zeros(factors, 2 * width)) if factors else None

    def forward(self, x: Tensor, technique: Tensor | None) -> Tensor:
        mixed = self.mix(pooled(x))
        if self.told is not None and technique is not None:
            mixed = mixed + technique @ self.told
        scale, shift = mixed[:, :, None, None].chunk(2, 1)
        return F.relu(x * (1 + scale) + shift)


def pooled(x: Tensor) -> Tensor:
    """(b, 2 c): mean and maximum of each channel."""
    return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


class Encoder(nn.Module):
    """The descending half of the U-Net. Pixel unshuffle first: every pixel's information at a quarter of the arithmetic."""

    def __init__(self, inputs: int, widths: tuple[int, ...], factors: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4 * inputs, widths[0], 3, 1, 1)
        self.level_0 = ResidualBlock(widths[0], widths[0])
        self.levels = nn.ModuleList(
            nn.Sequential(ResidualBlock(a, b, stride=2), ResidualBlock(b, b)) for a, b in pairwise(widths)
        )
        self.context = GlobalContext(widths[-1], factors)

    def forward(self, image: Tensor, technique: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return the coarsest level, and the finer ones from fine to coarse."""
        x = F.pixel_unshuffle(image, 2)  # (b, 4 * inputs, h/2, w/2)
        x = self.level_0(self.stem(x))  # (b, widths[0], h/2, w/2)
        skips = []
        for level in self.levels:
            skips.append(x)
            x = level(x)  # (b, widths[i], h/2^(i+1), w/2^(i+1))
        return self.context(x, technique), skips  # (b, widths[-1], coarsest)


class RunningNorm(nn.Module):
    """Removes mean and scale as they were over many batches, in training too: a small batch's own ones would be noise."""

    mean: Tensor
    variance: Tensor

    def __init__(self, features: int, momentum: float = 0.02) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """(b, features)."""
        if self.training:
            seen = x.detach()
            self.mean.lerp_(seen.mean(0), self.momentum)
            self.variance.lerp_((seen - self.mean).square().mean(0), self.momentum)
        return (x - self.mean) / (self.variance + _LEAST_VARIANCE).sqrt()


class RegionalHead(nn.Module):
    """Logits from what is seen of each region. Normalised first: of figures with large means, small differences tell."""

    def __init__(self, features: int, answers: int) -> None:
        super().__init__()
        self.norm = RunningNorm(features)
        self.mix = nn.Sequential(nn.Linear(features, _VERDICT_HIDDEN), nn.ReLU(), nn.Linear(_VERDICT_HIDDEN, answers))

    def forward(self, regional: Tensor) -> Tensor:
        """(b, answers) from (b, features), see `regional_features`."""
        answer: Tensor = self.mix(self.norm(regional))
        return answer


class CanonicalHead(nn.Module):
    """From the decomposed hip to its figures in the canonical pose, each with a spread.

    The figures of the maps, in the pose of the radiograph, are the anchor; what is learned is how the canonical pose differs
    (Uemura 2023: by up to 18 %), from features of the whole crop and of each region. The anchor passes no gradient on: the
    maps stay what lies in the beam.
    """

    def __init__(self, coarse: int, fine: int, hidden: int = _HIDDEN) -> None:
        super().__init__()
        features = 2 * coarse + regional_width(fine)
        answers = 2 * len(REGIONS) * len(CANONICAL)
        self.mix = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, answers)
        )

    def forward(self, coarse: Tensor, regional: Tensor) -> Tensor:
        """Read the figures.

        Args:
            coarse: (b, 2 * widths[-1]) pooled coarsest level.
            regional: as `regional_features` gives it.

        Returns:
            (b, 2, regions, quantities): natural logarithms of `channels.CANONICAL` per region of `channels.REGIONS`, and the
            logarithms of their spreads.
        """
        anchor = regional[:, -len(REGIONS) * len(CANONICAL) :].reshape(-1, len(REGIONS), len(CANONICAL))
        with in_full_precision(regional):
            answer = self.mix(torch.cat([coarse.float(), regional], 1))
        difference, spread = answer.reshape(-1, 2, len(REGIONS), len(CANONICAL)).unbind(1)
        return torch.stack([anchor + difference, spread.clamp(*SPREAD_RANGE)], 1)


def in_full_precision(x: Tensor) -> torch.autocast:
    """Figures are read to four digits, whatever the convolutions compute in."""
    return torch.autocast(x.device.type, enabled=False)


def regional_width(fine: int) -> int:
    """Number of `regional_features` with `fine` channels at level 0."""
    return len(REGIONS) * (fine + len(CANONICAL))


def regional_features(fine: Tensor, channels: Tensor) -> Tensor:
    """(b, regional_width) float32: what level 0 holds of each region on average, then the logarithms of the maps' own figures.

    Args:
        fine: (b, widths[0], h/2, w/2) decoded level 0.
        channels: (b, outputs, h, w); they pass no gradient on.
    """
    masks = region_shares(channels.detach())  # (b, regions, h, w)
    figures = soft_figures(masks, channels.detach()).log()  # (b, regions, quantities)
    small = F.avg_pool2d(masks, 2)
    share = small / small.sum((2, 3), keepdim=True).clamp_min(1e-3)
    seen = torch.einsum("brhw,bchw->brc", share.to(fine.dtype), fine)
    return torch.cat([seen.flatten(1).float(), figures.flatten(1)], 1)


def region_shares(channels: Tensor) -> Tensor:
    """(b, regions, h, w): probability of each pixel to belong to each region of `channels.REGIONS`."""
    probability = channels[:, LABELS].float().softmax(1)
    return torch.stack([probability[:, list(LABELS_OF_REGION[region])].sum(1) for region in REGIONS], 1)


def soft_figures(masks: Tensor, channels: Tensor) -> Tensor:
    """(b, regions, quantities) of `channels.CANONICAL` as the maps show them, bounded away from zero."""
    pixel_cm2 = (SPACING_MM / 10) ** 2
    density, path = (channels[:, INDEX[name], None].float().clamp_min(0) for name in ("femur_density", "femur_path"))
    area = masks.sum((2, 3)).clamp_min(1.0)
    mass, volume = (masks * density).sum((2, 3)), (masks * path).sum((2, 3))
    areal_bmd, volumetric_bmd = mass / area, 1000 * mass / volume.clamp_min(1.0)
    return torch.stack([areal_bmd.clamp_min(0.05), area * pixel_cm2, volumetric_bmd.clamp_min(10.0)], 2)


class Decomposed(NamedTuple):
    """What a `HipNet` answers."""

    channels: Tensor
    """(b, outputs, h, w), raw."""
    verdicts: Tensor
    """(b, verdicts) logits: those of the whole crop, then those of the regions."""
    canonical: Tensor
    """(b, 2, regions, quantities) as `CanonicalHead` gives them; (b, 0) without one."""


class HipNet(nn.Module):
    """A residual U-Net that works at half resolution inside and answers at full resolution.

    Pixel unshuffle and shuffle at both ends keep every pixel's information at a quarter of the arithmetic, which is what
    makes the network fast on a CPU.
    """

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        widths = shape.widths
        self.encoder = Encoder(shape.inputs, widths, shape.factors)
        self.reducers = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.decoders = nn.ModuleList(ResidualBlock(a, a) for a in widths[:-1])
        self.head = nn.Conv2d(widths[0], 4 * shape.outputs, 3, 1, 1)
        self.verdict = nn.Linear(2 * widths[-1], shape.verdicts) if shape.verdicts else None
        self.canonical = CanonicalHead(widths[-1], widths[0]) if shape.canonical else None
        self.regional_verdict = (
            RegionalHead(regional_width(widths[0]), shape.regional_verdicts) if shape.regional_verdicts else None
        )

    def forward(self, image: Tensor, technique: Tensor | None = None) -> Decomposed:
        """Decompose.

        Args:
            image: (b, inputs, h, w); h and w divisible by 2 ** (number of levels).
            technique: (b, factors), see `inference.technique`; None tells nothing, as zeros do.
        """
        x, skips = self.encoder(image, technique)
        coarse = pooled(x)  # (b, 2 * widths[-1])
        for skip, reduce, decode in zip(reversed(skips), reversed(self.reducers), reversed(self.decoders), strict=True):
            x = F.interpolate(reduce(x), scale_factor=2.0, mode="nearest")
            x = decode(x + skip)  # (b, widths[i], ...)
        channels = F.pixel_shuffle(self.head(x), 2)  # (b, outputs, h, w)
        nothing = coarse[:, :0]
        verdicts = self.verdict(coarse) if self.verdict is not None else nothing
        if self.canonical is None and self.regional_verdict is None:
            return Decomposed(channels, verdicts, nothing)
        regional = regional_features(x, channels)
        if self.regional_verdict is not None:
            verdicts = torch.cat([verdicts.float(), self.regional_verdict(regional).float()], 1)
        return Decomposed(
            channels, verdicts, self.canonical(coarse, regional) if self.canonical is not None else nothing
        )


class Regressor(nn.Module):
    """The figures straight from the crop, with no picture of the bone in between: the conventional method, and a second opinion.

    A residual network (He et al. 2016, doi:10.1109/CVPR.2016.90). It says nothing of what cannot be measured: the decomposer does.
    """

    centre: Tensor

    def __init__(self, shape: RegressorShape) -> None:
        super().__init__()
        self.shape = shape
        widths = shape.widths
        self.stem = nn.Sequential(
            nn.Conv2d(_UNSHUFFLE**2 * shape.inputs, widths[0], 3, 1, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        self.level_0 = ResidualBlock(widths[0], widths[0])
        self.levels = nn.Sequential(
            *(nn.Sequential(ResidualBlock(a, b, stride=2), ResidualBlock(b, b)) for a, b in pairwise(widths))
        )
        self.reduce = nn.Conv2d(widths[-1], _PLACE_FEATURES, 1)
        self.mix = nn.Sequential(
            nn.Linear(_PLACE_FEATURES * _GRID[0] * _GRID[1] + shape.factors, _HIDDEN),
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
            (b, 2, regions, quantities) as `CanonicalHead` states them.
        """
        x = F.pixel_unshuffle(image, _UNSHUFFLE)  # (b, 16 * inputs, h/4, w/4)
        x = self.levels(self.level_0(self.stem(x)))  # (b, widths[-1], coarsest)
        places = F.adaptive_avg_pool2d(self.reduce(x), _GRID)  # (b, places' features, *grid)
        with in_full_precision(image):
            answer = self.mix(torch.cat([places.flatten(1).float(), technique.float()], 1))
        difference, spread = answer.reshape(-1, 2, len(REGIONS), len(CANONICAL)).unbind(1)
        return torch.stack([self.centre + difference, spread.clamp(*SPREAD_RANGE)], 1)
