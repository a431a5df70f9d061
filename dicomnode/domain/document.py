"""A measurement as plain JSON values, for `result.json` and the ledger: statuses, reasons, figures with units and intervals."""

from typing import Any

from dicomnode.domain.measurement import (
    Assessment,
    Estimate,
    HipMeasurement,
    Measurement,
    RegionMeasurement,
)

FORMAT = 3
INTERVAL_PERCENT = 90
"""Coverage of every interval (`domain.measurement.Estimate`)."""
UNITS = {
    "areal_bmd": ("areal_bmd_g_cm2", "g/cm2"),
    "bmc": ("bmc_g", "g"),
    "area": ("area_cm2", "cm2"),
    "volumetric_bmd": ("volumetric_bmd_mg_cm3", "mg/cm3"),
    "areal_bmd_as_projected": ("projected_areal_bmd_g_cm2", "g/cm2"),
}
"""Quantity -> (attribute of `RegionMeasurement`, unit). Source of the units: UCUM."""


def document(measurement: Measurement) -> dict[str, Any]:
    """Describe a measurement without pictures and without anything that identifies a patient."""
    return {
        "format": FORMAT,
        "source_sop_instance_uid": measurement.source_sop_instance_uid,
        **_outcome(measurement),
        "hips": [_hip(hip) for hip in measurement.hips],
        "model": {
            "name": measurement.model.name,
            "version": measurement.model.version,
            "sha256": measurement.model.digest,
            "trained_on": measurement.model.trained_on.value,
        },
        "notes": list(measurement.notes),
    }


def _outcome(part: Measurement | HipMeasurement | RegionMeasurement) -> dict[str, Any]:
    return {
        "status": part.status.value,
        "reason": part.reason.value if part.reason else None,
        "detail": part.detail,
    }


def _hip(hip: HipMeasurement) -> dict[str, Any]:
    return {
        "side": hip.side.value,
        **_outcome(hip),
        "magnification": hip.magnification,
        "magnification_source": hip.magnification_source,
        "regions": [_region(region) for region in hip.regions],
        "notes": list(hip.notes),
    }


def _region(region: RegionMeasurement) -> dict[str, Any]:
    estimates = {name: getattr(region, attribute) for name, (attribute, _) in UNITS.items()}
    return {
        "region": region.region.value,
        **_outcome(region),
        "figures": {name: _figure(estimate, UNITS[name][1]) for name, estimate in estimates.items() if estimate},
        "assessment": _assessment(region.assessment) if region.assessment else None,
    }


def _figure(estimate: Estimate, unit: str) -> dict[str, Any]:
    figure: dict[str, Any] = {"value": round(estimate.value, 4), "unit": unit, "interval": None}
    if estimate.low is not None and estimate.high is not None:
        figure["interval"] = {
            "low": round(estimate.low, 4),
            "high": round(estimate.high, 4),
            "percent": INTERVAL_PERCENT,
        }
    return figure


def _assessment(assessment: Assessment) -> dict[str, Any]:
    return {
        "reference": assessment.reference,
        "t_score": assessment.t_score,
        "z_score": assessment.z_score,
        "percent_yam": assessment.percent_yam,
        "classification": str(assessment.classification) if assessment.classification else None,
        "criteria": assessment.criteria,
        "notes": list(assessment.notes),
    }
