"""Osteoarthritis and fractures: what they change, and what they leave alone."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from dicomnode.domain.radiograph import Side
from training.anatomy.disease import (
    OSTEOPHYTE_MM,
    SCLEROSIS_DEPTH_MM,
    Fracture,
    FractureKind,
    broken_landmarks,
    sclerose_socket,
)
from training.anatomy.femur import FemurLandmarks, landmarks
from training.anatomy.phantom import Phantom, make_phantom
from training.anatomy.population import Subject, draw_fracture, draw_subject
from training.targets import is_native, make_targets


def a_person(osteoarthritis: float = 0.0, fracture: Fracture | None = None) -> Subject:
    person = draw_subject(1, 3)
    right, left = (replace(hip, implant=None, osteoarthritis=osteoarthritis, fracture=fracture) for hip in person.hips)
    return replace(person, hips=(right, left), is_frog_leg=False)


@pytest.fixture(scope="module")
def healthy() -> Phantom:
    return make_phantom(a_person())


@pytest.fixture(scope="module")
def arthritic() -> Phantom:
    return make_phantom(a_person(osteoarthritis=1.0))


def values(phantom: Phantom, name: str) -> NDArray[np.float32]:
    (found,) = (structure.values for structure in phantom.structures if structure.name == name)
    return found


def distances_mm(phantom: Phantom, name: str, to: NDArray[np.float64]) -> NDArray[np.float64]:
    """(z, y, x) of the voxels of a structure to a point of the patient."""
    (structure,) = (one for one in phantom.structures if one.name == name)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in structure.values.shape), indexing="ij")[::-1], -1)
    points = index @ structure.patient_from_voxel[:3, :3].T + structure.patient_from_voxel[:3, 3]
    return np.asarray(np.linalg.norm(points - to, axis=-1))


def neck_shaft_angle_deg(points: FemurLandmarks) -> float:
    """In the coronal plane."""
    neck, shaft = points.head_neck_junction - points.head_centre, points.shaft_distal - points.shaft_proximal
    cosine = neck[[0, 2]] @ shaft[[0, 2]] / np.linalg.norm(neck[[0, 2]]) / np.linalg.norm(shaft[[0, 2]])
    return 180.0 - float(np.degrees(np.arccos(cosine)))


def test_osteoarthritis_adds_bone_about_the_joint_and_nowhere_else(healthy: Phantom, arthritic: Phantom) -> None:
    points = healthy.landmarks[Side.LEFT]
    away = distances_mm(healthy, "left_femur_mineral", points.head_centre)
    beyond = away > points.head_radius_mm + OSTEOPHYTE_MM + 2
    for part in ("mineral", "volume"):
        before, after = (values(one, f"left_femur_{part}") for one in (healthy, arthritic))
        assert (after >= before - 1e-6).all() and after.sum() > before.sum()
        np.testing.assert_allclose(before[beyond], after[beyond], atol=1e-6)
    mineral, volume = values(arthritic, "left_femur_mineral"), values(arthritic, "left_femur_volume")
    assert (mineral <= a_person().hips[1].quality.cortical_density_g_cm3 * volume + 1e-5).all()
    outside = (away > points.head_radius_mm + 1) & (values(healthy, "left_femur_volume") == 0)
    assert values(arthritic, "left_femur_volume")[outside].max() > 0.9  # an osteophyte stands out


def test_osteoarthritis_narrows_the_joint_space(healthy: Phantom, arthritic: Phantom) -> None:
    points = healthy.landmarks[Side.RIGHT]
    away = distances_mm(healthy, "pelvis_volume", points.head_centre)
    nearest = [float(away[values(one, "pelvis_volume") > 0.5].min()) for one in (healthy, arthritic)]
    lost = 0.85 * a_person().pelvis.joint_space_mm
    assert nearest[0] - nearest[1] == pytest.approx(lost, abs=0.8)


def test_a_milder_disease_changes_less() -> None:
    masses = [
        float(values(make_phantom(a_person(osteoarthritis=severity)), "left_femur_mineral").sum(dtype=np.float64))
        for severity in (0.0, 0.4, 1.0)
    ]
    assert masses[0] < masses[1] < masses[2] < 1.2 * masses[0]


@pytest.mark.parametrize("kind", FractureKind)
def test_a_fracture_moves_the_shaft_and_loses_no_bone(kind: FractureKind, healthy: Phantom) -> None:
    fracture = draw_fracture(np.random.default_rng(2), kind)
    broken = make_phantom(a_person(fracture=fracture))
    for part in ("mineral", "volume"):
        whole = values(healthy, f"left_femur_{part}")
        head, shaft = (one for one in broken.structures if one.name == f"left_femur_{part}")
        np.testing.assert_allclose(head.values + shaft.values, whole, atol=1e-6)
        assert 0.05 < head.values.sum() / whole.sum() < 0.5
    before, after = healthy.landmarks[Side.LEFT], broken.landmarks[Side.LEFT]
    np.testing.assert_array_equal(before.head_centre, after.head_centre)
    assert after.shaft_distal[2] > before.shaft_distal[2]  # the leg is shorter
    assert neck_shaft_angle_deg(after) == pytest.approx(neck_shaft_angle_deg(before) - fracture.varus_deg, abs=6)
    # The landmarks went with the bone: the shaft's fragment lies about its own axis.
    voxel = np.linalg.inv(shaft.patient_from_voxel) @ [*after.shaft_distal, 1.0]
    x, y, z = np.round(voxel[:3]).astype(int)
    reach = 12
    about = shaft.values[z - 1 : z + 2, y - reach : y + reach + 1, x - reach : x + reach + 1]
    assert about.max() > 0.9


@pytest.mark.parametrize("kind", FractureKind)
def test_a_leg_that_turns_outwards_takes_the_trochanter_backwards(kind: FractureKind) -> None:
    femur = a_person().hips[1].femur
    turned = broken_landmarks(landmarks(femur), Fracture(kind, 10.0, 0.0, 40.0), femur)
    straight = broken_landmarks(landmarks(femur), Fracture(kind, 10.0, 0.0, 0.0), femur)
    np.testing.assert_allclose(straight.shaft_distal, landmarks(femur).shaft_distal + np.array([0, 0, 10.0]))
    assert turned.greater_trochanter_tip[1] > straight.greater_trochanter_tip[1] + 2
    np.testing.assert_allclose(turned.head_neck_junction, straight.head_neck_junction)


@pytest.mark.parametrize("hip_x", [-85.0, 85.0])
def test_the_roof_of_the_socket_on_its_own_side_becomes_denser(hip_x: float) -> None:
    mineral, volume = np.full((60, 60, 120), 0.1, np.float32), np.ones((60, 60, 120), np.float32)
    origin = np.array([-120.0, -60.0, -60.0])
    sclerose_socket(mineral, volume, origin, 2.0, hip_x, 28.0, 0.4, 1.0)
    gained = mineral - 0.1
    z, y, x = (axis * 2.0 + start for axis, start in zip(np.nonzero(gained > 1e-4), origin[::-1], strict=True))
    assert mineral.max() == pytest.approx(0.4) and (np.sign(x) == np.sign(hip_x)).all()
    assert abs(x.mean()) > abs(hip_x) + 3 and z.mean() > 15 and abs(y.mean()) < 2
    away = np.sqrt((x - hip_x) ** 2 + y**2 + z**2)
    assert (np.abs(away - 28) <= SCLEROSIS_DEPTH_MM).all()


def test_a_broken_hip_is_projected_whole_and_is_no_native_one(healthy: Phantom) -> None:
    fracture = draw_fracture(np.random.default_rng(2), FractureKind.CERVICAL)
    right, broken = make_targets(make_phantom(a_person(fracture=fracture))).hips
    assert broken.figures["fracture"] == "cervical" and not is_native(broken.figures)
    whole = make_targets(healthy).hips[1]
    assert is_native(whole.figures) and whole.figures["fracture"] is None
    # The whole shaft that was below the frame has come up: there is more bone in it, not less.
    assert broken.targets[0].sum(dtype=np.float64) > 0.95 * whole.targets[0].sum(dtype=np.float64)
    assert right.figures["canonical"]["total_hip"]["areal_bmd_g_cm2"] is not None
