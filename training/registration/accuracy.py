"""How far a pose is from a known one, and what that does to a density."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from training.projection.geometry import ConeBeam, detector_axes_mm, detector_depths, detector_from_patient
from training.projection.projector import object_plane_pixel_area_cm2, project

AREAL_THRESHOLD_G_CM2 = 0.16
"""Pixels above it are bone, in the areal density of a projected femur. Source: public code of Gu et al. 2023,
doi:10.1016/j.media.2023.102970."""


@dataclass(frozen=True)
class PoseError:
    """A found pose against the true one, over points of the body."""

    projection_mm: float
    """Mean distance of the points' projections, in the plane parallel to the detector through each true point."""
    mtre_mm: float
    """Mean distance of the points (target registration error)."""
    rotation_deg: float
    """Angle of the turn between both poses."""
    in_plane_mm: float
    """Shift of the points' centre across the central ray through it."""
    depth_mm: float
    """Shift of the points' centre along that ray; positive is towards the detector."""


def pose_error(
    found: NDArray[np.float64], true: NDArray[np.float64], points_mm: NDArray[np.float64], beam: ConeBeam
) -> PoseError:
    """Compare two motions.

    Args:
        found: 4 x 4, patient from CT.
        true: 4 x 4, patient from CT.
        points_mm: (n, 3) in the frame of the CT.
    """
    at_found, at_true = _moved(points_mm, found), _moved(points_mm, true)
    centre = at_true.mean(axis=0)
    shift = at_found.mean(axis=0) - centre
    ray = (centre - beam.source_mm) / np.linalg.norm(centre - beam.source_mm)
    depth = float(shift @ ray)
    turn = Rotation.from_matrix(found[:3, :3] @ true[:3, :3].T)
    return PoseError(
        projection_mm=projection_distance_mm(found, true, points_mm, beam),
        mtre_mm=float(np.linalg.norm(at_found - at_true, axis=1).mean()),
        rotation_deg=float(np.degrees(turn.magnitude())),
        in_plane_mm=float(np.linalg.norm(shift - depth * ray)),
        depth_mm=depth,
    )


def projection_distance_mm(
    found: NDArray[np.float64], true: NDArray[np.float64], points_mm: NDArray[np.float64], beam: ConeBeam
) -> float:
    """Mean distance of the points' projections, scaled back from the detector to each true point's depth."""
    at_true = _moved(points_mm, true)
    pixels = detector_from_patient(_moved(points_mm, found), beam) - detector_from_patient(at_true, beam)
    on_detector_mm = np.linalg.norm(pixels @ np.stack(detector_axes_mm(beam)), axis=1)
    return float((on_detector_mm * detector_depths(at_true, beam)).mean())


@dataclass(frozen=True)
class ArealDensity:
    """What a densitometer would read from the projection of one bone."""

    bmc_g: float
    area_cm2: float

    @property
    def areal_bmd_g_cm2(self) -> float:
        """Mass over area; NaN where the bone is not seen at all."""
        return self.bmc_g / self.area_cm2 if self.area_cm2 > 0 else math.nan


def areal_density(
    density_g_cm3: NDArray[np.float32],
    patient_from_voxel: NDArray[np.float64],
    patient_from_ct: NDArray[np.float64],
    centre_mm: NDArray[np.float64],
    beam: ConeBeam,
) -> ArealDensity:
    """Project a bone (z, y, x) in a pose, and read mass and area in the plane through `centre_mm` (3,), a point of the bone.

    The plane is where the pose puts it: an error of depth changes the scale, as it would in the pairs that are made with it.
    """
    image = project(density_g_cm3, patient_from_ct @ patient_from_voxel, beam, parallel=False)
    pixel_cm2 = object_plane_pixel_area_cm2(beam, _moved(centre_mm[None], patient_from_ct)[0])
    seen = image > AREAL_THRESHOLD_G_CM2
    return ArealDensity(float(image[seen].sum(dtype=np.float64)) * pixel_cm2, float(seen.sum()) * pixel_cm2)


def _moved(points_mm: NDArray[np.float64], motion: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(points_mm @ motion[:3, :3].T + motion[:3, 3], np.float64)
