"""Every code that the node's objects contain, each with its source.

The estimate from a radiograph must not be mistaken for a densitometer's reading: LOINC's codes of areal BMD, T- and Z-score
(46278-8, 80946-7, 80938-4 ...) all state DXA as method and are therefore **not** used. What has no standard code without that
claim is in the private scheme 99BMDXR, which is described in each object's Coding Scheme Identification Sequence.

Source: PS3.16 (Content Mapping Resource) for DCM and for the context groups; SNOMED CT as quoted in PS3.16 or, where said, from
SNOMED CT itself; LOINC 2.81; UCUM 2.1; PS3.3 C.12.1.1.7 and PS3.16 section 8 (designators of private schemes begin with 99).
"""

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from pydicom.sr.coding import Code

from dicomnode.domain.measurement import Reason, Region
from dicomnode.domain.radiograph import Side

PRIVATE_SCHEME = "99BMDXR"
PRIVATE_SCHEME_NAME = "dicomnode-bmd: bone mineral density estimated from projection radiographs"
PRIVATE_SCHEME_VERSION = "1"


def _dcm(value: str, meaning: str) -> Code:
    return Code(value, "DCM", meaning)


def _sct(value: str, meaning: str) -> Code:
    return Code(value, "SCT", meaning)


def _ucum(value: str, meaning: str) -> Code:
    return Code(value, "UCUM", meaning)


def _private(value: str, meaning: str) -> Code:
    return Code(value, PRIVATE_SCHEME, meaning, PRIVATE_SCHEME_VERSION)


def concept(code: Code) -> CodedConcept:
    """Give the code as an item of a code sequence (PS3.3 table 8.8-1)."""
    return CodedConcept.from_code(code)


def private_scheme_identification() -> CodingSchemeIdentificationItem:
    """Describe 99BMDXR as the SOP Common module asks of private schemes (PS3.3 C.12.1.1.7)."""
    return CodingSchemeIdentificationItem(
        designator=PRIVATE_SCHEME,
        name=PRIVATE_SCHEME_NAME,
        version=PRIVATE_SCHEME_VERSION,
        responsible_organization="dicomnode-bmd",
    )


# --- The document: TID 1500 Measurement Report and what it includes ----------------------------------------------------
REPORT_TITLE = _dcm("126000", "Imaging Measurement Report")
"""CID 7021 Measurement Report Document Title."""
PROCEDURE_REPORTED = Code("24762-7", "LN", "XR Hip Views")
"""LOINC 24762-7, value of (121058, DCM, "Procedure reported"); CID 100 is extensible."""
LANGUAGES = {"en": Code("en", "RFC5646", "English"), "ja": Code("ja", "RFC5646", "Japanese")}
"""RFC 5646 tags, as CID 5000 Language allows; TID 1204."""
DEVICE = _dcm("121007", "Device")
"""CID 270 Observer Type."""
IMAGE_LIBRARY = _dcm("111028", "Image Library")
"""TID 1600."""
IMAGE_LIBRARY_GROUP = _dcm("126200", "Image Library Group")
"""TID 1600."""
SOURCE = _sct("260753009", "Source")
"""Purpose of the image in TID 1601, as highdicom and PS3.16 name it."""
MODALITY = _dcm("121139", "Modality")
"""TID 1602."""
PIXEL_DATA_ROWS = _dcm("110910", "Pixel Data Rows")
"""TID 1602."""
PIXEL_DATA_COLUMNS = _dcm("110911", "Pixel Data Columns")
"""TID 1602."""
PATIENT_ORIENTATION_ROW = _dcm("111044", "Patient Orientation Row")
"""TID 1603."""
PATIENT_ORIENTATION_COLUMN = _dcm("111043", "Patient Orientation Column")
"""TID 1603."""
HORIZONTAL_PIXEL_SPACING = _dcm("111026", "Horizontal Pixel Spacing")
"""TID 1603."""
VERTICAL_PIXEL_SPACING = _dcm("111066", "Vertical Pixel Spacing")
"""TID 1603."""
MODALITIES = {
    "CR": _dcm("CR", "Computed Radiography"),
    "DX": _dcm("DX", "Digital Radiography"),
    "RG": _dcm("RG", "Radiographic imaging"),
}
"""CID 29 Acquisition Modality, those that a plain radiograph may have."""
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
"""TID 1500 row 12."""
FINDING_CATEGORY_ANATOMY = _sct("91723000", "Anatomical Structure")
"""Value of Finding Category in TID 1501; CID 7150."""
FINDING_BONE = _sct("3138006", "Bone")
"""Value of Finding in TID 1501; CID 7166."""
SOURCE_IMAGE_FOR_PROCESSING = _dcm("121322", "Source image for image processing operation")
"""Purpose of Reference of Source Image Sequence; CID 7202."""
ARTIFICIAL_INTELLIGENCE = _dcm("123110", "Artificial Intelligence")
"""Algorithm Family of TID 4019; CID 7162."""

