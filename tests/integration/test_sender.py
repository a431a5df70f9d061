"""The sender against archives that follow a script: what is delivered, what is tried again, what waits for a person."""

import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage, ImplicitVRLittleEndian, SecondaryCaptureImageStorage
from sqlalchemy import Engine

from dicomnode.dicom.reader import Limits
from dicomnode.services.receiver import file_head
from dicomnode.services.sender import Sender, SenderSettings
from dicomnode.storage import database
from dicomnode.storage.ledger import Ledger
from dicomnode.storage.outbox import Outbox
from dicomnode.storage.peers import Peers
from dicomnode.storage.rows import Attempt, Delivery, DeliveryState, NewAe, NewInstance, NewObject
from dicomnode.storage.spool import OBJECTS, Spool
from tests.node_kit import KINDS, Archive, Stored, eventually, free_port, radiograph, result

SETTINGS = SenderSettings(
    "NODE", first_delay_s=10.0, longest_delay_s=60.0, network_timeout_s=2.0, connection_timeout_s=2.0
)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time


@dataclass
class PostOffice:
    """A ledger with results to deliver, and a sender."""

    engine: Engine
    spool: Spool
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.engine, self.clock)
        self.outbox = Outbox(self.engine, self.clock)
        self.peers = Peers(self.engine, self.clock)
        self.sender = Sender(SETTINGS, self.outbox, self.peers, self.spool, self.clock, jitter=lambda: 1.0)

    def destination(self, port: int, ae_title: str = "ARCHIVE") -> None:
        self.peers.add(NewAe(ae_title=ae_title, receives_results=True, host="127.0.0.1", port=port))

    def post(self, seed: int = 1, change: Callable[[Dataset], None] = lambda made: None) -> None:
        """Have the results of one radiograph ready to be delivered; `change` spoils them first."""
        source = radiograph(seed)
        head = file_head(str(source.SOPClassUID), str(source.SOPInstanceUID), "1.2.840.10008.1.2.1", "MODALITY")
        with self.spool.receive(head) as incoming:
            incoming.write(encoded(source)[encoded(source).index(b"\x08\x00\x16\x00") :])
            sha256 = incoming.finish()
            path = self.spool.keep(incoming.path)
        uid, study_uid = str(source.SOPInstanceUID), str(source.StudyInstanceUID)
        new = NewInstance(
            uid, str(source.SOPClassUID), "1.2.840.10008.1.2.1", study_uid, "M", "NODE", "", sha256, 1, path
        )
        instance = self.ledger.register(new, lambda session, instance_id, run: None).instance
        recorded = self.ledger.record_result(instance.id, "model", "configuration", {}, "x")
        self.ledger.record_objects(recorded, [self.write(kind, source, change) for kind in KINDS])
        self.ledger.dispatch(instance.id)

    def write(self, kind: str, source: Dataset, change: Callable[[Dataset], None]) -> NewObject:
        made = result(source, kind)
        uid = str(made.SOPInstanceUID)
        change(made)
        kept = self.spool.write(OBJECTS, ".dcm", encoded(made))
        return NewObject(kind, KINDS[kind], uid, "1.2.840.10008.1.2.1", kept.sha256, kept.size_bytes, kept.path)

    def deliver(self, destination: str = "ARCHIVE") -> float:
        return self.sender.serve_destination(destination)

    def states(self) -> list[DeliveryState]:
        return [delivery.state for delivery in self.outbox.all()]

    def delivery(self, number: int = 0) -> Delivery:
        return self.outbox.all()[number]

    def history(self) -> tuple[Attempt, ...]:
        return self.ledger.job(1).deliveries[0].history


