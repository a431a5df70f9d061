"""The same code on PostgreSQL: ledger, outbox and workflow on a server that is started for the test."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine

from dicomnode import workflow
from dicomnode.errors import LedgerUnavailable
from dicomnode.storage import database
from dicomnode.storage.ledger import Arrival, Ledger
from dicomnode.storage.outbox import Outbox
from dicomnode.storage.peers import Peers
from dicomnode.storage.rows import InstanceState, NewAe, NewInstance, NewObject
from dicomnode.storage.schema import Table
from dicomnode.workflow import Client, Idle, Progress, Runner, Step, sweep
from tests.node_kit import eventually, free_port

LEASE = timedelta(minutes=1)


def programs() -> Path:
    """Folder of initdb and postgres."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (extra: postgresql)")
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    candidates = [*debian, *([Path(found).resolve().parent] if found else [])]
    for folder in candidates:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    pytest.skip("PostgreSQL is not installed (Debian package postgresql)")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A PostgreSQL server on loopback; it refuses to run as root, hence the change of user there."""
    folder, port = programs(), free_port()
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="postgresql-") as data:
        if user is not None:
            shutil.chown(data, user)
        initialise = [str(folder / "initdb"), "-D", f"{data}/db", "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N"]
        initialised = subprocess.run(initialise, user=user, capture_output=True, text=True, cwd="/", check=False)
        assert initialised.returncode == 0, initialised.stderr
        serve = [str(folder / "postgres"), "-D", f"{data}/db", "-p", str(port), "-h", "127.0.0.1", "-k", data]
        process = subprocess.Popen(serve, user=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        try:
            eventually(lambda: answers(url), "PostgreSQL answers", 60)
            yield url
        finally:
            process.send_signal(signal.SIGINT)  # fast shutdown: open connections do not hold it up
            process.wait(30)


def answers(url: str) -> bool:
    try:
        database.upgrade(url)
    except LedgerUnavailable:
        return False
    return True


@pytest.fixture(scope="module")
def engine(server: str) -> Iterator[Engine]:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(database.upgrade, [server] * 3))
    workflow.prepare(server)
    engine = database.open_engine(server)
    Peers(engine).add(NewAe(ae_title="ARCHIVE", receives_results=True, host="192.0.2.1", port=104))
    yield engine
    engine.dispose()


def new(number: int, sha256: str = "a" * 64) -> NewInstance:
    return NewInstance(f"1.2.{number}", "1.2", "1.2", "1.3", "A", "B", "", sha256, 1, f"instances/aa/{number}.dcm")


def test_migrations_build_exactly_the_mapped_tables(engine: Engine) -> None:
    with engine.connect() as connection:
        options = {"version_table": "ledger_version"}
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), Table.metadata)
    assert differences == []


def test_only_one_of_many_simultaneous_arrivals_is_new(engine: Engine) -> None:
    ledger, client = Ledger(engine), Client(engine)
    with ThreadPoolExecutor(8) as pool:
        arrivals = list(pool.map(lambda _: ledger.register(new(1), client.enqueue).arrival, range(8)))
    client.close()
    assert sorted(arrival.value for arrival in arrivals) == ["new"] + ["repeated"] * 7
    assert ledger.register(new(1, "b" * 64), client.enqueue).arrival is Arrival.CONFLICTING


def test_an_instance_goes_through_its_workflow_and_its_objects_are_claimed_once(engine: Engine) -> None:
    ledger, outbox, client = Ledger(engine), Outbox(engine), Client(engine)

    def work(instance_id: int) -> Progress:
        ledger.begin_step(instance_id, "measure", 3)
        result = ledger.record_result(
            instance_id, "model", "configuration", {"status": "measured", "reason": None}, "x"
        )
        uids = [f"1.9.{instance_id}.{number}" for number in range(5)]
        made = [NewObject(uid[-1], "1.2", uid, "1.2", "b" * 64, 1, f"objects/{uid}") for uid in uids]
        ledger.record_objects(result, made)
        ledger.dispatch(instance_id)
        return Progress.GO_ON

    instance = ledger.register(new(2), client.enqueue).instance
    ledger.beat("worker-1", "host", 1)
    runner = Runner(engine, "worker-1", [Step("work", work)])
    runner.start()
    try:
        eventually(lambda: ledger.instance(instance.id).state is InstanceState.DISPATCHED, "dispatched", 30)
    finally:
        runner.stop(0)
    assert sweep(ledger, client, Idle()) == 0
    assert {job.instance.id: job.outcome for job in ledger.jobs()}[instance.id] == "measured"
    client.close()

    def claim(sender: int) -> list[int]:
        return [due.delivery.id for due in outbox.claim("ARCHIVE", f"sender-{sender}", LEASE, 2)]

    with ThreadPoolExecutor(8) as pool:
        claimed = [identity for batch in pool.map(claim, range(8)) for identity in batch]
    mine = {detail.delivery.id for detail in ledger.job(instance.id).deliveries}
    assert len(claimed) == len(set(claimed))
    assert mine <= set(claimed)
