"""Phantoms' tissues on disk, made once; and the examples that training draws from them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dicomnode.errors import ConfigurationError
from training.anatomy.atlas import atlas_subject, sacrum_volume
from training.anatomy.ct import CtVolume
from training.anatomy.phantom import make_phantom
from training.anatomy.population import draw_subject
from training.segmentation.atlas import atlas_tissues
from training.segmentation.config import AtlasConfiguration, SegmentationRun
from training.segmentation.labelled import LabelledCase, read_cases, stored_ct
from training.segmentation.muscles import VOXEL_MM as COARSE_VOXEL_MM
from training.segmentation.muscles import apart, atlas_muscles, coarse_grid, phantom_muscles, with_muscles
from training.segmentation.network import CLASSES
from training.segmentation.scanner import (
    AIR_HU,
    cut_field,
    draw_scanner,
    ordinary_scanner,
    recorded,
    scan,
    smooth_field,
    worsening,
)
from training.segmentation.tissues import VOXEL_MM, Tissue, Tissues, packed, phantom_grid, read_at, tissues_of, unpacked

TISSUES = 3
"""Counted up where `tissues_of` or the atlas changes: people of before are not learned from. 1 had stems in the hip bone, 2
the label map's person 30 mm aside."""
TURN_DEG = 12.0
ORDINARY_SHARE = 0.5
"""Cubes as hospitals scan; the others as `draw_scanner` draws them."""
IN_PLANE_MM, COARSE_MM = (0.6, 1.0), (1.0, 3.0)
"""Voxels of hospitals' scans in the plane, and of others in every direction, where a piece keeps those of its scan."""
STRETCH = 0.10
"""SD of the logarithm of the size, and half of it of each axis apart."""
TRUNK_SHARE, TRUNK_MM = 0.12, (110.0, 270.0)
"""Cubes of the trunk, by their centres above the femoral heads: vertebrae and ribs, which are none of the structures."""
MUSCLES_MM = ((-120.0, -20.0, -130.0), (120.0, 40.0, 230.0))
"""Lowest and highest centre (x, y, z) of a cube for the muscles: from the thigh to the trunk, whose own muscles are no classes."""
LOST_BONE = 0.1
"""Of each bone: chance that the network of the muscles does not get to see it, as where it was not found."""
HIP_SHARE, HIP_MM, HIP_SD_MM = 0.5, (85.0, 10.0, -5.0), (20.0, 20.0, 50.0)
"""Cubes of one hip, where femur and hip bone must be told apart: middle and SD (x, y, z) of their centres on the left."""
BENDS_MM = ((70.0, 5.0), (24.0, 1.6))
"""Lattice and SD of the displacement: the phantom's bones are more alike than people's. Own choice, by eye."""


@dataclass(frozen=True)
class Example:
    """One cube for training."""

    hu: NDArray[np.float32]
    """(z, y, x)."""
    target: NDArray[np.float32]
    """(classes, z, y, x) share of each class in the voxel; they add up to 1."""


@dataclass(frozen=True)
class MuscleExample(Example):
    """One cube for the network of the muscles."""

    bones: NDArray[np.float32]
    """(CLASSES - 1, z, y, x) 1 where the bone is."""


def phantom_file(folder: Path, index: int) -> Path:
    """Where a phantom's packed tissues lie."""
    return folder / f"{index:05d}.npy"


def atlas_file(folder: Path, number: int) -> Path:
    """Where one drawing of the label map's mineral lies."""
    return folder / f"atlas-{number:02d}.npy"


def muscles_file(person: Path) -> Path:
    """Where a stored person lies on coarser voxels, with its muscles (`training.segmentation.muscles`)."""
    return person.with_name(f"{person.stem}-muscles.npy")


def person_file(folder: Path, number: int) -> Path:
    """Where one person of the atlas lies."""
    return folder / f"person-{number:02d}.npy"


def atlas_files(folder: Path, atlas: AtlasConfiguration) -> list[Path]:
    """All of them that a run draws from."""
    drawings = [atlas_file(folder, number) for number in range(atlas.count)]
    return drawings + [person_file(folder, number) for number in range(atlas.persons)]


