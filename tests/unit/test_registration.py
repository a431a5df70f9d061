"""Registration: closed forms of similarity and errors, a small patient whose pose is known, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from benchmarks.registering import auroc
from dicomnode.domain.radiograph import Side
from training.anatomy.ct import CtVolume
from training.anatomy.population import SHAFT_LEAN_DEG, Pose, femur_rotation
from training.projection.differentiable import patient_from_unmoved
from training.projection.geometry import ConeBeam, anteroposterior
from training.registration.accuracy import areal_density, pose_error, projection_distance_mm
from training.registration.anatomy import Bones, MovableCt, UnusableBones, head_centre_mm, prepare, with_rim
from training.registration.confidence import Evidence, Rule, failure, fit
from training.registration.joints import JointAngles, joint_angles, turn_of
from training.registration.register import Plan, UnusableRadiograph, register
from training.registration.scene import make_scene
from training.registration.search import evolve, refine
from training.registration.similarity import GradientCorrelation, PatchCorrelation, Similarity
from training.registration.simulation import motion_of, with_turned_femora

SHAPE = (56, 40, 64)
VOXEL_MM = 4.0
AFFINE = np.diag([VOXEL_MM, VOXEL_MM, VOXEL_MM, 1.0])
AFFINE[:3, 3] = [-126.0, -78.0, -110.0]
HEADS_MM = {Side.RIGHT: np.array([-70.0, 0.0, 0.0]), Side.LEFT: np.array([70.0, 4.0, 2.0])}
BEAM = anteroposterior(np.zeros(3), 1150.0, 1000.0, 2.0, (100, 120))
LYING = np.array([0.05, -0.04, 0.06, 5.0, -8.0, 4.0])
PLAN = Plan(coarse_mm=12.0, middle_mm=6.0, fine_mm=4.0, finest_mm=2.0, coarse_generations=25, middle_generations=10)


def points_mm() -> NDArray[np.float64]:
    z, y, x = np.indices(SHAPE)
    return np.asarray(np.stack([x, y, z], axis=-1) * VOXEL_MM + AFFINE[:3, 3], np.float64)


def small_patient() -> tuple[CtVolume, Bones]:
    """An ellipsoid of soft tissue; two plates with sockets and a wedge between them; two heads with necks and shafts."""
    p = points_mm()
    hu = np.where((p[..., 0] / 118) ** 2 + (p[..., 1] / 72) ** 2 < 1, 40.0, -1000.0)
    from_heads = {side: np.linalg.norm(p - head, axis=-1) for side, head in HEADS_MM.items()}
    plates = (np.abs(np.abs(p[..., 0]) - 58) < 14) & (np.abs(p[..., 1] - 0.1 * p[..., 2]) < 34) & (p[..., 2] > -18)
    wedge = (np.abs(p[..., 0]) < 46 - 0.2 * p[..., 2]) & (p[..., 1] > 22) & (p[..., 1] < 44) & (p[..., 2] > 20)
    near_head = np.minimum(*from_heads.values()) < 30
    pelvis = (plates | wedge) & ~near_head & (p[..., 2] < 88)
    femora = {}
    for side, head in HEADS_MM.items():
        lateral = np.sign(head[0])
        offset = (p - head) * [lateral, 1, 1]
        shaft = (np.hypot(offset[..., 0] - 22, offset[..., 1] + 6) < 13) & (offset[..., 2] < -12)
        trochanter = np.linalg.norm(offset - [36, 16, -6], axis=-1) < 17
        femora[side] = (from_heads[side] < 23) | shaft | trochanter
    texture = gaussian_filter(np.random.default_rng(0).standard_normal(SHAPE), 1.0)
    hu[pelvis] = 500
    hu[np.any(list(femora.values()), axis=0)] = 700
    hu += np.where(hu > 100, 600 * texture, 0)
    return CtVolume(gaussian_filter(hu, 0.6).astype(np.float32), AFFINE), Bones(pelvis, femora)


@pytest.fixture(scope="module")
def patient() -> tuple[CtVolume, Bones]:
    return small_patient()


@pytest.fixture(scope="module")
def movable(patient: tuple[CtVolume, Bones]) -> MovableCt:
    return prepare(*patient)


def picture(ct: MovableCt, pose: NDArray[np.float64], beam: ConeBeam = BEAM) -> NDArray[np.float32]:
    """A projection, through a curve as makers apply, with noise."""
    scene = make_scene(ct, np.zeros(beam.shape, np.float32), np.ones(beam.shape, np.bool_), beam, 1.0, "cpu")
    image = scene.rigid(torch.from_numpy(pose)[None])[0].numpy()
    noise = np.random.default_rng(1).normal(0.0, 0.002, image.shape)
    return np.asarray(np.tanh(image / 4) + noise, np.float32)


def random_images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((count, 24, 30)))


MEASURES = (GradientCorrelation.of, lambda image, mask: PatchCorrelation.of(image, mask, 8))


@pytest.mark.parametrize("make", MEASURES, ids=["whole", "patches"])
def test_a_picture_is_like_itself_whatever_its_brightness_and_contrast(make) -> None:  # type: ignore[no-untyped-def]
    image, other = random_images(2)
    similarity: Similarity = make(image, torch.ones(image.shape, dtype=torch.bool))
    same, scaled, inverse, another = similarity(torch.stack([image, 3 * image + 7, -image, other])).tolist()
    assert same == pytest.approx(1.0, abs=1e-5)
    assert scaled == pytest.approx(1.0, abs=1e-5)
    assert inverse == pytest.approx(-1.0, abs=1e-5)
    assert abs(another) < 0.15


@pytest.mark.parametrize("make", MEASURES, ids=["whole", "patches"])
def test_what_the_mask_leaves_out_does_not_count(make) -> None:  # type: ignore[no-untyped-def]
    image = random_images(1)[0]
    mask = torch.ones(image.shape, dtype=torch.bool)
    mask[5:12, 8:15] = False
    changed = image.clone()
    changed[5:12, 8:15] += 5 * random_images(1, 9)[0, 5:12, 8:15]
    assert float(make(image, mask)(changed[None])) == pytest.approx(1.0, abs=1e-5)
    assert float(make(changed, mask)(image[None])) == pytest.approx(1.0, abs=1e-5)
    assert float(make(image, torch.ones_like(mask))(changed[None])) < 0.99


@pytest.mark.parametrize("make", MEASURES, ids=["whole", "patches"])
def test_the_gradient_of_a_similarity_is_that_of_finite_differences(make) -> None:  # type: ignore[no-untyped-def]
    fixed, moving = random_images(2)
    mask = torch.ones(fixed.shape, dtype=torch.bool)
    mask[:4] = False
    similarity = make(fixed, mask)
    direction = random_images(1, 3)[0]
    moving = moving.requires_grad_()
    (gradient,) = torch.autograd.grad(similarity(moving[None]).sum(), moving)
    with torch.no_grad():
        ahead, behind = similarity(torch.stack([moving + 1e-5 * direction, moving - 1e-5 * direction]))
    assert float((gradient * direction).sum()) == pytest.approx(float(ahead - behind) / 2e-5, rel=1e-4)


def test_gradient_correlation_of_two_ramps_is_the_cosine_of_their_curvatures() -> None:
    """Of `x2` and `x2 + c y2`: the derivatives across agree; those down are a ramp against nothing."""
    row, column = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    similarity = GradientCorrelation.of((column**2 + row**2).double(), torch.ones(20, 24, dtype=torch.bool))
    across_only = (column**2).double()
    assert float(similarity(across_only[None])) == pytest.approx(0.5, abs=1e-6)


def test_a_mask_without_any_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="no pixel of the radiograph counts"):
        GradientCorrelation.of(random_images(1)[0], torch.zeros((24, 30), dtype=torch.bool))


def test_errors_of_known_motions_are_those_computed_by_hand() -> None:
    points = np.array([[-50.0, 0.0, 0.0], [50.0, 0.0, 0.0], [0.0, 0.0, 60.0], [0.0, 0.0, -60.0]])
    still = np.eye(4)
    sideways = motion_of(np.array([0.0, 0.0, 0.0, 3.0, 0.0, 4.0]), np.zeros(3))
    error = pose_error(sideways, still, points, BEAM)
    assert error.projection_mm == pytest.approx(5.0)  # the points lie in one plane parallel to the detector
    assert error.mtre_mm == pytest.approx(5.0)
    assert error.in_plane_mm == pytest.approx(5.0)
    assert error.depth_mm == pytest.approx(0.0, abs=1e-9)
    assert error.rotation_deg == pytest.approx(0.0, abs=1e-6)
    deeper = pose_error(motion_of(np.array([0.0, 0.0, 0.0, 0.0, 10.0, 0.0]), np.zeros(3)), still, points, BEAM)
    assert deeper.depth_mm == pytest.approx(10.0)
    assert deeper.in_plane_mm == pytest.approx(0.0, abs=1e-9)
    assert deeper.mtre_mm == pytest.approx(10.0)
    assert deeper.projection_mm == pytest.approx(55.0 * (1 - 1000 / 1010))  # 50, 50, 60, 60 mm off the central ray
    turned = pose_error(motion_of(np.array([0.0, 0.0, math.pi / 6, 0.0, 0.0, 0.0]), np.zeros(3)), still, points, BEAM)
    assert turned.rotation_deg == pytest.approx(30.0)
    assert turned.mtre_mm == pytest.approx(2 * 50 * math.sin(math.pi / 12) / 2)  # two of four points are on the axis


def test_a_bone_farther_from_the_tube_keeps_its_density_and_its_area() -> None:
    """A pixel's size is taken where the pose puts the bone: mass and area stay, whatever the magnification."""
    block = np.zeros((30, 12, 30), np.float32)
    block[5:25, 3:9, 5:25] = 0.5
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [-29.0, -11.0, -29.0]
    beam = anteroposterior(np.zeros(3), 1150.0, 1000.0, 0.5, (160, 160))
    here = areal_density(block, affine, np.eye(4), np.zeros(3), beam)
    there = areal_density(block, affine, motion_of(np.array([0, 0, 0, 0, 30.0, 0]), np.zeros(3)), np.zeros(3), beam)
    assert here.bmc_g == pytest.approx(0.5 * 4.0 * 1.2 * 4.0, rel=0.02)
    assert here.areal_bmd_g_cm2 == pytest.approx(0.6, rel=0.06)
    assert there.bmc_g == pytest.approx(here.bmc_g, rel=0.01)
    assert there.areal_bmd_g_cm2 == pytest.approx(here.areal_bmd_g_cm2, rel=0.02)
    beside = areal_density(block, affine, motion_of(np.array([0, 0, 0, 900.0, 0, 0]), np.zeros(3)), np.zeros(3), beam)
    assert beside.area_cm2 == 0 and np.isnan(beside.areal_bmd_g_cm2)


