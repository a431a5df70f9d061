"""Computed tomography: read it, and split it into the materials of the radiograph simulation.

The split is uncalibrated: good enough to draw a radiograph, not to measure a density.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from scipy import ndimage

from dicomnode.errors import DicomNodeError
from training.anatomy.volume import Structure

sitk: Any = SimpleITK
"""SimpleITK is only partly typed: this says so once."""

BODY_HU = -400.0
"""Halfway between air and fat, a little up: skin voxels of partial volume count as body."""
ADIPOSE_HU = -98.0
SOFT_HU = 14.0
BONE_HU = 100.0
"""Borders of Schneider's segments: adipose tissue alone below, soft tissue without fat above, bone above."""
CORTICAL_HU = 1524.0
CORTICAL_MINERAL_G_CM3 = 1.083
"""Cortical bone: 1524 HU (Schneider 2000, table 3); 1.92 g/cm3 with 22.5 % calcium (ICRU-44), calcium being 39.9 % of
hydroxyapatite."""
AIR_HU = -1000.0
LEAST_SHEAR_PX = 0.5
"""Between first and last slice; less is rounding in the header."""
METAL_HU = 2500.0
"""Above any bone (dense cortex reaches about 2000 HU), below where 12-bit scanners saturate (3071)."""
METAL_G_CM3 = 4.54
"""Titanium. Its true CT value lies beyond most scanners' range, so that a voxel is metal or is not."""


@dataclass(frozen=True)
class CtVolume:
    """A CT series as one volume."""

    hu: NDArray[np.float32]
    """(z, y, x) in Hounsfield units."""
    patient_from_voxel: NDArray[np.float64]
    """4 x 4: homogeneous voxel index (x, y, z) of a voxel's centre to patient mm (LPS)."""
    kilovolt: float | None = None
    """Tube voltage, KVP (0018,0060); None where the file does not say."""


class UnusableCt(DicomNodeError, ValueError):
    """A CT cannot be read as a volume in Hounsfield units; the message says why, and what to do."""


def read_ct(path: Path) -> CtVolume:
    """Read a NIfTI file, or a folder that holds one DICOM CT series.

    Slices are put in order by their position, never by number or file name. Those of a tilted gantry, which are shifted against
    each other, are moved within their planes (`_upright`).

    Raises:
        UnusableCt: no such file, no or several series, no CT, slices that are not evenly spaced or not parallel, or values that
            are no Hounsfield units.
    """
    if path.is_dir():
        ct = _read_series(path)
    elif path.is_file():
        image = sitk.ReadImage(str(path), sitk.sitkFloat32)
        if image.GetDimension() != 3:
            raise UnusableCt(f"{path} has {image.GetDimension()} dimensions, expected a volume")
        ct = ct_from_image(image)
    else:
        raise UnusableCt(f"{path} does not exist; expected a NIfTI file or a folder with one DICOM CT series")
    _check_range(ct.hu, path)
    return ct


def ct_from_image(image: Any) -> CtVolume:
    """Convert from SimpleITK, whose sizes and points are (x, y, z), in the patient frame whatever the file's was."""
    spacing_mm, direction = np.array(image.GetSpacing()), np.array(image.GetDirection()).reshape(3, 3)
    matrix = np.eye(4)
    matrix[:3, :3] = direction * spacing_mm
    matrix[:3, 3] = image.GetOrigin()
    return CtVolume(np.asarray(sitk.GetArrayFromImage(image), np.float32), matrix)


def resampled(ct: CtVolume, voxel_mm: float) -> CtVolume:
    """Interpolate to voxels of at most `voxel_mm` (cubic B-spline), where they are larger; the covered box stays within."""
    spacing_mm = np.linalg.norm(ct.patient_from_voxel[:3, :3], axis=0)  # x, y, z
    factors = np.maximum(1, np.ceil(spacing_mm / voxel_mm - 1e-6)).astype(int)
    if (factors == 1).all():
        return ct
    image = sitk.GetImageFromArray(ct.hu)
    size = [int((n - 1) * factor + 1) for n, factor in zip(image.GetSize(), factors, strict=True)]
    fine = sitk.Resample(
        image,
        size,
        sitk.Transform(),
        sitk.sitkBSpline,
        (0.0, 0.0, 0.0),
        (1.0 / factors).tolist(),
        np.eye(3).ravel().tolist(),
    )
    low, high = float(ct.hu.min()), float(ct.hu.max())  # splines overshoot at metal
    hu = np.clip(np.asarray(sitk.GetArrayFromImage(fine), np.float32), low, high)
    return CtVolume(hu, ct.patient_from_voxel @ np.diag([*(1.0 / factors), 1.0]), ct.kilovolt)


