"""The training loop, from top to bottom: both networks, one after the other, resumable, on CUDA where there is one."""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dicomnode.errors import ConfigurationError
from dicomnode.inference.bundle import load_bundle
from dicomnode.inference.channels import CHANNELS, LOCATOR_CHANNELS, VERDICTS
from dicomnode.inference.network import HipNet, NetworkShape, ResidualBlock
from training.augment import HipExample, OverviewExample, hip_example, overview_example
from training.config import NetworkConfiguration, RunConfiguration, Stage
from training.direct import DirectNet
from training.losses import HipBatch, canonical_loss, decomposition_loss, heat_loss
from training.pairs import Pairs
from training.real import RealExamples, load_real
from training.split import Split
from training.targets import canonical_logarithms

log = logging.getLogger(__name__)

SAVE_EVERY_STEPS = 200
_DECOMPOSER_INPUTS = 2
_METAL_SHARE = 0.15
"""Of the examples, drawn from hips with metal beyond those that come by themselves."""

Loss = Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]


def decomposer_shape(configuration: NetworkConfiguration) -> NetworkShape:
    """The decomposer's shape for the bundle's channels."""
    return NetworkShape(_DECOMPOSER_INPUTS, len(CHANNELS), configuration.widths, len(VERDICTS), canonical=True)


def locator_shape(configuration: NetworkConfiguration) -> NetworkShape:
    """The locator's shape for the bundle's channels."""
    return NetworkShape(_DECOMPOSER_INPUTS, len(LOCATOR_CHANNELS), configuration.widths)


def direct_network(configuration: NetworkConfiguration) -> DirectNet:
    """The conventional method's network, as wide as the decomposer."""
    return DirectNet(_DECOMPOSER_INPUTS, configuration.widths)


def train(
    run: RunConfiguration,
    pairs: Pairs,
    split: Split,
    folder: Path,
    *,
    workers: int = 1,
    save_every: int = SAVE_EVERY_STEPS,
) -> None:
    """Train the networks; leaves `decomposer.pt`, `locator.pt`, `direct.pt` (EMA weights) and `losses.jsonl` in `folder`.

    An interrupted run goes on from its last checkpoint, with the same examples as if it had not been interrupted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.seed)
    # All before any training: their first weights must not depend on where an interrupted run goes on.
    decomposer, locator = HipNet(decomposer_shape(run.decomposer)), HipNet(locator_shape(run.locator))
    direct = direct_network(run.decomposer)
    for network in (decomposer, locator, direct):
        _start_as_shortcuts(network)
    if run.start is not None:
        start_from(Path(run.start), decomposer, locator)
    hips, real = pairs.hips_of(split.training), real_examples(run)

    def hip_examples(stage: Stage) -> Dataset[dict[str, Any]]:
        return HipExamples(pairs, hips, run.seed, stage.mineral_scaled, real)

    def overview_examples(_: Stage) -> Dataset[dict[str, Any]]:
        return OverviewExamples(pairs, split.training, run.seed)

    fit = partial(_fit, folder=folder, workers=workers, save_every=save_every)
    fit("decomposer", decomposer, _hip_loss, hip_examples, run.decomposer)
    fit("locator", locator, _overview_loss, overview_examples, run.locator)
    if run.direct:
        direct.centre.copy_(_usual_figures(pairs, hips))
        fit("direct", direct, _direct_loss, hip_examples, run.decomposer)


def _usual_figures(pairs: Pairs, hips: NDArray[np.int64]) -> Tensor:
    """(regions, quantities) medians of the logarithms: where a network without maps starts from."""
    logarithms = [canonical_logarithms(pairs.table[hip]["canonical"]) for hip in hips]
    return torch.from_numpy(np.nanmedian(logarithms, axis=0).astype(np.float32))


def real_examples(run: RunConfiguration) -> RealExamples | None:
    """Where a run's real examples come from; None where it has none."""
    real = load_real(run.hospital)
    return None if real is None or run.hospital is None else RealExamples(real.training, run.hospital.share, run.seed)


def start_from(folder: Path, decomposer: HipNet, locator: HipNet) -> None:
    """Give both networks the weights of a bundle.

    Raises:
        ConfigurationError: the bundle's networks have other shapes than the run's.
        BundleError: no bundle, or one of another format, frame or intensity transform.
    """
    bundle = load_bundle(folder)
    for name, network, earlier in (("decomposer", decomposer, bundle.decomposer), ("locator", locator, bundle.locator)):
        if network.shape != earlier.shape:
            raise ConfigurationError(
                f"start: the {name} of {folder} is {earlier.shape}, the run's is {network.shape};"
                f" set {name}.widths = {list(earlier.shape.widths)}, or leave start out"
            )
        network.load_state_dict(earlier.state_dict())


class HipExamples(Dataset[dict[str, Any]]):
    """Hips by (drawing number): the same number always gives the same example."""

    def __init__(
        self,
        pairs: Pairs,
        hips: NDArray[np.int64],
        seed: int,
        mineral_scaled: float,
        real: RealExamples | None = None,
    ) -> None:
        self.pairs, self.hips, self.seed, self.mineral_scaled, self.real = pairs, hips, seed, mineral_scaled, real
        self.with_metal = np.array([hip for hip in hips if pairs.table[hip]["has_metal"]], np.int64)

    def __getitem__(self, number: int) -> dict[str, Any]:
        if self.real is not None and (example := self.real.draw(number)) is not None:
            return _fields(example)
        rng = np.random.default_rng((self.seed, 1, number))
        drawn_from = self.with_metal if len(self.with_metal) and rng.random() < _METAL_SHARE else self.hips
        hip = self.pairs.hip(int(drawn_from[rng.integers(len(drawn_from))]))
        arrays = _single(hip.materials), _single(hip.targets), hip.labels
        canonical = canonical_logarithms(hip.figures["canonical"])
        return _fields(hip_example(*arrays, hip.anteroposterior, canonical, rng, self.mineral_scaled))


