"""What is refused at reception, with which status, and what is accepted although nothing can be measured on it."""

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import (
    MPEG2MPML,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicomnode.dicom.admission import (
    ACCEPTED_SOP_CLASSES,
    ACCEPTED_TRANSFER_SYNTAXES,
    DEFAULT_LIMITS,
    admit,
    check_request,
    is_valid_uid,
)
from dicomnode.dicom.pixels import read_radiograph
from dicomnode.dicom.reader import read_encoded
from dicomnode.dicom.status import DimseStatus, Outcome, classify
from dicomnode.domain.measurement import Reason
from dicomnode.errors import CannotUnderstand, DatasetMismatch, NotMeasurable, Refused, SopClassNotSupported
from tests.written_objects import (
    CR,
    DX,
    ITEM_END,
    SEQUENCE_END,
    SERIES_INSTANCE_UID,
    SOP_INSTANCE_UID,
    STUDY_INSTANCE_UID,
    UNDEFINED,
    element,
    file_of,
    identification,
    item,
    nested_sequences,
    radiograph_dataset,
    write,
)


def _admit_bytes(tmp_path: Path, content: bytes, **limits: int) -> Any:
    path = tmp_path / "object.dcm"
    path.write_bytes(content)
    return admit(path, DX, SOP_INSTANCE_UID, replace(DEFAULT_LIMITS, **limits))


@pytest.mark.parametrize(
    "transfer_syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
    ids=lambda uid: uid.name,
)
def test_a_radiograph_is_admitted_with_its_uids(tmp_path: Path, transfer_syntax: pydicom.uid.UID) -> None:
    path = write(tmp_path / "object.dcm", radiograph_dataset(), transfer_syntax)
    admitted = admit(path, DX, SOP_INSTANCE_UID)
    assert admitted.sop_class_uid == DX
    assert admitted.sop_instance_uid == SOP_INSTANCE_UID
    assert admitted.study_instance_uid == STUDY_INSTANCE_UID
    assert admitted.series_instance_uid == SERIES_INSTANCE_UID
    assert admitted.transfer_syntax_uid == transfer_syntax


def test_every_accepted_sop_class_and_transfer_syntax_is_the_one_it_is_named_for() -> None:
    assert [uid.name for uid in ACCEPTED_SOP_CLASSES] == [
        "Digital X-Ray Image Storage - For Presentation",
        "Digital X-Ray Image Storage - For Processing",
        "Computed Radiography Image Storage",
    ]
    assert len(set(ACCEPTED_TRANSFER_SYNTAXES)) == 13
    assert all(uid.is_transfer_syntax for uid in ACCEPTED_TRANSFER_SYNTAXES)


@pytest.mark.parametrize(
    "uid",
    [
        "",
        ".",
        "1.",
        ".1",
        "1..2",
        "1.2.a",
        "../../etc/passwd",
        "1.2/3",
        "1.2\n",
        "1.2\0",
        "1 2",
        "1.2 ",
        "１.２",
        "1" * 65,
    ],
)
def test_what_is_no_uid_is_refused_before_anything_else(uid: str) -> None:
    assert not is_valid_uid(uid)
    with pytest.raises(CannotUnderstand, match="SOP Instance UID"):
        check_request(DX, uid)
    with pytest.raises(CannotUnderstand, match="SOP Class UID"):
        check_request(uid, SOP_INSTANCE_UID)


@pytest.mark.parametrize("uid", ["1", "0.1", "1.2.840.10008", "2.25.0", "1.02.3", "9" * 64])
def test_uids_that_modalities_write_are_valid(uid: str) -> None:
    assert is_valid_uid(uid)


def test_another_sop_class_is_refused_as_not_supported() -> None:
    with pytest.raises(SopClassNotSupported, match="CT Image Storage is not taken") as refusal:
        check_request(str(CTImageStorage), SOP_INSTANCE_UID)
    assert refusal.value.status == DimseStatus.SOP_CLASS_NOT_SUPPORTED


@pytest.mark.parametrize(
    ("attributes", "seen"),
    [
        ({"SOPClassUID": CR}, "SOPClassUID is '1.2.840.10008.5.1.4.1.1.1' in the data set"),
        ({"SOPInstanceUID": "1.2.3"}, "SOPInstanceUID is '1.2.3' in the data set"),
        ({"SOPInstanceUID": None}, "SOPInstanceUID is absent"),
        ({"SOPClassUID": None}, "SOPClassUID is absent"),
        ({"StudyInstanceUID": None}, "StudyInstanceUID is absent"),
        ({"SeriesInstanceUID": ""}, "SeriesInstanceUID is absent"),
        ({"StudyInstanceUID": "1.2.x"}, "StudyInstanceUID is '1.2.x'"),
    ],
)
def test_a_data_set_that_contradicts_its_request_or_cannot_be_filed_is_a_mismatch(
    tmp_path: Path, attributes: dict[str, Any], seen: str
) -> None:
    dataset = radiograph_dataset(**attributes)
    with pytest.raises(DatasetMismatch, match=seen) as refusal:
        admit(write(tmp_path / "object.dcm", dataset), DX, SOP_INSTANCE_UID)
    assert refusal.value.status == 0xA900


def test_a_transfer_syntax_that_was_never_offered_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotUnderstand, match="MPEG2"):
        _admit_bytes(tmp_path, file_of(identification(), str(MPEG2MPML)))


