"""What the benchmarks leave behind: tables for people, `results.json` for programs, `results.png` to look at."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks import projector
from benchmarks.calibrating import Calibrated
from benchmarks.network import EngineTimes, NetworkTimes
from benchmarks.projector import ProjectorTimes
from benchmarks.reporting import STAGES, Reporting
from benchmarks.storing import OURS, Times, ratio
from dicomnode import __version__

COLOURS = {"ours": "#1f6f8b", "other": "#b0b7bd"}
STAGE_COLOURS = ("#c9d6df", "#1f6f8b", "#52a8a0", "#e0a458")


@dataclass(frozen=True)
class Results:
    """Everything that was measured in one run; None for what was left out."""

    store_megabytes: float = 0.0
    store: tuple[Times, ...] = ()
    reporting: Reporting | None = None
    network: NetworkTimes | None = None
    engines: tuple[EngineTimes, ...] = ()
    calibration: tuple[Calibrated, ...] = ()
    projector: tuple[ProjectorTimes, ...] = ()


def store_table(times: Sequence[Times], megabytes: float) -> Table:
    """C-STORE: seconds, speed, and the ratio to the node's time."""
    title = f"C-STORE of {megabytes:.0f} MB in one association over loopback, sent by storescu -pdu 131072"
    table = Table("", title=title, title_justify="left", caption_justify="left", min_width=len(title))
    for heading in ("Seconds", "MB/s", "Ratio", "Aim"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("Done before it says success")
    ours = next((entry for entry in times if entry.contender.name == OURS), None)
    for entry in times:
        table.add_row(
            entry.contender.name,
            f"{entry.median_s:.2f} ({min(entry.seconds):.2f}-{max(entry.seconds):.2f})",
            f"{megabytes / entry.median_s:.0f}",
            *_ratio_cells(ours, entry),
            entry.contender.before_success,
        )
    table.caption = (
        "Seconds: median (best-worst) of the rounds. Ratio: its time to the node's in the same round, median."
    )
    return table


def _ratio_cells(ours: Times | None, entry: Times) -> tuple[str, str]:
    if ours is None:
        return "", ""
    compared, aim = ratio(ours, entry), entry.contender.aim
    if aim is None:
        return f"{compared:.2f}", ""
    return f"[{'green' if compared >= aim else 'red'}]{compared:.2f}[/]", f"{aim:.1f}"


def reporting_table(measured: Reporting) -> Table:
    """From the node's success to the report in the archive."""
    number = len(measured.alone)
    title = (
        f"From the node's success to the report in the archive ({measured.archive}), {number} radiographs one by one"
    )
    table = Table("Stage", title=title, title_justify="left", min_width=len(title))
    for heading in ("Median s", "Longest s"):
        table.add_column(heading, justify="right")
    for stage in (*STAGES, "total"):
        longest = max(getattr(way, stage) for way in measured.alone)
        table.add_row(stage, f"{measured.median_s(stage):.2f}", f"{longest:.2f}")
    outcomes = ", ".join(sorted({way.outcome.replace("_", " ") for way in measured.alone}))
    table.caption = f"outcome: {outcomes}; sent all at once, the last report came after {measured.together_s:.1f} s"
    table.caption_justify = "left"
    return table


def network_table(measured: NetworkTimes) -> Table:
    """Seconds on the CPU for one radiograph."""
    title = f"Model {measured.model} on the CPU, {measured.threads} threads, one radiograph, medians"
    table = Table("Part", title=title, title_justify="left", min_width=len(title))
    table.add_column("Seconds", justify="right")
    hips = f"{measured.hips} hip{'s' if measured.hips > 1 else ''}"
    for name, seconds in (
        ("read and decode the file", measured.read_s),
        ("locator", measured.locate_s),
        (f"decomposer, {hips}{'' if measured.found else ' (none found: middle of the picture)'}", measured.decompose_s),
        ("pipeline.measure, all of it", measured.measure_s),
    ):
        table.add_row(name, f"{seconds:.3f}")
    return table


def engine_table(times: Sequence[EngineTimes]) -> Table:
    """Engines: how many times their time torch takes."""
    title = "torch's time to that of other engines for the same weights, wall (CPU)"
    table = Table("Engine", title=title, title_justify="left", caption_justify="left", min_width=len(title))
    for heading in ("Threads", "Locator", "Decomposer", "pipeline.measure", "Difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in times:
        ratios = (f"{wall:.2f} ({cpu:.2f})" for wall, cpu in (entry.locator, entry.decomposer, entry.measure))
        table.add_row(entry.name, str(entry.threads), *ratios, f"{entry.difference:.1e}")
    table.caption = (
        "Medians of the ratios in each round. Difference: the largest of any number that the decomposer answers."
    )
    return table


def calibration_table(measured: Sequence[Calibrated]) -> Table:
    """Errors of the line from HU to mg/cm3, and processor seconds."""
    title = "Calibration of simulated CTs, 512 x 512 x 60 voxels"
    table = Table("Case", title=title, title_justify="left", min_width=len(title))
    for heading in ("CTs", "Slope %", "worst", "Offset mg/cm3", "CPU s"):
        table.add_column(heading, justify="right")
    for entry in measured:
        table.add_row(
            entry.name,
            f"{len(entry.slope_errors_percent)}" + (f" ({len(entry.failures)} failed)" if entry.failures else ""),
            f"{entry.rms_slope_percent:.3f}",
            f"{entry.worst_slope_percent:.3f}",
            f"{entry.worst_offset_mg_cm3:.3f}",
            f"{entry.median_cpu_s:.2f}",
        )
    table.caption = (
        "Errors against the known line. Slope: root mean square, and worst. Offset: worst, where there is no mineral (rods) or"
        " at 100 mg/cm3 (tissues)."
    )
    table.caption_justify = "left"
    return table


def projector_table(times: Sequence[ProjectorTimes]) -> Table:
    """Projectors: seconds, ratio to ours, and the distance from the closed form."""
    z, y, x = projector.SHAPE
    rows, columns = projector.DETECTOR_SHAPE
    title = f"Projection of an ellipsoid, {x} x {y} x {z} voxels onto {rows} x {columns} pixels"
    table = Table("", title=title, title_justify="left", caption_justify="left", min_width=len(title))
    for heading in ("Seconds", "Ratio", "CPU s", "CPU ratio", "Aim", "Mass %", "Worst ray %"):
        table.add_column(heading, justify="right", no_wrap=True)
    ours = next(entry for entry in times if entry.name == projector.OURS)
    for entry in times:
        compared = projector.ratio(ours, entry)
        colour = None if entry.aim is None else "green" if compared >= entry.aim else "red"
        table.add_row(
            entry.name,
            f"{entry.median_s:.3f}",
            f"[{colour}]{compared:.2f}[/]" if colour else f"{compared:.2f}",
            f"{entry.median_cpu_s:.3f}",
            f"{projector.cpu_ratio(ours, entry):.2f}",
            f"{entry.aim:.1f}" if entry.aim else "",
            f"{100 * entry.mass_error:+.4f}",
            f"{100 * entry.ray_error:.3f}",
        )
    table.caption = (
        "Ratio: its time to ours in the same round, median. CPU: all threads of the process together. Errors: of the closed"
        " form, the worst ray among those within 0.9 of the way to the surface."
    )
    return table


def write(folder: Path, results: Results) -> list[Path]:
    """Write results.json and results.png; give their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    document, picture = folder / "results.json", folder / "results.png"
    document.write_text(json.dumps(as_dict(results), indent=2) + "\n", encoding="utf-8")
    draw(results).savefig(picture, dpi=120)
    return [document, picture]


def as_dict(results: Results) -> dict[str, Any]:
    """All figures with units in their names, and the machine that they hold for."""
    ours = next((entry for entry in results.store if entry.contender.name == OURS), None)
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "dicomnode": __version__,
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "store": {
            "megabytes": results.store_megabytes,
            "contenders": [
                {
                    "name": entry.contender.name,
                    "before_success": entry.contender.before_success,
                    "seconds": entry.seconds,
                    "median_s": entry.median_s,
                    "ratio_to_node": ratio(ours, entry) if ours else None,
                    "aim": entry.contender.aim,
                }
                for entry in results.store
            ],
        },
        "reporting": _reporting_dict(results.reporting),
        "network": asdict(results.network) if results.network else None,
        "engines": [asdict(entry) for entry in results.engines],
        "calibration": [
            {
                **asdict(entry),
                "rms_slope_percent": entry.rms_slope_percent,
                "worst_slope_percent": entry.worst_slope_percent,
                "worst_offset_mg_cm3": entry.worst_offset_mg_cm3,
                "median_cpu_s": entry.median_cpu_s,
            }
            for entry in results.calibration
        ],
        "projector": [asdict(entry) for entry in results.projector],
    }


def _reporting_dict(measured: Reporting | None) -> dict[str, Any] | None:
    if measured is None:
        return None
    medians = {f"{stage}_s": measured.median_s(stage) for stage in (*STAGES, "total")}
    return {
        "archive": measured.archive,
        "median": medians,
        "radiographs": [asdict(way) for way in measured.alone],
        "together_s": measured.together_s,
    }


def draw(results: Results) -> Figure:
    """Draw what was measured, one panel for each benchmark."""
    figure = Figure(figsize=(10, 8.4), layout="constrained")
    FigureCanvasAgg(figure)
    store, reporting, network = figure.subplots(3, 1, height_ratios=(5, 2.2, 3))
    _draw_store(store, results)
    _draw_reporting(reporting, results.reporting)
    _draw_network(network, results.network)
    for axes in (store, reporting, network):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("seconds")
    return figure


def _draw_store(axes: Any, results: Results) -> None:
    axes.set_title(f"C-STORE of {results.store_megabytes:.0f} MB, bars: median, dots: rounds", loc="left", fontsize=10)
    for row, entry in enumerate(reversed(results.store)):
        colour = COLOURS["ours" if entry.contender.name == OURS else "other"]
        axes.barh(row, entry.median_s, color=colour, height=0.6)
        axes.plot(entry.seconds, [row] * len(entry.seconds), "o", color="black", markersize=3)
        axes.annotate(
            f" {entry.median_s:.2f} s", (max(entry.seconds), row), (4, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(results.store)), [entry.contender.name for entry in reversed(results.store)])
    axes.margins(x=0.12)


def _draw_reporting(axes: Any, measured: Reporting | None) -> None:
    axes.set_title(
        "From the node's success to the report in the archive, medians of the stages", loc="left", fontsize=10
    )
    axes.set_yticks([])
    if measured is None:
        return
    start = 0.0
    for stage, colour in zip(STAGES, STAGE_COLOURS, strict=True):
        seconds = measured.median_s(stage)
        axes.barh(0, seconds, left=start, color=colour, label=f"{stage} {seconds:.2f} s")
        start += seconds
    axes.set_ylim(-0.5, 1.4)
    axes.legend(ncols=len(STAGES), loc="upper left", frameon=False, fontsize=9)


def _draw_network(axes: Any, measured: NetworkTimes | None) -> None:
    axes.set_title("CPU seconds of one radiograph, medians", loc="left", fontsize=10)
    if measured is None:
        axes.set_yticks([])
        return
    parts = {
        "pipeline.measure": measured.measure_s,
        f"decomposer ({measured.hips} hips)": measured.decompose_s,
        "locator": measured.locate_s,
        "read and decode": measured.read_s,
    }
    bars = axes.barh(list(parts), list(parts.values()), color=COLOURS["ours"], height=0.6)
    axes.bar_label(bars, fmt=" %.3f s")
    axes.margins(x=0.12)
