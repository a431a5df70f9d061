"""The phantom population: mass, mirror symmetry, determinism, mineral apart from shape."""

from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from dicomnode.domain.radiograph import Side
from dicomnode.inference.frame import Label
from training.anatomy.femur import femur_volumes, landmarks, neck_axis
from training.anatomy.implant import Implant, ImplantKind, femoral_capsules, metal_fraction
from training.anatomy.implicit import local_from_voxel
from training.anatomy.phantom import Phantom, make_phantom, patient_from_femur
from training.anatomy.picture import draw_phantom
from training.anatomy.population import Pose, Subject, draw_subject, femur_rotation
from training.anatomy.regions import label_regions, project_landmarks
from training.anatomy.volume import Structure
from training.projection.geometry import ParallelBeam
from training.projection.projector import project_structures
from training.targets import canonical_figures

COARSE_MM = 1.5


@lru_cache(maxsize=4)
def native_subject() -> Subject:
    """Someone without metal in an ordinary pose."""
    return next(
        subject
        for subject in (draw_subject(3, index) for index in range(50))
        if not subject.is_frog_leg and all(hip.implant is None for hip in subject.hips)
    )


@lru_cache(maxsize=4)
def native_phantom() -> Phantom:
    return make_phantom(native_subject())


def canonical_total_hip(subject: Subject) -> float:
    hip = subject.hips[0]
    mineral, volume, origin = femur_volumes(hip.femur, hip.quality, hip.seed, COARSE_MM)
    matrix = local_from_voxel(origin, COARSE_MM)
    structures = (Structure("mineral", mineral, "g/cm3", matrix), Structure("volume", volume, "1", matrix))
    value = canonical_figures(structures, landmarks(hip.femur))["total_hip"]["areal_bmd_g_cm2"]
    assert value is not None
    return value


def test_the_same_seed_and_index_give_the_same_person_and_the_same_voxels() -> None:
    first, second = draw_subject(11, 4), draw_subject(11, 4)
    for one, other in zip(make_phantom(first).structures, make_phantom(second).structures, strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one.values, other.values)
        np.testing.assert_array_equal(one.patient_from_voxel, other.patient_from_voxel)


def test_another_index_gives_another_person() -> None:
    assert draw_subject(11, 4).hips[0].femur != draw_subject(11, 5).hips[0].femur


def test_the_modelled_volume_does_not_depend_on_the_voxel_size() -> None:
    hip = native_subject().hips[0]
    volumes = []
    for voxel in (0.9, 1.4):
        _, volume, origin = femur_volumes(hip.femur, hip.quality, hip.seed, voxel)
        levels = origin[2] + voxel * np.arange(volume.shape[0])
        volumes.append(float(volume[levels > -150].sum()) * voxel**3)
    assert volumes[0] == pytest.approx(volumes[1], rel=0.01)


def test_every_voxel_is_bone_matrix_at_most() -> None:
    for structure in native_phantom().structures:
        limit = {"1": 1.0, "g/cm3": 1.25}[structure.unit]
        assert structure.values.min() >= 0
        assert structure.values.max() <= limit + 1e-5


def test_mineral_lies_only_in_bone() -> None:
    phantom = native_phantom()
    for bone in ("right_femur", "left_femur", "pelvis"):
        mineral, volume = phantom.bone(bone)
        assert np.all(volume.values[mineral.values > 0] > 0)


def test_a_right_hip_is_the_mirror_image_of_a_left_one() -> None:
    subject = native_subject()
    pose = Pose(10.0, -3.0, 8.0)
    left = replace(subject.hips[1], pose=pose)
    right = replace(left, side=Side.RIGHT)
    level = replace(subject, pelvic_tilt_deg=0.0, pelvic_rotation_deg=0.0, pelvic_obliquity_deg=0.0)
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(patient_from_femur(level, right), mirror @ patient_from_femur(level, left), atol=1e-12)


@pytest.mark.parametrize(
    ("pose", "point", "axis", "sign"),
    [
        (Pose(30.0, 0.0, 0.0), np.array([0.0, 0.0, -100.0]), 1, -1),  # flexion: the knee comes forward
        (Pose(0.0, 30.0, 0.0), np.array([0.0, 0.0, -100.0]), 0, +1),  # abduction: the knee goes out
        (Pose(0.0, 0.0, 30.0), np.array([0.0, -100.0, 0.0]), 0, -1),  # internal rotation: the front turns in
    ],
)
def test_poses_move_the_femur_as_their_names_say(pose: Pose, point: np.ndarray, axis: int, sign: int) -> None:
    neutral = femur_rotation(Pose(0.0, 0.0, 0.0)) @ point
    moved = femur_rotation(pose) @ point
    assert sign * (moved - neutral)[axis] > 20


def test_the_neck_has_the_angle_and_version_that_were_asked_for() -> None:
    shape = replace(native_subject().hips[0].femur, neck_shaft_angle_deg=130.0, anteversion_deg=20.0)
    axis = neck_axis(shape)
    assert np.degrees(np.arccos(axis @ np.array([0.0, 0.0, 1.0]))) == pytest.approx(130.0)
    assert np.degrees(np.arctan2(axis[1], axis[0])) == pytest.approx(20.0)


