"""A copy of a source header that other tools can stand: Unicode, type 2 attributes present, values that fit their VR.

highdicom refuses an empty first Specific Character Set (`\\ISO 2022 IR 87`, the ordinary Japanese form), raises where a type 2
attribute is absent, and copies invalid values into what it makes. Objects made from the copy carry the source's patient and
study, but none of its damage. What was changed is told in notes, without saying the values.

Copied is what can be valid text, number, UID or sequence; binary values (look-up tables, icons, encrypted attributes) are not.
"""

import math
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydicom.charset import default_encoding
from pydicom.config import IGNORE
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag
from pydicom.valuerep import DSfloat

from dicomnode.dicom.admission import is_valid_uid
from dicomnode.dicom.attributes import calendar_date, text, values
from dicomnode.dicom.reader import python_encodings
from dicomnode.errors import CannotUnderstand

_TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),  # PS3.3 C.7.1.1 Patient
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),  # C.7.2.1 General Study
    *("SeriesNumber", "InstanceNumber"),  # C.7.3.1 General Series, C.7.6.1 General Image
    *("Manufacturer",),  # C.7.5.1 General Equipment
)
"""Attributes that may be empty but not absent."""
_SEXES = frozenset({"M", "F", "O"})
"""PS3.3 C.7.1.1, Patient's Sex."""
_UNICODE = "ISO_IR 192"
_CODE_VALUES = ("CodeValue", "LongCodeValue", "URNCodeValue")
_REFERENCE_SEQUENCES = frozenset(
    {"ReferencedPatientSequence", "ReferencedStudySequence", "ReferencedPerformedProcedureStepSequence"}
)
_MAX_CHARACTERS = {"SH": 16, "LO": 64, "PN": 64, "ST": 1024, "LT": 10240, "UC": 65534, "UT": 65534}
"""PS3.5 Table 6.2-1; for PN within each component group. UC and UT are shortened far below their limit."""
_LINE_BREAKING = frozenset({"ST", "LT", "UT"})
"""VRs in which CR, LF, FF and TAB are characters (PS3.5 6.1.3)."""
_MULTI_VALUED_TEXT = frozenset({"SH", "LO", "PN", "UC"})
_NUMBERS = frozenset({"US", "SS", "UL", "SL", "FL", "FD", "UV", "SV"})
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d(([0-5]\d|60)(\.\d{1,6})?)?)?")
_DATE_TIME = re.compile(r"\d{4}(\d{2}(\d{2}(\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?)?)?)?([+-]\d{4})?")
_CODE_STRING = re.compile(r"[A-Z0-9_ ]{1,16}")
_AGE = re.compile(r"\d{3}[DWMY]")
_ESCAPE_SEQUENCE = re.compile(r"\x1b[ -/]*[0-~]")
"""What is left of code extensions that pydicom does not take away (it does not for GB 2312). Source: ECMA-35 13."""
_ESCAPE_JAPANESE = b"\x1b$"
"""ISO 2022 escape to a two-byte set: undeclared, it is Japanese mail encoding in practice."""


@dataclass(frozen=True)
class Normalised:
    """The copy, and what was changed on the way."""

    dataset: Dataset
    notes: tuple[str, ...]
    """Sentences without patient data."""


def normalise_source(dataset: Dataset, undeclared_character_set: str = "ISO_IR 100") -> Dataset:
    """Return a clean copy of a header; see `normalise`."""
    return normalise(dataset, undeclared_character_set).dataset


def normalise(dataset: Dataset, undeclared_character_set: str = "ISO_IR 100") -> Normalised:
    """Copy a header without pixels, private and binary elements, in ISO_IR 192, with every type 2 attribute present.

    Absent or impossible Study and Series Instance UIDs are derived from the SOP Instance UID, so that all results of one
    instance stay together; at reception such objects are refused, files on a disk are not.

    Args:
        dataset: a header, as `pixels.read_header` gives it; it is not changed.
        undeclared_character_set: defined term for text with bytes above 127 where the object declares no character set and
            the text is no UTF-8; a site where modalities send undeclared Shift JIS says ISO_IR 13.

    Raises:
        CannotUnderstand: SOP Class or SOP Instance UID are absent: nothing can refer to this object.
    """
    return _Copy(dataset, undeclared_character_set).normalised()


