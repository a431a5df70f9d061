"""The worker: runs the steps of the workflow on one instance at a time, in a process of its own that may die in any of them.

    measure   radiograph -> figures and maps: checkpoint file in the spool, then the result row
    encode    checkpoint -> SR, SC, ...: object files in the spool, then all their rows at once
    deliver   one delivery row per object and destination; the rest is the sender's

Why nothing gets a second UID or other bytes: a step whose rows exist does nothing; files come before rows, so that a row never
speaks of a file that is not there; a file without a row was never sent, and is simply written again (its UID is derived, hence
the same). From the commit of an object's row on, its file is only ever read.

A step that kills the process (a segmentation fault in a decoder, the kernel's out-of-memory killer, kill -9) or outlasts its
limit leaves its beginning counted in the ledger; the third time the instance is quarantined. An exception counts the same, with
a delay between, except where it is the node's own trouble (disk, database): that waits and does not count. Want of memory may be
the node's (it passes) or the instance's (an image that needs more than there is): it waits longer and longer, ten times.
"""

import errno
import faulthandler
import logging
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from pathlib import Path

from pydicom import dcmwrite
from pydicom.dataset import Dataset
from sqlalchemy import Engine

from dicomnode.domain.document import document
from dicomnode.domain.measurement import Measurement
from dicomnode.errors import DicomNodeError, LedgerUnavailable, PermanentFailure, TransientFailure
from dicomnode.logline import line
from dicomnode.storage import checkpoint
from dicomnode.storage.ledger import Ledger
from dicomnode.storage.rows import Instance, InstanceState, NewObject, Result
from dicomnode.storage.spool import CHECKPOINTS, OBJECTS, Spool
from dicomnode.workflow import Client, Idle, Progress, Runner, Step, sweep

LOGGER = logging.getLogger(__name__)

MOST_ATTEMPTS = 3
MOST_SHORTAGES = 10
LONGEST_SHORTAGE_DELAY_S = 3600.0
"""Between two tries after want of memory, the delay doubles from `trouble_delay_s` up to this."""
OWN_TROUBLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EAGAIN})
"""Errors of disk and file table. Source: errno(3)."""


@dataclass(frozen=True)
class Encoded:
    """A DICOM object made from a measurement."""

    kind: str
    """Its role among the objects of one result, e.g. "structured_report"; at most one of each kind."""
    dataset: Dataset
    """With file meta information; its SOP Instance UID follows from source, model, configuration and kind alone."""


Measure = Callable[[Path], Measurement]
"""From the file of a radiograph to figures and maps, or to a measurement that says why there are none."""
Encode = Callable[[Path, Measurement], Sequence[Encoded]]
"""From the file of a radiograph and its measurement to the objects that are delivered."""


@dataclass(frozen=True)
class WorkerSettings:
    """How one worker works."""

    executor_id: str
    """Unique among the workers on one database, the same after a restart, e.g. "worker-1"."""
    model_digest: str
    configuration_digest: str
    """What results depend on beside the radiograph: both go into the identity of a result."""
    step_limit_s: float = 600.0
    """A step that takes longer is taken for hung: the process ends itself, and the attempt counts."""
    first_delay_s: float = 5.0
    """Before a failed step is tried again; doubles with each attempt."""
    trouble_delay_s: float = 30.0
    """Before work goes on after trouble of the node itself."""
    sweep_interval_s: float = 5.0
    beat_interval_s: float = 15.0
    stop_grace_s: int = 15
    """What a running step gets to end when the worker is stopped."""


