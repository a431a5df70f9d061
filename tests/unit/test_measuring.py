"""`dicomnode measure`: from files to files, without network, database or configuration."""

import json
import os
from io import StringIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from rich.console import Console

from dicomnode import tables
from dicomnode.bootstrap import Composition
from dicomnode.config import Configuration, load_configuration
from dicomnode.errors import ConfigurationError
from dicomnode.measuring import Outcome, measure_files
from tests.tiny_bundle import write_tiny_bundle
from tests.written_objects import radiograph_dataset, write


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("model") / "bundle")
    return load_configuration(overrides=[f"worker.model_folder={bundle}", "report.institution=Test Hospital"])


def measure(files: list[Path], output: Path, configuration: Configuration) -> list[Outcome]:
    return measure_files(files, output, configuration, Console(quiet=True))


def test_a_radiograph_gives_report_overlay_picture_and_result(tmp_path: Path, configuration: Configuration) -> None:
    source = write(tmp_path / "hip.dcm", radiograph_dataset())
    (outcome,) = measure([source], tmp_path / "out", configuration)
    assert outcome.error == ""
    names = ["hip.png", "hip.result.json", "hip.sc.dcm", "hip.sr.dcm"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    result = json.loads((tmp_path / "out" / "hip.result.json").read_text(encoding="utf-8"))
    assert result["status"] in ("measured", "not_measurable")
    assert result["source_sop_instance_uid"] == pydicom.dcmread(source).SOPInstanceUID
    assert result["model"]["trained_on"] == "simulated"
    assert result["limitation"]
    report = pydicom.dcmread(tmp_path / "out" / "hip.sr.dcm")
    capture = pydicom.dcmread(tmp_path / "out" / "hip.sc.dcm")
    assert (report.Modality, report.InstitutionName, capture.Modality) == ("SR", "Test Hospital", "OT")
    assert np.array_equal(capture.pixel_array, np.asarray(Image.open(tmp_path / "out" / "hip.png")))


def test_measuring_again_gives_the_same_objects(tmp_path: Path, configuration: Configuration) -> None:
    source = write(tmp_path / "hip.dcm", radiograph_dataset())
    measure([source], tmp_path / "one", configuration)
    measure([source], tmp_path / "two", configuration)
    for name in ("hip.sr.dcm", "hip.sc.dcm", "hip.result.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_one_bad_file_does_not_stop_the_rest(tmp_path: Path, configuration: Configuration) -> None:
    good = write(tmp_path / "hip.dcm", radiograph_dataset())
    text = tmp_path / "notes.txt"
    text.write_text("no radiograph", encoding="utf-8")
    outcomes = measure([text, tmp_path / "absent.dcm", good], tmp_path / "out", configuration)
    assert [bool(outcome.error) for outcome in outcomes] == [True, True, False]
    assert "no DICOM" in outcomes[0].error
    assert "No such file" in outcomes[1].error
    assert len(outcomes[2].written) == 4


def test_what_is_no_radiograph_gets_a_report_with_its_reason(tmp_path: Path, configuration: Configuration) -> None:
    mammogram = radiograph_dataset(Modality="MG")
    (outcome,) = measure([write(tmp_path / "mg.dcm", mammogram)], tmp_path / "out", configuration)
    result = json.loads((tmp_path / "out" / "mg.result.json").read_text(encoding="utf-8"))
    assert (result["status"], result["reason"]) == ("not_measurable", "not_a_radiograph")
    assert outcome.error == ""
    assert (tmp_path / "out" / "mg.sr.dcm").exists()


def test_files_of_one_name_do_not_overwrite_each_other(tmp_path: Path, configuration: Configuration) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "IM0001", radiograph_dataset())
    (tmp_path / "a" / ".hidden").write_text("left alone", encoding="utf-8")
    measure([tmp_path / "a", tmp_path / "b"], tmp_path / "out", configuration)
    results = {path.name for path in (tmp_path / "out").glob("*.result.json")}
    assert results == {"IM0001.result.json", "IM0001-2.result.json"}


def test_nothing_to_do_is_wrong_usage(tmp_path: Path, configuration: Configuration) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="no files in"):
        measure([tmp_path / "empty"], tmp_path / "out", configuration)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_cannot_be_made_is_told(tmp_path: Path, configuration: Configuration) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match="cannot be made"):
        measure([tmp_path], tmp_path / "out", configuration)


def test_an_output_that_is_a_file_is_told(tmp_path: Path, configuration: Configuration) -> None:
    source = write(tmp_path / "hip.dcm", radiograph_dataset())
    with pytest.raises(ConfigurationError, match="cannot be made"):
        measure([source], source, configuration)


def test_the_table_names_files_reasons_and_failures(tmp_path: Path, configuration: Configuration) -> None:
    source = write(tmp_path / "hip.dcm", radiograph_dataset(ImagerPixelSpacing=None))
    outcomes = measure([source, tmp_path / "absent.dcm"], tmp_path / "out", configuration)
    screen = StringIO()
    console = Console(width=80, file=screen)
    console.print(tables.outcomes(outcomes))
    shown = screen.getvalue()
    assert "hip.dcm  not measurable" in shown
    assert "unknown scale: the header holds no usable pixel spacing" in shown
    assert "absent.dcm  failed" in shown


def test_names_of_undeclared_characters_are_read_as_the_site_says(tmp_path: Path, configuration: Configuration) -> None:
    source = write(tmp_path / "hip.dcm", radiograph_dataset(PatientName="Doe^Jane"))
    source.write_bytes(source.read_bytes().replace(b"Doe^Jane", "ﾔﾏﾀﾞ^ﾀﾛｳ".encode("shift_jis")))
    model = f"worker.model_folder={configuration.settings.worker.model_folder}"
    site = load_configuration(overrides=[model, "report.undeclared_character_set=ISO_IR 13"])
    measurement = Composition(site).measure(source)
    picture = np.zeros((8, 8, 3), np.uint8)
    for report in Composition(site).encode(source, measurement, picture).values():
        assert report.PatientName == "ﾔﾏﾀﾞ^ﾀﾛｳ"
    elsewhere = Composition(load_configuration(overrides=[model])).encode(source, measurement, picture)
    assert all(report.PatientName != "ﾔﾏﾀﾞ^ﾀﾛｳ" for report in elsewhere.values())


def test_the_identification_is_burnt_in_only_on_demand(tmp_path: Path, configuration: Configuration) -> None:
    source = write(tmp_path / "hip.dcm", radiograph_dataset(PatientName="Doe^Jane", PatientID="4711"))
    plain = Composition(configuration)
    burning = Composition(
        load_configuration(
            overrides=[
                f"worker.model_folder={configuration.settings.worker.model_folder}",
                "report.burn_in_identification=true",
            ]
        )
    )
    measurement = plain.measure(source)
    assert not np.array_equal(plain.draw(source, measurement), burning.draw(source, measurement))