def test_a_message_holds_no_control_characters_of_the_peer() -> None:
    with pytest.raises(CannotUnderstand) as refusal:
        check_request(DX, "1.2\r\nFORGED LOG LINE" + "x" * 1000)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 250


@pytest.mark.parametrize("content", [b"", b"x", b"GET / HTTP/1.1\r\n\r\n" * 20, bytes(1000)], ids=len)
def test_what_is_no_dicom_object_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(Refused):
        _admit_bytes(tmp_path, content)


@pytest.mark.parametrize("undefined_length", [True, False])
@pytest.mark.parametrize("vr", ["SQ", "UN"])
def test_ten_thousand_nested_sequences_are_refused_and_sixteen_are_not(
    tmp_path: Path, undefined_length: bool, vr: str
) -> None:
    # Tag (0008,1115) is a sequence in the dictionary, so that a defined length in VR UN hides one too. The content of a
    # sequence with VR UN is implicit VR, in which the bytes of an explicit one are something else: nest those by hand.
    if vr == "SQ":
        nested = {depth: nested_sequences(depth, undefined_length=undefined_length) for depth in (16, 17, 10_000)}
    else:
        nested = {depth: _nested_unknown(depth, undefined_length) for depth in (16, 17, 10_000)}
    _admit_bytes(tmp_path, file_of(nested[16] + identification()))
    for depth in (17, 10_000):
        with pytest.raises(CannotUnderstand, match="nested more than 16 deep"):
            _admit_bytes(tmp_path, file_of(nested[depth] + identification()))


def _nested_unknown(depth: int, undefined_length: bool) -> bytes:
    """A sequence with VR UN whose implicit content nests further."""
    tag = (0x0008).to_bytes(2, "little") + (0x1115).to_bytes(2, "little")
    if undefined_length:
        inner = (tag + UNDEFINED.to_bytes(4, "little") + item(b"", UNDEFINED)) * (depth - 1)
        closing = (ITEM_END + SEQUENCE_END) * depth
        return element(0x00081115, "UN", b"", UNDEFINED) + item(b"", UNDEFINED) + inner + closing
    pieces: list[bytes] = []
    size = 0
    for _ in range(depth - 1):
        pieces.append(tag + (size + 8).to_bytes(4, "little") + item(b"", size))
        size += len(pieces[-1])
    return element(0x00081115, "UN", b"", size + 8) + item(b"", size) + b"".join(reversed(pieces))


def test_a_private_sequence_nests_no_deeper_than_any_other(tmp_path: Path) -> None:
    bomb = nested_sequences(10_000, undefined_length=True, tag=0x00091010)
    with pytest.raises(CannotUnderstand, match="nested more than 16 deep"):
        _admit_bytes(tmp_path, file_of(identification() + bomb))


def test_private_elements_are_walked_over_but_not_kept(tmp_path: Path) -> None:
    private = element(0x00090010, "LO", b"MAKER ") + element(0x00091001, "OB", bytes(100_000))
    private += element(0x00091002, "SQ", item(element(0x00080060, "CS", b"MR")))
    path = tmp_path / "object.dcm"
    path.write_bytes(file_of(private + identification()))
    encoded = read_encoded(path, replace(DEFAULT_LIMITS, max_header_bytes=1000))
    assert all(tag.group == 0x0008 or tag.group == 0x0020 for tag in encoded.dataset.keys())  # noqa: SIM118


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (element(0x00100010, "PN", b"A^B", length=40), "states 40 bytes, 3 are left"),
        (element(0x00400275, "SQ", b"", UNDEFINED) + item(b"", UNDEFINED), "ends within a sequence"),
        (element(0x00400275, "SQ", b"", UNDEFINED), "ends within sequence"),
        (element(0x00400275, "SQ", item(b"", 8)), "reaches beyond its sequence"),
        (element(0x00400275, "SQ", element(0x00400007, "LO", b"text")), "where an item is expected"),
        (
            element(0x00400275, "SQ", item(element(0x00400007, "LO", b"text", length=12)))
            + element(0x00400300, "LO", b"a" * 40),
            "states 12 bytes, 4 are left",
        ),
    ],
)
def test_a_header_that_is_cut_off_or_overlaps_is_refused(tmp_path: Path, content: bytes, seen: str) -> None:
    with pytest.raises(CannotUnderstand, match=seen):
        _admit_bytes(tmp_path, file_of(identification() + content))


