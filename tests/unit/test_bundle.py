"""A bundle is trusted only whole: every damage ends in an error that says what to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dicomnode.domain.measurement import TrainingData
from dicomnode.domain.radiograph import Side
from dicomnode.errors import BundleError, ConfigurationError
from dicomnode.inference.bundle import load_bundle
from dicomnode.inference.channels import CANONICAL, CHANNELS, REGIONS, VERDICTS
from dicomnode.inference.network import (
    SPREAD_RANGE,
    CanonicalHead,
    HipNet,
    NetworkShape,
    Regressor,
    RegressorShape,
    RunningNorm,
    regional_width,
)
from dicomnode.inference.predictor import HipCandidate, Predictor, on_image, one_head_one_side, peak, peaks, sigmoid
from dicomnode.inference.technique import FACTORS, TRAINED_KV, technique
from tests.tiny_bundle import write_tiny_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundle")


def test_a_whole_bundle_loads_and_its_digest_names_it(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert len(bundle.identity.digest) == 64
    assert bundle.limits.femur_area_cm2 == (10.0, 150.0)


def damage_json(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        document = json.loads((folder / "model.json").read_text())
        change(document)
        (folder / "model.json").write_text(json.dumps(document))

    return apply


def flip_a_byte(folder: Path) -> None:
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "SHA-256"),
        (lambda folder: (folder / "model.json").write_text("{"), "no readable model bundle"),
        (lambda folder: (folder / "weights.safetensors").unlink(), "no weights.safetensors"),
        (damage_json(lambda document: document.pop("limits")), "lacks limits"),
        (damage_json(lambda document: document.update(format=99)), "format 99"),
        (damage_json(lambda document: document.update(intensity_transform="other")), "intensity_transform"),
        (damage_json(lambda document: document["frame"].update(rows=1)), "frame"),
        (damage_json(lambda document: document["networks"]["locator"].update(outputs=3)), "locator"),
    ],
)
def test_a_damaged_bundle_is_refused_with_its_reason(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


def test_the_network_answers_at_the_input_s_size() -> None:
    network = HipNet(NetworkShape(inputs=2, outputs=5, widths=(8, 12, 16), verdicts=1)).eval()
    answer = network(torch.zeros(3, 2, 64, 48))
    assert answer.channels.shape == (3, 5, 64, 48) and answer.verdicts.shape == (3, 1)
    assert answer.canonical.shape == (3, 0)


def test_what_is_told_of_the_technique_changes_the_answer_only_once_it_was_learned() -> None:
    network = HipNet(NetworkShape(2, 5, (8, 12, 16), factors=len(FACTORS))).eval()
    picture = torch.rand(1, 2, 64, 48)

    def answer(kilovolt: float | None) -> torch.Tensor:
        channels: torch.Tensor = network(picture, torch.from_numpy(technique(kilovolt))[None]).channels
        return channels

    assert torch.equal(answer(70.0), network(picture).channels)
    assert network.encoder.context.told is not None
    torch.nn.init.constant_(network.encoder.context.told, 0.5)
    assert torch.equal(answer(None), network(picture).channels)
    assert not torch.allclose(answer(70.0), answer(90.0))
    assert torch.equal(answer(120.0), answer(TRAINED_KV[1]))  # beyond what was trained, the nearest voltage that was


def test_no_input_makes_a_canonical_figure_s_spread_boundless() -> None:
    head = CanonicalHead(coarse=8, fine=4).eval()
    torch.nn.init.constant_(head.mix[-1].bias, 1e4)  # type: ignore[arg-type]
    answer = head(torch.zeros(1, 16), torch.zeros(1, regional_width(4)))
    assert answer.shape == (1, 2, len(REGIONS), len(CANONICAL))
    assert (answer[:, 1] == SPREAD_RANGE[1]).all()


def test_figures_are_read_in_full_precision_whatever_the_convolutions_compute_in() -> None:
    torch.manual_seed(0)
    decomposer = HipNet(NetworkShape(2, len(CHANNELS), (16, 24), len(VERDICTS), canonical=True)).eval()
    regressor = Regressor(RegressorShape(2, (16, 24), len(FACTORS))).eval()
    picture, told = torch.rand(2, 2, 64, 48), torch.zeros(2, len(FACTORS))
    with torch.autocast("cpu", torch.bfloat16):
        answers = decomposer(picture).canonical, regressor(picture, told)
    for answer in answers:
        spreads = answer[:, 1]  # the figures themselves have something added that is exact anyhow
        assert not torch.equal(spreads, spreads.bfloat16().float())


def test_what_a_bundle_was_trained_on_follows_from_what_it_says_of_its_making(folder: Path) -> None:
    assert load_bundle(folder).identity.trained_on is TrainingData.SIMULATED
    damage_json(lambda document: document.update(provenance={"real": {}}))(folder)
    assert load_bundle(folder).identity.trained_on is TrainingData.SIMULATED_AND_REAL
    damage_json(lambda document: document.update(provenance={"start": {"trained_on": "simulated"}}))(folder)
    assert load_bundle(folder).identity.trained_on is TrainingData.SIMULATED
    damage_json(lambda document: document.update(provenance={"start": {"trained_on": "simulated_and_real"}}))(folder)
    assert load_bundle(folder).identity.trained_on is TrainingData.SIMULATED_AND_REAL
    damage_json(lambda document: document.update(trained_on_simulation=False))(folder)
    assert load_bundle(folder).identity.trained_on is TrainingData.REAL


def test_regions_are_normalised_by_what_many_batches_held_and_not_by_their_own() -> None:
    torch.manual_seed(0)
    norm, usual = RunningNorm(3, momentum=0.05), torch.tensor([5.0, -2.0, 0.0])
    for _ in range(400):
        norm(usual + 2 * torch.randn(8, 3))
    beside = norm(usual + 2 * torch.tensor([[0.0, 1.0, -1.0]]))  # in training too, and alone
    np.testing.assert_allclose(beside.numpy(), [[0.0, 1.0, -1.0]], atol=0.3)
    before = norm.mean.clone()
    norm.eval()(100 * torch.ones(8, 3))
    assert torch.equal(norm.mean, before)


def test_asking_for_cuda_without_a_gpu_is_an_error_that_says_what_to_set(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigurationError, match="auto"):
        Predictor(load_bundle(folder), device="cuda")


def test_a_peak_is_found_to_a_fraction_of_a_pixel() -> None:
    rows, columns = np.indices((64, 64)) + 0.5
    heat = np.exp(-((rows - 20.3) ** 2 + (columns - 40.7) ** 2) / 8).astype(np.float32)
    column, row, score = peak(heat)
    assert (column, row) == pytest.approx((40.7, 20.3), abs=0.1)
    assert score > 0.9


def test_a_head_is_never_taken_for_both_sides() -> None:
    right = HipCandidate(Side.RIGHT, (100.0, 300.0), 0.9)
    same_head = HipCandidate(Side.LEFT, (110.0, 310.0), 0.8)
    left = HipCandidate(Side.LEFT, (800.0, 300.0), 0.6)
    assert one_head_one_side([left, same_head, right], (0.25, 0.25)) == [right, left]
    assert one_head_one_side([same_head, right], (0.25, 0.25)) == [right]


@pytest.mark.parametrize(("head", "seen"), [((0.5, 99.5), True), ((-3.0, 50.0), False), ((40.0, 100.5), False)])
def test_a_head_beyond_the_image_s_border_is_none(head: tuple[float, float], seen: bool) -> None:
    assert on_image(HipCandidate(Side.RIGHT, head, 0.9), (100, 80)) is seen


def test_a_second_peak_is_another_head() -> None:
    rows, columns = np.indices((128, 128)) + 0.5
    heat = sum(
        height * np.exp(-((rows - 60.5) ** 2 + (columns - x) ** 2) / 8)
        for x, height in ((30.5, 0.9), (34.5, 0.8), (90.5, 0.7))
    )
    first, second = peaks(np.asarray(heat, np.float32))
    assert first[0] == pytest.approx(31, abs=2) and second[0] == pytest.approx(90.5, abs=0.5)


def test_the_logistic_function_bears_large_logits() -> None:
    values = sigmoid(np.array([-1e4, 0.0, 1e4], np.float32))
    assert values == pytest.approx([0, 0.5, 1])


def test_a_device_without_memory_is_want_of_memory_and_no_fault_of_the_image(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(HipNet, "forward", exhausted)
    with pytest.raises(MemoryError, match="cpu device has not enough free memory"):
        Predictor(load_bundle(folder), "cpu").locate(np.random.default_rng(0).random((64, 64)).astype("f4"), (1.0, 1.0))
