"""Structures with sides out of classes without sides: components, and the plane that halves the pelvis."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.anatomy import muscles

NAMES = {1: "right_femur", 2: "left_femur", 3: "right_hip", 4: "left_hip", 5: "sacrum"}
"""Values of the label map. "hip" is the hip bone; `training.anatomy.labels.label_map` brings these under the project's names."""
FEMUR, HIP, SACRUM = 1, 2, 3
"""Classes of the network, see `training.segmentation.tissues.label_values`."""
CLASS_OF = {1: FEMUR, 2: FEMUR, 3: HIP, 4: HIP, 5: SACRUM}
FIRST_MUSCLE = len(NAMES) + 1
MUSCLE_NAMES = dict(enumerate(muscles.NAMES, start=FIRST_MUSCLE))
"""Further values of the label map, where the model knows muscles."""
MUSCLE_CLASS_OF = {FIRST_MUSCLE + n: muscle + 1 for n, (_, muscle) in enumerate(muscles.CHANNELS)}
"""To the classes of their network."""
LEAST_CM3 = 3.0
"""A smaller piece is none of the structures."""
LEAST_BETWEEN_HIPS_MM = 85.0
"""Two hip bones' centres lie about 150 mm apart, halves of one at most half as far; own choice."""
LEAST_SHARE = 0.1
"""Of a muscle's largest piece: smaller ones are bowel or another muscle. A group may have several pieces in a field that ends; own
choice."""
ABOVE_CRESTS_MM = 10.0
"""So far above the hip bones that were found a muscle that arises from them may still be seen; own choice."""
LEAST_ASIDE_MM = 45.0
"""The middle of no femur lies so near to the midsagittal plane (heads: 74 mm or more in the phantoms); vertebrae do."""


