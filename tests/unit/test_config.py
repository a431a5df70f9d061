"""Settings: defaults, file, overrides; every mistake is named with its place."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from dicomnode.clinical.scores import Criteria
from dicomnode.config import (
    LONGEST_LIMITATION,
    SHIPPED_FOLDER,
    ApplicationEntity,
    Device,
    Language,
    NodeSettings,
    Settings,
    ae_title_rule,
    check_entity,
    load_application_entities,
    load_configuration,
)
from dicomnode.errors import ConfigurationError


def write(folder: Path, node: str = "", ae: str | None = None) -> Path:
    (folder / "node.toml").write_text(node, encoding="utf-8")
    if ae is not None:
        (folder / "ae.toml").write_text(ae, encoding="utf-8")
    return folder


def test_without_any_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    configuration = load_configuration()
    assert configuration.settings.node == NodeSettings(data_folder=tmp_path / "dicomnode-data")
    assert configuration.database_url == f"sqlite:///{tmp_path}/dicomnode-data/ledger.sqlite"
    assert configuration.population.name == "nhanes3"
    assert configuration.application_entities.ae == ()


def test_the_shipped_file_holds_the_defaults_but_for_two_lines() -> None:
    shipped = load_configuration(SHIPPED_FOLDER).settings
    assert shipped.node.bind == "0.0.0.0"
    unchanged = dataclasses.replace(shipped, node=NodeSettings())
    assert unchanged == Settings()


def test_the_shipped_file_names_every_key_of_every_section() -> None:
    text = (SHIPPED_FOLDER / "node.toml").read_text(encoding="utf-8")
    uncommented = tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE))
    for section, defaults in vars(Settings()).items():
        assert set(uncommented[section]) == {entry.name for entry in dataclasses.fields(defaults)}


def test_a_file_changes_what_it_names_only(tmp_path: Path) -> None:
    text = '[node]\nport = 104\n[worker]\ndevice = "cpu"\nthreads = 2\n[report]\nlanguage = "ja"\ncriteria = "japan_2012"\n'
    settings = load_configuration(write(tmp_path, text)).settings
    assert (settings.node.port, settings.worker.device, settings.worker.threads) == (104, Device.CPU, 2)
    assert (settings.report.language, settings.report.criteria) == (Language.JAPANESE, Criteria.JAPAN_2012)
    assert settings.node.ae_title == "DICOMNODE"


def test_relative_paths_start_from_the_folder_of_the_file(tmp_path: Path) -> None:
    text = '[node]\ndata_folder = "../data"\n[worker]\nmodel_folder = "site"\n'
    folder = tmp_path / "conf"
    folder.mkdir()
    settings = load_configuration(write(folder, text) / "node.toml").settings
    assert settings.node.data_folder == tmp_path / "data"
    assert settings.worker.model_folder == folder / "site"


def test_relative_paths_of_the_command_line_start_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf, here = tmp_path / "conf", tmp_path / "here"
    conf.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    settings = load_configuration(write(conf), ["node.data_folder=spool", "worker.model_folder=bundle"]).settings
    assert settings.node.data_folder == here / "spool"
    assert settings.worker.model_folder == here / "bundle"


def test_overrides_are_typed_and_the_last_one_wins(tmp_path: Path) -> None:
    settings = load_configuration(
        write(tmp_path, "[node]\nport = 104\n"),
        ["node.port=11113", "node.port=11114", "node.ae_title=BMD", "receiver.allow_unlisted_callers=true"],
    ).settings
    assert (settings.node.port, settings.node.ae_title) == (11114, "BMD")
    assert settings.receiver.allow_unlisted_callers is True


def test_a_text_that_looks_like_a_number_stays_a_text() -> None:
    settings = load_configuration(overrides=["report.institution=2024", "node.ae_title='104'"]).settings
    assert (settings.report.institution, settings.node.ae_title) == ("2024", "104")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[nod]\n", r"node\.toml: nod: unknown key; did you mean 'node'\?"),
        ("[node]\nports = 1\n", r"node\.toml: node\.ports: unknown key; did you mean 'port'\?"),
        ("[node]\nzzz = 1\n", r"node\.zzz: unknown key; known here: ae_title, bind"),
        ("[node]\nport = 0\n", r"node\.port: expected 1 to 65535, found 0"),
        ("[node]\nport = true\n", r"node\.port: expected a whole number, found True"),
        ('[node]\nport = "104"\n', r"node\.port: expected a whole number, found '104'"),
        ('[node]\nae_title = "A\\\\B"\n', r"node\.ae_title: expected an AE title .*, found 'A\\\\B'"),
        ('[worker]\ndevice = "gpu"\n', r"worker\.device: expected one of 'auto', 'cpu', 'cuda', found 'gpu'"),
        ('[report]\nundeclared_character_set = "Shift JIS"\n', r"undeclared_character_set: expected one of ISO_IR 100"),
        ('[report]\nstation_name = "12345678901234567"\n', r"report\.station_name: expected at most 16 characters"),
        ('[report]\nreference = "nhanes"\n', r"report\.reference: unknown population; did you mean 'nhanes3'\?"),
        ("node = 3\n", r"node: expected a table, found 3"),
        ("[node\n", r"node\.toml: is not valid TOML: .*line 1"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_configuration(write(tmp_path, text))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("port=1", r"--set port=1: expected section\.key=value"),
        ("node.port", r"expected section\.key=value"),
        ("nod.port=1", r"--set nod\.port=1: nod: unknown key; did you mean 'node'\?"),
        ("node.prot=1", r"node\.prot: unknown key; did you mean 'port'\?"),
        ("node.port=many", r"--set node\.port=many: node\.port: expected a whole number, found 'many'"),
        ("node.port=70000", r"--set node\.port=70000: node\.port: expected 1 to 65535, found 70000"),
    ],
)
def test_a_mistake_in_an_override_names_the_override(override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_configuration(overrides=[override])


def test_an_absent_file_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="dicomnode init --config"):
        load_configuration(tmp_path)


def test_a_file_that_is_not_utf_8_is_told(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_bytes("# 設定".encode("shift_jis"))
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        load_configuration(tmp_path)


@pytest.mark.parametrize("good", ["A", "STORE_SCP", "1234567890123456", "X RAY"])
def test_ae_titles_of_the_standard_pass(good: str) -> None:
    assert ae_title_rule(good) is None


@pytest.mark.parametrize("bad", ["", " ", " A", "A ", "12345678901234567", "A\\B", "A\nB", "撮影室"])
def test_other_ae_titles_do_not(bad: str) -> None:
    assert ae_title_rule(bad) is not None


def test_application_entities_are_read(tmp_path: Path) -> None:
    ae = """
    [[ae]]
    ae_title = "XRAY1"
    may_send = true
    [[ae]]
    ae_title = "ARCHIVE"
    receives_results = true
    host = "192.0.2.1"
    port = 104
    """
    one, two = load_configuration(write(tmp_path, ae=ae)).application_entities.ae
    assert (one.ae_title, one.may_send, one.receives_results) == ("XRAY1", True, False)
    assert (two.host, two.port) == ("192.0.2.1", 104)


@pytest.mark.parametrize(
    ("ae", "message"),
    [
        ('[[ae]]\nae_title = "A"\n', r"AE 'A' does nothing"),
        ('[[ae]]\nae_title = "A"\nreceives_results = true\n', r"AE 'A' receives results, so it needs host and port"),
        ('[[ae]]\nae_title = "A"\nmay_send = true\n' * 2, r"AE 'A' is listed twice"),
        ('[[ae]]\naet = "A"\n', r"ae\.toml: ae\.1\.aet: unknown key"),
        ("[[ae]]\nmay_send = true\n", r"ae\.1\.ae_title: is missing"),
    ],
)
def test_a_mistake_in_the_ae_titles_is_named(tmp_path: Path, ae: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_application_entities(write(tmp_path, ae=ae))


def test_the_digest_changes_with_whatever_changes_a_result_and_with_nothing_else(tmp_path: Path) -> None:
    digest = load_configuration().digest
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert load_configuration(overrides=["node.port=104", "worker.threads=1"]).digest == digest
    for override in (
        "report.language=ja",
        "report.criteria=japan_2012",
        "report.institution=X",
        "report.reference=japan2012",
    ):
        assert load_configuration(overrides=[override]).digest != digest


def test_a_reference_population_of_the_site_replaces_the_shipped_one_and_changes_the_digest(tmp_path: Path) -> None:
    (tmp_path / "reference").mkdir()
    shipped = (SHIPPED_FOLDER / "reference" / "nhanes3.toml").read_text(encoding="utf-8")
    (tmp_path / "reference" / "nhanes3.toml").write_text(shipped.replace("0.942", "0.952"), encoding="utf-8")
    configuration = load_configuration(write(tmp_path))
    assert configuration.population.young_adult["total_hip"].mean_g_cm2 == 0.952  # type: ignore[index]
    assert configuration.digest != load_configuration().digest


def test_a_limitation_that_the_overlay_cannot_hold_is_refused_with_what_it_can() -> None:
    longest = "x" * LONGEST_LIMITATION
    assert load_configuration(overrides=[f"report.limitation={longest}"]).settings.report.limitation == longest
    with pytest.raises(ConfigurationError, match="at most 600 characters, found 601"):
        load_configuration(overrides=[f"report.limitation={longest}x"])


@pytest.mark.parametrize("address", ["xray1.hospital.example", "192.0.2.07", "192.0.2.0/24", "2001:DB8::1"])
def test_an_address_that_no_caller_could_match_is_refused(address: str) -> None:
    entity = ApplicationEntity("XRAY1", may_send=True, calls_from=address)
    with pytest.raises(ConfigurationError, match="expected an IP address"):
        check_entity(entity, "ae.toml")


@pytest.mark.parametrize("address", ["", "192.0.2.7", "2001:db8::1"])
def test_an_ip_address_to_call_from_is_taken(address: str) -> None:
    check_entity(ApplicationEntity("XRAY1", may_send=True, calls_from=address), "ae.toml")
