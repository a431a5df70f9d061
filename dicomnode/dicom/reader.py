"""Bounded reading of an encoded DICOM object: the header as a pydicom data set, the pixel data as a place in the file.

pydicom's own reader recurses once per nested sequence and reads what a length field asks for; both lengths and depth come
from a stranger. This reader walks the element stream with an explicit stack, counts what it keeps, and never trusts a
length beyond the bytes that are there. Values are decoded later and lazily by pydicom, one attribute at a time.

Not kept, because nothing of ours reads them: private elements, overlay and curve data, pixel data of icons.

Source: PS3.5 section 7 (data set, VR, sequences), annex A (transfer syntaxes), PS3.10 section 7 (file meta information).
"""

import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pydicom.charset import convert_encodings, python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicomnode.errors import CannotUnderstand

_MIB = 1 << 20
_UNDEFINED_LENGTH = 0xFFFFFFFF
_ITEM = 0xFFFEE000
_ITEM_DELIMITATION = 0xFFFEE00D
_SEQUENCE_DELIMITATION = 0xFFFEE0DD
_SPECIFIC_CHARACTER_SET = 0x00080005
_PIXEL_DATA_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
"""Float, double float and integer Pixel Data. Source: PS3.3 C.7.6.3, C.7.6.24, C.7.6.25."""
_LONG_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
"""VRs with two reserved bytes and a 32-bit length. Source: PS3.5 Table 7.1-1."""
_BYTE_STREAM_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW"})
_SHORT_VRS = frozenset(
    (
        "AE",
        "AS",
        "AT",
        "CS",
        "DA",
        "DS",
        "DT",
        "FD",
        "FL",
        "IS",
        "LO",
        "LT",
        "PN",
        "SH",
        "SL",
        "SS",
        "ST",
        "TM",
        "UI",
        "UL",
        "US",
    )
)
"""VRs with a 16-bit length. Source: PS3.5 Table 7.1-2."""
_KNOWN_VRS = _LONG_VRS | _SHORT_VRS
_PREAMBLE_BYTES = 128
_DEFAULT_CHARACTER_SET = "iso8859"


@dataclass(frozen=True)
class Limits:
    """What one object may cost. The defaults hold every radiograph a detector of today makes, with room."""

    max_object_bytes: int = 256 * _MIB
    """Size of the encoded object in the spool."""
    max_inflated_bytes: int = 160 * _MIB
    """Size of a deflated data set after inflation: pixels of `max_rows_columns` at 16 bits, and the header."""
    max_header_bytes: int = 16 * _MIB
    """Sum of the values kept from before the pixel data."""
    max_elements: int = 100_000
    """Elements, items and fragments that are walked over."""
    max_items: int = 2_000
    """Items of sequences that are kept, each a data set of some kilobytes in memory; CR and DX objects have dozens."""
    max_nesting: int = 16
    """Depth of sequences within sequences; CR and DX objects need six."""
    max_rows_columns: int = 1 << 26
    """Rows x Columns: 67 million, a stitched 43 x 130 cm exposure at 0.1 mm is 56 million."""


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class PixelElement:
    """Where the pixel data lie in the (inflated) byte stream."""

    tag: int
    vr: str
    offset_bytes: int
    length_bytes: int | None
    """As stated; None for undefined length, that is, encapsulated."""


@dataclass(frozen=True)
class EncodedObject:
    """The header of an object, and the place of its pixel data."""

    dataset: Dataset
    """Header without pixel data and private elements; `file_meta` is set, empty where the file had none."""
    transfer_syntax_uid: str
    pixels: PixelElement | None
    content: Path | bytes
    """What `pixels.offset_bytes` counts in: the file, or the inflated data set."""
    content_bytes: int
    notes: tuple[str, ...] = ()
    """What is odd in the encoding, as sentences."""

    @property
    def little_endian(self) -> bool:
        """Byte order of the data set."""
        return self.transfer_syntax_uid != ExplicitVRBigEndian

    @contextmanager
    def open_content(self) -> Iterator[BinaryIO]:
        """Open the byte stream that `pixels` points into."""
        if isinstance(self.content, bytes):
            yield BytesIO(self.content)
        else:
            with self.content.open("rb") as stream:
                yield stream


