"""DICOM objects written for tests: a small radiograph in every encoding, and byte streams that no honest modality writes."""

import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

SOP_INSTANCE_UID = "1.2.826.0.1.3680043.8.498.1"
STUDY_INSTANCE_UID = "1.2.826.0.1.3680043.8.498.2"
SERIES_INSTANCE_UID = "1.2.826.0.1.3680043.8.498.3"
CR = str(ComputedRadiographyImageStorage)
DX = str(DigitalXRayImageStorageForPresentation)
UNDEFINED = 0xFFFFFFFF


def hip_like(rows: int = 96, columns: int = 128, bits: int = 12) -> NDArray[np.uint16]:
    """A smooth grey picture with noise; larger is brighter."""
    y, x = np.mgrid[:rows, :columns]
    noise = np.random.default_rng(0).normal(0.0, 0.01, (rows, columns))
    picture = 0.5 + 0.35 * np.sin(x / 17.0) * np.cos(y / 11.0) + noise
    stored: NDArray[np.uint16] = np.rint(np.clip(picture, 0.0, 1.0) * ((1 << bits) - 1)).astype(np.uint16)
    return stored


def radiograph_dataset(stored: NDArray[Any] | None = None, /, **attributes: Any) -> Dataset:
    """A DX object in explicit little endian; `attributes` are set on top, None takes one away."""
    stored = hip_like() if stored is None else stored
    bits = 8 * stored.dtype.itemsize
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = DX, SOP_INSTANCE_UID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY_INSTANCE_UID, SERIES_INSTANCE_UID
    dataset.Modality = "DX"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = bits
    dataset.BitsStored = min(bits, 12)
    dataset.PixelRepresentation = 1 if stored.dtype.kind == "i" else 0
    dataset.ImagerPixelSpacing = [0.15, 0.15]
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    if "HighBit" not in attributes:
        dataset.HighBit = dataset.BitsStored - 1
    return dataset


def write(path: Path, dataset: Dataset, transfer_syntax: UID = ExplicitVRLittleEndian) -> Path:
    """Write `dataset`, whose pixel data are little endian, in an uncompressed transfer syntax."""
    dataset.file_meta.TransferSyntaxUID = transfer_syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CR)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", SOP_INSTANCE_UID)
    if transfer_syntax == ExplicitVRBigEndian and dataset.BitsAllocated == 16:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    dataset.save_as(
        path,
        implicit_vr=transfer_syntax == ImplicitVRLittleEndian,
        little_endian=transfer_syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    return path


def compressed_by_pydicom(path: Path, dataset: Dataset, transfer_syntax: UID, **options: Any) -> Path:
    """Write `dataset` in RLE, JPEG-LS or JPEG 2000."""
    dataset.compress(transfer_syntax, generate_instance_uid=False, **options)
    return write(path, dataset, transfer_syntax)


def compressed_by_dcmtk(path: Path, dataset: Dataset, dcmtk: Path, *options: str) -> Path:
    """Write `dataset` in one of the JPEG processes; the UIDs stay."""
    plain = write(path.with_suffix(".plain.dcm"), dataset)
    subprocess.run([dcmtk / "dcmcjpeg", *options, "+un", plain, path], check=True, capture_output=True)
    return path


def element(tag: int, vr: str, value: bytes, length: int | None = None) -> bytes:
    """Encode one explicit little endian element; `length` is written instead of the true one where given."""
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    stated = len(value) if length is None else length
    long_form = vr in ("OB", "OW", "SQ", "UN", "UT")
    return head + (struct.pack("<HL", 0, stated) if long_form else struct.pack("<H", stated)) + value


def item(value: bytes, length: int | None = None) -> bytes:
    """Encode an item; `length` is written instead of the true one where given."""
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(value) if length is None else length) + value


ITEM_END = struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
SEQUENCE_END = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def nested_sequences(depth: int, *, undefined_length: bool, vr: str = "SQ", tag: int = 0x00081115) -> bytes:
    """Sequences within sequences, `depth` deep."""
    if undefined_length:
        opening = element(tag, vr, b"", UNDEFINED) + item(b"", UNDEFINED)
        return opening * depth + (ITEM_END + SEQUENCE_END) * depth
    pieces: list[bytes] = []
    inner = 0
    for _ in range(depth):
        pieces.append(element(tag, vr, b"", inner + 8) + item(b"", inner))
        inner += len(pieces[-1])
    return b"".join(reversed(pieces))


def file_of(data_set: bytes, transfer_syntax: str = str(ExplicitVRLittleEndian)) -> bytes:
    """Put preamble and file meta information before an encoded data set."""
    syntax = transfer_syntax.encode() + b"\0" * (len(transfer_syntax) % 2)
    return b"\0" * 128 + b"DICM" + element(0x00020010, "UI", syntax) + data_set


def identification(sop_class_uid: str = DX) -> bytes:
    """The UIDs that admission asks for, as encoded elements in the order of their tags."""
    stated = {
        0x00080016: sop_class_uid,
        0x00080018: SOP_INSTANCE_UID,
        0x0020000D: STUDY_INSTANCE_UID,
        0x0020000E: SERIES_INSTANCE_UID,
    }
    return b"".join(element(tag, "UI", uid.encode() + b"\0" * (len(uid) % 2)) for tag, uid in stated.items())
