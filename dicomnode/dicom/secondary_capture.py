"""The overlay as a Secondary Capture, which every viewer shows.

Written attribute by attribute against PS3.3 A.8.1 (Secondary Capture Image IOD), module by module: highdicom's class leaves
Burned In Annotation unset, wants a Patient Orientation that a page with several panels does not have, and stamps the clock's
time.
"""

from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from dicomnode.dicom import codes
from dicomnode.dicom.attributes import text
from dicomnode.dicom.decoding import LOSSY_METHOD, lossy_compression
from dicomnode.dicom.equipment import Equipment
from dicomnode.dicom.uids import IMPLEMENTATION_CLASS_UID, Kind, result_instance_uid, result_series_uid
from dicomnode.domain.measurement import Measurement, Reason
from dicomnode.domain.reporting import ReportSettings

SERIES_NUMBER = 9802
"""Behind the images and the report in a viewer."""
SERIES_DESCRIPTION = "Hip BMD from radiograph: overlay"
DERIVATION_DESCRIPTION = (
    "Radiograph windowed for display with the contours of the measured regions, areal bone mineral density decomposed from it by a "
    "learned model, figures and reference chart. For viewing, not for measuring."
)
COPIED = (
    # Patient (PS3.3 C.7.1.1)
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "OtherPatientIDsSequence",
    "PatientSpeciesDescription", "PatientIdentityRemoved", "DeidentificationMethod",
    # General Study (C.7.2.1)
    "StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber",
    "IssuerOfAccessionNumberSequence", "StudyDescription", "ReferencedStudySequence",
    # Patient Study (C.7.2.2)
    "PatientAge", "PatientSize", "PatientWeight",
)  # fmt: skip
"""What a result shares with its source: patient and study, as they are there."""
TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID",
    "AccessionNumber",
)  # fmt: skip


