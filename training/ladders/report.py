"""What the ladders showed, for people and for machines: tables, pictures, JSON and CSV."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dicomnode.domain.measurement import Reason
from training.ladders.compression import Compression
from training.ladders.diagnosis import Diagnosis, Share
from training.ladders.ladder import Case, Ladder, RungFigures, quantities, truth_and_reading, value_of
from training.ladders.page import evidence_page
from training.ladders.persons import MineralSlope, Repeatability
from training.ladders.reading import is_areal_bmd, label
from training.ladders.refusals import MEASURED, Refusals

SIMULATED = "simulated radiographs of phantoms, not patients"


@dataclass(frozen=True)
class Evidence:
    """Everything that one run of the ladders found."""

    model: str
    """Name, version and digest of the bundle."""
    subjects: str
    """Which phantoms."""
    ladders: tuple[Ladder, ...]
    compression: Compression
    mineral: tuple[MineralSlope, ...]
    repeatability: tuple[Repeatability, ...]
    repeated: tuple[Case, ...]
    refusals: tuple[Refusals, ...]
    diagnoses: tuple[Diagnosis, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "data": SIMULATED,
            "model": self.model,
            "subjects": self.subjects,
            "ladders": {ladder.name: ladder.as_dict() for ladder in self.all_ladders()},
            "compression_ratios": self.compression.ratios,
            "mineral_slopes": [one.as_dict() for one in self.mineral],
            "repeatability": [one.as_dict() for one in self.repeatability],
            "refusals": [one.as_dict() for one in self.refusals],
            "diagnosis": [one.as_dict() for one in self.diagnoses],
        }

    def all_ladders(self) -> tuple[Ladder, ...]:
        """The ladders, that of the file's size among them."""
        return (*self.ladders, self.compression.ladder)


def write_evidence(folder: Path, evidence: Evidence) -> None:
    """Write `ladders.json`, `LADDERS.md`, `cases.csv`, one picture per ladder (two for mineral), of repeatability and refusals."""
    folder.mkdir(parents=True, exist_ok=True)
    document = _finite(evidence.as_dict())
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "ladders.json").write_text(text + "\n", encoding="utf-8")
    (folder / "LADDERS.md").write_text(evidence_page(document), encoding="utf-8")
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("ladder", "rung", "subject", "side", "quantity", "true", "read", "refused"))
        for ladder in evidence.all_ladders():
            writer.writerows(_rows(ladder.name, ladder.cases))
        writer.writerows(_rows("repeatability", evidence.repeated))
    for ladder in evidence.all_ladders():
        draw_ladder(folder / f"{ladder.name}.png", ladder)
        if slopes := [one for one in evidence.mineral if one.ladder == ladder.name]:
            draw_slopes(folder / f"{ladder.name}_slope.png", ladder, slopes)
    draw_repeatability(folder / "repeatability.png", evidence.repeatability)
    draw_refusals(folder / "refusals.png", evidence.refusals)


def _rows(name: str, cases: Sequence[Case]) -> Iterator[tuple[object, ...]]:
    for case in cases:
        refused = case.reading.value if isinstance(case.reading, Reason) else ""
        for quantity in quantities(cases):
            if quantity in case.true:
                value = value_of(case.reading, quantity)
                why = "" if value is not None else refused or Reason.CUT_OFF.value
                yield name, case.rung, case.subject, case.side, quantity, case.true[quantity], value, why


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is not defined is null."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title} ({SIMULATED})", fontsize=10)
    return figure


def draw_ladder(path: Path, ladder: Ladder) -> None:
    """Draw error, agreement and refusals of every areal BMD over the rungs."""
    names = [name for name in quantities(ladder.cases) if is_areal_bmd(name)]
    paired = bool(ladder.reference)
    figure = _figure(15 if paired else 11.5, 4.6, ladder.title)
    panels = figure.subplots(1, 4 if paired else 3)
    places = np.arange(len(ladder.rungs))
    for shift, name in zip(np.linspace(-0.12, 0.12, len(names)), names, strict=True):
        own = {one.rung: one for one in ladder.figures if one.quantity == name}
        rungs = [own[rung] for rung in ladder.rungs]
        _draw_agreement(panels, places + shift, rungs, label(name).split(",")[0])
        if paired:
            changes = [one.change_percent or (math.nan, math.nan) for one in rungs]
            (line,) = panels[3].plot(places + shift, [c[0] for c in changes], "o-")
            panels[3].plot(places + shift, [c[1] for c in changes], "^--", color=line.get_color(), alpha=0.6)
    titles = ("RMSE, g/cm² (bars: 95 %)", "bias, g/cm²", "refused, % (bars: 95 %)", "change against reference, %")
    for panel, title in zip(panels, titles, strict=False):
        panel.set_title(title, fontsize=10)
        panel.set_xticks(
            places,
            ladder.rungs,
            rotation=30 if len(ladder.rungs) > 6 else 0,
            ha="right" if len(ladder.rungs) > 6 else "center",
            fontsize=8,
        )
        panel.set_xlabel(ladder.axis)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(bottom=0)
    panels[1].axhline(0, color="0.6", lw=1)
    panels[2].set_ylim(bottom=0)
    if paired:
        panels[3].set_title(f"change against {ladder.reference}, % (o median, ^ 95th)", fontsize=10)
        panels[3].set_ylim(bottom=0)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=100)


