"""Calibrate a CT without a phantom, by air, fat, muscle and (where somebody has measured it) blood.

A tissue's CT value follows from its composition and the beam's effective energy; the scanner may stretch and shift the scale.
Three unknowns (energy, stretch, shift) are fitted to what was measured, each with what is known of it beforehand. The line of
hydroxyapatite in water then follows from the same tables. The patient's tissues are not ICRU's, and one energy stands for a
spectrum: the result states how uncertain it is, and is marked as doubtful beyond 10 mg/cm3.

Not for CTs with contrast medium in the vessels: it brightens blood and muscle.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize

from training.anatomy.ct import CtVolume, body_mask
from training.calibration.detection import axial
from training.calibration.line import (
    GREATEST_UNCERTAINTY_MG_CM3,
    TYPICAL_MG_CM3,
    Calibration,
    CalibrationFailed,
    Method,
    Point,
)
from training.calibration.rod_phantom import Material
from training.projection.attenuation import mass_attenuation_cm2_g


@dataclass(frozen=True)
class Tissue:
    """A reference: composition from `training.projection.tables`, density, and how patients differ from it."""

    material: str
    density_g_cm3: float
    spread_hu: float
    """SD between patients of the CT value, as far as it is not the scanner's."""
    window_hu: tuple[float, float]
    """Where the histogram's peak is sought."""


TISSUES: Mapping[str, Tissue] = {
    # Dry air at 20 degrees, ICRU-44. Assumed: 1 HU for what clothes and scatter do. At -1024 many scanners stop, or fill in.
    "air": Tissue("air", 0.0012, 1.0, (-1023.5, -900.0)),
    # Woodard and White 1986 (doi:10.1259/0007-1285-59-708-1209), adipose tissue 3, which Schneider 2000 puts at -98 HU. Theirs
    # with less lipid, 2, is 22 HU brighter: taken as two SD.
    "adipose": Tissue("adipose_3", 0.93, 10.0, (-160.0, -40.0)),
    # ICRU-44. Assumed: fat between the fibres, 4 % more or less of it, moves the CT value by 6 HU (table, 68 keV).
    "muscle": Tissue("muscle", 1.05, 6.0, (10.0, 110.0)),
    # ICRU-46. Assumed: the haematocrit, a fifth more or less.
    "blood": Tissue("blood", 1.06, 6.0, (10.0, 110.0)),
}
FOUND = ("air", "adipose", "muscle")
"""What the histogram shows; blood must be measured in a large vessel."""
KEV_AT_KILOVOLT = {80.0: 55.4, 90.0: 59.1, 100.0: 62.3, 110.0: 65.2, 120.0: 68.0, 130.0: 70.6, 140.0: 73.1}
"""Effective energy: at which hydroxyapatite and water attenuate in the ratio that the spectrum gives them, weighted by energy as
detectors do. Source: spekpy 2.5.4, tungsten, 8 degrees, mean of 6 and 12 mm Al, behind 20 cm of water."""
KEV_SPREAD = 4.0
"""Of those: 10 to 30 cm of water and 6 to 12 mm Al change 120 kV by 7 keV down and 5 keV up."""
WATER_SPREAD_HU = 5.0
"""Of the scanner's CT value of water. Assumption: scanners are checked for about this much."""
HYDROXYAPATITE_G_CM3 = 3.156
"""Of the crystals, by which they displace water. Source: density of Ca10(PO4)6(OH)2."""
VOXEL_MM = 3.0
"""Peaks are sought on voxels of about this size: less noise."""
EVEN_HU = 25.0
"""Tissue is read where the values in 3 x 3 x 3 such voxels differ by less than this (SD): away from its borders."""
FEWEST_ML = 20.0
"""Less of a tissue makes no peak."""


