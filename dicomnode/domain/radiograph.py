"""One radiograph as a value: pixels the right way round, and the geometry that its header states."""

from dataclasses import dataclass
from datetime import date
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Sex(StrEnum):
    """Patient's Sex (0010,0040)."""

    FEMALE = "F"
    MALE = "M"
    OTHER = "O"
    UNKNOWN = ""


class Side(StrEnum):
    """Side of the patient's body, as in Image Laterality (0020,0062)."""

    RIGHT = "R"
    LEFT = "L"


@dataclass(frozen=True)
class Patient:
    """What scoring needs to know of a patient; nothing that identifies one."""

    sex: Sex = Sex.UNKNOWN
    birth_date: date | None = None
    study_date: date | None = None
    age_years_stated: float | None = None

    @property
    def age_years(self) -> float | None:
        """Age at the examination in years: from the dates, else Patient's Age (0010,1010), else None."""
        if self.birth_date is not None and self.study_date is not None:
            return (self.study_date - self.birth_date).days / 365.25
        return self.age_years_stated


@dataclass(frozen=True)
class AcquisitionGeometry:
    """What the header says of the projection; None where it says nothing usable.

    Spacings are (row, column) distances in mm between pixel centres.

    Source: PS3.3 C.8.11.1 (DX positioning), 10.7.1.3 (Pixel Spacing and its calibration).
    """

    detector_spacing_mm: tuple[float, float] | None = None
    """Imager Pixel Spacing (0018,1164), or Pixel Spacing where it is uncalibrated: at the detector."""
    patient_spacing_mm: tuple[float, float] | None = None
    """Pixel Spacing (0028,0030) that was calibrated to the patient (its Calibration Type says so)."""
    sdd_mm: float | None = None
    """Distance Source to Detector (0018,1110)."""
    spd_mm: float | None = None
    """Distance Source to Patient (0018,1111)."""
    magnification_stated: float | None = None
    """Estimated Radiographic Magnification Factor (0018,1114)."""


@dataclass(frozen=True)
class Technique:
    """How a radiograph was taken, as its header states it; None where it states nothing usable."""

    kilovolt: float | None = None
    """Tube voltage, KVP (0018,0060)."""
    copper_mm: float | None = None
    """Copper that was added to the tube's own filtration: X-Ray Filtration Module, PS3.3 C.8.7.10. 0 where filters are stated and
    none is of copper."""
    storage_phosphor: bool | None = None
    """Whether the detector is a storage phosphor (computed radiography): Detector Type (0018,7004), else Modality CR."""


UNSTATED = Technique()
"""Of a header that says nothing."""


@dataclass(frozen=True)
class Radiograph:
    """A plain radiograph, ready to be measured.

    `image` is (rows, columns) float32 in which a **larger value means more attenuation** (bone bright, air dark), whatever
    the photometric interpretation, LUTs or intensity relationship of the object were. The unit is arbitrary; the scale is
    as close to logarithmic in exposure as the header allows.
    """

    image: NDArray[np.float32]
    geometry: AcquisitionGeometry
    patient: Patient
    sop_instance_uid: str
    laterality_stated: Side | None = None
    """Image Laterality or Laterality, where present. Tags cannot be trusted: used to check, not to decide."""
    technique: Technique = UNSTATED
    lossy: bool = False
    notes: tuple[str, ...] = ()
    """Sentences for the report on what had to be assumed in reading, e.g. a pixel spacing that is absent."""
