"""The C-STORE benchmark, whole but small: that it runs, ends by itself and leaves nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.programs import REPOSITORY

pytestmark = pytest.mark.e2e


def test_one_radiograph_is_stored_by_every_contender(dcmtk: Path, orthanc_binary: str, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    command = [sys.executable, "-m", "benchmarks", "store", "--images", "1", "--rounds", "1", "--output", str(tmp_path)]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch"), "COLUMNS": "160"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    store = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["store"]
    assert 15.0 <= store["megabytes"] < 15.1
    names = [entry["name"] for entry in store["contenders"]]
    assert names == ["dicomnode", "storescp", "storescp -pdu 131072", "Orthanc", "Orthanc, PDU 131072"]
    assert all(entry["median_s"] > 0 for entry in store["contenders"])
    assert "Ratio" in done.stdout
    assert list((tmp_path / "scratch").iterdir()) == []
