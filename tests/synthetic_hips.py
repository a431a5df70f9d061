"""Measurements to encode and to draw: a femur drawn with numpy, figures read off its own maps, no model involved."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation
from scipy.ndimage import gaussian_filter, map_coordinates

from dicomnode.domain.measurement import (
    Assessment,
    Estimate,
    HipMaps,
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
from dicomnode.domain.reference import ReferenceCurve
from dicomnode.inference import frame

ROWS, COLUMNS = 1400, 1720
DETECTOR_SPACING_MM = 0.25
MAGNIFICATION = 1.15
SOURCE_UID = "1.2.826.0.1.3680043.8.498.20250101.1"
MODEL = ModelIdentity("proximal femur decomposition", "0.1.0", "a" * 64, trained_on=TrainingData.SIMULATED)
CONFIGURATION_DIGEST = "c" * 64
CURVE = ReferenceCurve(
    "Invented population, women, total hip",
    tuple(float(age) for age in range(20, 91, 10)),
    (0.94, 0.95, 0.94, 0.91, 0.86, 0.80, 0.74, 0.69),
    (0.12, 0.12, 0.12, 0.12, 0.12, 0.12, 0.12, 0.12),
    young_mean=0.942,
    young_sd=0.122,
)
YOUNG_ADULTS_ONLY = ReferenceCurve("Invented young adults, femoral neck", young_mean=0.858, young_sd=0.120)
REGION_LABELS = {
    Region.TOTAL_HIP: (frame.Label.NECK, frame.Label.TROCHANTER, frame.Label.INTERTROCHANTER),
    Region.FEMORAL_NECK: (frame.Label.NECK,),
    Region.TROCHANTER: (frame.Label.TROCHANTER,),
    Region.INTERTROCHANTER: (frame.Label.INTERTROCHANTER,),
}


@dataclass(frozen=True)
class Femur:
    """Maps of a drawn right femur in the measurement frame."""

    density_g_cm2: NDArray[np.float32]
    path_cm: NDArray[np.float32]
    labels: NDArray[np.uint8]


def _capsule_path_cm(
    start: tuple[float, float], end: tuple[float, float], radii_px: tuple[float, float]
) -> NDArray[np.float64]:
    """Path length through a rod from `start` to `end` (column, row) whose radius goes linearly from the first to the second."""
    columns, rows = np.meshgrid(np.arange(frame.COLUMNS) + 0.5, np.arange(frame.ROWS) + 0.5)
    along = np.subtract(end, start)
    share = ((columns - start[0]) * along[0] + (rows - start[1]) * along[1]) / max(along @ along, 1e-9)
    share = np.clip(share, 0, 1)
    distance = np.hypot(columns - start[0] - share * along[0], rows - start[1] - share * along[1])
    radius = radii_px[0] + share * (radii_px[1] - radii_px[0])
    return np.asarray(2 * np.sqrt(np.clip(radius**2 - distance**2, 0, None)) * frame.SPACING_MM / 10, np.float64)


@cache
def draw_femur(mineral: float = 1.0) -> Femur:
    """Draw a right femur whose mineral is `mineral` times that of an ordinary one."""
    head = (float(frame.HEAD_COLUMN), float(frame.HEAD_ROW))
    knee = (66.0, 300.0)
    rods = (
        (head, head, (34.0, 34.0)),
        (head, (66.0, 128.0), (22.0, 27.0)),
        ((54.0, 98.0), (64.0, 140.0), (17.0, 27.0)),
        ((64.0, 130.0), knee, (28.0, 19.0)),
        ((86.0, 156.0), (78.0, 166.0), (9.0, 11.0)),
    )
    outer = np.max([_capsule_path_cm(*rod) for rod in rods], axis=0)
    inner = np.max([_capsule_path_cm(a, b, (r - 3.5, s - 3.5)) for a, b, (r, s) in rods], axis=0)
    medulla = _capsule_path_cm((68.0, 185.0), knee, (13.0, 10.0))
    density = mineral * gaussian_filter(0.78 * (outer - inner) + 0.185 * (inner - medulla) + 0.02 * medulla, 0.8)
    density[outer < 0.1] = 0
    return Femur(density.astype(np.float32), outer.astype(np.float32), _labels(outer > 0.1))


def _labels(bone: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Divide the bone as a densitometer does: along the neck, by the intertrochanteric line, below the lesser trochanter."""
    columns, rows = np.meshgrid(np.arange(frame.COLUMNS) + 0.5, np.arange(frame.ROWS) + 0.5)
    axis = np.array([66.0 - frame.HEAD_COLUMN, 128.0 - frame.HEAD_ROW])
    axis /= np.hypot(*axis)
    along_px = (columns - frame.HEAD_COLUMN) * axis[0] + (rows - frame.HEAD_ROW) * axis[1]
    labels = np.full(bone.shape, frame.Label.INTERTROCHANTER, dtype=np.uint8)
    labels[(rows < 124 + 0.25 * (columns - 60)) & (along_px > 52)] = frame.Label.TROCHANTER
    labels[along_px <= 52] = frame.Label.NECK
    labels[along_px <= 27] = frame.Label.HEAD
    labels[rows > 205] = frame.Label.SHAFT
    labels[~bone] = frame.Label.BACKGROUND
    return labels


