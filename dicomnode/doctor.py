"""What `dicomnode check` and `dicomnode ae test` look at: faults that an administrator can mend, each with its advice."""

import errno
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from dicomnode.config import Configuration
from dicomnode.errors import DicomNodeError

if TYPE_CHECKING:
    from dicomnode.storage.rows import Ae

GIB = 1024**3


class Verdict(StrEnum):
    """How bad it is."""

    GOOD = "good"
    WARNING = "warning"
    """The node runs, but something is missing."""
    FAULT = "fault"
    """The node cannot do its work."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    verdict: Verdict
    seen: str
    advice: str = ""


def examine(configuration: Configuration) -> Iterator[Finding]:
    """Look at everything, one finding after the other; a fault in one does not hide the rest."""
    yield _configuration(configuration)
    for look in (_port, _data_folder, _free_space, _database, _model, _overlay_font):
        yield _guarded(look, configuration)
    yield from _entities(configuration)


def examine_destination(configuration: Configuration, ae: "Ae") -> Finding:
    """Call one destination as the sender does."""
    from dicomnode.services.probe import RESULT_SOP_CLASSES, Address, probe

    subject = f"destination {ae.ae_title}"
    if not ae.receives_results or ae.port is None:
        return Finding(subject, Verdict.GOOD, "sends to us only; nothing to call")
    settings = configuration.settings
    address = Address(ae.ae_title, ae.host, ae.port)
    answer = probe(settings.node.ae_title, address, RESULT_SOP_CLASSES, settings.sender.connection_timeout_s)
    if answer.failure:
        advice = (
            f"Is the address right and the port open? Does {ae.ae_title} know the AE title "
            f"{settings.node.ae_title}, and is its own title spelt so?"
        )
        return Finding(subject, Verdict.FAULT, f"{ae.host}:{ae.port}: {answer.failure}", advice)
    if answer.refused:
        refused = ", ".join(answer.refused)
        return Finding(subject, Verdict.FAULT, f"refuses {refused}", "Allow these SOP classes there for our AE title.")
    if not answer.echoed:
        return Finding(subject, Verdict.WARNING, "takes reports and overlays, but does not answer a C-ECHO")
    return Finding(subject, Verdict.GOOD, "answers C-ECHO, takes reports and overlays")


def _guarded(look: Callable[[Configuration], Finding], configuration: Configuration) -> Finding:
    """Turn an error of one look into its finding."""
    try:
        return look(configuration)
    except (DicomNodeError, OSError) as error:
        return Finding(look.__name__.strip("_").replace("_", " "), Verdict.FAULT, str(error))


def _configuration(configuration: Configuration) -> Finding:
    if configuration.origin is None:
        return Finding(
            "configuration", Verdict.WARNING, "none: the defaults hold", "Write one: dicomnode init --config FOLDER"
        )
    population = configuration.population
    if not population.verified:
        seen = f"reference population {population.name} was not verified against its source"
        return Finding("configuration", Verdict.WARNING, seen, population.verification)
    return Finding("configuration", Verdict.GOOD, f"{configuration.origin}, digest {configuration.digest[:12]}")


def _port(configuration: Configuration) -> Finding:
    """The port is free, or it is our own node that holds it."""
    node = configuration.settings.node
    place = f"{node.bind}:{node.port}"
    family = socket.AF_INET6 if ":" in node.bind else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe_socket:
        probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe_socket.bind((node.bind, node.port))
        except OSError as error:
            return _port_taken(configuration, place, error)
    return Finding("port", Verdict.GOOD, f"{place} is free (the node is not running)")


def _port_taken(configuration: Configuration, place: str, error: OSError) -> Finding:
    if error.errno in (errno.EACCES, errno.EPERM):
        advice = "Ports below 1024 need the capability CAP_NET_BIND_SERVICE, or choose node.port above 1023."
        return Finding("port", Verdict.FAULT, f"{place}: {error.strerror}", advice)
    if error.errno != errno.EADDRINUSE:
        return Finding(
            "port", Verdict.FAULT, f"{place}: {error.strerror}", "Set node.bind to an address of this machine."
        )
    from dicomnode.services import process

    node_process = process.holder(configuration.settings.node.data_folder, "receiver")
    if node_process is None:
        return Finding(
            "port", Verdict.FAULT, f"{place} is taken by another program", "Stop it, or choose another node.port."
        )
    return _port_of_node(configuration, place, node_process)


def _port_of_node(configuration: Configuration, place: str, node_process: str) -> Finding:
    """Our receiver runs; it is its port when it answers, or when it refuses us as a caller that is not listed."""
    from dicomnode.services.probe import Address, probe

    node = configuration.settings.node
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(node.bind, node.bind)
    answer = probe(node.ae_title, Address(node.ae_title, host, node.port), (), timeout_s=5.0)
    seen = f"{place}: the node is running (receiver: process {node_process})"
    if answer.echoed:
        return Finding("port", Verdict.GOOD, f"{seen} and answers C-ECHO")
    if "rejected" in answer.failure:
        return Finding("port", Verdict.GOOD, f"{seen} and takes associations from listed callers only")
    advice = "Was node.port changed since it was started? Restart the node; see its log."
    return Finding("port", Verdict.FAULT, f"{seen}, but does not answer there: {answer.failure}", advice)


def _data_folder(configuration: Configuration) -> Finding:
    folder = configuration.settings.node.data_folder
    if not folder.exists():
        return Finding("data folder", Verdict.FAULT, f"{folder} does not exist", "Make it: dicomnode init")
    probe_file = folder / f".check-{os.getpid()}"
    try:
        with probe_file.open("xb") as stream:
            stream.write(b"0")
            os.fsync(stream.fileno())
    except OSError as error:
        advice = "Give the node's user the right to write there."
        return Finding("data folder", Verdict.FAULT, f"{folder}: {error.strerror}", advice)
    finally:
        probe_file.unlink(missing_ok=True)
    return Finding("data folder", Verdict.GOOD, f"{folder} can be written")


def _free_space(configuration: Configuration) -> Finding:
    folder = _nearest_existing(configuration.settings.node.data_folder)
    free, least = shutil.disk_usage(folder).free, configuration.settings.receiver.minimum_free_bytes
    seen = f"{free / GIB:.1f} GiB free, refused below {least / GIB:.1f} GiB"
    if free < least:
        return Finding("free space", Verdict.FAULT, seen, "Free some space, or lower receiver.minimum_free_bytes.")
    if free < 2 * least:
        return Finding("free space", Verdict.WARNING, seen, "Free some space soon.")
    return Finding("free space", Verdict.GOOD, seen)


def _nearest_existing(folder: Path) -> Path:
    return folder if folder.exists() else _nearest_existing(folder.parent)


def _database(configuration: Configuration) -> Finding:
    from dicomnode import bootstrap

    ledger = bootstrap.open_ledger(configuration)
    number = len(ledger.jobs(limit=1))
    seen = "reachable, tables are of this version" + ("" if number else ", no radiographs yet")
    return Finding("database", Verdict.GOOD, seen)


def _model(configuration: Configuration) -> Finding:
    from dicomnode.bootstrap import Composition

    composition = Composition(configuration)
    model = composition.model
    seen = f"{model.name} {model.version}, sha256 {model.digest[:12]} matches, runs on {composition.predictor.device}"
    return Finding("model", Verdict.GOOD, seen)


def _overlay_font(configuration: Configuration) -> Finding:
    """The overlay can be written in the configured language, with the configured sentence."""
    from dicomnode.dicom.overlay.style import font_family, needs_japanese_font

    chosen = configuration.settings.report
    japanese = needs_japanese_font(chosen.language, chosen.limitation)
    family = font_family("ja" if japanese else chosen.language)
    if family is not None:
        return Finding("overlay font", Verdict.GOOD, family)
    seen = "no Japanese font is installed: overlays are in English, with the package's limitation sentence where yours is Japanese"
    return Finding("overlay font", Verdict.WARNING, seen, "Install one, e.g. the Debian package fonts-noto-cjk.")


def _entities(configuration: Configuration) -> Iterator[Finding]:
    from dicomnode import bootstrap

    try:
        listed = bootstrap.open_peers(configuration).all()
    except (DicomNodeError, OSError) as error:
        yield Finding("AE titles", Verdict.FAULT, str(error))
        return
    if not any(ae.may_send for ae in listed) and not configuration.settings.receiver.allow_unlisted_callers:
        advice = "dicomnode ae add AE_TITLE --may-send"
        yield Finding("senders", Verdict.WARNING, "no AE may send to us: every association is refused", advice)
    destinations = [ae for ae in listed if ae.receives_results]
    if not destinations:
        advice = "dicomnode ae add AE_TITLE --receives-results --host HOST --port PORT"
        yield Finding("destinations", Verdict.WARNING, "none: results wait in the node", advice)
    for ae in destinations:
        yield examine_destination(configuration, ae)
