"""The last look before sending, on results as the node makes them."""

from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomnode.dicom.equipment import Equipment
from dicomnode.dicom.normalise import normalise_source
from dicomnode.dicom.reader import read_encoded
from dicomnode.dicom.secondary_capture import build_secondary_capture
from dicomnode.dicom.structured_report import build_structured_report
from dicomnode.domain.measurement import HipMeasurement, Measurement, Reason, Status
from dicomnode.domain.radiograph import Side
from dicomnode.domain.reporting import ReportSettings
from dicomnode.errors import PermanentFailure
from dicomnode.services.recheck import require_same_examination
from tests.synthetic_hips import CONFIGURATION_DIGEST, MODEL, measured_hip, source_dataset
from tests.written_objects import radiograph_dataset, write


def results(source: Dataset, measurement: Measurement, undeclared: str = "ISO_IR 100") -> tuple[Dataset, Dataset]:
    """The report and the overlay of a source."""
    now = datetime(2025, 3, 14, 10, 20, 30, tzinfo=UTC)
    clean, settings = normalise_source(source, undeclared), ReportSettings()
    picture = np.zeros((4, 4, 3), np.uint8)
    return (
        build_structured_report(
            clean,
            measurement,
            equipment=Equipment(),
            settings=settings,
            configuration_digest=CONFIGURATION_DIGEST,
            now=now,
        ),
        build_secondary_capture(
            clean,
            picture,
            measurement,
            equipment=Equipment(),
            settings=settings,
            configuration_digest=CONFIGURATION_DIGEST,
            now=now,
        ),
    )


def of(source: Dataset, *hips: HipMeasurement) -> Measurement:
    measured = any(hip.status is Status.MEASURED for hip in hips)
    return Measurement(
        str(source.SOPInstanceUID),
        Status.MEASURED if measured else Status.NOT_MEASURABLE,
        hips,
        MODEL,
        None if measured else hips[0].reason,
        "" if measured else hips[0].detail,
    )


def disputed(side: Side) -> HipMeasurement:
    return HipMeasurement(side, Status.NOT_MEASURABLE, Reason.LATERALITY, "the header states the other side")


def test_report_and_overlay_of_a_disputed_side_both_go_out() -> None:
    source = source_dataset()
    source.ImageLaterality = "L"
    for made in results(source, of(source, disputed(Side.RIGHT))):
        require_same_examination(source, made)


def test_figures_of_the_stated_side_go_out_beside_a_disputed_one() -> None:
    source = source_dataset()
    source.ImageLaterality = "L"
    for made in results(source, of(source, disputed(Side.RIGHT), measured_hip(Side.LEFT))):
        require_same_examination(source, made)


def test_figures_of_another_side_than_the_stated_one_stay() -> None:
    source = source_dataset()
    source.ImageLaterality = "L"
    for made in results(source, of(source, measured_hip(Side.RIGHT))):
        with pytest.raises(PermanentFailure, match="side differs"):
            require_same_examination(source, made)


def undeclared(path: Path, patient_id: bytes) -> Dataset:
    """The header of a stored radiograph with an ID in bytes of an undeclared character set."""
    write(path, radiograph_dataset(PatientID="?" * len(patient_id), PatientName="A^B"))
    path.write_bytes(path.read_bytes().replace(b"?" * len(patient_id), patient_id))
    return read_encoded(path).dataset


def sent(made: Dataset) -> Dataset:
    """An object as it is read from the spool before it is sent."""
    buffer = BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return dcmread(BytesIO(buffer.getvalue()))


@pytest.mark.parametrize(
    ("patient_id", "habit"),
    [
        ("ﾔﾏﾀﾞ-7".encode("shift_jis"), "ISO_IR 13"),
        ("表-12345".encode("shift_jis"), "ISO_IR 13"),  # its second byte is a backslash
        ("患者-123".encode(), "ISO_IR 100"),
    ],
)
def test_an_id_of_an_undeclared_character_set_is_the_same_id_in_the_result(
    tmp_path: Path, patient_id: bytes, habit: str
) -> None:
    source = undeclared(tmp_path / "source.dcm", patient_id)
    for made in results(source, of(source, disputed(Side.RIGHT)), habit):
        require_same_examination(source, sent(made), habit)


def test_another_id_of_an_undeclared_character_set_stays(tmp_path: Path) -> None:
    source = undeclared(tmp_path / "source.dcm", "ﾔﾏﾀﾞ-7".encode("shift_jis"))
    other = undeclared(tmp_path / "other.dcm", "ﾔﾏﾀﾞ-8".encode("shift_jis"))
    for made in results(other, of(other, disputed(Side.RIGHT)), "ISO_IR 13"):
        with pytest.raises(PermanentFailure, match="Patient ID"):
            require_same_examination(source, sent(made), "ISO_IR 13")
