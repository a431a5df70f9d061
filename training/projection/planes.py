"""The fast projector: voxel planes are summed on one base plane, which is then read where the detector's rays cross it.

Seen from the source, each plane of voxels falls on a parallel base plane by scaling and shifting alone. So rows and
columns are interpolated one after the other along contiguous memory, where a ray by itself would gather four scattered
voxels in every plane. The finished sum is resampled once, to the detector's pixels, from three or more samples per voxel.

Source: Joseph 1982, doi:10.1109/TMI.1982.4307572 (plane-by-plane line integrals); Lacroute and Levoy 1994,
doi:10.1145/192161.192283 (a view as shear and warp).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from training.projection.geometry import Beam, ParallelBeam, rays_mm

PITCH = 1 / 3
"""Distance of the base plane's samples in voxels of the farthest plane; in nearer planes they lie closer."""
RUN = 4
"""Samples written at once: what lies between two voxels at usual magnifications."""
TILE_ROWS = 64
STEEPEST = 2.0
"""Voxels that a ray may move sideways from one plane to the next; planes are too sparse for a ray beyond."""
CM_PER_MM = 0.1


@dataclass(frozen=True)
class View:
    """How a grid is seen: the point (row, column) of the base plane lies in plane k at `scale[k] * point + offset[k]`.

    The base plane is the grid's plane farthest from the source; its coordinates are voxels.
    """

    order: tuple[int, int, int]
    """Axes of a (z, y, x) volume: across the planes, rows, columns."""
    scale: NDArray[np.float64]
    """(planes,)"""
    offset: NDArray[np.float64]
    """(planes, 2)"""
    base_from_pixel: NDArray[np.float64]
    """3 x 3: detector (row, column, 1) to base (row, column, 1) times a weight: the planes that `ray_mm` crosses.

    The weight is negative where the ray leads away from the grid.
    """
    ray_mm_from_pixel: NDArray[np.float64]
    """3 x 3: detector (row, column, 1) to a vector along the ray, in patient mm."""
    first: NDArray[np.int64]
    """(2,) first sample of the base plane, in steps of `PITCH`."""
    size: tuple[int, int]
    """Rows and columns of samples: what grid and detector share."""


def view_grid(shape: tuple[int, ...], patient_from_voxel: NDArray[np.float64], beam: Beam) -> View | None:
    """See a grid of `shape` (z, y, x) from the source.

    Returns:
        None where one base plane will not do: the grid reaches level with the source, or rays cross its planes at a flat
        angle.
    """
    voxel_from_patient = np.linalg.inv(patient_from_voxel)[:3]
    starts_mm, rays = rays_mm(beam)
    start = (voxel_from_patient @ np.vstack([starts_mm, [0, 0, 1]]))[::-1]
    ray = (voxel_from_patient[:, :3] @ rays)[::-1]
    central = ray[:, 2] if isinstance(beam, ParallelBeam) else (np.array(shape) - 1) / 2 - start[:, 2]
    axis = int(np.argmax(np.abs(central)))
    order = (axis, *(other for other in range(3) if other != axis))
    start, ray = start[list(order)], ray[list(order)]
    planes = np.arange(shape[axis])
    base = planes[-1] if central[axis] > 0 else planes[0]
    if isinstance(beam, ParallelBeam):
        steepness = ray[1:, 2] / ray[0, 2]
        scale, offset = np.ones(len(planes)), np.outer(planes - base, steepness)
        lateral = ray[0, 2] * start[1:] - np.outer(ray[1:, 2], start[0] - [0, 0, base])
    else:
        source = start[:, 2]
        if (source[0] + 1) * (source[0] - shape[axis]) <= 0:
            return None
        scale = (planes - source[0]) / (base - source[0])
        offset = np.outer(1 - scale, source[1:])
        lateral = np.outer(source[1:], ray[0]) + (base - source[0]) * ray[1:]
    base_from_pixel = np.sign(central[axis]) * np.vstack([lateral, ray[0]])
    low, high = _shared_footprint([shape[o] for o in order[1:]], scale, offset, base_from_pixel, beam.shape)
    if not isinstance(beam, ParallelBeam):
        steepness = np.maximum(abs(low - source[1:]), abs(high - source[1:])) / abs(base - source[0])
    if (low < high).all() and steepness.max() > STEEPEST:
        return None
    first = np.floor(low / PITCH).astype(np.int64)
    rows, columns = np.maximum(np.ceil(high / PITCH).astype(np.int64) + 1 - first, 0)
    return View(order, scale, offset, base_from_pixel, rays, first, (int(rows), int(columns)))  # type: ignore[arg-type]


