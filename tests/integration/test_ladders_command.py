"""`python -m training ladders` as a researcher runs it: the shipped bundle on a handful of people, and on a CT's femur."""

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from training.cli import app
from training.config import PairsConfiguration
from training.pairs import make_pairs

FEW = ("--first", "0", "--hips", "1", "--persons", "1", "--whole", "1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with three persons of the shipped population."""
    folder = tmp_path_factory.mktemp("run")
    make_pairs(PairsConfiguration(3, 1), folder / "pairs")
    return folder


def test_all_ladders_are_climbed_written_and_drawn(run: Path, tmp_path: Path, reference_data: Path) -> None:
    output, ct = tmp_path / "ladders", reference_data / "ct"
    labels = ct / "example_ct_labels_v1.nii.gz"
    strangers = ["--anatomy", reference_data / "anatomy", "--ct", ct / "example_ct.nii.gz", "--ct-labels", labels]
    options = ["--folder", run, "--output", output, *FEW, *strangers, "--files", reference_data / "dicom" / "nema_wg04"]
    result = CliRunner().invoke(app, ["ladders", *map(str, options)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    document = json.loads((output / "ladders.json").read_text())
    page = (output / "LADDERS.md").read_text()
    assert page.splitlines()[2].startswith("**Simulated radiographs")
    for name, ladder in document["ladders"].items():
        assert (output / f"{name}.png").stat().st_size > 10_000
        assert ladder["rungs"] and f"## {ladder['title']}" in page
    assert {"dose", "device", "mineral", "osteoarthritis", "anatomy"} <= document["ladders"].keys()
    sources = {rung["rung"] for rung in document["ladders"]["anatomy"]["rungs"]}
    assert any(name.startswith("femur of example_ct") for name in sources) and len(sources) == 4
    groups = {one["group"]: one for one in document["refusals"]}
    assert {"fracture: cervical, displaced", "real radiograph without AP hip"} <= groups.keys()
    assert groups["real radiograph without AP hip"]["refused"] == 1
    with (output / "cases.csv").open(encoding="utf-8") as file:
        assert {row["ladder"] for row in csv.DictReader(file)} == document["ladders"].keys() | {"repeatability"}


def test_a_ct_without_its_label_map_is_asked_for_it(run: Path, reference_data: Path) -> None:
    options = ["--folder", run, "--ct", reference_data / "ct" / "example_ct.nii.gz", *FEW]
    result = CliRunner().invoke(app, ["ladders", *map(str, options)])
    assert result.exit_code != 0 and "--ct-labels" in str(result.exception or result.output)
