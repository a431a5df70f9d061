"""Which voxel of a phantom's soft tissue belongs to which muscle of the hip: a partition, which changes no voxel.

A muscle is a skeleton of rounded plates and struts between its origin and its insertion. Origins are given in the frame
of the pelvis and grow with it, insertions in the frame of the femur and move with it, so that muscles follow the pose. A voxel
belongs to the muscle whose skeleton is nearest, if that is near enough; muscles so share their borders and never overlap. Fat and
bone belong to none, nor does what is left: viscera, small rotators, vessels, skin.

Frames: `pelvis` and `femur` of the modules of these names, sides folded onto the left one. Lines of pull after the usual
attachments; their sizes are own placements, checked by eye in slices, against the centres of the muscles of the Visible Human
Female (Andreassen 2023, doi:10.1038/s41597-022-01905-2) and against volumes by MRI (Handsfield 2014,
doi:10.1016/j.jbiomech.2013.11.037). The phantoms have flat buttocks: their gluteus maximus has about six tenths of a real volume.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dicomnode.domain.radiograph import Side
from training.anatomy.body import MUSCLE_G_CM3
from training.anatomy.femur import femur_volumes, landmarks
from training.anatomy.implicit import local_from_voxel, plate
from training.anatomy.pelvis import enclosing_balls, pelvis_volumes, scaled_points
from training.anatomy.phantom import THIGH_MM, body_structures, patient_from_femur, patient_from_pelvis, thigh_capsule
from training.anatomy.population import Hip, Subject, pelvis_rotation

FEMUR_VOXEL_MM = 2.0
PELVIS_VOXEL_MM = 2.6
"""Bones are built this coarsely here, as they only displace soft tissue on its own coarse grid."""
LEAST_LEAN = 0.3
"""Share of lean tissue below which a voxel counts as fat: under the skin and in wide septa."""
MOST_BONE = 0.5


class Muscle(IntEnum):
    """Muscles and groups that are told apart; the psoas and the iliacus are one."""

    GLUTEUS_MAXIMUS = 0
    GLUTEUS_MEDIUS = 1
    GLUTEUS_MINIMUS = 2
    ILIOPSOAS = 3
    ADDUCTORS = 4
    """Longus, brevis, magnus, pectineus and gracilis."""
    QUADRICEPS = 5
    """With the tensor fasciae latae and the sartorius, which share its fascia in front."""
    HAMSTRINGS = 6


SIDES = (Side.RIGHT, Side.LEFT)
CHANNELS = tuple((side, muscle) for side in SIDES for muscle in Muscle)
"""Order of labels (from 1), projections and the network's answers."""
NAMES = tuple(f"{'right' if side is Side.RIGHT else 'left'}_{muscle.name.lower()}" for side, muscle in CHANNELS)

_Point = tuple[float, float, float, float]

