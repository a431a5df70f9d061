"""CTs of patients with label maps, a hospital's own or a public data set's: what training learns from beside phantoms."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.errors import ConfigurationError
from training.anatomy.ct import CtVolume, read_ct
from training.anatomy.labels import LabelMap, UnusableLabels, names_beside, on_grid, read_labels
from training.case_table import read_lines
from training.segmentation.config import HospitalConfiguration
from training.segmentation.grid import to_grid
from training.segmentation.structures import CLASS_OF, NAMES
from training.segmentation.tissues import SATURATED_HU, VOXEL_MM
from training.split import part_of

AROUND_MM = 70.0
"""What is stored of a CT around its structures: about half the edge of a training cube of the committed configuration."""
LOWEST_HU = -1024.0
_VALUES = {name: value for value, name in NAMES.items()} | {"right_hemipelvis": 3, "left_hemipelvis": 4}


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
    """A label map from elsewhere on the voxels of a CT, with the values of `structures.NAMES`.

    Raises:
        UnusableLabels: unreadable, or none of these structures is in it.
    """
    labels = on_grid(read_labels(path, parts=True), ct)
    theirs = {number: _VALUES[name] for number, name in labels.names.items() if name in _VALUES}
    if not theirs:
        raise UnusableLabels(
            f"{path} has {', '.join(sorted(labels.names.values())) or 'no structure'}; expected {', '.join(NAMES.values())}"
        )
    ours = np.zeros(int(labels.values.max()) + 1, np.uint16)
    for number, value in theirs.items():
        ours[number] = value
    return LabelMap(ours[labels.values], {v: NAMES[v] for v in sorted(theirs.values())}, ct.patient_from_voxel)


def stored_ct(case: LabelledCase) -> NDArray[np.int16]:
    """What training draws cubes from: (2, z, y, x) Hounsfield units and classes, cubic voxels of `VOXEL_MM` around the structures.

    Whatever the label map does not name counts as none of the structures: a map must hold all of those that the CT shows.

    Raises:
        ConfigurationError: a CT or a label map that cannot be used; the message names the case.
    """
    ct, labels = case.read()
    hu, _ = to_grid(ct, VOXEL_MM)
    shares = np.zeros((len(set(CLASS_OF.values())), *hu.shape), np.float32)
    for value in labels.names:
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
