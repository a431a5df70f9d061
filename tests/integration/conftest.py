"""The node, an Orthanc behind it and DCMTK before it, as real processes: one run whose outcome many tests look at."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from benchmarks.programs import Node, Orthanc, node, orthanc, store
from dicomnode.config import LEDGER_FILE
from dicomnode.demo import free_ports
from dicomnode.storage.database import open_engine
from dicomnode.storage.ledger import Ledger
from dicomnode.storage.rows import DeliveryState, JobDetail

ENCODINGS = {
    "RG2_UNC": "-xe",
    "RG2_J2KR": "-xv",
    "RG2_JLSL": "-xt",
    "RG2_JLSN": "-xu",
    "RG2_JPLL": "-xs",
    "RG2_RLE": "-xr",
    "RG1_J2KI": "-xw",
}
"""File name to the option of DCMTK's storescu that proposes its transfer syntax. Source: DCMTK 3.6.7, `storescu --help`."""
CT_RADIOGRAPH = "CT"
"""Name of the radiograph that is simulated from the real CT."""
DELIVERY_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class StraightLine:
    """A running node whose results go to a running Orthanc."""

    node: Node
    orthanc: Orthanc
    ledger: Ledger

    def delivered(self, sop_instance_uid: str) -> JobDetail:
        """Wait until all results of a radiograph have been delivered, and give its job."""
        deadline = time.monotonic() + DELIVERY_TIMEOUT_S
        while time.monotonic() < deadline:
            found = [job for job in self.ledger.jobs() if job.instance.sop_instance_uid == sop_instance_uid]
            if found and found[0].summary == DeliveryState.DELIVERED.value:
                return self.ledger.job(found[0].instance.id)
            time.sleep(0.2)
        said = self.node.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        pytest.fail(
            "\n".join([f"{sop_instance_uid} was not delivered in {DELIVERY_TIMEOUT_S:.0f} s; the node said:", *said])
        )

    def archived(self, sop_instance_uid: str) -> Dataset:
        """Read an object back from Orthanc."""
        found = self.orthanc.post("/tools/lookup", sop_instance_uid.encode())
        (path,) = [entry["Path"] for entry in found if entry["Type"] == "Instance"]
        return dcmread(BytesIO(self.orthanc.read(f"{path}/file")))


@dataclass(frozen=True)
class Sent:
    """A radiograph that was sent, and what became of it."""

    file: Path
    job: JobDetail


@pytest.fixture(scope="session")
def straight_line(orthanc_binary: str, dcmtk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StraightLine]:
    """Start Orthanc and the node, each on free ports of loopback, with their files in a temporary folder."""
    folder = tmp_path_factory.mktemp("straight-line")
    (port,) = free_ports(1)
    with ExitStack() as stack:
        archive = stack.enter_context(orthanc(folder / "orthanc", node_port=port))
        overrides = ("worker.device=cpu",)
        running = stack.enter_context(node(folder / "node", archive, port=port, overrides=overrides))
        engine = open_engine(f"sqlite:///{running.folder / 'node' / LEDGER_FILE}")
        stack.callback(engine.dispose)
        yield StraightLine(running, archive, Ledger(engine))


@pytest.fixture(scope="session")
def encodings(straight_line: StraightLine, reference_data: Path) -> dict[str, Sent]:
    """The real hip radiograph in every encoding, and a chest radiograph, sent by storescu as they are."""
    files = {name: reference_data / "dicom" / "nema_wg04" / f"{name}.dcm" for name in ENCODINGS}
    for name, file in files.items():
        store(straight_line.node, [file], ENCODINGS[name])
    return {name: _followed(straight_line, file) for name, file in files.items()}


@pytest.fixture(scope="session")
def ct_radiograph(straight_line: StraightLine, reference_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Sent:
    """A pelvis radiograph simulated from the real CT (native right hip, metal in the left), sent by storescu."""
    simulation = pytest.importorskip("training.simulate_dx", reason="the extra [training] is not installed")
    from training.anatomy.ct import read_ct

    file = tmp_path_factory.mktemp("ct") / "pelvis.dcm"
    simulation.simulate_dx(read_ct(reference_data / "ct" / "example_ct.nii.gz")).save_as(file, enforce_file_format=True)
    store(straight_line.node, [file])
    return _followed(straight_line, file)


@pytest.fixture(scope="session")
def everything(encodings: dict[str, Sent], ct_radiograph: Sent) -> dict[str, Sent]:
    """All radiographs that were sent, by name."""
    return {**encodings, CT_RADIOGRAPH: ct_radiograph}


def _followed(straight_line: StraightLine, file: Path) -> Sent:
    return Sent(file, straight_line.delivered(str(dcmread(file, stop_before_pixels=True).SOPInstanceUID)))
