"""Reference populations: the shipped ones load, and a wrong one is refused with its place."""

from pathlib import Path

import pytest

import dicomnode
from dicomnode.clinical.reference import load_population, load_populations
from dicomnode.domain.measurement import Region
from dicomnode.domain.radiograph import Sex
from dicomnode.errors import ConfigurationError

SHIPPED = Path(dicomnode.__file__).parent / "conf" / "reference"
GOOD = """
name = "site"
title = "Our site"
scale = "Hologic"
sexes = ["F"]
source = "own data"
verified = true
[young_adult.total_hip]
mean_g_cm2 = 0.9
sd_g_cm2 = 0.1
"""


def write(folder: Path, text: str, name: str = "site.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_populations_load_and_name_their_source() -> None:
    populations = load_populations(SHIPPED)
    assert set(populations) == {"nhanes3", "japan2012"}
    assert all("doi:" in population.source for population in populations.values())


def test_nhanes3_holds_for_every_adult_and_japan2012_for_women_only() -> None:
    populations = load_populations(SHIPPED)
    assert set(populations["nhanes3"].sexes) == set(Sex)
    assert populations["japan2012"].sexes == (Sex.FEMALE,)


def test_every_shipped_curve_is_about_the_young_adult_level_at_its_start() -> None:
    for population in load_populations(SHIPPED).values():
        for curve in population.age_curves:
            first = curve.points[0]
            young = population.young_adult[curve.region]
            assert abs(first.mean_g_cm2 - young.mean_g_cm2) < 2 * young.sd_g_cm2


def test_a_curve_is_found_by_sex_and_region() -> None:
    nhanes3 = load_populations(SHIPPED)["nhanes3"]
    assert nhanes3.age_curve(Sex.MALE, Region.TOTAL_HIP) is not None
    assert nhanes3.age_curve(Sex.FEMALE, Region.TOTAL_HIP) is None


def test_a_population_of_the_site_can_be_added(tmp_path: Path) -> None:
    assert load_population(write(tmp_path, GOOD)).young_adult[Region.TOTAL_HIP].mean_g_cm2 == 0.9


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "mean_g_cm2 = 0.9",
            "mean_g_cm2 = 900",
            r"young_adult\.total_hip\.mean_g_cm2: expected 0\.2 to 2\.0, found 900",
        ),
        ("total_hip", "hip", r"young_adult\.hip: expected one of 'total_hip'"),
        ('source = "own data"', "", r"source: is missing"),
        ("scale", "scal", r"scal: unknown key; did you mean 'scale'\?"),
        ('"site"', '"other"', r"name: expected 'site'"),
        ('["F"]', '"F"', r"sexes: expected a list"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_population(path)
    assert str(path) in str(caught.value)


def test_a_curve_must_rise_in_age(tmp_path: Path) -> None:
    curve = """
    [[age_curves]]
    sex = "F"
    region = "total_hip"
    source = "own data"
    points = [{age_years = 50, mean_g_cm2 = 0.9, sd_g_cm2 = 0.1}, {age_years = 40, mean_g_cm2 = 0.9, sd_g_cm2 = 0.1}]
    """
    with pytest.raises(ConfigurationError, match=r"two or more rising ages, found \[50\.0, 40\.0\]"):
        load_population(write(tmp_path, GOOD + curve))


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no reference population"):
        load_populations(tmp_path)
