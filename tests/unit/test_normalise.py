"""A clean copy of a source header: names in Unicode, type 2 attributes there, damage left out, and highdicom content with it."""

import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from highdicom.sc import SCImage
from highdicom.sr import (
    CodedConcept,
    ComprehensiveSR,
    ContainerContentItem,
    ContentSequence,
    RelationshipTypeValues,
    TextContentItem,
)
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from dicomnode.dicom.normalise import normalise, normalise_source
from dicomnode.dicom.pixels import read_header
from dicomnode.errors import CannotUnderstand
from tests.written_objects import (
    SERIES_INSTANCE_UID,
    SOP_INSTANCE_UID,
    STUDY_INSTANCE_UID,
    element,
    file_of,
    identification,
    radiograph_dataset,
    write,
)

TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)


def _header(tmp_path: Path, *elements: bytes) -> Dataset:
    path = tmp_path / "object.dcm"
    path.write_bytes(file_of(b"".join(sorted((identification(), *elements)))))
    return read_header(path)


def _even(value: bytes) -> bytes:
    return value + b" " * (len(value) % 2)


def _text(tag: int, vr: str, value: bytes) -> bytes:
    return element(tag, vr, _even(value))


NAME, CHARACTER_SET = 0x00100010, 0x00080005


def _named(tmp_path: Path, character_set: bytes | None, name: bytes) -> Dataset:
    declared = [] if character_set is None else [_text(CHARACTER_SET, "CS", character_set)]
    return _header(tmp_path, *declared, _text(NAME, "PN", name))


def _report(source: Dataset) -> ComprehensiveSR:
    text = TextContentItem(
        name=CodedConcept("121106", "DCM", "Comment"), value="所見", relationship_type=RelationshipTypeValues.CONTAINS
    )
    root = ContainerContentItem(name=CodedConcept("126000", "DCM", "Imaging Measurement Report"), template_id="1500")
    root.ContentSequence = ContentSequence([text])
    return ComprehensiveSR(
        evidence=[source],
        content=root,
        series_instance_uid=generate_uid(),
        series_number=1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="dicomnode",
        is_complete=True,
    )


def _capture(source: Dataset) -> SCImage:
    return SCImage.from_ref_dataset(
        ref_dataset=source,
        pixel_array=np.zeros((8, 8, 3), np.uint8),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        series_instance_uid=generate_uid(),
        series_number=1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="dicomnode",
        patient_orientation=("L", "F"),
        specific_character_set="ISO_IR 192",
    )


# --- Character sets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("character_set", "name", "expected"),
    [
        # The examples of PS3.5 annexes H, I and K are in the reference data; these are encoded here.
        (
            rb"\ISO 2022 IR 87",
            b"Yamada^Tarou=" + "山田".encode("iso2022_jp") + b"^" + "太郎".encode("iso2022_jp"),
            "Yamada^Tarou=山田^太郎",
        ),
        (b"ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ".encode("shift_jis"), "ﾔﾏﾀﾞ^ﾀﾛｳ"),
        (rb"\ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7", "Hong^Gildong=洪^吉洞"),
        (rb"\ISO 2022 IR 58", b"Zhang^Xiao=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1", "Zhang^Xiao=张^小"),
        (b"GB18030", "张^小东".encode("gb18030"), "张^小东"),
        (b"ISO_IR 192", "Müller^Jörg=山田^太郎".encode(), "Müller^Jörg=山田^太郎"),
        (b"ISO_IR 100", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
        (b"ISO_IR 144", "Люкceмбypг".encode("iso8859_5"), "Люкceмбypг"),
        (b"", b"Plain^Ascii", "Plain^Ascii"),
        (None, b"Plain^Ascii", "Plain^Ascii"),
    ],
)
def test_declared_names_become_unicode(tmp_path: Path, character_set: bytes | None, name: bytes, expected: str) -> None:
    normalised = normalise(_named(tmp_path, character_set, name))
    assert str(normalised.dataset.PatientName) == expected
    assert normalised.dataset.SpecificCharacterSet == "ISO_IR 192"
    assert normalised.notes == ()


