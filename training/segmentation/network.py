"""The network: MONAI's residual U-Net in 3D with dropout, which stays on for the samples of the inference."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from monai.networks.nets.unet import UNet
from numpy.typing import NDArray
from torch import Tensor, nn

from training.anatomy.muscles import Muscle
from training.segmentation.config import MusclesConfiguration, SegmentationRun, UNetConfiguration

CLASSES = 4
"""Nothing, femur, hip bone, sacrum."""
MUSCLE_CLASSES = len(Muscle) + 1
"""Nothing, and each `Muscle` plus 1."""
_SOFT_HU, _BONE_HU = (-200.0, 300.0), (-1000.0, 2000.0)
"""Windows of the two channels: tissues apart, and bone without saturation."""


def build_network(run: SegmentationRun) -> nn.Module:
    """(b, 2, z, y, x) of `network_input` to (b, CLASSES, z, y, x) logits: the bones.

    Source: Kerfoot 2018, doi:10.1007/978-3-030-12029-0_40 (the network); Gal 2016, arXiv 1506.02142 (dropout as sampling).
    """
    return _unet(2, CLASSES, run.network.widths, run.unet)


def build_muscle_network(run: SegmentationRun, muscles: MusclesConfiguration) -> nn.Module:
    """(b, 5, z, y, x) of `muscle_input` to (b, MUSCLE_CLASSES, z, y, x) logits: another network of the same kind."""
    return _unet(2 + CLASSES - 1, MUSCLE_CLASSES, muscles.network.widths, run.unet)


def _unet(inputs: int, classes: int, widths: tuple[int, ...], unet: UNetConfiguration) -> nn.Module:
    return UNet(
        spatial_dims=3,
        in_channels=inputs,
        out_channels=classes,
        channels=widths,
        strides=(2,) * (len(widths) - 1),
        num_res_units=unet.residual_units,
        norm="INSTANCE",
        dropout=unet.dropout,
    )


def network_input(hu: NDArray[np.float32]) -> Tensor:
    """(z, y, x) Hounsfield units to (2, z, y, x): a soft-tissue and a bone window, each from -1 to 1."""
    values = torch.from_numpy(np.ascontiguousarray(hu))
    return torch.stack([((values - low) * (2 / (high - low)) - 1).clamp(-1, 1) for low, high in (_SOFT_HU, _BONE_HU)])


def muscle_input(hu: NDArray[np.float32], bones: NDArray[np.float32]) -> Tensor:
    """`network_input`, and the bones (CLASSES - 1, z, y, x) from 0 to 1 that lie in it: (5, z, y, x)."""
    return torch.cat([network_input(hu), torch.from_numpy(np.ascontiguousarray(bones))])


@contextmanager
def dropout_on(network: nn.Module) -> Iterator[None]:
    """Evaluate with dropout as in training, and everything else as in use."""
    network.eval()
    layers = [module for module in network.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        network.eval()
