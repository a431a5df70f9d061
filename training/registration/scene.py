"""A radiograph and the parts of a patient at one resolution: poses in, likeness out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dicomnode.domain.radiograph import Side
from training.projection.differentiable import patient_from_unmoved, project_motions
from training.projection.geometry import ConeBeam, detector_axes_mm, detector_depths
from training.registration.anatomy import Body, MovableCt


@dataclass(frozen=True)
class Volume:
    """A body at the resolution of a scene."""

    mu_per_cm: Tensor
    """(1, z, y, x)"""
    patient_from_voxel: NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """One radiograph and one CT, coarsened alike."""

    whole: Volume
    trunk: Volume
    femora: Mapping[Side, Volume]
    centre_mm: NDArray[np.float64]
    head_centres_mm: Mapping[Side, NDArray[np.float64]]
    beam: ConeBeam
    image: Tensor
    """(rows, columns) the radiograph, larger is more attenuation."""
    mask: Tensor
    """(rows, columns) pixels that count."""

    def rigid(self, poses: Tensor) -> Tensor:
        """(b, rows, columns) of the whole patient as one rigid body, by poses (b, 6)."""
        return self._project(self.whole, patient_from_unmoved(poses.double(), self.centre_mm))

    def jointed(self, poses: Tensor, turns: Mapping[Side, Tensor]) -> Tensor:
        """(b, rows, columns) by poses (b, 6) of the pelvis and rotation vectors (b, 3) of the femora against it."""
        motions = patient_from_unmoved(poses.double(), self.centre_mm)
        images = self._project(self.trunk, motions)
        for side, turn in turns.items():
            images = images + self.femur(side, motions, turn)
        return images

    def femur(self, side: Side, pelvis_motions: Tensor, turns: Tensor) -> Tensor:
        """(b, rows, columns) of what one femur adds to the trunk."""
        still = torch.zeros_like(turns)
        in_socket = patient_from_unmoved(torch.cat([turns, still], dim=1).double(), self.head_centres_mm[side])
        return self._project(self.femora[side], pelvis_motions @ in_socket)

    def _project(self, volume: Volume, motions: Tensor) -> Tensor:
        return project_motions(volume.mu_per_cm, volume.patient_from_voxel, self.beam, motions)[:, 0]


def make_scene(
    ct: MovableCt,
    image: NDArray[np.float32],
    mask: NDArray[np.bool_],
    beam: ConeBeam,
    resolution_mm: float,
    device: str,
) -> Scene:
    """Coarsen a CT and a radiograph to voxels, and pixels in the object plane, of at most about `resolution_mm`.

    Blocks of whole voxels and pixels are averaged: what is coarser already stays as it is.
    """
    depth = float(detector_depths(ct.centre_mm, beam))
    factors = [max(1, round(resolution_mm / (spacing * depth))) for spacing in beam.detector_spacing_mm]
    return Scene(
        whole=_coarse_body(ct.whole, resolution_mm, device),
        trunk=_coarse_body(ct.trunk, resolution_mm, device),
        femora={side: _coarse_body(femur, resolution_mm, device) for side, femur in ct.femora.items()},
        centre_mm=ct.centre_mm,
        head_centres_mm=ct.head_centres_mm,
        beam=_coarse_beam(beam, factors[0], factors[1]),
        image=torch.from_numpy(_block_mean(image, factors)).to(device),
        mask=torch.from_numpy(_block_mean(mask.astype(np.float32), factors) > 0.999).to(device),
    )


def part(scene: Scene, window: tuple[int, int, int, int]) -> Scene:
    """The same with fewer pixels: first row, row after the last, first column, column after the last."""
    first_row, end_row, first_column, end_column = window
    row_axis, column_axis = detector_axes_mm(scene.beam)
    origin = scene.beam.detector_origin_mm + first_row * row_axis + first_column * column_axis
    shape = (end_row - first_row, end_column - first_column)
    rows, columns = slice(first_row, end_row), slice(first_column, end_column)
    return replace(
        scene,
        beam=replace(scene.beam, detector_origin_mm=origin, shape=shape),
        image=scene.image[rows, columns],
        mask=scene.mask[rows, columns],
    )


def _coarse_body(body: Body, resolution_mm: float, device: str) -> Volume:
    spacing_mm = np.linalg.norm(body.patient_from_voxel[:3, :3], axis=0)[::-1]  # z, y, x
    factors = [max(1, round(resolution_mm / float(spacing))) for spacing in spacing_mm]
    short = [-size % factor for size, factor in zip(body.mu_per_cm.shape, factors, strict=True)]
    padded = np.pad(body.mu_per_cm, [(0, more) for more in short])
    scaling = np.diag([*factors[::-1], 1.0])
    scaling[:3, 3] = [(factor - 1) / 2 for factor in factors[::-1]]
    return Volume(torch.from_numpy(_block_mean(padded, factors)).to(device)[None], body.patient_from_voxel @ scaling)


def _coarse_beam(beam: ConeBeam, row_factor: int, column_factor: int) -> ConeBeam:
    row_axis, column_axis = detector_axes_mm(beam)
    return replace(
        beam,
        detector_origin_mm=beam.detector_origin_mm
        + (row_factor - 1) / 2 * row_axis
        + (column_factor - 1) / 2 * column_axis,
        detector_spacing_mm=(
            beam.detector_spacing_mm[0] * row_factor,
            beam.detector_spacing_mm[1] * column_factor,
        ),
        shape=(beam.shape[0] // row_factor, beam.shape[1] // column_factor),
    )


def _block_mean(values: NDArray[np.float32], factors: list[int]) -> NDArray[np.float32]:
    """Mean of whole blocks; an incomplete one at the end is left out."""
    counts = [size // factor for size, factor in zip(values.shape, factors, strict=True)]
    cut = values[tuple(slice(0, count * factor) for count, factor in zip(counts, factors, strict=True))]
    split = cut.reshape([number for pair in zip(counts, factors, strict=True) for number in pair])
    return np.asarray(split.mean(axis=tuple(range(1, 2 * len(factors), 2))), np.float32)
