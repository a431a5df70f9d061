"""The worker's three steps: each done once, whatever fails in them ends in the ledger."""

import errno
import io
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydicom import dcmread
from sqlalchemy import Engine

from dicomnode.domain.measurement import Measurement
from dicomnode.errors import PermanentFailure, TransientFailure
from dicomnode.services.receiver import file_head
from dicomnode.services.worker import Encoded, InstanceWork, WorkerSettings
from dicomnode.storage import database
from dicomnode.storage.ledger import Ledger
from dicomnode.storage.peers import Peers
from dicomnode.storage.rows import Instance, InstanceState, NewAe, NewInstance, Object
from dicomnode.storage.spool import Spool
from dicomnode.workflow import Progress
from tests import node_kit

SETTINGS = WorkerSettings("worker-1", node_kit.MODEL.digest, "c" * 64, first_delay_s=4.0, trouble_delay_s=30.0)
SOURCE = node_kit.radiograph(1)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time


@dataclass
class Bench:
    """One received instance and a worker whose measuring and encoding a test may replace."""

    engine: Engine
    spool: Spool
    clock: Clock = field(default_factory=Clock)
    settings: WorkerSettings = SETTINGS
    measured: list[Path] = field(default_factory=list)
    encoded: list[Path] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    """Raised one after the other by the measuring, before it works."""

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.engine, self.clock)
        uid, study = str(SOURCE.SOPInstanceUID), str(SOURCE.StudyInstanceUID)
        with self.spool.receive(file_head(str(SOURCE.SOPClassUID), uid, "1.2.840.10008.1.2.1", "M")) as incoming:
            incoming.write(content_of(self.spool.root))
            sha256, size_bytes = incoming.finish(), incoming.size_bytes
            path = self.spool.keep(incoming.path)
        new = NewInstance(
            uid, str(SOURCE.SOPClassUID), "1.2.840.10008.1.2.1", study, "M", "NODE", "", sha256, size_bytes, path
        )
        self.id = self.ledger.register(new, lambda session, instance_id, run: None).instance.id

    def measure(self, path: Path) -> Measurement:
        if self.failures:
            raise self.failures.pop(0)
        self.measured.append(path)
        return node_kit.measure(path)

    def encode(self, path: Path, measurement: Measurement) -> Sequence[Encoded]:
        self.encoded.append(path)
        return node_kit.encode(path, measurement)

    def run(self, *names: str) -> list[Progress]:
        work = InstanceWork(self.settings, self.ledger, self.spool, self.measure, self.encode)
        steps = {step.name: step for step in work.steps()}
        return [steps[name].run(self.id) for name in names]

    @property
    def instance(self) -> Instance:
        return self.ledger.instance(self.id)

    def objects(self) -> tuple[Object, ...]:
        return self.ledger.job(self.id).objects

    def files(self) -> set[Path]:
        return {path for path in self.spool.root.rglob("*") if path.is_file()}


def content_of(folder: Path) -> bytes:
    """The encoded data set of the source, without file meta information."""
    file = folder / "source.dcm"
    SOURCE.save_as(file, enforce_file_format=True)
    start = 144 + int(dcmread(file, stop_before_pixels=True).file_meta.FileMetaInformationGroupLength)
    content = file.read_bytes()[start:]
    file.unlink()
    return content


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    database.upgrade(url)
    engine = database.open_engine(url)
    Peers(engine).add(NewAe(ae_title="ARCHIVE", receives_results=True, host="192.0.2.1", port=104))
    spool = Spool(tmp_path / "spool", 0, 1 << 24)
    spool.prepare()
    yield Bench(engine, spool)
    engine.dispose()


def test_three_steps_lead_from_a_radiograph_to_addressed_objects(bench: Bench) -> None:
    assert bench.run("measure", "encode", "deliver") == [Progress.GO_ON] * 3
    assert bench.instance.state is InstanceState.DISPATCHED
    detail = bench.ledger.job(bench.id)
    assert detail.results[0].figures["hips"][0]["regions"][0]["figures"]["areal_bmd"]["value"] == 0.9
    assert {made.kind for made in detail.objects} == set(node_kit.KINDS)
    assert len(detail.deliveries) == 2
    for made in detail.objects:
        stored = dcmread(bench.spool.absolute(made.spool_path))
        assert (
            stored.SOPInstanceUID == made.sop_instance_uid == node_kit.result_uid(str(SOURCE.SOPInstanceUID), made.kind)
        )
        bench.spool.read(made.spool_path, made.sha256)


def test_steps_that_run_again_do_nothing_again(bench: Bench) -> None:
    bench.run("measure", "measure", "encode", "encode")
    objects, files = bench.objects(), bench.files()
    assert bench.run("measure", "encode") == [Progress.GO_ON] * 2
    assert (bench.objects(), bench.files()) == (objects, files)
    assert len(bench.measured) == len(bench.encoded) == 1


def test_encoding_measures_first_when_another_model_has_come_in_between(bench: Bench) -> None:
    bench.run("measure")
    bench.settings = replace(SETTINGS, configuration_digest="d" * 64)
    assert bench.run("encode") == [Progress.GO_ON]
    assert len(bench.measured) == 2
    results = bench.ledger.job(bench.id).results
    assert {made.result_id for made in bench.objects()} == {results[1].id}


