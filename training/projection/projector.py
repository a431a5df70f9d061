"""Line integrals through a voxel volume: what a detector would see of one structure.

Two backends stand behind `project`. "reference" samples the trilinear interpolant finely along each ray: slow, plain,
for tests. "fast" steps from voxel plane to voxel plane along the ray's dominant axis and interpolates bilinearly in
each plane: compiled, for use.

Source: Joseph 1982, doi:10.1109/TMI.1982.4307572 (plane-by-plane line integrals).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from training.anatomy.volume import Structure
from training.projection.geometry import Beam, ParallelBeam, detector_axes_mm, detector_from_patient

Backend = Literal["fast", "reference"]
Window = tuple[int, int, int, int]
"""First row, row after the last, first column, column after the last."""

CM_PER_MM = 0.1
EDGE_VOXELS = 1e-3
"""Rays are cut this far inside the zero border, so that rounding can never index beyond it."""


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
    border, so that the mass of a grid is the sum of its voxels times the voxel volume.

    Args:
        values: (z, y, x), for instance in g/cm3.
        patient_from_voxel: 4 x 4, homogeneous voxel index (x, y, z) to patient mm; any affine.
        parallel: False keeps the fast backend on the calling thread (for worker processes that already fill the cores).

    Returns:
        (rows, columns) in the unit of `values` times cm: g/cm3 becomes g/cm2, "1" becomes a path length in cm.

    Raises:
        ValueError: the volume is not three-dimensional or the affine cannot be inverted.
    """
    if values.ndim != 3:
        raise ValueError(f"seen a volume of shape {values.shape}, expected (z, y, x)")
    if abs(np.linalg.det(patient_from_voxel[:3, :3])) < 1e-12:
        raise ValueError("patient_from_voxel is singular: check the voxel spacing and the direction cosines")
    image = np.zeros(beam.shape, np.float32)
    values, patient_from_voxel = _trimmed(values, patient_from_voxel)
    window = _window(values.shape, patient_from_voxel, beam)
    first_row, end_row, first_column, end_column = window
    if first_row >= end_row or first_column >= end_column:
        return image
    integrate = _joseph if backend == "fast" else _trilinear
    starts, steps, length_mm = _rays_in_voxels(patient_from_voxel, beam, window)
    bounds = (-np.inf, np.inf) if isinstance(beam, ParallelBeam) else (0.0, 1.0)
    integrals = integrate(values, starts, steps, bounds, parallel)
    image[first_row:end_row, first_column:end_column] = integrals * (length_mm * CM_PER_MM)
    return image


def project_structures(
    structures: Sequence[Structure], beam: Beam, *, backend: Backend = "fast", parallel: bool = True
) -> dict[str, NDArray[np.float32]]:
    """Project each structure on its own; structures of one name add up.

    Returns:
        Name to (rows, columns): g/cm2 for a structure in g/cm3, cm for one in "1".
    """
    images: dict[str, NDArray[np.float32]] = {}
    for structure in structures:
        image = project(structure.values, structure.patient_from_voxel, beam, backend=backend, parallel=parallel)
        images[structure.name] = images[structure.name] + image if structure.name in images else image
    return images


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


