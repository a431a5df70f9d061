"""Areal BMD against age: the reference population's bands and the patient's points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from dicomnode.dicom.overlay.style import BACKGROUND, CLASS_COLOUR, MUTED, REFERENCE, TEXT, Box, Sheet
from dicomnode.domain.measurement import Estimate, Measurement, Region
from dicomnode.domain.radiograph import Side
from dicomnode.domain.reference import ReferenceCurve
from dicomnode.domain.wording import Wording

CHARTED = (Region.TOTAL_HIP, Region.FEMORAL_NECK)
"""In order of preference; only these are scored. Source: ISCD 2023."""
AGES_YEARS = (20.0, 90.0)
MARKERS = {Side.RIGHT: "o", Side.LEFT: "D"}
BANDS = ("normal", "low_bone_mass", "osteoporosis")


@dataclass(frozen=True)
class Point:
    """A patient's hip on the chart."""

    side: Side
    areal_bmd_g_cm2: Estimate


def draw_chart(
    sheet: Sheet,
    box: Box,
    measurement: Measurement,
    age_years: float | None,
    references: Mapping[Region, ReferenceCurve],
    words: Wording,
) -> None:
    """Draw the chart of the total hip, or of the neck where only that has figures."""
    sheet.ground.panel(box)
    region, points = _charted(measurement, references)
    if region is None:
        sheet.ground.text(box.x + box.width / 2, box.y + box.height / 2, words.no_reference, 15, MUTED, across="center")
        return
    reference = references[region]
    sheet.ground.text(box.x + 16, box.y + 20, words.region[region], 15, TEXT, bold=True)
    bands = " (\N{PLUS-MINUS SIGN}1, \N{PLUS-MINUS SIGN}2 SD)" if reference.by_age else ""
    whom = sheet.typeface.shortened(f"{words.reference}: {reference.name}", box.width - 120, 13) + bands
    sheet.ground.text(box.x + 16, box.y + 42, whom, 13, MUTED)
    place = box.inset(58, 82, 56 if reference.young_sd else 18, 46)
    axes = sheet.axes(place)
    low, high = _range_g_cm2(reference, points)
    axes.set(xlim=_ages(age_years), ylim=(low, high))
    if reference.by_age:
        _draw_population(axes, reference)
        _draw_limits(axes, reference)
    else:
        _draw_class_bands(axes, reference)
    _name_classes(axes, sheet, reference, words)
    _draw_axes(sheet, place, axes, reference, words)
    for point in points:
        _draw_point(axes, sheet, point, age_years, len(points))
    if points and age_years is None:
        sheet.ground.text(place.right - 6, place.y + 12, words.age_unknown, 13, MUTED, across="right")


def _charted(
    measurement: Measurement, references: Mapping[Region, ReferenceCurve]
) -> tuple[Region | None, Sequence[Point]]:
    """Choose the region: the first that has both figures and a reference, else the first that has a reference."""
    for region in CHARTED:
        points = [
            Point(hip.side, measured.areal_bmd_g_cm2)
            for hip in measurement.hips
            for measured in hip.regions
            if measured.region is region and measured.areal_bmd_g_cm2 is not None
        ]
        if points and region in references:
            return region, points
    return next((region for region in CHARTED if region in references), None), ()


def _ages(age_years: float | None) -> tuple[float, float]:
    if age_years is None:
        return AGES_YEARS
    return min(AGES_YEARS[0], np.floor(age_years / 10) * 10), max(AGES_YEARS[1], np.ceil(age_years / 10) * 10)


def _range_g_cm2(reference: ReferenceCurve, points: Sequence[Point]) -> tuple[float, float]:
    """Hold the bands and every interval, to the next 0.1 g/cm2."""
    mean, sd = np.array(reference.mean_g_cm2), np.array(reference.sd_g_cm2)
    values = [*(mean - 2.2 * sd), *(mean + 2.2 * sd)]
    if reference.young_mean is not None and reference.young_sd is not None:
        values += [reference.young_mean - 4 * reference.young_sd, reference.young_mean + 2 * reference.young_sd]
    for point in points:
        estimate = point.areal_bmd_g_cm2
        values += [number for number in (estimate.value, estimate.low, estimate.high) if number is not None]
    return float(np.floor(min(values) * 10) / 10), float(np.ceil(max(values) * 10) / 10)


def _draw_population(axes: Axes, reference: ReferenceCurve) -> None:
    ages, mean, sd = (np.array(numbers) for numbers in (reference.ages_years, reference.mean_g_cm2, reference.sd_g_cm2))
    for sds, alpha in ((2, 0.16), (1, 0.24)):
        axes.fill_between(ages, mean - sds * sd, mean + sds * sd, color=REFERENCE, alpha=alpha, linewidth=0)
    axes.plot(ages, mean, color=REFERENCE, linewidth=1.8)