class OverviewExamples(Dataset[dict[str, Any]]):
    """Whole fields by drawing number."""

    def __init__(self, pairs: Pairs, subjects: np.ndarray[Any, Any], seed: int) -> None:
        self.pairs, self.subjects, self.seed = pairs, subjects, seed

    def __getitem__(self, number: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, 2, number))
        overview = self.pairs.overview(int(self.subjects[rng.integers(len(self.subjects))]))
        return _fields(overview_example(_single(overview.materials), overview.heads_px, rng))


def _single(stored: NDArray[np.float16]) -> NDArray[np.float32]:
    return stored.astype(np.float32)


def _fields(example: HipExample | OverviewExample) -> dict[str, Any]:
    values = {field.name: getattr(example, field.name) for field in fields(example)}
    return {name: np.float32(value) if isinstance(value, float) else value for name, value in values.items()}


def _hip_loss(network: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    hips = HipBatch(**batch)
    channels, verdicts, canonical = network(hips.network_input)
    return decomposition_loss(channels.float(), verdicts.float(), canonical, hips)


def _overview_loss(network: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    heat = network(batch["network_input"]).channels
    return {"heat": heat_loss(heat.float(), batch["heat"])}


def _direct_loss(network: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return canonical_loss(network(batch["network_input"]), batch["canonical"], batch["canonical_weight"])


def _fit(
    name: str,
    network: nn.Module,
    loss: Loss,
    examples: Callable[[Stage], Dataset[dict[str, Any]]],
    configuration: NetworkConfiguration,
    *,
    folder: Path,
    workers: int,
    save_every: int,
) -> None:
    """Train through all stages; `NAME.stageN.pt` is kept of each but the last, which becomes `NAME.pt`."""
    names = [f"{name}.stage{number}.pt" for number in range(1, len(configuration.stages))] + [f"{name}.pt"]
    for number, (stage, file) in enumerate(zip(configuration.stages, names, strict=True)):
        done, drawn = folder / file, sum(before.steps for before in configuration.stages[:number])
        if done.exists():
            log.info("%s is there already", done)
        else:
            _fit_stage(done, network, loss, examples(stage), configuration, stage, drawn, workers, save_every)
        network.load_state_dict(torch.load(done, map_location="cpu", weights_only=True))


def _fit_stage(
    done: Path,
    network: nn.Module,
    loss: Loss,
    examples: Dataset[dict[str, Any]],
    configuration: NetworkConfiguration,
    stage: Stage,
    drawn: int,
    workers: int,
    save_every: int,
) -> None:
    """Train one stage.

    Args:
        done: where the averaged weights go.
        drawn: steps of the stages before: their examples do not come again.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), stage.learning_rate, weight_decay=configuration.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(learning_rate_share, steps=stage.steps))
    average_fn = torch.optim.swa_utils.get_ema_multi_avg_fn(configuration.ema)  # type: ignore[no-untyped-call]
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=average_fn, use_buffers=True)
    checkpoint = done.with_suffix(".checkpoint.pt")
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule, "average": average}
    first = _resume(checkpoint, parts, device)
    numbers = range((drawn + first) * configuration.batch, (drawn + stage.steps) * configuration.batch)
    loader = DataLoader(
        examples, configuration.batch, sampler=list(numbers), num_workers=workers, drop_last=True,
        prefetch_factor=4 if workers else None, pin_memory=device.type == "cuda",
    )  # fmt: skip
    network.train()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    smooth: dict[str, float] = {}
    with (
        tqdm(loader, desc=done.stem, initial=first, total=stage.steps, unit="step") as progress,
        (done.parent / "losses.jsonl").open("a") as record,
    ):
        for step, raw in enumerate(progress, first):
            batch = {key: value.to(device, non_blocking=True) for key, value in raw.items()}
            with autocast:
                terms = loss(network, batch)
                total = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 2.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
            for key, value in terms.items():
                smooth[key] = 0.98 * smooth.get(key, value.item()) + 0.02 * value.item()
            if step % 20 == 0:
                progress.set_postfix({key: f"{value:.3f}" for key, value in smooth.items()}, refresh=False)
            if (step + 1) % save_every == 0:
                _save(checkpoint, parts, step + 1)
                print(
                    json.dumps({"network": done.stem, "step": step + 1, "time": time.time(), **smooth}),
                    file=record,
                    flush=True,
                )
    torch.save(average.module.state_dict(), done)
    checkpoint.unlink(missing_ok=True)


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step: a linear rise over the first tenth, then half a cosine down to zero."""
    rise = steps / 10
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / (steps - rise))))


def _start_as_shortcuts(network: nn.Module) -> None:
    # Each residual block starts as its shortcut: deep stacks learn faster (arXiv 1706.02677, section 5.1).
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.norm_2.weight)


def _resume(checkpoint: Path, parts: dict[str, Any], device: torch.device) -> int:
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    step: int = state["step"]
    return step


def _save(checkpoint: Path, parts: dict[str, Any], step: int) -> None:
    partial = checkpoint.with_suffix(".partial")
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, partial)
    partial.replace(checkpoint)
