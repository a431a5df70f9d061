"""The figures of every region, as on a densitometer's print."""

from collections.abc import Iterator
from dataclasses import dataclass

from dicomnode.dicom.overlay.style import (
    CLASS_COLOUR,
    MUTED,
    REGION_COLOUR,
    TEXT,
    WARNING,
    Box,
    Layer,
    Sheet,
)
from dicomnode.domain.measurement import Estimate, HipMeasurement, Measurement, RegionMeasurement, Status
from dicomnode.domain.radiograph import Side
from dicomnode.domain.wording import Wording

MOST_ROW_PX = 44
MINUS = "\N{MINUS SIGN}"
ABSENT = "\N{EN DASH}"


@dataclass(frozen=True)
class Column:
    """One column: its heading, its unit, and where its right edge (or for text its left one) lies, in shares of the width."""

    heading: str
    unit: str
    place: float
    left: bool = False


def _columns(words: Wording) -> tuple[Column, ...]:
    return (
        Column(words.region_heading, "", 0.022, left=True),
        Column(words.areal_bmd, "g/cm\N{SUPERSCRIPT TWO}", 0.250),
        Column(words.interval, "g/cm\N{SUPERSCRIPT TWO}", 0.382),
        Column(words.as_projected, "g/cm\N{SUPERSCRIPT TWO}", 0.462),
        Column(words.t_score, "", 0.525),
        Column(words.z_score, "", 0.588),
        Column(words.percent_yam, "", 0.652),
        Column(words.bone_mineral_content, "g", 0.712),
        Column(words.area, "cm\N{SUPERSCRIPT TWO}", 0.775),
        Column(words.volumetric_bmd, "mg/cm\N{SUPERSCRIPT THREE}", 0.846),
        Column(words.classified, "", 0.860, left=True),
    )


def draw_table(sheet: Sheet, box: Box, measurement: Measurement, words: Wording) -> None:
    """Draw the table of the hips; a hip or region without figures has its reason in their place."""
    sheet.ground.panel(box)
    hips = sorted(measurement.hips, key=lambda hip: hip.side is Side.LEFT)
    lines = sum(1 + max(1, len(hip.regions)) for hip in hips)
    heading = box.inset(0, 6, 0, box.height - 50)
    row_px = min(MOST_ROW_PX, (box.bottom - heading.bottom - 8) / lines)
    _draw_heading(sheet.ground, heading, words)
    y = heading.bottom
    for hip in hips:
        _draw_hip_line(sheet.ground, Box(box.x, y, box.width, row_px), hip, words)
        y += row_px
        for region in hip.regions:
            _draw_region(sheet, Box(box.x, y, box.width, row_px), region, words)
            y += row_px
        if not hip.regions:
            _draw_reason(sheet, Box(box.x, y, box.width, row_px), 0.022, hip, words)
            y += row_px


def _draw_heading(layer: Layer, box: Box, words: Wording) -> None:
    for column in _columns(words):
        x, across = box.x + column.place * box.width, "left" if column.left else "right"
        layer.text(x, box.y + 0.30 * box.height, column.heading, 14, MUTED, across=across)
        if column.unit:
            layer.text(x, box.y + 0.70 * box.height, column.unit, 12, MUTED, across=across)
    layer.rule(box.x + 12, box.right - 12, box.bottom)


def _draw_hip_line(layer: Layer, box: Box, hip: HipMeasurement, words: Wording) -> None:
    layer.bar(Box(box.x + 1, box.y + 1, box.width - 2, box.height - 2), "#1b222e")
    y = box.y + 0.5 * box.height
    layer.text(box.x + 0.022 * box.width, y, words.side[hip.side], 16, TEXT, bold=True)
    if hip.magnification is not None:
        origin = words.magnification_source.get(hip.magnification_source, hip.magnification_source)
        note = f"{words.magnification} {hip.magnification:.2f} ({origin})"
        layer.text(box.right - 14, y, note, 13, MUTED, across="right")


def _draw_region(sheet: Sheet, box: Box, region: RegionMeasurement, words: Wording) -> None:
    layer, y = sheet.ground, box.y + 0.5 * box.height
    layer.bar(Box(box.x + 0.022 * box.width, y - 6, 4, 12), REGION_COLOUR[region.region])
    layer.text(box.x + 0.022 * box.width + 12, y, words.region[region.region], 16)
    if region.status is Status.NOT_MEASURABLE:
        _draw_reason(sheet, box, 0.215, region, words)
    else:
        for column, figure in zip(_columns(words)[1:-1], _figures(region), strict=True):
            beside = column.heading in (words.interval, words.as_projected)
            colour = MUTED if figure == ABSENT or beside else TEXT
            bold = column.heading == words.areal_bmd
            layer.text(box.x + column.place * box.width, y, figure, 16, colour, bold=bold, across="right")
        _draw_class(layer, box, region, words)
    layer.rule(box.x + 12, box.right - 12, box.bottom)


def _draw_class(layer: Layer, box: Box, region: RegionMeasurement, words: Wording) -> None:
    name = region.assessment.classification if region.assessment else None
    x, y = box.x + _columns(words)[-1].place * box.width, box.y + 0.5 * box.height
    if name is None:
        layer.text(x, y, ABSENT, 16, MUTED)
    else:
        layer.text(x, y, words.classification[name], 14.5, CLASS_COLOUR[name], bold=True)


def _draw_reason(
    sheet: Sheet, box: Box, place: float, refused: HipMeasurement | RegionMeasurement, words: Wording
) -> None:
    """Write why there are no figures, and as much of the detail as fits."""
    x, y = box.x + place * box.width, box.y + 0.5 * box.height
    why = words.not_measurable + (f": {words.reason[refused.reason]}" if refused.reason else "")
    sheet.ground.text(x, y, why, 15, WARNING)
    left = x + sheet.typeface.width_px(why, 15) + 14
    sheet.ground.text(left, y, sheet.typeface.shortened(refused.detail, box.right - 14 - left, 13), 13, MUTED)


def _figures(region: RegionMeasurement) -> Iterator[str]:
    """Give the figures in the order of the columns, with the digits that the method can answer for."""
    density, scores = region.areal_bmd_g_cm2, region.assessment
    yield _number(density, 3)
    known = density is not None and density.low is not None and density.high is not None
    yield f"{density.low:.3f} \N{EN DASH} {density.high:.3f}" if known and density else ABSENT
    yield _number(region.projected_areal_bmd_g_cm2, 3)
    yield _signed(scores.t_score if scores else None)
    yield _signed(scores.z_score if scores else None)
    yield ABSENT if scores is None or scores.percent_yam is None else f"{scores.percent_yam:.0f}"
    yield _number(region.bmc_g, 2)
    yield _number(region.area_cm2, 2)
    yield _number(region.volumetric_bmd_mg_cm3, 0)


def _number(estimate: Estimate | None, digits: int) -> str:
    return ABSENT if estimate is None else f"{estimate.value:.{digits}f}"


def _signed(score: float | None) -> str:
    """Write a score as densitometers print it, with a true minus sign."""
    return ABSENT if score is None else f"{score:+.1f}".replace("-", MINUS)
