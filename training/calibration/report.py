"""A calibration as a table for people and as JSON for programs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from training.calibration.line import TYPICAL_MG_CM3, Calibration, Method


def calibration_table(calibration: Calibration) -> Table:
    """Each rod (or tissue): reference, CT value, and how far it lies off the line."""
    title = f"{calibration.reference}: mg/cm3 of {calibration.material}"
    table = Table("Rod" if calibration.method is Method.RODS else "Tissue", title=title, title_justify="left")
    for heading in ("Reference mg/cm3", "Expected HU", "Measured HU", "Residual mg/cm3"):
        table.add_column(heading, justify="right")
    for point in calibration.points:
        table.add_row(
            point.label,
            "" if point.reference_mg_cm3 is None else f"{point.reference_mg_cm3:g}",
            f"{point.expected_hu:.1f}",
            f"{point.measured_hu:.1f}",
            f"{point.residual_mg_cm3:+.2f}",
        )
    r = "" if calibration.r is None else f", r {calibration.r:.6f}"
    table.caption = (
        f"HU = {calibration.intercept_hu:.2f} + {calibration.slope_hu_cm3_mg:.4f} x mg/cm3{r};"
        f" uncertain by {calibration.uncertainty_mg_cm3:.2f} mg/cm3 at {TYPICAL_MG_CM3:g}"
    )
    table.caption_justify = "left"
    return table


def calibration_document(calibration: Calibration) -> dict[str, Any]:
    """All of it, with `doubtful` as the flag that a program looks at first."""
    return {"doubtful": calibration.is_doubtful, **asdict(calibration)}


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write the JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(calibration_document(calibration), indent=2) + "\n", encoding="utf-8")
