"""What is told of one case."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rich.table import Table


class Status(StrEnum):
    """How a case (or a step of it) ended."""

    DONE = "done"
    DOUBTFUL = "doubtful"
    """A person should look at it before it is used."""
    FAILED = "failed"


class Verdict(StrEnum):
    """What a person says of a case."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"


@dataclass(frozen=True)
class Decision:
    """Who said what of a case, and why."""

    verdict: Verdict
    by: str
    reason: str
    at: str
    """Date and time, ISO 8601."""
    inputs_sha256: str
    """What the case was made of when it was looked at; of a case made of anything else this says nothing."""


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
    patient: str = ""
    """Identifier, never a name; cases of one patient go into one part of the split."""
    inputs_sha256: str = ""
    """Of the files and settings that the case was made of."""
    decisions: list[Decision] = field(default_factory=list)
    """All that were ever made, in their order; of those about these inputs the last holds."""

    @property
    def decision(self) -> Decision | None:
        """The one that holds."""
        own = [decision for decision in self.decisions if decision.inputs_sha256 == self.inputs_sha256]
        return own[-1] if own else None

    @property
    def usable(self) -> bool:
        """Whether its pairs may be used: accepted, or done and not rejected; never if it failed."""
        if self.status is Status.FAILED:
            return False
        if self.decision is None:
            return self.status is Status.DONE
        return self.decision.verdict is Verdict.ACCEPTED

    def note(self, step: str, figures: Mapping[str, Any], doubts: Sequence[str] = ()) -> None:
        """Write down a step; a doubt makes the case doubtful."""
        self.steps[step] = {**figures, "doubts": list(doubts)}
        if doubts and self.status is Status.DONE:
            self.status = Status.DOUBTFUL


def reports_table(reports: Sequence[Report]) -> Table:
    """How each case ended, with its figures of merit and areal densities."""
    table = Table("Case", "Status")
    for heading in ("Calibration +- mg/cm3", "Confidence", "Right total hip g/cm2", "Left total hip g/cm2"):
        table.add_column(heading, justify="right")
    table.add_column("What to look at")
    for report in reports:
        doubts = [doubt for step in report.steps.values() for doubt in step["doubts"]]
        missed = [f"{side}: {hip['reason']}" for side, hip in report.hips.items() if "reason" in hip]
        table.add_row(
            report.case,
            report.status if report.decision is None else f"{report.status}, {report.decision.verdict}",
            _number(report.steps.get("calibration", {}).get("uncertainty_mg_cm3"), 1),
            _number(report.steps.get("registration", {}).get("confidence"), 2),
            *(_number(_canonical(report.hips.get(side, {})), 3) for side in ("R", "L")),
            "; ".join([*filter(None, [report.reason]), *doubts, *missed]),
        )
    return table


def _canonical(hip: Mapping[str, Any]) -> float | None:
    value = hip.get("canonical", {}).get("total_hip", {}).get("areal_bmd_g_cm2")
    return None if value is None else float(value)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
