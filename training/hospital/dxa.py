"""From areal density by CT to what a maker's densitometer reads: one straight line per maker and region.

CT-derived areal density reads about 10 % below DXA (Kong 2013), and makers differ: only a line fitted on patients who had both
makes the two comparable.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dicomnode.domain.measurement import Region
from dicomnode.errors import DicomNodeError

FEWEST = 10
"""Hips below which no line is fitted: with 10 the standard error of a slope at r 0.97 is still 9 % of it. Own choice."""
LEAST_R = 0.7
"""Below it the two columns do not belong to the same hips. CT against DXA reaches 0.97 (Cann 2014)."""


class NoDxaLine(DicomNodeError):
    """CT and DXA cannot be brought together; the message says why, and what to do."""


@dataclass(frozen=True)
class DxaLine:
    """dxa = intercept + slope * ct."""

    maker: str
    region: Region
    n: int
    slope: float
    intercept_g_cm2: float
    r: float
    see_g_cm2: float
    """Standard error of the estimate, with n - 2 degrees of freedom."""

    def dxa_g_cm2(self, ct_g_cm2: float) -> float:
        """What the densitometer would read."""
        return self.intercept_g_cm2 + self.slope * ct_g_cm2


def fit_dxa(maker: str, region: Region, ct_g_cm2: Sequence[float], dxa_g_cm2: Sequence[float]) -> DxaLine:
    """Fit a maker's line by least squares of the DXA values on those by CT.

    Raises:
        NoDxaLine: fewer than `FEWEST` hips, all alike, or hardly related.
    """
    ct, dxa = np.array(ct_g_cm2, float), np.array(dxa_g_cm2, float)
    what = f"{maker}, {region.value.replace('_', ' ')}"
    if len(ct) < FEWEST:
        raise NoDxaLine(f"{what}: {len(ct)} hips with CT and DXA, expected {FEWEST} at least")
    if np.ptp(ct) < 1e-6 or np.ptp(dxa) < 1e-6:
        raise NoDxaLine(f"{what}: all {len(ct)} hips have the same density, expected patients who differ")
    r = float(np.corrcoef(ct, dxa)[0, 1])
    if r < LEAST_R:
        raise NoDxaLine(
            f"{what}: CT and DXA correlate by {r:.2f}, expected {LEAST_R:g} at least: check which value is whose"
        )
    slope, intercept = np.polyfit(ct, dxa, 1)
    residuals = dxa - (intercept + slope * ct)
    see = float(np.sqrt((residuals**2).sum() / (len(ct) - 2)))
    return DxaLine(maker, region, len(ct), float(slope), float(intercept), r, see)