def read_encoded(path: Path, limits: Limits = DEFAULT_LIMITS) -> EncodedObject:
    """Read the header of a DICOM file and find its pixel data, within `limits`.

    A file without preamble or file meta information is read too (its encoding is guessed from the first element).

    Raises:
        CannotUnderstand: it is no DICOM object, is damaged before its pixel data, or breaks a limit.
        OSError: the file cannot be opened or read.
    """
    size = path.stat().st_size
    if size > limits.max_object_bytes:
        raise CannotUnderstand(
            f"the object has {size} bytes, at most {limits.max_object_bytes} are accepted; raise the limit if it is a radiograph"
        )
    with path.open("rb") as stream:
        file_meta, start = _read_file_meta(stream, size, limits)
        transfer_syntax = _transfer_syntax(file_meta, stream, start)
        if transfer_syntax != DeflatedExplicitVRLittleEndian:
            return _read_data_set(stream, size, start, path, file_meta, transfer_syntax, limits)
        inflated = _inflate(stream, start, limits)
    return _read_data_set(BytesIO(inflated), len(inflated), 0, inflated, file_meta, transfer_syntax, limits)


def _read_data_set(
    stream: BinaryIO,
    size: int,
    start: int,
    content: Path | bytes,
    file_meta: FileMetaDataset,
    transfer_syntax: str,
    limits: Limits,
) -> EncodedObject:
    little = transfer_syntax != ExplicitVRBigEndian
    walk = _Walk(stream, size, limits)
    implicit = _is_implicit(stream, start, transfer_syntax == ImplicitVRLittleEndian, walk.notes)
    header = walk.read(start, implicit, little, stop=_PIXEL_DATA_TAGS.__contains__)
    dataset = header.as_dataset()
    dataset.file_meta = file_meta
    return EncodedObject(dataset, transfer_syntax, walk.pixels, content, size, tuple(walk.notes))


def _read_file_meta(stream: BinaryIO, size: int, limits: Limits) -> tuple[FileMetaDataset, int]:
    """Read group 0002, always explicit little endian, and return it with the place where the data set starts."""
    start = _PREAMBLE_BYTES + 4 if _at(stream, _PREAMBLE_BYTES, 4) == b"DICM" else 0
    if _at(stream, start, 2) != b"\x02\x00":
        return FileMetaDataset(), start
    walk = _Walk(stream, size, limits)
    group = walk.read(start, implicit=False, little=True, stop=lambda tag: tag >> 16 != 2)
    return FileMetaDataset(group.as_dataset()), walk.stopped_at


def _transfer_syntax(file_meta: FileMetaDataset, stream: BinaryIO, start: int) -> str:
    """Return the stated transfer syntax, or guess an uncompressed one from the first element of the data set."""
    stated = str(file_meta.get("TransferSyntaxUID", "") or "").strip()
    if stated:
        return UID(stated)
    first = _at(stream, start, 6)
    if first[4:6].decode("latin-1") not in _KNOWN_VRS:
        if len(first) == 6 and struct.unpack("<H", first[:2])[0] > 0x00FF:
            raise CannotUnderstand("no DICOM file: neither the prefix DICM nor a first data element was found")
        return ImplicitVRLittleEndian
    big = struct.unpack("<H", first[:2])[0] >= 0x0100
    return ExplicitVRBigEndian if big else ExplicitVRLittleEndian


def _is_implicit(stream: BinaryIO, start: int, stated: bool, notes: list[str]) -> bool:
    """Trust the first element's VR rather than the transfer syntax: both mistakes are made by modalities."""
    first = _at(stream, start, 6)
    if len(first) < 6:
        return stated
    found = first[4:6].decode("latin-1") not in _KNOWN_VRS
    if found and not stated and b"AA" <= first[4:6] <= b"ZZ":
        return False
    if found != stated:
        words = {True: "implicit", False: "explicit"}
        notes.append(f"The transfer syntax says {words[stated]} VR, the data set is {words[found]}.")
    return found


