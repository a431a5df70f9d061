"""The straight line of one measurement: figures or a reason, never neither."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from dicomnode.domain.measurement import (
    Assessment,
    Estimate,
    Measurement,
    ModelIdentity,
    Reason,
    Region,
    Status,
    TrainingData,
)
from dicomnode.domain.object_plane import ASSUMED_MAGNIFICATION, object_plane
from dicomnode.domain.radiograph import UNSTATED, AcquisitionGeometry, Patient, Radiograph, Side, Technique
from dicomnode.inference.bundle import Intervals
from dicomnode.inference.predictor import Decomposition, HipCandidate
from dicomnode.pipeline import measure
from tests.unit.test_plausibility import LIMITS, a_femur

IDENTITY = ModelIdentity("fake", "1", "0" * 64, trained_on=TrainingData.SIMULATED)
GEOMETRY = AcquisitionGeometry(detector_spacing_mm=(0.2, 0.2), magnification_stated=1.2)


@dataclass(frozen=True)
class FakeBundle:
    identity: ModelIdentity
    limits: Any
    intervals: Intervals


@dataclass(frozen=True)
class FakePredictor:
    """Finds what it is told to find."""

    found: dict[Side, Decomposition]
    bundle: FakeBundle = FakeBundle(
        IDENTITY, LIMITS, Intervals({"total_hip": {"areal_bmd_g_cm2": 2.0}}, {"total_hip": 0.05})
    )
    told: list[Technique] = field(default_factory=list)
    """What the headers stated, hip by hip."""

    def locate(self, image: Any, spacing_mm: Any) -> list[HipCandidate]:
        return [HipCandidate(side, (100.0, 100.0), 0.9) for side in self.found]

    def decompose(self, image: Any, spacing_mm: Any, candidate: HipCandidate, stated: Technique) -> Decomposition:
        self.told.append(stated)
        return self.found[candidate.side]


def a_radiograph(**changes: Any) -> Radiograph:
    plain = Radiograph(np.zeros((50, 40), np.float32), GEOMETRY, Patient(), "1.2.3")
    return replace(plain, **changes)


def assess(region: Region, areal_bmd: Estimate, patient: Patient) -> Assessment | None:
    return Assessment(
        "nobody", t_score=areal_bmd.value, percent_yam=None, z_score=None, classification=None, criteria="none"
    )


def run(predictor: FakePredictor, **changes: Any) -> Measurement:
    return measure(a_radiograph(**changes), predictor, assess)  # type: ignore[arg-type]


def test_the_technique_goes_to_the_network_with_the_picture() -> None:
    predictor = FakePredictor({Side.RIGHT: a_femur()})
    run(predictor, technique=Technique(77.0, copper_mm=0.1))
    run(predictor)
    assert predictor.told == [Technique(77.0, copper_mm=0.1), UNSTATED]


@pytest.mark.parametrize(("kilovolt", "note"), [(77.0, ""), (None, "states no tube voltage"), (110.0, "110 kV")])
def test_a_tube_voltage_that_is_absent_or_was_not_trained_is_told(kilovolt: float | None, note: str) -> None:
    told = [
        one
        for one in run(FakePredictor({Side.RIGHT: a_femur()}), technique=Technique(kilovolt)).notes
        if "tube voltage" in one
    ]
    assert [note in one for one in told] == ([True] if note else [])


def test_more_copper_than_was_trained_is_told() -> None:
    for copper_mm, said in ((None, False), (0.0, False), (0.2, False), (0.3, True)):
        notes = run(FakePredictor({Side.RIGHT: a_femur()}), technique=Technique(80.0, copper_mm)).notes
        assert any("copper" in note for note in notes) == said


def test_a_measurable_hip_has_figures_for_every_region_with_its_assessment() -> None:
    measurement = run(FakePredictor({Side.RIGHT: a_femur()}))
    assert measurement.status is Status.MEASURED
    (hip,) = measurement.hips
    assert [region.region for region in hip.regions] == list(Region)
    for region in hip.regions:
        assert region.status is Status.MEASURED and region.areal_bmd_g_cm2 is not None
        assert region.assessment is not None and region.assessment.t_score == region.areal_bmd_g_cm2.value
    assert hip.magnification == 1.2 and hip.magnification_source == "header"


def test_a_hip_that_is_hardly_like_what_was_learned_from_is_measured_and_says_so() -> None:
    doubtful, refused = (replace(a_femur(), anteroposterior_hip=value) for value in (0.62, 0.2))
    right, left = run(FakePredictor({Side.RIGHT: doubtful, Side.LEFT: a_femur()})).hips
    assert right.status is left.status is Status.MEASURED and not left.notes
    (note,) = right.notes
    assert "right hip looks unlike" in note and "0.62" in note
    (other,) = run(FakePredictor({Side.RIGHT: refused})).hips
    assert other.status is Status.NOT_MEASURABLE and not other.notes


def test_the_interval_of_the_bundle_surrounds_the_figure() -> None:
    total = run(FakePredictor({Side.RIGHT: a_femur()})).hips[0].regions[0]
    assert (
        total.areal_bmd_g_cm2 is not None
        and total.areal_bmd_g_cm2.low is not None
        and total.areal_bmd_g_cm2.high is not None
    )
    # Twice a spread of 2 %, either way in the logarithm.
    assert total.areal_bmd_g_cm2.high / total.areal_bmd_g_cm2.value == pytest.approx(np.exp(0.04))
    assert total.areal_bmd_g_cm2.value / total.areal_bmd_g_cm2.low == pytest.approx(np.exp(0.04))
    projected = total.projected_areal_bmd_g_cm2
    assert projected is not None and projected.low is not None and projected.high is not None
    assert projected.high - projected.low == pytest.approx(0.1)
    assert total.bmc_g is not None and total.bmc_g.low is None  # the bundle holds no interval for it


def test_an_image_larger_than_any_radiograph_has_no_known_scale_and_is_not_searched() -> None:
    measurement = run(FakePredictor({Side.RIGHT: a_femur()}), image=np.zeros((10_000, 4), np.float32))
    assert (measurement.status, measurement.reason) == (Status.NOT_MEASURABLE, Reason.UNKNOWN_SCALE)
    assert "cm long" in measurement.detail


def test_hips_are_told_apart_and_the_right_one_comes_first() -> None:
    metal = a_femur()
    metal = replace(metal, metal=metal.labels > 0)
    measurement = run(FakePredictor({Side.LEFT: metal, Side.RIGHT: a_femur()}))
    right, left = measurement.hips
    assert (right.side, right.status) == (Side.RIGHT, Status.MEASURED)
    assert (left.side, left.status, left.reason) == (Side.LEFT, Status.NOT_MEASURABLE, Reason.IMPLANT)
    assert not left.regions and left.maps is None
    assert measurement.status is Status.MEASURED


def test_no_hip_is_a_reason() -> None:
    measurement = run(FakePredictor({}))
    assert (measurement.status, measurement.reason) == (Status.NOT_MEASURABLE, Reason.NO_HIP)


def test_no_scale_is_a_reason() -> None:
    measurement = run(FakePredictor({Side.RIGHT: a_femur()}), geometry=AcquisitionGeometry())
    assert (measurement.status, measurement.reason) == (Status.NOT_MEASURABLE, Reason.UNKNOWN_SCALE)


def test_a_header_that_contradicts_the_image_s_side_is_refused() -> None:
    measurement = run(FakePredictor({Side.RIGHT: a_femur()}), laterality_stated=Side.LEFT)
    assert (measurement.status, measurement.reason) == (Status.NOT_MEASURABLE, Reason.LATERALITY)


def test_an_assumed_magnification_is_said() -> None:
    measurement = run(
        FakePredictor({Side.RIGHT: a_femur()}), geometry=AcquisitionGeometry(detector_spacing_mm=(0.2, 0.2))
    )
    assert any("assumed" in note for note in measurement.notes)


@pytest.mark.parametrize(
    ("geometry", "spacing", "source"),
    [
        (AcquisitionGeometry(patient_spacing_mm=(0.15, 0.15), detector_spacing_mm=(0.2, 0.2)), 0.15, "calibrated"),
        (AcquisitionGeometry(detector_spacing_mm=(0.2, 0.2), sdd_mm=1150, spd_mm=1000), 0.2 / 1.15, "header"),
        (
            AcquisitionGeometry(detector_spacing_mm=(0.2, 0.2), sdd_mm=1000, spd_mm=1000),
            0.2 / ASSUMED_MAGNIFICATION,
            "assumed",
        ),
        (
            AcquisitionGeometry(detector_spacing_mm=(0.2, 0.2), magnification_stated=9.0),
            0.2 / ASSUMED_MAGNIFICATION,
            "assumed",
        ),
    ],
)
def test_the_object_plane_is_found_from_what_the_header_says(
    geometry: AcquisitionGeometry, spacing: float, source: str
) -> None:
    plane = object_plane(geometry)
    assert plane is not None
    assert plane.spacing_mm == pytest.approx((spacing, spacing)) and plane.source == source


@pytest.mark.parametrize("spacing", [None, (0.0, 0.0), (5.0, 5.0)])
def test_an_impossible_spacing_is_no_scale(spacing: tuple[float, float] | None) -> None:
    assert object_plane(AcquisitionGeometry(detector_spacing_mm=spacing)) is None