def with_sides(classes: NDArray[np.uint8], patient_from_voxel: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Name the bones: (z, y, x) values of `NAMES`, 0 elsewhere, from (z, y, x) classes.

    Where both hip bones are in the field, the plane half-way between their centres parts left and right. Where one is, the femur
    lies lateral of it. Vertebrae that were taken for a femur give themselves away by lying in the middle. Of each structure only
    the largest connected component is kept, if it has at least `LEAST_CM3`.
    """
    spacing_mm = np.linalg.norm(patient_from_voxel[:3, :3], axis=0)
    voxel_cm3 = float(np.prod(spacing_mm)) / 1000
    found = np.zeros_like(classes)
    sacrum = _largest(classes == SACRUM, voxel_cm3)
    hips = _pieces(classes == HIP, voxel_cm3)
    femora = _pieces(classes == FEMUR, voxel_cm3)
    halving = _halving_plane(hips, patient_from_voxel)
    if halving is not None:
        femora &= ~_near_plane(femora, patient_from_voxel, halving)
    plane = halving or _side_of_one(hips, femora, sacrum, patient_from_voxel)
    found[sacrum] = 5
    for pieces, right in ((femora, 1), (hips, 3)):
        left_of = _left_of(pieces, patient_from_voxel, plane, by_voxel=right == 3)
        for value, mask in ((right, pieces & ~left_of), (right + 1, pieces & left_of)):
            found[_largest(mask, voxel_cm3)] = value
    return found


def muscles_with_sides(
    classes: NDArray[np.uint8], bones: NDArray[np.uint8], patient_from_voxel: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Name the muscles: (z, y, x) values of `MUSCLE_NAMES`, 0 elsewhere, from their classes; the bones tell the sides.

    Above the iliac crests there is the iliopsoas alone.

    Args:
        bones: (z, y, x) values of `NAMES`.
        patient_from_voxel: of a grid along the patient's axes.
    """
    femora, hips = np.isin(bones, (1, 2)), np.isin(bones, (3, 4))
    if hips.any():
        heights_mm = patient_from_voxel[2, 2] * np.arange(len(classes)) + patient_from_voxel[2, 3]
        is_above = heights_mm > heights_mm[hips.any(axis=(1, 2))].max() + ABOVE_CRESTS_MM
        is_psoas = classes == muscles.Muscle.ILIOPSOAS + 1
        classes = np.where(is_above[:, None, None] & ~is_psoas, np.uint8(0), classes)
    plane = _halving_plane(hips, patient_from_voxel) or _side_of_one(hips, femora, bones == 5, patient_from_voxel)
    voxel_cm3 = float(abs(np.linalg.det(patient_from_voxel[:3, :3]))) / 1000
    found = np.zeros_like(classes)
    for muscle in range(1, classes.max(initial=0) + 1):
        left_of = _left_of(classes == muscle, patient_from_voxel, plane, by_voxel=True)
        for mask, first in (((classes == muscle) & ~left_of, 0), (left_of, len(muscles.Muscle))):
            found[_pieces(mask, voxel_cm3, LEAST_SHARE)] = FIRST_MUSCLE + first + muscle - 1
    return found


def _pieces(mask: NDArray[np.bool_], voxel_cm3: float, least_share: float = 0.0) -> NDArray[np.bool_]:
    """Without the pieces that are too small, by themselves or beside the largest one."""
    pieces, _ = ndimage.label(mask)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    large = sizes >= max(LEAST_CM3 / voxel_cm3, least_share * float(sizes.max()))
    return np.asarray(large[pieces], np.bool_)


def _largest(mask: NDArray[np.bool_], voxel_cm3: float) -> NDArray[np.bool_]:
    pieces, count = ndimage.label(mask)
    if not count:
        return mask
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    number = int(sizes.argmax())
    return np.asarray((pieces == number) & (sizes[number] * voxel_cm3 >= LEAST_CM3), np.bool_)


def _points_mm(mask: NDArray[np.bool_], patient_from_voxel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.argwhere(mask)[:, ::-1] @ patient_from_voxel[:3, :3].T + patient_from_voxel[:3, 3])


Plane = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Point, and direction to the patient's left."""


def _halving_plane(hips: NDArray[np.bool_], patient_from_voxel: NDArray[np.float64]) -> Plane | None:
    """The plane half-way between the centres of two hip bones, which need not be parted yet (two means); None if there is one."""
    points = _points_mm(hips, patient_from_voxel)
    if len(points) < 2:
        return None
    centres = np.quantile(points, (0.1, 0.9), axis=0)
    centres[:, 1:] = points[:, 1:].mean(axis=0)  # right, left
    for _ in range(10):
        left = (points - centres.mean(axis=0)) @ (centres[1] - centres[0]) > 0
        if left.all() or not left.any():
            return None
        centres = np.stack([points[~left].mean(axis=0), points[left].mean(axis=0)])
    between = centres[1] - centres[0]
    if between[0] < LEAST_BETWEEN_HIPS_MM:
        return None
    return centres.mean(axis=0), between / np.linalg.norm(between)


def _near_plane(mask: NDArray[np.bool_], patient_from_voxel: NDArray[np.float64], plane: Plane) -> NDArray[np.bool_]:
    """(z, y, x) True in connected pieces whose middle lies within `LEAST_ASIDE_MM` of the plane."""
    pieces, _ = ndimage.label(mask)
    numbers = pieces[mask]
    aside_mm = (_points_mm(mask, patient_from_voxel) - plane[0]) @ plane[1]
    sums = np.bincount(numbers, weights=aside_mm, minlength=pieces.max() + 1)
    middles = sums / np.maximum(np.bincount(numbers, minlength=pieces.max() + 1), 1)
    return np.asarray(mask & (np.abs(middles) < LEAST_ASIDE_MM)[pieces], np.bool_)


def _side_of_one(
    hips: NDArray[np.bool_],
    femora: NDArray[np.bool_],
    sacrum: NDArray[np.bool_],
    patient_from_voxel: NDArray[np.float64],
) -> Plane:
    """A plane with everything of one hip on its side: lateral is where the femur lies, or away from the sacrum."""
    left = np.array([1.0, 0.0, 0.0])
    middles = [
        _points_mm(mask, patient_from_voxel).mean(axis=0) if mask.any() else None for mask in (femora, hips, sacrum)
    ]
    femur, hip, sacral = middles
    lateral, medial = femur if femur is not None else hip, sacral if sacral is not None else hip
    if (femur is None and sacral is None) or lateral is None or medial is None:
        size = np.array(hips.shape[::-1])  # nothing to tell by: the middle of the field
        return (patient_from_voxel @ [*((size - 1) / 2), 1])[:3], left
    away = 300.0 if lateral[0] < medial[0] else -300.0
    if sacral is not None:
        return sacral, left
    return medial + away * left, left


def _left_of(
    mask: NDArray[np.bool_], patient_from_voxel: NDArray[np.float64], plane: Plane, by_voxel: bool
) -> NDArray[np.bool_]:
    """(z, y, x) True left of the plane: each voxel by itself, or each connected piece as a whole."""
    point, left = plane
    left_of = np.zeros(mask.shape, np.bool_)
    left_of[mask] = (_points_mm(mask, patient_from_voxel) - point) @ left > 0
    if by_voxel:
        return left_of
    pieces, _ = ndimage.label(mask)
    sizes = np.maximum(np.bincount(pieces.ravel()), 1)
    share = np.bincount(pieces.ravel(), weights=left_of.ravel()) / sizes
    return np.asarray((share > 0.5)[pieces] & mask, np.bool_)