def _trimmed(
    values: NDArray[np.float32], patient_from_voxel: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Leave out the empty margins of a volume; an empty one is left with a single voxel."""
    rows_used = np.any(values, axis=2)
    if not rows_used.any():
        return values[:1, :1, :1], patient_from_voxel
    z, y = _extent(np.any(rows_used, axis=1)), _extent(np.any(rows_used, axis=0))
    x = _extent(np.any(values[z, y], axis=(0, 1)))
    moved = np.eye(4)
    moved[:3, 3] = x.start, y.start, z.start
    return values[z, y, x], patient_from_voxel @ moved


def _extent(used: NDArray[np.bool_]) -> slice:
    indices = np.flatnonzero(used)
    return slice(int(indices[0]), int(indices[-1]) + 1)


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
    row_axis, column_axis = detector_axes_mm(beam)
    rows = np.arange(first_row, end_row, dtype=np.float64)[:, None, None]
    columns = np.arange(first_column, end_column, dtype=np.float64)[None, :, None]
    pixels = beam.detector_origin_mm + rows * row_axis + columns * column_axis
    if isinstance(beam, ParallelBeam):
        steps = np.broadcast_to(np.asarray(beam.direction, np.float64), pixels.shape)
        starts = pixels - steps
    else:
        steps = pixels - beam.source_mm
        starts = np.broadcast_to(np.asarray(beam.source_mm, np.float64), pixels.shape)
    length_mm = np.sqrt(np.einsum("rci,rci->rc", steps, steps))
    voxel_from_patient = np.linalg.inv(patient_from_voxel)
    linear, offset = voxel_from_patient[:3, :3], voxel_from_patient[:3, 3]
    starts_zyx = (starts @ linear.T + offset)[..., ::-1]
    steps_zyx = (steps @ linear.T)[..., ::-1]
    return np.ascontiguousarray(starts_zyx), np.ascontiguousarray(steps_zyx), length_mm


def _trilinear(
    values: NDArray[np.float32],
    starts: NDArray[np.float64],
    steps: NDArray[np.float64],
    bounds: tuple[float, float],
    parallel: bool,
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


def _joseph(
    values: NDArray[np.float32],
    starts: NDArray[np.float64],
    steps: NDArray[np.float64],
    bounds: tuple[float, float],
    parallel: bool,
) -> NDArray[np.float64]:
    """Fast: bilinear interpolation in each plane across the dominant axis. Returns (rows, columns) integrals over t."""
    padded = np.zeros([n + 2 for n in values.shape], np.float32)
    padded[1:-1, 1:-1, 1:-1] = values
    sizes = np.array(padded.shape, np.int64)
    strides = np.array([sizes[1] * sizes[2], sizes[2], 1], np.int64)
    integrals = np.empty(starts.shape[:2])
    kernel = _integrate_rays_in_threads if parallel else _integrate_rays
    kernel(padded.reshape(-1), sizes, strides, starts + 1.0, steps, bounds[0], bounds[1], integrals)
    return integrals


def _clip(low: float, high: float, start: float, step: float, size: int) -> tuple[float, float]:
    """Cut the interval of t to where start + t * step lies within the padded axis."""
    if step == 0.0:
        return (low, high) if EDGE_VOXELS <= start <= size - 1 - EDGE_VOXELS else (1.0, 0.0)
    a = (EDGE_VOXELS - start) / step
    b = (size - 1 - EDGE_VOXELS - start) / step
    return max(low, min(a, b)), min(high, max(a, b))


def _integrate_ray(
    volume: NDArray[np.float32],
    sizes: NDArray[np.int64],
    strides: NDArray[np.int64],
    start: NDArray[np.float64],
    step: NDArray[np.float64],
    t_low: float,
    t_high: float,
) -> float:
    """Sum one ray over the planes of its dominant axis, in units of t.

    `volume` is flat, with a border of one zero voxel on each side.
    """
    axis = 0
    for candidate in range(1, 3):
        if abs(step[candidate]) > abs(step[axis]):
            axis = candidate
    across, along = (axis + 1) % 3, (axis + 2) % 3
    for other in range(3):
        t_low, t_high = _clip_compiled(t_low, t_high, start[other], step[other], sizes[other])
    if t_low > t_high:
        return 0.0
    ends = (start[axis] + t_low * step[axis], start[axis] + t_high * step[axis])
    first, last = int(np.ceil(min(ends))), int(np.floor(max(ends)))

    across_slope, along_slope = step[across] / step[axis], step[along] / step[axis]
    across_position = np.float32(start[across] + (first - start[axis]) * across_slope)
    along_position = np.float32(start[along] + (first - start[axis]) * along_slope)
    across_step, along_step = np.float32(across_slope), np.float32(along_slope)
    across_stride, along_stride, plane_stride = strides[across], strides[along], strides[axis]

    total = np.float32(0.0)
    for plane in range(last - first + 1):
        p = across_position + np.float32(plane) * across_step
        q = along_position + np.float32(plane) * along_step
        i, j = np.int32(p), np.int32(q)
        u, v = p - np.float32(i), q - np.float32(j)
        corner = (first + plane) * plane_stride + i * across_stride + j * along_stride
        near = volume[corner] + v * (volume[corner + along_stride] - volume[corner])
        corner += across_stride
        far = volume[corner] + v * (volume[corner + along_stride] - volume[corner])
        total += near + u * (far - near)
    return float(total / abs(step[axis]))


def _rays(
    volume: NDArray[np.float32],
    sizes: NDArray[np.int64],
    strides: NDArray[np.int64],
    starts: NDArray[np.float64],
    steps: NDArray[np.float64],
    t_low: float,
    t_high: float,
    integrals: NDArray[np.float64],
) -> None:
    for row in range(starts.shape[0]):
        for column in range(starts.shape[1]):
            integrals[row, column] = _integrate_ray_compiled(
                volume, sizes, strides, starts[row, column], steps[row, column], t_low, t_high
            )


def _rays_in_threads(
    volume: NDArray[np.float32],
    sizes: NDArray[np.int64],
    strides: NDArray[np.int64],
    starts: NDArray[np.float64],
    steps: NDArray[np.float64],
    t_low: float,
    t_high: float,
    integrals: NDArray[np.float64],
) -> None:
    for row in numba.prange(starts.shape[0]):
        for column in range(starts.shape[1]):
            integrals[row, column] = _integrate_ray_compiled(
                volume, sizes, strides, starts[row, column], steps[row, column], t_low, t_high
            )


def _compile(function: Callable[..., Any], parallel: bool = False) -> Callable[..., Any]:
    """Compile to machine code, kept on disk between runs.

    One function is compiled in one way only: the cache does not look at the options.
    """
    compiled: Callable[..., Any] = numba.njit(cache=True, fastmath={"contract", "nsz"}, parallel=parallel)(function)
    return compiled


_clip_compiled = _compile(_clip)
_integrate_ray_compiled = _compile(_integrate_ray)
_integrate_rays = _compile(_rays)
_integrate_rays_in_threads = _compile(_rays_in_threads, parallel=True)
