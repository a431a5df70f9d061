"""A parametric pelvis with sacrum, coccyx and the lowest lumbar vertebrae.

Frame "pelvis": origin halfway between the centres of the femoral heads, +x to the patient's left, +y posterior, +z superior, in
mm, with the anterior superior iliac spines and the symphysis in one coronal plane. Bones are skeletons of rounded plates and
struts, blended; left and right mirror each other, each socket has its own femoral head.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numba import njit
from numpy.typing import NDArray

from training.anatomy.implicit import (
    coverage,
    grid,
    noise,
    noise_lattice,
    plate,
    smooth_min,
    smooth_step,
)

VOXEL_MM = 1.3
SOFTENING = 1.3
"""Edges run over this many voxels: thin walls that are seen along their plane would show the grid otherwise."""
BLOCK = 4
"""Voxels per edge of the blocks that are tested once before their voxels are looked at."""


class PelvisPart(IntEnum):
    """Which bone of the pelvis a voxel belongs to."""

    NONE = 0
    HIP_BONE = 1
    SACRUM = 2
    """With the coccyx."""
    LUMBAR = 3


@dataclass(frozen=True)
class PelvisShape:
    """Sizes of the pelvis; drawn in `population`."""

    half_width_mm: float
    """Midline to the centre of a femoral head."""
    height_scale: float
    """Factor on heights, 1 for a wing whose crest lies 143 mm above the heads."""
    depth_scale: float
    flare_mm: float
    """Outward (+) shift of the iliac crest."""
    arch_mm: float
    """Outward (+) shift of the ischial tuberosities: the subpubic angle."""
    head_radii_mm: tuple[float, float]
    """Right and left."""
    joint_space_mm: float


@dataclass(frozen=True)
class PelvisQuality:
    """Mineral of the pelvis."""

    cortical_density_g_cm3: float
    cortex_mm: float
    trabecular_density_g_cm3: float
    patchiness: float
    texture: float


# Vertices (lateral, posterior, superior, radius) in mm of half a pelvis with the head at (86, 0, 0). Own placements after the
# usual landmarks, checked by eye against projections of pelves.
_VERTICES = {
    "asis": (122, -58, 82, 6.5),
    "aiis": (99, -42, 38, 7.5),
    "tubercle": (129, -34, 122, 6.5),
    "crest_front": (127, -8, 137, 5.5),
    "crest_top": (114, 18, 144, 5.0),
    "crest_mid": (98, 38, 143, 5.5),
    "crest_back": (74, 58, 131, 6.0),
    "psis": (40, 78, 98, 8.0),
    "piis": (46, 70, 64, 8.0),
    "wing": (104, -6, 92, 3.0),
    "wing_back": (86, 30, 105, 3.5),
    "roof": (89, -3, 40, 12.0),
    "roof_front": (96, -24, 30, 9.0),
    "arcuate": (62, 30, 46, 7.0),
    "auricular": (52, 46, 88, 6.0),
    "brim": (64, -24, 22, 6.0),
    "wall_back": (62, 26, 8, 4.0),
    "wall_low": (64, 10, -26, 4.0),
    "column": (80, 34, 14, 10.0),
    "spine": (52, 50, -14, 3.0),
    "ischium": (76, 28, -26, 11.0),
    "tuber": (68, 26, -58, 12.0),
    "tuber_front": (58, 8, -66, 8.5),
    "eminence": (72, -34, 10, 9.0),
    "ramus": (44, -46, -10, 6.5),
    "pubis_top": (10, -54, -24, 7.5),
    "pubis_low": (9, -46, -48, 7.0),
    "pubis_out": (21, -51, -26, 7.0),
    "ramus_low": (34, -24, -60, 5.5),
}
_PLATES = (
    ("asis", "aiis", "wing"), ("asis", "tubercle", "wing"), ("tubercle", "crest_front", "wing"),
    ("crest_front", "crest_top", "wing"), ("crest_top", "wing_back", "wing"), ("crest_top", "crest_mid", "wing_back"),
    ("crest_mid", "crest_back", "wing_back"), ("crest_back", "auricular", "wing_back"),
    ("crest_back", "psis", "auricular"), ("psis", "piis", "auricular"), ("piis", "arcuate", "auricular"),
    ("auricular", "arcuate", "wing_back"), ("arcuate", "wing_back", "wing"), ("arcuate", "roof", "wing"),
    ("roof", "aiis", "wing"), ("roof", "roof_front", "aiis"), ("roof_front", "eminence", "aiis"),
    ("arcuate", "roof", "brim"), ("arcuate", "wall_back", "brim"), ("wall_back", "wall_low", "brim"),
    ("wall_back", "column", "ischium"), ("arcuate", "column", "roof"), ("wall_low", "ischium", "wall_back"),
    ("wall_back", "spine", "ischium"), ("ischium", "tuber", "tuber"), ("tuber", "tuber_front", "tuber_front"),
    ("eminence", "ramus", "ramus"), ("brim", "eminence", "ramus"), ("ramus", "pubis_out", "pubis_out"),
    ("pubis_top", "pubis_out", "pubis_low"), ("pubis_low", "ramus_low", "ramus_low"),
    ("ramus_low", "tuber_front", "tuber_front"),
)  # fmt: skip
_SACRUM_VERTICES = {
    "promontory": (0, 14, 110, 15.0),
    "body_edge": (14, 14, 109, 13.0),
    "ala": (40, 30, 104, 11.0),
    "auricular": (42, 44, 74, 8.0),
    "s2": (0, 42, 84, 11.0),
    "s3": (0, 64, 58, 9.5),
    "s3_edge": (30, 58, 52, 7.0),
    "s5": (0, 76, 26, 6.5),
    "s5_edge": (15, 73, 26, 5.5),
    "coccyx": (0, 66, 2, 4.5),
    "tip": (0, 56, -12, 3.0),
    "crest": (0, 66, 96, 6.0),
    "crest_low": (0, 80, 52, 5.0),
}
_SACRUM_PLATES = (
    ("promontory", "body_edge", "s2"), ("body_edge", "ala", "s2"), ("ala", "auricular", "s2"), ("auricular", "s3_edge", "s2"),
    ("s2", "s3", "s3_edge"), ("s3", "s5", "s5_edge"), ("s3", "s3_edge", "s5_edge"), ("s5", "coccyx", "coccyx"),
    ("coccyx", "tip", "tip"), ("s2", "crest", "crest_low"), ("s3", "crest_low", "crest_low"),
)  # fmt: skip


def scaled_points(vertices: Mapping[str, tuple[float, ...]], shape: PelvisShape) -> dict[str, NDArray[np.float64]]:
    """Points (lateral, posterior, superior, radius) after scaling; the crest flares and the tuberosities spread."""
    scaled = {}
    for name, (x, y, z, radius) in vertices.items():
        # Lateral to the head the wing keeps its overhang, medial of it everything follows the width.
        wide = x * shape.half_width_mm / 86.0
        wide += shape.flare_mm * max(z - 40.0, 0.0) / 100.0 * (x > 50)
        wide += shape.arch_mm * max(-z - 15.0, 0.0) / 45.0 * (x > 30)
        scaled[name] = np.array([wide, y * shape.depth_scale, z * shape.height_scale, radius])
    return scaled


def _plates(
    vertices: dict[str, NDArray[np.float64]], plates: tuple[tuple[str, str, str], ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return corners (n, 3, 4) and enclosing balls (n, 4) of the plates."""
    corners = np.array([[vertices[name] for name in corner] for corner in plates])
    return corners, enclosing_balls(corners)


