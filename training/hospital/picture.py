"""One case as a picture for people: what was found, and whether to believe it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dicomnode.domain.radiograph import Radiograph, Side
from dicomnode.inference.frame import SPACING_MM
from training.anatomy.regions import project_landmarks
from training.calibration.line import Calibration
from training.hospital.project import CalibratedBones, RealHip, Registered
from training.hospital.report import Report
from training.projection.geometry import ConeBeam
from training.targets import hip_beam

FEMUR, PELVIS, POINT = "#e0a458", "#5fb3c8", "#d1495b"
DRAWN_ROWS = 700


def draw_case(
    report: Report,
    radiograph: Radiograph,
    beam: ConeBeam,
    bones: CalibratedBones,
    registered: Registered,
    hips: Mapping[Side, RealHip],
    calibration: Calibration,
    png: Path,
) -> None:
    """Draw radiograph and calibration, and of each hip radiograph, outlines, landmarks, projection and regions."""
    figure = Figure(figsize=(17, 10), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic("AABC;DEFG")
    step = max(1, radiograph.image.shape[0] // DRAWN_ROWS)
    axes["A"].imshow(radiograph.image[::step, ::step], cmap="gray")
    axes["A"].set_title(f"{report.case}: {report.status}", loc="left")
    _draw_line(axes["B"], calibration)
    axes["C"].text(0, 1, _words(report), va="top", fontsize=8, wrap=True)
    for side, panels in ((Side.RIGHT, "DE"), (Side.LEFT, "FG")):
        if side in hips:
            _draw_hip(axes[panels[0]], axes[panels[1]], hips[side], bones, registered, beam, side)
    for name, axis in axes.items():
        if name != "B":
            axis.set_axis_off()
    figure.savefig(png, dpi=80)


def _draw_hip(
    seen: Axes,
    projected: Axes,
    hip: RealHip,
    bones: CalibratedBones,
    registered: Registered,
    beam: ConeBeam,
    side: Side,
) -> None:
    image = np.where(hip.field, hip.image.astype(np.float32), np.nan)
    seen.imshow(image, cmap="gray")
    density, path, pelvis = hip.targets.astype(np.float32)
    seen.contour(path, [0.15], colors=FEMUR, linewidths=0.9)
    seen.contour(pelvis, [0.1], colors=PELVIS, linewidths=0.7)
    points = bones.landmarks[side].moved(registered.femora[side])
    cut = project_landmarks(points, hip_beam(beam, points.head_centre, side), SPACING_MM)
    for point in (
        cut.head_centre,
        cut.head_neck_junction,
        cut.neck_base,
        cut.lesser_trochanter_tip,
        cut.shaft_proximal,
    ):
        seen.plot(point[1], point[0], "+", color=POINT, markersize=8)
    total = hip.figures["regions"]["total_hip"]["areal_bmd_g_cm2"]
    canonical = hip.figures["canonical"]["total_hip"]["areal_bmd_g_cm2"]
    seen.set_title(f"{side}: radiograph, outlines of the CT's bones", loc="left", fontsize=9)
    projected.imshow(density + pelvis, cmap="gray", vmin=0, vmax=2)
    for label in np.unique(hip.labels)[1:]:
        projected.contour(_mask(hip.labels, int(label)), [0.5], colors=FEMUR, linewidths=0.6)
    projected.set_title(f"total hip {_shown(total)} g/cm2, canonical {_shown(canonical)}", loc="left", fontsize=9)


def _mask(labels: NDArray[np.uint8], label: int) -> NDArray[np.float32]:
    return np.asarray(labels == label, np.float32)


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _draw_line(axis: Axes, calibration: Calibration) -> None:
    mineral = np.array([-100.0, 400.0])
    axis.plot(mineral, calibration.intercept_hu + calibration.slope_hu_cm3_mg * mineral, color="#b0b7bd")
    for point in calibration.points:
        at = point.reference_mg_cm3
        if at is None:
            at = (point.expected_hu - calibration.intercept_hu) / calibration.slope_hu_cm3_mg
        axis.plot(at, point.measured_hu, "o", color="#1f6f8b")
        axis.annotate(point.label, (at, point.measured_hu), fontsize=7)
    axis.set_xlim(*mineral)
    axis.set_ylim(-200, calibration.intercept_hu + calibration.slope_hu_cm3_mg * mineral[1])
    axis.set_xlabel(f"mg/cm3 of {calibration.material}")
    axis.set_ylabel("HU")
    axis.set_title(f"by {calibration.method}, +- {calibration.uncertainty_mg_cm3:.1f} mg/cm3", loc="left", fontsize=9)


def _words(report: Report) -> str:
    """Figures of merit and flags, a line each."""
    lines = []
    for step, figures in report.steps.items():
        numbers = [f"{key} {value:.3g}" for key, value in figures.items() if isinstance(value, float)]
        lines.append(f"{step}: {', '.join(numbers)}")
        lines += [f"   ! {doubt}" for doubt in figures["doubts"]]
    lines += [f"{side}: {hip['reason']}" for side, hip in report.hips.items() if "reason" in hip]
    return "\n".join(lines)
