"""Find the rods of a phantom in a CT by themselves, and measure them slice by slice.

What a row of rods has and nothing else in a CT: the CT values of N discs in a row, at known distances, lie on one straight line
over the rods' known densities, and each disc is even. Both are one figure, the *explained share*: of the variance of all voxels
in the N discs, how much the line explains. No threshold on contrast, no outline of the pad and no gap to the body is needed; a
rod that cannot be told from the pad counts as well as any other.

Frame "grid": mm along the axes of an array whose axes lie nearest to the patient's (`axial`); a voxel's centre is its index times
its spacing.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize, signal

from training.anatomy.ct import CtVolume
from training.calibration.line import CalibrationFailed
from training.calibration.rod_phantom import RodPhantom

SLAB_MM = 10.0
"""Slices are averaged over this length for the search: noise falls, and a tilt of 10 degrees moves a rod by 2 mm only."""
SLOPES_HU_CM3_MG = (0.6, 3.0)
"""Steeper and flatter lines are no rods. Hydroxyapatite displacing water: 1.9 at 55 keV to 1.1 at 80 keV, from
`training/tables/mass_attenuation.csv`; potassium and phosphorus attenuate less than calcium."""
INTERCEPTS_HU = (-150.0, 150.0)
"""The rods' plastic or water is near 0 HU on any scanner."""
ROLLS_DEG = np.arange(-30.0, 30.1, 2.5)
"""Of the pad around the table's axis."""
STEEPEST_DEG = 20.0
"""Between the rods and the slices' normal: a pad that is put down askew, or a tilted table."""
EXPLAINED_SHARE = 0.85
"""Least share in a slab. The worst that should pass: 25 HU of noise in single slices against the 85 HU that rods of 0 to 200
mg/cm3 spread over."""
LARGEST_MISFIT = 0.02
"""Of the discs' means, relative to the variance that the line explains: r above 0.99. Gas, fat, muscle and bone in a row reach
0.97; means over a rod are quiet even where its voxels are not."""
REFINED_SHARE = 0.6
"""Least share in discs of the rods' full radius. Partial volume, smooth kernels and noise of 50 HU leave 0.8; what only looks like
a row of rods falls apart at its rims."""
SEARCH_RADIUS = 0.8
"""Of the rod's; what is left is the tolerance of the search grid."""
EDGE_MM = 2.5
"""Left out at a rod's rim: three times the SD of a smooth kernel's point spread (0.8 mm; half of the contrast at 0.23 per mm)."""
FEWEST_SLABS = 2
FEWEST_VOXELS = 12
"""In a rod's cross-section."""


@dataclass(frozen=True)
class FoundRods:
    """Where the rods are and what they measure."""

    ends_mm: NDArray[np.float64]
    """(rods, 2, 3) the axes' first and last measured points, patient frame."""
    slices_hu: NDArray[np.float64]
    """(slices, rods) mean CT value in each cross-section; slices from inferior to superior."""
    voxels: int
    """In each cross-section (the median)."""
    explained_share: float
    """Of the variance in the discs, by the line over the rods' densities, after refinement."""


class _Pose(NamedTuple):
    """The row's centre in grid mm at height z is (x, y) + z * (x_slope, y_slope); `turn_deg` is the row's direction."""

    x_mm: float
    y_mm: float
    x_slope: float
    y_slope: float
    turn_deg: float


class _Sighting(NamedTuple):
    """The best row of one slab."""

    slab: int
    z_mm: float
    x_mm: float
    y_mm: float
    turn_deg: float
    share: float


@dataclass(frozen=True)
class _Row:
    """The phantom as the search sees it."""

    offsets_mm: NDArray[np.float64]
    """(rods,) from the row's middle."""
    mineral: NDArray[np.float64]
    """(rods,) mg/cm3."""
    excess_hu: NDArray[np.float64]
    """(rods,) what the rods' water adds to the line."""
    radius_mm: float


class _Fit(NamedTuple):
    """The line through discs, each an array over the candidates."""

    share: NDArray[np.float64]
    slope: NDArray[np.float64]
    intercept: NDArray[np.float64]


