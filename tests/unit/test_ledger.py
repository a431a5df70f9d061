"""Ledger, outbox and peers on SQLite: each rule that must hold when processes die, race or repeat themselves."""

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from dicomnode.errors import AlreadyExists, ConfigurationError, LedgerUnavailable, NotFound, StillInUse
from dicomnode.storage import database
from dicomnode.storage.ledger import Arrival, Ledger
from dicomnode.storage.outbox import Outbox
from dicomnode.storage.peers import Peers
from dicomnode.storage.rows import (
    AttemptOutcome,
    DeliveryState,
    Instance,
    InstanceState,
    NewAe,
    NewInstance,
    NewObject,
    Result,
    Retried,
)
from dicomnode.storage.schema import Table

ARCHIVE = NewAe(ae_title="ARCHIVE", receives_results=True, host="192.0.2.1", port=104)
SECOND = replace(ARCHIVE, ae_title="SECOND")
LEASE = timedelta(minutes=1)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def pass_time(self, **duration: float) -> None:
        self.time += timedelta(**duration)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    database.upgrade(url)
    engine = database.open_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def ledger(engine: Engine, clock: Clock) -> Ledger:
    return Ledger(engine, clock)


@pytest.fixture
def outbox(engine: Engine, clock: Clock) -> Outbox:
    return Outbox(engine, clock)


@pytest.fixture
def peers(engine: Engine, clock: Clock) -> Peers:
    return Peers(engine, clock)


def new(number: int = 1, sha256: str = "a" * 64) -> NewInstance:
    return NewInstance(
        sop_instance_uid=f"1.2.{number}",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.1.1",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        study_instance_uid=f"1.3.{number}",
        calling_ae_title="MODALITY",
        called_ae_title="NODE",
        peer_address="192.0.2.9",
        dataset_sha256=sha256,
        size_bytes=10,
        spool_path=f"instances/aa/{number}-{sha256[:4]}.dcm",
    )


def made(result: Result, kind: str) -> NewObject:
    uid = f"1.9.{result.id}.{sum(map(ord, kind))}"
    return NewObject(
        kind, "1.2.840.10008.5.1.4.1.1.88.33", uid, "1.2.840.10008.1.2.1", "b" * 64, 20, f"objects/aa/{uid}.dcm"
    )


def nothing(session: Session, instance_id: int, run: int) -> None:
    """Stand in for the engine's queue."""


def never(session: Session, instance_id: int, run: int) -> None:
    """Fail where nothing may be enqueued."""
    raise AssertionError(f"instance {instance_id} was enqueued")


FIGURES = {"status": "not_measurable", "reason": "implant"}


def dispatched(ledger: Ledger, number: int = 1) -> Instance:
    """An instance whose two objects are addressed to every destination."""
    instance = ledger.register(new(number), nothing).instance
    result = ledger.record_result(instance.id, "model", "configuration", FIGURES, "checkpoints/aa/x.npz")
    ledger.record_objects(result, [made(result, "structured_report"), made(result, "secondary_capture")])
    ledger.dispatch(instance.id)
    return ledger.instance(instance.id)


# -- database -------------------------------------------------------------------------------------------------------


def test_migrations_build_exactly_the_mapped_tables(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "ledger_version"})
        assert compare_metadata(context, Table.metadata) == []


def test_migrations_may_run_at_every_start_and_from_several_processes_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'fresh.sqlite'}"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: database.upgrade(url), range(4)))
    database.upgrade(url)


class _RefusedFirst(sqlite3.Cursor):
    """A cursor whose switches to WAL are refused as often as it is told, in the way SQLite does."""

    def __init__(self, connection: sqlite3.Connection, refusals: int) -> None:
        super().__init__(connection)
        self.left = refusals

    def execute(self, sql: str, parameters: Any = ()) -> Self:
        if "journal_mode" in sql and self.left:
            self.left -= 1
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error
        return super().execute(sql, parameters)


def test_a_new_file_that_another_process_is_switching_to_wal_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(tmp_path / "new.sqlite")) as connection:
        database._write_ahead(_RefusedFirst(connection, 3))
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 50)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            database._write_ahead(_RefusedFirst(connection, 10**9))