# (lateral, posterior, superior, radius) in mm beside a pelvis whose head lies at (86, 0, 0).
_PELVIC: dict[str, _Point] = {
    "maximus_crest": (62, 82, 112, 9.0),
    "maximus_sacrum": (34, 84, 52, 10.0),
    "maximus_coccyx": (16, 76, 4, 9.0),
    "maximus_bulk": (98, 66, 10, 20.0),
    "maximus_low": (70, 64, -52, 17.0),
    "maximus_cover": (120, 54, 40, 9.0),
    "medius_front": (131, -38, 106, 8.0),
    "medius_top": (126, 10, 134, 9.0),
    "medius_back": (88, 58, 118, 8.0),
    "medius_bulk_front": (137, -22, 62, 16.0),
    "medius_bulk_back": (124, 36, 66, 17.0),
    "minimus_front": (118, -34, 78, 7.0),
    "minimus_top": (113, 6, 92, 6.0),
    "minimus_back": (100, 32, 58, 7.0),
    "psoas_top": (34, 26, 235, 11.0),
    "psoas_lumbar": (44, 20, 170, 18.0),
    "psoas_brim": (56, 0, 104, 21.0),
    "psoas_ramus": (76, -36, 34, 17.0),
    "iliacus_front": (112, -50, 84, 7.0),
    "iliacus_top": (106, 2, 124, 7.0),
    "iliacus_back": (72, 34, 108, 7.0),
    "iliacus_fossa": (93, -14, 78, 13.0),
    "iliopsoas_head": (88, -42, 2, 16.0),
    "adductor_pubis": (22, -54, -34, 9.0),
    "adductor_ramus": (32, -28, -66, 10.0),
    "adductor_tuber": (54, 8, -74, 12.0),
    "rectus": (100, -50, 34, 8.0),
    "tensor": (128, -58, 72, 8.0),
    "hamstring_tuber": (70, 40, -64, 12.0),
}
# (lateral and posterior of the shaft's axis, above the lesser trochanter, radius) in mm beside a femur whose head has a
# radius of 23 mm; they grow with the head.
_FEMORAL: dict[str, _Point] = {
    "gluteal_tuberosity": (12, 26, -28, 14.0),
    "maximus_tract": (26, 34, 32, 12.0),
    "medius_facet": (20, 4, 44, 9.0),
    "minimus_facet": (10, -16, 42, 8.0),
    "lesser": (-22, 8, 0, 8.0),
    "aspera_high": (-8, 22, -26, 9.0),
    "aspera_low": (-10, 20, -110, 12.0),
    "lateralis_high": (20, -6, 14, 10.0),
    "intermedius_high": (0, -20, -16, 12.0),
    "intermedius_low": (4, -8, -250, 22.0),
    "tensor_low": (14, -32, -10, 10.0),
}
# (lateral and posterior of the thigh's axis, radius) as shares of the radius of the thigh without its fat, and how far below
# the head, mm.
_THIGH: dict[str, _Point] = {
    "longus_middle": (-0.35, -0.25, 110, 0.22),
    "longus_low": (0.1, 0.0, 180, 0.15),
    "magnus_middle": (-0.15, 0.2, 115, 0.30),
    "magnus_low": (-0.3, 0.1, 300, 0.2),
    "gracilis_middle": (-0.8, 0.1, 130, 0.16),
    "gracilis_low": (-0.75, 0.2, 300, 0.14),
    "lateralis_middle": (0.78, -0.15, 130, 0.2),
    "lateralis_low": (0.65, -0.2, 300, 0.3),
    "medialis_high": (0.15, -0.35, 130, 0.12),
    "medialis_low": (-0.35, -0.5, 300, 0.32),
    "rectus_middle": (0.2, -0.7, 120, 0.2),
    "rectus_low": (0.1, -0.7, 300, 0.2),
    "biceps_middle": (0.35, 0.6, 140, 0.25),
    "biceps_low": (0.35, 0.6, 300, 0.3),
    "semis_middle": (-0.15, 0.68, 140, 0.26),
    "semis_low": (-0.3, 0.6, 300, 0.3),
}
_PLATES: dict[Muscle, tuple[tuple[str, str, str], ...]] = {
    Muscle.GLUTEUS_MAXIMUS: (
        ("maximus_crest", "maximus_sacrum", "maximus_bulk"),
        ("maximus_sacrum", "maximus_coccyx", "maximus_bulk"),
        ("maximus_coccyx", "maximus_low", "maximus_bulk"),
        ("maximus_crest", "maximus_cover", "maximus_bulk"),
        ("maximus_cover", "maximus_tract", "maximus_bulk"),
        ("maximus_bulk", "maximus_tract", "gluteal_tuberosity"),
        ("maximus_bulk", "maximus_low", "gluteal_tuberosity"),
    ),
    Muscle.GLUTEUS_MEDIUS: (
        ("medius_front", "medius_top", "medius_bulk_front"),
        ("medius_top", "medius_bulk_front", "medius_bulk_back"),
        ("medius_top", "medius_back", "medius_bulk_back"),
        ("medius_bulk_front", "medius_bulk_back", "medius_facet"),
    ),
    Muscle.GLUTEUS_MINIMUS: (
        ("minimus_front", "minimus_top", "minimus_facet"),
        ("minimus_top", "minimus_back", "minimus_facet"),
    ),
    Muscle.ILIOPSOAS: (
        ("psoas_top", "psoas_lumbar", "psoas_lumbar"),
        ("psoas_lumbar", "psoas_brim", "psoas_brim"),
        ("psoas_brim", "psoas_ramus", "psoas_ramus"),
        ("psoas_ramus", "iliopsoas_head", "iliopsoas_head"),
        ("iliacus_front", "iliacus_top", "iliacus_fossa"),
        ("iliacus_top", "iliacus_back", "iliacus_fossa"),
        ("iliacus_front", "iliacus_fossa", "psoas_ramus"),
        ("iliacus_back", "iliacus_fossa", "psoas_ramus"),
        ("iliopsoas_head", "lesser", "lesser"),
    ),
    Muscle.ADDUCTORS: (
        ("adductor_pubis", "aspera_high", "longus_middle"),
        ("adductor_pubis", "adductor_ramus", "longus_middle"),
        ("longus_middle", "longus_low", "aspera_low"),
        ("adductor_ramus", "adductor_tuber", "magnus_middle"),
        ("adductor_tuber", "aspera_high", "magnus_middle"),
        ("magnus_middle", "aspera_low", "magnus_low"),
        ("adductor_ramus", "gracilis_middle", "magnus_middle"),
        ("gracilis_middle", "gracilis_low", "gracilis_low"),
    ),
    Muscle.QUADRICEPS: (
        ("lateralis_high", "lateralis_middle", "lateralis_middle"),
        ("lateralis_middle", "lateralis_low", "lateralis_low"),
        ("intermedius_high", "intermedius_low", "intermedius_low"),
        ("medialis_high", "medialis_low", "medialis_low"),
        ("rectus", "rectus_middle", "rectus_middle"),
        ("rectus_middle", "rectus_low", "rectus_low"),
        ("tensor", "tensor_low", "tensor_low"),
        ("tensor_low", "lateralis_middle", "lateralis_middle"),
    ),
    Muscle.HAMSTRINGS: (
        ("hamstring_tuber", "biceps_middle", "semis_middle"),
        ("biceps_middle", "biceps_low", "semis_low"),
        ("biceps_middle", "semis_middle", "semis_low"),
    ),
}
_REACH_MM = (14.0, 9.0, 4.0, 3.0, 14.0, 12.0, 14.0)
"""How far beyond its skeleton a muscle fills what no other is nearer to: up to the fascia where it lies under the skin."""


