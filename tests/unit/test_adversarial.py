"""Losses that a stage may add: edges, the pelvis's mass, and discriminators."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.test_engine import ONE, SIZE, DrawnHips, a_task, fit
from training import adversarial
from training.adversarial import Adversary, Discriminators
from training.config import Stage
from training.engine import make_fabric
from training.losses import HipBatch, gradient_correlation_loss, pelvis_loss


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversarial, "_WIDTH", 8)


def a_batch(count: int = 4) -> HipBatch:
    hips = DrawnHips()
    batch = HipBatch(**torch.utils.data.default_collate([hips[number] for number in range(count)]))
    batch.field[:, :, 64:] = 0
    return batch


# --- closed forms -------------------------------------------------------------------------------------------------------
def test_maps_with_the_same_edges_correlate_whatever_their_level_and_scale() -> None:
    true, weight = torch.rand(2, 2, 32, 24), torch.ones(2, 32, 24)
    assert float(gradient_correlation_loss(3 * true + 1, true, weight)) == pytest.approx(0, abs=1e-4)
    assert float(gradient_correlation_loss(-true, true, weight)) == pytest.approx(2, abs=1e-4)
    assert float(gradient_correlation_loss(torch.ones_like(true), true, weight)) == pytest.approx(1, abs=1e-4)


def test_edges_along_rows_say_nothing_of_edges_along_columns() -> None:
    along = torch.sin(torch.arange(32.0) * torch.pi / 4)
    rows, columns = along[:, None].expand(32, 32)[None, None], along[None].expand(32, 32)[None, None]
    weight = torch.ones(1, 32, 32)
    assert float(gradient_correlation_loss(rows, columns, weight)) == pytest.approx(1, abs=1e-4)
    # Half of the derivatives agree, half have nothing to agree with: each direction has its own correlation.
    both = gradient_correlation_loss(rows + columns, columns, weight)
    assert float(both) == pytest.approx(0, abs=1e-4)


def test_edges_outside_of_the_weight_and_maps_without_edges_are_left_out() -> None:
    true = torch.rand(1, 1, 32, 32)
    weight = torch.ones(1, 32, 32)
    weight[:, :, 16:] = 0
    other = torch.where(weight[:, None] > 0, true, torch.rand(1, 1, 32, 32))
    assert float(gradient_correlation_loss(other, true, weight)) == pytest.approx(0, abs=1e-4)
    flat = torch.zeros(1, 1, 32, 32)
    assert float(gradient_correlation_loss(true, flat, weight)) == 0
    prediction = torch.ones_like(true).requires_grad_()
    gradient_correlation_loss(prediction, true, weight).backward()  # type: ignore[no-untyped-call]
    assert prediction.grad is not None and bool(prediction.grad.isfinite().all())


def test_pelvis_loss_is_the_relative_error_of_its_mass_where_it_is_seen() -> None:
    true = torch.rand(2, 32, 24)
    true[1] = 0  # no pelvis in sight: nothing to learn
    weight = torch.ones(2, 32, 24)
    weight[:, :4] = 0
    made = torch.where(weight > 0, 0.8 * true, 7.0)
    assert float(pelvis_loss(made, true, weight)) == pytest.approx(0.2, rel=1e-4)
    assert float(pelvis_loss(made, true, 0 * weight)) == 0


# --- discriminators -----------------------------------------------------------------------------------------------------
def test_discriminators_learn_to_tell_two_levels_of_density_apart() -> None:
    batch = a_batch()
    adversary = Adversary(make_fabric(ONE), 2, seed=3)
    made = 0.3 * batch.maps
    losses = [float(adversary.learn(made, batch)["discriminators"]) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
    told = float(adversary.terms(made, batch)["adversarial"])
    assert told > float(adversary.terms(batch.maps, batch)["adversarial"])


def test_true_maps_have_the_features_of_true_maps() -> None:
    batch = a_batch()
    terms = Adversary(make_fabric(ONE), 2, seed=3).terms(batch.maps, batch)
    assert float(terms["features"]) == 0 and float(terms["adversarial"]) > 0


def test_what_is_hidden_and_hips_in_another_view_are_not_shown_and_teach_nothing() -> None:
    batch = a_batch()  # its last hip is no AP hip, and the right third of each lies outside of the field
    adversary = Adversary(make_fabric(ONE), 2, seed=3)
    maps = torch.rand_like(batch.maps).requires_grad_()
    total: Tensor = torch.stack(list(adversary.terms(maps, batch).values())).sum()
    total.backward()  # type: ignore[no-untyped-call]
    assert maps.grad is not None
    assert bool((maps.grad[3] == 0).all()) and bool((maps.grad[:, :, :, 64:] == 0).all())
    assert bool((maps.grad[:3, :, :, :64] != 0).any())
    assert all(weight.grad is None for weight in adversary.discriminators.parameters())


def test_each_scale_sees_half_the_resolution_of_the_one_before() -> None:
    scores = [scale[-1].shape[2:] for scale in Discriminators(6)(torch.zeros(1, 6, *SIZE))]
    assert scores == [(14, 10), (6, 4), (2, 1)]


def test_a_resumed_adversarial_stage_ends_with_the_weights_of_one_that_was_not_interrupted(tmp_path: Path) -> None:
    stage = Stage(4, 1e-3, gradient_correlation=0.5, pelvis_mass=0.5, adversarial=0.1)
    whole = fit(a_task(), stage, tmp_path / "whole" / "hips.pt")
    with pytest.raises(InterruptedError):
        fit(a_task(stops_at=6), stage, tmp_path / "parts" / "hips.pt")
    kept = torch.load(tmp_path / "parts" / "hips.checkpoint.pt", weights_only=True)
    assert {"discriminators", "discriminator_optimizer"} <= kept.keys()
    parts = fit(a_task(), stage, tmp_path / "parts" / "hips.pt")
    plain = fit(a_task(), Stage(4, 1e-3), tmp_path / "plain" / "hips.pt")
    assert whole.keys() == parts.keys() == plain.keys()
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(plain[key], value) for key, value in whole.items())
