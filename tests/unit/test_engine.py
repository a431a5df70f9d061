"""One loop for one device and several: the same weights as a plain loop, shared examples, curves and pictures."""

import json
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import Dataset

from dicomnode.errors import ConfigurationError
from dicomnode.inference.channels import CANONICAL, CHANNELS, REGIONAL_VERDICTS, REGIONS, VERDICTS
from dicomnode.inference.network import HipNet, NetworkShape
from dicomnode.inference.technique import FACTORS
from training.config import EngineConfiguration, NetworkConfiguration, Stage, load_run
from training.engine import has_fast_bfloat16, make_fabric, own_batch, own_numbers
from training.train import Task, _hip_loss, average_fn, fit_stage, freeze_statistics, learning_rate_share

SIZE = (128, 96)
ONE = EngineConfiguration(devices=1, precision="32-true")


class DrawnHips(Dataset[dict[str, Any]]):
    """Random maps in place of hips, by drawing number; stops where it is told to."""

    def __init__(self, stops_at: int | None = None) -> None:
        self.stops_at = stops_at

    def __getitem__(self, number: int) -> dict[str, Any]:
        if number == self.stops_at:
            raise InterruptedError
        rng = np.random.default_rng(number)
        return {
            "network_input": rng.standard_normal((2, *SIZE)).astype(np.float32),
            "technique": rng.standard_normal(len(FACTORS)).astype(np.float32),
            "maps": rng.random((4, *SIZE), np.float32),
            "labels": rng.integers(0, 6, SIZE),
            "metal": np.zeros(SIZE, np.float32),
            "field": np.ones(SIZE, np.float32),
            "anteroposterior_hip": np.float32(number % 4 != 3),
            "implant": np.float32(0),
            "fracture": np.float32(number % 3 == 0),
            "canonical": rng.random((len(REGIONS), len(CANONICAL)), np.float32),
            "canonical_weight": np.ones(len(REGIONS), np.float32),
        }


def a_task(stops_at: int | None = None) -> Task:
    torch.manual_seed(4)
    shape = NetworkShape(
        2,
        len(CHANNELS),
        (16, 24),
        len(VERDICTS),
        canonical=True,
        factors=len(FACTORS),
        regional_verdicts=len(REGIONAL_VERDICTS),
    )
    network = HipNet(shape)
    return Task("hips", network, _hip_loss, lambda _: DrawnHips(stops_at), draws_maps=True)


def a_configuration(stage: Stage) -> NetworkConfiguration:
    return NetworkConfiguration((16, 24), 2, (stage,))


def fit(task: Task, stage: Stage, done: Path, save_every: int = 2) -> dict[str, Tensor]:
    done.parent.mkdir(exist_ok=True)
    fabric = make_fabric(ONE)
    fit_stage(fabric, task, stage, a_configuration(stage), done, 0, seed=1, workers=0, save_every=save_every)
    weights: dict[str, Tensor] = torch.load(done, weights_only=True)
    return weights


# --- one device ---------------------------------------------------------------------------------------------------------
def plain_loop(task: Task, stage: Stage) -> dict[str, Tensor]:
    """The loop as it is without any engine."""
    network, configuration = task.network.to(memory_format=torch.channels_last), a_configuration(stage)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), stage.learning_rate, weight_decay=configuration.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, stage.steps))
    averaging = torch.optim.swa_utils.get_ema_multi_avg_fn(configuration.ema)  # type: ignore[no-untyped-call]
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=averaging, use_buffers=True)
    examples = task.examples(stage)
    network.train()
    for step in range(stage.steps):
        rows = [examples[step * 2], examples[step * 2 + 1]]
        batch = torch.utils.data.default_collate(rows)
        total = torch.stack(
            list(_hip_loss(network(batch["network_input"], batch["technique"]), batch, stage).values())
        ).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
    weights: dict[str, Tensor] = average.module.state_dict()
    return weights


