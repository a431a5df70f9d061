"""Processes: one of each name, none without its parent, restarted when they die, stopped when asked."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dicomnode.errors import ConfigurationError
from dicomnode.services import process
from dicomnode.services.supervisor import Program, Restarts, run_all
from tests.node_kit import eventually

QUICK = Restarts(first_delay_s=0.02, longest_delay_s=0.05, steady_s=60.0)


def program(name: str, code: str) -> Program:
    return Program(name, (sys.executable, "-S", "-c", code))


def marks(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def marking(file: Path, then: str) -> str:
    return f"import os, signal, sys, time; open({str(file)!r}, 'a').write('x'); {then}"


def test_a_role_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    with process.single(tmp_path, "worker-1"):
        with process.single(tmp_path, "worker-2"):
            pass
        words = f"worker-1 runs already .process {os.getpid()}"
        with pytest.raises(ConfigurationError, match=words), process.single(tmp_path, "worker-1", wait_s=0.1):
            pass
    with process.single(tmp_path, "worker-1", wait_s=0.1):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from dicomnode.services.process import single\n"
        f"with single(Path({str(tmp_path)!r}), 'role'): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder.stdout as said:
        assert said.readline() == b"held\n"
        holder.kill()
        holder.wait()
    with process.single(tmp_path, "role", wait_s=5):
        pass


def test_a_program_that_dies_is_started_again(tmp_path: Path) -> None:
    file, stop = tmp_path / "starts", threading.Event()
    programs = [program("mortal", marking(file, "os.kill(os.getpid(), signal.SIGKILL)"))]
    thread = threading.Thread(target=run_all, args=(programs, 5.0, stop, QUICK))
    thread.start()
    eventually(lambda: len(marks(file)) >= 3, "started three times")
    stop.set()
    thread.join()


def test_the_delay_before_a_restart_doubles_up_to_its_cap() -> None:
    assert [Restarts(0.5, 3.0).delay_s(deaths) for deaths in (1, 2, 3, 4, 1000)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_all_programs_are_asked_to_stop_and_a_deaf_one_is_killed(tmp_path: Path) -> None:
    file, stop = tmp_path / "starts", threading.Event()
    deaf = marking(
        file, "signal.signal(signal.SIGTERM, signal.SIG_IGN); open(sys.argv[1], 'a').write('d'); time.sleep(60)"
    )
    polite = marking(file, "time.sleep(60)")
    deaf_program = program("deaf", deaf)
    deaf_program = Program("deaf", (*deaf_program.command, str(file)))
    thread = threading.Thread(target=run_all, args=([deaf_program, program("polite", polite)], 0.5, stop, QUICK))
    thread.start()
    eventually(lambda: sorted(marks(file)) == ["d", "x", "x"], "both are up")
    before = time.monotonic()
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert 0.4 < time.monotonic() - before < 5


def test_a_child_ends_with_a_supervisor_that_is_killed_at_once(tmp_path: Path) -> None:
    pid_file = tmp_path / "child.pid"
    child = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = (
        "import sys; from dicomnode.services.supervisor import Program, run_all\n"
        f"run_all([Program('child', (sys.executable, '-S', '-c', {child!r}))])"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    eventually(lambda: bool(marks(pid_file)), "child is up", 30)
    parent.kill()
    parent.wait()
    pid = int(marks(pid_file))
    eventually(lambda: not is_alive(pid), "child has ended")


def test_signals_set_the_stop_event() -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = process.stop_on_signals()
        assert not stop.is_set()
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def is_alive(pid: int) -> bool:
    """A zombie that nobody has buried yet is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
