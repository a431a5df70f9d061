"""Hip joints: how far a femur may turn in its socket, and what a turn is called."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dicomnode.domain.radiograph import Side

LIMITS_DEG = (30.0, 20.0, 30.0)
"""How far a femur is looked for from where it was in the CT, about the patient's x, y and z axis, either way.

Assumption: both examinations are made supine; hips bend further, but not on the table of an AP radiograph.
"""
MIRROR = np.diag([-1.0, 1.0, 1.0])


@dataclass(frozen=True)
class JointAngles:
    """How a hip was turned between CT and radiograph; 0 where it kept its position.

    Angles are those of `training.anatomy.population.Pose`: about the pelvis's axes, which are taken for those of the CT's
    patient frame, first internal rotation, then abduction, then flexion.
    """

    flexion_deg: float
    abduction_deg: float
    internal_rotation_deg: float


def joint_angles(turn: NDArray[np.float64], side: Side) -> JointAngles:
    """Name the turn (3 x 3) of a femur against the pelvis."""
    as_left = turn if side is Side.LEFT else MIRROR @ turn @ MIRROR
    bend, spread, spin = Rotation.from_matrix(as_left).as_euler("XYZ", degrees=True)
    return JointAngles(flexion_deg=-float(bend), abduction_deg=-float(spread), internal_rotation_deg=-float(spin))


def turn_of(angles: JointAngles, side: Side) -> NDArray[np.float64]:
    """3 x 3: the turn that `joint_angles` names so."""
    degrees = [-angles.flexion_deg, -angles.abduction_deg, -angles.internal_rotation_deg]
    as_left = Rotation.from_euler("XYZ", degrees, degrees=True).as_matrix()
    return np.asarray(as_left if side is Side.LEFT else MIRROR @ as_left @ MIRROR, np.float64)