def ct_files(folder: Path, run: SegmentationRun) -> dict[LabelledCase, Path]:
    """Where the CTs of patients that are learned from lie."""
    if run.hospital is None:
        return {}
    return {case: folder / f"ct-{case.case}-{case.stamp()}.npy" for case in read_cases(run.hospital)["training"]}


def library_size(run: SegmentationRun) -> int:
    """How many files `make_library` makes."""
    patients = 0 if run.hospital is None else len(read_cases(run.hospital)["training"])
    return run.phantoms.count + run.atlas.count + run.atlas.persons + patients


def make_library(run: SegmentationRun, folder: Path, atlas: Path | None, done: Callable[[int], object]) -> None:
    """Make what training draws from and is not there yet: phantoms, atlas, CTs of patients; calls `done(1)` after each.

    Raises:
        ConfigurationError: the folder holds another population or other voxels, the run wants an atlas and there is none, or a CT
            of the hospital's table cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stamp, wanted = folder / "seed.txt", f"{run.phantoms.seed}, voxels of {VOXEL_MM:g} mm, version {TISSUES}"
    if stamp.exists() and stamp.read_text() != wanted:
        raise ConfigurationError(
            f"{folder} holds phantoms of seed {stamp.read_text()}, expected {wanted}: take another folder"
        )
    stamp.write_text(wanted)
    for index in range(run.phantoms.count):
        file, subject = phantom_file(folder, index), draw_subject(run.phantoms.seed, index)
        if not file.exists():
            _store(tissues_of(make_phantom(subject)), file)
        if run.muscles is not None and not muscles_file(file).exists():
            _save(with_muscles(load_tissues(file), phantom_muscles(subject)), muscles_file(file))
        done(1)
    for number, file in enumerate(atlas_files(folder, run.atlas)):
        if not file.exists():
            _store(_from_atlas(_wanted(atlas, run), run, number), file)
        if run.muscles is not None and number < run.atlas.count and not muscles_file(file).exists():
            _save(with_muscles(load_tissues(file), atlas_muscles(_wanted(atlas, run))), muscles_file(file))
        done(1)
    for case, file in ct_files(folder, run).items():
        if not file.exists():
            _save(stored_ct(case), file)
        done(1)


def _wanted(atlas: Path | None, run: SegmentationRun) -> Path:
    if atlas is None:
        raise ConfigurationError(
            f"the run draws on an atlas ({run.atlas.count} drawings, {run.atlas.persons} persons): give its folder as"
            " --atlas, or set atlas.count, atlas.persons and every share of the atlas to 0"
        )
    return atlas


def _from_atlas(atlas: Path, run: SegmentationRun, number: int) -> Tissues:
    if number < run.atlas.count:
        return atlas_tissues(atlas, run.phantoms.seed + number)
    person = atlas_subject(atlas, run.phantoms.seed, number - run.atlas.count)
    return tissues_of(person, sacrum_volume(atlas, person))


def _store(tissues: Tissues, file: Path) -> None:
    _save(packed(tissues), file)


def _save(values: NDArray[Any], file: Path) -> None:
    partial = file.with_suffix(".partial.npy")
    np.save(partial, values)
    partial.replace(file)


def load_tissues(file: Path) -> Tissues:
    """One person, whole, with its muscles where they were made.

    Raises:
        ConfigurationError: it was not made.
    """
    muscles = np.load(muscles_file(file), mmap_mode="r")[-1].copy() if muscles_file(file).exists() else None
    return Tissues(unpacked(_stored(file)), phantom_grid()[1], muscles)


def _stored(file: Path) -> NDArray[Any]:
    if not file.exists():
        raise ConfigurationError(f"{file} does not exist; run `python -m training segmentation train` to make phantoms")
    stored: NDArray[Any] = np.load(file, mmap_mode="r")
    return stored


def draw_example(file: Path, patch: int, voxel_mm: float, random: np.random.Generator) -> Example:
    """Draw a bent, turned, stretched and perhaps mirrored piece of a stored person, in a random scan.

    Mirroring is no mistake: the network's classes have no side (see `training.segmentation.structures`).
    """
    spacing_mm = (voxel_mm, voxel_mm, voxel_mm)
    shares = _piece(file, (patch, patch, patch), spacing_mm, random)
    is_ordinary = random.random() < ORDINARY_SHARE
    scanner = ordinary_scanner(random, voxel_mm) if is_ordinary else draw_scanner(random)
    hu = scan(shares, scanner, spacing_mm, random)
    return Example(*_cut(hu, _target(shares), _field((patch, patch, patch), random)))


def draw_scan(file: Path, edge_mm: float, random: np.random.Generator) -> tuple[CtVolume, NDArray[np.float32]]:
    """Draw such a piece on the voxels of its own scan, not cut.

    Returns:
        The CT, and (CLASSES, z, y, x) the share of each class.
    """
    is_ordinary = random.random() < ORDINARY_SHARE
    in_plane_mm = float(random.uniform(*(IN_PLANE_MM if is_ordinary else COARSE_MM)))
    scanner = ordinary_scanner(random, in_plane_mm) if is_ordinary else draw_scanner(random)
    slice_mm = scanner.voxel_mm[0] if is_ordinary else float(random.uniform(*COARSE_MM))
    spacing_mm = (slice_mm, in_plane_mm, in_plane_mm)
    across, slices = round(edge_mm / in_plane_mm), round(edge_mm / slice_mm)
    shares = _piece(file, (slices, across, across), spacing_mm, random)
    ct = CtVolume(scan(shares, scanner, spacing_mm, random), np.diag([in_plane_mm, in_plane_mm, slice_mm, 1.0]))
    return ct, _target(shares)


def _piece(
    file: Path, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], random: np.random.Generator
) -> NDArray[np.float32]:
    """(len(Tissue), z, y, x) shares of a stored person, read at random; shape and spacing are (z, y, x)."""
    points_mm = _centre_mm(random) + _offsets_mm(shape, spacing_mm, random)
    near, points = _near(_stored(file), (points_mm - phantom_grid()[1][:3, 3]) / VOXEL_MM)
    return read_at(unpacked(near), points)


def draw_ct_example(file: Path, patch: int, voxel_mm: float, random: np.random.Generator) -> Example:
    """Draw such a piece of a stored CT of a patient, around a voxel of one of its structures."""
    stored = _stored(file)
    coarse = stored[1, ::8, ::8, ::8]
    present = np.unique(coarse[coarse > 0])
    places = np.argwhere(coarse == random.choice(present) if len(present) else coarse == 0)
    centre = (8.0 * places[random.integers(len(places))] + random.normal(0, 20 / VOXEL_MM, 3))[::-1]
    shape, spacing_mm = (patch, patch, patch), (voxel_mm, voxel_mm, voxel_mm)
    near, points = _near(stored, centre + _offsets_mm(shape, spacing_mm, random) / VOXEL_MM)
    classes = [(near[1] == number).astype(np.float32) for number in range(1, CLASSES)]
    hu, *bones = read_at(np.stack([near[0] - np.float32(AIR_HU), *classes]), points)
    target = np.stack([1 - np.sum(bones, axis=0), *bones])
    hu = recorded(hu + np.float32(AIR_HU), worsening(random), spacing_mm, random)
    return Example(*_cut(hu, target, _field(shape, random)))


def draw_muscle_example(file: Path, patch: int, voxel_mm: float, random: np.random.Generator) -> MuscleExample:
    """Draw such a piece of a stored person with its muscles; bones displace them."""
    shape, spacing_mm = (patch, patch, patch), (voxel_mm, voxel_mm, voxel_mm)
    points_mm = random.uniform(*MUSCLES_MM) + _offsets_mm(shape, spacing_mm, random)
    near, points = _near(_stored(muscles_file(file)), (points_mm - coarse_grid()[1][:3, 3]) / COARSE_VOXEL_MM)
    read = read_at(apart(near), points)
    shares, muscles = read[: len(Tissue)], read[len(Tissue) :]
    muscles = muscles * (1 - shares[Tissue.FEMUR : Tissue.OTHER_BONE + 1].sum(axis=0)).clip(0, 1)
    target = np.concatenate([1 - muscles.sum(axis=0, keepdims=True), muscles])
    scanner = ordinary_scanner(random, voxel_mm) if random.random() < ORDINARY_SHARE else draw_scanner(random)
    bones = (shares[Tissue.FEMUR : Tissue.SACRUM + 1] > 0.5).astype(np.float32)
    bones[random.random(len(bones)) < LOST_BONE] = 0
    box = _field(shape, random)
    seen = np.stack([_outside(bone, box, 0.0) for bone in bones])
    return MuscleExample(*_cut(scan(shares, scanner, spacing_mm, random), target, box), seen)


def _near(stored: NDArray[Any], points: NDArray[np.float64]) -> tuple[NDArray[Any], torch.Tensor]:
    """The part of a stored volume (channels, z, y, x) that holds points (z, y, x, 3) as voxel indices, and the points in it."""
    size = np.array(stored.shape[:0:-1])
    flat = points.reshape(-1, 3)
    first = np.clip(np.floor(flat.min(axis=0)).astype(int), 0, size - 1)
    last = np.clip(np.ceil(flat.max(axis=0)).astype(int) + 1, first + 1, size)
    near = stored[:, first[2] : last[2], first[1] : last[1], first[0] : last[0]]
    return near, torch.from_numpy((points - first).astype(np.float32))


def _field(size: tuple[int, int, int], random: np.random.Generator) -> tuple[slice, slice, slice]:
    """The field of view, which may end within the cube."""
    return cut_field(size, random, chance=0.2, most=0.35)


def _cut(
    hu: NDArray[np.float32], target: NDArray[np.float32], box: tuple[slice, slice, slice]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Hounsfield units and target, without what lies outside of a field of view."""
    return _outside(hu, box, AIR_HU), np.stack([_outside(t, box, float(k == 0)) for k, t in enumerate(target)])


