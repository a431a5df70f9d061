"""The page: where each part of the overlay stands."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from dicomnode.dicom.overlay.chart import draw_chart
from dicomnode.dicom.overlay.maps import draw_maps
from dicomnode.dicom.overlay.radiograph import Notice, draw_radiograph, notice_of_hip, notice_of_image
from dicomnode.dicom.overlay.style import (
    LATIN_FONT,
    LINE_HEIGHT,
    MUTED,
    TEXT,
    WARNING,
    WARNING_GROUND,
    Box,
    Sheet,
    font_family,
    needs_japanese_font,
)
from dicomnode.dicom.overlay.table import draw_table
from dicomnode.domain.measurement import Measurement, Region, Status
from dicomnode.domain.radiograph import Patient, Side
from dicomnode.domain.reference import ReferenceCurve
from dicomnode.domain.reporting import ReportSettings
from dicomnode.domain.wording import Wording, wording

WIDTH_PX, HEIGHT_PX = 1600, 1200
MARGIN_PX, GAP_PX = 24, 16
FOOT_TOP_PX, HIGHEST_FOOT_TOP_PX, FOOT_BOTTOM_PX = 1096, 1004, 1186
"""Where the foot begins when it is short; how far it may grow upwards; where it ends."""
FOOT_TYPE_PX = ((15, 13), (14, 12), (13, 11), (12, 10))
"""Sizes of the limitation sentence and of the remarks, tried from the largest on."""
TABLE_WIDTH_PX, TABLE_HEIGHT_PX = 1020, 350
REASONS_WIDTH_PX = 400


def render_overlay(
    measurement: Measurement,
    display_image: NDArray[np.float32] | None,
    *,
    patient: Patient,
    references: Mapping[Region, ReferenceCurve],
    settings: ReportSettings,
    identification: str = "",
) -> NDArray[np.uint8]:
    """Draw what was measured, or why nothing was, on one page.

    The patient's right is at the viewer's left. Nothing on the page identifies the patient unless the settings say so. Where
    the language cannot be written with the fonts of this machine, the page is in English.

    Args:
        measurement: figures, contours, maps and reasons.
        display_image: (rows, columns) of the source image, 0 black to 1 white (`window_for_display`); None where its pixels
            cannot be read.
        patient: the age at the examination is drawn on the chart.
        references: reference curve of each region for this patient's sex; may be empty.
        settings: language, limitation sentence, whether `identification` is drawn.
        identification: name, ID and date in one line.

    Returns:
        (1200, 1600, 3) RGB.
    """
    family, words, limitation = _language(settings)
    sheet = Sheet(WIDTH_PX, HEIGHT_PX, family)
    _draw_head(sheet, measurement, words, identification if settings.burn_in_identification else "")
    top = 116 if measurement.model.trained_on in words.trained_on_banner else 70
    remarks = _remarks(measurement, references, words) if measurement.status is Status.MEASURED else measurement.notes
    foot_top = _draw_foot(sheet, limitation, " ".join(remarks))
    body = Box(MARGIN_PX, top, WIDTH_PX - 2 * MARGIN_PX, foot_top - 12 - top)
    if measurement.status is Status.MEASURED:
        _draw_measured(sheet, body, measurement, display_image, patient, references, words)
    else:
        _draw_refused(sheet, body, measurement, display_image, words)
    return sheet.pixels()


def _draw_measured(
    sheet: Sheet,
    body: Box,
    measurement: Measurement,
    display_image: NDArray[np.float32] | None,
    patient: Patient,
    references: Mapping[Region, ReferenceCurve],
    words: Wording,
) -> None:
    """Radiograph and maps above, table and chart below."""
    upper = body.inset(0, 0, 0, TABLE_HEIGHT_PX + GAP_PX)
    lower = body.inset(0, body.height - TABLE_HEIGHT_PX, 0, 0)
    shape = (4, 5) if display_image is None else display_image.shape
    width = _image_width(shape, upper)
    draw_radiograph(sheet, upper.inset(0, 0, upper.width - width, 0), display_image, measurement, words)
    draw_maps(sheet, upper.inset(width + GAP_PX, 0, 0, 0), measurement, display_image, words)
    draw_table(sheet, lower.inset(0, 0, lower.width - TABLE_WIDTH_PX, 0), measurement, words)
    draw_chart(sheet, lower.inset(TABLE_WIDTH_PX + GAP_PX, 0, 0, 0), measurement, patient.age_years, references, words)


def _image_width(shape: tuple[int, ...], upper: Box) -> float:
    """Give the radiograph what its shape asks for, and leave room for two maps."""
    wanted = (upper.height - 8) * shape[1] / shape[0] + 8
    return float(np.clip(wanted, 420, upper.width - 760))


def _draw_refused(
    sheet: Sheet, body: Box, measurement: Measurement, display_image: NDArray[np.float32] | None, words: Wording
) -> None:
    """The radiograph as large as can be, and beside it why there are no figures."""
    image = body.inset(0, 0, REASONS_WIDTH_PX + GAP_PX, 0)
    draw_radiograph(sheet, image, display_image, measurement, words)
    column = body.inset(image.width + GAP_PX, 0, 0, 0)
    sheet.ground.panel(column)
    hips = sorted(measurement.hips, key=lambda hip: hip.side is Side.LEFT)
    notices = [notice_of_hip(hip, words) for hip in hips] or [notice_of_image(measurement, words)]
    y = column.y + 24
    for notice in notices:
        y = _draw_reason(sheet, column, y, notice) + 34


def _draw_reason(sheet: Sheet, column: Box, y: float, notice: Notice) -> float:
    """Write a notice from `y` downwards; give the Y below it."""
    x, width, start = column.x + 32, column.width - 56, y
    y = sheet.ground.paragraph(x, y, notice.subject, width, 16, MUTED) + 4
    y = sheet.ground.paragraph(x, y, notice.why, width, 25, WARNING) + 4
    for sentence in notice.sentences:
        y = sheet.ground.paragraph(x, y, sentence, width, 16, TEXT) + 8
    sheet.ground.bar(Box(column.x + 16, start, 3, y - start - 8), WARNING)
    return y


def _language(settings: ReportSettings, font_of: Callable[[str], str | None] = font_family) -> tuple[str, Wording, str]:
    """Choose font family, words and limitation sentence: English where no font can write the language."""
    japanese = needs_japanese_font(settings.language, settings.limitation)
    family = font_of("ja" if japanese else settings.language)
    if family is not None:
        return family, settings.words, settings.limitation_sentence
    english = wording("en")
    writable = settings.limitation and not needs_japanese_font("en", settings.limitation)
    return LATIN_FONT, english, settings.limitation if writable else english.limitation


def _draw_head(sheet: Sheet, measurement: Measurement, words: Wording, identification: str) -> None:
    ground = sheet.ground
    ground.text(MARGIN_PX, 32, words.title, 27, TEXT, bold=True)
    offset = sheet.typeface.width_px(words.title, 27, bold=True)
    ground.text(MARGIN_PX + offset + 16, 34, words.subtitle, 17, MUTED)
    right = WIDTH_PX - MARGIN_PX
    model = measurement.model
    ground.text(
        right, 24, f"{words.model}: {model.name} {model.version} ({model.digest[:12]})", 13, MUTED, across="right"
    )
    if identification:
        ground.text(right, 48, identification, 15, TEXT, across="right")
    if model.trained_on in words.trained_on_banner:
        banner = Box(MARGIN_PX, 66, WIDTH_PX - 2 * MARGIN_PX, 34)
        ground.panel(banner, colour=WARNING_GROUND, edge=WARNING, radius_px=5)
        centre = banner.x + banner.width / 2
        ground.text(
            centre, banner.y + 17, words.trained_on_banner[model.trained_on], 15, WARNING, bold=True, across="center"
        )


def _remarks(measurement: Measurement, references: Mapping[Region, ReferenceCurve], words: Wording) -> list[str]:
    """By whom, by whose rules and under which provisos the figures were judged, and what was odd in the radiograph."""
    regions = [region for hip in measurement.hips for region in hip.regions if region.assessment is not None]
    judged = next((region for region in regions if region.assessment and region.assessment.classification), None)
    remarks = [words.canonical_pose]
    if judged is not None and judged.assessment is not None:
        whom = references[judged.region].name if judged.region in references else judged.assessment.reference
        remarks.append(f"{words.reference}: {whom}. {words.criteria}: {judged.assessment.criteria}.")
    remarks += dict.fromkeys(note for region in regions if region.assessment for note in region.assessment.notes)
    remarks += [note for hip in measurement.hips for note in hip.notes]
    remarks += measurement.notes
    return remarks


def _draw_foot(sheet: Sheet, limitation: str, remarks: str) -> float:
    """Write the limitation sentence, and below it the remarks; give the Y at which the foot begins.

    Both are written whole: the foot grows upwards first, then the type shrinks. Only remarks beyond what even the smallest type
    holds end in an ellipsis (the report has them all); the limitation's length is bounded where the configuration is read.
    """
    width = WIDTH_PX - 2 * MARGIN_PX
    most = FOOT_BOTTOM_PX - HIGHEST_FOOT_TOP_PX
    for size, remark_size in FOOT_TYPE_PX:
        height = sheet.ground.height_px(limitation, width, size)
        left = most - height - 4
        height += 4 + sheet.ground.height_px(remarks, width, remark_size) if remarks else 0
        if height <= most:
            break
    top = max(HIGHEST_FOOT_TOP_PX, min(FOOT_TOP_PX, int(FOOT_BOTTOM_PX - height)))
    y = sheet.ground.paragraph(MARGIN_PX, top, limitation, width, size, TEXT) + 4
    if remarks:
        most_lines = int(left / (LINE_HEIGHT * remark_size))
        sheet.ground.paragraph(MARGIN_PX, y, remarks, width, remark_size, MUTED, most_lines)
    return top
