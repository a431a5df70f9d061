"""kill -9 at every point where something could be lost or done twice, with real processes and a supervisor that restarts them.

Whatever was acknowledged ends at the archive as exactly one SR UID and one SC UID, with the same bytes each time they were sent.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from pydicom.dataset import Dataset

from dicomnode.storage import database
from dicomnode.storage.ledger import Ledger
from dicomnode.storage.rows import DeliveryState, InstanceState, Job
from tests import node_kit
from tests.node_kit import Archive, eventually, free_port, radiograph

pytestmark = pytest.mark.e2e

SEEDS = itertools.count(1)


@dataclass
class Node:
    """A running node, its archive, and the folder where its kill points are armed."""

    folder: Path
    port: int
    archive: Archive
    ledger: Ledger

    def arm(self, point: str, content: str = "") -> None:
        (self.folder / "armed" / point).write_text(content)

    def is_armed(self, point: str) -> bool:
        return (self.folder / "armed" / point).exists()

    def send_until_acknowledged(self, dataset: Dataset) -> int:
        """Send as a modality with a queue does; give the number of times it took."""
        for times in range(1, 200):
            if node_kit.send(self.port, [dataset]) == [0x0000]:
                return times
            time.sleep(0.1)
        raise AssertionError("never acknowledged")

    def job(self, dataset: Dataset) -> Job:
        (job,) = [job for job in self.ledger.jobs(1000) if job.instance.sop_instance_uid == dataset.SOPInstanceUID]
        return job

    def is_delivered(self, dataset: Dataset) -> bool:
        return self.job(dataset).deliveries == {DeliveryState.DELIVERED: 2}

    def log(self) -> str:
        return (self.folder / "node.log").read_text()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    (folder / "armed").mkdir()
    with Archive().listening() as archive:
        port = free_port()
        (folder / "node.json").write_text(json.dumps({"port": port, "archive_port": archive.port}))
        with (folder / "node.log").open("wb") as log, started(folder, log.fileno()):
            engine = database.open_engine(f"sqlite:///{folder / 'ledger.sqlite'}")
            node = Node(folder, port, archive, Ledger(engine))
            yield node
            engine.dispose()
    assert "killed, since it did not stop" not in node.log()


@contextmanager
def started(folder: Path, log: int) -> Iterator[subprocess.Popen[bytes]]:
    """A node that is up; at the end it is asked to stop, and must do so cleanly (unless the test has killed it)."""
    lines = (folder / "node.log").read_text().count("worker working")
    command = [sys.executable, "-m", "tests.e2e.node_program", "all", str(folder)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=log, stderr=log)
    try:
        eventually(lambda: (folder / "node.log").read_text().count("worker working") > lines, "worker is up", 60)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            assert process.wait(40) == 0


def is_alive(process: psutil.Process) -> bool:
    """A zombie that nobody has buried yet is dead."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def results_of(dataset: Dataset) -> set[str]:
    return {node_kit.result_uid(str(dataset.SOPInstanceUID), kind) for kind in node_kit.KINDS}


def require_one_report_and_one_capture(node: Node, sources: list[Dataset]) -> None:
    """The archive holds exactly the results of these sources, and no UID ever came with other bytes."""
    mine = [
        stored for stored in node.archive.received if stored.sop_instance_uid in set().union(*map(results_of, sources))
    ]
    assert {stored.sop_instance_uid for stored in mine} == set().union(*map(results_of, sources))
    contents = {(stored.sop_instance_uid, stored.sha256) for stored in mine}
    assert len(contents) == 2 * len(sources), "a UID was sent with two contents"
    expected_in_all = set().union(*(results_of_uid(job.instance.sop_instance_uid) for job in node.ledger.jobs(1000)))
    assert node.archive.uids() <= expected_in_all, "something was delivered under a UID that no instance accounts for"


def results_of_uid(source_uid: str) -> set[str]:
    return {node_kit.result_uid(source_uid, kind) for kind in node_kit.KINDS}


