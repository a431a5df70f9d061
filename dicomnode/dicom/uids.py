"""Deterministic UIDs: the same measurement is the same object, however often it is encoded or sent.

A result's UIDs follow from the source instance, the model, the configuration and the kind of object. A retry therefore gives the
same object, and a new model or another configuration gives new ones. They are version 5 (SHA-1) UUIDs below the root 2.25, which
needs no registration.

Source: PS3.5 B.2 (UUID Derived UID); RFC 9562 section 5.5.
"""

import uuid
from enum import StrEnum

_NAMESPACE = uuid.UUID("b0c8e1de-52f5-5a54-9a0c-7cf0f6f2a0d1")
"""Fixed for ever: another value would give every result a second UID."""


class Kind(StrEnum):
    """What a UID is for."""

    STRUCTURED_REPORT = "structured_report"
    SECONDARY_CAPTURE = "secondary_capture"


def _derive(*parts: str) -> str:
    """Hash `parts` into a UID; their lengths are hashed too, so that no two lists of parts read alike."""
    name = "".join(f"{len(part)}:{part}" for part in parts)
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"


def result_instance_uid(kind: Kind, source_sop_instance_uid: str, model_digest: str, configuration_digest: str) -> str:
    """Give the SOP Instance UID of a result."""
    return _derive("instance", kind, source_sop_instance_uid, model_digest, configuration_digest)


def result_series_uid(kind: Kind, source_sop_instance_uid: str, model_digest: str, configuration_digest: str) -> str:
    """Give the Series Instance UID of a result: one series for each result.

    Equipment, Laterality and Series Date are attributes of a series (PS3.3 C.7.3.1), and differ between results of a study.
    """
    return _derive("series", kind, source_sop_instance_uid, model_digest, configuration_digest)


def tracking_uid(report_instance_uid: str, subject: str) -> str:
    """Give the Tracking Unique Identifier of one measurement group (`subject`, e.g. "R total_hip") in a report (TID 4108)."""
    return _derive("tracking", report_instance_uid, subject)


def device_uid(manufacturer: str, model_name: str, serial_number: str, station_name: str) -> str:
    """Give the Device Observer UID of an installation (TID 1004)."""
    return _derive("device", manufacturer, model_name, serial_number, station_name)


IMPLEMENTATION_CLASS_UID = _derive("implementation", "dicomnode-bmd")
"""Implementation Class UID of the objects that this package writes (0002,0012) and of its associations. Source: PS3.7 D.3.3.2."""
