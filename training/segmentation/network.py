"""The network: MONAI's residual U-Net in 3D with dropout, which stays on for the samples of the inference."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from monai.networks.nets.unet import UNet
from numpy.typing import NDArray
from torch import Tensor, nn

from training.segmentation.config import SegmentationRun

CLASSES = 4
"""Nothing, femur, hip bone, sacrum."""
_SOFT_HU, _BONE_HU = (-200.0, 300.0), (-1000.0, 2000.0)
"""Windows of the two channels: tissues apart, and bone without saturation."""


def build_network(run: SegmentationRun) -> nn.Module:
    """(b, 2, z, y, x) of `network_input` to (b, CLASSES, z, y, x) logits.

    Source: Kerfoot 2018, doi:10.1007/978-3-030-12029-0_40 (the network); Gal 2016, arXiv 1506.02142 (dropout as sampling).
    """
    return UNet(
        spatial_dims=3,
        in_channels=2,
        out_channels=CLASSES,
        channels=run.network.widths,
        strides=(2,) * (len(run.network.widths) - 1),
        num_res_units=run.unet.residual_units,
        norm="INSTANCE",
        dropout=run.unet.dropout,
    )


def network_input(hu: NDArray[np.float32]) -> Tensor:
    """(z, y, x) Hounsfield units to (2, z, y, x): a soft-tissue and a bone window, each from -1 to 1."""
    values = torch.from_numpy(np.ascontiguousarray(hu))
    return torch.stack([((values - low) * (2 / (high - low)) - 1).clamp(-1, 1) for low, high in (_SOFT_HU, _BONE_HU)])


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
