"""What the border's network learns: profiles across the borders that the trained U-Net finds in pieces of CTs."""

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
from training.segmentation.labelled import labelled_pieces
from training.segmentation.library import draw_scan
from training.segmentation.model import SegmentationModel
from training.segmentation.network import network_input
from training.segmentation.quality import QualityLine
from training.segmentation.sampling import sample_probabilities
from training.segmentation.structures import CLASS_OF
from training.segmentation.train import Examples, trained_network

PROFILES = 2000
"""Of each class in a scan, at most (of each part that `profiles` yields)."""
MARGIN_MM = 10.0
"""Beside the faces of a piece the U-Net sees less than where windows overlap: left out."""
BATCH = 4096
_STREAM, _CHOICE_STREAM = 1, 3
"""Keep these drawings apart from the U-Nets', whose seed they share."""


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
    found: list[tuple[Tensor, Tensor]] = []
    for number, (ct, classes) in enumerate(_pieces(run, library)):
        found += _examples(model, ct, classes, number)
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


def _pieces(run: SegmentationRun, library: Path) -> Iterator[tuple[CtVolume, NDArray[np.uint8]]]:
    """CTs and the true classes of their voxels: of patients as often as the run wants them, of people of the library otherwise."""
    edge_mm = run.unet.patch * run.unet.voxel_mm
    of_patients = 0 if run.hospital is None else round(run.border.scans * run.hospital.share)
    if run.hospital is not None:
        yield from labelled_pieces(run.hospital, of_patients, edge_mm, np.random.default_rng((run.seed, _STREAM)))
    people = Examples(run, library)
    for number in range(run.border.scans - of_patients):
        random = np.random.default_rng((run.seed, _STREAM, number))
        ct, target = draw_scan(people.person(random, run.atlas.share), edge_mm, random)
        yield ct, np.where(target.max(axis=0) > 0.5, target.argmax(axis=0), 0).astype(np.uint8)


def _examples(
    model: SegmentationModel, ct: CtVolume, classes: NDArray[np.uint8], number: int
) -> list[tuple[Tensor, Tensor]]:
    """(n, FEATURES) in half precision and (n,) of each class in one scan."""
    run, random = model.run, np.random.default_rng((model.run.seed, _CHOICE_STREAM, number))
    hu, patient_from_grid = to_grid(ct, run.unet.voxel_mm)
    mean = sample_probabilities(model.network, network_input(hu), run.unet.patch, run.inference, number).mean
    likeliest, found = mean.argmax(axis=0), []
    for label in sorted(set(CLASS_OF.values())):
        other = mean[1:].sum(axis=0) - mean[label]
        for index, features in profiles(ct, likeliest == label, mean[label], other, patient_from_grid):
            rows = np.flatnonzero(_is_within(index, ct))
            rows = random.permutation(rows)[:PROFILES]
            if len(rows):
                of_bone = classes[tuple(index[rows].T)] == label
                found.append((features[rows].half(), torch.from_numpy(of_bone)))
    return found


def _is_within(index: NDArray[np.int64], ct: CtVolume) -> NDArray[np.bool_]:
    margin = MARGIN_MM / np.linalg.norm(ct.patient_from_voxel[:3, :3], axis=0)[::-1]
    return np.asarray(((index >= margin) & (index <= np.array(ct.hu.shape) - 1 - margin)).all(axis=1))
