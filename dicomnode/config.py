"""The settings: read once, checked once, frozen, handed down. Nothing below the composition root reads configuration.

Order, later wins: the defaults here, `node.toml`, `--set section.key=value`. The environment is never consulted.
"""

import dataclasses
import hashlib
import ipaddress
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from dicomnode import __version__
from dicomnode.clinical.reference import ReferencePopulation, load_populations
from dicomnode.clinical.scores import Criteria
from dicomnode.errors import ConfigurationError
from dicomnode.records import Place, matching, read_record, read_toml, unknown_key, within

SHIPPED_FOLDER = Path(__file__).resolve().parent / "conf"
"""The configuration that comes with the package; `dicomnode init` copies it."""
NODE_FILE = "node.toml"
AE_FILE = "ae.toml"
LEDGER_FILE = "ledger.sqlite"
MIB = 1024 * 1024


def ae_title_rule(text: str) -> str | None:
    """Say what an AE title must be, None where `text` is one.

    Source: PS3.5 section 6.2, VR AE: 16 characters of the default repertoire without backslash and control characters,
    leading and trailing spaces are not significant, only spaces are no title.
    """
    good = 1 <= len(text) <= 16 and text == text.strip() and all(" " <= c <= "~" and c != "\\" for c in text)
    return None if good else "an AE title (1 to 16 ASCII characters, no backslash, no space at either end)"


def _short_string(text: str) -> str | None:
    """Source: PS3.5 section 6.2, VR SH."""
    return None if len(text) <= 16 and "\\" not in text else "at most 16 characters without backslash"


CHARACTER_SETS = (
    "ISO_IR 100", "ISO_IR 101", "ISO_IR 109", "ISO_IR 110", "ISO_IR 126", "ISO_IR 127", "ISO_IR 138", "ISO_IR 144",
    "ISO_IR 148", "ISO_IR 203", "ISO_IR 13", "ISO_IR 166", "ISO_IR 192", "GB18030", "GBK",
)  # fmt: skip
"""Defined Terms of character sets without code extensions. Source: PS3.3 C.12.1.1.2, tables C.12-2 and C.12-5."""


def _character_set(text: str) -> str | None:
    return None if text in CHARACTER_SETS else f"one of {', '.join(CHARACTER_SETS)}"


LONGEST_LIMITATION = 600
"""Characters of a limitation sentence. Measured: so many of the widest stand whole on the overlay, above the longest provisos."""


def _limitation(text: str) -> str | None:
    return None if len(text) <= LONGEST_LIMITATION else f"at most {LONGEST_LIMITATION} characters, found {len(text)}"


class Device(StrEnum):
    """Where the networks run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Language(StrEnum):
    """Language of reports and overlays."""

    ENGLISH = "en"
    JAPANESE = "ja"


@dataclass(frozen=True)
class NodeSettings:
    """Who we are and where our data lie."""

    ae_title: str = matching(ae_title_rule, default="DICOMNODE")
    bind: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: int = within(1, 65535, default=11112)
    data_folder: Path = Path("dicomnode-data")
    """Spool and database. Relative to the folder of node.toml (without one: to the current folder)."""


@dataclass(frozen=True)
class ReceiverSettings:
    """What the Storage SCP accepts, and when it refuses."""

    require_called_ae_title: bool = True
    allow_unlisted_callers: bool = False
    """True takes images from any calling AE title; only for a network that is trusted as a whole."""
    maximum_pdu_bytes: int = within(16384, 1048576, default=262144)
    maximum_associations: int = within(1, 256, default=16)
    negotiation_timeout_s: float = within(1, 600, default=15.0)
    """Longest wait for the association request after a connection."""
    network_timeout_s: float = within(1, 3600, default=60.0)
    """Longest silence within an association."""
    maximum_object_bytes: int = within(MIB, 4096 * MIB, default=256 * MIB)
    minimum_free_bytes: int = within(0, 1 << 50, default=1024 * MIB)
    """Below this much free space on the spool's disk every object is refused with 0xA700."""


@dataclass(frozen=True)
class WorkerSettings:
    """How radiographs are measured."""

    device: Device = Device.AUTO
    threads: int | None = within(1, 256, default=None)
    """CPU threads of one inference; absent: torch decides."""
    model_folder: Path | None = None
    """Model bundle; absent: the shipped one. Relative to the folder of node.toml."""


