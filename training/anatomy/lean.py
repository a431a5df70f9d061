"""Lean mass of muscles in a CT: what is muscle and what is fat within an outline, by Hounsfield units."""

from dataclasses import dataclass

import numpy as np

from training.anatomy.body import MUSCLE_G_CM3
from training.anatomy.ct import CtVolume
from training.anatomy.labels import LabelMap
from training.anatomy.muscles import NAMES

ADIPOSE_HU, MUSCLE_HU = -100.0, 50.0
"""CT values of the two tissues alone. Source: ICRU-44 compositions (`training.projection.attenuation`) at 60 to 75 keV, rounded."""


@dataclass(frozen=True)
class MuscleMass:
    """One muscle of one side."""

    volume_cm3: float
    lean_g: float
    is_cut: bool
    """It reaches a face of the CT: the rest of it was not scanned."""


def muscle_masses(ct: CtVolume, labels: LabelMap) -> dict[str, MuscleMass]:
    """Weigh the muscles that a label map on the CT's voxels holds, by their names (`training.anatomy.muscles.NAMES`).

    A voxel is taken for a mixture of muscle and fat, whose volumes add: its lean share is linear in Hounsfield units between the
    two and ends there. Noise that passes these ends is cut, which takes a little off plain muscle.
    """
    voxel_cm3 = abs(float(np.linalg.det(ct.patient_from_voxel[:3, :3]))) / 1000
    masses = {}
    for value, name in labels.names.items():
        inside = labels.values == value
        if name in NAMES and inside.any():
            lean_share = np.clip((ct.hu[inside] - ADIPOSE_HU) / (MUSCLE_HU - ADIPOSE_HU), 0, 1)
            lean_g = float(lean_share.sum(dtype=np.float64)) * voxel_cm3 * MUSCLE_G_CM3
            is_cut = any(bool(face.any()) for axis in range(3) for face in np.moveaxis(inside, axis, 0)[[0, -1]])
            masses[name] = MuscleMass(float(inside.sum()) * voxel_cm3, lean_g, is_cut)
    return masses
