"""What is told of one case."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How a case (or a step of it) ended."""

    DONE = "done"
    DOUBTFUL = "doubtful"
    """A person should look at it before it is used."""
    FAILED = "failed"


@dataclass
class Report:
    """What is told of one case; grows with its steps."""

    case: str
    status: Status = Status.DONE
    reason: str | None = None
    """Why it failed."""
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Step to its figures of merit and its doubts."""
    hips: dict[str, dict[str, Any]] = field(default_factory=dict)
    """"R", "L" to figures, or to the reason why there are none."""

    def note(self, step: str, figures: Mapping[str, Any], doubts: Sequence[str] = ()) -> None:
        """Write down a step; a doubt makes the case doubtful."""
        self.steps[step] = {**figures, "doubts": list(doubts)}
        if doubts and self.status is Status.DONE:
            self.status = Status.DOUBTFUL
