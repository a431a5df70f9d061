"""The lean mass of each muscle as a radiograph shows it: areal densities on the overview, and grams.

A sum over the overview is a mass as projected: what lies nearer to the tube than the heads counts more, by the square of its
magnification, as it covers more pixels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomnode.inference.frame import LOCATOR_SIZE, LOCATOR_SPACING_MM
from training.anatomy.femur import landmarks
from training.anatomy.muscles import CHANNELS, NAMES, Muscles, make_muscles
from training.anatomy.phantom import Phantom, patient_from_femur
from training.anatomy.population import Subject
from training.targets import field_beam, field_in, overview_tissue

SHAPE = (len(CHANNELS), LOCATOR_SIZE, LOCATOR_SIZE)
PIXEL_CM2 = (LOCATOR_SPACING_MM / 10) ** 2
"""Of the overview, in the plane of the heads."""


@dataclass(frozen=True)
class MuscleTarget:
    """What is stored of one person's muscles."""

    maps: NDArray[np.float16]
    """(CHANNELS, LOCATOR_SIZE, LOCATOR_SIZE) lean mass, g/cm2, on the overview's pixels."""
    figures: dict[str, Any]
    """"index"; "field_px": first and last row, first and last column of the exposed field (pixel centres at integers); "muscles":
    name to "lean_g" (in the body as modelled), "projected_g" (on the overview) and "field_g" (in the field)."""


def make_muscle_target(subject: Subject) -> MuscleTarget:
    """Divide a person's soft tissue and project the muscles."""
    muscles = make_muscles(subject)
    phantom = posed(subject)
    maps = project_muscles(phantom, muscles)
    field = field_in(phantom, field_beam(phantom, LOCATOR_SPACING_MM, SHAPE[1:]))
    projected, seen = (masses_g(maps * mask) for mask in (np.ones(SHAPE[1:], bool), field_mask(field)))
    figures = {
        name: {"lean_g": float(whole), "projected_g": float(all_), "field_g": float(part)}
        for name, whole, all_, part in zip(NAMES, muscles.mass_g(), projected, seen, strict=True)
    }
    return MuscleTarget(maps.astype(np.float16), {"index": subject.index, "field_px": list(field), "muscles": figures})


def posed(subject: Subject) -> Phantom:
    """A phantom without its voxels: all that a beam asks for."""
    motions = {hip.side: patient_from_femur(subject, hip) for hip in subject.hips}
    points = {hip.side: landmarks(hip.femur).moved(motions[hip.side]) for hip in subject.hips}
    return Phantom(subject, (), points, motions)


def project_muscles(phantom: Phantom, muscles: Muscles) -> NDArray[np.float32]:
    """(CHANNELS, LOCATOR_SIZE, LOCATOR_SIZE) lean mass of each muscle, g/cm2."""
    parts = [muscles.part(channel) for channel in range(len(CHANNELS))]
    return overview_tissue(phantom, parts, muscles.patient_from_voxel)


def field_mask(field_px: tuple[float, float, float, float]) -> NDArray[np.bool_]:
    """(LOCATOR_SIZE, LOCATOR_SIZE) pixels whose centres lie in a field."""
    first_row, last_row, first_column, last_column = field_px
    place = np.arange(LOCATOR_SIZE)
    rows, columns = (place >= first_row) & (place <= last_row), (place >= first_column) & (place <= last_column)
    return np.asarray(rows[:, None] & columns)


def masses_g(maps: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(...) masses of areal densities (..., rows, columns) of the overview."""
    return np.asarray(maps.sum((-2, -1), dtype=np.float64) * PIXEL_CM2)
