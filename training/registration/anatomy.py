"""What moves in a registration: the patient of a CT as attenuation, cut into a trunk with pelvis and two femora.

The soft tissue stays in: a projection of bones alone, held against a whole radiograph, is drawn several millimetres along the
rays. It moves with the pelvis, also around the femora (assumption: a turn of some degrees deforms the thigh little).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.domain.radiograph import Side
from dicomnode.errors import DicomNodeError
from training.anatomy.ct import CtVolume, body_mask, material_structures
from training.projection.attenuation import mass_attenuation_cm2_g
from training.projection.radiograph import TISSUES

EFFECTIVE_KEV = 55.0
"""Of the one energy that projections are made with; assumption, behind 20 cm of a patient at 75 to 85 kV."""
METAL = "titanium"
BEYOND_MM = 45.0
"""The first and last slice go on by this much, so that the end of a CT is no edge in the picture when it moves."""
RIM_MM = 2.0
"""A femur's mask is widened by this much towards soft tissue: what of its cortex is blurred outwards moves with it."""
JOINT_GAP_MM = 6.0
"""Surface of a femur nearer to the pelvis than this belongs to the head (joint space and half a coarse voxel)."""
PELVIS_POINTS = 500
HEAD_RADIUS_MM = (17.0, 33.0)
"""A sphere outside of this is no femoral head of an adult; wider than any that are told of (about 20 to 28 mm)."""


class UnusableBones(DicomNodeError, ValueError):
    """Masks of bones do not fit their CT or each other; the message says which, and what to do."""


@dataclass(frozen=True)
class Bones:
    """Which voxels are bone of which kind, on the grid of the CT."""

    pelvis: NDArray[np.bool_]
    """(z, y, x) both hip bones, with the sacrum or without it."""
    femora: Mapping[Side, NDArray[np.bool_]]
    """(z, y, x) of each femur that is to move on its own; a side that is left out moves with the pelvis."""


@dataclass(frozen=True)
class Body:
    """One part that moves as a rigid body."""

    mu_per_cm: NDArray[np.float32]
    """(z, y, x) linear attenuation; of a femur what it has beyond the soft tissue that takes its place in the trunk."""
    patient_from_voxel: NDArray[np.float64]
    """4 x 4, (x, y, z) voxel index to patient mm as the CT lay."""


@dataclass(frozen=True)
class MovableCt:
    """A CT made ready to be moved. Trunk and femora together, unmoved, attenuate as the whole does."""

    whole: Body
    trunk: Body
    """All but the femora, which are replaced by soft tissue."""
    femora: Mapping[Side, Body]
    head_centres_mm: Mapping[Side, NDArray[np.float64]]
    """(3,) each, in the frame of the CT: what a femur turns about."""
    centre_mm: NDArray[np.float64]
    """(3,) middle of the pelvis: what the patient turns about."""
    pelvis_points_mm: NDArray[np.float64]
    """(n, 3) voxels spread over the pelvis, by which distances between poses are told."""


