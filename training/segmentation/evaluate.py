"""What a trained network can do: Dice on held-out phantoms, how well uncertainty warns, and Dice on a CT with labels."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from dicomnode.errors import ConfigurationError
from training.anatomy.labels import LabelMap
from training.anatomy.population import draw_subject
from training.segmentation.border import build_border
from training.segmentation.config import SegmentationRun
from training.segmentation.labelled import read_cases
from training.segmentation.library import load_tissues, phantom_file
from training.segmentation.model import MuscleModel, SegmentationModel, load_model, save_model
from training.segmentation.phantom_ct import SPOILS, LabelledCt, hip_case, pelvis_case
from training.segmentation.predict import Segmentation, segment
from training.segmentation.quality import QualityLine, auroc, dice_coefficient, fit_quality
from training.segmentation.structures import MUSCLE_NAMES
from training.segmentation.train import trained, trained_muscles, trained_network
from training.split import split_subjects

FAILURE_DICE, MUSCLE_FAILURE_DICE = 0.9, 0.8
"""Below these a bone's, and a muscle's, outline has failed."""
LEAST_TRUTH_CM3 = 5.0
"""Smaller pieces of a structure in the field are not judged."""


@dataclass(frozen=True)
class Case:
    """One structure of one CT."""

    subject: int
    spoil: str
    structure: str
    truth_cm3: float
    found_cm3: float
    dice: float
    uncertainty: float
    predicted_dice: float

    @property
    def is_muscle(self) -> bool:
        """Of the muscles' network."""
        return self.structure in MUSCLE_NAMES.values()


@dataclass(frozen=True)
class WarningFigures:
    """How uncertainty, and the Dice predicted from it, stand to the true Dice."""

    failure_dice: float
    """Below it an outline has failed."""

    n: int
    failures: int
    auroc: float | None
    pearson_r: float
    mean_absolute_error: float


@dataclass(frozen=True)
class Summary:
    """All figures of an evaluation; of phantoms, unless it says otherwise."""

    pelves: dict[str, dict[str, float]]
    """Structure to mean and least Dice, mean absolute error of its volume as a share, and n: whole pelves as they come; muscles
    too where the model knows them."""
    hip_dice: dict[str, float]
    """Spoil to mean Dice of the bones, single hips."""
    warning: WarningFigures
    """Bones of single hips, all spoils together."""
    muscle_dice: dict[str, float] = field(default_factory=dict)
    """As `hip_dice`, of the muscles."""
    muscle_warning: WarningFigures | None = None
    """As `warning`, of the muscles; None where the model knows none."""
    real_ct: dict[str, dict[str, float]] = field(default_factory=dict)
    """Structure to "dice" and "predicted_dice" on a CT of a patient, against a label map from elsewhere; empty without one."""
    held_out_cts: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Case to the like, for the patients of the run's table who were held out; empty where it has no table."""


def finish(
    run: SegmentationRun, folder: Path, library: Path, provenance: dict[str, Any], done: Callable[[int], object]
) -> SegmentationModel:
    """Turn trained weights into a model whose Dice line was fitted on the validation phantoms.

    Raises:
        ConfigurationError: nothing was trained in `folder`, or the run leaves no phantom for validation.
    """
    subjects = split_subjects(run.phantoms.count, run.split).validation
    if not len(subjects):
        raise ConfigurationError(
            f"split.validation {run.split.validation:g} of {run.phantoms.count} phantoms is nobody; the line from spread to Dice"
            " needs one at least"
        )
    network, border = trained_network(run, folder), trained(build_border(), folder / "border.pt")
    flat = QualityLine((0.0,), (1.0,))
    muscles = None if run.muscles is None else MuscleModel(run.muscles, trained_muscles(run, run.muscles, folder), flat)
    bare = SegmentationModel(run, network, border, flat, muscles, learned_from(run))
    save_model(bare, provenance, folder / "model")
    model = load_model(folder / "model")  # float16 weights, as they will be used
    cases = hip_cases(model, library, subjects, run.seed + 1, done)
    finished = replace(model, quality=_quality([case for case in cases if not case.is_muscle]))
    if model.muscles is not None:
        of_muscles = _quality([case for case in cases if case.is_muscle])
        finished = replace(finished, muscles=replace(model.muscles, quality=of_muscles))
    save_model(finished, provenance, folder / "model")
    return finished


def _quality(cases: list[Case]) -> QualityLine:
    return fit_quality([case.uncertainty for case in cases], [case.dice for case in cases])


def learned_from(run: SegmentationRun) -> tuple[str, ...]:
    """What a run's weights know, with what those that it began with had learned."""
    earlier = () if run.start is None else load_model(Path(run.start)).learned_from
    own = ["simulated CT"]
    if run.hospital is not None:
        patients = {case.patient for case in read_cases(run.hospital)["training"]}
        own.append(f"labelled CTs of {len(patients)} patients ({Path(run.hospital.table).name})")
    return tuple(dict.fromkeys((*earlier, *own)))


