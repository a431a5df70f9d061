"""The training loop: examples drawn on the fly, resumable, on CUDA where there is one."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses.dice import DiceLoss
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from training.segmentation.config import SegmentationRun
from training.segmentation.library import atlas_file, draw_example, phantom_file
from training.segmentation.network import build_network, network_input
from training.split import split_subjects
from training.train import learning_rate_share

SAVE_EVERY_STEPS = 50


class Examples(Dataset[tuple[Tensor, Tensor]]):
    """Cubes by drawing number: the same number always gives the same example."""

    def __init__(self, run: SegmentationRun, library: Path) -> None:
        self.run, self.library = run, library
        self.subjects = split_subjects(run.phantoms.count, run.split).training

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """(2, z, y, x) input and (CLASSES, z, y, x) target."""
        random = np.random.default_rng((self.run.seed, number))
        if random.random() < self.run.atlas.share:
            file = atlas_file(self.library, int(random.integers(self.run.atlas.count)))
        else:
            file = phantom_file(self.library, int(self.subjects[random.integers(len(self.subjects))]))
        example = draw_example(file, self.run.training.patch, self.run.network.voxel_mm, random)
        return network_input(example.hu), torch.from_numpy(example.target)


def segmentation_loss(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Cross-entropy and Dice against shares of voxels, (b, CLASSES, z, y, x) both.

    Dice has squares in its denominator, so that it is least where prediction and share agree (Milletari 2016,
    doi:10.1109/3DV.2016.79).
    """
    dice = DiceLoss(softmax=True, include_background=False, squared_pred=True, batch=True)
    return {"cross_entropy": nn.functional.cross_entropy(logits, target), "dice": dice(logits, target)}


def train(run: SegmentationRun, library: Path, folder: Path, *, workers: int = 0) -> None:
    """Train on the phantoms of `library`; leaves `network.pt` (averaged weights) and `losses.jsonl` in `folder`.

    An interrupted run goes on from its last checkpoint, with the same examples as if it had not been interrupted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "network.pt").exists():
        return
    torch.manual_seed(run.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = run.training
    network = build_network(run.network).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(learning_rate_share, steps=settings.steps))
    average_fn = torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema)  # type: ignore[no-untyped-call]
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=average_fn, use_buffers=True)
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule, "average": average}
    checkpoint = folder / "checkpoint.pt"
    first = _resume(checkpoint, parts, device)
    numbers = range(first * settings.batch, settings.steps * settings.batch)
    loader = DataLoader(
        Examples(run, library), settings.batch, sampler=list(numbers), num_workers=workers, drop_last=True,
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    network.train()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    smooth: dict[str, float] = {}
    with (
        tqdm(loader, desc="segmentation", initial=first, total=settings.steps, unit="step") as progress,
        (folder / "losses.jsonl").open("a") as record,
    ):
        for step, (image, target) in enumerate(progress, first):
            with autocast:
                logits = network(image.to(device, non_blocking=True))
            terms = segmentation_loss(logits.float(), target.to(device, non_blocking=True))
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 2.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
            for key, value in terms.items():
                smooth[key] = 0.97 * smooth.get(key, value.item()) + 0.03 * value.item()
            progress.set_postfix({key: f"{value:.4f}" for key, value in smooth.items()}, refresh=False)
            if (step + 1) % SAVE_EVERY_STEPS == 0:
                _save(checkpoint, parts, step + 1)
                print(json.dumps({"step": step + 1, **smooth}), file=record, flush=True)
    torch.save(average.module.state_dict(), folder / "network.pt")
    checkpoint.unlink(missing_ok=True)


def _resume(checkpoint: Path, parts: dict[str, Any], device: torch.device) -> int:
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    # Dropout goes on with other numbers than before the interruption; the examples do not.
    return int(state["step"])


def _save(checkpoint: Path, parts: dict[str, Any], step: int) -> None:
    partial_file = checkpoint.with_suffix(".partial")
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, partial_file)
    partial_file.replace(checkpoint)
