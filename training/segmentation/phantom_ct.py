"""A held-out phantom as a CT of its own grid, with the truth beside it; whole or one hip, well scanned or spoilt."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from dicomnode.domain.radiograph import Side
from training.anatomy.ct import CtVolume
from training.anatomy.implant import metal_fraction
from training.anatomy.labels import LabelMap
from training.anatomy.muscles import MOST_BONE, Muscle
from training.anatomy.population import Subject, pelvis_rotation
from training.segmentation.muscles import coarse_grid, likeliest
from training.segmentation.scanner import Scanner, cut_field, draw_scanner, ordinary_scanner, scan
from training.segmentation.structures import FIRST_MUSCLE, MUSCLE_NAMES, NAMES
from training.segmentation.tissues import Tissue, Tissues, label_values, read_at, streaks

Box = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Lowest and highest corner (x, y, z), patient mm."""
PELVIS: Box = ((-215.0, -150.0, -110.0), (215.0, 150.0, 165.0))


@dataclass(frozen=True)
class LabelledCt:
    """A CT and what is true of it, on the same grid."""

    ct: CtVolume
    truth: LabelMap


def hip_box(subject: Subject, side: Side) -> Box:
    """One hip: 19 cm wide, deep and high, a little less than a window of the shipped configuration."""
    x = subject.pelvis.half_width_mm * (1 if side is Side.LEFT else -1)
    return (x - 95, -90.0, -100.0), (x + 95, 100.0, 90.0)


def labelled_ct(
    tissues: Tissues,
    subject: Subject,
    box: Box,
    spacing_mm: tuple[float, float, float],
    scanner: Scanner,
    random: np.random.Generator,
) -> LabelledCt:
    """Scan a phantom within a box.

    Args:
        spacing_mm: (x, y, z).
    """
    low, high = np.array(box[0]), np.array(box[1])
    size = np.maximum(((high - low) / spacing_mm).astype(int), 1)
    matrix = np.diag([*spacing_mm, 1.0])
    matrix[:3, 3] = low
    ticks = [torch.arange(int(n), dtype=torch.float32) for n in size[::-1]]
    z, y, x = torch.meshgrid(*ticks, indexing="ij")
    stored_from_ct = np.linalg.inv(tissues.patient_from_voxel) @ matrix
    points = torch.stack([x, y, z], dim=-1) * torch.from_numpy(stored_from_ct.diagonal()[:3].astype(np.float32))
    points += torch.from_numpy(stored_from_ct[:3, 3].astype(np.float32))
    shares = read_at(tissues.shares, points)
    hu = scan(shares, scanner, (spacing_mm[2], spacing_mm[1], spacing_mm[0]), random)
    bones = label_values(shares)
    if tissues.muscles is None:
        return LabelledCt(CtVolume(hu, matrix), LabelMap(_named(bones, None, subject, matrix), NAMES, matrix))
    coarse_from_ct = np.asarray(np.linalg.inv(coarse_grid()[1]) @ matrix, np.float64)
    muscles = likeliest(tissues.muscles, coarse_from_ct, bones.shape)
    muscles[shares[Tissue.FEMUR : Tissue.OTHER_BONE + 1].sum(axis=0) > MOST_BONE] = 0
    truth = _named(bones, muscles, subject, matrix)
    return LabelledCt(CtVolume(hu, matrix), LabelMap(truth, NAMES | MUSCLE_NAMES, matrix))


def _named(
    bones: NDArray[np.uint8],
    muscles: NDArray[np.uint8] | None,
    subject: Subject,
    patient_from_voxel: NDArray[np.float64],
) -> NDArray[np.uint16]:
    """Sides by the phantom's own midsagittal plane."""
    toward_left = pelvis_rotation(subject)[:, 0] @ patient_from_voxel[:3, :3]
    offset = pelvis_rotation(subject)[:, 0] @ patient_from_voxel[:3, 3]
    z, y, x = np.ogrid[: bones.shape[0], : bones.shape[1], : bones.shape[2]]
    left = toward_left[0] * x + toward_left[1] * y + toward_left[2] * z + offset > 0
    values = np.select([bones == 1, bones == 2, bones == 3], [1 + left, 3 + left, 5], 0)
    if muscles is not None:
        sided = muscles + FIRST_MUSCLE - 1 + len(Muscle) * left
        values = np.where((values == 0) & (muscles > 0), sided, values)
    return np.asarray(values, np.uint16)


