"""From trained weights to the bundle that the node loads: limits and intervals from validation, figures from test."""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from dicomnode.domain.measurement import Region
from dicomnode.errors import DicomNodeError
from dicomnode.inference import intensity
from dicomnode.inference.bundle import FORMAT, Bundle, Intervals, Limits, frame_document, load_bundle
from dicomnode.inference.channels import CANONICAL as STATED
from dicomnode.inference.channels import CHANNELS, LOCATOR_CHANNELS, REGIONAL_VERDICTS, REGIONS, VERDICTS
from dicomnode.inference.predictor import Predictor
from dicomnode.inference.technique import CORRECTED, FACTORS, departures
from training.attribution import attribute, write_attributions
from training.cases import CANONICAL, PROJECTED, RegionCase
from training.config import RunConfiguration
from training.evaluate import (
    HipReading,
    Summary,
    evaluate,
    relative_errors,
    summarise,
    truth_and_prediction,
    write_evaluation,
)
from training.evaluate_real import evaluate_real, has_enough, refit_intervals, summarise_real
from training.model_card import model_card
from training.pairs import ATLAS_SOURCE, Pairs
from training.provenance import code_commit
from training.real import RealSplit, count_patients, load_real
from training.split import Split
from training.statistics import conformal_half_width
from training.train import decomposer_shape, locator_shape, regressor_shape
from training.whole import measure_whole

PHANTOM_SOURCE = {"name": "parametric phantoms (training/anatomy)", "licence": "Apache-2.0"}
ATLAS_SOURCES = (
    {"name": "femur shape model of 26 CTs, GIAS3 example data (GIAS3 contributors)", "licence": "MPL-2.0"},
    {"name": "pelvis of one subject, GIAS3 example data (GIAS3 contributors)", "licence": "MPL-2.0"},
)
"""What `training.pairs.ATLAS_SOURCE` is drawn from. Source: github.com/musculoskeletal/gias3.examples."""
_OPEN = Limits(
    locator_score=0.0,
    anteroposterior_hip=0.0,
    implant=1.0,
    fracture=1.0,
    metal_cm2=float("inf"),
    explained=-1.0,
    femur_area_cm2=(0.0, float("inf")),
    shaft_angle_deg=(-180.0, 180.0),
    canonical_share=(0.0, float("inf")),
)
"""Refuses nothing: used while the limits themselves are being found."""
_READ_BY = {"decomposer": "decomposed", "regressor": "regressed"}
"""Network -> field of `RegionCase` that holds what it reads alone."""
_STATED_BY = {"decomposer": "canonical.mix.3.bias", "regressor": "centre"}
"""Network -> its tensor that begins with what is added to the logarithms of the figures."""
_LOCATOR_SCORE = 0.3
_EVEN_ODDS = 0.5
_LIKELY_VIEW = 0.1
"""Simulated hips and other views lie far on either side of any limit (model 0.6.0, validation: 90 native hips at 0.9996 or above,
30 frog-leg ones at 0.0001 or below). Hips of real anatomy, of which nothing was learned, lie between (one CT's: 0.39, with model
0.7.0 0.16, with 0.8.1 0.99): what is nine times likelier another view is refused, the rest is measured, doubtful ones with a note
(`plausibility.likeness_note`)."""
_LEAST_METAL_CM2 = 0.5
_VALIDATION_RADIOGRAPHS = 2
"""Of each hip: limits, intervals and centre then hang less on the devices that happened to be drawn."""
_FEWEST_READ = 10
"""Hips; split-conformal intervals of 90 % need nine."""


class NothingLearned(DicomNodeError):
    """The networks read too little for a bundle; the message says what to do."""


