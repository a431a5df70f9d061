"""Ladders with readers whose answers are known: what they put in, the ladder must give out."""

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from dicomnode.clinical.reference import Norm, ReferencePopulation
from dicomnode.dicom.pixels import read_radiograph
from dicomnode.domain.measurement import Reason, Region
from dicomnode.domain.radiograph import Sex, Technique
from dicomnode.inference.bundle import load_bundle
from dicomnode.inference.frame import COLUMNS, ROWS, FramedHip, Label, cut
from dicomnode.inference.predictor import Predictor
from dicomnode.pipeline import measure
from tests.tiny_bundle import write_tiny_bundle
from training.anatomy.phantom import Phantom, make_phantom
from training.anatomy.population import draw_subject
from training.ladders.compression import (
    RATIOS,
    Compression,
    as_jpeg,
    as_jpeg2000,
    as_monochrome1,
    codestream_bytes,
    compression_ladder,
    raw_bytes,
)
from training.ladders.diagnosis import diagnose
from training.ladders.exposure import LADDERS, VENDORS, Rung, Steps, climb, devices
from training.ladders.groups import BMI_KG_M2, anatomy_ladder, group_ladders, read_all
from training.ladders.ladder import Case, draw_conditions, make_ladder, take
from training.ladders.persons import mineral_slope, native_subjects, repeatability, scaled, thinned
from training.ladders.reading import Read, Reading, read_figures, read_file, true_figures
from training.ladders.refusals import (
    MEASURED,
    Outcome,
    cut_below,
    file_outcomes,
    native_outcomes,
    spoiled_outcomes,
    summarise_refusals,
)
from training.ladders.report import Evidence, write_evidence
from training.projection.radiograph import Exposure, VendorProcessing, stated_technique
from training.simulate_dx import DEFAULT_PROCESSING, DxGeometry, FictionalPatient, dx_dataset
from training.targets import MARGIN_PX, SHAPE, make_targets
from training.whole import phantom_dx

QUANTITY = "total_hip.areal_bmd_g_cm2"
PLAIN = VendorProcessing(sigmoid=False, slope=0.1)


@dataclass(frozen=True)
class SquareHip:
    """A square of mineral in flat soft tissue whose side encodes the truth: 1 g/cm2 is 100 pixels."""

    materials: NDArray[np.float16]
    labels: NDArray[np.uint8]
    figures: dict[str, Any]


