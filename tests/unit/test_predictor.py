"""What the predictor makes of several looks at one hip."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dicomnode.domain.measurement import Region
from dicomnode.inference.bundle import load_bundle
from dicomnode.inference.canonical import Method
from dicomnode.inference.channels import CANONICAL, REGIONS
from dicomnode.inference.frame import COLUMNS, ROWS, FramedHip, cut
from dicomnode.inference.network import Regressor
from dicomnode.inference.predictor import VIEWS, Predictor
from dicomnode.inference.technique import technique
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
    seen = predictor.read(FramedHip(PICTURE, np.eye(3), kilovolt=70.0))
    mean = (len(VIEWS) - 1) / 2
    alone = {method: figures[Region.TOTAL_HIP]["areal_bmd_g_cm2"].value for method, figures in seen.apart.items()}
    assert alone == pytest.approx({Method.DECOMPOSITION: np.exp(mean), Method.REGRESSION: np.exp(mean + 1)})
    assert seen.canonical[Region.TOTAL_HIP]["areal_bmd_g_cm2"].value == pytest.approx(np.exp(mean + 0.5))
    assert seen.anteroposterior_hip == pytest.approx(1 / (1 + np.exp(-mean)))
    assert seen.implant == pytest.approx(1 - seen.anteroposterior_hip)
    assert seen.fracture == pytest.approx(1 / (1 + np.exp(-2 * mean)))
    assert (seen.density_g_cm2 == 1).all()
    np.testing.assert_array_equal(told, [technique(70.0)] * len(VIEWS))


def test_the_looks_differ_and_the_first_is_the_frame_itself_and_none_leans_to_a_side() -> None:
    hip = FramedHip(PICTURE, np.eye(3))
    pictures = [cut(hip, *view)[0] for view in VIEWS]
    np.testing.assert_array_equal(pictures[0], PICTURE)
    assert len({picture.tobytes() for picture in pictures}) == len(VIEWS)
    assert sum(degrees for degrees, _ in VIEWS) == 0
    assert np.sum([shift for _, shift in VIEWS], axis=0) == pytest.approx([0, 0])