def build_secondary_capture(
    source: Dataset,
    picture: NDArray[np.uint8],
    measurement: Measurement,
    *,
    equipment: Equipment,
    settings: ReportSettings,
    configuration_digest: str,
    now: datetime,
) -> Dataset:
    """Encode the overlay. The same arguments give the same bytes.

    Args:
        source: the radiograph's data set as `normalise_source` gives it.
        picture: (rows, columns, 3) RGB as `render_overlay` drew it under the same `settings`.
        measurement: decides UIDs and laterality.
        equipment: this installation.
        settings: whether identification is burnt in.
        configuration_digest: SHA-256 (hex) of what of the configuration determines the figures.
        now: local time of encoding; seconds are the finest that is written.

    Raises:
        ValueError: the picture is not RGB of 8 bits.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"the overlay must be (rows, columns, 3) uint8, found {picture.shape} {picture.dtype}")
    derived_from = (source.SOPInstanceUID, measurement.model.digest, configuration_digest)
    capture = Dataset()
    _patient_and_study(capture, source)
    _series(capture, measurement, result_series_uid(Kind.SECONDARY_CAPTURE, *derived_from), now)
    _equipment(capture, equipment, now)
    _image(capture, source, settings, now)
    _pixels(capture, picture)
    _sop_common(capture, result_instance_uid(Kind.SECONDARY_CAPTURE, *derived_from), now)
    _file_meta(capture, equipment)
    return capture


def identification_line(source: Dataset) -> str:
    """Give name, ID, birth date and study date in one line, for sites that want them burnt in."""
    name = str(source.get("PatientName") or "").split("=")[0].replace("^", " ").strip()
    parts = (name, source.get("PatientID"), source.get("PatientBirthDate"), source.get("StudyDate"))
    return "   ".join(str(part) for part in parts if part)


def _patient_and_study(capture: Dataset, source: Dataset) -> None:
    capture.SpecificCharacterSet = "ISO_IR 192"
    for keyword in TYPE_2:
        setattr(capture, keyword, None)
    for keyword in COPIED:
        if keyword in source:
            capture[keyword] = source[keyword]


def _series(capture: Dataset, measurement: Measurement, series_uid: str, now: datetime) -> None:
    # General Series (PS3.3 C.7.3.1)
    capture.Modality = "OT"
    capture.SeriesInstanceUID = series_uid
    capture.SeriesNumber = SERIES_NUMBER
    capture.SeriesDescription = SERIES_DESCRIPTION
    capture.SeriesDate, capture.SeriesTime = _date(now), _time(now)
    sides = {hip.side for hip in measurement.hips}
    if len(sides) > 1:
        capture.BodyPartExamined = "PELVIS"  # with both hips; Laterality is for paired parts only
        return
    if sides:
        capture.BodyPartExamined = "HIP"
    # Type 2C. Empty, for not known, without a hip, and where header and picture contradict each other.
    certain = {hip.side for hip in measurement.hips if hip.reason is not Reason.LATERALITY}
    capture.Laterality = certain.pop().value if certain else None


def _equipment(capture: Dataset, equipment: Equipment, now: datetime) -> None:
    # General Equipment (PS3.3 C.7.5.1)
    capture.Manufacturer = equipment.manufacturer
    capture.ManufacturerModelName = equipment.model_name
    capture.SoftwareVersions = equipment.software_version
    for keyword, value in (
        ("DeviceSerialNumber", equipment.serial_number),
        ("StationName", equipment.station_name),
        ("InstitutionName", equipment.institution_name),
        ("InstitutionalDepartmentName", equipment.institutional_department_name),
    ):
        if value:
            setattr(capture, keyword, value)
    # SC Equipment (C.8.6.1)
    capture.ConversionType = "WSD"
    capture.SecondaryCaptureDeviceManufacturer = equipment.manufacturer
    capture.SecondaryCaptureDeviceManufacturerModelName = equipment.model_name
    capture.SecondaryCaptureDeviceSoftwareVersions = equipment.software_version
    # SC Image (C.8.6.2)
    capture.DateOfSecondaryCapture, capture.TimeOfSecondaryCapture = _date(now), _time(now)


def _image(capture: Dataset, source: Dataset, settings: ReportSettings, now: datetime) -> None:
    # General Image (PS3.3 C.7.6.1)
    capture.InstanceNumber = 1
    capture.PatientOrientation = None  # one page holds panels of several orientations
    capture.ContentDate, capture.ContentTime = _date(now), _time(now)
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.DerivationDescription = DERIVATION_DESCRIPTION
    capture.SourceImageSequence = [_reference(source)]
    _burned_in(capture, source, settings)
    _lossy(capture, source)


def _reference(source: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    reference.PurposeOfReferenceCodeSequence = [_code_item(codes.SOURCE_IMAGE_FOR_PROCESSING)]
    return reference


def _code_item(code: Code) -> Dataset:
    return Dataset(codes.concept(code))


def _burned_in(capture: Dataset, source: Dataset, settings: ReportSettings) -> None:
    """Say what is certain: YES where the settings burn identification in, else what the radiograph, which is shown, says of itself.

    Absent where that says nothing: the picture "may or may not" hold some. Source: PS3.3 C.7.6.1, Burned In Annotation, type 3.
    """
    stated = text(source, "BurnedInAnnotation")
    if settings.burn_in_identification:
        capture.BurnedInAnnotation = "YES"
    elif stated in ("YES", "NO"):
        capture.BurnedInAnnotation = stated


def _lossy(capture: Dataset, source: Dataset) -> None:
    """Once lossy, always lossy: what the source's compression took away is missing here too (PS3.3 C.7.6.1.1.5)."""
    transfer_syntax = text(getattr(source, "file_meta", Dataset()), "TransferSyntaxUID")
    lossy = lossy_compression(source, transfer_syntax)
    if lossy is None:
        return
    capture.LossyImageCompression = "01" if lossy else "00"
    if lossy:
        for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if keyword in source:
                capture[keyword] = source[keyword]
        if "LossyImageCompressionMethod" not in capture and transfer_syntax in LOSSY_METHOD:
            capture.LossyImageCompressionMethod = LOSSY_METHOD[UID(transfer_syntax)]


def _pixels(capture: Dataset, picture: NDArray[np.uint8]) -> None:
    # Image Pixel (PS3.3 C.7.6.3)
    capture.SamplesPerPixel = 3
    capture.PhotometricInterpretation = "RGB"
    capture.PlanarConfiguration = 0
    capture.Rows, capture.Columns = picture.shape[:2]
    capture.BitsAllocated, capture.BitsStored, capture.HighBit = 8, 8, 7
    capture.PixelRepresentation = 0
    data = np.ascontiguousarray(picture).tobytes()
    capture.PixelData = data + b"\0" * (len(data) % 2)
    capture["PixelData"].VR = "OB"


def _sop_common(capture: Dataset, instance_uid: str, now: datetime) -> None:
    # SOP Common (PS3.3 C.12.1)
    capture.SOPClassUID = SecondaryCaptureImageStorage
    capture.SOPInstanceUID = instance_uid
    capture.InstanceCreationDate, capture.InstanceCreationTime = _date(now), _time(now)


def _file_meta(capture: Dataset, equipment: Equipment) -> None:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = capture.SOPClassUID
    meta.MediaStorageSOPInstanceUID = capture.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = equipment.implementation_version_name
    capture.file_meta = meta


def _date(now: datetime) -> str:
    return now.strftime("%Y%m%d")


def _time(now: datetime) -> str:
    return now.strftime("%H%M%S")
