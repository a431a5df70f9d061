"""Agreement statistics against worked answers."""

import numpy as np
import pytest

from training.statistics import agreement, conformal_half_width, intraclass_correlation


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
