"""`python -m benchmarks`: the node beside what a user would pick instead. Loopback only; ends by itself.

Compare ratios between rows of one run, never seconds between machines.
"""

import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.status import Status

from benchmarks import calibrating, network, output, projector, radiographs, reporting, storing
from benchmarks.programs import ProgramFailed, ProgramMissing, find_program
from dicomnode.errors import DicomNodeError
from dicomnode.inference.bundle import SHIPPED

PARTS = ("store", "reporting", "network", "projector", "calibration")
TERMINATED = 128 + signal.SIGTERM
console = Console()


def main(
    parts: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(PARTS)}; default: all.", metavar="PART...")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the C-STORE and projector comparisons.")] = 5,
    images: Annotated[int, typer.Option(min=1, max=100, help="Radiographs of 15 MB sent in each round.")] = 20,
    reports: Annotated[int, typer.Option(min=1, max=100, help="Radiographs that are followed to their report.")] = 10,
    volumes: Annotated[
        int, typer.Option(min=1, max=100, help="CTs that are calibrated for each way to lay the rods.")
    ] = 3,
    model: Annotated[Path, typer.Option(help="Model bundle.")] = SHIPPED,
    folder: Annotated[Path, typer.Option("--output", "-o", help="Where results.json and results.png go.")] = Path(
        "runs/benchmarks"
    ),
) -> None:
    """C-STORE against storescp and Orthanc, the time to the report, the networks, the projector against others, calibration."""
    signal.signal(signal.SIGTERM, _terminate)
    chosen = parts or list(PARTS)
    unknown = sorted(set(chosen) - set(PARTS))
    if unknown:
        raise typer.BadParameter(f"expected some of {', '.join(PARTS)}, found {', '.join(unknown)}")
    measured: dict[str, object] = {}
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="dicomnode-bench-") as scratch, console.status("Starting") as status:
        told = _teller(status)
        if "store" in chosen:
            measured |= _attempt("store", lambda: _store(Path(scratch), images, rounds, told), failed)
        if {"reporting", "network"} & set(chosen):
            told("simulating a radiograph of real size")
            files = radiographs.phantom_files(_made(Path(scratch) / "phantom"), 2 * reports)
            if "reporting" in chosen:
                measured |= _attempt(
                    "reporting", lambda: _reporting(Path(scratch), files, reports, model, told), failed
                )
            if "network" in chosen:
                told("running the networks")
                measured |= _attempt("network", lambda: _network(files[0], model, told), failed)
        if "projector" in chosen:
            measured |= _attempt("projector", lambda: _projector(rounds, told), failed)
        if "calibration" in chosen:
            measured |= _attempt("calibration", lambda: _calibration(volumes, told), failed)
    results = output.Results(**measured)  # type: ignore[arg-type]
    for path in output.write(folder, results):
        console.print(f"written   {path}")
    if failed or not measured:
        raise typer.Exit(1)


def _terminate(*_: object) -> None:
    """Leave in order on SIGTERM (`timeout`, a service manager): what was started is ended, and no file stays."""
    console.print("terminated")
    sys.exit(TERMINATED)


def _attempt(name: str, run: Callable[[], dict[str, object]], failed: list[str]) -> dict[str, object]:
    """Run one benchmark; what it lacks or where it fails is said, and the others go on."""
    try:
        return run()
    except ProgramMissing as error:
        console.print(f"[yellow]skipped[/]   {name}: {error}", soft_wrap=True)
    except (ProgramFailed, DicomNodeError) as error:
        console.print(f"[red]failed[/]    {name}: {error}", soft_wrap=True)
        failed.append(name)
    return {}


def _store(scratch: Path, images: int, rounds: int, told: Callable[[str], None]) -> dict[str, object]:
    find_program("storescu")
    contenders = storing.present(
        storing.CONTENDERS, lambda why: console.print(f"[yellow]skipped[/]   {why}", soft_wrap=True)
    )
    told(f"making {images} radiographs of 15 MB")
    files = radiographs.noise_files(_made(scratch / "noise"), images)
    times = storing.compare(contenders, files, rounds, scratch, told)
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    console.print(output.store_table(times, megabytes))
    return {"store": tuple(times), "store_megabytes": megabytes}


def _reporting(
    scratch: Path, files: Sequence[Path], reports: int, model: Path, told: Callable[[str], None]
) -> dict[str, object]:
    find_program("storescu")
    overrides = [f"worker.model_folder={model.resolve()}"]
    measured = reporting.report(files[:reports], files[reports:], scratch / "reporting", overrides, told)
    console.print(output.reporting_table(measured))
    return {"reporting": measured}


def _network(file: Path, model: Path, told: Callable[[str], None]) -> dict[str, object]:
    measured = network.time_networks(file, model)
    console.print(output.network_table(measured))
    engines = network.compare_engines(
        file, model, told, lambda why: console.print(f"[yellow]skipped[/]   {why}", soft_wrap=True)
    )
    if engines:
        console.print(output.engine_table(engines))
    return {"network": measured, "engines": tuple(engines)}


def _calibration(volumes: int, told: Callable[[str], None]) -> dict[str, object]:
    measured = calibrating.calibrate(volumes, told)
    console.print(output.calibration_table(measured))
    return {"calibration": measured}


def _projector(rounds: int, told: Callable[[str], None]) -> dict[str, object]:
    told("making the ellipsoid")
    times = projector.compare(
        projector.make_scene(),
        projector.CONTENDERS,
        rounds,
        told,
        lambda why: console.print(f"[yellow]skipped[/]   {why}", soft_wrap=True),
    )
    console.print(output.projector_table(times))
    return {"projector": tuple(times)}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _teller(status: Status) -> Callable[[str], None]:
    def told(what: str) -> None:
        status.update(what)

    return told


if __name__ == "__main__":
    typer.run(main)
