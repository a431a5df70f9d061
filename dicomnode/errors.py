"""The error tree. The class decides what happens next, the message says what was seen, expected and to be done.

DicomNodeError
├── Refused                  the peer is answered with `status`
│   ├── OutOfResources       0xA700: the peer may try again
│   ├── SopClassNotSupported 0x0122: a SOP class that the node does not take
│   ├── DatasetMismatch      0xA900: data set does not match its SOP class
│   └── CannotUnderstand     0xC000: this object will never be accepted
├── NotMeasurable            reported as "not measurable" with `reason`; never a number
├── ConfigurationError       the administrator must change a setting
├── BundleError              the model bundle is damaged or of another kind
├── TransientFailure         tried again later, with back-off
│   └── LedgerUnavailable    the database cannot be reached or is locked
├── PermanentFailure         waits for a person
├── AlreadyExists            the ledger holds such a row
├── NotFound                 the ledger holds no such row
└── StillInUse               rows still refer to it

Statuses: PS3.4 Annex B.2.3 (Storage Service Class).
"""

from dicomnode.domain.measurement import Reason


class DicomNodeError(Exception):
    """Base of every error that this package raises on purpose."""


class Refused(DicomNodeError):
    """A peer's request is refused; `status` is the DIMSE status that it is told."""

    status: int = 0xC000


class OutOfResources(Refused):
    """Disk or database cannot take the object now."""

    status = 0xA700


class SopClassNotSupported(Refused):
    """The SOP class is none that the node takes (PS3.7 9.1.1.1.9)."""

    status = 0x0122


class DatasetMismatch(Refused):
    """The data set contradicts the SOP class or UIDs of the request."""

    status = 0xA900


class CannotUnderstand(Refused):
    """The data set cannot be read as what it claims to be."""

    status = 0xC000


class NotMeasurable(DicomNodeError):
    """The radiograph (or one hip of it) must not end in a number.

    Args:
        reason: coded reason, reported in the SR and in `result.json`.
        detail: one sentence for a person: what was seen, what is expected.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class ConfigurationError(DicomNodeError):
    """A setting is missing, unknown or impossible; the message names its place."""


class BundleError(DicomNodeError):
    """The model bundle cannot be trusted: damaged, incomplete or of an unknown format."""


class TransientFailure(DicomNodeError):
    """Worth another try later: network down, peer out of resources."""


class PermanentFailure(DicomNodeError):
    """Trying again will not help; a person must look."""


class LedgerUnavailable(TransientFailure):
    """The database is unreachable, locked for too long, or its disk is full."""


class AlreadyExists(DicomNodeError):
    """A row with this identity is in the ledger already."""


class NotFound(DicomNodeError):
    """The ledger holds no such row."""


class StillInUse(DicomNodeError):
    """The row cannot go while others refer to it."""
