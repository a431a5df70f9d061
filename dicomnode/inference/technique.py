"""What the header states of the exposure, as the networks are told it, or their figures are corrected for it.

How much more a gram of bone mineral attenuates than a gram of soft tissue depends on the spectrum: the picture itself hardly says
whether it was 65 or 95 kV, with copper in the beam or without, on which phosphor. The header does. The networks are told the tube
voltage. Filter and phosphor shift all figures alike, so that a factor for each, fitted at export, does for them.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dicomnode.domain.radiograph import Technique

FACTORS = ("voltage", "known")
"""Of the vector that the network takes: the voltage about `_CENTRE_KV` in units of `_UNIT_KV`, and whether it is known."""
CORRECTED = ("copper_mm", "storage_phosphor")
"""Attributes of `domain.radiograph.Technique` that figures are corrected for."""
MOST_TRAINED_COPPER_MM = 0.2
"""More is corrected as this much, and the result says so."""
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


def departures(stated: Technique, usual: Mapping[str, float]) -> NDArray[np.float32]:
    """(corrected,) how far the technique lies from the usual one; 0 where the header says nothing.

    Args:
        usual: name of `CORRECTED` -> mean over the radiographs that the corrections were fitted to.
    """
    if stated.copper_mm is not None:
        stated = replace(stated, copper_mm=min(stated.copper_mm, MOST_TRAINED_COPPER_MM))
    values = ((name, getattr(stated, name)) for name in CORRECTED)
    return np.array([0.0 if value is None else value - usual[name] for name, value in values], np.float32)


def technique_notes(stated: Technique) -> tuple[str, ...]:
    """Sentences for the report where tube voltage or filter do not serve the measurement as they could."""
    notes = []
    low, high = TRAINED_KV
    if stated.kilovolt is None:
        notes.append("The header states no tube voltage (KVP), so the figures are less certain.")
    elif not low <= stated.kilovolt <= high:
        notes.append(
            f"The tube voltage is {stated.kilovolt:g} kV, the model knows {low:g} to {high:g} kV; so the figures are less certain."
        )
    if stated.copper_mm is not None and stated.copper_mm > MOST_TRAINED_COPPER_MM:
        notes.append(
            f"The beam was filtered by {stated.copper_mm:g} mm of copper, the model knows up to {MOST_TRAINED_COPPER_MM:g} mm;"
            " so the figures are less certain."
        )
    return tuple(notes)