@pytest.mark.skipif(torch.cuda.is_available(), reason="compares processors; a GPU's sums have no fixed order")
@pytest.mark.parametrize(("known", "fast"), [({"amx_bf16": True}, True), ({"amx_bf16": False}, False), ({}, False)])
def test_processors_use_bfloat16_where_they_multiply_in_it(
    known: dict[str, bool], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert has_fast_bfloat16(torch.device("cpu")) is fast


def test_torch_that_cannot_say_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not has_fast_bfloat16(torch.device("cpu"))
    assert has_fast_bfloat16(torch.device("cuda"))


def test_on_one_processor_the_engine_changes_no_bit(tmp_path: Path) -> None:
    stage = Stage(4, 1e-3)
    ours, plain = fit(a_task(), stage, tmp_path / "hips.pt"), plain_loop(a_task(), stage)
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[key], plain[key]) for key in plain)


def test_frozen_statistics_make_an_answer_depend_on_its_own_picture_alone_and_stay_as_they_are(tmp_path: Path) -> None:
    before = fit(a_task(), Stage(4, 1e-3), tmp_path / "moving.pt")
    task = a_task()
    task.network.load_state_dict(before)
    after = fit(task, Stage(4, 1e-3, statistics_frozen=True), tmp_path / "frozen.pt")
    running = [name for name in before if "running" in name]
    assert running and all(torch.equal(before[name], after[name]) for name in running)
    assert not torch.equal(before["encoder.stem.weight"], after["encoder.stem.weight"])

    network = task.network.train()
    pictures, told = torch.randn(2, 2, *SIZE), torch.zeros(2, len(FACTORS))
    shared = network(pictures, told).canonical[:1]
    freeze_statistics(network)
    torch.testing.assert_close(network(pictures, told).canonical[:1], network(pictures[:1], told[:1]).canonical)
    assert not torch.allclose(shared, network(pictures[:1], told[:1]).canonical, rtol=1e-3)  # the other was in it


def test_losses_curves_and_pictures_are_left_for_people(tmp_path: Path) -> None:
    fit(a_task(), Stage(4, 1e-3), tmp_path / "hips.pt", save_every=1)
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and lines[0]["network"] == "hips"
    events = EventAccumulator(str(tmp_path / "events" / "hips")).Reload()
    assert {"loss/maps", "loss/mass", "learning_rate"} <= set(events.Tags()["scalars"])
    assert events.Scalars("loss/maps")[0].value == pytest.approx(
        lines[0]["maps"]
    )  # of step 0, which is the first of all
    (picture,) = events.Images("hips")
    assert picture.step == 3 and picture.width > picture.height > 300


# --- several devices ----------------------------------------------------------------------------------------------------
class Line(nn.Module):
    """Something to fit without BatchNorm, so that shared batches and whole ones must give the same."""

    def __init__(self) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(2, 4, 3, padding=1)

    def forward(self, image: Tensor, _: Tensor) -> Tensor:
        answer: Tensor = self.convolve(image)
        return answer


@dataclass(frozen=True)
class Squares:
    """Loss that every example has the same share in."""

    def __call__(self, answer: Tensor, batch: dict[str, Tensor], _: Stage) -> dict[str, Tensor]:
        return {"squares": (answer - batch["maps"]).square().mean()}


class NotedHips(DrawnHips):
    """Writes down which process saw which number."""

    def __init__(self, notes: Path) -> None:
        super().__init__()
        self.notes = notes

    def __getitem__(self, number: int) -> dict[str, Any]:
        with self.notes.open("a") as lines:
            print(number, file=lines)
        return super().__getitem__(number)


