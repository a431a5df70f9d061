"""The measurement frame: one hip, canonical and square-pixelled, in the object plane through the femoral head.

Training and serving share these numbers, so that they cannot differ.
"""

from enum import IntEnum

ROWS = 256
COLUMNS = 192
SPACING_MM = 0.7
"""Pixel size in the object plane: 179 x 134 mm, which holds acetabulum, both trochanters and 2 cm below the lesser one."""
HEAD_ROW = 84
"""Row of the femoral head's centre (60 mm below the upper border)."""
HEAD_COLUMN = 128
"""Column of the femoral head's centre. Lateral is at the left (a right hip as displayed); left hips are mirrored."""


class Label(IntEnum):
    """Region labels of the femur, in the frame's images and in the network's segmentation channels."""

    BACKGROUND = 0
    HEAD = 1
    NECK = 2
    TROCHANTER = 3
    INTERTROCHANTER = 4
    SHAFT = 5
