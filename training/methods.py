"""The proposed method and the conventional one side by side: the same hips and radiographs; each learned in stages of its own."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dicomnode.domain.measurement import Region
from training.cases import RegionCase
from training.config import RunConfiguration
from training.direct import DirectNet
from training.statistics import Agreement, Values, agreement, bootstrap_intervals, r_and_rmse
from training.train import direct_network

QUANTITIES = ("areal_bmd_g_cm2", "volumetric_bmd_mg_cm3")
METHODS = ("decomposition", "direct regression")


@dataclass(frozen=True)
class MethodComparison:
    """Two methods on the same cases; intervals of 95 % by drawing patients."""

    decomposition: Agreement
    direct: Agreement
    r_gain: tuple[float, float, float]
    """r of the decomposition less that of the direct regression, with its interval's ends."""
    rmse_gain: tuple[float, float, float]
    """RMSE of the direct regression less that of the decomposition, with its interval's ends."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def load_direct(folder: Path, run: RunConfiguration) -> DirectNet | None:
    """The conventional network of a run, ready to read; None where the run has none, or it is not trained."""
    path = folder / "direct.pt"
    if run.direct is None or not path.exists():
        return None
    network = direct_network(run.direct)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def compare_methods(cases: Iterable[RegionCase]) -> dict[str, dict[str, MethodComparison]]:
    """Region -> quantity -> comparison, over the native hips that both methods read."""
    read = [case for case in cases if case.kind == "native" and not case.refused and case.direct]
    table: dict[str, dict[str, MethodComparison]] = {}
    for region in Region:
        own = [case for case in read if case.region == region.value]
        if len(own) >= 3:
            table[region.value] = {name: _compare(own, name) for name in QUANTITIES}
    return table


def _compare(cases: list[RegionCase], quantity: str) -> MethodComparison:
    truth, proposed, direct = (
        np.array([getattr(case, part)[quantity] for case in cases], np.float64)
        for part in ("truth", "prediction", "direct")
    )
    patients = np.array([case.subject for case in cases], np.int64)
    low, high = bootstrap_intervals(_gains, patients, truth, proposed, direct).T
    (r, rmse) = _gains(truth, proposed, direct)
    return MethodComparison(
        agreement(truth, proposed),
        agreement(truth, direct),
        (float(r), float(low[0]), float(high[0])),
        (float(rmse), float(low[1]), float(high[1])),
    )


def _gains(truth: Values, proposed: Values, direct: Values) -> Values:
    (r, rmse), (r_direct, rmse_direct) = r_and_rmse(truth, proposed), r_and_rmse(truth, direct)
    return np.array([r - r_direct, rmse_direct - rmse])


def draw_methods(path: Path, cases: Iterable[RegionCase], title: str) -> None:
    """Scatter both methods' areal BMD of total hip and neck, one row per method."""
    read = [case for case in cases if case.kind == "native" and not case.refused and case.direct]
    figure = Figure(figsize=(10, 10), layout="constrained")
    FigureCanvasAgg(figure)
    shown = (Region.TOTAL_HIP, Region.FEMORAL_NECK)
    for line, part, method in zip(figure.subplots(2, 2), ("prediction", "direct"), METHODS, strict=True):
        for axes, region in zip(line, shown, strict=True):
            own = [case for case in read if case.region == region.value]
            truth, read_values = (
                np.array([getattr(case, name)["areal_bmd_g_cm2"] for case in own]) for name in ("truth", part)
            )
            limits = (0.2, 1.6)
            axes.plot(limits, limits, color="0.6", lw=1)
            axes.scatter(truth, read_values, s=9, alpha=0.6)
            axes.set(xlim=limits, ylim=limits, xlabel="truth, g/cm²", ylabel="reading, g/cm²", aspect="equal")
            axes.set_title(f"{region.value.replace('_', ' ')}, {method}")
            axes.grid(alpha=0.25)
            if len(own) >= 3:
                r, rmse = r_and_rmse(truth, read_values)
                axes.text(
                    0.04, 0.96, f"n = {len(own)}\nr = {r:.3f}\nRMSE = {rmse:.3f}", transform=axes.transAxes, va="top"
                )
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
