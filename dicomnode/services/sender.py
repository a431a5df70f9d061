"""The sender: takes due deliveries from the outbox and stores their objects at their destinations, until each is answered for.

Each destination has its own thread, association and back-off, so that a dead one holds up nobody. An answer is recorded at once,
object by object; when the process dies between the peer's answer and the record, the same object goes out again under the same
UID, which the peer acknowledges (0x0000) or calls a duplicate (0x0111): both mean delivered.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from io import BytesIO

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import _config, evt
from pynetdicom.association import Association

from dicomnode.dicom.attributes import text, values
from dicomnode.dicom.reader import DEFAULT_LIMITS, Limits, read_encoded
from dicomnode.dicom.status import Outcome, classify
from dicomnode.errors import DicomNodeError, LedgerUnavailable, PermanentFailure
from dicomnode.logline import line
from dicomnode.services.association import application_entity
from dicomnode.services.recheck import require_same_examination
from dicomnode.storage.database import Clock, utc_now
from dicomnode.storage.outbox import Outbox
from dicomnode.storage.peers import Peers
from dicomnode.storage.rows import Ae, Due
from dicomnode.storage.spool import Spool

LOGGER = logging.getLogger(__name__)

# pynetdicom's standard handlers format a text for every PDU and message; our own lines say what matters.
_config.LOG_HANDLER_LEVEL = "none"

TRANSFER_SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
"""Proposed for every object. Every acceptor takes the second one (PS3.5 Section 10.1)."""
MOST_OFFENDING_ELEMENTS = 8


@dataclass(frozen=True)
class SenderSettings:
    """How results are delivered."""

    ae_title: str
    """Our calling AE title."""
    sender_id: str = "sender-1"
    """Unique among the senders on one database, the same after a restart."""
    first_delay_s: float = 5.0
    longest_delay_s: float = 900.0
    """Cap of the back-off, which doubles with each attempt."""
    maximum_age_s: float = 72 * 3600.0
    """After this long without success a delivery waits for a person."""
    connection_timeout_s: float = 10.0
    network_timeout_s: float = 30.0
    """Longest wait for the answer to an association request or to a C-STORE."""
    maximum_pdu_bytes: int = 131072
    objects_per_association: int = 50
    destinations_at_once: int = 8
    poll_interval_s: float = 0.2
    limits: Limits = DEFAULT_LIMITS
    """Those under which radiographs were received."""
    undeclared_character_set: str = "ISO_IR 100"
    """As in the reports, so that a result can be compared with its radiograph."""

    @property
    def lease(self) -> timedelta:
        """How long a claim holds: longer than the longest that a whole association may take."""
        return timedelta(
            seconds=(self.objects_per_association + 2) * self.network_timeout_s + self.connection_timeout_s
        )


@dataclass
class _Destinations:
    """Which destinations are being served, and which rest after a failure."""

    busy: set[str] = field(default_factory=set)
    resting_until_s: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def occupy(self, destination: str) -> bool:
        with self.lock:
            if destination in self.busy or self.resting_until_s.get(destination, 0.0) > time.monotonic():
                return False
            self.busy.add(destination)
            return True

    def free(self, destination: str, rest_s: float) -> None:
        with self.lock:
            self.busy.discard(destination)
            self.resting_until_s[destination] = time.monotonic() + rest_s


class Sender:
    """Delivers what is due. `serve` runs it as a program.

    Args:
        jitter: gives the share of a back-off delay that is kept, 0.5..1: many nodes must not come back all at once.
    """

    def __init__(
        self,
        settings: SenderSettings,
        outbox: Outbox,
        peers: Peers,
        spool: Spool,
        now: Clock = utc_now,
        jitter: Callable[[], float] = lambda: random.uniform(0.5, 1.0),
    ) -> None:
        self._settings = settings
        self._outbox = outbox
        self._peers = peers
        self._spool = spool
        self._now = now
        self._jitter = jitter
        self._destinations = _Destinations()
        self._stopping = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """Deliver until `stop` is set; objects that are on their way then are finished, the others given back."""
        LOGGER.info(line("sending", sender=self._settings.sender_id))
        with ThreadPoolExecutor(self._settings.destinations_at_once, thread_name_prefix="destination") as pool:
            while not stop.wait(self._settings.poll_interval_s):
                for destination in self._due():
                    if self._destinations.occupy(destination):
                        pool.submit(self._serve, destination)
            self._stopping.set()
        LOGGER.info(line("stopped sending", sender=self._settings.sender_id))

    def _due(self) -> list[str]:
        try:
            return self._outbox.destinations_due(self._settings.sender_id)
        except LedgerUnavailable as error:
            LOGGER.error(line("outbox cannot be read", error=str(error)))
            return []

    def _serve(self, destination: str) -> None:
        rest_s = self._settings.first_delay_s
        try:
            rest_s = self.serve_destination(destination)
        except LedgerUnavailable as error:
            LOGGER.error(line("destination left", destination=destination, error=str(error)))
        except Exception:
            LOGGER.exception(line("destination left", destination=destination))
        finally:
            self._destinations.free(destination, rest_s)

    def serve_destination(self, destination: str) -> float:
        """Send one association's worth of due objects; give the seconds for which the destination shall rest."""
        settings = self._settings
        batch = self._outbox.claim(destination, settings.sender_id, settings.lease, settings.objects_per_association)
        peer = self._peers.find(destination)
        if peer is None or not peer.receives_results:
            for due in batch:
                self._hold(due, None, f"{destination} is no longer configured as a destination; dicomnode ae add")
            return 0.0
        return self._associate_and_send(peer, batch) if batch else 0.0

    def _checked(self, due: Due) -> Dataset | None:
        """Read the object and compare it with its source; None when it must not go out (held) or cannot now (postponed)."""
        try:
            content = self._spool.read(due.object.spool_path, due.object.sha256)
            made = dcmread(BytesIO(content))
            if self._spool.dataset_digest(due.source_spool_path)[0] != due.source_sha256:
                raise PermanentFailure(
                    "the stored radiograph has changed in the spool: its SHA-256 is another; not sent"
                )
            source = read_encoded(self._spool.absolute(due.source_spool_path), self._settings.limits).dataset
            require_same_examination(source, made, self._settings.undeclared_character_set)
            if made.SOPInstanceUID != due.object.sop_instance_uid:
                raise PermanentFailure("the file in the spool holds another SOP Instance UID than the ledger")
        except (DicomNodeError, FileNotFoundError) as error:
            self._hold(due, None, str(error))
            return None
        except OSError as error:
            # One unreadable file is a matter of its own delivery: the others of the destination go on.
            self._fail(due, None, f"the object or its source cannot be read: {error.strerror or type(error).__name__}")
            return None
        return made

    # -- association --------------------------------------------------------------------------------------------

    def _associate_and_send(self, peer: Ae, batch: Sequence[Due]) -> float:
        association, connected = self._associate(peer, {due.object.sop_class_uid for due in batch})
        if association.is_established:
            try:
                return self._send_all(association, batch)
            finally:
                if association.is_established:
                    association.release()
        if association.rejected_contexts:
            for due in batch:
                self._hold(due, None, no_context(due.object.sop_class_uid))
            return 0.0
        reason = failure(association, peer, connected)
        return min(self._fail(due, None, reason) for due in batch)

    def _associate(self, peer: Ae, sop_class_uids: set[str]) -> tuple[Association, bool]:
        """Request an association; tell, too, whether there was a connection at all."""
        settings = self._settings
        entity = application_entity(settings.ae_title)
        entity.maximum_pdu_size = settings.maximum_pdu_bytes
        entity.connection_timeout = settings.connection_timeout_s
        entity.acse_timeout = settings.network_timeout_s
        entity.dimse_timeout = settings.network_timeout_s
        entity.network_timeout = settings.network_timeout_s
        for sop_class_uid in sorted(sop_class_uids):
            entity.add_requested_context(sop_class_uid, TRANSFER_SYNTAXES)
        connected = threading.Event()
        handlers: list[evt.EventHandlerType] = [(evt.EVT_CONN_OPEN, lambda event: connected.set())]
        association = entity.associate(peer.host, peer.port or 0, ae_title=peer.ae_title, evt_handlers=handlers)
        return association, connected.is_set()

    def _send_all(self, association: Association, batch: Sequence[Due]) -> float:
        """Read and send one object after the other, so that no more than one is held in memory.

        Where the association ends, the rest is given back uncounted: it was not their fault.
        """
        accepted = {str(context.abstract_syntax) for context in association.accepted_contexts}
        for position, due in enumerate(batch):
            if self._stopping.is_set() or not association.is_established:
                self._outbox.give_back([later.delivery.id for later in batch[position:]])
                return 0.0
            if due.object.sop_class_uid not in accepted:
                self._hold(due, None, no_context(due.object.sop_class_uid))
                continue
            made = self._checked(due)
            if made is not None:
                self._send(association, due, made)
        return 0.0

    def _send(self, association: Association, due: Due, made: Dataset) -> None:
        try:
            answer = self._store(association, made)
        except (ValueError, AttributeError) as error:
            LOGGER.exception(line("object cannot be encoded", delivery=due.delivery.id))
            self._hold(due, None, f"object cannot be encoded for the destination: {type(error).__name__}")
            return
        self._record(due, answer)

    def _store(self, association: Association, made: Dataset) -> Dataset:
        """Send one C-STORE; give the answer, without a status where there was none."""
        try:
            return association.send_c_store(made)
        except RuntimeError:  # the association ended between our look and the request
            return Dataset()

    # -- outcome ------------------------------------------------------------------------------------------------

    def _record(self, due: Due, answer: Dataset) -> None:
        if "Status" not in answer:
            self._fail(due, None, "no answer to the C-STORE: association aborted, or time-out")
            return
        status, explanation = int(answer.Status), own_words(answer)
        outcome = classify(status)
        if outcome is Outcome.DELIVERED:
            self._outbox.delivered(due.delivery.id, status, explanation)
            _tell(logging.INFO, "delivered", due, status, "")
        elif outcome is Outcome.TRANSIENT:
            self._fail(due, status, "destination is out of resources", explanation)
        else:
            self._hold(due, status, "destination refuses the object", explanation)

    def _fail(self, due: Due, status: int | None, reason: str, explanation: str = "") -> float:
        """Record a transient failure; give the seconds until the next attempt."""
        delay_s = self.delay_s(due.delivery.attempts)
        age = self._now() - due.delivery.since
        if age.total_seconds() + delay_s > self._settings.maximum_age_s:
            self._hold(
                due, status, f"not delivered for {age.total_seconds() / 3600:.1f} h; last: {reason}", explanation
            )
            return delay_s
        next_attempt_at = self._now() + timedelta(seconds=delay_s)
        self._outbox.failed(due.delivery.id, status, _joined(reason, explanation), next_attempt_at)
        _tell(logging.WARNING, "delivery postponed", due, status, reason)
        return delay_s

    def delay_s(self, attempts: int) -> float:
        """Give the delay after so many attempts: doubling, capped, with jitter."""
        doubled = self._settings.first_delay_s * 2.0 ** min(attempts - 1, 32)
        return min(doubled, self._settings.longest_delay_s) * self._jitter()

    def _hold(self, due: Due, status: int | None, reason: str, explanation: str = "") -> None:
        self._outbox.held(due.delivery.id, status, _joined(reason, explanation))
        _tell(logging.ERROR, "delivery held", due, status, reason)