@pytest.mark.parametrize(
    ("name", "site", "expected"),
    [
        ("山田^太郎".encode(), "ISO_IR 100", "山田^太郎"),
        (
            b"Yamada^Tarou=" + "山田".encode("iso2022_jp") + b"^" + "太郎".encode("iso2022_jp"),
            "ISO_IR 100",
            "Yamada^Tarou=山田^太郎",
        ),
        ("Müller^Jörg".encode("latin-1"), "ISO_IR 100", "Müller^Jörg"),
        ("Müller^Jörg".encode(), "ISO_IR 100", "Müller^Jörg"),
        ("ﾔﾏﾀﾞ^ﾀﾛｳ".encode("shift_jis"), "ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
        ("表^太郎".encode("shift_jis"), "ISO_IR 13", "表^太郎"),  # its second byte is a backslash
        ("张^小东".encode("gb18030"), "GB18030", "张^小东"),
    ],
)
def test_undeclared_names_are_read_by_what_gives_itself_away_then_by_the_sites_habit(
    tmp_path: Path, name: bytes, site: str, expected: str
) -> None:
    normalised = normalise(_named(tmp_path, None, name), undeclared_character_set=site)
    assert str(normalised.dataset.PatientName) == expected
    assert "PatientName holds characters of an undeclared character set." in normalised.notes


def test_a_name_survives_writing_and_reading_again(tmp_path: Path) -> None:
    source = normalise_source(_named(tmp_path, rb"\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"))
    report = _report(source)
    report.save_as(tmp_path / "report.dcm")
    assert str(pydicom.dcmread(tmp_path / "report.dcm").PatientName) == "Yamada^Tarou=山田^太郎"


def test_bytes_that_a_declared_character_set_does_not_have_are_told(tmp_path: Path) -> None:
    normalised = normalise(_named(tmp_path, b"ISO_IR 192", b"M\xfcller^A"))
    assert any("PatientName holds bytes" in note for note in normalised.notes)


@pytest.mark.parametrize("character_set", [b"UTF-8", b"ISO IR 192", b"nonsense"])
def test_a_character_set_that_is_none_does_no_harm(tmp_path: Path, character_set: bytes) -> None:
    source = normalise_source(_named(tmp_path, character_set, "Müller^Jörg".encode()))
    assert str(source.PatientName) == "Müller^Jörg"


def test_items_keep_their_own_character_set(tmp_path: Path) -> None:
    nested = _text(CHARACTER_SET, "CS", rb"\ISO 2022 IR 87") + _text(0x00400007, "LO", "股関節".encode("iso2022_jp"))
    sequence = element(0x00400275, "SQ", b"\xfe\xff\x00\xe0" + len(nested).to_bytes(4, "little") + nested)
    copy = normalise_source(_header(tmp_path, sequence))
    assert copy.RequestAttributesSequence[0].ScheduledProcedureStepDescription == "股関節"
    assert "SpecificCharacterSet" not in copy.RequestAttributesSequence[0]


def test_the_character_sets_of_the_reference_data_become_unicode(reference_data: Path) -> None:
    folder = reference_data / "dicom" / "fo-dicom" / "charset"
    expected = {
        "chrH31": "Yamada^Tarou=山田^太郎=やまだ^たろう",
        "chrH32": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
        "chrI2": "Hong^Gildong=洪^吉洞=홍^길동",
        "chrGB2312": "Zhang^XiaoDong=张^小东",
        "chrJapMulti": "やまだ^たろう",
        "chrJapMultiExplicitIR6": "やまだ^たろう",
    }
    found = {name: str(normalise_source(read_header(folder / f"{name}.dcm")).PatientName) for name in expected}
    assert found == expected


# --- Attributes --------------------------------------------------------------------------------------------------------


def test_every_type_2_attribute_is_there_and_empty_where_the_source_has_none(tmp_path: Path) -> None:
    source = normalise_source(_header(tmp_path))
    for keyword in TYPE_2:
        assert keyword in source, keyword
        assert not source[keyword].value, keyword


def test_uids_and_the_transfer_syntax_are_kept(tmp_path: Path) -> None:
    source = normalise_source(read_header(write(tmp_path / "object.dcm", radiograph_dataset(), ImplicitVRLittleEndian)))
    assert source.SOPInstanceUID == SOP_INSTANCE_UID
    assert source.StudyInstanceUID == STUDY_INSTANCE_UID
    assert source.SeriesInstanceUID == SERIES_INSTANCE_UID
    assert source.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert (source.Rows, source.Columns) == (96, 128)
    assert "PixelData" not in source


def test_missing_study_and_series_uids_are_derived_and_stay_the_same(tmp_path: Path) -> None:
    dataset = radiograph_dataset(StudyInstanceUID=None, SeriesInstanceUID="")
    header = read_header(write(tmp_path / "object.dcm", dataset))
    first, second = normalise(header), normalise_source(header)
    assert first.dataset.StudyInstanceUID == second.StudyInstanceUID
    assert first.dataset.StudyInstanceUID.startswith("2.25.")
    assert first.dataset.StudyInstanceUID != first.dataset.SeriesInstanceUID
    assert first.dataset.StudyInstanceUID.is_valid and first.dataset.SeriesInstanceUID.is_valid
    assert any(note.startswith("StudyInstanceUID is absent") for note in first.notes)


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SOPClassUID"])
def test_an_object_that_cannot_be_referred_to_is_refused(tmp_path: Path, keyword: str) -> None:
    header = read_header(write(tmp_path / "object.dcm", radiograph_dataset(**{keyword: None})))
    with pytest.raises(CannotUnderstand, match=keyword):
        normalise_source(header)


@pytest.mark.parametrize(
    ("tag", "vr", "written", "keyword", "expected"),
    [
        (0x00100030, "DA", b"19500101", "PatientBirthDate", "19500101"),
        (0x00100030, "DA", b"1950.01.01", "PatientBirthDate", "19500101"),
        (0x00100030, "DA", b"00000000", "PatientBirthDate", ""),
        (0x00100030, "DA", b"19501341", "PatientBirthDate", ""),
        (0x00080030, "TM", b"10:15:30", "StudyTime", "101530"),
        (0x00080030, "TM", b"101530.123456", "StudyTime", "101530.123456"),
        (0x00080030, "TM", b"256199", "StudyTime", ""),
        (0x00100040, "CS", b"f", "PatientSex", "F"),
        (0x00100040, "CS", b"FEMALE", "PatientSex", ""),
        (0x00200010, "SH", b"A very long study identifier", "StudyID", "A very long stud"),
        (0x00100020, "LO", b"  P-1\x07 ", "PatientID", "P-1"),
        (0x00100020, "LO", b"9" * 80, "PatientID", "9" * 80),
        (0x00101010, "AS", b"070Y", "PatientAge", "070Y"),
        (0x00101010, "AS", b"70", "PatientAge", None),
        (0x00101030, "DS", b"70.5", "PatientWeight", 70.5),
        (0x00101030, "DS", b"abc", "PatientWeight", None),
        (0x00101030, "DS", b"70.12345678901234567890", "PatientWeight", pytest.approx(70.123456789012, abs=1e-11)),
        (0x00200013, "IS", b"7", "InstanceNumber", 7),
        (0x00200013, "IS", b"99999999999", "InstanceNumber", None),
        (0x00081150, "UI", b"1.2.abc", "ReferencedSOPClassUID", None),
        (0x00180015, "CS", b"H?FTE", "BodyPartExamined", None),
        (0x0008103E, "LO", b"AP\\PA", "SeriesDescription", ["AP", "PA"]),
        (0x00104000, "LT", b"line one\r\nline two", "PatientComments", "line one\r\nline two"),
    ],
)
def test_values_are_brought_into_the_form_of_their_vr_or_left_out(
    tmp_path: Path, tag: int, vr: str, written: bytes, keyword: str, expected: Any
) -> None:
    source = normalise_source(_header(tmp_path, _text(tag, vr, written)))
    found = source.get(keyword)
    assert found == expected or (expected in ("", None) and not found)


def test_what_was_changed_is_told_without_the_value(tmp_path: Path) -> None:
    header = _header(tmp_path, _text(0x00100030, "DA", b"someday"), _text(0x00100040, "CS", b"FEMALE"))
    notes = normalise(header).notes
    assert "PatientBirthDate is no valid DA and was left out." in notes
    assert "PatientSex is none of M, F, O and was left out." in notes
    assert not any("someday" in note or "FEMALE" in note for note in notes)


def test_an_overlong_name_keeps_its_component_groups(tmp_path: Path) -> None:
    name = b"A" * 100 + b"^B=" + b"C" * 10 + b"=D=E"
    found = str(normalise_source(_named(tmp_path, None, name)).PatientName)
    assert found == "A" * 64 + "=" + "C" * 10 + "=D"


def test_private_and_binary_elements_and_codes_without_a_meaning_are_left_out(tmp_path: Path) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "L", "Hip"
    nameless = Dataset()
    nameless.CodeValue = "2"
    dataset = radiograph_dataset(ProcedureCodeSequence=[code, nameless])
    dataset.private_block(0x0009, "MAKER", create=True).add_new(1, "LO", "secret")
    dataset.add_new(0x00282000, "OB", b"ICC profile.")
    normalised = normalise(read_header(write(tmp_path / "object.dcm", dataset)))
    assert [item.CodeMeaning for item in normalised.dataset.ProcedureCodeSequence] == ["Hip"]
    assert "Incomplete items of ProcedureCodeSequence were left out." in normalised.notes
    assert "ICCProfile" not in normalised.dataset
    assert not any(tag.is_private for tag in normalised.dataset.keys())  # noqa: SIM118


def test_the_source_is_not_changed(tmp_path: Path) -> None:
    header = _named(tmp_path, rb"\ISO 2022 IR 87", b"Yamada^Tarou")
    normalise_source(header)
    assert list(header.SpecificCharacterSet) == ["", "ISO 2022 IR 87"]
    assert "StudyID" not in header


# --- With highdicom ----------------------------------------------------------------------------------------------------


def test_highdicom_takes_every_file_that_qualifies_and_dciodvfy_finds_no_error(
    reference_data: Path, dciodvfy: str, tmp_path: Path
) -> None:
    made = validated = 0
    for path in sorted((reference_data / "dicom").rglob("*.dcm")):
        try:
            source = normalise_source(read_header(path))
        except CannotUnderstand:
            continue
        if source.SOPClassUID.name.startswith("2.25."):
            continue  # a SOP class that nobody registered
        for name, made_object in (("sr", _report(source)), ("sc", _capture(source))):
            written = tmp_path / f"{path.stem}.{name}.dcm"
            made_object.save_as(written, enforce_file_format=True)
            assert str(pydicom.dcmread(written).PatientName) == str(source.PatientName)
            if name == "sr" and source.SOPInstanceUID.is_valid:  # a reference to an impossible UID cannot be avoided
                assert _errors(dciodvfy, written) == [], path.name
                validated += 1
        made += 1
    assert made >= 30 and validated >= 29


def test_highdicom_takes_a_source_that_states_nothing_but_its_uids(tmp_path: Path) -> None:
    source = normalise_source(_header(tmp_path))
    assert _report(source).StudyInstanceUID == STUDY_INSTANCE_UID
    assert _capture(source).StudyInstanceUID == STUDY_INSTANCE_UID


def test_no_library_prints_a_patients_name(tmp_path: Path) -> None:
    dataset = radiograph_dataset(PatientName="Tarou", PatientID="P" * 80, PatientBirthDate="20250101")
    path = write(tmp_path / "object.dcm", dataset)
    path.write_bytes(path.read_bytes().replace(b"20250101", b"KARTEI-7"))
    program = (
        "import logging, sys, pathlib; logging.basicConfig(level=logging.DEBUG)\n"
        "from tests.unit.test_normalise import _report, normalise_source, read_header\n"
        f"_report(normalise_source(read_header(pathlib.Path({str(path)!r})))).save_as(sys.argv[1])\n"
        "print('made')"
    )
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run(
        [sys.executable, "-W", "default", "-c", program, tmp_path / "report.dcm"],
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert ran.stdout == "made\n", ran.stderr
    assert not any(value in ran.stderr for value in ("Tarou", "PPPP", "KARTEI"))


def _errors(dciodvfy: str, path: Path) -> list[str]:
    """Errors that come from the source's attributes; the test's own content tree is too thin to be a whole TID 1500."""
    found = subprocess.run([dciodvfy, path], capture_output=True, text=True, errors="replace").stderr
    return [line for line in found.splitlines() if line.startswith("Error")]


def test_the_time_of_encoding_is_no_part_of_the_copy(tmp_path: Path) -> None:
    header = _named(tmp_path, None, b"A^B")
    before = normalise_source(header)
    assert before == normalise_source(header)
    assert not any(str(datetime.now().year) in str(value) for value in (before.StudyDate, before.StudyTime))
