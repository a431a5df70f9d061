"""Calibrate a CT by the rods of the phantom under the patient."""

import math

import numpy as np
from numpy.typing import NDArray

from dicomnode.errors import ConfigurationError
from training.anatomy.ct import CtVolume
from training.calibration.detection import FoundRods, find_rods
from training.calibration.line import (
    GREATEST_UNCERTAINTY_MG_CM3,
    TYPICAL_MG_CM3,
    Calibration,
    CalibrationFailed,
    Method,
    Point,
)
from training.calibration.rod_phantom import RodPhantom, Standing

LEAST_R = 0.999
"""Between the rods' values and their CT values. Found rods reach 0.9998 (arXiv 2012.11151); less is another phantom, another
order, or rods that are damaged or covered by streaks."""
BISQUARE = 4.685
"""Tukey's constant: 95 % efficient for normal errors. Source: Huber and Ronchetti, Robust Statistics, 2nd edition, 4.8."""
MAD_TO_SD = 1.4826
"""Of a normal distribution."""
UNEVEN = 3.0
"""A rod whose slices scatter by this factor more than the rods do as a rule has streaks, a bubble or a cut."""


def calibrate_by_rods(ct: CtVolume, phantom: RodPhantom) -> tuple[Calibration, FoundRods]:
    """Find the phantom's rods, take each one's CT value, and put a straight line through them.

    Robust along the rods, strict across them: slices with streaks or a cut rod get no weight (Tukey's bisquare), but no rod may
    be left out of the line, so that a wrong one shows.

    Raises:
        ConfigurationError: the phantom's values are an example.
        CalibrationFailed: rods not found, or no straight line through them.
    """
    if phantom.standing is Standing.EXAMPLE:
        raise ConfigurationError(
            f"the reference values of {phantom.identity!r} are an example: write those of your phantom's certificate into its"
            ' file, with its serial number and standing = "certificate"'
        )
    found = find_rods(ct, phantom)
    return fit_rods(found.slices_hu, phantom), found


def fit_rods(slices_hu: NDArray[np.float64], phantom: RodPhantom) -> Calibration:
    """Fit the line through the rods.

    Args:
        slices_hu: (slices, rods) mean CT value in each rod's cross-section.

    Raises:
        CalibrationFailed: r below `LEAST_R`, or mineral does not brighten.
    """
    measured, errors_hu, scatters_hu = (
        np.array(values) for values in zip(*(robust_mean(column) for column in slices_hu.T), strict=True)
    )
    mineral = np.array([rod.mineral_mg_cm3 for rod in phantom.rods])
    excess = np.array([rod.water_mg_cm3 for rod in phantom.rods]) - 1000.0
    slope, intercept = (float(value) for value in np.polyfit(mineral, measured - excess, 1))
    r = float(np.corrcoef(mineral, measured - excess)[0, 1])
    expected = intercept + slope * mineral + excess
    table = ", ".join(
        f"{rod.label} {rod.mineral_mg_cm3:g} mg/cm3 {hu:.1f} HU" for rod, hu in zip(phantom.rods, measured, strict=True)
    )
    if r < LEAST_R:
        raise CalibrationFailed(
            f"the rods of {phantom.identity} lie on no line: r {r:.4f}, expected {LEAST_R} or more ({table}). Compare the"
            " phantom's file with its certificate, values and order, and look at the rods in the picture"
        )
    centred = mineral - mineral.mean()
    misfit = float(np.sum((measured - expected) ** 2))
    residual_sd_hu = math.sqrt(misfit / (len(mineral) - 2))
    # How far off the line is known to be: from the noise of the rods, or from their misfit where that is larger.
    error_hu = max(residual_sd_hu, float(np.sqrt(np.mean(errors_hu**2))))
    distance = (TYPICAL_MG_CM3 - mineral.mean()) / math.sqrt(float(centred @ centred))
    slope += phantom.slope_correction_hu_cm3_mg
    uncertainty = error_hu * math.sqrt(1 / len(mineral) + distance**2) / slope
    points = tuple(
        Point(rod.label, rod.mineral_mg_cm3, float(e), float(m), float(m - e) / slope)
        for rod, e, m in zip(phantom.rods, expected, measured, strict=True)
    )
    return Calibration(
        material=phantom.material,
        method=Method.RODS,
        reference=phantom.identity,
        slope_hu_cm3_mg=slope,
        intercept_hu=intercept + phantom.intercept_correction_hu,
        r=r,
        residual_sd_mg_cm3=residual_sd_hu / slope,
        uncertainty_mg_cm3=uncertainty,
        points=points,
        doubts=_doubts(phantom, scatters_hu, uncertainty),
    )


def _doubts(phantom: RodPhantom, scatters_hu: NDArray[np.float64], uncertainty_mg_cm3: float) -> tuple[str, ...]:
    doubts = []
    if phantom.standing is Standing.NOMINAL:
        doubts.append("the reference values are nominal, not those of this phantom's certificate")
    worst, usual_hu = int(np.argmax(scatters_hu)), float(np.median(scatters_hu))
    if scatters_hu[worst] > UNEVEN * usual_hu:
        doubts.append(
            f"rod {phantom.rods[worst].label}: its slices scatter by {scatters_hu[worst]:.1f} HU, those of the others by"
            f" {usual_hu:.1f}: streaks, a bubble or a cut"
        )
    if uncertainty_mg_cm3 > GREATEST_UNCERTAINTY_MG_CM3:
        doubts.append(f"uncertain by {uncertainty_mg_cm3:.1f} mg/cm3, more than {GREATEST_UNCERTAINTY_MG_CM3:g}")
    return tuple(doubts)


def robust_mean(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Tukey's bisquare location, started from the median.

    Returns:
        The mean, its standard error, and the scatter (SD) of the values, outliers not counted.
    """
    centre = float(np.median(values))
    scale = MAD_TO_SD * float(np.median(np.abs(values - centre)))
    if scale == 0.0:
        return centre, 0.0, 0.0
    weights = np.ones_like(values)
    for _ in range(30):
        distance = (values - centre) / (BISQUARE * scale)
        weights = np.where(np.abs(distance) < 1.0, (1.0 - distance**2) ** 2, 0.0)
        centre = float(weights @ values / weights.sum())
    error = scale * math.sqrt(float(weights @ weights)) / float(weights.sum())
    return centre, error, scale
