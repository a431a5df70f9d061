"""Soft tissue around the bones: body outline, subcutaneous fat, muscle with fat planes, bowel gas, bladder.

Frame "patient" with its origin halfway between the centres of the femoral heads (LPS, mm). Bones are not cut out here: around
them the tissue is plain muscle, so that the bones' volume can be taken off the projected muscle exactly (see `targets`).
"""

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from training.anatomy.implicit import (
    cone,
    coverage,
    ellipse,
    ellipsoid,
    grid,
    noise,
    noise_lattice,
    smooth_min,
    smooth_step,
)

VOXEL_MM = 4.0
MUSCLE_G_CM3 = 1.05
"""Source: ICRU-44 skeletal muscle."""
ADIPOSE_G_CM3 = 0.95
"""Source: ICRU-44 adipose tissue."""
HALF_HEIGHT_MM = 300.0
"""The body is modelled this far above and below the femoral heads: beyond every field."""


@dataclass(frozen=True)
class BodyShape:
    """Outline and make-up; drawn in `population`."""

    half_width_mm: float
    """At the level of the femoral heads."""
    half_depth_mm: float
    centre_depth_mm: float
    """How far the trunk's middle lies behind the femoral heads."""
    belly_mm: float
    """Forward bulge of the abdomen."""
    fat_mm: float
    """Mean thickness of the subcutaneous fat."""
    thigh_radius_mm: float
    muscle_fat: float
    """Mean share of fat between and within the muscles."""
    visceral_fat: float
    bladder_mm: tuple[float, float, float]
    """Half axes."""
    gas: NDArray[np.float64]
    """(n, 6) bowel gas: centre and half axes of ellipsoids, mm."""


@njit(cache=True)
def _fill(
    soft: NDArray[np.float32],
    adipose: NDArray[np.float32],
    origin: NDArray[np.float64],
    voxel: float,
    p: NDArray[np.float64],
    thighs: NDArray[np.float64],
    bones: NDArray[np.float64],
    gas: NDArray[np.float64],
    slow: NDArray[np.float32],
) -> None:
    nz, ny, nx = soft.shape
    half_width, half_depth, behind, belly, layer, muscle_fat, visceral = p[0], p[1], p[2], p[3], p[4], p[5], p[6]
    for k in range(nz):
        z = origin[2] + k * voxel
        waist = 1.0 - 0.15 * smooth_step(0.0, 200.0, z) - 0.04 * smooth_step(-20.0, -90.0, z)
        bulge = belly * smooth_step(-20.0, 160.0, z)
        for j in range(ny):
            y = origin[1] + j * voxel
            for i in range(nx):
                x = origin[0] + i * voxel
                depth = (half_depth + 0.5 * bulge) * (1.0 - 0.22 * smooth_step(10.0, -80.0, z))
                d = ellipse(x, y - behind + 0.5 * bulge, half_width * waist, depth)
                d = -smooth_min(-d, z + 66.0, 70.0)  # the trunk ends at the perineum
                for n in range(2):
                    t = thighs[n]
                    d = smooth_min(d, cone(x, y, z, t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7]), 22.0)
                inside = coverage(d, voxel)
                if inside == 0.0:
                    continue
                # Fat is thicker over the buttocks and the belly than over the flanks.
                slow1 = noise(slow, x / 60.0, y / 60.0, z / 60.0)
                skin = layer * (1.0 + 0.18 * slow1 + 0.25 * (y - behind) / half_depth)
                fat = smooth_step(skin + 3.0, skin - 3.0, -d)
                # Muscles: slow mixture, and fat planes where a second field passes through zero.
                field = noise(slow, x / 26.0 + 5.0, y / 26.0, z / 60.0)
                plane = math.exp(-((field / 0.22) ** 2))
                mix = muscle_fat * (0.55 + 0.5 * slow1 + 1.3 * plane)
                pelvic = ellipsoid(x, y - 8.0, z - 95.0 * 1.0, 72.0, 62.0, 120.0)
                trunk = max(
                    ellipse(x, y - behind + 0.5 * bulge, half_width * waist - skin - 18.0, depth - skin - 18.0),
                    60.0 - z,
                )
                cavity = smooth_step(4.0, -4.0, min(pelvic, trunk))
                if cavity > 0.0:
                    lump = noise(slow, x / 18.0, y / 18.0 + 3.0, z / 18.0)
                    mix += cavity * (visceral * (1.0 + 0.7 * lump) - mix)
                    bladder = ellipsoid(x, y + 26.0, z - 8.0 - p[9], p[7], p[8], p[9])
                    mix *= 1.0 - smooth_step(3.0, -3.0, bladder)
                mix = min(max(mix, 0.0), 0.95)
                near = 1e3
                for n in range(bones.shape[0]):
                    b = bones[n]
                    near = min(near, cone(x, y, z, b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]))
                mix *= smooth_step(2.0, 12.0, near)
                mix = max(mix, fat * smooth_step(0.0, 6.0, near))
                full = inside
                for n in range(gas.shape[0]):
                    g = gas[n]
                    if abs(x - g[0]) > 1.6 * g[3] + voxel or abs(z - g[2]) > 1.6 * g[5] + voxel:
                        continue
                    dent = 0.3 * min(g[3], g[5]) * noise(slow, x / 9.0, y / 9.0, z / 9.0)
                    full *= 1.0 - coverage(
                        ellipsoid(x - g[0], y - g[1], z - g[2], g[3], g[4], g[5]) + dent, 1.4 * voxel
                    )
                soft[k, j, i] = 1.05 * (1.0 - mix) * full
                adipose[k, j, i] = 0.95 * mix * full


def body_volumes(
    shape: BodyShape,
    thighs: NDArray[np.float64],
    bones: NDArray[np.float64],
    seed: int,
    voxel_mm: float = VOXEL_MM,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Return muscle and adipose tissue (g/cm3), (z, y, x), and the origin (x, y, z) of the grid in the patient frame.

    Args:
        thighs: (2, 8) capsules (point, radius, point, radius) along the two thighs, mm.
        bones: (n, 8) capsules that hold the bones: no fat in them.
    """
    slow = noise_lattice(np.random.default_rng(seed))
    parameters = np.array(
        [
            shape.half_width_mm,
            shape.half_depth_mm,
            shape.centre_depth_mm,
            shape.belly_mm,
            shape.fat_mm,
            shape.muscle_fat,
            shape.visceral_fat,
            *shape.bladder_mm,
        ]
    )
    ends = np.concatenate([thighs[:, :4], thighs[:, 4:]])
    front = min(shape.centre_depth_mm - shape.half_depth_mm - shape.belly_mm, (ends[:, 1] - ends[:, 3]).min())
    back = max(shape.centre_depth_mm + shape.half_depth_mm, (ends[:, 1] + ends[:, 3]).max())
    wide = max(shape.half_width_mm, (abs(ends[:, 0]) + ends[:, 3]).max())
    low = np.array([-wide - 12, front - 12, -HALF_HEIGHT_MM])
    high = np.array([wide + 12, back + 12, HALF_HEIGHT_MM])
    size, origin = grid(low, high, voxel_mm)
    soft, adipose = np.zeros(size, np.float32), np.zeros(size, np.float32)
    _fill(soft, adipose, origin, voxel_mm, parameters, thighs, bones, shape.gas, slow)
    return soft, adipose, origin
