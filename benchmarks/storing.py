"""C-STORE of radiographs over loopback: the node against the Storage SCPs that a clinic would take instead.

The same sender (DCMTK's storescu, one association, PDUs of up to 128 KiB) sends the same files to each in turn. The order
changes from round to round, each round starts with an empty store and a synchronised disk, and the time is the sender's own:
from its start to its end. What a success means differs, and is said beside the figures.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.programs import (
    LARGEST_DCMTK_PDU_BYTES,
    Peer,
    ProgramMissing,
    find_program,
    node,
    orthanc,
    store,
    storescp,
)

PDU_OPTION = ("-pdu", str(LARGEST_DCMTK_PDU_BYTES))
OURS = "dicomnode"


@dataclass(frozen=True)
class Contender:
    """A Storage SCP that takes part."""

    name: str
    before_success: str
    """What it has done before it answers 0x0000."""
    program: str
    run: Callable[[Path], AbstractContextManager[Peer]]
    aim: float | None = None
    """Least ratio of its time to the node's that the project aims at."""


CONTENDERS = (
    Contender(
        OURS,
        "file and folder synchronised, row and queue entry committed",
        "storescu",
        lambda at: node(at, only="receiver"),
    ),
    Contender("storescp", "file written, not synchronised", "storescp", storescp),
    Contender(
        "storescp -pdu 131072", "file written, not synchronised", "storescp", lambda at: storescp(at, *PDU_OPTION), 1.0
    ),
    Contender("Orthanc", "file synchronised, index row", "Orthanc", orthanc, 1.5),
    Contender(
        "Orthanc, PDU 131072",
        "file synchronised, index row",
        "Orthanc",
        lambda at: orthanc(at, settings={"MaximumPduLength": LARGEST_DCMTK_PDU_BYTES}),
    ),
)


@dataclass(frozen=True)
class Times:
    """What one contender took."""

    contender: Contender
    seconds: tuple[float, ...]
    """One for each round."""

    @property
    def median_s(self) -> float:
        """Median over the rounds."""
        return median(self.seconds)


def present(contenders: Sequence[Contender], missing: Callable[[str], None]) -> list[Contender]:
    """Leave out the contenders whose program is not installed, and say so."""
    here = []
    for contender in contenders:
        try:
            find_program(contender.program)
            here.append(contender)
        except ProgramMissing as error:
            missing(f"{contender.name}: {error}")
    return here


def compare(
    contenders: Sequence[Contender], files: Sequence[Path], rounds: int, folder: Path, told: Callable[[str], None]
) -> list[Times]:
    """Send the files to each contender in each round."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number, contender in _interleaved(contenders, rounds):
        told(f"round {number + 1} of {rounds}: {contender.name}")
        seconds[contender.name].append(_once(contender, files, folder / "store"))
    return [Times(contender, tuple(seconds[contender.name])) for contender in contenders]


def ratio(ours: Times, other: Times) -> float:
    """How many times the node's time another takes; above 1 the node is the faster one.

    The median of the ratios within each round: what else the machine does changes from round to round more than within one.
    """
    return median(theirs / own for theirs, own in zip(other.seconds, ours.seconds, strict=True))


def _once(contender: Contender, files: Sequence[Path], folder: Path) -> float:
    os.sync()  # what the one before has left unwritten must not be written during this one's time
    try:
        with contender.run(folder) as peer:
            return store(peer, files, *PDU_OPTION)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _interleaved(contenders: Sequence[Contender], rounds: int) -> Iterator[tuple[int, Contender]]:
    for number in range(rounds):
        first = number % len(contenders)
        yield from ((number, contender) for contender in (*contenders[first:], *contenders[:first]))
