"""The muscles as pictures for people: slices through the partition, what the network answers, and how it agrees."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.anatomy.muscles import Muscle, Muscles
from training.muscles.evaluate import LEAST_SHARE, VARIANTS, Case, selected

COLOURS = ("#d1495b", "#3c78b4", "#5aa469", "#8e5fa2", "#e0823d", "#d8c43a", "#8c5a3c")
_AXIAL_MM = (160, 120, 90, 60, 30, 0, -30, -70, -110, -170, -250)
_CORONAL_MM = (-40, -5, 30, 60)
_SAGITTAL_MM = (130, 105, 75)


def draw_partition(muscles: Muscles, bone: NDArray[np.float32], png: Path) -> None:
    """Draw axial, coronal and sagittal slices: muscles in colour over the lean tissue, bones white.

    Args:
        bone: (z, y, x) share of bone on the muscles' grid.
    """
    volume = np.repeat((muscles.lean / max(float(muscles.lean.max()), 1e-6))[..., None], 3, axis=3) * 0.6
    for muscle, colour in zip(Muscle, COLOURS, strict=True):
        own = (muscles.labels > 0) & ((muscles.labels - 1) % len(Muscle) == muscle)
        volume[own] = 0.5 * volume[own] + 0.5 * np.array(to_rgb(colour))
    volume = volume * (1 - bone[..., None]) + bone[..., None]
    figure = Figure(figsize=(22, 13), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(3, 6).ravel())
    matrix, voxel = muscles.patient_from_voxel, float(muscles.patient_from_voxel[0, 0])
    planes = [(0, z, f"axial, z {z} mm") for z in _AXIAL_MM]
    planes += [(1, y, f"coronal, y {y} mm") for y in _CORONAL_MM]
    planes += [(2, x, f"sagittal, x {x} mm (front at the left)") for x in _SAGITTAL_MM]
    for panel, (axis, place, title) in zip(panels, planes, strict=True):
        index = round((place - matrix[2 - axis, 3]) / voxel)
        image = np.take(volume, int(np.clip(index, 0, volume.shape[axis] - 1)), axis)
        panel.imshow(image if axis == 0 else image[::-1])
        panel.set_title(title, fontsize=9)
        panel.set_axis_off()
    names = "   ".join(f"{m.name.lower().replace('_', ' ')}: {c}" for m, c in zip(Muscle, COLOURS, strict=True))
    figure.suptitle(names, fontsize=9)
    figure.savefig(png, dpi=60)


def draw_agreement(cases: Sequence[Case], png: Path) -> None:
    """Draw predicted over true lean mass in the field, one panel per muscle."""
    figure = Figure(figsize=(18, 9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(2, 4).ravel())
    for muscle, panel in zip(Muscle, panels, strict=False):
        _scatter(panel, cases, muscle)
    panels[len(Muscle)].set_axis_off()
    figure.suptitle("Held-out phantoms, simulated radiographs: says nothing about patients")
    figure.savefig(png, dpi=80)


def _scatter(panel: Axes, cases: Sequence[Case], muscle: Muscle) -> None:
    highest = 1.0
    for variant, colour in zip(VARIANTS, ("#3c78b4", "#e0823d"), strict=True):
        own = selected(list(cases), variant, muscle, LEAST_SHARE)
        truth, prediction = [c.truth_g for c in own], [c.prediction_g for c in own]
        panel.plot(truth, prediction, "o", color=colour, markersize=3.5, alpha=0.6, label=f"{variant}, n {len(own)}")
        highest = max([highest, *truth, *prediction])
    panel.plot([0, highest], [0, highest], color="#b0b7bd", linewidth=1, zorder=0)
    panel.set_title(muscle.name.lower().replace("_", " "))
    panel.set_xlabel("true lean mass in the field, g")
    panel.set_ylabel("predicted, g")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8)
