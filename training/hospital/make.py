"""From a table of cases to a folder of pairs: each step with its figure of merit, each case with its report.

What a case leaves is described in `training.hospital.cases`. A case is written beside and renamed when it is complete, so that an
interrupted run goes on where it was; cases that failed, or whose inputs have changed, are made again. Nothing in it says who the
patient is.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.dicom.pixels import read_radiograph
from dicomnode.domain.measurement import Region
from dicomnode.domain.radiograph import Radiograph, Side
from dicomnode.errors import DicomNodeError
from training.anatomy.ct import METAL_HU, CtVolume, read_ct
from training.anatomy.femur import FemurLandmarks
from training.anatomy.labels import LabelMap, label_map, on_grid, read_labels
from training.anatomy.landmarks import LandmarksNotFound, find_landmarks
from training.anatomy.lean import muscle_masses
from training.anatomy.muscles import NAMES as MUSCLES
from training.anatomy.phantom import NAMES
from training.anatomy.volume import Structure
from training.calibration.line import Calibration, mineral_mg_cm3
from training.calibration.report import calibration_document
from training.calibration.rod_phantom import load_rod_phantom
from training.calibration.rods import calibrate_by_rods
from training.calibration.tissues import calibrate_by_tissues
from training.hospital.cases import inputs_sha256, read_report, save_arrays, write_report, write_text
from training.hospital.dxa import DxaLine, NoDxaLine, fit_dxa
from training.hospital.picture import draw_case
from training.hospital.project import CalibratedBones, RealHip, Registered, exposed, nominal_beam, real_hip
from training.hospital.report import Report, Status
from training.hospital.table import Case
from training.projection.geometry import ConeBeam
from training.registration.anatomy import Bones, prepare
from training.registration.register import register
from training.segmentation.model import SHIPPED_SEGMENTATION, SegmentationModel, load_model
from training.segmentation.predict import Segmentation, segment
from training.segmentation.sampling import StructureFigures

MOST_METAL_ML = 0.1
"""Of voxels at or above `METAL_HU` in and around a femur: more is an implant, whose streaks spoil the mineral."""
AROUND_VOXELS = 2
RIM_MM = 2.0
MUSCLE_HU = 50.0
"""A scanner's blur and voxels that are partly bone carry a femur's mineral over the border of its mask, by a tenth of the whole at
2 mm: within `RIM_MM` of the mask what is denser than muscle (ICRU-44: about 50 HU) is counted as mineral. Own choice."""
LEAST_SEEN = 0.98
"""Share of the total hip that must lie within the exposed radiograph."""
PLAUSIBLE_CM3 = (40.0, 700.0)
"""Volume of a femur's mask, cut off or whole."""


class StepFailed(DicomNodeError):
    """A case ends here, for a reason that its report states."""


class Segment(Protocol):
    """Labels of a CT that has none."""

    @property
    def sha256(self) -> str:
        """What it segments with: another digest makes the pairs of a case without labels anew."""

    def __call__(self, ct: CtVolume) -> Segmentation:
        """Return the bones, on any grid, and how sure of each."""


@dataclass(frozen=True)
class SegmentByModel:
    """Segment with `training.segmentation`; the model is loaded when a CT without labels needs it."""

    folder: Path

    @property
    def sha256(self) -> str:
        """Of the weights."""
        return self._model.sha256

    def __call__(self, ct: CtVolume) -> Segmentation:
        """Return femora, hip bones and sacrum."""
        return segment(ct, self._model)

    @cached_property
    def _model(self) -> SegmentationModel:
        return load_model(self.folder)


class Register(Protocol):
    """Where the patient of a CT lay in a radiograph."""

    def __call__(
        self, ct: CtVolume, bones: Bones, image: NDArray[np.float32], beam: ConeBeam, mask: NDArray[np.bool_]
    ) -> Registered:
        """Return the motions of pelvis and femora."""


@dataclass(frozen=True)
class Tools:
    """What differs between a hospital's run and a test."""

    register: Register
    segment: Segment = SegmentByModel(SHIPPED_SEGMENTATION)
    """For cases without a label map."""


def register_by_similarity(
    ct: CtVolume, bones: Bones, image: NDArray[np.float32], beam: ConeBeam, mask: NDArray[np.bool_]
) -> Registered:
    """Register with `training.registration`."""
    found = register(prepare(ct, bones), image, beam, mask=mask)
    femora = {side: pose.patient_from_ct for side, pose in found.femora.items()}
    return Registered(found.patient_from_ct, femora, found.similarity, found.confidence, found.failure)


