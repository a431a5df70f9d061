"""Learning: examples, losses, the loop and its resumption."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from dicomnode.domain.measurement import Region
from dicomnode.errors import ConfigurationError
from dicomnode.inference import frame
from dicomnode.inference.channels import CANONICAL, REGIONS
from dicomnode.inference.frame import Label
from dicomnode.inference.network import SPREAD_RANGE
from dicomnode.inference.technique import FACTORS
from training.anatomy.phantom import make_phantom
from training.anatomy.population import draw_subject
from training.augment import MINERAL_FACTOR, HipExample, finish_hip_example, hip_example, overview_example
from training.config import (
    AtlasConfiguration,
    FractureConfiguration,
    NetworkConfiguration,
    PairsConfiguration,
    RunConfiguration,
    SplitConfiguration,
    Stage,
)
from training.ladders.persons import scaled
from training.losses import (
    HipBatch,
    canonical_loss,
    decomposition_loss,
    edge_loss,
    map_loss,
    masked_mean,
    region_loss,
)
from training.pairs import Pairs, load_beside, load_pairs, make_pairs
from training.split import Split, split_subjects
from training.targets import MARGIN_PX, make_targets, scale_mineral
from training.train import HipExamples, learning_rate_share, measurable, train

LOGARITHMS = np.log(np.full((len(REGIONS), len(CANONICAL)), 2.0, np.float32))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    folder = tmp_path_factory.mktemp("pairs")
    make_pairs(PairsConfiguration(count=2, seed=3), folder)
    return load_pairs(folder)


# --- examples -----------------------------------------------------------------------------------------------------------
def test_an_example_has_the_frame_s_shape_and_follows_from_its_seed(pairs: Pairs) -> None:
    hip = pairs.hip(0)
    arrays = hip.materials.astype(np.float32), hip.targets.astype(np.float32), hip.labels
    one = hip_example(*arrays, True, LOGARITHMS, np.random.default_rng(5))
    other = hip_example(*arrays, True, LOGARITHMS, np.random.default_rng(5))
    assert one.network_input.shape == (2, frame.ROWS, frame.COLUMNS)
    assert one.maps.shape == (4, frame.ROWS, frame.COLUMNS)
    np.testing.assert_array_equal(one.network_input, other.network_input)
    np.testing.assert_array_equal(one.labels, other.labels)


def test_no_example_of_a_wrong_view_is_called_good(pairs: Pairs) -> None:
    hip = pairs.hip(0)
    arrays = hip.materials.astype(np.float32), hip.targets.astype(np.float32), hip.labels
    examples = [hip_example(*arrays, False, LOGARITHMS, np.random.default_rng(seed)) for seed in range(5)]
    assert [example.anteroposterior_hip for example in examples] == [0.0] * 5
    assert not any(example.canonical_weight.any() for example in examples)


def test_a_cut_field_and_a_coarser_system_leave_mass_where_it_is(pairs: Pairs) -> None:
    hip = pairs.hip(1)
    inner = np.s_[:, MARGIN_PX : MARGIN_PX + frame.ROWS, MARGIN_PX : MARGIN_PX + frame.COLUMNS]
    planes = np.concatenate([hip.materials, hip.targets]).astype(np.float32)[inner]
    labels = hip.labels[inner[1:]]
    cut = [finish_hip_example(planes, labels, True, LOGARITHMS, np.random.default_rng(seed)) for seed in range(12)]
    assert any((example.field == 0).any() for example in cut)
    for example in cut:
        np.testing.assert_array_equal(example.labels, labels)
        # Blur carries a little over the border of the frame.
        assert example.maps[0].sum() == pytest.approx(planes[4].sum(), rel=5e-3)
    sharpest, smoothest = (pick(float(np.abs(np.diff(e.maps[0])).max()) for e in cut) for pick in (max, min))
    assert smoothest < 0.9 * sharpest


def test_only_regions_that_are_wholly_seen_teach_their_canonical_figures(pairs: Pairs) -> None:
    hip = pairs.hip(1)
    inner = np.s_[:, MARGIN_PX : MARGIN_PX + frame.ROWS, MARGIN_PX : MARGIN_PX + frame.COLUMNS]
    planes = np.concatenate([hip.materials, hip.targets]).astype(np.float32)[inner]
    labels = hip.labels[inner[1:]]
    examples = [finish_hip_example(planes, labels, True, LOGARITHMS, np.random.default_rng(seed)) for seed in range(20)]
    for example in examples:
        neck_seen = not ((labels == Label.NECK) & (example.field == 0)).any()
        assert bool(example.canonical_weight[REGIONS.index(Region.FEMORAL_NECK)]) is neck_seen
        assert (example.canonical[example.canonical_weight == 0] == 0).all()
    assert {float(example.canonical_weight[0]) for example in examples} == {0.0, 1.0}


def test_a_hip_that_is_shown_larger_has_a_larger_area_and_the_same_densities(pairs: Pairs) -> None:
    hip = pairs.hip(1)
    arrays = hip.materials.astype(np.float32), hip.targets.astype(np.float32), hip.labels
    examples = [hip_example(*arrays, True, LOGARITHMS, np.random.default_rng(seed)) for seed in range(40)]
    whole = [example for example in examples if example.canonical_weight[1] and (example.field == 1).all()]
    assert len(whole) > 3
    is_area = np.array([unit == "cm2" for _, unit in CANONICAL])
    for example in whole:
        shown = (example.labels == Label.NECK).sum() / (hip.labels == Label.NECK).sum()
        grown = np.exp(example.canonical[1] - LOGARITHMS[1])
        assert grown[is_area] == pytest.approx(shown, rel=0.03)
        assert grown[~is_area] == pytest.approx(1.0, rel=1e-5)


def test_scaled_mineral_scales_densities_and_its_maps_alike_and_keeps_outlines(pairs: Pairs) -> None:
    hip = pairs.hip(1)
    materials, targets = hip.materials.astype(np.float32), hip.targets.astype(np.float32)
    more, more_targets = scale_mineral(materials, targets, 1.25)
    np.testing.assert_allclose(more[2], 1.25 * materials[2], rtol=1e-6)
    np.testing.assert_allclose(more_targets[0], 1.25 * targets[0], rtol=1e-6)
    np.testing.assert_array_equal(more_targets[1], targets[1])
    np.testing.assert_array_equal(more[3], materials[3])
    example, plain = (
        hip_example(materials, targets, hip.labels, True, LOGARITHMS, np.random.default_rng(3), share)
        for share in (1.0, 0.0)
    )
    assert not np.allclose(plain.canonical, example.canonical)
    assert example.canonical_weight.any()
    is_area = np.array([unit == "cm2" for _, unit in CANONICAL])
    row = example.canonical[example.canonical_weight > 0][0]
    factor = float(np.exp(row[~is_area] - LOGARITHMS[0][~is_area])[0])
    assert MINERAL_FACTOR[0] <= factor <= MINERAL_FACTOR[1] and factor != pytest.approx(1.0, abs=0.01)
    assert row[~is_area] == pytest.approx(LOGARITHMS[0][~is_area] + np.log(factor))


def test_scaled_mineral_is_what_the_projection_of_the_scaled_phantom_is(pairs: Pairs) -> None:
    phantom = make_phantom(draw_subject(3, 0))
    hip = make_targets(phantom).hips[1]
    truth = make_targets(scaled(phantom, 0.8)).hips[1]
    materials, _ = scale_mineral(hip.materials.astype(np.float32), hip.targets.astype(np.float32), 0.8)
    bone = materials[2] > 0.05
    for index, tolerance_g_cm2 in ((0, 0.05), (1, 0.05), (2, 0.005)):
        error = (materials[index] - truth.materials[index].astype(np.float32))[bone]
        assert abs(error.mean()) < tolerance_g_cm2


def test_metal_counts_as_an_implant_only_where_it_is_seen(pairs: Pairs) -> None:
    planes = np.zeros((7, frame.ROWS, frame.COLUMNS), np.float32)
    planes[0] = 15.0
    labels = np.zeros((frame.ROWS, frame.COLUMNS), np.uint8)
    bare = [finish_hip_example(planes, labels, True, LOGARITHMS, np.random.default_rng(seed)) for seed in range(12)]
    planes[3, -30:, 60:100] = 5.0  # at the foot of the frame, which short fields do not show
    implanted = [
        finish_hip_example(planes, labels, True, LOGARITHMS, np.random.default_rng(seed)) for seed in range(12)
    ]
    assert not any(example.implant for example in bare)
    assert {example.implant for example in implanted} == {0.0, 1.0}
    assert all(bool(e.implant) == bool((e.metal * e.field).sum() > 102) for e in implanted)


def test_an_overview_marks_each_head_on_its_own_side_and_swaps_sides_when_mirrored(pairs: Pairs) -> None:
    overview = pairs.overview(0)
    materials = overview.materials.astype(np.float32)
    for seed in range(10):
        example = overview_example(materials, overview.heads_px, np.random.default_rng(seed))
        peaks = [
            np.unravel_index(channel.argmax(), channel.shape)[1] for channel in example.heat if channel.max() > 0.5
        ]
        if len(peaks) == 2:
            assert peaks[0] < peaks[1]  # the right hip is at the left, as displayed


def test_the_tube_voltage_is_told_as_often_as_the_stage_says_and_changes_nothing_else(pairs: Pairs) -> None:
    hip = pairs.hip(0)
    arrays = hip.materials.astype(np.float32), hip.targets.astype(np.float32), hip.labels

    def examples(told: float) -> list[HipExample]:
        return [hip_example(*arrays, True, LOGARITHMS, np.random.default_rng(s), voltage_told=told) for s in range(8)]

    never, sometimes, always = examples(0.0), examples(0.5), examples(1.0)
    for one, other in zip(never, always, strict=True):
        np.testing.assert_array_equal(one.network_input, other.network_input)
        assert not one.technique.any() and other.technique[1] == 1
    assert len({float(example.technique[0]) for example in always}) > 3  # the voltage of each exposure
    assert 0 < sum(float(example.technique[1]) for example in sometimes) < 8


def test_a_stage_draws_its_share_from_the_atlas_and_the_other_examples_stay_the_same(pairs: Pairs) -> None:
    alone = HipExamples(pairs, np.arange(2), 1, Stage(1, 1e-3))
    mixed = HipExamples(pairs, np.arange(2), 1, Stage(1, 1e-3, atlas=0.5), {"atlas": pairs})
    same = [np.array_equal(alone[n]["network_input"], mixed[n]["network_input"]) for n in range(12)]
    assert 0 < sum(same) < 12
    absent = HipExamples(pairs, np.arange(2), 1, Stage(1, 1e-3, atlas=0.5), None)
    assert all(np.array_equal(alone[n]["network_input"], absent[n]["network_input"]) for n in range(4))


def test_a_network_that_refuses_nothing_learns_from_whole_good_hips_alone(pairs: Pairs) -> None:
    stage = Stage(1, 1e-3)
    everything, measurable = (HipExamples(pairs, np.arange(4), 1, stage, spoiled=spoiled) for spoiled in (True, False))
    good = [measurable[number] for number in range(12)]
    assert all(one["anteroposterior_hip"] == 1 and one["field"].all() and one["implant"] == 0 for one in good)
    assert any(not one["field"].all() for one in map(everything.__getitem__, range(12)))


def test_metal_and_other_views_are_not_measurable(pairs: Pairs) -> None:
    good = {"has_metal": False, "is_frog_leg": False}
    table = (good, {**good, "has_metal": True}, {**good, "is_frog_leg": True}, good)
    assert measurable(Pairs(pairs.folder, table), np.arange(4)).tolist() == [0, 3]
    with pytest.raises(ConfigurationError, match="none of 2 hips can be measured"):
        measurable(Pairs(pairs.folder, table), np.array([1, 2]))


def test_persons_with_atlas_bones_are_stored_as_pairs_and_not_mixed_with_phantoms(
    reference_data: Path, tmp_path: Path
) -> None:
    asked = AtlasConfiguration(count=1, seed=3)
    run = replace(a_run(1), atlas=asked)
    assert load_beside(tmp_path, run) == {}  # none made: the run goes on without
    make_pairs(asked, tmp_path / "atlas", anatomy=reference_data / "anatomy")
    (atlas,) = load_beside(tmp_path, run).values()
    assert atlas.count == 1
    phantom = make_targets(make_phantom(draw_subject(3, 0))).hips[0].figures["canonical"]["total_hip"]["area_cm2"]
    assert abs(atlas.hip(0).figures["canonical"]["total_hip"]["area_cm2"] - phantom) > 0.1  # the bones are others
    with pytest.raises(ValueError, match="bones"):
        make_pairs(PairsConfiguration(count=1, seed=3), tmp_path / "atlas")
    with pytest.raises(ConfigurationError, match="1 of 2 persons"):
        load_beside(tmp_path, replace(run, atlas=AtlasConfiguration(count=2, seed=3)))


def test_broken_persons_are_stored_apart_and_learned_from_as_broken(tmp_path: Path) -> None:
    asked = FractureConfiguration(count=1, seed=2)
    make_pairs(asked, tmp_path / "fractures")
    (fractures,) = load_beside(tmp_path, replace(a_run(1), fractures=asked)).values()
    assert all(figures["fracture"] and not figures["has_metal"] for figures in fractures.table)
    with pytest.raises(ValueError, match="broken"):
        make_pairs(PairsConfiguration(count=1, seed=2), tmp_path / "fractures")

    hips = HipExamples(fractures, np.arange(2), 1, Stage(1, 1e-3, fractures=1.0), {"fractures": fractures})
    examples = [hips[number] for number in range(12)]
    known = [one["fracture"] for one in examples if np.isfinite(one["fracture"])]
    assert known and all(value == 1 for value in known)
    assert not any(one["canonical_weight"].any() for one in examples)  # a broken bone has no figures to learn


def test_whole_bones_are_learned_from_as_whole_and_what_is_not_seen_as_unknown(pairs: Pairs) -> None:
    examples = [HipExamples(pairs, np.arange(4), 1, Stage(1, 1e-3))[number] for number in range(24)]
    told = [np.isfinite(one["fracture"]) for one in examples]
    assert 0 < sum(told) < 24
    assert all(one["fracture"] == 0 for one, known in zip(examples, told, strict=True) if known)
    assert all(one["anteroposterior_hip"] == 1 for one, known in zip(examples, told, strict=True) if known)


def test_a_stage_of_verdicts_alone_leaves_what_is_measured_as_it_was(pairs: Pairs, tmp_path: Path) -> None:
    run = a_run(2)
    stages = (*run.decomposer.stages, Stage(2, 1e-2, statistics_frozen=True, verdicts_only=True))
    train(replace(run, decomposer=replace(run.decomposer, stages=stages)), pairs, ALL, tmp_path, workers=0)
    before, after = (
        torch.load(tmp_path / name, weights_only=True) for name in ("decomposer.stage2.pt", "decomposer.pt")
    )
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"verdict", "regional_verdict"}


# --- losses -------------------------------------------------------------------------------------------------------------
def a_batch() -> HipBatch:
    maps = torch.rand(2, 4, 32, 32)
    labels = torch.randint(1, 6, (2, 32, 32))
    blank = torch.zeros(2, 32, 32)
    figures = torch.rand(2, len(REGIONS), len(CANONICAL)), torch.ones(2, len(REGIONS))
    inputs = torch.zeros(2, 2, 32, 32), torch.zeros(2, len(FACTORS))
    verdicts = torch.ones(2), torch.zeros(2), torch.zeros(2)
    return HipBatch(*inputs, maps, labels, blank, blank + 1, *verdicts, *figures)


def stated(batch: HipBatch, error: float, spread: float) -> torch.Tensor:
    return torch.stack([batch.canonical + error, torch.full_like(batch.canonical, spread)], 1)


def test_a_perfect_decomposition_loses_nothing() -> None:
    batch = a_batch()
    logits = 60 * torch.nn.functional.one_hot(batch.labels, 6).permute(0, 3, 1, 2).float()
    metal, field = batch.metal[:, None] - 60, batch.field[:, None] * 60
    channels = torch.cat([batch.maps, logits, metal, field], 1)
    terms = decomposition_loss(
        channels, torch.tensor([[60.0, -60.0, -60.0]] * 2), stated(batch, 0, SPREAD_RANGE[0]), batch
    )
    assert all(float(term) == pytest.approx(0, abs=1e-6) for term in terms.values())


def test_region_loss_is_the_relative_error_of_mass() -> None:
    batch = a_batch()
    labels = torch.full((2, 32, 32), int(Label.NECK))
    loss = region_loss(1.1 * batch.maps[:, :2], batch.maps[:, :2], labels, batch.field)
    assert float(loss) == pytest.approx(0.1, rel=1e-4)


def test_what_lies_outside_the_field_or_under_metal_is_not_learned_from() -> None:
    batch = a_batch()
    hidden = replace(batch, field=torch.zeros_like(batch.field))
    figures = stated(batch, 0, 0)
    terms = decomposition_loss(torch.rand(2, 12, 32, 32), torch.zeros(2, 3), figures, hidden)
    assert float(terms["maps"]) == 0 and float(terms["edges"]) == 0 and float(terms["labels"]) == 0
    under_metal = replace(batch, metal=torch.ones_like(batch.metal))
    assert float(decomposition_loss(torch.rand(2, 12, 32, 32), torch.zeros(2, 3), figures, under_metal)["maps"]) == 0


def test_a_canonical_figure_s_error_is_relative_and_its_best_spread_is_the_error() -> None:
    batch = a_batch()
    assert float(canonical_loss(stated(batch, 0.1, 0), batch.canonical, batch.canonical_weight)["canonical"]) == (
        pytest.approx(0.2, rel=1e-4)
    )
    losses = {
        spread: float(canonical_loss(stated(batch, 0.1, spread), batch.canonical, batch.canonical_weight)["spread"])
        for spread in (-4.0, float(np.log(0.1)), -1.0)
    }
    assert min(losses, key=losses.__getitem__) == pytest.approx(np.log(0.1))
    unseen = torch.zeros_like(batch.canonical_weight)
    assert float(sum(canonical_loss(stated(batch, 9.0, 0), batch.canonical, unseen).values())) == 0


def test_map_and_edge_losses_have_their_closed_form() -> None:
    target, weight = torch.zeros(1, 4, 8, 8), torch.ones(1, 8, 8)
    assert float(map_loss(target + 1, target, weight)) == pytest.approx(1.0 + 0.5 + 0.5 + 0.02)
    ramp = torch.arange(8.0)[None, None, :].expand(1, 8, 8)
    assert float(edge_loss(ramp, torch.zeros(1, 8, 8), weight)) == pytest.approx(1.0)
    assert float(masked_mean(ramp, torch.zeros(1, 8, 8))) == 0


# --- the loop -----------------------------------------------------------------------------------------------------------
def a_run(steps: int) -> RunConfiguration:
    network = NetworkConfiguration((16, 24, 32), 2, (Stage(steps, 1e-3), Stage(1, 1e-3, mineral_scaled=0.5)))
    return RunConfiguration(
        "t", "0", 1, PairsConfiguration(2, 3), SplitConfiguration(0.1, 0.1), network, network, regressor=network
    )


ALL = Split(np.array([0, 1]), np.array([0]), np.array([1]))


def test_an_interrupted_run_goes_on_to_the_weights_it_would_have_had(pairs: Pairs, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    class Stops(Pairs):
        def overview(self, subject: int):  # type: ignore[no-untyped-def]
            raise Interrupted

    train(a_run(4), pairs, ALL, tmp_path / "whole", workers=0, save_every=2)
    with pytest.raises(Interrupted):
        train(a_run(4), Stops(pairs.folder, pairs.table), ALL, tmp_path / "parts", workers=0, save_every=2)
    train(a_run(4), pairs, ALL, tmp_path / "parts", workers=0, save_every=2)
    for name in ("decomposer.stage1.pt", "decomposer.pt", "locator.pt", "regressor.pt"):
        whole = torch.load(tmp_path / "whole" / name, weights_only=True)
        parts = torch.load(tmp_path / "parts" / name, weights_only=True)
        assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_run_resumed_from_a_checkpoint_ends_like_one_that_was_not(pairs: Pairs, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    class StopsAfter(Pairs):
        def hip(self, number: int):  # type: ignore[no-untyped-def]
            calls.append(number)
            if len(calls) > 5:
                raise Interrupted
            return super().hip(number)

    calls: list[int] = []
    with pytest.raises(Interrupted):
        train(a_run(4), StopsAfter(pairs.folder, pairs.table), ALL, tmp_path / "parts", workers=0, save_every=2)
    assert (tmp_path / "parts" / "decomposer.stage1.checkpoint.pt").exists()
    train(a_run(4), pairs, ALL, tmp_path / "parts", workers=0, save_every=2)
    train(a_run(4), pairs, ALL, tmp_path / "whole", workers=0, save_every=2)
    whole = torch.load(tmp_path / "whole" / "decomposer.pt", weights_only=True)
    parts = torch.load(tmp_path / "parts" / "decomposer.pt", weights_only=True)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-6)


def test_the_end_of_a_run_with_other_stages_is_not_taken_for_this_one_s(pairs: Pairs, tmp_path: Path) -> None:
    (tmp_path / "decomposer.pt").touch()
    with pytest.raises(ConfigurationError, match=r"decomposer.stage1.pt is not there"):
        train(a_run(1), pairs, ALL, tmp_path, workers=0)


def test_a_stage_begins_with_the_weights_of_the_one_before_and_draws_new_examples(pairs: Pairs, tmp_path: Path) -> None:
    numbers: list[int] = []

    class Counts(HipExamples):
        def __getitem__(self, number: int):  # type: ignore[no-untyped-def]
            numbers.append(number)
            return super().__getitem__(number)

    run = replace(a_run(2), regressor=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.train.HipExamples", Counts)
        train(run, pairs, ALL, tmp_path, workers=0)
    assert numbers == [0, 1, 2, 3, 4, 5]
    before, after = (
        torch.load(tmp_path / f"decomposer{part}.pt", weights_only=True)["encoder.stem.weight"]
        for part in (".stage1", "")
    )
    assert 0 < float((after - before).abs().max()) < 1e-3  # one averaged step from there, not a new start


def test_the_learning_rate_rises_for_a_tenth_and_ends_at_zero() -> None:
    shares = [learning_rate_share(step, 100) for step in range(101)]
    assert max(shares) == pytest.approx(1.0, abs=0.01) and shares.index(max(shares)) in (9, 10)
    assert shares[-1] == pytest.approx(0.0, abs=1e-9)
    assert all(a >= b for a, b in pairwise(shares[10:]))


def test_no_patient_is_in_two_parts_of_the_split() -> None:
    split = split_subjects(100, SplitConfiguration(validation=0.12, test=0.2))
    parts = [set(split.training.tolist()), set(split.validation.tolist()), set(split.test.tolist())]
    assert [len(part) for part in parts] == [68, 12, 20]
    assert set.union(*parts) == set(range(100)) and sum(map(len, parts)) == 100