def _draw_limits(axes: Axes, reference: ReferenceCurve) -> None:
    if reference.limits_g_cm2 is not None:
        osteoporosis, normal = reference.limits_g_cm2
        axes.axhline(normal, color=CLASS_COLOUR["low_bone_mass"], linewidth=1.1, linestyle=(0, (5, 3)), alpha=0.9)
        axes.axhline(osteoporosis, color=CLASS_COLOUR["osteoporosis"], linewidth=1.1, linestyle=(0, (5, 3)), alpha=0.9)


def _class_edges(axes: Axes, reference: ReferenceCurve) -> Sequence[tuple[float, float]]:
    """Lower and upper end of the three classes on the chart, as `BANDS` names them; none where the limits are not known."""
    if reference.limits_g_cm2 is None:
        return ()
    (low, high), (osteoporosis, normal) = axes.get_ylim(), reference.limits_g_cm2
    return (normal, high), (osteoporosis, normal), (low, osteoporosis)


def _draw_class_bands(axes: Axes, reference: ReferenceCurve) -> None:
    """Without a curve by age: the classes as horizontal bands, and the young adult mean."""
    for name, (bottom, top) in zip(BANDS, _class_edges(axes, reference), strict=True):
        axes.axhspan(bottom, top, color=CLASS_COLOUR[name], alpha=0.16, linewidth=0)
    if reference.young_mean is not None:
        axes.axhline(reference.young_mean, color=REFERENCE, linewidth=1.6)


def _name_classes(axes: Axes, sheet: Sheet, reference: ReferenceCurve, words: Wording) -> None:
    """Name the classes at the left, each close to the limit that it has with the next."""
    x = axes.get_xlim()[0] + 1.2
    edges = _class_edges(axes, reference)
    limits = [(edges[0][0], "bottom"), (sum(edges[1]) / 2, "center"), (edges[2][1], "top")] if edges else []
    for name, title, (y, down) in zip(BANDS, words.class_bands, limits, strict=False):
        axes.text(
            x, y + {"bottom": 0.008, "top": -0.008}.get(down, 0), title, color=CLASS_COLOUR[name], ha="left", va=down,
            fontproperties=sheet.typeface.at(13), path_effects=[withStroke(linewidth=2, foreground=BACKGROUND, alpha=0.6)],
        )  # fmt: skip


def _draw_axes(sheet: Sheet, place: Box, axes: Axes, reference: ReferenceCurve, words: Wording) -> None:
    """Ages below, areal BMD at the left, and where young adults are known T-scores at the right."""
    (youngest, oldest), (low, high) = axes.get_xlim(), axes.get_ylim()
    ground = sheet.ground

    def y_of(value: float) -> float:
        return place.bottom - (value - low) / (high - low) * place.height

    for age in np.arange(youngest, oldest + 1, 10):
        x = place.x + (age - youngest) / (oldest - youngest) * place.width
        ground.text(x, place.bottom + 14, f"{age:.0f}", 13, MUTED, across="center")
    ground.text(place.x + place.width / 2, place.bottom + 34, words.age_years, 13, MUTED, across="center")
    for value in np.arange(low, high + 1e-6, 0.2 if high - low > 0.7 else 0.1):
        ground.rule(place.x, place.right, y_of(value))
        ground.text(place.x - 8, y_of(value), f"{value:.1f}", 13, MUTED, across="right")
    ground.text(place.x - 42, place.y - 14, "g/cm\N{SUPERSCRIPT TWO}", 13, MUTED)
    if reference.young_mean is None or reference.young_sd is None:
        return
    for t in range(-6, 5):
        value = reference.young_mean + t * reference.young_sd
        if low <= value <= high:
            ground.text(
                place.right + 10, y_of(value), f"{t:+d}".replace("-", "\N{MINUS SIGN}") if t else "0", 13, MUTED
            )
    ground.text(place.right + 40, place.y - 14, words.t_score, 13, MUTED, across="right")


def _draw_point(axes: Axes, sheet: Sheet, point: Point, age_years: float | None, among: int) -> None:
    """A point with its interval; where the age is not known a line over all ages. Two hips stand a little apart."""
    estimate = point.areal_bmd_g_cm2
    if age_years is None:
        axes.axhline(estimate.value, color=TEXT, linewidth=1.3, linestyle=(0, (1, 1.5)))
        x = axes.get_xlim()[1] - 4
    else:
        apart = 0.9 if among > 1 else 0.0
        x = age_years + (-apart if point.side is Side.RIGHT else apart)
    if estimate.low is not None and estimate.high is not None:
        axes.plot([x, x], [estimate.low, estimate.high], color=TEXT, linewidth=1.4, solid_capstyle="butt")
    axes.plot([x], [estimate.value], MARKERS[point.side], color=TEXT, markersize=7.5, markeredgecolor=BACKGROUND)
    at_left = point.side is Side.RIGHT
    axes.annotate(
        point.side.value, (x, estimate.value), (-9 if at_left else 9, 0), textcoords="offset points", color=TEXT,
        ha="right" if at_left else "left", va="center", fontproperties=sheet.typeface.at(15, bold=True),
        path_effects=[withStroke(linewidth=2.5, foreground=BACKGROUND)],
    )  # fmt: skip
