"""Slices with contours, and predicted over true Dice, for people to look at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from training.anatomy.ct import CtVolume
from training.segmentation.evaluate import Case
from training.segmentation.structures import FIRST_MUSCLE, MUSCLE_NAMES, NAMES

WINDOW_HU = (-200.0, 700.0)
COLOURS = {1: "#e4572e", 2: "#f3a712", 3: "#29b6c5", 4: "#4f8ef7", 5: "#c8e35a"}
MUSCLE_COLOURS = ("#ff9da7", "#b07aa1", "#9c755f", "#76b7b2", "#59a14f", "#edc948", "#d37295")
"""By `Muscle`, either side."""


def draw_slices(
    ct: CtVolume, values: NDArray[np.uint16], png: Path, reference: NDArray[np.uint16] | None = None
) -> None:
    """Draw axial and coronal slices through what was found: found as lines, a reference dotted in white."""
    found = np.argwhere((values > 0) | (reference > 0 if reference is not None else False))
    low, high = found.min(axis=0), found.max(axis=0)
    shown = [int(value) for value in np.unique(values) if value]
    spacing_mm = np.linalg.norm(ct.patient_from_voxel[:3, :3], axis=0)
    # Displayed as a reader sees it: the patient's right on the left, front and head up.
    directions = np.sign(np.diag(ct.patient_from_voxel))[:3]
    figure = Figure(figsize=(20, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (row, across) in enumerate(((0, (1, 2)), (1, (0, 2)))):
        levels = np.linspace(low[row], high[row], 7).round().astype(int)[1:-1]
        panels = figure.subplots(2, 5, squeeze=False)[axis] if axis == 0 else figure.axes[5:10]
        for panel, level in zip(panels, levels, strict=True):
            place: tuple[int | slice, ...] = tuple(level if n == row else slice(None) for n in range(3))
            _draw(panel, ct.hu[place], values[place], None if reference is None else reference[place])
            panel.set_aspect(float(spacing_mm[2 - across[0]] / spacing_mm[2 - across[1]]))
            if directions[0] < 0:
                panel.invert_xaxis()
            upright = directions[1] > 0 if row == 0 else directions[2] < 0
            if not upright:
                panel.invert_yaxis()
    marks = [Line2D([], [], color=_colour(value)) for value in shown]
    names = [(NAMES | MUSCLE_NAMES)[value].replace("_", " ") for value in shown]
    if reference is not None:
        marks, names = [*marks, Line2D([], [], color="white", linestyle="dotted")], [*names, "reference"]
    figure.legend(marks, names, loc="outside lower center", ncols=10, facecolor="#333333", labelcolor="white")
    figure.savefig(png, dpi=75)


def _colour(value: int) -> str:
    return COLOURS[value] if value in COLOURS else MUSCLE_COLOURS[(value - FIRST_MUSCLE) % len(MUSCLE_COLOURS)]


def _draw(
    panel: Axes, hu: NDArray[np.float32], values: NDArray[np.uint16], reference: NDArray[np.uint16] | None
) -> None:
    panel.imshow(hu, cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1])
    if reference is not None:
        for value in np.unique(reference[reference > 0]):
            panel.contour(reference == value, levels=[0.5], colors="white", linewidths=0.8, linestyles="dotted")
    for value in np.unique(values[values > 0]):
        panel.contour(values == value, levels=[0.5], colors=_colour(int(value)), linewidths=1.0)
    panel.set_axis_off()


def draw_warning(cases: Sequence[Case], least_dice: float, png: Path) -> None:
    """Draw the true Dice over the uncertainty and over the predicted Dice, one mark per structure."""
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for spoil in dict.fromkeys(case.spoil for case in cases):
        own = [case for case in cases if case.spoil == spoil]
        dice = [case.dice for case in own]
        left.plot([max(case.uncertainty, 1e-6) for case in own], dice, "o", markersize=4, alpha=0.7, label=spoil)
        right.plot([case.predicted_dice for case in own], dice, "o", markersize=4, alpha=0.7)
    left.set_xscale("log")
    left.set_xlabel("uncertainty (variance per expected voxel)")
    right.set_xlabel("predicted Dice")
    right.axvline(least_dice, color="#b0b7bd", linewidth=1)
    right.plot([0, 1], [0, 1], color="#b0b7bd", linewidth=1)
    for panel in (left, right):
        panel.set_ylabel("true Dice (simulated CT)")
        panel.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.savefig(png, dpi=90)
