"""Landmarks of a proximal femur, found in its volume by geometry alone: in any pose, on either side, cut off below.

Head: the point that most surface normals meet in, then a sphere through the surface away from the neck. Neck: its narrowest
section gives its axis. Shaft: the line through the centres of its sections below the lesser trochanter. Lesser trochanter: where
the outline of the shaft has a peak, backwards and inwards. Greater trochanter: the highest point beside the neck. What is not in
the volume is not guessed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal
from scipy.spatial import cKDTree

from dicomnode.domain.radiograph import Side
from dicomnode.errors import DicomNodeError
from training.anatomy.femur import FemurLandmarks
from training.anatomy.volume import Structure

Points = NDArray[np.float64]
Directions = tuple[Points, Points, Points]
"""Lateral, posterior, superior: unit vectors."""

HEAD_RADII_MM = (15.0, 32.0)
"""Of adults, with room: 18 to 28 mm (see `population`)."""
VOTE_MM = 2.0
"""Steps of the radii and of the grid in which normals meet."""
VOTERS = 20_000
GREATEST_MISFIT_MM = 2.0
"""Median distance of the head's surface from the sphere. A round head has 0.3 mm, a binary mask of 3 mm voxels about 1 mm."""
REACH_MM = 170.0
"""Of the femur below the head, so much is looked at: what lies further has no say in the proximal axis."""
STEP_MM = 1.0
SECTION_MM = 0.7
SHAFT_FROM_MM = 20.0
SHAFT_TO_MM = 50.0
"""Below the lesser trochanter's tip: the part of the shaft that the axis is fitted to. Source: Uemura et al., whose axis goes
through the shaft's centres 2 and 5 cm below the lesser trochanter."""
LEAST_SHAFT_MM = 20.0
"""Of that part, at least so much must be there."""
SECTOR_DEG = (25.0, 80.0)
"""From inwards (0) to backwards (90): where the lesser trochanter stands out."""
LEAST_PROMINENCE_MM = 0.7
OUTLINE_SD_MM = 1.5
SUMMIT_MM = 3
ROUNDS = 4
"""Shaft and lesser trochanter are found in turn; the axis moves by less than 0.1 degrees after that."""


class LandmarksNotFound(DicomNodeError):
    """A femur lacks what its regions are drawn from; the message says what could not be found, and why."""


@dataclass(frozen=True)
class Head:
    """What every femur with its head shows, however short it is cut."""

    centre: Points
    radius_mm: float
    neck_centre: Points
    """Centre of the neck's narrowest section."""
    neck_half_height_mm: float
    """Half of the narrowest section's longer diameter."""

    @property
    def neck_axis(self) -> Points:
        """Unit vector from the head's centre along the neck."""
        return _unit(self.neck_centre - self.centre)

    @property
    def junction(self) -> Points:
        """Where the head's sphere passes into the neck, on the neck's axis."""
        out = max(self.radius_mm**2 - self.neck_half_height_mm**2, 0.25 * self.radius_mm**2)
        return np.asarray(self.centre + np.sqrt(out) * self.neck_axis)


@dataclass(frozen=True)
class _Bone:
    """A volume fraction that can be read anywhere, its surface, and its inside."""

    values: NDArray[np.float32]
    voxel_from_patient: NDArray[np.float64]
    surface: Points
    """(n, 3) points in patient mm, between the voxels where the fraction passes 1/2."""
    normals: Points
    """(n, 3) unit vectors inwards."""
    inside: Points
    """(m, 3) centres of the voxels that are at least half full."""
    cut: Points
    """(k, 3) of those, the ones at the border of the volume: the bone goes on behind them."""

    def read(self, points: Points) -> NDArray[np.float64]:
        """Fraction at points (..., 3) in patient mm; 0 outside of the volume."""
        index = points @ self.voxel_from_patient[:3, :3].T + self.voxel_from_patient[:3, 3]
        return np.asarray(
            ndimage.map_coordinates(self.values, np.moveaxis(index[..., ::-1], -1, 0), order=1, mode="constant"),
            np.float64,
        )