def _inflate(stream: BinaryIO, start: int, limits: Limits) -> bytes:
    """Inflate a deflated data set (PS3.5 A.5), at most to the limit."""
    stream.seek(start)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = BytesIO()  # gives its bytes away without copying them
    while not inflater.eof and (chunk := inflater.unconsumed_tail or stream.read(_MIB)):
        try:
            inflated.write(inflater.decompress(chunk, _MIB))
        except zlib.error as error:
            raise CannotUnderstand(
                f"the deflated data set is damaged after {inflated.tell()} bytes: {error}"
            ) from error
        if inflated.tell() > limits.max_inflated_bytes:
            raise CannotUnderstand(f"the deflated data set inflates to more than {limits.max_inflated_bytes} bytes")
    return inflated.getvalue()


def _at(stream: BinaryIO, offset: int, count: int) -> bytes:
    stream.seek(offset)
    return stream.read(count)


class _Header(NamedTuple):
    """The head of one data element; `vr` is None where the encoding is implicit."""

    tag: int
    vr: str | None
    length: int
    value_at: int

    def __str__(self) -> str:
        return f"({self.tag >> 16:04X},{self.tag & 0xFFFF:04X})"


@dataclass
class _OpenDataset:
    """A data set that is being read: the root or an item."""

    implicit: bool
    little: bool
    end: int | None
    """First byte after it; None when a delimiter ends it."""
    bound: int
    """Nothing inside may reach beyond this byte."""
    keep: bool
    parent_encoding: str | list[str]
    elements: dict[BaseTag, DataElement | RawDataElement] = field(default_factory=dict)
    encoding: str | list[str] = ""

    def as_dataset(self) -> Dataset:
        dataset = Dataset(self.elements, parent_encoding=self.parent_encoding)
        dataset.set_original_encoding(self.implicit, self.little, self.encoding or self.parent_encoding)
        return dataset


@dataclass
class _OpenSequence:
    """A sequence, or a run of fragments, that is being read."""

    header: _Header
    implicit: bool
    little: bool
    end: int | None
    bound: int
    keep: bool
    encoding: str | list[str]
    opaque: bool
    """Items are fragments of bytes, not data sets."""
    items: list[Dataset] = field(default_factory=list)


