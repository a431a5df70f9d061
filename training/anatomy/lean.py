"""Lean mass of muscles in a CT: what is muscle and what is fat within an outline, by Hounsfield units."""

from dataclasses import dataclass

import numpy as np

from training.anatomy.body import MUSCLE_G_CM3
from training.anatomy.ct import CtVolume
from training.anatomy.labels import LabelMap
from training.anatomy.muscles import NAMES

ADIPOSE_HU, MUSCLE_HU = -101.0, 43.0
"""CT values of the two tissues alone at 120 kV without contrast medium. Source: adipose tissue 3 and muscle of
`training.calibration.tissues` at its effective energy, 68 keV."""
LOWEST_HU, HIGHEST_HU = -190.0, 150.0
"""Values beyond are neither tissue: what is taken for fat and for muscle in CT. Source: Mitsiopoulos 1998,
doi:10.1152/jappl.1998.85.1.115."""


@dataclass(frozen=True)
class MuscleMass:
    """One muscle of one side."""

    volume_cm3: float
    lean_g: float
    is_cut: bool
    """It reaches a face of the CT: the rest of it was not scanned."""


def muscle_masses(ct: CtVolume, labels: LabelMap) -> dict[str, MuscleMass]:
    """Weigh the muscles that a label map on the CT's voxels holds, by their names (`training.anatomy.muscles.NAMES`).

    A muscle is taken for a mixture of muscle and fat, whose volumes add: its lean share is linear in its mean CT value between the
    two. The mean, so that noise adds and takes nothing; values beyond the limits of both tissues count as the limit.
    """
    voxel_cm3 = abs(float(np.linalg.det(ct.patient_from_voxel[:3, :3]))) / 1000
    masses = {}
    for value, name in labels.names.items():
        inside = labels.values == value
        if name in NAMES and inside.any():
            volume_cm3 = float(inside.sum()) * voxel_cm3
            mean_hu = float(ct.hu[inside].clip(LOWEST_HU, HIGHEST_HU).mean(dtype=np.float64))
            lean_share = min(max((mean_hu - ADIPOSE_HU) / (MUSCLE_HU - ADIPOSE_HU), 0.0), 1.0)
            is_cut = any(bool(face.any()) for axis in range(3) for face in np.moveaxis(inside, axis, 0)[[0, -1]])
            masses[name] = MuscleMass(volume_cm3, volume_cm3 * lean_share * MUSCLE_G_CM3, is_cut)
    return masses
