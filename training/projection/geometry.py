"""Where source and detector are, in the patient frame (LPS, mm; see `training.anatomy.volume`)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ConeBeam:
    """A point source and a flat detector.

    The centre of detector pixel (row r, column c) lies at
    `detector_origin_mm + c * spacing[1] * column_direction + r * spacing[0] * row_direction`.
    """

    source_mm: NDArray[np.float64]
    """(3,) focal spot."""
    detector_origin_mm: NDArray[np.float64]
    """(3,) centre of pixel (0, 0)."""
    column_direction: NDArray[np.float64]
    """(3,) unit vector along increasing column index."""
    row_direction: NDArray[np.float64]
    """(3,) unit vector along increasing row index."""
    detector_spacing_mm: tuple[float, float]
    """(row, column) distances between pixel centres."""
    shape: tuple[int, int]
    """(rows, columns)."""


def anteroposterior(
    isocentre_mm: NDArray[np.float64],
    sdd_mm: float,
    spd_mm: float,
    object_spacing_mm: float,
    shape: tuple[int, int],
    centre_px: tuple[float, float] | None = None,
) -> ConeBeam:
    """A supine AP projection: tube in front of the patient (-y), detector behind (+y), displayed as radiologists hang it.

    The patient's right appears at the left of the image, head up. The central ray passes through `isocentre_mm`, which lies
    `spd_mm` from the source and is drawn at `centre_px` (row, column; the image's centre by default). Pixels are squares
    that measure `object_spacing_mm` in the plane of the isocentre, hence `object_spacing_mm * sdd_mm / spd_mm` on the
    detector.
    """
    magnification = sdd_mm / spd_mm
    spacing = object_spacing_mm * magnification
    rows, columns = shape
    row_c, column_c = centre_px if centre_px is not None else ((rows - 1) / 2, (columns - 1) / 2)
    column_direction = np.array([1.0, 0.0, 0.0])  # +x is the patient's left, at the right of the image
    row_direction = np.array([0.0, 0.0, -1.0])
    source = isocentre_mm + np.array([0.0, -spd_mm, 0.0])
    principal = isocentre_mm + np.array([0.0, sdd_mm - spd_mm, 0.0])
    origin = principal - column_c * spacing * column_direction - row_c * spacing * row_direction
    return ConeBeam(source, origin, column_direction, row_direction, (spacing, spacing), shape)
