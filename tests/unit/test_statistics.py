"""Agreement statistics against worked answers."""

import numpy as np
import pytest
from scipy import stats

from training.statistics import (
    agreement,
    area_under_curve,
    bootstrap_intervals,
    conformal_half_width,
    intraclass_correlation,
    precision,
    r_and_rmse,
    share_interval,
)


def test_perfect_agreement_is_one_without_bias() -> None:
    truth = np.array([0.5, 0.7, 0.9, 1.1])
    result = agreement(truth, truth)
    assert result.pearson_r == pytest.approx(1) and result.icc == pytest.approx(1)
    assert result.slope == pytest.approx(1)
    assert result.bias == 0 and result.rmse == 0


def test_a_constant_offset_is_a_bias_that_pearson_does_not_see_and_icc_does() -> None:
    truth = np.linspace(0.5, 1.1, 20)
    result = agreement(truth, truth + 0.2)
    assert result.pearson_r == pytest.approx(1)
    assert result.bias == pytest.approx(0.2)
    assert result.icc < 0.7


def test_icc_matches_the_worked_example_of_shrout_and_fleiss() -> None:
    # Table 2 of Shrout and Fleiss 1979, first two judges; ICC(2,1) by hand from its sums of squares.
    first = np.array([9.0, 6, 8, 7, 10, 6])
    second = np.array([2.0, 1, 4, 1, 5, 2])
    cases = (first + second) / 2
    grand = cases.mean()
    ms_rows = 2 * ((cases - grand) ** 2).sum() / 5
    ms_columns = 6 * ((first.mean() - grand) ** 2 + (second.mean() - grand) ** 2)
    residual = np.concatenate([first - cases - first.mean() + grand, second - cases - second.mean() + grand])
    ms_error = (residual**2).sum() / 5
    expected = (ms_rows - ms_error) / (ms_rows + ms_error + 2 * (ms_columns - ms_error) / 6)
    assert intraclass_correlation(first, second) == pytest.approx(expected)


def test_conformal_intervals_cover_new_cases_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    covered = [
        np.mean(np.abs(rng.standard_normal(2000)) <= conformal_half_width(rng.standard_normal(200))) for _ in range(50)
    ]
    assert np.mean(covered) == pytest.approx(0.9, abs=0.015)


def test_too_few_calibration_cases_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        conformal_half_width(np.zeros(5))


def test_the_interval_of_a_share_is_the_score_interval_written_out() -> None:
    k, n, z = 7, 50, stats.norm.ppf(0.975)
    p = k / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert share_interval(k, n) == pytest.approx((centre - half, centre + half))


def test_none_refused_of_n_still_leaves_an_upper_end_that_shrinks_with_n() -> None:
    few, many = share_interval(0, 20), share_interval(0, 200)
    z2 = stats.norm.ppf(0.975) ** 2
    assert few[0] == 0 and few[1] == pytest.approx(z2 / (20 + z2))
    assert many[1] == pytest.approx(z2 / (200 + z2))


def test_with_one_case_per_patient_the_bootstrap_agrees_with_scipy() -> None:
    rng = np.random.default_rng(4)
    truth = rng.normal(0.8, 0.15, 80)
    prediction = truth + rng.normal(0, 0.07, 80)
    own = bootstrap_intervals(r_and_rmse, np.arange(80), truth, prediction, repeats=4000)
    for statistic, ends in zip((0, 1), own, strict=True):
        other = stats.bootstrap(
            (truth, prediction),
            lambda x, y, statistic=statistic: r_and_rmse(x, y)[statistic],
            paired=True,
            vectorized=False,
            n_resamples=4000,
            method="percentile",
            rng=np.random.default_rng(5),
        ).confidence_interval
        width = other.high - other.low
        assert ends == pytest.approx((other.low, other.high), abs=0.1 * width)


def test_two_equal_hips_per_patient_say_no_more_than_one() -> None:
    rng = np.random.default_rng(4)
    error = rng.normal(0, 0.07, 60)
    mean = bootstrap_intervals(lambda e: np.array([e.mean()]), np.arange(60), error)
    doubled = bootstrap_intervals(lambda e: np.array([e.mean()]), np.repeat(np.arange(60), 2), np.repeat(error, 2))
    assert doubled == pytest.approx(mean)
    assert np.ptp(mean) == pytest.approx(2 * 1.96 * error.std() / np.sqrt(60), rel=0.1)  # normal theory


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order() -> None:
    is_case = np.array([True, True, False, False, False])
    score = np.array([3.0, 1.0, 2.0, 1.0, 0.0])
    # Pairs of case and control: 3 beats 2, 1, 0; 1 loses to 2, ties with 1, beats 0.
    assert area_under_curve(is_case, score) == pytest.approx((3 + 0 + 0.5 + 1) / 6)
    assert np.isnan(area_under_curve(np.ones(3, bool), np.arange(3.0)))


def test_the_area_under_the_curve_is_that_of_two_normal_distributions() -> None:
    rng = np.random.default_rng(1)
    is_case = np.arange(20000) % 2 == 0
    score = rng.normal(0, 1, 20000) + is_case
    assert area_under_curve(is_case, score) == pytest.approx(stats.norm.cdf(1 / np.sqrt(2)), abs=0.01)


def test_precision_of_two_measurements_is_their_difference_over_root_two() -> None:
    result = precision([np.array([0.98, 1.02]), np.array([0.49, 0.51])])
    cv = 100 * 0.04 / np.sqrt(2)
    assert result.rms_cv_percent == pytest.approx(cv)
    assert result.lsc_percent == pytest.approx(2.77 * cv)
    assert result.rms_sd == pytest.approx(np.sqrt((0.04**2 + 0.02**2) / 4))
    assert (result.persons, result.degrees_of_freedom) == (2, 2)


def test_the_interval_of_a_precision_holds_the_spread_that_was_drawn_in_nineteen_of_twenty() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        low, high = precision(list(rng.normal(1, 0.02, (12, 5)))).rms_cv_percent_interval
        held += low <= 2.0 <= high
    assert held / 400 == pytest.approx(0.95, abs=0.03)


def test_a_person_measured_once_says_nothing_of_precision() -> None:
    assert precision([np.array([1.0, 1.1]), np.array([5.0])]).persons == 1
    with pytest.raises(ValueError, match="two measurements"):
        precision([np.array([1.0]), np.array([2.0])])
