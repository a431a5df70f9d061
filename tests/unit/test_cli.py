"""The command line as a person or a script meets it: words, tables and exit codes."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dicomnode import cli
from dicomnode.bootstrap import open_ledger, prepare
from dicomnode.config import load_configuration
from dicomnode.storage.rows import NewInstance

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run the command line in this process; gives (exit code, stdout, stderr)."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # given back afterwards
    levels = {name: logging.getLogger(name).level for name in ("", "pynetdicom")}

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dicomnode", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    yield call
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """The configuration folder of a node that was never started."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "node.toml").write_text('[node]\nport = 11999\ndata_folder = "../data"\n', encoding="utf-8")
    (tmp_path / "conf" / "ae.toml").write_text('[[ae]]\nae_title = "XRAY1"\nmay_send = true\n', encoding="utf-8")
    return tmp_path / "conf"


def test_help_answers_at_once_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['dicomnode', '-h']\nfrom dicomnode import cli\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'pydicom', 'dbos', 'sqlalchemy', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.endswith("[]\n")
    assert "Exit codes" in done.stdout
    assert time.monotonic() - started < 10, "an hour-glass on --help: something heavy is imported"


@pytest.mark.parametrize("command", ["measure", "init", "serve", "check", "jobs", "show", "retry", "ae", "demo"])
def test_every_command_has_help(run: Run, command: str) -> None:
    code, out, _ = run(command, "-h")
    assert code == 0
    assert "Usage: dicomnode " + command in out


def test_a_wrong_setting_is_one_sentence_and_code_2(run: Run) -> None:
    code, _, err = run("jobs", "--set", "node.prot=1")
    assert code == 2
    assert "did you mean 'port'?" in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(run: Run) -> None:
    code, _, err = run("jobs", "--debug", "--set", "node.prot=1")
    assert code == 2
    assert "Traceback" in err


def test_a_defect_is_told_as_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(cli, "app", lambda prog_name: broken())
    code, _, err = run("jobs")
    assert code == 1
    assert "ZeroDivisionError: on purpose" in err
    assert "defect of dicomnode" in err


def test_an_interrupt_is_code_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(prog_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    assert run("jobs")[0] == 130


def test_an_unknown_program_of_serve_is_wrong_usage(run: Run) -> None:
    code, _, err = run("serve", "--only", "printer")
    assert code == 2
    assert "receiver, worker, sender" in err


def test_jobs_before_init_says_what_to_do(run: Run, node: Path) -> None:
    code, _, err = run("jobs", "-c", node)
    assert code == 2
    assert "dicomnode init" in err


def test_init_writes_a_configuration_and_is_safe_to_repeat(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("init")
    assert code == 0
    assert "conf/node.toml" in out
    (tmp_path / "conf" / "node.toml").write_text("[node]\nport = 104\n", encoding="utf-8")
    code, out, _ = run("init")
    assert code == 0
    assert "written" not in out
    assert (tmp_path / "conf" / "node.toml").read_text(encoding="utf-8") == "[node]\nport = 104\n"


def test_ae_titles_are_imported_added_listed_and_removed(run: Run, node: Path) -> None:
    assert "imported  1 AE" in run("init", "-c", node)[1]
    assert run("ae", "add", "PACS", "--receives-results", "--host", "192.0.2.1", "--port", "104", "-c", node)[0] == 0
    listed = run("ae", "list", "-c", node)[1]
    assert "XRAY1" in listed
    assert "192.0.2.1:104" in listed
    assert run("ae", "remove", "PACS", "-c", node)[0] == 0
    assert "PACS" not in run("ae", "list", "-c", node)[1]


def test_an_ae_title_is_changed_only_where_it_is_said(run: Run, node: Path) -> None:
    run("init", "-c", node)
    run(
        "ae",
        "add",
        "PACS",
        "--receives-results",
        "--host",
        "192.0.2.1",
        "--port",
        "104",
        "--description",
        "old",
        "-c",
        node,
    )
    code, out, _ = run("ae", "change", "PACS", "--host", "192.0.2.7", "--may-send", "-c", node)
    assert code == 0
    assert all(word in out for word in ("PACS", "192.0.2.7:104", "old", "any"))
    assert out == run("ae", "change", "PACS", "-c", node)[1], "nothing named, nothing changed"


@pytest.mark.parametrize("word", ["received", "quarantined", "pending", "held", "delivered"])
def test_jobs_are_asked_for_by_any_word_of_their_list(run: Run, node: Path, word: str) -> None:
    prepare(load_configuration(node))
    assert run("jobs", "--state", word, "-c", node)[:2] == (0, f"No radiographs in state {word}.\n")
    code, _, err = run("jobs", "--state", f"{word}x", "-c", node)
    assert (code, word in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("add", "XRAY1", "--may-send"), 1, "configured already"),
        (("add", "PACS", "--receives-results"), 2, "needs host and port"),
        (("add", "PACS"), 2, "does nothing"),
        (("add", "A_TITLE_THAT_IS_TOO_LONG", "--may-send"), 2, "1 to 16 ASCII characters"),
        (("remove", "NOBODY"), 1, "not configured"),
        (("change", "NOBODY", "--port", "104"), 1, "not configured"),
        (("change", "XRAY1", "--receives-results"), 2, "needs host and port"),
        (("change", "XRAY1", "--may-not-send"), 2, "does nothing"),
        (("test", "NOBODY"), 1, "not configured"),
    ],
)
def test_a_mistake_with_ae_titles_says_what_to_do(
    run: Run, node: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    prepare(load_configuration(node))
    ended, _, err = run("ae", *arguments, "-c", node)
    assert (ended, message in err) == (code, True)


def test_an_empty_node_has_no_jobs(run: Run, node: Path) -> None:
    prepare(load_configuration(node))
    assert run("jobs", "-c", node)[:2] == (0, "No radiographs yet.\n")
    code, _, err = run("show", "7", "-c", node)
    assert code == 1
    assert "no job '7'" in err


def test_a_received_radiograph_is_listed_shown_and_quarantined_work_is_retried(run: Run, node: Path) -> None:
    configuration = load_configuration(node)
    prepare(configuration)
    ledger = open_ledger(configuration)
    uid = "1.2.826.0.1.3680043.9.1"
    new = NewInstance(
        uid, "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.1.2.1", "1.2.3", "XRAY1", "N", "192.0.2.9", "0" * 64, 9, "x"
    )
    instance = ledger.register(new, lambda session, instance_id, run_number: None).instance
    ledger.quarantine(instance.id, "measure: the process ended 3 times without a result")
    listed = run("jobs", "-c", node)[1]
    assert "quarantined" in listed
    assert "ended 3 times" in listed
    assert uid in run("show", uid, "-c", node)[1]
    assert run("jobs", "--state", "received", "-c", node)[1] == "No radiographs in state received.\n"
    assert run("jobs", "--state", "lost", "-c", node)[0] == 2
    assert "set going again from received" in run("retry", str(instance.id), "-c", node)[1]
    ledger.beat("worker-1", "host", 1, working_on=instance.id)
    assert "a worker is at it" in run("retry", str(instance.id), "-c", node)[1]
    assert run("retry", "99", "-c", node)[0] == 1
