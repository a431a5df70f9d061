"""A whole node of real processes, put together as the product is, from ledgers, outboxes and functions that can kill it.

    python -m tests.e2e.node_program all FOLDER      the supervisor, which starts the three others
    python -m tests.e2e.node_program receiver|worker|sender FOLDER

FOLDER holds node.json {"port": ..., "archive_port": ...}. A file FOLDER/armed/POINT arms a kill point: whoever reaches it first
removes the file and dies by SIGKILL. A file FOLDER/armed/poison names a SOP Instance UID whose measuring always dies.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydicom import dcmread

from dicomnode import workflow
from dicomnode.domain.measurement import Measurement
from dicomnode.services import process, receiver, sender, supervisor, worker
from dicomnode.storage import database
from dicomnode.storage.ledger import Enqueue, Ledger, Registration
from dicomnode.storage.outbox import Outbox
from dicomnode.storage.peers import Peers
from dicomnode.storage.rows import NewAe, NewInstance, NewObject, Object, Result
from dicomnode.storage.spool import Spool
from tests import node_kit


class Armed:
    """The kill points of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def die_at(self, point: str) -> None:
        """Die if the point is armed, once."""
        try:
            (self.folder / point).unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def poison(self) -> str:
        """The UID that kills whoever measures it."""
        file = self.folder / "poison"
        return file.read_text() if file.exists() else ""


class MortalLedger(Ledger):
    """A ledger that dies just before or just after a commit."""

    armed: Armed

    def register(self, new: NewInstance, enqueue: Enqueue) -> Registration:
        def enqueue_and_die(session: Any, instance_id: int, run: int) -> None:
            enqueue(session, instance_id, run)
            self.armed.die_at("receiver_before_commit")

        registration = super().register(new, enqueue_and_die)
        self.armed.die_at("receiver_after_commit")
        return registration

    def record_result(self, *args: Any) -> Result:
        self.armed.die_at("measure_before_commit")
        result = super().record_result(*args)
        self.armed.die_at("measure_after_commit")
        return result

    def record_objects(self, result: Result, objects: Sequence[NewObject]) -> tuple[Object, ...]:
        self.armed.die_at("encode_before_commit")
        recorded = super().record_objects(result, objects)
        self.armed.die_at("encode_after_commit")
        return recorded

    def dispatch(self, instance_id: int) -> int:
        self.armed.die_at("deliver_before_commit")
        destinations = super().dispatch(instance_id)
        self.armed.die_at("deliver_after_commit")
        return destinations


class MortalOutbox(Outbox):
    """An outbox that dies when an answer has come but is not recorded."""

    armed: Armed

    def claim(self, destination: str, sender_id: str, lease: timedelta, most: int) -> Any:
        claimed = super().claim(destination, sender_id, lease, most)
        if claimed:
            self.armed.die_at("sender_before_request")
        return claimed

    def delivered(self, delivery_id: int, status: int, detail: str = "") -> None:
        self.armed.die_at("sender_after_answer")
        super().delivered(delivery_id, status, detail)


def main(role: str, folder: Path) -> int:
    """Run one role."""
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {role} %(message)s", stream=sys.stderr)
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    settings = json.loads((folder / "node.json").read_text())
    url = f"sqlite:///{folder / 'ledger.sqlite'}"
    if role == "all":
        return run_all(folder, url, settings)
    process.die_with_parent()
    stop = process.stop_on_signals()
    with process.single(folder / "locks", role):
        run(role, folder, url, settings, stop)
    return 0


def run_all(folder: Path, url: str, settings: Mapping[str, int]) -> int:
    database.upgrade(url)
    workflow.prepare(url)
    modality = NewAe(ae_title="MODALITY", may_send=True)
    archive = NewAe(ae_title="ARCHIVE", receives_results=True, host="127.0.0.1", port=settings["archive_port"])
    Peers(database.open_engine(url)).add_missing([modality, archive])
    roles = ("receiver", "worker", "sender")
    programs = [
        supervisor.Program(role, (sys.executable, "-m", "tests.e2e.node_program", role, str(folder))) for role in roles
    ]
    return supervisor.run_all(programs, stop_grace_s=10, restarts=supervisor.Restarts(0.1, 0.2))


def run(role: str, folder: Path, url: str, settings: Mapping[str, int], stop: Any) -> None:
    armed = Armed(folder / "armed")
    engine = database.open_engine(url)
    spool = Spool(folder / "spool", watermark_bytes=1 << 20, max_object_bytes=1 << 28)
    ledger, outbox, peers = MortalLedger(engine), MortalOutbox(engine), Peers(engine)
    ledger.armed = outbox.armed = armed
    if role == "receiver":
        client = workflow.Client(engine)
        receiver.serve(
            receiver.ReceiverSettings("NODE", port=settings["port"]), ledger, peers, spool, client.enqueue, stop
        )
    elif role == "worker":
        limits = worker.WorkerSettings("worker-1", node_kit.MODEL.digest, "c" * 64, sweep_interval_s=0.5)

        def measure(path: Path) -> Measurement:
            armed.die_at("measure")
            if str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) == armed.poison():
                os.kill(os.getpid(), signal.SIGSEGV)
            return node_kit.measure(path)

        def encode(path: Path, measured: Measurement) -> Sequence[worker.Encoded]:
            armed.die_at("encode")
            return node_kit.encode(path, measured)

        worker.serve(limits, engine, ledger, spool, measure, encode, stop)
    else:
        (folder / "sender.pid").write_text(str(os.getpid()))
        sender.serve(sender.SenderSettings("NODE", first_delay_s=0.2), outbox, peers, spool, stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
