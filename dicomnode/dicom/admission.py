"""What is checked before a received object is acknowledged, and what is refused with which status.

Refused is only what cannot be understood at all, or cannot be filed: a request or data set with impossible UIDs, a SOP class
or transfer syntax that was never offered, a data set that contradicts its request, a header that is damaged, nested or
blown up beyond the limits. Everything else, an absent, truncated or absurdly large picture included, is a DICOM object that
a modality has taken: it is accepted, and its report says "not measurable" and why. The sender may delete its copy after a
success, so refusing what a person could still look at would lose it.

Nothing here allocates memory for pixels.
"""

import re
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom.uid import (
    JPEG2000,
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
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
)

from dicomnode.dicom.attributes import text
from dicomnode.dicom.reader import DEFAULT_LIMITS, EncodedObject, Limits, read_encoded
from dicomnode.errors import CannotUnderstand, DatasetMismatch, SopClassNotSupported

__all__ = [
    "ACCEPTED_SOP_CLASSES",
    "ACCEPTED_TRANSFER_SYNTAXES",
    "DEFAULT_LIMITS",
    "Admitted",
    "Limits",
    "admit",
    "check_request",
    "is_valid_uid",
]

ACCEPTED_SOP_CLASSES: tuple[UID, ...] = (
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ComputedRadiographyImageStorage,
)
"""Projection radiography of the hip. Source: PS3.4 annex B.5."""

ACCEPTED_TRANSFER_SYNTAXES: tuple[UID, ...] = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEGLosslessSV1,
    JPEGLossless,
    JPEGLSLossless,
    JPEG2000Lossless,
    RLELossless,
    JPEGLSNearLossless,
    JPEG2000,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
)
"""In the order of preference: uncompressed, lossless, lossy. Source: PS3.5 annex A."""

_UID_PATTERN = re.compile(r"[0-9]+(\.[0-9]+)*")
_MAX_UID_CHARACTERS = 64
"""PS3.5 9.1."""


@dataclass(frozen=True)
class Admitted:
    """What the receiver needs to file an object; every UID has been checked."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str


def is_valid_uid(uid: str) -> bool:
    """Tell whether `uid` has the form of a UID and so is harmless in a file name.

    Components with leading zeros, which PS3.5 9.1 forbids, are let pass: modalities write them and archives store them.

    Source: PS3.5 9.1 (digits and dots, at most 64 characters).
    """
    return len(uid) <= _MAX_UID_CHARACTERS and _UID_PATTERN.fullmatch(uid) is not None


_ONE_AT_A_TIME = threading.Lock()
"""Reading a header costs next to nothing, but a deflated object is inflated for it (`Limits.max_inflated_bytes`): however many
associations there are, memory is needed once."""


def check_request(sop_class_uid: str, sop_instance_uid: str) -> None:
    """Check a C-STORE request before its data set is looked at.

    Args:
        sop_class_uid: Affected SOP Class UID (0000,0002).
        sop_instance_uid: Affected SOP Instance UID (0000,1000).

    Raises:
        CannotUnderstand: a UID that is none.
        SopClassNotSupported: a SOP class that the node does not take.
    """
    _require_uid("Affected SOP Instance UID", sop_instance_uid)
    _require_uid("Affected SOP Class UID", sop_class_uid)
    if sop_class_uid not in ACCEPTED_SOP_CLASSES:
        names = ", ".join(uid.name for uid in ACCEPTED_SOP_CLASSES)
        raise SopClassNotSupported(f"SOP class {UID(sop_class_uid).name} is not taken; send one of: {names}")


def admit(path: Path, sop_class_uid: str, sop_instance_uid: str, limits: Limits = DEFAULT_LIMITS) -> Admitted:
    """Check a spooled object against its C-STORE request.

    Args:
        path: the file as spooled (PS3.10, with file meta information); its name plays no part.
        sop_class_uid: Affected SOP Class UID (0000,0002) of the request.
        sop_instance_uid: Affected SOP Instance UID (0000,1000) of the request.
        limits: what one object may cost.

    Raises:
        CannotUnderstand: UIDs, encoding or header are not those of a DICOM object within the limits.
        SopClassNotSupported: a SOP class that the node does not take.
        DatasetMismatch: the data set names another class or instance than the request, or no study and series.
        OSError: the file cannot be read.
    """
    check_request(sop_class_uid, sop_instance_uid)
    with _ONE_AT_A_TIME:
        encoded = replace(read_encoded(path, limits), content=b"")  # only the header is looked at here
    if encoded.transfer_syntax_uid not in ACCEPTED_TRANSFER_SYNTAXES:
        name = _printable(UID(encoded.transfer_syntax_uid).name)
        raise CannotUnderstand(f"transfer syntax {name} was never offered; send one that the association negotiated")
    return Admitted(
        sop_class_uid=_require_equal("SOPClassUID", encoded, sop_class_uid),
        sop_instance_uid=_require_equal("SOPInstanceUID", encoded, sop_instance_uid),
        study_instance_uid=_require_stated("StudyInstanceUID", encoded),
        series_instance_uid=_require_stated("SeriesInstanceUID", encoded),
        transfer_syntax_uid=str(encoded.transfer_syntax_uid),
    )


def _require_uid(name: str, uid: str) -> None:
    if not is_valid_uid(uid):
        raise CannotUnderstand(
            f"{name} is {_printable(uid)}: expected digits and dots, at most {_MAX_UID_CHARACTERS} characters (PS3.5 9.1)"
        )


def _require_equal(keyword: str, encoded: EncodedObject, requested: str) -> str:
    found = text(encoded.dataset, keyword)
    if found != requested:
        raise DatasetMismatch(
            f"{keyword} is {_printable(found) if found else 'absent'} in the data set and {requested} in the request"
        )
    return found


def _require_stated(keyword: str, encoded: EncodedObject) -> str:
    """A report can only be filed with the study and the series that it speaks of."""
    found = text(encoded.dataset, keyword)
    if not is_valid_uid(found):
        raise DatasetMismatch(
            f"{keyword} is {_printable(found) if found else 'absent'}: expected a UID (type 1, PS3.3 C.7)"
        )
    return found


def _printable(uid: str) -> str:
    """Quote a peer's text for a log line: bounded, without control characters."""
    return ascii(uid[: _MAX_UID_CHARACTERS + 1])
