"""One DICOM file in, one radiograph out: pixels the right way round, and what the header says of geometry and patient."""

import re
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from dicomnode.dicom.admission import ACCEPTED_SOP_CLASSES
from dicomnode.dicom.attributes import age_years, calendar_date, number, numbers, text, values
from dicomnode.dicom.decoding import decode, lossy_compression, pixel_layout
from dicomnode.dicom.grayscale import attenuation
from dicomnode.dicom.reader import DEFAULT_LIMITS, EncodedObject, Limits, read_encoded
from dicomnode.domain.measurement import Reason
from dicomnode.domain.radiograph import AcquisitionGeometry, Patient, Radiograph, Sex, Side, Technique
from dicomnode.errors import CannotUnderstand, NotMeasurable

_RADIOGRAPH_MODALITIES = frozenset({"CR", "DX", "RG", "DR"})
"""Projection radiography that can show a hip. Source: PS3.3 C.7.3.1.1.1; DR is no defined term, but early detectors write it."""
_UNTOLD_MODALITIES = frozenset({"", "OT"})
_SPACING_RANGE_MM = (0.01, 2.0)
"""Detectors of radiography lie between 0.05 and 0.4 mm; anything outside this range is a slip of unit or an empty default."""
_DISTANCE_RANGE_MM = (200.0, 5000.0)
_VOLTAGE_RANGE_KV = (20.0, 160.0)
"""From mammography to high-kV chests; anything outside is a slip of unit (volts) or of the tag."""
_MOST_COPPER_MM = 3.0
"""More is no filter of diagnostic radiography, but another unit."""
_WORDS_OF_COPPER = re.compile(r"(\d+(?:\.\d+)?)\s*(?:MM\s*)?CU\b")
"""Millimetres before the element, as makers write them into Filter Type (0018,1160), which has no defined terms for this."""
_MAGNIFICATION_RANGE = (1.0, 3.0)
"""Below 1 the patient would lie behind the detector."""


def read_header(path: Path, limits: Limits = DEFAULT_LIMITS) -> Dataset:
    """Read the header of a DICOM file: no pixel data, no private elements, `file_meta` set.

    Raises:
        CannotUnderstand: it is no DICOM object, is damaged before its pixel data, or breaks a limit.
        OSError: the file cannot be opened or read.
    """
    return read_encoded(path, limits).dataset


def read_radiograph(path: Path, limits: Limits = DEFAULT_LIMITS) -> Radiograph:
    """Read a radiograph: one frame, one sample per pixel, in any accepted transfer syntax.

    Raises:
        NotMeasurable: NOT_A_RADIOGRAPH for another modality, colour or several frames; UNREADABLE where header or pixel
            data cannot be decoded or contradict each other.
        OSError: the file cannot be opened or read.
    """
    encoded = _read(path, limits)
    dataset = encoded.dataset
    _require_radiograph(dataset)
    layout = pixel_layout(dataset, limits)
    stored, decoding_notes = decode(encoded, layout)
    image, grayscale_notes = attenuation(stored, layout, dataset)
    geometry, geometry_notes = _geometry(dataset)
    technique, technique_notes = _technique(dataset)
    return Radiograph(
        image=np.ascontiguousarray(image, dtype=np.float32),
        geometry=geometry,
        patient=_patient(dataset),
        sop_instance_uid=text(dataset, "SOPInstanceUID"),
        laterality_stated=_laterality(dataset),
        technique=technique,
        lossy=lossy_compression(dataset, encoded.transfer_syntax_uid) is True,
        notes=(
            *encoded.notes,
            *decoding_notes,
            *grayscale_notes,
            *geometry_notes,
            *technique_notes,
            *_orientation_notes(dataset),
        ),
    )


def _read(path: Path, limits: Limits) -> EncodedObject:
    try:
        return read_encoded(path, limits)
    except CannotUnderstand as error:
        raise NotMeasurable(Reason.UNREADABLE, str(error)) from error


def _require_radiograph(dataset: Dataset) -> None:
    modality = text(dataset, "Modality").upper()
    sop_class = text(dataset, "SOPClassUID")
    if modality in _RADIOGRAPH_MODALITIES or (modality in _UNTOLD_MODALITIES and sop_class in ACCEPTED_SOP_CLASSES):
        return
    raise NotMeasurable(
        Reason.NOT_A_RADIOGRAPH,
        f"Modality is {modality[:16]!a}: expected a plain radiograph ({', '.join(sorted(_RADIOGRAPH_MODALITIES))})",
    )


def _technique(dataset: Dataset) -> tuple[Technique, tuple[str, ...]]:
    notes: list[str] = []
    detector, modality = text(dataset, "DetectorType").upper(), text(dataset, "Modality").upper()
    return Technique(
        kilovolt=_in_range(dataset, "KVP", _VOLTAGE_RANGE_KV, notes),
        copper_mm=_copper_mm(dataset),
        storage_phosphor=detector == "STORAGE" if detector else True if modality == "CR" else None,
    ), tuple(notes)


def _copper_mm(dataset: Dataset) -> float | None:
    """Added copper, by Filter Material with its thicknesses; where those are absent, by words like "0.1Cu 1Al" in Filter Type.

    A filter whose thickness varies over the field says no one number.
    """
    kind = text(dataset, "FilterType").upper()
    materials = [str(material).upper() for material in values(dataset, "FilterMaterial")]
    if not materials:
        stated = _WORDS_OF_COPPER.search(kind)
        if stated is not None:
            return _plausible_copper(float(stated[1]))
        return 0.0 if kind == "NONE" else None
    if "COPPER" not in materials:
        return 0.0
    place = materials.index("COPPER")
    ends = [numbers(dataset, f"FilterThickness{end}") for end in ("Minimum", "Maximum")]
    stated_mm = {thicknesses[place] for thicknesses in ends if len(thicknesses) == len(materials)}
    return _plausible_copper(stated_mm.pop()) if len(stated_mm) == 1 else None