@pytest.mark.parametrize("side", list(Side))
def test_joint_angles_are_those_of_the_population(side: Side) -> None:
    angles = JointAngles(12.0, -7.0, 15.0)
    read = joint_angles(turn_of(angles, side), side)
    assert (read.flexion_deg, read.abduction_deg, read.internal_rotation_deg) == pytest.approx((12.0, -7.0, 15.0))
    pose = Pose(flexion_deg=12.0, abduction_deg=SHAFT_LEAN_DEG - 7.0, internal_rotation_deg=15.0)
    np.testing.assert_allclose(turn_of(angles, Side.LEFT), femur_rotation(pose), atol=1e-12)


def test_an_abducted_femur_goes_outwards_on_either_side() -> None:
    for side, lateral in ((Side.RIGHT, -1.0), (Side.LEFT, 1.0)):
        knee = turn_of(JointAngles(0.0, 10.0, 0.0), side) @ [0.0, 0.0, -400.0]
        assert knee[0] * lateral == pytest.approx(400 * math.sin(math.radians(10)))
        assert (turn_of(JointAngles(10.0, 0.0, 0.0), side) @ [0.0, 0.0, -400.0])[1] < 0  # forwards


def test_the_parts_together_attenuate_as_the_whole(movable: MovableCt) -> None:
    scene = make_scene(movable, np.zeros(BEAM.shape, np.float32), np.ones(BEAM.shape, np.bool_), BEAM, 4.0, "cpu")
    poses = torch.from_numpy(np.stack([np.zeros(6), LYING]))
    still = {side: torch.zeros((2, 3), dtype=torch.float64) for side in Side}
    whole = scene.rigid(poses)
    torch.testing.assert_close(scene.jointed(poses, still), whole, rtol=1e-4, atol=1e-4 * float(whole.max()))


