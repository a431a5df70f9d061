"""Tables that a person fills in, one line per case: what is checked of every one of them."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dicomnode.errors import ConfigurationError

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Line:
    """One case."""

    case: str
    patient: str
    """Empty: the case is the only one of its patient, who goes by its identifier."""
    cells: Mapping[str, str]
    """Column to text, of the cells that are not empty."""
    place: str
    """File and line, for messages."""


def read_lines(
    path: Path, required: Sequence[str], optional: Sequence[str] = (), values: Sequence[str] = ()
) -> tuple[Line, ...]:
    """Read a CSV file whose columns are `case`, perhaps `patient`, and others.

    Args:
        required: columns that no line may lack.
        optional: columns that there may be.
        values: more of them, too many to be listed in a message.

    Raises:
        ConfigurationError: unreadable, a column that is not known, a cell that is needed and empty, a case named twice or so that
            it could be a name or a path; the message names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns, lines = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{path} is no readable CSV file: {error}") from error
    named = ("case", "patient", *required, *optional)
    unknown = [column for column in columns if column not in (*named, *values)]
    missing = [column for column in ("case", *required) if column not in columns]
    if unknown or missing:
        wrong = f"unknown column {unknown[0]!r}" if unknown else f"no column {missing[0]!r}"
        such = f", and such as {values[0]}" if values else ""
        raise ConfigurationError(f"{path}: {wrong}; known are {', '.join(named)}{such}")
    found = tuple(_line(line, f"{path}, line {number}", required) for number, line in enumerate(lines, start=2))
    names = [line.case.lower() for line in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"{path}: the case {twice[0]!r} stands there twice; each needs its own identifier")
    return found


def _line(line: Mapping[str, str | None], place: str, required: Sequence[str]) -> Line:
    cells = {key: value.strip() for key, value in line.items() if isinstance(value, str) and value.strip()}
    name = cells.get("case", "")
    for key in ("case", "patient"):
        if (key == "case" or key in cells) and not _IDENTIFIER.fullmatch(cells.get(key, "")):
            raise ConfigurationError(
                f"{place}: {key} {cells.get(key, '')!r}, expected an identifier of letters, digits, - and _ (no name)"
            )
    lacking = [column for column in required if column not in cells]
    if lacking:
        raise ConfigurationError(f"{place}: case {name} lacks its {lacking[0]}")
    return Line(name, cells.get("patient", ""), cells, place)
