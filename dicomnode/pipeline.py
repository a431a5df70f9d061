"""The measurement of one radiograph as one straight function."""

from collections.abc import Callable

import numpy as np

from dicomnode.domain.measurement import (
    Assessment,
    Estimate,
    HipMaps,
    HipMeasurement,
    Measurement,
    ModelIdentity,
    Reason,
    Region,
    RegionMeasurement,
    Status,
)
from dicomnode.domain.object_plane import ObjectPlane, object_plane
from dicomnode.domain.radiograph import Patient, Radiograph, Side
from dicomnode.errors import NotMeasurable
from dicomnode.inference import frame, regions
from dicomnode.inference.bundle import Intervals, Limits
from dicomnode.inference.canonical import interval
from dicomnode.inference.plausibility import check_hip, check_region, likeness_note
from dicomnode.inference.predictor import Decomposition, HipCandidate, Predictor
from dicomnode.inference.technique import technique_notes

Assess = Callable[[Region, Estimate, Patient], Assessment | None]
"""(region, areal BMD in g/cm2, patient) to what a clinician reads; None where the reference population lacks the region."""

LARGEST_RADIOGRAPH_MM = 1500.0
"""Longer than any stitched exposure (43 x 130 cm): beyond it the spacing is wrong, and looking for hips would take for ever."""


def measure(radiograph: Radiograph, predictor: Predictor, assess: Assess) -> Measurement:
    """Measure every hip on a radiograph: figures or a reason, never neither."""
    identity = predictor.bundle.identity
    plane = object_plane(radiograph.geometry)
    if plane is None:
        detail = (
            "the header holds no usable pixel spacing; Imager Pixel Spacing (0018,1164) is needed to measure an area"
        )
        return not_measured(
            radiograph.sop_instance_uid, identity, NotMeasurable(Reason.UNKNOWN_SCALE, detail), radiograph.notes
        )
    if (largest_mm := max(np.multiply(radiograph.image.shape, plane.spacing_mm))) > LARGEST_RADIOGRAPH_MM:
        detail = (
            f"the header's pixel spacing makes the image {largest_mm / 10:.0f} cm long, at most "
            f"{LARGEST_RADIOGRAPH_MM / 10:.0f} cm are plausible; check Imager Pixel Spacing (0018,1164)"
        )
        return not_measured(
            radiograph.sop_instance_uid, identity, NotMeasurable(Reason.UNKNOWN_SCALE, detail), radiograph.notes
        )
    candidates = predictor.locate(radiograph.image, plane.spacing_mm)
    if not candidates:
        detail = "no hip was found; an anteroposterior radiograph of a hip or the pelvis is needed"
        return not_measured(
            radiograph.sop_instance_uid, identity, NotMeasurable(Reason.NO_HIP, detail), radiograph.notes
        )
    ordered = sorted(candidates, key=lambda candidate: candidate.side is Side.LEFT)  # right first, as displayed
    hips = tuple(_measure_hip(radiograph, predictor, assess, plane, candidate) for candidate in ordered)
    measured = any(hip.status is Status.MEASURED for hip in hips)
    doubts = tuple(note for note in (plane.note, *technique_notes(radiograph.technique)) if note)
    return Measurement(
        source_sop_instance_uid=radiograph.sop_instance_uid,
        status=Status.MEASURED if measured else Status.NOT_MEASURABLE,
        hips=hips,
        model=identity,
        reason=None if measured else hips[0].reason,
        detail="" if measured else hips[0].detail,
        notes=radiograph.notes + doubts,
    )


def not_measured(
    sop_instance_uid: str, model: ModelIdentity, error: NotMeasurable, notes: tuple[str, ...] = ()
) -> Measurement:
    """The measurement of an object in which no hip could be looked at: a reason instead of figures."""
    return Measurement(
        source_sop_instance_uid=sop_instance_uid,
        status=Status.NOT_MEASURABLE,
        hips=(),
        model=model,
        reason=error.reason,
        detail=error.detail,
        notes=notes,
    )


