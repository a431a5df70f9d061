"""Reads damaged objects in a process of its own, under a limit of memory and of time, and writes down how each ended.

Run by test_mutations.py as `python -m tests.property.mutation_worker JOBS OUTCOMES`; JOBS holds one JSON object per line.
"""

import faulthandler
import json
import logging
import random
import re
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dicomnode.dicom.admission import admit
from dicomnode.dicom.attributes import text
from dicomnode.dicom.normalise import normalise
from dicomnode.dicom.pixels import read_radiograph
from dicomnode.dicom.reader import read_encoded
from dicomnode.errors import NotMeasurable, Refused

MEMORY_LIMIT_BYTES = 2 << 30
"""Of private memory (RLIMIT_DATA): libraries, threads and the object together. One radiograph of 10 MB needs a tenth."""
CPU_SECONDS_LIMIT = 15.0
"""For one object, read five times. Time of the processor, not of the clock: the machine may be busy with other things."""

_HEADER_BYTES = 4000
_EXTREMES = (
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x80",
    b"\xfe\xff\xff\xff",
    b"\x00\x00\x00\x00",
    b"\xff\xff",
)
_PIXEL_MODULE = (
    b"\x28\x00\x02\x00",
    b"\x28\x00\x10\x00",
    b"\x28\x00\x11\x00",
    b"\x28\x00\x00\x01",
    b"\x28\x00\x01\x01",
    b"\x28\x00\x03\x01",
)
"""Samples per Pixel, Rows, Columns, Bits Allocated, Bits Stored, Pixel Representation as little endian tags."""
_TRANSFER_SYNTAX = re.compile(rb"\x02\x00\x10\x00UI(..)([0-9.]+\x00?)", re.DOTALL)
_TRANSFER_SYNTAXES = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.5",
    *(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91)),
)


@dataclass(frozen=True)
class Job:
    """One object to be read: a file, damaged by the mutation of that seed (None: as it is)."""

    path: str
    seed: int | None


@dataclass(frozen=True)
class Outcome:
    """How reading ended."""

    admission: str
    """"admitted", or the status of the refusal in hexadecimal."""
    radiograph: str
    """"radiograph", or the reason why there is none."""
    normalised: str
    """"normalised", or "refused"."""
    cpu_seconds: float
    peak_bytes: int
    """Of the process so far."""


def mutated(content: bytes, seed: int) -> bytes:
    """Damage `content` in a way that `seed` decides."""
    rng = random.Random(seed)
    return rng.choice(_MUTATIONS)(content, rng)


def _truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _flipped(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 4, 32, 256))):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    return bytes(damaged)


def _header_flipped(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 2, 8, 32))):
        damaged[rng.randrange(min(_HEADER_BYTES, len(damaged)))] = rng.choice((0, 0xFF, 0x7F, 0x80, rng.randrange(256)))
    return bytes(damaged)


def _length_altered(content: bytes, rng: random.Random) -> bytes:
    """Overwrite the length of an element: the four bytes after something that looks like a tag and a VR."""
    heads = [match.end() for match in re.finditer(rb"[A-Z]{2}(?=..)", content[: 4 * _HEADER_BYTES], re.DOTALL)]
    at = rng.choice(heads) if heads else rng.randrange(len(content))
    extreme = rng.choice((*_EXTREMES, bytes([rng.randrange(256), rng.randrange(4)])))
    return content[:at] + extreme + content[at + len(extreme) :]


def _removed(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(min(len(content), rng.choice((_HEADER_BYTES, len(content)))))
    return content[:at] + content[at + rng.randrange(1, 200) :]


def _repeated(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(min(len(content), _HEADER_BYTES))
    piece = content[at : at + rng.randrange(8, 200)]
    return content[:at] + piece * rng.choice((2, 10, 1000)) + content[at:]


def _blown_up(content: bytes, rng: random.Random) -> bytes:
    """Put extreme numbers into the Image Pixel module."""
    damaged = bytearray(content)
    for tag in rng.sample(_PIXEL_MODULE, rng.choice((1, 2, 3))):
        at = content.find(tag)
        if at >= 0:
            damaged[at + 8 : at + 10] = rng.choice(
                (b"\xff\xff", b"\x00\x00", b"\x01\x00", b"\x00\x80", b"\x0c\x00", b"\x20\x00")
            )
    return bytes(damaged)


def _mislabelled(content: bytes, rng: random.Random) -> bytes:
    """State another transfer syntax, so that one decoder is fed another's data."""
    uid = rng.choice(_TRANSFER_SYNTAXES).encode()
    uid += b"\0" * (len(uid) % 2)
    return _TRANSFER_SYNTAX.sub(
        lambda _: b"\x02\x00\x10\x00UI" + len(uid).to_bytes(2, "little") + uid, content, count=1
    )


_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _truncated,
    _flipped,
    _header_flipped,
    _length_altered,
    _removed,
    _repeated,
    _blown_up,
    _mislabelled,
)


def read(path: Path) -> tuple[str, str, str]:
    """Take an object the way a received one goes: admission, pixels, normalising."""
    try:
        dataset = read_encoded(path).dataset
        admit(path, text(dataset, "SOPClassUID"), text(dataset, "SOPInstanceUID"))
        admission = "admitted"
    except Refused as refusal:
        admission = f"{refusal.status:04X}"
    try:
        radiograph = read_radiograph(path)
        assert radiograph.image.ndim == 2
        reading = "radiograph"
    except NotMeasurable as refusal:
        reading = str(refusal.reason)
    try:
        normalise(read_encoded(path).dataset)
        normalised = "normalised"
    except Refused:
        normalised = "refused"
    return admission, reading, normalised


def _peak_bytes() -> int:
    """Peak resident memory of this process; `ru_maxrss` would count that of the parent before the fork too."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _jobs(path: Path) -> Iterator[Job]:
    for line in path.read_text().splitlines():
        yield Job(**json.loads(line))


def _run(jobs: Path, outcomes: IO[str], folder: Path) -> None:
    damaged = folder / "object.dcm"
    for job in _jobs(jobs):
        content = Path(job.path).read_bytes()
        damaged.write_bytes(content if job.seed is None else mutated(content, job.seed))
        started = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS_LIMIT)
        result = read(damaged)
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        outcome = Outcome(*result, cpu_seconds=time.process_time() - started, peak_bytes=_peak_bytes())
        outcomes.write(json.dumps(outcome.__dict__) + "\n")
        outcomes.flush()


def main() -> None:
    """Read every job; dies with a traceback at the first that ends in anything but a status, a reason or a radiograph."""
    faulthandler.register(signal.SIGPROF, chain=True)  # tells where it hung, then the process ends
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, Path(sys.argv[2]).open("w") as outcomes:
        _run(Path(sys.argv[1]), outcomes, Path(folder))


if __name__ == "__main__":
    main()
