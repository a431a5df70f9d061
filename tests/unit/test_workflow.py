"""The durable workflow on its engine: what is committed together, what is resumed, what the sweeper finds."""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import Engine, event, text

from dicomnode import workflow
from dicomnode.errors import ConfigurationError
from dicomnode.storage import database
from dicomnode.storage.ledger import Ledger
from dicomnode.storage.rows import Instance, InstanceState, NewInstance
from dicomnode.workflow import STRANDED_AFTER_S, Client, Idle, Progress, Runner, Step, WorkflowState, sweep
from tests.node_kit import eventually


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    database.upgrade(url)
    workflow.prepare(url)
    return url


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = database.open_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def ledger(engine: Engine) -> Ledger:
    return Ledger(engine)


@pytest.fixture
def client(engine: Engine) -> Iterator[Client]:
    client = Client(engine)
    yield client
    client.close()


def received(ledger: Ledger, client: Client, number: int = 1) -> Instance:
    new = NewInstance(f"1.2.{number}", "1.2", "1.2", "1.3", "A", "B", "", "a" * 64, 1, f"instances/aa/{number}.dcm")
    return ledger.register(new, client.enqueue).instance


@contextmanager
def running(engine: Engine, *steps: Step, executor_id: str = "worker-1") -> Iterator[Runner]:
    runner = Runner(engine, executor_id, steps)
    runner.start()
    try:
        yield runner
    finally:
        runner.stop(0)


def finishing(ledger: Ledger) -> Step:
    """A step that brings an instance to its end."""

    def run(instance_id: int) -> Progress:
        ledger.quarantine(instance_id, "done")
        return Progress.GO_ON

    return Step("finish", run)


def state(client: Client, instance: Instance) -> WorkflowState:
    return client.statuses([instance])[instance.id].state


def is_finished(ledger: Ledger, instance: Instance) -> Callable[[], bool]:
    return lambda: ledger.instance(instance.id).state is InstanceState.QUARANTINED


def test_an_instance_and_its_workflow_are_committed_together_or_not_at_all(ledger: Ledger, client: Client) -> None:
    instance = received(ledger, client)
    assert state(client, instance) is WorkflowState.WAITING

    def enqueue_and_fail(session: object, instance_id: int, run: int) -> None:
        client.enqueue(session, instance_id, run)  # type: ignore[arg-type]
        raise RuntimeError("killed before the commit")

    new = NewInstance("1.2.9", "1.2", "1.2", "1.3", "A", "B", "", "a" * 64, 1, "instances/aa/9.dcm")
    with pytest.raises(RuntimeError):
        ledger.register(new, enqueue_and_fail)
    absent = Instance(**{**instance.__dict__, "id": instance.id + 1})
    assert state(client, absent) is WorkflowState.LOST
    assert len(ledger.jobs()) == 1


def test_steps_run_in_order_with_the_row_id_alone_until_one_says_stop(
    ledger: Ledger, client: Client, engine: Engine
) -> None:
    calls: list[tuple[str, int]] = []

    def step(name: str, progress: Progress) -> Step:
        def run(instance_id: int) -> Progress:
            calls.append((name, instance_id))
            return progress

        return Step(name, run)

    instance = received(ledger, client)
    with running(engine, step("one", Progress.GO_ON), step("two", Progress.STOP), step("three", Progress.GO_ON)):
        eventually(lambda: state(client, instance) is WorkflowState.ENDED, "ended")
    assert calls == [("one", instance.id), ("two", instance.id)]


def test_work_that_a_dead_process_had_begun_is_resumed_by_its_successor_of_the_same_name(
    ledger: Ledger, client: Client, engine: Engine
) -> None:
    instance = received(ledger, client)
    claim_as(engine, "worker-1")  # a process that took it and was killed
    assert state(client, instance) is WorkflowState.RUNNING
    with running(engine, finishing(ledger)):
        eventually(is_finished(ledger, instance), "resumed")


