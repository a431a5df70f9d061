"""What is stated beside each of the methods that it is the mean of: the same hips, radiographs and looks."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dicomnode.domain.measurement import Region
from training.cases import RegionCase
from training.statistics import Agreement, Values, agreement, bootstrap_intervals, r_and_rmse

QUANTITIES = ("areal_bmd_g_cm2", "volumetric_bmd_mg_cm3")
METHODS = {"prediction": "stated", "decomposed": "decomposition", "regressed": "direct regression"}
"""Field of `RegionCase` -> what people call it."""


@dataclass(frozen=True)
class Gain:
    """How much better one method reads than another: (value, low, high), intervals of 95 % by drawing patients."""

    r: tuple[float, float, float]
    """Pearson's r less that of the other."""
    rmse: tuple[float, float, float]
    """RMSE of the other less its own."""


@dataclass(frozen=True)
class MethodComparison:
    """The methods on the same cases."""

    agreement: dict[str, Agreement]
    """Value of `METHODS` -> agreement."""
    gain: dict[str, Gain]
    """"one over other" -> gain, of each pair in the order of `METHODS`."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def compare_methods(cases: Iterable[RegionCase]) -> dict[str, dict[str, MethodComparison]]:
    """Region -> quantity -> comparison, over the native hips that all methods read; empty with one method alone."""
    read = _read_by_all(cases)
    table: dict[str, dict[str, MethodComparison]] = {}
    for region in Region:
        own = [case for case in read if case.region == region.value]
        if len(own) >= 3:
            table[region.value] = {name: _compare(own, name) for name in QUANTITIES}
    return table


def _read_by_all(cases: Iterable[RegionCase]) -> list[RegionCase]:
    return [case for case in cases if case.kind == "native" and not case.refused and case.regressed]


def _figures(cases: list[RegionCase], part: str, quantity: str) -> Values:
    return np.array([getattr(case, part)[quantity] for case in cases], np.float64)


def _compare(cases: list[RegionCase], quantity: str) -> MethodComparison:
    truth = _figures(cases, "truth", quantity)
    read = {method: _figures(cases, part, quantity) for part, method in METHODS.items()}
    patients = np.array([case.subject for case in cases], np.int64)
    gains = {
        f"{one} over {other}": _gain(patients, truth, read[one], read[other]) for one, other in combinations(read, 2)
    }
    return MethodComparison({method: agreement(truth, values) for method, values in read.items()}, gains)


def _gain(patients: NDArray[np.int64], truth: Values, one: Values, other: Values) -> Gain:
    low, high = bootstrap_intervals(_gains, patients, truth, one, other).T
    r, rmse = _gains(truth, one, other)
    return Gain((float(r), float(low[0]), float(high[0])), (float(rmse), float(low[1]), float(high[1])))


def _gains(truth: Values, one: Values, other: Values) -> Values:
    (r, rmse), (r_other, rmse_other) = r_and_rmse(truth, one), r_and_rmse(truth, other)
    return np.array([r - r_other, rmse_other - rmse])


def draw_methods(path: Path, cases: Iterable[RegionCase], title: str) -> None:
    """Scatter the methods' areal BMD of total hip and neck, one row per method."""
    read = _read_by_all(cases)
    figure = Figure(figsize=(10, 15), layout="constrained")
    FigureCanvasAgg(figure)
    shown = (Region.TOTAL_HIP, Region.FEMORAL_NECK)
    for line, (part, method) in zip(figure.subplots(len(METHODS), 2), METHODS.items(), strict=True):
        for axes, region in zip(line, shown, strict=True):
            own = [case for case in read if case.region == region.value]
            truth, values = (_figures(own, name, "areal_bmd_g_cm2") for name in ("truth", part))
            limits = (0.2, 1.6)
            axes.plot(limits, limits, color="0.6", lw=1)
            axes.scatter(truth, values, s=9, alpha=0.6)
            axes.set(xlim=limits, ylim=limits, xlabel="truth, g/cm²", ylabel="reading, g/cm²", aspect="equal")
            axes.set_title(f"{region.value.replace('_', ' ')}, {method}")
            axes.grid(alpha=0.25)
            if len(own) >= 3:
                r, rmse = r_and_rmse(truth, values)
                axes.text(
                    0.04, 0.96, f"n = {len(own)}\nr = {r:.3f}\nRMSE = {rmse:.3f}", transform=axes.transAxes, va="top"
                )
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
