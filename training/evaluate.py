"""What a bundle can do on hips that it never saw, through the very functions that the node runs.

Every figure here comes from simulated radiographs of phantoms and says nothing about patients; those on a hospital's real
radiographs are made in `training.evaluate_real`.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from dicomnode.domain.measurement import Region
from dicomnode.domain.radiograph import Technique
from dicomnode.errors import NotMeasurable
from dicomnode.inference import frame, regions
from dicomnode.inference.bundle import Intervals
from dicomnode.inference.canonical import Method
from dicomnode.inference.frame import FramedHip
from dicomnode.inference.plausibility import canonical_share, check_hip, check_region, explained, shaft_angle_deg
from dicomnode.inference.predictor import Decomposition, Predictor
from training.augment import METAL_G_CM2, random_radiograph
from training.cases import CANONICAL, PROJECTED, QUANTITY_LABELS, RegionCase
from training.methods import MethodComparison, compare_methods, draw_methods
from training.pairs import HipPair, Pairs
from training.projection.radiograph import stated_technique
from training.statistics import Agreement, agreement
from training.targets import MARGIN_PX
from training.whole import WholeCase

_LOCATOR_ERROR_SD_MM = 2.0
"""Heads are placed this much beside their place, as the locator would; `inference.predictor` looks twice beyond 3 mm."""
_MOST_OFFSET_PX = 8
_SIMULATED = "simulated radiographs of phantoms, not patients"


@dataclass(frozen=True)
class HipReading:
    """What plausibility looks at, for setting its limits."""

    kind: str
    anteroposterior_hip: float
    implant: float
    fracture: float
    metal_cm2: float
    explained: float
    femur_area_cm2: float
    shaft_angle_deg: float | None
    canonical_share: float | None
    """Areal BMD of the neck in the canonical pose, as a share of the projected one; None where no neck is seen."""


def evaluate(
    predictor: Predictor,
    pairs: Pairs,
    subjects: NDArray[np.int64],
    seed: int,
    *,
    radiographs: int = 1,
) -> tuple[list[RegionCase], list[HipReading]]:
    """Measure every hip of the given subjects.

    Args:
        radiographs: how many are taken of each hip, each under conditions of its own.
    """
    cases: list[RegionCase] = []
    readings: list[HipReading] = []
    for number, take in tqdm(
        list(product(pairs.hips_of(subjects).tolist(), range(radiographs))), "evaluate", unit="radiograph"
    ):
        hip = pairs.hip(number)
        framed = taken_once(hip, taking(seed, number, take))
        decomposition = predictor.read(framed)
        kind = _kind(hip)
        readings.append(hip_reading(kind, decomposition))
        cases.extend(region_cases(hip.figures, kind, decomposition, predictor, framed.technique))
    return cases, readings


def taking(seed: int, number: int, take: int = 0) -> np.random.Generator:
    """What draws one radiograph of hip `number` of the pairs: the same conditions and noise each time."""
    return np.random.default_rng((seed, 3, number, take))


def taken_once(hip: HipPair, rng: np.random.Generator) -> FramedHip:
    """Take one random radiograph of a hip, and lay the measurement frame where the locator would."""
    image, exposure = random_radiograph(hip.materials.astype(np.float32), frame.SPACING_MM, rng)
    return FramedHip(image, stored_from_frame(locator_error_px(rng)), stated_technique(exposure))


def stored_from_frame(offset_px: ArrayLike = (0, 0)) -> NDArray[np.float64]:
    """(column, row) of a stored hip from that of the frame, whose head is missed by (rows, columns)."""
    row, column = MARGIN_PX + np.asarray(offset_px)
    return np.array([[1.0, 0.0, column], [0.0, 1.0, row], [0.0, 0.0, 1.0]])


def locator_error_px(rng: np.random.Generator) -> NDArray[np.int64]:
    """(row, column) by which a head is missed, as the locator misses it: whole pixels of the frame."""
    sd_px = _LOCATOR_ERROR_SD_MM / frame.SPACING_MM
    return np.clip(np.round(rng.normal(0, sd_px, 2)), -_MOST_OFFSET_PX, _MOST_OFFSET_PX).astype(np.int64)


def _kind(hip: HipPair) -> str:
    if not hip.anteroposterior:
        return "wrong_view"
    return "implant" if (hip.materials[3] > METAL_G_CM2).any() else "native"


def hip_reading(kind: str, decomposition: Decomposition) -> HipReading:
    """What plausibility looks at."""
    return HipReading(
        kind=kind,
        anteroposterior_hip=decomposition.anteroposterior_hip,
        implant=decomposition.implant,
        fracture=decomposition.fracture,
        metal_cm2=float(decomposition.metal.sum()) * regions.PIXEL_AREA_CM2,
        explained=explained(decomposition),
        femur_area_cm2=float((decomposition.labels > 0).sum()) * regions.PIXEL_AREA_CM2,
        shaft_angle_deg=shaft_angle_deg(decomposition.labels),
        canonical_share=canonical_share(decomposition, Region.FEMORAL_NECK),
    )


def region_cases(
    figures: Mapping[str, Any],
    kind: str,
    decomposition: Decomposition,
    predictor: Predictor,
    technique: Technique,
) -> Iterator[RegionCase]:
    """Compare each region with what is known of the hip: `index` of its subject, `side`, `canonical` and `regions`."""
    try:
        check_hip(decomposition, predictor.bundle.limits)
        refused = ""
    except NotMeasurable as error:
        refused = error.reason.value
    for region in Region:
        truth = true_figures(figures, region)
        if truth is None:
            continue
        reason, prediction, spread = refused, dict[str, float](), dict[str, float]()
        if not reason:
            try:
                check_region(decomposition, region, predictor.bundle.limits)
                prediction, spread = read_figures(decomposition, region)
            except NotMeasurable as error:
                reason = error.reason.value
        yield RegionCase(
            subject=figures["index"],
            side=figures["side"],
            region=region.value,
            kind=kind,
            refused=reason,
            truth=truth,
            prediction=prediction,
            spread=spread,
            decomposed=_values(decomposition, Method.DECOMPOSITION, region),
            regressed=_values(decomposition, Method.REGRESSION, region),
            technique=technique,
        )


def _values(decomposition: Decomposition, method: Method, region: Region) -> dict[str, float]:
    figures = decomposition.apart.get(method)
    return {} if figures is None else {name: figure.value for name, figure in figures[region].items()}


def true_figures(figures: Mapping[str, Any], region: Region) -> dict[str, float] | None:
    """What is true of a hip's region, by quantity; None where the region is empty in one of the two poses.

    Args:
        figures: a line of the pairs' table.
    """
    canonical = figures["canonical"][region.value]
    truth = {name: canonical[name] for name in CANONICAL} | {
        PROJECTED: figures["regions"][region.value]["areal_bmd_g_cm2"]
    }
    return None if any(value is None for value in truth.values()) else truth


def read_figures(decomposition: Decomposition, region: Region) -> tuple[dict[str, float], dict[str, float]]:
    """Figures by quantity, and the spreads of those of the canonical pose, as `pipeline.measure` reports them."""
    canonical = decomposition.canonical[region]
    prediction = {name: canonical[name].value for name in CANONICAL}
    prediction[PROJECTED] = projected_areal_bmd_g_cm2(decomposition, region)
    return prediction, {name: canonical[name].spread for name in CANONICAL}


def projected_areal_bmd_g_cm2(decomposition: Decomposition, region: Region) -> float:
    """Areal BMD of a region that is seen, in the pose of the radiograph."""
    mask = regions.region_mask(decomposition.labels, region)
    figures = regions.figures(mask, decomposition.density_g_cm2, decomposition.path_cm)
    assert figures is not None, "only regions that are seen are read"
    return figures.areal_bmd_g_cm2


@dataclass(frozen=True)
class Summary:
    """Figures of an evaluation, ready for JSON."""

    agreement: dict[str, dict[str, Agreement]]
    """region -> quantity -> agreement over the native hips that were measured."""
    coverage: dict[str, dict[str, float]]
    """region -> quantity -> share of true figures inside the 90 % interval."""
    refusals: dict[str, dict[str, int]]
    """kind -> reason ("measured" for none) -> hips, judged by the total hip."""
    methods: dict[str, dict[str, MethodComparison]]
    """region -> quantity -> what is stated beside each method alone; empty where there is but one."""
    whole: dict[str, Any]
    """The same on whole radiographs: refusals by kind, and agreement of the total hip's areal BMD; empty if not asked for."""
    real: dict[str, Any] = field(default_factory=dict)
    """The same on a hospital's held-out hips, see `evaluate_real.summarise_real`; empty where the run has none."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "data": _SIMULATED,
            "agreement": {r: {q: a.as_dict() for q, a in table.items()} for r, table in self.agreement.items()},
            "interval_coverage": self.coverage,
            "refusals": self.refusals,
            "methods": {r: {q: m.as_dict() for q, m in table.items()} for r, table in self.methods.items()},
            "whole_radiographs": self.whole,
            **({"real": self.real} if self.real else {}),
        }


def summarise(cases: Iterable[RegionCase], intervals: Intervals, whole_cases: Iterable[WholeCase] = ()) -> Summary:
    """Condense cases into agreement, interval coverage and refusals."""
    cases = list(cases)
    table: dict[str, dict[str, Agreement]] = {}
    coverage: dict[str, dict[str, float]] = {}
    for region in Region:
        measured = [
            case for case in cases if case.region == region.value and case.kind == "native" and not case.refused
        ]
        if len(measured) < 3:
            continue
        table[region.value] = {name: agreement(*truth_and_prediction(measured, name)) for name in QUANTITY_LABELS}
        coverage[region.value] = interval_coverage(measured, region, intervals)
    refusals: dict[str, Counter[str]] = {}
    for case in cases:
        if case.region == Region.TOTAL_HIP.value:
            refusals.setdefault(case.kind, Counter())[case.refused or "measured"] += 1
    plain = {kind: dict(counts) for kind, counts in refusals.items()}
    return Summary(table, coverage, plain, compare_methods(cases), _summarise_whole(list(whole_cases)))


def interval_coverage(cases: list[RegionCase], region: Region, intervals: Intervals) -> dict[str, float]:
    """Quantity -> share of true figures inside the bundle's 90 % interval; quantities without a calibration are left out."""
    coverage = {
        name: float((relative_errors(cases, name) <= multiple).mean())
        for name, multiple in intervals.canonical.get(region.value, {}).items()
    }
    if (half := intervals.projected.get(region.value)) is not None:
        truth, prediction = truth_and_prediction(cases, PROJECTED)
        coverage[PROJECTED] = float((np.abs(prediction - truth) <= half).mean())
    return coverage


