"""Metal in and on the femur and in the socket, made of capsules, in the frames of `femur` and `pelvis`."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numba import njit
from numpy.typing import NDArray

from training.anatomy.femur import FemurShape, landmarks, neck_axis
from training.anatomy.implicit import cone, coordinates, coverage


class ImplantKind(StrEnum):
    """What a surgeon left there."""

    TOTAL_ARTHROPLASTY = "total_arthroplasty"
    HEMIARTHROPLASTY = "hemiarthroplasty"
    NAIL = "nail"
    SLIDING_SCREW = "sliding_screw"
    CANNULATED_SCREWS = "cannulated_screws"


@dataclass(frozen=True)
class Implant:
    """One implant of one hip; drawn in `population`."""

    kind: ImplantKind
    density_g_cm3: float
    """About 4.4 for titanium alloys, 7.9 for steel, 8.3 for cobalt-chromium."""
    size: float
    """Factor on thicknesses, about 1."""

    @property
    def replaces_head(self) -> bool:
        """Whether head and neck were resected."""
        return self.kind in (ImplantKind.TOTAL_ARTHROPLASTY, ImplantKind.HEMIARTHROPLASTY)


def _capsule(a: NDArray[np.float64], ar: float, b: NDArray[np.float64], br: float) -> NDArray[np.float64]:
    return np.array([*a, ar, *b, br])


def femoral_capsules(implant: Implant, shape: FemurShape) -> NDArray[np.float64]:
    """Return (n, 8) capsules (point, radius, point, radius) in the femur's frame, mm."""
    points = landmarks(shape)
    axis, base, shaft = neck_axis(shape), points.neck_base, shape.shaft_diameter_mm / 2
    size, head = implant.size, shape.head_radius_mm
    down = np.array([0.0, 0.0, -1.0])
    across = np.array([1.0, 0.0, 0.0])
    lateral = base + axis * 1.15 * shaft
    if implant.replaces_head:
        ball = 0.66 * head if implant.kind is ImplantKind.TOTAL_ARTHROPLASTY else head
        shoulder = base + np.array([-0.35 * shaft, 0.0, 4.0])
        return np.array(
            [
                _capsule(np.zeros(3), ball, 0.5 * axis, ball),
                _capsule(np.zeros(3), 6.5 * size, shoulder, 7.5 * size),
                _capsule(shoulder + np.array([0.25 * shaft, 0, 0]), 9.0 * size, base + 45 * down, 6.8 * size),
                _capsule(shoulder, 8.0 * size, base + 35 * down, 6.8 * size),
                _capsule(base + 40 * down, 6.8 * size, base + 120 * down, 5.0 * size),
            ]
        )
    lag = _capsule(0.35 * head * -axis, 4.8 * size, lateral, 5.2 * size)
    if implant.kind is ImplantKind.NAIL:
        tip = points.greater_trochanter_tip + np.array([-0.2 * shaft, -0.5 * shaft, 0.0])
        return np.array(
            [
                lag,
                _capsule(tip, 7.0 * size, base + 25 * down, 6.5 * size),
                _capsule(base + 25 * down, 6.3 * size, base + 190 * down, 5.2 * size),
            ]
        )
    if implant.kind is ImplantKind.SLIDING_SCREW:
        side = base + across * (shaft + 5.0)
        plate = [
            _capsule(side + np.array([0, y, -8.0]), 2.8 * size, side + np.array([-2.0, y, -100.0]), 2.8 * size)
            for y in (-6.0, -2.0, 2.0, 6.0)
        ]
        screws = [
            _capsule(side + np.array([0, 0, z]), 2.3, side + np.array([-2.2 * shaft - 6, 0, z]), 2.1)
            for z in (-45.0, -62.0, -79.0, -95.0)
        ]
        return np.array([lag, *plate, *screws])
    up = np.cross(axis, np.array([0.0, 1.0, 0.0]))
    behind = np.cross(axis, up)
    offsets = (-7.5 * up, 6.0 * up + 7.0 * behind, 6.0 * up - 7.0 * behind)
    return np.array([_capsule(0.45 * head * -axis + o, 3.3 * size, lateral + o, 3.3 * size) for o in offsets])


@njit(cache=True)
def _fill_capsules(
    fraction: NDArray[np.float32], origin: NDArray[np.float64], voxel: float, capsules: NDArray[np.float64]
) -> None:
    nz, ny, nx = fraction.shape
    for n in range(capsules.shape[0]):
        c = capsules[n]
        reach = max(c[3], c[7]) + voxel
        x0 = max(int((min(c[0], c[4]) - reach - origin[0]) / voxel), 0)
        x1 = min(int((max(c[0], c[4]) + reach - origin[0]) / voxel) + 2, nx)
        y0 = max(int((min(c[1], c[5]) - reach - origin[1]) / voxel), 0)
        y1 = min(int((max(c[1], c[5]) + reach - origin[1]) / voxel) + 2, ny)
        z0 = max(int((min(c[2], c[6]) - reach - origin[2]) / voxel), 0)
        z1 = min(int((max(c[2], c[6]) + reach - origin[2]) / voxel) + 2, nz)
        for k in range(z0, z1):
            for j in range(y0, y1):
                for i in range(x0, x1):
                    x, y, z = origin[0] + i * voxel, origin[1] + j * voxel, origin[2] + k * voxel
                    d = cone(x, y, z, c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7])
                    fraction[k, j, i] = max(fraction[k, j, i], coverage(d, voxel))


def metal_fraction(
    capsules: NDArray[np.float64], shape: tuple[int, int, int], origin_mm: NDArray[np.float64], voxel_mm: float
) -> NDArray[np.float32]:
    """Return (z, y, x) volume fraction of metal on a grid."""
    fraction = np.zeros(shape, np.float32)
    _fill_capsules(fraction, origin_mm, voxel_mm, capsules)
    return fraction


def resected(
    shape: FemurShape, size: tuple[int, int, int], origin_mm: NDArray[np.float64], voxel_mm: float
) -> NDArray[np.bool_]:
    """Return (z, y, x) True where head and neck were taken away: beyond a plane across the neck, medial of the trochanter."""
    axis = neck_axis(shape)
    x, y, z = coordinates(size, origin_mm, voxel_mm)
    along = x * axis[0] + y * axis[1] + z * axis[2]
    medial = x < shape.neck_length_mm * axis[0] - 0.1 * shape.shaft_diameter_mm
    return np.asarray((along < 0.62 * shape.neck_length_mm) & medial)


def cup_fraction(
    head_radius_mm: float, side: float, voxel_mm: float = 0.9
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A metal cup around the head. Returns (z, y, x) volume fraction and the grid's origin relative to the head's centre.

    Args:
        side: +1 for a left hip, -1 for a right one: where lateral is.
    """
    outer = head_radius_mm + 4.0
    inner = outer - 3.5
    n = int(2 * (outer + 2) / voxel_mm) + 1
    ticks = (np.arange(n) - (n - 1) / 2) * voxel_mm
    z, y, x = np.meshgrid(ticks, ticks, ticks, indexing="ij")
    r = np.sqrt(x * x + y * y + z * z)
    facing = 0.70 * side * x - 0.25 * y - 0.67 * z
    d = np.maximum(np.maximum(r - outer, inner - r), facing)
    return np.clip(0.5 - d / voxel_mm, 0, 1).astype(np.float32), np.full(3, ticks[0])
