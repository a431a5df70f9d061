"""Line integrals through a voxel volume: what a detector would see of one structure.

Two backends stand behind `project`. "reference" samples the trilinear interpolant finely along each ray: slow, plain,
for tests and unusual geometries. "fast" sums voxel planes (`training.projection.planes`): compiled, for use; it gives way
to the reference where a grid reaches level with the source or rays cross its planes flat. For gradients, and on CUDA, see
`training.projection.differentiable`.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from training.anatomy.volume import Structure
from training.projection.geometry import (
    Beam,
    ParallelBeam,
    detector_axes_mm,
    detector_depths,
    detector_from_patient,
    rays_mm,
)
from training.projection.planes import CM_PER_MM, integrate, view_grid

Backend = Literal["fast", "reference"]
Window = tuple[int, int, int, int]
"""First row, row after the last, first column, column after the last."""


def project(
    values: NDArray[np.float32],
    patient_from_voxel: NDArray[np.float64],
    beam: Beam,
    *,
    backend: Backend = "fast",
    parallel: bool = True,
) -> NDArray[np.float32]:
    """Integrate a volume along the ray to each detector pixel.

    Voxels are samples at their centres, interpolated in between and falling to zero within one voxel of the grid's
    border, so that the mass of a grid is the sum of its voxels times the voxel volume. What lies behind the source or the
    detector of a cone beam is not seen.

    Args:
        values: (z, y, x), for instance in g/cm3.
        patient_from_voxel: 4 x 4, homogeneous voxel index (x, y, z) to patient mm; any affine.
        parallel: False keeps the fast backend on the calling thread (for worker processes that already fill the cores).

    Returns:
        (rows, columns) in the unit of `values` times cm: g/cm3 becomes g/cm2, "1" becomes a path length in cm.

    Raises:
        ValueError: the volume is not three-dimensional or the affine cannot be inverted.
    """
    image: NDArray[np.float32] = project_volumes(
        [values], patient_from_voxel, beam, backend=backend, parallel=parallel
    )[0]
    return image


def project_volumes(
    volumes: Sequence[NDArray[np.float32]],
    patient_from_voxel: NDArray[np.float64],
    beam: Beam,
    *,
    backend: Backend = "fast",
    parallel: bool = True,
) -> NDArray[np.float32]:
    """Project several volumes of one grid in one pass; arguments and errors are those of `project`.

    Returns:
        (volumes, rows, columns)
    """
    shape = volumes[0].shape
    if len(shape) != 3 or any(values.shape != shape for values in volumes):
        seen = ", ".join(str(values.shape) for values in volumes)
        raise ValueError(f"seen volumes of shape {seen}, expected (z, y, x), the same for all")
    if abs(np.linalg.det(patient_from_voxel[:3, :3])) < 1e-12:
        raise ValueError("patient_from_voxel is singular: check the voxel spacing and the direction cosines")
    view = view_grid(shape, patient_from_voxel, beam) if backend == "fast" else None
    if view is not None:
        return integrate(_before_detector(volumes, patient_from_voxel, beam), view, beam.shape, parallel)
    return np.stack([_reference(values, patient_from_voxel, beam) for values in volumes])


def project_structures(
    structures: Sequence[Structure], beam: Beam, *, backend: Backend = "fast", parallel: bool = True
) -> dict[str, NDArray[np.float32]]:
    """Project each structure on its own; those that share a grid in one pass. Structures of one name add up.

    Returns:
        Name to (rows, columns): g/cm2 for a structure in g/cm3, cm for one in "1".
    """
    images: dict[str, NDArray[np.float32]] = {}
    for group in _by_grid(structures):
        volumes = [structure.values for structure in group]
        seen = project_volumes(volumes, group[0].patient_from_voxel, beam, backend=backend, parallel=parallel)
        for structure, image in zip(group, seen, strict=True):
            images[structure.name] = images[structure.name] + image if structure.name in images else image
    return {structure.name: images[structure.name] for structure in structures}


def _by_grid(structures: Sequence[Structure]) -> list[list[Structure]]:
    groups: dict[tuple[tuple[int, ...], bytes], list[Structure]] = {}
    for structure in structures:
        affine = np.ascontiguousarray(structure.patient_from_voxel, np.float64)
        groups.setdefault((structure.values.shape, affine.tobytes()), []).append(structure)
    return list(groups.values())


def object_plane_pixel_area_cm2(beam: Beam, object_mm: NDArray[np.float64]) -> float:
    """Area of one detector pixel, projected back onto the plane parallel to the detector through `object_mm`."""
    row_axis, column_axis = detector_axes_mm(beam)
    area_mm2 = float(np.linalg.norm(np.cross(row_axis, column_axis)))
    if not isinstance(beam, ParallelBeam):
        normal = np.cross(row_axis, column_axis)
        area_mm2 *= (
            float((normal @ (object_mm - beam.source_mm)) / (normal @ (beam.detector_origin_mm - beam.source_mm))) ** 2
        )
    return area_mm2 * CM_PER_MM**2


def _before_detector(
    volumes: Sequence[NDArray[np.float32]], patient_from_voxel: NDArray[np.float64], beam: Beam
) -> Sequence[NDArray[np.float32]]:
    """Empty the voxels whose centres lie behind the detector."""
    if isinstance(beam, ParallelBeam):
        return volumes
    nz, ny, nx = volumes[0].shape
    first_mm = patient_from_voxel[:3, 3]
    start, *steps = detector_depths(np.vstack([first_mm, first_mm + patient_from_voxel[:3, :3].T]), beam)
    x, y, z = (np.arange(size) * (step - start) for size, step in zip((nx, ny, nz), steps, strict=True))
    if start + sum(axis.max() for axis in (x, y, z)) <= 1:
        return volumes
    before = start + x + y[:, None] + z[:, None, None] <= 1
    return [np.where(before, values, np.float32(0.0)) for values in volumes]


def _reference(values: NDArray[np.float32], patient_from_voxel: NDArray[np.float64], beam: Beam) -> NDArray[np.float32]:
    image = np.zeros(beam.shape, np.float32)
    first_row, end_row, first_column, end_column = window = _window(values.shape, patient_from_voxel, beam)
    if first_row >= end_row or first_column >= end_column:
        return image
    starts, steps, length_mm = _rays_in_voxels(patient_from_voxel, beam, window)
    bounds = (-np.inf, np.inf) if isinstance(beam, ParallelBeam) else (0.0, 1.0)
    integrals = _trilinear(values, starts, steps, bounds)
    image[first_row:end_row, first_column:end_column] = integrals * (length_mm * CM_PER_MM)
    return image


def _window(shape: tuple[int, ...], patient_from_voxel: NDArray[np.float64], beam: Beam) -> Window:
    """The detector region that the grid, one voxel wider on each side, can reach."""
    rows, columns = beam.shape
    nz, ny, nx = shape
    corners = np.array([[x, y, z, 1.0] for x in (-1, nx) for y in (-1, ny) for z in (-1, nz)])
    pixels = detector_from_patient((corners @ patient_from_voxel.T)[:, :3], beam)
    if np.isnan(pixels).any():  # the grid reaches behind the source: any pixel may see it
        return 0, rows, 0, columns
    low = np.floor(pixels.min(axis=0)).astype(int)
    high = np.ceil(pixels.max(axis=0)).astype(int) + 1
    return max(low[0], 0), min(high[0], rows), max(low[1], 0), min(high[1], columns)


def _rays_in_voxels(
    patient_from_voxel: NDArray[np.float64], beam: Beam, window: Window
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Rays of the window as start + t * step in voxel indices, t = 0 at the source and 1 at the detector.

    Returns:
        starts and steps (rows, columns, 3) in axis order (z, y, x), and the length (rows, columns) of a step in mm.
    """
    first_row, end_row, first_column, end_column = window
    row, column = np.mgrid[first_row:end_row, first_column:end_column]
    pixels = np.stack([row, column, np.ones_like(row)], axis=-1).astype(np.float64)
    starts_mm, directions_mm = rays_mm(beam)
    starts, steps = pixels @ starts_mm.T, pixels @ directions_mm.T
    voxel_from_patient = np.linalg.inv(patient_from_voxel)
    linear, offset = voxel_from_patient[:3, :3], voxel_from_patient[:3, 3]
    return (starts @ linear.T + offset)[..., ::-1], (steps @ linear.T)[..., ::-1], np.linalg.norm(steps, axis=-1)


