"""Signed distances and value noise, for the phantom's fused kernels.

A signed distance is negative inside, in mm. Those of ellipses, ellipsoids and blended shapes are first-order approximations:
exact on the surface, near enough within some millimetres of it.
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

LATTICE = 32
"""Edge of the periodic lattice of random values that the noise is interpolated from."""
BLOCK = 6
"""Voxels per edge of the blocks that a kernel tests once before it looks at their voxels."""


def noise_lattice(random: np.random.Generator) -> NDArray[np.float32]:
    """Random values, standard normal after trilinear interpolation (whose mean variance is (2/3)^3 of the lattice's)."""
    return np.asarray(random.standard_normal((LATTICE, LATTICE, LATTICE)) * 1.5**1.5, np.float32)


@njit(cache=True, inline="always")
def smooth_min(a: float, b: float, radius: float) -> float:
    """Union of two distances whose seam is rounded over about `radius` mm (polynomial blend)."""
    h = max(radius - abs(a - b), 0.0) / radius
    return min(a, b) - h * h * radius * 0.25


@njit(cache=True, inline="always")
def smooth_step(low: float, high: float, x: float) -> float:
    """0 below `low`, 1 above `high`, cubic between; `low` may be the larger one."""
    t = min(max((x - low) / (high - low), 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


@njit(cache=True, inline="always")
def coverage(distance: float, voxel: float) -> float:
    """Share of a voxel of edge `voxel` that lies inside a surface at `distance`."""
    return min(max(0.5 - distance / voxel, 0.0), 1.0)


@njit(cache=True, inline="always")
def ellipse(x: float, y: float, a: float, b: float) -> float:
    """Distance to an ellipse with half axes a, b at the origin."""
    k0 = math.sqrt((x / a) ** 2 + (y / b) ** 2)
    k1 = math.sqrt((x / (a * a)) ** 2 + (y / (b * b)) ** 2)
    if k1 < 1e-9:
        return -min(a, b)
    return k0 * (k0 - 1.0) / k1


@njit(cache=True, inline="always")
def ellipsoid(x: float, y: float, z: float, a: float, b: float, c: float) -> float:
    """Distance to an ellipsoid with half axes a, b, c at the origin."""
    k0 = math.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    k1 = math.sqrt((x / (a * a)) ** 2 + (y / (b * b)) ** 2 + (z / (c * c)) ** 2)
    if k1 < 1e-9:
        return -min(a, min(b, c))
    return k0 * (k0 - 1.0) / k1


@njit(cache=True, inline="always")
def cone(
    x: float, y: float, z: float,
    ax: float, ay: float, az: float, ar: float,
    bx: float, by: float, bz: float, br: float,
) -> float:  # fmt: skip
    """Distance to a capsule from a to b whose radius runs linearly from ar to br."""
    ux, uy, uz = bx - ax, by - ay, bz - az
    vx, vy, vz = x - ax, y - ay, z - az
    t = (vx * ux + vy * uy + vz * uz) / (ux * ux + uy * uy + uz * uz)
    t = min(max(t, 0.0), 1.0)
    return math.sqrt((vx - t * ux) ** 2 + (vy - t * uy) ** 2 + (vz - t * uz) ** 2) - (ar + t * (br - ar))


@njit(cache=True, inline="always")
def segment_distance(x: float, y: float, ax: float, ay: float, bx: float, by: float) -> float:
    """Distance in the plane from (x, y) to the segment a-b."""
    ux, uy = bx - ax, by - ay
    t = ((x - ax) * ux + (y - ay) * uy) / (ux * ux + uy * uy)
    t = min(max(t, 0.0), 1.0)
    return math.sqrt((x - ax - t * ux) ** 2 + (y - ay - t * uy) ** 2)


@njit(cache=True)
def plate(
    x: float, y: float, z: float, a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]
) -> float:
    """Distance to a rounded triangle; a, b, c are (x, y, z, radius), the radius is interpolated between them.

    With b and c equal it is a tapered capsule, with all three equal a ball.
    """
    e0x, e0y, e0z = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    e1x, e1y, e1z = c[0] - a[0], c[1] - a[1], c[2] - a[2]
    px, py, pz = x - a[0], y - a[1], z - a[2]
    d00 = e0x * e0x + e0y * e0y + e0z * e0z
    d01 = e0x * e1x + e0y * e1y + e0z * e1z
    d11 = e1x * e1x + e1y * e1y + e1z * e1z
    d20 = px * e0x + py * e0y + pz * e0z
    d21 = px * e1x + py * e1y + pz * e1z
    det = d00 * d11 - d01 * d01
    if det > 1e-6:
        v = (d11 * d20 - d01 * d21) / det
        w = (d00 * d21 - d01 * d20) / det
        if v >= 0.0 and w >= 0.0 and v + w <= 1.0:
            rx, ry, rz = px - v * e0x - w * e1x, py - v * e0y - w * e1y, pz - v * e0z - w * e1z
            return float(math.sqrt(rx * rx + ry * ry + rz * rz) - (a[3] + v * (b[3] - a[3]) + w * (c[3] - a[3])))
    best = 1e9
    if d00 > 0.0:
        best = cone(x, y, z, a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3])
    if d11 > 0.0:
        best = min(best, cone(x, y, z, a[0], a[1], a[2], a[3], c[0], c[1], c[2], c[3]))
    if det > 1e-6:
        best = min(best, cone(x, y, z, b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3]))
    if d00 == 0.0 and d11 == 0.0:
        best = math.sqrt(px * px + py * py + pz * pz) - a[3]
    return best


