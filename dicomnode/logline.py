"""One structured line per event: `event key=value key=value`, for the standard library's logging.

SOP Instance UIDs and AE titles may stand in a line; names, IDs and dates of patients never do.
"""

import copy
import json
import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

LOGGER = logging.getLogger(__name__)

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
MOST_PLACES = 30
"""Of one exception: more are a recursion, whose innermost frames tell enough."""


def line(event: str, **fields: object) -> str:
    """Give the text of one event; fields that are None are left out.

    A value that holds a space, a quote, an equals sign or a control character is written as a JSON string, so that a peer's
    text can neither forge a field nor start a line of its own.
    """
    return " ".join([event, *(f"{name}={_value(value)}" for name, value in fields.items() if value is not None)])


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    plain = text and text.isprintable() and not any(character in text for character in ' "=')
    return text if plain else json.dumps(text)


class Formatter(logging.Formatter):
    """Writes an exception in the line of its event, as types and places: its words may quote what a peer has sent."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record; the record itself stays as it is, for other handlers."""
        nameless = copy.copy(record)
        nameless.exc_info = nameless.exc_text = None
        if isinstance(record.msg, BaseException):  # pynetdicom logs an exception in the place of a message
            nameless.msg = type(record.msg).__name__
        if isinstance(record.args, tuple):
            nameless.args = tuple(type(a).__name__ if isinstance(a, BaseException) else a for a in record.args)
        error = record.exc_info[1] if record.exc_info else None
        text = super().format(nameless)
        return text if error is None else f"{text} {line_of_exception(error)}"


def line_of_exception(error: BaseException) -> str:
    """Give `exception="..."`: type and stack of an exception and of those that led to it, without their words."""
    return f"exception={_value('; after '.join(_types_and_places(error)))}"


def _types_and_places(error: BaseException | None) -> Iterator[str]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        places = [
            f"{'/'.join(Path(frame.f_code.co_filename).parts[-2:])}:{number} in {frame.f_code.co_name}"
            for frame, number in traceback.walk_tb(error.__traceback__)
        ]
        left_out = ["..."] if len(places) > MOST_PLACES else []
        yield f"{type(error).__name__} ({', '.join([*left_out, *places[-MOST_PLACES:]])})"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Write every record of this process to stderr in our form, also exceptions that end a thread."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(FORMAT))
    logging.basicConfig(level=level, handlers=[handler])
    threading.excepthook = _thread_ended


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None:
        name = ended.thread.name if ended.thread is not None else None
        LOGGER.error(line("thread ended", thread=name), exc_info=ended.exc_value)
