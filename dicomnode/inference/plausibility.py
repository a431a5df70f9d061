"""Refuses rather than errs: is this decomposition that of a whole, native hip in an AP view, and does it explain the radiograph?"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.domain.measurement import Reason, Region
from dicomnode.domain.radiograph import Side
from dicomnode.errors import NotMeasurable
from dicomnode.inference.bundle import Limits
from dicomnode.inference.channels import LABELS_OF_REGION
from dicomnode.inference.frame import SPACING_MM, Label
from dicomnode.inference.predictor import Decomposition
from dicomnode.inference.regions import PIXEL_AREA_CM2, figures, region_mask

_BORDER_PX = 3
"""A region closer than this (2 mm) to the border of the exposed field is taken to go on beyond it."""
_LEAST_SHAFT_CM2 = 0.6
"""Shaft that must be seen below the intertrochanteric region to know that the region is whole."""
_LEAST_AXIS_CM2 = 3.0
"""Shaft that must be seen to tell its direction."""
_HIGH_PASS_MM = 6.0
_FAMILIAR = 0.9
"""Confidence in the view below which a result says so: 90 good simulated hips lay at 0.9996 or above (model 0.6.0)."""
_REGION_NAMES = {
    Region.TOTAL_HIP: "total hip",
    Region.FEMORAL_NECK: "femoral neck",
    Region.TROCHANTER: "trochanter",
    Region.INTERTROCHANTER: "intertrochanter",
}


def check_hip(decomposition: Decomposition, limits: Limits) -> None:
    """Check the hip as a whole.

    Raises:
        NotMeasurable: IMPLANT, NOT_AP, FRACTURE, CUT_OFF or IMPLAUSIBLE, with what was seen and what is expected.
    """
    metal_cm2 = float(decomposition.metal.sum()) * PIXEL_AREA_CM2
    if decomposition.implant > limits.implant:
        raise NotMeasurable(
            Reason.IMPLANT,
            f"metal over the hip (confidence {decomposition.implant:.2f}, {metal_cm2:.1f} cm2 are outlined); "
            "a native hip is needed",
        )
    if decomposition.anteroposterior_hip < limits.anteroposterior_hip:
        raise NotMeasurable(
            Reason.NOT_AP,
            f"the view is no anteroposterior hip in a measurable pose (confidence {decomposition.anteroposterior_hip:.2f}, "
            f"at least {limits.anteroposterior_hip:.2f} is needed); repeat in AP with the leg extended",
        )
    # Only now: another view may be taken for metal here and there, and then it is the view that must be repeated.
    if metal_cm2 > limits.metal_cm2:
        raise NotMeasurable(
            Reason.IMPLANT,
            f"{metal_cm2:.1f} cm2 of metal over the hip, at most {limits.metal_cm2:.1f} may be; a native hip is needed",
        )
    if decomposition.fracture > limits.fracture:
        raise NotMeasurable(
            Reason.FRACTURE,
            f"the femur looks broken and displaced (confidence {decomposition.fracture:.2f}, at most {limits.fracture:.2f} may be);"
            " a whole bone is needed",
        )
    if not (decomposition.labels == Label.NECK).any():
        raise NotMeasurable(
            Reason.CUT_OFF, "the femoral neck is not within the exposed field; include the whole proximal femur"
        )
    angle = shaft_angle_deg(decomposition.labels)
    if angle is not None and not limits.shaft_angle_deg[0] <= angle <= limits.shaft_angle_deg[1]:
        raise NotMeasurable(
            Reason.NOT_AP,
            f"the femoral shaft leans {angle:.0f} degrees, {limits.shaft_angle_deg[0]:.0f} to "
            f"{limits.shaft_angle_deg[1]:.0f} are measurable; repeat in AP with the leg extended",
        )
    area_cm2 = float((decomposition.labels != Label.BACKGROUND).sum()) * PIXEL_AREA_CM2
    if not limits.femur_area_cm2[0] <= area_cm2 <= limits.femur_area_cm2[1]:
        raise NotMeasurable(
            Reason.IMPLAUSIBLE,
            f"the femur's outline covers {area_cm2:.0f} cm2, {limits.femur_area_cm2[0]:.0f} to {limits.femur_area_cm2[1]:.0f} are "
            "plausible; check the pixel spacing in the header",
        )
    correlation = explained(decomposition)
    if correlation < limits.explained:
        raise NotMeasurable(
            Reason.IMPLAUSIBLE,
            f"the decomposed bone explains too little of the radiograph (correlation {correlation:.2f}, "
            f"at least {limits.explained:.2f} is needed)",
        )


def likeness_note(decomposition: Decomposition, side: Side) -> str:
    """A sentence for the report where a hip is measured that is hardly like those that were learned from; else nothing."""
    if decomposition.anteroposterior_hip >= _FAMILIAR:
        return ""
    return (
        f"The {side.name.lower()} hip looks unlike those that the model learned from (confidence in the view"
        f" {decomposition.anteroposterior_hip:.2f}), so its figures are less certain."
    )


def check_region(decomposition: Decomposition, region: Region, limits: Limits) -> None:
    """Check that a region lies wholly within the exposed field and the frame, and that its two densities belong together.

    Raises:
        NotMeasurable: CUT_OFF, or IMPLAUSIBLE.
    """
    name = _REGION_NAMES[region]
    mask = region_mask(decomposition.labels, region)
    if not mask.any() or any(not (decomposition.labels == label).any() for label in LABELS_OF_REGION[region]):
        raise NotMeasurable(Reason.CUT_OFF, f"the {name} is not wholly within the exposed field")
    field = np.pad(decomposition.field, _BORDER_PX)  # beyond the frame is as unknown as beyond the field
    near = ndimage.binary_dilation(np.pad(mask, _BORDER_PX), iterations=_BORDER_PX)
    if (near & ~field).any():
        raise NotMeasurable(Reason.CUT_OFF, f"the {name} reaches the border of the exposed field")
    if Label.INTERTROCHANTER in LABELS_OF_REGION[region]:
        shaft_cm2 = float((decomposition.labels == Label.SHAFT).sum()) * PIXEL_AREA_CM2
        if shaft_cm2 < _LEAST_SHAFT_CM2:
            raise NotMeasurable(
                Reason.CUT_OFF,
                f"the {name} ends 2 cm below the lesser trochanter, which is not within the exposed field",
            )
    share, (least, most) = canonical_share(decomposition, region), limits.canonical_share
    if share is None or not least <= share <= most:
        raise NotMeasurable(
            Reason.IMPLAUSIBLE,
            f"the {name}'s density in the pose of densitometry would be {100 * (share or 0):.0f} % of the projected one, "
            f"{100 * least:.0f} to {100 * most:.0f} % are plausible; repeat in AP with the leg extended",
        )


def canonical_share(decomposition: Decomposition, region: Region) -> float | None:
    """Areal BMD in the canonical pose as a share of the one that the maps show; None where the maps show none."""
    mask = region_mask(decomposition.labels, region)
    seen = figures(mask, decomposition.density_g_cm2, decomposition.path_cm)
    if seen is None or seen.areal_bmd_g_cm2 <= 0:
        return None
    return decomposition.canonical[region]["areal_bmd_g_cm2"].value / seen.areal_bmd_g_cm2


def shaft_angle_deg(labels: NDArray[np.uint8]) -> float | None:
    """Angle of the femoral shaft's axis to the image's vertical, positive when the distal end points laterally.

    None where too little of the shaft is seen.
    """
    rows, columns = np.nonzero(labels == Label.SHAFT)
    if rows.size * PIXEL_AREA_CM2 < _LEAST_AXIS_CM2:
        return None
    # Midpoints of the rows, weighted by nothing: the principal axis of a short, wide piece of shaft is not its direction.
    middles = np.array([(row, columns[rows == row].mean()) for row in np.unique(rows)])
    if len(middles) < 8:
        return 90.0  # wider than tall: the shaft lies across the image
    slope = np.polyfit(middles[:, 0], middles[:, 1], 1)[0]
    return float(-np.degrees(np.arctan(slope)))  # lateral is at the left of the frame


def explained(decomposition: Decomposition) -> float:
    """Correlation of the re-composed bone with the radiograph, both high-passed, over the femur and its surroundings.

    The grey scale of a radiograph is unknown up to a monotone curve and slow gradients, so edges and texture are compared.
    """
    bone = decomposition.density_g_cm2 + decomposition.pelvis_g_cm2
    near_femur = ndimage.binary_dilation(decomposition.labels != Label.BACKGROUND, iterations=round(10 / SPACING_MM))
    where = near_femur & decomposition.field
    if where.sum() < 100:
        return 0.0
    weight = decomposition.field.astype(np.float32)
    grey, bone = _high_pass(decomposition.grey, weight)[where], _high_pass(bone, weight)[where]
    return float(np.corrcoef(grey, bone)[0, 1]) if grey.std() > 0 and bone.std() > 0 else 0.0


def _high_pass(image: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    sigma = _HIGH_PASS_MM / SPACING_MM
    low = ndimage.gaussian_filter(image * weight, sigma) / np.maximum(ndimage.gaussian_filter(weight, sigma), 1e-3)
    fine = ndimage.gaussian_filter(image, 1.0 / SPACING_MM)  # below 1 mm there is mostly noise
    return np.asarray(fine - low, np.float32)