def _shared_footprint(
    lateral_shape: Sequence[int],
    scale: NDArray[np.float64],
    offset: NDArray[np.float64],
    base_from_pixel: NDArray[np.float64],
    detector_shape: tuple[int, int],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest (row, column) of the base plane that both grid and detector reach; low > high for none."""
    ends = [0, -1]
    edges = np.array([-1.0 - offset[ends], lateral_shape - offset[ends]]) / scale[ends, None]
    low, high = edges.min((0, 1)), edges.max((0, 1))
    last_row, last_column = detector_shape[0] - 1, detector_shape[1] - 1
    corners = base_from_pixel @ [[0, 0, last_row, last_row], [0, last_column, 0, last_column], [1, 1, 1, 1]]
    if (corners[2] > 0).all():
        seen = corners[:2] / corners[2]
        low, high = np.maximum(low, seen.min(1) - PITCH), np.minimum(high, seen.max(1) + PITCH)
    return low, high


def integrate(
    volumes: Sequence[NDArray[np.float32]], view: View, detector_shape: tuple[int, int], parallel: bool
) -> NDArray[np.float32]:
    """Project volumes (z, y, x) of one grid.

    Returns:
        (volumes, rows, columns) in the volumes' unit times cm.
    """
    images = np.zeros((len(volumes), *detector_shape), np.float32)
    rows, columns = view.size
    if rows == 0 or columns == 0:
        return images
    base = np.empty((len(volumes), rows, columns), np.float32)
    run_starts, run_offsets = _runs(volumes[0].shape[view.order[2]], view)
    draw, read = (_draw_in_threads, _read_in_threads) if parallel else (_draw, _read)
    for volume, sums in zip(volumes, base, strict=True):
        contiguous, strides = _contiguous_columns(volume, view.order)
        draw(
            contiguous,
            strides,
            view.scale,
            view.offset[:, 0],
            int(view.first[0]),
            run_starts,
            run_offsets,
            sums,
        )
    read(base, view.base_from_pixel, view.ray_mm_from_pixel, view.first, images)
    return images


def _contiguous_columns(
    volume: NDArray[np.float32], order: tuple[int, int, int]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Flat memory whose columns are neighbours; its steps from plane to plane and from row to row, and the number of rows."""
    if order[2] != 2:
        turned = np.empty([volume.shape[axis] for axis in order], np.float32)
        for row, section in enumerate(volume):  # one by one: small enough for the cache
            turned[:, row] = section.T
        volume, order = turned, (0, 1, 2)
    volume = np.ascontiguousarray(volume, np.float32)
    strides = np.array(volume.strides)[list(order)] // volume.itemsize
    return volume.reshape(-1), np.array([strides[0], strides[1], volume.shape[order[1]]])


def _runs(columns: int, view: View) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Which samples of a row lie between which voxels: run q lies between voxels q - 1 and q.

    Returns:
        (planes, columns + 2) first sample of each run, and one more; and how far that lies beyond its voxel q - 1.
    """
    voxels = np.arange(-1.0, columns + 1)
    scale, offset = view.scale[:, None], view.offset[:, 1:]
    samples = np.ceil((voxels - offset) / (scale * PITCH)) - view.first[1]
    starts = np.clip(samples, 0, view.size[1])
    beyond = scale * (starts + view.first[1]) * PITCH + offset - voxels
    return starts.astype(np.int32), beyond.astype(np.float32)


def _draw_tile(
    volume: NDArray[np.float32],
    strides: NDArray[np.int64],
    scale: NDArray[np.float64],
    offset: NDArray[np.float64],
    first_row: int,
    run_starts: NDArray[np.int32],
    run_offsets: NDArray[np.float32],
    tile: int,
    base: NDArray[np.float32],
) -> None:
    """Sum all planes on some rows of the base plane.

    Between two rows of voxels, only the two interpolated rows around them are held; the next one takes the place of the
    first.
    """
    begin, end = tile * TILE_ROWS, min((tile + 1) * TILE_ROWS, base.shape[0])
    base[begin:end] = 0.0
    held = np.zeros((2, base.shape[1] + RUN), np.float32)
    used = np.zeros((2, 2), np.int64)
    for plane in range(len(scale)):
        above, upper = -9, 0  # no row is held yet
        for row in range(begin, end):
            position = scale[plane] * PITCH * (first_row + row) + offset[plane]
            voxel = int(np.floor(position))
            if voxel < -1 or voxel >= strides[2]:
                continue
            if voxel != above:
                if voxel == above + 1:
                    upper = 1 - upper
                else:
                    _stretch_compiled(volume, strides, scale, plane, voxel, run_starts, run_offsets, upper, held, used)
                _stretch_compiled(
                    volume, strides, scale, plane, voxel + 1, run_starts, run_offsets, 1 - upper, held, used
                )
                above = voxel
                low, high = min(used[0, 0], used[1, 0]), max(used[0, 1], used[1, 1])
                for side in range(2):
                    held[side, low : min(used[side, 0], high)] = 0.0
                    held[side, max(used[side, 1], low) : high] = 0.0
            below = np.float32(position - voxel)
            on_top = np.float32(1.0) - below
            # unsigned indices: numba need not look for negative ones, and the loop becomes vector instructions
            first, r, a, b = np.uintp(low), np.uintp(row), np.uintp(upper), np.uintp(1 - upper)
            for sample in range(high - low):
                c = first + np.uintp(sample)
                base[r, c] += on_top * held[a, c] + below * held[b, c]


def _stretch(
    volume: NDArray[np.float32],
    strides: NDArray[np.int64],
    scale: NDArray[np.float64],
    plane: int,
    row: int,
    run_starts: NDArray[np.int32],
    run_offsets: NDArray[np.float32],
    side: int,
    held: NDArray[np.float32],
    used: NDArray[np.int64],
) -> None:
    """Interpolate a row of voxels at the samples; `used` becomes the span that is not empty, which alone is written."""
    used[side, 0], used[side, 1] = held.shape[1], 0
    columns = run_starts.shape[1] - 2
    if row < 0 or row >= strides[2]:
        return
    start = plane * strides[0] + row * strides[1]
    first, last = 0, columns
    while first < last and volume[start + first] == 0.0:
        first += 1
    while last > first and volume[start + last - 1] == 0.0:
        last -= 1
    if first == last:
        return
    step = np.float32(scale[plane] * PITCH)
    previous = np.float32(0.0)
    p, s = np.uintp(plane), np.uintp(side)
    for run in range(first, last + 1):
        value = volume[np.uintp(start + run)] if run < last else np.float32(0.0)
        slope = value - previous
        at, by = previous + slope * run_offsets[p, np.uintp(run)], slope * step
        for sample in range(run_starts[p, np.uintp(run)], run_starts[p, np.uintp(run + 1)], RUN):
            c = np.uintp(sample)  # samples of the next run are written as well, and overwritten by it
            held[s, c] = at
            held[s, c + np.uintp(1)] = at + by
            held[s, c + np.uintp(2)] = at + np.float32(2.0) * by
            held[s, c + np.uintp(3)] = at + np.float32(3.0) * by
            at += np.float32(4.0) * by
        previous = value
    used[side, 0], used[side, 1] = run_starts[plane, first], run_starts[plane, last + 1]


def _draw_tiles(
    volume: NDArray[np.float32],
    strides: NDArray[np.int64],
    scale: NDArray[np.float64],
    offset: NDArray[np.float64],
    first_row: int,
    run_starts: NDArray[np.int32],
    run_offsets: NDArray[np.float32],
    base: NDArray[np.float32],
) -> None:
    for tile in range((base.shape[0] + TILE_ROWS - 1) // TILE_ROWS):
        _draw_tile_compiled(volume, strides, scale, offset, first_row, run_starts, run_offsets, tile, base)


def _draw_tiles_in_threads(
    volume: NDArray[np.float32],
    strides: NDArray[np.int64],
    scale: NDArray[np.float64],
    offset: NDArray[np.float64],
    first_row: int,
    run_starts: NDArray[np.int32],
    run_offsets: NDArray[np.float32],
    base: NDArray[np.float32],
) -> None:
    for tile in numba.prange((base.shape[0] + TILE_ROWS - 1) // TILE_ROWS):
        _draw_tile_compiled(volume, strides, scale, offset, first_row, run_starts, run_offsets, tile, base)


def _read_row(
    base: NDArray[np.float32],
    base_from_pixel: NDArray[np.float64],
    ray_mm_from_pixel: NDArray[np.float64],
    first: NDArray[np.int64],
    row: int,
    images: NDArray[np.float32],
) -> None:
    """Interpolate the base planes where the rays of one detector row cross them, times the length between two planes."""
    _, base_rows, base_columns = base.shape
    for column in range(images.shape[2]):
        weight = base_from_pixel[2, 0] * row + base_from_pixel[2, 1] * column + base_from_pixel[2, 2]
        if weight <= 0.0:
            continue
        y = base_from_pixel[0, 0] * row + base_from_pixel[0, 1] * column + base_from_pixel[0, 2]
        x = base_from_pixel[1, 0] * row + base_from_pixel[1, 1] * column + base_from_pixel[1, 2]
        y, x = y / (weight * PITCH) - first[0], x / (weight * PITCH) - first[1]
        if not (0.0 <= y < base_rows - 1 and 0.0 <= x < base_columns - 1):
            continue
        i, j = int(y), int(x)
        below, right = np.float32(y - i), np.float32(x - j)
        length = 0.0
        for axis in range(3):
            part = ray_mm_from_pixel[axis, 0] * row + ray_mm_from_pixel[axis, 1] * column + ray_mm_from_pixel[axis, 2]
            length += part * part
        cm = np.float32(np.sqrt(length) / weight * CM_PER_MM)
        for image in range(len(images)):
            upper = base[image, i, j] + right * (base[image, i, j + 1] - base[image, i, j])
            lower = base[image, i + 1, j] + right * (base[image, i + 1, j + 1] - base[image, i + 1, j])
            images[image, row, column] = cm * (upper + below * (lower - upper))


def _read_rows(
    base: NDArray[np.float32],
    base_from_pixel: NDArray[np.float64],
    ray_mm_from_pixel: NDArray[np.float64],
    first: NDArray[np.int64],
    images: NDArray[np.float32],
) -> None:
    for row in range(images.shape[1]):
        _read_row_compiled(base, base_from_pixel, ray_mm_from_pixel, first, row, images)


def _read_rows_in_threads(
    base: NDArray[np.float32],
    base_from_pixel: NDArray[np.float64],
    ray_mm_from_pixel: NDArray[np.float64],
    first: NDArray[np.int64],
    images: NDArray[np.float32],
) -> None:
    for row in numba.prange(images.shape[1]):
        _read_row_compiled(base, base_from_pixel, ray_mm_from_pixel, first, row, images)


def _compile(function: Callable[..., Any], parallel: bool = False) -> Callable[..., Any]:
    """Compile to machine code, kept on disk between runs.

    One function is compiled in one way only: the cache does not look at the options.
    """
    compiled: Callable[..., Any] = numba.njit(cache=True, fastmath={"contract", "nsz"}, parallel=parallel)(function)
    return compiled


_stretch_compiled = _compile(_stretch)
_draw_tile_compiled = _compile(_draw_tile)
_read_row_compiled = _compile(_read_row)
_draw = _compile(_draw_tiles)
_draw_in_threads = _compile(_draw_tiles_in_threads, parallel=True)
_read = _compile(_read_rows)
_read_in_threads = _compile(_read_rows_in_threads, parallel=True)
