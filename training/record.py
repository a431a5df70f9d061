"""What a person sees of a stage while it trains: a progress bar, `losses.jsonl`, and curves and pictures for TensorBoard."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.losses import HipBatch

EVERY_STEPS = 20
PICTURE_EVERY_SAVES = 3
_MOST_HIPS = 4
_DENSEST_G_CM2 = 2.0
"""End of the grey scale of densities: about the densest cortex in projection."""


class Record:
    """Running means of a stage's losses; only the first of several processes writes them."""

    def __init__(self, folder: Path, name: str, first: int, steps: int, *, writes: bool) -> None:
        self.name, self.smooth, self.writes = name, dict[str, float](), writes
        self.progress = tqdm(desc=name, initial=first, total=steps, unit="step", disable=not writes)
        self.lines = (folder / "losses.jsonl").open("a") if writes else None
        self.events = SummaryWriter(folder / "events" / name, purge_step=first) if writes else None

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for opened in (self.progress, self.lines, self.events):
            if opened is not None:
                opened.close()

    def add(self, step: int, terms: dict[str, float], learning_rate: float) -> None:
        """Add one step's losses."""
        for key, value in terms.items():
            self.smooth[key] = 0.98 * self.smooth.get(key, value) + 0.02 * value
        self.progress.update()
        if step % EVERY_STEPS == 0 and self.events is not None:
            self.progress.set_postfix({key: f"{value:.3f}" for key, value in self.smooth.items()}, refresh=False)
            for key, value in self.smooth.items():
                self.events.add_scalar(f"loss/{key}", value, step)
            self.events.add_scalar("learning_rate", learning_rate, step)

    def saved(self, step: int) -> None:
        """Write the line of a checkpoint after `step` steps."""
        if self.lines is not None:
            line = {"network": self.name, "step": step, "time": time.time(), **self.smooth}
            print(json.dumps(line), file=self.lines, flush=True)

    def picture(self, step: int, figure: Figure) -> None:
        """Keep a picture among the events."""
        if self.events is not None:
            canvas = FigureCanvasAgg(figure)
            canvas.draw()  # type: ignore[no-untyped-call]
            image = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
            self.events.add_image("hips", image, step, dataformats="HWC")
            self.events.flush()


def draw_hips(channels: Tensor, batch: HipBatch) -> Figure:
    """Draw the first hips of a batch: radiograph, density and labels, each true and as predicted in (b, channels, h, w)."""
    count = min(_MOST_HIPS, len(channels))
    figure = Figure(figsize=(10, 2.8 * count), layout="constrained")
    density = {"cmap": "gray", "vmin": 0.0, "vmax": _DENSEST_G_CM2}
    labels = {"cmap": "tab10", "vmin": 0, "vmax": 9, "interpolation": "nearest"}
    columns: list[tuple[str, Tensor, dict[str, Any]]] = [
        ("radiograph", batch.network_input[:, 0], {"cmap": "gray"}),
        ("femur density, true", batch.maps[:, 0], density),
        ("predicted", channels[:, 0], density),
        ("labels, true", batch.labels, labels),
        ("predicted", channels[:, 4:10].argmax(1), labels),
    ]
    grid = figure.subplots(count, len(columns), squeeze=False)
    for row, line in enumerate(grid):
        for axes, (title, images, style) in zip(line, columns, strict=True):
            axes.imshow(images[row].float().cpu().numpy(), **style)
            axes.set_axis_off()
            axes.set_title(title if row == 0 else "", fontsize=9)
    figure.suptitle(
        f"densities from 0 to {_DENSEST_G_CM2:g} g/cm²; the averaged weights on this step's examples", fontsize=9
    )
    return figure