def make_hospital_pairs(
    cases: Sequence[Case], output: Path, tools: Tools, progress: Callable[[Report], None] = lambda _: None
) -> list[Report]:
    """Make every case that is not done yet, or was made of other inputs; one that fails is reported and stops no other.

    Decisions about a case stay in its report, but hold only while its inputs are the same.
    """
    folder = output / "cases"
    folder.mkdir(parents=True, exist_ok=True)
    reports = []
    for case in cases:
        inputs, report = _inputs(case, tools), read_report(folder / case.case)
        if report is None or report.status is Status.FAILED or report.inputs_sha256 != inputs:
            earlier = [] if report is None else report.decisions
            report = _make(case, folder, tools, Report(case.case, inputs_sha256=inputs, decisions=earlier))
        elif _tell(report, case):
            write_report(folder / case.case, report)
        reports.append(report)
        progress(report)
    return reports


def _inputs(case: Case, tools: Tools) -> str:
    digest = inputs_sha256(case)
    return digest if case.labels is not None else f"{digest}:{tools.segment.sha256}"


def fit_dxa_lines(cases: Sequence[Case], reports: Sequence[Report], output: Path) -> list[DxaLine]:
    """Fit what each maker's densitometers read of each region; lines and refusals go to `dxa.json`.

    Only hips of usable cases count.
    """
    values: dict[tuple[str, Region], list[tuple[float, float]]] = {}
    for case, report in zip(cases, reports, strict=True):
        for (side, region), dxa in case.dxa_g_cm2.items():
            by_ct = report.hips.get(str(side), {}).get("canonical", {}).get(region.value, {}).get("areal_bmd_g_cm2")
            if case.dxa_maker and report.usable and by_ct is not None:
                values.setdefault((case.dxa_maker, region), []).append((by_ct, dxa))
    lines, refused = [], []
    for (maker, region), pairs in sorted(values.items()):
        try:
            lines.append(fit_dxa(maker, region, [a for a, _ in pairs], [b for _, b in pairs]))
        except NoDxaLine as error:
            refused.append(str(error))
    document = {"lines": [asdict(line) for line in lines], "refused": refused}
    write_text(output / "dxa.json", json.dumps(document, indent=2) + "\n")
    return lines


def _make(case: Case, folder: Path, tools: Tools, report: Report) -> Report:
    part = folder / f".{case.case}.{os.getpid()}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        _run(case, tools, report, part)
    except DicomNodeError as error:
        report.status, report.reason = Status.FAILED, _without_paths(str(error), case)
    except Exception as error:  # noqa: BLE001  a defect of ours or of a library: told by its kind, for its text may hold patient data
        report.status, report.reason = (
            Status.FAILED,
            f"unexpected {type(error).__name__}; run this case alone to see it",
        )
    _tell(report, case)
    write_report(part, report)
    place = folder / case.case
    shutil.rmtree(place, ignore_errors=True)
    part.rename(place)
    return report


def _tell(report: Report, case: Case) -> bool:
    """Write into the report what the table merely knows of the case; returns whether that is new."""
    known = {
        str(side): {
            "dxa_maker": case.dxa_maker,
            "dxa_g_cm2": {region.value: value for (where, region), value in case.dxa_g_cm2.items() if where is side},
            "qct_mg_cm3": {region.value: value for (where, region), value in case.qct_mg_cm3.items() if where is side},
        }
        for side in Side
    }
    hips = {side: {**hip, "reference": known[side]} for side, hip in report.hips.items() if "reason" not in hip}
    patient = case.patient or case.case
    if report.patient == patient and all(report.hips[side] == hip for side, hip in hips.items()):
        return False
    report.patient = patient
    report.hips.update(hips)
    return True


