"""The Storage SCP. A success is said only after the bytes and the row that speaks of them are on the disk.

For each C-STORE: spool (temporary file, SHA-256, synchronise, rename, synchronise the folder), then one transaction {instance row,
workflow enqueued}, then 0x0000. The unit of work is the instance: the end of an association means nothing.
"""

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from dicomnode.dicom.admission import (
    ACCEPTED_SOP_CLASSES,
    ACCEPTED_TRANSFER_SYNTAXES,
    DEFAULT_LIMITS,
    Limits,
    admit,
    check_request,
)
from dicomnode.dicom.attributes import text
from dicomnode.dicom.reader import read_encoded
from dicomnode.dicom.status import DimseStatus
from dicomnode.dicom.uids import IMPLEMENTATION_CLASS_UID
from dicomnode.errors import CannotUnderstand, DicomNodeError, LedgerUnavailable, Refused
from dicomnode.logline import line
from dicomnode.services.association import (
    BoundedServer,
    SpooledDataset,
    address,
    application_entity,
    close_sinks,
    spooling,
)
from dicomnode.storage.ledger import Arrival, Enqueue, Ledger, Registration
from dicomnode.storage.peers import Peers
from dicomnode.storage.rows import Ae, NewInstance
from dicomnode.storage.spool import Incoming, Spool

LOGGER = logging.getLogger(__name__)

ORPHAN_AGE_S = 600.0
"""A kept file without a row that is older than this belongs to no receiver that is still at work on it."""
ORPHAN_SWEEP_S = 3600.0
ERROR_COMMENT_CHARACTERS = 64
"""Source: PS3.7 Annex E.1, Error Comment (0000,0902), VR LO."""

REJECTED_PERMANENT, REJECTED_TRANSIENT = 0x01, 0x02
BY_USER, BY_ACSE, BY_PRESENTATION = 0x01, 0x02, 0x03
CALLING_UNKNOWN, CALLED_UNKNOWN, NO_REASON, LOCAL_LIMIT = 0x03, 0x07, 0x01, 0x02
"""Source: PS3.8 Table 9-21 (A-ASSOCIATE-RJ: result, source, reason)."""


@dataclass(frozen=True)
class ReceiverSettings:
    """Who we are to modalities, and what a peer may cost."""

    ae_title: str
    bind: str = "127.0.0.1"
    port: int = 11112
    """0: any free one (tests); `Receiver.port` tells which."""
    require_called_ae_title: bool = True
    allow_unlisted_callers: bool = False
    maximum_pdu_bytes: int = 262144
    """Announced to peers. From 128 KiB on 15 MB images travel at the speed of DCMTK's storescp."""
    maximum_associations: int = 16
    negotiation_timeout_s: float = 15.0
    """From the TCP connection to the A-ASSOCIATE-RQ."""
    network_timeout_s: float = 60.0
    """Longest silence in an association, and longest time for one PDU."""
    limits: Limits = DEFAULT_LIMITS


