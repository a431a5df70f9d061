"""The measurement frame: where a hip's pixels come from."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.domain.radiograph import Side
from dicomnode.inference import frame


def test_the_head_lies_at_its_place_in_the_frame_for_both_sides() -> None:
    for side in Side:
        matrix = frame.image_from_frame((300.25, 410.75), side, (0.2, 0.25))
        assert matrix @ (frame.HEAD_COLUMN + 0.5, frame.HEAD_ROW + 0.5, 1) == pytest.approx((300.25, 410.75, 1))


def test_lateral_is_at_the_left_of_the_frame_so_left_hips_are_mirrored() -> None:
    lateral_in_frame = (frame.HEAD_COLUMN + 0.5 - 10, frame.HEAD_ROW + 0.5, 1)
    right = frame.image_from_frame((0, 0), Side.RIGHT, (0.7, 0.7)) @ lateral_in_frame
    left = frame.image_from_frame((0, 0), Side.LEFT, (0.7, 0.7)) @ lateral_in_frame
    assert right[0] == pytest.approx(-10) and left[0] == pytest.approx(10)


def test_resampling_keeps_a_linear_ramp_and_says_what_lies_outside() -> None:
    rows, columns = np.indices((60, 80), dtype=np.float32)
    ramp = 2 * columns + 3 * rows
    matrix = np.array([[2.0, 0, 10.0], [0, 2.0, 6.0], [0, 0, 1.0]])
    out, inside = frame.resample(ramp, matrix, (20, 40))
    expected = 2 * (2 * (np.arange(40) + 0.5) + 10 - 0.5)[None] + 3 * (2 * (np.arange(20) + 0.5) + 6 - 0.5)[:, None]
    middle = np.s_[3:-3, 3:30]
    assert out[middle] == pytest.approx(expected[middle], abs=1e-3)
    assert inside[:, :35].all() and not inside[:, 35:].any()


def test_downsampling_keeps_the_mean_of_a_fine_texture() -> None:
    texture = np.random.default_rng(0).standard_normal((400, 400)).astype(np.float32) + 5
    out, _ = frame.resample(texture, np.diag([8.0, 8.0, 1.0]), (50, 50))
    assert out.mean() == pytest.approx(5, abs=0.02)
    assert out.std() < 0.2  # without smoothing it would stay near 1


def test_what_a_part_of_an_image_looks_like_does_not_depend_on_how_much_of_it_is_smoothed() -> None:
    image = np.random.default_rng(0).random((500, 400)).astype(np.float32)
    matrix = np.array([[-3.0, 0, 390.0], [0, 5.0, 40.0], [0, 0, 1.0]])
    sd = np.sqrt((0.5 * np.array([5.0, 3.0])) ** 2 - 0.25)
    whole = ndimage.gaussian_filter(image, sd, mode="nearest", truncate=3.0)
    rows, columns = np.meshgrid(5.0 * np.arange(20) + 42.0, 388.0 - 3.0 * np.arange(30), indexing="ij")
    expected = ndimage.map_coordinates(whole, (rows, columns), order=1)
    out, inside = frame.resample(image, matrix, (20, 30))
    assert inside.all()
    assert out == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("corner", [(-900.0, 10.0), (10.0, 900.0)])
def test_a_target_wholly_beside_the_image_sees_its_border(corner: tuple[float, float]) -> None:
    image = np.full((60, 50), 7.0, np.float32)
    out, inside = frame.resample(image, np.array([[4.0, 0, corner[0]], [0, 4.0, corner[1]], [0, 0, 1.0]]), (8, 8))
    assert not inside.any() and (out == 7).all()


@pytest.mark.parametrize(("shape", "windows"), [((430, 430), 1), ((448, 448), 1), ((1200, 430), 4)])
def test_overviews_cover_the_whole_radiograph(shape: tuple[int, int], windows: int) -> None:
    matrices = frame.overview_windows(shape, (1.0, 1.0))
    assert len(matrices) == windows
    covered = np.zeros(shape, bool)
    for matrix in matrices:
        x0, y0, _ = matrix @ (0, 0, 1)
        x1, y1, _ = matrix @ (frame.LOCATOR_SIZE, frame.LOCATOR_SIZE, 1)
        covered[max(0, int(np.ceil(y0))) : int(y1), max(0, int(np.ceil(x0))) : int(x1)] = True
    assert covered.all()


@pytest.mark.parametrize("side", list(Side))
def test_the_frame_turns_about_the_femoral_head_and_moves_by_its_own_pixels(side: Side) -> None:
    """On pixels half as large as the frame's, of which a dot is a Gaussian: the head's stays, the other's turns about it."""
    spacing_mm = (frame.SPACING_MM / 2, frame.SPACING_MM / 2)
    rows, columns = np.indices((700, 800)) + 0.5
    lateral = -1 if side is Side.RIGHT else 1

    def dot(column: float, row: float) -> NDArray[np.float32]:
        return np.asarray(np.exp(-((columns - column) ** 2 + (rows - row) ** 2) / 50), np.float32)

    head, shaft = (400.0, 300.0), (400.0 + lateral * 80, 460.0)
    placed = frame.image_from_frame(head, side, spacing_mm)

    def seen(dot_px: tuple[float, float], *view: object) -> tuple[float, float]:
        picture, inside = frame.cut(frame.FramedHip(dot(*dot_px), placed), *view)  # type: ignore[arg-type]
        assert inside.all()
        row, column = ndimage.center_of_mass(picture)
        return column - frame.HEAD_COLUMN, row - frame.HEAD_ROW

    assert seen(head, 4.0) == pytest.approx((0, 0), abs=0.01)
    assert seen(shaft) == pytest.approx((-40, 80), abs=0.01)
    angle = np.radians(4.0)
    turned = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) @ (-40, 80)
    assert seen(shaft, 4.0) == pytest.approx(tuple(turned), abs=0.02)
    assert seen(head, 0.0, (2.0, -3.0)) == pytest.approx((-2, 3), abs=0.01)


def test_what_is_no_radiograph_is_not_inside_the_frame() -> None:
    inside = np.ones((400, 400), bool)
    inside[220:] = False
    placed = frame.image_from_frame((200.0, 150.0), Side.RIGHT, (frame.SPACING_MM, frame.SPACING_MM))
    _, within = frame.cut(frame.FramedHip(np.zeros((400, 400), np.float32), placed, inside=inside))
    first = frame.HEAD_ROW + 70
    assert within[:first].all() and not within[first:].any()
