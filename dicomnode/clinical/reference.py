"""Reference populations: data with a source (`conf/reference/*.toml`), never numbers in code."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

from dicomnode.domain.measurement import Region
from dicomnode.domain.radiograph import Sex
from dicomnode.errors import ConfigurationError
from dicomnode.records import Place, read_record, read_toml, within


@dataclass(frozen=True)
class Norm:
    """Mean and standard deviation of the areal BMD of a group of people."""

    mean_g_cm2: float = within(0.2, 2.0)
    sd_g_cm2: float = within(0.02, 0.5)


@dataclass(frozen=True)
class AgePoint:
    """The norm at one age."""

    age_years: float = within(0, 120)
    mean_g_cm2: float = within(0.2, 2.0)
    sd_g_cm2: float = within(0.02, 0.5)


@dataclass(frozen=True)
class AgeCurve:
    """Norm against age for one sex and region, linear between its points, undefined outside them."""

    sex: Sex
    region: Region
    points: tuple[AgePoint, ...]
    source: str
    verified: bool = False

    def at(self, age_years: float) -> Norm | None:
        """Interpolate the norm at `age_years`; None outside the ages of the curve."""
        for younger, older in pairwise(self.points):
            if younger.age_years <= age_years <= older.age_years:
                share = (age_years - younger.age_years) / (older.age_years - younger.age_years)
                return Norm(
                    younger.mean_g_cm2 + share * (older.mean_g_cm2 - younger.mean_g_cm2),
                    younger.sd_g_cm2 + share * (older.sd_g_cm2 - younger.sd_g_cm2),
                )
        return None


@dataclass(frozen=True)
class ReferencePopulation:
    """Whom a patient is compared with."""

    name: str
    """Short name, equal to the file's stem; what `report.reference` names."""
    title: str
    """What stands in the report."""
    scale: str
    """Densitometer maker on whose scale the values are: makers differ by up to 20 % at the hip."""
    sexes: tuple[Sex, ...]
    """Patients for whom the young-adult values may be used."""
    source: str
    verified: bool
    """Whether the values were checked against a published source; False is said in every report."""
    young_adult: Mapping[Region, Norm]
    title_ja: str = ""
    verification: str = ""
    """How the values were checked, or what is still to be done."""
    age_curves: tuple[AgeCurve, ...] = ()

    def age_curve(self, sex: Sex, region: Region) -> AgeCurve | None:
        """Find the curve for a sex and region; None where there is none."""
        return next((curve for curve in self.age_curves if (curve.sex, curve.region) == (sex, region)), None)


def load_population(path: Path) -> ReferencePopulation:
    """Read one reference population.

    Raises:
        ConfigurationError: a key is unknown, missing or impossible; the name is not the file's stem; the points of a
            curve are not in order of age.
    """
    population = read_record(ReferencePopulation, read_toml(path), Place(str(path)))
    if population.name != path.stem:
        raise ConfigurationError(f"{path}: name: expected {path.stem!r} (the file's name), found {population.name!r}")
    for curve in population.age_curves:
        ages = [point.age_years for point in curve.points]
        if len(ages) < 2 or any(later <= earlier for earlier, later in pairwise(ages)):
            raise ConfigurationError(
                f"{path}: age_curves: {curve.sex} {curve.region}: expected two or more rising ages, found {ages}"
            )
    return population


def load_populations(folder: Path) -> Mapping[str, ReferencePopulation]:
    """Read every `*.toml` in `folder`, by name.

    Raises:
        ConfigurationError: there is none, or one is wrong.
    """
    populations = {path.stem: load_population(path) for path in sorted(folder.glob("*.toml"))}
    if not populations:
        raise ConfigurationError(
            f"{folder}: holds no reference population (*.toml); restore conf/reference of the distribution"
        )
    return MappingProxyType(populations)