@njit(cache=True)
def noise(lattice: NDArray[np.float32], x: float, y: float, z: float) -> float:
    """Trilinear value noise with unit lattice spacing and about unit variance, periodic over `LATTICE`."""
    fx, fy, fz = math.floor(x), math.floor(y), math.floor(z)
    tx, ty, tz = x - fx, y - fy, z - fz
    i0, j0, k0 = int(fx) & 31, int(fy) & 31, int(fz) & 31
    i1, j1, k1 = (i0 + 1) & 31, (j0 + 1) & 31, (k0 + 1) & 31
    c00 = lattice[k0, j0, i0] * (1 - tx) + lattice[k0, j0, i1] * tx
    c01 = lattice[k0, j1, i0] * (1 - tx) + lattice[k0, j1, i1] * tx
    c10 = lattice[k1, j0, i0] * (1 - tx) + lattice[k1, j0, i1] * tx
    c11 = lattice[k1, j1, i0] * (1 - tx) + lattice[k1, j1, i1] * tx
    return float((c00 * (1 - ty) + c01 * ty) * (1 - tz) + (c10 * (1 - ty) + c11 * ty) * tz)


def grid(
    low_mm: NDArray[np.float64], high_mm: NDArray[np.float64], voxel_mm: float
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Return shape (z, y, x) and origin (x, y, z; centre of voxel 0) of a grid over a box in a structure's local frame."""
    counts = np.ceil((high_mm - low_mm) / voxel_mm).astype(int) + 1
    return (int(counts[2]), int(counts[1]), int(counts[0])), np.asarray(low_mm, float)


def coordinates(
    size: tuple[int, ...], origin_mm: NDArray[np.float64], voxel_mm: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """x, y, z in mm of the voxels of a grid of shape (z, y, x); each varies along its own axis, so that they broadcast over it."""
    x, y, z = (start + voxel_mm * np.arange(count) for start, count in zip(origin_mm, reversed(size), strict=True))
    return x[None, None], y[None, :, None], z[:, None, None]


def local_from_voxel(origin_mm: NDArray[np.float64], voxel_mm: float) -> NDArray[np.float64]:
    """4 x 4 matrix of a grid: homogeneous voxel index (x, y, z) to local mm."""
    matrix = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    matrix[:3, 3] = origin_mm
    return matrix
