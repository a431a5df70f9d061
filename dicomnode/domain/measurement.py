"""The measurement of one radiograph as frozen values."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from dicomnode.domain.radiograph import Side


class Region(StrEnum):
    """Regions of the proximal femur, as a densitometer names them (ISCD)."""

    TOTAL_HIP = "total_hip"
    FEMORAL_NECK = "femoral_neck"
    TROCHANTER = "trochanter"
    INTERTROCHANTER = "intertrochanter"


class Status(StrEnum):
    """Whether a hip or a region has figures."""

    MEASURED = "measured"
    NOT_MEASURABLE = "not_measurable"


class Reason(StrEnum):
    """Why something is not measurable."""

    UNREADABLE = "unreadable"
    """The pixels cannot be decoded, or contradict the header."""
    NOT_A_RADIOGRAPH = "not_a_radiograph"
    """Colour, several frames, or a modality that is no projection radiography."""
    UNKNOWN_SCALE = "unknown_scale"
    """No pixel spacing: an area cannot be had."""
    NO_HIP = "no_hip"
    """No hip was found."""
    IMPLANT = "implant"
    """Metal in or over the bone."""
    CUT_OFF = "cut_off"
    """Part of the bone lies outside the image or the collimated field."""
    NOT_AP = "not_ap"
    """A hip, but not in an anteroposterior view with a pose in range (e.g. frog-leg)."""
    FRACTURE = "fracture"
    """The bone looks broken and displaced; that another does not look so says nothing of it."""
    LATERALITY = "laterality"
    """The header's side and the side that the image shows contradict each other."""
    IMPLAUSIBLE = "implausible"
    """The decomposition does not re-explain the radiograph, or is no femur in shape or amount."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 90 % prediction interval in the same unit (None where the bundle holds no calibration)."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Assessment:
    """How a clinician reads an areal BMD against a reference population."""

    reference: str
    """Name of the reference population (`conf/reference/*.toml`)."""
    t_score: float | None
    percent_yam: float | None
    """Percentage of the young adult mean."""
    z_score: float | None
    classification: str | None
    """One of `clinical.scores.Classification`'s values, None where the criteria do not apply."""
    criteria: str
    """Which criteria gave the classification, e.g. "WHO 1994 / ISCD 2023"."""
    notes: tuple[str, ...] = ()
    """Sentences: why something above is None, or under which proviso it holds."""


@dataclass(frozen=True)
class RegionMeasurement:
    """One region of one hip. Figures are None exactly when `status` is NOT_MEASURABLE; then `reason` and `detail` are set."""

    region: Region
    status: Status
    reason: Reason | None = None
    detail: str = ""
    areal_bmd_g_cm2: Estimate | None = None
    """Areal bone mineral density of the canonical (DXA) pose: what is reported, compared and assessed."""
    bmc_g: Estimate | None = None
    """Of the canonical pose, as are the two below."""
    area_cm2: Estimate | None = None
    volumetric_bmd_mg_cm3: Estimate | None = None
    projected_areal_bmd_g_cm2: Estimate | None = None
    """Areal bone mineral density as projected in the pose of the radiograph, in the object plane of the femoral head."""
    assessment: Assessment | None = None
    contour_px: NDArray[np.float32] | None = None
    """(n, 2) closed polygon (first point repeated last), (column, row) on the source image; pixel (0, 0) covers 0..1, so its
    centre is (0.5, 0.5), as SCOORD asks (PS3.3 C.18.6.1.1)."""


@dataclass(frozen=True)
class HipMaps:
    """The decomposition of one hip in the measurement frame (rows, columns), see `inference.frame`.

    The frame is a right hip as displayed (lateral at the left); left hips are mirrored into it. Pixels are squares of
    `spacing_mm` in the object plane through the femoral head.
    """

    radiograph: NDArray[np.float32]
    """Intensity-transformed crop that the network saw, about -3..3."""
    areal_density_g_cm2: NDArray[np.float32]
    path_length_cm: NDArray[np.float32]
    pelvis_g_cm2: NDArray[np.float32]
    region_labels: NDArray[np.uint8]
    """0 background, then 1 head, 2 neck, 3 trochanter, 4 intertrochanter, 5 shaft (`inference.frame.Label`)."""
    spacing_mm: float
    image_from_frame: NDArray[np.float64]
    """3 x 3: homogeneous frame (column, row) to source image (column, row), both with pixel centres at integers + 0.5."""


@dataclass(frozen=True)
class HipMeasurement:
    """One hip. `regions` is empty when the hip as a whole is not measurable."""

    side: Side
    status: Status
    reason: Reason | None = None
    detail: str = ""
    regions: tuple[RegionMeasurement, ...] = ()
    maps: HipMaps | None = None
    magnification: float | None = None
    """Distance Source to Detector / distance source to the plane of the femoral head."""
    magnification_source: str = ""
    """"header", "calibrated" or "assumed"."""
    notes: tuple[str, ...] = ()


class TrainingData(StrEnum):
    """What the weights of a model were learned from."""

    SIMULATED = "simulated"
    SIMULATED_AND_REAL = "simulated_and_real"
    """Simulated radiographs, and those of a hospital's own patients."""
    REAL = "real"


@dataclass(frozen=True)
class ModelIdentity:
    """Which model gave the figures; TID 4019 Algorithm Identification is filled from it."""

    name: str
    version: str
    digest: str
    """SHA-256 (hex) over the bundle's files."""
    trained_on: TrainingData
    """Every report and overlay says so of a model that simulated radiographs had a part in."""


@dataclass(frozen=True)
class Measurement:
    """Everything that is reported of one radiograph: figures or reasons, never neither."""

    source_sop_instance_uid: str
    status: Status
    """MEASURED when at least one region of one hip has figures."""
    hips: tuple[HipMeasurement, ...]
    model: ModelIdentity
    reason: Reason | None = None
    """Set when no hip could be looked at at all (unreadable, no hip ...)."""
    detail: str = ""
    notes: tuple[str, ...] = ()
