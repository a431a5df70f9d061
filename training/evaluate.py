"""What a bundle can do on hips that it never saw, through the very functions that the node runs.

Every figure here comes from simulated radiographs of phantoms and says nothing about patients.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from dicomnode.domain.measurement import Region
from dicomnode.errors import NotMeasurable
from dicomnode.inference import frame, regions
from dicomnode.inference.plausibility import check_hip, check_region, explained, shaft_angle_deg
from dicomnode.inference.predictor import Decomposition, Predictor
from training.augment import METAL_G_CM2, random_radiograph
from training.pairs import HipPair, Pairs
from training.statistics import Agreement, agreement
from training.targets import MARGIN_PX
from training.whole import WholeCase

QUANTITY_LABELS = {
    "areal_bmd_g_cm2": "aBMD, g/cm²",
    "bmc_g": "BMC, g",
    "area_cm2": "area, cm²",
    "volumetric_bmd_mg_cm3": "vBMD, mg/cm³",
}
QUANTITIES = tuple(QUANTITY_LABELS)
_LOCATOR_ERROR_SD_MM = 2.0
"""Heads are placed this much beside their place, as the locator would; `inference.predictor` looks twice beyond 3 mm."""
_SIMULATED = "simulated radiographs of phantoms, not patients"


@dataclass(frozen=True)
class RegionCase:
    """Truth and prediction of one region of one held-out hip; predictions are None where the node refuses."""

    subject: int
    side: str
    region: str
    kind: str
    """"native" AP hip, "implant" or "wrong_view"."""
    refused: str
    """Reason, or empty where the region has figures."""
    true_areal_bmd_g_cm2: float
    true_bmc_g: float
    true_area_cm2: float
    true_volumetric_bmd_mg_cm3: float
    areal_bmd_g_cm2: float | None = None
    bmc_g: float | None = None
    area_cm2: float | None = None
    volumetric_bmd_mg_cm3: float | None = None


@dataclass(frozen=True)
class HipReading:
    """What plausibility looks at, for setting its limits."""

    kind: str
    anteroposterior_hip: float
    implant: float
    metal_cm2: float
    explained: float
    femur_area_cm2: float
    shaft_angle_deg: float | None


def evaluate(
    predictor: Predictor, pairs: Pairs, subjects: NDArray[np.int64], seed: int
) -> tuple[list[RegionCase], list[HipReading]]:
    """Measure every hip of the given subjects on one random radiograph each."""
    cases: list[RegionCase] = []
    readings: list[HipReading] = []
    for number in tqdm(pairs.hips_of(subjects), desc="evaluate", unit="hip"):
        hip = pairs.hip(int(number))
        decomposition = decompose_once(predictor, hip, np.random.default_rng((seed, 3, int(number))))
        kind = _kind(hip)
        readings.append(_reading(kind, decomposition))
        cases.extend(_cases(hip, kind, decomposition, predictor))
    return cases, readings


def decompose_once(predictor: Predictor, hip: HipPair, rng: np.random.Generator) -> Decomposition:
    """Take one random radiograph of a hip, found as well as the locator finds it, and decompose it."""
    image = random_radiograph(hip.materials.astype(np.float32), frame.SPACING_MM, rng)
    row, column = MARGIN_PX + np.clip(
        np.round(rng.normal(0, _LOCATOR_ERROR_SD_MM / frame.SPACING_MM, 2)), -8, 8
    ).astype(int)
    crop = image[row : row + frame.ROWS, column : column + frame.COLUMNS]
    return predictor.decompose_crop(crop, np.ones(crop.shape, bool), np.eye(3))


def _kind(hip: HipPair) -> str:
    if not hip.anteroposterior:
        return "wrong_view"
    return "implant" if (hip.materials[3] > METAL_G_CM2).any() else "native"


def _reading(kind: str, decomposition: Decomposition) -> HipReading:
    return HipReading(
        kind=kind,
        anteroposterior_hip=decomposition.anteroposterior_hip,
        implant=decomposition.implant,
        metal_cm2=float(decomposition.metal.sum()) * regions.PIXEL_AREA_CM2,
        explained=explained(decomposition),
        femur_area_cm2=float((decomposition.labels > 0).sum()) * regions.PIXEL_AREA_CM2,
        shaft_angle_deg=shaft_angle_deg(decomposition.labels),
    )


def _cases(hip: HipPair, kind: str, decomposition: Decomposition, predictor: Predictor) -> Iterator[RegionCase]:
    try:
        check_hip(decomposition, predictor.bundle.limits)
        refused = ""
    except NotMeasurable as error:
        refused = error.reason.value
    for region in Region:
        truth = hip.figures["regions"][region.value]
        if any(truth[name] is None for name in QUANTITIES):
            continue
        true = {f"true_{name}": truth[name] for name in QUANTITIES}
        reason, predicted = refused, None
        if not reason:
            try:
                check_region(decomposition, region)
                mask = regions.region_mask(decomposition.labels, region)
                predicted = regions.figures(mask, decomposition.density_g_cm2, decomposition.path_cm)
            except NotMeasurable as error:
                reason = error.reason.value
        figures = asdict(predicted) if predicted is not None else {}
        yield RegionCase(hip.figures["index"], hip.figures["side"], region.value, kind, reason, **true, **figures)


@dataclass(frozen=True)
class Summary:
    """Figures of an evaluation, ready for JSON."""

    agreement: dict[str, dict[str, Agreement]]
    """region -> quantity -> agreement over the native hips that were measured."""
    coverage: dict[str, float]
    """region -> share of true areal BMD inside the 90 % interval."""
    refusals: dict[str, dict[str, int]]
    """kind -> reason ("measured" for none) -> hips, judged by the total hip."""
    whole: dict[str, Any]
    """The same on whole radiographs: refusals by kind, and agreement of the total hip's areal BMD; empty if not asked for."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "data": _SIMULATED,
            "agreement": {r: {q: a.as_dict() for q, a in table.items()} for r, table in self.agreement.items()},
            "interval_coverage": self.coverage,
            "refusals": self.refusals,
            "whole_radiographs": self.whole,
        }


