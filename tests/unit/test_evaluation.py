"""From cases to limits, intervals, figures and the model card."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dicomnode.domain.measurement import Region
from dicomnode.domain.radiograph import Technique
from dicomnode.errors import ConfigurationError
from dicomnode.inference.bundle import Intervals
from dicomnode.inference.channels import CANONICAL as STATED
from dicomnode.inference.channels import CHANNELS, REGIONS, VERDICTS
from dicomnode.inference.network import HipNet, NetworkShape, Regressor, RegressorShape
from dicomnode.inference.technique import CORRECTED
from training.cases import CANONICAL, PROJECTED, QUANTITY_LABELS, RegionCase
from training.config import load_run
from training.evaluate import (
    HipReading,
    summarise,
    write_evaluation,
)
from training.export import (
    NothingLearned,
    corrected_case,
    find_intervals,
    find_limits,
    regressed_shares,
    require_readings,
    systematic_errors,
    technique_corrections,
    write_weights,
)
from training.model_card import model_card
from training.whole import WholeCase

SHIPPED_RUN = Path(__file__).resolve().parents[2] / "conf" / "training" / "hip.toml"


NONE = Intervals({}, {})


def some_cases(count: int = 60, sd: float = 0.03) -> list[RegionCase]:
    rng = np.random.default_rng(0)
    cases = []
    for number in range(count):
        for region in Region:
            truth = {name: max(0.3, float(rng.normal(0.8, 0.15))) for name in QUANTITY_LABELS}
            spread = {name: float(rng.uniform(0.5, 2) * sd) for name in CANONICAL}
            prediction = {name: truth[name] * float(np.exp(rng.normal(0, spread[name]))) for name in CANONICAL}
            prediction[PROJECTED] = truth[PROJECTED] + float(rng.normal(0, sd))
            decomposed, regressed = (
                {name: truth[name] * float(np.exp(rng.normal(0, times * sd))) for name in CANONICAL} for times in (3, 4)
            )
            cases.append(
                RegionCase(number, "R", region.value, "native", "", truth, prediction, spread, decomposed, regressed)
            )
    refused = dict.fromkeys(QUANTITY_LABELS, 0.8)
    cases.append(RegionCase(count, "L", Region.TOTAL_HIP.value, "implant", "implant", refused, {}, {}, {}, {}))
    return cases


def test_intervals_cover_about_nine_of_ten_and_are_as_wide_as_the_errors_are() -> None:
    intervals = find_intervals(some_cases(400))
    assert intervals.projected["total_hip"] == pytest.approx(1.645 * 0.03, rel=0.15)  # the normal distribution's 90 %
    # Spreads differ fourfold from case to case, and each is the right one: their multiple is the normal distribution's too.
    assert intervals.canonical["total_hip"]["areal_bmd_g_cm2"] == pytest.approx(1.645, rel=0.15)
    summary = summarise(some_cases(400), intervals)
    assert set(summary.coverage["total_hip"]) == set(QUANTITY_LABELS)
    assert list(summary.coverage["total_hip"].values()) == pytest.approx([0.9] * len(QUANTITY_LABELS), abs=0.01)


def test_what_is_read_too_high_throughout_is_found_by_region_and_quantity() -> None:
    cases = [
        replace(case, regressed={**case.regressed, "area_cm2": 1.05 * case.regressed["area_cm2"]})
        if case.region == "trochanter"
        else case
        for case in some_cases(400)
    ]
    found = systematic_errors(cases)
    wanted = np.zeros((len(REGIONS), len(STATED)))
    wanted[REGIONS.index(Region.TROCHANTER), [name for name, _ in STATED].index("area_cm2")] = np.log(1.05)
    np.testing.assert_allclose(found["regressor"], wanted, atol=0.02)
    np.testing.assert_allclose(found["decomposer"], 0, atol=0.02)


def test_written_weights_read_lower_by_the_offsets_and_are_as_certain_as_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = HipNet(NetworkShape(2, len(CHANNELS), (8, 16), len(VERDICTS), canonical=True)).eval()
    torch.save(network.state_dict(), tmp_path / "decomposer.pt")
    torch.save({}, tmp_path / "locator.pt")
    regressor = Regressor(RegressorShape(2, (8, 16), 2)).eval()
    torch.save(regressor.state_dict(), tmp_path / "regressor.pt")
    rng = np.random.default_rng(0)
    offsets = {name: rng.uniform(-0.1, 0.1, (len(REGIONS), len(STATED))) for name in ("decomposer", "regressor")}
    picture, told = torch.rand(1, 2, 32, 32), torch.zeros(1, 2)
    before = {"decomposer": network(picture).canonical, "regressor": regressor(picture, told)}
    files = {name: tmp_path / f"{name}.pt" for name in ("locator", "decomposer", "regressor")}
    write_weights(files, tmp_path / "weights.safetensors", offsets)
    stored = load_file(tmp_path / "weights.safetensors")
    for name, loaded in (("decomposer", network), ("regressor", regressor)):
        own = {key: tensor.float() for key, tensor in stored.items() if key.startswith(name)}
        loaded.load_state_dict({key.removeprefix(f"{name}."): tensor for key, tensor in own.items()})
    after = {"decomposer": network(picture).canonical, "regressor": regressor(picture, told)}
    for name, offset in offsets.items():
        figures, spreads = (after[name] - before[name])[0].detach().numpy()
        assert figures == pytest.approx(-offset, abs=2e-3) and spreads == pytest.approx(0 * offset, abs=2e-3)


def test_the_reading_that_errs_less_weighs_more_and_as_least_squares_says() -> None:
    shares = regressed_shares(some_cases(4000))
    assert shares == pytest.approx(np.full(shares.shape, 9 / 25), abs=0.03)  # errors of 3 and 4 that go their own ways
    alone = [replace(case, regressed={}) for case in some_cases()]
    assert (regressed_shares(alone) == 0).all()


def test_corrections_find_what_copper_and_phosphor_shift_and_take_it_away() -> None:
    rng = np.random.default_rng(3)
    cases = []
    for case in some_cases(800, sd=0.01):
        copper, storage = float(rng.choice([0.0, 0.1, 0.2])), float(rng.random() < 0.25)
        seen, straight = np.exp(-0.15 * copper + 0.02 * storage), np.exp(-0.3 * copper)
        shifted = {
            part: {name: value * (factor if name != "area_cm2" else 1.0) for name, value in getattr(case, part).items()}
            for part, factor in (("decomposed", seen), ("regressed", straight))
        }
        technique = Technique(80.0, copper, bool(storage))
        cases.append(
            replace(case, decomposed=shifted["decomposed"], regressed=shifted["regressed"], technique=technique)
        )
    tables, usual = technique_corrections(cases)
    assert usual["copper_mm"] == pytest.approx(0.1, abs=0.01)
    place = (
        CORRECTED.index("copper_mm"),
        REGIONS.index(Region.FEMORAL_NECK),
        [name for name, _ in STATED].index("areal_bmd_g_cm2"),
    )
    assert tables["decomposer"][place] == pytest.approx(0.15, abs=0.03)
    assert tables["regressor"][place] == pytest.approx(0.3, abs=0.03)
    assert tables["decomposer"][CORRECTED.index("storage_phosphor")][place[1:]] == pytest.approx(-0.02, abs=0.01)
    assert tables["decomposer"][0, :, [name for name, _ in STATED].index("area_cm2")] == pytest.approx(0, abs=0.04)
    again, _ = technique_corrections([corrected_case(case, tables, usual) for case in cases])
    assert all(np.abs(table).max() < 1e-5 for table in again.values())


def test_where_no_header_says_anything_nothing_is_corrected() -> None:
    tables, usual = technique_corrections(some_cases())
    assert all((table == 0).all() for table in tables.values())
    case = some_cases()[0]
    assert corrected_case(case, tables, usual) == case
    alike = [replace(case, technique=Technique(None, 0.0, False)) for case in some_cases()]
    tables, _ = technique_corrections(alike)
    assert all((table == 0).all() for table in tables.values())  # a factor that was not varied


def abmd(value: float) -> dict[str, float]:
    return {"areal_bmd_g_cm2": value}


def test_networks_that_read_next_to_nothing_make_no_bundle() -> None:
    cases = some_cases(12)
    require_readings(cases)
    unread = [
        replace(case, refused="cut_off", prediction={}, spread={}) if case.subject > 3 else case for case in cases
    ]
    with pytest.raises(NothingLearned, match="4 of 12 native validation hips could be read, at least 10"):
        require_readings(unread)


def test_refusals_are_counted_by_kind_and_reason() -> None:
    summary = summarise(some_cases(), NONE)
    assert summary.refusals == {"native": {"measured": 60}, "implant": {"implant": 1}}


def test_whole_radiographs_are_summed_up_apart() -> None:
    whole = [WholeCase(i, "R", "native", "measured", abmd(0.7 + 0.01 * i), abmd(0.71 + 0.01 * i)) for i in range(5)]
    whole.append(WholeCase(9, "L", "implant", "implant", abmd(0.8), {}))
    figures = summarise(some_cases(), NONE, whole).whole
    assert figures["refusals"] == {"native": {"measured": 5}, "implant": {"implant": 1}}
    assert figures["total_hip_areal_bmd_g_cm2"]["bias"] == pytest.approx(0.01)


def test_the_better_of_two_methods_gains_and_its_interval_says_so() -> None:
    compared = summarise(some_cases(200), NONE).methods["total_hip"]["areal_bmd_g_cm2"]
    stated, regressed = (compared.agreement[method] for method in ("stated", "direct regression"))
    gained = compared.gain["stated over direct regression"]
    assert stated.rmse < regressed.rmse and stated.n == regressed.n == 200
    for value, low, high in (gained.r, gained.rmse):
        assert 0 < low < value < high
    assert gained.rmse[0] == pytest.approx(regressed.rmse - stated.rmse)


def test_without_a_second_method_nothing_is_compared() -> None:
    alone = [replace(case, regressed={}) for case in some_cases()]
    assert summarise(alone, NONE).methods == {}


def test_limits_let_the_good_hips_pass_that_they_were_set_from() -> None:
    rng = np.random.default_rng(0)
    readings = [
        HipReading(
            "native",
            0.99,
            0.01,
            0.7 if number == 0 else 0.1,
            4.0,
            float(rng.normal(0.8, 0.05)),
            float(rng.normal(60, 8)),
            float(rng.normal(3, 4)),
            float(rng.uniform(0.9, 1.1)),
        )
        for number in range(200)
    ]
    limits = find_limits([*readings, HipReading("implant", 0.9, 0.99, 0.0, 30.0, 0.1, 50.0, None, 3.0)])
    assert all(reading.explained > limits.explained for reading in readings if reading.explained > 0.6)
    assert limits.femur_area_cm2[0] < 30 < 80 < limits.femur_area_cm2[1]
    assert limits.shaft_angle_deg[0] < -5 and limits.shaft_angle_deg[1] > 10
    assert 0.8 < limits.canonical_share[0] < 0.9 and 1.1 < limits.canonical_share[1] < 1.25
    assert limits.fracture == 0.5  # one whole bone in 200 may look broken
    doubtful = [replace(reading, fracture=0.8) for reading in readings[:10]]
    assert limits.fracture < find_limits([*readings, *doubtful]).fracture <= 0.8
    assert limits.metal_cm2 == pytest.approx(4.8)  # a fifth beyond what native hips are taken to hold


def test_an_evaluation_leaves_figures_a_table_and_plots(tmp_path: Path) -> None:
    cases = some_cases()
    write_evaluation(tmp_path, cases, summarise(cases, find_intervals(cases)))
    assert {path.name for path in tmp_path.iterdir()} == {
        "figures.json",
        "cases.csv",
        "scatter.png",
        "bland_altman.png",
        "methods.png",
    }
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["data"].startswith("simulated") and figures["agreement"]["total_hip"]["areal_bmd_g_cm2"]["n"] == 60


def test_the_model_card_says_simulation_first_and_every_figure_of_the_document() -> None:
    summary = summarise(some_cases(), find_intervals(some_cases()))
    document = {
        "name": "hip",
        "version": "1",
        "weights_sha256": "ab" * 32,
        "frame": {"rows": 256, "columns": 192, "spacing_mm": 0.7},
        "channels": [{"name": "femur_density", "unit": "g/cm2"}],
        "figures": summary.as_dict(),
        "provenance": {
            "run": {
                "seed": 1,
                "pairs": {"count": 10, "seed": 2},
                "decomposer": {"batch": 8, "stages": [{"steps": 1000}, {"steps": 500}]},
                "regressor": {"batch": 4, "stages": [{"steps": 500}]},
            },
            "split": {"training": [0, 7], "validation": [8, 8], "test": [9, 9]},
            "commit": "abc",
            "torch": "2",
            "numpy": "2",
            "python": "3.11",
            "data": "phantoms",
            "sources": [{"name": "a shape model", "licence": "a licence"}],
            "fractures": True,
        },
        "networks": {"decomposer": {"factors": 2}, "regressor": {}},
        "regressed": {"total_hip": {"areal_bmd_g_cm2": 0.4, "area_cm2": 0.1}},
    }
    card = model_card(json.loads(json.dumps(document)))
    assert "simulated radiographs only" in card.split("## What it is")[0]
    assert "| a shape model | a licence |" in card and "KVP" in card
    assert f"{summary.agreement['total_hip']['areal_bmd_g_cm2'].pearson_r:.3f}" in card
    assert "1 implant" in card and "saw 2,000\nexamples of measurable hips, the decomposer 12,000" in card
    assert "weighs 0.10 to 0.40" in card and "displaced ones alone were learned" in card


def test_the_shipped_run_is_readable_and_an_unknown_key_is_named(tmp_path: Path) -> None:
    assert all(stage.steps > 0 for stage in load_run(SHIPPED_RUN).decomposer.stages)
    wrong = tmp_path / "run.toml"
    wrong.write_text(SHIPPED_RUN.read_text().replace("[locator]\nwidths", "[locator]\nwidhts"))
    with pytest.raises(ConfigurationError, match="widhts"):
        load_run(wrong)
    wrong.write_text(SHIPPED_RUN.read_text().replace("steps = 4200", "stps = 4200"))
    with pytest.raises(ConfigurationError, match="decomposer: stages: unknown key 'stps'"):
        load_run(wrong)


def test_the_regressor_cannot_have_losses_of_maps_nor_be_switched_on(tmp_path: Path) -> None:
    wrong, table, shipped = tmp_path / "run.toml", "[[regressor.stages]]\n", SHIPPED_RUN.read_text()
    wrong.write_text(shipped.replace(table, table + "pelvis_mass = 1.0\n"))
    with pytest.raises(ConfigurationError, match=r"regressor.stages: pelvis_mass is for the decomposer"):
        load_run(wrong)
    wrong.write_text(
        "regressor = true\n" + shipped.split("[regressor]")[0] + "[locator]" + shipped.split("[locator]")[1]
    )
    with pytest.raises(ConfigurationError, match="regressor must be a table, not True"):
        load_run(wrong)


def test_statistics_are_frozen_only_after_a_stage_that_found_them(tmp_path: Path) -> None:
    wrong = tmp_path / "run.toml"
    first = "steps = 4200\n"
    wrong.write_text(SHIPPED_RUN.read_text().replace(first, first + "statistics_frozen = true\n"))
    with pytest.raises(ConfigurationError, match="statistics_frozen needs those of a stage before"):
        load_run(wrong)
    wrong.write_text('start = "models/hip"\n' + wrong.read_text())
    assert load_run(wrong).decomposer.stages[0].statistics_frozen


def test_verdicts_alone_are_learned_by_the_decomposer_and_with_its_statistics_frozen(tmp_path: Path) -> None:
    wrong, shipped = tmp_path / "run.toml", SHIPPED_RUN.read_text()
    wrong.write_text(shipped.replace("steps = 4200\n", "steps = 4200\nverdicts_only = true\n"))
    with pytest.raises(ConfigurationError, match="set statistics_frozen = true too"):
        load_run(wrong)
    wrong.write_text(shipped.replace("steps = 3800\n", "steps = 3800\nfractures = 0.1\n"))
    with pytest.raises(ConfigurationError, match=r"regressor\.stages: fractures is for the decomposer"):
        load_run(wrong)


@pytest.mark.parametrize("others", ["atlas", "fractures"])
def test_a_stage_cannot_draw_from_persons_that_the_run_does_not_ask_for(tmp_path: Path, others: str) -> None:
    lines = SHIPPED_RUN.read_text().splitlines()
    table = next(number for number, line in enumerate(lines) if line.startswith(f"[{others}]"))
    assert lines[table + 3] == ""  # count and seed, then the next table
    wrong = tmp_path / "run.toml"
    wrong.write_text("\n".join([*lines[:table], *lines[table + 3 :]]))
    with pytest.raises(ConfigurationError, match=rf"persons of \[{others}\], which is absent"):
        load_run(wrong)


def test_a_network_too_narrow_for_the_library_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "run.toml"
    wrong.write_text(SHIPPED_RUN.read_text().replace("widths = [16,", "widths = [12,", 1))
    with pytest.raises(ConfigurationError, match="multiples of 8"):
        load_run(wrong)


def test_a_run_whose_split_leaves_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "run.toml"
    wrong.write_text(SHIPPED_RUN.read_text().replace("test = 0.21", "test = 0.99"))
    with pytest.raises(ConfigurationError, match="split"):
        load_run(wrong)
