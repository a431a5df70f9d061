"""Persons whose anatomy is changed on purpose: their mineral, their pose, their joints and fractures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from itertools import count as numbers_from
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from training.anatomy.disease import FractureKind
from training.anatomy.phantom import Phantom, make_phantom
from training.anatomy.population import Pose, Subject, draw_fracture, draw_pose, draw_subject
from training.ladders.ladder import (
    Case,
    Conditions,
    Ladder,
    draw_conditions,
    make_ladder,
    quantities,
    read_hip,
    truth_and_reading,
    value_of,
)
from training.ladders.reading import Read
from training.statistics import Precision, Values, bootstrap_intervals, precision
from training.targets import HipTarget, make_targets

MINERAL_FACTORS = (0.5, 0.7, 0.85, 1.0, 1.15, 1.3)
LOSS_FACTORS = (0.6, 0.8, 1.0, 1.2)
ARTHRITIS: Mapping[str, float] = {"none": 0.0, "mild": 0.4, "moderate": 0.7, "severe": 1.0}
"""Grade to severity, see `training.anatomy.disease`."""
POSES = 5
_REPOSITIONED, _SAME_DEVICE, _SAME_POSE = "repositioned", "same device", "same pose"
_FOLLOW_UP_SD_DEG = Pose(flexion_deg=3.0, abduction_deg=3.0, internal_rotation_deg=5.0)
"""How far a patient who is put down again by the same protocol lies from the first time, SD. Own choice: studies of densitometry
turn a leg by 10 degrees and abduct it by 6 to show what careless positioning does (doi:10.1385/jcd:6:4:331; PMID 2065219)."""
_REPEAT_TAKE = 100
"""Numbers of the takes that repeat the first pose, apart from those of the poses."""


def native_subjects(population_seed: int, first: int, count: int) -> list[Subject]:
    """The first persons from number `first` on who lie for an AP view; implants are taken out."""
    drawn = (draw_subject(population_seed, number) for number in numbers_from(first))
    lying = (subject for subject in drawn if not subject.is_frog_leg)
    return [
        replace(subject, hips=(replace(subject.hips[0], implant=None), replace(subject.hips[1], implant=None)))
        for subject in islice(lying, count)
    ]


@dataclass(frozen=True)
class MineralSlope:
    """Does a figure follow the mineral of the same bone, or only its shape?"""

    ladder: str
    quantity: str
    hips: int
    slope: float
    """Of reading on truth within a hip, over the factors: 1 is measured, 0 is guessed from what does not change."""
    slope_interval: tuple[float, float]
    """95 %, by patient."""
    slope_sd: float
    """Between hips."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def scaled(phantom: Phantom, factor: float) -> Phantom:
    """The same person with so much of the mineral of every bone; outlines, marrow space and soft tissue stay.

    Beyond about 1.1 the densest cortex exceeds fully mineralised bone: no anatomy, but the same question.
    """
    structures = tuple(
        replace(structure, values=structure.values * np.float32(factor))
        if structure.name.endswith("_mineral")
        else structure
        for structure in phantom.structures
    )
    return replace(phantom, structures=structures)


def thinned(subject: Subject, factor: float) -> Subject:
    """The same person with so much of the cortex's thickness and of the trabecular density, as bone is lost; outlines stay."""
    right, left = (
        replace(
            hip,
            quality=replace(
                hip.quality,
                shaft_cortex_mm=factor * hip.quality.shaft_cortex_mm,
                calcar_cortex_mm=factor * hip.quality.calcar_cortex_mm,
                shell_cortex_mm=factor * hip.quality.shell_cortex_mm,
                trabecular_density_g_cm3=factor * hip.quality.trabecular_density_g_cm3,
            ),
        )
        for hip in subject.hips
    )
    pelvis = subject.pelvis_quality
    lost = replace(
        pelvis,
        cortex_mm=factor * pelvis.cortex_mm,
        trabecular_density_g_cm3=factor * pelvis.trabecular_density_g_cm3,
    )
    return replace(subject, hips=(right, left), pelvis_quality=lost)


def mineral_ladder(read: Read, subjects: Sequence[Subject], seed: int) -> Ladder:
    """Read persons whose mineral alone is scaled, each under the same conditions for all factors."""
    cases = []
    for subject in tqdm(subjects, desc="mineral", unit="person"):
        phantom = make_phantom(subject)
        for factor in MINERAL_FACTORS:
            cases += _read_phantom(read, scaled(phantom, factor), seed, f"{factor:g}")
    return _factor_ladder("mineral", "Mineral scaled in the same bones", "factor on all mineral", cases)