@dataclass(frozen=True)
class Muscles:
    """A partition of a phantom's soft tissue, on its grid."""

    labels: NDArray[np.uint8]
    """(z, y, x) place in `CHANNELS` plus 1; 0 for everything else."""
    lean: NDArray[np.float32]
    """(z, y, x) lean tissue in g/cm3 of the voxel: soft tissue, fat left out, without what bones take up."""
    patient_from_voxel: NDArray[np.float64]
    """4 x 4."""

    @property
    def voxel_cm3(self) -> float:
        """Volume of one voxel."""
        return abs(float(np.linalg.det(self.patient_from_voxel[:3, :3]))) / 1000

    def mass_g(self) -> NDArray[np.float64]:
        """(channels,) lean mass in the modelled part of the body."""
        sums = np.bincount(self.labels.ravel(), self.lean.ravel(), len(CHANNELS) + 1)
        return np.asarray(sums[1:] * self.voxel_cm3)

    def part(self, channel: int) -> NDArray[np.float32]:
        """(z, y, x) lean tissue of one muscle, g/cm3."""
        return np.where(self.labels == channel + 1, self.lean, np.float32(0))


def make_muscles(subject: Subject) -> Muscles:
    """Divide a person's soft tissue; the same subject gives the same labels.

    Bones are those without implants: a muscle does not grow into the place of a head that was taken out.
    """
    motions = {hip.side: patient_from_femur(subject, hip) for hip in subject.hips}
    soft, adipose = body_structures(subject, motions)
    bone = bone_share(subject, motions, soft.values.shape, soft.patient_from_voxel)
    lean = soft.values * (1 - bone)
    share = soft.values / (soft.values / MUSCLE_G_CM3 + adipose.values / 0.95 + 1e-6) / MUSCLE_G_CM3
    free = (share > LEAST_LEAN) & (bone < MOST_BONE) & (soft.values > 0)
    labels = np.zeros(soft.values.shape, np.uint8)
    reach = np.array(_REACH_MM)
    for number, hip in enumerate(subject.hips):
        corners, owners = skeletons(subject, hip, motions[hip.side])
        sign = 1.0 if hip.side is Side.LEFT else -1.0
        label_nearest(
            labels,
            free,
            soft.patient_from_voxel,
            sign,
            corners,
            enclosing_balls(corners),
            owners,
            reach,
            number * len(Muscle) + 1,
        )
    return Muscles(labels, lean, soft.patient_from_voxel)