def encoded(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[PostOffice]:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    database.upgrade(url)
    engine = database.open_engine(url)
    spool = Spool(tmp_path / "spool", 0, 1 << 24)
    spool.prepare()
    yield PostOffice(engine, spool)
    engine.dispose()


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive().listening() as archive:
        yield archive


def answering(status: int) -> Callable[[Archive, Stored], int]:
    return lambda archive, stored: status


# -- outcomes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0x0000, 0x0111, 0xB000, 0xB006, 0xB007])
def test_success_warning_and_duplicate_mean_delivered(office: PostOffice, archive: Archive, status: int) -> None:
    archive.answer = answering(status)
    office.destination(archive.port)
    office.post()
    office.deliver()
    assert office.states() == [DeliveryState.DELIVERED] * 2
    assert office.delivery().status == status
    assert office.delivery().delivered_at == office.clock()
    assert len(archive.received) == 2


@pytest.mark.parametrize("status", [0xA700, 0xA7FF])
def test_want_of_resources_is_tried_again_later(office: PostOffice, archive: Archive, status: int) -> None:
    archive.answer = answering(status)
    office.destination(archive.port)
    office.post()
    office.deliver()
    assert office.states() == [DeliveryState.PENDING] * 2
    assert office.delivery().next_attempt_at == office.clock() + timedelta(seconds=10)
    assert office.outbox.destinations_due("sender-1") == []
    archive.answer = answering(0)
    office.clock.time += timedelta(seconds=10)
    office.deliver()
    assert office.states() == [DeliveryState.DELIVERED] * 2
    assert [attempt.status for attempt in office.history()] == [status, 0]


@pytest.mark.parametrize("status", [0x0110, 0x0122, 0x0124, 0xA900, 0xC000])
def test_a_refusal_waits_for_a_person_who_can_retry_it(office: PostOffice, archive: Archive, status: int) -> None:
    archive.answer = answering(status)
    office.destination(archive.port)
    office.post()
    office.deliver()
    assert office.states() == [DeliveryState.HELD] * 2
    assert (office.delivery().status, office.delivery().detail) == (status, "destination refuses the object")
    assert office.outbox.destinations_due("sender-1") == []
    archive.answer = answering(0)
    office.ledger.retry(1, lambda session, instance_id, run: None)
    office.deliver()
    assert office.states() == [DeliveryState.DELIVERED] * 2


@pytest.mark.parametrize(
    ("status", "state", "reason"),
    [
        (0xA900, DeliveryState.HELD, "destination refuses the object: "),
        (0xA700, DeliveryState.PENDING, "destination is out of resources: "),
        (0xB000, DeliveryState.DELIVERED, ""),
    ],
)
def test_what_the_archive_says_of_its_status_is_kept_in_the_ledger_and_not_logged(
    office: PostOffice, archive: Archive, log: io.StringIO, status: int, state: DeliveryState, reason: str
) -> None:
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = "Patient TEST-1 is locked"
    answer.OffendingElement = [0x00100020, 0x0020000D]
    archive.answer = lambda archive, stored: answer
    office.destination(archive.port)
    office.post()
    office.deliver()
    assert office.delivery().state is state
    assert office.delivery().detail == f"{reason}Patient TEST-1 is locked; offending (0010,0020), (0020,000D)"
    assert office.history()[0].detail == office.delivery().detail
    assert "is locked" not in log.getvalue()


def test_what_arrives_is_what_was_made_under_the_same_uid(office: PostOffice, archive: Archive) -> None:
    office.destination(archive.port)
    office.post()
    office.deliver()
    sent = {stored.sop_instance_uid: stored for stored in archive.received}
    for detail in office.ledger.job(1).deliveries:
        content = office.spool.read(detail.object.spool_path, detail.object.sha256)
        assert content.endswith(dcmread(BytesIO(content)).ContentDescription.encode())
        assert sent[detail.object.sop_instance_uid].sop_class_uid == detail.object.sop_class_uid


def test_an_archive_that_takes_only_implicit_encoding_is_served(office: PostOffice) -> None:
    with Archive(accepted_syntaxes=[ImplicitVRLittleEndian]).listening() as archive:
        office.destination(archive.port)
        office.post()
        office.deliver()
        assert office.states() == [DeliveryState.DELIVERED] * 2
        assert {stored.transfer_syntax_uid for stored in archive.received} == {ImplicitVRLittleEndian}


def test_an_archive_without_reports_gets_the_capture_and_the_report_is_held_with_the_reason(office: PostOffice) -> None:
    with Archive(sop_classes=[SecondaryCaptureImageStorage]).listening() as archive:
        office.destination(archive.port)
        office.post()
        office.deliver()
        assert [stored.sop_class_uid for stored in archive.received] == [SecondaryCaptureImageStorage]
    held, delivered = office.outbox.all()
    assert (held.state, delivered.state) == (DeliveryState.HELD, DeliveryState.DELIVERED)
    assert "no presentation context for Comprehensive SR Storage" in held.detail


# -- destinations that fail -------------------------------------------------------------------------------------------


def test_a_dead_destination_is_tried_again_with_doubling_capped_delays(office: PostOffice) -> None:
    office.destination(free_port())
    office.post()
    delays = []
    for _ in range(5):
        delays.append(office.deliver())
        office.clock.time += timedelta(seconds=delays[-1])
    assert delays == [10.0, 20.0, 40.0, 60.0, 60.0]
    assert "cannot be reached" in office.delivery().detail
    assert office.delivery().attempts == 5


def test_jitter_keeps_half_to_all_of_a_delay(office: PostOffice) -> None:
    sender = Sender(SETTINGS, office.outbox, office.peers, office.spool)
    delays = {sender.delay_s(1) for _ in range(200)}
    assert all(5.0 <= delay <= 10.0 for delay in delays)
    assert len(delays) > 100
    assert sender.delay_s(100_000) <= 60.0


def test_after_its_longest_age_a_delivery_waits_for_a_person(office: PostOffice) -> None:
    office.destination(free_port())
    office.post()
    office.clock.time += timedelta(hours=72)
    office.deliver()
    assert office.states() == [DeliveryState.HELD] * 2
    assert "not delivered for 72.0 h; last: ARCHIVE at 127.0.0.1" in office.delivery().detail


def test_an_archive_that_rejects_us_is_tried_again_and_its_reason_kept(office: PostOffice, archive: Archive) -> None:
    from pynetdicom import AE

    strict = AE("STRICT")
    strict.require_calling_aet = ["SOMEBODY"]
    strict.add_supported_context(ComprehensiveSRStorage)
    server = strict.start_server(("127.0.0.1", 0), block=False)
    assert server is not None
    try:
        office.destination(server.server_address[1])
        office.post()
        office.deliver()
    finally:
        server.shutdown()
    assert office.states() == [DeliveryState.PENDING] * 2
    assert "rejected the association: Calling AE title not recognised" in office.delivery().detail


def test_an_object_that_makes_the_archive_abort_does_not_take_the_others_with_it(
    office: PostOffice, archive: Archive
) -> None:
    office.destination(archive.port)
    office.post(1)
    office.post(2)
    archive.hang_up_on = {office.ledger.job(1).deliveries[0].object.sop_instance_uid}
    office.deliver()
    assert office.delivery(0).state is DeliveryState.PENDING
    assert "no answer" in office.delivery(0).detail
    assert [delivery.attempts for delivery in office.outbox.all()] == [1, 0, 0, 0]
    office.deliver()
    assert office.states() == [DeliveryState.PENDING] + [DeliveryState.DELIVERED] * 3


def test_an_archive_that_takes_nothing_of_ours_holds_everything_with_the_reason(office: PostOffice) -> None:
    with Archive(sop_classes=[]).listening() as archive:
        office.destination(archive.port)
        office.post()
        office.deliver()
    assert office.states() == [DeliveryState.HELD] * 2
    assert "no presentation context for Comprehensive SR Storage" in office.delivery().detail


def test_a_destination_that_is_no_longer_configured_is_held(office: PostOffice) -> None:
    office.destination(free_port())
    office.post()
    office.peers.remove("ARCHIVE", even_if_pending=True)
    office.deliver()
    assert office.states() == [DeliveryState.HELD] * 2
    assert "no longer configured" in office.delivery().detail


def test_a_dead_destination_does_not_hold_up_a_living_one(office: PostOffice, archive: Archive) -> None:
    office.destination(free_port(), "DEAD")
    office.destination(archive.port)
    for seed in range(3):
        office.post(seed)
    stop = threading.Event()
    thread = threading.Thread(target=office.sender.run, args=(stop,))
    thread.start()
    try:
        eventually(lambda: office.states().count(DeliveryState.DELIVERED) == 6, "living one has all")
    finally:
        stop.set()
        thread.join()
    assert {delivery.state for delivery in office.outbox.all() if delivery.destination == "DEAD"} == {
        DeliveryState.PENDING
    }


# -- the last look ----------------------------------------------------------------------------------------------------


def set_attribute(keyword: str, value: str) -> Callable[[Dataset], None]:
    return lambda made: setattr(made, keyword, value)


def report_of_side(code: str, *, with_figure: bool) -> Callable[[Dataset], None]:
    """Give the object a measurement group of a side, as TID 1500 writes it."""

    def change(made: Dataset) -> None:
        side = item("CODE", "272741003")
        side.ConceptCodeSequence = [coded(code)]
        site = item("CODE", "363698007")
        site.ContentSequence = [side]
        group = item("CONTAINER", "125007")
        group.ContentSequence = [site, *([item("NUM", "0")] if with_figure else [])]
        del made.Laterality
        made.ContentSequence = [group]

    return change


def coded(value: str) -> Dataset:
    code = Dataset()
    code.CodeValue = value
    return code


def item(kind: str, code: str) -> Dataset:
    content = Dataset()
    content.ValueType = kind
    content.ConceptNameCodeSequence = [coded(code)]
    return content


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_attribute("PatientID", "TEST-2"), "Patient ID"),
        (set_attribute("StudyInstanceUID", "1.2.3"), "Study Instance UID"),
        (set_attribute("Laterality", "L"), "side differs"),
        (report_of_side("7771000", with_figure=True), "side differs"),
        (set_attribute("SOPInstanceUID", "1.2.3"), "another SOP Instance UID"),
    ],
)
def test_a_result_that_contradicts_its_radiograph_never_goes_out(
    office: PostOffice, archive: Archive, change: Callable[[Dataset], None], words: str
) -> None:
    office.destination(archive.port)
    office.post(change=change)
    office.deliver()
    assert archive.received == []
    assert office.states() == [DeliveryState.HELD] * 2
    assert words in office.delivery().detail
    assert "TEST-2" not in office.delivery().detail


