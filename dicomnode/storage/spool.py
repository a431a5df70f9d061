"""The spool: received objects, checkpoints and results as files that are whole or not there.

    incoming/     objects being received; emptied at start, nothing in it was ever acknowledged
    instances/    received objects, in 256 folders
    checkpoints/  figures and maps between the steps "measure" and "encode"
    objects/      what we made and deliver

A file is written under a temporary name on the same file system, synchronised, renamed, and its folder synchronised: after that
it survives a power cut. File names are ours; no text of a peer, no UID included, becomes a path.
"""

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType

from dicomnode.errors import CannotUnderstand, OutOfResources, PermanentFailure, Refused

INCOMING, INSTANCES, CHECKPOINTS, OBJECTS = "incoming", "instances", "checkpoints", "objects"
READ_CHUNK_BYTES = 1 << 20
META_START_BYTES = 144
"""Preamble, "DICM" and the element (0002,0000) with its value. Source: PS3.10 Section 7.1."""
GROUP_LENGTH_ELEMENT = b"\x02\0\0\0UL\x04\0"

FreeBytes = Callable[[Path], int]


def free_bytes(folder: Path) -> int:
    """Bytes that an unprivileged process may still write on the folder's file system."""
    return shutil.disk_usage(folder).free


@dataclass(frozen=True)
class Spooled:
    """A file in the spool."""

    path: str
    """Relative to the spool's root, POSIX."""
    sha256: str
    size_bytes: int