def image_from_frame(side: Side) -> NDArray[np.float64]:
    """Place the frame of a hip on the drawn radiograph; left hips are mirrored."""
    scale = frame.SPACING_MM * MAGNIFICATION / DETECTOR_SPACING_MM
    head_column, head_row = (430.0, 520.0) if side is Side.RIGHT else (COLUMNS - 430.0, 512.0)
    across = scale if side is Side.RIGHT else -scale
    return np.array(
        [
            [across, 0, head_column - across * frame.HEAD_COLUMN],
            [0, scale, head_row - scale * frame.HEAD_ROW],
            [0, 0, 1],
        ]
    )


def _contour_px(mask: NDArray[np.bool_], image_from_frame_: NDArray[np.float64]) -> NDArray[np.float32]:
    lines = contour_generator(z=np.pad(mask.astype(float), 1)).lines(0.5)
    longest = max((np.asarray(one, float) for one in lines), key=len) - 0.5  # pixel centres, less the padding
    homogeneous = np.column_stack((longest, np.ones(len(longest)))) @ image_from_frame_.T
    return np.asarray(homogeneous[:, :2], np.float32)


def _assessment(region: Region, areal_bmd: float) -> Assessment | None:
    if region not in (Region.TOTAL_HIP, Region.FEMORAL_NECK):
        return None
    mean, sd = (0.942, 0.122) if region is Region.TOTAL_HIP else (0.858, 0.120)
    t = round((areal_bmd - mean) / sd, 1)
    name = "normal" if t >= -1 else "osteoporosis" if t <= -2.5 else "low_bone_mass"
    return Assessment(
        "invented_women", t, float(round(100 * areal_bmd / mean)), 0.3 if region is Region.TOTAL_HIP else None, name,
        "WHO 1994 / ISCD 2023", ("Not on the scale of a densitometer.",),
    )  # fmt: skip


def _around(value: float, share: float) -> Estimate:
    return Estimate(value, value * (1 - share), value * (1 + share))


def measure_region(region: Region, femur: Femur, image_from_frame_: NDArray[np.float64]) -> RegionMeasurement:
    """Read a region's figures off the drawn maps."""
    mask = np.isin(femur.labels, REGION_LABELS[region])
    pixel_cm2 = (frame.SPACING_MM / 10) ** 2
    mass_g, area_cm2 = float(femur.density_g_cm2[mask].sum() * pixel_cm2), float(mask.sum() * pixel_cm2)
    volume_cm3 = float(femur.path_cm[mask].sum() * pixel_cm2)
    return RegionMeasurement(
        region,
        Status.MEASURED,
        areal_bmd_g_cm2=_around(mass_g / area_cm2, 0.08),
        bmc_g=_around(mass_g, 0.1),
        area_cm2=Estimate(area_cm2),
        volumetric_bmd_mg_cm3=_around(1000 * mass_g / volume_cm3, 0.1),
        projected_areal_bmd_g_cm2=_around(1.02 * mass_g / area_cm2, 0.05),
        assessment=_assessment(region, mass_g / area_cm2),
        contour_px=_contour_px(mask, image_from_frame_),
    )