def loss_ladder(read: Read, subjects: Sequence[Subject], seed: int) -> Ladder:
    """Read persons whose cortex thins and whose trabeculae thin out, each under the same conditions for all factors."""
    cases = []
    for subject in tqdm(subjects, desc="loss", unit="person"):
        for factor in LOSS_FACTORS:
            cases += _read_phantom(read, make_phantom(thinned(subject, factor)), seed, f"{factor:g}")
    title = "Cortex and trabeculae thinned within the same outline"
    return _factor_ladder("loss", title, "factor on cortical thickness and trabecular density", cases)


def arthritis_ladder(read: Read, subjects: Sequence[Subject], seed: int) -> Ladder:
    """Read persons whose hips degenerate, each under the same conditions for all grades; the network knows healthy ones."""
    cases = []
    for subject in tqdm(subjects, desc="osteoarthritis", unit="person"):
        for grade, severity in ARTHRITIS.items():
            right, left = (replace(hip, osteoarthritis=severity) for hip in subject.hips)
            cases += _read_phantom(read, make_phantom(replace(subject, hips=(right, left))), seed, grade)
    title = "Osteoarthritis of the same hips (what is true of them changes with it)"
    return make_ladder("osteoarthritis", title, "grade", cases, reference="none")


def broken_hips(subjects: Sequence[Subject], seed: int) -> Iterator[HipTarget]:
    """Both hips of each person with a fracture of each kind."""
    for subject in tqdm(subjects, desc="fractures", unit="person"):
        for number, kind in enumerate(FractureKind):
            rng = np.random.default_rng((seed, 9, subject.index, number))
            right, left = (replace(hip, fracture=draw_fracture(rng, kind)) for hip in subject.hips)
            yield from make_targets(make_phantom(replace(subject, hips=(right, left)))).hips


def _read_phantom(read: Read, phantom: Phantom, seed: int, rung: str) -> list[Case]:
    return [read_hip(read, hip, draw_conditions(seed, hip.figures), rung) for hip in make_targets(phantom).hips]


def _factor_ladder(name: str, title: str, axis: str, cases: list[Case]) -> Ladder:
    return make_ladder(name, title, axis, sorted(cases, key=lambda case: float(case.rung)), reference="1")


def mineral_slopes(ladders: Sequence[Ladder]) -> list[MineralSlope]:
    """Slopes of all quantities that have one."""
    slopes = [mineral_slope(one.cases, name, one.name) for one in ladders for name in quantities(one.cases)]
    return [slope for slope in slopes if slope is not None]


def mineral_slope(cases: Sequence[Case], quantity: str, ladder: str = "mineral") -> MineralSlope | None:
    """Slope within hips; None where the truth does not change with mineral (areas) or no hip was read twice."""
    truths, readings, patients, slopes = [], [], [], []
    for own in _by_hip(cases).values():
        truth, reading, patient = truth_and_reading(own, quantity)
        if truth.size < 2 or np.ptp(truth) < 1e-3 * truth.mean():
            continue
        truths.append(truth - truth.mean())
        readings.append(reading - reading.mean())
        patients.append(patient)
        slopes.append(_slope(truths[-1], readings[-1])[0])
    if len(slopes) < 2:
        return None
    centred = np.concatenate(truths), np.concatenate(readings)
    interval = bootstrap_intervals(_slope, np.concatenate(patients), *centred)[0]
    return MineralSlope(
        ladder=ladder,
        quantity=quantity,
        hips=len(slopes),
        slope=float(_slope(*centred)[0]),
        slope_interval=(float(interval[0]), float(interval[1])),
        slope_sd=float(np.std(slopes, ddof=1)),
    )


def _slope(centred_truth: Values, centred_reading: Values) -> Values:
    return np.array([(centred_truth * centred_reading).sum() / (centred_truth**2).sum()])


