"""The Structured Report: what is in it, that it is valid, and that it is the same every time."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr import _concepts_dict
from pydicom.sr.coding import Code
from pydicom.uid import ComprehensiveSRStorage

from dicomnode.clinical.scores import Classification
from dicomnode.dicom import codes
from dicomnode.dicom.equipment import Equipment
from dicomnode.dicom.structured_report import MOST_POLYGON_POINTS, build_structured_report, closed_polygon
from dicomnode.domain.measurement import Estimate, Measurement, Reason, Region, RegionMeasurement, Status, TrainingData
from dicomnode.domain.radiograph import Side
from dicomnode.domain.reporting import ReportSettings
from dicomnode.domain.wording import LANGUAGES, wording
from tests.synthetic_hips import (
    CASES,
    COLUMNS,
    CONFIGURATION_DIGEST,
    MODEL,
    ROWS,
    both_hips,
    measured_hip,
    nothing_measurable,
    source_dataset,
)

NOW = datetime(2025, 3, 14, 10, 20, 30, 999_999)
EQUIPMENT = Equipment(
    serial_number="7", station_name="XRAY1", institution_name="Clinic", institutional_department_name="Radiology"
)


def report(
    measurement: Measurement,
    source: Dataset | None = None,
    settings: ReportSettings | None = None,
    equipment: Equipment = EQUIPMENT,
) -> Dataset:
    return build_structured_report(
        source or source_dataset(),
        measurement,
        equipment=equipment,
        settings=settings or ReportSettings(author_organisation="Clinic Trust"),
        configuration_digest=CONFIGURATION_DIGEST,
        now=NOW,
    )


@cache
def usual_report(case: str = "both_hips", language: str = "en") -> Dataset:
    """The report of a case, built once; tests only read it."""
    return report(CASES[case](), settings=ReportSettings(language=language, author_organisation="Clinic Trust"))


def encoded(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def items(dataset: Dataset) -> Iterator[Dataset]:
    for item in dataset.get("ContentSequence", []):
        yield item
        yield from items(item)


def named(dataset: Dataset, name: Code) -> list[Dataset]:
    return [
        item
        for item in items(dataset)
        if (concept := item.get("ConceptNameCodeSequence"))
        and (concept[0].CodeValue, concept[0].CodingSchemeDesignator) == (name.value, name.scheme_designator)
    ]


def groups(dataset: Dataset) -> dict[str, Dataset]:
    found = named(dataset, Code("125007", "DCM", ""))
    return {named(group, Code("112039", "DCM", ""))[0].TextValue: group for group in found}


def number(group: Dataset, name: Code) -> tuple[float, str]:
    value = named(group, name)[0].MeasuredValueSequence[0]
    return float(value.NumericValue), value.MeasurementUnitsCodeSequence[0].CodeValue


def coded(group: Dataset, name: Code) -> list[str]:
    return [item.ConceptCodeSequence[0].CodeValue for item in named(group, name)]


def texts(group: Dataset, name: Code) -> list[str]:
    return [item.TextValue for item in named(group, name)]


def test_a_report_is_a_comprehensive_sr_of_the_sources_patient_and_study() -> None:
    result = usual_report()
    source = source_dataset()
    assert result.SOPClassUID == ComprehensiveSRStorage
    assert result.Modality == "SR"
    assert result.SpecificCharacterSet == "ISO_IR 192"
    for keyword in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "AccessionNumber", "StudyID",
        "StudyDate", "StudyTime",
    ):  # fmt: skip
        assert result[keyword].value == source[keyword].value
    assert result.SeriesInstanceUID != source.SeriesInstanceUID
    evidence = result.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert evidence.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert evidence.ReferencedSOPSequence[0].ReferencedSOPClassUID == source.SOPClassUID
    assert (result.CompletionFlag, result.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert "PredecessorDocumentsSequence" not in result


def test_equipment_and_author_are_stated() -> None:
    result = usual_report()
    assert (result.Manufacturer, result.ManufacturerModelName) == ("dicomnode", "dicomnode-bmd")
    assert (result.DeviceSerialNumber, result.StationName) == ("7", "XRAY1")
    assert (result.InstitutionName, result.InstitutionalDepartmentName) == ("Clinic", "Radiology")
    assert result.SoftwareVersions == EQUIPMENT.software_version
    author = result.AuthorObserverSequence[0]
    assert (author.ObserverType, author.DeviceUID, author.InstitutionName) == ("DEV", EQUIPMENT.uid, "Clinic Trust")
    assert result.file_meta.ImplementationVersionName == f"DICOMNODE_{EQUIPMENT.software_version}"


def test_empty_equipment_attributes_are_left_out() -> None:
    result = report(both_hips(), equipment=Equipment())
    for keyword in ("DeviceSerialNumber", "StationName", "InstitutionName", "InstitutionalDepartmentName"):
        assert keyword not in result


def test_every_time_is_the_one_that_was_given() -> None:
    result = usual_report()
    for keyword in ("ContentDate", "SeriesDate", "InstanceCreationDate"):
        assert str(result[keyword].value) == "20250314"
    for keyword in ("ContentTime", "SeriesTime", "InstanceCreationTime"):
        assert str(result[keyword].value) == "102030"


@pytest.mark.parametrize("case", CASES)
def test_the_same_measurement_gives_the_same_bytes(case: str) -> None:
    assert encoded(usual_report(case)) == encoded(report(CASES[case]()))


def test_another_model_or_configuration_gives_another_object() -> None:
    first = usual_report()
    retrained = report(replace(both_hips(), model=replace(MODEL, digest="b" * 64)))
    assert first.SOPInstanceUID != retrained.SOPInstanceUID
    assert first.SeriesInstanceUID != retrained.SeriesInstanceUID


def test_each_region_has_its_figures_with_units_and_interval() -> None:
    measurement = both_hips()
    found = groups(usual_report())
    assert len(found) == 10
    for hip in measurement.hips:
        for region in hip.regions:
            group = found[f"{wording('en').side[hip.side]}, {wording('en').region[region.region]}"]
            assert region.areal_bmd_g_cm2 is not None
            assert region.areal_bmd_g_cm2.low is not None
            assert region.bmc_g is not None
            assert region.area_cm2 is not None
            assert region.volumetric_bmd_mg_cm3 is not None
            assert number(group, codes.AREAL_BMD) == (pytest.approx(region.areal_bmd_g_cm2.value, abs=5e-5), "g/cm2")
            assert number(group, codes.BONE_MINERAL_CONTENT) == (pytest.approx(region.bmc_g.value, abs=5e-4), "g")
            assert number(group, codes.PROJECTED_AREA) == (pytest.approx(region.area_cm2.value, abs=5e-4), "cm2")
            assert number(group, codes.VOLUMETRIC_BMD) == (
                pytest.approx(region.volumetric_bmd_mg_cm3.value, abs=5e-3),
                "mg/cm3",
            )
            density = named(group, codes.AREAL_BMD)[0]
            assert number(density, codes.INTERVAL_LOW) == (pytest.approx(region.areal_bmd_g_cm2.low, abs=5e-5), "g/cm2")
            value, below = number(group, codes.AREAL_BMD)[0], number(density, codes.LOWER_UNCERTAINTY)[0]
            assert value - below == pytest.approx(number(density, codes.INTERVAL_LOW)[0])
            value, above = number(group, codes.AREAL_BMD)[0], number(density, codes.UPPER_UNCERTAINTY)[0]
            assert value + above == pytest.approx(number(density, codes.INTERVAL_HIGH)[0])


def test_an_uncalibrated_figure_has_no_interval() -> None:
    hip = measured_hip(Side.RIGHT)
    bare = replace(hip.regions[0], areal_bmd_g_cm2=Estimate(0.8))
    measurement = replace(both_hips(), hips=(replace(hip, regions=(bare,)),))
    density = named(report(measurement), codes.AREAL_BMD)[0]
    assert named(density, codes.INTERVAL_LOW) == []
    assert named(density, codes.UPPER_UNCERTAINTY) == []


def test_scores_name_their_reference_population() -> None:
    group = groups(usual_report())["Right hip, Total hip"]
    for name, unit in ((codes.T_SCORE, "1"), (codes.Z_SCORE, "1"), (codes.PERCENT_YAM, "%")):
        assert number(group, name)[1] == unit
        assert texts(named(group, name)[0], codes.POPULATION_DESCRIPTION) == ["invented_women"]
    assert coded(group, codes.DENSITY_CLASS)
    assert texts(group, codes.CRITERIA) == ["WHO 1994 / ISCD 2023"]
    assert texts(group, codes.ASSESSMENT_NOTE) == ["Not on the scale of a densitometer."]


def test_scores_without_a_class_are_reported_without_criteria() -> None:
    hip = measured_hip(Side.RIGHT)
    assert hip.regions[0].assessment is not None
    unclassified = replace(hip.regions[0], assessment=replace(hip.regions[0].assessment, classification=None, notes=()))
    group = groups(report(replace(both_hips(), hips=(replace(hip, regions=(unclassified,)),))))["Right hip, Total hip"]
    assert named(group, codes.T_SCORE)
    for name in (codes.DENSITY_CLASS, codes.CRITERIA, codes.ASSESSMENT_NOTE):
        assert named(group, name) == []


def test_regions_without_scores_have_none() -> None:
    group = groups(usual_report())["Left hip, Trochanter"]
    for name in (codes.T_SCORE, codes.Z_SCORE, codes.PERCENT_YAM, codes.DENSITY_CLASS, codes.CRITERIA):
        assert named(group, name) == []


def test_finding_sites_carry_side_and_region() -> None:
    group = groups(usual_report())["Left hip, Femoral neck"]
    site = named(group, Code("363698007", "SCT", ""))[0]
    assert site.ConceptCodeSequence[0].CodeValue == codes.NECK_OF_FEMUR.value
    assert coded(site, Code("272741003", "SCT", "")) == [codes.LATERALITY[Side.LEFT].value]
    assert coded(site, Code("106233006", "SCT", "")) == [codes.REGION[Region.FEMORAL_NECK].value]


def test_every_group_identifies_its_algorithm() -> None:
    for group in groups(usual_report()).values():
        assert texts(group, Code("111001", "DCM", "")) == [MODEL.name]
        assert texts(group, Code("111003", "DCM", "")) == [MODEL.version]
        assert texts(group, Code("111002", "DCM", "")) == [
            f"model sha256 {MODEL.digest}",
            f"configuration sha256 {CONFIGURATION_DIGEST}",
        ]


def test_contours_are_closed_and_lie_on_the_source_image() -> None:
    regions = named(usual_report(), Code("111030", "DCM", ""))
    assert len(regions) == 8
    for region in regions:
        points = np.reshape(region.GraphicData, (-1, 2))
        assert region.GraphicType == "POLYLINE"
        assert (points[0] == points[-1]).all()
        assert (points >= 0).all()
        assert (points <= (COLUMNS, ROWS)).all()
        referenced = region.ContentSequence[0].ReferencedSOPSequence[0]
        assert referenced.ReferencedSOPInstanceUID == source_dataset().SOPInstanceUID


def test_a_polygon_that_leaves_the_image_is_cut_at_its_border() -> None:
    square = np.array([[-5, -5], [20, -5], [20, 12], [-5, 12]], dtype=np.float32)
    polygon = closed_polygon(square, rows=10, columns=15)
    assert polygon is not None
    assert polygon.tolist() == [[0, 0], [15, 0], [15, 10], [0, 10], [0, 0]]


@pytest.mark.parametrize(
    "points", [[], [[1, 1]], [[1, 1], [2, 2]], [[1, 1], [1, 1], [1, 1]], [[-9, 0], [-5, 3], [-2, 9]]]
)
def test_a_contour_that_encloses_nothing_is_no_region(points: list[list[float]]) -> None:
    assert closed_polygon(np.array(points, dtype=np.float32).reshape(-1, 2), rows=10, columns=10) is None


def test_a_very_long_contour_still_fits_its_element() -> None:
    angle = np.linspace(0, 2 * np.pi, 50_001)
    circle = np.column_stack((500 + 400 * np.cos(angle), 500 + 400 * np.sin(angle))).astype(np.float32)
    polygon = closed_polygon(circle, rows=1000, columns=1000)
    assert polygon is not None
    assert len(polygon) <= MOST_POLYGON_POINTS + 1


def test_a_refused_hip_states_its_reason_in_code_and_in_words() -> None:
    found = groups(usual_report("implant_on_the_left"))
    left = found["Left hip"]
    assert coded(left, codes.MEASURABILITY) == [codes.NOT_MEASURABLE.value]
    assert coded(left, codes.NOT_MEASURABLE_REASON) == [codes.REASON[Reason.IMPLANT].value]
    [comment] = texts(left, codes.COMMENT)
    assert comment.startswith(wording("en").reason_sentence[Reason.IMPLANT])
    assert "21.4" in comment
    assert not [title for title in found if title.startswith("Left hip,")]
    assert coded(found["Right hip"], codes.MEASURABILITY) == [codes.MEASURED.value]


def test_a_region_without_figures_says_why_and_its_neighbour_keeps_its_own() -> None:
    found = groups(usual_report("neck_only"))
    total = found["Right hip, Total hip"]
    assert coded(total, codes.NOT_MEASURABLE_REASON) == [codes.REASON[Reason.CUT_OFF].value]
    assert named(total, codes.AREAL_BMD) == []
    assert named(found["Right hip, Femoral neck"], codes.AREAL_BMD)


def test_an_image_without_a_hip_is_reported_too() -> None:
    result = usual_report("nothing_measurable")
    [group] = groups(result).values()
    assert coded(group, codes.NOT_MEASURABLE_REASON) == [codes.REASON[Reason.NO_HIP].value]
    evaluations = named(result, codes.QUALITATIVE_EVALUATIONS)[0]
    assert coded(evaluations, codes.MEASURABILITY) == [codes.NOT_MEASURABLE.value]
    assert "Pixel spacing taken from Imager Pixel Spacing." in texts(evaluations, codes.COMMENT)


def test_limitation_and_training_on_simulation_stand_in_every_report() -> None:
    for case in CASES:
        evaluations = named(usual_report(case), codes.QUALITATIVE_EVALUATIONS)[0]
        assert texts(evaluations, codes.LIMITATION) == [wording("en").limitation]
        assert texts(evaluations, codes.TRAINING_DATA) == [wording("en").trained_on[TrainingData.SIMULATED]]


def test_a_model_trained_on_patients_is_not_called_simulated_and_a_site_words_its_own_limitation() -> None:
    partly = report(replace(both_hips(), model=replace(MODEL, trained_on=TrainingData.SIMULATED_AND_REAL)))
    assert "of one hospital" in texts(partly, codes.TRAINING_DATA)[0]
    measurement = replace(both_hips(), model=replace(MODEL, trained_on=TrainingData.REAL))
    result = report(measurement, settings=ReportSettings(limitation="Not for diagnosis here."))
    assert named(result, codes.TRAINING_DATA) == []
    assert texts(result, codes.LIMITATION) == ["Not for diagnosis here."]


def test_magnification_and_its_origin_are_reported() -> None:
    group = groups(usual_report())["Right hip"]
    assert number(group, codes.MAGNIFICATION) == (1.15, "1")
    assert texts(group, codes.MAGNIFICATION_SOURCE) == ["assumed"]
    assert "Magnification 1.15 assumed: the header states no distances." in texts(group, codes.COMMENT)


def test_a_japanese_report_keeps_its_characters() -> None:
    result = dcmread(BytesIO(encoded(usual_report(language="ja"))))
    assert "山田" in str(result.PatientName)
    assert "右股関節, 大腿骨頸部" in groups(result)
    assert texts(result, codes.LIMITATION) == [wording("ja").limitation]
    assert coded(result, Code("121049", "DCM", "")) == ["ja"]


def test_the_image_library_describes_what_the_source_states() -> None:
    library = named(usual_report(), codes.IMAGE_LIBRARY)[0]
    assert coded(library, codes.MODALITY) == ["DX"]
    assert number(library, codes.PIXEL_DATA_ROWS) == (ROWS, "{pixels}")
    assert number(library, codes.HORIZONTAL_PIXEL_SPACING) == (0.25, "mm")
    assert texts(library, codes.PATIENT_ORIENTATION_ROW) == ["L"]


def test_a_source_that_states_little_is_reported_all_the_same() -> None:
    source = source_dataset()
    for keyword in ("PatientOrientation", "ImagerPixelSpacing", "Rows", "Columns", "BurnedInAnnotation"):
        delattr(source, keyword)
    source.Modality = "OT"
    library = named(report(nothing_measurable(), source), codes.IMAGE_LIBRARY)[0]
    for name in (codes.MODALITY, codes.PIXEL_DATA_ROWS, codes.HORIZONTAL_PIXEL_SPACING, codes.PATIENT_ORIENTATION_ROW):
        assert named(library, name) == []


def test_an_object_of_a_private_class_is_reported_under_its_own_class() -> None:
    source = source_dataset()
    source.SOPClassUID = "1.2.826.0.1.3680043.8.498.99"
    result = report(nothing_measurable(), source)
    referenced = (
        result.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    )
    assert referenced.ReferencedSOPClassUID == source.SOPClassUID
    assert result.PatientName == source.PatientName
    assert source.SOPClassUID == "1.2.826.0.1.3680043.8.498.99"


def test_a_zero_pixel_spacing_is_not_reported_as_one() -> None:
    source = source_dataset()
    source.ImagerPixelSpacing = [0, 0]
    assert named(report(nothing_measurable(), source), codes.HORIZONTAL_PIXEL_SPACING) == []


def _codes() -> list[Code]:
    found = []
    for name, value in vars(codes).items():
        if name.startswith("_"):
            continue
        found += [value] if isinstance(value, Code) else list(value.values()) if isinstance(value, dict) else []
    return found


def test_standard_codes_mean_what_the_standard_says() -> None:
    outside_pydicom = {
        codes.NECK_OF_FEMUR.value,
        codes.GREATER_TROCHANTER.value,
        "24762-7",
        "C0034375",
        "g/cm2",
        "g",
        "{pixels}",
        "en",
        "ja",
    }
    for code in _codes():
        entries: Any = _concepts_dict.concepts.get(code.scheme_designator, {}).values()
        meanings = {meaning for entry in entries for value, (meaning, _) in entry.items() if value == code.value}
        if code.scheme_designator == codes.PRIVATE_SCHEME or code.value in outside_pydicom:
            continue
        known = {meaning.lower().removesuffix(" (attribute)") for meaning in meanings}
        assert code.meaning.lower() in known, f"{code} is not among {meanings}"


def test_private_codes_are_unique_and_fit_their_elements() -> None:
    private = [code for code in _codes() if code.scheme_designator == codes.PRIVATE_SCHEME]
    assert len({code.value for code in private}) == len(set(private))
    assert all(len(code.value) <= 16 and len(code.meaning) <= 64 for code in private)
    identification = usual_report().CodingSchemeIdentificationSequence[0]
    assert identification.CodingSchemeDesignator == codes.PRIVATE_SCHEME


@pytest.mark.parametrize("language", LANGUAGES)
def test_codes_and_words_are_complete(language: str) -> None:
    words = wording(language)
    assert set(words.reason) == set(words.reason_sentence) == set(codes.REASON) == set(Reason)
    assert set(words.region) == set(words.region_short) == set(codes.REGION) == set(codes.FINDING_SITE) == set(Region)
    assert set(words.classification) == set(codes.DENSITY_CLASSES) == set(Classification)
    assert set(words.side) == set(codes.LATERALITY) == set(Side)
    assert set(codes.LANGUAGES) == set(LANGUAGES)


def test_a_language_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'fr'.*en, ja"):
        ReportSettings(language="fr")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("case", CASES)
def test_dciodvfy_finds_no_error(case: str, language: str, dciodvfy: str, tmp_path: Path) -> None:
    path = tmp_path / "report.dcm"
    path.write_bytes(encoded(usual_report(case, language)))
    checked = subprocess.run([dciodvfy, "-new", str(path)], capture_output=True, text=True, check=False)
    lines = (checked.stdout + checked.stderr).splitlines()
    # A private designator is never among the defined terms; PS3.16 section 8 allows it, the data set describes it.
    unexplained = [line for line in lines if not line.endswith("Unrecognized defined term = <99BMDXR>")]
    assert unexplained == ["ComprehensiveSR"]


@pytest.mark.parametrize("case", CASES)
def test_dsrdump_reads_every_report(case: str, dcmtk: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.dcm"
    path.write_bytes(encoded(usual_report(case)))
    read = subprocess.run([dcmtk / "dsrdump", str(path)], capture_output=True, check=False)
    assert read.returncode == 0, read.stderr.decode(errors="replace")
    assert b"Imaging Measurement Report" in read.stdout
    assert b"E:" not in read.stderr


def test_a_region_can_be_refused_with_its_contour_kept() -> None:
    hip = measured_hip(Side.LEFT)
    refused = RegionMeasurement(
        Region.TROCHANTER, Status.NOT_MEASURABLE, Reason.IMPLAUSIBLE, contour_px=hip.regions[2].contour_px
    )
    result = report(replace(both_hips(), hips=(replace(hip, regions=(refused,)),)))
    group = groups(result)["Left hip, Trochanter"]
    assert named(group, Code("111030", "DCM", ""))
    assert named(group, codes.AREAL_BMD) == []