@pytest.mark.parametrize(
    "change", [report_of_side("24028007", with_figure=True), report_of_side("7771000", with_figure=False)]
)
def test_the_same_side_and_a_side_without_figures_go_out(
    office: PostOffice, archive: Archive, change: Callable[[Dataset], None]
) -> None:
    office.destination(archive.port)
    office.post(change=change)
    office.deliver()
    assert office.states() == [DeliveryState.DELIVERED] * 2


def test_an_object_whose_file_has_changed_never_goes_out(office: PostOffice, archive: Archive) -> None:
    office.destination(archive.port)
    office.post()
    for detail in office.ledger.job(1).deliveries:
        path = office.spool.absolute(detail.object.spool_path)
        path.write_bytes(path.read_bytes() + b"\0\0")
    office.deliver()
    assert archive.received == []
    assert "has changed in the spool" in office.delivery().detail


def test_without_its_radiograph_a_result_does_not_go_out(office: PostOffice, archive: Archive) -> None:
    office.destination(archive.port)
    office.post()
    office.spool.discard(office.ledger.instance(1).spool_path)
    office.deliver()
    assert archive.received == []
    assert office.states() == [DeliveryState.HELD] * 2


def test_a_result_of_a_radiograph_that_the_disk_has_changed_does_not_go_out(
    office: PostOffice, archive: Archive
) -> None:
    office.destination(archive.port)
    office.post()
    path = office.spool.absolute(office.ledger.instance(1).spool_path)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    office.deliver()
    assert archive.received == []
    assert office.states() == [DeliveryState.HELD] * 2
    assert "radiograph has changed in the spool" in office.delivery().detail