def test_landmarks_lie_on_the_bone() -> None:
    hip = native_subject().hips[0]
    _, volume, origin = femur_volumes(hip.femur, hip.quality, hip.seed)
    points = landmarks(hip.femur)
    for name in ("greater_trochanter_tip", "lesser_trochanter_tip"):
        x, y, z = np.round((getattr(points, name) - origin) / 0.9).astype(int)
        near = volume[z - 6 : z + 7, y - 6 : y + 7, x - 6 : x + 7]
        assert 0.05 < near.mean() < 0.9, name  # at the surface: bone on one side, none on the other
    x, y, z = np.round((points.neck_base - origin) / 0.9).astype(int)
    assert volume[z, y, x] == 1.0


def test_areal_density_is_linear_in_mineral() -> None:
    hip = native_subject().hips[0]
    mineral, volume, origin = femur_volumes(hip.femur, hip.quality, hip.seed, COARSE_MM)
    matrix = local_from_voxel(origin, COARSE_MM)
    points = landmarks(hip.femur)

    def measure(factor: float) -> dict[str, dict[str, float | None]]:
        return canonical_figures(
            (Structure("m", mineral * np.float32(factor), "g/cm3", matrix), Structure("v", volume, "1", matrix)), points
        )

    once, twice = measure(1.0), measure(2.0)
    for region, figures in once.items():
        for key, factor in (("areal_bmd_g_cm2", 2), ("bmc_g", 2), ("volumetric_bmd_mg_cm3", 2), ("area_cm2", 1)):
            assert twice[region][key] == pytest.approx(factor * figures[key], rel=1e-5)  # type: ignore[operator]


def test_the_regions_cover_the_femur_and_the_total_hip_ends_two_centimetres_below_the_lesser_trochanter() -> None:
    hip = native_subject().hips[0]
    _, volume, origin = femur_volumes(hip.femur, hip.quality, hip.seed, COARSE_MM)
    points = landmarks(hip.femur)
    corner = np.array([-60.0, -300.0, 60.0])
    beam = ParallelBeam(
        np.array([0.0, 1.0, 0.0]), corner, np.array([1.0, 0, 0]), np.array([0, 0, -1.0]), (1.0, 1.0), (260, 180)
    )
    path = project_structures([Structure("v", volume, "1", local_from_voxel(origin, COARSE_MM))], beam)["v"]
    labels = label_regions(path, project_landmarks(points, beam, 1.0))
    assert np.array_equal(labels > 0, path >= 0.15)
    assert set(np.unique(labels)) == set(range(len(Label)))
    first_shaft_row = np.flatnonzero((labels == Label.SHAFT).any(1))[0]
    assert corner[2] - first_shaft_row == pytest.approx(points.lesser_trochanter_tip[2] - 20.0, abs=1.0)
    neck = np.argwhere(labels == Label.NECK)
    axis = neck_axis(hip.femur)[[2, 0]] * np.array([-1, 1])
    extent = np.ptp(neck @ (axis / np.linalg.norm(axis)))
    assert extent == pytest.approx(10.0, abs=1.6)  # the strip is 1 cm wide


def test_metal_takes_the_place_of_bone() -> None:
    subject = native_subject()
    nailed = replace(subject.hips[0], implant=Implant(ImplantKind.NAIL, 4.43, 1.0))
    phantom = make_phantom(replace(subject, hips=(nailed, subject.hips[1])))
    mineral, volume = phantom.bone("right_femur")
    metal = next(structure for structure in phantom.structures if structure.name == "metal_volume")
    assert metal.values.sum() * 0.9**3 / 1000 > 20  # cm3
    assert (metal.values + volume.values).max() <= 1.0 + 1e-5
    assert np.all(mineral.values[metal.values == 1] == 0)


@pytest.mark.parametrize("kind", list(ImplantKind))
def test_every_implant_has_a_volume_of_its_kind(kind: ImplantKind) -> None:
    shape = native_subject().hips[0].femur
    capsules = femoral_capsules(Implant(kind, 7.9, 1.0), shape)
    fraction = metal_fraction(capsules, (320, 130, 150), np.array([-50.0, -60.0, -250.0]), 1.0)
    assert 5 < fraction.sum() / 1000 < 120  # cm3


def test_the_population_has_the_mineral_of_the_literature_and_mineral_is_not_shape() -> None:
    subjects = [draw_subject(21, index) for index in range(60)]
    total_hip = np.array([canonical_total_hip(subject) for subject in subjects])
    assert 0.76 < total_hip.mean() < 0.90
    assert 0.11 < total_hip.std() < 0.21
    assert total_hip.min() > 0.3
    assert total_hip.max() < 1.6
    age = np.array([subject.age_years for subject in subjects])
    assert -0.75 < np.corrcoef(age, total_hip)[0, 1] < -0.15


def test_shape_says_little_of_mineral_and_cortex_little_of_trabeculae() -> None:
    hips = [draw_subject(22, index).hips[0] for index in range(1500)]
    quality = np.array([[hip.quality.trabecular_density_g_cm3, hip.quality.shaft_cortex_mm] for hip in hips])
    sizes = np.array([[getattr(hip.femur, field.name) for field in fields(hip.femur)] for hip in hips])
    correlation = np.corrcoef(np.concatenate([quality, sizes], axis=1).T)
    assert abs(correlation[0, 1]) < 0.6
    assert np.abs(correlation[:2, 2:]).max() < 0.4


def test_a_phantom_can_be_drawn_for_people(tmp_path: Path) -> None:
    draw_phantom(native_phantom(), tmp_path / "phantom.png")
    assert (tmp_path / "phantom.png").read_bytes().startswith(b"\x89PNG")
