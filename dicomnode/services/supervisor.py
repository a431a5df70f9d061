"""Starts the node's programs as child processes, restarts what dies, and stops all of them cleanly.

The programs meet only in the database and the spool; the supervisor knows no more of them than a command line. Their logs go to
the same stderr, one line per event.
"""

import functools
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from dicomnode.logline import line
from dicomnode.services.process import LIBC, die_with_parent, stop_on_signals

LOGGER = logging.getLogger(__name__)

POLL_S = 0.1


@dataclass(frozen=True)
class Restarts:
    """How fast a program that has died is started again."""

    first_delay_s: float = 0.5
    longest_delay_s: float = 30.0
    """Cap of the delay, which doubles with each death."""
    steady_s: float = 60.0
    """A program that has run this long is taken for sound: its next restart is quick again."""

    def delay_s(self, deaths: int) -> float:
        """Give the delay after so many deaths in a row."""
        return min(self.first_delay_s * 2.0 ** min(deaths - 1, 16), self.longest_delay_s)


@dataclass(frozen=True)
class Program:
    """One child process."""

    name: str
    command: tuple[str, ...]


class Child:
    """A program that is kept running."""

    def __init__(self, program: Program, restarts: Restarts) -> None:
        self.program = program
        self._restarts = restarts
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths = 0
        self._started_at = 0.0
        self._start_at = 0.0

    def keep_running(self) -> None:
        """Start it when it is not running and its delay is over."""
        if self._process is not None and self._process.poll() is not None:
            self._note_death(self._process.returncode)
        if self._process is None and time.monotonic() >= self._start_at:
            self._start()

    def _start(self) -> None:
        # A session of its own: Ctrl-C in the terminal reaches the supervisor alone, which then stops its children in order.
        # Tied to us before exec: a child that only did so itself would outlive a supervisor that dies while it still imports.
        tie = functools.partial(die_with_parent, os.getpid()) if LIBC is not None else None
        self._process = subprocess.Popen(
            self.program.command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=tie
        )
        self._started_at = time.monotonic()
        LOGGER.info(line("started", program=self.program.name, pid=self._process.pid))

    def _note_death(self, code: int) -> None:
        steady = time.monotonic() - self._started_at > self._restarts.steady_s
        self._deaths = 1 if steady else self._deaths + 1
        delay_s = self._restarts.delay_s(self._deaths)
        self._process, self._start_at = None, time.monotonic() + delay_s
        LOGGER.error(line("died", program=self.program.name, cause=_cause(code), restart_in_s=delay_s))

    def terminate(self) -> None:
        """Ask it to stop."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait(self, until: float) -> None:
        """Wait for its end until the monotonic time `until`, then kill it."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            LOGGER.error(line("killed, since it did not stop", program=self.program.name, pid=self._process.pid))
            self._process.kill()
            self._process.wait()
        LOGGER.info(line("stopped", program=self.program.name))


def run_all(
    programs: Sequence[Program],
    stop_grace_s: float = 25.0,
    stop: threading.Event | None = None,
    restarts: Restarts = Restarts(),
) -> int:
    """Keep the programs running until SIGTERM, SIGINT or `stop`; then stop them, the first one (the receiver) first.

    Returns:
        The exit status for the shell: 0.
    """
    stopping = stop if stop is not None else stop_on_signals()
    children = [Child(program, restarts) for program in programs]
    try:
        while True:
            for child in children:
                child.keep_running()
            if stopping.wait(POLL_S):
                return 0
    finally:
        until = time.monotonic() + stop_grace_s
        for child in children:
            child.terminate()
        for child in children:
            child.wait(until)


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
