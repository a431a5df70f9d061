"""The bounded reader and pydicom's reader agree on every honest data set."""

from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicomnode.dicom.admission import is_valid_uid
from dicomnode.dicom.reader import python_encodings, read_encoded
from dicomnode.errors import CannotUnderstand
from tests.written_objects import radiograph_dataset, write

_NAMES = st.text(alphabet="ABCabc ^éü山田太郎やまだ", min_size=1, max_size=20).map(str.strip)
_SEQUENCE_KEYWORDS = (
    "RequestAttributesSequence",
    "ProcedureCodeSequence",
    "ViewCodeSequence",
    "ReferencedImageSequence",
)


@st.composite
def _items(draw: st.DrawFn, depth: int) -> Dataset:
    item = Dataset()
    item.CodeMeaning = draw(_NAMES)
    item.is_undefined_length_sequence_item = draw(st.booleans())
    if draw(st.booleans()):
        item.ReferencedSOPInstanceUID = "1.2.3"
        item.RescaleSlope = draw(st.floats(-1e3, 1e3).map(lambda value: round(value, 3)))
    if depth > 0:
        _nest(draw, item, depth - 1)
    return item


def _nest(draw: st.DrawFn, dataset: Dataset, depth: int) -> None:
    for keyword in draw(st.lists(st.sampled_from(_SEQUENCE_KEYWORDS), unique=True, max_size=2)):
        sequence = Sequence(draw(st.lists(_items(depth), max_size=3)))
        setattr(dataset, keyword, sequence)
        dataset[keyword].is_undefined_length = draw(st.booleans())


@st.composite
def _datasets(draw: st.DrawFn) -> Dataset:
    dataset = radiograph_dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = draw(_NAMES)
    dataset.WindowCenter = draw(st.lists(st.integers(-9999, 9999), min_size=1, max_size=3))
    dataset.Allergies = draw(_NAMES)
    _nest(draw, dataset, 3)
    return dataset


def _plain(dataset: Dataset) -> dict[Any, Any]:
    return {
        element.tag: [_plain(item) for item in element.value] if element.VR == "SQ" else element.value
        for element in dataset
        if element.tag.element != 0 and element.keyword != "PixelData"
    }


@pytest.mark.parametrize(
    "transfer_syntax",
    [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
    ids=lambda uid: uid.name,
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dataset=_datasets())
def test_both_readers_give_the_same_elements(tmp_path: Path, transfer_syntax: UID, dataset: Dataset) -> None:
    path = write(tmp_path / "object.dcm", dataset, transfer_syntax)
    encoded = read_encoded(path)
    theirs = pydicom.dcmread(path)
    assert _plain(encoded.dataset) == _plain(theirs)
    assert encoded.pixels is not None
    with encoded.open_content() as stream:
        stream.seek(encoded.pixels.offset_bytes)
        assert stream.read(encoded.pixels.length_bytes or 0) == theirs.PixelData


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), with_prefix=st.booleans())
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, with_prefix: bool) -> None:
    path = tmp_path / "object.dcm"
    path.write_bytes(bytes(128) + b"DICM" + content if with_prefix else content)
    try:
        dataset = read_encoded(path).dataset
    except CannotUnderstand:
        return
    assert len(dataset) <= len(content) // 8


@given(term=st.text(max_size=40))
def test_any_character_set_has_an_encoding_that_decodes_text(term: str) -> None:
    for encoding in python_encodings(term):
        assert isinstance(b"plain ascii".decode(encoding), str)


@given(uid=st.text(alphabet="0123456789./\\ \0\n~a", max_size=70))
def test_a_valid_uid_is_a_harmless_file_name(uid: str) -> None:
    if is_valid_uid(uid):
        assert 0 < len(uid) <= 64
        assert Path(uid).name == uid
        assert ".." not in uid
