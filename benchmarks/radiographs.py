"""Radiographs that the benchmarks send. Nobody's: noise, or a phantom."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from training.anatomy.population import draw_subject
from training.projection.radiograph import Exposure
from training.simulate_dx import DEFAULT_PROCESSING, SDD_MM, DxGeometry, FictionalPatient, dx_dataset
from training.whole import phantom_dx

NOISE_SHAPE = (3000, 2500)
"""Rows, columns: 15.0 MB at 16 bits, as a 43 x 35 cm detector with 0.14 mm pixels gives."""
SPACING_MM = 0.14
PHANTOM = (7, 0)
"""Seed and number of a subject with two native hips in an AP view."""


def noise_files(folder: Path, number: int) -> list[Path]:
    """Write DX objects of 15 MB whose pixels are noise over a slope, which no disk or network can make smaller."""
    rng = np.random.default_rng(0)
    rows, columns = NOISE_SHAPE
    slope = np.linspace(500, 3000, columns, dtype=np.float32)[None, :]
    geometry = DxGeometry((SPACING_MM, SPACING_MM), SDD_MM, 0.9 * SDD_MM, (0, rows, 0, columns))
    files = []
    for index in range(number):
        stored = np.clip(slope + rng.normal(0, 120, NOISE_SHAPE).astype(np.float32), 0, 4095).astype(np.uint16)
        patient = FictionalPatient(name="Noise^Radiograph", patient_id=f"NOISE-{index}")
        dataset = dx_dataset(stored, geometry, Exposure(), DEFAULT_PROCESSING, patient, seed=index, derivation="Noise")
        files.append(_write(dataset, folder / f"noise-{index:02}.dcm"))
    return files


def phantom_files(folder: Path, number: int) -> list[Path]:
    """Simulate one pelvis radiograph of real size and write it under `number` SOP Instance UIDs."""
    subject = draw_subject(*PHANTOM)
    dataset = phantom_dx(subject, 0, Exposure(), DEFAULT_PROCESSING, detector_spacing_mm=SPACING_MM)
    first = _write(dataset, folder / "phantom.dcm")
    return list(renamed_copies(first, folder, [f"phantom-{index:02}" for index in range(number)]))


def renamed_copies(source: Path, folder: Path, names: list[str]) -> Iterator[Path]:
    """Copy a DICOM file under other SOP Instance UIDs, all else as it is; the UID follows from name and old UID."""
    for name in names:
        dataset = dcmread(source)
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(dataset.SOPInstanceUID), name])
        yield _write(dataset, folder / f"{name}.dcm")


def _write(dataset: Dataset, path: Path) -> Path:
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)
    return path
