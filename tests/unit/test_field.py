"""The exposed field from what looks exposed."""

import numpy as np
import pytest

from dicomnode.inference.field import exposed_field

SHAPE = (256, 192)
INSIDE = np.ones(SHAPE, bool)


@pytest.mark.parametrize(
    "field",
    [
        np.s_[:, :],
        np.s_[:150, :],
        np.s_[20:200, 30:170],
        np.s_[249:, 185:],
    ],
)
def test_a_rectangle_is_left_as_it_is(field: tuple[slice, slice]) -> None:
    seen = np.zeros(SHAPE, bool)
    seen[field] = True
    np.testing.assert_array_equal(exposed_field(seen, INSIDE), seen)


def test_holes_and_dents_are_filled_and_specks_beyond_the_border_do_not_count() -> None:
    rectangle = np.zeros(SHAPE, bool)
    rectangle[:180] = True
    seen = rectangle.copy()
    seen[100:110, 90:95] = False  # a doubted patch
    seen[60:140, :9] = False  # burnt skin at the side
    seen[220:224, 100:110] = True  # noise of the shutter
    np.testing.assert_array_equal(exposed_field(seen, INSIDE), rectangle)


def test_a_slanting_shutter_stays_slanting() -> None:
    rows, columns = np.indices(SHAPE)
    seen = rows + 0.5 * columns < 220
    found = exposed_field(seen, INSIDE)
    assert not (found & ~seen).any()
    assert (seen & ~found).sum() < 60  # the two sharp corners, rounded


def test_nothing_lies_beyond_the_image_and_nothing_exposed_is_no_field() -> None:
    inside = INSIDE.copy()
    inside[:, 150:] = False
    assert not (exposed_field(INSIDE, inside) & ~inside).any()
    assert not exposed_field(np.zeros(SHAPE, bool), INSIDE).any()
    specks = np.zeros(SHAPE, bool)
    specks[::9, ::9] = True
    assert not exposed_field(specks, INSIDE).any()
