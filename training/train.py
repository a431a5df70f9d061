"""The training loop, from top to bottom: one network after the other, resumable, on one device or several."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dicomnode.errors import ConfigurationError
from dicomnode.inference.bundle import load_bundle
from dicomnode.inference.channels import CHANNELS, LOCATOR_CHANNELS, MAPS, REGIONAL_VERDICTS, VERDICTS
from dicomnode.inference.network import Decomposed, HipNet, NetworkShape, Regressor, RegressorShape, ResidualBlock
from dicomnode.inference.technique import FACTORS
from training.adversarial import Adversary
from training.augment import HipExample, OverviewExample, hip_example, overview_example
from training.config import NetworkConfiguration, RunConfiguration, Stage
from training.engine import make_fabric, own_batch, own_numbers, synchronised
from training.losses import (
    DENSITIES,
    HipBatch,
    canonical_loss,
    decomposition_loss,
    gradient_correlation_loss,
    heat_loss,
    known_maps,
    learned_from,
    pelvis_loss,
)
from training.pairs import HipPair, Pairs
from training.real import RealExamples, load_real
from training.record import PICTURE_EVERY_SAVES, Record, draw_hips
from training.split import Split
from training.targets import canonical_logarithms, is_native

log = logging.getLogger(__name__)

SAVE_EVERY_STEPS = 200
_DECOMPOSER_INPUTS = 2
_METAL_SHARE = 0.15
"""Of the examples, drawn from hips with metal beyond those that come by themselves."""

Terms = dict[str, Tensor]
Examples = Callable[[Stage], Dataset[dict[str, Any]]]


@dataclass(frozen=True)
class Task:
    """What one network learns, and from what."""

    name: str
    network: nn.Module
    loss: Callable[[Any, dict[str, Tensor], Stage], Terms]
    """From the network's answer and the batch to the terms by name, each weighted; the loss is their sum."""
    examples: Examples
    draws_maps: bool = False
    """Whether the answer is `Decomposed` and the batch `HipBatch`: then there are pictures and may be discriminators."""
    memory_format: torch.memory_format = torch.channels_last
    """Of the weights; `torch.channels_last` is for images, not for volumes."""


def decomposer_shape(configuration: NetworkConfiguration) -> NetworkShape:
    """The decomposer's shape for the bundle's channels."""
    return NetworkShape(
        _DECOMPOSER_INPUTS,
        len(CHANNELS),
        configuration.widths,
        len(VERDICTS),
        canonical=True,
        factors=len(FACTORS),
        regional_verdicts=len(REGIONAL_VERDICTS),
    )


def locator_shape(configuration: NetworkConfiguration) -> NetworkShape:
    """The locator's shape for the bundle's channels."""
    return NetworkShape(_DECOMPOSER_INPUTS, len(LOCATOR_CHANNELS), configuration.widths)


def regressor_shape(configuration: NetworkConfiguration) -> RegressorShape:
    """The regressor's shape for the bundle's figures."""
    return RegressorShape(_DECOMPOSER_INPUTS, configuration.widths, len(FACTORS))


