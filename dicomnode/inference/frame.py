"""The measurement frame: one hip, canonical and square-pixelled, in the object plane through the femoral head.

Training and serving share these numbers and this resampling, so that they cannot differ.

Coordinates are (column, row) with pixel centres at integers + 0.5 (as in SCOORD, PS3.3 C.18.6.1.1), written as homogeneous
3-vectors; a 3 x 3 matrix `target_from_source` takes a point of `source` to `target`.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.domain.radiograph import UNSTATED, Side, Technique

ROWS = 256
COLUMNS = 192
SPACING_MM = 0.7
"""Pixel size in the object plane: 179 x 134 mm, which holds acetabulum, both trochanters and 2 cm below the lesser one."""
HEAD_ROW = 84
"""Row of the femoral head's centre (60 mm below the upper border)."""
HEAD_COLUMN = 128
"""Column of the femoral head's centre. Lateral is at the left (a right hip as displayed); left hips are mirrored."""

LOCATOR_SIZE = 128
"""Rows and columns of the overview in which hips are looked for."""
LOCATOR_SPACING_MM = 3.5
"""Pixel size of the overview in the object plane: 448 mm, more than the largest detector (43 cm) shows there."""


_TRUNCATE_SD = 3.0
"""Where the smoothing kernel ends."""


class Label(IntEnum):
    """Region labels of the femur, in the frame's images and in the network's segmentation channels."""

    BACKGROUND = 0
    HEAD = 1
    NECK = 2
    TROCHANTER = 3
    INTERTROCHANTER = 4
    SHAFT = 5


def image_from_frame(head_px: tuple[float, float], side: Side, spacing_mm: tuple[float, float]) -> NDArray[np.float64]:
    """Place the frame on a radiograph.

    Args:
        head_px: (column, row) of the femoral head's centre on the radiograph.
        side: a left hip is mirrored into the frame.
        spacing_mm: (row, column) size of the radiograph's pixels in the object plane.
    """
    mirror = -1.0 if side is Side.LEFT else 1.0
    columns = mirror * SPACING_MM / spacing_mm[1]
    rows = SPACING_MM / spacing_mm[0]
    return np.array(
        [
            [columns, 0.0, head_px[0] - columns * (HEAD_COLUMN + 0.5)],
            [0.0, rows, head_px[1] - rows * (HEAD_ROW + 0.5)],
            [0.0, 0.0, 1.0],
        ]
    )


@dataclass(frozen=True)
class FramedHip:
    """A radiograph with the frame laid over one of its hips."""

    image: NDArray[np.float32]
    """(rows, columns), larger is more attenuation."""
    image_from_frame: NDArray[np.float64]
    """3 x 3, (column, row) with pixel centres at integers + 0.5."""
    technique: Technique = UNSTATED
    """What the header states of the exposure."""
    inside: NDArray[np.bool_] | None = None
    """(rows, columns) what of the image is radiograph; None: all of it."""


def cut(
    hip: FramedHip, degrees: float = 0.0, shift_px: tuple[float, float] = (0.0, 0.0)
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Cut the frame out of a radiograph, turned about the femoral head and moved by (columns, rows) of the frame.

    Returns:
        (ROWS, COLUMNS) grey levels, and a mask that is True where they lie on the radiograph.
    """
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    head = np.array([HEAD_COLUMN + 0.5, HEAD_ROW + 0.5])
    frame_from_view = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    frame_from_view[:2, 2] = head - frame_from_view[:2, :2] @ head + shift_px
    image_from_view = hip.image_from_frame @ frame_from_view
    crop, inside = resample(hip.image, image_from_view, (ROWS, COLUMNS))
    if hip.inside is not None:
        inside &= resample(hip.inside.astype(np.float32), image_from_view, (ROWS, COLUMNS))[0] > 0.5
    return crop, inside


def overview_windows(shape: tuple[int, int], spacing_mm: tuple[float, float]) -> list[NDArray[np.float64]]:
    """`image_from_overview` for each overview that is needed to see the whole radiograph: one, or several for a long one."""
    step = LOCATOR_SPACING_MM / np.array([spacing_mm[1], spacing_mm[0]])
    extent_px = np.array([shape[1], shape[0]], float)
    window_px = LOCATOR_SIZE * step
    counts = np.maximum(1, np.ceil((extent_px - window_px) / (0.6 * window_px)).astype(int) + 1)
    windows = []
    for row in range(counts[1]):
        for column in range(counts[0]):
            # A single window is centred on the image; several are spread from border to border.
            spread = (extent_px - window_px) * np.array([column, row]) / np.maximum(counts - 1, 1)
            corner = np.where(counts == 1, (extent_px - window_px) / 2, spread)
            windows.append(np.array([[step[0], 0.0, corner[0]], [0.0, step[1], corner[1]], [0.0, 0.0, 1.0]]))
    return windows


def resample(
    image: NDArray[np.float32], image_from_target: NDArray[np.float64], shape: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Resample an image, averaging where the target is coarser.

    Args:
        image: (rows, columns).
        image_from_target: 3 x 3 without perspective; a rotation must be small where the image's pixels are no squares.
        shape: (rows, columns) of the target.

    Returns:
        The resampled image, with the nearest border value outside, and a mask that is True where the target lies inside.
    """
    step = np.hypot(image_from_target[1::-1, 0], image_from_target[1::-1, 1])  # along rows, along columns
    # A Gaussian that removes what the coarser grid cannot hold (half of its step), beyond the sampling of the finer one.
    sd_px = np.sqrt(np.maximum(0.0, (0.5 * step) ** 2 - 0.25))
    down, across = np.meshgrid(np.arange(shape[0]) + 0.5, np.arange(shape[1]) + 0.5, indexing="ij")
    columns, rows = (m[0] * across + m[1] * down + m[2] - 0.5 for m in image_from_target[:2])
    # Only what the target sees is smoothed: several overviews of a long image cost no more than one.
    seen_rows, seen_columns = (
        _seen(places, size, _TRUNCATE_SD * sd)
        for places, size, sd in zip((rows, columns), image.shape, sd_px, strict=True)
    )
    smoothed = ndimage.gaussian_filter(image[seen_rows, seen_columns], sd_px, mode="nearest", truncate=_TRUNCATE_SD)
    within = (rows - seen_rows.start, columns - seen_columns.start)
    out = ndimage.map_coordinates(smoothed, within, order=1, mode="nearest", output=np.float32)
    inside = (rows > -0.5) & (rows < image.shape[0] - 0.5) & (columns > -0.5) & (columns < image.shape[1] - 0.5)
    return out, inside


def _seen(places: NDArray[np.float64], size: int, margin_px: float) -> slice:
    """The part of an axis of `size` pixels that sampling at these places on it needs, with what smoothing needs around it."""
    margin = int(margin_px) + 2
    first, last = int(np.floor(places.min())) - margin, int(np.ceil(places.max())) + margin
    return slice(min(max(first, 0), max(size - margin, 0)), max(min(last + 1, size), min(margin, size)))
