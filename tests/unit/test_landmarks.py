"""Landmarks found in a femur's volume, against those that are known."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.domain.radiograph import Side
from training.anatomy.atlas import LPS_FROM_RAS
from training.anatomy.femur import VOXEL_MM, FemurLandmarks, femur_volumes, landmarks
from training.anatomy.implicit import local_from_voxel
from training.anatomy.landmarks import LandmarksNotFound, find_head, find_landmarks
from training.anatomy.mesh import Mesh, volume_fraction
from training.anatomy.phantom import patient_from_femur
from training.anatomy.population import draw_subject
from training.anatomy.volume import Structure
from training.targets import canonical_figures


@cache
def _femur(index: int = 3) -> tuple[Structure, Structure, FemurLandmarks, Side]:
    """Mineral and volume of a phantom's femur, its landmarks by construction, its side."""
    subject = draw_subject(77, index)
    hip = subject.hips[index % 2]
    mineral, volume, origin = femur_volumes(hip.femur, hip.quality, hip.seed)
    motion = patient_from_femur(subject, hip)
    matrix = motion @ local_from_voxel(origin, VOXEL_MM)
    return (
        Structure("mineral", mineral, "g/cm3", matrix),
        Structure("volume", volume, "1", matrix),
        landmarks(hip.femur).moved(motion),
        hip.side,
    )


def _as_mask(volume: Structure, voxel_mm: float) -> Structure:
    """A binary mask on a grid along the patient's axes, as a segmentation gives it."""
    matrix, shape = volume.patient_from_voxel, np.array(volume.values.shape)[::-1]
    corners = np.stack(np.meshgrid(*[[0, n - 1] for n in shape]), -1).reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3]
    low, high = corners.min(axis=0) - 4.3, corners.max(axis=0) + 4.0
    grid_matrix = local_from_voxel(low, voxel_mm)
    voxel = np.linalg.inv(matrix) @ grid_matrix
    values = ndimage.affine_transform(
        ndimage.gaussian_filter(volume.values, 0.35 * voxel_mm / VOXEL_MM),
        voxel[:3, :3][::-1, ::-1],
        voxel[:3, 3][::-1],
        tuple(np.ceil((high - low) / voxel_mm).astype(int)[::-1]),
        order=1,
    )
    return Structure("mask", (values >= 0.5).astype(np.float32), "1", grid_matrix)


def _cut_above(volume: Structure, height_mm: float, head_mm: NDArray[np.float64]) -> Structure:
    """What a tomogram shows that ends so far below the centre of the head; voxel axes as they are."""
    levels = np.arange(volume.values.shape[0])
    heights = levels * volume.patient_from_voxel[2, 2] + volume.patient_from_voxel[2, 3]
    first = int(np.argmax(heights > head_mm[2] - height_mm))
    matrix = volume.patient_from_voxel.copy()
    matrix[:3, 3] = (volume.patient_from_voxel @ [0, 0, first, 1])[:3]
    return Structure(volume.name, volume.values[first:], "1", matrix)


def _errors(found: FemurLandmarks, true: FemurLandmarks) -> dict[str, float]:
    up = true.shaft_proximal - true.shaft_distal
    up = up / np.linalg.norm(up)
    lesser = (found.lesser_trochanter_tip - true.lesser_trochanter_tip) @ up
    axis = found.shaft_proximal - found.shaft_distal
    return {
        "head": float(np.linalg.norm(found.head_centre - true.head_centre)),
        "radius": abs(found.head_radius_mm - true.head_radius_mm),
        "junction": float(np.linalg.norm(found.head_neck_junction - true.head_neck_junction)),
        "lesser level": abs(float(lesser)),
        "shaft deg": float(np.degrees(np.arccos(min(1.0, float(axis @ up / np.linalg.norm(axis)))))),
    }


@pytest.mark.parametrize("index", [2, 3])
def test_landmarks_of_a_phantom_are_found_where_they_were_put(index: int) -> None:
    _, volume, true, side = _femur(index)
    errors = _errors(find_landmarks(volume, side), true)
    limits = {"head": 0.3, "radius": 0.3, "junction": 1.0, "lesser level": 1.5, "shaft deg": 2.0}
    assert all(errors[name] < limit for name, limit in limits.items()), errors


@pytest.mark.parametrize("voxel_mm", [0.8, 3.0])
def test_coarse_binary_masks_are_enough(voxel_mm: float) -> None:
    _, volume, true, side = _femur()
    errors = _errors(find_landmarks(_as_mask(volume, voxel_mm), side), true)
    limits = {"head": 0.5, "radius": 0.4, "junction": 1.5, "lesser level": 3.5, "shaft deg": 3.0}
    assert all(errors[name] < limit for name, limit in limits.items()), errors


