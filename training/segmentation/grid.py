"""Between the voxels of a CT and the cubic ones that a network sees."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.anatomy.ct import AIR_HU, CtVolume


def to_grid(ct: CtVolume, voxel_mm: float) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Resample a CT to cubic voxels along the patient's axes, smoothed where it is finer.

    Returns:
        (z, y, x) Hounsfield units with air around, and 4 x 4 patient_from_grid.
    """
    spacing_mm = np.linalg.norm(ct.patient_from_voxel[:3, :3], axis=0)[::-1]
    # A Gaussian for each axis that is as wide as what the coarser voxel averages beyond the finer one (variance of a box: w2/12).
    sigma = np.sqrt(np.maximum(voxel_mm**2 - spacing_mm**2, 0) / 12) / spacing_mm
    smooth = ndimage.gaussian_filter(ct.hu, sigma, mode="nearest") if sigma.max() > 0.1 else ct.hu
    corners = np.array([[*(np.array(ct.hu.shape[::-1]) * share - 0.5), 1] for share in np.ndindex(2, 2, 2)])
    corners_mm = np.asarray((corners @ ct.patient_from_voxel.T)[:, :3], np.float64)
    low, high = corners_mm.min(axis=0), corners_mm.max(axis=0)
    size = np.maximum(np.rint((high - low) / voxel_mm).astype(int), 1)
    matrix = np.eye(4) * [voxel_mm, voxel_mm, voxel_mm, 1.0]
    matrix[:3, 3] = (low + high) / 2 - (size - 1) / 2 * voxel_mm
    hu = interpolated(smooth, np.linalg.inv(ct.patient_from_voxel) @ matrix, tuple(size[::-1]), AIR_HU)
    return hu, matrix


def interpolated(
    values: NDArray[np.float32], source_from_target: NDArray[np.float64], shape: tuple[int, ...], outside: float
) -> NDArray[np.float32]:
    """Linear interpolation; the outermost voxels count to their outer faces, beyond lies `outside`."""
    matrix, offset = source_from_target[:3, :3][::-1, ::-1], source_from_target[:3, 3][::-1]
    found = ndimage.affine_transform(values, matrix, offset, shape, np.float32, order=1, mode="nearest")
    ticks = np.indices(shape, sparse=True)
    inside = np.ones(shape, np.bool_)
    for axis, length in enumerate(values.shape):
        place = sum(matrix[axis, n] * ticks[n] for n in range(3)) + offset[axis]
        inside &= (place >= -0.5 - 1e-6) & (place <= length - 0.5 + 1e-6)
    found[~inside] = outside
    return np.asarray(found, np.float32)


def box_around(
    inside: NDArray[np.bool_], target_from_source: NDArray[np.float64], shape: tuple[int, ...], margin: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last + 1 voxels (z, y, x) of a target that hold a mask of the source within a margin, in the source's voxels."""
    part = ndimage.find_objects(inside.astype(np.uint8))[0]
    edges = np.array([[side.start - margin, side.stop - 1 + margin] for side in part])
    corners = np.array([edges[[0, 1, 2], chosen] for chosen in np.ndindex(2, 2, 2)])
    found = moved(corners, target_from_source)
    low = np.clip(np.floor(found.min(axis=0)).astype(np.int64), 0, shape)
    return low, np.clip(np.ceil(found.max(axis=0)).astype(np.int64) + 1, low, shape)


def moved(points: NDArray[Any], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 3) voxel indices (z, y, x) through a matrix for (x, y, z)."""
    return np.asarray(points @ matrix[:3, :3][::-1, ::-1].T + matrix[:3, 3][::-1])