def find_rods(ct: CtVolume, phantom: RodPhantom) -> FoundRods:
    """Find the phantom and measure its rods, whichever way round it lies.

    Raises:
        CalibrationFailed: no such row of rods, or its rods are too small for the voxels.
    """
    hu, patient_from_grid, spacing_mm = axial(ct)
    row = _row(phantom)
    slabs, bounds = _slabs(hu, spacing_mm[2])
    sightings = _search(slabs, (bounds.mean(axis=1) - 0.5) * spacing_mm[2], spacing_mm, row)
    agreeing = _connected(_agree(sightings, row))
    if len(agreeing) < FEWEST_SLABS:
        raise _not_found(
            phantom,
            f"{len(sightings)} of {len(slabs)} slabs show a row of {len(phantom.rods)} discs of {phantom.diameter_mm:g} mm on a"
            f" line, {len(agreeing)} of them agree on one place, expected {FEWEST_SLABS} at least",
        )
    used = [sighting.slab for sighting in agreeing]
    pose = _pose_through(agreeing)
    heights_mm = np.array([sighting.z_mm for sighting in agreeing])
    pose, share = _refined(slabs[used], heights_mm, spacing_mm, row, pose)
    if share < REFINED_SHARE:
        raise _not_found(
            phantom,
            f"the line explains {share:.2f} of the variance in the most likely place, expected {REFINED_SHARE} at least",
        )
    first, last = int(bounds[used].min()), int(bounds[used].max())
    slices_hu, voxels = _measure(hu[first:last], first, spacing_mm, row, pose)
    if voxels < FEWEST_VOXELS:
        raise CalibrationFailed(
            f"a rod's cross-section has {voxels} voxels, expected {FEWEST_VOXELS} at least: reconstruct with a smaller field"
            " of view"
        )
    centres = np.stack([_centres(row, pose, z * spacing_mm[2]) for z in (first, last - 1)], axis=1)
    heights = np.broadcast_to(np.array([first, last - 1]) * spacing_mm[2], centres.shape[:2])
    grid_mm = np.concatenate([centres, heights[..., None], np.ones((*centres.shape[:2], 1))], axis=-1)
    return FoundRods((grid_mm @ patient_from_grid.T)[..., :3], slices_hu, voxels, share)


def _not_found(phantom: RodPhantom, seen: str) -> CalibrationFailed:
    return CalibrationFailed(
        f"the rods of {phantom.identity} were not found: {seen}. Is the phantom in the field of view, and are diameter,"
        " positions and order those of the phantom's file?"
    )


def axial(ct: CtVolume) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """Turn the array, without interpolation, so that its axes lie nearest to the patient's: z up, y back, x left.

    Returns:
        Array (z, y, x), the 4 x 4 matrix from grid mm to patient mm, and the spacing (x, y, z) in mm.
    """
    directions = ct.patient_from_voxel[:3, :3]
    spacing_mm = np.linalg.norm(directions, axis=0)
    _, order = optimize.linear_sum_assignment(-np.abs(directions / spacing_mm))  # voxel axis for each patient axis
    flipped = directions[np.arange(3), order] < 0
    turned = np.transpose(ct.hu, [2 - int(order[axis]) for axis in (2, 1, 0)])
    turned = turned[tuple(slice(None, None, -1 if flipped[axis] else 1) for axis in (2, 1, 0))]
    voxel_from_index = np.zeros((4, 4))
    voxel_from_index[3, 3] = 1.0
    for axis in range(3):
        length = turned.shape[2 - axis]
        voxel_from_index[order[axis], axis] = -1.0 if flipped[axis] else 1.0
        voxel_from_index[order[axis], 3] = length - 1 if flipped[axis] else 0.0
    spacing_mm = spacing_mm[order]
    return turned, ct.patient_from_voxel @ voxel_from_index @ np.diag([*(1.0 / spacing_mm), 1.0]), spacing_mm


def _row(phantom: RodPhantom) -> _Row:
    positions = np.array([rod.position_mm for rod in phantom.rods])
    return _Row(
        positions - (positions.min() + positions.max()) / 2,
        np.array([rod.mineral_mg_cm3 for rod in phantom.rods]),
        np.array([rod.water_mg_cm3 for rod in phantom.rods]) - 1000.0,
        phantom.diameter_mm / 2,
    )


