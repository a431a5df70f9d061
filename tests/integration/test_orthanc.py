"""The node beside a real archive: what it stores, how it files it, and what happens when the archive itself is the sender."""

import json
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import JPEG2000Lossless, generate_uid

from dicomnode.dicom.uids import Kind
from dicomnode.storage.rows import DeliveryState
from tests.integration.conftest import CT_RADIOGRAPH, ENCODINGS, Sent, StraightLine

pytestmark = pytest.mark.e2e

EVERY = (*ENCODINGS, CT_RADIOGRAPH)


@pytest.mark.parametrize("name", EVERY)
def test_what_orthanc_gives_back_is_what_the_node_made(
    name: str, everything: dict[str, Sent], straight_line: StraightLine
) -> None:
    for made in everything[name].job.objects:
        sent, stored = (
            dcmread(straight_line.node.spool / made.spool_path),
            straight_line.archived(made.sop_instance_uid),
        )
        assert stored == sent
        assert stored.file_meta.TransferSyntaxUID == made.transfer_syntax_uid


@pytest.mark.parametrize("name", EVERY)
def test_results_are_filed_under_patient_and_study_of_the_radiograph(
    name: str, everything: dict[str, Sent], straight_line: StraightLine
) -> None:
    source = dcmread(everything[name].file, stop_before_pixels=True)
    for made in everything[name].job.objects:
        stored = straight_line.archived(made.sop_instance_uid)
        for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber"):
            assert _text(stored, keyword) == _text(source, keyword), keyword
        assert stored.SeriesInstanceUID != source.SeriesInstanceUID
        assert stored.SOPInstanceUID == made.sop_instance_uid


def test_every_delivery_ends_with_success_at_the_first_attempt(everything: dict[str, Sent]) -> None:
    deliveries = [entry.delivery for sent in everything.values() for entry in sent.job.deliveries]
    assert len(deliveries) == 2 * len(EVERY)
    assert {delivery.state for delivery in deliveries} == {DeliveryState.DELIVERED}
    assert {(delivery.status, delivery.attempts) for delivery in deliveries} == {(0x0000, 1)}


def test_a_radiograph_that_the_archive_forwards_twice_is_measured_once(
    straight_line: StraightLine, reference_data: Path
) -> None:
    dataset = dcmread(reference_data / "dicom" / "nema_wg04" / "RG2_J2KR.dcm")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    kept = straight_line.orthanc.post("/instances", _as_file(dataset))
    for _ in range(2):
        answer = straight_line.orthanc.post("/modalities/node/store", kept["ID"].encode())
        assert (answer["InstancesCount"], answer["FailedInstancesCount"]) == (1, 0)
    job = straight_line.delivered(str(dataset.SOPInstanceUID))
    assert job.instance.transfer_syntax_uid == JPEG2000Lossless
    assert not job.conflicts
    assert [made.kind for made in job.objects] == [Kind.STRUCTURED_REPORT, Kind.SECONDARY_CAPTURE]
    (study,) = straight_line.orthanc.post("/tools/find", _query(job.instance.study_instance_uid))
    archived = straight_line.orthanc.get(f"/studies/{study}/instances")
    uids = {entry["MainDicomTags"]["SOPInstanceUID"] for entry in archived}
    assert uids >= {job.instance.sop_instance_uid, *(made.sop_instance_uid for made in job.objects)}


def _as_file(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _query(study_instance_uid: str) -> bytes:
    return json.dumps({"Level": "Study", "Query": {"StudyInstanceUID": study_instance_uid}}).encode()


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "")
