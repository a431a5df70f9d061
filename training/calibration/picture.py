"""What a calibration rests on, as a picture for people: the rods in the CT, and the line through them."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from training.anatomy.ct import CtVolume
from training.calibration.detection import FoundRods, axial
from training.calibration.line import Calibration

WINDOW_HU = (-200.0, 400.0)


def draw_rods(ct: CtVolume, found: FoundRods, calibration: Calibration, diameter_mm: float, png: Path) -> None:
    """Draw the slice in the middle of the rods with their outlines, and CT value over mineral, into a PNG file."""
    hu, patient_from_grid, spacing_mm = axial(ct)
    ends = np.concatenate([found.ends_mm, np.ones((*found.ends_mm.shape[:2], 1))], axis=-1)
    middles_mm = (ends @ np.linalg.inv(patient_from_grid).T)[..., :3].mean(axis=1)  # grid mm
    level = round(float(middles_mm[0, 2] / spacing_mm[2]))
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    picture, line = figure.subplots(1, 2, width_ratios=(3, 2))
    width_mm, height_mm = hu.shape[2] * spacing_mm[0], hu.shape[1] * spacing_mm[1]
    extent = (
        -spacing_mm[0] / 2,
        width_mm - spacing_mm[0] / 2,
        height_mm - spacing_mm[1] / 2,
        -spacing_mm[1] / 2,
    )
    picture.imshow(hu[level], cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1], extent=extent)
    for point, (x_mm, y_mm, _) in zip(calibration.points, middles_mm, strict=True):
        picture.add_patch(Circle((x_mm, y_mm), diameter_mm / 2, fill=False, color="#e0a458"))
        beside = (x_mm, y_mm + 0.7 * diameter_mm)
        picture.annotate(point.label, beside, color="#e0a458", ha="center", va="top", fontsize=8, rotation=90)
    picture.set_title(f"{calibration.reference}, slice {level + 1} of {len(hu)} from the feet", loc="left", fontsize=10)
    picture.set_axis_off()
    mineral = np.array([float(point.reference_mg_cm3 or 0.0) for point in calibration.points])
    line.plot(mineral, [point.expected_hu for point in calibration.points], "_", color="#b0b7bd", markersize=18)
    line.plot(mineral, [point.measured_hu for point in calibration.points], "o", color="#1f6f8b")
    line.set_xlabel(f"mg/cm3 of {calibration.material}")
    line.set_ylabel("HU")
    line.set_title(
        f"slope {calibration.slope_hu_cm3_mg:.4f} HU per mg/cm3, intercept {calibration.intercept_hu:.2f} HU,"
        f" r {calibration.r:.6f}",
        loc="left",
        fontsize=10,
    )
    line.spines[["top", "right"]].set_visible(False)
    figure.savefig(png, dpi=100)
