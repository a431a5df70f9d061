"""Digital X-ray objects from simulation: `python -m training.simulate_dx CT OUTPUT.dcm`.

The objects are what a modality would send (Digital X-Ray Image Storage, for presentation), with a fictional patient and
Image Comments that say so. UIDs follow from the seed and the pixels.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    PYDICOM_IMPLEMENTATION_UID,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from dicomnode.domain.radiograph import Sex
from training.anatomy.ct import BONE_HU, CtVolume, body_mask, material_structures, read_ct, resampled
from training.projection.geometry import ConeBeam, anteroposterior, detector_axes_mm, detector_from_patient
from training.projection.projector import project_structures
from training.projection.radiograph import (
    MATERIALS,
    Detector,
    Exposure,
    Metal,
    VendorProcessing,
    simulate,
    to_stored_values,
)

SDD_MM = 1150.0
"""Source: EUR 16260 EN (1996), pelvis: 115 cm."""
TABLE_TO_DETECTOR_MM = 60.0
"""From the patient's skin through table top and grid to the detector; assumption."""
DETECTOR_MM = (350.0, 430.0)
"""A 35 x 43 cm detector, landscape, as a pelvis is taken."""
DETECTOR_SPACING_MM = 0.2
VOXEL_MM = 1.5
"""Coarser CTs are interpolated to this before bone is told from soft tissue, which would show their steps otherwise."""
SHUTTER_MM = 8.0
"""Width of the black border that a collimator leaves around the exposed field."""

BODY_PARTS = {"PELVIS": ("12921003", "Pelvis"), "HIP": ("29836001", "Hip")}
"""Defined Term of Body Part Examined to SNOMED CT. Source: PS3.16 table L-1."""


@dataclass(frozen=True)
class FictionalPatient:
    """Who is said to be on the radiograph; nobody who lives."""

    name: str = "Simulated^Pelvis"
    patient_id: str = "SIMULATED"
    sex: Sex = Sex.FEMALE
    birth_date: date = date(1952, 4, 1)
    examined: datetime = datetime(2024, 5, 6, 9, 30)


@dataclass(frozen=True)
class DxGeometry:
    """Geometry as the header states it."""

    detector_spacing_mm: tuple[float, float]
    """(row, column)."""
    sdd_mm: float
    """Source to detector."""
    spd_mm: float
    """Source to the plane of interest in the patient."""
    field_px: tuple[int, int, int, int]
    """Exposed field: first row, row after the last, first column, column after the last."""


DEFAULT_PROCESSING = VendorProcessing(
    band_gains=(2.0, 1.7, 1.4), base_gain=0.6, centre_quantile=0.6, slope=0.6, window=(0.0, 1.0), bits=12
)


def simulate_dx(
    ct: CtVolume,
    isocentre_mm: NDArray[np.float64] | None = None,
    *,
    exposure: Exposure | None = None,
    processing: VendorProcessing = DEFAULT_PROCESSING,
    patient: FictionalPatient | None = None,
    seed: int = 0,
    sdd_mm: float = SDD_MM,
    detector_spacing_mm: float = DETECTOR_SPACING_MM,
    body_part: str = "PELVIS",
) -> Dataset:
    """Take a supine AP radiograph of a CT, collimated to what the CT holds of the patient.

    Args:
        isocentre_mm: where the central ray goes and for which depth the magnification is stated, in the patient frame;
            by default `hips_isocentre_mm`.

    Raises:
        ValueError: no patient in the volume, or the isocentre lies outside of the patient.
    """
    ct = resampled(ct, VOXEL_MM)
    inside = body_mask(ct)
    if isocentre_mm is None:
        isocentre_mm = hips_isocentre_mm(ct, inside)
    beam = collimated_beam(ct, inside, np.asarray(isocentre_mm, np.float64), sdd_mm, detector_spacing_mm)
    images = project_structures(material_structures(ct, inside), beam)
    maps = np.stack([images[name] for name in MATERIALS])
    return dx_from_maps(
        maps,
        beam,
        np.asarray(isocentre_mm, np.float64),
        exposure=exposure or Exposure(),
        processing=processing,
        patient=patient or FictionalPatient(patient_id=f"SIM-CT-{seed}"),
        seed=seed,
        body_part=body_part,
        derivation="Simulated from a computed tomography",
    )


