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
from training.segmentation.config import SegmentationRun
from training.segmentation.library import Example, atlas_files, ct_files, draw_ct_example, draw_example, phantom_file
from training.segmentation.model import load_model
from training.segmentation.network import build_network, network_input
from training.split import split_subjects
from training.train import Task, Terms, fit

SAVE_EVERY_STEPS = 50


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
        return _as_tensors(draw_example(self.person(random), unet.patch, unet.voxel_mm, random))

    def person(self, random: np.random.Generator) -> Path:
        """File of a phantom or, as often as the run wants it, of the atlas."""
        if random.random() < self.run.atlas.share:
            return self.atlas[random.integers(len(self.atlas))]
        return phantom_file(self.library, int(self.subjects[random.integers(len(self.subjects))]))


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
    """Train on the phantoms of `library`; leaves `network.pt` (averaged weights) and `losses.jsonl` in `folder`.

    An interrupted run goes on from its last checkpoint, to the weights that it would have had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    make_fabric(run.engine).launch(
        partial(_train, run=run, library=library, folder=folder, workers=workers, save_every=save_every)
    )


def _train(fabric: Fabric, run: SegmentationRun, library: Path, folder: Path, workers: int, save_every: int) -> None:
    torch.manual_seed(run.seed)
    network = build_network(run)
    if run.start is not None:
        network.load_state_dict(begun_with(run, Path(run.start)))
    task = Task("network", network, _loss, lambda _: Examples(run, library), memory_format=torch.contiguous_format)
    fit(fabric, task, run.network, folder=folder, seed=run.seed, workers=workers, save_every=save_every)


def trained_network(run: SegmentationRun, folder: Path) -> nn.Module:
    """The U-Net that `train` left in a folder, onto CUDA where there is one.

    Raises:
        ConfigurationError: nothing was trained there.
    """
    network = trained(build_network(run), folder / "network.pt")
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


def begun_with(run: SegmentationRun, start: Path) -> dict[str, Tensor]:
    """The weights of the model that a run begins with.

    Raises:
        BundleError: no model lies there, or a damaged one.
        ConfigurationError: its network is another one.
    """
    earlier = load_model(start)
    theirs, ours = ((of.network.widths, of.unet.residual_units, of.unet.voxel_mm) for of in (earlier.run, run))
    if theirs != ours:
        raise ConfigurationError(
            f"start {start}: widths, residual units and voxel_mm are {theirs}, the run's are {ours}; they must be the same"
        )
    return {name: tensor.cpu() for name, tensor in earlier.network.state_dict().items()}


def _loss(answer: Tensor, batch: dict[str, Tensor], _: Stage) -> Terms:
    return segmentation_loss(answer.float(), batch["target"])
