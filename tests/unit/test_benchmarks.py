"""The arithmetic and the output of the benchmarks; what they measure is measured by running them."""

import json
from contextlib import nullcontext
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import output, projector, storing
from benchmarks.calibrating import Calibrated
from benchmarks.network import EngineTimes, NetworkTimes
from benchmarks.programs import Peer, ProgramFailed, ProgramMissing, find_program, wait_until
from benchmarks.projector import ProjectorTimes
from benchmarks.reporting import Reporting, Way
from benchmarks.storing import OURS, Contender, Times, ratio
from training.projection.geometry import anteroposterior


def contender(name: str, aim: float | None = None, program: str = "sh") -> Contender:
    return Contender(name, "nothing", program, lambda _: nullcontext(Peer("NOBODY", 1)), aim)


OURSELVES = Times(contender(OURS), (1.0, 4.0, 2.0))
SLOWER = Times(contender("slower", 1.5), (2.0, 8.0, 4.0))
NETWORK = NetworkTimes("tiny 0", 2, 1, False, 0.01, 0.02, 0.03, 0.06)
ENGINES = (EngineTimes("another engine", 2, (2.5, 2.25), (1.5, 1.25), (1.125, 1.0625), 3e-6),)
CALIBRATED = Calibrated("pad askew", (0.02, -0.07), (-0.3, 0.1), (0.4, 0.6), ("the rods were not found",))
REPORTING = Reporting("Orthanc", (Way(0.1, 0.2, 0.3, 0.4, "measured"), Way(0.3, 0.2, 0.3, 0.4, "not_measurable")), 2.5)
PROJECTORS = (
    ProjectorTimes(projector.OURS, (0.1, 0.4), (0.2, 0.4), 0.001, 0.002, None),
    ProjectorTimes("another", (0.2, 1.2), (0.2, 0.8), -0.25, 0.5, 3.0),
)


def test_a_ratio_compares_within_each_round() -> None:
    assert ratio(OURSELVES, SLOWER) == 2.0
    assert ratio(OURSELVES, Times(contender("mixed"), (1.0, 2.0, 8.0))) == 1.0


def test_each_round_has_every_contender_once_and_begins_with_another() -> None:
    contenders = [contender(name) for name in "abc"]
    rounds: list[list[str]] = [[], [], []]
    for number, one in storing._interleaved(contenders, 3):
        rounds[number].append(one.name)
    assert rounds == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]


def test_an_absent_program_is_said_and_left_out() -> None:
    said: list[str] = []
    here = storing.present([contender("a"), contender("b", program="no-such-program")], said.append)
    assert [one.name for one in here] == ["a"]
    assert said == ["b: no-such-program is not installed (Debian package dcmtk)"]
    with pytest.raises(ProgramMissing, match="no-such-program"):
        find_program("no-such-program")


def test_a_way_is_the_sum_of_its_stages() -> None:
    assert REPORTING.alone[0].total == pytest.approx(1.0)
    assert REPORTING.median_s("queue") == pytest.approx(0.2)


def test_waiting_ends_with_a_failure() -> None:
    with pytest.raises(ProgramFailed, match="the sky did not fall within 0 s"):
        wait_until(lambda: False, 0.0, "the sky did not fall")


def test_projectors_take_turns_and_are_judged_by_the_closed_form() -> None:
    exact = np.array([[1.0, 2.0], [3.0, 4.0]])
    beam = anteroposterior(np.zeros(3), 2.0, 1.0, 1.0, (2, 2))
    scene = projector.Scene(
        np.zeros((1, 1, 1), np.float32), np.eye(4), beam, exact, np.array([[0.0, 0.5], [0.5, 0.95]])
    )
    image = np.array([[1.0, 2.2], [3.0, 3.8]], np.float32)  # the last ray all but misses: only its mass counts
    contenders = [
        projector.Contender("here", None, lambda _: lambda: image),
        projector.Contender("absent", "no-such-distribution", lambda _: lambda: image),
    ]
    said: list[str] = []
    (times,) = projector.compare(scene, contenders, 3, lambda _: None, said.append)
    assert said == ["absent: no-such-distribution is not installed (pip install no-such-distribution)"]
    assert len(times.seconds) == 3
    assert times.mass_error == pytest.approx(0.0, abs=1e-7)
    assert times.ray_error == pytest.approx(0.1, rel=1e-5)


def test_tables_say_units_aims_and_outcomes() -> None:
    console = Console(width=160, record=True, file=StringIO())
    for table in (
        output.store_table([OURSELVES, SLOWER], 300.0),
        output.reporting_table(REPORTING),
        output.network_table(NETWORK),
        output.engine_table(ENGINES),
        output.calibration_table([CALIBRATED]),
        output.projector_table(PROJECTORS),
    ):
        console.print(table)
    text = console.export_text()
    for words in (
        "2.00 (1.00-4.00)",
        "150",
        "2.00",
        "1.5",
        "measured, not measurable",
        "Median s",
        "none found",
        "0.070",
        "0.300",
        "0.50",
        "1 failed",
        "2.50",
        "-25.0000",
        "2.50 (2.25)",
        "3.0e-06",
    ):
        assert words in text


@pytest.mark.parametrize(
    "results",
    [
        output.Results(),
        output.Results(300.0, (OURSELVES, SLOWER), REPORTING, NETWORK, ENGINES, (CALIBRATED,), PROJECTORS),
    ],
    ids=["nothing", "everything"],
)
def test_results_are_written_as_json_and_picture(results: output.Results, tmp_path: Path) -> None:
    document, picture = output.write(tmp_path / "new", results)
    content = json.loads(document.read_text(encoding="utf-8"))
    assert [entry["ratio_to_node"] for entry in content["store"]["contenders"]] == [1.0, 2.0][: len(results.store)]
    assert (content["network"] is None) == (results.network is None)
    assert [entry["threads"] for entry in content["engines"]] == [2] * len(results.engines)
    assert [entry["worst_slope_percent"] for entry in content["calibration"]] == [0.07] * len(results.calibration)
    assert picture.read_bytes().startswith(b"\x89PNG")
