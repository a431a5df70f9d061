"""A phantom of calibration rods, as its certificate describes it: one TOML file, checked once and frozen."""

import tomllib
from dataclasses import dataclass, fields
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

from dicomnode.errors import ConfigurationError


class Material(StrEnum):
    """What a density is a density of. 100 mg/cm3 of one are not 100 mg/cm3 of the other.

    No conversion is built in: the published ones are regressions between certain phantoms on certain scanners.
    """

    HYDROXYAPATITE = "hydroxyapatite"
    K2HPO4 = "K2HPO4"


class Standing(StrEnum):
    """How far the reference values of a phantom's file can be trusted."""

    CERTIFICATE = "certificate"
    """Copied from the certificate of the phantom with this serial number."""
    NOMINAL = "nominal"
    """What the maker says of every phantom of this kind."""
    EXAMPLE = "example"
    """Shows how such a file looks. Nothing is calibrated with it."""


@dataclass(frozen=True)
class Rod:
    """One cylinder of known composition."""

    label: str
    mineral_mg_cm3: float
    """Equivalent concentration of the phantom's material; may be negative (a rod that attenuates less than water)."""
    position_mm: float
    """Centre along the row, from any origin."""
    water_mg_cm3: float = 1000.0
    """Equivalent concentration of water; other than 1000 where the certificate gives one."""


@dataclass(frozen=True)
class RodPhantom:
    """Parallel rods in one row, inside a pad."""

    name: str
    serial_number: str
    """Empty where the values are no certificate's."""
    material: Material
    standing: Standing
    source: str
    """Where values and dimensions were read."""
    diameter_mm: float
    rods: tuple[Rod, ...]
    slope_correction_hu_cm3_mg: float = 0.0
    intercept_correction_hu: float = 0.0
    """Added to slope and intercept after the fit: from the rods' material to the one in the patient, where the maker asks for
    it."""

    def __post_init__(self) -> None:
        minerals = {rod.mineral_mg_cm3 for rod in self.rods}
        if len(self.rods) < 3 or len(minerals) < 3:
            raise ConfigurationError(
                f"phantom {self.name!r} has {len(self.rods)} rods of {len(minerals)} densities; a line that can be checked"
                " needs three at least"
            )
        places = sorted(rod.position_mm for rod in self.rods)
        gaps = [right - left for left, right in pairwise(places)]
        if self.diameter_mm <= 0 or min(gaps) < self.diameter_mm:
            raise ConfigurationError(
                f"phantom {self.name!r}: rods of {self.diameter_mm:g} mm lie {min(gaps):g} mm apart, one inside the other;"
                " positions are those of the centres"
            )
        if self.standing is Standing.CERTIFICATE and not self.serial_number:
            raise ConfigurationError(f"phantom {self.name!r}: values of a certificate need its serial_number")

    @property
    def identity(self) -> str:
        """Name and serial number, for reports."""
        return f"{self.name} {self.serial_number}".strip()


def load_rod_phantom(path: Path) -> RodPhantom:
    """Read a phantom's TOML file, `conf/training/phantoms/*.toml`.

    Raises:
        ConfigurationError: unreadable, a key is missing or unknown, or the phantom cannot be; the message names the place.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} is no readable TOML file: {error}") from error
    rods = document.pop("rods", [])
    if not isinstance(rods, list):
        raise ConfigurationError(f"{path}: rods must be an array of tables, [[rods]]")
    built = tuple(_record(Rod, rod, f"{path}: rod {number}") for number, rod in enumerate(rods, 1))
    for key, kind in (("material", Material), ("standing", Standing)):
        if key in document:
            document[key] = _choice(kind, document[key], f"{path}: {key}")
    phantom: RodPhantom = _record(RodPhantom, document | {"rods": built}, str(path))
    return phantom


def _choice(kind: type[StrEnum], text: Any, place: str) -> StrEnum:
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigurationError(f"{place} is {text!r}, expected one of {', '.join(kind)}") from error


def _record(kind: type[Any], table: dict[str, Any], place: str) -> Any:
    known = {field.name: field.type for field in fields(kind)}
    unknown = table.keys() - known.keys()
    if unknown:
        raise ConfigurationError(f"{place}: unknown key {sorted(unknown)[0]!r}; known are {', '.join(known)}")
    values = {key: float(v) if known[key] is float and isinstance(v, int) else v for key, v in table.items()}
    for key, value in values.items():
        wanted = known[key]
        if wanted in (str, float) and not isinstance(value, wanted):
            raise ConfigurationError(
                f"{place}: {key} is {value!r}, expected {'a number' if wanted is float else 'a text'}"
            )
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigurationError(f"{place}: {error}") from error