def summarise(
    cases: Iterable[RegionCase], intervals: dict[str, dict[str, float]], whole_cases: Iterable[WholeCase] = ()
) -> Summary:
    """Condense cases into agreement, interval coverage and refusals."""
    cases = list(cases)
    table: dict[str, dict[str, Agreement]] = {}
    coverage: dict[str, float] = {}
    for region in Region:
        measured = [
            case for case in cases if case.region == region.value and case.kind == "native" and not case.refused
        ]
        if len(measured) < 3:
            continue
        table[region.value] = {name: agreement(*truth_and_prediction(measured, name)) for name in QUANTITIES}
        half = intervals.get(region.value, {}).get("areal_bmd_g_cm2")
        if half is not None:
            truth, prediction = truth_and_prediction(measured, "areal_bmd_g_cm2")
            coverage[region.value] = float((np.abs(prediction - truth) <= half).mean())
    refusals: dict[str, Counter[str]] = {}
    for case in cases:
        if case.region == Region.TOTAL_HIP.value:
            refusals.setdefault(case.kind, Counter())[case.refused or "measured"] += 1
    plain = {kind: dict(counts) for kind, counts in refusals.items()}
    return Summary(table, coverage, plain, _summarise_whole(list(whole_cases)))


def _summarise_whole(cases: list[WholeCase]) -> dict[str, Any]:
    if not cases:
        return {}
    outcomes: dict[str, Counter[str]] = {}
    for case in cases:
        outcomes.setdefault(case.kind, Counter())[case.outcome] += 1
    measured = [case for case in cases if case.kind == "native" and case.areal_bmd_g_cm2 is not None]
    truth, prediction = truth_and_prediction(measured, "areal_bmd_g_cm2")
    return {
        "refusals": {kind: dict(counts) for kind, counts in outcomes.items()},
        "total_hip_areal_bmd_g_cm2": agreement(truth, prediction).as_dict() if len(measured) >= 3 else None,
    }


def truth_and_prediction(
    cases: Iterable[RegionCase | WholeCase], quantity: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two (n,) arrays of one quantity."""
    pairs = [(getattr(case, f"true_{quantity}"), getattr(case, quantity)) for case in cases]
    truth, prediction = np.array(pairs, np.float64).reshape(-1, 2).T
    return truth, prediction


def write_evaluation(folder: Path, cases: list[RegionCase], summary: Summary) -> None:
    """Write `figures.json`, `cases.csv`, `scatter.png` and `bland_altman.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures.json").write_text(json.dumps(summary.as_dict(), indent=1) + "\n", encoding="utf-8")
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(RegionCase)])
        writer.writeheader()
        writer.writerows(asdict(case) for case in cases)
    measured = [case for case in cases if case.kind == "native" and not case.refused]
    _plot(folder / "scatter.png", measured, summary, _draw_scatter)
    _plot(folder / "bland_altman.png", measured, summary, _draw_bland_altman)


def _plot(path: Path, cases: list[RegionCase], summary: Summary, draw: Any) -> None:
    shown = [Region.TOTAL_HIP, Region.FEMORAL_NECK]
    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, region in zip(figure.subplots(1, len(shown)), shown, strict=True):
        if region.value in summary.agreement:
            own = [case for case in cases if case.region == region.value]
            draw(
                axes, *truth_and_prediction(own, "areal_bmd_g_cm2"), summary.agreement[region.value]["areal_bmd_g_cm2"]
            )
        axes.set_title(region.value.replace("_", " "))
        axes.grid(alpha=0.25)
    figure.suptitle(f"Areal BMD on {_SIMULATED}", fontsize=10)
    figure.savefig(path, dpi=110)


def _draw_scatter(axes: Any, truth: NDArray[np.float64], prediction: NDArray[np.float64], figures: Agreement) -> None:
    limits = [min(truth.min(), prediction.min()) - 0.05, max(truth.max(), prediction.max()) + 0.05]
    axes.plot(limits, limits, color="0.6", lw=1)
    axes.scatter(truth, prediction, s=9, alpha=0.6)
    axes.set(xlim=limits, ylim=limits, xlabel="truth, g/cm²", ylabel="prediction, g/cm²", aspect="equal")
    text = f"n = {figures.n}\nr = {figures.pearson_r:.3f}\nICC = {figures.icc:.3f}\nRMSE = {figures.rmse:.3f}"
    axes.text(0.04, 0.96, text, transform=axes.transAxes, va="top")


def _draw_bland_altman(
    axes: Any, truth: NDArray[np.float64], prediction: NDArray[np.float64], figures: Agreement
) -> None:
    axes.scatter((truth + prediction) / 2, prediction - truth, s=9, alpha=0.6)
    axes.axhline(figures.bias, color="C1")
    for limit in figures.limits_of_agreement:
        axes.axhline(limit, color="C1", ls="--")
    axes.set(xlabel="mean of both, g/cm²", ylabel="prediction - truth, g/cm²")
