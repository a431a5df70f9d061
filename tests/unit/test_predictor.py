"""What the predictor makes of several looks at one hip."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dicomnode.domain.measurement import Region
from dicomnode.domain.radiograph import UNSTATED, Technique
from dicomnode.inference.bundle import load_bundle
from dicomnode.inference.canonical import Method
from dicomnode.inference.channels import CANONICAL, REGIONS
from dicomnode.inference.frame import COLUMNS, ROWS, FramedHip, cut
from dicomnode.inference.network import Regressor
from dicomnode.inference.predictor import VIEWS, Predictor
from dicomnode.inference.technique import CORRECTED, technique
from tests.tiny_bundle import write_tiny_bundle

PICTURE = np.random.default_rng(0).random((ROWS, COLUMNS), np.float32)


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    return Predictor(load_bundle(write_tiny_bundle(tmp_path / "bundle")), "cpu", threads=1)


def test_figures_and_verdicts_are_the_mean_of_the_looks_and_maps_are_those_of_the_first(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    def run(
        network: Any, pictures: NDArray[np.float32], factors: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], ...]:
        number = np.arange(len(pictures), dtype=np.float32)
        canonical = np.tile(number[:, None, None, None], (1, 2, len(REGIONS), len(CANONICAL)))
        if isinstance(network, Regressor):
            return (canonical + 1,)
        told.extend(factors)
        channels = np.tile(1 + number[:, None, None, None], (1, 12, ROWS, COLUMNS))
        return channels, np.stack([number, -number, 2 * number], 1), canonical

    monkeypatch.setattr(predictor, "_run", run)
    seen = predictor.read(FramedHip(PICTURE, np.eye(3), technique=Technique(70.0)))
    mean = (len(VIEWS) - 1) / 2
    alone = {method: figures[Region.TOTAL_HIP]["areal_bmd_g_cm2"].value for method, figures in seen.apart.items()}
    assert alone == pytest.approx({Method.DECOMPOSITION: np.exp(mean), Method.REGRESSION: np.exp(mean + 1)})
    assert seen.canonical[Region.TOTAL_HIP]["areal_bmd_g_cm2"].value == pytest.approx(np.exp(mean + 0.5))
    assert seen.anteroposterior_hip == pytest.approx(1 / (1 + np.exp(-mean)))
    assert seen.implant == pytest.approx(1 - seen.anteroposterior_hip, abs=1e-6)
    assert seen.fracture == pytest.approx(1 / (1 + np.exp(-2 * mean)))
    assert (seen.density_g_cm2 == 1).all()
    np.testing.assert_array_equal(told, [technique(70.0)] * len(VIEWS))


def test_what_the_header_states_of_filter_and_detector_shifts_each_method_s_figures(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(
        network: Any, pictures: NDArray[np.float32], factors: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], ...]:
        canonical = np.zeros((len(pictures), 2, len(REGIONS), len(CANONICAL)), np.float32)
        if isinstance(network, Regressor):
            return (canonical,)
        return (
            np.zeros((len(pictures), 12, ROWS, COLUMNS), np.float32),
            np.zeros((len(pictures), 3), np.float32),
            canonical,
        )

    monkeypatch.setattr(predictor, "_run", run)
    table = np.zeros((len(CORRECTED), len(REGIONS), len(CANONICAL)), np.float32)
    copper, phosphor = table.copy(), table.copy()
    copper[CORRECTED.index("copper_mm"), 0, 0], phosphor[CORRECTED.index("storage_phosphor"), 0, 0] = 1.5, -0.02
    predictor.bundle = replace(
        predictor.bundle,
        corrections={"decomposer": copper, "regressor": phosphor},
        usual_technique={"copper_mm": 0.1, "storage_phosphor": 0.25},
    )

    def read(stated: Technique) -> list[float]:
        apart = predictor.read(FramedHip(PICTURE, np.eye(3), technique=stated)).apart
        return [float(np.log(apart[method][REGIONS[0]]["areal_bmd_g_cm2"].value)) for method in Method]

    assert read(UNSTATED) == [0, 0]
    assert read(Technique(80.0, copper_mm=0.1)) == pytest.approx([0, 0], abs=1e-6)
    assert read(Technique(80.0, copper_mm=0.2)) == pytest.approx([0.15, 0], abs=1e-6)
    # As much as the most that was trained.
    assert read(Technique(80.0, copper_mm=0.5)) == pytest.approx([0.15, 0], abs=1e-6)
    assert read(Technique(storage_phosphor=True)) == pytest.approx([0, -0.015], abs=1e-6)
    other = predictor.read(FramedHip(PICTURE, np.eye(3), technique=Technique(copper_mm=0.2))).canonical
    assert other[REGIONS[1]]["areal_bmd_g_cm2"].value == pytest.approx(1)  # a region without a correction


def test_the_looks_differ_and_the_first_is_the_frame_itself_and_none_leans_to_a_side() -> None:
    hip = FramedHip(PICTURE, np.eye(3))
    pictures = [cut(hip, *view)[0] for view in VIEWS]
    np.testing.assert_array_equal(pictures[0], PICTURE)
    assert len({picture.tobytes() for picture in pictures}) == len(VIEWS)
    assert sum(degrees for degrees, _ in VIEWS) == 0
    assert np.sum([shift for _, shift in VIEWS], axis=0) == pytest.approx([0, 0])
