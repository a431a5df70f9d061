"""Simulated DX objects: valid, deterministic, and as a radiologist would hang them."""

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from training.anatomy.ct import CtVolume, body_mask, read_ct
from training.projection.geometry import anteroposterior
from training.projection.radiograph import Detector, Exposure
from training.simulate_dx import (
    DEFAULT_PROCESSING,
    DxGeometry,
    FictionalPatient,
    collimated_beam,
    dx_dataset,
    dx_from_maps,
    hips_isocentre_mm,
    main,
    simulate_dx,
    source_distances_mm,
)

COARSE_MM = 1.0


def patient_with_one_bone() -> CtVolume:
    """An elliptic trunk with a bone at the patient's right, low down; it runs through the lower and upper slice."""
    z, y, x = np.mgrid[:40, :50, :80].astype(float)
    hu = np.full(z.shape, -1000.0, np.float32)
    hu[((x - 39.5) / 35) ** 2 + ((y - 25) / 20) ** 2 < 1] = 30.0
    hu[(x - 20) ** 2 + (y - 25) ** 2 + (z - 12) ** 2 < 36] = 1200.0
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = -118.5, -75.0, 0.0
    return CtVolume(hu, affine)


ISOCENTRE_MM = np.array([0.0, 0.0, 60.0])


def taken(**settings: object) -> Dataset:
    return simulate_dx(patient_with_one_bone(), ISOCENTRE_MM, detector_spacing_mm=COARSE_MM, **settings)  # type: ignore[arg-type]


def uniform_dataset(bits: int = 12, **changes: object) -> Dataset:
    processing = replace(DEFAULT_PROCESSING, bits=bits)
    stored = np.full((20, 21), 2**bits - 1, np.uint16)
    geometry = DxGeometry((0.2, 0.2), 1150.0, 1000.0, (0, 20, 0, 21))
    return dx_dataset(stored, geometry, Exposure(), processing, FictionalPatient(), seed=1, **changes)  # type: ignore[arg-type]


def test_the_patients_right_is_at_the_left_and_the_head_up() -> None:
    image = taken().pixel_array.astype(float)
    rows, columns = np.nonzero(image == image.max())
    assert columns.mean() < image.shape[1] * 0.4  # the bone, at the patient's right
    assert rows.mean() > image.shape[0] * 0.55  # and low


def test_the_same_seed_gives_the_same_object_and_another_seed_other_uids() -> None:
    first, again, other = taken(seed=3), taken(seed=3), taken(seed=4)
    assert first == again
    for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        assert first[name].value != other[name].value
    assert len({first.SOPInstanceUID, first.SeriesInstanceUID, first.StudyInstanceUID}) == 3


def test_the_header_states_the_geometry_that_was_simulated() -> None:
    dataset = taken(sdd_mm=1200.0)
    ratio = dataset.DistanceSourceToDetector / dataset.DistanceSourceToPatient
    assert float(dataset.DistanceSourceToDetector) == 1200.0
    assert float(dataset.EstimatedRadiographicMagnificationFactor) == pytest.approx(float(ratio), abs=1e-4)
    assert [float(s) for s in dataset.ImagerPixelSpacing] == pytest.approx([COARSE_MM, COARSE_MM])
    assert "PixelSpacing" not in dataset  # it would claim a calibration


def test_monochrome1_is_the_same_picture_the_other_way_round() -> None:
    plain, inverted = taken(), taken(processing=replace(DEFAULT_PROCESSING, monochrome1=True))
    np.testing.assert_array_equal(plain.pixel_array, 4095 - inverted.pixel_array)
    assert (plain.PhotometricInterpretation, plain.PresentationLUTShape) == ("MONOCHROME2", "IDENTITY")
    assert (inverted.PhotometricInterpretation, inverted.PresentationLUTShape) == ("MONOCHROME1", "INVERSE")
    assert (plain.PixelIntensityRelationshipSign, inverted.PixelIntensityRelationshipSign) == (-1, 1)


def test_the_collimator_leaves_a_black_border_around_the_field() -> None:
    dataset = taken()
    image = dataset.pixel_array
    top, left = dataset.CollimatorUpperHorizontalEdge, dataset.CollimatorLeftVerticalEdge
    assert top == left == 8
    assert not image[:top].any() and not image[:, :left].any()
    assert not image[dataset.CollimatorLowerHorizontalEdge - 1 :].any()
    assert image[top + 2 : dataset.CollimatorLowerHorizontalEdge - 3].any(axis=1).all()


