"""What age and falls do to a hip: osteoarthritis and displaced fractures, on the voxels of the healthy one.

Frames are those of `femur` (origin in the centre of the head) and `pelvis`; sizes are own choices, made to look as in radiographs
that Kellgren and Lawrence 1957, doi:10.1136/ard.16.4.494, grade.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from training.anatomy.femur import FemurLandmarks, FemurShape, landmarks, neck_axis
from training.anatomy.implicit import coordinates

OSTEOPHYTE_MM = 7.0
"""Greatest radius of the bony rim around the head at severity 1."""
OSTEOPHYTE_G_CM3 = 0.35
"""Hydroxyapatite per volume of an osteophyte: spongy bone in a thin shell; assumption."""
SCLEROSIS_G_CM3 = 0.45
"""Mineral that the loaded bone on both sides of the joint gains at severity 1; assumption."""
SCLEROSIS_DEPTH_MM = 8.0
"""On either side of the joint surface; assumption."""
NARROWING = 0.85
"""Share of the joint space that is lost at severity 1."""
_LOADED = np.array([0.35, 0.0, 0.94])
"""Where the socket presses on the head: up and a little lateral."""


class FractureKind(StrEnum):
    """Where a proximal femur breaks."""

    CERVICAL = "cervical"
    TROCHANTERIC = "trochanteric"


@dataclass(frozen=True)
class Fracture:
    """A displaced fracture: the head's fragment tilts into varus in its socket, the shaft goes up and turns outwards."""

    kind: FractureKind
    shortening_mm: float
    varus_deg: float
    external_rotation_deg: float


def narrowed(joint_space_mm: float, severity: float) -> float:
    """What is left of a joint space."""
    return joint_space_mm * (1.0 - NARROWING * severity)


def degenerate(
    mineral: NDArray[np.float32],
    volume: NDArray[np.float32],
    origin_mm: NDArray[np.float64],
    voxel_mm: float,
    shape: FemurShape,
    densest_g_cm3: float,
    severity: float,
    seed: int,
) -> None:
    """Give a femur the rim of osteophytes and the subchondral sclerosis of osteoarthritis, in place.

    Args:
        mineral: (z, y, x) g/cm3 in the femur's frame.
        volume: (z, y, x) fraction of each voxel inside.
        densest_g_cm3: what bone can hold at most.
        severity: 0..1.
        seed: where the rim is thick.
    """
    reach = shape.head_radius_mm + OSTEOPHYTE_MM + 2 * voxel_mm
    window, (x, y, z) = _around(mineral.shape, origin_mm, voxel_mm, reach)
    bone, inside = mineral[window], volume[window]
    bone += (
        _sclerosis(x, y, z, shape.head_radius_mm, severity) * (x * x + y * y + z * z < shape.head_radius_mm**2) * inside
    )
    np.minimum(bone, np.float32(densest_g_cm3) * inside, out=bone)
    rim = np.clip(0.5 - _rim_distance(x, y, z, shape, severity, seed) / voxel_mm, 0, 1).astype(np.float32)
    grown = np.maximum(rim - inside, 0)  # what was bone before stays as it was
    inside += grown
    bone += np.float32(OSTEOPHYTE_G_CM3) * grown


def sclerose_socket(
    mineral: NDArray[np.float32],
    volume: NDArray[np.float32],
    origin_mm: NDArray[np.float64],
    voxel_mm: float,
    hip_x_mm: float,
    cavity_mm: float,
    densest_g_cm3: float,
    severity: float,
) -> None:
    """Let the roof of a socket become denser, in place.

    Args:
        mineral: (z, y, x) g/cm3 of the pelvis in its frame.
        volume: (z, y, x) fraction of each voxel inside.
        hip_x_mm: place of the hip's centre along x; negative on the right.
        cavity_mm: radius of the socket.
        densest_g_cm3: what bone can hold at most.
        severity: 0..1.
    """
    centred = origin_mm - np.array([hip_x_mm, 0.0, 0.0])
    window, (x, y, z) = _around(mineral.shape, centred, voxel_mm, cavity_mm + SCLEROSIS_DEPTH_MM)
    bone, inside = mineral[window], volume[window]
    bone += _sclerosis(math.copysign(1.0, hip_x_mm) * x, y, z, cavity_mm, severity) * inside
    np.minimum(bone, np.float32(densest_g_cm3) * inside, out=bone)


def _around(
    size: tuple[int, ...], origin_mm: NDArray[np.float64], voxel_mm: float, reach_mm: float
) -> tuple[tuple[slice, ...], tuple[NDArray[np.float64], ...]]:
    """The part of a grid about the frame's origin: its slices (z, y, x), and `coordinates` x, y, z over it."""
    ticks = coordinates(size, origin_mm, voxel_mm)
    x, y, z = (slice(*np.searchsorted(axis.ravel(), (-reach_mm, reach_mm))) for axis in ticks)
    return (z, y, x), (ticks[0][..., x], ticks[1][:, y], ticks[2][z])