def test_work_of_a_dead_worker_elsewhere_is_taken_over_by_the_sweeper_and_that_of_a_live_one_is_not(
    ledger: Ledger, client: Client, engine: Engine
) -> None:
    instance = received(ledger, client)
    claim_as(engine, "worker-elsewhere")
    ledger.beat("worker-elsewhere", "host", 1)
    assert sweep(ledger, client, Idle()) == 0
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM heartbeat"))
    assert sweep(ledger, client, Idle()) == 1
    assert state(client, instance) is WorkflowState.WAITING
    with running(engine, finishing(ledger)):
        eventually(is_finished(ledger, instance), "taken over")


@pytest.mark.parametrize("trouble", ["database or disk is full", "disk I/O error"])
def test_a_run_that_the_engine_lost_on_a_full_disk_is_taken_over_by_the_worker_that_it_belongs_to(
    ledger: Ledger, client: Client, engine: Engine, trouble: str
) -> None:
    instance = received(ledger, client)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda _: None)  # the engine's thread dies, and says so
        disk = Disk(engine, trouble)
        calls: list[int] = []

        def run(instance_id: int) -> Progress:
            calls.append(instance_id)
            if len(calls) == 1:
                disk.full = True
                return Progress.GO_ON
            ledger.quarantine(instance_id, "done")
            return Progress.GO_ON

        with running(engine, Step("fill the disk", run)) as runner:
            # Twice: the step's answer, then that the run failed. Written, the failure would end the run instead of stranding it.
            eventually(lambda: disk.refused >= 2 and runner.working_on is None, "the engine could not write")
            disk.full = False
            clock_s = iter((0.0, STRANDED_AFTER_S - 1.0, STRANDED_AFTER_S))
            idle = Idle(now_s=lambda: next(clock_s))
            ledger.beat("worker-1", "host", 1, runner.working_on)
            assert state(client, instance) is WorkflowState.RUNNING
            assert [sweep(ledger, client, idle) for _ in range(3)] == [0, 0, 1]
            eventually(is_finished(ledger, instance), "done after the trouble")
    assert calls == [instance.id] * 2


def test_a_run_that_its_worker_names_is_never_taken_from_it(ledger: Ledger, client: Client, engine: Engine) -> None:
    instance = received(ledger, client)
    claim_as(engine, "worker-1")
    clock_s = iter((0.0, 1000.0, 2000.0, 2000.0 + STRANDED_AFTER_S))
    idle = Idle(now_s=lambda: next(clock_s))
    ledger.beat("worker-1", "host", 1, None)  # it has just begun
    assert sweep(ledger, client, idle) == 0
    ledger.beat("worker-1", "host", 1, instance.id)
    assert sweep(ledger, client, idle) == 0
    ledger.beat("worker-1", "host", 1, None)  # it has just ended: seen idle before, but not since
    assert sweep(ledger, client, idle) == 0
    assert sweep(ledger, client, idle) == 1


def test_a_worker_names_the_instance_that_it_works_on(ledger: Ledger, client: Client, engine: Engine) -> None:
    go_on, seen = threading.Event(), []

    def run(instance_id: int) -> Progress:
        go_on.wait(20)
        return Progress.STOP

    instance = received(ledger, client)
    with running(engine, Step("wait", run)) as runner:
        eventually(lambda: runner.working_on == instance.id, "named")
        seen.append(runner.working_on)
        go_on.set()
        eventually(lambda: runner.working_on is None, "not named any more")
    assert seen == [instance.id]


def test_losing_the_engines_tables_loses_no_work(ledger: Ledger, client: Client, engine: Engine) -> None:
    instances = [received(ledger, client, number) for number in range(1, 4)]
    forget_everything(engine)
    assert {state(client, instance) for instance in instances} == {WorkflowState.LOST}
    assert sweep(ledger, client, Idle()) == 3
    assert sweep(ledger, client, Idle()) == 0
    with running(engine, finishing(ledger)):
        for instance in instances:
            eventually(is_finished(ledger, instance), "done after the loss")


