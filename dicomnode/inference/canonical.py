"""Figures of the canonical (DXA) pose, as the decomposer states them: neck in the coronal plane, shaft upright, parallel rays.

The projected figure changes with the pose (Uemura 2023); what is reported and compared is that of the canonical pose.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from dicomnode.domain.measurement import Estimate, Region
from dicomnode.inference.channels import CANONICAL, REGIONS


class Method(StrEnum):
    """How a figure is read."""

    DECOMPOSITION = "decomposition"
    """From the hip decomposed into maps, by `network.CanonicalHead`."""
    REGRESSION = "direct regression"
    """Straight from the crop, by `network.Regressor`."""


@dataclass(frozen=True)
class CanonicalFigure:
    """One figure with what the network thinks of its own certainty."""

    value: float
    spread: float
    """Scale of the relative error; the prediction interval is a multiple of it that validation sets."""


CanonicalFigures = Mapping[Region, Mapping[str, CanonicalFigure]]
"""Region -> attribute of `domain.measurement.RegionMeasurement` -> figure."""


def canonical_figures(answer: NDArray[np.float32]) -> dict[Region, dict[str, CanonicalFigure]]:
    """Read a network's answer.

    Args:
        answer: (2, regions, quantities), see `network.CanonicalHead`.
    """
    values, spreads = np.exp(answer.astype(np.float64))
    table = {}
    for region, row, certainty in zip(REGIONS, values, spreads, strict=True):
        figures = {
            name: CanonicalFigure(float(value), float(spread))
            for (name, _), value, spread in zip(CANONICAL, row, certainty, strict=True)
        }
        density, area = figures["areal_bmd_g_cm2"], figures["area_cm2"]
        figures["bmc_g"] = CanonicalFigure(density.value * area.value, float(np.hypot(density.spread, area.spread)))
        table[region] = figures
    return table


def corrected(
    answer: NDArray[np.float32], corrections: NDArray[np.float32], departure: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The answer as of the usual technique.

    Args:
        answer: (2, regions, quantities), see `network.CanonicalHead`.
        corrections: (factors, regions, quantities) to add to the logarithms, per unit of each factor.
        departure: (factors,), see `technique.departures`.
    """
    shifted = answer.copy()
    shifted[0] += np.tensordot(departure, corrections, 1)
    return shifted


def combined(
    decomposed: NDArray[np.float32], regressed: NDArray[np.float32], share: NDArray[np.float32]
) -> NDArray[np.float32]:
    """One answer of two, (2, regions, quantities) each: their mean, in which the second weighs `share`, (regions, quantities).

    The two err apart: what one picture of the bone hides, the other network may still see (stacking: Wolpert 1992,
    doi:10.1016/S0893-6080(05)80023-1). Spreads are weighed alike; what they are worth, validation says.
    """
    return np.asarray((1 - share) * decomposed + share * regressed, np.float32)


def interval(figure: CanonicalFigure, multiple: float | None) -> Estimate:
    """The figure with its prediction interval, symmetric in the logarithm.

    Args:
        multiple: of the figure's spread (normalised split-conformal: Lei et al. 2018, doi:10.1080/01621459.2017.1307116,
            section 5.2); None where the bundle holds no calibration.
    """
    if multiple is None:
        return Estimate(figure.value)
    factor = float(np.exp(multiple * figure.spread))
    return Estimate(figure.value, figure.value / factor, figure.value * factor)
