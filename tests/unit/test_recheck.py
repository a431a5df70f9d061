"""The last look before sending, on results as the node makes them."""

from datetime import UTC, datetime

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicomnode.dicom.equipment import Equipment
from dicomnode.dicom.normalise import normalise_source
from dicomnode.dicom.secondary_capture import build_secondary_capture
from dicomnode.dicom.structured_report import build_structured_report
from dicomnode.domain.measurement import HipMeasurement, Measurement, Reason, Status
from dicomnode.domain.radiograph import Side
from dicomnode.domain.reporting import ReportSettings
from dicomnode.errors import PermanentFailure
from dicomnode.services.recheck import require_same_examination
from tests.synthetic_hips import CONFIGURATION_DIGEST, MODEL, measured_hip, source_dataset


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