class Receiver:
    """The Storage SCP on one port. `start` listens in threads; `stop` ends every association."""

    def __init__(
        self, settings: ReceiverSettings, ledger: Ledger, peers: Peers, spool: Spool, enqueue: Enqueue
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._peers = peers
        self._spool = spool
        self._enqueue = enqueue
        self._listed: dict[str, Ae] | None = None
        self._server: BoundedServer | None = None

    @property
    def port(self) -> int:
        """The port that is listened on."""
        if self._server is None:
            raise RuntimeError("the receiver is not started")
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken or not permitted.
        """
        settings = self._settings
        handlers = [
            (evt.EVT_CONN_OPEN, spooling(self._open, settings.maximum_pdu_bytes, settings.network_timeout_s)),
            (evt.EVT_REQUESTED, self._check_requestor),
            (evt.EVT_C_ECHO, self._echo),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_CONN_CLOSE, close_sinks),
            (evt.EVT_ABORTED, close_sinks),
            (evt.EVT_RELEASED, close_sinks),
        ]
        entity = _application_entity(settings)
        self._server = BoundedServer(
            entity,
            (settings.bind, settings.port),
            settings.ae_title,
            entity.supported_contexts,
            evt_handlers=handlers,
            max_connections=4 * settings.maximum_associations,
        )
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="receiver", daemon=True).start()
        LOGGER.info(line("listening", ae_title=settings.ae_title, bind=settings.bind, port=self.port))

    def stop(self, grace_s: float = 5.0) -> None:
        """Stop listening, give running associations `grace_s` to end, abort the rest."""
        if self._server is None:
            return
        self._server.shutdown()
        deadline = time.monotonic() + grace_s
        while self._server.active_associations and time.monotonic() < deadline:
            time.sleep(0.05)
        for association in self._server.active_associations:
            association.abort()
        LOGGER.info(line("stopped listening", ae_title=self._settings.ae_title))

    # -- association --------------------------------------------------------------------------------------------

    def _check_requestor(self, event: Event) -> None:
        """Reject an association before its negotiation. Fails closed: pynetdicom would go on after an exception."""
        try:
            rejection = self._rejection(event.assoc)
        except Exception:
            LOGGER.exception(line("association check failed", peer=address(event.assoc)))
            rejection = ((REJECTED_TRANSIENT, BY_ACSE, NO_REASON), "internal error")
        if rejection is None:
            return
        reason, words = rejection
        primitive: Any = event.assoc.requestor.primitive
        called, calling = primitive.called_ae_title, primitive.calling_ae_title
        LOGGER.warning(
            line("association rejected", reason=words, calling=calling, called=called, peer=address(event.assoc))
        )
        event.assoc.acse.send_reject(*reason)
        event.assoc.kill()

    def _rejection(self, association: Association) -> tuple[tuple[int, int, int], str] | None:
        primitive: Any = association.requestor.primitive
        if self._settings.require_called_ae_title and primitive.called_ae_title != self._settings.ae_title:
            words = f"called AE title is not ours ({self._settings.ae_title})"
            return (REJECTED_PERMANENT, BY_USER, CALLED_UNKNOWN), words
        unknown = None if self._settings.allow_unlisted_callers else self._why_not_a_caller(association)
        if unknown is not None:
            return (REJECTED_PERMANENT, BY_USER, CALLING_UNKNOWN), unknown
        established = sum(other.is_established for other in association.ae.active_associations)
        if established >= self._settings.maximum_associations:
            return (REJECTED_TRANSIENT, BY_PRESENTATION, LOCAL_LIMIT), "too many associations"
        return None

    def _why_not_a_caller(self, association: Association) -> str | None:
        """Ask the ledger each time, so that a change counts at once; without a database the last known list holds."""
        try:
            self._listed = {peer.ae_title: peer for peer in self._peers.all()}
        except LedgerUnavailable:
            if self._listed is None:
                raise
        primitive: Any = association.requestor.primitive
        listed = self._listed.get(primitive.calling_ae_title)
        if listed is None:
            return "calling AE is not listed; dicomnode ae add"
        if not listed.may_send:
            return "calling AE is listed, but may not send; dicomnode ae change --may-send"
        if listed.calls_from not in ("", address(association)):
            return f"calling AE may call from {listed.calls_from} only; dicomnode ae change --calls-from"
        return None

    def _echo(self, event: Event) -> int:
        return DimseStatus.SUCCESS

    # -- C-STORE ------------------------------------------------------------------------------------------------

    def _open(self, association: Association, command: Any, transfer_syntax_uid: str) -> "Arriving":
        """Open the sink of a data set whose C-STORE request has just been read."""
        return Arriving(self._spool, association, command, transfer_syntax_uid)

    def _store(self, event: Event) -> Dataset:
        """Answer one C-STORE request; whatever happens, the peer gets a true status."""
        started = time.monotonic()
        try:
            arriving = _arriving(event)
            with arriving:
                registration = self._take(arriving)
        except Refused as refusal:
            return self._refuse(event, refusal.status, str(refusal))
        except (LedgerUnavailable, OSError) as error:
            return self._refuse(event, DimseStatus.OUT_OF_RESOURCES, str(error))
        except Exception as error:
            LOGGER.exception(line("store failed", sop_instance_uid=_requested_uid(event)))
            return self._refuse(event, DimseStatus.PROCESSING_FAILURE, f"internal error: {type(error).__name__}")
        self._tell(event, arriving, registration, time.monotonic() - started)
        if registration.arrival is Arrival.CONFLICTING:
            # The bytes are kept, but they are not what the node works with: a success would let the peer believe so.
            return _response(DimseStatus.DUPLICATE_SOP_INSTANCE, "UID known with other content; kept for review")
        # Only now may the peer delete its copy.
        return _response(DimseStatus.SUCCESS)

    def _take(self, arriving: "Arriving") -> Registration:
        sha256 = arriving.incoming.finish()
        admitted = admit(
            arriving.incoming.path, arriving.sop_class_uid, arriving.sop_instance_uid, self._settings.limits
        )
        path = self._spool.keep(arriving.incoming.path)
        new = NewInstance(
            sop_instance_uid=admitted.sop_instance_uid,
            sop_class_uid=admitted.sop_class_uid,
            transfer_syntax_uid=admitted.transfer_syntax_uid,
            study_instance_uid=admitted.study_instance_uid,
            calling_ae_title=arriving.calling_ae_title,
            called_ae_title=arriving.called_ae_title,
            peer_address=arriving.peer_address,
            dataset_sha256=sha256,
            size_bytes=arriving.incoming.size_bytes,
            spool_path=path,
        )
        return self._register(new)

    def _register(self, new: NewInstance) -> Registration:
        try:
            registration = self._ledger.register(new, self._enqueue)
        except Exception:
            self._discard_unless_known(new.spool_path)
            raise
        if registration.kept_path != new.spool_path and not self._heal(new, registration):
            self._spool.discard(new.spool_path)
        return registration

    def _heal(self, new: NewInstance, registration: Registration) -> bool:
        """Let a repeat take the place of the copy that the ledger refers to, should the disk have lost or damaged that."""
        healed = self._spool.restore(new.spool_path, registration.kept_path, new.dataset_sha256)
        if healed:
            LOGGER.warning(line("healed by a repeat", job=registration.instance.id, path=registration.kept_path))
        return healed

    def _discard_unless_known(self, path: str) -> None:
        """Remove a file whose registration failed. A commit may have succeeded although its answer was lost: then it stays."""
        try:
            if self._ledger.unknown_paths([path]):
                self._spool.discard(path)
        except (DicomNodeError, OSError) as error:
            LOGGER.warning(line("left for the sweep", path=path, error=str(error)))

    def register_orphans(self, older_than_s: float = ORPHAN_AGE_S) -> int:
        """Register kept files that no row speaks of: a process died between file and row, or the ledger is an older backup.

        They were admitted when they came. Measuring one that was never acknowledged does no harm: the peer sends it again, and
        that is a repeat. Give the number of files registered.
        """
        paths = list(self._spool.received(older_than_s))
        orphans = [orphan for batch in _batches(paths, 500) for orphan in self._ledger.unknown_paths(batch)]
        for path in orphans:
            self._register_orphan(path)
        return len(orphans)

    def _register_orphan(self, path: str) -> None:
        try:
            new = describe(self._spool, path, self._settings.limits)
            registration = self._register(new)
        except (DicomNodeError, OSError) as error:
            LOGGER.error(line("orphan cannot be registered", path=path, error=str(error)))
            return
        LOGGER.warning(
            line(
                "orphan registered",
                path=path,
                arrival=registration.arrival.value,
                sop_instance_uid=registration.instance.sop_instance_uid,
            )
        )

    def _refuse(self, event: Event, status: int, reason: str) -> Dataset:
        LOGGER.warning(
            line(
                "refused",
                status=f"0x{status:04X}",
                reason=reason,
                sop_instance_uid=_requested_uid(event),
                calling=event.assoc.requestor.ae_title,
                peer=address(event.assoc),
            )
        )
        return _response(status, reason)

    def _tell(self, event: Event, arriving: "Arriving", registration: Registration, seconds: float) -> None:
        conflicting = registration.arrival is Arrival.CONFLICTING
        LOGGER.log(
            logging.ERROR if conflicting else logging.INFO,
            line(
                "conflicting content kept" if conflicting else "stored",
                arrival=registration.arrival.value,
                job=registration.instance.id,
                sop_instance_uid=registration.instance.sop_instance_uid,
                calling=arriving.calling_ae_title,
                peer=arriving.peer_address,
                size_bytes=arriving.incoming.size_bytes,
                seconds=seconds,
            ),
        )


class Arriving:
    """The data set of one C-STORE request on its way into the spool, with what the request said of it."""

    def __init__(self, spool: Spool, association: Association, command: Any, transfer_syntax_uid: str) -> None:
        self.sop_class_uid = str(command.get("AffectedSOPClassUID", ""))
        self.sop_instance_uid = str(command.get("AffectedSOPInstanceUID", ""))
        self.calling_ae_title = str(association.requestor.ae_title).strip()
        self.called_ae_title = str(getattr(association.requestor.primitive, "called_ae_title", "")).strip()
        self.peer_address = address(association)
        self.incoming = self._open(spool, transfer_syntax_uid)

    def _open(self, spool: Spool, transfer_syntax_uid: str) -> Incoming:
        try:
            check_request(self.sop_class_uid, self.sop_instance_uid)
            head = file_head(self.sop_class_uid, self.sop_instance_uid, transfer_syntax_uid, self.calling_ae_title)
        except Refused as refusal:
            return spool.refuse(refusal)
        return spool.receive(head)

    def write(self, fragment: bytes) -> None:
        """Append a fragment of the data set."""
        self.incoming.write(fragment)

    def close(self) -> None:
        """Remove the file unless it was kept."""
        self.incoming.close()

    def __enter__(self) -> "Arriving":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(
    settings: ReceiverSettings, ledger: Ledger, peers: Peers, spool: Spool, enqueue: Enqueue, stop: threading.Event
) -> None:
    """Run the receiver until `stop` is set.

    Raises:
        OSError: the port is taken or not permitted.
    """
    receiver = Receiver(settings, ledger, peers, spool, enqueue)
    spool.prepare()
    removed = spool.empty_incoming()
    if removed:
        LOGGER.warning(line("removed half received files", files=removed))
    receiver.start()
    try:
        sweep_at = 0.0
        while not stop.wait(0.5):
            if time.monotonic() >= sweep_at:
                _sweep(receiver)
                sweep_at = time.monotonic() + ORPHAN_SWEEP_S
    finally:
        receiver.stop()


def _sweep(receiver: Receiver) -> None:
    try:
        receiver.register_orphans()
    except Exception:
        LOGGER.exception(line("orphan sweep failed"))


def _application_entity(settings: ReceiverSettings) -> AE:
    entity = application_entity(settings.ae_title)
    entity.maximum_pdu_size = settings.maximum_pdu_bytes
    entity.acse_timeout = settings.negotiation_timeout_s
    entity.dimse_timeout = settings.network_timeout_s
    entity.network_timeout = settings.network_timeout_s
    # Our own check counts established associations; pynetdicom's would count idle TCP connections too.
    entity.maximum_associations = 1 << 16
    entity.add_supported_context(Verification)
    for sop_class_uid in ACCEPTED_SOP_CLASSES:
        entity.add_supported_context(sop_class_uid, list(ACCEPTED_TRANSFER_SYNTAXES))
    return entity


def file_head(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, calling_ae_title: str) -> bytes:
    """Give preamble and file meta information of a received object. Source: PS3.10 Section 7.1."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.SourceApplicationEntityTitle = calling_ae_title
    buffer = DicomBytesIO()
    buffer.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(buffer, meta)
    return buffer.getvalue()


def describe(spool: Spool, path: str, limits: Limits) -> NewInstance:
    """Read again from a kept file what its row says.

    Raises:
        Refused: the file is no object that we admit.
        PermanentFailure: it is damaged.
        OSError: it cannot be read.
    """
    absolute = spool.absolute(path)
    meta = read_encoded(absolute, limits).dataset.file_meta
    admitted = admit(absolute, text(meta, "MediaStorageSOPClassUID"), text(meta, "MediaStorageSOPInstanceUID"), limits)
    sha256, size_bytes = spool.dataset_digest(path)
    return NewInstance(
        sop_instance_uid=admitted.sop_instance_uid,
        sop_class_uid=admitted.sop_class_uid,
        transfer_syntax_uid=admitted.transfer_syntax_uid,
        study_instance_uid=admitted.study_instance_uid,
        calling_ae_title=text(meta, "SourceApplicationEntityTitle"),
        called_ae_title="",
        peer_address="",
        dataset_sha256=sha256,
        size_bytes=size_bytes,
        spool_path=path,
    )


def _arriving(event: Event) -> Arriving:
    spooled = event.request._dataset_file
    if not isinstance(spooled, SpooledDataset) or not isinstance(spooled.sink, Arriving):
        raise CannotUnderstand("C-STORE request without a data set")
    return spooled.sink


def _requested_uid(event: Event) -> str:
    return str(getattr(event.request, "AffectedSOPInstanceUID", ""))


def _response(status: int, comment: str = "") -> Dataset:
    response = Dataset()
    response.Status = int(status)
    if comment:
        plain = comment.encode("ascii", "replace").decode().replace("\\", "/")
        response.ErrorComment = plain[:ERROR_COMMENT_CHARACTERS]
    return response


def _batches(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
