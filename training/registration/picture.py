"""A registration to look at: radiograph, projection, both in a checkerboard, and the projection's edges on the radiograph."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.projection.geometry import ConeBeam
from training.registration.anatomy import MovableCt
from training.registration.register import Registration
from training.registration.scene import make_scene
from training.registration.similarity import sobel

PIXEL_MM = 1.0
SQUARE_MM = 30.0
EDGE_QUANTILE = 0.93
"""The steepest of the projection's pixels are drawn as its edges."""


def draw_registration(
    path: Path, ct: MovableCt, found: Registration, image: NDArray[np.float32], beam: ConeBeam, title: str
) -> None:
    """Write a PNG."""
    scene = make_scene(ct, image, np.ones(beam.shape, np.bool_), beam, PIXEL_MM, "cpu")
    turns = {side: torch.from_numpy(femur.turn_rad)[None] for side, femur in found.femora.items()}
    with torch.no_grad():
        projected = (
            scene.jointed(torch.from_numpy(found.pose)[None], turns)
            if turns
            else scene.rigid(torch.from_numpy(found.pose)[None])
        )
        steepness = np.pad(sobel(projected)[0].norm(dim=0).numpy(), 1)
    radiograph, drr = _flattened(scene.image.numpy()), _flattened(projected[0].numpy())
    row, column = np.indices(radiograph.shape) // int(SQUARE_MM / PIXEL_MM)
    checkered = np.where((row + column) % 2 == 0, radiograph, drr)
    overlaid = np.repeat(radiograph[:, :, None], 3, axis=2)
    overlaid[steepness > np.quantile(steepness, EDGE_QUANTILE)] = (1.0, 0.35, 0.2)
    panels = {
        "radiograph": radiograph,
        "projection at the pose found": drr,
        "squares of both": checkered,
        "edges of the projection on the radiograph": overlaid,
    }
    rows, columns = radiograph.shape
    figure = Figure(figsize=(14, 14 * rows / columns + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for axes, (name, panel) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        axes.imshow(panel, cmap="gray", vmin=0, vmax=1)
        axes.set_title(name)
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


def _flattened(image: NDArray[np.float32]) -> NDArray[np.float64]:
    """Grey values by rank, 0..1: two pictures of one thing look alike, whatever curve they went through."""
    order = np.sort(image.ravel())
    return np.searchsorted(order, image.ravel()).reshape(image.shape) / image.size
