"""The folder of a hospital's cases: what each left, what a person made of it, and the pairs that may be used.

`<output>/cases/<case>/` holds `report.json`, `report.png`, and `R.npz`, `L.npz` of the hips that came out.
"""

import hashlib
import json
import os
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import numpy as np

from dicomnode.errors import DicomNodeError
from training.anatomy.labels import names_beside
from training.hospital.project import RealHip
from training.hospital.report import Decision, Report, Status, Verdict
from training.hospital.table import FILES, NUMBERS, Case

_REPORT = "report.json"
_ARRAYS = ("image", "inside", "field", "targets", "labels")


class NothingToDecide(DicomNodeError):
    """There is no such case, or nothing that could be decided about it; the message says what to do."""


def decide(output: Path, case: str, verdict: Verdict, *, by: str, reason: str, now: datetime) -> Report:
    """Write down in a case's report what a person says of it after looking at its picture; earlier decisions stay there.

    Raises:
        NothingToDecide: no such case, one that failed, or neither name nor reason given.
    """
    names = sorted(folder.name for folder in (output / "cases").glob("[!.]*") if (folder / _REPORT).is_file())
    if case not in names:
        raise NothingToDecide(f"{output} has no case {case!r}; it has {', '.join(names) or 'none'}")
    if not by.strip() or not reason.strip():
        raise NothingToDecide("a decision needs who made it (--by) and why (--reason)")
    report = _read(output / "cases" / case)
    if report.status is Status.FAILED:
        raise NothingToDecide(f"case {case} failed and has no pairs: {report.reason}; mend that and make it again")
    at = now.isoformat(timespec="seconds")
    report.decisions.append(Decision(verdict, by.strip(), reason.strip(), at, report.inputs_sha256))
    write_report(output / "cases" / case, report)
    return report


def load_real_hips(output: Path) -> list[RealHip]:
    """The hips of all usable cases (see `Report.usable`), in the order of the cases' names.

    Their figures are those of the report and `case`, `patient`, `material` (what their mg/cm3 are of).
    """
    hips = []
    for folder in sorted((output / "cases").glob("[!.]*")):  # what begins with a point was interrupted
        report = read_report(folder)
        if report is None or not report.usable:
            continue
        of_case = {
            "case": report.case, "patient": report.patient, "material": report.steps["calibration"]["material"],
        }  # fmt: skip
        for side, figures in report.hips.items():
            if "reason" not in figures:
                with np.load(folder / f"{side}.npz") as file:
                    hips.append(RealHip(**{name: file[name] for name in _ARRAYS}, figures={**figures, **of_case}))
    return hips


def save_arrays(hip: RealHip, path: Path) -> None:
    """Write what `load_real_hips` reads beside the report."""
    np.savez_compressed(path, **{name: getattr(hip, name) for name in _ARRAYS})


def read_report(folder: Path) -> Report | None:
    """What a case's folder tells; None where there is no report."""
    return _read(folder) if (folder / _REPORT).is_file() else None


def _read(folder: Path) -> Report:
    document = json.loads((folder / _REPORT).read_text(encoding="utf-8"))
    decisions = [Decision(**{**one, "verdict": Verdict(one["verdict"])}) for one in document.pop("decisions", [])]
    return Report(**{**document, "status": Status(document["status"])}, decisions=decisions)


def write_report(folder: Path, report: Report) -> None:
    """Write a case's report."""
    write_text(folder / _REPORT, json.dumps(asdict(report), indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def inputs_sha256(case: Case) -> str:
    """Digest of all that a case's pairs are made of: the contents of its files, and its settings.

    Reference values by DXA or QCT are none of it. What cannot be read counts as absent.
    """
    digest = hashlib.sha256()
    for key in FILES:
        path = getattr(case, key)
        for file in [] if path is None else _files(path):
            digest.update(f"{key}:{_file_sha256(file)};".encode())
    for key in NUMBERS:
        digest.update(f"{key}:{getattr(case, key)};".encode())
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    """All files of a folder, or one file with the JSON file that may belong to it (the names of labels)."""
    if path.is_dir():
        return sorted(one for one in path.rglob("*") if one.is_file())
    beside = names_beside(path)
    return [path, beside] if beside.is_file() else [path]


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "absent"
