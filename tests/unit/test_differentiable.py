"""Projections of poses: against the compiled projector, closed forms and finite differences."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tests.unit.test_projector import ball, grid, parallel_beam, patient_points, random_volume
from training.projection.differentiable import patient_from_unmoved, project_poses
from training.projection.geometry import Beam, anteroposterior
from training.projection.projector import project

SHAPE = (20, 26, 23)
AFFINE = grid(SHAPE, (1.4, 1.1, 1.7), Rotation.from_euler("xyz", (8.0, -5.0, 12.0), degrees=True), (4.0, -6.0, 3.0))
CENTRE_MM = np.array([5.0, -3.0, 8.0])
POSES = torch.tensor(
    [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.12, -0.2, 0.1, 3.0, -8.0, 2.0], [-0.1, 0.1, -0.25, -2.0, 20.0, 4.0]],
    dtype=torch.float64,
)
CONE = anteroposterior(np.zeros(3), 1000.0, 850.0, 1.3, (30, 34))


def two_structures() -> NDArray[np.float32]:
    """A ball of even density, and one of an uneven density that fades towards its surface."""
    unturned = grid(SHAPE, (1.4, 1.1, 1.7))
    return np.stack([ball(SHAPE, unturned, 11.0), random_volume(SHAPE, 3) * blob(unturned)])


def blob(affine: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(np.exp(-np.sum(patient_points(SHAPE, affine) ** 2, axis=-1) / (2 * 4.0**2)), np.float32)


@pytest.mark.parametrize("beam", [CONE, parallel_beam(1.3, (30, 34))], ids=["cone", "parallel"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_pose_and_structure_is_what_the_compiled_projector_sees(beam: Beam, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    volumes = two_structures()
    images = project_poses(torch.from_numpy(volumes).to(device), AFFINE, beam, POSES.to(device), CENTRE_MM).cpu()
    assert images.shape == (3, 2, 30, 34)
    for pose, motion in zip(images, patient_from_unmoved(POSES, CENTRE_MM).numpy(), strict=True):
        for image, values in zip(pose.numpy(), volumes, strict=True):
            expected = project(values, motion @ AFFINE, beam)
            assert np.abs(image - expected).mean() < 1e-3 * expected.max()
            assert (
                np.abs(image - expected).max() < 2e-2 * expected.max()
            )  # at the ball's edge, within a third of a voxel
            assert image.sum() == pytest.approx(expected.sum(), rel=1e-3)


def test_a_pose_turns_about_the_centre_and_then_shifts() -> None:
    quarter = torch.tensor([[0.0, 0.0, np.pi / 2, 1.0, 2.0, 3.0]], dtype=torch.float64)
    motion = patient_from_unmoved(quarter, np.array([10.0, 0.0, 0.0]))[0].numpy()
    np.testing.assert_allclose(motion @ [10.0, 0.0, 0.0, 1.0], [11.0, 2.0, 3.0, 1.0], atol=1e-12)
    np.testing.assert_allclose(motion @ [15.0, 0.0, 0.0, 1.0], [11.0, 7.0, 3.0, 1.0], atol=1e-12)


def test_the_gradient_by_pose_is_that_of_finite_differences() -> None:
    volumes = torch.from_numpy(two_structures()).double()
    weights = torch.from_numpy(np.random.default_rng(5).random((3, 2, 30, 34)))

    def weighed(poses: torch.Tensor) -> torch.Tensor:
        return (project_poses(volumes, AFFINE, CONE, poses, CENTRE_MM) * weights).sum((1, 2, 3))

    poses = POSES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(weighed(poses).sum(), poses)
    for parameter in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[parameter] = 1e-6
        difference = (weighed(POSES + step) - weighed(POSES - step)) / 2e-6
        torch.testing.assert_close(
            gradient[:, parameter], difference, rtol=1e-4, atol=1e-4 * float(gradient.abs().max())
        )


def test_the_gradient_by_volume_is_the_sum_of_what_each_voxel_adds() -> None:
    volumes = torch.from_numpy(two_structures()).double().requires_grad_()
    images = project_poses(volumes, AFFINE, CONE, POSES[1:], CENTRE_MM)
    (gradient,) = torch.autograd.grad((images**2).sum(), volumes)
    torch.testing.assert_close((gradient * volumes).sum(), 2 * (images**2).sum())  # it is linear


def test_a_sideways_shift_moves_the_mass_by_the_magnification() -> None:
    affine = AFFINE.copy()
    affine[:3, 3] -= [4.0, -6.0, 3.0]  # the middle of the grid is the isocentre
    volumes = torch.from_numpy(blob(affine)).double()[None]
    poses = torch.zeros((1, 6), dtype=torch.float64, requires_grad=True)
    image = project_poses(volumes, affine, CONE, poses, CENTRE_MM)[0, 0]
    column = (image * torch.arange(34)).sum() / image.sum()
    (gradient,) = torch.autograd.grad(column, poses)
    assert float(gradient[0, 3]) == pytest.approx(1 / 1.3, rel=2e-3)  # pixels for each mm: 1.3 mm in the object plane


def test_flat_rays_and_a_source_beside_the_grid_are_refused() -> None:
    volumes = torch.from_numpy(two_structures())
    mixed = torch.zeros((3, 6))
    mixed[2, 2] = np.pi / 2  # two poses seen from the front, one from the side
    with pytest.raises(ValueError, match="voxels sideways from plane to plane"):
        project_poses(volumes, AFFINE, CONE, mixed, CENTRE_MM)
    beside = torch.tensor([[0.0, 0.0, 0.0, 0.0, -850.0, 0.0]])
    with pytest.raises(ValueError, match="source lies level with the grid"):
        project_poses(volumes, AFFINE, CONE, beside, CENTRE_MM)
    with pytest.raises(ValueError, match=r"expected \(structures, z, y, x\)"):
        project_poses(volumes[0], AFFINE, CONE, POSES, CENTRE_MM)