def dx_from_maps(
    maps_g_cm2: NDArray[np.float32],
    beam: ConeBeam,
    isocentre_mm: NDArray[np.float64],
    *,
    exposure: Exposure,
    processing: VendorProcessing,
    patient: FictionalPatient,
    seed: int,
    body_part: str = "PELVIS",
    image_laterality: str = "B",
    derivation: str = "Simulated from a parametric phantom",
    metal: Metal = Metal.TITANIUM,
) -> Dataset:
    """Simulate the radiograph of projected materials, frame it as a collimator does, and wrap it as a DX object.

    Args:
        maps_g_cm2: (4, rows, columns) on the pixels of `beam`, see `training.projection.radiograph.MATERIALS`.
        image_laterality: Image Laterality (0020,0062): R, L, B for both sides, U.
    """
    sdd_mm, spd_mm = source_distances_mm(beam, isocentre_mm)
    object_spacing_mm = float(np.mean(beam.detector_spacing_mm)) * spd_mm / sdd_mm
    image = simulate(maps_g_cm2, object_spacing_mm, exposure, processing, np.random.default_rng(seed), metal)
    border = round(SHUTTER_MM / beam.detector_spacing_mm[0])
    rows, columns = image.shape
    framed = np.pad(image, border)  # black, as for MONOCHROME2 and, inverted with it, for MONOCHROME1
    field = (border, border + rows, border, border + columns)
    geometry = DxGeometry(beam.detector_spacing_mm, sdd_mm, spd_mm, field)
    return dx_dataset(
        to_stored_values(framed, processing),
        geometry,
        exposure,
        processing,
        patient,
        seed=seed,
        body_part=body_part,
        image_laterality=image_laterality,
        derivation=derivation,
    )


def hips_isocentre_mm(ct: CtVolume, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """A point in the middle of the bones just above the lower end of the volume.

    A CT of trunk and pelvis ends a little below the hips, as a rule: give the isocentre where it does not. So far down the
    rays run along the last slice, and the collimator need not cut off more of the femur than the CT did.
    """
    bone = _voxels_mm(ct, inside & (ct.hu >= BONE_HU))
    lowest = float(_grid_corners_mm(ct)[:, 2].min())
    near = bone[bone[:, 2] < lowest + 80.0]
    if not len(near):
        raise ValueError("no bone near the lower end of the volume: give the isocentre")
    low, high = near.min(axis=0), near.max(axis=0)
    return np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, lowest + 20.0])


