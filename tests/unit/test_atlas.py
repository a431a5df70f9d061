"""People whose bones come from the reference anatomy."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from dicomnode.domain.radiograph import Side
from training.anatomy.atlas import (
    Source,
    UnusableAtlas,
    atlas_subject,
    load,
    shape_model_femur,
)
from training.anatomy.ct import read_ct
from training.anatomy.ct_femur import ct_subject
from training.anatomy.labels import read_labels
from training.anatomy.mesh import UnusableMesh
from training.anatomy.phantom import Phantom
from training.calibration.tissues import calibrate_by_tissues
from training.targets import canonical_figures, make_targets


@cache
def _person(folder: Path, source: Source) -> Phantom:
    return atlas_subject(folder, 7, 3, source)


@pytest.mark.parametrize("source", list(Source))
def test_a_person_of_the_atlas_gives_targets_like_a_phantom(reference_data: Path, source: Source) -> None:
    person = _person(reference_data / "anatomy", source)
    for hip in make_targets(person).hips:
        total = hip.figures["canonical"]["total_hip"]
        assert 0.3 < total["areal_bmd_g_cm2"] < 1.6
        assert 20 < total["area_cm2"] < 50
        assert np.isfinite(hip.materials).all() and np.isfinite(hip.targets).all()
        assert set(range(6)) == set(np.unique(hip.labels).tolist())


def test_the_head_sits_in_its_socket_and_touches_no_pelvis(reference_data: Path) -> None:
    person = _person(reference_data / "anatomy", Source.SHAPE_MODEL)
    pelvis = next(s for s in person.structures if s.name == "pelvis_volume")
    voxels = np.argwhere(pelvis.values > 0.5)[:, ::-1]
    places = voxels @ pelvis.patient_from_voxel[:3, :3].T + pelvis.patient_from_voxel[:3, 3]
    for side, points in person.landmarks.items():
        gap_mm = np.linalg.norm(places - points.head_centre, axis=1).min() - points.head_radius_mm
        assert -1.0 < gap_mm < 5.0, side
        assert points.head_centre[0] * (1 if side is Side.LEFT else -1) > 60


def test_the_same_numbers_give_the_same_person_and_others_another(reference_data: Path) -> None:
    folder = reference_data / "anatomy"
    person, again = _person(folder, Source.LIBHIP), atlas_subject(folder, 7, 3, Source.LIBHIP)
    for one, other in zip(person.structures, again.structures, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
    assert person.subject.hips[0].femur != _person(folder, Source.SHAPE_MODEL).subject.hips[0].femur


def test_landmarks_are_found_where_the_shape_model_states_them(reference_data: Path) -> None:
    model = load(reference_data / "anatomy", Source.SHAPE_MODEL)
    femur = shape_model_femur(model, np.array([1.0, -0.5, 0.0, 0.0, 0.5]))
    weights = np.zeros(26)
    weights[:5] = np.array([1.0, -0.5, 0.0, 0.0, 0.5]) * np.sqrt(model["variance"][:5])
    stated = dict(
        zip(
            model["landmark_names"].tolist(),
            model["landmark_mean"] + np.tensordot(weights, model["landmark_modes"], 1),
            strict=True,
        )
    )
    distance = float(np.linalg.norm(stated["lesser_trochanter_tip"] - stated["femoral_head_centre"]))
    assert np.linalg.norm(femur.points.lesser_trochanter_tip) == pytest.approx(distance, abs=3.0)
    radius_mm = float(model["head_radius_mean"] + weights @ model["head_radius_modes"])
    assert femur.points.head_radius_mm == pytest.approx(radius_mm, abs=0.7)


def test_a_shape_that_crosses_itself_is_refused(reference_data: Path) -> None:
    model = load(reference_data / "anatomy", Source.SHAPE_MODEL)
    with pytest.raises(UnusableMesh):
        for size in (6.0, 9.0, 14.0):
            shape_model_femur(model, np.array([0.0, -size]))


def test_more_mineral_in_the_person_is_more_mineral_in_the_figures(reference_data: Path) -> None:
    person = _person(reference_data / "anatomy", Source.LIBHIP)
    mineral, volume = person.bone("left_femur")
    figures = canonical_figures((mineral, volume), person.landmarks[Side.LEFT])["total_hip"]
    cortical = person.subject.hips[1].quality.cortical_density_g_cm3
    assert 0 < float(mineral.values.max()) <= cortical * 1.001
    assert (mineral.values <= cortical * volume.values + 1e-5).all()
    assert figures["volumetric_bmd_mg_cm3"] is not None


def test_a_folder_without_the_anatomy_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UnusableAtlas, match=r"femur_ssm\.npz does not exist"):
        atlas_subject(tmp_path, 1, 0)


def test_a_femur_of_a_real_tomogram_follows_the_scale_of_its_mineral(reference_data: Path) -> None:
    ct = read_ct(reference_data / "ct" / "example_ct.nii.gz")
    labels = read_labels(reference_data / "ct" / "example_ct_labels_v1.nii.gz")
    calibration = calibrate_by_tissues(ct, 120.0)
    persons = [
        ct_subject(reference_data / "anatomy", ct, labels, calibration, Side.RIGHT, 7, 3, scale) for scale in (1.0, 0.6)
    ]
    whole, less = (
        canonical_figures(person.bone("right_femur"), person.landmarks[Side.RIGHT])["total_hip"] for person in persons
    )
    assert whole["areal_bmd_g_cm2"] is not None
    assert less["areal_bmd_g_cm2"] == pytest.approx(0.6 * whole["areal_bmd_g_cm2"], rel=1e-4)
    assert less["area_cm2"] == whole["area_cm2"]
    assert 0.3 < whole["areal_bmd_g_cm2"] < 1.3
