"""The whole way on one machine: a node, a modality that sends a radiograph, an archive that gets report and overlay.

Everything runs on loopback, on ports that are free, in a fresh folder. What is printed is read from the report that arrived.
"""

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import (
    UID,
    ComprehensiveSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dicomnode.dicom import codes
from dicomnode.errors import ConfigurationError, TransientFailure

EXAMPLE = Path(__file__).resolve().parent / "models" / "example" / "hip.dcm"
"""The radiograph that is sent unless another is named: simulated from the package's own phantom."""
MARKER = ".dicomnode-demo"
NODE, MODALITY, ARCHIVE = "DICOMNODE", "MODALITY", "ARCHIVE"
SUCCESS, CANNOT_STORE = 0x0000, 0xA700
WANTED = {ComprehensiveSRStorage: "report.dcm", SecondaryCaptureImageStorage: "overlay.dcm"}
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0


COLUMNS = (
    ("aBMD\ng/cm2", codes.AREAL_BMD, ".3f"),
    ("T", codes.T_SCORE, "+.1f"),
    ("%YAM", codes.PERCENT_YAM, ".0f"),
    ("BMC\ng", codes.BONE_MINERAL_CONTENT, ".1f"),
    ("Area\ncm2", codes.PROJECTED_AREA, ".1f"),
    ("vBMD\nmg/cm3", codes.VOLUMETRIC_BMD, ".0f"),
)
"""Of the printed table: heading with unit, the figure's concept, and how many digits are shown."""
INTERVAL = (codes.INTERVAL_LOW.value, codes.INTERVAL_HIGH.value)
MEASUREMENT_GROUP, TRACKING_IDENTIFIER = "125007", "112039"
"""DCM codes of TID 1500 and TID 1501."""


def run(
    folder: Path,
    radiograph: Path | None,
    timeout_s: float,
    overrides: Sequence[str],
    out: Console,
    progress: Console,
) -> None:
    """Run the demonstration and print the received report.

    Args:
        folder: made afresh.
        radiograph: what is sent; None: the package's example.
        timeout_s: longest wait for the results.
        overrides: settings for the node (`--set`).
        out: where the report is printed.
        progress: where progress is shown.

    Raises:
        ConfigurationError: the folder holds something else, or there is no radiograph.
        TransientFailure: the node did not start, refused the radiograph, or the results did not arrive in time.
    """
    source = radiograph or EXAMPLE
    if not source.is_file():
        raise ConfigurationError(f"{source}: no such radiograph; name one with --radiograph FILE")
    fresh_folder(folder)
    started = time.monotonic()
    ports = free_ports(2)
    write_configuration(folder / "conf", *ports)
    with (
        progress.status("Starting archive and node") as status,
        archive(folder / "archive", ports[1]),
        node(folder, overrides) as process,
    ):
        wait_until(lambda: echoes(ports[0]), process, START_TIMEOUT_S, "the node did not start", folder)
        progress.print(f"  node up on port {ports[0]}, archive on port {ports[1]}")
        status.update("Sending the radiograph")
        took_s = send(source, ports[0])
        progress.print(f"  {source.name} stored by the node in {took_s:.2f} s")
        status.update("Waiting for report and overlay")
        arrived = time.monotonic()
        received = {uid: folder / "archive" / name for uid, name in WANTED.items()}
        missing = "report and overlay did not arrive"
        wait_until(lambda: all(path.exists() for path in received.values()), process, timeout_s, missing, folder)
        progress.print(f"  report and overlay in the archive {time.monotonic() - arrived:.1f} s later")
    picture = folder / "overlay.png"
    save_picture(received[SecondaryCaptureImageStorage], picture)
    report = pydicom.dcmread(received[ComprehensiveSRStorage])
    out.print(report_table(report))
    for sentence in statements(report):
        out.print(escape(sentence), style="dim", soft_wrap=True)
    out.print()
    for what, path in (
        ("Radiograph", source),
        ("Report (DICOM SR)", received[ComprehensiveSRStorage]),
        ("Overlay (DICOM SC)", received[SecondaryCaptureImageStorage]),
        ("Overlay picture", picture),
        ("Log of the node", folder / "node.log"),
    ):
        out.print(f"{what:20}{escape(str(path))}", soft_wrap=True)
    out.print(f"Done in {time.monotonic() - started:.0f} s.")


# --- Folder, ports, configuration -----------------------------------------------------------------------------------------
def fresh_folder(folder: Path) -> None:
    """Make an empty folder; an earlier demonstration is replaced, anything else is left alone.

    Raises:
        ConfigurationError: the folder holds something that no demonstration made.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise ConfigurationError(
                f"--output {folder}: is not empty and not of a demonstration; choose another folder"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def free_ports(number: int) -> list[int]:
    """Ask the system for ports that nobody uses now."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def write_configuration(folder: Path, node_port: int, archive_port: int) -> None:
    """Write node.toml and ae.toml for a node on loopback."""
    folder.mkdir()
    (folder / "node.toml").write_text(
        f'[node]\nae_title = "{NODE}"\nport = {node_port}\ndata_folder = "../node"\n\n'
        "[receiver]\nminimum_free_bytes = 268435456\n",
        encoding="utf-8",
    )
    (folder / "ae.toml").write_text(
        f'[[ae]]\nae_title = "{MODALITY}"\nmay_send = true\n\n'
        f'[[ae]]\nae_title = "{ARCHIVE}"\nreceives_results = true\nhost = "127.0.0.1"\nport = {archive_port}\n',
        encoding="utf-8",
    )


# --- Archive, node, modality ----------------------------------------------------------------------------------------------
@contextmanager
def archive(folder: Path, port: int) -> Iterator[ThreadedAssociationServer]:
    """Run a Storage SCP that writes each object to `folder`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)

    def store(event: Event) -> int:
        try:
            sop_class = UID(event.request.AffectedSOPClassUID or "")
            name = WANTED.get(sop_class, f"{threading.get_ident()}-{time.monotonic_ns()}.dcm")
            part = folder / f"{name}.part"
            part.write_bytes(event.encoded_dataset())
            part.replace(folder / name)
        except OSError:
            return CANNOT_STORE
        return SUCCESS

    entity = AE(ae_title=ARCHIVE)
    entity.add_supported_context(Verification)
    for sop_class in WANTED:
        entity.add_supported_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    assert server is not None  # block=False gives the server
    try:
        yield server
    finally:
        server.shutdown()


@contextmanager
def node(folder: Path, overrides: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run the node as its own process, and stop it as a service manager does."""
    settings = [f"--set={override}" for override in overrides]
    command = [sys.executable, "-m", "dicomnode.cli", "serve", "--config", str(folder / "conf"), *settings]
    with (folder / "node.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def echoes(port: int) -> bool:
    """Say whether the node answers a C-ECHO."""
    entity = AE(ae_title=MODALITY)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = 2.0
    entity.add_requested_context(Verification)
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)):
            return False
    association = entity.associate("127.0.0.1", port, ae_title=NODE)
    if not association.is_established:
        return False
    try:
        return bool(association.send_c_echo().get("Status") == SUCCESS)
    finally:
        association.release()


