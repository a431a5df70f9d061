"""How well a CT is registered to one radiograph: `python -m benchmarks.registering`. All radiographs are simulated.

Every start is a line in `starts.jsonl` of the output folder; a run that was ended goes on where it stopped.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import SimpleITK
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from scipy.spatial.transform import Rotation
from scipy.stats import rankdata
from tqdm import tqdm

from dicomnode.domain.radiograph import Side
from training.anatomy.ct import CtVolume, body_mask, ct_from_image, mineral_g_cm3, read_ct
from training.registration.accuracy import PoseError, areal_density, pose_error
from training.registration.anatomy import Bones, MovableCt, head_centre_mm, prepare
from training.registration.confidence import LEAST_CONFIDENCE, Evidence, fit
from training.registration.joints import JointAngles, joint_angles, turn_of
from training.registration.picture import draw_registration
from training.registration.register import Measure, Plan, Registration, register
from training.registration.simulation import Taken, motion_of, take, with_turned_femora
from training.simulate_dx import hips_isocentre_mm

DATA = Path(os.environ.get("DICOMNODE_REFERENCE_DATA", "../shared/data"))
SEED = 20261124
LAY_DEG, LAY_MM = 5.0, 10.0
"""How the patient of a radiograph lies off the nominal position, uniform either way."""
START_DEG, START_MM = 15.0, 30.0
FAR_DEG, FAR_MM = 45.0, 90.0
HIP_DEG = 10.0
NOISE_HU = 25.0
"""Added to the CT that is registered, not to the one that the radiograph is taken of."""
SUCCESS_MM = 1.0
RADIOGRAPHS = 10
"""Of each volume, each of its own pose, exposure and processing; the starts take turns."""
STARTS = "starts.jsonl"
HASTY = Plan(runs=2, coarse_generations=6, middle_generations=4, fine_iterations=3, finest_iterations=1)
KINDS = ("start within 15 deg, 30 mm", "few evaluations", "start up to 45 deg, 90 mm", "another patient", "mirrored CT")
NUMBERS = ("projection_mm", "rotation_deg", "flexion_error_deg", "abduction_error_deg", "internal_rotation_error_deg")
WHOLE = "whole-field gradient correlation"
HIPS = "hips turned by up to 10 deg"


@dataclass(frozen=True)
class World:
    """A volume to take radiographs of, and to register."""

    name: str
    ct: CtVolume
    bones: Bones
    isocentre_mm: NDArray[np.float64]
    turns: tuple[Side, ...]
    """Hips that can be turned in it: those without metal."""


@dataclass(frozen=True)
class Start:
    """One registration whose true pose is known."""

    world: str
    kind: str
    number: int
    radiograph: int
    start: PoseError | None
    error: PoseError | None
    """None for a CT that is not the patient's."""
    similarity: float
    evidence: Evidence
    areal_bmd_percent: float
    """Change of the areal density of the right femur's mineral by the error of the pose."""
    area_percent: float
    hips: Mapping[str, Mapping[str, float]]
    cpu_s: float

    @property
    def succeeded(self) -> bool:
        """Mean projection distance below `SUCCESS_MM`."""
        return self.error is not None and self.error.projection_mm < SUCCESS_MM


