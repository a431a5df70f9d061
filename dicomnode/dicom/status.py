"""DIMSE statuses that the node sends and reads, and what one means for a delivery of ours."""

from enum import Enum, IntEnum


class DimseStatus(IntEnum):
    """Statuses of C-ECHO and C-STORE; each with the place where it is defined."""

    SUCCESS = 0x0000
    """PS3.7 C.1.1."""
    NO_SUCH_SOP_CLASS = 0x0118
    """PS3.7 annex C.5."""
    PROCESSING_FAILURE = 0x0110
    """PS3.7 annex C.5."""
    DUPLICATE_SOP_INSTANCE = 0x0111
    """PS3.7 annex C.5: the peer holds an instance with this UID already."""
    INVALID_OBJECT_INSTANCE = 0x0117
    """PS3.7 annex C.5: the SOP Instance UID violates the rules of UIDs."""
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    """PS3.7 9.1.1.1.9 (C-STORE)."""
    NOT_AUTHORIZED = 0x0124
    """PS3.7 9.1.1.1.9 (C-STORE)."""
    DUPLICATE_INVOCATION = 0x0210
    """PS3.7 annex C.5."""
    UNRECOGNIZED_OPERATION = 0x0211
    """PS3.7 annex C.5."""
    MISTYPED_ARGUMENT = 0x0212
    """PS3.7 annex C.5."""
    RESOURCE_LIMITATION = 0x0213
    """PS3.7 annex C.5."""
    OUT_OF_RESOURCES = 0xA700
    """PS3.4 Table B.2-1, A7xx: worth another try."""
    DATA_SET_MISMATCH = 0xA900
    """PS3.4 Table B.2-1, A9xx: the data set does not match its SOP class."""
    COERCION_OF_DATA_ELEMENTS = 0xB000
    """PS3.4 Table B.2-1: stored, some attributes were changed."""
    ELEMENTS_DISCARDED = 0xB006
    """PS3.4 Table B.2-1: stored, some attributes were left out."""
    DATA_SET_MISMATCH_WARNING = 0xB007
    """PS3.4 Table B.2-1: stored, although the data set does not match its SOP class."""
    CANNOT_UNDERSTAND = 0xC000
    """PS3.4 Table B.2-1, Cxxx."""
    CANCEL = 0xFE00
    """PS3.7 C.3.1."""


class Outcome(Enum):
    """What follows from the peer's answer to a C-STORE of ours."""

    DELIVERED = "delivered"
    """The peer has the instance."""
    TRANSIENT = "transient"
    """Try again later, with back-off."""
    PERMANENT = "permanent"
    """Trying again changes nothing: wait for a person."""


_DELIVERED = frozenset({DimseStatus.SUCCESS, DimseStatus.DUPLICATE_SOP_INSTANCE})
_TRANSIENT = frozenset({DimseStatus.RESOURCE_LIMITATION})


def classify(status: int) -> Outcome:
    """Return what the status of a C-STORE response means for the delivery.

    Delivered: success, any warning of the storage service (Bxxx: the peer has stored it and may have coerced attributes),
    and duplicate instance, which a retry after a lost answer gets.
    Transient: the peer's want of resources (A7xx of storage, 0213 of DIMSE). All other statuses depend on the object or on
    the peer's configuration (0110 processing failure, 0122 SOP class not supported, 0124 not authorized, A9xx, Cxxx):
    the same object meets the same answer until a person has changed something.

    Source: PS3.4 Table B.2-1, PS3.7 9.1.1.1.9 and annex C.
    """
    if status in _DELIVERED or status & 0xF000 == 0xB000:
        return Outcome.DELIVERED
    if status in _TRANSIENT or status & 0xFF00 == DimseStatus.OUT_OF_RESOURCES:
        return Outcome.TRANSIENT
    return Outcome.PERMANENT
