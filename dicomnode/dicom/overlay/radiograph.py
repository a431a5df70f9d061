"""The radiograph with the contours of what was measured, and a plain word where nothing was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import Stroke, withStroke
from numpy.typing import NDArray
from PIL import Image

from dicomnode.dicom.overlay.style import (
    MUTED,
    REGION_COLOUR,
    RULE,
    TEXT,
    WARNING,
    WARNING_GROUND,
    Box,
    Sheet,
)
from dicomnode.domain.measurement import HipMeasurement, Measurement, Reason, Region, RegionMeasurement, Status
from dicomnode.domain.radiograph import Side
from dicomnode.domain.wording import Wording

NOTICE_WIDTH_PX = 340
LABEL_SIZE_PX = 15
LABEL_GAP_PX = 26
"""Distance between labels, and from a label to the bone's outermost point."""
SUBREGIONS = (Region.FEMORAL_NECK, Region.TROCHANTER, Region.INTERTROCHANTER)


def window_for_display(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Window a radiograph (larger is more attenuation) for display: 0 black, 1 white, bone bright.

    The window spans the 1st to the 99.7th percentile of the middle of the image, so that neither open field, nor the unexposed
    border outside the collimation, nor a lead marker sets it.
    """
    rows, columns = image.shape
    middle = image[rows // 5 : rows - rows // 5, columns // 5 : columns - columns // 5]
    low, high = np.percentile(middle[:: max(1, rows // 512), :: max(1, columns // 512)], (1.0, 99.7))
    span = max(float(high - low), float(np.finfo(np.float32).tiny))
    windowed: NDArray[np.float32] = np.clip((image - np.float32(low)) / np.float32(span), 0.0, 1.0).astype(np.float32)
    return windowed


def draw_radiograph(
    sheet: Sheet, box: Box, display_image: NDArray[np.float32] | None, measurement: Measurement, words: Wording
) -> None:
    """Draw the radiograph as large as fits, contours and notices upon it."""
    sheet.ground.panel(box, colour="#000000", edge=RULE)
    if display_image is None:
        return
    rows, columns = display_image.shape
    place = box.inset(4, 4, 4, 4).fitted(columns, rows)
    axes = _show(sheet, place, display_image)
    for hip in measurement.hips:
        _side_mark(axes, sheet, hip.side, rows, columns, place)
        if hip.status is Status.MEASURED:
            _draw_hip(axes, sheet, hip, place.width / columns, words)
    if measurement.status is Status.MEASURED:
        _notices(sheet, place, measurement, words)


def _show(sheet: Sheet, place: Box, display_image: NDArray[np.float32]) -> Axes:
    """Reduce the image by area averaging to the pixels it gets, and show it in its own coordinates."""
    rows, columns = display_image.shape
    size = round(place.width), round(place.height)
    grey = Image.fromarray((display_image * 255).round().astype(np.uint8))
    reduced = np.asarray(grey.resize(size, Image.Resampling.LANCZOS, reducing_gap=None))
    axes = sheet.axes(place)
    axes.imshow(
        reduced, cmap="gray", vmin=0, vmax=255, extent=(0, columns, rows, 0), aspect="auto", interpolation="nearest"
    )
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    return axes


def _side_mark(axes: Axes, sheet: Sheet, side: Side, rows: int, columns: int, place: Box) -> None:
    """Mark the side in the corner where it lies: the patient's right at the viewer's left."""
    inset = 16 * columns / place.width
    at_left = side is Side.RIGHT
    axes.text(
        inset if at_left else columns - inset,
        inset,
        side.value,
        color=TEXT,
        ha="left" if at_left else "right",
        va="top",
        fontproperties=sheet.typeface.at(26, bold=True),
        path_effects=[withStroke(linewidth=3, foreground="black", alpha=0.7)],
    )


def _draw_hip(axes: Axes, sheet: Sheet, hip: HipMeasurement, px_per_image_px: float, words: Wording) -> None:
    """Outline the regions that have figures and name them at the lateral side, where soft tissue is dark and empty."""
    outlined = [region for region in hip.regions if region.contour_px is not None and region.status is Status.MEASURED]
    for region in sorted(outlined, key=lambda region: region.region is not Region.TOTAL_HIP):
        _outline(axes, region)
    named = [region for region in outlined if region.region in SUBREGIONS]
    if named:
        _label(axes, sheet, hip.side, named, px_per_image_px, words)


def _outline(axes: Axes, region: RegionMeasurement) -> None:
    assert region.contour_px is not None
    total = region.region is Region.TOTAL_HIP
    axes.plot(
        *region.contour_px.T,
        color=REGION_COLOUR[region.region],
        linewidth=2.6 if total else 1.3,
        alpha=0.55 if total else 1.0,
        solid_joinstyle="round",
        path_effects=None if total else [Stroke(linewidth=2.4, foreground="black", alpha=0.5), withStroke(linewidth=0)],
    )


def _label(
    axes: Axes, sheet: Sheet, side: Side, regions: Sequence[RegionMeasurement], px_per_image_px: float, words: Wording
) -> None:
    contours = {region.region: np.asarray(region.contour_px) for region in regions}
    gap = LABEL_GAP_PX / px_per_image_px
    x = _label_column(sheet, side, contours, px_per_image_px, axes.get_xlim()[1], words)
    y = -np.inf
    for region, contour in sorted(contours.items(), key=lambda entry: float(entry[1][:, 1].mean())):
        wanted = contour[:, 1].min() - 0.4 * gap if region is Region.FEMORAL_NECK else contour[:, 1].mean()
        y = max(float(wanted), y + gap)
        nearest = contour[np.argmin(np.hypot(contour[:, 0] - x, contour[:, 1] - y))]
        axes.plot([x, nearest[0]], [y, nearest[1]], color=REGION_COLOUR[region], linewidth=0.9, alpha=0.8)
        axes.text(
            x + (-4 if side is Side.RIGHT else 4) / px_per_image_px,
            y,
            words.region_short[region],
            color=REGION_COLOUR[region],
            ha="right" if side is Side.RIGHT else "left",
            va="center",
            fontproperties=sheet.typeface.at(LABEL_SIZE_PX, bold=True),
            path_effects=[withStroke(linewidth=2.5, foreground="black", alpha=0.75)],
        )


def _label_column(
    sheet: Sheet,
    side: Side,
    contours: Mapping[Region, NDArray[np.float32]],
    px_per_image_px: float,
    columns: float,
    words: Wording,
) -> float:
    """Give the image column at which the labels meet their lines: beside the bone, but with room for the longest label."""
    width = max(sheet.typeface.width_px(words.region_short[region], LABEL_SIZE_PX, bold=True) for region in contours)
    room, gap = (width + 10) / px_per_image_px, LABEL_GAP_PX / px_per_image_px
    every = np.concatenate([contour[:, 0] for contour in contours.values()])
    return max(room, float(every.min()) - gap) if side is Side.RIGHT else min(columns - room, float(every.max()) + gap)


def _notices(sheet: Sheet, place: Box, measurement: Measurement, words: Wording) -> None:
    """Say over the radiograph, below the hip concerned, that it could not be measured, and why."""
    for hip in measurement.hips:
        if hip.status is Status.NOT_MEASURABLE:
            x = place.x if hip.side is Side.RIGHT else place.x + place.width / 2
            draw_notice(sheet, Box(x, place.y, place.width / 2, place.height), notice_of_hip(hip, words))


@dataclass(frozen=True)
class Notice:
    """What could not be measured, why in a few words, and what that means."""

    subject: str
    why: str
    sentences: tuple[str, ...]


def notice_of_hip(hip: HipMeasurement, words: Wording) -> Notice:
    """Word why a hip is not measurable."""
    return _notice(f"{words.side[hip.side]} \N{MIDDLE DOT} {words.not_measurable}", hip.reason, hip.detail, words)


def notice_of_image(measurement: Measurement, words: Wording) -> Notice:
    """Word why no hip of the image could be looked at."""
    return _notice(words.not_measurable, measurement.reason, measurement.detail, words)


def _notice(subject: str, reason: Reason | None, detail: str, words: Wording) -> Notice:
    if reason is None:
        return Notice(subject, words.not_measurable, (detail,) if detail else ())
    return Notice(subject, words.reason[reason], (words.reason_sentence[reason], *((detail,) if detail else ())))


def draw_notice(sheet: Sheet, where: Box, notice: Notice) -> float:
    """Draw a notice at the foot of `where`; give the Y of its upper side."""
    width = min(NOTICE_WIDTH_PX, where.width - 16)
    lines = [line for sentence in notice.sentences for line in sheet.typeface.wrapped(sentence, width - 40, 15)]
    height = 84 + 21 * len(lines)
    box = Box(where.x + (where.width - width) / 2, where.bottom - height - 20, width, height)
    layer = sheet.above
    layer.panel(box, colour=WARNING_GROUND, edge=WARNING, alpha=0.94)
    layer.text(box.x + 20, box.y + 24, notice.subject, 15, MUTED)
    layer.text(box.x + 20, box.y + 52, notice.why, 20, WARNING, bold=True)
    for number, line in enumerate(lines):
        layer.text(box.x + 20, box.y + 82 + 21 * number, line, 15, TEXT)
    return box.y
