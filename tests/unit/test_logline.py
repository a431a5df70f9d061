"""Log lines: one event, one line, whatever a peer sends."""

from dicomnode.logline import line


def test_a_line_is_the_event_and_its_fields() -> None:
    assert line("stored", job=3, seconds=0.0123, arrival="new") == "stored job=3 seconds=0.012 arrival=new"


def test_fields_without_a_value_are_left_out_and_empty_ones_are_seen() -> None:
    assert line("refused", status=None, calling="") == 'refused calling=""'


def test_a_peers_text_can_neither_forge_a_field_nor_a_line() -> None:
    text = line("rejected", calling="A job=1\nstored job=2")
    assert text == 'rejected calling="A job=1\\nstored job=2"'
    assert len(text.splitlines()) == 1