def _run(case: Case, tools: Tools, report: Report, folder: Path) -> None:
    """The steps of one case, in their order."""
    ct = read_ct(case.ct)
    radiograph = read_radiograph(case.radiograph)
    report.note("read", {"voxel_mm": _spacing_mm(ct), "kilovolt": ct.kilovolt}, radiograph.notes)
    calibration = _calibrate(case, ct, report)
    labels = _label(case, ct, tools, report)
    bones, masks = _bones(ct, labels, calibration, report)
    isocentre = np.mean([points.head_centre for points in bones.landmarks.values()], axis=0)
    beam, doubts = nominal_beam(radiograph, isocentre, case.sdd_mm, case.spd_mm)
    report.note("geometry", {"sdd_mm": _distance_mm(beam), "spd_mm": float(isocentre[1] - beam.source_mm[1])}, doubts)
    registered = tools.register(ct, masks, radiograph.image, beam, exposed(radiograph.image))
    report.note("registration", {"similarity": registered.similarity, "confidence": registered.confidence})
    hips: dict[Side, RealHip] = {}
    if registered.failure is None:
        hips = _project(bones, registered, radiograph, beam, report, folder)
    draw_case(report, radiograph, beam, bones, registered, hips, calibration, folder / "report.png")
    if registered.failure is not None:
        raise StepFailed(f"registration: {registered.failure}")
    if not any("reason" not in figures for figures in report.hips.values()):
        raise StepFailed("projection: no hip lies in the field of the radiograph as a whole")


def _calibrate(case: Case, ct: CtVolume, report: Report) -> Calibration:
    if case.phantom is None:
        calibration = calibrate_by_tissues(ct, case.kilovolt)
    else:
        calibration, _ = calibrate_by_rods(ct, load_rod_phantom(case.phantom))
    document = calibration_document(calibration)
    document.pop("doubts")
    report.note("calibration", document, calibration.doubts)
    return calibration


def _label(case: Case, ct: CtVolume, tools: Tools, report: Report) -> LabelMap:
    figures: dict[str, StructureFigures] = {}
    doubts: list[str] = []
    if case.labels is not None:
        labels, source = read_labels(case.labels), "given"
    else:
        found = tools.segment(ct)
        labels = label_map(found.labels.values, found.labels.names, found.labels.patient_from_voxel)
        figures, source = found.figures, f"segmentation model {tools.segment.sha256[:12]}"
        doubts.append("the bones were segmented by a network, and nobody has looked at its outlines yet")
    labels = on_grid(labels, ct)
    voxel_cm3 = float(np.prod(_spacing_mm(ct))) / 1000
    volumes = {name: float((labels.values == value).sum()) * voxel_cm3 for value, name in labels.names.items()}
    shown = {name: volumes.get(name, 0.0) for name in (*NAMES.values(), "pelvis")}
    low, high = PLAUSIBLE_CM3
    doubts += [
        f"{name} has {shown[name]:.0f} cm3, expected {low:g} to {high:g}"
        for name in NAMES.values()
        if shown[name] and not low <= shown[name] <= high
    ]
    uncertain = [
        f"{name} {figure.predicted_dice:.2f}"
        for name, figure in figures.items()
        if figure.volume_cm3 and figure.is_doubtful and name not in MUSCLES
    ]
    if uncertain:
        doubts.append(f"outlines are uncertain, predicted Dice {', '.join(uncertain)}")
    predicted = {name: round(figure.predicted_dice, 3) for name, figure in figures.items()}
    report.note("segmentation", {"source": source, "volumes_cm3": shown, "predicted_dice": predicted}, doubts)
    report.note("muscles", {name: asdict(mass) for name, mass in muscle_masses(ct, labels).items()})
    return labels


def _bones(ct: CtVolume, labels: LabelMap, calibration: Calibration, report: Report) -> tuple[CalibratedBones, Bones]:
    """Mineral, volume and landmarks of each femur that is whole and free of metal."""
    mineral = mineral_mg_cm3(ct.hu, calibration) / np.float32(1000)
    soft = np.float32((MUSCLE_HU - calibration.intercept_hu) / calibration.slope_hu_cm3_mg / 1000)
    pelvis = labels.mask("pelvis")
    femora, points, masks = {}, {}, {}
    for side, name in NAMES.items():
        if name not in labels.names.values():
            report.hips[str(side)] = {"reason": "not in the label map"}
            continue
        mask = labels.mask(name)
        masks[side] = mask
        try:
            points[side] = _landmarks(ct, mask, side)
        except (StepFailed, LandmarksNotFound) as error:
            report.hips[str(side)] = {"reason": str(error)}
            continue
        rim = _rim(ct, mask, labels)
        femora[side] = (
            _structure(
                f"{name}_mineral", mineral * mask + np.maximum(mineral - soft, 0) * rim, mask | rim, "g/cm3", ct
            ),
            _structure(f"{name}_volume", mask.astype(np.float32), mask, "1", ct),
        )
    figures = {str(side): {"head_radius_mm": found.head_radius_mm} for side, found in points.items()}
    report.note("landmarks", figures)
    if not femora:
        reasons = "; ".join(f"{side}: {hip['reason']}" for side, hip in report.hips.items())
        raise StepFailed(f"landmarks: no femur can be used ({reasons})")
    moving = {side: mask for side, mask in masks.items() if side in femora}
    structure = _structure("pelvis_mineral", mineral * pelvis, pelvis, "g/cm3", ct)
    return CalibratedBones(femora, structure, points, ct.hu.shape, ct.patient_from_voxel), Bones(pelvis, moving)


