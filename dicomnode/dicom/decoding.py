"""From pixel data to stored values: one frame, one sample per pixel, in memory that is known beforehand.

Each transfer syntax has one named decoder, so that pixels do not depend on which other packages are installed. They run in
this process: once size, components and end marker of the codestream have been checked (`codestream`), none of them crashed or
hung on 84,000 damaged codestreams; without these checks a picture that states no rows kept two of them busy without end.
"""

import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from dicomnode.dicom.attributes import integer, text
from dicomnode.dicom.codestream import frame_size
from dicomnode.dicom.reader import EncodedObject, Limits
from dicomnode.domain.measurement import Reason
from dicomnode.errors import NotMeasurable

_PIXEL_DATA = 0x7FE00010
_NATIVE = frozenset(
    {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian}
)
_PLUGIN_OF = {
    JPEGBaseline8Bit: "pylibjpeg",
    JPEGLossless: "pylibjpeg",
    JPEGLosslessSV1: "pylibjpeg",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
}
"""pydicom's decoding plugins. JPEG Extended goes through SimpleITK: these plugins fail on 12 bits."""
ALWAYS_LOSSY = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit})
"""DCT of finite precision. Source: PS3.5 8.2.1, annex A.4.1."""
LOSSY_UNLESS_STATED = frozenset({JPEGLSNearLossless, JPEG2000})
"""May hold a reversible picture too; then Lossy Image Compression (0028,2110) is "00". Source: PS3.5 8.2.3, 8.2.4."""
LOSSY_METHOD = {
    JPEGBaseline8Bit: "ISO_10918_1",
    JPEGExtended12Bit: "ISO_10918_1",
    JPEGLSNearLossless: "ISO_14495_1",
    JPEG2000: "ISO_15444_1",
}
"""Lossy Image Compression Method (0028,2114). Source: PS3.3 C.7.6.1.1.5.1."""

_ITEM = 0xFFFEE000
_MAX_FRAGMENTS = 100_000
_DECODER_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
"""What the decoders raise on damaged data. Want of memory or disk (MemoryError, OSError) says nothing of the object."""


@dataclass(frozen=True)
class PixelLayout:
    """The Image Pixel module (PS3.3 C.7.6.3) of a picture that can be a radiograph."""

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    monochrome1: bool
    """The smallest value is meant to be shown white."""

    @property
    def pixel_count(self) -> int:
        return self.rows * self.columns


def pixel_layout(dataset: Dataset, limits: Limits) -> PixelLayout:
    """Read the Image Pixel module and check that it describes one grey picture that fits into memory.

    Raises:
        NotMeasurable: NOT_A_RADIOGRAPH for colour and several frames; UNREADABLE for an impossible description.
    """
    _require_one_grey_frame(dataset)
    rows, columns = integer(dataset, "Rows") or 0, integer(dataset, "Columns") or 0
    if rows < 1 or columns < 1:
        raise _unreadable(f"Rows x Columns is {rows} x {columns}: expected a picture")
    if rows * columns > limits.max_rows_columns:
        raise _unreadable(f"{rows} x {columns} pixels are more than the limit of {limits.max_rows_columns}")
    allocated = integer(dataset, "BitsAllocated")
    if allocated not in (8, 16):
        raise _unreadable(f"Bits Allocated is {allocated}: expected 8 or 16")
    stored = _or(integer(dataset, "BitsStored"), allocated)
    high_bit = _or(integer(dataset, "HighBit"), stored - 1)
    if not 1 <= stored <= high_bit + 1 <= allocated:
        raise _unreadable(f"Bits Stored {stored} and High Bit {high_bit} do not fit into Bits Allocated {allocated}")
    return PixelLayout(
        rows,
        columns,
        allocated,
        stored,
        high_bit,
        signed=integer(dataset, "PixelRepresentation") == 1,
        monochrome1=text(dataset, "PhotometricInterpretation") == "MONOCHROME1",
    )


