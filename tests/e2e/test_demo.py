"""The demonstration, whole: node, modality and archive as real processes and real associations."""

import subprocess
import sys
from pathlib import Path

import pydicom
import pytest
from rich.console import Console

from dicomnode import demo
from dicomnode.dicom import codes
from dicomnode.errors import ConfigurationError
from tests.unit.test_structured_report import groups, named, number, usual_report
from tests.written_objects import radiograph_dataset, write


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dicomnode.cli", "demo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.e2e
def test_a_radiograph_comes_back_as_report_and_overlay(tmp_path: Path) -> None:
    done = run("--output", tmp_path / "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("archive/report.dcm", "archive/overlay.dcm", "overlay.png", "node.log"):
        assert (tmp_path / "demo" / name).stat().st_size > 0
    assert "Measurement Report received by ARCHIVE" in done.stdout
    assert "trained on simulated radiographs" in " ".join(done.stdout.split())
    for region in ("Total hip", "Femoral neck", "Trochanter", "Intertrochanter"):
        for side in ("Right", "Left"):
            group = groups(pydicom.dcmread(tmp_path / "demo" / "archive" / "report.dcm"))[f"{side} hip, {region}"]
            assert f"{number(group, codes.AREAL_BMD)[0]:.3f}" in done.stdout


@pytest.mark.e2e
def test_a_node_that_does_not_start_is_a_failure_with_its_last_words(tmp_path: Path) -> None:
    source = write(tmp_path / "hip.dcm", radiograph_dataset())
    done = run("--output", tmp_path / "demo", "--radiograph", source, "--set", "database.url=mysql://nowhere/x")
    assert done.returncode == 1
    assert "node did not start" in " ".join(done.stderr.split())
    assert "expected a SQLite file or PostgreSQL" in " ".join(done.stderr.split())


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="not of a demonstration"):
        demo.fresh_folder(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_an_earlier_demonstration_is_replaced(tmp_path: Path) -> None:
    demo.fresh_folder(tmp_path / "demo")
    (tmp_path / "demo" / "old.dcm").touch()
    demo.fresh_folder(tmp_path / "demo")
    assert [path.name for path in (tmp_path / "demo").iterdir()] == [demo.MARKER]


@pytest.mark.parametrize("width", [80, 200])
def test_the_printed_report_shows_every_figure_whole_and_every_reason(width: int) -> None:
    report = usual_report("implant_on_the_left")
    console = Console(width=width)
    with console.capture() as capture:
        console.print(demo.report_table(report))
    shown = " ".join(capture.get().split())
    assert "…" not in shown
    densities = [
        number(group, codes.AREAL_BMD)[0] for group in groups(report).values() if named(group, codes.AREAL_BMD)
    ]
    assert densities and all(f"{density:.3f}" in shown for density in densities)
    assert "Not measurable: Metal in or over the bone" in shown or width == 80
    assert "Not measurable" in shown and "Left hip" in shown