def find_landmarks(femur: Structure, side: Side) -> FemurLandmarks:
    """Find the landmarks of one femur.

    Args:
        femur: volume fraction or mask, 1 inside; voxels up to 3 mm.
        side: of the patient, which tells backwards from forwards.

    Returns:
        The landmarks in the patient frame.

    Raises:
        LandmarksNotFound: head, neck, greater or lesser trochanter or shaft is not in the volume.
    """
    bone = _bone(femur)
    head = _find_head(bone)
    start, up = _rough_shaft(bone, head)
    for _ in range(ROUNDS):
        base = _nearest_on_first(head.centre, head.neck_axis, start, up)
        directions = _directions(head, start, up, side)
        lesser = _lesser_tip(bone, start, base, head.radius_mm, directions)
        start, up = _shaft_axis(bone, start, up, lesser, head.radius_mm)
    base = _nearest_on_first(head.centre, head.neck_axis, start, up)
    level = start + float((lesser - start) @ up) * up
    return FemurLandmarks(
        head_centre=head.centre,
        head_radius_mm=head.radius_mm,
        head_neck_junction=head.junction,
        neck_base=base,
        greater_trochanter_tip=_greater_tip(bone, head, base, _directions(head, start, up, side)),
        lesser_trochanter_tip=lesser,
        shaft_proximal=level,
        shaft_distal=level - 50.0 * up,
    )


def find_head(femur: Structure) -> Head:
    """Find head and neck, all that a femur cut off below its neck shows.

    Raises:
        LandmarksNotFound: no head, or no neck below it.
    """
    return _find_head(_bone(femur))


def surface_mm(femur: Structure) -> Points:
    """(n, 3) points of a femur's surface in patient mm, without those at the border of the volume, where it goes on."""
    bone = _bone(femur)
    if not len(bone.cut):
        return bone.surface
    spacing_mm = float(np.linalg.norm(femur.patient_from_voxel[:3, :3], axis=0).max())
    distance, _ = cKDTree(bone.cut).query(bone.surface)
    return np.asarray(bone.surface[distance > 1.5 * spacing_mm])


def _unit(vector: Points) -> Points:
    return np.asarray(vector / np.linalg.norm(vector))


def _bone(femur: Structure) -> _Bone:
    """Cut out the bone and find its surface."""
    occupied = femur.values >= 0.5
    boxes = ndimage.find_objects(occupied.astype(np.int8))
    if not boxes:
        raise LandmarksNotFound(f"{femur.name} holds no bone: no voxel is half full")
    spacing_mm = np.linalg.norm(femur.patient_from_voxel[:3, :3], axis=0)
    if spacing_mm.max() > 3.5:
        raise LandmarksNotFound(f"{femur.name} has voxels of {spacing_mm.max():.1f} mm, expected 3 mm at most")
    low = np.array([max(part.start - 2, 0) for part in boxes[0]])
    high = [min(part.stop + 2, size) for part, size in zip(boxes[0], occupied.shape, strict=True)]
    values = np.pad(femur.values[low[0] : high[0], low[1] : high[1], low[2] : high[2]].astype(np.float32), 1)
    matrix = femur.patient_from_voxel.copy()
    matrix[:3, 3] = (femur.patient_from_voxel @ [*(low - 1)[::-1], 1.0])[:3]
    occupied = np.pad(occupied[low[0] : high[0], low[1] : high[1], low[2] : high[2]], 1)
    border = np.zeros(femur.values.shape, bool)
    for axis in range(3):
        border[(slice(None),) * axis + ([0, -1],)] = True
    border = np.pad(border[low[0] : high[0], low[1] : high[1], low[2] : high[2]], 1)
    surface = np.concatenate([_crossings(values, axis) for axis in range(3)])
    sigma = np.maximum(1.5 / spacing_mm, 0.7)[::-1]
    smooth = ndimage.gaussian_filter(values, sigma)
    gradient = np.stack([ndimage.map_coordinates(part, surface.T, order=1) for part in np.gradient(smooth)], axis=1)
    inverse = np.asarray(np.linalg.inv(matrix), np.float64)

    def place(index: NDArray[np.float64]) -> Points:
        return np.asarray(index[:, ::-1] @ matrix[:3, :3].T + matrix[:3, 3])

    normals = gradient[:, ::-1] @ inverse[:3, :3]
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    return _Bone(
        values,
        inverse,
        place(surface),
        np.asarray(normals, np.float64),
        place(np.argwhere(occupied).astype(np.float64)),
        place(np.argwhere(occupied & border).astype(np.float64)),
    )


def _crossings(values: NDArray[np.float32], axis: int) -> NDArray[np.float64]:
    """(n, 3) indices (z, y, x) between neighbours along one axis where the fraction passes 1/2."""
    first = values[(slice(None),) * axis + (slice(None, -1),)]
    second = values[(slice(None),) * axis + (slice(1, None),)]
    index = np.argwhere((first >= 0.5) != (second >= 0.5))
    a, b = first[tuple(index.T)], second[tuple(index.T)]
    places = index.astype(np.float64)
    places[:, axis] += (0.5 - a) / (b - a)
    return places