def _trilinear(
    values: NDArray[np.float32],
    starts: NDArray[np.float64],
    steps: NDArray[np.float64],
    bounds: tuple[float, float],
    samples_per_voxel: int = 4,
) -> NDArray[np.float64]:
    """The midpoint rule over the trilinear interpolant, row by row. Returns (rows, columns), integrals over t."""
    integrals = np.zeros(starts.shape[:2])
    limits = np.array(values.shape, np.float64)
    for row in range(starts.shape[0]):
        start, step = starts[row], steps[row]
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = (-1.0 - start) / step, (limits - start) / step
        entry = np.clip(np.nanmax(np.minimum(low, high), axis=1), *bounds)
        leave = np.clip(np.nanmin(np.maximum(low, high), axis=1), *bounds)
        inside = np.where(leave > entry, leave - entry, 0.0)
        entry = np.where(inside > 0.0, entry, 0.0)
        count = int(np.ceil((inside * np.abs(step).max(axis=1)).max() * samples_per_voxel))
        if count == 0:
            continue
        fractions = (np.arange(count) + 0.5) / count
        t = entry[:, None] + inside[:, None] * fractions
        positions = start[:, None, :] + t[..., None] * step[:, None, :]
        samples = map_coordinates(values, positions.transpose(2, 0, 1), order=1, mode="grid-constant", cval=0.0)
        integrals[row] = samples.mean(axis=1, dtype=np.float64) * inside
    return integrals