class _Walk:
    """One pass over an element stream with an explicit stack instead of recursion."""

    def __init__(self, stream: BinaryIO, size: int, limits: Limits) -> None:
        self.stream = stream
        self.size = size
        self.limits = limits
        self.notes: list[str] = []
        self.pixels: PixelElement | None = None
        self.stopped_at = 0
        self._walked = 0
        self._items = 0
        self._kept_bytes = 0
        self._stack: list[_OpenDataset | _OpenSequence] = []

    def read(self, start: int, implicit: bool, little: bool, stop: Callable[[int], bool]) -> _OpenDataset:
        """Read elements from `start` to the first top-level one for which `stop` holds, or to the end."""
        root = _OpenDataset(implicit, little, self.size, self.size, True, _DEFAULT_CHARACTER_SET)
        self._stack = [root]
        self.stream.seek(start)
        while self._stack:
            innermost = self._stack[-1]
            if innermost.end is not None and self.stream.tell() >= innermost.end:
                self._close()
            elif isinstance(innermost, _OpenSequence):
                self._read_item(innermost)
            elif not self._read_element(innermost, stop):
                break
        self.stopped_at = self.stream.tell()
        return root

    def _read_element(self, dataset: _OpenDataset, stop: Callable[[int], bool]) -> bool:
        """Read one element of `dataset`; False when the walk is over."""
        at_root = len(self._stack) == 1
        start = self.stream.tell()
        header = self._read_header(dataset)
        if header is None:
            self._end_of_stream(start, at_root)
            return False
        if at_root and stop(header.tag):
            self._stop_at(header, start)
            return False
        if header.tag == _ITEM_DELIMITATION and dataset.end is None:
            self._close()
            return True
        self._take_value(dataset, header)
        return True

    def _end_of_stream(self, start: int, at_root: bool) -> None:
        """Tolerate a few zero bytes of padding where the next element would start."""
        if not at_root:
            raise CannotUnderstand(f"the object ends within a sequence, at byte {start}: truncated; send it again")
        if any(_at(self.stream, start, self.size - start)):
            raise CannotUnderstand(
                f"the object ends within the head of an element, at byte {start}: truncated; send it again"
            )
        self.notes.append(f"{self.size - start} bytes of padding follow the last element.")

    def _stop_at(self, header: _Header, start: int) -> None:
        if header.tag in _PIXEL_DATA_TAGS:
            length = None if header.length == _UNDEFINED_LENGTH else header.length
            self.pixels = PixelElement(header.tag, header.vr or "OW", header.value_at, length)
        self.stream.seek(start)

    def _read_header(self, dataset: _OpenDataset) -> _Header | None:
        head = self.stream.read(8)
        if len(head) < 8:
            return None
        self._count()
        order = "<" if dataset.little else ">"
        group, element = struct.unpack(order + "HH", head[:4])
        tag = group << 16 | element
        vr_bytes = head[4:6]
        # An element whose VR is not two capitals is implicit, whatever the data set around it says.
        if dataset.implicit or group == 0xFFFE or not (vr_bytes.isalpha() and vr_bytes.isupper()):
            return _Header(tag, None, struct.unpack(order + "L", head[4:])[0], self.stream.tell())
        vr = vr_bytes.decode("ascii")
        if vr not in _LONG_VRS:
            return _Header(tag, vr, struct.unpack(order + "H", head[6:])[0], self.stream.tell())
        long_length = self.stream.read(4)
        if len(long_length) < 4:
            return None
        return _Header(tag, vr, struct.unpack(order + "L", long_length)[0], self.stream.tell())

    def _take_value(self, dataset: _OpenDataset, header: _Header) -> None:
        if header.length != _UNDEFINED_LENGTH and header.value_at + header.length > dataset.bound:
            raise CannotUnderstand(
                f"element {header} at byte {header.value_at} states {header.length} bytes, "
                f"{dataset.bound - header.value_at} are left: truncated or damaged; send it again"
            )
        if header.length == _UNDEFINED_LENGTH or _resolved_vr(header) == "SQ":
            self._open_sequence(dataset, header)
        elif _is_kept(header.tag, dataset.keep):
            self._keep(dataset, header)
        else:
            self.stream.seek(header.length, os.SEEK_CUR)

    def _keep(self, dataset: _OpenDataset, header: _Header) -> None:
        self._kept_bytes += header.length
        if self._kept_bytes > self.limits.max_header_bytes:
            raise CannotUnderstand(
                f"the header holds more than {self.limits.max_header_bytes} bytes (reached at {header}); "
                "no radiograph needs that, raise the limit if this one does"
            )
        value = self.stream.read(header.length)
        if len(value) < header.length:
            raise CannotUnderstand(f"the object became shorter while it was read (at {header})")
        tag = BaseTag(header.tag)
        dataset.elements[tag] = RawDataElement(
            tag, header.vr, header.length, value, header.value_at, header.vr is None, dataset.little
        )
        if header.tag == _SPECIFIC_CHARACTER_SET:
            dataset.encoding = python_encodings(value.decode("latin-1"))

    def _open_sequence(self, dataset: _OpenDataset, header: _Header) -> None:
        depth = 1 + sum(isinstance(level, _OpenSequence) for level in self._stack)
        if depth > self.limits.max_nesting:
            raise CannotUnderstand(
                f"sequences are nested more than {self.limits.max_nesting} deep (at {header}, byte {header.value_at})"
            )
        end = None if header.length == _UNDEFINED_LENGTH else header.value_at + header.length
        # PS3.5 6.2.2: the content of a sequence that is encoded as UN is implicit VR little endian.
        unknown = header.vr == "UN"
        self._stack.append(
            _OpenSequence(
                header,
                implicit=dataset.implicit or header.vr is None or unknown,
                little=dataset.little or unknown,
                end=end,
                bound=dataset.bound if end is None else end,
                keep=_is_kept(header.tag, dataset.keep),
                encoding=dataset.encoding or dataset.parent_encoding,
                opaque=_resolved_vr(header) in _BYTE_STREAM_VRS,
            )
        )

    def _read_item(self, sequence: _OpenSequence) -> None:
        start = self.stream.tell()
        head = self.stream.read(8)
        if len(head) < 8:
            raise CannotUnderstand(f"the object ends within sequence {sequence.header}: truncated; send it again")
        self._count()
        group, element, length = struct.unpack(("<" if sequence.little else ">") + "HHL", head)
        tag = group << 16 | element
        if tag == _SEQUENCE_DELIMITATION and sequence.end is None:
            self._close()
        elif tag != _ITEM:
            raise CannotUnderstand(
                f"sequence {sequence.header} holds ({group:04X},{element:04X}) at byte {start} where an item is expected"
            )
        elif length != _UNDEFINED_LENGTH and start + 8 + length > sequence.bound:
            raise CannotUnderstand(f"an item of sequence {sequence.header} at byte {start} reaches beyond its sequence")
        elif sequence.opaque:
            if length == _UNDEFINED_LENGTH:
                raise CannotUnderstand(f"a fragment of {sequence.header} at byte {start} has no length")
            self.stream.seek(length, os.SEEK_CUR)
        else:
            self._open_item(sequence, start + 8, length)

    def _open_item(self, sequence: _OpenSequence, start: int, length: int) -> None:
        self._items += sequence.keep
        if self._items > self.limits.max_items:
            raise CannotUnderstand(
                f"the header holds more than {self.limits.max_items} items of sequences; no radiograph does"
            )
        end = None if length == _UNDEFINED_LENGTH else start + length
        self._stack.append(
            _OpenDataset(
                sequence.implicit,
                sequence.little,
                end=end,
                bound=sequence.bound if end is None else end,
                keep=sequence.keep,
                parent_encoding=sequence.encoding,
            )
        )

    def _close(self) -> None:
        closed = self._stack.pop()
        if not self._stack:
            return
        outer = self._stack[-1]
        if isinstance(closed, _OpenDataset) and isinstance(outer, _OpenSequence):
            if closed.keep:
                outer.items.append(closed.as_dataset())
        elif (
            isinstance(closed, _OpenSequence) and isinstance(outer, _OpenDataset) and closed.keep and not closed.opaque
        ):
            tag = BaseTag(closed.header.tag)
            outer.elements[tag] = DataElement(tag, "SQ", Sequence(closed.items), closed.header.value_at)

    def _count(self) -> None:
        self._walked += 1
        if self._walked > self.limits.max_elements:
            raise CannotUnderstand(
                f"the header holds more than {self.limits.max_elements} elements; no radiograph does"
            )


