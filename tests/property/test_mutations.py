"""Whatever arrives ends in a status, a reason or a radiograph: no crash, no hang, bounded memory.

Each object is read in a process with a limit of memory and of time (mutation_worker.py). When a process dies, the first job
without an outcome is the one that killed it.
"""

import json
import os
import random
import struct
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from tests.property.mutation_worker import CPU_SECONDS_LIMIT, Job, Outcome, mutated
from tests.written_objects import (
    CR,
    compressed_by_dcmtk,
    compressed_by_pydicom,
    element,
    file_of,
    hip_like,
    identification,
    nested_sequences,
    radiograph_dataset,
    write,
)

MUTATIONS = 1000
LARGE_BYTES = 1 << 20
LARGE_SHARE = 0.05
"""Of the mutations: large files cost a decoding of seconds and have no other headers than small ones."""
PROCESSES = 2
BATCH_SECONDS = 500.0
"""By the clock; on an idle machine a batch takes a tenth of that."""
MEMORY_BYTES = 600 << 20
"""Peak resident memory of a process with all libraries and the largest of the objects."""
REASONS = {"unreadable", "not_a_radiograph"}
STATUSES = {"A900", "C000", "0122"}
ROOT = Path(__file__).resolve().parents[2]


def _run(jobs: list[Job], folder: Path) -> list[Outcome]:
    """Read all jobs in a few processes at a time; fail with the job that a process died of."""
    shares = [jobs[index::PROCESSES] for index in range(PROCESSES)]
    started = [_start(share, folder / f"share{index}") for index, share in enumerate(shares)]
    outcomes: dict[Job, Outcome] = {}
    for share, (process, written) in zip(shares, started, strict=True):
        errors = _errors_at_the_end(process)
        found = [Outcome(**json.loads(line)) for line in written.read_text().splitlines()]
        if process.returncode != 0 or len(found) < len(share):
            culprit = share[len(found)] if len(found) < len(share) else None
            pytest.fail(f"{culprit} ended the process with {process.returncode}:\n{errors[-3000:]}")
        outcomes.update(zip(share, found, strict=True))
    return [outcomes[job] for job in jobs]


def _errors_at_the_end(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=BATCH_SECONDS)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        return f"killed after {BATCH_SECONDS:g} s\n{process.communicate()[1]}"


def _start(jobs: list[Job], folder: Path) -> tuple[subprocess.Popen[str], Path]:
    folder.mkdir()
    (folder / "jobs").write_text("".join(json.dumps(job.__dict__) + "\n" for job in jobs))
    command = [sys.executable, "-m", "tests.property.mutation_worker", str(folder / "jobs"), str(folder / "outcomes")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, errors="replace")
    return process, folder / "outcomes"