def _find_head(bone: _Bone) -> Head:
    centre, radius = _sphere_by_votes(bone)
    axis = _unit(_shell_centre(bone, centre, radius) - centre)
    for _ in range(6):
        centre, radius = _fit_sphere(bone, centre, radius, axis)
        neck_centre, half_height = _narrowest(bone, centre, radius, axis)
        axis = _unit(neck_centre - centre)
    if len(bone.cut) and (np.linalg.norm(bone.cut - centre, axis=1) < 1.05 * radius).any():
        raise LandmarksNotFound("the femoral head lies at the border of the volume and is cut off")
    return Head(centre, radius, neck_centre, half_height)


def _sphere_by_votes(bone: _Bone) -> tuple[Points, float]:
    """The sphere that most of the surface belongs to: its inward normals meet in one point at one distance."""
    chosen = np.linspace(0, len(bone.surface) - 1, min(VOTERS, len(bone.surface))).astype(int)
    points, normals = bone.surface[chosen], bone.normals[chosen]
    low = points.min(axis=0) - 2 * VOTE_MM
    size = np.ceil((points.max(axis=0) + 2 * VOTE_MM - low) / VOTE_MM).astype(int)
    best, centre, radius = -1.0, points[0], HEAD_RADII_MM[0]
    for r in np.arange(*HEAD_RADII_MM, VOTE_MM):
        index = np.floor((points + r * normals - low) / VOTE_MM).astype(int)
        index = index[((index >= 0) & (index < size)).all(axis=1)]
        votes = np.bincount(np.ravel_multi_index(index.T, tuple(size)), minlength=int(np.prod(size))).reshape(size)
        near = ndimage.gaussian_filter(votes.astype(np.float32), 1.2)
        if float(near.max()) > best:
            best, radius = float(near.max()), float(r)
            centre = low + VOTE_MM * (np.array(np.unravel_index(int(near.argmax()), tuple(size))) + 0.5)
    return centre, radius


def _shell_centre(bone: _Bone, centre: Points, radius: float) -> Points:
    """Centre of the bone just outside of the head: there begins the neck."""
    distance = np.linalg.norm(bone.inside - centre, axis=1)
    shell = bone.inside[(distance > 1.1 * radius) & (distance < 1.5 * radius)]
    if len(shell) == 0:
        raise LandmarksNotFound("no neck below the femoral head: the volume ends there, or this is no proximal femur")
    return np.asarray(shell.mean(axis=0))


def _fit_sphere(bone: _Bone, centre: Points, radius: float, axis: Points) -> tuple[Points, float]:
    """Least squares on the surface near the sphere and away from the neck, which is narrowed in three rounds."""
    misfit = np.inf
    for width_mm in (4.0, 3.0, 2.0, 2.0):
        out = bone.surface - centre
        distance = np.linalg.norm(out, axis=1)
        facing = -np.einsum("ij,ij->i", bone.normals, out) / np.maximum(distance, 1e-9)
        near = (np.abs(distance - radius) < width_mm) & (out @ axis < 0.35 * radius) & (facing > 0.8)
        points = bone.surface[near]
        if len(points) < 50:
            raise LandmarksNotFound("no round femoral head in the volume")
        system = np.column_stack([2 * points, np.ones(len(points))])
        solution = np.linalg.lstsq(system, (points**2).sum(axis=1), rcond=None)[0]
        centre = solution[:3]
        radius = float(np.sqrt(solution[3] + centre @ centre))
        misfit = float(np.median(np.abs(np.linalg.norm(points - centre, axis=1) - radius)))
    covered = _coverage(points - centre, axis)
    if misfit > GREATEST_MISFIT_MM or not HEAD_RADII_MM[0] < radius < HEAD_RADII_MM[1] or covered < 0.6:
        raise LandmarksNotFound(
            f"no round femoral head: the best sphere has a radius of {radius:.0f} mm, lies {misfit:.1f} mm from the surface and"
            f" {100 * covered:.0f} % of it is there; expected {HEAD_RADII_MM[0]:g} to {HEAD_RADII_MM[1]:g} mm"
        )
    return centre, radius


