"""The same radiographs by who is on them: body size, age, sex, side; or by where the anatomy came from."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tqdm import tqdm

from training.ladders.ladder import Case, Hip, Ladder, draw_conditions, make_ladder, read_hip, regrouped
from training.ladders.reading import Read
from training.targets import SubjectTarget, is_native

BMI_KG_M2 = (18.5, 25.0, 30.0, 35.0)
"""Source: WHO Technical Report Series 894 (2000): underweight, normal, pre-obese, obese I, obese II."""
AGE_YEARS = (50.0, 65.0, 80.0)
PHANTOMS = "phantoms"


def read_all(read: Read, hips: Iterable[Hip], seed: int, rung: str = "all") -> list[Case]:
    """One radiograph of each native hip under conditions drawn for it."""
    native = [hip for hip in hips if is_native(hip.figures)]
    return [
        read_hip(read, hip, draw_conditions(seed, hip.figures), rung) for hip in tqdm(native, desc=rung, unit="hip")
    ]


def group_ladders(cases: Sequence[Case], table: Iterable[Mapping[str, Any]]) -> list[Ladder]:
    """Split cases by person.

    Args:
        table: figures of (at least) the hips of the cases, for what is known of the persons.
    """
    persons = {int(figures["index"]): figures for figures in table}
    bmi, age = _names(BMI_KG_M2), _names(AGE_YEARS)
    sexes, sides = {"F": "women", "M": "men"}, {"R": "right", "L": "left"}
    splits = (
        (
            "body_size",
            "Body size",
            "body mass index, kg/m²",
            bmi,
            lambda case: _name(persons[case.subject]["bmi_kg_m2"], BMI_KG_M2),
        ),
        ("age", "Age", "age, years", age, lambda case: _name(persons[case.subject]["age_years"], AGE_YEARS)),
        ("sex", "Sex", "sex", list(sexes.values()), lambda case: sexes[persons[case.subject]["sex"]]),
        ("side", "Side", "side", list(sides.values()), lambda case: sides[case.side]),
    )
    return [
        make_ladder(name, title, axis, regrouped(cases, group, order)) for name, title, axis, order, group in splits
    ]


def anatomy_ladder(
    read: Read, phantoms: Sequence[Case], sources: Mapping[str, Iterable[SubjectTarget]], seed: int
) -> Ladder:
    """Compare other anatomy with the phantoms' that the network grew up with.

    Args:
        phantoms: what `read_all` gave for phantoms.
        sources: name of a source (an atlas, a hospital's CTs) to its persons, from `training.targets.make_targets`.
    """
    cases = regrouped(phantoms, lambda _: PHANTOMS, (PHANTOMS,))
    for source, persons in sources.items():
        cases += read_all(read, (hip for person in persons for hip in person.hips), seed, source)
    return make_ladder("anatomy", "Anatomy shift", "source of the anatomy", cases)


def _names(edges: Sequence[float]) -> list[str]:
    middle = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    return [f"below {edges[0]:g}", *middle, f"{edges[-1]:g} and more"]


def _name(value: float, edges: Sequence[float]) -> str:
    return _names(edges)[bisect_right(edges, value)]