def calibrate_by_tissues(
    ct: CtVolume, kilovolt: float | None = None, measured_hu: Mapping[str, float] | None = None
) -> Calibration:
    """Estimate the line of hydroxyapatite from the patient's own tissues.

    Args:
        kilovolt: tube voltage; by default the CT's own, or 120 where it is not known (then marked as doubtful).
        measured_hu: CT values by tissue name, in place of those found in the histogram, or for blood in addition.

    Raises:
        CalibrationFailed: a tissue is not there, or the CT values cannot be those of the tissues.
    """
    given = dict(measured_hu or {})
    unknown = given.keys() - TISSUES.keys()
    if unknown:
        raise CalibrationFailed(f"no tissue {sorted(unknown)[0]!r} is known; expected some of {', '.join(TISSUES)}")
    missing = [name for name in FOUND if name not in given]
    hu = (tissue_peaks_hu(ct, missing) if missing else {}) | given
    doubts = []
    kilovolt = kilovolt or ct.kilovolt
    if kilovolt is None:
        kilovolt = 120.0
        doubts.append("the tube voltage is not known, 120 kV is assumed")
    return fit_tissues(hu, kilovolt, tuple(doubts))


def fit_tissues(hu: Mapping[str, float], kilovolt: float, doubts: tuple[str, ...] = ()) -> Calibration:
    """Fit energy, stretch and shift to the tissues' CT values, and give the line of hydroxyapatite.

    Raises:
        CalibrationFailed: a tube voltage out of range, or CT values that no tissue has at any energy.
    """
    known_kv = np.array(list(KEV_AT_KILOVOLT))
    if not known_kv[0] <= kilovolt <= known_kv[-1]:
        raise CalibrationFailed(f"tube voltage {kilovolt:g} kV, expected {known_kv[0]:g} to {known_kv[-1]:g}")
    energy_kev = float(np.interp(kilovolt, known_kv, list(KEV_AT_KILOVOLT.values())))
    names = sorted(hu, key=list(TISSUES).index)
    spreads = np.array([TISSUES[name].spread_hu for name in names])
    values = np.array([hu[name] for name in names])

    def model(unknowns: NDArray[np.float64]) -> NDArray[np.float64]:
        energy, stretch, shift = unknowns
        return np.array([shift + stretch * reference_hu(TISSUES[name], energy) for name in names])

    def misfits(unknowns: NDArray[np.float64]) -> NDArray[np.float64]:
        before = [(unknowns[0] - energy_kev) / KEV_SPREAD, unknowns[2] / WATER_SPREAD_HU]
        return np.concatenate([(values - model(unknowns)) / spreads, before])

    start = np.array([energy_kev, 1.0, 0.0])
    found = optimize.least_squares(misfits, start, x_scale=(KEV_SPREAD, 0.01, WATER_SPREAD_HU))
    expected = model(found.x)
    worst = int(np.argmax(np.abs(values - expected) / spreads))
    if abs(values[worst] - expected[worst]) > 3 * spreads[worst]:
        raise CalibrationFailed(
            f"{names[worst]} has {values[worst]:.0f} HU, expected {expected[worst]:.0f} within {3 * spreads[worst]:.0f} beside"
            " the other tissues: contrast medium, wrong tube voltage, or no CT values. Use a phantom"
        )
    slope, intercept = _hydroxyapatite_line(found.x)
    covariance = np.linalg.inv(found.jac.T @ found.jac)
    steps = np.array([0.1, 1e-4, 0.1])
    change = np.array(
        [
            (_apparent(found.x, found.x + step) - _apparent(found.x, found.x - step)) / (2 * step[n])
            for n, step in enumerate(np.diag(steps))
        ]
    )
    uncertainty = math.sqrt(float(change @ covariance @ change))
    if uncertainty > GREATEST_UNCERTAINTY_MG_CM3:
        doubts += (f"uncertain by {uncertainty:.1f} mg/cm3, more than {GREATEST_UNCERTAINTY_MG_CM3:g}",)
    residuals = (values - expected) / slope
    return Calibration(
        material=Material.HYDROXYAPATITE,
        method=Method.TISSUES,
        reference=f"{', '.join(names)} at {kilovolt:g} kV",
        slope_hu_cm3_mg=slope,
        intercept_hu=intercept,
        r=None,
        residual_sd_mg_cm3=float(np.sqrt(np.mean(residuals**2))),
        uncertainty_mg_cm3=uncertainty,
        points=tuple(
            Point(name, None, float(e), float(v), float(residual))
            for name, e, v, residual in zip(names, expected, values, residuals, strict=True)
        ),
        doubts=doubts,
    )