def _expect_clear_ends(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        assert outcome.admission == "admitted" or outcome.admission in STATUSES
        assert outcome.radiograph == "radiograph" or outcome.radiograph in REASONS
        assert outcome.cpu_seconds < CPU_SECONDS_LIMIT
        assert outcome.peak_bytes < MEMORY_BYTES


def _sampled(paths: list[Path], count: int) -> list[Job]:
    """Share `count` mutations among the files, few of them among the large ones."""
    large = [path for path in paths if path.stat().st_size > LARGE_BYTES]
    small = [path for path in paths if path not in large]
    rng = random.Random(20250314)
    picks = [rng.choice(large) if large and rng.random() < LARGE_SHARE else rng.choice(small) for _ in range(count)]
    return [Job(str(path), seed) for seed, path in enumerate(picks)]


def _disguised(path: Path, folder: Path) -> Path | None:
    """Call an object a CR image, so that its pixel data are decoded; None where pydicom cannot rewrite it."""
    try:
        dataset = pydicom.dcmread(path)
        dataset.SOPClassUID, dataset.Modality = CR, "CR"
        disguised = folder / f"disguised-{path.name}"
        dataset.save_as(disguised)
    except (AttributeError, OSError, TypeError, ValueError, NotImplementedError, pydicom.errors.InvalidDicomError):
        return None
    return disguised


def test_every_reference_file_and_a_thousand_mutations_of_them_end_clearly(
    reference_data: Path, tmp_path: Path
) -> None:
    files = sorted((reference_data / "dicom").rglob("*.dcm"))
    assert len(files) == 39
    disguised = [found for path in files if (found := _disguised(path, tmp_path)) is not None]
    assert len(disguised) >= 30
    whole = [Job(str(path), None) for path in (*files, *disguised)]
    jobs = [*whole, *_sampled([*files, *disguised], MUTATIONS)]
    outcomes = _run(jobs, tmp_path)
    _expect_clear_ends(outcomes)
    assert len(outcomes) == len(jobs)
    ends = Counter(outcome.radiograph for outcome in outcomes)
    assert ends["radiograph"] > 50 and ends["unreadable"] > 100 and ends["not_a_radiograph"] > 100, ends


def test_mutations_of_every_encoding_end_clearly(tmp_path: Path, dcmtk: Path) -> None:
    files = [
        write(tmp_path / f"{syntax}.dcm", radiograph_dataset(), syntax)
        for syntax in (
            ImplicitVRLittleEndian,
            ExplicitVRLittleEndian,
            ExplicitVRBigEndian,
            DeflatedExplicitVRLittleEndian,
        )
    ]
    for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        files.append(compressed_by_pydicom(tmp_path / f"{syntax}.dcm", radiograph_dataset(), syntax))
    for option in ("+e1", "+el", "+ee"):
        files.append(compressed_by_dcmtk(tmp_path / f"{option}.dcm", radiograph_dataset(), dcmtk, option))
    eight_bits = radiograph_dataset((hip_like() >> 4).astype(np.uint8))
    files.append(compressed_by_dcmtk(tmp_path / "+eb.dcm", eight_bits, dcmtk, "+eb"))
    outcomes = _run([Job(str(path), seed) for path in files for seed in range(50)], tmp_path)
    _expect_clear_ends(outcomes)
    ends = Counter(outcome.radiograph for outcome in outcomes)
    assert ends["radiograph"] > 50 and ends["unreadable"] > 50, ends


def _deflate_bomb(data_set: bytes, inflated_mib: int) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    pieces = [deflater.compress(piece) for piece in (data_set, *[bytes(1 << 20)] * inflated_mib)]
    return file_of(b"".join(pieces) + deflater.flush(), str(DeflatedExplicitVRLittleEndian))


def _picture(rows: int, columns: int, bits_allocated: int = 16) -> bytes:
    """An Image Pixel module as encoded elements."""
    numbers = {
        0x00280002: 1,
        0x00280010: rows,
        0x00280011: columns,
        0x00280100: bits_allocated,
        0x00280101: bits_allocated,
        0x00280102: bits_allocated - 1,
        0x00280103: 0,
    }
    encoded = {tag: element(tag, "US", struct.pack("<H", value)) for tag, value in numbers.items()}
    encoded[0x00280004] = element(0x00280004, "CS", b"MONOCHROME2 ")
    return b"".join(encoded[tag] for tag in sorted(encoded))


def _bombs() -> dict[str, tuple[bytes, str, str]]:
    """Content, how admission must end, and how reading must end."""
    depth = 10_000
    head = element(0x00080060, "CS", b"DX")
    pixels = element(0x7FE00010, "OW", bytes(1000))
    private = nested_sequences(depth, undefined_length=True, tag=0x00091010)
    empty_items = element(0x00081140, "SQ", b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 500_000)
    rle = struct.pack("<16L", 2, 64, 65, *[0] * 13) + b"\x81\x07" * 500_000
    encapsulated = element(0x7FE00010, "OB", b"", 0xFFFFFFFF) + pydicom.encaps.encapsulate([rle])
    jpeg = b"\xff\xd8\xff\xc3\x00\x0b\x10\xff\xff\xff\xff\x01\x01\x11\x00\xff\xd9"
    jpeg_element = element(0x7FE00010, "OB", b"", 0xFFFFFFFF) + pydicom.encaps.encapsulate([jpeg])
    identified = identification()
    return {
        "nested, undefined length": (
            file_of(nested_sequences(depth, undefined_length=True) + identified),
            "C000",
            "unreadable",
        ),
        "nested, defined length": (
            file_of(nested_sequences(depth, undefined_length=False) + identified),
            "C000",
            "unreadable",
        ),
        "nested, private": (file_of(identified + private), "C000", "unreadable"),
        "half a million items": (file_of(head + empty_items + identified), "C000", "unreadable"),
        "deflate": (_deflate_bomb(identified + element(0x7FE00010, "OW", b"", 600 << 20), 600), "C000", "unreadable"),
        "huge picture": (file_of(head + identified + _picture(65535, 65535) + pixels), "admitted", "unreadable"),
        "no rows": (file_of(head + identified + _picture(0, 512) + pixels), "admitted", "unreadable"),
        "twelve bits allocated": (file_of(head + identified + _picture(20, 20, 12) + pixels), "admitted", "unreadable"),
        "run lengths": (
            file_of(head + identified + _picture(20, 20) + encapsulated, str(RLELossless)),
            "admitted",
            "unreadable",
        ),
        "huge codestream": (
            file_of(head + identified + _picture(20, 20) + jpeg_element, "1.2.840.10008.1.2.4.70"),
            "admitted",
            "unreadable",
        ),
        "length of four gigabytes": (
            file_of(head + identified + element(0x00204000, "UT", b"x", 0xFFFFFFFE)),
            "C000",
            "unreadable",
        ),
    }


def test_bombs_are_disarmed(tmp_path: Path) -> None:
    bombs = _bombs()
    jobs: list[Job] = []
    for index, (content, _, _) in enumerate(bombs.values()):
        path = tmp_path / f"bomb{index}.dcm"
        path.write_bytes(content)
        jobs.append(Job(str(path), None))
    folder = tmp_path / "run"
    folder.mkdir()
    outcomes = _run(jobs, folder)
    _expect_clear_ends(outcomes)
    for (name, (_, admission, radiograph)), outcome in zip(bombs.items(), outcomes, strict=True):
        assert (outcome.admission, outcome.radiograph) == (admission, radiograph), name


def test_a_mutation_is_the_same_for_the_same_seed_and_seldom_harmless() -> None:
    content = file_of(identification() + _picture(20, 20) + element(0x7FE00010, "OW", bytes(800)))
    assert all(mutated(content, seed) == mutated(content, seed) for seed in range(50))
    assert sum(mutated(content, seed) != content for seed in range(200)) > 180