@dataclass(frozen=True)
class Repeatability:
    """How far readings of the same hip lie apart; hips count as persons."""

    quantity: str
    repositioned: Precision
    """Put down again by the same protocol before the same device: nearly the same pose, other noise, exposure and processing as
    they were. This is what precision of densitometry means (ISCD), and what a follow-up can see."""
    same_device: Precision
    """Put down before the same device in any AP pose that patients are brought in."""
    over_poses: Precision
    """Put down anew elsewhere: another AP pose, exposure, noise and processing each time."""
    truth_over_poses: Precision
    """What the true figure itself changes with the pose; 0 for canonical ones."""
    same_pose: Precision
    """The same pose taken again: another exposure, noise and processing."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def repeat(read: Read, subjects: Sequence[Subject], seed: int) -> tuple[list[Case], list[Repeatability]]:
    """Put each person down `POSES` times: by one protocol, in any pose, before one device and before as many; and take the first
    pose as often again."""
    cases = []
    for subject in tqdm(subjects, desc="poses", unit="person"):
        for number, hips in enumerate(_posed(subject, seed)):
            for hip in hips:
                own = draw_conditions(seed, hip.figures, number)
                cases.append(read_hip(read, hip, own, f"pose {number + 1}"))
                kept = _before_one_device(hip, seed, number)
                cases.append(read_hip(read, hip, kept, f"{_SAME_DEVICE}, pose {number + 1}"))
                takes = range(_REPEAT_TAKE, _REPEAT_TAKE + POSES) if number == 0 else ()
                cases += [read_hip(read, hip, draw_conditions(seed, hip.figures, take), _SAME_POSE) for take in takes]
        for number, hips in enumerate(_repositioned(subject, seed)):
            for hip in hips:
                kept = _before_one_device(hip, seed, number)
                cases.append(read_hip(read, hip, kept, f"{_REPOSITIONED}, {number + 1}"))
    return cases, repeatability(cases)


def _before_one_device(hip: HipTarget, seed: int, number: int) -> Conditions:
    """Exposure and processing of the first take, place and noise of another one."""
    own, first = (draw_conditions(seed, hip.figures, take) for take in (number, 0))
    return replace(first, offset_px=own.offset_px, noise_seed=own.noise_seed)


def _posed(subject: Subject, seed: int) -> Iterator[tuple[HipTarget, HipTarget]]:
    """Both hips in one AP pose after another, as patients are brought in."""
    rng = np.random.default_rng((seed, 6, subject.index))
    for _ in range(POSES):
        yield _hips(subject, [draw_pose(rng, is_frog_leg=False) for _ in subject.hips])


def _repositioned(subject: Subject, seed: int) -> Iterator[tuple[HipTarget, HipTarget]]:
    """Both hips as this person lies, within what a protocol leaves open."""
    rng = np.random.default_rng((seed, 7, subject.index))
    sd = np.array(astuple(_FOLLOW_UP_SD_DEG))
    for _ in range(POSES):
        yield _hips(subject, [Pose(*(astuple(hip.pose) + rng.normal(0, sd)).tolist()) for hip in subject.hips])


def _hips(subject: Subject, poses: Sequence[Pose]) -> tuple[HipTarget, HipTarget]:
    right, left = (replace(hip, pose=pose) for hip, pose in zip(subject.hips, poses, strict=True))
    return make_targets(make_phantom(replace(subject, hips=(right, left)))).hips


def repeatability(cases: Sequence[Case]) -> list[Repeatability]:
    """Precision of every quantity that somebody has at least twice in each way of repeating."""
    ways: dict[str, list[Case]] = {_REPOSITIONED: [], _SAME_DEVICE: [], _SAME_POSE: [], "": []}
    for case in cases:
        ways[next(way for way in ways if case.rung.startswith(way))].append(case)
    again, device, still, posed = (_by_hip(own) for own in ways.values())
    result = []
    for name in quantities(cases):
        series = [_values(hips, name) for hips in (again, device, posed, still)]
        if all(any(len(one) > 1 for one in own) for own in series):
            truth = [np.array([case.true[name] for case in own if name in case.true]) for own in posed.values()]
            repositioned, same_device, over_poses, same_pose = (precision(own) for own in series)
            result.append(Repeatability(name, repositioned, same_device, over_poses, precision(truth), same_pose))
    return result


def _values(hips: dict[tuple[int, str], list[Case]], quantity: str) -> list[Values]:
    return [
        np.array([value for case in own if (value := value_of(case.reading, quantity)) is not None])
        for own in hips.values()
    ]


def _by_hip(cases: Sequence[Case]) -> dict[tuple[int, str], list[Case]]:
    hips: dict[tuple[int, str], list[Case]] = {}
    for case in cases:
        hips.setdefault((case.subject, case.side), []).append(case)
    return hips