def hip_cases(
    model: SegmentationModel, library: Path, subjects: Iterable[int], seed: int, done: Callable[[int], object]
) -> list[Case]:
    """Single hips of phantoms, each spoilt in every way."""
    cases = []
    for index in subjects:
        subject = draw_subject(model.run.phantoms.seed, int(index))
        tissues = load_tissues(phantom_file(library, int(index)))
        for number, spoil in enumerate(SPOILS):
            scanned = hip_case(tissues, subject, spoil, np.random.default_rng((seed, int(index), number)))
            cases += judge(scanned, segment(scanned.ct, model), int(index), spoil)
            done(1)
    return cases


def pelvis_cases(
    model: SegmentationModel, library: Path, subjects: Iterable[int], seed: int, done: Callable[[int], object]
) -> list[Case]:
    """Whole pelves of phantoms in ordinary scans."""
    cases = []
    for index in subjects:
        tissues = load_tissues(phantom_file(library, int(index)))
        subject = draw_subject(model.run.phantoms.seed, int(index))
        scanned = pelvis_case(tissues, subject, np.random.default_rng((seed, int(index))))
        cases += judge(scanned, segment(scanned.ct, model), int(index), "pelvis")
        done(1)
    return cases


def judge(scanned: LabelledCt, found: Segmentation, subject: int, spoil: str) -> list[Case]:
    """Compare each structure that is in the field with the truth."""
    voxel_cm3 = abs(float(np.linalg.det(scanned.ct.patient_from_voxel[:3, :3]))) / 1000
    cases = []
    for value, name in scanned.truth.names.items():
        truth, figures = scanned.truth.values == value, found.figures.get(name)
        volume = float(truth.sum()) * voxel_cm3
        if figures is not None and volume >= LEAST_TRUTH_CM3:
            dice = dice_coefficient(truth, found.labels.values == value)
            cases.append(
                Case(
                    subject, spoil, name, volume, figures.volume_cm3, dice, figures.uncertainty, figures.predicted_dice
                )
            )
    return cases


def summarise(pelves: list[Case], hips: list[Case]) -> Summary:
    """Gather the figures."""
    bones, muscles = ([case for case in hips if case.is_muscle is is_muscle] for is_muscle in (False, True))
    return Summary(
        pelves={name: _of_pelves(cases) for name, cases in _grouped(pelves, lambda case: case.structure).items()},
        hip_dice=_by_spoil(bones),
        warning=warning_of(bones, FAILURE_DICE),
        muscle_dice=_by_spoil(muscles),
        muscle_warning=warning_of(muscles, MUSCLE_FAILURE_DICE) if muscles else None,
    )


def _of_pelves(cases: list[Case]) -> dict[str, float]:
    dice, errors = zip(*((case.dice, abs(case.found_cm3 / case.truth_cm3 - 1)) for case in cases), strict=True)
    return {"mean": mean(dice), "least": min(dice), "volume_error": mean(errors), "n": len(cases)}


def _by_spoil(cases: list[Case]) -> dict[str, float]:
    return {spoil: mean(case.dice for case in own) for spoil, own in _grouped(cases, lambda case: case.spoil).items()}


def warning_of(cases: list[Case], failure_dice: float) -> WarningFigures:
    """AUROC of the uncertainty for failed outlines; agreement of predicted and true Dice."""
    dice = np.array([case.dice for case in cases])
    predicted = np.array([case.predicted_dice for case in cases])
    failed = dice < failure_dice
    return WarningFigures(
        failure_dice=failure_dice,
        n=len(cases),
        failures=int(failed.sum()),
        auroc=auroc([case.uncertainty for case in cases], failed.tolist()),
        pearson_r=float(np.corrcoef(dice, predicted)[0, 1]),
        mean_absolute_error=float(np.abs(dice - predicted).mean()),
    )


def _grouped(cases: list[Case], key: Callable[[Case], str]) -> dict[str, list[Case]]:
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(key(case), []).append(case)
    return groups


def compare(found: Segmentation, reference: LabelMap) -> dict[str, dict[str, float]]:
    """Dice of each structure that a label map from elsewhere holds, and what was predicted of it."""
    return {
        name: {
            "dice": dice_coefficient(reference.values == value, found.labels.mask(name)),
            "predicted_dice": found.figures[name].predicted_dice,
        }
        for value, name in reference.names.items()
        if name in found.figures
    }


def held_out_cts(
    model: SegmentationModel, done: Callable[[int], object], told: Callable[[str], object]
) -> dict[str, dict[str, dict[str, float]]]:
    """Case to what `compare` says of it, for the patients of the run's table that were not learned from.

    A CT or a label map that cannot be used is told of, and stops no other.
    """
    cases = () if model.run.hospital is None else read_cases(model.run.hospital)["test"]
    compared = {}
    for case in cases:
        try:
            ct, reference = case.read()
        except ConfigurationError as error:
            told(f"left out: {error}")
            continue
        compared[case.case] = compare(segment(ct, model), reference)
        done(1)
    return compared


def write_summary(summary: Summary, cases: list[Case], folder: Path) -> None:
    """`figures.json` and `cases.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures.json").write_text(json.dumps(asdict(summary), indent=1) + "\n", encoding="utf-8")
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases], indent=0) + "\n", encoding="utf-8")
