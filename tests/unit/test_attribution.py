"""What a model's errors go with."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dicomnode.domain.measurement import Region
from training.anatomy.population import Subject, draw_subject
from training.attribution import attribute, properties, write_attributions
from training.augment import random_radiograph
from training.cases import RegionCase
from training.evaluate import taking

POPULATION, SEED, PERSONS = 1, 5, 40


def cases_whose_error(follows: Callable[[Subject, str], float]) -> list[RegionCase]:
    cases = []
    for index in range(PERSONS):
        for side in "RL":
            stated = {"areal_bmd_g_cm2": 0.9 * float(np.exp(follows(draw_subject(POPULATION, index), side)))}
            truth = {"areal_bmd_g_cm2": 0.9}
            cases.append(RegionCase(index, side, Region.TOTAL_HIP.value, "native", "", truth, stated, {}, {}, {}))
    return cases


def test_errors_that_follow_a_property_are_put_down_to_it_with_their_sign() -> None:
    def density(subject: Subject, side: str) -> float:
        return -0.5 * (subject.hips[side == "L"].quality.cortical_density_g_cm3 - 1.05)

    first, second, *_ = attribute(cases_whose_error(density), POPULATION, SEED)
    assert (first.group, first.name) == ("bone", "cortical_density_g_cm3")
    assert first.pearson_r == pytest.approx(-1)
    assert first.interval == pytest.approx((-1, -1))
    assert abs(second.pearson_r) < 0.6


def test_technique_is_that_of_the_radiograph_that_was_measured() -> None:
    def copper(subject: Subject, side: str) -> float:
        return 0.2 * properties(subject, side, SEED)["technique", "added_cu_mm"]

    first = attribute(cases_whose_error(copper), POPULATION, SEED)[0]
    assert (first.group, first.name) == ("technique", "added_cu_mm")
    for index, side in ((3, "R"), (4, "L")):
        _, exposure = random_radiograph(np.ones((4, 8, 8), np.float32), 0.7, taking(SEED, 2 * index + (side == "L")))
        drawn = properties(draw_subject(POPULATION, index), side, SEED)
        assert drawn["technique", "kilovolt"] == exposure.kilovolt
        assert drawn["technique", "blur_mm"] == exposure.blur_mm


def test_each_side_has_its_own_bone_and_pose() -> None:
    subject = draw_subject(POPULATION, 2)
    right, left = (properties(subject, side, SEED) for side in "RL")
    for drawn, hip in zip((right, left), subject.hips, strict=True):
        assert drawn["pose", "internal_rotation_deg"] == hip.pose.internal_rotation_deg
        assert drawn["bone", "trabecular_density_g_cm3"] == hip.quality.trabecular_density_g_cm3
    assert right["body", "age_years"] == left["body", "age_years"] == subject.age_years


def test_what_was_not_measured_and_few_cases_say_nothing(tmp_path: Path) -> None:
    cases = cases_whose_error(lambda subject, _: 0.001 * subject.age_years)
    refused = [replace(case, refused="cut_off", prediction={}) for case in cases]
    assert attribute([*refused[10:], *cases[:10]], POPULATION, SEED) == []
    write_attributions([], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_all_are_listed_and_the_largest_drawn(tmp_path: Path) -> None:
    found = attribute(cases_whose_error(lambda subject, _: 0.01 * subject.pelvic_tilt_deg), POPULATION, SEED)
    write_attributions(found, tmp_path)
    with (tmp_path / "errors.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found) > 40
    assert rows[0]["property"] == "pelvic_tilt_deg"
    assert (tmp_path / "errors.png").stat().st_size > 10_000