def test_a_commit_survives_a_power_cut_by_wal_and_full_synchronisation(engine: Engine) -> None:
    names = ("journal_mode", "synchronous", "foreign_keys")
    with engine.connect() as connection:
        settings = {name: connection.execute(text(f"PRAGMA {name}")).scalar() for name in names}
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


@pytest.mark.parametrize("url", ["", "mysql://host/name", "sqlite://", "sqlite:///:memory:", "no url"])
def test_a_database_that_cannot_be_used_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError):
        database.open_engine(url)


def test_the_database_itself_refuses_unknown_states_and_dangling_rows(engine: Engine, ledger: Ledger) -> None:
    ledger.register(new(), nothing)
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(text("UPDATE instance SET state = 'lost'"))
    ledger.record_result(1, "model", "configuration", {}, "x")
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(text("DELETE FROM instance"))


# -- receiving ------------------------------------------------------------------------------------------------------


def test_a_new_instance_is_enqueued_in_the_transaction_of_its_row(ledger: Ledger) -> None:
    enqueued: list[tuple[int, int]] = []
    registration = ledger.register(new(), lambda session, instance_id, run: enqueued.append((instance_id, run)))
    assert registration.arrival is Arrival.NEW
    assert registration.instance.state is InstanceState.RECEIVED
    assert enqueued == [(registration.instance.id, 1)]


def test_when_enqueueing_fails_there_is_no_row(ledger: Ledger) -> None:
    def fail(session: Session, instance_id: int, run: int) -> None:
        raise RuntimeError("engine down")

    with pytest.raises(RuntimeError):
        ledger.register(new(), fail)
    assert ledger.jobs() == []


def test_same_uid_and_same_bytes_are_a_repeat_and_nothing_is_done_twice(ledger: Ledger) -> None:
    first = ledger.register(new(), nothing)
    again = ledger.register(replace(new(), spool_path="instances/bb/again.dcm"), never)
    assert again.arrival is Arrival.REPEATED
    assert again.kept_path == first.instance.spool_path
    assert len(ledger.jobs()) == 1


def test_same_uid_with_other_bytes_is_kept_and_flagged_once(ledger: Ledger) -> None:
    first = ledger.register(new(), nothing).instance
    other = new(sha256="c" * 64)
    conflicting = ledger.register(other, never)
    repeated = ledger.register(replace(other, spool_path="instances/bb/again.dcm"), never)
    assert conflicting.arrival is repeated.arrival is Arrival.CONFLICTING
    assert conflicting.kept_path == repeated.kept_path == other.spool_path
    (conflict,) = ledger.job(first.id).conflicts
    assert (conflict.dataset_sha256, conflict.times_received) == ("c" * 64, 2)
    assert ledger.instance(first.id).dataset_sha256 == "a" * 64
    assert ledger.jobs()[0].conflicts == 1


def test_only_one_of_many_simultaneous_arrivals_is_new(ledger: Ledger) -> None:
    start = threading.Barrier(8)

    def arrive(_: int) -> Arrival:
        start.wait()
        return ledger.register(new(), nothing).arrival

    with ThreadPoolExecutor(8) as pool:
        arrivals = list(pool.map(arrive, range(8)))
    assert arrivals.count(Arrival.NEW) == 1
    assert arrivals.count(Arrival.REPEATED) == 7


def test_paths_without_a_row_are_told(ledger: Ledger) -> None:
    ledger.register(new(), nothing)
    ledger.register(new(sha256="c" * 64), nothing)
    known = [new().spool_path, new(sha256="c" * 64).spool_path]
    assert ledger.unknown_paths([*known, "instances/bb/orphan.dcm"]) == ["instances/bb/orphan.dcm"]


def test_a_database_that_cannot_be_written_is_a_transient_failure(
    ledger: Ledger, engine: Engine, tmp_path: Path
) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE instance RENAME TO gone"))
    with pytest.raises(LedgerUnavailable, match="no such table"):
        ledger.register(new(), nothing)


def test_a_damaged_database_file_is_a_transient_failure(tmp_path: Path) -> None:
    file = tmp_path / "damaged.sqlite"
    database.upgrade(f"sqlite:///{file}")
    content = file.read_bytes()
    file.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    engine = database.open_engine(f"sqlite:///{file}")
    with pytest.raises(LedgerUnavailable, match="malformed"):
        Ledger(engine).register(new(), nothing)
    file.write_bytes(b"no database at all" * 1000)
    engine.dispose()
    with pytest.raises(LedgerUnavailable, match="not a database"):
        Ledger(engine).register(new(), nothing)
    engine.dispose()


