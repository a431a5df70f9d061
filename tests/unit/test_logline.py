"""Log lines: one event, one line, whatever a peer sends."""

import io
import logging
import subprocess
import sys

from dicomnode.logline import FORMAT, Formatter, line, line_of_exception

LOGGER = logging.getLogger(__name__)


def test_a_line_is_the_event_and_its_fields() -> None:
    assert line("stored", job=3, seconds=0.0123, arrival="new") == "stored job=3 seconds=0.012 arrival=new"


def test_fields_without_a_value_are_left_out_and_empty_ones_are_seen() -> None:
    assert line("refused", status=None, calling="") == 'refused calling=""'


def test_a_peers_text_can_neither_forge_a_field_nor_a_line() -> None:
    text = line("rejected", calling="A job=1\nstored job=2")
    assert text == 'rejected calling="A job=1\\nstored job=2"'
    assert len(text.splitlines()) == 1


def failing(depth: int = 0) -> None:
    if depth:
        failing(depth - 1)
    secret = "SECRET^PATIENT"
    try:
        raise KeyError(secret)
    except KeyError as error:
        raise ValueError(f"cannot encode {secret!r}") from error


def test_an_exception_is_told_in_the_same_line_by_type_and_place_without_its_words(log: io.StringIO) -> None:
    try:
        failing()
    except ValueError as error:
        LOGGER.exception(line("step failed", job=3))
        LOGGER.error(error)
        LOGGER.warning("library says %s", error)
    first, second, third = log.getvalue().splitlines()
    assert "ERROR tests.unit.test_logline step failed job=3 exception=" in first
    assert "ValueError (unit/test_logline.py:" in first
    assert first.index("ValueError") < first.index("; after KeyError (unit/test_logline.py:")
    assert " in failing" in first
    assert second.endswith("test_logline ValueError")
    assert third.endswith("library says ValueError")
    assert "SECRET" not in log.getvalue()


def test_what_another_handler_has_formatted_before_is_not_taken_over() -> None:
    record = logging.LogRecord("n", logging.ERROR, __file__, 1, "failed", None, None)
    try:
        failing()
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    assert "SECRET" in logging.Formatter().format(record)
    assert "SECRET" not in Formatter(FORMAT).format(record)
    assert "SECRET" in logging.Formatter().format(record)


def test_a_deep_recursion_is_cut_to_its_innermost_places() -> None:
    try:
        failing(100)
    except ValueError as error:
        told = line_of_exception(error)
    assert "ValueError (..., " in told
    assert told.count(" in failing") == 31  # and one of the KeyError


def test_a_process_that_logs_to_stderr_tells_no_words_of_exceptions_not_even_those_that_end_a_thread() -> None:
    code = """
import logging, threading
from dicomnode.logline import log_to_stderr
log_to_stderr()
def fail():
    raise ValueError("SECRET^PATIENT")
threading.Thread(target=fail, name="T-1").start()
try:
    fail()
except ValueError:
    logging.getLogger("x").exception("failed")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "thread ended thread=T-1 exception=" in ended.stderr
    assert "x failed exception=" in ended.stderr
    assert "SECRET" not in ended.stderr