def square_hip(index: int, side: str = "R", **figures: Any) -> SquareHip:
    width = 60 + index % 40
    rows, columns = (slice((size - width) // 2, (size - width) // 2 + width) for size in SHAPE)
    square = (rows, columns)
    materials = np.zeros((4, *SHAPE), np.float16)
    materials[0] = 15.0
    materials[2][square] = 3.0
    labels = np.zeros(SHAPE, np.uint8)
    labels[square] = Label.INTERTROCHANTER
    labels[rows.start : rows.start + 10, columns] = Label.NECK
    truth = {"areal_bmd_g_cm2": width / 100, "bmc_g": 1.0, "area_cm2": 2.0, "volumetric_bmd_mg_cm3": 300.0}
    known: dict[str, Any] = {
        "index": index,
        "side": side,
        "sex": "F" if index % 2 else "M",
        "age_years": 40.0 + index,
        "bmi_kg_m2": 20.0 + index % 20,
        "has_metal": False,
        "implant": None,
        "is_frog_leg": False,
        "regions": {region.value: truth for region in Region},
        "canonical": {region.value: truth for region in Region},
    }
    return SquareHip(materials, labels, known | figures)


def square_reader(bias: float) -> Read:
    """Measure the square by its area, and add a bias."""

    def read(hip: FramedHip) -> Reading:
        crop, inside = cut(hip)
        bright = (crop > (crop.min() + crop.max()) / 2) & inside
        return {QUANTITY: float(np.sqrt(bright.sum())) / 100 + bias}

    return read


def case(rung: str, subject: int, truth: float, reading: Reading | float, side: str = "R") -> Case:
    return Case(rung, subject, side, {QUANTITY: truth}, {QUANTITY: reading} if isinstance(reading, float) else reading)


QUIET = {"electronic_noise_ugy": 0.001, "detector_kerma_ugy": 100.0, "scatter_to_primary": 0.05, "heel_fraction": 0.0}


def test_a_reader_with_a_known_bias_shows_that_bias_on_every_rung_and_no_change() -> None:
    steps = Steps("blur", "Blur", "mm", "0.1", tuple(Rung(f"{v:g}", QUIET | {"blur_mm": v}, PLAIN) for v in (0.1, 0.4)))
    ladder = climb(square_reader(0.05), [square_hip(i) for i in range(6)], steps, seed=1)
    assert ladder.rungs == ("0.1", "0.4")
    for rung in ladder.figures:
        assert rung.agreement is not None and rung.r_interval is not None
        assert rung.agreement.bias == pytest.approx(0.05, abs=0.002)
        assert rung.agreement.rmse == pytest.approx(0.05, abs=0.002)
        assert rung.agreement.slope == pytest.approx(1, abs=0.05)
        assert rung.r_interval[0] > 0.99
        assert (rung.hips, rung.refused) == (6, 0)
        assert rung.change_percent is not None and rung.change_percent[1] < 0.5


def test_a_rung_may_state_another_tube_voltage_than_that_of_the_exposure_or_none() -> None:
    def read(hip: FramedHip) -> Reading:
        told.append((float(hip.image.sum()), hip.technique.kilovolt))
        return {QUANTITY: 0.8}

    told: list[tuple[float, float | None]] = []
    rungs = (Rung("true"), Rung("too high", stated_off_kv=15.0), Rung("none", stated_off_kv=None))
    climb(read, [square_hip(0)], Steps("stated", "Stated", "kV", "true", rungs), seed=1)
    true_kv = draw_conditions(1, square_hip(0).figures).exposure.kilovolt
    assert [kilovolt for _, kilovolt in told] == [true_kv, true_kv + 15, None]
    assert len({crop for crop, _ in told}) == 1  # the radiograph is the same


def test_a_rung_may_keep_filter_and_detector_to_itself() -> None:
    told: list[Technique] = []

    def read(hip: FramedHip) -> Reading:
        told.append(hip.technique)
        return {QUANTITY: 0.8}

    rungs = (Rung("true"), Rung("no filter", states_filters=False))
    climb(read, [square_hip(0)], Steps("stated", "Stated", "", "true", rungs), seed=1)
    exposure = draw_conditions(1, square_hip(0).figures).exposure
    assert told == [stated_technique(exposure), Technique(exposure.kilovolt)]


def test_on_one_device_only_dose_and_noise_differ_from_hip_to_hip() -> None:
    steps = devices(3, seed=4)
    assert steps == devices(3, seed=4) and steps.rungs[:2] == devices(2, seed=4).rungs
    assert len({rung.label for rung in steps.rungs}) == 3 and not steps.reference
    for rung in steps.rungs:
        assert rung.processing is not None
        taken = [replace(draw_conditions(1, square_hip(n).figures).exposure, **rung.exposure) for n in range(3)]
        assert len({exposure.detector_kerma_ugy for exposure in taken}) == 3
        assert len({replace(exposure, detector_kerma_ugy=1.0) for exposure in taken}) == 1
        assert str(taken[0].kilovolt) in rung.label


def test_a_rung_changes_what_it_names_and_nothing_else() -> None:
    """The same noise, processing and place: what differs between rungs is their condition."""
    hip = square_hip(3)
    conditions = draw_conditions(1, hip.figures)
    assert draw_conditions(1, hip.figures) == conditions
    assert draw_conditions(1, hip.figures | {"side": "L"}) != conditions
    assert draw_conditions(1, hip.figures, take=1) != conditions
    first, second = (take(hip.materials, conditions) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    assert first.image.shape == SHAPE
    crop, inside = cut(first)
    row, column = np.array(conditions.offset_px) + MARGIN_PX
    np.testing.assert_array_equal(crop, first.image[row : row + ROWS, column : column + COLUMNS])
    assert inside.all()


def test_every_ladder_stands_on_its_reference_and_on_settings_that_exist() -> None:
    for steps in LADDERS:
        labels = [rung.label for rung in steps.rungs]
        assert steps.reference in labels and len(set(labels)) == len(labels)
        for rung in steps.rungs:
            replace(Exposure(), **rung.exposure)
    assert {processing.bits for processing in VENDORS.values()} == {8, 10, 12}


def test_change_is_counted_from_the_same_hip_on_the_reference_rung() -> None:
    cases = [case("a", i, 1.0 + i, 0.5 + i) for i in range(5)]
    cases += [case("b", i, 1.0 + i, (0.5 + i) * (1.02 if i else 0.9)) for i in range(5)]
    ladder = make_ladder("x", "x", "x", cases, reference="a")
    assert ladder.figures[0].change_percent == pytest.approx((0, 0))
    assert ladder.figures[1].change_percent == pytest.approx((2, np.percentile([10, 2, 2, 2, 2], 95)))


def test_a_refused_hip_counts_as_refused_and_not_as_an_error() -> None:
    cases = [case("a", i, 1.0 + i / 10, 1.0 + i / 10) for i in range(6)] + [case("a", 7, 1.0, Reason.IMPLANT)]
    figures = make_ladder("x", "x", "x", cases).figures[0]
    assert (figures.hips, figures.refused) == (7, 1)
    assert figures.refused_interval[0] < 1 / 7 < figures.refused_interval[1]
    assert figures.agreement is not None and figures.agreement.n == 6 and figures.agreement.rmse == 0


def test_groups_hold_every_hip_once_in_the_order_of_their_axis() -> None:
    hips = [square_hip(i, side) for i in range(20) for side in "RL"]
    cases = [case("all", i, 0.7 + i / 50, 0.7 + i / 50, side) for i in range(20) for side in "RL"]
    ladders = {one.name: one for one in group_ladders(cases, [hip.figures for hip in hips])}
    assert ladders["side"].rungs == ("right", "left")
    assert ladders["body_size"].rungs == ("18.5 to 25", "25 to 30", "30 to 35", "35 and more")
    for ladder in ladders.values():
        assert sum(figures.hips for figures in ladder.figures) == 40
    assert BMI_KG_M2[0] == 18.5


def test_frog_legs_and_implants_are_left_out() -> None:
    hips = [square_hip(i) for i in range(5)]
    spoiled = [square_hip(6, is_frog_leg=True), square_hip(7, has_metal=True)]
    assert len(read_all(square_reader(0.0), [*hips, *spoiled], seed=1)) == 5


@pytest.mark.parametrize("share", [1.0, 0.4, 0.0])
def test_the_mineral_slope_tells_measuring_from_guessing(share: float) -> None:
    """A reader that takes `share` from the mineral and the rest from the shape has that slope."""
    cases = [
        case(f"{factor:g}", person, shape * factor, share * shape * factor + (1 - share) * shape)
        for person, shape in enumerate((0.6, 0.8, 1.0))
        for factor in (0.5, 1.0, 1.3)
    ]
    slope = mineral_slope(cases, QUANTITY)
    assert slope is not None and slope.hips == 3
    assert slope.slope == pytest.approx(share)
    assert slope.slope_interval == pytest.approx((share, share))
    assert slope.slope_sd == pytest.approx(0, abs=1e-9)


def test_a_quantity_that_mineral_does_not_change_has_no_slope() -> None:
    assert mineral_slope([case("1", 0, 1.0, 1.0), case("2", 0, 1.0, 1.1)], QUANTITY) is None


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(native_subjects(3, 5, 1)[0])


def test_anatomy_is_compared_by_its_source(phantom: Phantom) -> None:
    phantoms = [case("all", i, 0.6 + i / 10, 0.6 + i / 10) for i in range(5)]

    def read(hip: FramedHip) -> Reading:
        return {QUANTITY: 0.8}

    ladder = anatomy_ladder(read, phantoms, {"atlas": [make_targets(phantom)]}, seed=1)
    assert [(one.rung, one.hips) for one in ladder.figures] == [("phantoms", 5), ("atlas", 2)]
    assert ladder.figures[1].agreement is None  # two hips have none


def test_scaling_mineral_scales_the_truth_and_leaves_the_outline(phantom: Phantom) -> None:
    whole, half = make_targets(phantom).hips[0], make_targets(scaled(phantom, 0.5)).hips[0]
    before, after = true_figures(whole.figures), true_figures(half.figures)
    for region in ("total_hip", "femoral_neck"):
        for pose in ("", "projected_"):
            name = f"{region}.{pose}areal_bmd_g_cm2"
            assert after[name] == pytest.approx(before[name] / 2, rel=1e-4)
        assert after[f"{region}.area_cm2"] == before[f"{region}.area_cm2"]
    np.testing.assert_array_equal(whole.labels, half.labels)
    assert half.materials[2].sum(dtype=float) == pytest.approx(whole.materials[2].sum(dtype=float) / 2, rel=1e-3)


def test_thinning_takes_mineral_from_every_bone_within_the_same_outline() -> None:
    (person,) = native_subjects(3, 5, 1)
    lost = thinned(person, 0.7)
    assert [hip.femur for hip in lost.hips] == [hip.femur for hip in person.hips]
    for before, after in zip(person.hips, lost.hips, strict=True):
        assert after.quality.shaft_cortex_mm == pytest.approx(0.7 * before.quality.shaft_cortex_mm)
        assert after.quality.trabecular_density_g_cm3 == pytest.approx(0.7 * before.quality.trabecular_density_g_cm3)
        assert after.quality.cortical_density_g_cm3 == before.quality.cortical_density_g_cm3
    assert lost.pelvis_quality.cortex_mm == pytest.approx(0.7 * person.pelvis_quality.cortex_mm)


def test_native_persons_have_no_metal_and_lie_for_an_ap_view() -> None:
    drawn = native_subjects(1, 0, 40)
    assert len(drawn) == 40
    assert not any(subject.is_frog_leg or any(hip.implant for hip in subject.hips) for subject in drawn)
    assert any(any(hip.implant for hip in draw_subject(1, subject.index).hips) for subject in drawn)


def test_repeatability_gives_back_the_spread_that_was_put_in() -> None:
    rng = np.random.default_rng(7)
    cases = []
    for person in range(200):
        for number, error in enumerate(rng.normal(0, 0.03, 5)):
            cases.append(case(f"pose {number + 1}", person, 0.8 * (1 + rng.normal(0, 0.01)), 0.8 * (1 + float(error))))
        for rung, sd in (("repositioned", 0.015), ("same device, pose", 0.02), ("same pose", 0.005)):
            cases += [case(rung, person, 0.8, 0.8 * (1 + float(error))) for error in rng.normal(0, sd, 5)]
    (found,) = repeatability(cases)
    assert found.over_poses.rms_cv_percent == pytest.approx(3.0, rel=0.06)
    assert found.over_poses.lsc_percent == pytest.approx(2.77 * 3.0, rel=0.06)
    assert found.truth_over_poses.rms_cv_percent == pytest.approx(1.0, rel=0.06)
    assert found.repositioned.rms_cv_percent == pytest.approx(1.5, rel=0.06)
    assert found.same_device.rms_cv_percent == pytest.approx(2.0, rel=0.06)
    assert found.same_pose.rms_cv_percent == pytest.approx(0.5, rel=0.06)


@pytest.fixture(scope="module")
def radiograph() -> Dataset:
    """600 x 500 pixels of smooth anatomy, an edge and noise."""
    rows, columns = np.indices((600, 500))
    smooth = 1600 + 900 * np.sin(rows / 90) * np.cos(columns / 70) + 700 * (np.hypot(rows - 300, columns - 250) < 120)
    stored = np.clip(smooth + np.random.default_rng(0).normal(0, 40, smooth.shape), 0, 4095).astype(np.uint16)
    geometry = DxGeometry((0.2, 0.2), 1150.0, 1050.0, (0, 600, 0, 500))
    return dx_dataset(stored, geometry, Exposure(), DEFAULT_PROCESSING, FictionalPatient(), seed=1)


@pytest.mark.parametrize("ratio", RATIOS)
def test_both_codecs_reach_the_size_within_a_tenth(radiograph: Dataset, ratio: int) -> None:
    target = raw_bytes(radiograph) / ratio
    for smaller in (
        as_jpeg(radiograph, radiograph.pixel_array, target),
        as_jpeg2000(radiograph, ratio),
    ):
        assert codestream_bytes(smaller) == pytest.approx(target, rel=0.1)


def test_what_is_compressed_can_be_read_back_and_is_the_same_picture(radiograph: Dataset, tmp_path: Path) -> None:
    stored = radiograph.pixel_array.astype(float)
    path = tmp_path / "smaller.dcm"
    for smaller, scale in (
        (as_jpeg(radiograph, radiograph.pixel_array, raw_bytes(radiograph) / 10), 16),
        (as_jpeg2000(radiograph, 10), 1),
    ):
        smaller.save_as(path, enforce_file_format=True)
        decoded = dcmread(path).pixel_array.astype(float) * scale
        assert np.corrcoef(decoded.ravel(), stored.ravel())[0, 1] > 0.99
    inverted = as_monochrome1(radiograph, radiograph.pixel_array)
    np.testing.assert_array_equal(inverted.pixel_array, 4095 - stored)


def test_a_reader_of_files_meets_every_encoding_and_a_side_not_found_is_refused() -> None:
    table = [hip.figures | {"head_in_field": True} for hip in (square_hip(0, "R"), square_hip(0, "L"))]
    seen: list[tuple[str, int]] = []

    def read(path: Path) -> dict[str, Reading]:
        dataset = dcmread(path)
        seen.append((str(dataset.PhotometricInterpretation), int(dataset.BitsStored)))
        return {"R": {QUANTITY: 0.61 if dataset.BitsStored == 8 else 0.6}}

    found = compression_ladder(read, table, count=1, population_seed=1, seed=1)
    assert len(seen) == 2 + 2 * len(RATIOS)
    assert seen[:3] == [("MONOCHROME2", 12), ("MONOCHROME1", 12), ("MONOCHROME2", 8)]
    figures = {one.rung: one for one in found.ladder.figures if one.quantity == QUANTITY}
    assert figures["JPEG 1/50"].change_percent == pytest.approx((100 / 60, 100 / 60))
    assert figures["JPEG 2000 1/50"].change_percent == (0, 0)
    assert (figures["12 bit"].hips, figures["12 bit"].refused) == (2, 1)
    assert found.ratios["JPEG 1/50"] == pytest.approx(50, rel=0.1)


def test_what_was_spoiled_is_told_apart_and_only_its_refusal_counts() -> None:
    hips = [square_hip(0), square_hip(1, is_frog_leg=True), square_hip(2, has_metal=True, implant="nail")]

    def read(hip: FramedHip) -> Reading:
        return {"femoral_neck.areal_bmd_g_cm2": 0.7} if hip.inside is not None else {QUANTITY: 0.7}

    outcomes = [(one.group, one.outcome) for one in spoiled_outcomes(read, hips, seed=1)]
    assert outcomes == [("cut-off femur", "cut_off"), ("frog-leg", MEASURED), ("implant: nail", MEASURED)]


def test_a_cut_femur_misses_some_of_the_total_hip_but_not_all_of_the_hip() -> None:
    labels = square_hip(0).labels
    first, last = np.flatnonzero(labels.any(axis=1))[[0, -1]]
    for seed in range(50):
        inside = cut_below(labels, np.random.default_rng(seed))
        assert inside is not None
        border = int(inside.all(axis=1).sum())
        assert first <= border <= last - 6
    assert cut_below(np.zeros_like(labels), np.random.default_rng(0)) is None


def test_refusals_are_counted_by_group_with_an_interval() -> None:
    outcomes = [Outcome("implant", str(i), "implant" if i else MEASURED) for i in range(10)]
    outcomes += list(native_outcomes([case("all", 1, 1.0, 1.0), case("all", 2, 1.0, Reason.NOT_AP)]))
    implant, native = summarise_refusals(outcomes)
    assert implant.outcomes == {"implant": 9, MEASURED: 1} and implant.refused == pytest.approx(0.9)
    assert implant.refused_interval[0] < 0.9 < implant.refused_interval[1] < 1
    assert native.outcomes == {MEASURED: 1, "not_ap": 1}


POPULATION = ReferencePopulation(
    "made_up", "Made up", "none", (Sex.FEMALE, Sex.MALE), "none", False, {Region.TOTAL_HIP: Norm(0.9, 0.1)}
)


def test_classes_follow_the_scores_and_a_perfect_reader_has_no_error() -> None:
    truths = np.linspace(0.5, 1.1, 40)
    table = [square_hip(i, age_years=60.0).figures for i in range(40)]
    (perfect,) = diagnose([case("all", i, t, float(t)) for i, t in enumerate(truths)], table, POPULATION)
    assert perfect.auc == 1 and perfect.hips == 40
    assert (perfect.accuracy.successes, perfect.sensitivity.successes) == (40, perfect.sensitivity.of)
    assert perfect.table["osteoporosis"]["osteoporosis"] == int((np.round((truths - 0.9) / 0.1, 1) <= -2.5).sum())
    (blind,) = diagnose([case("all", i, t, 0.95) for i, t in enumerate(truths)], table, POPULATION)
    assert blind.auc == 0.5 and blind.sensitivity.successes == 0
    assert blind.specificity.successes == blind.specificity.of


def test_persons_under_fifty_have_no_class() -> None:
    table = [square_hip(i, age_years=40.0).figures for i in range(40)]
    assert diagnose([case("all", i, 0.5 + i / 80, 0.7) for i in range(40)], table, POPULATION) == []


def test_everything_is_written_and_undefined_figures_are_null(tmp_path: Path) -> None:
    cases = [
        case(rung, i, 0.5 + i / 10, 0.5 + i / 10 + error) for rung, error in (("a", 0.01), ("b", 0.1)) for i in range(6)
    ]
    cases.append(case("b", 9, 0.7, Reason.CUT_OFF))
    ladder = make_ladder("mineral", "Mineral", "factor", cases, "a")
    rungs = (
        "pose 1",
        "pose 2",
        "repositioned, 1",
        "repositioned, 2",
        "same device, pose 1",
        "same device, pose 2",
        "same pose",
        "same pose",
    )
    posed = [case(rung, i, 1.0, 1.0 + i / 100) for rung in rungs for i in (1, 2)]
    slope = mineral_slope([case("1", i, 1.0 + f, 1.0 + f) for i in (1, 2) for f in (0.0, 0.5)], QUANTITY)
    assert slope is not None
    old = [square_hip(i, age_years=60.0).figures for i in range(20)]
    evidence = Evidence(
        "tiny",
        "none",
        (ladder,),
        Compression(make_ladder("compression", "Size", "encoding", cases, "a"), {"a": 1.0, "b": float("nan")}),
        (slope,),
        tuple(repeatability(posed)),
        tuple(posed),
        tuple(summarise_refusals([Outcome("x", "1", MEASURED)])),
        tuple(diagnose([case("all", i, 0.5 + i / 40, 0.7) for i in range(20)], old, POPULATION)),
    )
    write_evidence(tmp_path, evidence)
    document = json.loads((tmp_path / "ladders.json").read_text(encoding="utf-8"))
    assert document["data"].startswith("simulated")
    assert document["ladders"]["mineral"]["rungs"][0]["agreement"]["bias"] == pytest.approx(0.01)
    assert document["compression_ratios"] == {"a": 1.0, "b": None}
    page = (tmp_path / "LADDERS.md").read_text(encoding="utf-8").splitlines()
    assert "not patients" in page[2]
    assert sum(line.startswith("| b | total hip aBMD") and line.endswith("| 1 of 7 |") for line in page) == 2
    assert any(line.startswith("AUC for osteoporosis 0.500") for line in page)
    with (tmp_path / "cases.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["ladder"] == "mineral" for row in rows) == 13
    assert [row["refused"] for row in rows if row["subject"] == "9"] == ["cut_off", "cut_off"]
    for name in ("mineral", "compression", "mineral_slope", "repeatability", "refusals"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(load_bundle(write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")), "cpu", 1)


def test_a_file_is_read_as_the_node_measures_it(tmp_path: Path) -> None:
    """Two ways from the same file through the shipped networks: the ladder's reading, and the node's measurement."""
    path = tmp_path / "pelvis.dcm"
    (subject,) = native_subjects(1, 0, 1)
    dataset = phantom_dx(subject, 1, Exposure(), DEFAULT_PROCESSING, detector_spacing_mm=0.4)
    dataset.save_as(path, enforce_file_format=True)
    predictor = Predictor(load_bundle(), "cpu", 1)
    readings = read_file(predictor, path)
    hips = measure(read_radiograph(path), predictor, lambda *_: None).hips
    assert hips and sorted(readings) == sorted(hip.side.value for hip in hips)
    for hip in hips:
        reading = readings[hip.side.value]
        if isinstance(reading, Reason):
            assert reading is hip.reason
            continue
        for region in hip.regions:
            name = f"{region.region.value}.areal_bmd_g_cm2"
            if name in reading:
                assert region.areal_bmd_g_cm2 is not None and reading[name] == region.areal_bmd_g_cm2.value
    assert any(QUANTITY in reading for reading in readings.values() if not isinstance(reading, Reason))


def test_a_network_that_learned_nothing_gives_a_reason_and_no_figure(predictor: Predictor) -> None:
    crop = np.random.default_rng(0).random((ROWS, COLUMNS), np.float32)
    assert isinstance(read_figures(predictor, FramedHip(crop, np.eye(3))), Reason)


def test_files_that_are_no_radiographs_end_in_a_reason(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "text.dcm"
    path.write_text("no DICOM file")
    (outcome,) = file_outcomes(predictor, [path], "files")
    assert (outcome.group, outcome.outcome) == ("files, not readable as one", "unreadable")
