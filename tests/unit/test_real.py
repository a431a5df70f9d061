"""A hospital's hips in a run: who is held out, what examples teach, what stays as it was without them, figures on patients."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from dicomnode.domain.measurement import Region, TrainingData
from dicomnode.errors import ConfigurationError
from dicomnode.inference import frame
from dicomnode.inference.bundle import Intervals, load_bundle
from dicomnode.inference.channels import CANONICAL
from dicomnode.inference.frame import Label
from dicomnode.inference.network import HipNet
from dicomnode.inference.predictor import Predictor
from tests.tiny_bundle import write_tiny_bundle
from training.augment import HipExample, hip_example, real_hip_example
from training.cases import QUANTITY_LABELS, RegionCase
from training.config import HospitalConfiguration, PairsConfiguration, Stage, load_run
from training.evaluate import summarise
from training.evaluate_real import FEWEST_PATIENTS, evaluate_real, refit_intervals, summarise_real
from training.export import _document
from training.hospital.cases import decide, save_arrays, write_report
from training.hospital.project import RealHip
from training.hospital.report import Report, Status, Verdict
from training.losses import HipBatch, decomposition_loss
from training.model_card import _first_words, model_card
from training.pairs import Pairs, load_pairs, make_pairs
from training.projection.radiograph import reprocess
from training.real import RealExamples, RealSplit, load_real
from training.split import part_of, split_subjects
from training.targets import SHAPE, canonical_logarithms
from training.train import HipExamples, start_from

SHIPPED_RUN = Path(__file__).resolve().parents[2] / "conf" / "training" / "hip.toml"
FIGURE = {"areal_bmd_g_cm2": 0.8, "bmc_g": 28.0, "area_cm2": 35.0, "volumetric_bmd_mg_cm3": 300.0}
FIGURES = {
    "side": "R",
    "regions": {region.value: FIGURE for region in Region},
    "canonical": {region.value: FIGURE for region in Region},
    "reference": {"dxa_maker": "A", "dxa_g_cm2": {"total_hip": 0.85}, "qct_mg_cm3": {}},
}
LOGARITHMS = canonical_logarithms(FIGURES["canonical"])  # type: ignore[arg-type]


def a_hip(patient: str = "p1", seed: int = 0) -> RealHip:
    """A bar of bone on a smooth background; the CT says nothing of the lowest rows."""
    rows, columns = np.indices(SHAPE)
    bone = np.clip(1 - np.abs(columns - 120) / 30, 0, 1).astype(np.float32)
    labels = np.where(bone > 0, np.digitize(rows, (100, 140, 170, 200)) + 1, 0).astype(np.uint8)
    targets = np.stack([bone, 3 * bone, np.zeros_like(bone)]).astype(np.float16)
    targets[:, 280:] = np.nan
    noise = np.random.default_rng(seed).normal(0, 0.01, SHAPE)
    image = (0.3 + 0.4 * bone + 0.1 * rows / SHAPE[0] + noise).astype(np.float16)
    figures = {**FIGURES, "case": patient, "patient": patient, "material": "hydroxyapatite"}
    return RealHip(image, np.ones(SHAPE, bool), np.ones(SHAPE, bool), targets, labels, figures)


def an_example(seed: int, hip: RealHip | None = None) -> HipExample:
    hip = hip or a_hip()
    arrays = hip.image.astype(np.float32), hip.inside, hip.field, hip.targets.astype(np.float32), hip.labels
    return real_hip_example(*arrays, LOGARITHMS, np.random.default_rng(seed))


def a_folder(output: Path, patients: Sequence[str], **changes: str) -> Path:
    """What `training hospital` leaves, all cases doubtful."""
    for patient in patients:
        place = output / "cases" / patient
        place.mkdir(parents=True)
        step = {"calibration": {"material": "hydroxyapatite", **changes, "doubts": ["nominal"]}}
        write_report(
            place,
            Report(
                patient, Status.DOUBTFUL, steps=step, hips={"R": dict(FIGURES)}, patient=patient, inputs_sha256="ab"
            ),
        )
        save_arrays(a_hip(patient), place / "R.npz")
    return output


def accept(output: Path, patients: Sequence[str]) -> None:
    for patient in patients:
        decide(output, patient, Verdict.ACCEPTED, by="R", reason="fits", now=datetime(2026, 1, 2, tzinfo=UTC))


# --- without a hospital nothing changes ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    folder = tmp_path_factory.mktemp("pairs")
    make_pairs(PairsConfiguration(count=2, seed=3), folder)
    return load_pairs(folder)


@pytest.mark.parametrize(
    ("seed", "next_draw", "grey", "mass", "neck", "canonical", "field"),
    [
        (0, 0.210872983712, 0.59259, 14630.95, 792, 8.66115, 39680),
        (1, 0.279630872808, 0.63704, 15893.92, 688, 8.10419, 49152),
        (2, 0.478005902117, 0.81716, 14792.47, 748, 8.4291, 34100),
        (3, 0.963537885114, 0.50615, 9483.15, 726, 0.0, 49152),
        (4, 0.256513972158, 0.26973, 14204.18, 761, 4.21855, 13795),
        (5, 0.156282659345, 0.56016, 14956.83, 649, 7.80189, 49152),
    ],
)
def test_examples_of_phantoms_are_those_from_before_there_were_real_hips(
    pairs: Pairs, seed: int, next_draw: float, grey: float, mass: float, neck: int, canonical: float, field: int
) -> None:
    """Figures stored at commit 760159f; the next number of the stream says that nothing more or less was drawn."""
    hip, rng = pairs.hip(0), np.random.default_rng(seed)
    arrays = hip.materials.astype(np.float32), hip.targets.astype(np.float32), hip.labels
    example = hip_example(*arrays, True, np.log(np.full((4, 3), 2.0, np.float32)), rng)
    assert rng.random() == pytest.approx(next_draw, abs=1e-12)
    assert float(np.abs(example.network_input[0]).mean()) == pytest.approx(grey, rel=1e-3)
    assert float(example.maps[0].sum()) == pytest.approx(mass, rel=1e-4)
    assert int((example.labels == Label.NECK).sum()) == neck
    assert float(example.canonical.sum()) == pytest.approx(canonical, abs=1e-4)
    assert int(example.field.sum()) == field


def test_with_a_hospital_the_examples_that_come_from_phantoms_are_the_same(pairs: Pairs) -> None:
    hips = np.arange(4)
    alone, mixed = (
        HipExamples(pairs, hips, 1, Stage(1, 1e-3), None, real) for real in (None, RealExamples((a_hip(),), 0.5, 1))
    )
    real = RealExamples((a_hip(),), 0.5, 1)
    drawn = [real.draw(number) is not None for number in range(12)]
    assert 0 < sum(drawn) < 12
    for number, is_real in enumerate(drawn):
        one, other = alone[number], mixed[number]
        assert np.isnan(other["maps"][3]).all() == is_real
        assert np.array_equal(one["network_input"], other["network_input"]) != is_real


# --- an example ---------------------------------------------------------------------------------------------------------
def test_a_real_example_knows_neither_soft_tissue_nor_metal_and_follows_from_its_seed() -> None:
    one, other = an_example(5), an_example(5)
    assert one.network_input.shape == (2, frame.ROWS, frame.COLUMNS)
    np.testing.assert_array_equal(one.network_input, other.network_input)
    assert np.isnan(one.maps[3]).all() and np.isnan(one.metal).all() and np.isnan(one.implant)
    assert np.isfinite(one.network_input).all()


def test_a_real_hip_that_is_shown_larger_has_a_larger_area_and_the_same_densities() -> None:
    is_area = np.array([unit == "cm2" for _, unit in CANONICAL])
    whole = [e for e in map(an_example, range(30)) if e.canonical_weight[0] and (e.field == 1).all()]
    assert len(whole) > 3
    shown = (a_hip().labels == Label.NECK).sum()
    for example in whole:
        grown = np.exp(example.canonical[0] - LOGARITHMS[0])
        assert grown[is_area] == pytest.approx((example.labels == Label.NECK).sum() / shown, rel=0.05)
        assert grown[~is_area] == pytest.approx(1.0, rel=1e-5)


def test_what_lies_beyond_the_stored_crop_is_not_on_the_radiograph() -> None:
    spoiled = [example for example in map(an_example, range(60)) if not example.anteroposterior_hip]
    assert any((example.field == 0).mean() > 0.2 for example in spoiled)
    assert not any(example.canonical_weight.any() for example in spoiled)


def test_reprocessing_keeps_a_picture_s_order_and_changes_it_mildly() -> None:
    hip = a_hip()
    image = hip.image.astype(np.float32)
    for seed in range(8):
        changed = reprocess(image, frame.SPACING_MM, np.random.default_rng(seed))
        assert changed.min() >= 0 and changed.max() <= 1
        assert 0.97 < np.corrcoef(image.ravel(), changed.ravel())[0, 1] < 1


# --- losses -------------------------------------------------------------------------------------------------------------
def batch_of(example: HipExample) -> HipBatch:
    fields = {name: torch.from_numpy(np.asarray(value))[None] for name, value in vars(example).items()}
    return HipBatch(**{name: value.float() if name != "labels" else value for name, value in fields.items()})


def test_what_is_not_known_of_a_real_hip_gives_neither_loss_nor_gradient() -> None:
    batch = batch_of(next(e for e in map(an_example, range(9)) if e.anteroposterior_hip))
    channels = torch.rand(1, 12, frame.ROWS, frame.COLUMNS, requires_grad=True)
    verdicts = torch.zeros(1, 3, requires_grad=True)
    terms = decomposition_loss(channels, verdicts, torch.zeros(1, 2, 4, 3), batch)
    assert all(torch.isfinite(term) for term in terms.values())
    assert not terms["metal"] and not terms["implant"] and terms["maps"] > 0
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert channels.grad is not None and verdicts.grad is not None
    assert torch.isfinite(channels.grad).all()
    assert not channels.grad[0, 3].any() and not channels.grad[0, 10].any() and not verdicts.grad[0, 1:].any()
    beyond_ct = batch.maps[0, 0].isnan()
    assert beyond_ct.any() and not channels.grad[0, :10, beyond_ct].any()
    assert channels.grad[0, 0].any() and verdicts.grad[0, 0] != 0


# --- who is held out ----------------------------------------------------------------------------------------------------
def test_no_patient_is_in_two_parts_and_the_shares_hold() -> None:
    parts = [part_of(f"p{number}", validation=0.2, test=0.3) for number in range(4000)]
    assert parts.count("test") == pytest.approx(1200, abs=100)
    assert parts.count("validation") == pytest.approx(800, abs=90)
    # Nobody who was held out for test is moved by another share of validation.
    assert all((part_of(f"p{n}", 0.3, 0.3) == "test") is (part == "test") for n, part in enumerate(parts))


def test_only_accepted_cases_are_learned_from(tmp_path: Path) -> None:
    patients = [f"p{number}" for number in range(6)]
    output = a_folder(tmp_path, patients)
    configuration = HospitalConfiguration(str(output), 0.5, 0.0, 0.4)
    with pytest.raises(ConfigurationError, match="accept what is doubtful"):
        load_real(configuration)
    accept(output, patients[:5])
    real = load_real(configuration)
    assert real is not None and load_real(None) is None
    assert [hip.figures["patient"] for part in (real.training, real.test) for hip in part] == sorted(
        patients[:5], key=lambda patient: part_of(patient, 0.0, 0.4) == "test"
    )


def test_densities_of_another_mineral_are_not_mixed_in(tmp_path: Path) -> None:
    accept(a_folder(tmp_path, ["p1"], material="K2HPO4"), ["p1"])
    with pytest.raises(ConfigurationError, match="case p1 is in mg/cm3 of K2HPO4"):
        load_real(HospitalConfiguration(str(tmp_path), 0.5, 0.0, 0.0))


def test_a_hospital_s_table_in_a_run_is_optional_and_checked(tmp_path: Path) -> None:
    shipped = load_run(SHIPPED_RUN)
    assert shipped.hospital is None and shipped.start is None
    run = tmp_path / "run.toml"
    table = '\n[hospital]\nfolder = "runs/h"\nshare = 0.5\nvalidation = 0.2\ntest = 0.2\n'
    run.write_text('start = "b"\n' + SHIPPED_RUN.read_text() + table)
    assert load_run(run).hospital == HospitalConfiguration("runs/h", 0.5, 0.2, 0.2)
    for wrong, message in (("share = 1.0", "hospital.share"), ("shares = 0.5", "hospital: unknown key 'shares'")):
        run.write_text(SHIPPED_RUN.read_text() + table.replace("share = 0.5", wrong))
        with pytest.raises(ConfigurationError, match=message):
            load_run(run)


# --- a warm start -------------------------------------------------------------------------------------------------------
def test_both_networks_start_from_a_bundle_s_weights_and_other_shapes_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "b")
    bundle = load_bundle(folder)
    networks = HipNet(bundle.decomposer.shape), HipNet(bundle.locator.shape)
    start_from(folder, *networks)
    for network, earlier in zip(networks, (bundle.decomposer, bundle.locator), strict=True):
        assert all(torch.equal(value, earlier.state_dict()[key]) for key, value in network.state_dict().items())
    wider = HipNet(replace(bundle.decomposer.shape, widths=(4, 6, 16)))
    with pytest.raises(ConfigurationError, match=r"set decomposer\.widths = \[4, 6, 8\]"):
        start_from(folder, wider, networks[1])


# --- figures ------------------------------------------------------------------------------------------------------------
def cases_of(hips: Sequence[RealHip]) -> list[RegionCase]:
    rng = np.random.default_rng(1)
    cases = []
    for number, _ in enumerate(hips):
        for region in Region:
            truth = {name: float(rng.uniform(0.6, 1.0)) for name in QUANTITY_LABELS}
            prediction = {name: value * float(np.exp(rng.normal(0, 0.03))) for name, value in truth.items()}
            spread = dict.fromkeys(QUANTITY_LABELS, 0.03)
            cases.append(RegionCase(number, "R", region.value, "native", "", truth, prediction, spread, {}, {}))
    return cases


def test_intervals_are_refitted_only_where_enough_patients_were_measured() -> None:
    cases = cases_of([a_hip(f"p{number:02}") for number in range(FEWEST_PATIENTS)])
    cases = [case for case in cases if case.region != Region.FEMORAL_NECK.value or case.subject > 0]
    phantoms, real = (
        Intervals({r.value: {"areal_bmd_g_cm2": v} for r in Region}, {r.value: v for r in Region}) for v in (1.0, 2.0)
    )
    intervals, refitted = refit_intervals(phantoms, real, cases)
    assert set(refitted) == {region.value for region in Region} - {Region.FEMORAL_NECK.value}
    assert intervals.projected == {r.value: 2.0 if r.value in refitted else 1.0 for r in Region}


def test_every_held_out_hip_is_measured_on_its_own_radiograph(tmp_path: Path) -> None:
    predictor = Predictor(load_bundle(write_tiny_bundle(tmp_path / "b")), "cpu", threads=1)
    hips = [a_hip("p1"), a_hip("p0", seed=1)]
    cases, readings = evaluate_real(predictor, hips, seed=1)
    assert len(readings) == 2
    assert [case.subject for case in cases] == [1] * len(Region) + [0] * len(Region)
    assert cases[0].truth["areal_bmd_g_cm2"] == 0.8


def test_the_model_card_says_how_many_patients_and_no_longer_phantoms_only() -> None:
    hips = [a_hip(f"p{number}") for number in range(5)]
    cases = cases_of(hips)
    real = summarise_real(cases, hips, Intervals({}, {}), ["total_hip"])
    assert (real["patients"], real["hips"], real["dxa"]["A"]["total_hip"]["n"]) == (5, 5, 5)
    figures = replace(summarise(cases, Intervals({}, {})), real=real).as_dict()
    count = {"patients": 30, "hips": 58}
    provenance = {
        "run": {"seed": 1, "pairs": {"count": 10, "seed": 2}, "hospital": {"share": 0.5}},
        "split": {"training": [0, 7], "validation": [8, 8], "test": [9, 9]},
        "real": {"training": count, "validation": count, "test": {"patients": 5, "hips": 5}},
        "sources": [],
        "fractures": False,
        **dict.fromkeys(("commit", "torch", "numpy", "python", "data"), "x"),
    }
    document = {
        **{"name": "hip", "version": "1", "weights_sha256": "ab", "channels": []},
        "frame": {"rows": 256, "columns": 192, "spacing_mm": 0.7},
        "networks": {"decomposer": {"factors": 0}},
        "figures": figures,
        "provenance": provenance,
    }
    card = model_card(json.loads(json.dumps(document)))
    assert "simulated radiographs only" not in card
    assert "real radiographs of 30 patients" in card.split("## What it is")[0] and "5 held-out patients" in card
    assert "Nothing was learned of fractures" in card
    assert (
        f"{real['agreement']['total_hip']['areal_bmd_g_cm2']['pearson_r']:.3f}" in card and "| A | total hip |" in card
    )


def test_a_bundle_inherits_what_the_weights_that_it_began_with_had_learned(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "b")
    earlier = load_bundle(folder)
    learned = {"data": "real hips of 3 patients", "sources": [{"name": "a pelvis", "licence": "MPL-2.0"}]}
    mixed = replace(
        earlier,
        identity=replace(earlier.identity, trained_on=TrainingData.SIMULATED_AND_REAL),
        document={**earlier.document, "provenance": learned},
    )
    run = load_run(SHIPPED_RUN)
    provenance = _document(run, split_subjects(run.pairs.count, run.split), {}, None, "abc", mixed)["provenance"]
    assert provenance["start"]["trained_on"] == "simulated_and_real"
    assert provenance["sources"][-1] == learned["sources"][0]
    assert "real hips of 3 patients" in provenance["data"] and "no patient data" not in provenance["data"]
    assert "had learned from real radiographs" in _first_words(provenance)


def test_a_bundle_says_how_many_patients_had_a_part_in_it() -> None:
    run = load_run(SHIPPED_RUN)
    split, hip = split_subjects(run.pairs.count, run.split), a_hip("p1")
    assert "real" not in _document(run, split, {}, None, "abc")["provenance"]
    partly = _document(run, split, {}, RealSplit((hip,), (), ()), "abc")
    assert partly["provenance"]["real"]["training"]["patients"] == 1
