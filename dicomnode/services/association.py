"""What a node that faces strangers needs beyond pynetdicom 3.0.4's acceptor: bounds on memory, disk, time and connections.

Each class here replaces one part of pynetdicom through its own seams (subclasses, `server_class`, an event handler):

- `SpoolingDimse` writes the data set of a C-STORE to the spool while it comes in. pynetdicom's own chunked mode writes to the
  system's temporary folder (another file system), and a full disk there ends the association without an answer.
- `BoundedSocket` reads a PDU in large pieces, no longer than is sensible, and within a time. pynetdicom reads 4 KiB at a time,
  as many as the peer's length field claims (up to 4 GiB), for as long as the peer likes.
- `BoundedServer` limits open TCP connections, also those that never ask for an association.
"""

import logging
import socketserver
import time
from collections.abc import Callable
from typing import Any, Protocol, cast

from pydicom.uid import UID
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket, ThreadedAssociationServer

from dicomnode.dicom.equipment import Equipment
from dicomnode.dicom.uids import IMPLEMENTATION_CLASS_UID
from dicomnode.logline import line

LOGGER = logging.getLogger(__name__)

PDU_HEADER_BYTES = 6
"""Source: PS3.8 Section 9.3.1: type, reserved, length."""
LARGEST_NEGOTIATION_PDU_BYTES = 1 << 20
"""An A-ASSOCIATE-RQ with all 128 presentation contexts stays far below this."""

# pynetdicom's standard handlers format a text for every PDU and message; our own lines say what matters.
_config.LOG_HANDLER_LEVEL = "none"


def application_entity(ae_title: str) -> AE:
    """Make an application entity that announces itself as this software, not as the library beneath it."""
    entity = AE(ae_title)
    entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    entity.implementation_version_name = Equipment().implementation_version_name
    return entity


class DatasetSink(Protocol):
    """Where the fragments of one C-STORE's data set go. `write` must not raise: it runs in pynetdicom's reading thread."""

    def write(self, fragment: bytes) -> None:
        """Take the next fragment."""

    def close(self) -> None:
        """Let go of the file; a second call does nothing."""


OpenSink = Callable[[Association, Any, str], DatasetSink]
"""From (association, command set, transfer syntax UID) to the sink of the data set that follows."""


class SpooledDataset:
    """A sink in the shape of the temporary file that pynetdicom's chunked mode keeps with a message."""

    name = ""
    """pynetdicom removes the file of this name after the handler has run; there is none."""

    def __init__(self, sink: DatasetSink) -> None:
        self.sink = sink

    @property
    def file(self) -> "SpooledDataset":
        """pynetdicom flushes `.file` after each fragment."""
        return self

    def write(self, fragment: bytes) -> None:
        """Pass a fragment on."""
        self.sink.write(fragment)

    def flush(self) -> None:
        """Do nothing: the sink does not buffer."""

    def close(self) -> None:
        """Close the sink."""
        self.sink.close()