def send(radiograph: Path, port: int) -> float:
    """Send a radiograph with C-STORE as a modality does, in the transfer syntax it is in.

    Returns:
        Seconds from the association request to the node's success.

    Raises:
        TransientFailure: the node refused it.
    """
    dataset = pydicom.dcmread(radiograph)
    entity = AE(ae_title=MODALITY)
    entity.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    started = time.monotonic()
    association = entity.associate("127.0.0.1", port, ae_title=NODE, max_pdu=0)
    if not association.is_established:
        raise TransientFailure("the node rejected the modality's association; see node.log")
    try:
        answer = association.send_c_store(dataset)
    finally:
        association.release()
    if answer.get("Status") != SUCCESS:
        status, comment = answer.get("Status"), answer.get("ErrorComment", "")
        raise TransientFailure(f"the node refused the radiograph: status {status!r} {comment}".rstrip())
    return time.monotonic() - started


def wait_until(
    reached: Callable[[], bool], process: subprocess.Popen[bytes], timeout_s: float, failure: str, folder: Path
) -> None:
    """Wait for a condition, but not for a node that has died."""
    deadline = time.monotonic() + timeout_s
    while not reached():
        if process.poll() is not None:
            raise TransientFailure(f"{failure}: it ended with code {process.returncode}; {_last_words(folder)}")
        if time.monotonic() > deadline:
            raise TransientFailure(f"{failure} within {timeout_s:.0f} s; {_last_words(folder)}")
        time.sleep(0.1)


