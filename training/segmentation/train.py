"""What the segmentation's network learns, and from what; the loop is that of the other networks."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from monai.losses.dice import DiceLoss
from torch import Tensor, nn
from torch.utils.data import Dataset

from dicomnode.errors import ConfigurationError
from training.config import Stage
from training.engine import make_fabric
from training.segmentation.config import MusclesConfiguration, SegmentationRun
from training.segmentation.library import (
    Example,
    atlas_files,
    ct_files,
    draw_ct_example,
    draw_example,
    draw_muscle_example,
    phantom_file,
)
from training.segmentation.model import load_model
from training.segmentation.network import build_muscle_network, build_network, muscle_input, network_input
from training.split import split_subjects
from training.train import Task, Terms, fit

SAVE_EVERY_STEPS = 50
_MUSCLE_STREAM = 2
"""Keeps these drawings apart from the others of the run's seed."""


class Examples(Dataset[dict[str, Tensor]]):
    """Cubes by drawing number: the same number always gives the same example."""

    def __init__(self, run: SegmentationRun, library: Path) -> None:
        self.run, self.library = run, library
        self.subjects = split_subjects(run.phantoms.count, run.split).training
        self.atlas = atlas_files(library, run.atlas)
        self.cts = list(ct_files(library, run).values())

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """`network_input` (2, z, y, x) and `target` (CLASSES, z, y, x)."""
        random = np.random.default_rng((self.run.seed, number))
        unet, hospital = self.run.unet, self.run.hospital
        if hospital is not None and random.random() < hospital.share:
            file = self.cts[random.integers(len(self.cts))]
            return _as_tensors(draw_ct_example(file, unet.patch, unet.voxel_mm, random))
        return _as_tensors(draw_example(self.person(random, self.run.atlas.share), unet.patch, unet.voxel_mm, random))

    def person(self, random: np.random.Generator, atlas_share: float) -> Path:
        """File of a phantom or, as often as is wanted, of the atlas."""
        if random.random() < atlas_share:
            return self.atlas[random.integers(len(self.atlas))]
        return phantom_file(self.library, int(self.subjects[random.integers(len(self.subjects))]))


class MuscleExamples(Examples):
    """Cubes of people with their muscles, by drawing number."""

    def __init__(self, run: SegmentationRun, muscles: MusclesConfiguration, library: Path) -> None:
        super().__init__(run, library)
        self.muscles = muscles
        self.atlas = self.atlas[: run.atlas.count]  # persons have no muscles of their own

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """`muscle_input` (5, z, y, x) and `target` (MUSCLE_CLASSES, z, y, x)."""
        random = np.random.default_rng((self.run.seed, _MUSCLE_STREAM, number))
        person = self.person(random, self.muscles.atlas_share)
        example = draw_muscle_example(person, self.muscles.patch, self.muscles.voxel_mm, random)
        return {
            "network_input": muscle_input(example.hu, example.bones),
            "target": torch.from_numpy(example.target),
        }


def _as_tensors(example: Example) -> dict[str, Tensor]:
    return {"network_input": network_input(example.hu), "target": torch.from_numpy(example.target)}


def segmentation_loss(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Cross-entropy and Dice against shares of voxels, (b, CLASSES, z, y, x) both.

    Dice has squares in its denominator, so that it is least where prediction and share agree (Milletari 2016,
    doi:10.1109/3DV.2016.79).
    """
    dice = DiceLoss(softmax=True, include_background=False, squared_pred=True, batch=True)
    return {"cross_entropy": nn.functional.cross_entropy(logits, target), "dice": dice(logits, target)}


def train(
    run: SegmentationRun, library: Path, folder: Path, *, workers: int = 0, save_every: int = SAVE_EVERY_STEPS
) -> None:
    """Train on the phantoms of `library`; leaves `network.pt`, `muscles.pt` (averaged weights) and `losses.jsonl` in `folder`.

    An interrupted run goes on from its last checkpoint, to the weights that it would have had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    make_fabric(run.engine).launch(
        partial(_train, run=run, library=library, folder=folder, workers=workers, save_every=save_every)
    )


def _train(fabric: Fabric, run: SegmentationRun, library: Path, folder: Path, workers: int, save_every: int) -> None:
    torch.manual_seed(run.seed)
    network = build_network(run)
    muscles = None if run.muscles is None else build_muscle_network(run, run.muscles)
    if run.start is not None:
        begin_with(run, Path(run.start), network, muscles)
    learn = partial(fit, fabric, folder=folder, seed=run.seed, workers=workers, save_every=save_every)
    learn(_task("network", network, Examples(run, library)), run.network)
    if run.muscles is not None and muscles is not None:
        learn(_task("muscles", muscles, MuscleExamples(run, run.muscles, library)), run.muscles.network)


def _task(name: str, network: nn.Module, examples: Examples) -> Task:
    return Task(name, network, _loss, lambda _: examples, memory_format=torch.contiguous_format)


def trained_network(run: SegmentationRun, folder: Path) -> nn.Module:
    """The U-Net that `train` left in a folder, onto CUDA where there is one.

    Raises:
        ConfigurationError: nothing was trained there.
    """
    return _ready(trained(build_network(run), folder / "network.pt"))


def trained_muscles(run: SegmentationRun, muscles: MusclesConfiguration, folder: Path) -> nn.Module:
    """The U-Net of the muscles likewise.

    Raises:
        ConfigurationError: nothing was trained there.
    """
    return _ready(trained(build_muscle_network(run, muscles), folder / "muscles.pt"))


def _ready(network: nn.Module) -> nn.Module:
    return network.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def trained(network: nn.Module, file: Path) -> nn.Module:
    """A network with the weights of a file.

    Raises:
        ConfigurationError: there is none.
    """
    if not file.exists():
        raise ConfigurationError(f"{file} does not exist; run `python -m training segmentation train`")
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network


def begin_with(run: SegmentationRun, start: Path, network: nn.Module, muscles: nn.Module | None) -> None:
    """Give the networks the weights of a model; one without muscles leaves theirs as they are.

    Raises:
        BundleError: no model lies there, or a damaged one.
        ConfigurationError: its networks are others.
    """
    earlier = load_model(start)
    theirs, ours = (
        (of.network.widths, of.unet.residual_units, of.unet.voxel_mm, _muscle_shape(of)) for of in (earlier.run, run)
    )
    both_have_muscles = None not in (theirs[3], ours[3])
    if theirs[:3] != ours[:3] or (both_have_muscles and theirs[3] != ours[3]):
        raise ConfigurationError(
            f"start {start}: widths, residual units and voxel_mm, those of the muscles too, are {theirs}, the run's are {ours};"
            " they must be the same"
        )
    _take(network, earlier.network)
    if muscles is not None and earlier.muscles is not None:
        _take(muscles, earlier.muscles.network)


def _take(network: nn.Module, earlier: nn.Module) -> None:
    network.load_state_dict({name: tensor.cpu() for name, tensor in earlier.state_dict().items()})


def _muscle_shape(run: SegmentationRun) -> tuple[tuple[int, ...], float] | None:
    return None if run.muscles is None else (run.muscles.network.widths, run.muscles.voxel_mm)


def _loss(answer: Tensor, batch: dict[str, Tensor], _: Stage) -> Terms:
    return segmentation_loss(answer.float(), batch["target"])
