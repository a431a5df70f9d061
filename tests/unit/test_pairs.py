"""Pairs on disk: the same for the same seed, resumable, read through memory maps."""

from pathlib import Path

import numpy as np
import pytest

from training.config import PairsConfiguration
from training.pairs import SUBJECTS_PER_SHARD, load_pairs, make_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs")
    make_pairs(PairsConfiguration(count=2, seed=9), path)
    return path


def test_pairs_can_be_read_back_by_hip_and_by_subject(folder: Path) -> None:
    pairs = load_pairs(folder)
    assert pairs.count == 2
    np.testing.assert_array_equal(pairs.hips_of(np.array([1])), [2, 3])
    hip = pairs.hip(3)
    assert hip.figures["index"] == 1
    assert hip.figures["side"] == "L"
    assert hip.anteroposterior is not hip.figures["is_frog_leg"]
    assert hip.materials.shape[0] == 4
    assert pairs.overview(1).materials.shape == (4, 128, 128)


def test_the_same_seed_gives_the_same_pairs(folder: Path, tmp_path: Path) -> None:
    make_pairs(PairsConfiguration(count=1, seed=9), tmp_path)
    one, other = load_pairs(folder), load_pairs(tmp_path)
    assert one.table[0] == other.table[0]
    np.testing.assert_array_equal(one.hip(0).materials, other.hip(0).materials)
    np.testing.assert_array_equal(one.hip(1).labels, other.hip(1).labels)


def test_a_finished_shard_is_not_made_again(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    seen: list[int] = []
    make_pairs(PairsConfiguration(count=2, seed=9), folder, seen.append)
    assert seen == [2]
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_pairs_of_another_seed_are_not_mixed_in(folder: Path) -> None:
    with pytest.raises(ValueError, match="another folder"):
        make_pairs(PairsConfiguration(count=2, seed=10), folder)


def test_a_shard_without_its_table_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "0000_labels.npy").write_bytes(b"half written")
    with pytest.raises(FileNotFoundError, match=r"training\.pairs"):
        load_pairs(tmp_path)
    assert SUBJECTS_PER_SHARD > 1