def test_radiographs_are_read_under_the_limits_that_the_sender_is_given(office: PostOffice, archive: Archive) -> None:
    office.destination(archive.port)
    office.post()
    strict = replace(SETTINGS, limits=Limits(max_object_bytes=1000))
    Sender(strict, office.outbox, office.peers, office.spool, office.clock).serve_destination("ARCHIVE")
    assert office.states() == [DeliveryState.HELD] * 2
    assert "at most 1000" in office.delivery().detail


def test_the_words_of_an_encoding_error_are_not_logged(
    office: PostOffice, archive: Archive, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def store(*_: object) -> None:
        raise ValueError("SECRET^PATIENT does not fit")

    monkeypatch.setattr(office.sender, "_store", store)
    office.destination(archive.port)
    office.post()
    office.deliver()
    assert office.states() == [DeliveryState.HELD] * 2
    assert "object cannot be encoded" in log.getvalue()
    assert not any(word in log.getvalue() for word in ("SECRET", "TEST-1", "Test^Radiograph"))


def test_the_lease_outlasts_the_longest_association() -> None:
    longest_s = SETTINGS.connection_timeout_s + (1 + SETTINGS.objects_per_association) * SETTINGS.network_timeout_s
    assert SETTINGS.lease.total_seconds() > longest_s
    assert replace(SETTINGS, objects_per_association=1).lease < SETTINGS.lease


def test_one_unreadable_file_postpones_its_own_delivery_and_no_other(office: PostOffice, archive: Archive) -> None:
    office.destination(archive.port)
    office.post(1)
    office.post(2)
    first = office.spool.absolute(office.ledger.job(1).objects[0].spool_path)
    first.unlink()
    first.mkdir()  # reading it is an OSError that is no FileNotFoundError, even for root
    office.deliver()
    assert office.states() == [DeliveryState.PENDING] + [DeliveryState.DELIVERED] * 3
    assert "cannot be read: Is a directory" in office.delivery().detail
    office.clock.time += timedelta(hours=72)
    office.deliver()
    assert office.states()[0] is DeliveryState.HELD


def test_no_more_than_one_object_is_read_before_it_is_sent(office: PostOffice, archive: Archive) -> None:
    order: list[str] = []

    class Reading(Spool):
        def read(self, path: str, sha256: str) -> bytes:
            order.append("read")
            return super().read(path, sha256)

    def answer(archive: Archive, stored: Stored) -> int:
        order.append("sent")
        return 0

    archive.answer = answer
    office.destination(archive.port)
    office.post()
    reading = Reading(office.spool.root, 0, 1 << 24)
    Sender(SETTINGS, office.outbox, office.peers, reading, office.clock).serve_destination("ARCHIVE")
    assert order == ["read", "sent"] * 2
