"""A measurement as JSON: every figure with its unit and interval, every absence with its reason."""

import json

from dicomnode.domain.document import document
from dicomnode.domain.measurement import (
    Assessment,
    Estimate,
    HipMeasurement,
    Measurement,
    ModelIdentity,
    Reason,
    Region,
    RegionMeasurement,
    Status,
    TrainingData,
)
from dicomnode.domain.radiograph import Side

MODEL = ModelIdentity("hip", "1.0", "ab" * 32, trained_on=TrainingData.SIMULATED)
TOTAL = RegionMeasurement(
    Region.TOTAL_HIP,
    Status.MEASURED,
    areal_bmd_g_cm2=Estimate(0.81234, 0.7, 0.9),
    bmc_g=Estimate(30.0),
    area_cm2=Estimate(37.0),
    volumetric_bmd_mg_cm3=Estimate(300.0),
    projected_areal_bmd_g_cm2=Estimate(0.83),
    assessment=Assessment("nhanes3", -1.1, 86.0, None, "low_bone_mass", "WHO 1994 / ISCD 2023", ("a note",)),
)
NECK = RegionMeasurement(Region.FEMORAL_NECK, Status.NOT_MEASURABLE, Reason.CUT_OFF, "the neck is not in the image")
MEASURED = Measurement(
    "1.2.3",
    Status.MEASURED,
    (
        HipMeasurement(
            Side.RIGHT, Status.MEASURED, regions=(TOTAL, NECK), magnification=1.15, magnification_source="assumed"
        ),
    ),
    MODEL,
    notes=("a note",),
)


def test_figures_come_with_unit_and_interval() -> None:
    hip = document(MEASURED)["hips"][0]
    total = hip["regions"][0]
    assert (hip["side"], hip["status"], total["region"], total["status"]) == ("R", "measured", "total_hip", "measured")
    assert total["figures"]["areal_bmd"] == {
        "value": 0.8123,
        "unit": "g/cm2",
        "interval": {"low": 0.7, "high": 0.9, "percent": 90},
    }
    assert total["figures"]["bmc"] == {"value": 30.0, "unit": "g", "interval": None}
    assert {name: figure["unit"] for name, figure in total["figures"].items()} == {
        "areal_bmd": "g/cm2",
        "bmc": "g",
        "area": "cm2",
        "volumetric_bmd": "mg/cm3",
        "areal_bmd_as_projected": "g/cm2",
    }
    assert total["assessment"]["t_score"] == -1.1


def test_what_is_not_measurable_has_a_reason_and_no_figure() -> None:
    neck = document(MEASURED)["hips"][0]["regions"][1]
    assert (neck["status"], neck["reason"], neck["figures"]) == ("not_measurable", "cut_off", {})
    whole = document(Measurement("1.2.3", Status.NOT_MEASURABLE, (), MODEL, Reason.NO_HIP, "no hip"))
    assert (whole["reason"], whole["detail"], whole["hips"]) == ("no_hip", "no hip", [])


def test_the_document_is_json_and_says_that_the_model_was_trained_on_simulation() -> None:
    read_back = json.loads(json.dumps(document(MEASURED), allow_nan=False))
    assert read_back == document(MEASURED)
    assert read_back["model"]["trained_on"] == "simulated"