def test_heads_are_found_where_they_are(patient: tuple[CtVolume, Bones], movable: MovableCt) -> None:
    for side, head in HEADS_MM.items():
        assert np.linalg.norm(movable.head_centres_mm[side] - head) < 2.0  # half a voxel
        assert np.linalg.norm(head_centre_mm(patient[1].femora[side], patient[1].pelvis, AFFINE) - head) < 2.0


def test_a_turned_femur_lies_where_its_turn_puts_it(patient: tuple[CtVolume, Bones]) -> None:
    ct, bones = patient
    head = HEADS_MM[Side.LEFT]
    motion = motion_of(np.array([0.0, -0.17, 0.0, 0.0, 0.0, 0.0]), head)  # its shaft outwards
    turned = with_turned_femora(ct, bones, {Side.LEFT: motion})
    moved = with_rim(bones, Side.LEFT, ct.patient_from_voxel)
    before, after = ((volume - 40.0).clip(0) * moved for volume in (ct.hu, turned.hu))
    assert after.sum() < before.sum()
    low = points_mm()[..., 2] < -60
    sideways = [
        np.average(points_mm()[..., 0][low & (points_mm()[..., 0] > 40)], weights=hu[low & (points_mm()[..., 0] > 40)])
        for hu in ((ct.hu - 100).clip(0), (turned.hu - 100).clip(0))
    ]
    assert 6.0 < sideways[1] - sideways[0] < 25.0


