"""Computed tomography: read it, and split it into the materials of the radiograph simulation.

The split is uncalibrated: good enough to draw a radiograph, not to measure a density.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from scipy import ndimage

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


def read_ct(path: Path) -> CtVolume:
    """Read a NIfTI file, or a folder that holds one DICOM CT series.

    Raises:
        ValueError: no such file, no or several series, or slices that are not evenly spaced.
    """
    if path.is_dir():
        image = _read_series(path)
    elif path.is_file():
        image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    else:
        raise ValueError(f"{path} does not exist; expected a NIfTI file or a folder with one DICOM CT series")
    if image.GetDimension() != 3:
        raise ValueError(f"{path} has {image.GetDimension()} dimensions, expected a volume")
    return ct_from_image(image)


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
    return CtVolume(hu, ct.patient_from_voxel @ np.diag([*(1.0 / factors), 1.0]))


def _read_series(folder: Path) -> Any:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise ValueError(f"{folder} holds {len(series)} DICOM series, expected one: give each its own folder")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0]))
    reader.SetOutputPixelType(sitk.sitkFloat32)
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    _check_even_spacing(reader, image.GetSize()[2], folder)
    return image


def _check_even_spacing(reader: Any, slices: int, folder: Path) -> None:
    """A missing slice would squeeze the patient: SimpleITK only warns of it."""
    if slices < 2:
        raise ValueError(f"{folder} holds {slices} slice, expected a volume")
    if not all(reader.HasMetaDataKey(index, "0020|0032") for index in range(slices)):
        raise ValueError(f"{folder}: slices without Image Position (Patient), their order cannot be known")
    texts = [reader.GetMetaData(index, "0020|0032") for index in range(slices)]
    positions_mm = np.array([[float(number) for number in text.split("\\")] for text in texts])
    steps_mm = np.linalg.norm(np.diff(positions_mm, axis=0), axis=1)
    if np.ptp(steps_mm) > max(0.02 * float(np.median(steps_mm)), 0.02):
        raise ValueError(
            f"{folder}: distances between slices range from {steps_mm.min():.2f} to {steps_mm.max():.2f} mm, expected"
            " equal ones: a slice is missing or two series are mixed"
        )


def body_mask(ct: CtVolume) -> NDArray[np.bool_]:
    """The patient without couch and clothes: the largest piece once thin connections are cut; bowel gas is left out."""
    dense = ct.hu > BODY_HU
    spacing_mm = np.linalg.norm(ct.patient_from_voxel[:3, :3], axis=0)[::-1]
    width = np.maximum(1, np.rint(6.0 / spacing_mm)).astype(int)  # thicker than a couch's shell, thinner than a limb
    core = ndimage.minimum_filter(dense, tuple(width), mode="nearest")
    pieces, count = ndimage.label(core)
    if count == 0:
        raise ValueError(
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
