"""A CT in, a label map out, with how sure the network is of each structure."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.inferers.inferer import SlidingWindowInferer
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from training.anatomy.ct import CtVolume
from training.anatomy.labels import LabelMap
from training.engine import has_fast_bfloat16
from training.segmentation.border import sharpened
from training.segmentation.grid import interpolated, to_grid
from training.segmentation.model import SegmentationModel
from training.segmentation.network import dropout_on, network_input
from training.segmentation.structures import CLASS_OF, NAMES, with_sides

REACH_VOXELS = 2.0
"""So far beyond a structure's voxels its probability is still its own; further away it is another piece's."""


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


@dataclass(frozen=True)
class Segmentation:
    """What was found in a CT."""

    labels: LabelMap
    """On the CT's own grid."""
    figures: dict[str, StructureFigures]


def segment(ct: CtVolume, model: SegmentationModel, seed: int = 0, progress: bool = False) -> Segmentation:
    """Segment femora, hip bones and sacrum.

    Args:
        seed: of the dropout.
        progress: show a bar over the windows.
    """
    hu, patient_from_grid = to_grid(ct, model.run.unet.voxel_mm)
    mean, variance = sample_probabilities(hu, model, seed, progress)
    values = with_sides(mean.argmax(axis=0).astype(np.uint8), patient_from_grid)
    around = _surroundings(values)
    labels = without_holes(_on_ct(mean, around, patient_from_grid, ct, model.border))
    voxel_cm3 = abs(float(np.linalg.det(ct.patient_from_voxel[:3, :3]))) / 1000
    counts = np.bincount(labels.ravel(), minlength=len(NAMES) + 1)
    figures = {}
    for value, name in NAMES.items():
        near, label = around[value], CLASS_OF[value]
        expected = float(mean[label][near].sum())
        uncertainty = float(variance[label][near].sum()) / expected if counts[value] and expected else 1.0
        dice = model.quality.dice(uncertainty) if counts[value] else 0.0
        figures[name] = StructureFigures(
            float(counts[value]) * voxel_cm3, uncertainty, dice, dice < model.run.inference.least_dice
        )
    return Segmentation(LabelMap(labels.astype(np.uint16), NAMES, ct.patient_from_voxel), figures)


def sample_probabilities(
    hu: NDArray[np.float32], model: SegmentationModel, seed: int, progress: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and variance over the samples of each class's probability, (CLASSES, z, y, x) both, by a sliding window.

    Source: Hiasa 2019, doi:10.1109/TMI.2019.2940555 (sampling by dropout).
    """
    samples, patch = model.run.inference.samples, model.run.unet.patch
    device = next(model.network.parameters()).device
    # All samples of a window go through the network as one batch, each with its own dropout.
    window: Any = SlidingWindowInferer(
        (patch, patch, patch),
        sw_batch_size=samples,
        overlap=model.run.inference.overlap,
        mode="gaussian",
        padding_mode="replicate",
        device="cpu",
        progress=progress,
    )
    image = network_input(hu)[None].expand(samples, -1, -1, -1, -1).to(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), dropout_on(model.network), torch.inference_mode():
        torch.manual_seed(seed)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device)):
            logits = window(image, model.network)
        probabilities = logits.float().softmax(dim=1)
    return probabilities.mean(dim=0).numpy(), probabilities.var(dim=0, correction=0).numpy()


def _surroundings(values: NDArray[np.uint8]) -> dict[int, NDArray[np.bool_]]:
    """Structure to its voxels and those within reach that no other structure of its class is nearer to."""
    around: dict[int, NDArray[np.bool_]] = {}
    for label in set(CLASS_OF.values()):
        own = [value for value, of in CLASS_OF.items() if of == label]
        kept = np.isin(values, own)
        if not kept.any():
            around |= dict.fromkeys(own, kept)
            continue
        distance, nearest = ndimage.distance_transform_edt(~kept, return_indices=True)
        owner = np.where(distance <= REACH_VOXELS, values[tuple(nearest)], 0)
        around |= {value: owner == value for value in own}
    return around


def _on_ct(
    mean: NDArray[np.float32],
    around: dict[int, NDArray[np.bool_]],
    patient_from_grid: NDArray[np.float64],
    ct: CtVolume,
    border: nn.Module,
) -> NDArray[np.uint8]:
    """Labels on the CT's grid: whatever is more likely a bone than not, with borders finer than the network's voxels."""
    grid_from_ct = np.linalg.inv(patient_from_grid) @ ct.patient_from_voxel
    likeliest = mean.argmax(axis=0)
    best = np.full(ct.hu.shape, 0.5, np.float32)
    labels = np.zeros(ct.hu.shape, np.uint8)
    for label in sorted(set(CLASS_OF.values())):
        own = {value: near for value, near in around.items() if CLASS_OF[value] == label and near.any()}
        if own:
            inside = np.logical_or.reduce(list(own.values())) & (likeliest == label)
            other = mean[1:].sum(axis=0) - mean[label]
            probability = sharpened(border, ct, inside, mean[label], other, patient_from_grid)
        for value, near in own.items():
            is_near = interpolated(near.astype(np.float32), grid_from_ct, ct.hu.shape, 0.0) > 0.5
            is_best = is_near & (probability > best)
            labels[is_best] = value
            best[is_best] = probability[is_best]
    return labels


def without_holes(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fill what a structure encloses on all sides: bones are solid here, marrow is part of them."""
    solid = labels.copy()
    for value, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            solid[box][ndimage.binary_fill_holes(labels[box] == value)] = value
    return solid
