"""The overlay as a DICOM object."""

import subprocess
from dataclasses import replace
from datetime import datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    SecondaryCaptureImageStorage,
)

from dicomnode.dicom.equipment import Equipment
from dicomnode.dicom.secondary_capture import TYPE_2, build_secondary_capture, identification_line
from dicomnode.domain.measurement import HipMeasurement, Measurement, Reason, Status
from dicomnode.domain.reporting import ReportSettings
from tests.synthetic_hips import (
    CASES,
    CONFIGURATION_DIGEST,
    MODEL,
    both_hips,
    neck_only,
    nothing_measurable,
    source_dataset,
)

NOW = datetime(2025, 3, 14, 10, 20, 30, 999_999)
PICTURE = np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)
LATERALITY_UNKNOWN = (
    "Warning - </Laterality(0020,0060)> - is only permitted to be empty when actually unknown; should be absent (not empty) "
    "if an unpaired body part, and have a value if a paired body part"
)


def capture(
    measurement: Measurement,
    source: Dataset | None = None,
    settings: ReportSettings | None = None,
    picture: NDArray[np.uint8] = PICTURE,
    equipment: Equipment | None = None,
) -> Dataset:
    return build_secondary_capture(
        source or source_dataset(),
        picture,
        measurement,
        equipment=equipment or Equipment(serial_number="7", station_name="XRAY1", institution_name="Clinic"),
        settings=settings or ReportSettings(),
        configuration_digest=CONFIGURATION_DIGEST,
        now=NOW,
    )


