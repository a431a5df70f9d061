"""Closed triangle meshes, and what becomes of them on a voxel grid: volume fraction and depth below the surface."""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from dicomnode.errors import DicomNodeError

RAYS_PER_VOXEL = 5
"""Along each of x and y: the fraction of a voxel is the mean over 25 rays along z, exact on each."""
RAY_SHIFT = 1e-7 * np.sqrt(np.array([2.0, 3.0]))
"""Of a voxel: no ray runs through a vertex or along an edge."""
GOLDEN = 0.6180339887498949
SURFACE_STEP_MM = 0.7
"""Distances are measured to points that lie so dense on the surface: too long by 0.05 mm at a depth of 1 mm."""


class UnusableMesh(DicomNodeError, ValueError):
    """A mesh does not enclose a volume: it has holes, is turned inside out, or crosses itself."""


@dataclass(frozen=True)
class Mesh:
    """A closed surface; seen from outside the corners of each triangle run anticlockwise."""

    vertices: NDArray[np.float64]
    """(n, 3) in mm."""
    triangles: NDArray[np.int64]
    """(m, 3)."""

    def moved(self, matrix: NDArray[np.float64]) -> "Mesh":
        """Return the mesh after a 4 x 4 affine motion; a mirrored one is turned outside out again."""
        vertices = self.vertices @ matrix[:3, :3].T + matrix[:3, 3]
        turned = self.triangles[:, ::-1] if np.linalg.det(matrix[:3, :3]) < 0 else self.triangles
        return Mesh(vertices, turned)

    def volume_mm3(self) -> float:
        """Enclosed volume, by the divergence theorem."""
        a, b, c = (self.vertices[self.triangles[:, n]] for n in range(3))
        return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