def enclosing_balls(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 4) balls (x, y, z, radius) that hold the plates with these corners (n, 3, 4)."""
    centres = corners[:, :, :3].mean(axis=1)
    reach = (np.linalg.norm(corners[:, :, :3] - centres[:, None], axis=2) + corners[:, :, 3]).max(axis=1)
    return np.concatenate([centres, reach[:, None]], axis=1)


@njit(cache=True)
def _skeleton(
    x: float,
    y: float,
    z: float,
    corners: NDArray[np.float64],
    balls: NDArray[np.float64],
    near: NDArray[np.int64],
    count: int,
    fillet: float,
) -> float:
    d = 1e3
    for n in range(count):
        m = near[n]
        dx, dy, dz = x - balls[m, 0], y - balls[m, 1], z - balls[m, 2]
        if math.sqrt(dx * dx + dy * dy + dz * dz) - balls[m, 3] > d + fillet:
            continue  # too far to move the blend
        d = smooth_min(d, plate(x, y, z, corners[m, 0], corners[m, 1], corners[m, 2]), fillet)
    return d


@njit(cache=True)
def _near(x: float, y: float, z: float, reach: float, balls: NDArray[np.float64], near: NDArray[np.int64]) -> int:
    """List the plates that can lie within `reach` of a point; return their number."""
    count = 0
    for m in range(balls.shape[0]):
        dx, dy, dz = x - balls[m, 0], y - balls[m, 1], z - balls[m, 2]
        if math.sqrt(dx * dx + dy * dy + dz * dz) - balls[m, 3] < reach:
            near[count] = m
            count += 1
    return count


@njit(cache=True)
def _socket(x: float, y: float, z: float, bone: float, hip: float, head: float, space: float) -> float:
    """Form the acetabulum in the hip bone: a cup that faces out, forward and down, around the head and the joint space."""
    dx = x - hip
    r = math.sqrt(dx * dx + y * y + z * z)
    cavity = head + space
    facing = (
        0.70 * dx - 0.25 * y - 0.67 * z
    )  # along the opening's axis: abduction about 45, anteversion about 20 degrees
    cup = max(r - (cavity + 7.0), facing - 0.12 * head)
    bone = smooth_min(bone, cup, 6.0)
    bone = max(bone, cavity - r)
    # The notch: the rim is open below.
    notch = math.sqrt((0.6 * y) ** 2 + (dx + 6.0) ** 2) - 10.0
    if z < 0.0:
        bone = max(bone, -max(notch, r - cavity - 14.0))
    return bone


@njit(cache=True)
def _lumbar(x: float, y: float, z: float, level: float) -> float:
    """One lumbar vertebra of a folded (x >= 0) spine, its body centred at height `level`."""
    h = z - level
    waist = 1.0 - 0.10 * (1.0 - min(abs(h) / 13.0, 1.0))
    body = max(math.sqrt((x / 1.35) ** 2 + (y - 2.0) ** 2) - 18.0 * waist, abs(h - 0.15 * (y - 2.0)) - 12.5)
    dx = x - 22.0
    process = math.sqrt((dx * 0.25 if dx > 0.0 else dx) ** 2 + (y - 26.0) ** 2 + h * h) - 5.0 + max(dx - 22.0, 0.0)
    pedicle = math.sqrt((x - 16.0) ** 2 + ((y - 24.0) * 0.45) ** 2 + (h - 3.0) ** 2) - 6.0
    facet = math.sqrt((x - 19.0) ** 2 + (y - 36.0) ** 2 + (0.4 * h + 2.0) ** 2) - 6.0
    spinous = max(math.sqrt(x * x + ((y - 52.0) * 0.3) ** 2 + (0.6 * (h + 8.0)) ** 2) - 5.0, y - 70.0)
    return min(smooth_min(body, smooth_min(pedicle, smooth_min(process, facet, 5.0), 4.0), 3.0), spinous)


@njit(cache=True)
def _distances(
    x: float, y: float, z: float, p: NDArray[np.float64],
    hip_corners: NDArray[np.float64], hip_balls: NDArray[np.float64], hip_near: NDArray[np.int64], hips: int,
    mid_corners: NDArray[np.float64], mid_balls: NDArray[np.float64], mid_near: NDArray[np.int64], mids: int,
) -> tuple[float, float]:  # fmt: skip
    """Signed distances to the hip bones and to sacrum and spine."""
    side = abs(x)
    head = p[3] if x < 0.0 else p[4]
    bone = _skeleton(side, y, z, hip_corners, hip_balls, hip_near, hips, 7.0)
    bone = _socket(side, y, z, bone, p[0], head, p[5])
    bone = max(bone, 2.2 - side)  # symphysis
    middle = _skeleton(side, y, z, mid_corners, mid_balls, mid_near, mids, 7.0)
    # Anterior sacral foramina: tilted channels beside the bodies.
    for n in range(4 if middle < 6.0 else 0):
        fz = p[1] * (92.0 - 19.0 * n) + 0.35 * (y - p[2] * (34.0 + 12.0 * n))
        fx = 23.0 - 2.2 * n
        middle = max(middle, 4.6 - 0.5 * n - math.sqrt((side - fx) ** 2 + (z - fz) ** 2))
    top = 110.0 * p[1]
    if z > top + 5.0:
        middle = min(middle, _lumbar(side, y, z, top + 30.0))
        middle = min(middle, _lumbar(side, y + 3.0, z, top + 64.0))
    middle = max(middle, 1.5 - bone)  # sacroiliac joints
    return bone, middle


@njit(cache=True)
def _fill(
    mineral: NDArray[np.float32],
    volume: NDArray[np.float32],
    origin: NDArray[np.float64],
    voxel: float,
    p: NDArray[np.float64],
    hip_corners: NDArray[np.float64],
    hip_balls: NDArray[np.float64],
    mid_corners: NDArray[np.float64],
    mid_balls: NDArray[np.float64],
    slow: NDArray[np.float32],
    fine: NDArray[np.float32],
) -> None:
    nz, ny, nx = mineral.shape
    reach = 1.15 * (0.5 * (BLOCK - 1) * voxel * math.sqrt(3.0) + voxel)
    hip_near, mid_near = np.zeros(hip_balls.shape[0], np.int64), np.zeros(mid_balls.shape[0], np.int64)
    cortical, cortex, trabecular, patchiness, texture = p[6], p[7], p[8], p[9], p[10]
    for z0 in range(0, nz, BLOCK):
        for y0 in range(0, ny, BLOCK):
            for x0 in range(0, nx, BLOCK):
                half = 0.5 * (BLOCK - 1)
                cx, cy, cz = (
                    origin[0] + (x0 + half) * voxel,
                    origin[1] + (y0 + half) * voxel,
                    origin[2] + (z0 + half) * voxel,
                )
                hips = _near(abs(cx), cy, cz, reach + 8.0, hip_balls, hip_near)
                mids = _near(abs(cx), cy, cz, reach + 8.0, mid_balls, mid_near)
                bone, middle = _distances(
                    cx, cy, cz, p, hip_corners, hip_balls, hip_near, hips, mid_corners, mid_balls, mid_near, mids
                )
                if min(bone, middle) > reach:
                    continue
                for k in range(z0, min(z0 + BLOCK, nz)):
                    for j in range(y0, min(y0 + BLOCK, ny)):
                        for i in range(x0, min(x0 + BLOCK, nx)):
                            x, y, z = origin[0] + i * voxel, origin[1] + j * voxel, origin[2] + k * voxel
                            bone, middle = _distances(
                                x,
                                y,
                                z,
                                p,
                                hip_corners,
                                hip_balls,
                                hip_near,
                                hips,
                                mid_corners,
                                mid_balls,
                                mid_near,
                                mids,
                            )
                            d = min(bone, middle)
                            inside = coverage(d, SOFTENING * voxel)
                            if inside == 0.0:
                                continue
                            head = p[3] if x < 0.0 else p[4]
                            r = math.sqrt((abs(x) - p[0]) ** 2 + y * y + z * z) - head - p[5]
                            # The weight-bearing plate of the socket (sourcil) is thicker; the sacrum's cortex thinner.
                            dome = smooth_step(7.0, 2.0, r) * smooth_step(0.15 * head, 0.75 * head, z)
                            t = cortex * (1.0 + 0.8 * dome) * (0.75 if middle < bone else 1.0)
                            spongy = coverage(d + t, SOFTENING * voxel)
                            streak = noise(fine, x / 1.8, y / 1.8, z / 5.0)
                            patch = noise(slow, x / 22.0, y / 22.0, z / 22.0)
                            loaded = 1.0 + 0.5 * smooth_step(30.0, 0.0, r) * smooth_step(-10.0, 25.0, z)
                            soft = (
                                trabecular * loaded * max((1.0 + patchiness * patch) * (1.0 + texture * streak), 0.05)
                            )
                            mineral[k, j, i] = (cortical * (1.0 - spongy) + min(soft, 0.6) * spongy) * inside
                            volume[k, j, i] = inside


def pelvis_volumes(
    shape: PelvisShape, quality: PelvisQuality, seed: int, voxel_mm: float = VOXEL_MM
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Return mineral (g/cm3) and volume fraction, (z, y, x), and the origin (x, y, z) of the grid in the pelvis frame."""
    random = np.random.default_rng(seed)
    slow, fine = noise_lattice(random), noise_lattice(random)
    hip = scaled_points(_VERTICES, shape)
    middle = scaled_points(_SACRUM_VERTICES, shape)
    parameters = np.array(
        [
            shape.half_width_mm,
            shape.height_scale,
            shape.depth_scale,
            *shape.head_radii_mm,
            shape.joint_space_mm,
            quality.cortical_density_g_cm3,
            quality.cortex_mm,
            quality.trabecular_density_g_cm3,
            quality.patchiness,
            quality.texture,
        ]
    )
    everything = np.array([*hip.values(), *middle.values()])
    outer = everything[:, :3].max(axis=0)
    wide = max(outer[0], shape.half_width_mm + max(shape.head_radii_mm)) + 12
    low = np.array([-wide, everything[:, 1].min() - 12, everything[:, 2].min() - 18])
    high = np.array(
        [wide, everything[:, 1].max() + 12, max(everything[:, 2].max() + 10, 110.0 * shape.height_scale + 82)]
    )
    size, origin = grid(low, high, voxel_mm)
    mineral, volume = np.zeros(size, np.float32), np.zeros(size, np.float32)
    _fill(
        mineral,
        volume,
        origin,
        voxel_mm,
        parameters,
        *_plates(hip, _PLATES),
        *_plates(middle, _SACRUM_PLATES),
        slow,
        fine,
    )
    return mineral, volume, origin