def encoded(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_the_picture_comes_back_as_it_was() -> None:
    read = dcmread(BytesIO(encoded(capture(both_hips()))))
    assert read.SOPClassUID == SecondaryCaptureImageStorage
    assert np.array_equal(read.pixel_array, PICTURE)


def test_a_picture_of_odd_length_is_padded() -> None:
    odd = np.ones((3, 3, 3), dtype=np.uint8)
    read = dcmread(BytesIO(encoded(capture(both_hips(), picture=odd))))
    assert len(read.PixelData) == 28
    assert np.array_equal(read.pixel_array, odd)


@pytest.mark.parametrize("picture", [PICTURE[..., 0], PICTURE[..., :2], PICTURE.astype(np.uint16)])
def test_what_is_no_rgb_picture_is_refused(picture: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="uint8, found"):
        capture(both_hips(), picture=picture)


def test_patient_and_study_are_the_sources() -> None:
    source, result = source_dataset(), capture(both_hips())
    for keyword in (*TYPE_2, "StudyInstanceUID", "StudyDescription", "PatientAge"):
        assert result[keyword].value == source[keyword].value
    assert result.SpecificCharacterSet == "ISO_IR 192"
    assert "山田" in str(dcmread(BytesIO(encoded(result))).PatientName)


def test_the_source_image_is_referenced_with_its_purpose() -> None:
    [reference] = capture(both_hips()).SourceImageSequence
    assert reference.ReferencedSOPInstanceUID == source_dataset().SOPInstanceUID
    assert reference.ReferencedSOPClassUID == source_dataset().SOPClassUID
    assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"


def test_what_is_derived_says_so() -> None:
    result = capture(both_hips())
    assert list(result.ImageType) == ["DERIVED", "SECONDARY"]
    assert "learned model" in result.DerivationDescription
    assert result.ConversionType == "WSD"
    assert result.SeriesDescription == "Hip BMD from radiograph: overlay"


def test_a_single_hip_has_its_side_and_two_are_a_pelvis() -> None:
    one, two, none = capture(neck_only()), capture(both_hips()), capture(nothing_measurable())
    assert (one.BodyPartExamined, one.Laterality) == ("HIP", "R")
    assert two.BodyPartExamined == "PELVIS"
    assert "Laterality" not in two
    assert "BodyPartExamined" not in none
    assert not none.Laterality


def test_a_side_that_header_and_picture_dispute_is_not_claimed() -> None:
    [hip] = neck_only().hips
    disputed = HipMeasurement(hip.side, Status.NOT_MEASURABLE, Reason.LATERALITY, "header and picture differ")
    result = capture(replace(neck_only(), status=Status.NOT_MEASURABLE, hips=(disputed,)))
    assert result.BodyPartExamined == "HIP"
    assert "Laterality" in result and not result.Laterality


def test_equipment_is_stated_and_what_is_empty_left_out() -> None:
    result, bare = capture(both_hips()), capture(both_hips(), equipment=Equipment())
    assert (result.DeviceSerialNumber, result.StationName, result.InstitutionName) == ("7", "XRAY1", "Clinic")
    assert result.SecondaryCaptureDeviceManufacturer == result.Manufacturer == "dicomnode"
    assert result.SecondaryCaptureDeviceManufacturerModelName == result.ManufacturerModelName == "dicomnode-bmd"
    assert result.SecondaryCaptureDeviceSoftwareVersions == result.SoftwareVersions == Equipment().software_version
    for keyword in ("DeviceSerialNumber", "StationName", "InstitutionName", "InstitutionalDepartmentName"):
        assert keyword not in bare


def test_every_time_is_the_one_that_was_given() -> None:
    result = capture(both_hips())
    for keyword in ("SeriesDate", "ContentDate", "DateOfSecondaryCapture", "InstanceCreationDate"):
        assert result[keyword].value == "20250314"
    for keyword in ("SeriesTime", "ContentTime", "TimeOfSecondaryCapture", "InstanceCreationTime"):
        assert result[keyword].value == "102030"


@pytest.mark.parametrize(("stated", "told"), [("YES", "YES"), ("NO", "NO"), ("", None), (None, None)])
def test_burned_in_annotation_is_claimed_only_where_it_is_known(stated: str | None, told: str | None) -> None:
    source = source_dataset()
    del source.BurnedInAnnotation
    if stated is not None:
        source.BurnedInAnnotation = stated
    assert capture(both_hips(), source=source).get("BurnedInAnnotation") == told
    burnt_in = ReportSettings(burn_in_identification=True)
    assert capture(both_hips(), source=source, settings=burnt_in).BurnedInAnnotation == "YES"


@pytest.mark.parametrize(
    ("transfer_syntax", "stated", "told", "method"),
    [
        (JPEGBaseline8Bit, None, "01", "ISO_10918_1"),
        (JPEGExtended12Bit, "00", "01", "ISO_10918_1"),
        (JPEGLSNearLossless, None, "01", "ISO_14495_1"),
        (JPEGLSNearLossless, "00", "00", None),
        (JPEG2000, None, "01", "ISO_15444_1"),
        (JPEG2000, "00", "00", None),
        (JPEG2000Lossless, None, None, None),
        (JPEG2000Lossless, "01", "01", None),
        (ExplicitVRLittleEndian, None, None, None),
        (ExplicitVRLittleEndian, "00", "00", None),
    ],
)
def test_lossy_compression_follows_header_and_transfer_syntax(
    transfer_syntax: UID, stated: str | None, told: str | None, method: str | None
) -> None:
    source = source_dataset()
    source.file_meta = FileMetaDataset()
    source.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    if stated is not None:
        source.LossyImageCompression = stated
    result = capture(both_hips(), source=source)
    assert (result.get("LossyImageCompression"), result.get("LossyImageCompressionMethod")) == (told, method)


def test_once_lossy_is_always_lossy() -> None:
    source = source_dataset()
    source.LossyImageCompression = "01"
    source.LossyImageCompressionRatio = "12.5"
    source.LossyImageCompressionMethod = "ISO_10918_1"
    result = capture(both_hips(), source=source)
    assert (result.LossyImageCompression, result.LossyImageCompressionRatio) == ("01", 12.5)
    assert result.LossyImageCompressionMethod == "ISO_10918_1"
    del source.LossyImageCompressionRatio
    assert "LossyImageCompressionRatio" not in capture(both_hips(), source=source)


def test_the_same_measurement_is_the_same_object_and_another_model_another() -> None:
    first = capture(both_hips())
    assert encoded(first) == encoded(capture(both_hips()))
    other = capture(replace(both_hips(), model=replace(MODEL, digest="b" * 64)))
    assert first.SOPInstanceUID != other.SOPInstanceUID
    assert first.SeriesInstanceUID != other.SeriesInstanceUID


def test_identification_is_one_line_of_what_there_is() -> None:
    assert identification_line(source_dataset()) == "Yamada Tarou   P-0042   19540612   20250314"
    assert identification_line(Dataset()) == ""


@pytest.mark.parametrize("case", CASES)
def test_dciodvfy_finds_no_error(case: str, dciodvfy: str, tmp_path: Path) -> None:
    path = tmp_path / "overlay.dcm"
    path.write_bytes(encoded(capture(CASES[case]())))
    checked = subprocess.run([dciodvfy, "-new", str(path)], capture_output=True, text=True, check=False)
    lines = (checked.stdout + checked.stderr).splitlines()
    # Without a hip the side is unknown indeed: a warning that tells the truth.
    expected = [LATERALITY_UNKNOWN, "SCImage"] if case == "nothing_measurable" else ["SCImage"]
    assert sorted(line for line in lines if line) == sorted(expected)


def test_dciodvfy_accepts_an_overlay_of_a_radiograph_that_says_nothing_of_itself(dciodvfy: str, tmp_path: Path) -> None:
    silent, lossy = source_dataset(), source_dataset()
    del silent.BurnedInAnnotation
    lossy.file_meta = FileMetaDataset()
    lossy.file_meta.TransferSyntaxUID = JPEGLSNearLossless
    for source in (silent, lossy):
        path = tmp_path / "overlay.dcm"
        path.write_bytes(encoded(capture(both_hips(), source=source)))
        checked = subprocess.run([dciodvfy, "-new", str(path)], capture_output=True, text=True, check=False)
        assert (checked.stdout + checked.stderr).split() == ["SCImage"]