def volume_fraction(
    mesh: Mesh, origin_mm: NDArray[np.float64], voxel_mm: float, shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Share of each voxel that lies inside of a mesh, (z, y, x); the mesh may reach beyond the grid.

    Along each ray the surface is entered and left in turn: that is checked, so that a mesh with a hole or with a fold that a ray
    meets (a fifth of a voxel apart) is refused.

    Args:
        origin_mm: (x, y, z) of the centre of the first voxel, in the frame of the mesh.

    Raises:
        UnusableMesh: the mesh is not closed, inside out, or crosses itself.
    """
    corner = np.append(origin_mm[:2] - 0.5 * voxel_mm + RAY_SHIFT * voxel_mm, origin_mm[2] - 0.5 * voxel_mm)
    step = voxel_mm / RAYS_PER_VOXEL
    points = (mesh.vertices - corner) / np.array([step, step, voxel_mm])
    points[:, :2] -= 0.5  # rays at whole numbers
    rays = (shape[1] * RAYS_PER_VOXEL, shape[2] * RAYS_PER_VOXEL)
    crossings = np.empty((_cast(points, mesh.triangles, rays, np.empty((0, 3))), 3))
    _cast(points, mesh.triangles, rays, crossings)
    crossings = crossings[np.lexsort((crossings[:, 1], crossings[:, 0]))]
    even = len(crossings) // 2 * 2
    entered, left = crossings[:even:2], crossings[1:even:2]
    in_turn = (entered[:, 0] == left[:, 0]) & (entered[:, 2] < 0) & (left[:, 2] > 0)
    if even < len(crossings) or not in_turn.all():
        raise UnusableMesh(
            "a ray does not enter and leave the mesh in turn: it has a hole, is turned inside out, or crosses itself"
        )
    values = np.zeros(shape, np.float32)
    _fill(values, entered, left)
    return values


@njit(cache=True)
def _cast(
    points: NDArray[np.float64],
    triangles: NDArray[np.int64],
    rays: tuple[int, int],
    crossings: NDArray[np.float64],
) -> int:
    """Write (ray, z, way) of each crossing as far as there is room, and return how many there are; way is 1 outwards.

    Rays run along z through whole y; in x the rows are staggered, for a square lattice counts a circle badly.
    """
    count = 0
    for m in range(triangles.shape[0]):
        a, b, c = points[triangles[m, 0]], points[triangles[m, 1]], points[triangles[m, 2]]
        double = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if double == 0.0:
            continue
        first_x = max(int(np.floor(min(a[0], b[0], c[0]))), 0)
        last_x = min(int(np.ceil(max(a[0], b[0], c[0]))), rays[1] - 1)
        first_y = max(int(np.ceil(min(a[1], b[1], c[1]))), 0)
        last_y = min(int(np.floor(max(a[1], b[1], c[1]))), rays[0] - 1)
        for j in range(first_y, last_y + 1):
            stagger = (j * GOLDEN) % 1.0 - 0.5
            for i in range(first_x, last_x + 1):
                x = i + stagger
                u = ((b[0] - x) * (c[1] - j) - (b[1] - j) * (c[0] - x)) / double
                v = ((c[0] - x) * (a[1] - j) - (c[1] - j) * (a[0] - x)) / double
                w = 1.0 - u - v
                if u < 0.0 or v < 0.0 or w < 0.0:
                    continue
                if count < crossings.shape[0]:
                    crossings[count, 0] = j * rays[1] + i
                    crossings[count, 1] = u * a[2] + v * b[2] + w * c[2]
                    crossings[count, 2] = 1.0 if double > 0.0 else -1.0
                count += 1
    return count


@njit(cache=True)
def _fill(values: NDArray[np.float32], entered: NDArray[np.float64], left: NDArray[np.float64]) -> None:
    """Add the part of each ray that lies inside to the voxels along it."""
    nz, _, nx = values.shape
    share = 1.0 / RAYS_PER_VOXEL**2
    for n in range(entered.shape[0]):
        ray = int(entered[n, 0])
        j, i = ray // (nx * RAYS_PER_VOXEL) // RAYS_PER_VOXEL, ray % (nx * RAYS_PER_VOXEL) // RAYS_PER_VOXEL
        low, high = max(entered[n, 1], 0.0), min(left[n, 1], float(nz))
        for k in range(int(low), min(int(np.ceil(high)), nz)):
            values[k, j, i] += share * (min(high, k + 1.0) - max(low, float(k)))


def depth_mm(
    mesh: Mesh, fraction: NDArray[np.float32], origin_mm: NDArray[np.float64], voxel_mm: float
) -> NDArray[np.float32]:
    """Depth below the surface of each voxel's centre, (z, y, x): negative outside.

    Args:
        fraction: of `volume_fraction` on the same grid. Depth is only found where it is not 0; elsewhere it is 0.
    """
    surface = _surface_points(mesh)
    border = (fraction > 0) & (ndimage.minimum_filter(fraction, 3) < 0.999)
    index = np.argwhere(border)
    _, nearest = cKDTree(surface).query(index[:, ::-1] * voxel_mm + origin_mm)
    feet = np.zeros((*fraction.shape, 3), np.float32)
    feet[border] = surface[nearest]
    # Deeper voxels take the foot of the voxel at the border that is nearest to them.
    z, y, x = ndimage.distance_transform_edt(~border, return_distances=False, return_indices=True)
    inside = fraction > 0
    places = np.argwhere(inside)[:, ::-1] * voxel_mm + origin_mm
    distance = np.linalg.norm(places - feet[z[inside], y[inside], x[inside]], axis=1)
    depth = np.zeros(fraction.shape, np.float32)
    depth[inside] = np.where(fraction[inside] >= 0.5, 1.0, -1.0) * distance
    return depth


def _surface_points(mesh: Mesh) -> NDArray[np.float64]:
    """Points on every triangle, at most `SURFACE_STEP_MM` apart."""
    corners = mesh.vertices[mesh.triangles]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1)
    parts = np.maximum(1, np.ceil(longest / SURFACE_STEP_MM)).astype(int)
    points = []
    for count in np.unique(parts):
        i, j = (grid.ravel() for grid in np.meshgrid(np.arange(count + 1), np.arange(count + 1)))
        within = i + j <= count
        weights = np.column_stack([i, j, count - i - j])[within] / count
        points.append((weights @ corners[parts == count]).reshape(-1, 3))
    return np.unique(np.round(np.concatenate(points), 3), axis=0)  # neighbours share their edges
