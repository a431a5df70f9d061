"""Attributes of a data set from a stranger, read so that a damaged one is absent instead of an error.

pydicom decodes a value when it is asked for it, and raises a dozen kinds of errors where the bytes make no sense. Here each
accessor answers with an empty value then: a header of which one attribute is damaged still describes its picture.
"""

import math
import re
import struct
from datetime import date
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

_UNREADABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
    struct.error,
)
"""What pydicom raises for values that contradict their VR."""

_AGE_UNITS_PER_YEAR = {"Y": 1.0, "M": 12.0, "W": 365.25 / 7.0, "D": 365.25}
"""Source: PS3.5 Table 6.2-1, AS."""


def values(dataset: Dataset, keyword: str) -> tuple[Any, ...]:
    """Return all values of an attribute; empty where it is absent, empty or damaged."""
    try:
        value = dataset.get(keyword)
    except _UNREADABLE:
        return ()
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (MultiValue, Sequence, list, tuple)) else (value,)


def text(dataset: Dataset, keyword: str) -> str:
    """Return the first value as text without padding; "" where there is none."""
    found = values(dataset, keyword)
    return str(found[0]).strip(" \0\t\r\n") if found and found[0] is not None else ""


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """Return all values as finite numbers; empty where one of them is none."""
    try:
        found = tuple(float(value) for value in values(dataset, keyword))
    except (TypeError, ValueError, OverflowError):
        return ()
    return found if all(math.isfinite(value) for value in found) else ()


def number(dataset: Dataset, keyword: str) -> float | None:
    """Return the first value as a finite number, or None."""
    found = numbers(dataset, keyword)
    return found[0] if found else None


def integer(dataset: Dataset, keyword: str) -> int | None:
    """Return the first value as an integer, or None where it is absent or no whole number."""
    found = number(dataset, keyword)
    return int(found) if found is not None and found == int(found) else None


def items(dataset: Dataset, keyword: str) -> tuple[Dataset, ...]:
    """Return the items of a sequence; empty where it is absent or no sequence."""
    return tuple(item for item in values(dataset, keyword) if isinstance(item, Dataset))


def calendar_date(dataset: Dataset, keyword: str) -> date | None:
    """Return a DA value as a date, or None. The form of ACR-NEMA, 1999.12.31, is understood too (PS3.5 6.2, note)."""
    digits = re.fullmatch(r"(\d{4})[.\-/]?(\d{2})[.\-/]?(\d{2})", text(dataset, keyword))
    if digits is None:
        return None
    try:
        return date(*(int(part) for part in digits.groups()))
    except ValueError:
        return None


def age_years(dataset: Dataset, keyword: str) -> float | None:
    """Return an AS value ("045Y", "018M", "003W", "010D") in years, or None."""
    found = re.fullmatch(r"(\d{1,3})\s*([YMWD])", text(dataset, keyword).upper())
    return int(found[1]) / _AGE_UNITS_PER_YEAR[found[2]] if found else None