def test_the_pose_does_not_matter() -> None:
    _, volume, _, side = _femur()
    turn = np.eye(4)
    a, b = 2.0, -1.1
    turn[:3, :3] = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    turn[:3, 3] = (40, -200, 700)
    turned = find_landmarks(replace(volume, patient_from_voxel=turn @ volume.patient_from_voxel), side)
    upright = find_landmarks(volume, side).moved(turn)
    for name in ("head_centre", "neck_base", "greater_trochanter_tip", "lesser_trochanter_tip", "shaft_distal"):
        np.testing.assert_allclose(getattr(turned, name), getattr(upright, name), atol=0.3)


def test_the_mirror_image_has_the_mirrored_landmarks_on_the_other_side() -> None:
    _, volume, _, side = _femur()
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    other = Side.LEFT if side is Side.RIGHT else Side.RIGHT
    mirrored = find_landmarks(replace(volume, patient_from_voxel=mirror @ volume.patient_from_voxel), other)
    np.testing.assert_allclose(
        mirrored.lesser_trochanter_tip, find_landmarks(volume, side).moved(mirror).lesser_trochanter_tip, atol=0.2
    )


def test_found_landmarks_give_the_figures_of_the_true_ones() -> None:
    mineral, volume, true, side = _femur()
    from_true = canonical_figures((mineral, volume), true)["total_hip"]["areal_bmd_g_cm2"]
    from_found = canonical_figures((mineral, volume), find_landmarks(volume, side))["total_hip"]["areal_bmd_g_cm2"]
    assert from_true is not None
    assert from_found == pytest.approx(from_true, rel=0.015)


@pytest.mark.parametrize(
    ("below_head_mm", "reason"), [(45.0, "lesser trochanter"), (75.0, "ends"), (5.0, "cut off|round|neck")]
)
def test_what_lies_outside_of_the_volume_is_not_guessed(below_head_mm: float, reason: str) -> None:
    _, volume, true, side = _femur()
    short = _cut_above(_as_mask(volume, 1.5), below_head_mm, true.head_centre)
    with pytest.raises(LandmarksNotFound, match=reason):
        find_landmarks(short, side)


def test_a_femur_cut_off_below_the_neck_still_shows_its_head() -> None:
    _, volume, true, _ = _femur()
    head = find_head(_cut_above(_as_mask(volume, 1.5), 45.0, true.head_centre))
    assert np.linalg.norm(head.centre - true.head_centre) < 0.5
    assert head.radius_mm == pytest.approx(true.head_radius_mm, abs=0.4)


def test_a_femur_that_ends_some_way_below_is_whole_enough() -> None:
    _, volume, true, side = _femur()
    short = find_landmarks(_cut_above(_as_mask(volume, 1.5), 115.0, true.head_centre), side)
    assert _errors(short, true)["lesser level"] < 2.0


def test_something_else_is_no_femur() -> None:
    z, y, x = np.indices((60, 60, 60))
    box = ((abs(x - 30) < 20) & (abs(y - 30) < 12) & (abs(z - 30) < 25)).astype(np.float32)
    with pytest.raises(LandmarksNotFound):
        find_landmarks(Structure("box", box, "1", np.eye(4)), Side.LEFT)
    with pytest.raises(LandmarksNotFound, match="no bone"):
        find_landmarks(Structure("nothing", np.zeros((9, 9, 9), np.float32), "1", np.eye(4)), Side.LEFT)


def test_a_segmented_bone_has_the_head_that_its_description_states(reference_data: Path) -> None:
    with np.load(reference_data / "anatomy" / "femur_libhip_m3_left.npz") as file:
        mesh = Mesh(file["vertices"].astype(float), file["triangles"].astype(np.int64)).moved(LPS_FROM_RAS)
        radius_mm = float(file["head_radius"])
    low = mesh.vertices.min(axis=0) - 3
    shape = tuple(np.ceil((mesh.vertices.max(axis=0) + 3 - low) / 1.5).astype(int)[::-1])
    fraction = volume_fraction(mesh, low, 1.5, (shape[0], shape[1], shape[2]))
    found = find_landmarks(Structure("femur", fraction, "1", local_from_voxel(low, 1.5)), Side.LEFT)
    assert np.linalg.norm(found.head_centre) < 1.0
    assert found.head_radius_mm == pytest.approx(radius_mm, abs=0.7)
