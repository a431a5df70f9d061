"""What the muscles' network learns, and from what; the loop is that of the other networks."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset

from dicomnode.inference.network import Decomposed, HipNet, NetworkShape
from training.anatomy.muscles import CHANNELS
from training.config import Stage
from training.engine import make_fabric
from training.losses import masked_mean
from training.muscles.augment import PIXEL_CM2, muscle_example
from training.muscles.config import MusclesRun
from training.muscles.shards import load_muscles
from training.pairs import Pairs
from training.split import split_subjects
from training.train import Task, Terms, fit

SAVE_EVERY_STEPS = 100
TYPICAL_G_CM2 = 3.0
"""The network answers in this unit, so that its outputs are of order 1."""
LEAST_SEEN_G = 30.0
"""A muscle of which less lies in the field has no relative error to learn from."""


class Examples(Dataset[dict[str, Any]]):
    """Radiographs by drawing number: the same number always gives the same example."""

    def __init__(self, run: MusclesRun, pairs: Pairs, muscles: Path) -> None:
        self.run, self.pairs, self.muscles = run, pairs, muscles
        self.subjects = training_subjects(run)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """`network_input` (2, h, w), `maps` (CHANNELS, h, w) in g/cm2, `field` (h, w)."""
        rng = np.random.default_rng((self.run.seed, number))
        subject = int(self.subjects[rng.integers(len(self.subjects))])
        stored = load_muscles(self.muscles, subject)
        example = muscle_example(
            self.pairs.overview(subject).materials.astype(np.float32),
            stored.maps.astype(np.float32),
            stored.figures["field_px"],
            self.run.infiltration,
            rng,
        )
        return {"network_input": example.network_input, "maps": example.maps, "field": example.field}


def training_subjects(run: MusclesRun) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The phantoms that are learned from."""
    return split_subjects(run.pairs.count, run.split).training[: run.subjects.training]


def held_out_subjects(run: MusclesRun) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The phantoms that are measured on; none of them is learned from."""
    return split_subjects(run.pairs.count, run.split).test[: run.subjects.test]


def build_network(run: MusclesRun) -> HipNet:
    """(b, 2, h, w) of `standardise` to (b, CHANNELS, h, w) lean mass in `TYPICAL_G_CM2`."""
    network = HipNet(NetworkShape(2, len(CHANNELS), run.network.widths))
    # It begins without any muscle: most of a map has none.
    for parameter in network.head.parameters():
        nn.init.zeros_(parameter)
    return network


def lean_maps(network: nn.Module, network_input: Tensor) -> Tensor:
    """(b, CHANNELS, h, w) lean mass in g/cm2; unbounded, so that sums over the field are not biased upwards."""
    channels: Tensor = network(network_input).channels
    return TYPICAL_G_CM2 * channels.float()


def muscle_loss(prediction: Tensor, target: Tensor, field: Tensor) -> dict[str, Tensor]:
    """L1 of the maps, and the relative error of what each muscle weighs in the field, as in MSKdeX (arXiv 2305.19920).

    Args:
        prediction: (b, CHANNELS, h, w) in g/cm2.
        target: (b, CHANNELS, h, w).
        field: (b, h, w).
    """
    maps = masked_mean((prediction - target).abs().sum(1), field)
    predicted, true = ((image * field[:, None]).sum((2, 3)) * PIXEL_CM2 for image in (prediction, target))
    seen = (true > LEAST_SEEN_G).to(true.dtype)
    relative = ((predicted - true).abs() / true.clamp_min(LEAST_SEEN_G)).clamp_max(2.0)
    return {"maps": maps, "mass": 2.0 * masked_mean(relative, seen)}


def train(run: MusclesRun, pairs: Pairs, muscles: Path, folder: Path, *, workers: int = 0) -> None:
    """Leave `network.pt` (averaged weights) and `losses.jsonl` in `folder`; goes on from its last checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    make_fabric(run.engine).launch(
        partial(_train, run=run, pairs=pairs, muscles=muscles, folder=folder, workers=workers)
    )


def _train(fabric: Fabric, run: MusclesRun, pairs: Pairs, muscles: Path, folder: Path, workers: int) -> None:
    torch.manual_seed(run.seed)
    task = Task("network", build_network(run), _loss, lambda _: Examples(run, pairs, muscles))
    fit(fabric, task, run.network, folder=folder, seed=run.seed, workers=workers, save_every=SAVE_EVERY_STEPS)


def _loss(answer: Decomposed, batch: dict[str, Tensor], _: Stage) -> Terms:
    return muscle_loss(TYPICAL_G_CM2 * answer.channels.float(), batch["maps"], batch["field"])
