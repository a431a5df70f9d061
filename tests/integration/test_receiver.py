"""The Storage SCP against real peers: pynetdicom and DCMTK as modalities, and strangers who send what no modality would."""

import hashlib
import io
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import MPEG2MPML, CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session

from dicomnode.dicom.admission import ACCEPTED_SOP_CLASSES, ACCEPTED_TRANSFER_SYNTAXES
from dicomnode.dicom.reader import Limits
from dicomnode.services import receiver
from dicomnode.services.receiver import Receiver, ReceiverSettings, _response
from dicomnode.storage import database
from dicomnode.storage.ledger import Ledger
from dicomnode.storage.peers import Peers
from dicomnode.storage.rows import NewAe, NewInstance
from dicomnode.storage.spool import Spool
from tests.node_kit import eventually, radiograph, recorded_file_calls, send


@dataclass
class Desk:
    """A receiver with all that stands behind it; `settings` and the limits may be changed before `open`."""

    folder: Path
    engine: Engine
    settings: ReceiverSettings = field(
        default_factory=lambda: ReceiverSettings("NODE", port=0, network_timeout_s=5.0, negotiation_timeout_s=1.0)
    )
    free_bytes: int = 1 << 40
    enqueued: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger, self.peers = Ledger(self.engine), Peers(self.engine)
        self.peers.add(NewAe(ae_title="MODALITY", may_send=True))
        self.spool = Spool(self.folder / "spool", 1000, 1 << 22, free=lambda _: self.free_bytes)
        self.spool.prepare()

    def open(self) -> None:
        self.receiver = Receiver(self.settings, self.ledger, self.peers, self.spool, self.enqueue)
        self.receiver.start()

    def enqueue(self, session: Session, instance_id: int, run: int) -> None:
        self.enqueued.append(instance_id)

    @property
    def port(self) -> int:
        return self.receiver.port

    def files(self) -> list[Path]:
        return [path for path in self.spool.root.rglob("*") if path.is_file()]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    database.upgrade(url)
    engine = database.open_engine(url)
    desk = Desk(tmp_path, engine)
    desk.open()
    yield desk
    desk.receiver.stop(grace_s=0.5)
    engine.dispose()


@pytest.fixture
def reopen(desk: Desk) -> Callable[..., Desk]:
    """Open the desk again with other settings."""

    def change(**settings: object) -> Desk:
        desk.receiver.stop(grace_s=0.5)
        desk.settings = replace(desk.settings, **settings)  # type: ignore[arg-type]
        desk.open()
        return desk

    return change


# -- taking what is sent ----------------------------------------------------------------------------------------------


def test_success_means_a_whole_file_a_row_and_an_enqueued_workflow(desk: Desk) -> None:
    dataset = radiograph(1)
    assert send(desk.port, [dataset]) == [0x0000]
    (job,) = desk.ledger.jobs()
    assert job.instance.sop_instance_uid == dataset.SOPInstanceUID
    assert (job.instance.calling_ae_title, job.instance.called_ae_title) == ("MODALITY", "NODE")
    assert job.instance.peer_address == "127.0.0.1"
    assert desk.enqueued == [job.instance.id]
    (file,) = desk.files()
    assert file == desk.spool.absolute(job.instance.spool_path)
    assert dcmread(file) == dataset
    assert desk.spool.dataset_digest(job.instance.spool_path) == (job.instance.dataset_sha256, job.instance.size_bytes)


def test_success_is_said_after_file_folder_and_row_are_on_the_disk(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded_file_calls(desk.spool.root) as calls:
        event.listen(desk.engine, "commit", lambda connection: calls.append(("commit", "")))

        def answer(status: int, comment: str = "") -> Dataset:
            calls.append(("answer", f"0x{status:04X}"))
            return _response(status, comment)

        monkeypatch.setattr(receiver, "_response", answer)
        assert send(desk.port, [radiograph(1)]) == [0x0000]
    assert calls == [
        ("synchronise", "incoming/file"),
        ("synchronise", "instances"),
        ("rename", "incoming/file instances/shard/file"),
        ("synchronise", "instances/shard"),
        ("commit", ""),
        ("answer", "0x0000"),
    ]


def test_one_association_may_bring_many_instances_and_its_end_means_nothing(desk: Desk) -> None:
    datasets = [radiograph(seed) for seed in range(5)]
    assert send(desk.port, datasets) == [0x0000] * 5
    assert len(desk.ledger.jobs()) == 5


def test_many_associations_at_once_are_all_taken(desk: Desk) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: send(desk.port, [radiograph(seed), radiograph(seed + 100)]), range(8)))
    assert answers == [[0x0000, 0x0000]] * 8
    assert len(desk.ledger.jobs()) == len(set(desk.enqueued)) == len(desk.files()) == 16


