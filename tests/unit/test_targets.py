"""What is stored of one person: mass, frame, regions, materials."""

from functools import lru_cache

import numpy as np
import pytest

from dicomnode.domain.radiograph import Side
from dicomnode.inference.frame import COLUMNS, HEAD_COLUMN, HEAD_ROW, ROWS, SPACING_MM
from training.anatomy.phantom import Phantom, make_phantom
from training.anatomy.population import draw_subject
from training.projection.geometry import detector_from_patient
from training.projection.projector import object_plane_pixel_area_cm2, project_structures
from training.targets import MARGIN_PX, SHAPE, SubjectTarget, field_beam, hip_beam, make_targets, region_figures


@lru_cache(maxsize=1)
def phantom() -> Phantom:
    subject = next(s for s in (draw_subject(3, index) for index in range(50)) if all(h.implant is None for h in s.hips))
    return make_phantom(subject)


@lru_cache(maxsize=1)
def target() -> SubjectTarget:
    return make_targets(phantom())


def test_a_frame_shows_its_femoral_head_where_the_measurement_expects_it() -> None:
    field = field_beam(phantom(), 3.5, (128, 128))
    for side, points in phantom().landmarks.items():
        beam = hip_beam(field, points.head_centre, side)
        pixel = detector_from_patient(points.head_centre[None], beam)[0]
        np.testing.assert_allclose(pixel, [HEAD_ROW + MARGIN_PX, HEAD_COLUMN + MARGIN_PX], atol=1e-9)
        assert object_plane_pixel_area_cm2(beam, points.head_centre) == pytest.approx((SPACING_MM / 10) ** 2)
        base = detector_from_patient(points.neck_base[None], beam)[0]
        assert base[1] < pixel[1], "lateral lies at the left, for both sides"


def test_the_projected_femur_has_the_mass_of_its_voxels() -> None:
    field = field_beam(phantom(), 1.0, (700, 600))
    mineral, _ = phantom().bone("right_femur")
    image = project_structures([mineral], field)["right_femur_mineral"]
    voxel_cm3 = abs(np.linalg.det(mineral.patient_from_voxel[:3, :3])) / 1000
    mass = float(mineral.values.sum(dtype=np.float64)) * voxel_cm3
    centre = np.array([np.average(np.arange(n), weights=mineral.values.sum(axis=tuple(a for a in range(3) if a != 2 - k)))
                       for k, n in enumerate(mineral.values.shape[::-1])])  # fmt: skip
    depth = (mineral.patient_from_voxel @ np.array([*centre, 1.0]))[:3]
    projected = float(image.sum(dtype=np.float64)) * object_plane_pixel_area_cm2(field, depth)
    # The beam is divergent: oblique rays are longer and the bone is not flat, so only about equal.
    assert projected == pytest.approx(mass, rel=0.04)


def test_arrays_have_the_shape_and_channels_of_the_frame() -> None:
    assert SHAPE == (ROWS + 64, COLUMNS + 64)
    for hip in target().hips:
        assert hip.materials.shape == (4, *SHAPE)
        assert hip.targets.shape == (3, *SHAPE)
        assert hip.labels.shape == SHAPE
        assert np.isfinite(hip.materials).all()
        assert hip.materials.min() >= 0
    assert target().overview.materials.shape == (4, 128, 128)


def test_the_mineral_is_femur_and_pelvis_and_soft_tissue_has_a_body_s_thickness() -> None:
    for hip in target().hips:
        materials, maps = hip.materials.astype(float), hip.targets.astype(float)
        assert np.all(materials[2] >= maps[0] + maps[2] - 0.02)
        head = (
            slice(HEAD_ROW + MARGIN_PX - 5, HEAD_ROW + MARGIN_PX + 5),
            slice(HEAD_COLUMN + MARGIN_PX - 5, HEAD_COLUMN + MARGIN_PX + 5),
        )
        thickness = materials[0][head].mean() + materials[1][head].mean()
        assert 10 < thickness < 40  # g/cm2, about cm of water


def test_a_femur_s_path_is_at_least_what_its_mineral_needs() -> None:
    for hip in target().hips:
        density, path = hip.targets[0].astype(float), hip.targets[1].astype(float)
        assert np.all(density <= 1.25 * path + 0.01)


def test_region_figures_of_a_uniform_slab_are_its_own() -> None:
    labels = np.zeros((20, 20), np.uint8)
    labels[5:15, 4:8] = 2
    labels[5:15, 8:14] = 4
    density = np.full((20, 20), 0.8, np.float32)
    path = np.full((20, 20), 2.0, np.float32)
    figures = region_figures(density, path, labels, 0.5)
    assert figures["total_hip"]["areal_bmd_g_cm2"] == pytest.approx(0.8)
    assert figures["total_hip"]["area_cm2"] == pytest.approx(100 * 0.0025)
    assert figures["femoral_neck"]["bmc_g"] == pytest.approx(0.8 * 40 * 0.0025)
    assert figures["total_hip"]["volumetric_bmd_mg_cm3"] == pytest.approx(400)
    assert figures["trochanter"]["areal_bmd_g_cm2"] is None


def test_the_figures_are_those_of_the_stored_maps() -> None:
    for hip in target().hips:
        again = region_figures(
            hip.targets[0].astype(np.float32), hip.targets[1].astype(np.float32), hip.labels, SPACING_MM
        )
        for region, figures in hip.figures["regions"].items():
            for key, value in figures.items():
                assert again[region][key] == pytest.approx(value, rel=2e-3)


def test_heads_are_listed_where_the_overview_shows_them() -> None:
    heads = target().overview.heads_px
    assert set(heads) <= {"R", "L"}
    if set(heads) == {"R", "L"}:
        assert heads["R"][0] < heads["L"][0], "the patient's right is at the left"
    for column, row in heads.values():
        assert target().overview.materials[2, int(row), int(column)] > 0.3


def test_the_patient_s_right_hip_comes_first() -> None:
    assert [hip.figures["side"] for hip in target().hips] == [str(Side.RIGHT), str(Side.LEFT)]