def collimated_beam(
    ct: CtVolume,
    inside: NDArray[np.bool_],
    isocentre_mm: NDArray[np.float64],
    sdd_mm: float,
    detector_spacing_mm: float,
) -> ConeBeam:
    """The part of a 35 x 43 cm detector whose rays never leave the CT while they are in the patient.

    The patient lies on the table, so that the detector is `TABLE_TO_DETECTOR_MM` behind the skin of the back.
    """
    surface_mm = _voxels_mm(ct, inside)
    low, high = surface_mm.min(axis=0), surface_mm.max(axis=0)
    if (isocentre_mm < low).any() or (isocentre_mm > high).any():
        raise ValueError(
            f"the isocentre {np.round(isocentre_mm).tolist()} lies outside of the patient, who reaches from"
            f" {np.round(low).tolist()} to {np.round(high).tolist()} mm"
        )
    behind_mm = float(high[1] - isocentre_mm[1]) + TABLE_TO_DETECTOR_MM
    spd_mm = sdd_mm - behind_mm
    shape = (round(DETECTOR_MM[0] / detector_spacing_mm), round(DETECTOR_MM[1] / detector_spacing_mm))
    whole = anteroposterior(isocentre_mm, sdd_mm, spd_mm, detector_spacing_mm * spd_mm / sdd_mm, shape)
    first_row, end_row, first_column, end_column = 0, shape[0], 0, shape[1]
    centre = (np.array(shape) - 1) / 2
    for axis, (voxel_axis, index) in zip((1, 1, 0, 0), ((2, 0), (2, -1), (0, 0), (0, -1)), strict=True):
        face = np.zeros_like(inside)
        side = (slice(None),) * voxel_axis + (index,)
        face[side] = inside[side]
        if not face.any():
            continue  # the patient ends before the CT does: nothing is cut off there
        pixels = detector_from_patient(_voxels_mm(ct, face), whole)[:, axis]
        nearest = float(pixels[np.argmin(np.abs(pixels - centre[axis]))])
        before = np.median(pixels) < centre[axis]
        if axis == 0:
            first_row, end_row = _cut(first_row, end_row, nearest, before)
        else:
            first_column, end_column = _cut(first_column, end_column, nearest, before)
    if end_row - first_row < 32 or end_column - first_column < 32:
        raise ValueError("the collimated field is empty: move the isocentre away from the end of the CT")
    return _part(whole, (first_row, end_row, first_column, end_column))


def _cut(first: int, end: int, limit: float, before: bool) -> tuple[int, int]:
    return (max(first, int(np.ceil(limit))), end) if before else (first, min(end, int(np.floor(limit)) + 1))


def _part(beam: ConeBeam, window: tuple[int, int, int, int]) -> ConeBeam:
    first_row, end_row, first_column, end_column = window
    row_axis, column_axis = detector_axes_mm(beam)
    origin = beam.detector_origin_mm + first_row * row_axis + first_column * column_axis
    return replace(beam, detector_origin_mm=origin, shape=(end_row - first_row, end_column - first_column))


