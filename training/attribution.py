"""What a model's errors go with: properties of person, pose and technique that it does not see through.

An error that follows a property says that a radiograph does not show it, or that the model has not learned to read it. Everything
was drawn from seeds, and is drawn again here.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dicomnode.domain.measurement import Region
from dicomnode.domain.radiograph import Sex
from training.anatomy.population import Subject, draw_subject
from training.augment import random_conditions
from training.cases import RegionCase
from training.evaluate import taking
from training.projection.radiograph import Detector, Exposure, VendorProcessing
from training.statistics import bootstrap_intervals, r_and_rmse

_QUANTITY = "areal_bmd_g_cm2"
_SHOWN = 16
"""Bars in the picture."""
_COLOURS = {"bone": "#4f8ef7", "pelvis": "#29b6c5", "pose": "#f3a712", "body": "#8bbf4d", "technique": "#e4572e"}
_BANDS = ("fine", "middle", "coarse")
_FEWEST = 20
"""Cases: below, any property seems to explain something."""


@dataclass(frozen=True)
class Attribution:
    """One property, and how the errors go with it."""

    group: str
    """A key of `_COLOURS`."""
    name: str
    pearson_r: float
    """Of the property with the error's logarithm, prediction over truth; its square is a share of the errors' variance."""
    interval: tuple[float, float]
    """95 %, by drawing persons."""


def attribute(cases: Iterable[RegionCase], population_seed: int, seed: int) -> list[Attribution]:
    """Correlate the errors of the total hip's areal BMD with every number that was drawn for a native hip, largest first.

    Args:
        cases: of `evaluate`, one radiograph a hip.
        population_seed: of the pairs.
        seed: of the evaluation.

    Returns:
        Nothing where there are fewer than `_FEWEST` cases.
    """
    own = [
        case for case in cases if case.region == Region.TOTAL_HIP.value and case.kind == "native" and not case.refused
    ]
    if len(own) < _FEWEST:
        return []
    errors = np.log([case.prediction[_QUANTITY] / case.truth[_QUANTITY] for case in own])
    persons = np.array([case.subject for case in own], np.int64)
    drawn = [properties(draw_subject(population_seed, case.subject), case.side, seed) for case in own]
    found = []
    for group, name in drawn[0]:
        values = np.array([one[group, name] for one in drawn])
        if values.std() > 0:
            low, high = bootstrap_intervals(r_and_rmse, persons, values, errors)[0]
            found.append(Attribution(group, name, float(r_and_rmse(values, errors)[0]), (float(low), float(high))))
    return sorted(found, key=lambda one: -abs(one.pearson_r))


def properties(subject: Subject, side: str, seed: int) -> dict[tuple[str, str], float]:
    """(group, name) -> value: the numbers that one hip and its radiograph in `evaluate` were drawn with."""
    is_left = side == "L"
    hip, own = subject.hips[is_left], _numbers(subject)
    _, exposure, processing = random_conditions(taking(seed, 2 * subject.index + is_left))
    table = {
        "bone": _numbers(hip.femur) | _numbers(hip.quality) | {"yellow_marrow": subject.yellow_marrow},
        "pelvis": {
            name: value
            for name, value in (_numbers(subject.pelvis) | _numbers(subject.pelvis_quality)).items()
            if name != "cortical_density_g_cm3"  # that of the femur
        },
        "pose": _numbers(hip.pose) | {name: value for name, value in own.items() if name.startswith("pelvic_")},
        "body": _numbers(subject.body)
        | {name: own[name] for name in ("age_years", "height_cm", "bmi_kg_m2")}
        | {"woman": float(subject.sex is Sex.FEMALE)},
        "technique": _numbers(subject.view) | _numbers(exposure) | _processed(exposure, processing),
    }
    return {(group, name): value for group, values in table.items() for name, value in values.items()}


def write_attributions(attributions: list[Attribution], folder: Path) -> None:
    """`errors.csv` with all properties and `errors.png` with the largest; nothing where there is none."""
    if not attributions:
        return
    with (folder / "errors.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["group", "property", "pearson_r", "low", "high"])
        writer.writerows([one.group, one.name, one.pearson_r, *one.interval] for one in attributions)
    _draw(attributions[:_SHOWN], folder / "errors.png")


def _processed(exposure: Exposure, processing: VendorProcessing) -> dict[str, float]:
    """What is no plain number of the two; gains as logarithms."""
    gains = zip(_BANDS, processing.band_gains, strict=True)
    return (
        {f"detector of {phosphor}": float(exposure.detector is phosphor) for phosphor in Detector}
        | {f"{band} band over base": float(np.log(gain / processing.base_gain)) for band, gain in gains}
        | {"slope of the curve": float(np.log(processing.slope)), "sigmoid curve": float(processing.sigmoid)}
        | {"quantile at mid grey": processing.centre_quantile, "bits": float(processing.bits)}
        | {"lossy JPEG": float(processing.jpeg_quality is not None)}
    )


def _numbers(drawn: Any) -> dict[str, float]:
    """Fields of a frozen value that are numbers; seeds and numbering are none."""
    values = {one.name: getattr(drawn, one.name) for one in fields(drawn) if one.name not in ("seed", "index")}
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _draw(shown: list[Attribution], png: Path) -> None:
    figure = Figure(figsize=(8, 0.32 * len(shown) + 1.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    rows = np.arange(len(shown))[::-1]
    r = np.array([one.pearson_r for one in shown])
    ends = np.array([one.interval for one in shown]).T
    axes.barh(rows, r, color=[_COLOURS[one.group] for one in shown], height=0.7)
    axes.errorbar(r, rows, xerr=np.abs(ends - r), fmt="none", ecolor="0.2", lw=1, capsize=2)
    axes.set_yticks(rows, [f"{one.name.replace('_', ' ')} ({one.group})" for one in shown], fontsize=8)
    axes.axvline(0, color="0.4", lw=0.8)
    axes.set_xlabel("Pearson r with the error (logarithm of stated over true); lines: 95 %, by person")
    axes.set_title(
        "What the errors of the total hip's areal BMD go with: simulated radiographs of phantoms", fontsize=9
    )
    figure.savefig(png, dpi=110)