def _plausible_copper(thickness_mm: float) -> float | None:
    return thickness_mm if 0 <= thickness_mm <= _MOST_COPPER_MM else None


def _geometry(dataset: Dataset) -> tuple[AcquisitionGeometry, tuple[str, ...]]:
    notes: list[str] = []
    detector, patient = _spacings(dataset, notes)
    sdd_mm = _in_range(dataset, "DistanceSourceToDetector", _DISTANCE_RANGE_MM, notes)
    spd_mm = _in_range(dataset, "DistanceSourceToPatient", _DISTANCE_RANGE_MM, notes)
    if sdd_mm is not None and spd_mm is not None and spd_mm > sdd_mm:
        notes.append("Distance Source to Patient exceeds Distance Source to Detector; both were left out.")
        sdd_mm = spd_mm = None
    magnification = _in_range(dataset, "EstimatedRadiographicMagnificationFactor", _MAGNIFICATION_RANGE, notes)
    if None not in (magnification, sdd_mm, spd_mm) and abs(magnification - sdd_mm / spd_mm) > 0.1 * magnification:  # type: ignore[operator]
        notes.append("Estimated Radiographic Magnification Factor contradicts the distances of the source.")
    return AcquisitionGeometry(detector, patient, sdd_mm, spd_mm, magnification), tuple(notes)


def _spacings(dataset: Dataset, notes: list[str]) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Tell the spacing at the detector and a calibrated spacing in the patient apart.

    Pixel Spacing is calibrated where its Calibration Type says so, or where it differs from the spacing at the detector;
    where it is alone and uncalibrated, or equals Imager Pixel Spacing, it is that of the detector.

    Source: PS3.3 10.7.1.1 (Basic Pixel Spacing Calibration macro) and 10.7.1.3.
    """
    pixel = _spacing(dataset, "PixelSpacing", notes)
    detector = _spacing(dataset, "ImagerPixelSpacing", notes) or _spacing(dataset, "NominalScannedPixelSpacing", notes)
    calibration = text(dataset, "PixelSpacingCalibrationType").upper()
    if pixel is None:
        if detector is None:
            notes.append("No usable pixel spacing is stated.")
        return detector, None
    if detector is None and not calibration:
        notes.append("Pixel Spacing is not said to be calibrated; it was taken as that at the detector.")
        return pixel, None
    if calibration or not np.allclose(pixel, detector, rtol=1e-3):  # type: ignore[arg-type]
        return detector, pixel
    return detector, None


def _spacing(dataset: Dataset, keyword: str, notes: list[str]) -> tuple[float, float] | None:
    """Return (row, column) spacing in mm. One value stands for both, as ACR-NEMA writers put it."""
    found = numbers(dataset, keyword)
    if not found:
        return None
    row_mm, column_mm = (found[0], found[-1]) if len(found) <= 2 else (0.0, 0.0)
    low, high = _SPACING_RANGE_MM
    if not (low <= row_mm <= high and low <= column_mm <= high):
        notes.append(f"{keyword} is {row_mm:g} x {column_mm:g} mm and was left out: expected {low:g} to {high:g} mm.")
        return None
    if abs(row_mm - column_mm) > 1e-3 * row_mm:
        notes.append(f"{keyword} differs between rows and columns ({row_mm:g} x {column_mm:g} mm).")
    return row_mm, column_mm


def _in_range(dataset: Dataset, keyword: str, bounds: tuple[float, float], notes: list[str]) -> float | None:
    """Return a number that is physically possible; 0 is how modalities write "unknown" and is passed over in silence."""
    found = number(dataset, keyword)
    if found is None or found == 0.0:
        return None
    if not bounds[0] <= found <= bounds[1]:
        notes.append(f"{keyword} is {found:g} and was left out: expected {bounds[0]:g} to {bounds[1]:g}.")
        return None
    return found


def _patient(dataset: Dataset) -> Patient:
    sex = text(dataset, "PatientSex").upper()
    study_date = calendar_date(dataset, "StudyDate") or calendar_date(dataset, "AcquisitionDate")
    birth_date = calendar_date(dataset, "PatientBirthDate")
    if birth_date is not None and study_date is not None and birth_date > study_date:
        birth_date = None
    return Patient(
        sex=next((known for known in Sex if known.value == sex), Sex.UNKNOWN),
        birth_date=birth_date,
        study_date=study_date,
        age_years_stated=age_years(dataset, "PatientAge"),
    )


def _laterality(dataset: Dataset) -> Side | None:
    """Image Laterality (0020,0062), else Laterality (0020,0060); None for both sides (B), unpaired (U) and silence."""
    stated = (text(dataset, "ImageLaterality") or text(dataset, "Laterality")).upper()
    return next((side for side in Side if side.value == stated), None)


def _orientation_notes(dataset: Dataset) -> tuple[str, ...]:
    """Tell of a picture that is not shown as usual: patient's left at its right side, head up. Source: PS3.3 C.7.6.1.1.1."""
    found = [str(value).strip().upper() for value in values(dataset, "PatientOrientation")]
    if len(found) != 2 or not all(found):
        return ()
    if found[0].startswith("R"):
        return ("Patient Orientation says that the picture is mirrored (patient's right at its right side).",)
    if not found[1].startswith("F") and found[0][0] in "LR":
        return ("Patient Orientation says that the picture does not stand head up.",)
    return ()
