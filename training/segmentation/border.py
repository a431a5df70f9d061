"""Where a bone's border lies, finer than the voxels of the U-Net: read from the CT itself, across the border that was found.

Along the normal through each of the CT's voxels near a border lie a cortex and what is outside of it. A small network reads that
profile, the Hounsfield units and the U-Net's probabilities together, and says whether the voxel belongs to the bone.

Source: Cootes 1995, doi:10.1006/cviu.1995.1004 (borders from profiles along the normal). A network in place of a statistical model
of profiles, and all numbers here, are own choices.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from training.anatomy.ct import CtVolume
from training.segmentation.grid import box_around, interpolated, moved

REACH_MM = 3.0
"""So far from the border that the U-Net drew, on both sides, voxels are decided anew."""
STEPS_MM = np.arange(-4.0, 4.1, 0.5)
"""Places of a profile; positive ones lie further inside."""
FEATURES = 3 * len(STEPS_MM) + 4
WIDTH = 64
_SMOOTH_VOXELS = 0.7
_LOW_HU, _HIGH_HU, _SCALE_HU, _SCALE_MM = (np.float32(value) for value in (-300, 1500, 500, 2))
_CHUNK = 100_000


def build_border() -> nn.Sequential:
    """(n, FEATURES) of `profiles` to (n, 1) logits: is the voxel of the bone?"""
    return nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1))


def profiles(
    ct: CtVolume,
    inside: NDArray[np.bool_],
    own: NDArray[np.float32],
    other: NDArray[np.float32],
    patient_from_grid: NDArray[np.float64],
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Read the profiles across a bone's border, for all of the CT's voxels within `REACH_MM` of it.

    Args:
        inside: (z, y, x) the bone on the U-Net's grid.
        own: (z, y, x) its probability there.
        other: (z, y, x) that of the other bones.

    Yields:
        (n, 3) voxels (z, y, x) of the CT, and (n, FEATURES) of them: Hounsfield units, own and other probability along the
        normal, the depth, how far the normal leans across the slices, and the CT's spacing along and across them.
    """
    if not inside.any():
        return
    voxel_mm = float(patient_from_grid[0, 0])
    # From voxel to voxel; the border itself runs half a voxel before the first one of the other side.
    deep, far = (ndimage.distance_transform_edt(part) for part in (inside, ~inside))
    depth = np.where(inside, deep - 0.5, 0.5 - far).astype(np.float32) * np.float32(voxel_mm)
    depth_mm = ndimage.gaussian_filter(depth, _SMOOTH_VOXELS)
    inward = [np.asarray(slope, np.float32) for slope in np.gradient(depth_mm)]
    grid_from_ct = np.asarray(np.linalg.inv(patient_from_grid) @ ct.patient_from_voxel, np.float64)
    ct_from_grid = np.asarray(np.linalg.inv(grid_from_ct), np.float64)
    low, high = box_around(inside, ct_from_grid, ct.hu.shape, REACH_MM / voxel_mm + 2)
    shift = np.eye(4)
    shift[:3, 3] = low[::-1]
    near = interpolated(depth_mm, grid_from_ct @ shift, tuple(high - low), -np.inf)
    voxels = np.argwhere(np.abs(near) < REACH_MM) + low
    spacing_mm = np.linalg.norm(ct.patient_from_voxel[:3, :3], axis=0)[::-1]
    across_slices = (ct.patient_from_voxel[:3, 2][::-1] / spacing_mm[0]).astype(np.float32)
    for start in range(0, len(voxels), _CHUNK):
        index = voxels[start : start + _CHUNK]
        points = moved(index, grid_from_ct)
        normal = np.stack([_read(slope, points) for slope in inward], axis=1)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-6
        columns: list[NDArray[np.float32]] = []
        for step_mm in STEPS_MM:
            places = points + normal * np.float32(step_mm / voxel_mm)
            hu = _read(ct.hu, moved(places, ct_from_grid))
            columns += [np.clip(hu, _LOW_HU, _HIGH_HU) / _SCALE_HU, _read(own, places), _read(other, places)]
        columns += [_read(depth_mm, points) / _SCALE_MM, np.abs(normal @ across_slices)]
        columns += [np.full(len(index), spacing_mm[axis], np.float32) for axis in (0, 1)]
        yield index, torch.from_numpy(np.stack(columns, axis=1))


def sharpened(
    border: nn.Module,
    ct: CtVolume,
    inside: NDArray[np.bool_],
    own: NDArray[np.float32],
    other: NDArray[np.float32],
    patient_from_grid: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Probability of a bone on the CT's voxels: the U-Net's, and near the border that of its profiles.

    Args:
        border: of `build_border`; the others as for `profiles`.
    """
    device = next(border.parameters()).device
    probability = interpolated(own, np.linalg.inv(patient_from_grid) @ ct.patient_from_voxel, ct.hu.shape, 0.0)
    with torch.inference_mode():
        for index, features in profiles(ct, inside, own, other, patient_from_grid):
            probability[tuple(index.T)] = border(features.to(device))[:, 0].sigmoid().cpu().numpy()
    return probability


def _read(values: NDArray[np.float32], points: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(ndimage.map_coordinates(values, points.T, np.float32, order=1, mode="nearest"))
