"""People with their muscles, for the network of the muscles: coarser voxels than the bones' people, one more channel.

A phantom's muscles are those of `training.anatomy.muscles`, real ones those of the label map of `training.segmentation.atlas`.
Like the bones' classes they have no side.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.anatomy.implicit import local_from_voxel
from training.anatomy.muscles import Muscle, make_muscles
from training.anatomy.population import Subject
from training.segmentation.atlas import read_map
from training.segmentation.grid import interpolated
from training.segmentation.network import MUSCLE_CLASSES
from training.segmentation.tissues import LOW_MM, Tissue, Tissues, packed, phantom_grid, unpacked
from training.segmentation.tissues import VOXEL_MM as TISSUE_VOXEL_MM

VOXEL_MM = 2 * TISSUE_VOXEL_MM
"""Of the stored people: muscles are large, and phantoms' are told apart on 4 mm."""
GROUPS = {
    "GluteusMaximus": Muscle.GLUTEUS_MAXIMUS,
    "GluteusMedius": Muscle.GLUTEUS_MEDIUS,
    "GluteusMinimus": Muscle.GLUTEUS_MINIMUS,
    "Iliacus": Muscle.ILIOPSOAS,
    "PsoasMajor": Muscle.ILIOPSOAS,
    "AdductorBrevis": Muscle.ADDUCTORS,
    "AdductorLongus": Muscle.ADDUCTORS,
    "AdductorMagnus": Muscle.ADDUCTORS,
    "Gracilis": Muscle.ADDUCTORS,
    "Pectineus": Muscle.ADDUCTORS,
    "RectusFemoris": Muscle.QUADRICEPS,
    "VastusIntermedius": Muscle.QUADRICEPS,
    "VastusLateralis": Muscle.QUADRICEPS,
    "VastusMedialis": Muscle.QUADRICEPS,
    "Sartorius": Muscle.QUADRICEPS,
    "TensorFasciaeLatae": Muscle.QUADRICEPS,
    "BicepsFemorisLong": Muscle.HAMSTRINGS,
    "BicepsFemorisShort": Muscle.HAMSTRINGS,
    "Semimembranosus": Muscle.HAMSTRINGS,
    "Semitendinosus": Muscle.HAMSTRINGS,
}
"""Names of the label map, without their side."""
MISSING = ("BicepsFemorisLong", "BicepsFemorisShort")
"""On the right the label map lacks these: the left ones stand in, mirrored."""


def coarse_grid() -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape (z, y, x) and 4 x 4 patient_from_voxel of the stored people: each voxel is eight of `phantom_grid`."""
    shape = [n // 2 for n in phantom_grid()[0]]
    return (shape[0], shape[1], shape[2]), local_from_voxel(np.array(LOW_MM) + TISSUE_VOXEL_MM / 2, VOXEL_MM)


def with_muscles(tissues: Tissues, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What is stored of a person: (len(Tissue) + 1, z, y, x), packed tissues and then the classes, on `coarse_grid`."""
    shape, matrix = coarse_grid()
    pairs = tissues.shares[:, : 2 * shape[0], : 2 * shape[1], : 2 * shape[2]]
    shares = pairs.reshape(len(Tissue), shape[0], 2, shape[1], 2, shape[2], 2).mean(axis=(2, 4, 6))
    return np.concatenate([packed(Tissues(shares, matrix)), classes[None]])


def apart(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(len(Tissue) + len(Muscle), z, y, x) shares of tissues and of muscles, out of what is stored or a part of it."""
    classes = stored[-1]
    muscles = [(classes == muscle + 1).astype(np.float32) for muscle in Muscle]
    return np.concatenate([unpacked(stored[:-1]), np.stack(muscles)])


def phantom_muscles(subject: Subject) -> NDArray[np.uint8]:
    """(z, y, x) classes of a phantom on `coarse_grid`."""
    found = make_muscles(subject)
    sideless = np.where(found.labels > 0, (found.labels - 1) % len(Muscle) + 1, 0)
    return _on_coarse_grid(sideless, found.patient_from_voxel)


def atlas_muscles(folder: Path) -> NDArray[np.uint8]:
    """(z, y, x) classes of the label map on `coarse_grid`.

    Raises:
        UnusableLabels: no such file, or one of the names is missing.
    """
    atlas = read_map(folder)
    classes = np.zeros(atlas.values.shape, np.uint8)
    for name, number in atlas.numbers.items():
        muscle = GROUPS.get(name.partition("_")[2])
        if muscle is not None:
            classes[atlas.values == number] = muscle + 1
    left = np.isin(atlas.values, [atlas.numbers[f"left_{name}"] for name in MISSING])
    mirror = np.diag([-1.0, 1, 1, 1])
    there = np.linalg.inv(atlas.patient_from_voxel) @ mirror @ atlas.patient_from_voxel
    stand_in = interpolated(left.astype(np.float32), there, left.shape, 0.0) > 0.5
    classes[stand_in & atlas.is_filler] = Muscle.HAMSTRINGS + 1
    return _on_coarse_grid(classes, atlas.patient_from_voxel)


def _on_coarse_grid(classes: NDArray[np.integer], patient_from_voxel: NDArray[np.float64]) -> NDArray[np.uint8]:
    shape, matrix = coarse_grid()
    return likeliest(classes, np.linalg.inv(patient_from_voxel) @ matrix, shape)


def likeliest(
    classes: NDArray[np.integer], source_from_target: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Classes on another grid, (z, y, x): whichever has the largest share there, by linear interpolation of each."""
    best = interpolated((classes == 0).astype(np.float32), source_from_target, shape, 1.0)
    found = np.zeros(shape, np.uint8)
    for value in range(1, MUSCLE_CLASSES):
        share = interpolated((classes == value).astype(np.float32), source_from_target, shape, 0.0)
        is_best = share > best
        found[is_best] = value
        best[is_best] = share[is_best]
    return found