@dataclass(frozen=True)
class SenderSettings:
    """How results are delivered."""

    first_delay_s: float = within(0.1, 3600, default=5.0)
    longest_delay_s: float = within(1, 86400, default=900.0)
    maximum_age_hours: float = within(0.1, 24 * 365, default=72.0)
    """After this long without success a delivery waits for a person; it is never deleted."""
    connection_timeout_s: float = within(0.1, 600, default=10.0)
    network_timeout_s: float = within(1, 3600, default=30.0)
    """Longest wait for an answer."""
    maximum_pdu_bytes: int = within(16384, 1048576, default=131072)


@dataclass(frozen=True)
class ReportSettings:
    """What stands in a report. All of it goes into the configuration digest, and so into the UIDs of results."""

    language: Language = Language.ENGLISH
    criteria: Criteria = Criteria.ISCD_2023
    reference: str = "nhanes3"
    """Name of a reference population: a file in reference/ beside node.toml, or one of those shipped."""
    limitation: str = matching(_limitation, default="")
    """The limitation of use that stands in every result; empty: the package's own sentence in the report's language."""
    institution: str = ""
    department: str = ""
    station_name: str = matching(_short_string, default="")
    serial_number: str = ""
    """Of this installation, for the device observer of the report."""
    burn_in_identification: bool = False
    """Whether the overlay shows the patient's name, ID and the study date."""
    undeclared_character_set: str = matching(_character_set, default="ISO_IR 100")
    """Of names with bytes above 127 in objects that declare no Specific Character Set and are no UTF-8."""


@dataclass(frozen=True)
class DatabaseSettings:
    """Where the ledger lives."""

    url: str = ""
    """SQLAlchemy URL; empty: an SQLite file in the data folder."""


