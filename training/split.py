"""Who is trained on and who is held out: by patient, decided by the patient's number alone."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.config import SplitConfiguration


@dataclass(frozen=True)
class Split:
    """Subject numbers of each part; no subject is in two."""

    training: np.ndarray[Any, np.dtype[np.int64]]
    validation: np.ndarray[Any, np.dtype[np.int64]]
    test: np.ndarray[Any, np.dtype[np.int64]]


def split_subjects(count: int, configuration: SplitConfiguration) -> Split:
    """Take the last subjects for test, those before for validation; subjects are independent draws, so order says nothing."""
    numbers = np.arange(count, dtype=np.int64)
    test = round(count * configuration.test)
    validation = round(count * configuration.validation)
    first_held_out = count - test - validation
    return Split(numbers[:first_held_out], numbers[first_held_out : count - test], numbers[count - test :])


def part_of(patient: str, validation: float, test: float) -> str:
    """Which part a patient belongs to, decided by the identifier alone: patients who come later move nobody.

    So a model that starts from an earlier one of the same hospital has seen nobody who is held out now. The shares hold on average.

    Args:
        validation, test: shares of the patients.
    """
    place = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") / 2**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "training"