def _last_words(folder: Path) -> str:
    lines = (folder / "node.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"last line of {folder / 'node.log'}: {lines[-1] if lines else '(empty)'}"


# --- What arrived ---------------------------------------------------------------------------------------------------------
def save_picture(secondary_capture: Path, picture: Path) -> None:
    """Write the pixels of a received RGB secondary capture as PNG."""
    pixels: np.ndarray = pydicom.dcmread(secondary_capture).pixel_array
    Image.fromarray(pixels).save(picture)


def report_table(report: Dataset) -> Table:
    """Show the measurement groups of a TID 1500 report, narrow enough for a terminal of 80 columns."""
    title = f"{_meaning(report.ConceptNameCodeSequence[0])} received by {ARCHIVE}"
    caption = "Below each areal density: its 90 % prediction interval"
    table = Table(title=title, caption=caption, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("Region")
    for heading, _, _ in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("Evaluation")
    for group in _find(report, MEASUREMENT_GROUP):
        title = next(_find(group, TRACKING_IDENTIFIER)).TextValue
        table.add_row(escape(title), *(_figure(group, *column[1:]) for column in COLUMNS), escape(_evaluation(group)))
    return table


def statements(report: Dataset) -> list[str]:
    """Read the sentences that hold for the whole report: limitation and training data."""
    items = [item for code in (codes.LIMITATION, codes.TRAINING_DATA) for item in _find(report, code.value)]
    return [item.TextValue for item in items if "TextValue" in item]


def _figure(group: Dataset, concept: Code, form: str) -> str:
    """The value, and its interval on a second line where it is the areal density."""
    item = next((item for item in _find(group, concept.value) if item.get("MeasuredValueSequence")), None)
    if item is None:
        return ""
    limits = [_value(part) for name in INTERVAL for part in _find(item, name)]
    with_interval = concept == codes.AREAL_BMD and len(limits) == len(INTERVAL)
    return format(_value(item), form) + (f"\n{limits[0]:.2f}-{limits[1]:.2f}" if with_interval else "")


def _evaluation(group: Dataset) -> str:
    """The class; where there is none, whether it was measured; and why not."""
    wanted = (codes.DENSITY_CLASS, codes.MEASURABILITY), (codes.NOT_MEASURABLE_REASON,)
    found = [
        [_meaning(item.ConceptCodeSequence[0]) for name in some for item in _find(group, name.value)] for some in wanted
    ]
    return ": ".join(meanings[0] for meanings in found if meanings)


def _value(item: Dataset) -> float:
    return float(item.MeasuredValueSequence[0].NumericValue)


def _find(item: Dataset, code: str) -> Iterator[Dataset]:
    for part in item.get("ContentSequence", ()):
        names = part.get("ConceptNameCodeSequence")
        if names and names[0].get("CodeValue") == code:
            yield part
        yield from _find(part, code)


def _meaning(code: Dataset) -> str:
    return str(code.CodeMeaning)
