"""What a compressed picture says of itself, read without decoding it.

Decoders allocate what the codestream states, not what the DICOM header states, so both are compared before one is called.

Source: ISO/IEC 10918-1 annex B (JPEG), ISO/IEC 14495-1 annex C (JPEG-LS), ISO/IEC 15444-1 annex A (JPEG 2000).
"""

import re
import struct
from dataclasses import dataclass

from dicomnode.domain.measurement import Reason
from dicomnode.errors import NotMeasurable

_START_OF_IMAGE = b"\xff\xd8"
_END_OF_IMAGE = b"\xff\xd9"
"""Also JPEG 2000's end of codestream."""
_J2K_START = b"\xff\x4f\xff\x51"
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "
_START_OF_SCAN = 0xDA
_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7, 0xDE} - {0xC4, 0xC8, 0xCC})
"""SOF0-15 without DHT, JPG and DAC; JPEG-LS's SOF55; DHP, which opens a hierarchical picture."""
_ANOTHER_FRAME = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf\xf7\xde]")
"""Within entropy-coded data these pairs cannot occur: 0xFF is stuffed."""
_TAIL_BYTES = 64
"""Room for padding after the end marker."""


@dataclass(frozen=True)
class FrameSize:
    """What a codestream decodes to."""

    rows: int
    columns: int
    components: int
    bits: int
    """Precision of a sample."""


def frame_size(codestream: bytes) -> FrameSize:
    """Read the size that a JPEG, JPEG-LS or JPEG 2000 codestream states.

    Raises:
        NotMeasurable: (UNREADABLE) it is none of these, is cut off, or holds more than one frame.
    """
    if not codestream:
        raise _unreadable("the compressed picture is empty")
    if _END_OF_IMAGE not in codestream[-_TAIL_BYTES:]:
        raise _unreadable("the compressed picture has no end marker: it is cut off or damaged")
    if codestream.startswith(_START_OF_IMAGE):
        return _jpeg_size(codestream)
    if codestream.startswith((_J2K_START, _JP2_SIGNATURE)):
        return _jpeg_2000_size(codestream)
    raise _unreadable("the compressed picture starts neither as JPEG, JPEG-LS nor JPEG 2000")


def _jpeg_size(codestream: bytes) -> FrameSize:
    found: FrameSize | None = None
    at = 2
    while at + 4 <= len(codestream):
        prefix, marker, length = struct.unpack_from(">BBH", codestream, at)
        if prefix == 0xFF and marker == 0xFF:  # fill byte before a marker
            at += 1
            continue
        if prefix != 0xFF or length < 2:
            raise _unreadable(f"no marker segment at byte {at} of the compressed picture")
        if marker in _FRAME_MARKERS:
            if found is not None or length < 8 or at + 10 > len(codestream):
                raise _unreadable("the compressed picture has more than one frame header, or a damaged one")
            bits, rows, columns, components = struct.unpack_from(">BHHB", codestream, at + 4)
            found = FrameSize(rows, columns, components, bits)
        at += 2 + length
        if marker == _START_OF_SCAN:
            break
    if found is None:
        raise _unreadable("the compressed picture has no frame header")
    if _ANOTHER_FRAME.search(codestream, at):
        raise _unreadable("the compressed picture holds more than one frame, or is damaged")
    return found


def _jpeg_2000_size(codestream: bytes) -> FrameSize:
    start = codestream.find(_J2K_START)
    if start < 0 or start + 43 > len(codestream):
        raise _unreadable("the compressed picture has no JPEG 2000 size marker")
    _length, _, x_end, y_end, x_start, y_start, tile_width, tile_height, _, _, components, depth = struct.unpack_from(
        ">HHIIIIIIIIHB", codestream, start + 4
    )
    if tile_width == 0 or tile_height == 0 or x_end <= x_start or y_end <= y_start:
        raise _unreadable("the JPEG 2000 picture states an empty grid")
    return FrameSize(y_end - y_start, x_end - x_start, components, (depth & 0x7F) + 1)


def _unreadable(detail: str) -> NotMeasurable:
    return NotMeasurable(Reason.UNREADABLE, detail)
