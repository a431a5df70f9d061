"""Radiographs from files to files: what `dicomnode measure` does, without network or database."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dicomnode.bootstrap import Composition
from dicomnode.config import Configuration
from dicomnode.dicom.uids import Kind
from dicomnode.domain.document import document
from dicomnode.domain.measurement import Measurement
from dicomnode.errors import ConfigurationError, DicomNodeError

log = logging.getLogger(__name__)

SUFFIXES = {Kind.STRUCTURED_REPORT: ".sr.dcm", Kind.SECONDARY_CAPTURE: ".sc.dcm"}


@dataclass(frozen=True)
class Outcome:
    """What became of one file: a measurement and the files written, or an error."""

    file: Path
    measurement: Measurement | None = None
    written: tuple[Path, ...] = ()
    error: str = ""


def measure_files(files: Sequence[Path], output: Path, configuration: Configuration, console: Console) -> list[Outcome]:
    """Measure every file and write its results into `output`; one bad file does not stop the rest.

    Raises:
        ConfigurationError: nothing to do, `output` cannot be made, or the model cannot be loaded.
    """
    sources = list(_sources(files))
    if not sources:
        raise ConfigurationError(f"no files in {', '.join(map(str, files))}")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"--output {output}: cannot be made ({error.strerror}); choose another folder"
        ) from error
    with _progress(console) as progress:
        task = progress.add_task("Loading the model", total=len(sources))
        composition = Composition(configuration)
        log.info("model %s %s", composition.model.name, composition.model.version)  # loads it: a damaged one ends here
        outcomes = []
        for source, stem in zip(sources, _stems(sources), strict=True):
            progress.update(task, description=source.name)
            outcomes.append(_measure_file(source, output / stem, composition))
            progress.advance(task)
    return outcomes


def _measure_file(source: Path, target: Path, composition: Composition) -> Outcome:
    try:
        measurement = composition.measure(source)
        return Outcome(source, measurement, _write(source, measurement, target, composition))
    except DicomNodeError as error:
        return Outcome(source, error=str(error))
    except OSError as error:
        return Outcome(source, error=f"{error.strerror}: {error.filename or source}")
    except Exception as error:
        log.debug("unexpected error", exc_info=True)
        return Outcome(source, error=f"unexpected {type(error).__name__}: {error} (a defect; --debug shows where)")


def _write(source: Path, measurement: Measurement, target: Path, composition: Composition) -> tuple[Path, ...]:
    picture = composition.draw(source, measurement)
    objects = composition.encode(source, measurement, picture)
    written = []
    for kind, suffix in SUFFIXES.items():
        path = target.with_name(target.name + suffix)
        objects[kind].save_as(path, enforce_file_format=True)
        written.append(path)
    png = target.with_name(target.name + ".png")
    Image.fromarray(picture).save(png)
    result = target.with_name(target.name + ".result.json")
    content = {
        "file": source.name,
        **document(measurement),
        "configuration_sha256": composition.configuration.digest,
        "limitation": composition.report.limitation_sentence,
    }
    result.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return (*written, png, result)


def _sources(files: Sequence[Path]) -> Iterator[Path]:
    for file in files:
        if file.is_dir():
            yield from sorted(path for path in file.rglob("*") if path.is_file() and not path.name.startswith("."))
        else:
            yield file


def _stems(sources: Sequence[Path]) -> Iterator[str]:
    """Name the results: the file's name without .dcm, with -2, -3 ... where two files share it."""
    seen: set[str] = set()
    for source in sources:
        stem = source.name.removesuffix(".dcm").removesuffix(".DCM") or source.name
        number, unique = 1, stem
        while unique.casefold() in seen:
            number += 1
            unique = f"{stem}-{number}"
        seen.add(unique.casefold())
        yield unique


def _progress(console: Console) -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True)
