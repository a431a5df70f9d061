"""Find how the patient of a CT lay in a plain radiograph: one view, coarse to fine, first as one body, then with hips that turn.

1. CMA-ES on a coarse grid from each start, three times over; the best two of these again on a finer one.
2. Quasi-Newton steps along the gradient of the pose, through the projector.
3. Each femur by itself: CMA-ES over the turns about the centre of its head, then all bodies together along the gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dicomnode.domain.radiograph import Side
from dicomnode.errors import DicomNodeError
from training.projection.differentiable import patient_from_unmoved
from training.projection.geometry import ConeBeam, detector_depths, detector_from_patient
from training.registration.accuracy import projection_distance_mm
from training.registration.anatomy import MovableCt
from training.registration.confidence import SHIPPED, Evidence, failure
from training.registration.joints import LIMITS_DEG, JointAngles, joint_angles
from training.registration.scene import Scene, make_scene, part
from training.registration.search import LEVER_MM, Likeness, evolve, refine
from training.registration.similarity import GradientCorrelation, PatchCorrelation, Similarity

PATCH_MM = 30.0
"""Side of a patch in the object plane; assumption, about a femoral neck."""
LEAST_PATCH_PX = 8
PROBE_MM = 3.0
"""Step of the parameters: 1.7 degrees or 3 mm."""
FEMUR_MARGIN_MM = 25.0
UNITS = np.array([1 / LEVER_MM] * 3 + [1.0] * 3)
"""A pose is parameters in mm times these: radians and mm."""
MOST_RAD, HIP_MOST_RAD = 0.7, 0.6
"""40 and 34 degrees: nobody lies so for a radiograph, and planes of voxels are too sparse for rays that cross them flat."""
LEVEL_RAD = 0.35
"""A pelvis that is found turned by more than 20 degrees was missed: its hips are not looked at."""
REACH_MM = np.array([0.6 * LEVER_MM] * 3 + [100.0] * 3)
"""How far from its start a pose is looked for, either way: 34 degrees and 100 mm."""


class UnusableRadiograph(DicomNodeError, ValueError):
    """An image cannot be registered to; the message says why, and what to do."""


class Measure(StrEnum):
    """What is maximised."""

    PATCHES = "patches"
    """`PatchCorrelation`."""
    WHOLE = "whole"
    """`GradientCorrelation`."""


@dataclass(frozen=True)
class Plan:
    """How much is searched. Resolutions are of voxels, and of pixels in the object plane."""

    measure: Measure = Measure.PATCHES
    runs: int = 3
    """Searches from each start."""
    kept: int = 2
    """Of all searches, those that go on to the middle grid."""
    coarse_mm: float = 8.0
    coarse_sigma_mm: float = 15.0
    coarse_generations: int = 45
    middle_mm: float = 4.0
    middle_sigma_mm: float = 3.0
    middle_generations: int = 16
    population: int = 14
    fine_mm: float = 2.8
    fine_iterations: int = 20
    finest_mm: float = 1.6
    finest_iterations: int = 10
    femur_generations: int = 20
    femur_sigma_mm: float = 8.0


@dataclass(frozen=True)
class FemurPose:
    """Where one femur lay."""

    turn_rad: NDArray[np.float64]
    """(3,) rotation vector against the pelvis, about the centre of the head, along the axes of the CT's frame."""
    patient_from_ct: NDArray[np.float64]
    """4 x 4, the femur's motion from the CT to the radiograph; the pelvis's included."""
    angles: JointAngles