def _sclerosis(
    x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64], radius_mm: float, severity: float
) -> NDArray[np.float32]:
    """Mineral that is gained near a loaded sphere, g/cm3: within `SCLEROSIS_DEPTH_MM` of it, most in the direction of the load."""
    r = np.sqrt(x * x + y * y + z * z)
    towards = (_LOADED[0] * x + _LOADED[2] * z) / np.maximum(r, 1e-6)
    depth = np.clip(1 - np.abs(r - radius_mm) / SCLEROSIS_DEPTH_MM, 0, 1)
    return np.asarray(severity * SCLEROSIS_G_CM3 * depth * np.clip((towards - 0.45) / 0.4, 0, 1), np.float32)


def _rim_distance(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    z: NDArray[np.float64],
    shape: FemurShape,
    severity: float,
    seed: int,
) -> NDArray[np.float64]:
    """Distance to the ring of osteophytes where the head passes into the neck, mm, thicker here and there."""
    axis, points = neck_axis(shape), landmarks(shape)
    up = np.cross(axis, np.array([0.0, 1.0, 0.0]))
    up /= np.linalg.norm(up)
    forward = np.cross(axis, up)
    along = x * axis[0] + y * axis[1] + z * axis[2]
    upward = x * up[0] + y * up[1] + z * up[2]
    sideward = x * forward[0] + y * forward[1] + z * forward[2]
    place = float(points.head_neck_junction @ axis) - 2.0
    ring = math.sqrt(max(shape.head_radius_mm**2 - place**2, 1.0))
    angle = np.arctan2(sideward, upward)
    first, second = np.random.default_rng(seed).uniform(0, 2 * np.pi, 2)
    # Most often above and below, where the rim is seen in profile.
    swell = 0.55 + 0.25 * np.cos(2 * angle) + 0.2 * np.cos(angle - first) * np.cos(3 * angle - second)
    radius = severity * OSTEOPHYTE_MM * np.clip(swell, 0.1, 1.0)
    return np.asarray(np.hypot(along - place, np.hypot(upward, sideward) - ring) - radius, np.float64)


def proximal_fragment(
    kind: FractureKind,
    shape: FemurShape,
    size: tuple[int, ...],
    origin_mm: NDArray[np.float64],
    voxel_mm: float,
) -> NDArray[np.bool_]:
    """Break a femur on its grid, across the neck or from trochanter to trochanter: (z, y, x) True for the head's fragment."""
    points, axis = landmarks(shape), neck_axis(shape)
    x, y, z = coordinates(size, origin_mm, voxel_mm)
    middle = _break(kind, points)
    if kind is FractureKind.CERVICAL:
        medial = x < points.neck_base[0] - 0.05 * shape.shaft_diameter_mm
        proximal = (x * axis[0] + y * axis[1] + z * axis[2] < float(middle @ axis)) & medial
    else:
        line = points.greater_trochanter_tip - points.lesser_trochanter_tip
        # In the coronal plane, at right angles to the line between the trochanters, towards the head.
        normal = np.array([-line[2], 0.0, line[0]])
        normal *= math.copysign(1.0, float(normal @ (points.head_centre - middle)))
        proximal = (x - middle[0]) * normal[0] + (z - middle[2]) * normal[2] > 0
    return np.asarray(np.broadcast_to(proximal, size))


def _break(kind: FractureKind, points: FemurLandmarks) -> NDArray[np.float64]:
    """A point in the middle of the break, in the femur's frame."""
    if kind is FractureKind.CERVICAL:
        return 0.5 * (points.head_neck_junction + points.neck_base)
    return 0.5 * (points.greater_trochanter_tip + points.lesser_trochanter_tip)


def tilt(fracture: Fracture) -> NDArray[np.float64]:
    """4 x 4 in the femur's frame: how the head's fragment turns in its socket, its neck upwards."""
    varus = math.radians(fracture.varus_deg)
    matrix = np.eye(4)
    cosine, sine = math.cos(varus), math.sin(varus)
    matrix[:3, :3] = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
    return matrix


def displacement(fracture: Fracture, shape: FemurShape) -> NDArray[np.float64]:
    """4 x 4 in the femur's frame: where the shaft's fragment goes. It stays as straight as the leg lies."""
    middle = _break(fracture.kind, landmarks(shape))
    out = math.radians(fracture.external_rotation_deg)
    matrix = np.eye(4)
    cosine, sine = math.cos(out), math.sin(out)
    matrix[:3, :3] = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    met = tilt(fracture)[:3, :3] @ middle + np.array([0.0, 0.0, fracture.shortening_mm])
    matrix[:3, 3] = met - matrix[:3, :3] @ middle
    return matrix


def broken_landmarks(points: FemurLandmarks, fracture: Fracture, shape: FemurShape) -> FemurLandmarks:
    """The landmarks of a broken femur in its own frame: those of the head go with one fragment, the others with the other."""
    head, shaft = points.moved(tilt(fracture)), points.moved(displacement(fracture, shape))
    return replace(
        shaft,
        head_centre=head.head_centre,
        head_neck_junction=head.head_neck_junction,
    )
