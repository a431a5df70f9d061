"""Whether a pose was found or missed, told from the registration itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize


@dataclass(frozen=True)
class Evidence:
    """What tells a pose that was found from one that was missed.

    Likenesses are `PatchCorrelation` on the middle grid, where noise counts least; the maker's
    processing moves them still (0.69 to 0.95 at poses that were found, simulated).
    """

    similarity: float
    """At the pose."""
    mean_fall: float
    """How much lower it is one probing step away, mean over both directions of the six parameters of the pelvis."""
    least_fall: float
    """The least of these; negative where the pose is no maximum."""
    spread_mm: float
    """Mean projection distance between where the two best searches ended."""


@dataclass(frozen=True)
class Rule:
    """A logistic regression on `features`."""

    weights: tuple[float, ...]
    offset: float

    def confidence(self, evidence: Evidence) -> float:
        """0..1, that the mean projection distance is below 1 mm."""
        return float(1 / (1 + np.exp(-(features(evidence) @ np.array(self.weights) + self.offset))))


SHIPPED = Rule(weights=(2.294, 0.673, 1.759, 0.388), offset=-7.332)
"""Of `fit` on 270 registrations to simulated radiographs, 199 of them found (`benchmarks.registering`). Calibrate a rule of your
own on radiographs whose pose is known: two volumes, and no patient, are behind this one."""
LEAST_CONFIDENCE = 0.5


def features(evidence: Evidence) -> NDArray[np.float64]:
    """(4,) likeness, sharpness of the maximum, whether it is one, agreement of searches; each of the order of 1."""
    return np.array(
        [
            5.0 * evidence.similarity,
            10.0 * evidence.mean_fall,
            50.0 * min(evidence.least_fall, 0.0),
            -np.log10(evidence.spread_mm + 0.1),
        ]
    )


def fit(evidence: Sequence[Evidence], succeeded: Sequence[bool], penalty: float = 0.02) -> Rule:
    """Calibrate a rule on registrations whose outcome is known.

    Maximum likelihood with a small penalty on the squared weights, without which a perfect separation has no end.
    """
    seen, wanted = np.stack([features(one) for one in evidence]), np.array(succeeded, np.float64)

    def loss(parameters: NDArray[np.float64]) -> float:
        score = seen @ parameters[:-1] + parameters[-1]
        return float(np.mean(np.logaddexp(0, score) - wanted * score) + penalty * np.mean(parameters[:-1] ** 2))

    *weights, offset = minimize(loss, np.zeros(seen.shape[1] + 1)).x
    return Rule(tuple(float(weight) for weight in weights), float(offset))


def failure(evidence: Evidence, confidence: float) -> str | None:
    """Why a pose is not to be used; None where it is."""
    if confidence >= LEAST_CONFIDENCE:
        return None
    if evidence.spread_mm > 2.0:
        return f"the two best searches ended {evidence.spread_mm:.1f} mm apart: give a start that is nearer, or search longer"
    if evidence.least_fall < 0:
        return "the pose is no maximum of the likeness: search longer"
    return (
        f"radiograph and projection are alike by {evidence.similarity:.2f} only: another patient, an operation between"
        " both, or a field that the CT does not cover"
    )
