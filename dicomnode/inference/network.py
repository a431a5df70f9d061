"""The networks, with the shape on each line. Shapes are (b, c, h, w)."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class NetworkShape:
    """Everything that is needed to build a `HipNet` before its weights are loaded; part of the bundle."""

    inputs: int
    outputs: int
    widths: tuple[int, ...]
    """Channels per level; level 0 works at half of the input's resolution."""
    verdicts: int = 0
    """Number of scalar logits that are read from the coarsest level (0: none)."""


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
    receptive field of a convolution does not see.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor) -> Tensor:
        summary = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        scale, shift = self.mix(summary)[:, :, None, None].chunk(2, 1)
        return F.relu(x * (1 + scale) + shift)


class HipNet(nn.Module):
    """A residual U-Net that works at half resolution inside and answers at full resolution.

    Pixel unshuffle and shuffle at both ends keep every pixel's information at a quarter of the arithmetic, which is what
    makes the network fast on a CPU.
    """

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        widths = shape.widths
        self.stem = nn.Conv2d(4 * shape.inputs, widths[0], 3, 1, 1)
        self.encode_0 = ResidualBlock(widths[0], widths[0])
        self.encoders = nn.ModuleList(
            nn.Sequential(ResidualBlock(a, b, stride=2), ResidualBlock(b, b)) for a, b in pairwise(widths)
        )
        self.context = GlobalContext(widths[-1])
        self.reducers = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.decoders = nn.ModuleList(ResidualBlock(a, a) for a in widths[:-1])
        self.head = nn.Conv2d(widths[0], 4 * shape.outputs, 3, 1, 1)
        self.verdict = nn.Linear(2 * widths[-1], shape.verdicts) if shape.verdicts else None

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Decompose.

        Args:
            image: (b, inputs, h, w); h and w divisible by 2 ** (number of levels).

        Returns:
            (b, outputs, h, w) raw channels, and (b, verdicts) logits.
        """
        x = F.pixel_unshuffle(image, 2)  # (b, 4 * inputs, h/2, w/2)
        x = self.encode_0(self.stem(x))  # (b, widths[0], h/2, w/2)
        skips = []
        for encoder in self.encoders:
            skips.append(x)
            x = encoder(x)  # (b, widths[i], h/2^(i+1), w/2^(i+1))
        x = self.context(x)  # (b, widths[-1], coarsest)
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)  # (b, 2 * widths[-1])
        verdicts = self.verdict(pooled) if self.verdict is not None else pooled[:, :0]
        for skip, reduce, decode in zip(reversed(skips), reversed(self.reducers), reversed(self.decoders), strict=True):
            x = F.interpolate(reduce(x), scale_factor=2.0, mode="nearest")
            x = decode(x + skip)  # (b, widths[i], ...)
        return F.pixel_shuffle(self.head(x), 2), verdicts  # (b, outputs, h, w)