@dataclass(frozen=True)
class Spoilt:
    """What went wrong with a scan."""

    tissues: Tissues
    box: Box
    scanner: Scanner


Spoil = Callable[[Spoilt, np.random.Generator], Spoilt]


def _noise(case: Spoilt, random: np.random.Generator) -> Spoilt:
    """Too little dose."""
    return replace(case, scanner=replace(case.scanner, noise_hu=float(random.uniform(80, 700))))


def _metal(case: Spoilt, random: np.random.Generator) -> Spoilt:
    """Rods through the bones, with streaks."""
    shares = case.tissues.shares.copy()
    low, high = np.array(case.box[0]), np.array(case.box[1])
    middle = (low + high) / 2
    rods = []
    for _ in range(int(random.integers(1, 6))):
        start, end = middle + random.normal(0, 35, (2, 3))
        radius = float(random.uniform(4, 16))
        rods.append([*start, radius, *end, radius])
    shape = (shares.shape[1], shares.shape[2], shares.shape[3])
    place = case.tissues.patient_from_voxel
    voxel_mm = float(place[0, 0])
    metal = metal_fraction(np.array(rods), shape, place[:3, 3], voxel_mm)
    shares[Tissue.METAL] = np.maximum(shares[Tissue.METAL], metal)
    shares[Tissue.STREAK] = streaks(shares[Tissue.METAL], random, voxel_mm)
    scanner = replace(case.scanner, streak_hu=float(random.uniform(300, 5000)))
    return replace(case, tissues=replace(case.tissues, shares=shares), scanner=scanner)


def _cut(case: Spoilt, random: np.random.Generator) -> Spoilt:
    """A field that shows pieces of the bones only."""
    low, high = np.array(case.box[0]), np.array(case.box[1])
    parts = cut_field((1000, 1000, 1000), random, chance=0.8, most=0.4)[::-1]
    edges = np.array([[part.start, part.stop] for part in parts]) / 1000
    cut_low, cut_high = low + (high - low) * edges[:, 0], low + (high - low) * edges[:, 1]
    return replace(case, box=(tuple(cut_low.tolist()), tuple(np.maximum(cut_high, cut_low + 30).tolist())))


def _wrong_hu(case: Spoilt, random: np.random.Generator) -> Spoilt:
    """Values that are no Hounsfield units: shifted or squeezed."""
    scanner = replace(
        case.scanner,
        gain=float(random.choice([random.uniform(0.2, 0.8), random.uniform(1.2, 2.5)])),
        offset_hu=float(random.choice([-1, 1]) * random.uniform(0, 700)),
    )
    return replace(case, scanner=scanner)


def _thick(case: Spoilt, random: np.random.Generator) -> Spoilt:
    """Slices, or a patient who moves, that smear everything."""
    smear = random.uniform(2, 12, 3)
    return replace(case, scanner=replace(case.scanner, blur_mm=(float(smear[0]), float(smear[1]), float(smear[2]))))


def _nothing(case: Spoilt, random: np.random.Generator) -> Spoilt:
    return case


SPOILS: dict[str, Spoil] = {
    "clean": _nothing,
    "noise": _noise,
    "metal": _metal,
    "cut": _cut,
    "wrong_hu": _wrong_hu,
    "thick": _thick,
}


def hip_case(tissues: Tissues, subject: Subject, spoil: str, random: np.random.Generator) -> LabelledCt:
    """One hip of a phantom, spoilt in one of the ways of `SPOILS`, by how much is drawn."""
    side = Side.LEFT if random.random() < 0.5 else Side.RIGHT
    case = SPOILS[spoil](Spoilt(tissues, hip_box(subject, side), draw_scanner(random)), random)
    in_plane = float(random.uniform(2, 3))
    spacing_mm = (in_plane, in_plane, float(random.uniform(2, 3)))
    return labelled_ct(case.tissues, subject, case.box, spacing_mm, case.scanner, random)


def pelvis_case(tissues: Tissues, subject: Subject, random: np.random.Generator) -> LabelledCt:
    """Both hips of a phantom as hospitals scan them: voxels of 0.7 to 1 mm in slices of 1 to 3 mm."""
    in_plane_mm = float(random.uniform(0.7, 1.0))
    scanner = ordinary_scanner(random, in_plane_mm)
    spacing_mm = (in_plane_mm, in_plane_mm, scanner.voxel_mm[0])
    return labelled_ct(tissues, subject, PELVIS, spacing_mm, scanner, random)
