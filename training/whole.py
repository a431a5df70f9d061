"""Whole simulated radiographs of phantoms as DX objects, measured exactly as the node measures what a modality sends."""

import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from tqdm import tqdm

from dicomnode.dicom.pixels import read_radiograph
from dicomnode.dicom.reader import Limits
from dicomnode.domain.measurement import Measurement, Region, Status
from dicomnode.domain.radiograph import Side
from dicomnode.inference.predictor import Predictor
from dicomnode.pipeline import measure
from training.anatomy.phantom import make_phantom
from training.anatomy.population import Subject, draw_subject
from training.pairs import Pairs
from training.projection.radiograph import (
    Exposure,
    Metal,
    VendorProcessing,
    random_exposure,
    random_processing,
)
from training.simulate_dx import FictionalPatient, dx_from_maps
from training.targets import field_beam, field_materials

DETECTOR_SPACING_MM = 0.3
"""Coarser than detectors are (0.1 to 0.2 mm), finer than the measurement frame: keeps simulation quick."""
_EXAMINED_YEAR = 2024


def phantom_dx(
    subject: Subject,
    seed: int,
    exposure: Exposure,
    processing: VendorProcessing,
    *,
    detector_spacing_mm: float = DETECTOR_SPACING_MM,
    metal: Metal = Metal.TITANIUM,
) -> Dataset:
    """Take a person's radiograph, collimated to the field that was drawn for them."""
    phantom = make_phantom(subject)
    view = subject.view
    spacing = detector_spacing_mm * (view.sdd_mm - view.head_to_detector_mm) / view.sdd_mm
    shape = (round(view.field_size_mm[0] / spacing), round(view.field_size_mm[1] / spacing))
    depth = float(np.mean([points.head_centre[1] for points in phantom.landmarks.values()]))
    isocentre = np.array([view.field_centre_mm[0], depth, view.field_centre_mm[1]])
    patient = FictionalPatient(
        name=f"Simulated^Phantom{subject.index}",
        patient_id=f"SIM-{subject.index}",
        sex=subject.sex,
        birth_date=date(_EXAMINED_YEAR - int(subject.age_years), 4, 1),
    )
    return dx_from_maps(
        field_materials(phantom, spacing, shape),
        field_beam(phantom, spacing, shape),
        isocentre,
        exposure=exposure,
        processing=processing,
        patient=patient,
        seed=seed,
        image_laterality="U",
        metal=metal,
    )


@dataclass(frozen=True)
class WholeCase:
    """One hip that lies in the field of a whole radiograph."""

    subject: int
    side: str
    kind: str
    """"native", "implant" or "wrong_view"."""
    outcome: str
    """"measured", a refusal's reason, or "not_found"."""
    truth: dict[str, float]
    """Attribute of `RegionMeasurement` -> figure of the total hip."""
    prediction: dict[str, float]
    """The same; empty where the node refuses."""


def measure_whole(
    predictor: Predictor, pairs: Pairs, subjects: NDArray[np.int64], population_seed: int, seed: int
) -> list[WholeCase]:
    """Measure whole radiographs: locator, laterality, field and all; one case per hip whose head lies in the field."""
    cases: list[WholeCase] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in tqdm(subjects, desc="whole radiographs", unit="image"):
            rng = np.random.default_rng((seed, 4, int(number)))
            subject = draw_subject(population_seed, int(number))
            metal = list(Metal)[rng.integers(len(Metal))]
            dataset = phantom_dx(subject, seed, random_exposure(rng), random_processing(rng), metal=metal)
            path = Path(folder) / "radiograph.dcm"
            dataset.save_as(path, enforce_file_format=True)
            measurement = measure(read_radiograph(path, Limits()), predictor, lambda *_: None)
            figures = [pairs.table[2 * int(number)], pairs.table[2 * int(number) + 1]]
            cases.extend(_case(measurement, entry) for entry in figures if entry["head_in_field"])
    return cases


def _case(measurement: Measurement, figures: dict[str, Any]) -> WholeCase:
    side = Side(figures["side"])
    hip = next((one for one in measurement.hips if one.side is side), None)
    outcome, prediction = "not_found", {}
    if hip is not None:
        total = next((one for one in hip.regions if one.region is Region.TOTAL_HIP), None)
        status = total or hip
        outcome = status.status.value if status.status is Status.MEASURED else str(status.reason)
        if total and total.areal_bmd_g_cm2:
            prediction = {"areal_bmd_g_cm2": total.areal_bmd_g_cm2.value}
    kind = "wrong_view" if figures["is_frog_leg"] else "implant" if figures["has_metal"] else "native"
    truth = {"areal_bmd_g_cm2": figures["canonical"]["total_hip"]["areal_bmd_g_cm2"]}
    return WholeCase(figures["index"], side.value, kind, outcome, truth, prediction)
