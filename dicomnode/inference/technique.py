"""What the header states of the exposure, as the decomposer is told it. Used by training and serving alike.

How much more a gram of bone mineral attenuates than a gram of soft tissue depends on the tube voltage: the picture itself
hardly says whether it was 65 or 95 kV, the header does.
"""

import numpy as np
from numpy.typing import NDArray

FACTORS = ("voltage", "known")
"""Of the vector that the network takes: the voltage about `_CENTRE_KV` in units of `_UNIT_KV`, and whether it is known."""
TRAINED_KV = (65, 95)
"""Voltages that radiographs for training are taken with. Beyond, the nearer end is told, and the result says so."""
_CENTRE_KV = 80.0
_UNIT_KV = 15.0


def technique(kilovolt: float | None) -> NDArray[np.float32]:
    """(factors,) for the network; zeros where the voltage is not known, which is a lesson of the training too."""
    if kilovolt is None:
        return np.zeros(len(FACTORS), np.float32)
    told = min(max(kilovolt, TRAINED_KV[0]), TRAINED_KV[1])
    return np.array([(told - _CENTRE_KV) / _UNIT_KV, 1.0], np.float32)


def technique_note(kilovolt: float | None) -> str:
    """A sentence for the report where the tube voltage does not serve the measurement as it could; else nothing."""
    if kilovolt is None:
        return "The header states no tube voltage (KVP), so the figures are less certain."
    low, high = TRAINED_KV
    if low <= kilovolt <= high:
        return ""
    return (
        f"The tube voltage is {kilovolt:g} kV, the model knows {low:g} to {high:g} kV; so the figures are less certain."
    )
