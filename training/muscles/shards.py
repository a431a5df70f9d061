"""The muscles of a folder of pairs, stored beside it or elsewhere: `NNNN_muscles.npy`, and `NNNN_muscles.jsonl` written last.

The phantoms are drawn again from the seed of the pairs; no file of the pairs is written or read.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomnode.errors import ConfigurationError
from training.anatomy.population import draw_subject
from training.muscles.targets import SHAPE, make_muscle_target
from training.pairs import SUBJECTS_PER_SHARD

VERSION = 1
"""Of the partition and of the storage; folders of different versions are not mixed."""


@dataclass(frozen=True)
class StoredMuscles:
    """One person's muscles, see `training.muscles.targets.MuscleTarget`."""

    maps: NDArray[np.float16]
    figures: dict[str, Any]


def shards_of(subjects: Sequence[int]) -> list[int]:
    """Numbers of the shards that hold some subjects, in order."""
    return sorted({int(subject) // SUBJECTS_PER_SHARD for subject in subjects})


def make_shards(
    seed: int,
    count: int,
    shards: Sequence[int],
    folder: Path,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Make the shards that are not there yet; an interrupted run goes on with the next one.

    Args:
        seed: of the population that the pairs were drawn from.
        count: number of subjects in the pairs; the last shard may be short.
        progress: called with the number of subjects that were just finished (or found).

    Raises:
        ConfigurationError: the folder holds muscles of another seed or version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, seed)
    for shard in shards:
        first = shard * SUBJECTS_PER_SHARD
        size = min(SUBJECTS_PER_SHARD, count - first)
        if _table_path(folder, shard).exists():
            progress(size)
        else:
            _make_shard(seed, range(first, first + size), shard, folder, progress)


def load_muscles(folder: Path, subject: int) -> StoredMuscles:
    """Open the muscles of one subject; the array is a memory map.

    Raises:
        ConfigurationError: its shard was not made.
    """
    shard, place = divmod(subject, SUBJECTS_PER_SHARD)
    if not _table_path(folder, shard).exists():
        raise ConfigurationError(
            f"{folder} has no muscles of phantom {subject} (shard {shard:04d}); run `python -m training muscles pairs`"
        )
    array, table = _opened(folder, shard)
    return StoredMuscles(array[place], table[place])


@lru_cache(maxsize=256)
def _opened(folder: Path, shard: int) -> tuple[NDArray[np.float16], tuple[dict[str, Any], ...]]:
    lines = _table_path(folder, shard).read_text(encoding="utf-8").splitlines()
    return np.load(_array_path(folder, shard), mmap_mode="r"), tuple(json.loads(line) for line in lines)


def _claim(folder: Path, seed: int) -> None:
    path, mine = folder / "muscles.json", {"seed": seed, "version": VERSION, "subjects_per_shard": SUBJECTS_PER_SHARD}
    if not path.exists():
        path.write_text(json.dumps(mine), encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != mine:
        raise ConfigurationError(f"{folder} holds muscles of {found}, wanted are {mine}: choose another folder")


def _make_shard(
    seed: int, subjects: Sequence[int], shard: int, folder: Path, progress: Callable[[int], object]
) -> None:
    """Write under temporary names, then rename, the table last."""
    array, table = _array_path(folder, shard), _table_path(folder, shard)
    maps = np.lib.format.open_memmap(_part(array), "w+", np.float16, (len(subjects), *SHAPE))
    lines = []
    for place, subject in enumerate(subjects):
        target = make_muscle_target(draw_subject(seed, subject))
        maps[place] = target.maps
        lines.append(json.dumps(target.figures))
        progress(1)
    maps.flush()
    _part(array).rename(array)
    _part(table).write_text("\n".join(lines) + "\n", encoding="utf-8")
    _part(table).rename(table)


def _array_path(folder: Path, shard: int) -> Path:
    return folder / f"{shard:04d}_muscles.npy"


def _table_path(folder: Path, shard: int) -> Path:
    return folder / f"{shard:04d}_muscles.jsonl"


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.part")
