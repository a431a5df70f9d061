"""CTs of patients with label maps, a hospital's own or a public data set's: what training learns from beside phantoms."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.errors import ConfigurationError
from training.anatomy.ct import CtVolume, read_ct
from training.anatomy.labels import LabelMap, UnusableLabels, names_beside, on_grid, read_labels, structure_name
from training.case_table import read_lines
from training.segmentation.config import HospitalConfiguration
from training.segmentation.grid import to_grid
from training.segmentation.structures import CLASS_OF, MUSCLE_NAMES, NAMES
from training.segmentation.tissues import SATURATED_HU, VOXEL_MM
from training.split import part_of

AROUND_MM = 70.0
"""What is stored of a CT around its structures: about half the edge of a training cube of the committed configuration."""
LOWEST_HU = -1024.0
_VALUES = {name: value for value, name in (NAMES | MUSCLE_NAMES).items()} | {
    "right_hemipelvis": 3,
    "left_hemipelvis": 4,
}


@dataclass(frozen=True)
class LabelledCase:
    """One line of the table."""

    case: str
    patient: str
    ct: Path
    labels: Path

    def read(self) -> tuple[CtVolume, LabelMap]:
        """The CT, and its labels on the same voxels.

        Raises:
            ConfigurationError: one of them cannot be used; the message names the case.
        """
        try:
            ct = read_ct(self.ct)
            return ct, reference_labels(self.labels, ct)
        except ValueError as error:  # UnusableCt, UnusableLabels
            raise ConfigurationError(f"case {self.case}: {error}") from error

    def stamp(self) -> str:
        """Changes when one of the files does: a digest of their names, sizes and times."""
        digest = hashlib.sha256()
        for path in (self.ct, self.labels):
            for file in sorted(path.rglob("*")) if path.is_dir() else [path, names_beside(path)]:
                if file.is_file():
                    digest.update(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns};".encode())
        return digest.hexdigest()[:12]


def read_cases(configuration: HospitalConfiguration) -> dict[str, tuple[LabelledCase, ...]]:
    """The cases of "training" and "test"; no patient is in both.

    The table has the columns `case`, `ct`, `labels`, and where a patient has several cases `patient`, as that of
    `training.hospital.table`. Paths are relative to it.

    Raises:
        ConfigurationError: a table that cannot be used, or nobody in it to learn from.
    """
    table = Path(configuration.table)
    cases: dict[str, list[LabelledCase]] = {"training": [], "test": []}
    for line in read_lines(table, ("ct", "labels")):
        patient = line.patient or line.case
        case = LabelledCase(line.case, patient, table.parent / line.cells["ct"], table.parent / line.cells["labels"])
        cases[part_of(patient, 0.0, configuration.test)].append(case)
    if not cases["training"]:
        raise ConfigurationError(f"{table} has {len(cases['test'])} cases to test on and none to learn from: add cases")
    return {part: tuple(of_part) for part, of_part in cases.items()}


def reference_labels(path: Path, ct: CtVolume) -> LabelMap:
    """A label map from elsewhere on the voxels of a CT, with the values of `structures.NAMES` and `MUSCLE_NAMES`.

    Raises:
        UnusableLabels: unreadable, or none of these structures is in it.
    """
    labels = on_grid(read_labels(path, parts=True), ct)
    known = {number: _VALUES.get(name, _VALUES.get(structure_name(name))) for number, name in labels.names.items()}
    theirs = {number: value for number, value in known.items() if value is not None}
    if not theirs:
        raise UnusableLabels(
            f"{path} has {', '.join(sorted(labels.names.values())) or 'no structure'}; expected {', '.join(NAMES.values())}"
        )
    ours = np.zeros(int(labels.values.max()) + 1, np.uint16)
    for number, value in theirs.items():
        ours[number] = value
    names = NAMES | MUSCLE_NAMES
    return LabelMap(ours[labels.values], {v: names[v] for v in sorted(theirs.values())}, ct.patient_from_voxel)


def stored_ct(case: LabelledCase) -> NDArray[np.int16]:
    """What training draws cubes from: (2, z, y, x) Hounsfield units and classes, cubic voxels of `VOXEL_MM` around the structures.

    Whatever the label map does not name counts as none of the structures: a map must hold all of those that the CT shows.

    Raises:
        ConfigurationError: a CT or a label map that cannot be used; the message names the case.
    """
    ct, labels = case.read()
    hu, _ = to_grid(ct, VOXEL_MM)
    shares = np.zeros((len(set(CLASS_OF.values())), *hu.shape), np.float32)
    for value in labels.names.keys() & CLASS_OF.keys():
        mask = CtVolume((labels.values == value).astype(np.float32), ct.patient_from_voxel)
        shares[CLASS_OF[value] - 1] += to_grid(mask, VOXEL_MM)[0].clip(0)
    classes = np.where(shares.max(axis=0) > 0.5, shares.argmax(axis=0) + 1, 0)
    if not classes.any():
        raise ConfigurationError(f"case {case.case}: its label map has no voxel of {', '.join(NAMES.values())}")
    margin = round(AROUND_MM / VOXEL_MM)
    box = tuple(
        slice(max(part.start - margin, 0), part.stop + margin)
        for part in ndimage.find_objects((classes > 0).astype(np.uint8))[0]
    )
    stored = np.stack([np.rint(hu[box].clip(LOWEST_HU, SATURATED_HU)), classes[box]])
    return np.asarray(stored, np.int16)


def labelled_pieces(
    configuration: HospitalConfiguration, count: int, edge_mm: float, random: np.random.Generator
) -> Iterator[tuple[CtVolume, NDArray[np.uint8]]]:
    """Draw pieces of the CTs that are learned from, on their own voxels, as many of each: the CT and its voxels' classes.

    A piece lies around a voxel of one of the structures, and ends where the CT does.

    Args:
        edge_mm: of a piece, along each of the CT's axes.

    Raises:
        ConfigurationError: a CT or a label map that cannot be used; the message names the case.
    """
    cases = read_cases(configuration)["training"]
    for number, case in enumerate(cases):
        of_case = count * (number + 1) // len(cases) - count * number // len(cases)
        if not of_case:
            continue
        ct, labels = case.read()
        classes = np.zeros(ct.hu.shape, np.uint8)
        for value, label in CLASS_OF.items():
            classes[labels.values == value] = label
        half = np.rint(edge_mm / 2 / np.linalg.norm(ct.patient_from_voxel[:3, :3], axis=0)[::-1]).astype(int)
        for _ in range(of_case):
            places = np.argwhere(classes == random.choice(np.unique(classes[classes > 0])))
            middle = places[random.integers(len(places))]
            first, last = np.maximum(middle - half, 0), np.minimum(middle + half + 1, ct.hu.shape)
            box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
            place = ct.patient_from_voxel.copy()
            place[:3, 3] = (place @ [*first[::-1], 1])[:3]
            yield CtVolume(ct.hu[box], place), classes[box]