@dataclass(frozen=True)
class Registration:
    """Where the patient of a CT lay, and how far that is to be believed."""

    pose: NDArray[np.float64]
    """(6,) of the pelvis, as `training.projection.differentiable.patient_from_unmoved` takes it, about `centre_mm`."""
    centre_mm: NDArray[np.float64]
    """(3,) in the frame of the CT."""
    patient_from_ct: NDArray[np.float64]
    """4 x 4, the pelvis's motion from the CT to the frame of the beam: `pose` as a matrix."""
    femora: Mapping[Side, FemurPose]
    similarity: float
    """What was maximised, of radiograph and projection on the finest grid; at most 1."""
    evidence: Evidence
    confidence: float
    """0..1, that the mean projection distance is below 1 mm, as calibrated on simulated radiographs."""
    failure: str | None
    """Why the pose is not to be used, None where it is."""


def register(
    ct: MovableCt,
    image: NDArray[np.float32],
    beam: ConeBeam,
    *,
    mask: NDArray[np.bool_] | None = None,
    starts: NDArray[np.float64] | None = None,
    plan: Plan | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Registration:
    """Register a CT to a plain radiograph.

    Args:
        ct: of `training.registration.anatomy.prepare`.
        image: (rows, columns), larger is more attenuation (bone bright), whatever the maker did to it.
        beam: the X-ray geometry, known or nominal, in the frame in which the CT lies as it was scanned.
        mask: (rows, columns) pixels that count: no collimator, no letters; all by default.
        starts: (s, 6) poses about `ct.centre_mm` to begin from; by default the unmoved CT.
        device: "cpu" or a CUDA device.

    Raises:
        UnusableRadiograph: image or mask have another shape than the beam's detector, or hold nothing to register to.
    """
    plan = plan or Plan()
    mask = np.ones(beam.shape, np.bool_) if mask is None else mask
    _check(image, mask, beam)
    begun = np.zeros((1, 6)) if starts is None else np.atleast_2d(np.asarray(starts, np.float64))
    coarse, middle, fine, finest = (
        make_scene(ct, image, mask, beam, resolution, device)
        for resolution in (plan.coarse_mm, plan.middle_mm, plan.fine_mm, plan.finest_mm)
    )
    begun_mm = np.repeat(begun / UNITS, plan.runs, axis=0)
    bounds = np.stack([begun_mm.min(axis=0) - REACH_MM, begun_mm.max(axis=0) + REACH_MM], axis=1)
    ends, values = evolve(
        _rigid(coarse, plan.measure),
        begun_mm,
        plan.coarse_sigma_mm,
        plan.coarse_generations,
        plan.population,
        bounds,
        seed,
    )
    kept = ends[np.argsort(-values)[: plan.kept]]
    ends, values = evolve(
        _rigid(middle, plan.measure),
        kept,
        plan.middle_sigma_mm,
        plan.middle_generations,
        plan.population,
        bounds,
        seed + 1,
    )
    spread_mm = _spread_mm(ends, ct, beam)
    found_mm, _ = refine(_rigid(fine, plan.measure), ends[values.argmax()], plan.fine_iterations, bounds)
    level = np.linalg.norm(found_mm[:3]) <= LEVEL_RAD * LEVER_MM
    sides = tuple(ct.femora) if level else ()
    turns_mm = [_search_turn((middle, fine), found_mm, side, plan, seed + 2) for side in sides]
    all_mm, all_bounds = np.concatenate([found_mm, *turns_mm]), np.concatenate([bounds, *[_turn_bounds()] * len(sides)])
    if sides:
        all_mm, _ = refine(_jointed(fine, sides, plan.measure), all_mm, plan.fine_iterations, all_bounds)
    all_mm, similarity = refine(_jointed(finest, sides, plan.measure), all_mm, plan.finest_iterations, all_bounds)
    evidence = _evidence(_jointed(middle, sides, Measure.PATCHES), all_mm, spread_mm)
    turns = {side: all_mm[6 + 3 * number : 9 + 3 * number] / LEVER_MM for number, side in enumerate(sides)}
    pose = _poses(torch.from_numpy(all_mm[:6])[None])[0][0].numpy()
    return _result(ct, pose, turns, similarity, evidence)


def _rigid(scene: Scene, measure: Measure) -> Likeness:
    """Likeness by parameters (b, 6) in mm of the patient as one body."""
    similarity = _similarity(scene, measure)

    def likeness(parameters: Tensor) -> Tensor:
        poses, too_far = _poses(parameters.to(scene.image.device))
        return similarity(scene.rigid(poses)) - too_far

    return likeness


def _poses(parameters_mm: Tensor) -> tuple[Tensor, Tensor]:
    """Poses (b, 6), and (b,) what to take off their likeness for turning further than `MOST_RAD`."""
    turns, too_far = _held(parameters_mm[:, :3] / LEVER_MM, MOST_RAD)
    return torch.cat([turns, parameters_mm[:, 3:]], dim=1), too_far


def _held(turns: Tensor, most_rad: float) -> tuple[Tensor, Tensor]:
    """Rotation vectors (b, 3) of no more than an angle, and (b,) by which share of it they were beyond."""
    angles = turns.norm(dim=1, keepdim=True).clamp_min(1e-9)
    return turns * (most_rad / angles).clamp_max(1.0), (angles[:, 0] / most_rad - 1.0).clamp_min(0.0)


def _similarity(scene: Scene, measure: Measure) -> Similarity:
    if measure is Measure.WHOLE:
        return GradientCorrelation.of(scene.image, scene.mask)
    object_mm = scene.beam.detector_spacing_mm[1] * float(detector_depths(scene.centre_mm, scene.beam))
    return PatchCorrelation.of(scene.image, scene.mask, max(LEAST_PATCH_PX, round(PATCH_MM / object_mm)))


def _search_turn(
    scenes: tuple[Scene, Scene], pelvis_mm: NDArray[np.float64], side: Side, plan: Plan, seed: int
) -> NDArray[np.float64]:
    """(3,) turn in mm of arc of one femur, all else held still: CMA-ES on the coarser scene, gradient on the finer."""
    searched, climbed = (_turned(scene, pelvis_mm, side, plan.measure) for scene in scenes)
    if searched is None or climbed is None:
        return np.zeros(3)
    bounds = _turn_bounds()
    starts = np.zeros((plan.runs, 3))
    ends, values = evolve(searched, starts, plan.femur_sigma_mm, plan.femur_generations, plan.population, bounds, seed)
    return refine(climbed, ends[values.argmax()], plan.fine_iterations, bounds)[0]


def _turn_bounds() -> NDArray[np.float64]:
    """(3, 2) in mm of arc."""
    limits = np.radians(LIMITS_DEG) * LEVER_MM
    return np.stack([-limits, limits], axis=1)


def _turned(scene: Scene, pelvis_mm: NDArray[np.float64], side: Side, measure: Measure) -> Likeness | None:
    """Likeness by the turn of one femur where it is seen; None where too little of it is."""
    pose = _poses(torch.from_numpy(pelvis_mm)[None])[0].to(scene.image.device)
    motion = patient_from_unmoved(pose, scene.centre_mm)
    window = _footprint(scene, side, motion)
    if window is None:
        return None
    near = part(scene, window)
    with torch.no_grad():
        still = near.rigid(pose) - near.femur(side, motion, torch.zeros_like(pose[:, :3]))
    similarity = _similarity(near, measure)

    def likeness(turns_mm: Tensor) -> Tensor:
        turns, too_far = _held(turns_mm.to(motion) / LEVER_MM, HIP_MOST_RAD)
        return similarity(still + near.femur(side, motion.expand(len(turns), 4, 4), turns)) - too_far

    return likeness


def _footprint(scene: Scene, side: Side, motion: Tensor) -> tuple[int, int, int, int] | None:
    """Where a femur and `FEMUR_MARGIN_MM` around it are seen; None where too little of it is."""
    volume = scene.femora[side]
    nz, ny, nx = volume.mu_per_cm.shape[1:]
    corners = np.array([[x, y, z, 1.0] for x in (0, nx - 1) for y in (0, ny - 1) for z in (0, nz - 1)])
    moved = corners @ volume.patient_from_voxel.T @ motion[0].cpu().numpy().T
    pixels = detector_from_patient(moved[:, :3], scene.beam)
    margin = FEMUR_MARGIN_MM / np.array(scene.beam.detector_spacing_mm)
    low = np.maximum(np.floor(pixels.min(axis=0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(pixels.max(axis=0) + margin) + 1, scene.beam.shape).astype(int)
    if (high - low < 2 * LEAST_PATCH_PX).any():
        return None
    return int(low[0]), int(high[0]), int(low[1]), int(high[1])


def _jointed(scene: Scene, sides: tuple[Side, ...], measure: Measure) -> Likeness:
    """Likeness by pelvis (6,) and the turn (3,) of each femur one after the other, in mm."""
    if not sides:
        return _rigid(scene, measure)
    similarity = _similarity(scene, measure)

    def likeness(parameters: Tensor) -> Tensor:
        parameters = parameters.to(scene.image.device)
        poses, too_far = _poses(parameters[:, :6])
        turns = {}
        for number, side in enumerate(sides):
            turns[side], beyond = _held(parameters[:, 6 + 3 * number : 9 + 3 * number] / LEVER_MM, HIP_MOST_RAD)
            too_far = too_far + beyond
        return similarity(scene.jointed(poses, turns)) - too_far

    return likeness


def _spread_mm(ends_mm: NDArray[np.float64], ct: MovableCt, beam: ConeBeam) -> float:
    """Largest projection distance between the first of several poses and the others."""
    motions = [_matrix(end * UNITS, ct.centre_mm) for end in ends_mm]
    return max(projection_distance_mm(other, motions[0], ct.pelvis_points_mm, beam) for other in motions)


def _evidence(likeness: Likeness, found_mm: NDArray[np.float64], spread_mm: float) -> Evidence:
    steps = np.zeros((13, len(found_mm)))
    for parameter in range(6):
        steps[1 + 2 * parameter, parameter], steps[2 + 2 * parameter, parameter] = PROBE_MM, -PROBE_MM
    with torch.no_grad():
        values = likeness(torch.from_numpy(found_mm + steps)).double().cpu().numpy()
    falls = values[0] - values[1:]
    return Evidence(float(values[0]), float(falls.mean()), float(falls.min()), spread_mm)


def _result(
    ct: MovableCt,
    pose: NDArray[np.float64],
    turns: Mapping[Side, NDArray[np.float64]],
    similarity: float,
    evidence: Evidence,
) -> Registration:
    motion = _matrix(pose, ct.centre_mm)
    femora = {}
    for side in ct.femora:
        turn = turns.get(side, np.zeros(3))
        in_socket = _matrix(np.concatenate([turn, np.zeros(3)]), ct.head_centres_mm[side])
        femora[side] = FemurPose(turn, motion @ in_socket, joint_angles(in_socket[:3, :3], side))
    confidence = SHIPPED.confidence(evidence)
    reason = failure(evidence, confidence)
    return Registration(pose, ct.centre_mm, motion, femora, similarity, evidence, confidence, reason)


def _matrix(pose: NDArray[np.float64], centre_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(patient_from_unmoved(torch.from_numpy(pose)[None], centre_mm)[0].numpy(), np.float64)


def _check(image: NDArray[np.float32], mask: NDArray[np.bool_], beam: ConeBeam) -> None:
    if image.shape != beam.shape or mask.shape != beam.shape:
        raise UnusableRadiograph(
            f"the radiograph is {image.shape} and its mask {mask.shape}, expected {beam.shape} as the beam's detector"
        )
    if not np.isfinite(image).all():
        raise UnusableRadiograph("the radiograph holds values that are no numbers: check how it was decoded")
    if not mask.any() or np.ptp(image[mask]) == 0:
        raise UnusableRadiograph("the radiograph is even where its mask lets it count: check the mask and the decoding")
