"""From a modality's C-STORE to report and overlay in a real archive, through every encoding that modalities send."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ComprehensiveSRStorage, SecondaryCaptureImageStorage

from dicomnode.dicom.pixels import read_radiograph
from dicomnode.dicom.reader import Limits
from dicomnode.dicom.uids import Kind
from dicomnode.storage.rows import InstanceState
from tests.integration.conftest import CT_RADIOGRAPH, ENCODINGS, Sent, StraightLine

pytestmark = pytest.mark.e2e

LOSSLESS = ("RG2_UNC", "RG2_J2KR", "RG2_JLSL", "RG2_JPLL", "RG2_RLE")
EVERY = (*ENCODINGS, CT_RADIOGRAPH)
KINDS = {Kind.STRUCTURED_REPORT: ComprehensiveSRStorage, Kind.SECONDARY_CAPTURE: SecondaryCaptureImageStorage}

DCMTK_WITHOUT_UTF_8 = "W: The VR checker does not support this Specific Character Set: ISO_IR 192"
"""Said by DCMTK 3.6.7 of every object in UTF-8, which it reads all the same."""


def figures(sent: Sent) -> dict[str, Any]:
    (result,) = sent.job.results
    return dict(result.figures)


def created(straight_line: StraightLine, sent: Sent) -> dict[str, Path]:
    """Files of the objects that the node made of a radiograph, by kind."""
    return {made.kind: straight_line.node.spool / made.spool_path for made in sent.job.objects}


def texts(report: Dataset) -> Iterator[str]:
    """Every text of a report's content tree."""
    for item in report.get("ContentSequence", ()):
        if "TextValue" in item:
            yield str(item.TextValue)
        yield from texts(item)


def said(report: Dataset) -> str:
    return "\n".join(texts(report))


@pytest.mark.parametrize("name", EVERY)
def test_one_report_and_one_overlay_of_each_radiograph_reach_the_archive(
    name: str, everything: dict[str, Sent], straight_line: StraightLine
) -> None:
    job = everything[name].job
    assert job.instance.state is InstanceState.DISPATCHED
    assert {made.kind: made.sop_class_uid for made in job.objects} == KINDS
    for made in job.objects:
        assert straight_line.archived(made.sop_instance_uid).SOPClassUID == made.sop_class_uid


@pytest.mark.parametrize("name", EVERY)
def test_a_report_holds_figures_or_the_reason_why_there_are_none(
    name: str, everything: dict[str, Sent], straight_line: StraightLine
) -> None:
    sent = everything[name]
    report = dcmread(created(straight_line, sent)[Kind.STRUCTURED_REPORT])
    outcome = figures(sent)
    parts = [outcome, *outcome["hips"], *(region for hip in outcome["hips"] for region in hip["regions"])]
    for part in parts:
        if part["status"] == "not_measurable":
            assert part["reason"] and part["detail"]
            assert part["detail"] in said(report)
    measured = [part for part in parts if part.get("figures")]
    assert (outcome["status"] == "measured") == bool(measured)
    assert ("g/cm2" in str(report)) == bool(measured)


def test_lossless_encodings_give_identical_grey_levels(encodings: dict[str, Sent]) -> None:
    radiographs = [read_radiograph(encodings[name].file, Limits()) for name in LOSSLESS]
    for other in radiographs[1:]:
        np.testing.assert_array_equal(other.image, radiographs[0].image)


def test_near_lossless_encoding_gives_nearly_the_same_grey_levels(encodings: dict[str, Sent]) -> None:
    """At most 4 stored values apart, which is what this near-lossless encoding was made with."""
    exact, near = (read_radiograph(encodings[name].file, Limits()).image for name in ("RG2_UNC", "RG2_JLSN"))
    assert 0 < np.abs(near - exact).max() <= 4


def test_lossless_encodings_give_identical_figures_and_reasons(encodings: dict[str, Sent]) -> None:
    outcomes = [figures(encodings[name]) for name in LOSSLESS]
    for outcome in outcomes:
        del outcome["source_sop_instance_uid"]
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_a_picture_of_unknown_scale_is_not_measured(encodings: dict[str, Sent]) -> None:
    """The chest radiograph states a pixel spacing of 0.000 mm."""
    assert figures(encodings["RG1_J2KI"])["reason"] == "unknown_scale"


def test_the_native_hip_of_the_ct_gets_figures(ct_radiograph: Sent) -> None:
    right = _hip(ct_radiograph, "R")
    measured = {region["region"]: region["figures"] for region in right["regions"] if region["status"] == "measured"}
    assert "femoral_neck" in measured, right
    assert 0.2 < measured["femoral_neck"]["areal_bmd"]["value"] < 1.6


def test_the_hip_with_metal_is_refused_as_an_implant(ct_radiograph: Sent) -> None:
    left = _hip(ct_radiograph, "L")
    assert (left["status"], left["reason"]) == ("not_measurable", "implant")
    assert not any(region["figures"] for region in left["regions"])


def _hip(sent: Sent, side: str) -> dict[str, Any]:
    hips = {hip["side"]: hip for hip in figures(sent)["hips"]}
    assert side in hips, f"no hip was found on side {side}: {figures(sent)}"
    return dict(hips[side])


@pytest.mark.parametrize("name", EVERY)
def test_dicom3tools_finds_no_error_in_what_the_node_makes(
    name: str, everything: dict[str, Sent], straight_line: StraightLine, dciodvfy: str
) -> None:
    for file in created(straight_line, everything[name]).values():
        checked = subprocess.run([dciodvfy, "-new", file], capture_output=True, text=True, timeout=120)
        lines = (checked.stdout + checked.stderr).splitlines()
        assert lines, "dciodvfy names at least the IOD that it checks"
        assert [line for line in lines if line.startswith("Error")] == []


@pytest.mark.parametrize("name", EVERY)
def test_dcmtk_reads_each_report(
    name: str, everything: dict[str, Sent], straight_line: StraightLine, dcmtk: Path
) -> None:
    file = created(straight_line, everything[name])[Kind.STRUCTURED_REPORT]
    dumped = subprocess.run([dcmtk / "dsrdump", file], capture_output=True, text=True, timeout=120)
    assert dumped.returncode == 0, dumped.stderr
    assert "Comprehensive SR Document" in dumped.stdout
    assert set(dumped.stderr.splitlines()) <= {DCMTK_WITHOUT_UTF_8}