def _draw_agreement(panels: Any, places: Any, rungs: Sequence[RungFigures], name: str) -> None:
    rmse = np.array([one.agreement.rmse if one.agreement else math.nan for one in rungs])
    bias = [one.agreement.bias if one.agreement else math.nan for one in rungs]
    ends = np.array([one.rmse_interval or (math.nan, math.nan) for one in rungs])
    refused = np.array([100 * one.refused / one.hips for one in rungs])
    shares = 100 * np.array([one.refused_interval for one in rungs])
    panels[0].errorbar(places, rmse, np.abs(ends.T - rmse), fmt="o-", capsize=2, label=name)
    panels[1].plot(places, bias, "o-")
    panels[2].errorbar(places, refused, np.abs(shares.T - refused), fmt="o-", capsize=2)


def draw_slopes(path: Path, ladder: Ladder, slopes: Sequence[MineralSlope]) -> None:
    """Draw reading over truth, one line per hip whose mineral alone changes: along the diagonal is measured, flat is guessed."""
    shown = [one for one in slopes if is_areal_bmd(one.quantity)]
    figure = _figure(5 * max(len(shown), 1), 5, ladder.title)
    for axes, slope in zip(np.atleast_1d(figure.subplots(1, max(len(shown), 1))), shown, strict=False):
        for hip in dict.fromkeys((case.subject, case.side) for case in ladder.cases):
            own = [case for case in ladder.cases if (case.subject, case.side) == hip]
            truth, reading, _ = truth_and_reading(own, slope.quantity)
            axes.plot(truth, reading, "o-", ms=2.5, lw=0.8, alpha=0.7)
        limits = axes.get_xlim()
        axes.plot(limits, limits, color="0.4", lw=1, ls="--")
        low, high = slope.slope_interval
        axes.set_title(f"{label(slope.quantity)}\nslope {slope.slope:.2f} ({low:.2f} to {high:.2f})", fontsize=10)
        axes.set(xlabel="truth", ylabel="reading")
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=100)


def draw_repeatability(path: Path, repeatability: Sequence[Repeatability]) -> None:
    """Draw the precision error of every quantity as bars."""
    figure = _figure(9, 0.8 + 0.62 * max(len(repeatability), 1), "Precision error, RMS-CV")
    axes: Axes = figure.subplots()
    places = np.arange(len(repeatability))
    parts = (
        ("repositioned", "reading, put down again, same device"),
        ("same_device", "reading, over poses, same device"),
        ("over_poses", "reading, over poses and devices"),
        ("truth_over_poses", "truth, over poses"),
        ("same_pose", "reading, same pose, over devices"),
    )
    for number, (key, name) in enumerate(parts):
        found = [getattr(one, key) for one in repeatability]
        values = np.array([one.rms_cv_percent for one in found])
        ends = np.array([one.rms_cv_percent_interval for one in found]).reshape(-1, 2)
        axes.barh(
            places + 0.17 * (number - 2), values, 0.15, xerr=np.abs(ends.T - values), label=name, error_kw={"lw": 0.8}
        )
    axes.axvline(1.8, color="0.3", ls="--", lw=1, label="1.8 %: what ISCD accepts of DXA at the total hip")
    axes.set_yticks(places, [label(one.quantity) for one in repeatability])
    axes.invert_yaxis()
    axes.set_xlabel("RMS-CV, % (bars: 95 %)")
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def draw_refusals(path: Path, refusals: Sequence[Refusals]) -> None:
    """Draw what became of each group as stacked shares."""
    reasons = list(dict.fromkeys(reason for one in refusals for reason in one.outcomes if reason != MEASURED))
    figure = _figure(10, 1.2 + 0.42 * len(refusals), "What became of each group, judged by the total hip")
    axes: Axes = figure.subplots()
    places, left = np.arange(len(refusals)), np.zeros(len(refusals))
    for number, reason in enumerate([MEASURED, *reasons]):
        shares = np.array([100 * one.outcomes.get(reason, 0) / one.count for one in refusals])
        axes.barh(places, shares, left=left, color="0.8" if reason == MEASURED else f"C{number - 1}", label=reason)
        left += shares
    axes.set_yticks(places, [f"{one.group} (n = {one.count})" for one in refusals])
    axes.invert_yaxis()
    axes.set_xlabel("share, %")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def print_evidence(console: Console, evidence: Evidence) -> None:
    """Print the areal BMDs of every ladder, slopes, precision, refusals and classes."""
    console.print(f"[bold]{SIMULATED}[/]; {evidence.model}; {evidence.subjects}")
    for ladder in evidence.all_ladders():
        console.print(
            _ladder_table(ladder, evidence.compression.ratios if ladder is evidence.compression.ladder else {})
        )
    console.print(_mineral_table(evidence.mineral))
    console.print(_repeatability_table(evidence.repeatability))
    console.print(_refusal_table(evidence.refusals))
    for one in evidence.diagnoses:
        console.print(_diagnosis_table(one))
        console.print(
            f"AUC {one.auc:.3f} ({one.auc_interval[0]:.3f} to {one.auc_interval[1]:.3f}), accuracy {_share(one.accuracy)},"
            f" sensitivity {_share(one.sensitivity)}, specificity {_share(one.specificity)}\n"
        )


