"""What each of the node's processes does at its start: end with its parent, stop on a signal, be the only one of its name."""

import ctypes
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dicomnode.errors import ConfigurationError

PR_SET_PDEATHSIG = 1
"""Source: prctl(2), linux/prctl.h."""
LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
PARENT_POLL_S = 1.0


def die_with_parent(parent_pid: int | None = None) -> None:
    """Have this process terminated when its parent ends, also by kill -9, so that no orphan holds ports and claims.

    The supervisor has this done between fork and exec (it holds over an exec); a program that is started in another way calls it
    first thing.

    Args:
        parent_pid: the parent as the parent itself knows it: one that ends before this call is noticed too.
    """
    expected = parent_pid if parent_pid is not None else os.getppid()
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    else:
        threading.Thread(target=_watch_parent, args=(expected,), daemon=True).start()
    if os.getppid() != expected:
        os.kill(os.getpid(), signal.SIGTERM)


def _watch_parent(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(PARENT_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)


def stop_on_signals() -> threading.Event:
    """Give an event that SIGTERM or SIGINT sets; only in the main thread."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


@contextmanager
def single(folder: Path, name: str, wait_s: float = 10.0) -> Iterator[None]:
    """Hold the lock of a role, e.g. "worker-1": two processes of one executor id would do each other's work twice.

    The system frees it when the process ends, however it ends.

    Raises:
        ConfigurationError: another process still holds it after `wait_s`.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{name}.lock"
    with path.open("a+") as file:
        _lock(file.fileno(), path, wait_s)
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _lock(descriptor: int, path: Path, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                pid = path.read_text().strip() or "unknown"
                raise ConfigurationError(
                    f"{path.stem} runs already (process {pid}); stop it, or give it another name"
                ) from error
            time.sleep(0.1)


def holder(folder: Path, name: str) -> str | None:
    """Give the number of the process that holds the lock of a role; None where nobody does."""
    path = folder / f"{name}.lock"
    try:
        with path.open() as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)  # freed again with the file
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return path.read_text().strip() or "unknown"
    return None
