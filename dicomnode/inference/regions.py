"""Regions of the proximal femur and the figures read in them: density is mass over area, as on a densitometer."""

from dataclasses import dataclass

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.domain.measurement import Region
from dicomnode.inference.channels import LABELS_OF_REGION
from dicomnode.inference.frame import SPACING_MM

PIXEL_AREA_CM2 = (SPACING_MM / 10.0) ** 2
_MOST_CONTOUR_POINTS = 200


@dataclass(frozen=True)
class Figures:
    """What the maps say of one region, in the pose of the radiograph."""

    areal_bmd_g_cm2: float
    bmc_g: float
    area_cm2: float
    volumetric_bmd_mg_cm3: float


def region_mask(labels: NDArray[np.uint8], region: Region) -> NDArray[np.bool_]:
    """Mask of a region: its labels, holes filled, only the largest connected part."""
    mask = ndimage.binary_fill_holes(np.isin(labels, LABELS_OF_REGION[region]))
    parts, count = ndimage.label(mask)
    if count <= 1:
        return np.asarray(mask, bool)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(parts == sizes.argmax(), bool)


def figures(
    mask: NDArray[np.bool_],
    density_g_cm2: NDArray[np.float32],
    path_cm: NDArray[np.float32],
    pixel_area_cm2: float = PIXEL_AREA_CM2,
) -> Figures | None:
    """Read a region: sum of areal density times pixel area is mass, mass over area is areal BMD, mass over volume is vBMD.

    Returns None for an empty region.
    """
    count = int(mask.sum())
    if count == 0:
        return None
    mass_per_pixel = float(density_g_cm2[mask].sum(dtype=np.float64))
    path = float(path_cm[mask].sum(dtype=np.float64))
    return Figures(
        areal_bmd_g_cm2=mass_per_pixel / count,
        bmc_g=mass_per_pixel * pixel_area_cm2,
        area_cm2=count * pixel_area_cm2,
        volumetric_bmd_mg_cm3=1000.0 * mass_per_pixel / path if path > 0 else 0.0,
    )


def contour(mask: NDArray[np.bool_], image_from_frame: NDArray[np.float64]) -> NDArray[np.float32] | None:
    """Outline of a mask on the radiograph, or None for an empty mask.

    Returns:
        (n, 2) closed polygon, (column, row), pixel centres at integers + 0.5 (PS3.3 C.18.6.1.1), at most 200 points.
    """
    if not mask.any():
        return None
    smooth = ndimage.gaussian_filter(np.pad(mask, 1).astype(np.float64), 1.0)
    lines = contour_generator(z=smooth).lines(0.5)
    if not lines:
        return None
    line = max((np.asarray(one, float) for one in lines), key=len)
    line = line[:-1][:: max(1, int(np.ceil((len(line) - 1) / (_MOST_CONTOUR_POINTS - 1))))]
    closed = np.vstack([line, line[:1]]) - 0.5  # undoes the padding by one pixel, then takes centres to + 0.5
    homogeneous = np.column_stack([closed, np.ones(len(closed))])
    return np.asarray((homogeneous @ image_from_frame.T)[:, :2], np.float32)