class Spool:
    """Files below one root folder, on one file system.

    Args:
        root: the folder; `prepare` makes it.
        watermark_bytes: below this much free space nothing more is received.
        max_object_bytes: the largest data set that is received.
        free: how free space is asked for.
    """

    def __init__(self, root: Path, watermark_bytes: int, max_object_bytes: int, free: FreeBytes = free_bytes) -> None:
        self.root = root
        self._watermark_bytes = watermark_bytes
        self._max_object_bytes = max_object_bytes
        self._free = free

    def prepare(self) -> None:
        """Make the folders. Readable by the service's user only: the files hold patients' data."""
        for folder in (INCOMING, INSTANCES, CHECKPOINTS, OBJECTS):
            (self.root / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        _synchronise_folder(self.root)

    def absolute(self, path: str) -> Path:
        """Give the absolute path of a spool path.

        Raises:
            PermanentFailure: the path leads out of the spool (a damaged ledger).
        """
        absolute = (self.root / path).resolve()
        if not absolute.is_relative_to(self.root.resolve()):
            raise PermanentFailure(f"spool path {path!r} leads out of the spool {self.root}; the ledger is damaged")
        return absolute

    def require_room(self) -> None:
        """Check the disk's watermark.

        Raises:
            OutOfResources: less is free than the watermark, or the disk cannot be asked.
        """
        try:
            free = self._free(self.root)
        except OSError as error:
            raise OutOfResources(f"spool {self.root}: {error.strerror}") from error
        if free < self._watermark_bytes:
            raise OutOfResources(
                f"spool disk is nearly full: {free} bytes free, watermark {self._watermark_bytes}; free space on {self.root}"
            )

    def receive(self, head: bytes) -> "Incoming":
        """Open a file for an object that is being received; it begins with `head` (preamble and file meta information)."""
        return Incoming(self, head)

    def refuse(self, refusal: Refused) -> "Incoming":
        """Give an incoming object that is read and thrown away, since its request is refused already."""
        return Incoming(self, b"", refusal)

    def keep(self, incoming: Path, folder: str = INSTANCES) -> str:
        """Rename a synchronised file into its place, durably.

        Returns:
            Its spool path.

        Raises:
            OSError: the file system refused; nothing was kept.
        """
        name = uuid.uuid4().hex
        path = f"{folder}/{name[:2]}/{name}{incoming.suffix}"
        target = self.root / path
        _make_shard(target.parent)
        incoming.rename(target)
        try:
            _synchronise_folder(target.parent)
        except OSError:
            target.unlink(missing_ok=True)
            raise
        return path

    def write(self, folder: str, suffix: str, content: bytes) -> Spooled:
        """Write a whole new file, durably.

        Raises:
            OSError: the file system refused; nothing is left behind.
        """
        temporary = self.root / INCOMING / f"{uuid.uuid4().hex}{suffix}"
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            path = self.keep(temporary, folder)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return Spooled(path, hashlib.sha256(content).hexdigest(), len(content))

    def read(self, path: str, sha256: str) -> bytes:
        """Read a whole file and check its digest.

        Raises:
            PermanentFailure: the file is gone or has changed.
        """
        try:
            content = self.absolute(path).read_bytes()
        except FileNotFoundError as error:
            raise PermanentFailure(f"{path} is missing from the spool") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise PermanentFailure(f"{path} has changed in the spool: its SHA-256 is not the recorded one")
        return content

    def restore(self, path: str, known: str, sha256: str) -> bool:
        """Put the received file at `path` in the place of `known`, unless that holds the data set with this SHA-256.

        Returns:
            Whether `known` was missing or damaged.

        Raises:
            OSError: the file system refused; the file at `path` may still lie there.
        """
        if self._holds(known, sha256):
            return False
        target = self.absolute(known)
        _make_shard(target.parent)
        self.absolute(path).replace(target)
        _synchronise_folder(target.parent)
        return True

    def _holds(self, path: str, sha256: str) -> bool:
        try:
            return self.dataset_digest(path)[0] == sha256
        except (OSError, PermanentFailure):
            return False

    def dataset_digest(self, path: str) -> tuple[str, int]:
        """Read a received object again and give SHA-256 and size of its data set, which begins after the file meta information.

        Raises:
            OSError: the file cannot be read.
            PermanentFailure: it does not begin as `Incoming` has written it.
        """
        digest = hashlib.sha256()
        with self.absolute(path).open("rb") as file:
            head = file.read(META_START_BYTES)
            if len(head) < META_START_BYTES or head[128:132] != b"DICM" or head[132:140] != GROUP_LENGTH_ELEMENT:
                raise PermanentFailure(f"{path} does not begin as a file of this spool: it is damaged")
            start = file.seek(META_START_BYTES + int.from_bytes(head[140:144], "little"))
            while chunk := file.read(READ_CHUNK_BYTES):
                digest.update(chunk)
            return digest.hexdigest(), file.tell() - start

    def discard(self, path: str) -> None:
        """Remove a file that no row refers to."""
        self.absolute(path).unlink(missing_ok=True)

    def empty_incoming(self) -> int:
        """Remove what an earlier process had not finished receiving; give the number of files."""
        leftovers = [path for path in (self.root / INCOMING).iterdir() if path.is_file()]
        for path in leftovers:
            path.unlink(missing_ok=True)
        return len(leftovers)

    def received(self, older_than_s: float) -> Iterator[str]:
        """List received objects that have lain there for `older_than_s`, the oldest first of each folder."""
        latest = time.time() - older_than_s
        for shard in sorted((self.root / INSTANCES).iterdir()):
            files = [(path.stat().st_mtime, path) for path in shard.iterdir()]
            yield from (f"{INSTANCES}/{shard.name}/{path.name}" for mtime, path in sorted(files) if mtime < latest)


class Incoming:
    """One object on its way in. `write` never raises: what went wrong is kept and told by `finish`, once the peer is through.

    (An exception in pynetdicom's reading thread would end the association without an answer.) After a failure the rest of the
    object is read and thrown away.
    """

    def __init__(self, spool: Spool, head: bytes, refusal: Refused | None = None) -> None:
        self.path = spool.root / INCOMING / f"{uuid.uuid4().hex}.dcm"
        self.size_bytes = 0
        self._spool = spool
        self._digest = hashlib.sha256()
        self._failure = refusal
        self._file: FileIO | None = None
        if refusal is None:
            self._open(head)

    def _open(self, head: bytes) -> None:
        try:
            self._spool.require_room()
            self._file = self.path.open("xb", buffering=0)
            self._put(self._file, head)
        except OutOfResources as failure:
            self._failure = failure
        except OSError as error:
            self._fail(error)

    def write(self, fragment: bytes) -> None:
        """Append a fragment of the encoded data set."""
        self.size_bytes += len(fragment)
        if self._failure is not None or self._file is None:
            return
        if self.size_bytes > self._spool._max_object_bytes:
            self._failure = CannotUnderstand(
                f"object is larger than {self._spool._max_object_bytes} bytes; raise receiver.maximum_object_bytes to take it"
            )
            return
        try:
            self._put(self._file, fragment)
            self._digest.update(fragment)
        except OSError as error:
            self._fail(error)

    def finish(self) -> str:
        """Synchronise the file to the disk and give the SHA-256 of the data set. It still lies in incoming/.

        Raises:
            OutOfResources: the disk is full or failing, or was below the watermark.
            CannotUnderstand: the object is larger than the limit.
        """
        if self._failure is None and self._file is not None:
            try:
                os.fdatasync(self._file.fileno())
            except OSError as error:
                self._fail(error)
        if self._failure is not None:
            raise self._failure
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close, and remove the file unless it was kept."""
        if self._file is not None:
            self._file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> "Incoming":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def _put(file: FileIO, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]

    def _fail(self, error: OSError) -> None:
        self._failure = OutOfResources(f"spool {self._spool.root}: {error.strerror}")


def _make_shard(folder: Path) -> None:
    """Make one of the 256 folders below a kind of files, durably.

    One that is there is synchronised too: whoever made it may not have come so far, in another thread or before a crash.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    _synchronise_folder(folder.parent)


def _synchronise_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut. Source: fsync(2), NOTES: the directory needs a sync of its own."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