def export(
    run: RunConfiguration,
    pairs: Pairs,
    split: Split,
    weights: Path,
    folder: Path,
    *,
    whole_count: int,
    beside: Mapping[str, Pairs] | None = None,
) -> Summary:
    """Write the bundle, measure it, and write what was measured into it.

    Args:
        beside: the persons beside the phantoms that the weights have learned from too, see `pairs.load_beside`.
        weights: folder with what `train` left.
        whole_count: how many of the test phantoms are measured on whole radiographs too.
        folder: the bundle's folder; gets `weights.safetensors`, `model.json`, `MODEL_CARD.md` and `evaluation/`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    commit = code_commit()  # before anything is written: the bundle itself must not make the tree dirty
    real = load_real(run.hospital)
    start = None if run.start is None else load_bundle(Path(run.start))
    document = _document(run, split, beside or {}, real, commit, start)
    validate = partial(
        evaluate, pairs=pairs, subjects=split.validation, seed=run.seed, radiographs=_VALIDATION_RADIOGRAPHS
    )
    files = {name: weights / f"{name}.pt" for name in document["networks"]}
    as_trained = _weighed(
        folder, document, files, {}, np.zeros((len(REGIONS), len(STATED))), *technique_corrections([])
    )
    open_cases, _ = validate(_open(folder, as_trained))
    require_readings(open_cases)
    corrections, usual = technique_corrections(open_cases)
    open_cases = [corrected_case(case, corrections, usual) for case in open_cases]
    document = _weighed(
        folder, document, files, systematic_errors(open_cases), regressed_shares(open_cases), corrections, usual
    )
    opened = _open(folder, document)
    open_cases, readings = validate(opened)
    intervals, refitted = find_intervals(open_cases), list[str]()
    if real is not None:
        real_cases, real_readings = evaluate_real(opened, real.validation, run.seed)
        readings += real_readings
        enough = [case for case in real_cases if has_enough(real_cases, Region(case.region))]
        intervals, refitted = refit_intervals(intervals, find_intervals(enough), real_cases)
    limits = find_limits(readings)
    _write(folder, document, limits, intervals, {})
    predictor = Predictor(load_bundle(folder))
    cases, _ = evaluate(predictor, pairs, split.test, run.seed)
    whole = measure_whole(predictor, pairs, split.test[:whole_count], run.pairs.seed, run.seed)
    summary = summarise(cases, intervals, whole)
    if real is not None:
        real_cases, _ = evaluate_real(predictor, real.test, run.seed)
        summary = replace(summary, real=summarise_real(real_cases, real.test, intervals, refitted))
    write_evaluation(folder / "evaluation", cases, summary)
    write_attributions(attribute(cases, run.pairs.seed, run.seed), folder / "evaluation")
    _write(folder, document, limits, intervals, summary.as_dict())
    (folder / "MODEL_CARD.md").write_text(model_card(json.loads((folder / "model.json").read_text())), encoding="utf-8")
    return summary


def _weighed(
    folder: Path,
    document: dict[str, Any],
    files: Mapping[str, Path],
    offsets: Mapping[str, NDArray[np.float64]],
    shares: NDArray[np.float64],
    corrections: Mapping[str, NDArray[np.float64]],
    usual: Mapping[str, float],
) -> dict[str, Any]:
    """Write the weights, recentred; returns the document that knows of offsets, shares and corrections."""
    digest = write_weights(files, folder / "weights.safetensors", offsets)
    recentred = {network: _by_region(values, 4) for network, values in offsets.items()}
    provenance = {**document["provenance"], "recentred_by": recentred}
    return {
        **document,
        "weights_sha256": digest,
        "regressed": _by_region(shares, 3),
        "corrections": {network: _by_factor(table) for network, table in corrections.items()},
        "usual_technique": dict(usual),
        "provenance": provenance,
    }


def _by_region(table: NDArray[np.float64], digits: int) -> dict[str, dict[str, float]]:
    return {
        region.value: {name: round(float(value), digits) for (name, _), value in zip(STATED, row, strict=True)}
        for region, row in zip(REGIONS, table, strict=True)
    }


def _by_factor(table: NDArray[np.float64]) -> dict[str, dict[str, dict[str, float]]]:
    return {factor: _by_region(values, 4) for factor, values in zip(CORRECTED, table, strict=True)}


def _open(folder: Path, document: dict[str, Any]) -> Predictor:
    """Open the bundle as it is before it has limits and intervals."""
    _write(folder, document, _OPEN, Intervals({}, {}), {})
    return Predictor(load_bundle(folder))


def technique_corrections(cases: list[RegionCase]) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    """What filter and phosphor shift, and the technique that shifts nothing.

    Least squares of ln(truth / reading) over the factors, for each network by itself.

    Returns:
        Network -> (factors of `technique.CORRECTED`, regions, quantities) to add to its logarithms per unit of each factor; and
        factor -> its mean over the radiographs, about which it counts.
    """
    read = [
        case
        for case in cases
        if case.kind == "native"
        and not case.refused
        and None not in [getattr(case.technique, name) for name in CORRECTED]
    ]
    usual = {
        name: round(float(np.mean([getattr(case.technique, name) for case in read] or [0.0])), 4) for name in CORRECTED
    }
    tables = {network: np.zeros((len(CORRECTED), len(REGIONS), len(STATED))) for network in _READ_BY}
    for (network, part), (row, region) in product(_READ_BY.items(), enumerate(REGIONS)):
        own = [case for case in read if case.region == region.value and getattr(case, part)]
        if not own:
            continue
        factors = np.array([[*departures(case.technique, usual), 1.0] for case in own], np.float64)
        for column, (name, _) in enumerate(STATED):
            errors = [np.log(case.truth[name] / getattr(case, part)[name]) for case in own]
            # Where a factor was not varied nothing can be said of it: the least of all solutions has 0 there.
            tables[network][:, row, column] = np.linalg.lstsq(factors, np.array(errors), rcond=1e-6)[0][:-1]
    return tables, usual


def corrected_case(
    case: RegionCase, corrections: Mapping[str, NDArray[np.float64]], usual: Mapping[str, float]
) -> RegionCase:
    """The case as it would have been read with the corrections: what each network reads alone."""
    departure, row = departures(case.technique, usual), REGIONS.index(Region(case.region))

    def moved(network: str) -> dict[str, float]:
        shifts = dict(zip((name for name, _ in STATED), departure @ corrections[network][:, row], strict=True))
        read: dict[str, float] = getattr(case, _READ_BY[network])
        return {name: value * float(np.exp(shifts.get(name, 0.0))) for name, value in read.items()}

    return replace(case, decomposed=moved("decomposer"), regressed=moved("regressor"))


def systematic_errors(cases: list[RegionCase]) -> dict[str, NDArray[np.float64]]:
    """Network -> (regions, quantities) medians of ln(reading / truth) over the native hips that were read; 0 where none was.

    Averaged weights and BatchNorm's running statistics read a little higher or lower than the weights did in training.
    """
    return {
        network: np.array(
            [
                [float(np.median(errors)) if errors.size else 0.0 for errors in row]
                for row in _logarithmic_errors(cases, part)
            ]
        )
        for network, part in _READ_BY.items()
        if any(getattr(case, part) for case in cases)
    }


def regressed_shares(cases: list[RegionCase]) -> NDArray[np.float64]:
    """(regions, quantities) weights of the regressor's readings at which the mean of both errs least, 0..1; 0 without one.

    Least squares of the recentred errors of logarithms (stacking: Wolpert 1992, doi:10.1016/S0893-6080(05)80023-1).
    """
    shares = np.zeros((len(REGIONS), len(STATED)))
    if not any(case.regressed for case in cases):
        return shares
    decomposed, regressed = (_logarithmic_errors(cases, part) for part in _READ_BY.values())
    for row, column in np.ndindex(shares.shape):
        one, other = (errors[row][column] - np.median(errors[row][column]) for errors in (decomposed, regressed))
        shares[row, column] = np.clip(one @ (one - other) / np.sum((one - other) ** 2), 0.0, 1.0)
    return shares


def _logarithmic_errors(cases: list[RegionCase], part: str) -> list[list[NDArray[np.float64]]]:
    """Region -> quantity -> ln(reading / truth) of the native hips that were read."""
    read = [case for case in cases if case.kind == "native" and not case.refused]
    return [
        [
            np.array(
                [np.log(getattr(case, part)[name] / case.truth[name]) for case in read if case.region == region.value]
            )
            for name, _ in STATED
        ]
        for region in REGIONS
    ]


def require_readings(cases: list[RegionCase]) -> None:
    """Limits and intervals can be set from what was read alone.

    Raises:
        NothingLearned: hardly any native validation hip could be read.
    """
    for region in Region:
        native = [case for case in cases if case.region == region.value and case.kind == "native"]
        everybody, read = _hips(native), _hips(case for case in native if not case.refused)
        if read < _FEWEST_READ:
            raise NothingLearned(
                f"{region.value}: {read} of {everybody} native validation hips could be read, at least {_FEWEST_READ} are needed"
                " to set limits and intervals; train for more steps, or make more pairs"
            )


def _hips(cases: Iterable[RegionCase]) -> int:
    return len({(case.subject, case.side) for case in cases})


def find_limits(readings: list[HipReading]) -> Limits:
    """Set limits so that nearly every good validation hip passes, with room for anatomy that the phantoms lack.

    View and implant are learned against their opposites, which lie far off: no limit of theirs needs the validation hips. A
    fracture may show little: whatever is likelier than not is refused, unless that would cost more than one good hip in 200.
    """
    native = [reading for reading in readings if reading.kind == "native"]
    areas = np.array([reading.femur_area_cm2 for reading in native])
    angles = np.array([reading.shaft_angle_deg for reading in native if reading.shaft_angle_deg is not None])
    shares = np.array([reading.canonical_share for reading in native if reading.canonical_share is not None])
    metal = float(np.quantile([reading.metal_cm2 for reading in native], 0.995))
    return Limits(
        locator_score=_LOCATOR_SCORE,
        anteroposterior_hip=_LIKELY_VIEW,
        implant=_EVEN_ODDS,
        fracture=round(max(_EVEN_ODDS, float(np.quantile([reading.fracture for reading in native], 0.995))), 3),
        metal_cm2=round(max(_LEAST_METAL_CM2, 1.2 * metal), 2),
        explained=round(0.8 * float(np.quantile([reading.explained for reading in native], 0.005)), 3),
        # A short field shows a third of the femur and is still measured at the neck.
        femur_area_cm2=(round(0.3 * areas.min(), 1), round(1.2 * areas.max(), 1)),
        shaft_angle_deg=(
            round(float(np.quantile(angles, 0.002)) - 4, 1),
            round(float(np.quantile(angles, 0.998)) + 4, 1),
        ),
        canonical_share=(round(0.9 * shares.min(), 2), round(1.1 * shares.max(), 2)),
    )


def find_intervals(cases: list[RegionCase]) -> Intervals:
    """The 90 % split-conformal intervals of each region, from the native validation hips.

    Those of the canonical pose are multiples of the figure's own spread: an uncertain figure gets a wider one. Each radiograph of a
    hip counts, as if it were another hip's.
    """
    canonical: dict[str, dict[str, float]] = {}
    projected: dict[str, float] = {}
    for region in Region:
        own = [case for case in cases if case.region == region.value and case.kind == "native" and not case.refused]
        if not own:
            continue
        canonical[region.value] = {
            name: round(conformal_half_width(relative_errors(own, name)), 4) for name in CANONICAL
        }
        truth, prediction = truth_and_prediction(own, PROJECTED)
        projected[region.value] = round(conformal_half_width(prediction - truth), 5)
    return Intervals(canonical, projected)


def write_weights(files: Mapping[str, Path], path: Path, offsets: Mapping[str, NDArray[np.float64]]) -> str:
    """Store the networks as float16; the figures' logarithms are moved down by the offsets, network -> (regions, quantities)."""
    tensors = {}
    for network, file in files.items():
        state = torch.load(file, map_location="cpu", weights_only=True)
        if (offset := offsets.get(network)) is not None:
            stated = state[_STATED_BY[network]]
            stated.view(-1)[: offset.size] -= torch.from_numpy(offset.ravel()).to(stated)
        for name, tensor in state.items():
            stored = tensor.half() if tensor.is_floating_point() else tensor
            tensors[f"{network}.{name}"] = stored.contiguous()
    save_file(tensors, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _document(
    run: RunConfiguration,
    split: Split,
    beside: Mapping[str, Pairs],
    real: RealSplit | None,
    commit: str,
    start: Bundle | None = None,
) -> dict[str, Any]:
    sources = [PHANTOM_SOURCE, *(ATLAS_SOURCES if "atlas" in beside else [])]
    begun = None if start is None else _start(start)
    return {
        "format": FORMAT,
        "name": run.name,
        "version": run.version,
        "trained_on_simulation": True,
        "frame": frame_document(),
        "intensity_transform": intensity.VERSION,
        "channels": [{"name": name, "unit": unit} for name, unit in CHANNELS],
        "verdicts": [*VERDICTS, *REGIONAL_VERDICTS],
        "technique": list(FACTORS),
        "canonical": [{"name": name, "unit": unit} for name, unit in STATED],
        "locator_channels": [{"name": name, "unit": unit} for name, unit in LOCATOR_CHANNELS],
        "networks": {
            "locator": asdict(locator_shape(run.locator)),
            "decomposer": asdict(decomposer_shape(run.decomposer)),
            **({} if run.regressor is None else {"regressor": asdict(regressor_shape(run.regressor))}),
        },
        "provenance": {
            "run": asdict(run),
            "commit": commit,
            "split": {part: [int(numbers[0]), int(numbers[-1])] for part, numbers in asdict(split).items()},
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "data": _data(run.pairs.count, beside, real, begun),
            "atlas": str(ATLAS_SOURCE) if "atlas" in beside else None,
            "fractures": "fractures" in beside,
            "sources": sources + [one for one in (begun or {}).get("sources", []) if one not in sources],
            "start": begun,
            **({} if real is None else {"real": _parts(real)}),
        },
    }


def _start(bundle: Bundle) -> dict[str, Any]:
    """What the weights had learned before this run: a card that said nothing of it would be wrong."""
    provenance, document = bundle.document["provenance"], bundle.document
    return {
        "name": document["name"],
        "version": document["version"],
        "weights_sha256": document["weights_sha256"],
        "trained_on": bundle.identity.trained_on.value,
        "data": provenance["data"],
        "sources": provenance["sources"],
    }


def _data(phantoms: int, beside: Mapping[str, Pairs], real: RealSplit | None, begun: dict[str, Any] | None) -> str:
    parts = [f"{phantoms} parametric phantoms"]
    if "fractures" in beside:
        parts.append(f"{beside['fractures'].count} phantoms with fractures")
    if "atlas" in beside:
        parts.append(
            f"{beside['atlas'].count} persons with femora drawn from a statistical shape model and the pelvis of one subject"
        )
    if real is not None:
        parts.append(f"real hips of {count_patients(real.training)} patients")
    if begun is not None:
        parts.append(f"weights of {begun['name']} {begun['version']}, which came from {begun['data']}")
    # A start that knew no patients says so itself.
    return ", ".join(parts) + ("; no patient data" if real is None and begun is None else "")


def _parts(real: RealSplit) -> dict[str, dict[str, int]]:
    """Patients and hips of each part; identifiers stay with the hospital."""
    parts = {"training": real.training, "validation": real.validation, "test": real.test}
    return {name: {"patients": count_patients(hips), "hips": len(hips)} for name, hips in parts.items()}


def _write(
    folder: Path,
    document: dict[str, Any],
    limits: Limits,
    intervals: Intervals,
    figures: dict[str, Any],
) -> None:
    whole = {**document, "limits": asdict(limits), "intervals": asdict(intervals), "figures": figures}
    (folder / "model.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
