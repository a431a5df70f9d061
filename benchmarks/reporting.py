"""From the node's success to the report in the archive, split by stage, with real processes."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median

from benchmarks.programs import (
    START_TIMEOUT_S,
    Node,
    Peer,
    ProgramFailed,
    ProgramMissing,
    find_program,
    node,
    orthanc,
    store,
    storescp,
    wait_until,
)
from dicomnode.dicom.uids import Kind
from dicomnode.storage.database import open_engine
from dicomnode.storage.ledger import Ledger
from dicomnode.storage.rows import DeliveryState, JobDetail

STAGES = ("queue", "measure", "encode", "deliver")
TIMEOUT_S = 120.0
LIFE_SIGN = timedelta(minutes=1)
_MEASURED = re.compile(r"step ended step=measure .*?job=(\d+) .*?seconds=([\d.]+)")


@dataclass(frozen=True)
class Way:
    """How long one radiograph took, in seconds, by stage."""

    queue: float
    """From the commit of its row to the beginning of its measurement."""
    measure: float
    encode: float
    deliver: float
    """From the objects in the spool to the archive's success for the report."""
    outcome: str

    @property
    def total(self) -> float:
        """From the commit to the report in the archive."""
        return self.queue + self.measure + self.encode + self.deliver


@dataclass(frozen=True)
class Reporting:
    """What was measured."""

    archive: str
    alone: tuple[Way, ...]
    """Each sent when the one before was through."""
    together_s: float
    """From the first commit to the last report, all sent in one association."""

    def median_s(self, stage: str) -> float:
        """Median of one stage."""
        return float(median(getattr(way, stage) for way in self.alone))


def report(
    files: Sequence[Path], again: Sequence[Path], folder: Path, overrides: Sequence[str], told: Callable[[str], None]
) -> Reporting:
    """Send `files` one by one, then `again` all at once, to a whole node with an archive behind it."""
    name, archive = choose_archive(folder / "archive")
    with archive as destination, node(folder / "node", destination, overrides=overrides) as running:
        engine = open_engine(f"sqlite:///{running.folder / 'node' / 'ledger.sqlite'}")
        ledger = Ledger(engine)
        try:
            told("the worker is loading its model")
            _wait_for(
                running, lambda: bool(ledger.live_executors(LIFE_SIGN)), START_TIMEOUT_S, "the worker did not start"
            )
            for number, file in enumerate(files, 1):
                told(f"radiograph {number} of {len(files)}, alone")
                store(running, [file])
                _wait_for_reports(running, ledger, number)
            told(f"{len(again)} radiographs at once")
            store(running, again)
            _wait_for_reports(running, ledger, len(files) + len(again))
            details = [ledger.job(job.instance.id) for job in reversed(ledger.jobs(limit=1000))]
        finally:
            engine.dispose()
        seconds = _measuring_seconds(running)
    alone, together = details[: len(files)], details[len(files) :]
    return Reporting(name, tuple(_way(detail, seconds[detail.instance.id]) for detail in alone), _span_s(together))


def choose_archive(folder: Path) -> tuple[str, AbstractContextManager[Peer]]:
    """Take Orthanc as the archive, or storescp where there is none."""
    try:
        find_program("Orthanc")
    except ProgramMissing:
        return "storescp", storescp(folder)
    return "Orthanc", orthanc(folder)


def _wait_for_reports(running: Node, ledger: Ledger, number: int) -> None:
    failure = f"{number} radiographs did not get through the node"
    _wait_for(running, lambda: _through(ledger, number), TIMEOUT_S, failure)


def _wait_for(running: Node, reached: Callable[[], bool], timeout_s: float, failure: str) -> None:
    try:
        wait_until(reached, timeout_s, failure)
    except ProgramFailed as error:
        raise ProgramFailed(f"{error}; the node said last: {running.last_words()}") from None


def _through(ledger: Ledger, number: int) -> bool:
    jobs = ledger.jobs(limit=1000)
    return len(jobs) == number and all(job.summary == DeliveryState.DELIVERED.value for job in jobs)


def _measuring_seconds(running: Node) -> dict[int, float]:
    """Read from the worker's log how long each measurement took: the ledger has its end, not its beginning."""
    return {int(job): float(seconds) for job, seconds in _MEASURED.findall(running.log.read_text(encoding="utf-8"))}


def _way(detail: JobDetail, measuring_s: float) -> Way:
    measured = detail.results[0].created_at
    encoded = max(made.created_at for made in detail.objects)
    return Way(
        queue=(measured - detail.instance.received_at).total_seconds() - measuring_s,
        measure=measuring_s,
        encode=(encoded - measured).total_seconds(),
        deliver=(_report_delivered(detail) - encoded).total_seconds(),
        outcome=str(detail.results[0].figures["status"]),
    )


def _span_s(details: Sequence[JobDetail]) -> float:
    first = min(detail.instance.received_at for detail in details)
    return (max(map(_report_delivered, details)) - first).total_seconds()


def _report_delivered(detail: JobDetail) -> datetime:
    moments = (way.delivery.delivered_at for way in detail.deliveries if way.object.kind == Kind.STRUCTURED_REPORT)
    return next(moment for moment in moments if moment is not None)