def _resolved_vr(header: _Header) -> str:
    """Return the VR, looked up in the data dictionary where the encoding does not say it."""
    if header.vr is not None and header.vr != "UN":
        return header.vr
    try:
        found = str(dictionary_VR(header.tag))
    except KeyError:
        return "UN"
    return found.split(" or ")[0]


def _is_kept(tag: int, outer_is_kept: bool) -> bool:
    group, element = tag >> 16, tag & 0xFFFF
    private = group % 2 == 1
    overlay_or_curve = group & 0xFF00 in (0x5000, 0x6000)
    return outer_is_kept and not (private or overlay_or_curve or element == 0 or tag in _PIXEL_DATA_TAGS)


def python_encodings(character_sets: str) -> list[str]:
    """Return Python's encodings for a Specific Character Set (0008,0005), its values separated by backslashes.

    Only defined terms count, however they are spelt ("ISO IR 192", "UTF-8"); what is none is taken as the default repertoire.
    pydicom would look any other name up among Python's codecs.

    Source: PS3.3 C.12.1.1.2.
    """
    terms = [_DEFINED_TERMS.get(_letters_and_digits(term), "") for term in character_sets.split("\\")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(convert_encodings(terms))


def _letters_and_digits(term: str) -> str:
    return "".join(character for character in term.upper() if character.isalnum())


_DEFINED_TERMS = {_letters_and_digits(term): term for term in python_encoding} | {"UTF8": "ISO_IR 192"}