def _require_one_grey_frame(dataset: Dataset) -> None:
    samples = _or(integer(dataset, "SamplesPerPixel"), 1)
    photometric = text(dataset, "PhotometricInterpretation")
    if samples != 1 or photometric not in ("", "MONOCHROME1", "MONOCHROME2"):
        raise NotMeasurable(
            Reason.NOT_A_RADIOGRAPH,
            f"{samples} samples per pixel, {photometric[:16]!a}: expected one grey value per pixel",
        )
    if not photometric:
        raise _unreadable("Photometric Interpretation is absent: whether bone is bright or dark cannot be told")
    frames = _or(integer(dataset, "NumberOfFrames"), 1)
    if frames > 1:
        raise NotMeasurable(Reason.NOT_A_RADIOGRAPH, f"{frames} frames: expected a single radiograph")


def lossy_compression(dataset: Dataset, transfer_syntax_uid: str) -> bool | None:
    """Tell whether compression has taken something from the picture; None where neither header nor transfer syntax says so.

    Source: PS3.3 C.7.6.1.1.5: once "01", never "00" again; absent, the history is not known.
    """
    stated = text(dataset, "LossyImageCompression")
    if stated == "01" or transfer_syntax_uid in ALWAYS_LOSSY:
        return True
    if stated == "00":
        return False
    return True if transfer_syntax_uid in LOSSY_UNLESS_STATED else None


def decode(encoded: EncodedObject, layout: PixelLayout) -> tuple[NDArray[np.integer], tuple[str, ...]]:
    """Decode the stored values.

    Returns:
        Values (rows, columns) as an integer array of 8 to 32 bits, and what was odd, as sentences.

    Raises:
        NotMeasurable: (UNREADABLE) no pixel data, fewer or others than the header states, or a decoder gives up.
    """
    if encoded.pixels is None:
        raise _unreadable("the object holds no pixel data")
    if encoded.pixels.tag != _PIXEL_DATA:
        raise _unreadable("the pixel data are floating point numbers: expected integers, as PS3.3 A.2 and A.26 ask")
    syntax = encoded.transfer_syntax_uid
    if syntax in _NATIVE:
        return _decode_native(encoded, layout)
    if encoded.pixels.length_bytes is not None:
        raise _unreadable("the transfer syntax is a compressed one, the pixel data are not encapsulated")
    frame = b"".join(_fragments(encoded))
    if syntax == RLELossless:
        return _decode_rle(frame, layout), ()
    if syntax != JPEGExtended12Bit and syntax not in _PLUGIN_OF:
        raise _unreadable(f"pixel data in {UID(syntax).name!a} are not decoded")
    values = _decode_codestream(frame, layout, UID(syntax))
    return values, _range_notes(values, layout)


def _decode_codestream(codestream: bytes, layout: PixelLayout, syntax: UID) -> NDArray[np.integer]:
    """Decode a JPEG, JPEG-LS or JPEG 2000 codestream whose stated size is that of the header."""
    decoded_layout = _layout_of_codestream(codestream, layout, syntax)
    try:
        if syntax == JPEGExtended12Bit:
            values = _decode_extended(codestream, decoded_layout)
        else:
            values = _decode_plugin(codestream, decoded_layout, syntax)
    except _DECODER_FAILURES as error:
        raise _unreadable(f"the {syntax.name} picture cannot be decoded ({type(error).__name__})") from error
    if values.shape != (layout.rows, layout.columns):
        raise _unreadable(f"the decoded picture is {values.shape}, the header states {layout.rows} x {layout.columns}")
    return values


def _range_notes(values: NDArray[np.integer], layout: PixelLayout) -> tuple[str, ...]:
    """Tell of values that Bits Stored has no room for. Codestreams of more bits are common, such values are not."""
    highest = (1 << (layout.bits_stored - int(layout.signed))) - 1
    if int(values.max()) > highest:
        return (f"Values reach {int(values.max())}, Bits Stored {layout.bits_stored} has room to {highest}.",)
    return ()