def _frame_of_radiograph(image_from_frame_: NDArray[np.float64]) -> NDArray[np.float32]:
    """Resample the drawn radiograph into the frame, at about the contrast that a network sees."""
    columns, rows = np.meshgrid(np.arange(frame.COLUMNS) + 0.5, np.arange(frame.ROWS) + 0.5)
    at = [
        image_from_frame_[i, 0] * columns + image_from_frame_[i, 1] * rows + image_from_frame_[i, 2] - 0.5
        for i in (1, 0)
    ]
    crop = map_coordinates(radiograph(), at, order=1, mode="nearest")
    return np.asarray((crop - crop.mean()) / crop.std(), np.float32)


@cache
def measured_hip(side: Side, mineral: float = 1.0) -> HipMeasurement:
    """A hip all of whose regions have figures."""
    femur, placed = draw_femur(mineral), image_from_frame(side)
    maps = HipMaps(
        radiograph=_frame_of_radiograph(placed),
        areal_density_g_cm2=femur.density_g_cm2,
        path_length_cm=femur.path_cm,
        pelvis_g_cm2=np.zeros_like(femur.density_g_cm2),
        region_labels=femur.labels,
        spacing_mm=frame.SPACING_MM,
        image_from_frame=placed,
    )
    return HipMeasurement(
        side,
        Status.MEASURED,
        regions=tuple(measure_region(region, femur, placed) for region in Region),
        maps=maps,
        magnification=MAGNIFICATION,
        magnification_source="assumed",
        notes=("Magnification 1.15 assumed: the header states no distances.",),
    )


def _unmeasurable(side: Side, reason: Reason, detail: str) -> HipMeasurement:
    return HipMeasurement(side, Status.NOT_MEASURABLE, reason, detail)


def both_hips() -> Measurement:
    """Both hips measured, the left with less mineral."""
    return Measurement(
        SOURCE_UID, Status.MEASURED, (measured_hip(Side.RIGHT, 0.90), measured_hip(Side.LEFT, 0.74)), MODEL
    )


def implant_on_the_left() -> Measurement:
    """The right hip measured, the left refused."""
    left = _unmeasurable(
        Side.LEFT, Reason.IMPLANT, "Brighter than bone can be over 21.4 cm\N{SUPERSCRIPT TWO} of the left hip."
    )
    return Measurement(
        SOURCE_UID, Status.MEASURED, (measured_hip(Side.RIGHT, 0.90), left), MODEL, notes=("A note on the image.",)
    )


def neck_only() -> Measurement:
    """One hip whose shaft is cut off: the neck has figures, the rest says why not."""
    hip = measured_hip(Side.RIGHT, 0.8)
    cut = tuple(
        region
        if region.region is Region.FEMORAL_NECK
        else RegionMeasurement(
            region.region, Status.NOT_MEASURABLE, Reason.CUT_OFF, "The lower border of the image cuts the region."
        )
        for region in hip.regions
    )
    return Measurement(SOURCE_UID, Status.MEASURED, (replace(hip, regions=cut),), MODEL)


def nothing_measurable() -> Measurement:
    """No hip in the image at all."""
    return Measurement(
        SOURCE_UID, Status.NOT_MEASURABLE, (), MODEL, Reason.NO_HIP, "No femoral head was found in 1400 x 1720 pixels.",
        ("Pixel spacing taken from Imager Pixel Spacing.",),
    )  # fmt: skip


