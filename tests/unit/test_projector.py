"""Line integrals against closed forms, and two backends against each other."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from training.anatomy.volume import Structure
from training.projection.geometry import (
    ConeBeam,
    ParallelBeam,
    anteroposterior,
    detector_axes_mm,
    detector_from_patient,
)
from training.projection.projector import (
    Backend,
    object_plane_pixel_area_cm2,
    project,
    project_structures,
    project_volumes,
)

BACKENDS: tuple[Backend, ...] = ("fast", "reference")


def grid(
    shape_zyx: tuple[int, int, int],
    spacing_xyz_mm: tuple[float, float, float],
    rotation: Rotation | None = None,
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> NDArray[np.float64]:
    """patient_from_voxel of a grid centred at `centre_mm`."""
    linear = (rotation or Rotation.identity()).as_matrix() @ np.diag(spacing_xyz_mm)
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = np.asarray(centre_mm) - linear @ ((np.array(shape_zyx[::-1]) - 1) / 2)
    return affine


def patient_points(shape_zyx: tuple[int, int, int], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """(z, y, x, 3) centres of the voxels in mm."""
    z, y, x = np.indices(shape_zyx)
    return np.stack([x, y, z], axis=-1) @ affine[:3, :3].T + affine[:3, 3]


def ball(shape_zyx: tuple[int, int, int], affine: NDArray[np.float64], radius_mm: float) -> NDArray[np.float32]:
    """Occupancy of a ball at the origin, softened over one voxel so that the surface is not a staircase."""
    distance = np.linalg.norm(patient_points(shape_zyx, affine), axis=-1)
    voxel_mm = float(np.cbrt(abs(np.linalg.det(affine[:3, :3]))))
    return np.asarray(np.clip((radius_mm - distance) / voxel_mm + 0.5, 0.0, 1.0), np.float32)


def parallel_beam(
    spacing_mm: float, shape: tuple[int, int], direction: NDArray[np.float64] | None = None
) -> ParallelBeam:
    """Rays along +y (or `direction`), the patient's right at the image's left; the origin at the image's centre."""
    column, row = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, -1.0])
    direction = np.array([0.0, 1.0, 0.0]) if direction is None else direction
    origin = 300 * direction - spacing_mm * ((shape[1] - 1) / 2 * column + (shape[0] - 1) / 2 * row)
    return ParallelBeam(direction, origin, column, row, (spacing_mm, spacing_mm), shape)


