"""What must never end in a number."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from dicomnode.domain.measurement import Reason, Region
from dicomnode.errors import NotMeasurable
from dicomnode.inference import frame
from dicomnode.inference.bundle import Limits
from dicomnode.inference.canonical import CanonicalFigure
from dicomnode.inference.frame import Label
from dicomnode.inference.plausibility import check_hip, check_region, explained, shaft_angle_deg
from dicomnode.inference.predictor import Decomposition

LIMITS = Limits(
    locator_score=0.3,
    anteroposterior_hip=0.5,
    implant=0.5,
    fracture=0.6,
    metal_cm2=0.5,
    explained=0.3,
    femur_area_cm2=(15.0, 120.0),
    shaft_angle_deg=(-15.0, 20.0),
    canonical_share=(0.7, 1.2),
)


CANONICAL_FIGURES = {
    name: CanonicalFigure(value, 0.02)
    for name, value in (
        ("areal_bmd_g_cm2", 0.9),
        ("area_cm2", 30.0),
        ("bmc_g", 27.0),
        ("volumetric_bmd_mg_cm3", 300.0),
    )
}


def a_femur(shaft_lean_deg: float = 0.0) -> Decomposition:
    """A head, a neck, two trochanters and a shaft as plain shapes, with a grey image that follows their density."""
    rows, columns = np.indices((frame.ROWS, frame.COLUMNS))
    labels = np.zeros((frame.ROWS, frame.COLUMNS), np.uint8)
    middle = 80 - np.tan(np.radians(shaft_lean_deg)) * (rows - 170)
    labels[(abs(columns - middle) < 20) & (rows >= 100)] = Label.INTERTROCHANTER
    labels[(abs(columns - middle) < 20) & (rows >= 190)] = Label.SHAFT
    labels[(abs(columns - 72) < 18) & (rows >= 72) & (rows < 110)] = Label.TROCHANTER
    labels[(abs(rows - 95) < 18) & (columns >= 90) & (columns < 106)] = Label.NECK
    labels[(rows - 84) ** 2 + (columns - 126) ** 2 < 30**2] = Label.HEAD
    rng = np.random.default_rng(0)
    density = np.where(
        labels > 0, 0.9 + 0.2 * ndimage.gaussian_filter(rng.standard_normal(labels.shape), 3) * 10, 0
    ).astype(np.float32)
    return Decomposition(
        grey=(2 * density - 1 + 0.05 * rng.standard_normal(labels.shape)).astype(np.float32),
        density_g_cm2=density,
        path_cm=np.where(labels > 0, 3.0, 0).astype(np.float32),
        pelvis_g_cm2=np.zeros(labels.shape, np.float32),
        soft_g_cm2=np.full(labels.shape, 18, np.float32),
        labels=labels,
        metal=np.zeros(labels.shape, bool),
        field=np.ones(labels.shape, bool),
        anteroposterior_hip=0.97,
        implant=0.02,
        fracture=0.01,
        canonical=dict.fromkeys(Region, CANONICAL_FIGURES),
        apart={},
        image_from_frame=np.eye(3),
    )


def with_areal_bmd(femur: Decomposition, value: float) -> Decomposition:
    figures = CANONICAL_FIGURES | {"areal_bmd_g_cm2": CanonicalFigure(value, 0.02)}
    return replace(femur, canonical=dict.fromkeys(Region, figures))


@pytest.mark.parametrize(("areal_bmd", "share"), [(0.5, "5. %"), (1.3, "14. %")])
def test_a_pose_cannot_halve_a_density(areal_bmd: float, share: str) -> None:
    femur = with_areal_bmd(a_femur(), areal_bmd)
    check_hip(femur, LIMITS)
    with pytest.raises(NotMeasurable, match=share) as caught:
        check_region(femur, Region.TOTAL_HIP, LIMITS)
    assert caught.value.reason is Reason.IMPLAUSIBLE


def refusal(decomposition: Decomposition) -> Reason:
    with pytest.raises(NotMeasurable) as caught:
        check_hip(decomposition, LIMITS)
    assert caught.value.detail
    return caught.value.reason


def test_a_whole_native_hip_passes() -> None:
    femur = a_femur()
    check_hip(femur, LIMITS)
    for region in Region:
        check_region(femur, region, LIMITS)


def test_metal_is_refused_as_an_implant() -> None:
    femur = a_femur()
    metal = femur.metal.copy()
    metal[120:150, 70:90] = True
    assert refusal(replace(femur, metal=metal)) is Reason.IMPLANT


def test_an_implant_that_is_known_as_one_is_refused_however_little_of_it_is_outlined() -> None:
    assert refusal(replace(a_femur(), implant=0.9)) is Reason.IMPLANT


def test_another_view_is_named_first_where_a_few_pixels_look_like_metal() -> None:
    femur = a_femur()
    metal = femur.metal.copy()
    metal[120:150, 70:90] = True
    assert refusal(replace(femur, metal=metal, anteroposterior_hip=0.2)) is Reason.NOT_AP


def test_a_view_that_the_network_does_not_accept_is_refused() -> None:
    assert refusal(replace(a_femur(), anteroposterior_hip=0.2)) is Reason.NOT_AP


def test_a_bone_that_looks_broken_is_refused_as_such_and_not_as_what_follows_from_it() -> None:
    check_hip(replace(a_femur(), fracture=0.55), LIMITS)
    assert refusal(replace(a_femur(), fracture=0.65)) is Reason.FRACTURE
    without_neck = np.where(a_femur().labels == Label.NECK, 0, a_femur().labels).astype(np.uint8)
    assert refusal(replace(a_femur(), fracture=0.65, labels=without_neck)) is Reason.FRACTURE
    assert refusal(replace(a_femur(), fracture=0.65, anteroposterior_hip=0.2)) is Reason.NOT_AP


@pytest.mark.parametrize("lean", [35.0, -30.0])
def test_a_shaft_that_leans_too_far_is_no_ap_view(lean: float) -> None:
    femur = a_femur(lean)
    assert shaft_angle_deg(femur.labels) == pytest.approx(lean, abs=3)
    assert refusal(femur) is Reason.NOT_AP


def test_a_decomposition_that_does_not_explain_the_radiograph_is_refused() -> None:
    femur = a_femur()
    other = np.random.default_rng(1).standard_normal(femur.grey.shape).astype(np.float32)
    assert explained(femur) > 0.9
    assert refusal(replace(femur, grey=other)) is Reason.IMPLAUSIBLE


def test_an_outline_too_small_for_a_femur_is_refused() -> None:
    femur = a_femur()
    labels = np.where(np.indices(femur.labels.shape)[0] < 90, femur.labels, 0).astype(np.uint8)
    assert refusal(replace(femur, labels=labels)) is Reason.IMPLAUSIBLE


def test_a_field_that_ends_below_the_neck_leaves_the_neck_and_refuses_the_total_hip() -> None:
    femur = a_femur()
    field = femur.field.copy()
    field[125:] = False
    short = replace(femur, field=field, labels=np.where(field, femur.labels, 0).astype(np.uint8))
    check_region(short, Region.FEMORAL_NECK, LIMITS)
    for region in (Region.TOTAL_HIP, Region.INTERTROCHANTER):
        with pytest.raises(NotMeasurable) as caught:
            check_region(short, region, LIMITS)
        assert caught.value.reason is Reason.CUT_OFF


def test_a_total_hip_without_shaft_below_it_is_cut_off() -> None:
    femur = a_femur()
    with pytest.raises(NotMeasurable, match="lesser trochanter"):
        check_region(
            replace(femur, labels=np.where(femur.labels == Label.SHAFT, 0, femur.labels).astype(np.uint8)),
            Region.TOTAL_HIP,
            LIMITS,
        )