def _decode_native(encoded: EncodedObject, layout: PixelLayout) -> tuple[NDArray[np.integer], tuple[str, ...]]:
    assert encoded.pixels is not None
    stated = encoded.pixels.length_bytes
    expected = layout.pixel_count * layout.bits_allocated // 8
    present = encoded.content_bytes - encoded.pixels.offset_bytes
    if stated is None:
        raise _unreadable("the pixel data are encapsulated, the transfer syntax is an uncompressed one")
    if min(stated, present) < expected:
        raise _unreadable(
            f"{layout.rows} x {layout.columns} pixels of {layout.bits_allocated} bits need {expected} bytes, "
            f"the pixel data hold {min(stated, present)}"
        )
    words = layout.bits_allocated == 16 or (not encoded.little_endian and encoded.pixels.vr == "OW")
    with encoded.open_content() as stream:
        stream.seek(encoded.pixels.offset_bytes)
        raw = stream.read(expected + expected % 2 if words else expected)
    values = (
        np.frombuffer(raw, dtype="<u2" if encoded.little_endian else ">u2") if words else np.frombuffer(raw, np.uint8)
    )
    if words and layout.bits_allocated == 8:
        # Two pixels to a word, the first in its low byte: big endian turned the pairs round (PS3.5 8.1.1, annex A.3).
        values = values.astype("<u2").view(np.uint8)[: layout.pixel_count]
    surplus = stated - expected - expected % 2
    notes = (f"The pixel data hold {surplus} bytes more than the picture needs.",) if surplus > 0 else ()
    return _significant_bits(values.reshape(layout.rows, layout.columns), layout), notes


def _significant_bits(words: NDArray[np.unsignedinteger], layout: PixelLayout) -> NDArray[np.integer]:
    """Cut Bits Stored out of each word, which may carry overlays in its other bits, and extend the sign."""
    shift = layout.high_bit + 1 - layout.bits_stored
    mask = (1 << layout.bits_stored) - 1
    values = (words >> shift) & words.dtype.type(mask)
    if not layout.signed:
        return values.astype(np.uint16, copy=False)
    sign = 1 << (layout.bits_stored - 1)
    return (values.astype(np.int32) ^ sign) - sign


def _fragments(encoded: EncodedObject) -> Iterator[bytes]:
    """Yield the fragments of the only frame, without the Basic Offset Table (PS3.5 A.4)."""
    assert encoded.pixels is not None
    with encoded.open_content() as stream:
        stream.seek(encoded.pixels.offset_bytes)
        for index, fragment in enumerate(_items(stream, encoded)):
            if index > _MAX_FRAGMENTS:
                raise _unreadable(f"the pixel data are cut into more than {_MAX_FRAGMENTS} fragments")
            if index > 0:
                yield fragment


def _items(stream: BinaryIO, encoded: EncodedObject) -> Iterator[bytes]:
    """Yield the items up to the delimiter, or to the end of the object where that is absent."""
    while len(head := stream.read(8)) == 8:
        group, element, length = struct.unpack("<HHL", head)
        if group << 16 | element != _ITEM:
            return
        left = encoded.content_bytes - stream.tell()
        if length > left:
            raise _unreadable(f"a fragment of the pixel data states {length} bytes, {left} are left: truncated")
        yield stream.read(length)


def _layout_of_codestream(codestream: bytes, layout: PixelLayout, syntax: UID) -> PixelLayout:
    """Compare what the codestream states with the header, before a decoder allocates it, and say what the decoder will give.

    Raises:
        NotMeasurable: (UNREADABLE) the codestream states another size, several components, or more bits than allocated.
    """
    size = frame_size(codestream)
    if (size.rows, size.columns, size.components) != (layout.rows, layout.columns, 1):
        raise _unreadable(
            f"the compressed picture is {size.rows} x {size.columns} with {size.components} components, "
            f"the header states {layout.rows} x {layout.columns} with 1"
        )
    if not 2 <= size.bits <= layout.bits_allocated:
        raise _unreadable(f"the compressed picture has {size.bits} bits, Bits Allocated is {layout.bits_allocated}")
    if size.bits == 8 and syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
        # Decoders of the DCT processes give bytes then, also where the header allocates 16 bits.
        return replace(
            layout, bits_allocated=8, bits_stored=min(layout.bits_stored, 8), high_bit=min(layout.high_bit, 7)
        )
    return layout