class InstanceWork:
    """The three steps on one instance."""

    def __init__(
        self, settings: WorkerSettings, ledger: Ledger, spool: Spool, measure: Measure, encode: Encode
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._spool = spool
        self._measure = measure
        self._encode = encode

    def steps(self) -> tuple[Step, ...]:
        """Give the steps in order, each guarded."""
        return tuple(
            Step(name, self._guarded(name, step))
            for name, step in (("measure", self.measure), ("encode", self.encode), ("deliver", self.deliver))
        )

    def measure(self, instance: Instance) -> Progress:
        """Measure, unless this model and configuration have done so before."""
        self._result(instance)
        return Progress.GO_ON

    def encode(self, instance: Instance) -> Progress:
        """Make the objects, unless they are recorded."""
        result = self._result(instance)
        if self._ledger.objects(result.id):
            self._ledger.record_objects(result, ())
            return Progress.GO_ON
        measurement = self._measurement(instance, result)
        objects = [self._write(made) for made in self._encode(self._source(instance), measurement)]
        recorded = self._ledger.record_objects(result, objects)
        self._discard_superfluous(objects, {made.spool_path for made in recorded})
        return Progress.GO_ON

    def deliver(self, instance: Instance) -> Progress:
        """Address the objects to every destination."""
        destinations = self._ledger.dispatch(instance.id)
        if destinations == 0:
            LOGGER.warning(line("no destination", job=instance.id, sop_instance_uid=instance.sop_instance_uid))
            return Progress.STOP
        return Progress.GO_ON

    def _measurement(self, instance: Instance, result: Result) -> Measurement:
        """Load the checkpoint; measure again where it is damaged, lost or of another version of this program.

        Figures and checkpoint are then replaced together, so that ledger and report agree. No object speaks of the old ones yet,
        and the UIDs do not depend on them.
        """
        path = self._spool.absolute(result.checkpoint_path)
        try:
            return checkpoint.load(Measurement, path.read_bytes())
        except (PermanentFailure, OSError) as error:
            LOGGER.warning(line("measured again", job=instance.id, reason=_words(error)))
        measurement = self._measure(self._source(instance))
        kept = self._spool.write(CHECKPOINTS, ".npz", checkpoint.dump(measurement))
        self._ledger.replace_result(result.id, document(measurement), kept.path)
        self._spool.discard(result.checkpoint_path)
        return measurement

    def _result(self, instance: Instance) -> Result:
        settings = self._settings
        known = self._ledger.result(instance.id, settings.model_digest, settings.configuration_digest)
        if known is not None:
            return known
        measurement = self._measure(self._source(instance))
        kept = self._spool.write(CHECKPOINTS, ".npz", checkpoint.dump(measurement))
        result = self._ledger.record_result(
            instance.id, settings.model_digest, settings.configuration_digest, document(measurement), kept.path
        )
        if result.checkpoint_path != kept.path:
            self._spool.discard(kept.path)
        return result

    def _source(self, instance: Instance) -> Path:
        path = self._spool.absolute(instance.spool_path)
        if not path.is_file():
            raise PermanentFailure(
                f"the received file {instance.spool_path} is missing from the spool; send the image again, "
                f"then dicomnode retry {instance.id}"
            )
        sha256, _ = self._spool.dataset_digest(instance.spool_path)
        if sha256 != instance.dataset_sha256:
            raise PermanentFailure(
                f"the received file {instance.spool_path} has changed in the spool: its SHA-256 is not the one it was received "
                f"with; send the image again, then dicomnode retry {instance.id}"
            )
        return path

    def _write(self, made: Encoded) -> NewObject:
        buffer = BytesIO()
        dcmwrite(buffer, made.dataset, enforce_file_format=True)
        kept = self._spool.write(OBJECTS, ".dcm", buffer.getvalue())
        return NewObject(
            kind=made.kind,
            sop_class_uid=str(made.dataset.SOPClassUID),
            sop_instance_uid=str(made.dataset.SOPInstanceUID),
            transfer_syntax_uid=str(made.dataset.file_meta.TransferSyntaxUID),
            sha256=kept.sha256,
            size_bytes=kept.size_bytes,
            spool_path=kept.path,
        )

    def _discard_superfluous(self, written: Sequence[NewObject], recorded: set[str]) -> None:
        for made in written:
            if made.spool_path not in recorded:
                self._spool.discard(made.spool_path)

    # -- guarding -----------------------------------------------------------------------------------------------

    def _guarded(self, name: str, step: Callable[[Instance], Progress]) -> Callable[[int], Progress]:
        def run(instance_id: int) -> Progress:
            instance = self._ledger.begin_step(instance_id, name, MOST_ATTEMPTS)
            if instance.state in (InstanceState.QUARANTINED, InstanceState.DISPATCHED):
                return self._already(instance)
            started = time.monotonic()
            with _time_limit(self._settings.step_limit_s):
                progress = self._attempt(instance, name, step)
            seconds = time.monotonic() - started
            LOGGER.info(
                line(
                    "step ended",
                    step=name,
                    progress=progress.value,
                    job=instance_id,
                    sop_instance_uid=instance.sop_instance_uid,
                    seconds=seconds,
                )
            )
            return progress

        return run

    def _already(self, instance: Instance) -> Progress:
        if instance.state is InstanceState.QUARANTINED:
            _tell_quarantined(instance, instance.note)
        return Progress.STOP

    def _attempt(self, instance: Instance, name: str, step: Callable[[Instance], Progress]) -> Progress:
        """Run a step; every exception ends in the ledger, as a delay or as quarantine."""
        try:
            return step(instance)
        except PermanentFailure as error:
            self._quarantine(instance, f"{name}: {error}")
        except Exception as error:
            if _is_shortage(error):
                self._wait_for_memory(instance, name, error)
                return Progress.STOP
            if _is_own_trouble(error):
                self._wait(instance, name, error)
                return Progress.STOP
            LOGGER.exception(
                line("step failed", step=name, job=instance.id, sop_instance_uid=instance.sop_instance_uid)
            )
            self._fail(instance, name, error)
        return Progress.STOP

    def _wait(self, instance: Instance, name: str, error: Exception) -> None:
        note = f"{name}: {_words(error)}"
        delay_s = self._settings.trouble_delay_s
        LOGGER.warning(line("step postponed", job=instance.id, reason=note, seconds=delay_s))
        self._ledger.postpone(instance.id, timedelta(seconds=delay_s), note, counted=False)

    def _wait_for_memory(self, instance: Instance, name: str, error: Exception) -> None:
        note = f"{name}: want of memory ({_words(error)})"
        shortages = instance.shortages + 1
        if shortages >= MOST_SHORTAGES:
            self._quarantine(instance, f"{note}, {shortages} times; give the node more memory, or look at the image")
            return
        delay_s = min(self._settings.trouble_delay_s * 2**instance.shortages, LONGEST_SHORTAGE_DELAY_S)
        LOGGER.warning(line("step postponed", job=instance.id, reason=note, seconds=delay_s))
        self._ledger.postpone(instance.id, timedelta(seconds=delay_s), note, counted=False, shortage=True)

    def _fail(self, instance: Instance, name: str, error: Exception) -> None:
        note = f"{name}: {_words(error)}"
        if instance.attempts >= MOST_ATTEMPTS:
            self._quarantine(instance, f"{note} ({instance.attempts} times)")
            return
        delay_s = self._settings.first_delay_s * 2 ** (instance.attempts - 1)
        self._ledger.postpone(instance.id, timedelta(seconds=delay_s), note, counted=True)

    def _quarantine(self, instance: Instance, note: str) -> None:
        self._ledger.quarantine(instance.id, note)
        _tell_quarantined(instance, note)


def serve(
    settings: WorkerSettings,
    engine: Engine,
    ledger: Ledger,
    spool: Spool,
    measure: Measure,
    encode: Encode,
    stop: threading.Event,
) -> None:
    """Work until `stop` is set. At the start, whatever a dead predecessor of the same executor id had begun is resumed."""
    spool.prepare()
    client = Client(engine)
    runner = Runner(engine, settings.executor_id, InstanceWork(settings, ledger, spool, measure, encode).steps())
    _beat(settings, ledger, None)
    runner.start()
    LOGGER.info(line("working", executor=settings.executor_id, model=settings.model_digest[:12]))
    try:
        _watch(settings, ledger, client, runner, stop)
    finally:
        runner.stop(settings.stop_grace_s)
        client.close()
        LOGGER.info(line("stopped working", executor=settings.executor_id))


def _watch(settings: WorkerSettings, ledger: Ledger, client: Client, runner: Runner, stop: threading.Event) -> None:
    """Give signs of life, and sweep, until `stop` is set."""
    idle, told, alive = Idle(), None, False
    beat_at = sweep_at = time.monotonic()
    while not stop.wait(0.2):
        now = time.monotonic()
        if now >= beat_at or runner.working_on != told:
            beat_at, told = now + settings.beat_interval_s, runner.working_on
            alive = _beat(settings, ledger, told)
        # Who could not say that he lives would take his own work for that of a dead one.
        if now >= sweep_at and alive:
            sweep_at = now + settings.sweep_interval_s
            _sweep(ledger, client, idle)


def _beat(settings: WorkerSettings, ledger: Ledger, working_on: int | None) -> bool:
    """Give a sign of life; tell whether it was heard."""
    try:
        ledger.beat(settings.executor_id, socket.gethostname(), os.getpid(), working_on)
    except LedgerUnavailable as error:
        LOGGER.error(line("no sign of life given", executor=settings.executor_id, error=str(error)))
        return False
    return True


def _sweep(ledger: Ledger, client: Client, idle: Idle) -> None:
    try:
        sweep(ledger, client, idle)
    except DicomNodeError as error:
        LOGGER.error(line("sweep failed", error=str(error)))
    except Exception:
        LOGGER.exception(line("sweep failed"))


@contextmanager
def _time_limit(limit_s: float) -> Iterator[None]:
    """End this process, with the stacks of its threads on stderr, when the block takes longer.

    faulthandler's watchdog needs no interpreter lock, so that it also ends a process that hangs in foreign code.
    """
    faulthandler.dump_traceback_later(limit_s, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _is_shortage(error: Exception) -> bool:
    """Tell want of memory. Source: errno(3), ENOMEM."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def _is_own_trouble(error: Exception) -> bool:
    """Tell trouble of the node (worth waiting for) from a fault that goes with the instance (counts as an attempt)."""
    return isinstance(error, TransientFailure) or (isinstance(error, OSError) and error.errno in OWN_TROUBLE)


def _tell_quarantined(instance: Instance, note: str) -> None:
    LOGGER.error(line("quarantined", job=instance.id, reason=note, sop_instance_uid=instance.sop_instance_uid))


def _words(error: Exception) -> str:
    """Word an exception for the ledger: ours as they are; of foreign ones only kind and place, since they may quote data."""
    if isinstance(error, DicomNodeError):
        return str(error)
    if isinstance(error, OSError):
        return f"{type(error).__name__}: {error.strerror or 'unknown'}"
    place = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    where = f" in {Path(place.filename).name}:{place.lineno}" if place else ""
    return f"{type(error).__name__}{where}"
