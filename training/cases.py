"""What was true of a held-out hip, and what was read: the line of an evaluation."""

from dataclasses import dataclass

from dicomnode.domain.radiograph import UNSTATED, Technique

QUANTITY_LABELS = {
    "areal_bmd_g_cm2": "aBMD, g/cm²",
    "bmc_g": "BMC, g",
    "area_cm2": "area, cm²",
    "volumetric_bmd_mg_cm3": "vBMD, mg/cm³",
    "projected_areal_bmd_g_cm2": "aBMD as posed, g/cm²",
}
"""Attributes of `domain.measurement.RegionMeasurement`: of the canonical pose, and last as projected in the radiograph's."""
PROJECTED = "projected_areal_bmd_g_cm2"
CANONICAL = tuple(name for name in QUANTITY_LABELS if name != PROJECTED)


@dataclass(frozen=True)
class RegionCase:
    """Truth and prediction of one region of one held-out hip; predictions are None where the node refuses."""

    subject: int
    side: str
    region: str
    kind: str
    """"native" AP hip, "implant" or "wrong_view"."""
    refused: str
    """Reason, or empty where the region has figures."""
    truth: dict[str, float]
    """Quantity of `QUANTITY_LABELS` -> figure."""
    prediction: dict[str, float]
    """The same; empty where the node refuses."""
    spread: dict[str, float]
    """Quantity of `CANONICAL` -> what the network thinks of its relative error; empty where the node refuses."""
    decomposed: dict[str, float]
    """Quantity of `CANONICAL` -> what the decomposition reads alone."""
    regressed: dict[str, float]
    """The same of direct regression; empty in a bundle without a regressor."""
    technique: Technique = UNSTATED
    """What the header states of the exposure."""
