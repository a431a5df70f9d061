"""Colours, type and the canvas of the overlay. Lengths are pixels of the finished picture, from its upper left corner."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, Rectangle
from numpy.typing import NDArray

from dicomnode.domain.measurement import Region

DOTS_PER_INCH = 100
POINTS_PER_PX = 72 / DOTS_PER_INCH

BACKGROUND = "#0b0e13"
PANEL = "#131821"
RULE = "#2a3240"
TEXT = "#e8ebf0"
MUTED = "#9aa5b5"
WARNING = "#f2b84b"
WARNING_GROUND = "#2b2213"
REFERENCE = "#6f9bd1"
REGION_COLOUR = {
    Region.TOTAL_HIP: "#f4f6f8",
    Region.FEMORAL_NECK: "#4fd1ff",
    Region.TROCHANTER: "#ff9bd2",
    Region.INTERTROCHANTER: "#7ee787",
}
"""Told apart also by readers with a red-green deficiency: they differ in lightness and in blue-yellow."""
CLASS_COLOUR = {
    "normal": "#5fc79b",
    "low_bone_mass": "#f2b84b",
    "osteoporosis": "#f07167",
    "within_expected_range_for_age": "#5fc79b",
    "below_expected_range_for_age": "#f2b84b",
}
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
DENSITY_COLOURS = "inferno"
"""A perceptually uniform colour map: equal steps of density look equal."""

JAPANESE_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans JP",
    "Source Han Sans JP",
    "IPAexGothic",
    "IPAPGothic",
    "IPAGothic",
    "TakaoPGothic",
    "VL PGothic",
    "Hiragino Sans",
    "Yu Gothic",
    "Meiryo",
    "MS Gothic",
)
LATIN_FONT = "DejaVu Sans"
"""Ships with matplotlib."""


WIDE_FROM = 0x2E80
"""First code point of the scripts that are written without spaces (CJK Radicals Supplement)."""
LINE_HEIGHT = 1.4
"""Of a paragraph, in type sizes."""


def needs_japanese_font(language: str, words: str) -> bool:
    """Tell whether a page in `language` that holds `words` cannot be written with the font that is always there."""
    return language == "ja" or any(ord(character) >= WIDE_FROM for character in words)


@cache
def font_family(language: str) -> str | None:
    """Find a font that can write `language`; None where this machine has none."""
    if language != "ja":
        return LATIN_FONT
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    return next((name for name in JAPANESE_FONTS if name in installed), None)


@dataclass(frozen=True)
class Box:
    """A rectangle on the picture."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """X of the right side."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """Y of the lower side."""
        return self.y + self.height

    def inset(self, left: float, top: float, right: float, bottom: float) -> "Box":
        """Take margins off the four sides."""
        return Box(self.x + left, self.y + top, self.width - left - right, self.height - top - bottom)

    def fitted(self, width: float, height: float) -> "Box":
        """Give the largest box of the shape `width` : `height` in the middle of this one."""
        scale = min(self.width / width, self.height / height)
        w, h = width * scale, height * scale
        return Box(self.x + (self.width - w) / 2, self.y + (self.height - h) / 2, w, h)


class Typeface:
    """A font family at pixel sizes, and how wide it runs."""

    def __init__(self, family: str, canvas: FigureCanvasAgg) -> None:
        self._family, self._canvas = family, canvas

    def at(self, size_px: float, *, bold: bool = False) -> FontProperties:
        """Give the font at a size."""
        return FontProperties(family=self._family, size=size_px * POINTS_PER_PX, weight="bold" if bold else "normal")

    def width_px(self, words: str, size_px: float, *, bold: bool = False) -> float:
        """Measure a line."""
        renderer = self._canvas.get_renderer()  # type: ignore[no-untyped-call]
        width, _, _ = renderer.get_text_width_height_descent(words, self.at(size_px, bold=bold), ismath=False)
        return float(width)

    def shortened(self, words: str, width_px: float, size_px: float) -> str:
        """Cut a line to at most `width_px`; what was cut ends in an ellipsis."""
        if self.width_px(words, size_px) <= width_px:
            return words
        while words and self.width_px(words + ELLIPSIS, size_px) > width_px:
            words = words[:-1]
        return words.rstrip() + ELLIPSIS

    def wrapped(self, words: str, width_px: float, size_px: float) -> list[str]:
        """Break a text into lines of at most `width_px`: between words, and between any two kana or kanji."""
        lines, estimate_px = [""], 0.0
        for piece in _pieces(words):
            piece_px = self.width_px(piece, size_px)
            estimate_px += piece_px
            # Measuring whole lines is what takes time: only those that the sum of their pieces says to be nearly full.
            nearly_full = lines[-1] and estimate_px > 0.97 * width_px
            if nearly_full and self.width_px((lines[-1] + piece).rstrip(), size_px) > width_px:
                lines.append("")
                estimate_px = piece_px
            lines[-1] += piece if lines[-1] else piece.lstrip()
        return [line.rstrip() for line in lines]


class Layer:
    """Transparent axes over the whole picture that take pixel coordinates."""

    def __init__(self, axes: Axes, typeface: Typeface) -> None:
        self._axes, self._typeface = axes, typeface

    def panel(
        self, box: Box, colour: str = PANEL, edge: str = "none", radius_px: float = 6, alpha: float = 1.0
    ) -> None:
        """Draw a rounded panel."""
        shape = FancyBboxPatch(
            (box.x + radius_px, box.y + radius_px),
            box.width - 2 * radius_px,
            box.height - 2 * radius_px,
            boxstyle=f"round,pad={radius_px},rounding_size={radius_px}",
            facecolor=colour,
            edgecolor=edge,
            linewidth=0.8,
            alpha=alpha,
        )
        self._axes.add_patch(shape)

    def bar(self, box: Box, colour: str) -> None:
        """Draw a filled rectangle."""
        self._axes.add_patch(Rectangle((box.x, box.y), box.width, box.height, facecolor=colour, edgecolor="none"))

    def rule(self, x: float, right: float, y: float) -> None:
        """Draw a hairline across."""
        self._axes.plot([x, right], [y, y], color=RULE, linewidth=0.8, solid_capstyle="butt")

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size_px: float = 16,
        colour: str = TEXT,
        *,
        bold: bool = False,
        across: str = "left",
    ) -> None:
        """Write one line, centred on `y`."""
        font = self._typeface.at(size_px, bold=bold)
        self._axes.text(
            x, y, words, color=colour, ha=across, va="center_baseline", fontproperties=font, parse_math=False
        )

    def paragraph(
        self, x: float, y: float, words: str, width_px: float, size_px: float, colour: str = TEXT, most_lines: int = 99
    ) -> float:
        """Write wrapped lines from `y` (the top) downwards; give the Y below them. Too long a text ends in an ellipsis."""
        lines = self._typeface.wrapped(words, width_px, size_px)
        if len(lines) > most_lines:
            last = self._typeface.shortened(lines[most_lines - 1] + ELLIPSIS, width_px, size_px)
            lines = [*lines[: most_lines - 1], last]
        for line in lines:
            self.text(x, y + LINE_HEIGHT / 2 * size_px, line, size_px, colour)
            y += LINE_HEIGHT * size_px
        return y

    def height_px(self, words: str, width_px: float, size_px: float) -> float:
        """Measure a paragraph."""
        return LINE_HEIGHT * size_px * len(self._typeface.wrapped(words, width_px, size_px))


class Sheet:
    """The picture while it is drawn: a layer below and one above the axes that are placed on it."""

    def __init__(self, width_px: int, height_px: int, family: str) -> None:
        self.width_px, self.height_px = width_px, height_px
        size_inch = (width_px / DOTS_PER_INCH, height_px / DOTS_PER_INCH)
        self._figure = Figure(figsize=size_inch, dpi=DOTS_PER_INCH, facecolor=BACKGROUND)
        self._canvas = FigureCanvasAgg(self._figure)
        self.typeface = Typeface(family, self._canvas)
        self.ground = self._layer(zorder=-1)
        self.above = self._layer(zorder=9)

    def _layer(self, zorder: float) -> Layer:
        axes = self.axes(Box(0, 0, self.width_px, self.height_px))
        axes.set(xlim=(0, self.width_px), ylim=(self.height_px, 0), zorder=zorder)
        axes.axis("off")
        return Layer(axes, self.typeface)

    def axes(self, box: Box) -> Axes:
        """Place transparent axes without ticks or frame."""
        place = (
            box.x / self.width_px,
            1 - box.bottom / self.height_px,
            box.width / self.width_px,
            box.height / self.height_px,
        )
        axes = self._figure.add_axes(place, facecolor="none")
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def pixels(self) -> NDArray[np.uint8]:
        """Draw, and give (height, width, 3) RGB."""
        self._canvas.draw()  # type: ignore[no-untyped-call]
        rgba = self._canvas.buffer_rgba()  # type: ignore[no-untyped-call]
        return np.ascontiguousarray(np.asarray(rgba, dtype=np.uint8)[..., :3])


def _pieces(words: str) -> Iterator[str]:
    """Cut a text where a line may end: after spaces, and after each wide character that no closing mark follows."""
    piece = ""
    for character, following in zip(words, words[1:] + " ", strict=True):
        piece += character
        wide = ord(character) >= WIDE_FROM
        if character == " " or (wide and following not in "、。，．）」』】：；・"):
            yield piece
            piece = ""
    if piece:
        yield piece
