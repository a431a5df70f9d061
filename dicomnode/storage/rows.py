"""What the ledger says, as frozen values: no session, no connection, no surprise on a later read."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class InstanceState(StrEnum):
    """How far a received instance has come. Each state is written in the transaction that makes it true."""

    RECEIVED = "received"
    """Acknowledged to the peer: bytes in the spool, row committed."""
    MEASURED = "measured"
    """A result row holds its figures (or the reason why there are none)."""
    ENCODED = "encoded"
    """The objects to deliver lie in the spool and have rows."""
    DISPATCHED = "dispatched"
    """One delivery row per object and destination; the rest is the sender's."""
    QUARANTINED = "quarantined"
    """A person must look; `note` says why. Nothing is deleted."""


UNFINISHED = (InstanceState.RECEIVED, InstanceState.MEASURED, InstanceState.ENCODED)
"""States from which work goes on by itself."""


class DeliveryState(StrEnum):
    """Where one object stands on its way to one destination."""

    PENDING = "pending"
    DELIVERED = "delivered"
    HELD = "held"
    """Waits for a person (`dicomnode retry`); `detail` says why."""


class AttemptOutcome(StrEnum):
    """How one attempt to deliver ended."""

    DELIVERED = "delivered"
    FAILED = "failed"
    """Will be tried again."""
    REFUSED = "refused"
    """Will not be tried again without a person."""


@dataclass(frozen=True)
class NewInstance:
    """A received object that lies in the spool, before it has a row."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    study_instance_uid: str
    calling_ae_title: str
    called_ae_title: str
    peer_address: str
    dataset_sha256: str
    """Over the encoded data set without file meta information, which is ours and changes with our version."""
    size_bytes: int
    """Of the encoded data set."""
    spool_path: str
    """Relative to the spool's root, POSIX."""


@dataclass(frozen=True)
class Instance(NewInstance):
    """A received object."""

    id: int
    state: InstanceState
    run: int
    """Number of the workflow run that works on it; a retry by a person is a new run."""
    attempts: int
    """Times that the current step was begun without an end being recorded."""
    shortages: int
    """Times that memory ran short in the current step; these are no attempts."""
    step: str
    """Step that was begun last."""
    note: str
    """Why it is quarantined, or what it waits for."""
    next_attempt_at: datetime | None
    """Not to be worked on before; None: at once."""
    received_at: datetime
    changed_at: datetime


@dataclass(frozen=True)
class Conflict:
    """Other bytes under a known SOP Instance UID: kept, never measured by itself."""

    id: int
    instance_id: int
    dataset_sha256: str
    size_bytes: int
    spool_path: str
    calling_ae_title: str
    times_received: int
    received_at: datetime


@dataclass(frozen=True)
class Result:
    """Figures of one instance by one model under one configuration."""

    id: int
    instance_id: int
    model_digest: str
    configuration_digest: str
    figures: Mapping[str, Any]
    checkpoint_path: str
    """Spool file with figures and maps, from which the objects are encoded."""
    created_at: datetime


@dataclass(frozen=True)
class NewObject:
    """A DICOM object that we made and that lies in the spool."""

    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    sha256: str
    """Over the whole file: it must still hold when the file is sent."""
    size_bytes: int
    spool_path: str


@dataclass(frozen=True)
class Object(NewObject):
    """A DICOM object that we made. Its file never changes once this row is committed."""

    id: int
    instance_id: int
    result_id: int
    created_at: datetime


@dataclass(frozen=True)
class Delivery:
    """One object on its way to one destination."""

    id: int
    object_id: int
    destination: str
    """AE title; its address is looked up when sending."""
    state: DeliveryState
    attempts: int
    next_attempt_at: datetime
    since: datetime
    """Start of the age that `max_age_s` limits: creation, or a person's last retry."""
    claimed_by: str | None
    claimed_until: datetime | None
    status: int | None
    """DIMSE status of the last answer."""
    detail: str
    delivered_at: datetime | None


@dataclass(frozen=True)
class Attempt:
    """One attempt to deliver, kept for ever."""

    id: int
    delivery_id: int
    ended_at: datetime
    outcome: AttemptOutcome
    status: int | None
    detail: str


@dataclass(frozen=True)
class Due:
    """A claimed delivery with all that sending needs."""

    delivery: Delivery
    object: Object
    source_spool_path: str
    source_sha256: str


@dataclass(frozen=True, kw_only=True)
class NewAe:
    """A peer as the administrator names it: who may send, who receives results, or both."""

    ae_title: str
    may_send: bool = False
    """Its C-STOREs are taken."""
    calls_from: str = ""
    """IP address that it must call from; empty: any."""
    receives_results: bool = False
    """Every object that we make is delivered to it, at `host` and `port`."""
    host: str = ""
    port: int | None = None
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Ae(NewAe):
    """A configured peer."""

    id: int
    created_at: datetime


@dataclass(frozen=True)
class Job:
    """One line of `dicomnode jobs`: an instance and how its deliveries stand."""

    instance: Instance
    outcome: str
    """"measured", the reason why it is not measurable, or empty before it was looked at."""
    deliveries: Mapping[DeliveryState, int]
    conflicts: int

    @property
    def summary(self) -> str:
        """One word for a person: the instance's state until dispatched, then that of its worst delivery."""
        if self.instance.state is not InstanceState.DISPATCHED:
            return self.instance.state.value
        for state in (DeliveryState.HELD, DeliveryState.PENDING):
            if self.deliveries.get(state, 0):
                return state.value
        return DeliveryState.DELIVERED.value


@dataclass(frozen=True)
class DeliveryDetail:
    """A delivery with its object and its history."""

    delivery: Delivery
    object: Object
    history: tuple[Attempt, ...]


@dataclass(frozen=True)
class JobDetail:
    """All that the ledger knows of one instance (`dicomnode show`)."""

    instance: Instance
    results: tuple[Result, ...]
    deliveries: tuple[DeliveryDetail, ...]
    objects: tuple[Object, ...]
    conflicts: tuple[Conflict, ...]


@dataclass(frozen=True)
class Retried:
    """What a person's `retry` set going."""

    resumed_from: InstanceState | None
    """From where the instance goes on; None where it was not to be set going."""
    deliveries: int
