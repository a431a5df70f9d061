"""Agreement statistics, as the field prints them. Arguments are (n,) arrays in one unit."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """How a prediction agrees with the truth over n cases."""

    n: int
    pearson_r: float
    icc: float
    """ICC(2,1): two-way random, absolute agreement, single measurement (Shrout and Fleiss 1979, doi:10.1037/0033-2909.86.2.420)."""
    slope: float
    """Of truth regressed on prediction: 1 is calibrated."""
    see: float
    """Standard error of the estimate of that regression."""
    rmse: float
    mae: float
    bias: float
    """Mean of prediction minus truth."""
    limits_of_agreement: tuple[float, float]
    """Bias -+ 1.96 SD of the differences (Bland and Altman 1986, doi:10.1016/S0140-6736(86)90837-8)."""
    truth_mean: float
    truth_sd: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def agreement(truth: Values, prediction: Values) -> Agreement:
    """Compare predictions with truth.

    Raises:
        ValueError: fewer than three cases, or arrays of different length.
    """
    if truth.shape != prediction.shape or truth.size < 3:
        raise ValueError(f"seen {truth.shape} and {prediction.shape}, expected equal lengths of at least 3")
    difference = prediction - truth
    slope, offset = np.polyfit(prediction, truth, 1)
    residual = truth - (slope * prediction + offset)
    spread = 1.96 * difference.std(ddof=1)
    return Agreement(
        n=truth.size,
        pearson_r=float(np.corrcoef(truth, prediction)[0, 1]),
        icc=intraclass_correlation(truth, prediction),
        slope=float(slope),
        see=float(np.sqrt((residual**2).sum() / (truth.size - 2))),
        rmse=float(np.sqrt((difference**2).mean())),
        mae=float(np.abs(difference).mean()),
        bias=float(difference.mean()),
        limits_of_agreement=(float(difference.mean() - spread), float(difference.mean() + spread)),
        truth_mean=float(truth.mean()),
        truth_sd=float(truth.std(ddof=1)),
    )


def intraclass_correlation(first: Values, second: Values) -> float:
    """ICC(2,1) of two raters, from the two-way analysis of variance."""
    table = np.stack([first, second], 1)
    n, k = table.shape
    grand = table.mean()
    between_cases = k * ((table.mean(1) - grand) ** 2).sum() / (n - 1)
    between_raters = n * ((table.mean(0) - grand) ** 2).sum() / (k - 1)
    error = ((table - table.mean(1, keepdims=True) - table.mean(0) + grand) ** 2).sum() / ((n - 1) * (k - 1))
    return float((between_cases - error) / (between_cases + (k - 1) * error + k * (between_raters - error) / n))


def conformal_half_width(errors: Values, coverage: float = 0.9) -> float:
    """Half width of the split-conformal interval that covers a new case with at least `coverage`.

    Source: Lei et al. 2018, doi:10.1080/01621459.2017.1307116, algorithm 2.
    """
    n = errors.size
    rank = int(np.ceil((n + 1) * coverage))
    if rank > n:
        needed = int(np.ceil(coverage / (1 - coverage)))
        raise ValueError(
            f"{n} calibration cases are too few for a coverage of {coverage}; at least {needed} are needed"
        )
    return float(np.sort(np.abs(errors))[rank - 1])