def _voxels_mm(ct: CtVolume, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    z, y, x = np.nonzero(mask)
    return np.asarray(np.stack([x, y, z], axis=1) @ ct.patient_from_voxel[:3, :3].T + ct.patient_from_voxel[:3, 3])


def _grid_corners_mm(ct: CtVolume) -> NDArray[np.float64]:
    nz, ny, nx = ct.hu.shape
    corners = np.array([[x, y, z, 1.0] for x in (0, nx - 1) for y in (0, ny - 1) for z in (0, nz - 1)])
    return np.asarray((corners @ ct.patient_from_voxel.T)[:, :3], np.float64)


def source_distances_mm(beam: ConeBeam, isocentre_mm: NDArray[np.float64]) -> tuple[float, float]:
    """Distances from the source to the detector and to the parallel plane through the isocentre."""
    normal = np.cross(beam.row_direction, beam.column_direction)
    to_detector = float(normal @ (beam.detector_origin_mm - beam.source_mm))
    return abs(to_detector), abs(float(normal @ (isocentre_mm - beam.source_mm)))


def dx_dataset(
    stored_values: NDArray[np.uint16],
    geometry: DxGeometry,
    exposure: Exposure,
    processing: VendorProcessing,
    patient: FictionalPatient,
    *,
    seed: int,
    body_part: str = "PELVIS",
    image_laterality: str = "B",
    derivation: str = "",
) -> Dataset:
    """A Digital X-Ray Image Storage - For Presentation object, ready to be written or sent.

    Source: PS3.3 A.26 (Digital X-Ray Image IOD).

    Raises:
        ValueError: a body part without code, or values beyond the stored bits.
    """
    if body_part not in BODY_PARTS:
        raise ValueError(f"body part {body_part!r} has no code here; known: {', '.join(BODY_PARTS)}")
    if int(stored_values.max()) >= 2**processing.bits:
        raise ValueError(f"stored value {int(stored_values.max())} does not fit into {processing.bits} bits")
    dataset = Dataset()
    _identify(dataset, stored_values, patient, seed)
    _describe_anatomy(dataset, body_part, image_laterality)
    _describe_acquisition(dataset, geometry, exposure)
    _describe_image(dataset, stored_values, processing, derivation)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    return dataset


def _identify(dataset: Dataset, stored_values: NDArray[np.uint16], patient: FictionalPatient, seed: int) -> None:
    digest = hashlib.sha256(stored_values.tobytes()).hexdigest()
    day, moment = patient.examined.strftime("%Y%m%d"), patient.examined.strftime("%H%M%S")

    # SOP Common
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["instance", patient.patient_id, str(seed), digest])
    dataset.SpecificCharacterSet = "ISO_IR 192"

    # Patient
    dataset.PatientName = patient.name
    dataset.PatientID = patient.patient_id
    dataset.PatientBirthDate = patient.birth_date.strftime("%Y%m%d")
    dataset.PatientSex = patient.sex.value

    # General Study
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study", patient.patient_id, str(seed), day])
    dataset.StudyDate, dataset.StudyTime = day, moment
    dataset.ReferringPhysicianName = ""
    dataset.StudyID = str(seed)
    dataset.AccessionNumber = ""
    dataset.StudyDescription = "Simulated pelvis AP"

    # General Series, DX Series
    dataset.Modality = "DX"
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series", patient.patient_id, str(seed), day])
    dataset.SeriesNumber = 1
    dataset.PresentationIntentType = "FOR PRESENTATION"

    # General Equipment
    dataset.Manufacturer = "dicomnode-bmd"
    dataset.ManufacturerModelName = "radiograph simulation"

    # General Image
    dataset.InstanceNumber = 1
    dataset.AcquisitionDate = dataset.ContentDate = day
    dataset.AcquisitionTime = dataset.ContentTime = moment


def _describe_anatomy(dataset: Dataset, body_part: str, image_laterality: str) -> None:
    # DX Anatomy Imaged
    dataset.BodyPartExamined = body_part
    dataset.ImageLaterality = image_laterality
    dataset.AnatomicRegionSequence = [_code(*BODY_PARTS[body_part])]

    # DX Positioning
    dataset.ViewPosition = "AP"
    dataset.ViewCodeSequence = [_code("399348003", "antero-posterior")]  # PS3.16 CID 4010
    dataset.ViewCodeSequence[0].ViewModifierCodeSequence = []
    dataset.PatientOrientation = ["L", "F"]
    dataset.PatientPosition = "HFS"
    dataset.PositionerType = "COLUMN"

    # Acquisition Context
    dataset.AcquisitionContextSequence = []


def _describe_acquisition(dataset: Dataset, geometry: DxGeometry, exposure: Exposure) -> None:
    # DX Positioning
    dataset.DistanceSourceToDetector = round(geometry.sdd_mm, 2)
    dataset.DistanceSourceToPatient = round(geometry.spd_mm, 2)
    dataset.EstimatedRadiographicMagnificationFactor = round(geometry.sdd_mm / geometry.spd_mm, 5)

    # DX Detector
    dataset.DetectorType = "STORAGE" if exposure.detector is Detector.STORAGE_PHOSPHOR else "SCINTILLATOR"
    dataset.DetectorConfiguration = "AREA"
    dataset.DetectorDescription = exposure.detector.value
    dataset.ImagerPixelSpacing = [round(spacing, 6) for spacing in geometry.detector_spacing_mm]

    # X-Ray Collimator
    first_row, end_row, first_column, end_column = geometry.field_px
    dataset.CollimatorShape = "RECTANGULAR"
    dataset.CollimatorLeftVerticalEdge = first_column
    dataset.CollimatorRightVerticalEdge = end_column + 1
    dataset.CollimatorUpperHorizontalEdge = first_row
    dataset.CollimatorLowerHorizontalEdge = end_row + 1

    # X-Ray Generation, X-Ray Filtration, X-Ray Grid
    dataset.KVP = exposure.kilovolt
    added_mm = {"ALUMINUM": exposure.added_al_mm, "COPPER": exposure.added_cu_mm}
    used = {material: thickness for material, thickness in added_mm.items() if thickness > 0}
    dataset.FilterType = "STRIP" if used else "NONE"
    if used:
        dataset.FilterMaterial = list(used)
        dataset.FilterThicknessMinimum = dataset.FilterThicknessMaximum = list(used.values())
    dataset.Grid = "NONE" if exposure.scatter_to_primary > 1.2 else ["FOCUSED", "PARALLEL"]


