"""What a network says of a volume while its dropout stays on: probabilities, and how sure their spread is of a structure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.inferers.inferer import SlidingWindowInferer
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from training.engine import has_fast_bfloat16
from training.segmentation.config import InferenceConfiguration
from training.segmentation.network import dropout_on
from training.segmentation.quality import QualityLine

REACH_VOXELS = 2.0
"""So far beyond a structure's voxels its probability is still its own; further away it is another piece's."""


@dataclass(frozen=True)
class Sampled:
    """Of each class's probability over the samples, (classes, z, y, x) both."""

    mean: NDArray[np.float32]
    variance: NDArray[np.float32]


@dataclass(frozen=True)
class StructureFigures:
    """One structure of one CT."""

    volume_cm3: float
    """0 where it was not found."""
    uncertainty: float
    """Variance of the class's probability over the samples, summed around the structure, per expected voxel (Hiasa 2019's
    structure-wise variance with the structure's border); 1 where it was not found."""
    predicted_dice: float
    is_doubtful: bool


def sample_probabilities(
    network: nn.Module, image: Tensor, patch: int, how: InferenceConfiguration, seed: int, progress: bool = False
) -> Sampled:
    """Sample by a sliding window.

    Source: Hiasa 2019, doi:10.1109/TMI.2019.2940555 (sampling by dropout).

    Args:
        image: (channels, z, y, x), what the network takes.
        patch: edge of the window, voxels.
    """
    device = next(network.parameters()).device
    # All samples of a window go through the network as one batch, each with its own dropout.
    window: Any = SlidingWindowInferer(
        (patch, patch, patch),
        sw_batch_size=how.samples,
        overlap=how.overlap,
        mode="gaussian",
        padding_mode="replicate",
        device="cpu",
        progress=progress,
    )
    images = image[None].expand(how.samples, -1, -1, -1, -1).to(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), dropout_on(network), torch.inference_mode():
        torch.manual_seed(seed)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device)):
            logits = window(images, network)
        probabilities = logits.float().softmax(dim=1)
    return Sampled(probabilities.mean(dim=0).numpy(), probabilities.var(dim=0, correction=0).numpy())


def surroundings(values: NDArray[np.uint8], class_of: Mapping[int, int]) -> dict[int, NDArray[np.bool_]]:
    """Structure to its voxels and those within reach that no other structure of its class is nearer to."""
    around: dict[int, NDArray[np.bool_]] = {}
    for label in set(class_of.values()):
        own = [value for value, of in class_of.items() if of == label]
        kept = np.isin(values, own)
        if not kept.any():
            around |= dict.fromkeys(own, kept)
            continue
        distance, nearest = ndimage.distance_transform_edt(~kept, return_indices=True)
        owner = np.where(distance <= REACH_VOXELS, values[tuple(nearest)], 0)
        around |= {value: owner == value for value in own}
    return around


def structure_figures(
    volume_cm3: float,
    near: NDArray[np.bool_],
    sampled: Sampled,
    label: int,
    quality: QualityLine,
    least_dice: float,
) -> StructureFigures:
    """How sure the samples are of a structure.

    Args:
        near: of `surroundings`.
        label: its class.
    """
    expected = float(sampled.mean[label][near].sum())
    if not volume_cm3 or not expected:
        return StructureFigures(volume_cm3, 1.0, 0.0, True)
    uncertainty = float(sampled.variance[label][near].sum()) / expected
    dice = quality.dice(uncertainty)
    return StructureFigures(volume_cm3, uncertainty, dice, dice < least_dice)