def _coverage(out: Points, axis: Points) -> float:
    """Share of the directions away from the neck in which the head has a surface."""
    directions = _sphere_directions(200)
    directions = directions[directions @ axis < 0.2]
    unit = out / np.linalg.norm(out, axis=1, keepdims=True)
    step = max(1, len(unit) // 3000)
    return float(((directions @ unit[::step].T).max(axis=1) > np.cos(np.radians(12.0))).mean())


def _sphere_directions(count: int) -> Points:
    """Evenly spread unit vectors (Fibonacci's lattice)."""
    n = np.arange(count) + 0.5
    z, turn = 1 - 2 * n / count, np.pi * (1 + 5**0.5) * n
    flat = np.sqrt(1 - z**2)
    return np.column_stack([flat * np.cos(turn), flat * np.sin(turn), z])


def _across(axis: Points) -> tuple[Points, Points]:
    """Two unit vectors that are perpendicular to a third."""
    first = _unit(np.cross(axis, np.eye(3)[int(np.argmin(np.abs(axis)))]))
    return first, np.cross(axis, first)


def _sections(
    bone: _Bone, start: Points, axis: Points, steps_mm: NDArray[np.float64], radius_mm: float
) -> tuple[Points, NDArray[np.float64]]:
    """Fractions (steps, n) on discs across an axis, and the discs' points (n, 3) relative to their centres."""
    u, v = _across(axis)
    line = np.arange(-radius_mm, radius_mm + SECTION_MM / 2, SECTION_MM)
    a, b = (grid.ravel() for grid in np.meshgrid(line, line))
    disc = np.hypot(a, b) <= radius_mm
    offsets = a[disc, None] * u + b[disc, None] * v
    points = start + steps_mm[:, None, None] * axis + offsets
    return offsets, bone.read(points)


def _narrowest(bone: _Bone, centre: Points, radius: float, axis: Points) -> tuple[Points, float]:
    """Centre and half the longer diameter of the neck's narrowest section."""
    steps = np.arange(0.6 * radius, 2.0 * radius, STEP_MM)
    offsets, fractions = _sections(bone, centre, axis, steps, 0.95 * radius)
    areas = fractions.sum(axis=1) * SECTION_MM**2
    least = int(np.argmin(areas))
    if areas[least] < 0.15 * np.pi * radius**2:
        raise LandmarksNotFound("the volume ends within the neck of the femur")
    chosen = slice(max(least - 1, 0), least + 2)
    weights = fractions[chosen].mean(axis=0)
    middle = weights @ offsets / weights.sum()
    spread = (offsets - middle).T @ (weights[:, None] * (offsets - middle)) / weights.sum()
    half_height = 2.0 * float(
        np.sqrt(np.linalg.eigvalsh(spread)[-1])
    )  # a full ellipse has a variance of (half axis)^2 / 4
    return centre + steps[least] * axis + middle, half_height


def _rough_shaft(bone: _Bone, head: Head) -> tuple[Points, Points]:
    """A point on the shaft, and its direction upwards."""
    distance = np.linalg.norm(bone.inside - head.centre, axis=1)
    reach = min(float(distance.max()), REACH_MM)
    if reach < 3.6 * head.radius_mm:
        raise LandmarksNotFound(
            f"the volume ends {reach:.0f} mm from the centre of the femoral head, above the lesser trochanter; lesser trochanter"
            " and shaft cannot be found"
        )
    end = bone.inside[(distance > reach - 15.0) & (distance <= reach)].mean(axis=0)
    return end, _unit(head.neck_centre + 0.8 * head.radius_mm * head.neck_axis - end)


def _nearest_on_first(point: Points, axis: Points, other: Points, other_axis: Points) -> Points:
    """The point of a line that comes closest to another line."""
    system = np.column_stack([axis, -other_axis])
    along = np.linalg.lstsq(system, other - point, rcond=None)[0]
    return np.asarray(point + along[0] * axis)


def _directions(head: Head, start: Points, up: Points, side: Side) -> Directions:
    """Lateral, posterior and up of the femur."""
    lateral = start - head.centre
    lateral = _unit(lateral - (lateral @ up) * up)
    return lateral, np.cross(up, lateral) * (1.0 if side is Side.LEFT else -1.0), up


def _lesser_tip(bone: _Bone, axis_point: Points, base: Points, radius: float, directions: Directions) -> Points:
    """The point between inwards and backwards that stands out from the shaft: a peak of the outline along the shaft.

    Further up the outline runs into the neck, so that the peak is one between two hollows, not the greatest distance.
    """
    lateral, posterior, up = directions
    out, level = bone.surface - axis_point, (bone.surface - base) @ up
    distance = np.hypot(out @ lateral, out @ posterior)
    turn_deg = np.degrees(np.arctan2(out @ posterior, -out @ lateral))
    near = (turn_deg > SECTOR_DEG[0]) & (turn_deg < SECTOR_DEG[1]) & (level > -3.5 * radius) & (level < 0.2 * radius)
    points, distance, level = bone.surface[near], distance[near], level[near]
    lowest = int(np.floor(level.min(initial=0.0)))
    bins = np.round(level - lowest).astype(int)
    outline = np.full(bins.max(initial=0) + 1, -np.inf)
    np.maximum.at(outline, bins, distance)
    seen = np.flatnonzero(np.isfinite(outline))
    outline = ndimage.gaussian_filter1d(np.interp(np.arange(len(outline)), seen, outline[seen]), OUTLINE_SD_MM)
    peaks, found = signal.find_peaks(outline, prominence=LEAST_PROMINENCE_MM)
    if len(peaks) == 0:
        raise LandmarksNotFound(
            "no lesser trochanter stands out behind and inside of the shaft: the volume ends above it, or the side is wrong"
        )
    peak = int(peaks[np.argmax(found["prominences"])])
    top = _summit(outline, peak) + lowest
    near_top = np.abs(level - top) < 1.5
    tip = points[near_top & (distance > distance[near_top].max() - 1.0)].mean(axis=0)
    return np.asarray(tip + (top - float((tip - base) @ up)) * up)


def _summit(outline: NDArray[np.float64], peak: int) -> float:
    """Where a parabola through a peak and its neighbours, `SUMMIT_MM` to either side, has its vertex."""
    low, high = max(peak - SUMMIT_MM, 0), min(peak + SUMMIT_MM, len(outline) - 1)
    a, b, _ = np.polyfit(np.arange(low, high + 1) - peak, outline[low : high + 1], 2)
    return peak + (float(np.clip(-b / (2 * a), -SUMMIT_MM, SUMMIT_MM)) if a < 0 else 0.0)


def _shaft_axis(bone: _Bone, start: Points, up: Points, lesser: Points, radius: float) -> tuple[Points, Points]:
    """A point on the shaft's axis and its direction upwards: the line through the centres of the sections."""
    start = start + float((lesser - start) @ up) * up
    steps = np.arange(SHAFT_FROM_MM, SHAFT_TO_MM + STEP_MM / 2, STEP_MM)
    offsets, fractions = _sections(bone, start, -up, steps, 1.3 * radius)
    areas = fractions.sum(axis=1) * SECTION_MM**2
    whole = areas > 0.85 * np.median(areas[: max(5, int(np.count_nonzero(areas > 0.2 * areas.max())))])
    if len(bone.cut):
        lower = bone.cut[(bone.cut - start) @ up < 0]
        highest = float(((lower - start) @ up).max(initial=-np.inf))
        whole &= -steps > highest + 1.0
    if np.count_nonzero(whole) * STEP_MM < LEAST_SHAFT_MM:
        raise LandmarksNotFound(
            f"{np.count_nonzero(whole) * STEP_MM:.0f} mm of shaft between {SHAFT_FROM_MM:g} and {SHAFT_TO_MM:g} mm below the"
            f" lesser trochanter, expected {LEAST_SHAFT_MM:g} at least: the volume ends too high"
        )
    centres = (fractions @ offsets) / fractions.sum(axis=1)[:, None] + start - steps[:, None] * up
    middle = centres[whole].mean(axis=0)
    direction = np.linalg.svd(centres[whole] - middle)[2][0]
    return middle, direction * np.sign(direction @ up)


def _greater_tip(bone: _Bone, head: Head, base: Points, directions: Directions) -> Points:
    """The highest point along the shaft, lateral of the neck."""
    lateral, _, up = directions
    out = bone.surface - head.centre
    beside = out @ lateral > 0.8 * float((base - head.centre) @ lateral)
    points = bone.surface[beside & (np.linalg.norm(out, axis=1) > 1.25 * head.radius_mm)]
    height = points @ up
    tip = points[height > height.max() - 0.75].mean(axis=0)
    tip = tip + (height.max() - float(tip @ up)) * up
    if len(bone.cut) and (np.linalg.norm(bone.cut - tip, axis=1) < 4.0).any():
        raise LandmarksNotFound("the greater trochanter lies at the border of the volume and is cut off")
    return np.asarray(tip)