def ray_distance_to_origin_mm(beam: ConeBeam) -> NDArray[np.float64]:
    """(rows, columns) distance of each ray from the patient frame's origin."""
    row_axis, column_axis = detector_axes_mm(beam)
    rows, columns = np.indices(beam.shape)
    rays = beam.detector_origin_mm + rows[..., None] * row_axis + columns[..., None] * column_axis - beam.source_mm
    distance = np.linalg.norm(np.cross(rays, beam.source_mm), axis=-1) / np.linalg.norm(rays, axis=-1)
    return np.asarray(distance, np.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_ray_through_a_ball_sees_the_chord(backend: Backend) -> None:
    shape, radius_mm = (60, 60, 60), 25.0
    affine = grid(shape, (1.0, 1.0, 1.0))
    beam = anteroposterior(np.zeros(3), 1150.0, 1000.0, 1.0, (70, 70))
    seen_cm = project(ball(shape, affine, radius_mm), affine, beam, backend=backend)
    distance_mm = ray_distance_to_origin_mm(beam)
    chord_cm = 0.2 * np.sqrt(np.maximum(radius_mm**2 - distance_mm**2, 0.0))
    inner = distance_mm < 0.9 * radius_mm
    assert np.abs(seen_cm - chord_cm)[inner].max() < 0.025  # a quarter of a voxel
    assert np.abs(seen_cm - chord_cm)[inner].mean() < 0.005
    assert seen_cm[distance_mm > radius_mm + 2].max() == 0.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_mass_of_a_ball_under_a_parallel_beam_is_volume_times_density(backend: Backend) -> None:
    shape, radius_mm, density = (50, 52, 54), 22.0, 1.3
    affine = grid(shape, (1.0, 1.0, 1.0))
    values = density * ball(shape, affine, radius_mm)
    beam = parallel_beam(0.5, (120, 120))
    seen_g = project(values, affine, beam, backend=backend).sum() * object_plane_pixel_area_cm2(beam, np.zeros(3))
    assert seen_g == pytest.approx(density * 4 / 3 * np.pi * 2.2**3, rel=2e-3)  # the ball as voxels is 1e-3 off
    assert seen_g == pytest.approx(values.sum() * 1e-3, rel=2e-4)


def test_a_ball_under_a_cone_beam_has_the_solid_angle_integral_of_its_closed_form() -> None:
    """Over solid angle one integrates density / r^2, which is known for a ball: sum the shells about the source."""
    shape, radius_mm, source_distance_mm = (60, 60, 60), 25.0, 400.0
    affine = grid(shape, (1.0, 1.0, 1.0))
    beam = anteroposterior(np.zeros(3), 500.0, source_distance_mm, 0.5, (130, 130))
    seen_cm = project(ball(shape, affine, radius_mm), affine, beam)
    row_axis, column_axis = detector_axes_mm(beam)
    rows, columns = np.indices(beam.shape)
    rays = beam.detector_origin_mm + rows[..., None] * row_axis + columns[..., None] * column_axis - beam.source_mm
    solid_angle = np.linalg.norm(row_axis) * np.linalg.norm(column_axis) * 500.0 / np.linalg.norm(rays, axis=-1) ** 3
    d, r = source_distance_mm, radius_mm
    expected_mm = 2 * np.pi * (r - (d * d - r * r) / (2 * d) * np.log((d + r) / (d - r)))
    assert float((seen_cm * solid_angle).sum()) * 10 == pytest.approx(expected_mm, rel=2e-3)


@pytest.mark.parametrize("turned_deg", [(0.0, 0.0, 0.0), (12.0, -9.0, 31.0)])
def test_a_ball_of_120_voxels_is_right_to_half_a_per_mille_in_mass_and_half_a_per_cent_in_each_ray(
    turned_deg: tuple[float, float, float],
) -> None:
    shape, radius_mm, density = (126, 126, 126), 60.0, 1.2
    affine = grid(shape, (1.0, 1.0, 1.0), Rotation.from_euler("xyz", turned_deg, degrees=True))
    values = density * ball(shape, affine, radius_mm)
    flat = parallel_beam(0.9, (150, 150))
    seen_g = project(values, affine, flat).sum(dtype=np.float64) * object_plane_pixel_area_cm2(flat, np.zeros(3))
    assert seen_g == pytest.approx(density * 4 / 3 * np.pi * 6.0**3, rel=5e-4)
    cone = anteroposterior(np.zeros(3), 1150.0, 1000.0, 0.9, (150, 150))
    distance_mm = ray_distance_to_origin_mm(cone)
    inner = distance_mm < 0.8 * radius_mm  # farther out, the voxels themselves are no ball to half a per cent
    chord_g_cm2 = density * 0.2 * np.sqrt(radius_mm**2 - distance_mm[inner] ** 2)
    np.testing.assert_allclose(project(values, affine, cone)[inner], chord_g_cm2, rtol=5e-3)


@pytest.mark.parametrize("tilt_deg", [0.0, 10.0])
def test_what_lies_behind_the_detector_is_not_seen(tilt_deg: float) -> None:
    shape = (14, 40, 16)
    affine = grid(shape, (1.0, 1.0, 1.0), Rotation.from_euler("x", tilt_deg, degrees=True), (0.0, 100.0, 0.0))
    values = random_volume(shape, 7)
    beam = anteroposterior(np.zeros(3), 500.0, 399.6, 1.0, (24, 24))  # the detector cuts through the middle
    fast, reference = (project(values, affine, beam, backend=backend) for backend in BACKENDS)
    np.testing.assert_allclose(fast, reference, atol=0.06 * reference.max())  # a voxel counts whole or not at all
    assert fast.max() < 0.6 * project(values, affine, anteroposterior(np.zeros(3), 700.0, 399.6, 1.0, (24, 24))).max()


@pytest.mark.parametrize("depth_mm", [-60.0, 0.0, 60.0])
def test_the_mass_of_a_thin_object_is_exact_in_its_own_object_plane(depth_mm: float) -> None:
    shape = (60, 3, 60)
    affine = grid(shape, (0.8, 0.2, 0.8), centre_mm=(0.0, depth_mm, 0.0))
    values = ball((60, 3, 60), grid(shape, (0.8, 1e-6, 0.8)), 15.0)
    beam = anteroposterior(np.zeros(3), 1150.0, 1000.0, 0.4, (160, 160))
    pixel_cm2 = object_plane_pixel_area_cm2(beam, np.array([0.0, depth_mm, 0.0]))
    seen_g = project(values, affine, beam).sum() * pixel_cm2
    assert seen_g == pytest.approx(values.sum() * 0.8 * 0.2 * 0.8 * 1e-3, rel=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_slab_is_its_thickness_over_the_cosine_of_the_ray(backend: Backend) -> None:
    shape = (100, 12, 100)
    affine = grid(shape, (2.0, 2.5, 2.0))
    beam = anteroposterior(np.zeros(3), 400.0, 300.0, 2.0, (60, 60))
    seen_cm = project(np.ones(shape, np.float32), affine, beam, backend=backend)
    rows, columns = np.indices(beam.shape) - 29.5
    cosine = 1 / np.sqrt(1 + ((rows**2 + columns**2) * 2.0**2) / 300.0**2)
    np.testing.assert_allclose(seen_cm, 3.0 / cosine, rtol=2e-3 if backend == "reference" else 1e-5)


@pytest.mark.parametrize("angle_deg", [0.0, 30.0, 45.0, 75.0])
def test_a_cylinder_is_seen_as_its_chord_from_every_side(angle_deg: float) -> None:
    shape, radius_mm = (21, 80, 80), 30.0
    rotation = Rotation.from_euler("z", angle_deg, degrees=True)
    affine = grid(shape, (1.0, 1.0, 2.0), rotation)
    radius = np.linalg.norm(patient_points(shape, affine)[..., :2], axis=-1)
    values = np.clip(radius_mm - radius + 0.5, 0.0, 1.0).astype(np.float32)
    seen_cm = project(values, affine, parallel_beam(1.0, (11, 81)))
    x_mm = np.arange(81) - 40.0
    chord_cm = 0.2 * np.sqrt(np.maximum(radius_mm**2 - x_mm**2, 0.0))
    inner = np.abs(x_mm) < 0.95 * radius_mm
    assert np.abs(seen_cm[5] - chord_cm)[inner].max() < 0.05  # half a voxel, where the chord ends steeply
    assert np.abs(seen_cm[5] - chord_cm)[inner].mean() < 0.015
    area_cm2 = float(seen_cm[5].sum()) * 0.1  # each column is 0.1 cm wide
    assert area_cm2 == pytest.approx(np.pi * 3.0**2, rel=2e-3)


def random_volume(shape: tuple[int, int, int], seed: int) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).random(shape).astype(np.float32)
    return np.asarray(gaussian_filter(noise, 1.5), np.float32)


OBLIQUE = Rotation.from_euler("xyz", (23.0, -17.0, 38.0), degrees=True)


def test_both_backends_agree_on_an_oblique_anisotropic_grid_under_a_cone_beam() -> None:
    shape = (24, 40, 33)
    affine = grid(shape, (0.9, 1.4, 2.1), OBLIQUE, (5.0, -12.0, 8.0))
    values = random_volume(shape, 1)
    beam = anteroposterior(np.zeros(3), 1000.0, 850.0, 1.3, (70, 66))
    fast = project(values, affine, beam)
    reference = project(values, affine, beam, backend="reference")
    assert (
        np.abs(fast - reference).max() < 0.02 * reference.max()
    )  # at the grid's edges, where a plane is all or nothing
    assert np.abs(fast - reference).mean() < 0.001 * reference.max()
    assert fast.sum() == pytest.approx(reference.sum(), rel=2e-4)


@pytest.mark.parametrize("seed", range(4))
def test_mass_is_kept_in_any_pose_with_any_voxel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (28, 35, 31)
    spacing = tuple(rng.uniform(0.6, 2.0, 3))
    rotation = Rotation.random(rng=rng)
    affine = grid(shape, spacing, rotation)
    values = random_volume(shape, seed)
    beam = parallel_beam(0.4, (330, 330))
    seen_g = project(values, affine, beam).sum(dtype=np.float64) * object_plane_pixel_area_cm2(beam, np.zeros(3))
    assert seen_g == pytest.approx(values.sum(dtype=np.float64) * np.prod(spacing) * 1e-3, rel=5e-4)


def test_a_distant_cone_is_a_parallel_beam() -> None:
    shape = (20, 24, 22)
    affine = grid(shape, (1.0, 1.5, 1.0), OBLIQUE)
    values = random_volume(shape, 3)
    cone = anteroposterior(np.zeros(3), 1e7 + 300.0, 1e7, 1.0, (60, 60))
    near = project(values, affine, parallel_beam(1.0, (60, 60)))
    np.testing.assert_allclose(project(values, affine, cone), near, atol=2e-3 * near.max())


def test_projection_is_linear_and_threads_change_nothing() -> None:
    shape = (20, 24, 22)
    affine = grid(shape, (1.0, 1.5, 1.0), OBLIQUE)
    a, b = random_volume(shape, 4), random_volume(shape, 5)
    beam = anteroposterior(np.zeros(3), 1000.0, 850.0, 1.0, (50, 50))
    together = project(2 * a + b, affine, beam)
    np.testing.assert_allclose(together, 2 * project(a, affine, beam) + project(b, affine, beam), atol=1e-4)
    np.testing.assert_array_equal(together, project(2 * a + b, affine, beam, parallel=False))


def test_a_part_of_the_detector_sees_the_same_as_the_whole() -> None:
    shape = (20, 24, 22)
    affine = grid(shape, (1.0, 1.5, 1.0), OBLIQUE)
    values = random_volume(shape, 6)
    whole = anteroposterior(np.zeros(3), 1000.0, 850.0, 1.0, (60, 60), (30.0, 30.0))
    part = anteroposterior(np.zeros(3), 1000.0, 850.0, 1.0, (25, 20), (10.0, 5.0))
    np.testing.assert_allclose(project(values, affine, whole)[20:45, 25:45], project(values, affine, part), atol=1e-5)


def test_nothing_behind_the_source_or_beside_the_detector_is_seen() -> None:
    shape = (10, 10, 10)
    ones = np.ones(shape, np.float32)
    beam = anteroposterior(np.zeros(3), 1000.0, 850.0, 1.0, (40, 40))
    assert not project(ones, grid(shape, (1, 1, 1), centre_mm=(0.0, -900.0, 0.0)), beam).any()
    assert not project(ones, grid(shape, (1, 1, 1), centre_mm=(300.0, 0.0, 0.0)), beam).any()
    assert project(ones, grid(shape, (1, 1, 1)), beam).any()


def test_a_ball_around_the_source_is_seen_to_its_surface() -> None:
    shape, radius_mm = (80, 80, 80), 35.0
    beam = anteroposterior(np.zeros(3), 1000.0, 850.0, 10.0, (9, 9))
    affine = grid(shape, (1.0, 1.0, 1.0))
    moved = affine.copy()
    moved[:3, 3] += beam.source_mm
    seen_cm = project(ball(shape, affine, radius_mm), moved, beam)
    np.testing.assert_allclose(seen_cm, 3.5, atol=0.1)  # one voxel: the first plane may count whole or not at all


def test_the_femoral_head_lands_at_the_pixel_that_the_geometry_says() -> None:
    shape = (15, 15, 15)
    centre_mm = (30.0, -20.0, 12.0)
    affine = grid(shape, (1.0, 1.0, 1.0), centre_mm=centre_mm)
    beam = anteroposterior(np.array([10.0, 5.0, -4.0]), 1150.0, 1000.0, 0.7, (200, 180))
    image = project(ball(shape, grid(shape, (1.0, 1.0, 1.0)), 5.0), affine, beam)
    rows, columns = np.indices(image.shape)
    centroid = np.array([(rows * image).sum(), (columns * image).sum()]) / image.sum()
    expected = detector_from_patient(np.array([centre_mm]), beam)[0]
    np.testing.assert_allclose(centroid, expected, atol=0.02)
    assert expected[1] > 89.5 and expected[0] < 99.5  # the patient's left at the image's right, head up


def test_structures_are_projected_by_name_and_pieces_of_one_name_add_up() -> None:
    shape = (10, 10, 10)
    affine = grid(shape, (1.0, 1.0, 1.0))
    ones = np.ones(shape, np.float32)
    beam = anteroposterior(np.zeros(3), 1000.0, 850.0, 1.0, (20, 20))
    femur = Structure("femur", ones, "g/cm3", affine)
    images = project_structures([femur, femur, Structure("pelvis", 2 * ones, "g/cm3", affine)], beam)
    assert sorted(images) == ["femur", "pelvis"]
    np.testing.assert_allclose(images["femur"], images["pelvis"], atol=1e-6)
    assert images["pelvis"].max() == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize("view_deg", [0.0, 90.0])
def test_volumes_of_one_grid_in_one_pass_are_what_each_is_alone(view_deg: float) -> None:
    shape = (21, 27, 24)
    affine = grid(shape, (1.0, 1.3, 1.1), Rotation.from_euler("z", view_deg, degrees=True) * OBLIQUE)
    volumes = [random_volume(shape, seed) for seed in (8, 9, 10)]
    beam = anteroposterior(np.zeros(3), 1000.0, 850.0, 1.0, (50, 44))
    together = project_volumes(volumes, affine, beam)
    for image, values in zip(together, volumes, strict=True):
        np.testing.assert_array_equal(image, project(values, affine, beam))
    with pytest.raises(ValueError, match="the same for all"):
        project_volumes([volumes[0], volumes[1][1:]], affine, beam)


def test_a_volume_that_is_none_is_refused() -> None:
    beam = anteroposterior(np.zeros(3), 1000.0, 850.0, 1.0, (20, 20))
    with pytest.raises(ValueError, match="singular"):
        project(np.ones((2, 2, 2), np.float32), np.zeros((4, 4)), beam)
    with pytest.raises(ValueError, match=r"expected \(z, y, x\)"):
        project(np.ones((2, 2), np.float32), np.eye(4), beam)