def main(
    data: Annotated[Path, typer.Option(help="Folder with ct/ and anatomy/ of the reference data.")] = DATA,
    starts: Annotated[int, typer.Option(min=1, help="Starts for each volume.")] = 100,
    failures: Annotated[
        int, typer.Option(min=1, help="Registrations of each kind that is bound to fail, per volume.")
    ] = 10,
    hips: Annotated[int, typer.Option(min=0, help="Radiographs with turned hips for each volume.")] = 10,
    whole: Annotated[int, typer.Option(min=0, help="Starts with the other measure, for each volume.")] = 10,
    folder: Annotated[Path, typer.Option("--output", "-o")] = Path("runs/registering"),
) -> None:
    """Register CTs to simulated radiographs from many starts; table, results.json and pictures."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / STARTS
    done = {(line["world"], line["kind"], line["number"]) for line in _lines(file)}
    wanted = [key for key in _wanted(starts, failures, hips, whole) if key not in done]
    bench = Bench(data)
    with file.open("a", encoding="utf-8") as log:
        for world, kind, number in tqdm(wanted, desc="starts"):
            log.write(json.dumps(asdict(bench.run(world, kind, number))) + "\n")
            log.flush()
    report(folder, bench)


def _wanted(starts: int, failures: int, hips: int, whole: int) -> list[tuple[str, str, int]]:
    """Kinds and volumes take turns by their shares, so that a run that is ended early has some of each."""
    counts = {KINDS[0]: starts, **dict.fromkeys(KINDS[1:], failures), HIPS: hips, WHOLE: whole}
    keys = [(world, kind, number) for kind, count in counts.items() for number in range(count) for world in WORLDS]
    return sorted(keys, key=lambda key: (key[2] + 0.5) / counts[key[1]])


class Bench:
    """Runs single starts; keeps what several of them share."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.world = lru_cache(None)(lambda name: WORLDS[name](data))
        self.movable = lru_cache(None)(self._movable)
        self.taken = lru_cache(4 * RADIOGRAPHS)(self._taken)

    def run(self, name: str, kind: str, number: int) -> Start:
        """One registration, timed."""
        world, radiograph = self.world(name), number % RADIOGRAPHS
        random = np.random.default_rng([SEED, sorted(WORLDS).index(name), [*KINDS, HIPS, WHOLE].index(kind), number])
        taken = self.taken(name, radiograph, kind == HIPS)
        ct = self.movable(name, {"another patient": "other", "mirrored CT": "mirrored", HIPS: "hips"}.get(kind, "own"))
        far = kind == "start up to 45 deg, 90 mm"
        start = self._start(world, ct, taken, random, (FAR_DEG, FAR_MM) if far else (START_DEG, START_MM))
        plan = {"few evaluations": HASTY, WHOLE: Plan(measure=Measure.WHOLE)}.get(kind, Plan())
        begun = time.process_time()
        found = register(ct, taken.image, taken.beam, starts=start, plan=plan, seed=number)
        cpu_s = time.process_time() - begun
        right = kind not in KINDS[3:]
        before = pose_error(motion_of(start, ct.centre_mm), taken.patient_from_ct, ct.pelvis_points_mm, taken.beam)
        after = pose_error(found.patient_from_ct, taken.patient_from_ct, ct.pelvis_points_mm, taken.beam)
        bmd, area = _density_change(world, ct, found, taken) if right and kind != HIPS else (math.nan, math.nan)
        return Start(
            world=name,
            kind=kind,
            number=number,
            radiograph=radiograph,
            start=before if right else None,
            error=after if right else None,
            similarity=found.similarity,
            evidence=found.evidence,
            areal_bmd_percent=bmd,
            area_percent=area,
            hips=_hip_errors(world, found, taken) if kind == HIPS else {},
            cpu_s=cpu_s,
        )

    def draw(self, path: Path, name: str) -> None:
        """Register the first start once more, and draw it."""
        taken, ct = self.taken(name, 0, False), self.movable(name, "own")
        found = register(ct, taken.image, taken.beam, starts=np.zeros(6))
        error = pose_error(found.patient_from_ct, taken.patient_from_ct, ct.pelvis_points_mm, taken.beam)
        title = (
            f"{name}, simulated radiograph: mean projection distance {error.projection_mm:.2f} mm from the true pose"
        )
        draw_registration(path, ct, found, taken.image, taken.beam, title)

    def _movable(self, name: str, which: str) -> MovableCt:
        world = self.world(next(other for other in WORLDS if other != name) if which == "other" else name)
        noise = np.random.default_rng(SEED).normal(0.0, NOISE_HU, world.ct.hu.shape).astype(np.float32)
        ct, pelvis = replace(world.ct, hu=world.ct.hu + noise), world.bones.pelvis
        if which == "mirrored":
            ct, pelvis = replace(ct, hu=ct.hu[:, :, ::-1].copy()), pelvis[:, :, ::-1].copy()
        femora = {side: world.bones.femora[side] for side in world.turns} if which == "hips" else {}
        return prepare(ct, Bones(pelvis, femora))

    def _taken(self, name: str, radiograph: int, hips: bool) -> Taken:
        world = self.world(name)
        random = np.random.default_rng([SEED, sorted(WORLDS).index(name), radiograph, int(hips)])
        pose = _uniform(random, LAY_DEG, LAY_MM)
        ct = self.movable(name, "hips")
        turned = {}
        for side in world.turns if hips else ():
            turn = turn_of(JointAngles(*random.uniform(-HIP_DEG, HIP_DEG, 3)), side)
            head = ct.head_centres_mm[side]
            turned[side] = np.block([[turn, (head - turn @ head)[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])
        volume = with_turned_femora(world.ct, world.bones, turned)
        taken = take(volume, motion_of(pose, ct.centre_mm), world.isocentre_mm, int(random.integers(2**31)))
        return replace(taken, turned_from_ct=turned)

    def _start(
        self, world: World, ct: MovableCt, taken: Taken, random: np.random.Generator, reach: tuple[float, float]
    ) -> NDArray[np.float64]:
        """About the true pose; of another CT, about where its pelvis lies as the true one does."""
        own = self.movable(world.name, "own").centre_mm
        pose = _uniform(random, *reach)
        turn = motion_of(np.concatenate([pose[:3], np.zeros(3)]), np.zeros(3))[:3, :3] @ taken.patient_from_ct[:3, :3]
        centre = taken.patient_from_ct[:3, :3] @ own + taken.patient_from_ct[:3, 3]
        return np.concatenate([Rotation.from_matrix(turn).as_rotvec(), centre - ct.centre_mm + pose[3:]])


def _uniform(random: np.random.Generator, degrees: float, mm: float) -> NDArray[np.float64]:
    return np.concatenate([np.radians(random.uniform(-degrees, degrees, 3)), random.uniform(-mm, mm, 3)])


def _density_change(world: World, ct: MovableCt, found: Registration, taken: Taken) -> tuple[float, float]:
    """By how many per cent areal density and area of the right femur change with the error of the pose."""
    femur = world.bones.femora[Side.RIGHT]
    z, y, x = (np.flatnonzero(femur.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3))
    box = tuple(slice(int(axis[0]), int(axis[-1]) + 1) for axis in (z, y, x))
    density = np.where(femur, mineral_g_cm3(world.ct.hu), np.float32(0.0))[box]
    matrix = world.ct.patient_from_voxel @ np.array([[1, 0, 0, x[0]], [0, 1, 0, y[0]], [0, 0, 1, z[0]], [0, 0, 0, 1.0]])
    middle = (matrix @ [(len(x) - 1) / 2, (len(y) - 1) / 2, (len(z) - 1) / 2, 1.0])[:3]
    seen, true = (
        areal_density(density, matrix, motion, middle, taken.beam)
        for motion in (found.patient_from_ct, taken.patient_from_ct)
    )
    return (
        100.0 * (seen.areal_bmd_g_cm2 / true.areal_bmd_g_cm2 - 1.0),
        100.0 * (seen.area_cm2 / true.area_cm2 - 1.0),
    )


def _hip_errors(world: World, found: Registration, taken: Taken) -> dict[str, dict[str, float]]:
    errors = {}
    for side, femur in found.femora.items():
        z, y, x = np.nonzero(world.bones.femora[side])
        matrix = world.ct.patient_from_voxel
        points = (np.stack([x, y, z], axis=1) @ matrix[:3, :3].T + matrix[:3, 3])[:: max(1, len(x) // 500)]
        true = taken.patient_from_ct @ taken.turned_from_ct[side]
        angles = joint_angles(taken.turned_from_ct[side][:3, :3], side)
        errors[side.value] = {
            **asdict(pose_error(femur.patient_from_ct, true, points, taken.beam)),
            "flexion_error_deg": femur.angles.flexion_deg - angles.flexion_deg,
            "abduction_error_deg": femur.angles.abduction_deg - angles.abduction_deg,
            "internal_rotation_error_deg": femur.angles.internal_rotation_deg - angles.internal_rotation_deg,
        }
    return errors


def _real(data: Path) -> World:
    """A clinical CT of 3 mm, down to the femoral necks, with a nail in the left femur."""
    ct = read_ct(data / "ct" / "example_ct.nii.gz")
    labels, values = _labels(data / "ct" / "example_ct_labels_v1.nii.gz")
    pelvis = np.isin(labels, [values["hip_left"], values["hip_right"], values["sacrum"]])
    femora = {Side.RIGHT: labels == values["femur_right"], Side.LEFT: labels == values["femur_left"]}
    return World("clinical CT", ct, Bones(pelvis, femora), hips_isocentre_mm(ct, body_mask(ct)), (Side.RIGHT,))


TISSUES_HU = {"air": -1000.0, "adipose/subcutaneous+interstitial": -100.0, "hip cartilage": 80.0}
FILLER_HU, MUSCLE_HU, MARROW_HU, CORTEX_HU, CORTEX_MM = 15.0, 55.0, 180.0, 1000.0, 2.0


def _atlas(data: Path) -> World:
    """The label map of an atlas as a CT: a cortex that fades inwards to a trabecular pattern; 1.5 mm."""
    path = data / "anatomy" / "vhf_hip_labels.nii.gz"
    labels, values = _labels(path)
    hu = np.full(labels.shape, MUSCLE_HU, np.float32)
    for name, value in TISSUES_HU.items():
        hu[labels == values[name]] = value
    hu[labels == 2] = FILLER_HU
    texture = ndimage.gaussian_filter(np.random.default_rng(SEED).standard_normal(labels.shape), 1.5)
    bones = ("sacrum", "left_hemipelvis", "right_hemipelvis", "left_femur", "right_femur")
    for name in bones:
        bone = labels == values[name]
        depth_mm = 1.5 * ndimage.distance_transform_edt(bone)[bone] - 0.75
        hu[bone] = MARROW_HU + 60.0 * texture[bone] / texture.std() + CORTEX_HU * np.exp(-depth_mm / CORTEX_MM)
    ct = replace(
        ct_from_image(SimpleITK.ReadImage(str(path), SimpleITK.sitkFloat32)), hu=ndimage.gaussian_filter(hu, 0.5)
    )
    femora = {Side.RIGHT: labels == values["right_femur"], Side.LEFT: labels == values["left_femur"]}
    pelvis = np.isin(labels, [values[name] for name in bones[:3]])
    heads = [head_centre_mm(femur, pelvis, ct.patient_from_voxel) for femur in femora.values()]
    return World("atlas", ct, Bones(pelvis, femora), np.mean(heads, axis=0), (Side.RIGHT, Side.LEFT))


WORLDS: Mapping[str, Callable[[Path], World]] = {"clinical CT": _real, "atlas": _atlas}


def _labels(path: Path) -> tuple[NDArray[np.int64], dict[str, int]]:
    image = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).astype(np.int64)
    names = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text(encoding="utf-8"))
    return image, {name: int(value) for value, name in names.items()}


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def read_starts(file: Path) -> list[Start]:
    """The starts of a run."""
    return [
        Start(
            **{
                **line,
                "start": line["start"] and PoseError(**line["start"]),
                "error": line["error"] and PoseError(**line["error"]),
                "evidence": Evidence(**line["evidence"]),
            }
        )
        for line in _lines(file)
    ]


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Area under the ROC curve: the chance that a positive case scores higher than a negative one; NaN without both."""
    is_positive = np.array(positive)
    n, m = int(is_positive.sum()), int((~is_positive).sum())
    if n == 0 or m == 0:
        return math.nan
    return float((rankdata(scores)[is_positive].sum() - n * (n + 1) / 2) / (n * m))


def crossed(starts: Sequence[Start]) -> list[float]:
    """Confidence of each start by a rule that was fitted without its radiograph's half: even and odd ones."""
    scores = [math.nan] * len(starts)
    for half in range(2):
        others = [one for one in starts if one.radiograph % 2 != half]
        rule = fit([one.evidence for one in others], [one.succeeded for one in others])
        for i, one in enumerate(starts):
            if one.radiograph % 2 == half:
                scores[i] = rule.confidence(one.evidence)
    return scores


def report(folder: Path, bench: Bench) -> None:
    """Print the tables, write results.json and a picture of each volume's first start."""
    console, starts = Console(width=150), read_starts(folder / STARTS)
    meant = [one for one in starts if one.kind == KINDS[0]]
    turned = [one for one in starts if one.kind == HIPS]
    judged = [one for one in starts if one.kind in KINDS]
    console.print(accuracy_table(meant, f"starts uniform within {START_DEG:g} deg and {START_MM:g} mm"))
    console.print(accuracy_table([one for one in starts if one.kind == WHOLE], WHOLE))
    console.print(hips_table(turned), failures_table(judged))
    results = {
        "note": "simulated radiographs; true poses known",
        "starts": [asdict(one) | {"succeeded": one.succeeded} for one in starts],
        "accuracy": {name: summary([one for one in meant if one.world == name]) for name in WORLDS},
        "auroc": auroc(crossed(judged), [one.succeeded for one in judged]),
        "rule": asdict(fit([one.evidence for one in judged], [one.succeeded for one in judged])),
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    for name in WORLDS:
        path = folder / f"{name.replace(' ', '_')}.png"
        bench.draw(path, name)
        console.print(f"written   {path}")


def summary(starts: Sequence[Start]) -> dict[str, float]:
    """Figures of one volume; empty without starts."""
    errors = [one.error for one in starts if one.error is not None]
    if not errors:
        return {}
    depth = np.array([error.depth_mm for error in errors])
    bmd = np.array([one.areal_bmd_percent for one in starts])
    projection = np.array([error.projection_mm for error in errors])
    return {
        "n": len(errors),
        "success_percent": 100.0 * float(np.mean(projection < SUCCESS_MM)),
        "start_projection_mm_median": float(np.median([one.start.projection_mm for one in starts if one.start])),
        "projection_mm_median": float(np.median(projection)),
        "projection_mm_p95": float(np.quantile(projection, 0.95)),
        "projection_mm_worst": float(projection.max()),
        "rotation_deg_median": float(np.median([error.rotation_deg for error in errors])),
        "in_plane_mm_median": float(np.median([error.in_plane_mm for error in errors])),
        "depth_mm_bias": float(depth.mean()),
        "depth_mm_sd": float(depth.std(ddof=1)) if len(depth) > 1 else math.nan,
        "depth_mm_median_size": float(np.median(np.abs(depth))),
        "mtre_mm_median": float(np.median([error.mtre_mm for error in errors])),
        "areal_bmd_percent_median_size": float(np.median(np.abs(bmd))),
        "areal_bmd_percent_worst": float(np.abs(bmd).max()),
        "cpu_s_median": float(np.median([one.cpu_s for one in starts])),
    }


def accuracy_table(starts: Sequence[Start], what: str) -> Table:
    """Errors at the end of searches that begin within reach."""
    table = Table(
        "Volume",
        title=f"One view to CT, simulated radiographs, {what}",
        title_justify="left",
        caption="Success: mean projection distance below 1 mm in the object plane. Rotation to mTRE: medians; depth is bias +- SD."
        " aBMD: change of the right femur's by the pose, median (worst). CPU: one core, median.",
        caption_justify="left",
    )
    for heading in (
        "n", "Success", "Start mm", "Projection mm (95 %, worst)", "Rotation deg", "In plane mm", "Depth mm", "mTRE mm",
        "aBMD %", "CPU s",
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    for name in WORLDS:
        s = summary([one for one in starts if one.world == name])
        if s:
            table.add_row(
                name,
                f"{s['n']:.0f}",
                f"{s['success_percent']:.1f} %",
                f"{s['start_projection_mm_median']:.1f}",
                f"{s['projection_mm_median']:.3f} ({s['projection_mm_p95']:.3f}, {s['projection_mm_worst']:.3f})",
                f"{s['rotation_deg_median']:.3f}",
                f"{s['in_plane_mm_median']:.3f}",
                f"{s['depth_mm_bias']:+.2f} +- {s['depth_mm_sd']:.2f}",
                f"{s['mtre_mm_median']:.2f}",
                f"{s['areal_bmd_percent_median_size']:.3f} ({s['areal_bmd_percent_worst']:.3f})",
                f"{s['cpu_s_median']:.1f}",
            )
    return table


def hips_table(starts: Sequence[Start]) -> Table:
    """Errors of femora that were turned against the pelvis."""
    table = Table(
        "Volume",
        title=f"Hips turned by up to {HIP_DEG:g} deg about three axes, simulated radiographs",
        title_justify="left",
        caption="Medians of the size of the error (worst). The clinical CT ends below the femoral neck, and only its native hip"
        " is turned.",
        caption_justify="left",
    )
    for heading in (
        "Femora", "Pelvis mm", "Femur mm", "Rotation deg", "Flexion deg", "Abduction deg", "Internal rotation deg", "CPU s",
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    for name in WORLDS:
        own = [one for one in starts if one.world == name and one.error is not None]
        femora = [hip for one in own for hip in one.hips.values()]
        if femora:
            table.add_row(
                name,
                str(len(femora)),
                _median_worst([one.error.projection_mm for one in own if one.error]),
                *(_median_worst([hip[key] for hip in femora]) for key in NUMBERS),
                f"{np.median([one.cpu_s for one in own]):.1f}",
            )
    return table


def failures_table(starts: Sequence[Start]) -> Table:
    """How poses that were found and missed are told apart."""
    confidences = crossed(starts)
    area = auroc(confidences, [one.succeeded for one in starts])
    table = Table(
        "Registration",
        title=f"Found or missed, told by the registration itself: AUROC {area:.3f}",
        title_justify="left",
        caption=f"By rules fitted on the other half of the radiographs; believed from a confidence of {LEAST_CONFIDENCE:g} on."
        " The CT of another patient, or a mirrored one, is missed by definition.",
        caption_justify="left",
    )
    for heading in ("n", "Found", "Found, believed", "Missed", "Missed, believed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind in KINDS:
        seen = [
            (one.succeeded, confidence >= LEAST_CONFIDENCE)
            for one, confidence in zip(starts, confidences, strict=True)
            if one.kind == kind
        ]
        found = sum(succeeded for succeeded, _ in seen)
        table.add_row(
            kind,
            str(len(seen)),
            str(found),
            str(sum(succeeded and believed for succeeded, believed in seen)),
            str(len(seen) - found),
            str(sum(believed and not succeeded for succeeded, believed in seen)),
        )
    return table


def _median_worst(values: Sequence[float]) -> str:
    sizes = np.abs(values)
    return f"{np.median(sizes):.2f} ({sizes.max():.2f})"


if __name__ == "__main__":
    typer.run(main)