def _slabs(hu: NDArray[np.float32], slice_mm: float) -> tuple[NDArray[np.float32], NDArray[np.int_]]:
    """Average slices to (slabs, y, x), and say which: (slabs, 2) first slice, slice after the last."""
    slices = max(1, min(round(SLAB_MM / slice_mm), len(hu) // FEWEST_SLABS))
    starts = np.arange(0, len(hu) - slices + 1, slices)
    means = np.stack([hu[start : start + slices].mean(axis=0) for start in starts])
    return means, np.stack([starts, starts + slices], axis=1)


def _search(
    slabs: NDArray[np.float32], heights_mm: NDArray[np.float64], spacing_mm: NDArray[np.float64], row: _Row
) -> list[_Sighting]:
    """The best row in each slab, on pixels of about a fifth of a rod's radius, where there is one."""
    shrink = np.maximum(1, (row.radius_mm / 5 / spacing_mm[:2]).astype(int))
    small = _shrunk(slabs, shrink)
    pixel_mm = spacing_mm[:2] * shrink
    corner_mm = (shrink - 1) / 2 * spacing_mm[:2]  # of the first small pixel's centre
    means, squares = disc_maps(small, pixel_mm, SEARCH_RADIUS * row.radius_mm)
    variances = np.maximum(squares - means**2, 0.0)
    turns_deg = np.concatenate([ROLLS_DEG, ROLLS_DEG + 180.0])
    dense = int(np.argmax(row.mineral))
    sightings = []
    for slab, height_mm in enumerate(heights_mm):
        best = _best_row(means[slab], variances[slab], pixel_mm, row, turns_deg, dense)
        if best is not None:
            x, y, turn_deg, share = best
            sightings.append(_Sighting(slab, float(height_mm), x + corner_mm[0], y + corner_mm[1], turn_deg, share))
    return sightings


def _best_row(
    means: NDArray[np.float64],
    variances: NDArray[np.float64],
    pixel_mm: NDArray[np.float64],
    row: _Row,
    turns_deg: NDArray[np.float64],
    dense: int,
) -> tuple[float, float, float, float] | None:
    """Centre (x, y) in mm from the first pixel, turn and explained share of the best row in one image."""
    least_hu = INTERCEPTS_HU[0] / 2 + SLOPES_HU_CM3_MG[0] * row.mineral[dense] + row.excess_hu[dense]
    # An even disc, as bright as the densest rod may be: few places but rods and large bones have one.
    y, x = np.nonzero((means > least_hu) & (variances < (1 / EXPLAINED_SHARE - 1) * len(row.mineral) * 60.0**2))
    if not len(x):
        return None
    radians = np.radians(turns_deg)
    from_dense_mm = row.offsets_mm - row.offsets_mm[dense]
    columns = np.rint(x[:, None, None] + np.cos(radians)[:, None] * from_dense_mm / pixel_mm[0]).astype(int)
    rows = np.rint(y[:, None, None] + np.sin(radians)[:, None] * from_dense_mm / pixel_mm[1]).astype(int)
    inside = ((columns >= 0) & (columns < means.shape[1]) & (rows >= 0) & (rows < means.shape[0])).all(axis=-1)
    columns, rows = columns[inside], rows[inside]
    if not len(columns):
        return None
    fit = _line(means[rows, columns], variances[rows, columns], row)
    best = int(np.argmax(fit.share))
    if fit.share[best] < EXPLAINED_SHARE:
        return None
    candidate, turn = (int(found[best]) for found in np.nonzero(inside))
    middle_mm = row.offsets_mm[dense]
    return (
        float(x[candidate] * pixel_mm[0] - math.cos(radians[turn]) * middle_mm),
        float(y[candidate] * pixel_mm[1] - math.sin(radians[turn]) * middle_mm),
        float(turns_deg[turn]),
        float(fit.share[best]),
    )


def _line(means: NDArray[np.float64], variances: NDArray[np.float64], row: _Row) -> _Fit:
    """Fit hu = intercept + slope * mineral over the discs on the last axis; share 0 where the line is none of a phantom."""
    centred = row.mineral - row.mineral.mean()
    plain = means - row.excess_hu
    slope = plain @ centred / (centred @ centred)
    intercept = plain.mean(axis=-1) - slope * row.mineral.mean()
    explained = slope**2 * np.mean(centred**2)
    misfit = np.mean((plain - intercept[..., None] - slope[..., None] * row.mineral) ** 2, axis=-1)
    share = explained / (explained + misfit + variances.mean(axis=-1) + 1e-9)
    plausible = (slope >= SLOPES_HU_CM3_MG[0]) & (slope <= SLOPES_HU_CM3_MG[1])
    plausible &= misfit <= LARGEST_MISFIT * explained
    plausible &= (intercept >= INTERCEPTS_HU[0]) & (intercept <= INTERCEPTS_HU[1])
    return _Fit(np.where(plausible, share, 0.0), slope, intercept)


def _agree(sightings: list[_Sighting], row: _Row) -> list[_Sighting]:
    """The straight row of rods that most sightings lie on: every pair proposes one (rods are parallel cylinders)."""
    best: list[_Sighting] = []
    steepest = math.tan(math.radians(STEEPEST_DEG))
    for index, one in enumerate(sightings):
        for other in sightings[index + 1 :]:
            span_mm = other.z_mm - one.z_mm
            slopes = ((other.x_mm - one.x_mm) / span_mm, (other.y_mm - one.y_mm) / span_mm)
            if abs(one.turn_deg - other.turn_deg) > 8.0 or math.hypot(*slopes) > steepest:
                continue
            near = [
                s
                for s in sightings
                if abs(s.turn_deg - one.turn_deg) <= 8.0
                and math.hypot(
                    s.x_mm - one.x_mm - slopes[0] * (s.z_mm - one.z_mm),
                    s.y_mm - one.y_mm - slopes[1] * (s.z_mm - one.z_mm),
                )
                < row.radius_mm / 2
            ]
            if sum(s.share for s in near) > sum(s.share for s in best):
                best = near
    return best


def _connected(sightings: list[_Sighting]) -> list[_Sighting]:
    """Leave out what lies apart at the ends, until half of the slabs between first and last are there: rods have no gaps."""
    kept = list(sightings)
    while len(kept) > 1 and 2 * len(kept) < kept[-1].slab - kept[0].slab + 1:
        kept.pop(0 if kept[1].slab - kept[0].slab > kept[-1].slab - kept[-2].slab else -1)
    return kept


def _pose_through(sightings: list[_Sighting]) -> _Pose:
    z, x, y, turn_deg = np.array([(s.z_mm, s.x_mm, s.y_mm, s.turn_deg) for s in sightings]).T
    x_slope, x0 = np.polyfit(z, x, 1)
    y_slope, y0 = np.polyfit(z, y, 1)
    return _Pose(float(x0), float(y0), float(x_slope), float(y_slope), float(np.median(turn_deg)))


def _refined(
    slabs: NDArray[np.float32],
    heights_mm: NDArray[np.float64],
    spacing_mm: NDArray[np.float64],
    row: _Row,
    start: _Pose,
) -> tuple[_Pose, float]:
    """Move the row to where discs of the rods' full radius are evenest: beyond the rim they would take in the pad."""
    reach_mm = np.abs(row.offsets_mm).max() + 2 * row.radius_mm
    middle_mm = float(heights_mm.mean())
    at_mm = np.stack([start.x_mm + start.x_slope * heights_mm, start.y_mm + start.y_slope * heights_mm], axis=1)
    limits = np.array(slabs.shape[:0:-1])
    low = np.clip(((at_mm.min(axis=0) - reach_mm) / spacing_mm[:2]).astype(int), 0, limits)
    high = np.clip(((at_mm.max(axis=0) + reach_mm) / spacing_mm[:2]).astype(int) + 2, 0, limits)
    part = slabs[:, low[1] : high[1], low[0] : high[0]]
    # Table, air and bone beside the pad would pull at the rods: no voxel counts as further off the line than this.
    lowest, highest = _expected_range_hu(part, row, start, heights_mm, low, spacing_mm)
    means, squares = disc_maps(np.clip(part, lowest, highest), spacing_mm[:2], row.radius_mm)
    levels = np.arange(len(part))[:, None]

    def shares(pose: _Pose) -> float:
        centres = np.stack([_centres(row, pose, float(z)) for z in heights_mm])  # (slabs, rods, 2)
        x, y = np.moveaxis(centres / spacing_mm[:2] - low, -1, 0)
        places = np.stack([np.broadcast_to(levels, x.shape), y, x])
        mean = ndimage.map_coordinates(means, places, order=1, mode="nearest")
        square = ndimage.map_coordinates(squares, places, order=1, mode="nearest")
        return float(_line(mean, np.maximum(square - mean**2, 0.0), row).share.mean())

    def moved(step: NDArray[np.float64]) -> _Pose:
        """Steps are in mm: of the middle, of the ends against each other, of the outer rods."""
        x_slope, y_slope = start.x_slope + step[2] / 100.0, start.y_slope + step[3] / 100.0
        x = start.x_mm + step[0] + (start.x_slope - x_slope) * middle_mm
        y = start.y_mm + step[1] + (start.y_slope - y_slope) * middle_mm
        turn_deg = start.turn_deg + math.degrees(step[4] / np.abs(row.offsets_mm).max())
        return _Pose(float(x), float(y), float(x_slope), float(y_slope), float(turn_deg))

    simplex = np.vstack([np.zeros(5), np.diag([1.0, 1.0, 2.0, 2.0, 2.0])])
    found = optimize.minimize(
        lambda step: -shares(moved(step)),
        np.zeros(5),
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "xatol": 0.02, "fatol": 1e-7, "maxfev": 400},
    )
    return moved(found.x), -float(found.fun)


def _expected_range_hu(
    part: NDArray[np.float32],
    row: _Row,
    pose: _Pose,
    heights_mm: NDArray[np.float64],
    low: NDArray[np.int_],
    spacing_mm: NDArray[np.float64],
) -> tuple[float, float]:
    values = []
    for image, z in zip(part, heights_mm, strict=True):
        x, y = (_centres(row, pose, float(z)) / spacing_mm[:2] - low).T
        values.append(ndimage.map_coordinates(ndimage.uniform_filter(image, 5), np.stack([y, x]), order=1))
    hu = np.median(values, axis=0)
    margin = 0.5 * float(np.ptp(hu))
    return float(hu.min()) - margin, float(hu.max()) + margin


def _centres(row: _Row, pose: _Pose, z_mm: float) -> NDArray[np.float64]:
    """(rods, 2) centres (x, y) in grid mm at height z."""
    angle = math.radians(pose.turn_deg)
    middle = np.array([pose.x_mm + pose.x_slope * z_mm, pose.y_mm + pose.y_slope * z_mm])
    along = np.array([math.cos(angle), math.sin(angle)])
    return np.asarray(middle + row.offsets_mm[:, None] * along, np.float64)


def _measure(
    hu: NDArray[np.float32], first: int, spacing_mm: NDArray[np.float64], row: _Row, pose: _Pose
) -> tuple[NDArray[np.float64], int]:
    """Mean of each rod in each slice, without its rim: (slices, rods), and the voxels of a cross-section."""
    radius_mm = row.radius_mm - EDGE_MM
    values, voxels = np.empty((len(hu), len(row.offsets_mm))), []
    for level, image in enumerate(hu):
        for rod, (x_mm, y_mm) in enumerate(_centres(row, pose, (first + level) * spacing_mm[2])):
            x0, y0 = (max(0, int(c)) for c in ((x_mm - radius_mm) / spacing_mm[0], (y_mm - radius_mm) / spacing_mm[1]))
            x1, y1 = (int(c) + 2 for c in ((x_mm + radius_mm) / spacing_mm[0], (y_mm + radius_mm) / spacing_mm[1]))
            box = image[y0:y1, x0:x1]
            x = (x0 + np.arange(box.shape[1])) * spacing_mm[0] - x_mm
            y = (y0 + np.arange(box.shape[0])) * spacing_mm[1] - y_mm
            chosen = box[y[:, None] ** 2 + x**2 <= radius_mm**2]
            voxels.append(len(chosen))
            values[level, rod] = chosen.mean() if len(chosen) else np.nan
    return values, int(np.median(voxels))


def disc_maps(
    images: NDArray[np.float32], pixel_mm: NDArray[np.float64], radius_mm: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of the values and of their squares in a disc around each pixel: (images, y, x) each; outside counts as 0 HU."""
    reach = np.ceil(radius_mm / pixel_mm).astype(int)
    x, y = (np.arange(-n, n + 1) * size for n, size in zip(reach, pixel_mm, strict=True))
    edge_mm = float(pixel_mm.mean())
    disc = np.clip(0.5 + (radius_mm - np.hypot(y[:, None], x)) / edge_mm, 0.0, 1.0)
    kernel = (disc / disc.sum())[None]
    values = images.astype(np.float64)
    mean = signal.fftconvolve(values, kernel, "same", axes=(1, 2))
    return mean, signal.fftconvolve(values**2, kernel, "same", axes=(1, 2))


def _shrunk(images: NDArray[np.float32], factors: NDArray[np.int_]) -> NDArray[np.float32]:
    """Average blocks of `factors` (x, y) pixels; what is left over at the far ends is cut off."""
    fx, fy = (int(f) for f in factors)
    n, ny, nx = images.shape
    cut = images[:, : ny // fy * fy, : nx // fx * fx]
    return np.asarray(cut.reshape(n, ny // fy, fy, nx // fx, fx).mean(axis=(2, 4)), np.float32)
