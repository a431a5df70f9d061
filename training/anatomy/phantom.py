"""A person of the population as voxel structures: bones, metal and soft tissue on their own grids, with landmarks.

`python -m training.anatomy.phantom --seed S --png FILE` draws one for people to look at.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicomnode.domain.radiograph import Side
from training.anatomy.body import VOXEL_MM as BODY_VOXEL_MM
from training.anatomy.body import body_volumes
from training.anatomy.disease import (
    broken_landmarks,
    degenerate,
    displacement,
    narrowed,
    proximal_fragment,
    sclerose_socket,
    tilt,
)
from training.anatomy.femur import VOXEL_MM as FEMUR_VOXEL_MM
from training.anatomy.femur import FemurLandmarks, femur_volumes, landmarks
from training.anatomy.implant import ImplantKind, cup_fraction, femoral_capsules, metal_fraction, resected
from training.anatomy.implicit import coordinates, local_from_voxel
from training.anatomy.pelvis import VOXEL_MM as PELVIS_VOXEL_MM
from training.anatomy.pelvis import pelvis_volumes
from training.anatomy.population import Hip, Subject, draw_subject, femur_rotation, pelvis_rotation
from training.anatomy.volume import Structure

NAMES = {Side.RIGHT: "right_femur", Side.LEFT: "left_femur"}
THIGH_MM = 310.0


@dataclass(frozen=True)
class Phantom:
    """A person, ready to be projected."""

    subject: Subject
    structures: tuple[Structure, ...]
    """Per bone "<bone>_mineral" (g/cm3 of hydroxyapatite), "<bone>_volume" (1), with bones right_femur, left_femur, pelvis;
    "metal_mass" (g/cm3), "metal_volume" (1); "soft" and "adipose" (g/cm3) as if there were no bones."""
    landmarks: dict[Side, FemurLandmarks]
    """In the patient frame."""
    patient_from_femur: dict[Side, NDArray[np.float64]]
    """4 x 4, mirroring for a right femur."""

    def bone(self, name: str) -> tuple[Structure, ...]:
        """The mineral and volume structures of one bone."""
        return tuple(s for s in self.structures if s.name in (f"{name}_mineral", f"{name}_volume"))


def make_phantom(subject: Subject) -> Phantom:
    """Build a person's structures; the same subject gives the same voxels."""
    motions = {hip.side: patient_from_femur(subject, hip) for hip in subject.hips}
    structures: list[Structure] = []
    for hip in subject.hips:
        structures += _femur_structures(hip, motions[hip.side])
    structures += _pelvis_structures(subject)
    structures += body_structures(subject, motions)
    points = {hip.side: _landmarks(hip).moved(motions[hip.side]) for hip in subject.hips}
    return Phantom(subject, tuple(structures), points, motions)


def patient_from_pelvis(subject: Subject) -> NDArray[np.float64]:
    """4 x 4: pelvis frame to patient frame."""
    matrix = np.eye(4)
    matrix[:3, :3] = pelvis_rotation(subject)
    return matrix


def patient_from_femur(subject: Subject, hip: Hip) -> NDArray[np.float64]:
    """4 x 4: femur frame to patient frame. A right hip is a left one, mirrored."""
    sign = 1.0 if hip.side is Side.LEFT else -1.0
    turn = pelvis_rotation(subject)
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag([sign, 1.0, 1.0]) @ femur_rotation(hip.pose)
    matrix[:3, 3] = turn @ np.array([sign * subject.pelvis.half_width_mm, 0.0, 0.0])
    return matrix


def _landmarks(hip: Hip) -> FemurLandmarks:
    points = landmarks(hip.femur)
    return points if hip.fracture is None else broken_landmarks(points, hip.fracture, hip.femur)


def _femur_structures(hip: Hip, motion: NDArray[np.float64]) -> list[Structure]:
    mineral, volume, origin = femur_volumes(hip.femur, hip.quality, hip.seed)
    name, structures = NAMES[hip.side], list[Structure]()
    place = local_from_voxel(origin, FEMUR_VOXEL_MM)
    if hip.osteoarthritis:
        densest = hip.quality.cortical_density_g_cm3
        degenerate(mineral, volume, origin, FEMUR_VOXEL_MM, hip.femur, densest, hip.osteoarthritis, hip.seed)
    if hip.implant is not None:
        if hip.implant.replaces_head:
            gone = resected(hip.femur, mineral.shape, origin, FEMUR_VOXEL_MM)
            mineral[gone] = 0.0
            volume[gone] = 0.0
        metal = metal_fraction(femoral_capsules(hip.implant, hip.femur), mineral.shape, origin, FEMUR_VOXEL_MM)
        mineral *= 1.0 - metal
        volume *= 1.0 - metal
        structures = _metal(metal, hip.implant.density_g_cm3, motion @ place)
    if hip.fracture is None:
        return [*_bone(name, mineral, volume, motion @ place), *structures]
    proximal = proximal_fragment(hip.fracture.kind, hip.femur, mineral.shape, origin, FEMUR_VOXEL_MM)
    head, shaft = tilt(hip.fracture), displacement(hip.fracture, hip.femur)
    return [
        *_bone(name, mineral * proximal, volume * proximal, motion @ head @ place),
        *_bone(name, mineral * ~proximal, volume * ~proximal, motion @ shaft @ place),
        *structures,
    ]


def _bone(
    name: str, mineral: NDArray[np.float32], volume: NDArray[np.float32], matrix: NDArray[np.float64]
) -> list[Structure]:
    return [
        Structure(f"{name}_mineral", mineral, "g/cm3", matrix),
        Structure(f"{name}_volume", volume, "1", matrix),
    ]


