"""Pairs for training: phantoms are projected once and kept; radiographs are simulated from them anew in each epoch.

A folder of pairs holds shards of a fixed number of subjects: `NNNN_<array>.npy` arrays that are read through memory maps, and
`NNNN.jsonl` with one line of figures per hip, written last: a shard with it is complete. Hip h belongs to subject h // 2
(even: right, odd: left).

`python -m training.pairs --count N --seed S --output DIR --workers W`, with `--anatomy FOLDER` for bones of reference anatomy.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomnode.errors import ConfigurationError
from dicomnode.inference.frame import LOCATOR_SIZE
from training.anatomy.atlas import Source, atlas_subject
from training.anatomy.phantom import Phantom, make_phantom
from training.anatomy.population import broken, draw_subject
from training.config import BESIDE, AtlasConfiguration, FractureConfiguration, PairsConfiguration, RunConfiguration
from training.targets import SHAPE, SubjectTarget, make_targets

Configuration = PairsConfiguration | AtlasConfiguration | FractureConfiguration

SUBJECTS_PER_SHARD = 25
VERSION = 1
"""Of the phantom and of the storage; folders of different versions are not mixed."""
ATLAS_SOURCE = Source.SHAPE_MODEL
"""What is learned from; the other sources of reference anatomy stay unseen, so that they show what new anatomy does."""

_ARRAYS: dict[str, tuple[tuple[int, ...], type]] = {
    "materials": ((2, 4, *SHAPE), np.float16),
    "targets": ((2, 3, *SHAPE), np.float16),
    "labels": ((2, *SHAPE), np.uint8),
    "overview": ((4, LOCATOR_SIZE, LOCATOR_SIZE), np.float16),
}
"""Array to its shape per subject and its type."""


@dataclass(frozen=True)
class HipPair:
    """One stored hip, see `training.targets.HipTarget`."""

    materials: NDArray[np.float16]
    targets: NDArray[np.float16]
    labels: NDArray[np.uint8]
    anteroposterior: bool
    """False for a view that must be refused."""
    figures: dict[str, Any]


@dataclass(frozen=True)
class OverviewPair:
    """One stored radiograph, coarse, see `training.targets.OverviewTarget`."""

    materials: NDArray[np.float16]
    heads_px: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Pairs:
    """The subjects of a folder, numbered from 0; arrays are memory maps."""

    folder: Path
    table: tuple[dict[str, Any], ...]
    """Figures, one entry per hip, in the order of the hips."""

    @property
    def count(self) -> int:
        """Number of subjects."""
        return len(self.table) // 2

    def hips_of(self, subjects: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the hips of some subjects."""
        return np.stack([2 * subjects, 2 * subjects + 1], axis=1).ravel()

    def hip(self, number: int) -> HipPair:
        """Return one hip."""
        subject, side = divmod(number, 2)
        figures = self.table[number]
        return HipPair(
            self._array("materials", subject)[side],
            self._array("targets", subject)[side],
            self._array("labels", subject)[side],
            not figures["is_frog_leg"],
            figures,
        )

    def overview(self, subject: int) -> OverviewPair:
        """Return one radiograph."""
        heads = self.table[2 * subject]["heads_px"]
        return OverviewPair(self._array("overview", subject), {side: (x, y) for side, (x, y) in heads.items()})

    def _array(self, name: str, subject: int) -> NDArray[Any]:
        shard, place = divmod(subject, SUBJECTS_PER_SHARD)
        array: NDArray[Any] = _mapped(_array_path(self.folder, shard, name))[place]
        return array


@lru_cache(maxsize=4096)
def _mapped(path: Path) -> NDArray[Any]:
    mapped: NDArray[Any] = np.load(path, mmap_mode="r")
    return mapped


