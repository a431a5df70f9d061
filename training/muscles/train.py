"""The training loop of the muscles' network, resumable, on CUDA where there is one."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dicomnode.inference.network import HipNet, NetworkShape
from training.anatomy.muscles import CHANNELS
from training.losses import masked_mean
from training.muscles.augment import PIXEL_CM2, muscle_example
from training.muscles.config import MusclesRun
from training.muscles.shards import load_muscles
from training.pairs import Pairs
from training.split import split_subjects
from training.train import learning_rate_share

SAVE_EVERY_STEPS = 100
TYPICAL_G_CM2 = 3.0
"""The network answers in this unit, so that its outputs are of order 1."""
LEAST_SEEN_G = 30.0
"""A muscle of which less lies in the field has no relative error to learn from."""


class Examples(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Radiographs by drawing number: the same number always gives the same example."""

    def __init__(self, run: MusclesRun, pairs: Pairs, muscles: Path) -> None:
        self.run, self.pairs, self.muscles = run, pairs, muscles
        self.subjects = training_subjects(run)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """(2, h, w) input, (CHANNELS, h, w) maps in g/cm2, (h, w) field."""
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
        return (
            torch.from_numpy(example.network_input),
            torch.from_numpy(example.maps),
            torch.from_numpy(example.field),
        )


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
    if (folder / "network.pt").exists():
        return
    torch.manual_seed(run.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings, stage = run.network, run.network.stages[0]
    network = build_network(run).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), stage.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(learning_rate_share, steps=stage.steps))
    average_fn = torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema)  # type: ignore[no-untyped-call]
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=average_fn, use_buffers=True)
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule, "average": average}
    checkpoint = folder / "checkpoint.pt"
    first = _resume(checkpoint, parts, device)
    numbers = range(first * settings.batch, stage.steps * settings.batch)
    loader = DataLoader(
        Examples(run, pairs, muscles), settings.batch, sampler=list(numbers), num_workers=workers, drop_last=True,
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    network.train()
    smooth: dict[str, float] = {}
    with (
        tqdm(loader, desc="muscles", initial=first, total=stage.steps, unit="step") as progress,
        (folder / "losses.jsonl").open("a") as record,
    ):
        for step, (image, maps, field) in enumerate(progress, first):
            prediction = lean_maps(network, image.to(device).to(memory_format=torch.channels_last))
            terms = muscle_loss(prediction, maps.to(device), field.to(device))
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 2.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
            for key, value in terms.items():
                smooth[key] = 0.97 * smooth.get(key, value.item()) + 0.03 * value.item()
            progress.set_postfix({key: f"{value:.3f}" for key, value in smooth.items()}, refresh=False)
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
    return int(state["step"])


def _save(checkpoint: Path, parts: dict[str, Any], step: int) -> None:
    partial_file = checkpoint.with_suffix(".partial")
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, partial_file)
    partial_file.replace(checkpoint)