class _Copy:
    """One copy in the making, with its notes."""

    def __init__(self, source: Dataset, undeclared_character_set: str) -> None:
        self.source = source
        self.undeclared_encoding = python_encodings(undeclared_character_set)[0]
        self.notes: list[str] = []

    def normalised(self) -> Normalised:
        for keyword in ("SOPClassUID", "SOPInstanceUID"):
            if not is_valid_uid(text(self.source, keyword)):
                raise CannotUnderstand(f"{keyword} is absent or no UID: no report can refer to this object")
        copy = self.dataset(self.source, declared=_declares_characters(self.source))
        copy.SpecificCharacterSet = _UNICODE
        self._fill_uids(copy)
        self._fill_type_2(copy)
        copy.file_meta = _file_meta(self.source, copy)
        return Normalised(copy, tuple(dict.fromkeys(self.notes)))

    def dataset(self, source: Dataset, declared: bool) -> Dataset:
        """Copy the valid elements of a data set or of an item."""
        declared = declared or _declares_characters(source)
        copy = Dataset()
        for tag in sorted(source.keys()):
            element = self._element(source, tag, declared)
            if element is not None:
                copy[element.tag] = element
        return copy

    def _element(self, source: Dataset, tag: BaseTag, declared: bool) -> DataElement | None:
        keyword = keyword_for_tag(tag)
        if not keyword or tag.group == 0x0002 or keyword == "SpecificCharacterSet":
            return None
        stored = source.get_item(tag)  # before pydicom decodes it
        found = values(source, keyword)
        vr = source[tag].VR if found else ""
        if vr == "SQ":
            return self._sequence(tag, keyword, found, declared)
        if vr in _NUMBERS:
            return _numeric_element(tag, vr, found)
        if vr not in _CLEANERS:
            return None
        written = [str(value) for value in found]
        if vr in _MAX_CHARACTERS:
            written = self._decoded(keyword, vr, stored, written, declared)
        return self._text_element(source, tag, vr, written)

    def _sequence(self, tag: BaseTag, keyword: str, found: tuple[Any, ...], declared: bool) -> DataElement | None:
        copies = [self.dataset(item, declared) for item in found if isinstance(item, Dataset)]
        complete = [item for item in copies if _is_complete(item, keyword)]
        if len(complete) < len(found):
            self.notes.append(f"Incomplete items of {keyword} were left out.")
        return DataElement(tag, "SQ", complete) if complete else None

    def _text_element(self, source: Dataset, tag: BaseTag, vr: str, written: list[str]) -> DataElement | None:
        keyword = keyword_for_tag(tag)
        cleaned = [_CLEANERS[vr](source, keyword, value) for value in written]
        kept = [value for value in cleaned if value is not None]
        if len(kept) < len(cleaned):
            self.notes.append(f"{keyword} is no valid {vr} and was left out.")
            return None
        if [value.strip() for value in written] != [value.strip() for value in kept]:
            self.notes.append(f"{keyword} was put into the form of its VR {vr}.")
        return _element_as_is(tag, vr, kept)

    def _decoded(
        self, keyword: str, vr: str, stored: DataElement | RawDataElement | None, written: list[str], declared: bool
    ) -> list[str]:
        """Give text whose character set was not declared its characters back."""
        joined = "\\".join(written)
        if declared:
            if "\N{REPLACEMENT CHARACTER}" in joined:
                self.notes.append(f"{keyword} holds bytes that its declared character set does not have.")
            return [_ESCAPE_SEQUENCE.sub("", value) for value in written]
        raw = _undeclared_bytes(stored, joined)
        if raw is None or (raw.isascii() and b"\x1b" not in raw):
            return written
        self.notes.append(f"{keyword} holds characters of an undeclared character set.")
        decoded = _guess(raw, self.undeclared_encoding)
        return decoded.split("\\") if vr in _MULTI_VALUED_TEXT else [decoded]

    def _fill_uids(self, copy: Dataset) -> None:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
            if not is_valid_uid(text(copy, keyword)):
                self.notes.append(f"{keyword} is absent or no UID; one was derived from the SOP Instance UID.")
                setattr(copy, keyword, _derived_uid(keyword, text(copy, "SOPInstanceUID")))

    def _fill_type_2(self, copy: Dataset) -> None:
        if text(copy, "PatientSex") not in _SEXES:
            if text(copy, "PatientSex"):
                self.notes.append("PatientSex is none of M, F, O and was left out.")
            copy.PatientSex = ""
        for keyword in _TYPE_2:
            if keyword not in copy:
                setattr(copy, keyword, None if keyword.endswith("Number") and keyword != "AccessionNumber" else "")


