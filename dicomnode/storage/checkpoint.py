"""A tree of frozen dataclasses with arrays as one file, and back, equal: what the step "encode" needs of the step "measure".

NumPy's .npz without pickle: the arrays as they are, and one JSON text for the rest. Nothing in such a file can run code.
"""

import dataclasses
import json
import types
import typing
import zlib
from enum import Enum
from io import BytesIO
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from dicomnode.errors import PermanentFailure

Value = TypeVar("Value")

TREE = "tree"
ARRAY_KEY = "__array__"


def dump(value: Any) -> bytes:
    """Write a frozen dataclass whose fields hold plain values, enums, tuples, arrays or further dataclasses.

    Raises:
        TypeError: a field holds something else.
    """
    arrays: dict[str, NDArray[Any]] = {}
    text = json.dumps(_plain(value, arrays), ensure_ascii=True)
    buffer = BytesIO()
    members: dict[str, Any] = {TREE: np.frombuffer(text.encode(), dtype=np.uint8), **arrays}
    np.savez(buffer, allow_pickle=False, **members)
    return buffer.getvalue()


def load(kind: type[Value], content: bytes) -> Value:
    """Read what `dump` wrote.

    Raises:
        PermanentFailure: the content is not that of a `kind`, e.g. one of another version of this program.
    """
    try:
        with np.load(BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        value: Value = _typed(kind, json.loads(arrays.pop(TREE).tobytes()), arrays)
    except (KeyError, TypeError, ValueError, OSError, EOFError, BadZipFile, zlib.error, NotImplementedError) as error:
        raise PermanentFailure(f"checkpoint is no {kind.__name__}: {error}") from error
    return value


def _plain(value: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: _plain(getattr(value, entry.name), arrays) for entry in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        name = f"array{len(arrays)}"
        arrays[name] = value
        return {ARRAY_KEY: name}
    if isinstance(value, Enum):
        return _plain(value.value, arrays)
    if isinstance(value, tuple):
        return [_plain(item, arrays) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be kept in a checkpoint")


def _typed(hint: Any, plain: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if plain is None:
            return None
        (inner,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
        return _typed(inner, plain, arrays)
    if origin is np.ndarray:
        return arrays[plain[ARRAY_KEY]]
    if origin is tuple:
        return _tuple(typing.get_args(hint), plain, arrays)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass(hint, plain, arrays)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(plain)
    return _scalar(hint, plain)


def _tuple(hints: tuple[Any, ...], plain: Any, arrays: dict[str, NDArray[Any]]) -> tuple[Any, ...]:
    if len(hints) == 2 and hints[1] is Ellipsis:
        return tuple(_typed(hints[0], item, arrays) for item in plain)
    return tuple(_typed(hint, item, arrays) for hint, item in zip(hints, plain, strict=True))


def _dataclass(kind: type[Any], plain: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    hints = typing.get_type_hints(kind)
    names = [entry.name for entry in dataclasses.fields(kind)]
    if set(plain) != set(names):
        raise ValueError(f"{kind.__name__} has other fields: {sorted(set(plain) ^ set(names))}")
    return kind(**{name: _typed(hints[name], plain[name], arrays) for name in names})


def _scalar(hint: Any, plain: Any) -> Any:
    accepted = (int, float) if hint is float else hint
    if not isinstance(plain, accepted) or (isinstance(plain, bool) and hint is not bool):
        raise TypeError(f"expected {hint.__name__}, found {type(plain).__name__}")
    return plain
