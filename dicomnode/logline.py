"""One structured line per event: `event key=value key=value`, for the standard library's logging.

SOP Instance UIDs and AE titles may stand in a line; names, IDs and dates of patients never do.
"""

import json


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