def _describe_image(
    dataset: Dataset, stored_values: NDArray[np.uint16], processing: VendorProcessing, derivation: str
) -> None:
    # Image Pixel
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if processing.monochrome1 else "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored_values.shape
    dataset.BitsAllocated = 8 if processing.bits <= 8 else 16
    dataset.BitsStored, dataset.HighBit = processing.bits, processing.bits - 1
    dataset.PixelRepresentation = 0

    # DX Image
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.PixelIntensityRelationship = "LOG"
    dataset.PixelIntensityRelationshipSign = 1 if processing.monochrome1 else -1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"
    dataset.PresentationLUTShape = "INVERSE" if processing.monochrome1 else "IDENTITY"
    dataset.LossyImageCompression = "00" if processing.jpeg_quality is None else "01"
    if processing.jpeg_quality is not None:
        dataset.LossyImageCompressionRatio = "10"
        dataset.LossyImageCompressionMethod = "ISO_10918_1"
    dataset.BurnedInAnnotation = "NO"
    dataset.ImageComments = f"{derivation}: not the radiograph of a patient" if derivation else ""

    # VOI LUT
    dataset.WindowCenter, dataset.WindowWidth = 2 ** (processing.bits - 1), 2**processing.bits

    little_endian = stored_values.astype("u1" if processing.bits <= 8 else "<u2").tobytes()
    dataset.add_new(
        0x7FE00010, "OB" if processing.bits <= 8 else "OW", little_endian + b"\0" * (len(little_endian) % 2)
    )


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a simulated radiograph of a CT."""
    parser = argparse.ArgumentParser(prog="python -m training.simulate_dx", description=main.__doc__)
    parser.add_argument("ct", type=Path, help="NIfTI file, or folder with one DICOM CT series")
    parser.add_argument("output", type=Path, help="DICOM file to write")
    parser.add_argument("--kvp", type=int, default=80, help="tube voltage, 60 to 100 kV")
    parser.add_argument("--seed", type=int, default=0, help="of the noise and the UIDs")
    parser.add_argument(
        "--isocentre", type=float, nargs=3, metavar=("X", "Y", "Z"), help="patient coordinates (LPS), mm"
    )
    parser.add_argument("--spacing", type=float, default=DETECTOR_SPACING_MM, help="detector pixel, mm")
    parser.add_argument("--monochrome1", action="store_true", help="store the picture inverted")
    parser.add_argument("--bits", type=int, choices=(8, 10, 12), default=12, help="bits stored")
    options = parser.parse_args(arguments)
    dataset = simulate_dx(
        read_ct(options.ct),
        None if options.isocentre is None else np.array(options.isocentre),
        exposure=Exposure(kilovolt=options.kvp),
        processing=replace(DEFAULT_PROCESSING, monochrome1=options.monochrome1, bits=options.bits),
        seed=options.seed,
        detector_spacing_mm=options.spacing,
    )
    dataset.save_as(options.output, enforce_file_format=True)
    sys.stdout.write(f"{options.output}: {dataset.Rows} x {dataset.Columns}, {options.kvp} kV\n")


if __name__ == "__main__":
    main()