def _check_range(hu: NDArray[np.float32], path: Path) -> None:
    """Stored values without their rescale look like a CT, and would be off by 1000."""
    if not np.isfinite(hu).all():
        raise UnusableCt(f"{path} holds values that are no numbers")
    if hu.min() >= 0 and hu.max() > 1000:
        raise UnusableCt(
            f"{path}: values from {hu.min():g} to {hu.max():g}, expected Hounsfield units, which are negative in air and fat:"
            " the rescale intercept (as a rule -1024) was not applied"
        )


def _read_series(folder: Path) -> CtVolume:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise UnusableCt(f"{folder} holds {len(series)} DICOM series, expected one: give each its own folder")
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])  # sorted by position
    if len(files) < 2:
        raise UnusableCt(f"{folder} holds {len(files)} slice, expected a volume")
    headers = [dcmread(file, stop_before_pixels=True) for file in files]
    for file, header in zip(files, headers, strict=True):
        _check_header(header, Path(file))
    axes, positions_mm = _geometry(headers, folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    reader.SetOutputPixelType(sitk.sitkFloat32)
    hu = np.asarray(sitk.GetArrayFromImage(reader.Execute()), np.float32)
    rows_mm, columns_mm = (float(spacing) for spacing in headers[0].PixelSpacing)
    normal = np.cross(*axes)
    step_mm = (positions_mm[-1] - positions_mm[0]) / (len(files) - 1)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([axes[0] * columns_mm, axes[1] * rows_mm, normal * float(step_mm @ normal)], axis=1)
    matrix[:3, 3] = positions_mm[0]
    voltage = headers[0].get("KVP")
    shift_px = (axes @ step_mm) / (columns_mm, rows_mm)
    return _upright(CtVolume(hu, matrix, float(voltage) if voltage else None), shift_px)


def _check_header(header: Dataset, file: Path) -> None:
    """Source: PS3.3 C.8.2.1, CT Image."""
    if header.get("Modality") != "CT":
        raise UnusableCt(f"{file}: Modality {header.get('Modality')!r}, expected CT")
    if "LOCALIZER" in (header.get("ImageType") or ()):
        raise UnusableCt(f"{file} is a localizer; expected axial slices: give the series its own folder")
    if header.get("RescaleSlope") is None or header.get("RescaleIntercept") is None:
        raise UnusableCt(
            f"{file}: no Rescale Slope and Intercept, so that its values are no Hounsfield units; export the series anew"
        )
    if header.get("RescaleType", "HU") not in (
        "HU",
        "HU_MOD",
        "US",
        "",
    ):  # US: unspecified, as some programs export a CT
        raise UnusableCt(f"{file}: values in {header.RescaleType!r} (Rescale Type), expected HU")
    if any(header.get(word) is None for word in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")):
        raise UnusableCt(f"{file}: slices without position, orientation and pixel spacing cannot be stacked")


def _geometry(headers: Sequence[Dataset], folder: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Directions of rows and columns (2, 3), and the slices' positions (n, 3) in mm.

    A missing slice would squeeze the patient: SimpleITK only warns of it.
    """
    orientations = np.array([[float(v) for v in header.ImageOrientationPatient] for header in headers])
    spacings = np.array([[float(v) for v in header.PixelSpacing] for header in headers])
    if np.ptp(orientations, axis=0).max() > 1e-3 or np.ptp(spacings, axis=0).max() > 1e-3:
        raise UnusableCt(
            f"{folder}: slices of several orientations or pixel spacings, expected one: two series are mixed"
        )
    positions_mm = np.array([[float(v) for v in header.ImagePositionPatient] for header in headers])
    steps_mm = np.diff(positions_mm, axis=0)
    distances_mm = np.linalg.norm(steps_mm, axis=1)
    if np.ptp(distances_mm) > max(0.02 * float(np.median(distances_mm)), 0.02):
        raise UnusableCt(
            f"{folder}: distances between slices range from {distances_mm.min():.2f} to {distances_mm.max():.2f} mm, expected"
            " equal ones: a slice is missing or two series are mixed"
        )
    mean_mm = steps_mm.mean(axis=0)
    if np.abs(steps_mm - mean_mm).max() > max(0.02 * float(np.linalg.norm(mean_mm)), 0.02):
        raise UnusableCt(f"{folder}: the slices do not follow one straight line; expected one table, one gantry angle")
    return orientations[0].reshape(2, 3), positions_mm


def _upright(ct: CtVolume, shift_px: NDArray[np.float64]) -> CtVolume:
    """Undo the shear of a tilted gantry: move each slice within its plane, so that the stack is a box again.

    The gantry leans, the table moves level: each slice's corner lies `shift_px` (columns, rows) further along its own plane than
    the one before. Slices are interpolated linearly in their planes only, and widened by air so that nothing is cut off.
    """
    if np.abs(shift_px).max() * len(ct.hu) < LEAST_SHEAR_PX:
        return ct
    shifts = np.arange(len(ct.hu))[:, None] * shift_px[::-1]  # rows, columns
    low, high = np.floor(shifts.min(axis=0)).astype(int), np.ceil(shifts.max(axis=0)).astype(int)
    size = np.array(ct.hu.shape[1:]) + high - low
    upright = np.full((len(ct.hu), *size), AIR_HU, np.float32)
    for level, image in enumerate(ct.hu):
        upright[level] = ndimage.affine_transform(
            image, np.eye(2), low - shifts[level], tuple(size), order=1, mode="constant", cval=AIR_HU
        )
    matrix = ct.patient_from_voxel.copy()
    matrix[:3, 3] = (ct.patient_from_voxel @ [low[1], low[0], 0, 1])[:3]
    return CtVolume(upright, matrix, ct.kilovolt)


def body_mask(ct: CtVolume) -> NDArray[np.bool_]:
    """The patient without couch and clothes: the largest piece once thin connections are cut; bowel gas is left out."""
    dense = ct.hu > BODY_HU
    spacing_mm = np.linalg.norm(ct.patient_from_voxel[:3, :3], axis=0)[::-1]
    width = np.maximum(1, np.rint(6.0 / spacing_mm)).astype(int)  # thicker than a couch's shell, thinner than a limb
    core = ndimage.minimum_filter(dense, tuple(width), mode="nearest")
    pieces, count = ndimage.label(core)
    if count == 0:
        raise UnusableCt(
            f"no patient in the volume: nothing thicker than 6 mm above {BODY_HU:g} HU; are these CT values?"
        )
    largest = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    return np.asarray(ndimage.maximum_filter(largest, tuple(2 * width - 1), mode="nearest") & dense, np.bool_)


def mass_density_g_cm3(hu: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mass density from CT values, piecewise linear.

    Source: Schneider, Bortfeld, Schlegel 2000, doi:10.1088/0031-9155/45/2/314, equations 17 to 23.
    """
    segments = [hu < ADIPOSE_HU, hu < SOFT_HU, hu < 23.0, hu < BONE_HU]
    lines = [1.031 + 1.031e-3 * hu, 1.018 + 0.893e-3 * hu, np.full_like(hu, 1.03), 1.003 + 1.169e-3 * hu]
    return np.asarray(np.maximum(np.select(segments, lines, 1.017 + 0.592e-3 * hu), 0.0), np.float32)


def mineral_g_cm3(hu: NDArray[np.float32]) -> NDArray[np.float32]:
    """Hydroxyapatite concentration: a line from soft tissue to cortical bone, used from `BONE_HU` on."""
    line = (hu - SOFT_HU) * (CORTICAL_MINERAL_G_CM3 / (CORTICAL_HU - SOFT_HU))
    return np.asarray(np.where(hu >= BONE_HU, line, 0.0), np.float32)


def material_structures(ct: CtVolume, inside: NDArray[np.bool_]) -> tuple[Structure, ...]:
    """Split the patient into "soft", "adipose", "mineral" and "metal", each in g/cm3 on the grid of the CT.

    Outside of metal the four add up to `mass_density_g_cm3`: fat and soft tissue share it in proportion to the CT value, and
    what is not mineral in bone (collagen, water, marrow) counts as soft tissue.

    Args:
        inside: (z, y, x) the patient, see `body_mask`; everything else is left out.
    """
    metal = inside & (ct.hu >= METAL_HU)
    tissue = inside & ~metal
    density = np.where(tissue, mass_density_g_cm3(ct.hu), 0.0)
    mineral = np.where(tissue, mineral_g_cm3(ct.hu), 0.0)
    lean_share = np.clip((ct.hu - ADIPOSE_HU) / (SOFT_HU - ADIPOSE_HU), 0.0, 1.0)
    values = {
        "soft": lean_share * (density - mineral),
        "adipose": (1.0 - lean_share) * density,
        "mineral": mineral,
        "metal": np.where(metal, METAL_G_CM3, 0.0),
    }
    return tuple(
        Structure(name, np.asarray(array, np.float32), "g/cm3", ct.patient_from_voxel) for name, array in values.items()
    )
