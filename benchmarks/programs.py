"""The programs that a benchmark or an integration test needs: the node, Orthanc, DCMTK. Each is a process of its own.

They listen on free ports of loopback, keep their files in a folder that the caller gives, and end with their `with` block.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicomnode.demo import ARCHIVE, MODALITY, NODE, free_ports, write_configuration

LOOPBACK = "127.0.0.1"
REPOSITORY = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 40.0
STORE_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 120.0
LARGEST_DCMTK_PDU_BYTES = 131072
"""Source: DCMTK 3.6.7, `storescu --help`: --max-pdu takes 4096..131072."""

STORED = re.compile(r"^I: Received Store Response \(Success\)", re.MULTILINE)


class ProgramMissing(Exception):
    """A program is not installed here; the message names it and its Debian package."""


class ProgramFailed(Exception):
    """A program did not do what it was started for; the message ends with what it said last."""


@dataclass(frozen=True)
class Peer:
    """A Storage SCP on loopback."""

    ae_title: str
    port: int


@dataclass(frozen=True)
class Orthanc(Peer):
    """A running Orthanc and its REST API."""

    http_port: int

    def get(self, path: str) -> Any:
        """Read a resource that is JSON."""
        return json.loads(self.read(path))

    def read(self, path: str) -> bytes:
        """Read a resource, e.g. `/instances/{id}/file`."""
        with urllib.request.urlopen(self._url(path), timeout=COMMAND_TIMEOUT_S) as answer:
            return bytes(answer.read())

    def post(self, path: str, content: bytes) -> Any:
        """Send `content` to a resource and read its JSON answer."""
        request = urllib.request.Request(self._url(path), data=content, method="POST")
        with urllib.request.urlopen(request, timeout=COMMAND_TIMEOUT_S) as answer:
            return json.loads(answer.read())

    def _url(self, path: str) -> str:
        return f"http://{LOOPBACK}:{self.http_port}{path}"


@dataclass(frozen=True)
class Node(Peer):
    """A running node."""

    folder: Path
    """Holds conf/, node/ (spool and ledger) and node.log."""
    options: tuple[str, ...]
    """What every command of this node needs: --config and --set."""

    @property
    def log(self) -> Path:
        """What its programs have said."""
        return self.folder / "node.log"

    @property
    def spool(self) -> Path:
        """Its spool."""
        return self.folder / "node" / "spool"

    def last_words(self) -> str:
        """Give the last line of its log."""
        return _last_line(self.log.read_text(encoding="utf-8", errors="replace"))

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `dicomnode ARGUMENTS` as an administrator beside the running node."""
        command = [*DICOMNODE, *arguments, *self.options]
        wide = {**os.environ, "COLUMNS": "200"}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, cwd=REPOSITORY, env=wide
        )


DICOMNODE = (sys.executable, "-m", "dicomnode.cli")
"""Started from the repository, so that an installed package of another version is never measured."""

PACKAGES = {"Orthanc": "orthanc", "dciodvfy": "dicom3tools"}
"""Debian packages; every other program here is of dcmtk."""


def find_program(name: str) -> str:
    """Give the path of a program.

    Raises:
        ProgramMissing: it is not installed.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise ProgramMissing(f"{name} is not installed (Debian package {PACKAGES.get(name, 'dcmtk')})")
    return found


@contextmanager
def storescp(folder: Path, *options: str) -> Iterator[Peer]:
    """Run DCMTK's storescp; received files go to `folder`."""
    folder.mkdir(parents=True)
    peer = Peer(ARCHIVE, free_ports(1)[0])
    command = [find_program("storescp"), *options, "-aet", ARCHIVE, "-od", str(folder), str(peer.port)]
    with _running(command, folder.with_name(f"{folder.name}.log"), lambda: echoes(peer)):
        yield peer


