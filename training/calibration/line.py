"""The straight line between Hounsfield units and mineral, what it rests on, and how it is applied."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from dicomnode.errors import DicomNodeError
from training.anatomy.ct import METAL_HU
from training.calibration.rod_phantom import Material

TISSUE_FLOOR_HU = -200.0
"""Below any marrow with its noise (ICRU-44 adipose tissue: -70 to -100 HU by energy), above gas."""
GREATEST_UNCERTAINTY_MG_CM3 = 10.0
"""At `TYPICAL_MG_CM3`. A calibration that is less certain is marked as doubtful."""
TYPICAL_MG_CM3 = 100.0
"""Trabecular bone of an elderly hip is of this order: where a single figure of uncertainty is stated."""


class CalibrationFailed(DicomNodeError):
    """No density may be read from this CT; the message says what was seen, what was expected and what to do."""


class Method(StrEnum):
    """What the line was fitted to."""

    RODS = "rods"
    TISSUES = "tissues"


@dataclass(frozen=True)
class Point:
    """One material that the line was fitted to."""

    label: str
    reference_mg_cm3: float | None
    """None for a tissue: it has no mineral, it has an expected CT value."""
    expected_hu: float
    """On the fitted line."""
    measured_hu: float
    residual_mg_cm3: float
    """Measured minus expected, as mineral."""


@dataclass(frozen=True)
class Calibration:
    """hu = intercept + slope * mineral."""

    material: Material
    """The unit's other half: mg/cm3 of this."""
    method: Method
    reference: str
    """Phantom with its serial number, or the tissues and the tube voltage."""
    slope_hu_cm3_mg: float
    intercept_hu: float
    r: float | None
    """Pearson correlation of the points; None for tissues, whose points lie on one end of the line."""
    residual_sd_mg_cm3: float
    uncertainty_mg_cm3: float
    """One standard deviation at `TYPICAL_MG_CM3`."""
    points: tuple[Point, ...]
    doubts: tuple[str, ...]
    """What a person should look at before the figures are used; empty if nothing."""

    @property
    def is_doubtful(self) -> bool:
        """True if a person must look first."""
        return bool(self.doubts)


def mineral_mg_cm3(hu: NDArray[np.float32], calibration: Calibration) -> NDArray[np.float32]:
    """Mineral of each voxel in mg/cm3 of the calibration's material, in the shape of `hu`.

    - Between `TISSUE_FLOOR_HU` and `METAL_HU` the line holds as it is. Fatty marrow and noise make negative values; they
      stay, for a mean or a sum over a bone would be too large without them.
    - Below the floor is gas or air, from `METAL_HU` on metal: no mineral, 0. (Find the metal in the CT, not here.)
    """
    values = (hu - np.float32(calibration.intercept_hu)) / np.float32(calibration.slope_hu_cm3_mg)
    return np.asarray(np.where((hu >= TISSUE_FLOOR_HU) & (hu < METAL_HU), values, 0.0), np.float32)
