"""Who is trained on and who is held out: by patient, decided by the patient's number alone."""

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