# --- Where: finding sites --------------------------------------------------------------------------------------------
LATERALITY = {Side.RIGHT: _sct("24028007", "Right"), Side.LEFT: _sct("7771000", "Left")}
"""CID 244 Laterality."""
HIP = _sct("29836001", "Hip")
"""CID 4031 Common Anatomic Region."""
PROXIMAL_FEMUR = _sct("310651003", "Proximal Femur")
"""CID 7304 Implant Target Anatomy; SNOMED CT "Bone structure of proximal femur"."""
NECK_OF_FEMUR = _sct("29627003", "Structure of neck of femur")
"""SNOMED CT International; not among PS3.16's context groups."""
GREATER_TROCHANTER = _sct("30547004", "Structure of greater trochanter of femur")
"""SNOMED CT International; not among PS3.16's context groups."""
FINDING_SITE = {
    Region.TOTAL_HIP: PROXIMAL_FEMUR,
    Region.FEMORAL_NECK: NECK_OF_FEMUR,
    Region.TROCHANTER: GREATER_TROCHANTER,
    Region.INTERTROCHANTER: PROXIMAL_FEMUR,
}
"""The bone that holds the region; SNOMED CT has no structure that is a densitometer's intertrochanteric region."""
REGION = {
    Region.TOTAL_HIP: _private("TOTALHIP", "Total hip region as defined for densitometry"),
    Region.FEMORAL_NECK: _private("NECK", "Femoral neck region as defined for densitometry"),
    Region.TROCHANTER: _private("TROCH", "Trochanter region as defined for densitometry"),
    Region.INTERTROCHANTER: _private("INTERTROCH", "Intertrochanteric region as defined for densitometry"),
}
"""Topographical modifier of the finding site: ISCD's regions of interest are no anatomical structures of SNOMED CT."""

# --- What: measurements ----------------------------------------------------------------------------------------------
AREAL_BMD = _private("ABMD", "Areal bone mineral density estimated from radiograph")
BONE_MINERAL_CONTENT = _private("BMC", "Bone mineral content estimated from radiograph")
VOLUMETRIC_BMD = _private("VBMD", "Volumetric bone mineral density estimated from radiograph")
PROJECTED_AREA = _sct("42798000", "Area")
"""CID 7471 Area Measurement."""
T_SCORE = _private("TSCORE", "T-score of areal BMD estimated from radiograph")
PERCENT_YAM = _private("PERCENTYAM", "Percentage of young adult mean areal BMD")
Z_SCORE = _dcm("121416", "Z-Score of measurement")
"""CID 227 Sample Statistical Descriptor."""
MAGNIFICATION = _private("MAGNIFICATION", "Radiographic magnification at the femoral head")
"""Distance Source to Detector over distance source to the plane of the femoral head."""
MAGNIFICATION_SOURCE = _private("MAGNSOURCE", "Origin of radiographic magnification")
PROJECTED_AREAL_BMD = _private("ABMDPROJECTED", "Areal bone mineral density in the pose of the radiograph")
"""Told apart from `AREAL_BMD`, which is that of the pose of densitometry."""
METHOD = _private("DECOMPOSITION", "Decomposition of the radiograph by a learned model")
"""Value of (370129005, SCT, "Measurement Method") in TID 300, for what lies in the beam in the pose of the radiograph."""
CANONICAL_METHOD = _private("DXAPOSE", "Learned reading, stated for the pose of densitometry")
"""Value of (370129005, SCT, "Measurement Method") in TID 300, for figures that are comparable between radiographs."""
UPPER_UNCERTAINTY = _sct("371886008", "+, range of upper measurement uncertainty")
"""CID 225; TID 310 Measurement Properties."""
LOWER_UNCERTAINTY = _sct("371885007", "-, range of lower measurement uncertainty")
"""CID 225; TID 310 Measurement Properties."""
INTERVAL_LOW = _private("PI90LOW", "Lower limit of 90 % prediction interval")
"""Says in figures, and with its coverage, what TID 310 can only state as a range around the value."""
INTERVAL_HIGH = _private("PI90HIGH", "Upper limit of 90 % prediction interval")
"""As `INTERVAL_LOW`."""
POPULATION_DESCRIPTION = _dcm("121405", "Population description")
"""TID 311 Measurement Statistical Properties."""

