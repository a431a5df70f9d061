"""A hospital's pairs, made end to end from simulated cases whose pose is known: `python -m benchmarks.pairing OUTPUT`.

Each case is a person of the phantoms, or with the bones of the reference anatomy: a CT with rods under the patient (bone's marrow
is water, noise is added, no scanner is modelled), a label map, and a DX object of the same person turned and shifted, with hips
that moved. The command's own functions make pairs of them twice: with the pose that the registration finds, and with the true one.
"""

import argparse
import csv
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from dicomnode.domain.radiograph import Side
from training.anatomy.atlas import atlas_subject
from training.anatomy.ct import CtVolume, sitk
from training.anatomy.phantom import NAMES, Phantom, make_phantom
from training.anatomy.population import draw_subject
from training.anatomy.volume import Structure
from training.calibration.rod_phantom import load_rod_phantom
from training.calibration.simulation import RodScene, resampled_onto, subject_ct, with_rod_pad
from training.calibration.tissues import hydroxyapatite_hu_cm3_mg
from training.hospital.make import Tools, make_hospital_pairs, register_by_similarity
from training.hospital.project import Registered
from training.hospital.report import Report
from training.hospital.table import read_table
from training.projection.geometry import ConeBeam, detector_from_patient
from training.projection.radiograph import Exposure
from training.registration.anatomy import Bones
from training.simulate_dx import DEFAULT_PROCESSING, FictionalPatient, dx_from_maps
from training.targets import field_beam, field_materials, make_targets

ENERGY_KEV = 70.0
NOISE_HU = 12.0
CT_SHAPE, CT_SPACING_MM = (150, 230, 300), (1.5, 1.5, 2.0)
RODS = Path("conf/training/phantoms/b-mas200.toml")
RADIOGRAPH_SPACING_MM = 0.4
TURN_SD_DEG, SHIFT_SD_MM, HIP_SD_DEG = 4.0, 15.0, 3.0
"""How differently the person lies on the two tables."""


@dataclass(frozen=True)
class Pose:
    """The true motions, patient from CT, and the true source."""

    pelvis: NDArray[np.float64]
    femora: Mapping[Side, NDArray[np.float64]]
    source_mm: NDArray[np.float64]


