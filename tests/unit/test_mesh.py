"""Meshes on voxel grids: closed forms, and meshes that enclose nothing."""

import numpy as np
import pytest
from numpy.typing import NDArray

from training.anatomy.mesh import Mesh, UnusableMesh, depth_mm, volume_fraction

SHAPE = (70, 66, 62)
ORIGIN_MM = np.array([-31.0, -33.0, -35.0])


def _tube(radii_mm: NDArray[np.float64], heights_mm: NDArray[np.float64], around: int = 240) -> Mesh:
    """A surface of revolution about z whose first and last ring are points on the axis."""
    turn = 2 * np.pi * np.arange(around) / around
    rings = [
        np.column_stack([r * np.cos(turn), r * np.sin(turn), np.full(around, z)])
        for r, z in zip(radii_mm[1:-1], heights_mm[1:-1], strict=True)
    ]
    vertices = np.concatenate([[[0, 0, heights_mm[0]]], *rings, [[0, 0, heights_mm[-1]]]])
    last, n = len(vertices) - 1, np.arange(around)
    after = (n + 1) % around
    triangles = [np.column_stack([np.zeros_like(n), 1 + after, 1 + n])]
    for ring in range(len(rings) - 1):
        low, high = 1 + ring * around, 1 + (ring + 1) * around
        triangles.append(np.column_stack([low + n, low + after, high + after]))
        triangles.append(np.column_stack([low + n, high + after, high + n]))
    top = 1 + (len(rings) - 1) * around
    triangles.append(np.column_stack([top + n, top + after, np.full_like(n, last)]))
    return Mesh(vertices, np.concatenate(triangles))


def _sphere(radius_mm: float = 22.0) -> Mesh:
    polar = np.linspace(np.pi, 0, 90)
    return _tube(radius_mm * np.sin(polar), radius_mm * np.cos(polar))


def _cylinder(radius_mm: float = 14.0, height_mm: float = 40.0) -> Mesh:
    half = height_mm / 2
    return _tube(np.array([0, radius_mm, radius_mm, 0]), np.array([-half, -half, half, half]))


def _turn() -> NDArray[np.float64]:
    """A rotation about no axis of the grid, and a shift."""
    a, b = 0.7, -0.4
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_x @ about_z
    matrix[:3, 3] = (0.3, -0.6, 0.2)
    return matrix


@pytest.mark.parametrize(
    ("mesh", "volume_mm3"),
    [(_sphere(), 4 / 3 * np.pi * 22.0**3), (_cylinder(), np.pi * 14.0**2 * 40.0)],
    ids=["sphere", "cylinder"],
)
def test_a_voxelised_body_has_its_volume(mesh: Mesh, volume_mm3: float) -> None:
    for pose in (np.eye(4), _turn()):
        values = volume_fraction(mesh.moved(pose), ORIGIN_MM, 1.0, SHAPE)
        assert values.min() >= 0 and values.max() <= 1 + 1e-5
        assert float(values.sum(dtype=np.float64)) == pytest.approx(mesh.volume_mm3(), rel=2e-3)
        assert float(values.sum(dtype=np.float64)) == pytest.approx(volume_mm3, rel=2e-3)


def test_a_voxelised_body_lies_where_the_mesh_lies() -> None:
    values = volume_fraction(_sphere().moved(_turn()), ORIGIN_MM, 1.0, SHAPE)
    z, y, x = np.indices(SHAPE)
    centre = [float((values * axis).sum() / values.sum()) + o for axis, o in zip((x, y, z), ORIGIN_MM, strict=True)]
    np.testing.assert_allclose(centre, _turn()[:3, 3], atol=0.01)


def test_only_what_lies_in_the_grid_is_drawn() -> None:
    half = volume_fraction(_cylinder(), np.array([-31.0, -33.0, 0.5]), 1.0, SHAPE)
    assert float(half.sum(dtype=np.float64)) == pytest.approx(_cylinder().volume_mm3() / 2, rel=2e-3)
    beside = volume_fraction(_cylinder(), np.array([0.5, -33.0, -35.0]), 1.0, SHAPE)
    assert float(beside.sum(dtype=np.float64)) == pytest.approx(_cylinder().volume_mm3() / 2, rel=2e-3)


def test_a_mirrored_mesh_encloses_the_same_volume() -> None:
    mesh = _cylinder().moved(_turn())
    assert mesh.moved(np.diag([-1.0, 1.0, 1.0, 1.0])).volume_mm3() == pytest.approx(mesh.volume_mm3())


def test_depth_below_a_sphere_is_what_is_left_of_its_radius() -> None:
    fraction = volume_fraction(_sphere(), ORIGIN_MM, 1.0, SHAPE)
    depth = depth_mm(_sphere(), fraction, ORIGIN_MM, 1.0)
    z, y, x = np.indices(SHAPE)
    radius = np.sqrt((x - 31.0) ** 2 + (y - 33.0) ** 2 + (z - 35.0) ** 2)
    inside = fraction > 0
    expected = 22.0 - radius[inside]
    assert np.abs(depth[inside] - expected).max() < 0.6
    assert np.abs(depth[inside] - expected).mean() < 0.1
    assert (depth[~inside] == 0).all()


def test_a_mesh_with_a_hole_is_refused() -> None:
    mesh = _sphere()
    with pytest.raises(UnusableMesh, match="hole"):
        volume_fraction(Mesh(mesh.vertices, np.delete(mesh.triangles, 5000, axis=0)), ORIGIN_MM, 1.0, SHAPE)


def test_a_mesh_that_is_turned_inside_out_is_refused() -> None:
    mesh = _sphere()
    with pytest.raises(UnusableMesh, match="inside out"):
        volume_fraction(Mesh(mesh.vertices, mesh.triangles[:, ::-1]), ORIGIN_MM, 1.0, SHAPE)


def test_a_mesh_that_crosses_itself_is_refused() -> None:
    mesh = _sphere()
    vertices = mesh.vertices.copy()
    vertices[-1, 2] = -30.0  # the top is pushed through the bottom
    with pytest.raises(UnusableMesh, match="crosses itself"):
        volume_fraction(Mesh(vertices, mesh.triangles), ORIGIN_MM, 1.0, SHAPE)