def test_an_unexpected_error_is_tried_three_times_with_growing_delays_and_then_quarantined(bench: Bench) -> None:
    bench.failures = [ValueError("SECRET^PATIENT") for _ in range(3)]
    for delay_s in (4, 8):
        assert bench.run("measure") == [Progress.STOP]
        assert bench.instance.next_attempt_at == bench.clock() + timedelta(seconds=delay_s)
        assert bench.instance.note.startswith("measure: ValueError in test_worker.py:")
    assert bench.run("measure") == [Progress.STOP]
    assert bench.instance.state is InstanceState.QUARANTINED
    assert "(3 times)" in bench.instance.note
    assert "SECRET" not in bench.instance.note
    assert bench.run("measure") == [Progress.STOP]


def test_the_words_of_an_unexpected_error_are_not_logged(bench: Bench, log: io.StringIO) -> None:
    bench.failures = [ValueError("SECRET^PATIENT 19500101")]
    bench.run("measure")
    assert "step failed" in log.getvalue()
    assert "ValueError (" in log.getvalue()
    assert "SECRET" not in log.getvalue()


def test_a_permanent_failure_is_quarantined_at_once_with_its_reason(bench: Bench) -> None:
    bench.failures = [PermanentFailure("the bundle does not fit")]
    assert bench.run("measure") == [Progress.STOP]
    assert bench.instance.state is InstanceState.QUARANTINED
    assert bench.instance.note == "measure: the bundle does not fit"


@pytest.mark.parametrize("trouble", [OSError(errno.ENOSPC, "No space left on device"), TransientFailure("busy")])
def test_trouble_of_the_node_is_waited_out_without_an_end(bench: Bench, trouble: Exception) -> None:
    bench.failures = [trouble] * 10
    for _ in range(10):
        assert bench.run("measure") == [Progress.STOP]
        assert bench.instance.next_attempt_at == bench.clock() + timedelta(seconds=30)
    assert bench.run("measure") == [Progress.GO_ON]
    assert bench.instance.state is InstanceState.MEASURED


@pytest.mark.parametrize("shortage", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_want_of_memory_waits_longer_and_longer_and_is_quarantined_the_tenth_time(
    bench: Bench, shortage: Exception
) -> None:
    bench.failures = [shortage] * 10
    for delay_s in (30, 60, 120, 240, 480, 960, 1920, 3600, 3600):
        assert bench.run("measure") == [Progress.STOP]
        assert bench.instance.next_attempt_at == bench.clock() + timedelta(seconds=delay_s)
        assert bench.instance.attempts == 0
    assert bench.run("measure") == [Progress.STOP]
    assert bench.instance.state is InstanceState.QUARANTINED
    assert "want of memory" in bench.instance.note
    bench.ledger.retry(bench.id, lambda session, instance_id, run: None)
    assert bench.run("measure") == [Progress.GO_ON]
    assert bench.instance.shortages == 0


def test_other_system_errors_count_as_faults_of_the_instance(bench: Bench) -> None:
    bench.failures = [OSError("broken data stream") for _ in range(3)]
    bench.run("measure", "measure", "measure")
    assert bench.instance.state is InstanceState.QUARANTINED


def lose(path: Path) -> None:
    path.unlink()


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")


@pytest.mark.parametrize(("damage", "words"), [(lose, "missing from the spool"), (change, "has changed in the spool")])
def test_a_radiograph_that_the_disk_has_lost_or_changed_is_never_measured(
    bench: Bench, damage: Callable[[Path], None], words: str
) -> None:
    damage(bench.spool.absolute(bench.instance.spool_path))
    assert bench.run("measure") == [Progress.STOP]
    assert bench.measured == []
    assert words in bench.instance.note
    assert bench.instance.note.endswith(f"send the image again, then dicomnode retry {bench.id}")


def forge(path: Path) -> None:
    path.write_bytes(b"damaged")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [forge, cut, lose])
def test_a_damaged_or_lost_checkpoint_is_measured_again_under_the_same_uids(
    bench: Bench, damage: Callable[[Path], None]
) -> None:
    bench.run("measure")
    (result,) = bench.ledger.job(bench.id).results
    damage(bench.spool.absolute(result.checkpoint_path))
    assert bench.run("encode", "deliver") == [Progress.GO_ON] * 2
    (replaced,) = bench.ledger.job(bench.id).results
    assert (replaced.id, replaced.figures) == (result.id, result.figures)
    bench.spool.absolute(replaced.checkpoint_path).read_bytes()
    assert not bench.spool.absolute(result.checkpoint_path).exists()
    uids = {made.kind: made.sop_instance_uid for made in bench.objects()}
    assert uids == {kind: node_kit.result_uid(str(SOURCE.SOPInstanceUID), kind) for kind in node_kit.KINDS}
    assert len(bench.measured) == 2


def test_figures_that_an_object_speaks_of_are_never_replaced(bench: Bench) -> None:
    bench.run("measure", "encode")
    (result,) = bench.ledger.job(bench.id).results
    with pytest.raises(PermanentFailure, match="figures stand"):
        bench.ledger.replace_result(result.id, {}, "x")


def test_without_a_destination_the_results_wait(bench: Bench) -> None:
    Peers(bench.engine).remove("ARCHIVE")
    for _ in range(5):
        assert bench.run("measure", "encode", "deliver")[-1] is Progress.STOP
    assert bench.instance.state is InstanceState.ENCODED
    assert "no destination" in bench.instance.note


def test_a_step_that_hangs_ends_its_process_even_without_the_interpreter_lock() -> None:
    code = (
        "import ctypes; from dicomnode.services.worker import _time_limit\n"
        "with _time_limit(0.3): ctypes.PyDLL(None).sleep(30)  # holds the interpreter's lock all the while"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=25, check=False)
    assert ended.returncode != 0
    assert "Timeout" in ended.stderr