@dataclass(frozen=True)
class Settings:
    """Everything that can be set, with the folder that relative paths start from."""

    node: NodeSettings = field(default_factory=NodeSettings)
    receiver: ReceiverSettings = field(default_factory=ReceiverSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    sender: SenderSettings = field(default_factory=SenderSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
    database: DatabaseSettings = field(default_factory=DatabaseSettings)


@dataclass(frozen=True)
class ApplicationEntity:
    """Another AE: one that sends radiographs to us, one that gets our results, or both."""

    ae_title: str = matching(ae_title_rule)
    may_send: bool = False
    calls_from: str = ""
    """IP address that it must call from; empty: any."""
    receives_results: bool = False
    host: str = ""
    port: int | None = within(1, 65535, default=None)
    description: str = ""


@dataclass(frozen=True)
class ApplicationEntities:
    """First AE titles, imported into the ledger; from then on `dicomnode ae` changes them."""

    ae: tuple[ApplicationEntity, ...] = ()


@dataclass(frozen=True)
class Configuration:
    """What the composition root gets: settings, first AE titles, reference populations."""

    settings: Settings
    application_entities: ApplicationEntities
    population: ReferencePopulation
    origin: Path | None
    """Folder of node.toml; None when there is none."""

    @property
    def database_url(self) -> str:
        """URL of the ledger."""
        return self.settings.database.url or f"sqlite:///{self.settings.node.data_folder / LEDGER_FILE}"

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that can change a result, this software's version included; result UIDs derive from it."""
        influential = {
            "software": __version__,
            "report": dataclasses.asdict(self.settings.report),
            "population": _plain(self.population),
        }
        return hashlib.sha256(json.dumps(influential, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def load_configuration(path: Path | None = None, overrides: Sequence[str] = ()) -> Configuration:
    """Read and check the whole configuration.

    Args:
        path: `node.toml`, or the folder that holds it; None: defaults only.
        overrides: `section.key=value`, later wins; values as in TOML, quotes may be left out.

    Raises:
        ConfigurationError: something is unknown, missing or impossible; the message names file and key.
    """
    file = _node_file(path)
    table = read_toml(file) if file else {}
    settings = _read_settings(table, Place(str(file or "defaults")), overrides)
    origin = file.parent if file else None
    return Configuration(
        settings=_anchored(settings, origin or Path.cwd(), overrides),
        application_entities=load_application_entities(origin),
        population=_population(settings.report.reference, origin),
        origin=origin,
    )


def load_application_entities(folder: Path | None) -> ApplicationEntities:
    """Read `ae.toml` beside node.toml; none at all where there is no such file.

    Raises:
        ConfigurationError: an entry is wrong, does nothing, lacks its address, or is listed twice.
    """
    if folder is None or not (folder / AE_FILE).exists():
        return ApplicationEntities()
    file = folder / AE_FILE
    entities = read_record(ApplicationEntities, read_toml(file), Place(str(file)))
    titles = [entity.ae_title for entity in entities.ae]
    for entity in entities.ae:
        check_entity(entity, str(file))
        if titles.count(entity.ae_title) > 1:
            raise ConfigurationError(f"{file}: AE {entity.ae_title!r} is listed twice; keep one entry")
    return entities


def check_entity(entity: ApplicationEntity, origin: str) -> None:
    """Check what the fields of an AE mean together.

    Raises:
        ConfigurationError: the title is none, the address it calls from is no IP address, the AE does nothing, or a destination
            lacks its address.
    """
    expected = ae_title_rule(entity.ae_title)
    if expected is not None:
        raise ConfigurationError(f"{origin}: AE {entity.ae_title!r}: expected {expected}")
    if entity.calls_from and not _is_ip_address(entity.calls_from):
        raise ConfigurationError(
            f"{origin}: AE {entity.ae_title!r}: calls_from {entity.calls_from!r}; expected an IP address in its usual form, "
            "for example 192.0.2.7: host names are not looked up"
        )
    if not (entity.may_send or entity.receives_results):
        raise ConfigurationError(
            f"{origin}: AE {entity.ae_title!r} does nothing; let it send, receive results, or both"
        )
    if entity.receives_results and not (entity.host and entity.port):
        raise ConfigurationError(f"{origin}: AE {entity.ae_title!r} receives results, so it needs host and port")


def _is_ip_address(text: str) -> bool:
    """Tell whether `text` is an IP address as the socket library writes it, with which it is compared."""
    try:
        return str(ipaddress.ip_address(text)) == text
    except ValueError:
        return False


def _node_file(path: Path | None) -> Path | None:
    if path is None:
        return None
    file = path / NODE_FILE if path.is_dir() else path
    if not file.is_file():
        raise ConfigurationError(f"{file}: no such file; write one with: dicomnode init --config {file.parent}")
    return file.resolve()


def _read_settings(table: Mapping[str, Any], place: Place, overrides: Sequence[str]) -> Settings:
    # Checked on its own first, so that a message about the file names the file and one about an override the override.
    from_file = read_record(Settings, table, place)
    if not overrides:
        return from_file
    merged = {section: dict(values) for section, values in table.items()}
    for override in overrides:
        section, key, value = _parse_override(override)
        merged.setdefault(section, {})[key] = value
        read_record(Settings, merged, Place(f"--set {override}"))
    return read_record(Settings, merged, place)


def _parse_override(text: str) -> tuple[str, str, Any]:
    path, equals, raw = text.partition("=")
    section, dot, key = path.strip().partition(".")
    place = Place(f"--set {text}")
    if not (equals and dot and section and key):
        raise ConfigurationError(f"{place}: expected section.key=value, for example --set node.port=11113")
    sections = {entry.name: entry.default_factory for entry in dataclasses.fields(Settings)}
    if section not in sections:
        raise ConfigurationError(unknown_key(place.of(section), section, sections))
    kinds = {entry.name: entry.type for entry in dataclasses.fields(sections[section])}  # type: ignore[arg-type]
    if key not in kinds:
        raise ConfigurationError(unknown_key(place.of(section).of(key), key, kinds))
    return section, key, _toml_value(raw.strip(), is_text=kinds[key] in (str, Path, Path | None))


def _toml_value(raw: str, *, is_text: bool) -> Any:
    """Read a value as TOML; a bare word is a text, so that a shell user need not quote twice."""
    if is_text and raw[:1] not in ("'", '"'):
        return raw
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _anchored(settings: Settings, folder: Path, overrides: Sequence[str]) -> Settings:
    """Make the paths absolute: those of the file from its folder, those of the command line from the current folder."""

    def anchor(section: str, key: str, path: Path) -> Path:
        typed = any(override.split("=", 1)[0].strip() == f"{section}.{key}" for override in overrides)
        return ((Path.cwd() if typed else folder) / path.expanduser()).resolve()

    node = dataclasses.replace(settings.node, data_folder=anchor("node", "data_folder", settings.node.data_folder))
    worker = settings.worker
    if worker.model_folder is not None:
        worker = dataclasses.replace(worker, model_folder=anchor("worker", "model_folder", worker.model_folder))
    return dataclasses.replace(settings, node=node, worker=worker)


def _population(name: str, origin: Path | None) -> ReferencePopulation:
    populations = dict(load_populations(SHIPPED_FOLDER / "reference"))
    if origin is not None and (origin / "reference").is_dir():
        populations |= load_populations(origin / "reference")
    if name not in populations:
        raise ConfigurationError(unknown_key(Place("report.reference"), name, populations).replace("key", "population"))
    return populations[name]


def _plain(value: Any) -> Any:
    """Reduce frozen values to what JSON can hold, in a form that does not depend on their order of definition."""
    if dataclasses.is_dataclass(value):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