class SpoolingDimse(DIMSEServiceProvider):
    """A DIMSE provider that sends the data set of each C-STORE into a sink, fragment by fragment."""

    def __init__(self, association: Association, open_sink: OpenSink) -> None:
        super().__init__(association)
        self._open_sink = open_sink
        self._open: list[SpooledDataset] = []

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take one P-DATA primitive; what cannot be decoded aborts the association (PS3.8 Section 9.2, event 19)."""
        try:
            for value in primitive.presentation_data_value_list:
                single = P_DATA()
                single.presentation_data_value_list.append(value)
                super().receive_primitive(single)
                self._attach_sink()
        except Exception as error:
            LOGGER.warning(line("undecodable message", error=type(error).__name__, peer=address(self.assoc)))
            LOGGER.debug("undecodable message", exc_info=True)
            self.dul.event_queue.put("Evt19")

    def close_sinks(self) -> None:
        """Close what an association that ended early has left open."""
        while self._open:
            self._open.pop().close()

    def _attach_sink(self) -> None:
        """Give a C-STORE request whose command set is complete a sink, before its first data fragment is decoded."""
        message = self.message
        if not isinstance(message, C_STORE_RQ) or message._data_set_file is not None:
            return
        context = self.assoc._accepted_cx.get(cast(int, message.context_id))
        if context is None:
            raise ValueError(f"C-STORE in presentation context {message.context_id}, which was not accepted")
        self.close_sinks()
        spooled = SpooledDataset(self._open_sink(self.assoc, message.command_set, str(context.transfer_syntax[0])))
        self._open.append(spooled)
        message._data_set_file = cast(Any, spooled)


class BoundedSocket(AssociationSocket):
    """A socket that reads whole PDUs of a bounded size within a bounded time."""

    largest_pdu_bytes: int
    pdu_timeout_s: float

    @classmethod
    def bound(cls, association: Association, largest_pdu_bytes: int, pdu_timeout_s: float) -> None:
        """Put a bounded socket in the place of the association's present one."""
        present = cast(AssociationSocket, association.dul.socket)
        present.__class__ = cls
        bounded = cast(BoundedSocket, present)
        bounded.largest_pdu_bytes = max(largest_pdu_bytes, LARGEST_NEGOTIATION_PDU_BYTES) + PDU_HEADER_BYTES
        bounded.pdu_timeout_s = pdu_timeout_s
        if bounded.socket is not None:
            bounded.socket.settimeout(pdu_timeout_s)

    def recv(self, nr_bytes: int) -> bytearray:
        """Read `nr_bytes`, fewer only when the peer has closed.

        Raises:
            OSError: the PDU claims to be longer than we announced (pynetdicom then closes the connection).
            TimeoutError: it did not come in time.
        """
        if nr_bytes > self.largest_pdu_bytes:
            raise OSError(f"PDU of {nr_bytes} bytes, at most {self.largest_pdu_bytes} were announced")
        if self.socket is None:
            raise OSError("connection closed")
        buffer = bytearray(nr_bytes)
        view = memoryview(buffer)
        received = 0
        deadline = time.monotonic() + self.pdu_timeout_s
        while received < nr_bytes:
            count = self.socket.recv_into(view[received:])
            if count == 0:
                return buffer[:received]
            received += count
            if received < nr_bytes and time.monotonic() > deadline:
                raise TimeoutError(f"{received} of {nr_bytes} bytes of a PDU in {self.pdu_timeout_s} s")
        return buffer


class BoundedServer(ThreadedAssociationServer):
    """A server with a limit on open connections."""

    daemon_threads = True

    def __init__(self, *args: Any, max_connections: int, **kwargs: Any) -> None:
        self._max_connections = max_connections
        super().__init__(*args, **kwargs)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Refuse (by closing it) a connection beyond the limit."""
        if len(self.active_associations) < self._max_connections:
            return True
        LOGGER.warning(line("connection refused", reason="too many connections", peer=client_address[0]))
        return False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong before an association existed."""
        LOGGER.exception(line("connection failed", peer=client_address[0]))

    def shutdown(self) -> None:
        """Stop listening."""
        socketserver.BaseServer.shutdown(self)
        self.server_close()


def address(association: Association) -> str:
    """Give the peer's IP address."""
    requestor = association.requestor.address_info
    return requestor.address if requestor is not None else ""


def spooling(open_sink: OpenSink, largest_pdu_bytes: int, pdu_timeout_s: float) -> Callable[[Event], None]:
    """Make the handler of EVT_CONN_OPEN that equips each association before it starts."""

    def equip(event: Event) -> None:
        event.assoc.dimse = SpoolingDimse(event.assoc, open_sink)
        BoundedSocket.bound(event.assoc, largest_pdu_bytes, pdu_timeout_s)

    return equip


def close_sinks(event: Event) -> None:
    """Handle EVT_CONN_CLOSE, EVT_ABORTED and EVT_RELEASED: nothing half received stays."""
    if isinstance(event.assoc.dimse, SpoolingDimse):
        event.assoc.dimse.close_sinks()