def train(
    run: RunConfiguration,
    pairs: Pairs,
    split: Split,
    folder: Path,
    *,
    beside: Mapping[str, Pairs] | None = None,
    workers: int = 1,
    save_every: int = SAVE_EVERY_STEPS,
) -> None:
    """Train the networks; leaves `decomposer.pt`, `locator.pt`, `regressor.pt` (EMA weights) and `losses.jsonl` in `folder`.

    An interrupted run goes on from its last checkpoint, with the same examples as if it had not been interrupted.
    `folder/events` holds curves and pictures for TensorBoard.

    Args:
        beside: persons beside the phantoms, see `pairs.load_beside`; for those that are not there the phantoms stand in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # As one function of the fabric alone: among the arguments of `launch`, Fabric refuses frozen dataclasses.
    everything = partial(
        _train,
        run=run,
        pairs=pairs,
        split=split,
        folder=folder,
        beside=beside or {},
        workers=workers,
        save_every=save_every,
    )
    make_fabric(run.engine).launch(everything)


def _train(
    fabric: Fabric,
    run: RunConfiguration,
    pairs: Pairs,
    split: Split,
    folder: Path,
    beside: Mapping[str, Pairs],
    workers: int,
    save_every: int,
) -> None:
    """Train in one of the processes, each of which holds the same weights."""
    torch.manual_seed(run.seed)
    # All before any training: their first weights must not depend on where an interrupted run goes on.
    decomposer, locator = HipNet(decomposer_shape(run.decomposer)), HipNet(locator_shape(run.locator))
    regressor = None if run.regressor is None else Regressor(regressor_shape(run.regressor))
    for network in (decomposer, locator, regressor):
        if network is not None:
            _start_as_shortcuts(network)
    if run.start is not None:
        start_from(Path(run.start), decomposer, locator, regressor)
    hips, real = pairs.hips_of(split.training), real_examples(run)

    def hip_examples(stage: Stage) -> Dataset[dict[str, Any]]:
        return HipExamples(pairs, hips, run.seed, stage, beside, real)

    def overview_examples(_: Stage) -> Dataset[dict[str, Any]]:
        return OverviewExamples(pairs, split.training, run.seed)

    learn = partial(fit, fabric, folder=folder, seed=run.seed, workers=workers, save_every=save_every)
    learn(Task("decomposer", decomposer, _hip_loss, hip_examples, draws_maps=True), run.decomposer)
    learn(Task("locator", locator, _overview_loss, overview_examples), run.locator)
    if run.regressor is not None and regressor is not None:
        regressor.centre.copy_(_usual_figures(pairs, measurable(pairs, hips)))
        # It says nothing of what cannot be measured: such hips would teach it nothing.
        good_hips = partial(HipExamples, pairs, hips, run.seed, beside=beside, real=real, spoiled=False)
        learn(Task("regressor", regressor, _regressor_loss, good_hips), run.regressor)


def _usual_figures(pairs: Pairs, hips: NDArray[np.int64]) -> Tensor:
    """(regions, quantities) medians of the logarithms: where a network without maps starts from."""
    logarithms = [canonical_logarithms(pairs.table[hip]["canonical"]) for hip in hips]
    return torch.from_numpy(np.nanmedian(logarithms, axis=0).astype(np.float32))


def real_examples(run: RunConfiguration) -> RealExamples | None:
    """Where a run's real examples come from; None where it has none."""
    real = load_real(run.hospital)
    return None if real is None or run.hospital is None else RealExamples(real.training, run.hospital.share, run.seed)


def start_from(folder: Path, decomposer: HipNet, locator: HipNet, regressor: Regressor | None = None) -> None:
    """Give the networks the weights of a bundle.

    Raises:
        ConfigurationError: the bundle's networks have other shapes than the run's.
        BundleError: no bundle, or one of another format, frame or intensity transform.
    """
    bundle = load_bundle(folder)
    networks: list[tuple[str, HipNet | Regressor, HipNet | Regressor]] = [
        ("decomposer", decomposer, bundle.decomposer),
        ("locator", locator, bundle.locator),
    ]
    if regressor is not None and bundle.regressor is not None:
        networks.append(("regressor", regressor, bundle.regressor))
    for name, network, earlier in networks:
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
        stage: Stage,
        beside: Mapping[str, Pairs] | None = None,
        real: RealExamples | None = None,
        *,
        spoiled: bool = True,
    ) -> None:
        """Hips to draw from.

        Args:
            beside: persons beside the phantoms; the stage's option of the same name is their share.
            spoiled: whether hips that cannot be measured are among them, which a network that refuses must learn from.
        """
        self.pairs, self.seed, self.stage, self.real = pairs, seed, stage, real
        self.spoiled = spoiled
        self.hips = hips if spoiled else measurable(pairs, hips)
        self.with_metal = np.array([hip for hip in self.hips if pairs.table[hip]["has_metal"]], np.int64)
        self.beside: list[tuple[float, Pairs, NDArray[np.int64]]] = []
        for name, others in (beside or {}).items():
            if share := getattr(stage, name):
                everybody = np.arange(2 * others.count)
                self.beside.append((share, others, everybody if spoiled else measurable(others, everybody)))

    def __getitem__(self, number: int) -> dict[str, Any]:
        if self.real is not None and (example := self.real.draw(number, spoiled=self.spoiled)) is not None:
            return _fields(example)
        rng = np.random.default_rng((self.seed, 1, number))
        hip = self._draw(number, rng)
        arrays = _single(hip.materials), _single(hip.targets), hip.labels
        canonical = canonical_logarithms(hip.figures["canonical"])
        shares = self.stage.mineral_scaled, self.stage.voltage_told
        broken = hip.figures.get("fracture") is not None
        return _fields(
            hip_example(*arrays, hip.anteroposterior, canonical, rng, *shares, spoiled=self.spoiled, broken=broken)
        )

    def _draw(self, number: int, rng: np.random.Generator) -> HipPair:
        # By a stream of its own: the phantoms' examples stay what they are without others beside them.
        apart = np.random.default_rng((self.seed, 6, number))
        lot = apart.random()
        for share, others, hips in self.beside:
            if lot < share:
                return others.hip(int(hips[apart.integers(len(hips))]))
            lot -= share
        drawn_from = self.with_metal if len(self.with_metal) and rng.random() < _METAL_SHARE else self.hips
        return self.pairs.hip(int(drawn_from[rng.integers(len(drawn_from))]))


