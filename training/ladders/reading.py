"""A hip as figures by name, read and true: the one place that knows which quantities there are."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dicomnode.dicom.pixels import read_radiograph
from dicomnode.domain.measurement import Reason, Region
from dicomnode.domain.object_plane import object_plane
from dicomnode.errors import NotMeasurable
from dicomnode.inference.bundle import Limits
from dicomnode.inference.frame import FramedHip
from dicomnode.inference.plausibility import check_hip, check_region
from dicomnode.inference.predictor import Decomposition, Predictor
from training import evaluate
from training.cases import QUANTITY_LABELS

REGIONS = (Region.TOTAL_HIP, Region.FEMORAL_NECK)
"""Those that a diagnosis may rest on (`dicomnode.clinical.scores.DIAGNOSTIC_REGIONS`)."""
Reading = dict[str, float] | Reason
"""Quantity to figure, without those of regions that cannot be measured; or why the hip is not measurable."""
Read = Callable[[FramedHip], Reading]


def read_figures(predictor: Predictor, hip: FramedHip) -> Reading:
    """Read a hip whose place is known as the node does, plausibility and all."""
    return figures_of(predictor.read(hip), predictor.bundle.limits)


def read_file(predictor: Predictor, path: Path) -> dict[str, Reading]:
    """Read every hip that is found on a radiograph's file: "R", "L" to its reading.

    Raises:
        NotMeasurable: the file is no radiograph, or states no scale.
    """
    radiograph = read_radiograph(path)
    plane = object_plane(radiograph.geometry)
    if plane is None:
        raise NotMeasurable(Reason.UNKNOWN_SCALE, f"{path.name} states no pixel spacing")
    return {
        candidate.side.value: figures_of(
            predictor.decompose(radiograph.image, plane.spacing_mm, candidate, radiograph.technique),
            predictor.bundle.limits,
        )
        for candidate in predictor.locate(radiograph.image, plane.spacing_mm)
    }


def figures_of(decomposition: Decomposition, limits: Limits) -> Reading:
    """Read a decomposition, or say why it has no figures."""
    figures: dict[str, float] = {}
    reason: Reason | None = None
    try:
        check_hip(decomposition, limits)
    except NotMeasurable as error:
        return error.reason
    for region in REGIONS:
        try:
            check_region(decomposition, region, limits)
        except NotMeasurable as error:
            reason = reason or error.reason
            continue
        measured, _ = evaluate.read_figures(decomposition, region)
        figures |= {quantity(region, name): value for name, value in measured.items()}
    return figures or (reason or Reason.CUT_OFF)


def true_figures(stored: Mapping[str, Any]) -> dict[str, float]:
    """What is true of a hip, from `training.targets.HipTarget.figures`: of the canonical pose, and as projected."""
    return {
        quantity(region, name): float(value)
        for region in REGIONS
        for name, value in (evaluate.true_figures(stored, region) or {}).items()
    }


def quantity(region: Region, name: str) -> str:
    """Name a figure of a region, e.g. "total_hip.areal_bmd_g_cm2"."""
    return f"{region.value}.{name}"


def is_areal_bmd(name: str) -> bool:
    """Whether a quantity is an areal BMD in g/cm2, whatever its pose."""
    return name.endswith("areal_bmd_g_cm2")


def label(name: str) -> str:
    """Word a quantity for people, e.g. "total hip aBMD, g/cm²"."""
    region, _, figure = name.partition(".")
    return f"{region.replace('_', ' ')} {QUANTITY_LABELS[figure]}"