@pytest.mark.parametrize(
    "point",
    [
        "receiver_before_commit",
        "receiver_after_commit",
        "measure",
        "measure_before_commit",
        "measure_after_commit",
        "encode",
        "encode_before_commit",
        "encode_after_commit",
        "deliver_before_commit",
        "deliver_after_commit",
        "sender_before_request",
        "sender_after_answer",
    ],
)
def test_kill_minus_nine_loses_nothing_and_delivers_under_one_uid(node: Node, point: str) -> None:
    struck, behind = radiograph(next(SEEDS)), radiograph(next(SEEDS))
    node.arm(point)
    times = node.send_until_acknowledged(struck)
    assert times > 1 if point.startswith("receiver") else times == 1
    node.send_until_acknowledged(behind)
    eventually(lambda: node.is_delivered(struck) and node.is_delivered(behind), f"delivered after {point}")
    assert not node.is_armed(point), "the kill point was never reached: the test proves nothing"
    assert len([job for job in node.ledger.jobs(1000) if job.instance.sop_instance_uid == struck.SOPInstanceUID]) == 1
    require_one_report_and_one_capture(node, [struck, behind])


def test_kill_minus_nine_of_the_sender_before_the_answer_sends_the_same_object_again(node: Node) -> None:
    source = radiograph(next(SEEDS))
    killed: list[str] = []

    def kill_sender_at_first(archive: Archive, stored: node_kit.Stored) -> int:
        if not killed:
            killed.append(stored.sop_instance_uid)
            os.kill(int((node.folder / "sender.pid").read_text()), signal.SIGKILL)
        return archive.duplicate_or_success(stored)

    node.archive.answer = kill_sender_at_first
    node.send_until_acknowledged(source)
    eventually(lambda: node.is_delivered(source), "delivered")
    again = [stored for stored in node.archive.received if stored.sop_instance_uid in killed]
    assert len(again) == 2
    require_one_report_and_one_capture(node, [source])


def test_an_image_that_kills_the_worker_three_times_is_quarantined_and_holds_up_nobody(node: Node) -> None:
    poison, behind = radiograph(next(SEEDS)), radiograph(next(SEEDS))
    node.arm("poison", str(poison.SOPInstanceUID))
    node.send_until_acknowledged(poison)
    node.send_until_acknowledged(behind)
    eventually(lambda: node.is_delivered(behind), "the one behind is delivered", within_s=40)
    eventually(lambda: node.job(poison).instance.state is InstanceState.QUARANTINED, "quarantined", within_s=40)
    assert "the process ended 3 times" in node.job(poison).instance.note
    assert node.log().count("cause=SIGSEGV") == 3
    assert not results_of(poison) & node.archive.uids()


def test_same_image_again_is_acknowledged_and_delivered_only_once(node: Node) -> None:
    source = radiograph(next(SEEDS))
    assert node_kit.send(node.port, [source, source, source]) == [0, 0, 0]
    eventually(lambda: node.is_delivered(source), "delivered")
    sent = [stored for stored in node.archive.received if stored.sop_instance_uid in results_of(source)]
    assert len(sent) == 2


def test_kill_minus_nine_of_the_supervisor_leaves_no_orphans_and_a_new_one_goes_on(tmp_path: Path) -> None:
    (tmp_path / "armed").mkdir()
    port = free_port()
    with Archive().listening() as archive, (tmp_path / "node.log").open("wb") as log:
        (tmp_path / "node.json").write_text(json.dumps({"port": port, "archive_port": archive.port}))
        source = radiograph(next(SEEDS))
        with started(tmp_path, log.fileno()) as first:
            children = psutil.Process(first.pid).children()
            assert len(children) == 3
            eventually(lambda: node_kit.send(port, [source]) == [0], "acknowledged")
            first.kill()
            first.wait()
        eventually(lambda: not any(map(is_alive, children)), "children have ended")
        with started(tmp_path, log.fileno()):
            eventually(lambda: results_of(source) <= archive.uids(), "delivered by the second node")
    assert len({(stored.sop_instance_uid, stored.sha256) for stored in archive.received}) == 2