def test_cma_finds_the_top_of_a_hill_from_each_start_and_climbing_ends_on_it() -> None:
    top = torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64)

    def likeness(parameters: torch.Tensor) -> torch.Tensor:
        return -((parameters - top) ** 2 * torch.tensor([1.0, 4.0, 0.25])).sum(1)

    bounds = np.array([[-20.0, 20.0]] * 3)
    ends, values = evolve(likeness, np.array([[10.0, 10.0, 10.0], [-10.0, 0.0, 5.0]]), 5.0, 60, 12, bounds, 0)
    np.testing.assert_allclose(ends, np.tile(top, (2, 1)), atol=0.3)
    assert (values > -0.05).all()
    end, value = refine(likeness, ends[0], 30, bounds)
    np.testing.assert_allclose(end, top, atol=1e-3)
    assert value == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_true_pose_is_kept(movable: MovableCt, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rigid = replace(movable, femora={})
    found = register(rigid, picture(rigid, LYING), BEAM, starts=LYING, plan=PLAN, device=device)
    assert (
        projection_distance_mm(
            found.patient_from_ct, motion_of(LYING, movable.centre_mm), movable.pelvis_points_mm, BEAM
        )
        < 0.3
    )
    np.testing.assert_allclose(
        found.patient_from_ct,
        patient_from_unmoved(torch.from_numpy(found.pose)[None], found.centre_mm)[0].numpy(),
    )


def test_a_displaced_patient_with_a_turned_hip_is_found(patient: tuple[CtVolume, Bones], movable: MovableCt) -> None:
    turn = turn_of(JointAngles(0.0, 8.0, 0.0), Side.LEFT)
    head = movable.head_centres_mm[Side.LEFT]
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = turn, head - turn @ head
    turned = prepare(with_turned_femora(*patient, {Side.LEFT: motion}), replace(patient[1], femora={}))
    found = register(movable, picture(replace(turned, centre_mm=movable.centre_mm), LYING), BEAM, plan=PLAN, seed=3)
    error = pose_error(found.patient_from_ct, motion_of(LYING, movable.centre_mm), movable.pelvis_points_mm, BEAM)
    assert error.projection_mm < 1.0
    assert error.rotation_deg < 1.5
    assert found.femora[Side.LEFT].angles.abduction_deg == pytest.approx(8.0, abs=1.5)
    assert found.femora[Side.RIGHT].angles.abduction_deg == pytest.approx(0.0, abs=1.5)
    shaft = head + np.array([[22.0, -6.0, -15.0], [22.0, -6.0, -85.0]])
    true = motion_of(LYING, movable.centre_mm) @ motion
    assert projection_distance_mm(found.femora[Side.LEFT].patient_from_ct, true, shaft, BEAM) < 1.0


def test_images_and_masks_that_do_not_fit_are_refused(patient: tuple[CtVolume, Bones], movable: MovableCt) -> None:
    ct, bones = patient
    even = np.ones(BEAM.shape, np.float32)
    with pytest.raises(UnusableRadiograph, match=r"the radiograph is \(3, 3\).*expected \(100, 120\)"):
        register(movable, np.zeros((3, 3), np.float32), BEAM)
    with pytest.raises(UnusableRadiograph, match="is even"):
        register(movable, even, BEAM)
    with pytest.raises(UnusableRadiograph, match="no numbers"):
        register(movable, even * np.nan, BEAM)
    with pytest.raises(UnusableBones, match="mask of the pelvis is bool"):
        prepare(ct, replace(bones, pelvis=bones.pelvis[1:]))
    with pytest.raises(UnusableBones, match="mask of the L femur is empty"):
        prepare(ct, replace(bones, femora={Side.LEFT: np.zeros(SHAPE, np.bool_)}))
    far = np.zeros(SHAPE, np.bool_)
    far[:4, :4, :4] = True
    with pytest.raises(UnusableBones, match="expected a head in its socket"):
        prepare(ct, replace(bones, femora={Side.LEFT: far}))


def test_a_rule_learns_what_separates_found_from_missed() -> None:
    found = [Evidence(0.9 + 0.01 * i, 0.08, 0.001, 0.1 + 0.1 * i) for i in range(6)]
    missed = [Evidence(0.5 + 0.03 * i, 0.03, -0.01, 4.0 + i) for i in range(6)]
    rule = fit([*found, *missed], [True] * 6 + [False] * 6)
    assert min(map(rule.confidence, found)) > 0.5 > max(map(rule.confidence, missed))


def test_a_missed_pose_says_why() -> None:
    assert failure(Evidence(0.9, 0.1, 0.01, 0.1), 0.9) is None
    assert "ended 5.0 mm apart" in str(failure(Evidence(0.9, 0.1, 0.01, 5.0), 0.1))
    assert "no maximum" in str(failure(Evidence(0.9, 0.1, -0.01, 0.1), 0.1))
    assert "alike by 0.30 only" in str(failure(Evidence(0.3, 0.1, 0.01, 0.1), 0.1))


def test_confidence_is_one_half_on_the_border_of_a_rule() -> None:
    assert Rule((0.0, 0.0, 0.0, 0.0), 0.0).confidence(Evidence(0.9, 0.1, 0.0, 0.0)) == 0.5


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order() -> None:
    assert auroc([0.9, 0.4, 0.6, 0.1], [True, True, False, False]) == pytest.approx(3 / 4)
    assert auroc([1.0, 1.0], [True, False]) == pytest.approx(0.5)
    assert math.isnan(auroc([1.0, 0.5], [True, True]))