def _landmarks(ct: CtVolume, mask: NDArray[np.bool_], side: Side) -> FemurLandmarks:
    box = _box(mask, AROUND_VOXELS)
    metal_ml = float((ct.hu[box] >= METAL_HU).sum()) * float(np.prod(_spacing_mm(ct))) / 1000
    if metal_ml > MOST_METAL_ML:
        raise StepFailed(f"{metal_ml:.1f} ml of metal in and around the femur (at least {METAL_HU:g} HU)")
    return find_landmarks(_structure("femur", mask.astype(np.float32), mask, "1", ct, whole=True), side)


def _rim(ct: CtVolume, mask: NDArray[np.bool_], labels: LabelMap) -> NDArray[np.bool_]:
    """Voxels within `RIM_MM` of a femur that are no other structure's, and no neighbours of the pelvis."""
    spacing_mm = _spacing_mm(ct)[::-1]
    size = [2 * max(1, round(RIM_MM / spacing)) + 1 for spacing in spacing_mm]
    box = _box(mask, max(size))
    rim = np.zeros_like(mask)
    near_pelvis = ndimage.maximum_filter(labels.mask("pelvis")[box], size)
    rim[box] = ndimage.maximum_filter(mask[box], size) & ~mask[box] & ~near_pelvis
    return rim


def _structure(
    name: str, values: NDArray[np.float32], mask: NDArray[np.bool_], unit: str, ct: CtVolume, whole: bool = False
) -> Structure:
    """Values on the part of the CT's grid that holds the mask; `whole` keeps the grid, so that its borders are seen."""
    if whole:
        return Structure(name, values, unit, ct.patient_from_voxel)
    box = _box(mask, 1)
    shift = np.eye(4)
    shift[:3, 3] = [part.start for part in box][::-1]
    return Structure(name, np.ascontiguousarray(values[box], np.float32), unit, ct.patient_from_voxel @ shift)


def _box(mask: NDArray[np.bool_], margin: int) -> tuple[slice, slice, slice]:
    z, y, x = (np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    return tuple(  # type: ignore[return-value]
        slice(max(int(places[0]) - margin, 0), int(places[-1]) + margin + 1) for places in (z, y, x)
    )


def _project(
    bones: CalibratedBones,
    registered: Registered,
    radiograph: Radiograph,
    beam: ConeBeam,
    report: Report,
    folder: Path,
) -> dict[Side, RealHip]:
    hips = {}
    for side in bones.femora:
        hip = real_hip(bones, registered, radiograph, beam, side)
        if hip.figures["seen_share"] < LEAST_SEEN:
            seen = f"{100 * hip.figures['seen_share']:.0f} % of the total hip lies in the field, expected {100 * LEAST_SEEN:g} %"
            report.hips[str(side)] = {"reason": seen}
            continue
        save_arrays(hip, folder / f"{side}.npz")
        report.hips[str(side)] = hip.figures
        hips[side] = hip
    return hips


def _spacing_mm(ct: CtVolume) -> list[float]:
    return [float(value) for value in np.linalg.norm(ct.patient_from_voxel[:3, :3], axis=0)]


def _distance_mm(beam: ConeBeam) -> float:
    normal = np.cross(beam.row_direction, beam.column_direction)
    return abs(float(normal @ (beam.detector_origin_mm - beam.source_mm)))


def _without_paths(message: str, case: Case) -> str:
    """Paths often hold names."""
    for what in ("ct", "radiograph", "labels", "phantom"):
        path = getattr(case, what)
        if path is not None:
            for text in (str(path), str(path.parent), path.name):
                message = message.replace(text, f"<{what}>")
    return message