def measurable(pairs: Pairs, hips: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the hips that are native, see `targets.is_native`.

    Raises:
        ConfigurationError: there is none.
    """
    found = [hip for hip in hips if is_native(pairs.table[hip])]
    if not found:
        raise ConfigurationError(f"{pairs.folder}: none of {len(hips)} hips can be measured; make more pairs")
    return np.array(found, np.int64)


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


def _hip_loss(answer: Decomposed, batch: dict[str, Tensor], stage: Stage) -> Terms:
    hips = HipBatch(**batch)
    channels = answer.channels.float()
    terms = decomposition_loss(channels, answer.verdicts.float(), answer.canonical, hips)
    weight, true = learned_from(hips), known_maps(hips, channels[:, MAPS])
    if stage.gradient_correlation:
        gradients = gradient_correlation_loss(channels[:, DENSITIES], true[:, DENSITIES], weight)
        terms["gradients"] = stage.gradient_correlation * gradients
    if stage.pelvis_mass:
        terms["pelvis"] = stage.pelvis_mass * pelvis_loss(channels[:, 2], true[:, 2], weight)
    return terms


def _overview_loss(answer: Decomposed, batch: dict[str, Tensor], _: Stage) -> Terms:
    return {"heat": heat_loss(answer.channels.float(), batch["heat"])}


def _regressor_loss(answer: Tensor, batch: dict[str, Tensor], _: Stage) -> Terms:
    return canonical_loss(answer, batch["canonical"], batch["canonical_weight"])


def fit(
    fabric: Fabric,
    task: Task,
    configuration: NetworkConfiguration,
    *,
    folder: Path,
    seed: int,
    workers: int,
    save_every: int,
) -> None:
    """Train through all stages; `NAME.stageN.pt` is kept of each but the last, which becomes `NAME.pt`.

    Raises:
        ConfigurationError: the folder holds the end of a run with other stages.
    """
    stages = configuration.stages
    names = [f"{task.name}.stage{number}.pt" for number in range(1, len(stages))] + [f"{task.name}.pt"]
    missing = [name for name in names[:-1] if not (folder / name).exists()]
    if missing and (folder / names[-1]).exists():
        raise ConfigurationError(
            f"{folder / names[-1]} ends a run with other stages, for {missing[0]} is not there: to go on from it, rename it to"
            " that; else move it away"
        )
    for number, (stage, file) in enumerate(zip(stages, names, strict=True)):
        done, drawn = folder / file, sum(before.steps for before in stages[:number])
        if done.exists():
            log.info("%s is there already", done)
        else:
            fit_stage(
                fabric, task, stage, configuration, done, drawn, seed=seed, workers=workers, save_every=save_every
            )
        task.network.load_state_dict(torch.load(done, map_location="cpu", weights_only=True))


def fit_stage(
    fabric: Fabric,
    task: Task,
    stage: Stage,
    configuration: NetworkConfiguration,
    done: Path,
    drawn: int,
    *,
    seed: int,
    workers: int,
    save_every: int,
) -> None:
    """Train one stage in each of the processes; the first one alone writes.

    Args:
        done: where the averaged weights go.
        drawn: steps of the stages before: their examples do not come again.
    """
    module = synchronised(fabric, task.network).to(memory_format=task.memory_format)  # type: ignore[call-overload]
    module.requires_grad_(not stage.verdicts_only)
    if stage.verdicts_only:
        for verdict in verdict_layers(module):
            verdict.requires_grad_()
    adamw = torch.optim.AdamW(module.parameters(), stage.learning_rate, weight_decay=configuration.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, partial(learning_rate_share, steps=stage.steps))
    network, optimizer = fabric.setup(module, adamw)
    average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=average_fn(configuration), use_buffers=True)
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule, "average": average}
    adversary = Adversary(fabric, _DECOMPOSER_INPUTS, seed) if task.draws_maps and stage.adversarial else None
    if adversary is not None:
        parts |= {"discriminators": adversary.discriminators, "discriminator_optimizer": adversary.optimizer}
    checkpoint = done.with_suffix(".checkpoint.pt")
    first = _resume(checkpoint, parts, fabric.device)
    numbers = own_numbers(fabric, drawn + first, drawn + stage.steps, configuration.batch)
    loader = _loader(fabric, task.examples(stage), numbers, own_batch(fabric, configuration.batch), workers)
    network.train()
    if stage.statistics_frozen:
        freeze_statistics(module)
    with Record(done.parent, done.stem, first, stage.steps, writes=fabric.is_global_zero) as record:
        for step, batch in enumerate(loader, first):
            # What dropout leaves out follows from step and process: an interruption changes nothing.
            torch.manual_seed(seed + (drawn + step) * fabric.world_size + fabric.global_rank)
            answer = network(*_inputs(batch))
            terms = task.loss(answer, batch, stage)
            if adversary is not None:
                judged = adversary.terms(answer.channels[:, :4], HipBatch(**batch))
                terms |= {key: stage.adversarial * value for key, value in judged.items()}
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(torch.stack(list(terms.values())).sum())
            nn.utils.clip_grad_norm_(network.parameters(), 2.0)
            optimizer.step()
            if adversary is not None:
                terms |= adversary.learn(answer.channels[:, :4], HipBatch(**batch))
            schedule.step()
            average.update_parameters(module)
            record.add(step, _over_processes(fabric, terms), float(schedule.get_last_lr()[0]))
            if (step + 1) % save_every == 0 and fabric.is_global_zero:
                _save(checkpoint, parts, step + 1)
                record.saved(step + 1)
            if (step + 1) % (save_every * PICTURE_EVERY_SAVES) == 0 and task.draws_maps and fabric.is_global_zero:
                record.picture(step + 1, draw_hips(_averaged_channels(average, batch), HipBatch(**batch)))
    if fabric.is_global_zero:
        torch.save(average.module.state_dict(), done)
        checkpoint.unlink(missing_ok=True)
    fabric.barrier()  # only now may the others look for what was written


def verdict_layers(network: nn.Module) -> list[nn.Module]:
    """The layers that do nothing but state verdicts."""
    return [layer for name, layer in network.named_children() if name in ("verdict", "regional_verdict")]


def freeze_statistics(network: nn.Module) -> None:
    """Let normalisation use its running statistics and leave them as they are; its scales and shifts still learn.

    Raises:
        ConfigurationError: the network has none.
    """
    normalising = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not normalising:
        raise ConfigurationError("statistics_frozen: this network has no running statistics; leave it out")
    for module in normalising:
        module.eval()


def _inputs(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """What a network takes: the picture and, where examples have them, the technique factors."""
    return tuple(batch[name] for name in ("network_input", "technique") if name in batch)


def average_fn(configuration: NetworkConfiguration) -> Callable[[Any, Any, Any], None]:
    """Exponential moving average with the configured decay, or while it warms up with (1 + n) / (10 + n) after n averages.

    So the first weights are forgotten: after 300 averages 0.995 keeps 22 % of them, the warm-up none that is seen.

    Source: that rule is the one of TensorFlow's `ExponentialMovingAverage(num_updates=...)`.
    """
    plain = torch.optim.swa_utils.get_ema_multi_avg_fn(configuration.ema)  # type: ignore[no-untyped-call]

    def warmed_up(average: Any, current: Any, count: Any) -> None:
        decay = min(configuration.ema, (1 + int(count)) / (10 + int(count)))
        torch.optim.swa_utils.get_ema_multi_avg_fn(decay)(average, current, count)  # type: ignore[no-untyped-call]

    return warmed_up if configuration.ema_warm_up else plain


def _loader(
    fabric: Fabric, examples: Dataset[dict[str, Any]], numbers: list[int], batch: int, workers: int
) -> DataLoader[dict[str, Any]]:
    loader = DataLoader(
        examples, batch, sampler=numbers, num_workers=workers, drop_last=True,
        prefetch_factor=4 if workers else None, pin_memory=fabric.device.type == "cuda",
    )  # fmt: skip
    return fabric.setup_dataloaders(loader, use_distributed_sampler=False)  # type: ignore[return-value]


def _over_processes(fabric: Fabric, terms: Terms) -> dict[str, float]:
    """Mean of each term over all processes, fetched in one go: a GPU waits once in a step."""
    means = fabric.all_reduce(torch.stack([value.detach() for value in terms.values()]), reduce_op="mean")
    assert isinstance(means, Tensor)
    return dict(zip(terms, means.tolist(), strict=True))


@torch.no_grad()
def _averaged_channels(average: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What the weights that would be kept now see in a batch."""
    average.eval()
    answer: Decomposed = average(*_inputs(batch))
    average.train()
    return answer.channels


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