# --- Units (UCUM) ----------------------------------------------------------------------------------------------------
G_PER_CM2 = _ucum("g/cm2", "gram per square centimeter")
MG_PER_CM3 = _ucum("mg/cm3", "mg/cm^3")
"""CID 301 Radiotherapy dose units and others quote it so."""
GRAM = _ucum("g", "gram")
CM2 = _ucum("cm2", "Centimeter**2")
"""CID 7461 Area Unit."""
MILLIMETER = _ucum("mm", "mm")
"""CID 7460 Linear Measurement Unit."""
NO_UNITS = _ucum("1", "no units")
"""CID 7181."""
PERCENT = _ucum("%", "Percent")
"""CID 7181."""
PIXELS = _ucum("{pixels}", "Pixels")
"""TID 1602."""

# --- How it is read: evaluations -------------------------------------------------------------------------------------
MEASURABILITY = _private("MEASURABILITY", "Measurability of bone mineral density")
MEASURED = _private("MEASURED", "Measured")
NOT_MEASURABLE = _private("NOTMEASURABLE", "Not measurable")
NOT_MEASURABLE_REASON = _private("REASON", "Reason why bone mineral density is not measurable")
REASON = {
    Reason.UNREADABLE: _private("UNREADABLE", "Image cannot be decoded"),
    Reason.NOT_A_RADIOGRAPH: _private("NOTRADIOGRAPH", "Not a single-frame greyscale radiograph"),
    Reason.UNKNOWN_SCALE: _private("UNKNOWNSCALE", "Pixel spacing not known"),
    Reason.NO_HIP: _private("NOHIP", "No hip found in the image"),
    Reason.IMPLANT: _private("IMPLANT", "Metal in or over the bone"),
    Reason.CUT_OFF: _private("CUTOFF", "Bone extends beyond the image or the collimated field"),
    Reason.NOT_AP: _private("NOTAP", "Not an anteroposterior view with the pose in range"),
    Reason.FRACTURE: _private("FRACTURE", "Bone looks broken and displaced"),
    Reason.LATERALITY: _private("LATERALITY", "Stated and visible side contradict each other"),
    Reason.IMPLAUSIBLE: _private("IMPLAUSIBLE", "Result does not re-explain the radiograph"),
}
DENSITY_CLASS = _private("BMDCLASS", "Class of estimated bone mineral density")
"""No SNOMED CT disorder is used as a value: the class of an estimate is not a diagnosis."""
DENSITY_CLASSES = {
    "normal": _private("NORMAL", "In the range of normal"),
    "low_bone_mass": _private("LOWBONEMASS", "In the range of low bone mass"),
    "osteoporosis": _private("OSTEOPOROSIS", "In the range of osteoporosis"),
    "within_expected_range_for_age": _private("WITHINEXPECTED", "Within the expected range for age"),
    "below_expected_range_for_age": _private("BELOWEXPECTED", "Below the expected range for age"),
}
"""Keys are the values of the clinical layer's `Classification`."""
CRITERIA = _private("CRITERIA", "Classification criteria")
LIMITATION = _private("LIMITATION", "Limitation of use")
TRAINING_DATA = _private("TRAININGDATA", "Training data of the model")
ASSESSMENT_NOTE = _private("ASSESSMENTNOTE", "Proviso of the assessment")
COMMENT = _dcm("121106", "Comment")
"""Free text about a hip, a region or the image as a whole."""