def test_a_run_that_ended_early_is_run_again_when_its_time_has_come(
    ledger: Ledger, client: Client, engine: Engine
) -> None:
    instance = received(ledger, client)

    def postpone(instance_id: int) -> Progress:
        ledger.postpone(instance_id, timedelta(seconds=0.3), "disk full", counted=False)
        return Progress.STOP

    with running(engine, Step("postpone", postpone)):
        eventually(lambda: state(client, instance) is WorkflowState.ENDED, "ended early")
    if sweep(ledger, client, Idle()) == 0:  # its time had not come yet
        eventually(lambda: sweep(ledger, client, Idle()) == 1, "swept when due")
    assert ledger.instance(instance.id).run == 2
    with running(engine, finishing(ledger)):
        eventually(is_finished(ledger, instance), "second run")


def test_what_the_engine_gives_up_is_quarantined(ledger: Ledger, client: Client, engine: Engine) -> None:
    instance = received(ledger, client)
    with engine.begin() as connection:
        connection.execute(text("UPDATE workflow_status SET status = 'MAX_RECOVERY_ATTEMPTS_EXCEEDED'"))
    assert sweep(ledger, client, Idle()) == 1
    assert ledger.instance(instance.id).state is InstanceState.QUARANTINED
    assert "gave up" in ledger.instance(instance.id).note


def test_the_sweeper_leaves_alone_what_is_on_its_way_and_what_is_done(ledger: Ledger, client: Client) -> None:
    received(ledger, client, 1)
    ledger.quarantine(received(ledger, client, 2).id, "a person must look")
    assert sweep(ledger, client, Idle()) == 0


def test_the_sweeper_has_nothing_to_do_in_an_empty_ledger(ledger: Ledger, client: Client) -> None:
    assert sweep(ledger, client, Idle()) == 0
    assert client.statuses([]) == {}


def test_a_repeated_enqueue_of_the_same_run_is_one_workflow(ledger: Ledger, client: Client, engine: Engine) -> None:
    instance = received(ledger, client)
    with database.writing(engine) as session:
        client.enqueue(session, instance.id, instance.run)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM workflow_status")).scalar() == 1


def test_the_engine_stores_json_with_row_ids_and_nothing_else(ledger: Ledger, client: Client, engine: Engine) -> None:
    instance = received(ledger, client)
    with engine.connect() as connection:
        inputs = connection.execute(text("SELECT inputs FROM workflow_input")).scalars().all()
        version = connection.execute(text("SELECT application_version FROM workflow_status")).scalar()
    assert [json.loads(entry) for entry in inputs] == [{"positionalArgs": [instance.id], "namedArgs": {}}]
    assert version == workflow.APPLICATION_VERSION


def test_a_running_engine_listens_on_no_port_and_connects_to_nobody(engine: Engine) -> None:
    def sockets() -> set[tuple[object, ...]]:
        return {tuple(entry) for entry in psutil.Process().net_connections("inet")}

    before = sockets()
    with running(engine, Step("nothing", lambda instance_id: Progress.GO_ON)):
        eventually(lambda: True, "up")
        assert sockets() <= before


def test_an_environment_that_would_steer_the_engine_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBOS__CLOUD", "true")
    with pytest.raises(ConfigurationError, match="DBOS__CLOUD"):
        workflow.prepare(url)


class Disk:
    """A disk that refuses the engine's own writes while it is full."""

    def __init__(self, engine: Engine, trouble: str) -> None:
        self.full, self.refused = False, 0
        self._trouble = trouble
        event.listen(engine, "before_cursor_execute", self._refuse)

    def _refuse(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        writes = statement.lower().startswith(("update", "insert"))
        if self.full and writes and ("workflow_status" in statement or "operation_outputs" in statement):
            self.refused += 1
            raise sqlite3.OperationalError(self._trouble)


def claim_as(engine: Engine, executor_id: str) -> None:
    """Leave all queued work as a process that was killed in the middle of it leaves it."""
    with engine.begin() as connection:
        statement = "UPDATE workflow_status SET status = 'PENDING', executor_id = :executor, recovery_attempts = 1"
        connection.execute(text(statement), {"executor": executor_id})


def forget_everything(engine: Engine) -> None:
    """Empty the engine's tables of work, as a restored or lost database would."""
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM workflow_input"))
        connection.execute(text("DELETE FROM workflow_status"))
