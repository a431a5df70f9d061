"""A run for the muscles is one TOML file, read by the manner of `training.config`."""

from dataclasses import dataclass, field
from pathlib import Path

from training.config import (
    EngineConfiguration,
    NetworkConfiguration,
    PairsConfiguration,
    SplitConfiguration,
    check_engine,
    check_network,
    check_values,
    read_frozen,
)


@dataclass(frozen=True)
class SubjectsConfiguration:
    """How many phantoms of each part of the split are used: its first ones."""

    training: int
    test: int


@dataclass(frozen=True)
class InfiltrationConfiguration:
    """Lean mass that becomes fat, see `training.muscles.augment`."""

    share: float
    """Of the examples that have any."""
    most: float
    """Largest part of a muscle that becomes fat."""


@dataclass(frozen=True)
class MusclesRun:
    """Everything that decides what a run produces."""

    name: str
    version: str
    seed: int
    pairs: PairsConfiguration
    split: SplitConfiguration
    subjects: SubjectsConfiguration
    infiltration: InfiltrationConfiguration
    network: NetworkConfiguration
    engine: EngineConfiguration = field(default_factory=EngineConfiguration)


def load_muscles_run(path: Path) -> MusclesRun:
    """Read and check a run's TOML file.

    Raises:
        ConfigurationError: unreadable, a key is missing or unknown, or a value is out of range; the message names its place.
    """
    run: MusclesRun = read_frozen(path, MusclesRun)
    check_network(f"{path}: network", run.network)
    check_engine(f"{path}: engine", run.engine)
    check_values(
        path,
        (0 < run.split.validation + run.split.test < 1, "split", "validation + test between 0 and 1"),
        (run.subjects.training > 0 and run.subjects.test > 2, "subjects", "training at least 1, test at least 3"),
        (0 <= run.infiltration.share <= 1, "infiltration.share", "from 0 to 1"),
        (0 <= run.infiltration.most < 1, "infiltration.most", "from 0 to below 1"),
    )
    return run
