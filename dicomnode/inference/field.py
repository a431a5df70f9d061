"""The exposed field of a crop: collimators cut straight, so that it is one convex piece."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull

_SPECK_PX = 7
"""What is narrower than this (5 mm) is no field of its own."""


def exposed_field(probable: NDArray[np.bool_], inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Convex hull of the largest piece of what looks exposed.

    Skin that is burnt black, or a patch that the network doubts, is a dent or a hole, not a border; a border is straight.

    Args:
        probable: (rows, columns) where the network says "field".
        inside: True where the crop lies on the radiograph.

    Returns:
        (rows, columns) True inside the image and the exposed field; all False where nothing looks exposed.
    """
    solid = ndimage.binary_opening(probable & inside, np.ones((_SPECK_PX, _SPECK_PX), bool))
    pieces, count = ndimage.label(solid)
    if count == 0:
        return np.zeros_like(inside)
    largest = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    points = np.argwhere(largest ^ ndimage.binary_erosion(largest))
    half_planes = ConvexHull(points).equations  # outward normal and offset, one line each
    rows, columns = np.ogrid[: inside.shape[0], : inside.shape[1]]
    within = np.ones(inside.shape, bool)
    for row_normal, column_normal, offset in np.unique(half_planes, axis=0):
        within &= row_normal * rows + column_normal * columns + offset <= 1e-6
    return within & inside