def test_same_uid_and_same_bytes_are_acknowledged_and_kept_once(desk: Desk) -> None:
    assert send(desk.port, [radiograph(1)] * 3) == [0x0000] * 3
    assert len(desk.ledger.jobs()) == len(desk.files()) == len(desk.enqueued) == 1


def test_same_uid_with_other_bytes_is_kept_flagged_and_told_as_a_duplicate(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    first, other = radiograph(1), radiograph(1, patient_id="TEST-2")
    assert send(desk.port, [first, other, other, first]) == [0x0000, 0x0111, 0x0111, 0x0000]
    (job,) = desk.ledger.jobs()
    (conflict,) = desk.ledger.job(job.instance.id).conflicts
    assert dcmread(desk.spool.absolute(conflict.spool_path)).PatientID == "TEST-2"
    assert dcmread(desk.spool.absolute(job.instance.spool_path)).PatientID == "TEST-1"
    assert conflict.times_received == 2
    assert len(desk.files()) == 2
    assert any("conflicting content kept" in message for message in caplog.messages)


def test_a_repeat_heals_a_file_that_the_disk_has_lost(desk: Desk) -> None:
    send(desk.port, [radiograph(1)])
    (file,) = desk.files()
    file.unlink()
    assert send(desk.port, [radiograph(1)]) == [0x0000]
    assert desk.files() == [file]


def test_a_repeat_heals_a_file_that_the_disk_has_damaged(desk: Desk) -> None:
    send(desk.port, [radiograph(1)])
    (file,) = desk.files()
    sound = file.read_bytes()
    file.write_bytes(sound[:-1] + b"\xff")
    assert send(desk.port, [radiograph(1)]) == [0x0000]
    assert desk.files() == [file]
    assert file.read_bytes() == sound


def test_echo_is_answered(desk: Desk) -> None:
    entity = AE("MODALITY")
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", desk.port, ae_title="NODE")
    assert association.send_c_echo().Status == 0x0000
    association.release()


def test_every_accepted_class_and_encoding_is_negotiated_and_no_other(desk: Desk) -> None:
    expected = {(str(sop), str(syntax)) for sop in ACCEPTED_SOP_CLASSES for syntax in ACCEPTED_TRANSFER_SYNTAXES}
    others = {(str(ACCEPTED_SOP_CLASSES[0]), str(MPEG2MPML)), (str(CTImageStorage), str(ExplicitVRLittleEndian))}
    proposed = [build_context(sop_class_uid, syntax) for sop_class_uid, syntax in sorted(expected | others)]
    association = AE("MODALITY").associate("127.0.0.1", desk.port, contexts=proposed, ae_title="NODE")
    accepted = {(str(cx.abstract_syntax), str(cx.transfer_syntax[0])) for cx in association.accepted_contexts}
    association.release()
    assert accepted == expected


def test_nothing_of_a_patient_is_logged(desk: Desk, log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    send(desk.port, [radiograph(1, patient_id="SECRET-ID"), radiograph(1, patient_id="OTHER-SECRET")])

    def fail(new: NewInstance, enqueue: object) -> None:
        raise ValueError(f"{new.sop_instance_uid} of SECRET^PATIENT")

    monkeypatch.setattr(desk.ledger, "register", fail)
    assert send(desk.port, [radiograph(2, patient_id="SECRET-ID")]) == [0x0110]
    told = log.getvalue()
    assert all(event in told for event in (" stored ", "conflicting content kept", "store failed", "ValueError ("))
    assert not any(word in told for word in ("SECRET", "Test^Radiograph"))


def test_dcmtk_as_a_modality_is_served(desk: Desk, dcmtk: Path, tmp_path: Path) -> None:
    file = tmp_path / "radiograph.dcm"
    radiograph(1).save_as(file, enforce_file_format=True)
    peers = ["-aet", "MODALITY", "-aec", "NODE", "127.0.0.1", str(desk.port)]
    subprocess.run([str(dcmtk / "echoscu"), *peers], check=True, timeout=30)
    subprocess.run([str(dcmtk / "storescu"), *peers, str(file)], check=True, timeout=30)
    assert len(desk.ledger.jobs()) == 1


# -- refusing ---------------------------------------------------------------------------------------------------------


def test_a_nearly_full_disk_is_told_as_transient_and_leaves_nothing(desk: Desk) -> None:
    desk.free_bytes = 999
    assert send(desk.port, [radiograph(1)]) == [0xA700]
    assert (desk.files(), desk.ledger.jobs()) == ([], [])
    desk.free_bytes = 1 << 40
    assert send(desk.port, [radiograph(1)]) == [0x0000]


def test_a_failing_database_is_told_as_transient_and_leaves_nothing(desk: Desk, reopen: Callable[..., Desk]) -> None:
    reopen(allow_unlisted_callers=True)
    with desk.engine.begin() as connection:
        connection.execute(text("ALTER TABLE conflict RENAME TO gone"))
        connection.execute(text("ALTER TABLE instance RENAME TO lost"))
    assert send(desk.port, [radiograph(1)]) == [0xA700]
    with desk.engine.begin() as connection:
        connection.execute(text("ALTER TABLE gone RENAME TO conflict"))
        connection.execute(text("ALTER TABLE lost RENAME TO instance"))
    assert desk.ledger.jobs() == []
    assert send(desk.port, [radiograph(1)]) == [0x0000]


def test_a_failing_queue_is_told_and_leaves_neither_row_nor_file(desk: Desk, reopen: Callable[..., Desk]) -> None:
    def fail(session: Session, instance_id: int, run: int) -> None:
        raise RuntimeError("engine down")

    desk.enqueue = fail  # type: ignore[method-assign]
    reopen()
    assert send(desk.port, [radiograph(1)]) == [0x0110]
    assert (desk.files(), desk.ledger.jobs()) == ([], [])


def test_an_object_beyond_the_size_limit_is_refused_for_good_and_the_next_one_taken(desk: Desk) -> None:
    assert send(desk.port, [radiograph(1, rows=1600), radiograph(2)]) == [0xC000, 0x0000]
    assert len(desk.files()) == 1


def test_a_data_set_that_contradicts_its_request_is_refused(desk: Desk) -> None:
    dataset = radiograph(1)
    del dataset.StudyInstanceUID
    assert send(desk.port, [dataset]) == [0xA900]
    assert desk.files() == []


def test_limits_of_the_header_are_those_of_the_settings(desk: Desk, reopen: Callable[..., Desk]) -> None:
    reopen(limits=Limits(max_elements=3))
    assert send(desk.port, [radiograph(1)]) == [0xC000]
    assert desk.files() == []


def test_a_caller_that_is_not_listed_is_rejected_until_it_is(desk: Desk) -> None:
    assert send(desk.port, [radiograph(1)], calling="STRANGER") == [None]
    desk.peers.add(NewAe(ae_title="STRANGER", may_send=True))
    assert send(desk.port, [radiograph(1)], calling="STRANGER") == [0x0000]


def test_a_destination_may_not_send(desk: Desk) -> None:
    desk.peers.add(NewAe(ae_title="ARCHIVE", receives_results=True, host="192.0.2.1", port=104))
    assert send(desk.port, [radiograph(1)], calling="ARCHIVE") == [None]


def test_a_caller_may_be_bound_to_its_address(desk: Desk) -> None:
    desk.peers.add(NewAe(ae_title="ELSEWHERE", may_send=True, calls_from="192.0.2.77"))
    desk.peers.add(NewAe(ae_title="HERE", may_send=True, calls_from="127.0.0.1"))
    assert send(desk.port, [radiograph(1)], calling="ELSEWHERE") == [None]
    assert send(desk.port, [radiograph(1)], calling="HERE") == [0x0000]


@pytest.mark.parametrize(
    ("caller", "words"),
    [
        (None, "is not listed; dicomnode ae add"),
        (NewAe(ae_title="CALLER", receives_results=True, host="192.0.2.1", port=104), "is listed, but may not send"),
        (NewAe(ae_title="CALLER", may_send=True, calls_from="192.0.2.77"), "may call from 192.0.2.77 only"),
    ],
)
def test_a_rejected_caller_is_told_apart_in_the_log(
    desk: Desk, log: io.StringIO, caller: NewAe | None, words: str
) -> None:
    if caller is not None:
        desk.peers.add(caller)
    assert send(desk.port, [radiograph(1)], calling="CALLER") == [None]
    (rejection,) = [line for line in log.getvalue().splitlines() if "association rejected" in line]
    assert words in rejection
    assert "calling=CALLER" in rejection
    assert "peer=127.0.0.1" in rejection


def test_an_empty_list_of_callers_lets_nobody_in(desk: Desk) -> None:
    desk.peers.remove("MODALITY")
    assert send(desk.port, [radiograph(1)]) == [None]


def test_when_the_list_of_callers_cannot_be_read_the_last_known_one_holds(desk: Desk) -> None:
    assert send(desk.port, [radiograph(1)]) == [0x0000]
    with desk.engine.begin() as connection:
        connection.execute(text("ALTER TABLE ae RENAME TO gone"))
    assert send(desk.port, [radiograph(2)]) == [0x0000]
    assert send(desk.port, [radiograph(3)], calling="STRANGER") == [None]


def test_when_the_list_of_callers_was_never_read_nobody_gets_in(desk: Desk) -> None:
    with desk.engine.begin() as connection:
        connection.execute(text("ALTER TABLE ae RENAME TO gone"))
    assert send(desk.port, [radiograph(1)]) == [None]


def test_a_call_for_another_ae_title_is_rejected_unless_allowed(desk: Desk, reopen: Callable[..., Desk]) -> None:
    assert send(desk.port, [radiograph(1)], called="SOMEBODY") == [None]
    reopen(require_called_ae_title=False)
    assert send(desk.port, [radiograph(1)], called="SOMEBODY") == [0x0000]


def test_another_sop_class_is_not_even_negotiated(desk: Desk) -> None:
    entity = AE("MODALITY")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", desk.port, ae_title="NODE")
    assert not association.accepted_contexts


# -- strangers --------------------------------------------------------------------------------------------------------


def test_idle_tcp_connections_block_nobody_and_are_closed(desk: Desk) -> None:
    idle = [socket.create_connection(("127.0.0.1", desk.port)) for _ in range(20)]
    assert send(desk.port, [radiograph(1)]) == [0x0000]
    for connection in idle:
        connection.settimeout(10)
        assert connection.recv(1) == b""
        connection.close()


def test_connections_beyond_the_limit_are_closed_at_once(desk: Desk, reopen: Callable[..., Desk]) -> None:
    reopen(maximum_associations=1, negotiation_timeout_s=60.0)  # which they do not wait for
    idle = [socket.create_connection(("127.0.0.1", desk.port)) for _ in range(16)]
    # Four may stay open, and the few more that were accepted before those four were counted.
    eventually(lambda: sum(map(is_closed, idle)) >= 8, "surplus closed")
    for connection in idle:
        connection.close()


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False


def test_associations_beyond_the_limit_are_rejected_as_transient(desk: Desk, reopen: Callable[..., Desk]) -> None:
    reopen(maximum_associations=1)
    entity = AE("MODALITY")
    entity.add_requested_context(Verification)
    first = entity.associate("127.0.0.1", desk.port, ae_title="NODE")
    second = entity.associate("127.0.0.1", desk.port, ae_title="NODE")
    assert first.is_established and second.is_rejected
    first.release()
    third = entity.associate("127.0.0.1", desk.port, ae_title="NODE")
    assert third.is_established
    third.release()


def test_a_silent_association_is_ended(desk: Desk, reopen: Callable[..., Desk]) -> None:
    reopen(network_timeout_s=0.5)
    entity = AE("MODALITY")
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", desk.port, ae_title="NODE")
    eventually(lambda: not association.is_established, "ended")


def test_a_pdu_that_claims_four_gigabytes_ends_the_connection_without_reading_them(desk: Desk) -> None:
    with socket.create_connection(("127.0.0.1", desk.port)) as stranger:
        stranger.settimeout(10)
        stranger.sendall(struct.pack(">BBL", 0x01, 0, 0xFFFFFFFF))
        assert stranger.recv(100) == b""
    assert send(desk.port, [radiograph(1)]) == [0x0000]


def test_a_pdu_that_drips_is_given_up(desk: Desk, reopen: Callable[..., Desk]) -> None:
    reopen(network_timeout_s=0.5, negotiation_timeout_s=0.5)
    with socket.create_connection(("127.0.0.1", desk.port)) as stranger:
        stranger.settimeout(10)
        stranger.sendall(struct.pack(">BBL", 0x01, 0, 1000))
        started = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - started < 10:
                stranger.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - started < 9


@pytest.mark.parametrize("seed", range(20))
def test_noise_ends_its_own_connection_alone(desk: Desk, seed: int) -> None:
    noise = hashlib.shake_256(str(seed).encode()).digest(4096)
    types = bytes([seed % 9]) + noise[1:2] + struct.pack(">L", 200)
    with socket.create_connection(("127.0.0.1", desk.port)) as stranger:
        stranger.sendall(types + noise)
    if seed % 5 == 0:
        assert send(desk.port, [radiograph(seed)]) == [0x0000]


def test_a_transfer_that_breaks_off_leaves_nothing(desk: Desk) -> None:
    with cut_after(desk.port, 1_000_000) as port:
        assert send(port, [radiograph(1, rows=1000)]) == [None]
    eventually(lambda: desk.files() == [], "half an object is gone")
    assert desk.ledger.jobs() == []
    assert send(desk.port, [radiograph(1, rows=1000)]) == [0x0000]


@contextmanager
def cut_after(port: int, size_bytes: int) -> Iterator[int]:
    """A cable to `port` that breaks once so many bytes have gone through it; gives the port of its near end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_carry, args=(listener, port, size_bytes))
        thread.start()
        yield int(listener.getsockname()[1])
        thread.join()


def _carry(listener: socket.socket, port: int, size_bytes: int) -> None:
    near, _ = listener.accept()
    with near, socket.create_connection(("127.0.0.1", port)) as far:
        while size_bytes > 0:
            for source in select.select([near, far], [], [])[0]:
                data = source.recv(65536)
                (far if source is near else near).sendall(data)
                size_bytes -= len(data)


def test_a_data_set_in_a_context_that_was_not_accepted_aborts(desk: Desk) -> None:
    dataset = radiograph(1)
    entity = AE("MODALITY")
    entity.add_requested_context(dataset.SOPClassUID, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", desk.port, ae_title="NODE")
    (accepted,) = association.accepted_contexts
    association._accepted_cx = {99: accepted}
    accepted._context_id = 99
    association.send_c_store(dataset)
    eventually(lambda: not association.is_established, "aborted")
    assert desk.files() == []


# -- after a death ----------------------------------------------------------------------------------------------------


def test_a_kept_file_without_a_row_is_registered_and_its_repeat_is_one(desk: Desk) -> None:
    assert send(desk.port, [radiograph(1)]) == [0x0000]
    with desk.engine.begin() as connection:
        connection.execute(text("DELETE FROM instance"))  # as if killed before the commit, or an older backup
    assert desk.receiver.register_orphans(older_than_s=3600) == 0
    assert desk.receiver.register_orphans(older_than_s=-1) == 1
    (job,) = desk.ledger.jobs()
    assert (job.instance.sop_instance_uid, job.instance.calling_ae_title) == (radiograph(1).SOPInstanceUID, "MODALITY")
    assert send(desk.port, [radiograph(1)]) == [0x0000]
    assert desk.receiver.register_orphans(older_than_s=-1) == 0
    assert len(desk.files()) == len(desk.ledger.jobs()) == 1


def test_an_orphan_that_is_damaged_is_told_and_left(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    path = desk.spool.write("instances", ".dcm", b"damaged").path
    desk.receiver.register_orphans(older_than_s=-1)
    assert desk.spool.absolute(path).exists()
    assert any("orphan cannot be registered" in message for message in caplog.messages)
