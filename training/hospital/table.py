"""The table that a hospital fills in: one line per case, files and reference values.

Columns: `case` (letters, digits, - and _; never a name), `ct` (NIfTI file or folder of one DICOM series), `radiograph` (DICOM
file); and, where there are such, `patient` (an identifier like `case`, for patients with several cases), `labels` (NIfTI with
JSON, or a folder of masks), `phantom` (TOML of the rods in the CT), `kilovolt`, `sdd_mm`, `spd_mm` (where the headers of CT and
radiograph do not say), `dxa_maker`, and `dxa_<side>_<region>_g_cm2`, `qct_<side>_<region>_mg_cm3` such as
`dxa_left_total_hip_g_cm2`. Paths are relative to the table. Empty cells are nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dicomnode.domain.measurement import Region
from dicomnode.domain.radiograph import Side
from dicomnode.errors import ConfigurationError
from training.case_table import Line, read_lines

NUMBERS = ("kilovolt", "sdd_mm", "spd_mm")
FILES = ("ct", "radiograph", "labels", "phantom")
SIDES = {"right": Side.RIGHT, "left": Side.LEFT}


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    case: str
    ct: Path
    radiograph: Path
    labels: Path | None = None
    phantom: Path | None = None
    kilovolt: float | None = None
    """Of the CT; used without a phantom."""
    sdd_mm: float | None = None
    spd_mm: float | None = None
    dxa_maker: str | None = None
    dxa_g_cm2: Mapping[tuple[Side, Region], float] = field(default_factory=dict)
    """Areal density by densitometer."""
    qct_mg_cm3: Mapping[tuple[Side, Region], float] = field(default_factory=dict)
    """Volumetric density by another program."""
    patient: str = ""
    """Empty: the case is the only one of its patient, who goes by its identifier."""


def read_table(path: Path) -> tuple[Case, ...]:
    """Read and check the whole table before anything is made.

    Raises:
        ConfigurationError: unreadable, a column that is not known, a case named twice or so that it could be a name or a path,
            or a value that is no number; the message names the line.
    """
    optional = ("labels", "phantom", *NUMBERS, "dxa_maker")
    lines = read_lines(path, ("ct", "radiograph"), optional, list(_value_columns()))
    return tuple(_case(line, path.parent) for line in lines)


def _value_columns() -> dict[str, tuple[str, tuple[Side, Region]]]:
    """Column to kind, side and region."""
    return {
        f"{kind}_{word}_{region.value}_{unit}": (kind, (side, region))
        for kind, unit in (("dxa", "g_cm2"), ("qct", "mg_cm3"))
        for word, side in SIDES.items()
        for region in Region
    }


def _case(line: Line, folder: Path) -> Case:
    name, place, cells = line.case, line.place, line.cells
    files = {key: folder / cells[key] if key in cells else None for key in FILES}
    values: dict[str, dict[tuple[Side, Region], float]] = {"dxa": {}, "qct": {}}
    for column, (kind, where) in _value_columns().items():
        if column in cells:
            values[kind][where] = _positive(cells, column, place)
    if values["dxa"] and "dxa_maker" not in cells:
        raise ConfigurationError(
            f"{place}: case {name} has DXA values but no dxa_maker; makers differ by 10 % and more"
        )
    numbers = {key: _positive(cells, key, place) if key in cells else None for key in NUMBERS}
    return Case(
        name,
        folder / cells["ct"],
        folder / cells["radiograph"],
        files["labels"],
        files["phantom"],
        numbers["kilovolt"],
        numbers["sdd_mm"],
        numbers["spd_mm"],
        cells.get("dxa_maker"),
        values["dxa"],
        values["qct"],
        line.patient,
    )


def _positive(cells: Mapping[str, str], column: str, place: str) -> float:
    try:
        value = float(cells[column])
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise ConfigurationError(f"{place}: {column} {cells[column]!r}, expected a number above 0")
    return value
