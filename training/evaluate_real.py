"""What a bundle can do on a hospital's held-out hips: real radiographs, against CT, and against DXA where that is known."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomnode.domain.measurement import Region
from dicomnode.inference.bundle import Intervals
from dicomnode.inference.frame import FramedHip
from dicomnode.inference.predictor import Predictor
from training.cases import RegionCase
from training.evaluate import (
    HipReading,
    hip_reading,
    locator_error_px,
    region_cases,
    stored_from_frame,
    summarise,
)
from training.hospital.project import RealHip
from training.real import count_patients
from training.statistics import agreement

FEWEST_PATIENTS = 19
"""From so many validation patients on the 90 % intervals are those of the real hips. Nine cases would do for split-conformal
intervals, but the worst of them alone would set the width; from 19 on it is not the worst. Counted are patients, whose two hips
are alike."""


def evaluate_real(
    predictor: Predictor, hips: Sequence[RealHip], seed: int
) -> tuple[list[RegionCase], list[HipReading]]:
    """Measure every hip on its own radiograph; subjects are numbered by patient, in the order of their identifiers."""
    numbers = {patient: n for n, patient in enumerate(sorted({hip.figures["patient"] for hip in hips}))}
    cases: list[RegionCase] = []
    readings: list[HipReading] = []
    for place, hip in enumerate(hips):
        placed = stored_from_frame(locator_error_px(np.random.default_rng((seed, 5, place))))
        framed = FramedHip(hip.image.astype(np.float32), placed, hip.technique, hip.inside)
        decomposition = predictor.read(framed)
        readings.append(hip_reading("native", decomposition))
        figures = {**hip.figures, "index": numbers[hip.figures["patient"]]}
        cases.extend(region_cases(figures, "native", decomposition, predictor, hip.technique))
    return cases, readings


def refit_intervals(simulated: Intervals, real: Intervals, cases: Sequence[RegionCase]) -> tuple[Intervals, list[str]]:
    """Take the real hips' intervals for each region that enough patients were measured of.

    Args:
        cases: of the real validation hips.

    Returns:
        The intervals, and the regions whose are from real hips.
    """
    regions = [region.value for region in Region if has_enough(cases, region)]
    return replace(
        simulated,
        canonical={**simulated.canonical, **{region: real.canonical[region] for region in regions}},
        projected={**simulated.projected, **{region: real.projected[region] for region in regions}},
    ), regions


def has_enough(cases: Sequence[RegionCase], region: Region) -> bool:
    """Whether a region was measured in so many patients that intervals may be set from them."""
    return len({c.subject for c in cases if c.region == region.value and not c.refused}) >= FEWEST_PATIENTS


def summarise_real(
    cases: list[RegionCase], hips: Sequence[RealHip], intervals: Intervals, refitted: Sequence[str]
) -> dict[str, Any]:
    """Condense the held-out real hips as the simulated ones are, ready for JSON; the truth is that of CT.

    Args:
        hips: whose cases these are.
        refitted: regions whose intervals were set from real hips.
    """
    plain = summarise(cases, intervals).as_dict()
    return {
        "data": "real radiographs of one hospital, truth by CT of the same patients",
        "patients": count_patients(hips),
        "hips": len(hips),
        "intervals_from_real_hips": list(refitted),
        **{name: plain[name] for name in ("agreement", "interval_coverage", "refusals")},
        "dxa": _against_dxa(cases, hips),
    }


def _against_dxa(cases: list[RegionCase], hips: Sequence[RealHip]) -> dict[str, dict[str, Any]]:
    """Maker -> region -> agreement of canonical areal BMD, on CT's scale, with the densitometer's; three hips at least."""
    numbers = {patient: n for n, patient in enumerate(sorted({hip.figures["patient"] for hip in hips}))}
    known = {
        (numbers[hip.figures["patient"]], hip.figures["side"]): hip.figures["reference"]
        for hip in hips
        if hip.figures["reference"]["dxa_g_cm2"]
    }
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for case in cases:
        reference = known.get((case.subject, case.side))
        if reference is not None and case.region in reference["dxa_g_cm2"] and not case.refused:
            both = (reference["dxa_g_cm2"][case.region], case.prediction["areal_bmd_g_cm2"])
            pairs.setdefault((reference["dxa_maker"], case.region), []).append(both)
    table: dict[str, dict[str, Any]] = {}
    for (maker, region), values in sorted(pairs.items()):
        if len(values) >= 3:
            dxa, prediction = _columns(values)
            table.setdefault(maker, {})[region] = agreement(dxa, prediction).as_dict()
    return table


def _columns(values: list[tuple[float, float]]) -> NDArray[np.float64]:
    return np.array(values, np.float64).T
