"""What the border's network learns: profiles across the borders that the trained U-Net finds in pieces of people."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dicomnode.errors import ConfigurationError
from training.anatomy.ct import CtVolume
from training.segmentation.border import build_border, profiles
from training.segmentation.config import SegmentationRun
from training.segmentation.grid import to_grid
from training.segmentation.library import draw_scan
from training.segmentation.model import SegmentationModel
from training.segmentation.predict import sample_probabilities
from training.segmentation.quality import QualityLine
from training.segmentation.structures import CLASS_OF
from training.segmentation.train import Examples, trained_network

PROFILES = 2000
"""Of each class in a scan, at most (of each part that `profiles` yields)."""
MARGIN_MM = 10.0
"""Beside the faces of a piece the U-Net sees less than where windows overlap: left out."""
BATCH = 4096
_STREAM = 1
"""Keeps these drawings apart from the U-Net's, whose seed they share."""


def train_border(run: SegmentationRun, library: Path, folder: Path, done: Callable[[int], object]) -> None:
    """Train on scans that the U-Net of `folder` has segmented; leaves `border.pt` there, unless one of this U-Net is there.

    Args:
        done: called with 1 after each scan.

    Raises:
        ConfigurationError: no U-Net was trained there, or it found no bone in any of the scans.
    """
    network, file = trained_network(run, folder), folder / "border.pt"
    if file.exists() and file.stat().st_mtime_ns >= (folder / "network.pt").stat().st_mtime_ns:
        return
    torch.manual_seed(run.seed)
    border = build_border()
    model = SegmentationModel(run, network, border, QualityLine((0.0,), (1.0,)))
    found, people = [], Examples(run, library)
    for number in range(run.border.scans):
        found += list(_examples(model, people, number))
        done(1)
    if not found:
        raise ConfigurationError(
            f"the U-Net found no bone in {run.border.scans} scans of people: train it for more steps"
        )
    device = next(network.parameters()).device
    features, of_bone = (torch.cat(part) for part in zip(*found, strict=True))
    fit_border(border.to(device), features, of_bone, run)
    torch.save(border.cpu().state_dict(), file)


def fit_border(border: nn.Module, features: Tensor, truth: Tensor, run: SegmentationRun) -> None:
    """Fit to (n, FEATURES) profiles and (n,) whether they are of the bone."""
    device, steps = next(border.parameters()).device, run.border.steps
    adamw = torch.optim.AdamW(border.parameters(), run.border.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adamw, run.border.learning_rate, steps)
    for _ in range(steps):
        rows = torch.randint(len(features), (BATCH,))
        logits = border(features[rows].float().to(device))[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, truth[rows].float().to(device))
        adamw.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adamw.step()
        schedule.step()


def _examples(model: SegmentationModel, people: Examples, number: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(n, FEATURES) in half precision and (n,) of each class in one scan."""
    run = model.run
    random = np.random.default_rng((run.seed, _STREAM, number))
    ct, target = draw_scan(people.person(random), run.unet.patch * run.unet.voxel_mm, random)
    hu, patient_from_grid = to_grid(ct, run.unet.voxel_mm)
    mean, _ = sample_probabilities(hu, model, number)
    classes = mean.argmax(axis=0)
    for label in sorted(set(CLASS_OF.values())):
        other = mean[1:].sum(axis=0) - mean[label]
        for index, features in profiles(ct, classes == label, mean[label], other, patient_from_grid):
            rows = np.flatnonzero(_is_within(index, ct))
            rows = random.permutation(rows)[:PROFILES]
            if len(rows):
                of_bone = target[label][tuple(index[rows].T)] > 0.5
                yield features[rows].half(), torch.from_numpy(of_bone)


def _is_within(index: NDArray[np.int64], ct: CtVolume) -> NDArray[np.bool_]:
    margin = MARGIN_MM / np.linalg.norm(ct.patient_from_voxel[:3, :3], axis=0)[::-1]
    return np.asarray(((index >= margin) & (index <= np.array(ct.hu.shape) - 1 - margin)).all(axis=1))