def test_every_truncation_before_the_pixel_data_ends_in_a_status(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.dcm", radiograph_dataset()).read_bytes()
    pixels_at = read_encoded(tmp_path / "whole.dcm").pixels.offset_bytes  # type: ignore[union-attr]
    admitted = 0
    for size in range(pixels_at):
        try:
            _admit_bytes(tmp_path, whole[:size])
            admitted += 1  # cut between two elements: a smaller, whole data set
        except Refused:
            pass
    assert admitted <= 14  # the elements after Series Instance UID


def test_padding_after_the_last_element_is_no_harm(tmp_path: Path) -> None:
    assert _admit_bytes(tmp_path, file_of(identification() + b"\0\0")).sop_instance_uid == SOP_INSTANCE_UID
    with pytest.raises(CannotUnderstand, match="ends within the head of an element"):
        _admit_bytes(tmp_path, file_of(identification() + b"\x28\0\x10\0"))


def test_a_header_that_is_too_large_is_refused(tmp_path: Path) -> None:
    text = element(0x00081030, "UT", b"a" * 5000)
    with pytest.raises(CannotUnderstand, match="holds more than 4000 bytes"):
        _admit_bytes(tmp_path, file_of(text + identification()), max_header_bytes=4000)


def test_a_header_of_too_many_elements_is_refused(tmp_path: Path) -> None:
    elements = b"".join(element(0x00400000 + number, "LO", b"") for number in range(1, 5000))
    with pytest.raises(CannotUnderstand, match="more than 4000 elements"):
        _admit_bytes(tmp_path, file_of(identification() + elements), max_elements=4000)


def test_a_header_of_too_many_items_is_refused_but_private_ones_do_not_count(tmp_path: Path) -> None:
    def with_items(tag: int) -> bytes:
        return file_of(identification() + element(tag, "SQ", b"", UNDEFINED) + item(b"") * 5000 + SEQUENCE_END)

    with pytest.raises(CannotUnderstand, match="more than 2000 items"):
        _admit_bytes(tmp_path, with_items(0x00400275))
    assert _admit_bytes(tmp_path, with_items(0x00411001)).sop_instance_uid == SOP_INSTANCE_UID


def test_an_object_that_is_too_large_is_refused_by_its_size_alone(tmp_path: Path) -> None:
    path = tmp_path / "object.dcm"
    with path.open("wb") as stream:
        stream.truncate(DEFAULT_LIMITS.max_object_bytes + 1)  # sparse: nothing is written
    with pytest.raises(CannotUnderstand, match="at most"):
        admit(path, DX, SOP_INSTANCE_UID)


def _deflated(data_set: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return file_of(deflater.compress(data_set) + deflater.flush(), str(DeflatedExplicitVRLittleEndian))


def test_a_deflate_bomb_is_refused_at_the_limit(tmp_path: Path) -> None:
    bomb = _deflated(identification() + element(0x7FE00010, "OW", bytes(64 << 20)))
    assert len(bomb) < 100_000
    with pytest.raises(CannotUnderstand, match="inflates to more than"):
        _admit_bytes(tmp_path, bomb, max_inflated_bytes=1 << 20)
    assert _admit_bytes(tmp_path, bomb).sop_instance_uid == SOP_INSTANCE_UID


def test_a_damaged_deflated_data_set_is_refused(tmp_path: Path) -> None:
    content = bytearray(_deflated(identification() * 20))
    content[-20:-8] = b"\xff" * 12
    with pytest.raises(CannotUnderstand):
        _admit_bytes(tmp_path, bytes(content[:-8]))


@pytest.mark.parametrize(
    "attributes",
    [
        {"Rows": 65535, "Columns": 65535},
        {"Rows": 0},
        {"Rows": 200},
        {"BitsAllocated": 12},
        {"NumberOfFrames": 4},
        {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3},
        {"PixelData": None},
        {"Modality": "MR"},
    ],
    ids=str,
)
def test_a_readable_object_is_admitted_though_nothing_can_be_measured_on_it(
    tmp_path: Path, attributes: dict[str, Any]
) -> None:
    path = write(tmp_path / "object.dcm", radiograph_dataset(**attributes))
    assert admit(path, DX, SOP_INSTANCE_UID).sop_instance_uid == SOP_INSTANCE_UID
    with pytest.raises(NotMeasurable) as refusal:
        read_radiograph(path)
    assert refusal.value.reason in (Reason.UNREADABLE, Reason.NOT_A_RADIOGRAPH)


def test_an_object_whose_encoding_is_not_that_of_its_transfer_syntax_is_read_as_it_is(tmp_path: Path) -> None:
    implicit = write(tmp_path / "implicit.dcm", radiograph_dataset(), ImplicitVRLittleEndian)
    written = implicit.read_bytes()
    uid = str(ImplicitVRLittleEndian).encode() + b"\0"
    assert len(uid) == 18
    stated_explicit = written.replace(element(0x00020010, "UI", uid), element(0x00020010, "UI", uid[:-1] + b".1\0"), 1)
    path = tmp_path / "object.dcm"
    path.write_bytes(stated_explicit)
    assert admit(path, DX, SOP_INSTANCE_UID).study_instance_uid == STUDY_INSTANCE_UID
    assert read_encoded(path).notes == ("The transfer syntax says explicit VR, the data set is implicit.",)


def test_the_memory_bomb_is_admitted_only_if_asked_for_and_never_decoded(reference_data: Path, tmp_path: Path) -> None:
    bomb = reference_data / "dicom" / "orthanc-tests" / "2026-05-26-oob-monochrome-46341.dcm"
    dataset = pydicom.dcmread(bomb)
    dataset.SOPClassUID, dataset.Modality = CR, "CR"
    path = tmp_path / "bomb.dcm"
    dataset.save_as(path)
    assert admit(path, CR, dataset.SOPInstanceUID).sop_class_uid == CR
    with pytest.raises(NotMeasurable, match="46341 x 46341 pixels are more than the limit"):
        read_radiograph(path)
    with pytest.raises(NotMeasurable, match=r"need 4294976562 bytes, the pixel data hold \d+"):
        read_radiograph(path, replace(DEFAULT_LIMITS, max_rows_columns=1 << 40))


def test_the_reader_agrees_with_pydicom_on_every_file_that_pydicom_reads(reference_data: Path) -> None:
    compared = 0
    for path in sorted((reference_data / "dicom").rglob("*.dcm")):
        try:
            ours = read_encoded(path).dataset
            theirs = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            theirs.remove_private_tags()
        except (CannotUnderstand, OSError):
            continue
        expected = [tag for tag in theirs.keys() if tag.element != 0 and tag.group & 0xFF00 not in (0x5000, 0x6000)]  # noqa: SIM118
        assert sorted(ours.keys()) == sorted(expected), path.name
        for tag in expected:
            assert _without_group_lengths(ours[tag].value) == _without_group_lengths(theirs[tag].value), (
                path.name,
                tag,
            )
        compared += 1
    assert compared >= 36


def _without_group_lengths(value: Any) -> Any:
    """Group lengths and pixel data within items, which our reader leaves out."""
    if not isinstance(value, pydicom.Sequence):
        return value
    return [
        {
            element.tag: _without_group_lengths(element.value)
            for element in nested
            if element.tag.element != 0 and element.keyword != "PixelData"
        }
        for nested in value
    ]


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (0x0000, Outcome.DELIVERED),
        (0x0111, Outcome.DELIVERED),
        (0xB000, Outcome.DELIVERED),
        (0xB006, Outcome.DELIVERED),
        (0xB007, Outcome.DELIVERED),
        (0xBFFF, Outcome.DELIVERED),
        (0xA700, Outcome.TRANSIENT),
        (0xA7FF, Outcome.TRANSIENT),
        (0x0213, Outcome.TRANSIENT),
        (0xA900, Outcome.PERMANENT),
        (0xC000, Outcome.PERMANENT),
        (0xC211, Outcome.PERMANENT),
        (0x0110, Outcome.PERMANENT),
        (0x0122, Outcome.PERMANENT),
        (0x0124, Outcome.PERMANENT),
        (0xFE00, Outcome.PERMANENT),
        (0xFF00, Outcome.PERMANENT),
    ],
    ids=lambda value: hex(value) if isinstance(value, int) else value.name,
)
def test_the_status_of_a_send_says_what_follows(status: int, outcome: Outcome) -> None:
    assert classify(status) is outcome


def test_every_refusal_carries_the_status_it_is_named_for() -> None:
    assert CannotUnderstand.status == DimseStatus.CANNOT_UNDERSTAND
    assert DatasetMismatch.status == DimseStatus.DATA_SET_MISMATCH
    assert SopClassNotSupported.status == DimseStatus.SOP_CLASS_NOT_SUPPORTED
