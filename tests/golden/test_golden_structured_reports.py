"""Content trees of Structured Reports against golden files.

A golden file is the tree as a person would read it: names, values and units, without UIDs and with contours as their number of
points, their box and the area that they enclose. After a wanted change, write them anew and read the difference before you
commit it::

    DICOMNODE_UPDATE_GOLDEN=1 python -m pytest tests/golden
"""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicomnode.dicom.equipment import Equipment
from dicomnode.dicom.structured_report import build_structured_report
from dicomnode.domain.reporting import ReportSettings
from tests.synthetic_hips import CASES, CONFIGURATION_DIGEST, source_dataset

FOLDER = Path(__file__).parent / "structured_reports"
UPDATE = os.environ.get("DICOMNODE_UPDATE_GOLDEN") == "1"
LANGUAGE_OF_CASE = {"implant_on_the_left": "ja"}


def code(item: Dataset) -> str:
    return f"({item.CodeValue}, {item.CodingSchemeDesignator}, {item.CodeMeaning!r})"


def contour(item: Dataset) -> dict[str, Any]:
    points = np.reshape(item.GraphicData, (-1, 2))
    columns, rows = points.T
    area_px = abs(np.sum(columns[:-1] * rows[1:] - columns[1:] * rows[:-1])) / 2
    box = [round(float(number), 1) for number in (*points.min(axis=0), *points.max(axis=0))]
    return {"graphic_type": item.GraphicType, "points": len(points), "box_px": box, "area_px": round(float(area_px))}


def value(item: Dataset) -> Any:
    kind = item.ValueType
    if kind == "CODE":
        return code(item.ConceptCodeSequence[0])
    if kind == "TEXT":
        return item.TextValue
    if kind == "NUM":
        measured = item.MeasuredValueSequence[0]
        return f"{float(measured.NumericValue):g} {measured.MeasurementUnitsCodeSequence[0].CodeValue}"
    if kind == "SCOORD":
        return contour(item)
    if kind == "IMAGE":
        return "source image"
    return None


def tree(item: Dataset) -> dict[str, Any]:
    node: dict[str, Any] = {"item": f"{item.get('RelationshipType', 'ROOT')} {item.ValueType}"}
    if "ConceptNameCodeSequence" in item:
        node["name"] = code(item.ConceptNameCodeSequence[0])
    if (content := value(item)) is not None:
        node["value"] = content
    if "ContentSequence" in item:
        node["content"] = [tree(child) for child in item.ContentSequence]
    return node


@pytest.mark.parametrize("case", CASES)
def test_a_report_says_what_it_said_before(case: str) -> None:
    report = build_structured_report(
        source_dataset(),
        CASES[case](),
        equipment=Equipment(software_version="0"),
        settings=ReportSettings(language=LANGUAGE_OF_CASE.get(case, "en")),
        configuration_digest=CONFIGURATION_DIGEST,
        now=datetime(2025, 3, 14, 10, 20, 30),
    )
    found = tree(report)
    golden = FOLDER / f"{case}.json"
    if UPDATE:
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert found == json.loads(golden.read_text(encoding="utf-8")), f"see {__name__} on how to update {golden.name}"
