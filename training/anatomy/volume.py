"""Volumes of the same kind, whatever they came from: phantom, CT or atlas.

Frame "patient": DICOM's patient coordinates (LPS) in mm: +x to the patient's left, +y posterior, +z superior
(PS3.3 C.7.6.2.1.1). Arrays are (z, y, x).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Structure:
    """One structure on its own voxel grid.

    Each structure may have its own grid: fine for the femur, coarse for soft tissue.
    """

    name: str
    values: NDArray[np.float32]
    """(z, y, x) in `unit`, 0 outside the structure."""
    unit: str
    """"g/cm3" (mass concentration), "1" (volume fraction, whose projection is a path length)."""
    patient_from_voxel: NDArray[np.float64]
    """4 x 4: homogeneous voxel index (x, y, z) of a voxel's *centre* to patient mm."""