@njit(cache=True)
def _fill_parts(
    parts: NDArray[np.uint8],
    volume: NDArray[np.float32],
    origin: NDArray[np.float64],
    voxel: float,
    p: NDArray[np.float64],
    hip_corners: NDArray[np.float64],
    hip_balls: NDArray[np.float64],
    mid_corners: NDArray[np.float64],
    mid_balls: NDArray[np.float64],
) -> None:
    nz, ny, nx = parts.shape
    hips, mids = np.arange(hip_balls.shape[0]), np.arange(mid_balls.shape[0])
    top = 110.0 * p[1]
    for k in range(nz):
        for j in range(ny):
            for i in range(nx):
                if volume[k, j, i] == 0.0:
                    continue
                x, y, z = origin[0] + i * voxel, origin[1] + j * voxel, origin[2] + k * voxel
                bone, middle = _distances(
                    x, y, z, p, hip_corners, hip_balls, hips, len(hips), mid_corners, mid_balls, mids, len(mids)
                )
                sacrum = _skeleton(abs(x), y, z, mid_corners, mid_balls, mids, len(mids), 7.0)
                if bone < middle:
                    parts[k, j, i] = 1
                elif sacrum <= middle + 1e-6 or z <= top + 5.0 or middle > 2.0 * voxel:
                    parts[k, j, i] = 2
                else:
                    parts[k, j, i] = 3


def pelvis_parts(
    shape: PelvisShape, volume: NDArray[np.float32], origin_mm: NDArray[np.float64], voxel_mm: float = VOXEL_MM
) -> NDArray[np.uint8]:
    """Tell the bones of a pelvis apart: (z, y, x) `PelvisPart` of each voxel that holds bone.

    Args:
        volume: (z, y, x) of `pelvis_volumes`, 0 where there is no bone.
        origin_mm: (x, y, z) of its grid in the pelvis frame.
    """
    parts = np.zeros(volume.shape, np.uint8)
    parameters = np.array(
        [shape.half_width_mm, shape.height_scale, shape.depth_scale, *shape.head_radii_mm, shape.joint_space_mm]
    )
    hip, middle = scaled_points(_VERTICES, shape), scaled_points(_SACRUM_VERTICES, shape)
    _fill_parts(
        parts,
        volume,
        origin_mm,
        voxel_mm,
        parameters,
        *_plates(hip, _PLATES),
        *_plates(middle, _SACRUM_PLATES),
    )
    return parts
