"""Regions of the projected femur, drawn from landmarks as a densitometer would; the landmarks may come from anywhere.

Source: Uemura et al. and facts of the densitometers: the head is cut off along the head-neck junction, the neck is the 1 cm strip
beyond it, the total hip ends 2 cm below the lesser trochanter across the shaft, the trochanter lies above the neck's axis.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicomnode.inference.frame import Label
from training.anatomy.femur import FemurLandmarks
from training.projection.geometry import Beam, detector_from_patient

MINIMUM_PATH_CM = 0.15
"""A pixel belongs to the bone where the ray runs through at least this much of it."""
NECK_STRIP_MM = 10.0
BELOW_LESSER_TROCHANTER_MM = 20.0
NECK_HALF_HEIGHT = 0.95
"""Of the head's radius: the neck is lower than the head, the trochanter lies beyond."""


@dataclass(frozen=True)
class ProjectedLandmarks:
    """Points as (row, column) in pixels of one image; spacing_mm is the pixel's size in the head's object plane."""

    head_centre: NDArray[np.float64]
    head_radius_px: float
    head_neck_junction: NDArray[np.float64]
    neck_base: NDArray[np.float64]
    greater_trochanter_tip: NDArray[np.float64]
    lesser_trochanter_tip: NDArray[np.float64]
    shaft_proximal: NDArray[np.float64]
    shaft_distal: NDArray[np.float64]
    spacing_mm: float


def project_landmarks(landmarks: FemurLandmarks, beam: Beam, spacing_mm: float) -> ProjectedLandmarks:
    """Project landmarks in the patient frame onto a detector whose pixels measure `spacing_mm` in the head's plane."""
    names = (
        "head_centre",
        "head_neck_junction",
        "neck_base",
        "greater_trochanter_tip",
        "lesser_trochanter_tip",
        "shaft_proximal",
        "shaft_distal",
    )
    pixels = detector_from_patient(np.array([getattr(landmarks, name) for name in names]), beam)
    points = dict(zip(names, pixels, strict=True))
    return ProjectedLandmarks(head_radius_px=landmarks.head_radius_mm / spacing_mm, spacing_mm=spacing_mm, **points)


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


def label_regions(path_cm: NDArray[np.float32], points: ProjectedLandmarks) -> NDArray[np.uint8]:
    """Label the pixels of a projected femur.

    Args:
        path_cm: (rows, columns) path length through the femur.
        points: landmarks in pixels of `path_cm`; mirrored or turned images serve as well.

    Returns:
        (rows, columns) `inference.frame.Label`.
    """
    rows, columns = np.indices(path_cm.shape, dtype=np.float32)
    strip = NECK_STRIP_MM / points.spacing_mm
    neck = _unit(points.neck_base - points.head_centre)
    shaft = _unit(points.shaft_distal - points.shaft_proximal)
    # Across the neck, positive on the side away from the shaft's lower end: towards the greater trochanter.
    across = np.array([-neck[1], neck[0]])
    across = -across if float(across @ shaft) > 0 else across

    def along(direction: NDArray[np.float64], start: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.asarray((rows - start[0]) * direction[0] + (columns - start[1]) * direction[1], dtype=np.float32)

    beyond_junction = along(neck, points.head_neck_junction)
    above_axis = along(across, points.head_centre)
    below_lesser = along(shaft, points.lesser_trochanter_tip) - BELOW_LESSER_TROCHANTER_MM / points.spacing_mm
    to_head = np.hypot(rows - points.head_centre[0], columns - points.head_centre[1])

    labels = np.full(path_cm.shape, Label.INTERTROCHANTER, np.uint8)
    labels[above_axis > 0] = Label.TROCHANTER
    labels[(beyond_junction <= strip) & (np.abs(above_axis) < NECK_HALF_HEIGHT * points.head_radius_px)] = Label.NECK
    labels[(beyond_junction < 0) & (to_head < 1.15 * points.head_radius_px)] = Label.HEAD
    labels[below_lesser > 0] = Label.SHAFT
    labels[path_cm < MINIMUM_PATH_CM] = Label.BACKGROUND
    return labels