@contextmanager
def orthanc(
    folder: Path, node_port: int | None = None, settings: Mapping[str, object] | None = None
) -> Iterator[Orthanc]:
    """Run Orthanc with its defaults, its storage in `folder`, and the node at `node_port` as its modality "node".

    Args:
        settings: added to its configuration.
    """
    folder.mkdir(parents=True)
    dicom_port, http_port = free_ports(2)
    configuration = {
        "Name": "dicomnode test",
        "DicomAet": ARCHIVE,
        "DicomPort": dicom_port,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
        "DicomModalities": {"node": _modality(node_port)} if node_port else {},
        **(settings or {}),
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration, indent=2), encoding="utf-8")
    peer = Orthanc(ARCHIVE, dicom_port, http_port)
    command = [find_program("Orthanc"), str(folder / "orthanc.json")]
    with _running(command, folder / "orthanc.log", lambda: echoes(peer)):
        yield peer


def _modality(node_port: int) -> dict[str, object]:
    """Let Orthanc call the node under the one AE title that may send to it."""
    return {"AET": NODE, "Host": LOOPBACK, "Port": node_port, "LocalAet": MODALITY}


@contextmanager
def node(
    folder: Path,
    destination: Peer | None = None,
    *,
    port: int | None = None,
    only: str = "",
    overrides: Sequence[str] = (),
) -> Iterator[Node]:
    """Run `dicomnode serve` in a fresh folder, with MODALITY as its caller.

    Args:
        destination: gets the results; without one they are addressed to a port where nobody listens.
        port: where it listens; None: any free one.
        only: receiver, worker or sender; "": all of them.
        overrides: `section.key=value`.
    """
    folder.mkdir(parents=True)
    free, nobody = free_ports(2)
    own = free if port is None else port
    write_configuration(folder / "conf", own, destination.port if destination else nobody)
    options = ("--config", str(folder / "conf"), *(f"--set={override}" for override in overrides))
    running = Node(NODE, own, folder, options)
    command = [*DICOMNODE, "serve", *(["--only", only] if only else []), *options]
    with _running(command, running.log, lambda: echoes(running)):
        yield running


def echoes(peer: Peer) -> bool:
    """Say whether a peer answers a C-ECHO."""
    command = [find_program("echoscu"), "-to", "2", "-aet", MODALITY, "-aec", peer.ae_title, LOOPBACK, str(peer.port)]
    return subprocess.run(command, capture_output=True, timeout=COMMAND_TIMEOUT_S).returncode == 0


def store(peer: Peer, files: Sequence[Path], *options: str) -> float:
    """Send files with DCMTK's storescu in one association, and insist on success for each.

    Returns:
        Wall seconds of the whole program: start, reading, association, all answers, release.

    Raises:
        ProgramFailed: an object was not stored.
    """
    command = [
        find_program("storescu"),
        "-v",
        "-R",
        *options,
        "-aet",
        MODALITY,
        "-aec",
        peer.ae_title,
        LOOPBACK,
        str(peer.port),
    ]
    started = time.perf_counter()
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, timeout=STORE_TIMEOUT_S)
    seconds = time.perf_counter() - started
    stored = len(STORED.findall(done.stdout + done.stderr))
    if done.returncode or stored != len(files):
        raise ProgramFailed(
            f"storescu: {stored} of {len(files)} objects stored; {_last_line(done.stdout + done.stderr)}"
        )
    return seconds


def wait_until(reached: Callable[[], bool], timeout_s: float, failure: str) -> None:
    """Wait for a condition.

    Raises:
        ProgramFailed: it did not come true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not reached():
        if time.monotonic() > deadline:
            raise ProgramFailed(f"{failure} within {timeout_s:.0f} s")
        time.sleep(0.05)


@contextmanager
def _running(command: Sequence[str], log: Path, ready: Callable[[], bool]) -> Iterator[None]:
    """Run a program from when it is ready to the end of the block, however the block ends."""
    with log.open("wb") as stream:
        process = subprocess.Popen([*_leash(), *command], stdout=stream, stderr=subprocess.STDOUT, cwd=REPOSITORY)
    try:
        wait_until(
            lambda: process.poll() is not None or ready(), START_TIMEOUT_S, f"{command[0]} does not answer; see {log}"
        )
        if process.poll() is not None:
            said = _last_line(log.read_text(encoding="utf-8", errors="replace"))
            raise ProgramFailed(f"{' '.join(command)} ended at once with code {process.returncode}: {said}")
        yield
    finally:
        _end(process)


def _leash() -> tuple[str, ...]:
    """Have a program end with us even when we are killed, where the system can do that (Linux, util-linux)."""
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "TERM") if setpriv else ()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
