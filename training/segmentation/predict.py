"""A CT in, a label map out, with how sure the networks are of each structure: first the bones, then the muscles around them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from training.anatomy.ct import CtVolume
from training.anatomy.labels import LabelMap
from training.segmentation.border import sharpened
from training.segmentation.config import InferenceConfiguration
from training.segmentation.grid import box_around, interpolated, to_grid
from training.segmentation.model import MuscleModel, SegmentationModel
from training.segmentation.network import CLASSES, muscle_input, network_input
from training.segmentation.sampling import StructureFigures, sample_probabilities, structure_figures, surroundings
from training.segmentation.structures import (
    CLASS_OF,
    MUSCLE_CLASS_OF,
    MUSCLE_NAMES,
    NAMES,
    muscles_with_sides,
    with_sides,
)


@dataclass(frozen=True)
class Segmentation:
    """What was found in a CT."""

    labels: LabelMap
    """On the CT's own grid."""
    figures: dict[str, StructureFigures]


def segment(ct: CtVolume, model: SegmentationModel, seed: int = 0, progress: bool = False) -> Segmentation:
    """Segment femora, hip bones and sacrum, and the muscles of the hip where the model knows them.

    Args:
        seed: of the dropout.
        progress: show a bar over the windows.
    """
    labels, figures = _bones(ct, model, seed, progress)
    names = NAMES
    if model.muscles is not None:
        muscles, of_muscles = _muscles(ct, labels, model.muscles, model.run.inference, seed, progress)
        labels = np.where(labels > 0, labels, muscles)
        names, figures = NAMES | MUSCLE_NAMES, figures | of_muscles
    return Segmentation(LabelMap(labels.astype(np.uint16), names, ct.patient_from_voxel), figures)


def _bones(
    ct: CtVolume, model: SegmentationModel, seed: int, progress: bool
) -> tuple[NDArray[np.uint8], dict[str, StructureFigures]]:
    """(z, y, x) values of `NAMES` on the CT's grid, and the figures of each."""
    unet, how = model.run.unet, model.run.inference
    hu, patient_from_grid = to_grid(ct, unet.voxel_mm)
    sampled = sample_probabilities(model.network, network_input(hu), unet.patch, how, seed, progress)
    values = with_sides(sampled.mean.argmax(axis=0).astype(np.uint8), patient_from_grid)
    around = surroundings(values, CLASS_OF)
    labels = without_holes(_on_ct(sampled.mean, around, patient_from_grid, ct, model.border))
    figures = {
        name: structure_figures(
            _volume_cm3(labels, value, ct), around[value], sampled, CLASS_OF[value], model.quality, how.least_dice
        )
        for value, name in NAMES.items()
    }
    return labels, figures


def _muscles(
    ct: CtVolume,
    bones: NDArray[np.uint8],
    model: MuscleModel,
    how: InferenceConfiguration,
    seed: int,
    progress: bool,
) -> tuple[NDArray[np.uint8], dict[str, StructureFigures]]:
    """(z, y, x) values of `MUSCLE_NAMES` on the CT's grid, 0 in bones, and the figures of each."""
    hu, patient_from_grid = to_grid(ct, model.run.voxel_mm)
    near_bones = _nearest(bones, ct, patient_from_grid, hu.shape)
    seen = [np.isin(near_bones, [v for v, of in CLASS_OF.items() if of == label]) for label in range(1, CLASSES)]
    image = muscle_input(hu, np.stack(seen).astype(np.float32))
    sampled = sample_probabilities(model.network, image, model.run.patch, how, seed, progress)
    named = muscles_with_sides(sampled.mean.argmax(axis=0).astype(np.uint8), near_bones, patient_from_grid)
    around = surroundings(named, MUSCLE_CLASS_OF)
    labels = np.where(bones == 0, _likeliest_on_ct(sampled.mean, around, patient_from_grid, ct), np.uint8(0))
    figures = {
        name: structure_figures(
            _volume_cm3(labels, value, ct),
            around[value],
            sampled,
            MUSCLE_CLASS_OF[value],
            model.quality,
            model.run.least_dice,
        )
        for value, name in MUSCLE_NAMES.items()
    }
    return labels, figures


def _likeliest_on_ct(
    mean: NDArray[np.float32],
    around: dict[int, NDArray[np.bool_]],
    patient_from_grid: NDArray[np.float64],
    ct: CtVolume,
) -> NDArray[np.uint8]:
    """(z, y, x) the likeliest muscle, or 0 for none, on the CT's grid; each is read where it is, as CTs are large."""
    grid_from_ct = np.asarray(np.linalg.inv(patient_from_grid) @ ct.patient_from_voxel, np.float64)
    ct_from_grid = np.asarray(np.linalg.inv(grid_from_ct), np.float64)
    best = interpolated(mean[0], grid_from_ct, ct.hu.shape, 1.0)
    labels = np.zeros(ct.hu.shape, np.uint8)
    for value, near in around.items():
        if near.any():
            low, high = box_around(near, ct_from_grid, ct.hu.shape, 1.0)
            shift = np.eye(4)
            shift[:3, 3] = low[::-1]
            own = np.where(near, mean[MUSCLE_CLASS_OF[value]], np.float32(0))
            probability = interpolated(own, grid_from_ct @ shift, tuple(high - low), 0.0)
            box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            is_best = probability > best[box]
            labels[box][is_best] = value
            best[box][is_best] = probability[is_best]
    return labels


def _nearest(
    bones: NDArray[np.uint8], ct: CtVolume, patient_from_grid: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    matrix = np.linalg.inv(ct.patient_from_voxel) @ patient_from_grid
    found = ndimage.affine_transform(bones, matrix[:3, :3][::-1, ::-1], matrix[:3, 3][::-1], shape, order=0)
    return np.asarray(found, np.uint8)


def _volume_cm3(labels: NDArray[np.uint8], value: int, ct: CtVolume) -> float:
    return float((labels == value).sum()) * abs(float(np.linalg.det(ct.patient_from_voxel[:3, :3]))) / 1000


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
