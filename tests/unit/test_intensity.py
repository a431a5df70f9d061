"""The intensity transform forgets what a vendor chose freely."""

import numpy as np
import pytest

from dicomnode.inference.intensity import informative, standardise


@pytest.fixture
def picture() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (np.linspace(0, 1, 120)[:, None] + 0.05 * rng.standard_normal((120, 100))).astype(np.float32)


def test_gain_and_offset_of_the_grey_scale_do_not_matter(picture: np.ndarray) -> None:
    everywhere = np.ones(picture.shape, bool)
    assert standardise(4095 * picture + 77, everywhere) == pytest.approx(standardise(picture, everywhere), abs=1e-4)


def test_a_collimated_border_does_not_change_the_anatomy(picture: np.ndarray) -> None:
    inner = np.ones(picture.shape, bool)
    inner[:, 70:] = False
    outside = standardise(picture, inner)
    collimated = picture.copy()
    collimated[:, 70:] = 4.0
    masked = standardise(collimated, np.ones(picture.shape, bool))
    assert masked[0, :, 5:60] == pytest.approx(outside[0, :, 5:60], abs=0.02)
    assert not masked[1, :, 75:].any()


def test_saturated_metal_stays_bright_though_it_is_flat(picture: np.ndarray) -> None:
    picture[40:70, 40:70] = 1.5
    grey, mask = standardise(picture, np.ones(picture.shape, bool))
    assert not mask[50:60, 50:60].any()
    assert (grey[50:60, 50:60] > np.percentile(grey[mask > 0], 99)).all()


def test_what_lies_outside_the_image_is_zero_in_both_channels(picture: np.ndarray) -> None:
    inside = np.ones(picture.shape, bool)
    inside[90:] = False
    assert not standardise(picture, inside)[:, 90:].any()


def test_a_blank_image_gives_nothing_rather_than_noise() -> None:
    blank = np.full((64, 64), 7.0, np.float32)
    assert not informative(blank, np.ones(blank.shape, bool)).any()
    assert not standardise(blank, np.ones(blank.shape, bool)).any()