def both_refused() -> Measurement:
    """Two hips, neither measurable."""
    hips = (
        _unmeasurable(Side.RIGHT, Reason.NOT_AP, "The neck is foreshortened to 61 % of its length."),
        _unmeasurable(Side.LEFT, Reason.IMPLAUSIBLE, "12 % of the attenuation is not explained."),
    )
    return Measurement(SOURCE_UID, Status.NOT_MEASURABLE, hips, MODEL)


CASES = {
    "both_hips": both_hips,
    "implant_on_the_left": implant_on_the_left,
    "neck_only": neck_only,
    "nothing_measurable": nothing_measurable,
    "both_refused": both_refused,
}


@cache
def radiograph() -> NDArray[np.float32]:
    """Draw the radiograph that the measured hips lie on, 0..1, bone bright."""
    columns, rows = np.meshgrid(np.arange(COLUMNS) + 0.5, np.arange(ROWS) + 0.5)
    body = np.clip(1 - ((columns - COLUMNS / 2) / 880) ** 2, 0, 1) ** 0.5
    gap = np.exp(-(((columns - COLUMNS / 2) / 45) ** 2)) * np.clip((rows - 900) / 250, 0, 1)
    image = 0.34 * body * (1 - 0.75 * gap)
    for centre in (430.0, COLUMNS - 430.0):
        ilium = ((columns - centre) / 230) ** 2 + ((rows - 210) / 300) ** 2
        socket = np.hypot(columns - centre, rows - 515)
        image += 0.13 * np.clip(1.15 - ilium, 0, 0.5) + 0.10 * np.exp(-(((socket - 125) / 16) ** 2)) * (rows < 560)
        inward = np.sign(COLUMNS / 2 - centre)
        ring = np.hypot((columns - centre - inward * 235) / 1.05, rows - 800)
        image += 0.10 * np.exp(-(((ring - 120) / 34) ** 2))
    sacrum = ((columns - COLUMNS / 2) / 150) ** 2 + ((rows - 170) / 290) ** 2
    image += 0.12 * np.clip(1 - sacrum, 0, 1)
    for side, mineral in ((Side.RIGHT, 0.90), (Side.LEFT, 0.74)):
        frame_from_image = np.linalg.inv(image_from_frame(side))
        at = [
            frame_from_image[i, 0] * columns + frame_from_image[i, 1] * rows + frame_from_image[i, 2] - 0.5
            for i in (1, 0)
        ]
        image += 0.27 * map_coordinates(draw_femur(mineral).density_g_cm2, at, order=1, mode="constant")
    noise = np.random.default_rng(7).normal(0, 0.012, image.shape)
    return np.asarray(np.clip(gaussian_filter(image, 1.2) + gaussian_filter(noise, 0.7), 0, 1), np.float32)


def source_dataset() -> Dataset:
    """The drawn radiograph's header, in the form that `normalise_source` gives: type 2 attributes there, ISO_IR 192."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = SOURCE_UID
    dataset.StudyInstanceUID = SOURCE_UID + ".2"
    dataset.SeriesInstanceUID = SOURCE_UID + ".3"
    dataset.StudyDate, dataset.StudyTime = "20250314", "101530"
    dataset.AccessionNumber, dataset.StudyID = "A123", "S1"
    dataset.StudyDescription = "Hip AP"
    dataset.ReferringPhysicianName = ""
    dataset.PatientName, dataset.PatientID = "Yamada^Tarou=山田^太郎=やまだ^たろう", "P-0042"
    dataset.PatientBirthDate, dataset.PatientSex = "19540612", "F"
    dataset.PatientAge = "070Y"
    dataset.Modality, dataset.Manufacturer = "DX", "Maker"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, 1
    dataset.PatientOrientation = ["L", "F"]
    dataset.ImagerPixelSpacing = [DETECTOR_SPACING_MM, DETECTOR_SPACING_MM]
    dataset.Rows, dataset.Columns = ROWS, COLUMNS
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.BurnedInAnnotation = "NO"
    return dataset