def _decode_plugin(codestream: bytes, layout: PixelLayout, syntax: UID) -> NDArray[np.integer]:
    options: dict[str, Any] = {
        "raw": True,
        "decoding_plugin": _PLUGIN_OF[syntax],
        "transfer_syntax_uid": syntax,
        "pixel_keyword": "PixelData",
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "rows": layout.rows,
        "columns": layout.columns,
        "bits_allocated": layout.bits_allocated,
        "bits_stored": layout.bits_stored,
        "pixel_representation": int(layout.signed),
    }
    values: NDArray[np.integer]
    values, _ = get_decoder(syntax).as_array(encapsulate([codestream]), **options)
    return values


def _decode_extended(codestream: bytes, layout: PixelLayout) -> NDArray[np.integer]:
    """Decode JPEG Extended by GDCM, through a file of our own that says MONOCHROME2.

    SimpleITK inverts MONOCHROME1 without telling. It is therefore never shown the peer's header, only ours, under
    which it hands out stored values.
    """
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = SecondaryCaptureImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = UID("2.25.1")
    file.SamplesPerPixel = 1
    file.PhotometricInterpretation = "MONOCHROME2"
    file.Rows, file.Columns = layout.rows, layout.columns
    file.BitsAllocated, file.BitsStored, file.HighBit = (
        layout.bits_allocated,
        layout.bits_stored,
        layout.bits_stored - 1,
    )
    file.PixelRepresentation = int(layout.signed)
    file.PixelData = encapsulate([codestream])
    file["PixelData"].is_undefined_length = True
    with tempfile.TemporaryDirectory(prefix="dicomnode-") as folder:
        path = Path(folder) / "frame.dcm"
        file.save_as(path, enforce_file_format=True)
        values: NDArray[np.integer] = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path), imageIO="GDCMImageIO"))
    return values[0] if values.ndim == 3 and values.shape[0] == 1 else values


def _decode_rle(frame: bytes, layout: PixelLayout) -> NDArray[np.integer]:
    """Decode one RLE frame: one segment per byte of the pixel, the most significant first (PS3.5 annex G).

    Written out here because the output is bounded while it grows; 64 times the input is possible otherwise.
    """
    byte_count = layout.bits_allocated // 8
    if len(frame) < 64:
        raise _unreadable("the RLE frame is shorter than its header")
    segments, *offsets = struct.unpack("<16L", frame[:64])
    if segments != byte_count:
        raise _unreadable(f"the RLE frame has {segments} segments, {layout.bits_allocated} bits need {byte_count}")
    ends = [*offsets[1:segments], len(frame)]
    planes = [
        np.frombuffer(_unpack_bits(frame[start:end], layout.pixel_count), np.uint8)
        for start, end in zip(offsets[:segments], ends, strict=True)
    ]
    words: NDArray[np.unsignedinteger] = planes[0].astype(np.uint16)
    for plane in planes[1:]:
        words = np.left_shift(words, 8, dtype=np.uint16) | plane
    return _significant_bits(words.reshape(layout.rows, layout.columns), layout)


def _unpack_bits(segment: bytes, expected_bytes: int) -> bytearray:
    """Undo PackBits until `expected_bytes` are there (PS3.5 G.3.2)."""
    unpacked = bytearray()
    at, size = 0, len(segment)
    while at < size and len(unpacked) < expected_bytes:
        control = segment[at]
        if control < 128:
            unpacked += segment[at + 1 : at + 2 + control]
            at += 2 + control
        elif control > 128:
            unpacked += segment[at + 1 : at + 2] * (257 - control)
            at += 2
        else:
            at += 1
    if len(unpacked) < expected_bytes:
        raise _unreadable(f"an RLE segment unpacks to {len(unpacked)} bytes, the picture needs {expected_bytes}")
    return unpacked[:expected_bytes]


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _unreadable(detail: str) -> NotMeasurable:
    return NotMeasurable(Reason.UNREADABLE, detail)
