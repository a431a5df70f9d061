"""Fixtures that find what is not part of the project and say plainly when it is absent."""

import io
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomnode.logline import FORMAT, Formatter

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Folder with real DICOM files, a CT and anatomical meshes; never part of the repository."""
    folder = Path(os.environ.get("DICOMNODE_REFERENCE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "dicom").is_dir():
        pytest.skip(f"no reference data in {folder}; set DICOMNODE_REFERENCE_DATA to the folder that holds dicom/, ct/")
    return folder


def _program(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed (Debian package {package})")
    return found


@pytest.fixture(scope="session")
def dcmtk() -> Path:
    """Folder of DCMTK's programs (storescu, storescp, echoscu, dsrdump, dcmconv ...)."""
    return Path(_program("storescu", "dcmtk")).parent


@pytest.fixture(scope="session")
def dciodvfy() -> str:
    """Path of dicom3tools' validator."""
    return _program("dciodvfy", "dicom3tools")


@pytest.fixture(scope="session")
def orthanc_binary() -> str:
    """Path of the Orthanc server."""
    return _program("Orthanc", "orthanc")


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """All that a process of the node would write to its log, formatted as there; our own records from DEBUG on."""
    stream, ours = io.StringIO(), logging.getLogger("dicomnode")
    handler, level = logging.StreamHandler(stream), ours.level
    handler.setFormatter(Formatter(FORMAT))
    logging.getLogger().addHandler(handler)
    ours.setLevel(logging.DEBUG)
    yield stream
    ours.setLevel(level)
    logging.getLogger().removeHandler(handler)