def relative_errors(cases: list[RegionCase], quantity: str) -> NDArray[np.float64]:
    """(n,) errors of the logarithm in multiples of each figure's own spread."""
    truth, prediction = truth_and_prediction(cases, quantity)
    return np.asarray(np.abs(np.log(prediction / truth)) / [case.spread[quantity] for case in cases], np.float64)


def _summarise_whole(cases: list[WholeCase]) -> dict[str, Any]:
    if not cases:
        return {}
    outcomes: dict[str, Counter[str]] = {}
    for case in cases:
        outcomes.setdefault(case.kind, Counter())[case.outcome] += 1
    measured = [case for case in cases if case.kind == "native" and case.prediction]
    truth, prediction = truth_and_prediction(measured, "areal_bmd_g_cm2")
    return {
        "refusals": {kind: dict(counts) for kind, counts in outcomes.items()},
        "total_hip_areal_bmd_g_cm2": agreement(truth, prediction).as_dict() if len(measured) >= 3 else None,
    }


def truth_and_prediction(
    cases: Iterable[RegionCase | WholeCase], quantity: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two (n,) arrays of one quantity."""
    pairs = [(case.truth[quantity], case.prediction[quantity]) for case in cases]
    truth, prediction = np.array(pairs, np.float64).reshape(-1, 2).T
    return truth, prediction


def write_evaluation(folder: Path, cases: list[RegionCase], summary: Summary) -> None:
    """Write `figures.json`, `cases.csv`, `scatter.png`, `bland_altman.png` and, with two methods, `methods.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures.json").write_text(json.dumps(summary.as_dict(), indent=1) + "\n", encoding="utf-8")
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as file:
        tables = (
            {"truth": QUANTITY_LABELS, "prediction": QUANTITY_LABELS, "spread": CANONICAL}
            | dict.fromkeys(("decomposed", "regressed"), CANONICAL)
            | {"technique": [one.name for one in fields(Technique)]}
        )
        plain = [one.name for one in fields(RegionCase) if one.name not in tables]
        writer = csv.writer(file)
        writer.writerow([*plain, *(f"{part}_{name}" for part, names in tables.items() for name in names)])
        for case in cases:
            row = asdict(case)
            figures = [row[part].get(name) for part, names in tables.items() for name in names]
            writer.writerow([*(row[name] for name in plain), *figures])
    measured = [case for case in cases if case.kind == "native" and not case.refused]
    _plot(folder / "scatter.png", measured, summary, _draw_scatter)
    _plot(folder / "bland_altman.png", measured, summary, _draw_bland_altman)
    if summary.methods:
        draw_methods(folder / "methods.png", cases, f"The methods on the same {_SIMULATED}")


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