def _declares_characters(dataset: Dataset) -> bool:
    """Tell whether the data set declares more than the default repertoire (ISO_IR 6, that is, ASCII) in a term that exists."""
    declared = "\\".join(str(value) for value in values(dataset, "SpecificCharacterSet"))
    return any(encoding != default_encoding for encoding in python_encodings(declared))


def _undeclared_bytes(stored: DataElement | RawDataElement | None, written: str) -> bytes | None:
    """Return the bytes of a text that was decoded as Latin-1 for want of a character set, or None where they are lost."""
    if isinstance(stored, RawDataElement):
        return stored.value
    try:
        return written.encode("latin-1")
    except UnicodeEncodeError:
        return None


def _guess(raw: bytes, undeclared_encoding: str) -> str:
    """Read bytes of unknown encoding: escape sequences and UTF-8 give themselves away, the rest is the site's habit."""
    candidates = ["iso2022_jp_2"] if _ESCAPE_JAPANESE in raw else []
    for encoding in (*candidates, "utf-8", undeclared_encoding):
        try:
            return raw.decode(encoding).strip(" \0")
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1").strip(" \0")


def _numeric_element(tag: BaseTag, vr: str, found: tuple[Any, ...]) -> DataElement | None:
    if not all(isinstance(value, (int, float)) for value in found):
        return None
    return DataElement(tag, vr, list(found) if len(found) > 1 else found[0])


def _is_complete(item: Dataset, keyword: str) -> bool:
    """Tell whether an item has what every reader asks of its kind. Source: PS3.3 Tables 8.8-1 and 10-11."""
    if keyword.endswith("CodeSequence"):
        return bool(text(item, "CodeMeaning")) and any(text(item, name) for name in _CODE_VALUES)
    if keyword in _REFERENCE_SEQUENCES:
        return bool(text(item, "ReferencedSOPClassUID") and text(item, "ReferencedSOPInstanceUID"))
    return len(item) > 0


