"""From uncertainty to Dice: a falling line through validation cases, and figures of how well it warns."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats


@dataclass(frozen=True)
class QualityLine:
    """Predicted Dice over uncertainty: falling, linear between knots, level beyond them."""

    uncertainty: tuple[float, ...]
    predicted_dice: tuple[float, ...]

    def dice(self, uncertainty: float) -> float:
        """Dice to be expected at this uncertainty."""
        return float(np.interp(uncertainty, self.uncertainty, self.predicted_dice))


def fit_quality(uncertainty: Sequence[float], dice: Sequence[float]) -> QualityLine:
    """Fit by isotonic least squares: Dice may only fall as uncertainty grows.

    Source: Hiasa 2019, doi:10.1109/TMI.2019.2940555 (Dice is predicted from the uncertainty); the falling step function in
    place of their line is an own choice.
    """
    order = np.argsort(uncertainty, kind="stable")
    x, y = np.asarray(uncertainty, float)[order], np.asarray(dice, float)[order]
    blocks = optimize.isotonic_regression(y, increasing=False).blocks
    middles = [float(x[a:b].mean()) for a, b in pairwise(blocks)]
    levels = [float(y[a:b].mean()) for a, b in pairwise(blocks)]
    return QualityLine(tuple(middles), tuple(levels))


def dice_coefficient(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Twice the overlap over the sum of both; 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * float((first & second).sum()) / total if total else 1.0


def auroc(score: Sequence[float], is_failure: Sequence[bool]) -> float | None:
    """Chance that a failure has the greater score than a success, ties half (Mann-Whitney); None without either."""
    ranks, failed = stats.rankdata(score), np.asarray(is_failure, bool)
    n, m = int(failed.sum()), int((~failed).sum())
    if n == 0 or m == 0:
        return None
    return float((ranks[failed].sum() - n * (n + 1) / 2) / (n * m))