def reference_hu(tissue: Tissue, energy_kev: float) -> float:
    """CT value of a tissue at one energy on a scanner without fault."""
    energy = np.array([energy_kev])
    relative = mass_attenuation_cm2_g(tissue.material, energy)[0] / mass_attenuation_cm2_g("water", energy)[0]
    return float(1000.0 * (tissue.density_g_cm3 * relative - 1.0))


def hydroxyapatite_hu_cm3_mg(energy_kev: float) -> float:
    """CT values that 1 mg/cm3 of hydroxyapatite adds to the water which it displaces."""
    energy = np.array([energy_kev])
    relative = mass_attenuation_cm2_g("hydroxyapatite", energy)[0] / mass_attenuation_cm2_g("water", energy)[0]
    return float(relative - 1.0 / HYDROXYAPATITE_G_CM3)


def _hydroxyapatite_line(unknowns: NDArray[np.float64]) -> tuple[float, float]:
    energy, stretch, shift = (float(value) for value in unknowns)
    return stretch * hydroxyapatite_hu_cm3_mg(energy), shift


def _apparent(truth: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """What `TYPICAL_MG_CM3` is read as, if the line is drawn for `other` unknowns."""
    slope, intercept = _hydroxyapatite_line(truth)
    wrong_slope, wrong_intercept = _hydroxyapatite_line(other)
    return (intercept + slope * TYPICAL_MG_CM3 - wrong_intercept) / wrong_slope


def tissue_peaks_hu(ct: CtVolume, names: list[str]) -> dict[str, float]:
    """CT values of the histogram's peaks: air outside the body, adipose tissue and muscle inside.

    Raises:
        CalibrationFailed: too little of a tissue.
    """
    hu, _, spacing_mm = axial(ct)
    factors = np.maximum(1, (VOXEL_MM / spacing_mm[::-1]).astype(int))
    coarse = _shrunk(hu, factors)
    voxel_mm = spacing_mm[::-1] * factors
    body = body_mask(CtVolume(coarse, np.diag([*voxel_mm[::-1], 1.0])))
    mean = ndimage.uniform_filter(coarse, 3)
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(coarse**2, 3) - mean**2, 0.0))
    # Around a round field of view scanners fill in one constant: no air.
    even = (spread < EVEN_HU) & (spread > 0.05)
    inside, outside = ndimage.binary_erosion(body), ~ndimage.binary_dilation(body, iterations=2)
    peaks = {}
    for name in names:
        low, high = TISSUES[name].window_hu
        chosen = coarse[even & (outside if name == "air" else inside)]
        chosen = chosen[(chosen > low) & (chosen < high)]
        millilitres = len(chosen) * float(np.prod(voxel_mm)) / 1000.0
        if millilitres < FEWEST_ML:
            raise CalibrationFailed(
                f"{millilitres:.0f} ml of {name} between {low:g} and {high:g} HU, expected {FEWEST_ML:g} at least: give its CT"
                " value, or use a phantom"
            )
        peaks[name] = _peak(chosen)
    return peaks


def _peak(values: NDArray[np.float32]) -> float:
    """Mode: the densest half of the values, then of those the densest half, and so on down to a narrow share."""
    ordered = np.sort(values).astype(np.float64)
    while len(ordered) > max(200, len(values) // 4):
        half = len(ordered) // 2
        start = int(np.argmin(ordered[half:] - ordered[: len(ordered) - half]))
        ordered = ordered[start : start + half]
    return float(np.median(ordered))


def _shrunk(hu: NDArray[np.float32], factors: NDArray[np.int_]) -> NDArray[np.float32]:
    fz, fy, fx = (int(f) for f in factors)
    nz, ny, nx = (n // f for n, f in zip(hu.shape, (fz, fy, fx), strict=True))
    blocks = hu[: nz * fz, : ny * fy, : nx * fx].reshape(nz, fz, ny, fy, nx, fx)
    return np.asarray(blocks.mean(axis=(1, 3, 5)), np.float32)
