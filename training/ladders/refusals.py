"""Is a number given only where it may be? Native hips ought to be measured, everything else refused."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dicomnode.dicom.pixels import read_radiograph
from dicomnode.domain.measurement import Reason, Region, Status
from dicomnode.errors import NotMeasurable
from dicomnode.inference import frame
from dicomnode.inference.frame import Label
from dicomnode.inference.predictor import Predictor
from dicomnode.pipeline import measure
from training.ladders.ladder import Case, Hip, draw_conditions, take
from training.ladders.reading import Read, Reading
from training.statistics import share_interval
from training.targets import is_native
from training.whole import WholeCase

MEASURED = "measured"
GOOD = "native hip"
_LEAST_CUT_MM = 5.0
"""Of the total hip, at its lower end: less is missing in some true total hips."""


@dataclass(frozen=True)
class Outcome:
    """What became of one hip or file, judged by the total hip."""

    group: str
    name: str
    outcome: str
    """"measured", or a reason (`domain.measurement.Reason`)."""


@dataclass(frozen=True)
class Refusals:
    """Outcomes of one group."""

    group: str
    count: int
    outcomes: dict[str, int]
    refused: float
    refused_interval: tuple[float, float]
    """95 %."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def summarise_refusals(outcomes: Iterable[Outcome]) -> list[Refusals]:
    """Count reasons by group, groups in the order in which they first appear."""
    groups: dict[str, Counter[str]] = {}
    for one in outcomes:
        groups.setdefault(one.group, Counter())[one.outcome] += 1
    summary = []
    for group, counts in groups.items():
        refused = counts.total() - counts[MEASURED]
        plain = dict(counts.most_common())
        interval = share_interval(refused, counts.total())
        summary.append(Refusals(group, counts.total(), plain, refused / counts.total(), interval))
    return summary


def native_outcomes(cases: Iterable[Case]) -> Iterator[Outcome]:
    """The outcomes of native hips that were read anyway."""
    for case in cases:
        yield Outcome(GOOD, f"{case.subject} {case.side}", _total_hip(case.reading))


def spoiled_outcomes(read: Read, hips: Iterable[Hip], seed: int) -> list[Outcome]:
    """Read what must be refused: implants, fractures, frog-leg views, and native hips after their field was cut off below."""
    outcomes = []
    for hip in tqdm(hips, desc="refusals", unit="hip"):
        conditions = draw_conditions(seed, hip.figures)
        taken = take(hip.materials, conditions)
        name = f"{hip.figures['index']} {hip.figures['side']}"
        if not is_native(hip.figures):
            outcomes.append(Outcome(_kind(hip), name, _total_hip(read(taken))))
            continue
        inside = cut_below(hip.labels, np.random.default_rng(conditions.noise_seed))
        if inside is not None:
            black = replace(taken, image=np.where(inside, taken.image, np.float32(0)), inside=inside)
            outcomes.append(Outcome("cut-off femur", name, _total_hip(read(black))))
    return outcomes


def cut_below(labels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.bool_] | None:
    """A field whose lower border lies between the femoral neck and 5 mm above the end of the total hip; None without one."""
    neck = np.flatnonzero((labels == Label.NECK).any(axis=1))
    ends = np.flatnonzero((labels == Label.INTERTROCHANTER).any(axis=1))
    if not neck.size or not ends.size:
        return None
    highest, lowest = int(neck[0]), int(ends[-1] - _LEAST_CUT_MM / frame.SPACING_MM)
    inside = np.ones(labels.shape, bool)
    inside[int(rng.integers(highest, max(lowest, highest + 1))) :] = False
    return inside


def _kind(hip: Hip) -> str:
    if hip.figures["is_frog_leg"]:
        return "frog-leg"
    if hip.figures.get("fracture") is not None:
        return f"fracture: {hip.figures['fracture']}, displaced"
    return f"implant: {hip.figures['implant'].replace('_', ' ')}"


def _total_hip(reading: Reading) -> str:
    if isinstance(reading, Reason):
        return reading.value
    return MEASURED if any(name.startswith(Region.TOTAL_HIP) for name in reading) else Reason.CUT_OFF.value


def whole_outcomes(cases: Iterable[WholeCase]) -> Iterator[Outcome]:
    """The outcomes of `training.whole.measure_whole`: from locator to figure."""
    words = {"native": GOOD, "implant": "implant", "wrong_view": "frog-leg"}
    for case in cases:
        yield Outcome(f"whole radiograph, {words[case.kind]}", f"{case.subject} {case.side}", case.outcome)


def file_outcomes(predictor: Predictor, files: Sequence[Path], group: str) -> list[Outcome]:
    """Measure DICOM files of anything as the node does; those that cannot be read as a radiograph form a group of their own."""
    outcomes = []
    for path in tqdm(files, desc=group, unit="file"):
        try:
            radiograph = read_radiograph(path)
        except NotMeasurable as error:
            outcomes.append(Outcome(f"{group}, not readable as one", path.name, error.reason.value))
            continue
        measurement = measure(radiograph, predictor, lambda *_: None)
        outcome = MEASURED if measurement.status is Status.MEASURED else str(measurement.reason)
        outcomes.append(Outcome(group, path.name, outcome))
    return outcomes
