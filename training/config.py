"""A training run is one TOML file, read once, checked once and frozen."""

import tomllib
from dataclasses import dataclass, fields, is_dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from dicomnode.errors import ConfigurationError

PRECISIONS = ("auto", "32-true", "bf16-mixed")
_HIPS_ONLY = ("mineral_scaled", "voltage_told", "atlas")
"""What a stage of a network that sees no single hip cannot have."""
_DECOMPOSER_ONLY = ("gradient_correlation", "pelvis_mass", "adversarial", "fractures", "verdicts_only")
"""What a stage of a network that neither draws maps of a hip nor says whether it may be measured cannot have."""
BESIDE = ("atlas", "fractures")
"""Persons beside the phantoms: a table of a run, and a share of a stage, of the same name."""
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
    """Recentres the figures, sets plausibility limits and prediction intervals; chooses nothing else."""
    test: float
    """Held out: every published figure is measured here."""


@dataclass(frozen=True)
class Stage:
    """A part of a network's training; it begins with the averaged weights of the one before."""

    steps: int
    learning_rate: float
    """Peak of a one-cycle schedule."""
    mineral_scaled: float = 0.0
    """Share of the hips whose mineral is multiplied by a factor of its own, see `augment.MINERAL_FACTOR`: thickness and texture
    then say less, and density must be read from contrast."""
    voltage_told: float = 0.0
    """Share of the hips whose tube voltage is told, as a header may."""
    statistics_frozen: bool = False
    """Whether normalisation uses the running means and variances of the stage before, in training as in serving. A small batch's
    own ones make what is read of a hip depend on the others in its batch."""
    atlas: float = 0.0
    """Share of the hips whose bones come from reference anatomy, see `AtlasConfiguration`."""
    fractures: float = 0.0
    """Share of the hips with a displaced fracture, see `FractureConfiguration`."""
    verdicts_only: bool = False
    """Whether nothing but the verdicts' own layers learns: what is measured stays as it is. With `statistics_frozen`."""
    gradient_correlation: float = 0.0
    """Weight of `losses.gradient_correlation_loss` of the density maps; 0: absent."""
    pelvis_mass: float = 0.0
    """Weight of `losses.pelvis_loss`; 0: absent."""
    adversarial: float = 0.0
    """Weight of `adversarial.Adversary`; 0: no discriminators."""


@dataclass(frozen=True)
class NetworkConfiguration:
    """One network and how it is trained."""

    widths: tuple[int, ...]
    batch: int
    stages: tuple[Stage, ...]
    weight_decay: float = 1e-4
    ema: float = 0.995
    """Decay of the exponential moving average of the weights, which is what is exported."""
    ema_warm_up: bool = False
    """Whether the first averages forget faster, see `train.average_fn`: for stages of a few hundred steps, at whose end the
    average would still hold a good part of the first weights."""


@dataclass(frozen=True)
class EngineConfiguration:
    """Where a run computes, see `engine.make_fabric`."""

    devices: int | Literal["auto"] = "auto"
    """GPUs of this machine, all of them with "auto"; without a GPU the processes on its processors, one with "auto"."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """Of the convolutions: bfloat16 on GPUs and float32 on processors, unless one is named."""


@dataclass(frozen=True)
class HospitalConfiguration:
    """A hospital's own pairs beside the phantoms, and which of its patients are held out."""

    folder: str
    """What `training hospital` wrote."""
    share: float
    """Of the decomposer's examples, drawn from real hips."""
    validation: float
    """Share of the patients whose hips set limits and, where there are enough, prediction intervals."""
    test: float
    """Share of the patients that are held out: the figures on real radiographs are measured on them."""


@dataclass(frozen=True)
class AtlasConfiguration:
    """Persons with bones of reference anatomy, who are all learned from. They are made where the folder of that anatomy is given,
    see `training.pairs`; without it the run does without them."""

    count: int
    """Persons; each gives two hips."""
    seed: int
    """Another than that of the pairs: their pose, mineral and body are drawn as those of the phantoms."""


@dataclass(frozen=True)
class FractureConfiguration:
    """Persons whose hips are broken and displaced, each in a way of its own: to be recognised, not measured."""

    count: int
    """Persons; each gives two hips."""
    seed: int
    """Another than that of the pairs."""


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
    regressor: NetworkConfiguration | None = None
    """Reads the figures straight from the crop, see `inference.network.Regressor`; None: the decomposer alone states them. It draws
    no maps, so that losses of maps are not for it."""
    engine: EngineConfiguration = EngineConfiguration()
    atlas: AtlasConfiguration | None = None
    fractures: FractureConfiguration | None = None
    hospital: HospitalConfiguration | None = None
    start: str | None = None
    """Folder of a bundle whose weights both networks start from; None: from random ones."""


