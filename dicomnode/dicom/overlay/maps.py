"""The decomposed femur: areal density in colour over the faint radiograph, with its scale; a single hip also magnified."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image

from dicomnode.dicom.overlay.style import (
    DENSITY_COLOURS,
    MUTED,
    REGION_COLOUR,
    RULE,
    TEXT,
    WARNING,
    Box,
    Sheet,
)
from dicomnode.domain.measurement import HipMaps, HipMeasurement, Measurement, Region, Status
from dicomnode.domain.radiograph import Side
from dicomnode.domain.wording import Wording

GAP_PX = 14
SCALE_WIDTH_PX = 76
"""Colour bar with its figures."""
TITLE_PX = 30
RULER_MM = 20.0
MAGNIFIED = 3
"""The frame has coarser pixels than the radiograph: as many are drawn for each."""
LEAST_FULL_SCALE_G_CM2 = 1.2
SEEN_FROM_G_CM2, OPAQUE_FROM_G_CM2 = 0.05, 0.25
"""Areal densities from which the colours begin to cover the radiograph, and cover it wholly."""


def draw_maps(
    sheet: Sheet, box: Box, measurement: Measurement, display_image: NDArray[np.float32] | None, words: Wording
) -> None:
    """Draw a map of each hip on one colour scale, the patient's right at the viewer's left.

    A single hip has room beside it, and is shown there magnified and without colours.
    """
    full_scale = full_scale_g_cm2([hip.maps.areal_density_g_cm2 for hip in measurement.hips if hip.maps is not None])
    hips = sorted(measurement.hips, key=lambda hip: hip.side is Side.LEFT)
    magnified = len(hips) == 1 and display_image is not None and hips[0].maps is not None
    panels = len(hips) + magnified
    width = (box.width - SCALE_WIDTH_PX - GAP_PX * panels) / panels
    places = [Box(box.x + number * (width + GAP_PX), box.y, width, box.height) for number in range(panels)]
    if magnified and display_image is not None:
        _draw_magnified(sheet, places.pop(0), hips[0], display_image, words)
    for place, hip in zip(places, hips, strict=True):
        _draw_map(sheet, place, hip, full_scale, words)
    _draw_scale(sheet, box.inset(box.width - SCALE_WIDTH_PX, TITLE_PX, 0, 0), full_scale)


def full_scale_g_cm2(densities: Sequence[NDArray[np.float32]]) -> float:
    """Choose the end of the colour scale: the densest 0.2 % may saturate, and the end is a round figure."""
    densest = max((float(np.percentile(density, 99.8)) for density in densities), default=0.0)
    return max(LEAST_FULL_SCALE_G_CM2, float(np.ceil(densest / 0.2) * 0.2))


def coloured(maps: HipMaps, full_scale: float, side: Side) -> NDArray[np.float32]:
    """Lay the density's colours over the radiograph, as displayed (the frame is a right hip): (rows, columns, 3), 0..1."""
    density = maps.areal_density_g_cm2
    low, high = np.percentile(maps.radiograph, (1.0, 99.5))
    grey = 0.38 * np.clip((maps.radiograph - low) / max(float(high - low), 1e-6), 0, 1)
    cover = np.clip((density - SEEN_FROM_G_CM2) / (OPAQUE_FROM_G_CM2 - SEEN_FROM_G_CM2), 0, 1)[..., None]
    colours = matplotlib.colormaps[DENSITY_COLOURS](np.clip(density / full_scale, 0, 1))[..., :3]
    picture: NDArray[np.float32] = (cover * colours + (1 - cover) * grey[..., None]).astype(np.float32)
    return picture if side is Side.RIGHT else picture[:, ::-1]


def magnified_hip(maps: HipMaps, display_image: NDArray[np.float32], side: Side) -> NDArray[np.uint8]:
    """Resample the displayed radiograph into the frame, `MAGNIFIED` pixels to one of the frame's, as displayed."""
    rows, columns = maps.areal_density_g_cm2.shape
    image_from_output = maps.image_from_frame @ np.diag((1 / MAGNIFIED, 1 / MAGNIFIED, 1.0))
    grey = Image.fromarray((display_image * 255).round().astype(np.uint8))
    crop = grey.transform(
        (columns * MAGNIFIED, rows * MAGNIFIED),
        Image.Transform.AFFINE,
        tuple(float(number) for number in image_from_output[:2].ravel()),
        Image.Resampling.BICUBIC,
    )
    picture = np.asarray(crop)
    return picture if side is Side.RIGHT else picture[:, ::-1]


def _draw_magnified(
    sheet: Sheet, box: Box, hip: HipMeasurement, display_image: NDArray[np.float32], words: Wording
) -> None:
    assert hip.maps is not None
    axes = _frame(sheet, box, words.side[hip.side], words.magnified_radiograph, hip.maps)
    picture = magnified_hip(hip.maps, display_image, hip.side)
    axes.imshow(
        picture, cmap="gray", vmin=0, vmax=255, extent=_extent(hip.maps), aspect="auto", interpolation="bilinear"
    )
    _finish(axes, sheet, hip)