def skeletons(subject: Subject, hip: Hip, motion: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The plates of one side in the patient frame: corners (n, 3, 4) as (x, y, z, radius), mm, and their `Muscle` (n,).

    Args:
        motion: `patient_from_femur` of the side.
    """
    sign = 1.0 if hip.side is Side.LEFT else -1.0
    turn = pelvis_rotation(subject) @ np.diag([sign, 1.0, 1.0])
    points: dict[str, NDArray[np.float64]] = {}
    for name, point in scaled_points(_PELVIC, subject.pelvis).items():
        points[name] = np.array([*(turn @ point[:3]), point[3]])
    axis, size = landmarks(hip.femur).shaft_proximal, hip.femur.head_radius_mm / 23.0
    for name, (lateral, posterior, above, radius) in _FEMORAL.items():
        local = axis + size * np.array([lateral, posterior, above])
        points[name] = np.array([*(motion[:3, :3] @ local + motion[:3, 3]), radius])
    thigh = thigh_capsule(subject, hip.side, motion)
    for name, (lateral, posterior, below, share) in _THIGH.items():
        t = (below - 20.0) / THIGH_MM
        radius = (1 - t) * thigh[3] + t * thigh[7] - subject.body.fat_mm
        centre = (1 - t) * thigh[:3] + t * thigh[4:7]
        points[name] = np.array([*(centre + radius * (motion[:3, :2] @ [lateral, posterior])), share * radius])
    corners = np.array([[points[name] for name in plate] for plates in _PLATES.values() for plate in plates])
    owners = np.array([muscle for muscle, plates in _PLATES.items() for _ in plates], np.int64)
    return corners, owners


def bone_share(
    subject: Subject,
    motions: dict[Side, NDArray[np.float64]],
    shape: tuple[int, ...],
    patient_from_voxel: NDArray[np.float64],
) -> NDArray[np.float32]:
    """(z, y, x) share of each voxel of a grid that bones take up; keeps the bones' volume but for what overlaps."""
    share = np.zeros(shape, np.float32)
    turn = patient_from_pelvis(subject)
    bones = [
        (motions[hip.side], FEMUR_VOXEL_MM, femur_volumes(hip.femur, hip.quality, hip.seed, FEMUR_VOXEL_MM))
        for hip in subject.hips
    ]
    pelvis = pelvis_volumes(subject.pelvis, subject.pelvis_quality, subject.seed, PELVIS_VOXEL_MM)
    voxel_from_patient = np.linalg.inv(patient_from_voxel)
    for motion, voxel_mm, (_, fraction, origin) in [*bones, (turn, PELVIS_VOXEL_MM, pelvis)]:
        scale = voxel_mm**3 * abs(np.linalg.det(voxel_from_patient[:3, :3]))
        _spread(share, fraction, voxel_from_patient @ motion @ local_from_voxel(origin, voxel_mm), scale)
    return np.minimum(share, np.float32(1))


@njit(cache=True)
def _spread(
    share: NDArray[np.float32], fraction: NDArray[np.float32], matrix: NDArray[np.float64], scale: float
) -> None:
    """Add the voxels of a finer grid to the eight voxels of `share` around each, by nearness; `matrix` leads from it to `share`."""
    for k in range(fraction.shape[0]):
        for j in range(fraction.shape[1]):
            for i in range(fraction.shape[2]):
                if fraction[k, j, i] == 0.0:
                    continue
                x = matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 2] * k + matrix[0, 3]
                y = matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 2] * k + matrix[1, 3]
                z = matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 2] * k + matrix[2, 3]
                x0, y0, z0 = math.floor(x), math.floor(y), math.floor(z)
                for c in range(8):
                    xi, yi, zi = x0 + (c & 1), y0 + (c >> 1 & 1), z0 + (c >> 2)
                    if 0 <= xi < share.shape[2] and 0 <= yi < share.shape[1] and 0 <= zi < share.shape[0]:
                        near = (1.0 - abs(x - xi)) * (1.0 - abs(y - yi)) * (1.0 - abs(z - zi))
                        share[zi, yi, xi] += scale * near * fraction[k, j, i]


@njit(cache=True)
def label_nearest(
    labels: NDArray[np.uint8],
    free: NDArray[np.bool_],
    matrix: NDArray[np.float64],
    sign: float,
    corners: NDArray[np.float64],
    balls: NDArray[np.float64],
    owners: NDArray[np.int64],
    reach: NDArray[np.float64],
    first_label: int,
) -> None:
    """Label the free voxels of one side (`sign` times x above 0) after the nearest skeleton within its reach.

    Args:
        labels: (z, y, x), written to.
        matrix: patient from voxel, a grid along the axes.
        corners, balls, owners: plates (n, 3, 4), the balls that hold them (n, 4), the muscle of each (n,).
        reach: (muscles,) mm.
    """
    nz, ny, nx = labels.shape
    farthest = reach.max()
    for k in range(nz):
        z = matrix[2, 2] * k + matrix[2, 3]
        for j in range(ny):
            y = matrix[1, 1] * j + matrix[1, 3]
            for i in range(nx):
                x = matrix[0, 0] * i + matrix[0, 3]
                if sign * x <= 0.0 or not free[k, j, i]:
                    continue
                best, owner = farthest, -1
                for n in range(corners.shape[0]):
                    dx, dy, dz = x - balls[n, 0], y - balls[n, 1], z - balls[n, 2]
                    if dx * dx + dy * dy + dz * dz > (balls[n, 3] + best) ** 2:
                        continue  # too far to be the nearest
                    d = plate(x, y, z, corners[n, 0], corners[n, 1], corners[n, 2])
                    if d < best:
                        best, owner = d, owners[n]
                if owner >= 0 and best < reach[owner]:
                    labels[k, j, i] = first_label + owner