def fit_lines(fabric: Fabric, folder: Path, stage: Stage) -> None:
    """Fit in each process, and let each leave what it ended with."""
    torch.manual_seed(2 + fabric.global_rank)  # other first weights: the engine must make them the same
    task = Task("lines", Line(), Squares(), lambda _: NotedHips(folder / f"numbers{fabric.global_rank}"))
    done = folder / "lines.pt"
    fit_stage(fabric, task, stage, a_configuration(stage), done, 3, seed=1, workers=0, save_every=2)
    torch.save(task.network.state_dict(), folder / f"weights{fabric.global_rank}.pt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="two processes on the processor")
def test_two_processes_share_the_examples_and_learn_what_one_learns(tmp_path: Path) -> None:
    stage = Stage(3, 1e-2)
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    make_fabric(replace(ONE, devices=2)).launch(partial(fit_lines, folder=tmp_path / "two", stage=stage))
    make_fabric(ONE).launch(partial(fit_lines, folder=tmp_path / "one", stage=stage))
    numbers = [[int(n) for n in (tmp_path / "two" / f"numbers{rank}").read_text().split()] for rank in (0, 1)]
    assert numbers == [[6, 8, 10], [7, 9, 11]]
    first, second = (torch.load(tmp_path / "two" / f"weights{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = torch.load(tmp_path / "one" / "weights0.pt", weights_only=True)
    for key, value in first.items():
        assert torch.equal(value, second[key])
        torch.testing.assert_close(value, alone[key], rtol=1e-4, atol=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "two" / "losses.jsonl").read_text().splitlines()]
    assert len(lines) == 1 and np.isfinite(lines[0]["squares"])


class Ranked:
    """What `own_numbers` and `own_batch` ask of a process."""

    def __init__(self, rank: int, size: int) -> None:
        self.global_rank, self.world_size = rank, size


def test_every_step_has_the_same_examples_whatever_the_number_of_devices() -> None:
    for size in (1, 2, 4):
        shares = [own_numbers(Ranked(rank, size), 5, 8, 8) for rank in range(size)]  # type: ignore[arg-type]
        share = own_batch(Ranked(0, size), 8)  # type: ignore[arg-type]
        for step in range(3):
            seen = sorted(n for numbers in shares for n in numbers[step * share : (step + 1) * share])
            assert seen == list(range(8 * (5 + step), 8 * (6 + step)))


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"batch of 8 cannot be shared by 3"):
        own_batch(Ranked(0, 3), 8)  # type: ignore[arg-type]


# --- averages -----------------------------------------------------------------------------------------------------------
def remembered(steps: int, warm_up: bool) -> float:
    """Share of the first weights in the average after that many more."""
    configuration = replace(a_configuration(Stage(1, 1.0)), ema_warm_up=warm_up)
    module = nn.Linear(1, 1, bias=False)
    average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=average_fn(configuration), use_buffers=True)
    for step in range(steps + 1):
        nn.init.constant_(module.weight, float(step == 0))
        average.update_parameters(module)
    return float(average.module.state_dict()["weight"])


def test_an_average_that_warms_up_forgets_the_first_weights() -> None:
    assert remembered(300, False) == pytest.approx(0.995**300, rel=1e-3)
    assert remembered(3, True) == pytest.approx(2 / 11 * 3 / 12 * 4 / 13, rel=1e-5)
    assert remembered(300, True) < 1e-12


# --- configuration ------------------------------------------------------------------------------------------------------
SHIPPED = Path("conf/training/hip.toml")


def test_the_shipped_run_uses_no_option_of_the_losses_and_any_device() -> None:
    run = load_run(SHIPPED)
    assert run.engine.devices == "auto" and not run.decomposer.ema_warm_up
    for stage in run.decomposer.stages:
        assert (stage.gradient_correlation, stage.pelvis_mass, stage.adversarial) == (0, 0, 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[engine]\ndevices = 0\n", r"devices = 0 must be"),
        ('[engine]\nprecision = "64"\n', r"precision = '64' must be one of"),
        (
            "[[locator.stages]]\nsteps = 1\nlearning_rate = 1e-3\nadversarial = 1.0\n",
            r"adversarial is for the decomposer",
        ),
        ("[[locator.stages]]\nsteps = 1\nlearning_rate = 1e-3\npelvis_mass = -1.0\n", r"must not be negative"),
    ],
)
def test_what_no_engine_or_stage_can_do_is_refused_with_its_place(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "run.toml"
    shipped = SHIPPED.read_text(encoding="utf-8")
    engine = re.search(r"\[engine\]\n.*\n", shipped)
    assert engine is not None
    path.write_text(f"{shipped.replace(engine.group(), '')}\n{line}", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message):
        load_run(path)