def _metal(fraction: NDArray[np.float32], density_g_cm3: float, matrix: NDArray[np.float64]) -> list[Structure]:
    return [
        Structure("metal_mass", fraction * np.float32(density_g_cm3), "g/cm3", matrix),
        Structure("metal_volume", fraction, "1", matrix),
    ]


def _pelvis_structures(subject: Subject) -> list[Structure]:
    shape = replace(
        subject.pelvis,
        joint_space_mm=narrowed(subject.pelvis.joint_space_mm, max(hip.osteoarthritis for hip in subject.hips)),
    )
    mineral, volume, origin = pelvis_volumes(shape, subject.pelvis_quality, subject.seed)
    motion = patient_from_pelvis(subject)
    matrix = motion @ local_from_voxel(origin, PELVIS_VOXEL_MM)
    structures = []
    for hip in subject.hips:
        sign = 1.0 if hip.side is Side.LEFT else -1.0
        hip_x = sign * shape.half_width_mm
        if hip.osteoarthritis:
            cavity = hip.femur.head_radius_mm + shape.joint_space_mm
            densest = subject.pelvis_quality.cortical_density_g_cm3
            sclerose_socket(mineral, volume, origin, PELVIS_VOXEL_MM, hip_x, cavity, densest, hip.osteoarthritis)
        if hip.implant is not None and hip.implant.kind is ImplantKind.TOTAL_ARTHROPLASTY:
            fraction, corner = cup_fraction(hip.femur.head_radius_mm, sign)
            corner = corner + np.array([hip_x, 0.0, 0.0])
            structures += _metal(fraction, hip.implant.density_g_cm3, motion @ local_from_voxel(corner, FEMUR_VOXEL_MM))
            _bury(mineral, volume, origin, hip_x, hip.femur.head_radius_mm + 4.0)
    return [*_bone("pelvis", mineral, volume, matrix), *structures]


def _bury(
    mineral: NDArray[np.float32],
    volume: NDArray[np.float32],
    origin: NDArray[np.float64],
    hip_x_mm: float,
    radius_mm: float,
) -> None:
    """Ream the socket: take the bone away where the cup sits."""
    x, y, z = coordinates(mineral.shape, origin, PELVIS_VOXEL_MM)
    inside = (x - hip_x_mm) ** 2 + y**2 + z**2 < radius_mm**2
    mineral[inside] = 0.0
    volume[inside] = 0.0


def body_structures(subject: Subject, motions: dict[Side, NDArray[np.float64]]) -> list[Structure]:
    """Soft tissue around the bones, which are known by their sizes only.

    Args:
        motions: `patient_from_femur` of each side.
    """
    thighs, bones = [], []
    for hip in subject.hips:
        motion = motions[hip.side]
        sign = 1.0 if hip.side is Side.LEFT else -1.0
        down = -motion[:3, 2]
        thighs.append(thigh_capsule(subject, hip.side, motion))
        points = landmarks(hip.femur).moved(motion)
        head, base = points.head_centre, points.neck_base
        end = base + 260.0 * down
        shaft = 0.8 * hip.femur.shaft_diameter_mm
        bones.append([*head, hip.femur.head_radius_mm + 5.0, *base, 1.25 * shaft])
        bones.append([*base, 1.6 * shaft, *(base + 40 * down), shaft])
        bones.append([*base, shaft, *end, shaft])
        bones += _pelvis_capsules(subject, sign)
    soft, adipose, origin = body_volumes(subject.body, np.array(thighs), np.array(bones), subject.seed + 1)
    matrix = local_from_voxel(origin, BODY_VOXEL_MM)
    return [Structure("soft", soft, "g/cm3", matrix), Structure("adipose", adipose, "g/cm3", matrix)]


def thigh_capsule(subject: Subject, side: Side, motion: NDArray[np.float64]) -> NDArray[np.float64]:
    """(8,) a thigh with its fat: point, radius, point, radius, mm; `motion` is `patient_from_femur` of the side."""
    radius, sign = subject.body.thigh_radius_mm, 1.0 if side is Side.LEFT else -1.0
    centre, down = motion[:3, 3], -motion[:3, 2]
    start = centre + np.array([sign * 10.0, 8.0, 0.0]) + 20.0 * down
    return np.array([*start, 0.96 * radius, *(start + THIGH_MM * down), 0.72 * radius])


def _pelvis_capsules(subject: Subject, sign: float) -> list[list[float]]:
    """Capsules that hold the ischium and the rami of one side."""
    half, turn = subject.pelvis.half_width_mm, pelvis_rotation(subject)

    def at(x: float, y: float, z: float) -> NDArray[np.float64]:
        return np.asarray(turn @ np.array([sign * x * half / 86.0, y, z]))

    strokes = (
        (at(78, 28, 10), 14.0, at(68, 24, -56), 13.0),
        (at(72, -34, 10), 12.0, at(12, -54, -26), 9.0),
        (at(12, -48, -44), 8.0, at(58, 10, -64), 9.0),
        (at(88, -4, 38), 16.0, at(100, -8, 90), 8.0),
    )
    return [[*a, ar, *b, br] for a, ar, b, br in strokes]


def main() -> None:
    """Draw one phantom."""
    parser = argparse.ArgumentParser(description="Draw one phantom as a picture.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--png", type=Path, required=True)
    arguments = parser.parse_args()
    from training.anatomy.picture import draw_phantom

    draw_phantom(make_phantom(draw_subject(arguments.seed, arguments.index)), arguments.png)


if __name__ == "__main__":
    main()