def test_a_locked_database_is_a_transient_failure(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    database.upgrade(f"sqlite:///{file}")
    engine = database.open_engine(f"sqlite:///{file}?timeout=0.1")
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with engine.connect() as connection:
        connection.execute(text("PRAGMA busy_timeout = 50"))
        connection.rollback()
    try:
        with pytest.raises(LedgerUnavailable, match="locked"):
            Ledger(engine).register(new(), nothing)
    finally:
        holder.close()
        engine.dispose()


# -- working --------------------------------------------------------------------------------------------------------


def test_rows_are_frozen(ledger: Ledger) -> None:
    instance = ledger.register(new(), nothing).instance
    with pytest.raises(FrozenInstanceError):
        instance.note = "changed"  # type: ignore[misc]


def test_a_step_that_never_ends_is_counted_and_the_fourth_beginning_quarantines(ledger: Ledger) -> None:
    instance = ledger.register(new(), nothing).instance
    for attempt in (1, 2, 3):
        assert ledger.begin_step(instance.id, "measure", 3).attempts == attempt
    quarantined = ledger.begin_step(instance.id, "measure", 3)
    assert quarantined.state is InstanceState.QUARANTINED
    assert quarantined.note == "measure: the process ended 3 times without a result"
    assert ledger.workable() == []


def test_a_step_that_ends_gives_the_next_one_its_full_count(ledger: Ledger) -> None:
    instance = ledger.register(new(), nothing).instance
    ledger.begin_step(instance.id, "measure", 3)
    ledger.begin_step(instance.id, "measure", 3)
    ledger.record_result(instance.id, "model", "configuration", {}, "x")
    assert ledger.begin_step(instance.id, "encode", 3).attempts == 1


def test_trouble_of_the_node_does_not_count_as_an_attempt(ledger: Ledger, clock: Clock) -> None:
    instance = ledger.register(new(), nothing).instance
    for _ in range(10):
        ledger.begin_step(instance.id, "measure", 3)
        ledger.postpone(instance.id, timedelta(seconds=30), "disk full", counted=False)
    assert ledger.workable() == []
    clock.pass_time(seconds=30)
    assert [entry.id for entry in ledger.workable()] == [instance.id]


def test_a_result_is_written_once_for_each_model_and_configuration(ledger: Ledger) -> None:
    instance = ledger.register(new(), nothing).instance
    first = ledger.record_result(instance.id, "model", "configuration", {"value": 1}, "first")
    again = ledger.record_result(instance.id, "model", "configuration", {"value": 2}, "second")
    other = ledger.record_result(instance.id, "newer", "configuration", {"value": 3}, "third")
    assert again == first
    assert other.id != first.id
    assert ledger.result(instance.id, "model", "configuration") == first
    assert ledger.result(instance.id, "model", "other") is None


def test_recorded_objects_stand_whatever_a_later_run_makes(ledger: Ledger) -> None:
    instance = ledger.register(new(), nothing).instance
    result = ledger.record_result(instance.id, "model", "configuration", {}, "x")
    first = ledger.record_objects(result, [made(result, "structured_report")])
    again = ledger.record_objects(
        result, [replace(made(result, "structured_report"), sha256="c" * 64, spool_path="other")]
    )
    assert again == first == ledger.objects(result.id)


def test_a_uid_cannot_be_recorded_for_two_results(ledger: Ledger) -> None:
    instance = ledger.register(new(), nothing).instance
    first = ledger.record_result(instance.id, "model", "configuration", {}, "x")
    other = ledger.record_result(instance.id, "newer", "configuration", {}, "x")
    ledger.record_objects(first, [made(first, "structured_report")])
    with pytest.raises(IntegrityError):
        ledger.record_objects(other, [made(first, "structured_report")])


def test_each_object_is_addressed_once_to_each_destination(ledger: Ledger, peers: Peers, outbox: Outbox) -> None:
    peers.add(ARCHIVE)
    peers.add(SECOND)
    peers.add(NewAe(ae_title="MODALITY", may_send=True))
    instance = dispatched(ledger)
    assert instance.state is InstanceState.DISPATCHED
    ledger.dispatch(instance.id)
    addressed = [(delivery.object_id, delivery.destination) for delivery in outbox.all()]
    assert sorted(addressed) == [(1, "ARCHIVE"), (1, "SECOND"), (2, "ARCHIVE"), (2, "SECOND")]


def test_without_a_destination_results_wait_encoded_until_there_is_one(ledger: Ledger, peers: Peers) -> None:
    instance = dispatched(ledger)
    assert instance.state is InstanceState.ENCODED
    assert "no destination" in instance.note
    assert ledger.workable() == []
    peers.add(ARCHIVE)
    assert [entry.id for entry in ledger.workable()] == [instance.id]
    assert ledger.dispatch(instance.id) == 1


def test_work_is_enqueued_again_only_if_nothing_has_changed_meanwhile(ledger: Ledger) -> None:
    enqueued: list[tuple[int, int]] = []

    def enqueue(session: Session, instance_id: int, run: int) -> None:
        enqueued.append((instance_id, run))

    seen = ledger.register(new(), nothing).instance
    assert ledger.enqueue_again(seen, enqueue, as_new_run=True)
    assert not ledger.enqueue_again(seen, enqueue, as_new_run=True)
    assert enqueued == [(seen.id, 2)]


def test_workers_that_are_silent_are_not_live(ledger: Ledger, clock: Clock) -> None:
    ledger.beat("worker-1", "host", 1)
    clock.pass_time(seconds=60)
    ledger.beat("worker-2", "host", 2)
    ledger.beat("worker-2", "host", 3, working_on=7)
    assert ledger.live_executors(timedelta(seconds=30)) == {"worker-2": 7}
    assert ledger.live_executors(timedelta(seconds=90)) == {"worker-1": None, "worker-2": 7}


# -- a person -------------------------------------------------------------------------------------------------------


def test_a_job_is_found_by_its_number_and_by_its_uid(ledger: Ledger) -> None:
    instance = ledger.register(new(), nothing).instance
    assert ledger.find(str(instance.id)) == ledger.find("1.2.1") == instance
    for absent in ("99", "1.2.99", "", "9" * 30):
        with pytest.raises(NotFound):
            ledger.find(absent)


def test_jobs_come_latest_first_and_by_state(ledger: Ledger, peers: Peers) -> None:
    peers.add(ARCHIVE)
    dispatched(ledger, 1)
    ledger.register(new(2), nothing)
    listed = [(job.instance.id, job.summary, job.outcome) for job in ledger.jobs()]
    assert listed == [(2, "received", ""), (1, "pending", "implant")]
    assert [job.instance.id for job in ledger.jobs(state=InstanceState.DISPATCHED)] == [1]
    assert [job.instance.id for job in ledger.jobs(limit=1)] == [2]


def test_jobs_are_found_by_the_word_that_their_list_shows(ledger: Ledger, peers: Peers, outbox: Outbox) -> None:
    peers.add(ARCHIVE)
    states: list[InstanceState | DeliveryState] = [*InstanceState, *DeliveryState]
    seen = set()
    for number, end in enumerate((None, outbox.delivered, outbox.held), 1):
        dispatched(ledger, number)
        for due in outbox.claim("ARCHIVE", f"sender-{number}", LEASE, 10):
            if end is not None:
                end(due.delivery.id, 0x0000, "")
        (job,) = [job for job in ledger.jobs() if job.instance.id == number]
        seen.add(job.summary)
    ledger.register(new(4), nothing)
    for job in ledger.jobs():
        found = [state.value for state in states if job in ledger.jobs(state=state)]
        assert found == [*([InstanceState.DISPATCHED.value] if job.summary in seen else []), job.summary]
    assert seen == {"pending", "delivered", "held"}


def test_the_summary_is_that_of_the_worst_delivery(ledger: Ledger, peers: Peers, outbox: Outbox) -> None:
    peers.add(ARCHIVE)
    dispatched(ledger)
    first, second = outbox.claim("ARCHIVE", "sender-1", LEASE, 10)
    outbox.delivered(first.delivery.id, 0)
    assert ledger.jobs()[0].summary == "pending"
    outbox.held(second.delivery.id, 0xC000, "refused")
    assert ledger.jobs()[0].summary == "held"
    assert ledger.retry(1, nothing).deliveries == 1
    (again,) = outbox.claim("ARCHIVE", "sender-1", LEASE, 10)
    outbox.delivered(again.delivery.id, 0x0111)
    assert ledger.jobs()[0].summary == "delivered"
    history = [attempt.outcome for detail in ledger.job(1).deliveries for attempt in detail.history]
    assert history == [AttemptOutcome.DELIVERED, AttemptOutcome.REFUSED, AttemptOutcome.DELIVERED]


@pytest.mark.parametrize("state", [InstanceState.RECEIVED, InstanceState.MEASURED, InstanceState.ENCODED])
def test_a_retry_goes_on_where_the_instance_had_come(ledger: Ledger, state: InstanceState) -> None:
    instance = ledger.register(new(), nothing).instance
    if state is not InstanceState.RECEIVED:
        result = ledger.record_result(instance.id, "model", "configuration", {}, "x")
    if state is InstanceState.ENCODED:
        ledger.record_objects(result, [made(result, "structured_report")])
    ledger.quarantine(instance.id, "a person must look")
    runs: list[int] = []
    assert ledger.retry(instance.id, lambda session, instance_id, run: runs.append(run)).resumed_from is state
    after = ledger.instance(instance.id)
    assert (after.state, after.run, after.attempts, after.note) == (state, 2, 0, "")
    assert runs == [2]


def test_a_retry_leaves_a_job_alone_that_a_live_worker_is_at(ledger: Ledger, clock: Clock) -> None:
    instance = ledger.register(new(), nothing).instance
    ledger.beat("worker-1", "host", 1, working_on=instance.id)
    assert ledger.retry(instance.id, never) == Retried(None, 0)
    clock.pass_time(seconds=91)
    assert ledger.retry(instance.id, nothing).resumed_from is InstanceState.RECEIVED


def test_a_retry_sets_an_unfinished_job_going_that_nobody_is_at(ledger: Ledger) -> None:
    instance = ledger.register(new(), nothing).instance
    ledger.begin_step(instance.id, "measure", 3)  # and the ledger could not be told of its end
    ledger.beat("worker-1", "host", 1, working_on=None)
    assert ledger.retry(instance.id, nothing) == Retried(InstanceState.RECEIVED, 0)
    assert ledger.instance(instance.id).run == 2


def test_a_retry_of_a_job_that_is_through_does_nothing(ledger: Ledger, peers: Peers, outbox: Outbox) -> None:
    peers.add(ARCHIVE)
    instance = dispatched(ledger)
    for due in outbox.claim("ARCHIVE", "sender-1", LEASE, 10):
        outbox.delivered(due.delivery.id, 0)
    assert ledger.retry(instance.id, never) == Retried(None, 0)


# -- outbox ---------------------------------------------------------------------------------------------------------


def test_a_claimed_delivery_is_nobody_elses_until_the_lease_ends(
    ledger: Ledger, peers: Peers, outbox: Outbox, clock: Clock
) -> None:
    peers.add(ARCHIVE)
    dispatched(ledger)
    assert len(outbox.claim("ARCHIVE", "sender-1", LEASE, 10)) == 2
    assert outbox.destinations_due("sender-2") == []
    assert outbox.claim("ARCHIVE", "sender-2", LEASE, 10) == []
    clock.pass_time(minutes=2)
    assert len(outbox.claim("ARCHIVE", "sender-2", LEASE, 10)) == 2


def test_a_restarted_sender_has_its_own_claims_back_at_once(ledger: Ledger, peers: Peers, outbox: Outbox) -> None:
    peers.add(ARCHIVE)
    dispatched(ledger)
    outbox.claim("ARCHIVE", "sender-1", LEASE, 10)
    assert outbox.destinations_due("sender-1") == ["ARCHIVE"]
    assert [due.delivery.attempts for due in outbox.claim("ARCHIVE", "sender-1", LEASE, 10)] == [2, 2]


def test_two_senders_never_claim_the_same_delivery(ledger: Ledger, peers: Peers, outbox: Outbox) -> None:
    peers.add(ARCHIVE)
    for number in range(1, 11):
        dispatched(ledger, number)

    def claim(sender: int) -> list[int]:
        return [due.delivery.id for due in outbox.claim("ARCHIVE", f"sender-{sender}", LEASE, 3)]

    with ThreadPoolExecutor(8) as pool:
        claimed = [identity for batch in pool.map(claim, range(8)) for identity in batch]
    assert len(claimed) == len(set(claimed)) == 20


def test_one_that_fails_again_and_again_stands_behind_the_others(
    ledger: Ledger, peers: Peers, outbox: Outbox, clock: Clock
) -> None:
    peers.add(ARCHIVE)
    dispatched(ledger, 1)
    (first,) = outbox.claim("ARCHIVE", "sender-1", LEASE, 1)
    outbox.failed(first.delivery.id, 0xA700, "full", clock())
    dispatched(ledger, 2)
    order = [due.delivery.id for due in outbox.claim("ARCHIVE", "sender-1", LEASE, 10)]
    assert order[-1] == first.delivery.id


def test_a_failed_delivery_is_due_again_only_after_its_delay(
    ledger: Ledger, peers: Peers, outbox: Outbox, clock: Clock
) -> None:
    peers.add(ARCHIVE)
    dispatched(ledger)
    for due in outbox.claim("ARCHIVE", "sender-1", LEASE, 10):
        outbox.failed(due.delivery.id, None, "cannot be reached", clock() + timedelta(seconds=10))
    assert outbox.destinations_due("sender-1") == []
    clock.pass_time(seconds=10)
    assert outbox.destinations_due("sender-1") == ["ARCHIVE"]


def test_what_is_given_back_does_not_count_as_an_attempt(ledger: Ledger, peers: Peers, outbox: Outbox) -> None:
    peers.add(ARCHIVE)
    dispatched(ledger)
    claimed = outbox.claim("ARCHIVE", "sender-1", LEASE, 10)
    outbox.give_back([due.delivery.id for due in claimed])
    assert [delivery.attempts for delivery in outbox.all()] == [0, 0]
    assert len(outbox.claim("ARCHIVE", "sender-2", LEASE, 10)) == 2


def test_what_a_claim_holds_is_all_that_sending_needs(ledger: Ledger, peers: Peers, outbox: Outbox) -> None:
    peers.add(ARCHIVE)
    instance = dispatched(ledger)
    due = outbox.claim("ARCHIVE", "sender-1", LEASE, 1)[0]
    assert due.object.kind == "structured_report"
    assert (due.source_spool_path, due.source_sha256) == (instance.spool_path, instance.dataset_sha256)
    assert outbox.delivery(due.delivery.id).state is DeliveryState.PENDING


# -- peers ----------------------------------------------------------------------------------------------------------


def test_a_peer_is_added_once(peers: Peers) -> None:
    assert peers.add(ARCHIVE) == peers.find("ARCHIVE")
    with pytest.raises(AlreadyExists, match="ARCHIVE"):
        peers.add(ARCHIVE)
    assert peers.add_missing([ARCHIVE, SECOND]) == 1
    assert [peer.ae_title for peer in peers.all()] == ["ARCHIVE", "SECOND"]


@pytest.mark.parametrize("change", [{"host": ""}, {"port": None}, {"port": 0}, {"port": 65536}])
def test_a_destination_without_an_address_is_a_configuration_error(peers: Peers, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="ARCHIVE"):
        peers.add(replace(ARCHIVE, **change))


def test_a_peer_is_changed_in_place(peers: Peers) -> None:
    before = peers.add(ARCHIVE)
    changed = peers.change(replace(ARCHIVE, host="192.0.2.99", port=11112))
    assert changed == replace(before, host="192.0.2.99", port=11112) == peers.find("ARCHIVE")
    with pytest.raises(ConfigurationError, match="ARCHIVE"):
        peers.change(replace(ARCHIVE, host=""))
    with pytest.raises(NotFound, match="SECOND"):
        peers.change(SECOND)


def test_a_destination_goes_only_when_nothing_is_pending_or_by_force(ledger: Ledger, peers: Peers) -> None:
    peers.add(ARCHIVE)
    dispatched(ledger)
    with pytest.raises(StillInUse, match="2 deliveries to ARCHIVE"):
        peers.remove("ARCHIVE")
    peers.remove("ARCHIVE", even_if_pending=True)
    assert peers.find("ARCHIVE") is None
    with pytest.raises(NotFound):
        peers.remove("ARCHIVE")