def prepare(ct: CtVolume, bones: Bones) -> MovableCt:
    """Turn a CT into attenuation and cut it into bodies.

    Raises:
        UnusableBones: masks of another shape, empty ones, or a femur without a head in the pelvis.
        UnusableCt: no patient in the volume.
    """
    _check(ct, bones)
    mu = attenuation_per_cm(ct)
    soft = _soft_per_cm()
    trunk, femora, heads = mu.copy(), {}, {}
    for side, femur in bones.femora.items():
        heads[side] = head_centre_mm(femur, bones.pelvis, ct.patient_from_voxel)
        moves = with_rim(bones, side, ct.patient_from_voxel)
        trunk[moves] = soft
        femora[side] = _cropped(_with_beyond(np.where(moves, mu - soft, np.float32(0.0)), ct.patient_from_voxel))
    pelvis_mm = _points_mm(bones.pelvis, ct.patient_from_voxel)
    return MovableCt(
        whole=_with_beyond(mu, ct.patient_from_voxel),
        trunk=_with_beyond(trunk, ct.patient_from_voxel),
        femora=femora,
        head_centres_mm=heads,
        centre_mm=pelvis_mm.mean(axis=0),
        pelvis_points_mm=pelvis_mm[:: max(1, len(pelvis_mm) // PELVIS_POINTS)],
    )


def with_rim(bones: Bones, side: Side, patient_from_voxel: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(z, y, x) a femur and the soft tissue within `RIM_MM`, one voxel at least."""
    spacing_mm = np.linalg.norm(patient_from_voxel[:3, :3], axis=0)[::-1]
    steps = [max(1, round(RIM_MM / float(spacing))) for spacing in spacing_mm]
    femur = bones.femora[side]
    widened = ndimage.maximum_filter(femur, [2 * step + 1 for step in steps])
    others = [other for key, other in bones.femora.items() if key is not side]
    return np.asarray(femur | (widened & ~np.any([bones.pelvis, *others], axis=0)), np.bool_)


def attenuation_per_cm(ct: CtVolume) -> NDArray[np.float32]:
    """Linear attenuation (z, y, x) of the patient in 1/cm at `EFFECTIVE_KEV`, 0 around."""
    tissues = material_structures(ct, body_mask(ct))
    energy = np.array([EFFECTIVE_KEV])
    mu = np.zeros_like(ct.hu)
    for tissue in tissues:
        mu += tissue.values * np.float32(mass_attenuation_cm2_g(TISSUES.get(tissue.name, METAL), energy)[0])
    return mu


def head_centre_mm(
    femur: NDArray[np.bool_], pelvis: NDArray[np.bool_], patient_from_voxel: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(3,) centre of the sphere through the surface of the femur that faces the pelvis.

    Least squares, then once more without what lies off the sphere.

    Raises:
        UnusableBones: too little of the femur faces the pelvis, or what faces it is no sphere of a head's size.
    """
    spacing_mm = np.linalg.norm(patient_from_voxel[:3, :3], axis=0)[::-1]
    reach = JOINT_GAP_MM + float(spacing_mm.max())
    surface = femur & ~ndimage.binary_erosion(femur, border_value=1)
    facing = surface & (ndimage.distance_transform_edt(~pelvis, spacing_mm) <= reach)
    points = _points_mm(facing, patient_from_voxel)
    if len(points) < 20:
        raise UnusableBones(
            f"{len(points)} voxels of a femur lie within {reach:.0f} mm of the pelvis, expected a head in its socket:"
            " check the masks, and which side is which"
        )
    centre, radius = _sphere(points)
    off = np.abs(np.linalg.norm(points - centre, axis=1) - radius)
    centre, radius = _sphere(points[off <= np.quantile(off, 0.8)])
    if not HEAD_RADIUS_MM[0] <= radius <= HEAD_RADIUS_MM[1]:
        raise UnusableBones(
            f"what of a femur faces the pelvis lies on a sphere of {radius:.0f} mm radius, expected a femoral head's"
            f" {HEAD_RADIUS_MM[0]:.0f} to {HEAD_RADIUS_MM[1]:.0f} mm: check the masks"
        )
    return centre


def _check(ct: CtVolume, bones: Bones) -> None:
    masks = {"pelvis": bones.pelvis, **{f"{side.value} femur": mask for side, mask in bones.femora.items()}}
    for name, mask in masks.items():
        if mask.shape != ct.hu.shape or mask.dtype != np.bool_:
            raise UnusableBones(
                f"the mask of the {name} is {mask.dtype} {mask.shape}, expected bool {ct.hu.shape} as the CT:"
                " resample the labels to the CT's grid"
            )
        if not mask.any():
            raise UnusableBones(f"the mask of the {name} is empty: segment it, or leave the side out")


def _soft_per_cm() -> np.float32:
    """Muscle's: 1.05 g/cm3 (ICRU-44)."""
    return np.float32(1.05 * mass_attenuation_cm2_g(TISSUES["soft"], np.array([EFFECTIVE_KEV]))[0])


def _with_beyond(mu: NDArray[np.float32], patient_from_voxel: NDArray[np.float64]) -> Body:
    slice_mm = float(np.linalg.norm(patient_from_voxel[:3, 2]))
    more = int(np.ceil(BEYOND_MM / slice_mm))
    matrix = patient_from_voxel @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -more], [0, 0, 0, 1.0]])
    return Body(np.pad(mu, ((more, more), (0, 0), (0, 0)), mode="edge"), matrix)


def _cropped(body: Body) -> Body:
    box = ndimage.find_objects((body.mu_per_cm != 0).astype(np.uint8))[0]
    shift = np.eye(4)
    shift[:3, 3] = [part.start for part in box][::-1]
    return Body(np.ascontiguousarray(body.mu_per_cm[box]), body.patient_from_voxel @ shift)


def _points_mm(mask: NDArray[np.bool_], patient_from_voxel: NDArray[np.float64]) -> NDArray[np.float64]:
    z, y, x = np.nonzero(mask)
    return np.asarray(np.stack([x, y, z], axis=1) @ patient_from_voxel[:3, :3].T + patient_from_voxel[:3, 3])


def _sphere(points_mm: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Centre and radius by linear least squares of `|p|2 = 2 p.c + (r2 - c2)`, about the points' mean."""
    middle = points_mm.mean(axis=0)
    local = points_mm - middle
    system = np.column_stack([2 * local, np.ones(len(local))])
    (*centre, rest), *_ = np.linalg.lstsq(system, (local**2).sum(axis=1), rcond=None)
    return middle + np.array(centre), float(np.sqrt(rest + np.square(centre).sum()))