def _measure_hip(
    radiograph: Radiograph, predictor: Predictor, assess: Assess, plane: ObjectPlane, candidate: HipCandidate
) -> HipMeasurement:
    try:
        _check_laterality(radiograph, candidate)
        decomposition = predictor.decompose(radiograph.image, plane.spacing_mm, candidate, radiograph.technique)
        check_hip(decomposition, predictor.bundle.limits)
    except NotMeasurable as error:
        return HipMeasurement(candidate.side, Status.NOT_MEASURABLE, error.reason, error.detail)
    measured = tuple(
        _measure_region(
            region, decomposition, predictor.bundle.limits, predictor.bundle.intervals, assess, radiograph.patient
        )
        for region in Region
    )
    some = any(one.status is Status.MEASURED for one in measured)
    total, doubt = measured[0], likeness_note(decomposition, candidate.side)
    return HipMeasurement(
        side=candidate.side,
        status=Status.MEASURED if some else Status.NOT_MEASURABLE,
        reason=None if some else total.reason,
        detail="" if some else total.detail,
        regions=measured,
        maps=_maps(decomposition),
        magnification=plane.magnification,
        magnification_source=plane.source,
        notes=(doubt,) if some and doubt else (),
    )


def _check_laterality(radiograph: Radiograph, candidate: HipCandidate) -> None:
    stated = radiograph.laterality_stated
    if stated is not None and stated is not candidate.side:
        names = {Side.RIGHT: "right", Side.LEFT: "left"}
        raise NotMeasurable(
            Reason.LATERALITY,
            f"the header states the {names[stated]} side, the image shows a {names[candidate.side]} hip; correct the laterality "
            "or the orientation of the image and send it again",
        )


def _measure_region(
    region: Region,
    decomposition: Decomposition,
    limits: Limits,
    intervals: Intervals,
    assess: Assess,
    patient: Patient,
) -> RegionMeasurement:
    try:
        check_region(decomposition, region, limits)
    except NotMeasurable as error:
        return RegionMeasurement(region, Status.NOT_MEASURABLE, error.reason, error.detail)
    mask = regions.region_mask(decomposition.labels, region)
    figures = regions.figures(mask, decomposition.density_g_cm2, decomposition.path_cm)
    assert figures is not None, "check_region lets no empty region through"
    multiples = intervals.canonical.get(region.value, {})
    canonical = {
        name: interval(figure, multiples.get(name)) for name, figure in decomposition.canonical[region].items()
    }
    return RegionMeasurement(
        region=region,
        status=Status.MEASURED,
        assessment=assess(region, canonical["areal_bmd_g_cm2"], patient),
        contour_px=regions.contour(mask, decomposition.image_from_frame),
        areal_bmd_g_cm2=canonical["areal_bmd_g_cm2"],
        bmc_g=canonical["bmc_g"],
        area_cm2=canonical["area_cm2"],
        volumetric_bmd_mg_cm3=canonical["volumetric_bmd_mg_cm3"],
        projected_areal_bmd_g_cm2=_estimate(figures.areal_bmd_g_cm2, intervals.projected.get(region.value)),
    )


def _estimate(value: float, half_width: float | None) -> Estimate:
    if half_width is None:
        return Estimate(value)
    return Estimate(value, max(0.0, value - half_width), value + half_width)


def _maps(decomposition: Decomposition) -> HipMaps:
    femur = decomposition.labels != frame.Label.BACKGROUND
    return HipMaps(
        radiograph=decomposition.grey,
        areal_density_g_cm2=np.where(femur, decomposition.density_g_cm2, np.float32(0)),
        path_length_cm=np.where(femur, decomposition.path_cm, np.float32(0)),
        pelvis_g_cm2=decomposition.pelvis_g_cm2,
        region_labels=decomposition.labels,
        spacing_mm=frame.SPACING_MM,
        image_from_frame=decomposition.image_from_frame,
    )