def _outside(values: NDArray[np.float32], box: tuple[slice, slice, slice], empty: float) -> NDArray[np.float32]:
    cut = np.full_like(values, empty)
    cut[box] = values[box]
    return cut


def _target(shares: NDArray[np.float32]) -> NDArray[np.float32]:
    bones = shares[Tissue.FEMUR : Tissue.SACRUM + 1]
    bones = bones / np.maximum(bones.sum(axis=0), 1)
    target = np.empty((CLASSES, *shares.shape[1:]), np.float32)
    target[0], target[1:] = 1 - bones.sum(axis=0), bones
    return target


def _centre_mm(random: np.random.Generator) -> NDArray[np.float64]:
    """Patient mm of a cube's centre in a phantom."""
    where = random.random()
    centre = random.normal([0, 10, 15], [60, 20, 60])
    if where < TRUNK_SHARE:
        centre[2] = random.uniform(*TRUNK_MM)
    elif where < TRUNK_SHARE + HIP_SHARE:
        centre = random.normal(HIP_MM, HIP_SD_MM) * [random.choice([-1, 1]), 1, 1]
    return np.asarray(centre, np.float64)


def _offsets_mm(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], random: np.random.Generator
) -> NDArray[np.float32]:
    """(z, y, x, 3) mm of a piece's voxels from its centre, along the patient's axes (x, y, z)."""
    turns = np.radians(random.normal(0, TURN_DEG, 3))
    stretch = np.exp(random.normal(0, STRETCH) + random.normal(0, STRETCH / 2, 3))
    mirror = random.choice([-1.0, 1.0])
    ticks = [
        (np.arange(n, dtype=np.float32) - (n - 1) / 2) * np.float32(mm) for n, mm in zip(shape, spacing_mm, strict=True)
    ]
    z, y, x = np.meshgrid(*ticks, indexing="ij")
    points = np.stack([x, y, z], axis=-1)
    for scale_mm, amount_mm in BENDS_MM:
        amount = amount_mm * random.uniform(0, 1.5)
        for axis in range(3):
            points[..., axis] += amount * smooth_field(shape, spacing_mm, scale_mm, random)
    matrix = (_rotation(turns) * stretch) @ np.diag([mirror, 1, 1])
    return np.asarray(points @ matrix.T.astype(np.float32), np.float32)


def _rotation(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    (cx, cy, cz), (sx, sy, sz) = np.cos(turns), np.sin(turns)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)
