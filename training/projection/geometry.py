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


@dataclass(frozen=True)
class ParallelBeam:
    """Parallel rays onto a flat detector: a source at infinity, where mass and area need no magnification."""

    direction: NDArray[np.float64]
    """(3,) unit vector along which the photons travel."""
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


Beam = ConeBeam | ParallelBeam


def detector_axes_mm(beam: Beam) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Vectors in patient mm from one pixel centre to the next: one row down, one column to the right."""
    row_mm, column_mm = beam.detector_spacing_mm
    return row_mm * np.asarray(beam.row_direction), column_mm * np.asarray(beam.column_direction)


def rays_mm(beam: Beam) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rays of the pixels as `starts @ (row, column, 1) + t * (directions @ (row, column, 1))` in patient mm.

    Under a cone beam t runs from 0 at the source to 1 at the detector; under a parallel one t is the distance in mm behind
    the detector, and has no bounds.

    Returns:
        starts and directions, each 3 x 3.
    """
    row_axis, column_axis = detector_axes_mm(beam)
    nothing = np.zeros(3)
    if isinstance(beam, ParallelBeam):
        return (
            np.stack([row_axis, column_axis, beam.detector_origin_mm], axis=1),
            np.stack([nothing, nothing, np.asarray(beam.direction)], axis=1),
        )
    return (
        np.stack([nothing, nothing, beam.source_mm], axis=1),
        np.stack([row_axis, column_axis, beam.detector_origin_mm - beam.source_mm], axis=1),
    )


def detector_depths(points_mm: NDArray[np.float64], beam: ConeBeam) -> NDArray[np.float64]:
    """(...) distances of points (..., 3) from the source, along the detector's normal: 0 at the source, 1 at the detector."""
    normal = np.cross(*detector_axes_mm(beam))
    depths = (points_mm - beam.source_mm) @ normal / ((beam.detector_origin_mm - beam.source_mm) @ normal)
    return np.asarray(depths, np.float64)


def detector_from_patient(points_mm: NDArray[np.float64], beam: Beam) -> NDArray[np.float64]:
    """Project points onto the detector.

    Args:
        points_mm: (n, 3) in the patient frame.

    Returns:
        (n, 2) (row, column), pixel centres at integers; NaN for a point level with or behind the source of a cone beam.
    """
    row_axis, column_axis = detector_axes_mm(beam)
    if isinstance(beam, ParallelBeam):
        basis = np.stack([row_axis, column_axis, np.asarray(beam.direction)], axis=1)
        return np.asarray(np.linalg.solve(basis, (points_mm - beam.detector_origin_mm).T).T[:, :2], np.float64)
    basis = np.stack([row_axis, column_axis, beam.detector_origin_mm - beam.source_mm], axis=1)
    row, column, depth = np.linalg.solve(basis, (points_mm - beam.source_mm).T)
    depth = np.where(depth > 1e-9, depth, np.nan)
    return np.asarray(np.stack([row / depth, column / depth], axis=1), np.float64)


def anteroposterior(
    isocentre_mm: NDArray[np.float64],
    sdd_mm: float,
    spd_mm: float,
    object_spacing_mm: float,
    shape: tuple[int, int],
    centre_px: tuple[float, float] | None = None,
) -> ConeBeam:
    """A supine AP projection: tube in front of the patient (-y), detector behind (+y), hung as radiologists do.

    The patient's right appears at the left of the image, head up. The central ray passes through `isocentre_mm`, which
    lies `spd_mm` from the source and is drawn at `centre_px` (row, column; the image's centre by default). Pixels are
    squares that measure `object_spacing_mm` in the plane of the isocentre, hence `object_spacing_mm * sdd_mm / spd_mm`
    on the detector.
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
