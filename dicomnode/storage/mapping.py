"""From mapped rows, which live with a session, to frozen values, which do not."""

import dataclasses
import functools
import typing
from enum import StrEnum
from typing import Any, TypeVar

from dicomnode.storage.schema import Table

Row = TypeVar("Row")


def frozen(kind: type[Row], mapped: Table) -> Row:
    """Copy the columns of `mapped` into the frozen dataclass `kind`, whose fields are named like them."""
    values = {name: _value(hint, getattr(mapped, name)) for name, hint in _fields(kind)}  # type: ignore[arg-type]
    return kind(**values)


def columns(value: Any) -> dict[str, Any]:
    """Give a frozen value's fields as column values."""
    return {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}


@functools.cache
def _fields(kind: type[Any]) -> tuple[tuple[str, Any], ...]:
    hints = typing.get_type_hints(kind)
    return tuple((entry.name, hints[entry.name]) for entry in dataclasses.fields(kind))


def _value(hint: Any, value: Any) -> Any:
    return hint(value) if isinstance(hint, type) and issubclass(hint, StrEnum) else value
