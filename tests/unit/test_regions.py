"""Figures and contours of regions, against shapes whose answers are known."""

import numpy as np
import pytest

from dicomnode.domain.measurement import Region
from dicomnode.domain.radiograph import Side
from dicomnode.inference import frame, regions
from dicomnode.inference.frame import Label


def test_density_is_mass_over_area_and_volume() -> None:
    mask = np.zeros((frame.ROWS, frame.COLUMNS), bool)
    mask[10:30, 20:60] = True  # 800 pixels of 0.0049 cm2
    density = np.where(mask, 0.9, 5.0).astype(np.float32)
    path = np.full(mask.shape, 3.0, np.float32)
    figures = regions.figures(mask, density, path)
    assert figures is not None
    assert figures.area_cm2 == pytest.approx(3.92)
    assert figures.areal_bmd_g_cm2 == pytest.approx(0.9)
    assert figures.bmc_g == pytest.approx(3.528)
    assert figures.volumetric_bmd_mg_cm3 == pytest.approx(300)


def test_an_empty_region_has_no_figures_and_no_contour() -> None:
    empty = np.zeros((4, 4), bool)
    assert regions.figures(empty, np.ones((4, 4), np.float32), np.ones((4, 4), np.float32)) is None
    assert regions.contour(empty, np.eye(3)) is None


def test_total_hip_is_neck_trochanter_and_intertrochanter_without_head_and_shaft() -> None:
    labels = np.zeros((60, 60), np.uint8)
    for number, label in enumerate(Label):
        labels[10 * number : 10 * number + 10, 5:50] = label
    total = regions.region_mask(labels, Region.TOTAL_HIP)
    assert total[20:50, 5:50].all() and total.sum() == 30 * 45


def test_only_the_largest_part_counts_and_holes_are_filled() -> None:
    labels = np.zeros((80, 80), np.uint8)
    labels[10:50, 10:50] = Label.NECK
    labels[30, 30] = Label.BACKGROUND
    labels[70:74, 70:74] = Label.NECK
    mask = regions.region_mask(labels, Region.FEMORAL_NECK)
    assert mask[30, 30] and mask.sum() == 1600


@pytest.mark.parametrize("side", list(Side))
def test_a_contour_is_closed_and_encloses_the_region_s_area_on_the_radiograph(side: Side) -> None:
    rows, columns = np.indices((frame.ROWS, frame.COLUMNS))
    disc = (rows - 120) ** 2 + (columns - 90) ** 2 < 50**2
    matrix = frame.image_from_frame((700, 500), side, (0.2, 0.25))
    line = regions.contour(disc, matrix)
    assert line is not None and len(line) <= 201
    assert line[0] == pytest.approx(line[-1])
    x, y = line.T.astype(float)
    area_mm2 = 0.5 * abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) * 0.2 * 0.25
    assert area_mm2 == pytest.approx(disc.sum() * frame.SPACING_MM**2, rel=0.01)
    centre = matrix @ (90.5, 120.5, 1)
    assert line[:-1].mean(0) == pytest.approx(centre[:2], abs=1.0)
