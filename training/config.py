"""A training run is one TOML file, read once, checked once and frozen."""

import tomllib
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from dicomnode.errors import ConfigurationError

_WIDTH_STEP = 8
_LEAST_WIDTH = 16
"""Narrower networks kill the process in torch 2.13's channels-last backward pass on CPU (seen with 4 and 8 channels)."""


@dataclass(frozen=True)
class PairsConfiguration:
    """How many phantoms are made, and from which seed."""

    count: int
    """Simulated patients; each gives two hips."""
    seed: int


@dataclass(frozen=True)
class SplitConfiguration:
    """Share of the patients (never of the hips) in each part; what is left is for training."""

    validation: float
    """Sets plausibility limits and prediction intervals; chooses nothing else."""
    test: float
    """Held out: every published figure is measured here."""


@dataclass(frozen=True)
class NetworkConfiguration:
    """One network and how it is trained."""

    widths: tuple[int, ...]
    steps: int
    batch: int
    learning_rate: float
    """Peak of a one-cycle schedule."""
    weight_decay: float = 1e-4
    ema: float = 0.995
    """Decay of the exponential moving average of the weights, which is what is exported."""


@dataclass(frozen=True)
class RunConfiguration:
    """Everything that decides what a run produces."""

    name: str
    version: str
    seed: int
    pairs: PairsConfiguration
    split: SplitConfiguration
    decomposer: NetworkConfiguration
    locator: NetworkConfiguration


def load_run(path: Path) -> RunConfiguration:
    """Read a run's TOML file.

    Raises:
        ConfigurationError: unreadable, or a key is missing or unknown; the message names its place.
    """
    run: RunConfiguration = read_frozen(path, RunConfiguration)
    if not 0 < run.split.validation + run.split.test < 1:
        raise ConfigurationError(f"{path}: split.validation + split.test must lie between 0 and 1")
    for name, network in (("decomposer", run.decomposer), ("locator", run.locator)):
        check_widths(path, name, network)
    return run


def check_widths(path: Path, name: str, network: NetworkConfiguration) -> None:
    """Refuse widths that torch cannot train.

    Raises:
        ConfigurationError: a width is too small or no multiple; the message names its place.
    """
    if any(width < _LEAST_WIDTH or width % _WIDTH_STEP for width in network.widths):
        raise ConfigurationError(
            f"{path}: {name}.widths {list(network.widths)} must be multiples of {_WIDTH_STEP} and at least {_LEAST_WIDTH}"
        )


def read_frozen(path: Path, kind: type[Any]) -> Any:
    """Read a TOML file into a tree of frozen dataclasses, one per table; the caller checks the values.

    Raises:
        ConfigurationError: unreadable, or a key is missing or unknown; the message names its place.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} is no readable TOML file: {error}") from error
    return build_frozen(kind, document, str(path))


def build_frozen(kind: type[Any], document: dict[str, Any], place: str) -> Any:
    """Fill a tree of frozen dataclasses from nested tables.

    Raises:
        ConfigurationError: a key is missing or unknown; the message begins with `place`.
    """
    known = {field.name: field for field in fields(kind)}
    unknown = document.keys() - known.keys()
    if unknown:
        raise ConfigurationError(f"{place}: unknown key {sorted(unknown)[0]!r}; known are {', '.join(known)}")
    values = {}
    for name, value in document.items():
        wanted = known[name].type
        if isinstance(wanted, type) and is_dataclass(wanted):
            values[name] = build_frozen(wanted, value, f"{place}: {name}")
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigurationError(f"{place}: {error}") from error
