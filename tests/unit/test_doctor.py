"""`dicomnode check`: each fault that an administrator can mend is seen and comes with its advice."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from dicomnode import demo
from dicomnode.bootstrap import new_ae, open_peers, prepare
from dicomnode.config import ApplicationEntity, Configuration, load_configuration
from dicomnode.dicom.overlay import style
from dicomnode.doctor import Finding, Verdict, examine, examine_destination
from dicomnode.services import process
from dicomnode.storage.rows import Ae
from tests.tiny_bundle import write_tiny_bundle


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    """A node that was initialised and is not running."""
    port = demo.free_ports(1)[0]
    bundle = write_tiny_bundle(tmp_path / "bundle")
    (tmp_path / "node.toml").write_text(
        f'[node]\nport = {port}\ndata_folder = "data"\n[worker]\nmodel_folder = "{bundle}"\n'
        "[receiver]\nminimum_free_bytes = 0\n",
        encoding="utf-8",
    )
    loaded = load_configuration(tmp_path)
    prepare(loaded)
    return loaded


def look(configuration: Configuration) -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine(configuration)}


def changed(configuration: Configuration, *overrides: str) -> Configuration:
    return load_configuration(configuration.origin, overrides)


def destination(configuration: Configuration, port: int, ae_title: str = "ARCHIVE") -> Ae:
    entity = ApplicationEntity(ae_title, receives_results=True, host="127.0.0.1", port=port)
    return open_peers(configuration).add(new_ae(entity))


@contextmanager
def echo_only(port: int) -> Iterator[None]:
    """An AE that answers C-ECHO and takes nothing else, as archives do that were not told of us."""
    entity = AE(ae_title="ARCHIVE")
    entity.add_supported_context(Verification)
    server = entity.start_server(("127.0.0.1", port), block=False)
    assert server is not None
    try:
        yield
    finally:
        server.shutdown()


def test_a_sound_node_has_no_fault_and_is_told_what_is_still_missing(configuration: Configuration) -> None:
    found = look(configuration)
    assert {finding.verdict for finding in found.values()} == {Verdict.GOOD, Verdict.WARNING}
    assert [name for name, finding in found.items() if finding.verdict is Verdict.WARNING] == [
        "configuration",  # no shipped reference was compared with the table of its article yet
        "senders",
        "destinations",
    ]
    assert "tiny" in found["model"].seen


def test_without_a_configuration_that_is_said(tmp_path: Path) -> None:
    found = look(
        load_configuration(overrides=[f"node.data_folder={tmp_path / 'data'}", f"worker.model_folder={tmp_path}"])
    )
    assert found["configuration"].verdict is Verdict.WARNING
    assert found["data folder"].verdict is Verdict.FAULT
    assert "dicomnode init" in found["database"].seen
    assert found["model"].verdict is Verdict.FAULT
    assert found["AE titles"].verdict is Verdict.FAULT


def test_a_reference_that_was_not_verified_is_told(configuration: Configuration) -> None:
    finding = look(changed(configuration, "report.reference=japan2012", "report.criteria=japan_2012"))["configuration"]
    assert finding.verdict is Verdict.WARNING
    assert "not verified" in finding.seen


@pytest.mark.parametrize("override", ["report.language=ja", "report.limitation=診断に用いない。"])
def test_a_machine_without_a_japanese_font_is_told_where_one_is_needed(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    monkeypatch.setattr(style, "JAPANESE_FONTS", ())
    style.font_family.cache_clear()
    try:
        assert look(configuration)["overlay font"].verdict is Verdict.GOOD
        finding = look(changed(configuration, override))["overlay font"]
    finally:
        style.font_family.cache_clear()
    assert finding.verdict is Verdict.WARNING
    assert "fonts-noto-cjk" in finding.advice


def test_a_port_that_another_program_holds_is_a_fault(configuration: Configuration) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", configuration.settings.node.port))
        other.listen()
        finding = look(changed(configuration, "receiver.allow_unlisted_callers=true"))["port"]
    assert finding.verdict is Verdict.FAULT
    assert "another program" in finding.seen


def test_a_port_that_our_running_receiver_holds_is_good(configuration: Configuration) -> None:
    node = configuration.settings.node
    with process.single(node.data_folder, "receiver"), echo_only(node.port):
        finding = look(configuration)["port"]
    assert finding.verdict is Verdict.GOOD
    assert f"process {os.getpid()}) and answers C-ECHO" in finding.seen


@pytest.mark.parametrize("called_titles", [True, False])
def test_another_dicom_program_on_our_port_is_not_taken_for_our_node(
    configuration: Configuration, called_titles: bool
) -> None:
    other = AE(ae_title="OTHER")
    other.require_called_aet = called_titles  # rejects us, or answers our C-ECHO
    other.add_supported_context(Verification)
    server = other.start_server(("127.0.0.1", configuration.settings.node.port), block=False)
    assert server is not None
    try:
        finding = look(configuration)["port"]
    finally:
        server.shutdown()
    assert finding.verdict is Verdict.FAULT
    assert "another program" in finding.seen


def test_a_receiver_that_does_not_answer_on_our_port_is_a_fault(configuration: Configuration) -> None:
    node = configuration.settings.node
    with process.single(node.data_folder, "receiver"), socket.socket() as other:
        other.bind(("127.0.0.1", node.port))  # and does not listen
        finding = look(configuration)["port"]
    assert finding.verdict is Verdict.FAULT
    assert "does not answer" in finding.seen


def test_an_address_that_is_not_of_this_machine_is_a_fault(configuration: Configuration) -> None:
    finding = look(changed(configuration, "node.bind=192.0.2.1"))["port"]
    assert finding.verdict is Verdict.FAULT
    assert "node.bind" in finding.advice


def test_little_space_is_a_fault_and_not_much_a_warning(configuration: Configuration) -> None:
    assert look(changed(configuration, f"receiver.minimum_free_bytes={1 << 50}"))["free space"].verdict is Verdict.FAULT


def test_a_destination_that_takes_reports_and_overlays_is_good(configuration: Configuration, tmp_path: Path) -> None:
    (port,) = demo.free_ports(1)
    with demo.archive(tmp_path / "archive", port):
        finding = examine_destination(configuration, destination(configuration, port))
    assert (finding.verdict, finding.seen) == (Verdict.GOOD, "answers C-ECHO, takes reports and overlays")


def test_a_destination_that_echoes_but_refuses_reports_is_a_fault(configuration: Configuration) -> None:
    (port,) = demo.free_ports(1)
    with echo_only(port):
        finding = examine_destination(configuration, destination(configuration, port))
    assert finding.verdict is Verdict.FAULT
    assert "Comprehensive SR Storage" in finding.seen
    assert "Secondary Capture Image Storage" in finding.seen


def test_a_destination_that_does_not_listen_is_a_fault(configuration: Configuration) -> None:
    (port,) = demo.free_ports(1)
    destination(configuration, port)
    finding = look(configuration)["destination ARCHIVE"]
    assert finding.verdict is Verdict.FAULT
    assert "Connection refused" in finding.seen


def test_a_destination_that_knows_another_title_is_a_fault(configuration: Configuration) -> None:
    (port,) = demo.free_ports(1)
    entity = AE(ae_title="OTHER")
    entity.require_called_aet = True
    entity.add_supported_context(Verification)
    server = entity.start_server(("127.0.0.1", port), block=False)
    assert server is not None
    try:
        finding = examine_destination(configuration, destination(configuration, port))
    finally:
        server.shutdown()
    assert finding.verdict is Verdict.FAULT
    assert "rejected" in finding.seen


def test_an_ae_that_only_sends_is_not_called(configuration: Configuration) -> None:
    ae = open_peers(configuration).add(new_ae(ApplicationEntity("XRAY1", may_send=True)))
    assert examine_destination(configuration, ae).verdict is Verdict.GOOD