def load_run(path: Path) -> RunConfiguration:
    """Read a run's TOML file.

    Raises:
        ConfigurationError: unreadable, or a key is missing or unknown; the message names its place.
    """
    run: RunConfiguration = read_frozen(path, RunConfiguration)
    if not 0 < run.split.validation + run.split.test < 1:
        raise ConfigurationError(f"{path}: split.validation + split.test must lie between 0 and 1")
    if (real := run.hospital) is not None and not (
        0 < real.share < 1 and min(real.validation, real.test) >= 0 and real.validation + real.test < 1
    ):
        raise ConfigurationError(
            f"{path}: hospital.share {real.share:g} must lie between 0 and 1 (phantoms are needed too), hospital.validation"
            f" {real.validation:g} and hospital.test {real.test:g} at 0 or above and together below 1"
        )
    begun = run.start is not None
    check_network(f"{path}: decomposer", run.decomposer, sees_hips=True, draws_maps=True, begun=begun)
    check_network(f"{path}: locator", run.locator, begun=begun)
    if run.regressor is not None:
        check_network(f"{path}: regressor", run.regressor, sees_hips=True)
    stages = [*run.decomposer.stages, *(() if run.regressor is None else run.regressor.stages)]
    for others in BESIDE:
        if getattr(run, others) is None and any(getattr(stage, others) for stage in stages):
            raise ConfigurationError(
                f"{path}: {others} in a stage is a share of the persons of [{others}], which is absent"
            )
    check_engine(f"{path}: engine", run.engine)
    return run


def check_network(
    place: str,
    network: NetworkConfiguration,
    *,
    sees_hips: bool = False,
    draws_maps: bool = False,
    begun: bool = False,
) -> None:
    """Refuse what torch cannot train, or has no meaning for this network.

    Args:
        begun: whether the first stage starts from trained weights.

    Raises:
        ConfigurationError: a width is too small or no multiple, there is nothing to train by, a share or weight is negative, or a
            stage asks for what this network cannot have, or for the statistics of a stage that there was not; the message begins
            with `place`.
    """
    if any(width < _LEAST_WIDTH or width % _WIDTH_STEP for width in network.widths):
        raise ConfigurationError(
            f"{place}.widths {list(network.widths)} must be multiples of {_WIDTH_STEP} and at least {_LEAST_WIDTH}"
        )
    if min(network.batch, len(network.stages), *(stage.steps for stage in network.stages)) < 1:
        raise ConfigurationError(f"{place}: batch, stages and the steps of each stage must be at least 1")
    if network.stages[0].statistics_frozen and not begun:
        raise ConfigurationError(
            f"{place}.stages: statistics_frozen needs those of a stage before, or of a bundle to start from; leave it out of"
            " the first"
        )
    for stage in network.stages:
        if stage.verdicts_only and not stage.statistics_frozen:
            raise ConfigurationError(
                f"{place}.stages: verdicts_only leaves everything else as it is: set statistics_frozen = true too"
            )
    for stage, option in product(network.stages, _HIPS_ONLY + _DECOMPOSER_ONLY):
        if getattr(stage, option) < 0:
            raise ConfigurationError(f"{place}.stages: {option} = {getattr(stage, option)} must not be negative")
        if getattr(stage, option) and not (sees_hips if option in _HIPS_ONLY else draws_maps):
            raise ConfigurationError(f"{place}.stages: {option} is for the decomposer; leave it out here")


def check_engine(place: str, engine: EngineConfiguration) -> None:
    """Refuse devices or a precision that there cannot be.

    Raises:
        ConfigurationError: the message begins with `place`.
    """
    counted = isinstance(engine.devices, int) and engine.devices > 0
    if not counted and engine.devices != "auto":
        raise ConfigurationError(f'{place}.devices = {engine.devices!r} must be "auto" or a number of devices')
    if engine.precision not in PRECISIONS:
        raise ConfigurationError(f"{place}.precision = {engine.precision!r} must be one of {', '.join(PRECISIONS)}")


def check_values(path: Path, *checks: tuple[bool, str, str]) -> None:
    """Refuse the first value that is not right, from (whether it is right, its place, what is expected of it).

    Raises:
        ConfigurationError: the message names file and place.
    """
    for is_right, place, expected in checks:
        if not is_right:
            raise ConfigurationError(f"{path}: {place}: expected {expected}")


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
        part = next((one for one in (wanted, *get_args(wanted)) if isinstance(one, type) and is_dataclass(one)), None)
        if part is not None and isinstance(value, dict):
            values[name] = build_frozen(part, value, f"{place}: {name}")
        elif part is not None and isinstance(value, list):
            values[name] = tuple(build_frozen(part, one, f"{place}: {name}") for one in value)
        elif part is not None:
            raise ConfigurationError(f"{place}: {name} must be a table, not {value!r}")
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigurationError(f"{place}: {error}") from error