def test_no_ray_leaves_the_ct_while_it_is_in_the_patient() -> None:
    ct = patient_with_one_bone()
    beam = collimated_beam(ct, body_mask(ct), ISOCENTRE_MM, 1150.0, COARSE_MM)
    depths_mm = np.nonzero(body_mask(ct).any(axis=(0, 2)))[0] * 3.0 - 75.0
    for row in (0, beam.shape[0] - 1):
        pixel = beam.detector_origin_mm + row * beam.detector_spacing_mm[0] * beam.row_direction
        ray = pixel - beam.source_mm
        heights_mm = beam.source_mm[2] + (depths_mm - beam.source_mm[1]) / ray[1] * ray[2]
        assert heights_mm.min() > -1.0 and heights_mm.max() < 118.0
        assert min(heights_mm.min(), 117.0 - heights_mm.max()) < 1.0  # nor is more cut off than need be


def test_an_isocentre_outside_of_the_patient_is_refused() -> None:
    with pytest.raises(ValueError, match="outside of the patient"):
        simulate_dx(patient_with_one_bone(), np.array([0.0, 0.0, 2000.0]), detector_spacing_mm=COARSE_MM)


def test_source_distances_are_those_the_beam_was_made_with() -> None:
    beam = anteroposterior(np.array([4.0, 5.0, 6.0]), 1150.0, 980.0, 0.5, (30, 40))
    assert source_distances_mm(beam, np.array([100.0, 5.0, -30.0])) == pytest.approx((1150.0, 980.0))


def test_impossible_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="SKULL"):
        uniform_dataset(body_part="SKULL")
    geometry = DxGeometry((0.2, 0.2), 1150.0, 1000.0, (0, 4, 0, 4))
    with pytest.raises(ValueError, match="does not fit into 12 bits"):
        dx_dataset(
            np.full((4, 4), 5000, np.uint16), geometry, Exposure(), DEFAULT_PROCESSING, FictionalPatient(), seed=1
        )


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_stored_values_survive_the_file(bits: int, tmp_path: Path) -> None:
    dataset = uniform_dataset(bits)
    dataset.save_as(tmp_path / "dx.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(dcmread(tmp_path / "dx.dcm").pixel_array, 2**bits - 1)


VARIANTS = {
    "plain": (Exposure(), DEFAULT_PROCESSING, "PELVIS", "B"),
    "filters_and_storage_phosphor": (
        Exposure(added_al_mm=1.0, added_cu_mm=0.1, detector=Detector.STORAGE_PHOSPHOR),
        replace(DEFAULT_PROCESSING, monochrome1=True, bits=10),
        "HIP",
        "R",
    ),
    "lossy_8_bit_without_grid": (
        Exposure(scatter_to_primary=3.0),
        replace(DEFAULT_PROCESSING, bits=8, jpeg_quality=70),
        "HIP",
        "L",
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_validator_finds_no_error(variant: str, dciodvfy: str, tmp_path: Path) -> None:
    exposure, processing, body_part, laterality = VARIANTS[variant]
    maps = np.zeros((4, 61, 53), np.float32)
    maps[0], maps[2, 20:30, 20:30] = 18.0, 1.0
    beam = anteroposterior(np.zeros(3), 1150.0, 1000.0, 0.5, (61, 53))
    dataset = dx_from_maps(
        maps,
        beam,
        np.zeros(3),
        exposure=exposure,
        processing=processing,
        patient=FictionalPatient(),
        seed=7,
        body_part=body_part,
        image_laterality=laterality,
    )
    path = tmp_path / "dx.dcm"
    dataset.save_as(path, enforce_file_format=True)
    report = subprocess.run([dciodvfy, str(path)], capture_output=True, text=True, check=False)
    findings = report.stdout + report.stderr
    assert "DXImageForPresentation" in findings
    assert "Error" not in findings, findings


def test_the_command_line_takes_a_radiograph_of_the_real_ct(
    reference_data: Path, dciodvfy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The metal of the left hip is the brightest thing, at the image's right."""
    path = tmp_path / "dx.dcm"
    main(
        [str(reference_data / "ct" / "example_ct.nii.gz"), str(path), "--kvp", "75", "--seed", "2", "--spacing", "0.6"]
    )
    assert "75 kV" in capsys.readouterr().out
    dataset = dcmread(path)
    image = dataset.pixel_array
    bright = image > np.quantile(image, 0.995)
    columns = np.nonzero(bright)[1]
    assert np.quantile(columns, 0.1) > image.shape[1] * 0.6
    report = subprocess.run([dciodvfy, str(path)], capture_output=True, text=True, check=False)
    assert "Error" not in report.stdout + report.stderr


def test_the_default_isocentre_is_low_and_between_the_hips_of_the_real_ct(reference_data: Path) -> None:
    ct = read_ct(reference_data / "ct" / "example_ct.nii.gz")
    isocentre = hips_isocentre_mm(ct, body_mask(ct))
    assert abs(isocentre[0]) < 40.0
    assert isocentre[2] == pytest.approx(94.3 + 20.0, abs=0.1)