def make_pairs(
    configuration: Configuration,
    folder: Path,
    progress: Callable[[int], None] = lambda _: None,
    *,
    workers: int = 1,
    anatomy: Path | None = None,
) -> None:
    """Make the pairs that are not there yet; an interrupted run goes on with the next shard.

    Args:
        configuration: how many, and from which seed; of `FractureConfiguration` every hip is broken, see `population.broken`.
        progress: called with the number of subjects that were just finished (or found).
        anatomy: folder of reference anatomy, see `training.anatomy.atlas`: the bones are then drawn from its shape model.

    Raises:
        ValueError: the folder holds pairs of another seed, version or anatomy.
        UnusableAtlas: the folder of reference anatomy lacks a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, configuration, anatomy)
    missing: list[tuple[int, int]] = []
    for shard in range(-(-configuration.count // SUBJECTS_PER_SHARD)):
        size = min(SUBJECTS_PER_SHARD, configuration.count - shard * SUBJECTS_PER_SHARD)
        if _subjects_in(folder, shard) >= size:
            progress(size)
        else:
            missing.append((shard, size))
    if workers <= 1:
        for shard, size in missing:
            _make_shard(folder, configuration, shard, size, anatomy)
            progress(size)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(_make_shard, folder, configuration, shard, size, anatomy): size for shard, size in missing}
        for job in as_completed(jobs):
            job.result()
            progress(jobs[job])


def load_pairs(folder: Path) -> Pairs:
    """Open a folder of pairs.

    Raises:
        FileNotFoundError: the folder holds no complete shard.
    """
    table: list[dict[str, Any]] = []
    shard = 0
    while _table_path(folder, shard).exists():
        if len(table) != 2 * shard * SUBJECTS_PER_SHARD:
            break  # a short shard is the last one
        lines = _table_path(folder, shard).read_text(encoding="utf-8").splitlines()
        table += [json.loads(line) for line in lines]
        shard += 1
    if not table:
        raise FileNotFoundError(f"no pairs in {folder}: make them with python -m training.pairs --output {folder}")
    return Pairs(folder, tuple(table))


def load_beside(folder: Path, run: RunConfiguration) -> dict[str, Pairs]:
    """Open the persons of a run beside its phantoms, by the name of their table: those that it asks for and that were made.

    Raises:
        ConfigurationError: a folder holds fewer than the run asks for.
    """
    beside: dict[str, Pairs] = {}
    for name in BESIDE:
        configuration = getattr(run, name)
        if configuration is None or not (folder / name / "pairs.json").exists():
            continue
        pairs = load_pairs(folder / name)
        if pairs.count < configuration.count:
            raise ConfigurationError(
                f"{folder / name} holds {pairs.count} of {configuration.count} persons; run `python -m training pairs` again,"
                " with --anatomy for the atlas"
            )
        beside[name] = replace(pairs, table=pairs.table[: 2 * configuration.count])
    return beside


def _claim(folder: Path, configuration: Configuration, anatomy: Path | None) -> None:
    path = folder / "pairs.json"
    mine: dict[str, Any] = {"seed": configuration.seed, "version": VERSION, "subjects_per_shard": SUBJECTS_PER_SHARD}
    if anatomy is not None:
        mine["bones"] = str(ATLAS_SOURCE)
    if isinstance(configuration, FractureConfiguration):
        mine["hips"] = "broken"
    if not path.exists():
        path.write_text(json.dumps(mine), encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != mine:
        raise ValueError(f"{folder} holds pairs of {found}, wanted are {mine}: choose another folder")


def _array_path(folder: Path, shard: int, name: str) -> Path:
    return folder / f"{shard:04d}_{name}.npy"


def _table_path(folder: Path, shard: int) -> Path:
    return folder / f"{shard:04d}.jsonl"


def _subjects_in(folder: Path, shard: int) -> int:
    path = _table_path(folder, shard)
    return len(path.read_text(encoding="utf-8").splitlines()) // 2 if path.exists() else 0


def _draw(configuration: Configuration, number: int, anatomy: Path | None) -> Phantom:
    if anatomy is not None:
        return atlas_subject(anatomy, configuration.seed, number, ATLAS_SOURCE)
    subject = draw_subject(configuration.seed, number)
    return make_phantom(broken(subject) if isinstance(configuration, FractureConfiguration) else subject)


def _make_shard(folder: Path, configuration: Configuration, shard: int, size: int, anatomy: Path | None) -> None:
    """Write the arrays under temporary names, then rename them, the table last."""
    arrays = {
        name: np.lib.format.open_memmap(_part(_array_path(folder, shard, name)), "w+", dtype, (size, *shape))
        for name, (shape, dtype) in _ARRAYS.items()
    }
    lines: list[str] = []
    for place in range(size):
        target = make_targets(_draw(configuration, shard * SUBJECTS_PER_SHARD + place, anatomy))
        _store(target, arrays, place)
        lines += [json.dumps({**hip.figures, "heads_px": target.overview.heads_px}) for hip in target.hips]
    for name, array in arrays.items():
        array.flush()
        _part(_array_path(folder, shard, name)).rename(_array_path(folder, shard, name))
    table = _table_path(folder, shard)
    _part(table).write_text("\n".join(lines) + "\n", encoding="utf-8")
    _part(table).rename(table)


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def _store(target: SubjectTarget, arrays: Mapping[str, NDArray[Any]], place: int) -> None:
    for side, hip in enumerate(target.hips):
        arrays["materials"][place, side] = hip.materials
        arrays["targets"][place, side] = hip.targets
        arrays["labels"][place, side] = hip.labels
    arrays["overview"][place] = target.overview.materials


def main() -> None:
    """Make pairs from the command line."""
    from tqdm import tqdm

    parser = argparse.ArgumentParser(description="Make pairs of projected phantoms.")
    parser.add_argument("--count", type=int, required=True, help="number of subjects; each gives two hips")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--anatomy", type=Path, help="folder of reference anatomy; its shape model gives the bones")
    arguments = parser.parse_args()
    configuration = PairsConfiguration(count=arguments.count, seed=arguments.seed)
    with tqdm(total=arguments.count, unit="subject") as bar:
        make_pairs(configuration, arguments.output, bar.update, workers=arguments.workers, anatomy=arguments.anatomy)


if __name__ == "__main__":
    main()
