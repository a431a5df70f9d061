"""The intensity transform between a radiograph's arbitrary grey levels and the network. Used by training and serving alike."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

VERSION = "percentile-2"
"""Named in the bundle: a bundle that was trained with another transform is refused."""

_FLAT_WINDOW_PX = 7
_FLAT_FRACTION = 2e-3
_CLIP = 4.0


def informative(image: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mask of the pixels that say something: inside the image, and not in a flat (collimated or saturated) area.

    Flat means a spread of less than 0.2 % of the image's over 7 x 7 pixels: noise alone exceeds that in an exposed field.
    """
    if not inside.any():
        return inside
    low, high = np.percentile(image[inside], (1, 99))
    spread = ndimage.maximum_filter(image, _FLAT_WINDOW_PX) - ndimage.minimum_filter(image, _FLAT_WINDOW_PX)
    flat = ndimage.binary_dilation(spread <= _FLAT_FRACTION * (high - low), iterations=_FLAT_WINDOW_PX // 2)
    return np.asarray(inside & ~flat, bool)


def standardise(image: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Bring a crop to the network's input.

    Centre and scale come from the informative pixels' 50th, 5th and 95th percentiles, so that neither window nor bit depth
    nor a collimator's border changes what the network sees.

    Args:
        image: (rows, columns), larger = more attenuation, any unit.
        inside: True where the crop lies on the radiograph.

    Returns:
        (2, rows, columns) float32: grey levels (about -1..1, at most 4 either way, 0 outside the image), and the informative
        mask as 0 / 1. Flat areas keep their level: bright is saturated metal as often as it is a shutter.
    """
    mask = informative(image, inside)
    if not mask.any():
        return np.zeros((2, *image.shape), np.float32)
    low, centre, high = np.percentile(image[mask], (5, 50, 95))
    scaled = (image - centre) * (2.0 / max(high - low, 1e-12))
    grey = np.where(inside, np.clip(scaled, -_CLIP, _CLIP), 0.0)
    return np.stack([grey, mask]).astype(np.float32)