def _table(title: str, *columns: str, words: int = 1) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=0, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < words else "right", no_wrap=True)
    return table


def _ladder_table(ladder: Ladder, ratios: dict[str, float]) -> Table:
    change = ("change, %",) if ladder.reference else ()
    title = f"{ladder.title}: {ladder.axis}" + (
        f" (change against {ladder.reference} per hip: median, 95th percentile)" if ladder.reference else ""
    )
    columns = ("quantity", "rung", "n", "r (95 %)", "bias, g/cm²", "RMSE (95 %)", "slope", "refused, % (95 %)")
    table = _table(title, *columns, *change, words=2)
    for name in quantities(ladder.cases):
        for one in (figures for figures in ladder.figures if figures.quantity == name and is_areal_bmd(name)):
            reached = f" (1/{ratios[one.rung]:.1f})" if one.rung in ratios else ""
            cells = [label(name).split(",")[0], one.rung + reached, str(one.hips - one.refused), *_agreement_cells(one)]
            low, high = one.refused_interval
            cells.append(f"{100 * one.refused / one.hips:.1f} ({100 * low:.1f} to {100 * high:.1f})")
            if change:
                cells.append("" if one.change_percent is None else "{:.2f}, {:.2f}".format(*one.change_percent))
            table.add_row(*cells)
        if is_areal_bmd(name):
            table.add_section()
    return table


def _agreement_cells(one: RungFigures) -> list[str]:
    if one.agreement is None or one.r_interval is None or one.rmse_interval is None:
        return ["", "", "", ""]
    found, r, rmse = one.agreement, one.r_interval, one.rmse_interval
    return [
        f"{found.pearson_r:.3f} ({r[0]:.2f} to {r[1]:.2f})",
        f"{found.bias:+.3f}",
        f"{found.rmse:.3f} ({rmse[0]:.3f} to {rmse[1]:.3f})",
        f"{found.slope:.2f}",
    ]


def _mineral_table(slopes: Sequence[MineralSlope]) -> Table:
    title = "Reading on truth within a hip whose mineral alone changes: 1 is measured, 0 is guessed from what stays"
    table = _table(title, "ladder", "quantity", "hips", "slope (95 %)", "SD between hips", words=2)
    for one in slopes:
        low, high = one.slope_interval
        table.add_row(
            one.ladder,
            label(one.quantity),
            str(one.hips),
            f"{one.slope:.2f} ({low:.2f} to {high:.2f})",
            f"{one.slope_sd:.2f}",
        )
    return table


def _repeatability_table(repeatability: Sequence[Repeatability]) -> Table:
    table = _table(
        "Precision error: RMS-CV and least significant change (2.77 x), %",
        "quantity", "hips", "put down again (95 %)", " LSC ", "AP poses (95 %)", "LSC",
        "other devices (95 %)", "LSC ", "truth", "same pose (95 %)", " LSC",
    )  # fmt: skip
    for one in repeatability:
        cells = []
        for found in (one.repositioned, one.same_device, one.over_poses, one.same_pose):
            low, high = found.rms_cv_percent_interval
            cells.append((f"{found.rms_cv_percent:.2f} ({low:.2f} to {high:.2f})", f"{found.lsc_percent:.1f}"))
        table.add_row(
            label(one.quantity),
            str(one.over_poses.persons),
            *cells[0],
            *cells[1],
            *cells[2],
            f"{one.truth_over_poses.rms_cv_percent:.2f}",
            *cells[3],
        )
    return table


def _refusal_table(refusals: Sequence[Refusals]) -> Table:
    table = _table("Refused, judged by the total hip", "group", "n", "refused, % (95 %)", "outcomes")
    for one in refusals:
        low, high = one.refused_interval
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in one.outcomes.items())
        table.add_row(
            one.group, str(one.count), f"{100 * one.refused:.1f} ({100 * low:.1f} to {100 * high:.1f})", outcomes
        )
    return table


def _diagnosis_table(one: Diagnosis) -> Table:
    classes = list(one.table)
    words = [name.replace("_", " ") for name in classes]
    title = f"{label(one.quantity)}: classes against {one.reference}, {one.hips} hips of persons aged 50 or older"
    table = _table(title, "truth", *(f"read {word}" for word in words))
    for name, word in zip(classes, words, strict=True):
        table.add_row(word, *(str(one.table[name][other]) for other in classes))
    return table


def _share(share: Share) -> str:
    if not share.of:
        return "- (0)"
    low, high = share.interval
    return f"{100 * share.successes / share.of:.0f} % ({100 * low:.0f} to {100 * high:.0f}, {share.successes} of {share.of})"