def serve(settings: SenderSettings, outbox: Outbox, peers: Peers, spool: Spool, stop: threading.Event) -> None:
    """Run the sender until `stop` is set."""
    Sender(settings, outbox, peers, spool).run(stop)


def failure(association: Association, peer: Ae, connected: bool) -> str:
    """Word why an association was not established."""
    where = f"{peer.ae_title} at {peer.host}:{peer.port}"
    if not connected:
        return f"{where} cannot be reached"
    if association.is_rejected:
        answer = association.acceptor.primitive
        return f"{where} rejected the association: {getattr(answer, 'reason_str', 'no reason given')}"
    return f"{where} aborted the association or did not answer the request"


def no_context(sop_class_uid: str) -> str:
    """Word that the destination does not take a SOP class in any transfer syntax of ours."""
    return f"destination accepts no presentation context for {UID(sop_class_uid).name}; enable it there, then retry"


def own_words(answer: Dataset) -> str:
    """Word what the destination says of its status, for the ledger alone: a peer's text may name a patient.

    Source: PS3.7 C.4, Error Comment (0000,0902) and Offending Element (0000,0901).
    """
    comment = "".join(character for character in text(answer, "ErrorComment") if character.isprintable())
    elements = ", ".join(str(BaseTag(tag)) for tag in values(answer, "OffendingElement")[:MOST_OFFENDING_ELEMENTS])
    return "; ".join(words for words in (comment, elements and f"offending {elements}") if words)


def _joined(reason: str, explanation: str) -> str:
    return f"{reason}: {explanation}" if explanation else reason


def _tell(level: int, event: str, due: Due, status: int | None, reason: str) -> None:
    LOGGER.log(
        level,
        line(
            event,
            delivery=due.delivery.id,
            job=due.object.instance_id,
            kind=due.object.kind,
            destination=due.delivery.destination,
            attempt=due.delivery.attempts,
            status=f"0x{status:04X}" if status is not None else None,
            reason=reason or None,
            sop_instance_uid=due.object.sop_instance_uid,
        ),
    )