def _derived_uid(keyword: str, sop_instance_uid: str) -> str:
    """Source: PS3.5 B.2."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{keyword} of {sop_instance_uid}').int}"


def _file_meta(source: Dataset, copy: Dataset) -> FileMetaDataset:
    stated = {
        "MediaStorageSOPClassUID": text(copy, "SOPClassUID"),
        "MediaStorageSOPInstanceUID": text(copy, "SOPInstanceUID"),
        "TransferSyntaxUID": text(getattr(source, "file_meta", Dataset()), "TransferSyntaxUID"),
    }
    file_meta = FileMetaDataset()
    for keyword, uid in stated.items():
        if is_valid_uid(uid):
            file_meta.add(_element_as_is(BaseTag(tag_for_keyword(keyword) or 0), "UI", [uid]))
    return file_meta


def _element_as_is(tag: BaseTag, vr: str, cleaned: list[str]) -> DataElement:
    """Make an element of values that have been judged here; pydicom would judge them again, and quote them in warnings."""
    return DataElement(tag, vr, cleaned if len(cleaned) > 1 else cleaned[0], validation_mode=IGNORE)


def _clean_text(vr: str) -> Callable[[Dataset, str, str], str | None]:
    allowed = "\r\n\t\f" if vr in _LINE_BREAKING else ""
    longest = _MAX_CHARACTERS[vr]

    def clean(_source: Dataset, keyword: str, value: str) -> str | None:
        printable = "".join(character for character in value if character in allowed or character.isprintable())
        if keyword == "PatientID":
            return printable.strip()  # shortened, it would be another patient
        return printable.strip()[:longest].rstrip()

    return clean


def _clean_name(_source: Dataset, _keyword: str, value: str) -> str | None:
    """Three component groups of at most 64 characters and five components each. Source: PS3.5 6.2.1."""
    return "=".join(_component_groups(value)).rstrip("=")


def _component_groups(value: str) -> Iterator[str]:
    for group in value.split("=")[:3]:
        printable = "".join(character for character in group if character.isprintable())
        yield "^".join(printable.split("^")[:5])[: _MAX_CHARACTERS["PN"]].strip()


def _clean_date(source: Dataset, keyword: str, value: str) -> str | None:
    """Keep a date of the calendar; that of ACR-NEMA, 1999.12.31, is rewritten."""
    if not value.strip():
        return ""
    found = calendar_date(source, keyword)
    return f"{found:%Y%m%d}" if found else None


def _clean_time(_source: Dataset, _keyword: str, value: str) -> str | None:
    """Keep a time of the day; that of ACR-NEMA, 12:34:56, is rewritten."""
    digits = value.strip().replace(":", "")
    return digits if not digits or _TIME.fullmatch(digits) else None


def _clean_code_string(_source: Dataset, _keyword: str, value: str) -> str | None:
    upper = value.strip().upper()
    return upper if not upper or _CODE_STRING.fullmatch(upper) else None


def _clean_decimal(_source: Dataset, _keyword: str, value: str) -> str | None:
    """Keep a finite decimal; one of more than 16 characters is rounded. Source: PS3.5 Table 6.2-1, DS."""
    stripped = value.strip()
    try:
        finite = not stripped or math.isfinite(float(stripped))
    except ValueError:
        return None
    if not finite:
        return None
    return stripped if len(stripped) <= 16 else str(DSfloat(float(stripped), auto_format=True))


def _clean_integer(_source: Dataset, _keyword: str, value: str) -> str | None:
    """Source: PS3.5 Table 6.2-1, IS: -2^31 to 2^31 - 1."""
    stripped = value.strip()
    if stripped and not re.fullmatch(r"[+-]?\d{1,11}", stripped):
        return None
    return stripped if not stripped or -(2**31) <= int(stripped) < 2**31 else None


def _matching(pattern: re.Pattern[str]) -> Callable[[Dataset, str, str], str | None]:
    def clean(_source: Dataset, _keyword: str, value: str) -> str | None:
        stripped = value.strip(" \0")
        return stripped if not stripped or pattern.fullmatch(stripped) else None

    return clean


def _clean_uid(_source: Dataset, _keyword: str, value: str) -> str | None:
    stripped = value.strip(" \0")
    return stripped if not stripped or is_valid_uid(stripped) else None


_CLEANERS: dict[str, Callable[[Dataset, str, str], str | None]] = {
    **{vr: _clean_text(vr) for vr in _MAX_CHARACTERS},
    "PN": _clean_name,
    "AE": _matching(re.compile(r"[ -\[\]-~]{1,16}")),
    "AS": _matching(_AGE),
    "CS": _clean_code_string,
    "DA": _clean_date,
    "DS": _clean_decimal,
    "DT": _matching(_DATE_TIME),
    "IS": _clean_integer,
    "TM": _clean_time,
    "UI": _clean_uid,
}
"""How each VR is brought into its form (PS3.5 Table 6.2-1); None where it cannot be."""
