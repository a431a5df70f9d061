"""Frozen dataclasses read from TOML, checked key by key: an unknown key or a bad value is an error with its place.

One reader for `conf/node.toml`, `conf/ae.toml` and `conf/reference/*.toml`: all three complain in the same words.
"""

import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from dicomnode.errors import ConfigurationError

Record = TypeVar("Record")


@dataclass(frozen=True)
class Place:
    """Where a value stands, for messages: the file (or option) and the dotted key path in it."""

    origin: str
    keys: tuple[str, ...] = ()

    def of(self, key: str) -> "Place":
        """Give the place of `key` below this one."""
        return Place(self.origin, (*self.keys, key))

    def __str__(self) -> str:
        return f"{self.origin}: {'.'.join(self.keys)}" if self.keys else self.origin


def within(minimum: float, maximum: float, default: Any = MISSING) -> Any:
    """Declare a number field that must lie in the closed range `minimum`..`maximum`."""
    return field(default=default, metadata={"range": (minimum, maximum)})


def matching(check: typing.Callable[[str], str | None], default: Any = MISSING) -> Any:
    """Declare a text field; `check` gives None for a good text, else what was expected."""
    return field(default=default, metadata={"check": check})


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        ConfigurationError: the file is absent, unreadable, not UTF-8 or no TOML; the message names file and line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: is not valid TOML: {error}") from error


def read_record(kind: type[Record], table: Mapping[str, Any], place: Place) -> Record:
    """Build the frozen dataclass `kind` from a TOML table; fields without a default must be there.

    Raises:
        ConfigurationError: a key is unknown (with the nearest known one), missing, of another type or out of range.
    """
    hints = typing.get_type_hints(kind)
    known = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise ConfigurationError(unknown_key(place.of(key), key, known))
    values: dict[str, Any] = {}
    for name, entry in known.items():
        if name in table:
            values[name] = _value(hints[name], table[name], place.of(name))
            _check(values[name], entry.metadata, place.of(name))
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise ConfigurationError(f"{place.of(name)}: is missing; add it")
    return kind(**values)


def unknown_key(place: Place, key: str, known: typing.Iterable[str]) -> str:
    """Word the error for a key that does not exist, with the nearest one that does."""
    names = list(known)
    near = difflib.get_close_matches(key, names, n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(names))}"
    return f"{place}: unknown key; {advice}"


def _value(hint: Any, value: Any, place: Place) -> Any:
    """Convert a TOML value to the annotated type."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (part for part in typing.get_args(hint) if part is not type(None))
        return _value(inner, value, place)
    if origin is tuple:
        return _tuple(typing.get_args(hint)[0], value, place)
    if origin is not None and issubclass(origin, Mapping):
        key_hint, inner = typing.get_args(hint)
        return _mapping(key_hint, inner, value, place)
    if is_dataclass(hint) and isinstance(hint, type):
        return read_record(hint, _expect(value, dict, "a table", place), place)
    if issubclass(hint, Enum):
        return _member(hint, value, place)
    return _scalar(hint, value, place)


def _tuple(inner: Any, value: Any, place: Place) -> tuple[Any, ...]:
    items = _expect(value, list, "a list", place)
    return tuple(_value(inner, item, place.of(str(number))) for number, item in enumerate(items, start=1))


def _mapping(key_hint: Any, inner: Any, value: Any, place: Place) -> Mapping[Any, Any]:
    table = _expect(value, dict, "a table", place)
    return MappingProxyType(
        {_value(key_hint, key, place.of(key)): _value(inner, item, place.of(key)) for key, item in table.items()}
    )


def _member(kind: type[Enum], value: Any, place: Place) -> Enum:
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(repr(member.value) for member in kind)
        raise ConfigurationError(f"{place}: expected one of {choices}, found {value!r}") from None


def _scalar(hint: Any, value: Any, place: Place) -> Any:
    if hint is Path:
        return Path(_expect(value, str, "a path in quotes", place))
    if hint is bool:
        return _expect(value, bool, "true or false", place)
    if hint is int:
        return _expect(value, int, "a whole number", place)
    if hint is float:
        return float(_expect(value, (int, float), "a number", place))
    if hint is str:
        return _expect(value, str, "a text in quotes", place)
    raise TypeError(f"{place}: fields of type {hint} cannot be read from TOML")


def _expect(value: Any, kind: type | tuple[type, ...], words: str, place: Place) -> Any:
    # bool is an int in Python; `port = true` is nevertheless a mistake.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigurationError(f"{place}: expected {words}, found {value!r}")
    return value


def _check(value: Any, metadata: Mapping[str, Any], place: Place) -> None:
    if "range" in metadata and value is not None:
        minimum, maximum = metadata["range"]
        if not minimum <= value <= maximum:
            raise ConfigurationError(f"{place}: expected {minimum} to {maximum}, found {value}")
    if "check" in metadata and value is not None:
        expected = metadata["check"](value)
        if expected is not None:
            raise ConfigurationError(f"{place}: expected {expected}, found {value!r}")
