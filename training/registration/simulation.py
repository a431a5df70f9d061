"""Radiographs of a CT in a known position: what a registration is judged by.

Everything here is simulated. The radiograph comes from a finer grid than the registration uses, split into materials, under a
whole spectrum, with scatter, blur, noise and a maker's processing; a femur is turned in the CT itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.domain.radiograph import Side
from training.anatomy.ct import CtVolume, body_mask, material_structures, resampled
from training.projection.differentiable import patient_from_unmoved
from training.projection.geometry import ConeBeam, detector_depths
from training.projection.projector import project_structures
from training.projection.radiograph import (
    MATERIALS,
    Exposure,
    VendorProcessing,
    random_exposure,
    random_processing,
    simulate,
)
from training.registration.anatomy import Bones, with_rim
from training.simulate_dx import SDD_MM, VOXEL_MM, collimated_beam

SPACING_MM = 0.5
"""Pixels of the simulated detector."""
MUSCLE_HU = 50.0
"""What is left where a femur was."""


@dataclass(frozen=True)
class Taken:
    """A radiograph and what it is known to show."""

    image: NDArray[np.float32]
    """(rows, columns) within 0..1, larger is more attenuation."""
    beam: ConeBeam
    """In the frame in which the unmoved CT lies as it was scanned."""
    patient_from_ct: NDArray[np.float64]
    """4 x 4, the motion of the pelvis from the CT to the radiograph."""
    turned_from_ct: Mapping[Side, NDArray[np.float64]]
    """4 x 4 each, the motion of a femur against the pelvis, in the frame of the CT."""
    exposure: Exposure
    processing: VendorProcessing


def take(
    ct: CtVolume,
    patient_from_ct: NDArray[np.float64],
    isocentre_mm: NDArray[np.float64],
    seed: int,
) -> Taken:
    """Take a radiograph of a CT that was moved, under conditions drawn from `seed`.

    Args:
        isocentre_mm: where the central ray goes, in the patient frame.
    """
    random = np.random.default_rng(seed)
    exposure, processing = random_exposure(random), random_processing(random)
    fine = resampled(ct, VOXEL_MM)
    inside = body_mask(fine)
    moved = replace(fine, patient_from_voxel=patient_from_ct @ fine.patient_from_voxel)
    beam = collimated_beam(moved, inside, isocentre_mm, SDD_MM, SPACING_MM)
    projected = project_structures(material_structures(moved, inside), beam, parallel=False)
    maps = np.stack([projected[name] for name in MATERIALS])
    object_spacing_mm = SPACING_MM * float(detector_depths(isocentre_mm, beam))
    image = simulate(maps, object_spacing_mm, exposure, processing, random)
    return Taken(image, beam, patient_from_ct, {}, exposure, processing)


def with_turned_femora(ct: CtVolume, bones: Bones, turned_from_ct: Mapping[Side, NDArray[np.float64]]) -> CtVolume:
    """A CT whose femora were turned; muscle fills where they were."""
    hu = ct.hu.copy()
    moving = {side: with_rim(bones, side, ct.patient_from_voxel) for side in turned_from_ct}
    for mask in moving.values():
        hu[mask] = MUSCLE_HU
    z, y, x = np.indices(ct.hu.shape)
    grid = np.stack([x, y, z, np.ones_like(x)], axis=-1)
    for side, motion in turned_from_ct.items():
        voxel_from_voxel = np.linalg.inv(motion @ ct.patient_from_voxel) @ ct.patient_from_voxel
        at = (grid @ voxel_from_voxel.T)[..., 2::-1].transpose(3, 0, 1, 2)
        is_femur = ndimage.map_coordinates(moving[side].astype(np.float32), at, order=1, mode="nearest") > 0.5
        hu[is_femur] = ndimage.map_coordinates(ct.hu, at[:, is_femur], order=1, mode="nearest")
    return replace(ct, hu=hu)


def motion_of(pose: NDArray[np.float64], centre_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """4 x 4 of a pose (6,) as `patient_from_unmoved` takes it."""
    return np.asarray(patient_from_unmoved(torch.from_numpy(pose)[None], centre_mm)[0].numpy(), np.float64)
