"""The composition root: first start, identities, and what is handed to whom."""

import json
import threading
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from dicomnode.bootstrap import PROGRAMS, Composition, executor_id, new_ae, open_peers, prepare, write_configuration
from dicomnode.config import ApplicationEntity, load_configuration
from dicomnode.domain.measurement import Estimate, Region, TrainingData
from dicomnode.domain.radiograph import Patient, Sex
from dicomnode.errors import BundleError, ConfigurationError
from dicomnode.services import sender
from tests.tiny_bundle import write_tiny_bundle


def test_the_executor_keeps_its_name_over_restarts_and_differs_between_nodes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert executor_id(tmp_path / "one") == executor_id(tmp_path / "one")
    assert executor_id(tmp_path / "one") != executor_id(tmp_path / "two")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["executor-id"]


def test_ae_titles_are_imported_once_and_then_left_to_the_administrator(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('[node]\ndata_folder = "data"\n', encoding="utf-8")
    (tmp_path / "ae.toml").write_text(
        '[[ae]]\nae_title = "A"\nmay_send = true\ncalls_from = "192.0.2.1"\ndescription = "Room 1"\n', encoding="utf-8"
    )
    configuration = load_configuration(tmp_path)
    assert prepare(configuration) == 1
    peers = open_peers(configuration)
    (ae,) = peers.all()
    assert (ae.ae_title, ae.may_send, ae.calls_from, ae.description) == ("A", True, "192.0.2.1", "Room 1")
    peers.add(new_ae(ApplicationEntity("B", may_send=True)))
    peers.remove("A")
    assert prepare(configuration) == 0
    assert [ae.ae_title for ae in peers.all()] == ["B"]
    assert prepare(configuration, import_again=True) == 1


def test_a_data_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"node\.data_folder"):
        prepare(load_configuration(overrides=[f"node.data_folder={tmp_path / 'data'}"]))


def test_a_configuration_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "conf").write_text("", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_configuration(tmp_path / "conf")


def test_the_written_configuration_is_valid(tmp_path: Path) -> None:
    assert [path.name for path in write_configuration(tmp_path / "conf" / "node.toml")] == ["node.toml", "ae.toml"]
    assert load_configuration(tmp_path / "conf").settings.node.ae_title == "DICOMNODE"


def test_the_node_has_three_programs() -> None:
    assert list(PROGRAMS) == ["receiver", "worker", "sender"]


def test_the_sender_reads_radiographs_as_they_were_received_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[sender.SenderSettings] = []
    monkeypatch.setattr(sender, "serve", lambda settings, *_: given.append(settings))
    chosen = [f"node.data_folder={tmp_path}", "receiver.maximum_object_bytes=400000000"]
    configuration = load_configuration(overrides=[*chosen, "report.undeclared_character_set=ISO_IR 13"])
    PROGRAMS["sender"](configuration, create_engine("sqlite://"), threading.Event())
    (settings,) = given
    assert settings.limits.max_object_bytes == 400_000_000
    assert settings.undeclared_character_set == "ISO_IR 13"


@pytest.mark.parametrize("trained_on", [TrainingData.SIMULATED, TrainingData.SIMULATED_AND_REAL])
def test_a_model_that_learned_from_simulation_puts_its_proviso_beside_every_score(
    tmp_path: Path, trained_on: TrainingData
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    if trained_on is TrainingData.SIMULATED_AND_REAL:
        document = json.loads((bundle / "model.json").read_text())
        (bundle / "model.json").write_text(json.dumps({**document, "provenance": {"real": {}}}))
    composition = Composition(load_configuration(overrides=[f"worker.model_folder={bundle}"]))
    patient = Patient(Sex.FEMALE, age_years_stated=70.0)
    assessment = composition._assess(Region.TOTAL_HIP, Estimate(0.8), patient)
    assert composition.model.trained_on is trained_on
    assert "DXA scale" in " ".join(assessment.notes)
    assert set(composition._curves(patient)) == {Region.TOTAL_HIP, Region.FEMORAL_NECK}


def test_a_missing_model_is_a_bundle_error(tmp_path: Path) -> None:
    composition = Composition(load_configuration(overrides=[f"worker.model_folder={tmp_path}"]))
    with pytest.raises(BundleError):
        composition.warm_up()
