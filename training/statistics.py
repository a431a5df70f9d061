"""Agreement statistics, as the field prints them. Arguments are (n,) arrays in one unit."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

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


def share_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.

    Raises:
        ValueError: no cases.
    """
    low, high = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(low), float(high)


def bootstrap_intervals(
    statistic: Callable[..., Values],
    patients: NDArray[np.int64],
    *values: Values,
    confidence: float = 0.95,
    repeats: int = 1000,
    seed: int = 0,
) -> Values:
    """Percentile intervals of statistics by drawing patients, with all of their cases, with replacement.

    Both hips of a patient are alike, so that drawing hips would make the intervals too narrow.

    Source: Efron and Tibshirani 1993, chapter 13; by patient: Field and Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x.

    Args:
        statistic: (m,) arrays, one for each of `values`, to the (k,) statistics of these m cases.
        patients: (n,) number of the patient of each case.
        values: (n,) each.

    Returns:
        (k, 2) lower and upper ends; draws in which a statistic is not defined are left out.
    """
    _, places = np.unique(patients, return_inverse=True)
    by_patient, counts = np.argsort(places, kind="stable"), np.bincount(places)
    firsts = np.cumsum(counts) - counts
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(repeats):
        patients_drawn = rng.integers(0, counts.size, counts.size)
        sizes = counts[patients_drawn]
        # All cases of each patient drawn: their first case's place, and so many on.
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        chosen = by_patient[np.repeat(firsts[patients_drawn], sizes) + within]
        drawn.append(statistic(*(value[chosen] for value in values)))
    tail = 50 * (1 - confidence)
    return np.asarray(np.nanpercentile(np.array(drawn, np.float64), (tail, 100 - tail), axis=0).T, np.float64)


def r_and_rmse(truth: Values, prediction: Values) -> Values:
    """Pearson's r (NaN where one side does not vary) and root mean square error, for `bootstrap_intervals`."""
    varies = np.ptp(truth) > 0 and np.ptp(prediction) > 0
    r = np.corrcoef(truth, prediction)[0, 1] if varies else np.nan
    return np.array([r, np.sqrt(((prediction - truth) ** 2).mean())])


def area_under_curve(is_case: NDArray[np.bool_], score: Values) -> float:
    """Area under the ROC curve: how probably a case scores higher than a control; ties count half. NaN without either.

    Source: Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747 (the Wilcoxon statistic).
    """
    cases, controls = int(is_case.sum()), int((~is_case).sum())
    if cases == 0 or controls == 0:
        return float("nan")
    ranks = stats.rankdata(score)
    return float((ranks[is_case].sum() - cases * (cases + 1) / 2) / (cases * controls))


@dataclass(frozen=True)
class Precision:
    """How far repeated measurements of the same person lie apart."""

    persons: int
    degrees_of_freedom: int
    rms_sd: float
    """In the quantity's unit."""
    rms_cv_percent: float
    rms_cv_percent_interval: tuple[float, float]
    """95 %, from the chi-squared distribution of the pooled variance."""
    lsc_percent: float
    """Least significant change: a difference of two measurements that 95 % of unchanged persons stay below."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


LSC_FACTOR = 2.77
"""1.96 times the root of 2. Source: ISCD Official Positions (Adult) 2023, precision assessment."""


def precision(persons: Sequence[Values]) -> Precision:
    """Short-term precision error over persons, each measured twice or more often.

    Source: Glueer 1995, doi:10.1007/BF01774016: root mean square over persons, degrees of freedom and interval.

    Raises:
        ValueError: nobody was measured twice.
    """
    repeated = [np.asarray(values, np.float64) for values in persons if len(values) >= 2]
    if not repeated:
        raise ValueError(f"none of {len(persons)} persons has two measurements: precision cannot be had")
    free = np.array([len(values) - 1 for values in repeated])
    sd = np.array([values.std(ddof=1) for values in repeated])
    cv = 100 * sd / np.array([values.mean() for values in repeated])
    # Weighted by degrees of freedom, which is the plain root mean square where all have the same number of measurements.
    rms_sd, rms_cv = (float(np.sqrt((free * one**2).sum() / free.sum())) for one in (sd, cv))
    low, high = (rms_cv * np.sqrt(free.sum() / stats.chi2.ppf(tail, free.sum())) for tail in (0.975, 0.025))
    return Precision(
        persons=len(repeated),
        degrees_of_freedom=int(free.sum()),
        rms_sd=rms_sd,
        rms_cv_percent=rms_cv,
        rms_cv_percent_interval=(float(low), float(high)),
        lsc_percent=LSC_FACTOR * rms_cv,
    )
