"""Real hips in a run: which patients are learned from, and how examples are drawn from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dicomnode.errors import ConfigurationError
from training.augment import HipExample, real_hip_example
from training.calibration.rod_phantom import Material
from training.config import HospitalConfiguration
from training.hospital.cases import load_real_hips
from training.hospital.project import RealHip
from training.split import part_of
from training.targets import canonical_logarithms


@dataclass(frozen=True)
class RealSplit:
    """The usable hips of each part; no patient is in two."""

    training: tuple[RealHip, ...]
    validation: tuple[RealHip, ...]
    test: tuple[RealHip, ...]


def load_real(configuration: HospitalConfiguration | None) -> RealSplit | None:
    """Read and split a run's real hips; None where the run has none.

    Raises:
        ConfigurationError: no usable hip is left to train on, or one whose mineral is not hydroxyapatite as the phantoms' is.
    """
    if configuration is None:
        return None
    parts: dict[str, list[RealHip]] = {"training": [], "validation": [], "test": []}
    for hip in load_real_hips(Path(configuration.folder)):
        if hip.figures["material"] != Material.HYDROXYAPATITE:
            raise ConfigurationError(
                f"hospital.folder {configuration.folder}: case {hip.figures['case']} is in mg/cm3 of {hip.figures['material']},"
                " the phantoms are in hydroxyapatite, and nothing converts between them; reject it with"
                " `python -m training hospital-review`, or calibrate it with another phantom"
            )
        parts[part_of(hip.figures["patient"], configuration.validation, configuration.test)].append(hip)
    if not parts["training"]:
        counts = ", ".join(f"{len(hips)} for {name}" for name, hips in parts.items())
        raise ConfigurationError(
            f"hospital.folder {configuration.folder} gives usable hips: {counts}; make pairs with `python -m training hospital`,"
            " and accept what is doubtful with `hospital-review`"
        )
    return RealSplit(**{name: tuple(hips) for name, hips in parts.items()})


def count_patients(hips: Sequence[RealHip]) -> int:
    """Number of patients whose hips these are."""
    return len({hip.figures["patient"] for hip in hips})


@dataclass(frozen=True)
class RealExamples:
    """Examples from real hips by drawing number, from a stream of their own: the phantoms' examples stay what they were."""

    hips: tuple[RealHip, ...]
    share: float
    seed: int

    def draw(self, number: int, *, spoiled: bool = True) -> HipExample | None:
        """The example of a number, or None where it comes from a phantom; `spoiled` as for `augment.real_hip_example`."""
        rng = np.random.default_rng((self.seed, 4, number))
        if rng.random() >= self.share:
            return None
        hip = self.hips[rng.integers(len(self.hips))]
        return real_hip_example(
            hip.image.astype(np.float32),
            hip.inside,
            hip.field,
            hip.targets.astype(np.float32),
            hip.labels,
            canonical_logarithms(hip.figures["canonical"]),
            rng,
            hip.technique.kilovolt,
            spoiled=spoiled,
        )
