"""Would the reading put a hip into the class that the truth puts it into?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dicomnode.clinical.reference import ReferencePopulation
from dicomnode.clinical.scores import DIAGNOSTIC_REGIONS, Classification, Criteria, assess
from dicomnode.domain.measurement import Assessment, Estimate, Region
from dicomnode.domain.radiograph import Patient, Sex
from training.ladders.ladder import Case, quantities, truth_and_reading
from training.ladders.reading import is_areal_bmd
from training.statistics import Values, area_under_curve, bootstrap_intervals, share_interval

CLASSES = (Classification.OSTEOPOROSIS, Classification.LOW_BONE_MASS, Classification.NORMAL)
_OSTEOPOROSIS_T = -2.5
_FEWEST = 10


@dataclass(frozen=True)
class Share:
    """A share of cases with its 95 % interval; NaN of none."""

    successes: int
    of: int
    interval: tuple[float, float]


@dataclass(frozen=True)
class Diagnosis:
    """Classes from one quantity, of persons aged 50 or older (WHO's classes hold for them)."""

    quantity: str
    reference: str
    hips: int
    auc: float
    """Of the reading, for a true T-score of -2.5 or lower."""
    auc_interval: tuple[float, float]
    """95 %, by patient."""
    table: dict[str, dict[str, int]]
    """True class to read class to hips."""
    accuracy: Share
    sensitivity: Share
    """For osteoporosis, as specificity."""
    specificity: Share

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def diagnose(
    cases: Sequence[Case], table: Iterable[Mapping[str, Any]], population: ReferencePopulation
) -> list[Diagnosis]:
    """Classify truth and reading of every areal BMD by the same rules (ISCD 2023).

    Args:
        table: figures of (at least) the hips of the cases, for sex and age.
    """
    persons = {
        int(figures["index"]): Patient(Sex(figures["sex"]), age_years_stated=float(figures["age_years"]))
        for figures in table
    }
    found = []
    for quantity in quantities(cases):
        region = Region(quantity.partition(".")[0])
        if is_areal_bmd(quantity) and region in DIAGNOSTIC_REGIONS and region in population.young_adult:
            one = _diagnosis(cases, quantity, region, persons, population)
            found += [one] if one is not None else []
    return found


def _diagnosis(
    cases: Sequence[Case],
    quantity: str,
    region: Region,
    persons: Mapping[int, Patient],
    population: ReferencePopulation,
) -> Diagnosis | None:
    truth, reading, patients = truth_and_reading(cases, quantity)

    def assessed(value: float, patient: int) -> Assessment:
        person = persons[patient]
        return assess(region, Estimate(value), person, population, Criteria.ISCD_2023, on_dxa_scale=False)

    true = [assessed(value, patient) for value, patient in zip(truth, patients.tolist(), strict=True)]
    read = [assessed(value, patient) for value, patient in zip(reading, patients.tolist(), strict=True)]
    kept = np.array([one.classification in CLASSES for one in true], bool)
    if kept.sum() < _FEWEST:
        return None
    osteoporosis = np.array([one.t_score is not None and one.t_score <= _OSTEOPOROSIS_T for one in true])[kept]
    score = -reading[kept]

    def auc(is_case: Values, score: Values) -> Values:
        return np.array([area_under_curve(is_case > 0, score)])

    interval = bootstrap_intervals(auc, patients[kept], osteoporosis.astype(np.float64), score)[0]
    classes = [
        (str(t.classification), str(r.classification)) for t, r, keep in zip(true, read, kept, strict=True) if keep
    ]
    table = {t.value: {r.value: classes.count((t.value, r.value)) for r in CLASSES} for t in CLASSES}
    right = [(t, r) for t, r in classes if t == r]
    positive = [r == Classification.OSTEOPOROSIS for t, r in classes if t == Classification.OSTEOPOROSIS]
    negative = [r != Classification.OSTEOPOROSIS for t, r in classes if t != Classification.OSTEOPOROSIS]
    return Diagnosis(
        quantity=quantity,
        reference=population.name,
        hips=len(classes),
        auc=area_under_curve(osteoporosis, score),
        auc_interval=(float(interval[0]), float(interval[1])),
        table=table,
        accuracy=_share(len(right), len(classes)),
        sensitivity=_share(sum(positive), len(positive)),
        specificity=_share(sum(negative), len(negative)),
    )


def _share(successes: int, of: int) -> Share:
    return Share(successes, of, share_interval(successes, of) if of else (float("nan"), float("nan")))
