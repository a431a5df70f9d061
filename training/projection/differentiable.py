"""Projections of many poses at once, with gradients, on CPU and CUDA: what registration and learning need.

The rays of `training.projection.projector`, in torch: each plane of voxels is sampled where the rays cross it. Forward and
backward pass hold one plane's samples at a time, so that memory does not grow with the number of planes.

Source: Joseph 1982, doi:10.1109/TMI.1982.4307572 (plane-by-plane line integrals).
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.projection.geometry import Beam, ParallelBeam, rays_mm
from training.projection.planes import CM_PER_MM, STEEPEST


def project_poses(
    volumes: Tensor,
    patient_from_voxel: NDArray[np.float64],
    beam: Beam,
    poses: Tensor,
    centre_mm: NDArray[np.float64],
) -> Tensor:
    """Project volumes of one grid in each of several poses: `project_motions` of `patient_from_unmoved`.

    Args:
        poses: (b, 6) as `patient_from_unmoved` takes them.
        centre_mm: (3,) what poses turn about, in the patient frame.
    """
    if poses.ndim != 2 or poses.shape[1] != 6:
        raise ValueError(f"seen poses {tuple(poses.shape)}, expected (b, 6)")
    return project_motions(volumes, patient_from_voxel, beam, patient_from_unmoved(poses.double(), centre_mm))


def project_motions(volumes: Tensor, patient_from_voxel: NDArray[np.float64], beam: Beam, motions: Tensor) -> Tensor:
    """Project volumes of one grid after each of several motions.

    All planes are those of one axis, the one that the central rays of the batch run along. Unlike `project`, a part behind
    the detector counts as if it lay before it.

    Args:
        volumes: (structures, z, y, x); its device and type are those of the result.
        patient_from_voxel: 4 x 4, homogeneous voxel index (x, y, z) to patient mm, before the motion.
        motions: (b, 4, 4) in double precision.

    Returns:
        (b, structures, rows, columns) in the unit of `volumes` times cm, differentiable once by motions and volumes.

    Raises:
        ValueError: shapes are others; or after some motion the source lies beside the grid, or rays cross the planes at so
            flat an angle that they would be sampled too sparsely.
    """
    if volumes.ndim != 4 or motions.shape[1:] != (4, 4):
        raise ValueError(
            f"seen volumes {tuple(volumes.shape)} and motions {tuple(motions.shape)},"
            " expected (structures, z, y, x) and (b, 4, 4)"
        )
    start, ray = _rays_in_voxels(patient_from_voxel, beam, motions)
    axis = _across_planes(volumes.shape[1:], beam, start, ray)
    order = [axis, *(other for other in range(3) if other != axis)]
    start, ray = start[:, order], ray[:, order]
    planes, *lateral = (volumes.shape[1 + other] for other in order)
    _refuse_flat_rays(planes, beam, start, ray)

    rows, columns = beam.shape
    pixels = _pixels(beam.shape).to(volumes)  # (3, rows x columns)
    start, ray = start.to(volumes) @ pixels, ray.to(volumes) @ pixels  # (b, 3, rows x columns)
    middle = (planes - 1) / 2
    slope = ray[:, 1:] / ray[:, :1]
    position = start[:, 1:] + (middle - start[:, :1]) * slope
    size = torch.tensor(lateral, device=volumes.device, dtype=volumes.dtype)[:, None]
    by_plane = _for_grid_sample(slope * (2 / size), beam.shape)
    at_middle = _for_grid_sample((2 * position + 1) / size - 1, beam.shape)
    by_planes = volumes.permute(0, *(1 + other for other in order))
    sums: Tensor = _SumPlanes.apply(by_planes, at_middle, by_plane)  # type: ignore[no-untyped-call]

    ray_mm = torch.as_tensor(rays_mm(beam)[1]).to(volumes) @ pixels
    plane_cm = CM_PER_MM * (ray_mm**2).sum(0).sqrt() / ray[:, 0].abs()
    images = sums.reshape(len(ray), rows, len(volumes), columns).transpose(1, 2)
    projected: Tensor = images * plane_cm.reshape(len(ray), 1, rows, columns)
    return projected


def patient_from_unmoved(poses: Tensor, centre_mm: NDArray[np.float64]) -> Tensor:
    """Motions in the patient frame: turn about a centre, then shift.

    Args:
        poses: (b, 6) rotation vector in radians (its length is the angle), translation in mm, both along the patient's axes.
        centre_mm: (3,) the point that does not turn.

    Returns:
        (b, 4, 4)
    """
    x, y, z = poses[:, 0], poses[:, 1], poses[:, 2]
    nothing = torch.zeros_like(x)
    skew = torch.stack([nothing, -z, y, z, nothing, -x, -y, x, nothing], dim=1).reshape(-1, 3, 3)
    rotation = torch.linalg.matrix_exp(skew)
    centre = torch.as_tensor(centre_mm).to(poses)
    shift = centre - rotation @ centre + poses[:, 3:]
    last = torch.tensor([0.0, 0.0, 0.0, 1.0]).to(poses).expand(len(poses), 1, 4)
    return torch.cat([torch.cat([rotation, shift[:, :, None]], dim=2), last], dim=1)


def _rays_in_voxels(patient_from_voxel: NDArray[np.float64], beam: Beam, motions: Tensor) -> tuple[Tensor, Tensor]:
    """`rays_mm` in voxels of the moved grid, axes (z, y, x): starts and directions, (b, 3, 3) in double precision.

    Rounding a pose of many hundred millimetres to single precision would show in the gradients.
    """
    moved = motions.double() @ torch.as_tensor(patient_from_voxel).to(motions.device)
    voxel_from_patient = torch.linalg.inv(moved)[:, :3].flip(1)
    starts_mm, directions_mm = (torch.as_tensor(rays).to(moved.device) for rays in rays_mm(beam))
    homogeneous = torch.cat([starts_mm, torch.tensor([[0.0, 0.0, 1.0]]).to(starts_mm)])
    return voxel_from_patient @ homogeneous, voxel_from_patient[:, :, :3] @ directions_mm


def _across_planes(shape: torch.Size, beam: Beam, start: Tensor, ray: Tensor) -> int:
    """The axis that most planes are crossed along, by the central rays of all poses together."""
    middle = (torch.tensor(list(shape)).to(start) - 1) / 2
    central = ray[:, :, 2] if isinstance(beam, ParallelBeam) else middle - start[:, :, 2]
    return int(torch.nn.functional.normalize(central.detach(), dim=1).abs().mean(0).argmax())


def _refuse_flat_rays(planes: int, beam: Beam, start: Tensor, ray: Tensor) -> None:
    rows, columns = beam.shape
    corners = torch.tensor([[0, 0, rows - 1, rows - 1], [0, columns - 1, 0, columns - 1], [1, 1, 1, 1]]).to(ray)
    seen = (ray @ corners).detach()
    if not isinstance(beam, ParallelBeam):
        source = start[:, 0, 2].detach()
        if bool(((source + 1) * (source - planes) <= 0).any()):
            raise ValueError("in some pose the source lies level with the grid: move it away, or use `project`")
        seen = seen * torch.sign((planes - 1) / 2 - source)[:, None, None]
    else:
        seen = seen * torch.sign(seen[:, :1])
    steepest = torch.where(seen[:, :1] > 0, seen[:, 1:].abs() / seen[:, :1], torch.inf).max()
    if float(steepest) > STEEPEST:
        raise ValueError(
            f"in some pose a ray moves {float(steepest):.1f} voxels sideways from plane to plane, and {STEEPEST:g} are"
            " allowed: split the batch into poses seen from similar sides, or project fewer degrees from the middle one"
        )


def _pixels(shape: tuple[int, int]) -> Tensor:
    """(3, rows x columns) of (row, column, 1)."""
    row, column = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    return torch.stack([row.flatten(), column.flatten(), torch.ones(shape[0] * shape[1], dtype=torch.long)])


def _for_grid_sample(lateral: Tensor, shape: tuple[int, int]) -> Tensor:
    """(b, 2, rows x columns) of (row, column) to (b x rows, 1, columns, 2) of (column, row).

    Each detector row is an image of its own, because `grid_sample` shares out images among threads, not their rows.
    """
    return lateral.flip(1).transpose(1, 2).reshape(-1, 1, shape[1], 2)


class _SumPlanes(torch.autograd.Function):
    """Sum over the planes of bilinear samples, zero outside.

    Plane k is sampled at `at_middle + (k - middle) * by_plane`, in the coordinates of `grid_sample`.
    """

    @staticmethod
    def forward(ctx: Any, volumes: Tensor, at_middle: Tensor, by_plane: Tensor) -> Tensor:
        ctx.save_for_backward(volumes, at_middle, by_plane)
        lines, _, columns, _ = at_middle.shape
        sums = volumes.new_zeros(lines, volumes.shape[0], 1, columns)
        for plane, distance in _planes(volumes):
            values = volumes[:, plane].expand(lines, -1, -1, -1)
            sums += F.grid_sample(values, torch.add(at_middle, by_plane, alpha=distance), align_corners=False)
        return sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        volumes, at_middle, by_plane = ctx.saved_tensors
        wants_volumes = ctx.needs_input_grad[0]
        images = len(at_middle)
        if wants_volumes:  # as one image of many rows: each image would get a gradient as large as the plane
            images = 1
            upstream = upstream.permute(2, 1, 0, 3).contiguous()
        by_volumes = torch.zeros_like(volumes) if wants_volumes else None
        by_at_middle, by_by_plane = torch.zeros_like(at_middle), torch.zeros_like(by_plane)
        bilinear, zeros = 0, 0
        for plane, distance in _planes(volumes):
            values = volumes[:, plane].expand(images, -1, -1, -1)
            positions = torch.add(at_middle, by_plane, alpha=distance).reshape(images, -1, *at_middle.shape[2:])
            by_values, by_positions = torch.ops.aten.grid_sampler_2d_backward(
                upstream, values, positions, bilinear, zeros, False, [wants_volumes, True]
            )
            by_positions = by_positions.reshape(at_middle.shape)
            by_at_middle += by_positions
            by_by_plane.add_(by_positions, alpha=distance)
            if by_volumes is not None:
                by_volumes[:, plane] = by_values[0]
        return by_volumes, by_at_middle, by_by_plane


def _planes(volumes: Tensor) -> list[tuple[int, float]]:
    """Each plane and its distance from the middle one, in planes."""
    return [(plane, plane - (volumes.shape[1] - 1) / 2) for plane in range(volumes.shape[1])]