def _draw_map(sheet: Sheet, box: Box, hip: HipMeasurement, full_scale: float, words: Wording) -> None:
    if hip.maps is None or hip.status is not Status.MEASURED:
        reason = words.reason[hip.reason] if hip.reason else words.not_measurable
        frame = _title(sheet, box, words.side[hip.side], "")
        sheet.ground.text(frame.x + frame.width / 2, frame.y + frame.height / 2, reason, 16, WARNING, across="center")
        return
    axes = _frame(sheet, box, words.side[hip.side], words.decomposed_bone, hip.maps)
    picture = coloured(hip.maps, full_scale, hip.side)
    axes.imshow(picture, extent=_extent(hip.maps), aspect="auto", interpolation="bilinear")
    _finish(axes, sheet, hip)


def _title(sheet: Sheet, box: Box, title: str, subtitle: str) -> Box:
    """Write a panel's title and draw its ground; give the ground."""
    y = box.y + 0.4 * TITLE_PX
    sheet.ground.text(box.x + 2, y, title, 16, TEXT, bold=True)
    sheet.ground.text(box.x + 14 + sheet.typeface.width_px(title, 16, bold=True), y, subtitle, 13, MUTED)
    ground = box.inset(0, TITLE_PX, 0, 0)
    sheet.ground.panel(ground, colour="#000000", edge=RULE)
    return ground


def _frame(sheet: Sheet, box: Box, title: str, subtitle: str, maps: HipMaps) -> Axes:
    rows, columns = maps.areal_density_g_cm2.shape
    return sheet.axes(_title(sheet, box, title, subtitle).inset(3, 3, 3, 3).fitted(columns, rows))


def _extent(maps: HipMaps) -> tuple[float, float, float, float]:
    rows, columns = maps.areal_density_g_cm2.shape
    return 0, columns, rows, 0


def _finish(axes: Axes, sheet: Sheet, hip: HipMeasurement) -> None:
    """Contours and ruler over a picture of the frame."""
    assert hip.maps is not None
    left, right, bottom, top = _extent(hip.maps)
    axes.set(xlim=(left, right), ylim=(bottom, top))
    _draw_contours(axes, hip, int(right))
    _draw_ruler(axes, sheet, hip.maps.spacing_mm, int(bottom))


def _draw_contours(axes: Axes, hip: HipMeasurement, columns: int) -> None:
    """Bring the contours from the image into the frame, and mirror a left hip back."""
    assert hip.maps is not None
    frame_from_image = np.linalg.inv(hip.maps.image_from_frame)
    for region in hip.regions:
        if region.contour_px is None or region.region is Region.TOTAL_HIP or region.status is not Status.MEASURED:
            continue
        points = np.asarray(region.contour_px, dtype=np.float64)
        homogeneous = np.hstack((points, np.ones((len(points), 1)))) @ frame_from_image.T
        x = homogeneous[:, 0] if hip.side is Side.RIGHT else columns - homogeneous[:, 0]
        axes.plot(
            x, homogeneous[:, 1], color=REGION_COLOUR[region.region], linewidth=1.1,
            path_effects=[withStroke(linewidth=2.2, foreground="black", alpha=0.55)],
        )  # fmt: skip


def _draw_ruler(axes: Axes, sheet: Sheet, spacing_mm: float, rows: int) -> None:
    """A ruler in the plane of the femoral head, where the map has its scale."""
    length, x, y = RULER_MM / spacing_mm, 8.0, rows - 9.0
    axes.plot([x, x + length], [y, y], color=TEXT, linewidth=2, solid_capstyle="butt")
    axes.text(
        x + length / 2, y - 4, f"{RULER_MM:.0f} mm", color=TEXT, ha="center", va="bottom",
        fontproperties=sheet.typeface.at(13), path_effects=[withStroke(linewidth=2, foreground="black")],
    )  # fmt: skip


def _draw_scale(sheet: Sheet, box: Box, full_scale: float) -> None:
    bar = Box(box.x + 6, box.y + 24, 18, box.height - 30)
    axes = sheet.axes(bar)
    axes.imshow(
        np.linspace(1, 0, 256)[:, None],
        cmap=DENSITY_COLOURS,
        vmin=0,
        vmax=1,
        aspect="auto",
        extent=(0, 1, 0, full_scale),
    )
    axes.set(xlim=(0, 1), ylim=(0, full_scale))
    for tick in np.arange(0, full_scale + 1e-6, 0.2):
        y = bar.bottom - tick / full_scale * bar.height
        sheet.ground.rule(bar.right, bar.right + 5, y)
        sheet.ground.text(bar.right + 9, y, f"{tick:.1f}", 14, MUTED)
    sheet.ground.text(bar.x, box.y + 8, "g/cm\N{SUPERSCRIPT TWO}", 14, MUTED)