def main() -> None:
    """Make cases, pairs by found and by true pose, and compare them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pairing", description=main.__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--cases", type=int, default=3)
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument(
        "--anatomy", type=Path, help="folder of the reference anatomy; without it phantoms' bones are used"
    )
    options = parser.parse_args()
    poses, direct, lines = {}, {}, []
    options.output.mkdir(parents=True, exist_ok=True)
    indices = _plain_people(options.seed, options.cases)
    for index in tqdm(indices, desc="cases", unit="case"):
        person = _person(options.anatomy, options.seed, index)
        name = f"case{index}"
        poses[name], moved = _write_case(person, options.output, name, options.seed)
        direct[name] = {str(hip.figures["side"]): hip.figures for hip in make_targets(moved).hips}
        lines.append([name, f"{name}.nii.gz", f"{name}.dcm", f"{name}_labels.nii.gz", str(RODS.resolve())])
    with (options.output / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["case", "ct", "radiograph", "labels", "phantom"], *lines])
    cases = read_table(options.output / "table.csv")
    results = []
    for case in cases:
        begun = time.process_time()
        found = _Told(poses[case.case], None)
        report = make_hospital_pairs([case], options.output / "found", Tools(found))[0]
        seconds = time.process_time() - begun
        true = _Told(poses[case.case], poses[case.case])
        truth = make_hospital_pairs([case], options.output / "true", Tools(true))[0]
        results += _compare(report, truth, direct[case.case], found, seconds)
    (options.output / "pairing.json").write_text(json.dumps(results, indent=2) + "\n")
    for result in results:
        print(json.dumps(result))


def _plain_people(seed: int, count: int) -> list[int]:
    """People without metal, from the front, whose hips a CT of this size holds."""
    found: list[int] = []
    index = 0
    while len(found) < count:
        subject = draw_subject(seed, index)
        plain = not subject.is_frog_leg and all(hip.implant is None for hip in subject.hips) and subject.bmi_kg_m2 < 30
        if plain and abs(subject.view.field_centre_mm[0]) < 40:
            found.append(index)
        index += 1
    return found


def _person(anatomy: Path | None, seed: int, index: int) -> Phantom:
    return make_phantom(draw_subject(seed, index)) if anatomy is None else atlas_subject(anatomy, seed, index)


def _write_case(person: Phantom, folder: Path, case: str, seed: int) -> tuple[Pose, Phantom]:
    ct = _scanned(person, seed)
    _write_volume(ct.hu, ct, folder / f"{case}.nii.gz")
    names = ("pelvis", *NAMES.values())
    labels = np.zeros(ct.hu.shape, np.uint8)
    for value, name in enumerate(names, start=1):
        labels[_onto(person, f"{name}_volume", ct) >= 0.5] = value
    _write_volume(labels, ct, folder / f"{case}_labels.nii.gz")
    (folder / f"{case}_labels.json").write_text(json.dumps({str(n): name for n, name in enumerate(names, start=1)}))
    motions, moved = _moved(person, np.random.default_rng([seed, person.subject.index]))
    view = moved.subject.view
    shape = (round(400 / RADIOGRAPH_SPACING_MM), round(420 / RADIOGRAPH_SPACING_MM))
    beam = field_beam(moved, RADIOGRAPH_SPACING_MM, shape)
    isocentre = beam.source_mm + np.array([0.0, view.sdd_mm - view.head_to_detector_mm, 0.0])
    dx_from_maps(
        field_materials(moved, RADIOGRAPH_SPACING_MM, shape),
        beam,
        isocentre,
        exposure=Exposure(),
        processing=DEFAULT_PROCESSING,
        patient=FictionalPatient(patient_id=case),
        seed=seed,
    ).save_as(folder / f"{case}.dcm", enforce_file_format=True)
    return Pose(motions["pelvis"], {side: motions[name] for side, name in NAMES.items()}, beam.source_mm), moved


def _scanned(person: Phantom, seed: int) -> CtVolume:
    """A CT whose bones read their mineral on the line of the rods."""
    slope = hydroxyapatite_hu_cm3_mg(ENERGY_KEV)
    soft = replace(person, structures=tuple(s for s in person.structures if s.name in ("soft", "adipose")))
    ct = subject_ct(soft, ENERGY_KEV, CT_SHAPE, CT_SPACING_MM)
    bones = ("pelvis", *NAMES.values())
    volume = np.clip(sum(_onto(person, f"{name}_volume", ct) for name in bones), 0, 1)
    mineral = sum(_onto(person, f"{name}_mineral", ct) for name in bones)
    hu = ct.hu * (1 - volume) + np.float32(slope * 1000) * mineral
    scene = RodScene(slope_hu_cm3_mg=slope, intercept_hu=0.0, noise_hu=NOISE_HU, seed=seed)
    return with_rod_pad(replace(ct, hu=hu.astype(np.float32)), load_rod_phantom(RODS), scene)


def _onto(person: Phantom, name: str, ct: CtVolume) -> NDArray[np.float32]:
    return resampled_onto(next(s for s in person.structures if s.name == name), ct)


def _write_volume(values: NDArray[Any], ct: CtVolume, path: Path) -> None:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(np.diag(ct.patient_from_voxel)[:3].tolist())
    image.SetOrigin(ct.patient_from_voxel[:3, 3].tolist())
    sitk.WriteImage(image, str(path))


def _moved(person: Phantom, random: np.random.Generator) -> tuple[dict[str, NDArray[np.float64]], Phantom]:
    """The person in another pose: turned and shifted as a whole, and with both femora turned in their sockets."""
    whole = _about(np.zeros(3), random.normal(0, TURN_SD_DEG, 3), random.normal(0, SHIFT_SD_MM, 3))
    motions = {"pelvis": whole}
    for side, name in NAMES.items():
        motions[name] = whole @ _about(person.landmarks[side].head_centre, random.normal(0, HIP_SD_DEG, 3), np.zeros(3))

    def move(structure: Structure) -> Structure:
        motion = next((m for name, m in motions.items() if structure.name.startswith(name)), whole)
        return replace(structure, patient_from_voxel=motion @ structure.patient_from_voxel)

    points = {side: person.landmarks[side].moved(motions[name]) for side, name in NAMES.items()}
    femora = {side: motions[name] @ person.patient_from_femur[side] for side, name in NAMES.items()}
    return motions, Phantom(person.subject, tuple(map(move, person.structures)), points, femora)


def _about(
    point: NDArray[np.float64], turn_deg: NDArray[np.float64], shift: NDArray[np.float64]
) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(turn_deg)).as_matrix()
    matrix[:3, 3] = point + shift - matrix[:3, :3] @ point
    return matrix


class _Told:
    """Registers, or says the true pose; keeps how far the projections of each bone lie from the true ones."""

    def __init__(self, truth: Pose, answer: Pose | None) -> None:
        self.truth, self.answer = truth, answer
        self.distances_mm: dict[str, float] = {}

    def __call__(
        self, ct: CtVolume, bones: Bones, image: NDArray[np.float32], beam: ConeBeam, mask: NDArray[np.bool_]
    ) -> Registered:
        """Answer in the frame of the nominal beam, which only its origin tells from the true one."""
        shift = np.eye(4)
        shift[:3, 3] = beam.source_mm - self.truth.source_mm
        true = Registered(
            shift @ self.truth.pelvis, {side: shift @ m for side, m in self.truth.femora.items()}, 1.0, 1.0, None
        )
        if self.answer is not None:
            return true
        found = register_by_similarity(ct, bones, image, beam, mask)
        bodies = [("pelvis", bones.pelvis, found.pelvis, true.pelvis)]
        bodies += [(str(side), bones.femora[side], found.femora[side], true.femora[side]) for side in found.femora]
        for name, body, one, other in bodies:
            index = np.argwhere(body)[::50, ::-1]
            points = index @ ct.patient_from_voxel[:3, :3].T + ct.patient_from_voxel[:3, 3]
            pixels = [detector_from_patient(points @ m[:3, :3].T + m[:3, 3], beam) for m in (one, other)]
            self.distances_mm[name] = float(
                np.linalg.norm(pixels[0] - pixels[1], axis=1).mean() * RADIOGRAPH_SPACING_MM
            )
        return found


def _compare(
    report: Report, truth: Report, direct: Mapping[str, Mapping[str, Any]], found: _Told, seconds: float
) -> list[dict[str, Any]]:
    """Per hip: mean distance, and areal density by region against the true pose and against the person itself."""
    if not any("regions" in hip for hip in report.hips.values()):
        return [{"case": report.case, "status": report.status, "reason": report.reason, "cpu_s": round(seconds, 1)}]
    rows = []
    for side, hip in report.hips.items():
        row: dict[str, Any] = {"case": report.case, "side": side, "status": report.status, "cpu_s": round(seconds, 1)}
        row["projection_mm"] = round(found.distances_mm.get(side, math.nan), 2)
        row["confidence"] = round(report.steps["registration"]["confidence"], 2)
        if "regions" not in hip or "regions" not in truth.hips.get(side, {}):
            rows.append({**row, "reason": hip.get("reason")})
            continue
        for region, figures in hip["regions"].items():
            areal = figures["areal_bmd_g_cm2"]
            for name, other in (("true_pose", truth.hips[side]["regions"]), ("person", direct[side]["regions"])):
                row[f"{region}_vs_{name}_percent"] = round(100 * (areal / other[region]["areal_bmd_g_cm2"] - 1), 2)
        canonical = hip["canonical"]["total_hip"]["areal_bmd_g_cm2"]
        person = direct[side]["canonical"]["total_hip"]["areal_bmd_g_cm2"]
        row["canonical_total_hip_vs_person_percent"] = round(100 * (canonical / person - 1), 2)
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
