"""What a CT of a person is made of, voxel by voxel on one grid: tissues, metal, and which bone a voxel belongs to.

Made from a phantom, moved and bent as a whole, and turned into Hounsfield units in one place (`hu_of_tissues`).
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from training.anatomy.implant import metal_fraction
from training.anatomy.implicit import local_from_voxel
from training.anatomy.pelvis import VOXEL_MM as PELVIS_VOXEL_MM
from training.anatomy.pelvis import PelvisPart, pelvis_parts, pelvis_volumes
from training.anatomy.phantom import NAMES, Phantom, patient_from_pelvis
from training.anatomy.population import Subject, pelvis_rotation
from training.anatomy.volume import Structure
from training.projection.attenuation import mass_attenuation_cm2_g
from training.targets import (
    MATRIX_MINERAL_G_CM3,
    MATRIX_ORGANIC_G_CM3,
    MINERAL_G_CM3,
    RED_MARROW_G_CM3,
    YELLOW_MARROW_G_CM3,
)

VOXEL_MM = 1.5
"""Of the stored tissues: finer than what a network sees, so that the joint's space of a few mm stays open (own choice)."""
LOW_MM, HIGH_MM = (-235.0, -175.0, -225.0), (235.0, 160.0, 290.0)
"""Stored box (x, y, z) around the middle between the femoral heads: above the phantom's cut shafts, within its trunk."""
SATURATED_HU = 3071.0
"""What a 12-bit scanner stores for metal."""
METAL_HU = 8000.0
"""Of a voxel full of metal before saturation: titanium at 70 keV; heavier alloys have more, which saturates all the same."""
VERTEBRA_MM = 34.0
"""From one vertebra to the next: the distance of the two lowest lumbar ones in the phantom."""
STREAK_ANGLES = 60
STREAK_LIMIT_MM = 12.0
"""Path through metal at which a ray is as good as starved; own choice, by eye."""


class Tissue(IntEnum):
    """Channels of `Tissues.shares`."""

    MUSCLE = 0
    ADIPOSE = 1
    """These two in g/cm3, as if there were neither bones nor metal."""
    MINERAL = 2
    """Hydroxyapatite, g/cm3."""
    FEMUR = 3
    HIP = 4
    SACRUM = 5
    """These three as shares of the voxel's volume, with the metal in or on them."""
    OTHER_BONE = 6
    METAL = 7
    """Shares of the voxel's volume."""
    STREAK = 8
    """Artefact of the metal, -1 to 1; its size in HU is the scanner's."""


_FULL = np.array([1.2, 1.2, 1.4, 1, 1, 1, 1, 1, 1], np.float32)
"""Value that is stored as 255 (STREAK: as 127 around 128)."""


@dataclass(frozen=True)
class Tissues:
    """A person on one grid whose axes are the patient's."""

    shares: NDArray[np.float32]
    """(len(Tissue), z, y, x)."""
    patient_from_voxel: NDArray[np.float64]
    """4 x 4: homogeneous voxel index (x, y, z) of a voxel's centre to patient mm (LPS)."""
    muscles: NDArray[np.uint8] | None = None
    """(z, y, x) `Muscle` plus 1, 0 elsewhere, on a coarser grid: `training.segmentation.muscles.coarse_grid`."""


def packed(tissues: Tissues) -> NDArray[np.uint8]:
    """Shares as bytes, for storage."""
    stored = np.empty(tissues.shares.shape, np.uint8)
    for channel, share in enumerate(tissues.shares):  # one by one: a person has 24 million voxels
        scaled = 128 + 127 * share if channel == Tissue.STREAK else share * (255 / _FULL[channel])
        stored[channel] = np.rint(np.clip(scaled, 0, 255))
    return stored


def unpacked(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Shares from bytes."""
    shares = np.empty(stored.shape, np.float32)
    for channel, share in enumerate(stored):
        np.multiply(share, _FULL[channel] / np.float32(255), out=shares[channel])
    shares[Tissue.STREAK] = (stored[Tissue.STREAK].astype(np.float32) - 128) / 127
    return shares


def phantom_grid(voxel_mm: float = VOXEL_MM) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape (z, y, x) and 4 x 4 patient_from_voxel of every phantom's tissues."""
    size = [round((high - low) / voxel_mm) + 1 for low, high in zip(LOW_MM, HIGH_MM, strict=True)]
    return (size[2], size[1], size[0]), local_from_voxel(np.array(LOW_MM), voxel_mm)


def tissues_of(phantom: Phantom, sacrum: Structure | None = None, voxel_mm: float = VOXEL_MM) -> Tissues:
    """Fill a phantom into the grid, and add what it lacks for a CT: upper vertebrae, ribs, table, streaks of its metal.

    The additions are assumptions by eye. They are there so that a network sees bone that is none of its structures.

    Args:
        sacrum: of a person of the atlas, see `training.anatomy.atlas.sacrum_volume`; a phantom's is known by its place.
    """
    shape, matrix = phantom_grid(voxel_mm)
    random = np.random.default_rng(phantom.subject.seed + 2)
    shares = np.zeros((len(Tissue), *shape), np.float32)
    femoral_grids = {bone.values.shape for name in NAMES.values() for bone in phantom.bone(name)}
    for structure in phantom.structures:
        channel = {"soft": Tissue.MUSCLE, "adipose": Tissue.ADIPOSE, "metal_volume": Tissue.METAL}.get(structure.name)
        if structure.name in (f"{name}_volume" for name in NAMES.values()):
            channel = Tissue.FEMUR
        elif structure.name.endswith("_mineral"):
            channel = Tissue.MINERAL
        if structure.name == "pelvis_volume":
            for channel, alone in _parts(phantom.subject, structure, sacrum):
                add_structure(shares[channel], alone, structure.patient_from_voxel, matrix)
        elif channel is not None:
            add_structure(shares[channel], structure.values, structure.patient_from_voxel, matrix)
        if (
            structure.name == "metal_volume"
        ):  # counts to the bone that bears it; a cup has a grid of its own, a stem its femur's
            bearer = Tissue.FEMUR if structure.values.shape in femoral_grids else Tissue.HIP
            add_structure(shares[bearer], structure.values, structure.patient_from_voxel, matrix)
    if sacrum is not None:
        _add_lumbar(shares, phantom.subject, matrix)
    _add_vertebrae(shares, phantom.subject, matrix)
    _add_ribs(shares, phantom.subject, matrix, random)
    _add_table(shares, random, voxel_mm)
    np.clip(shares[Tissue.FEMUR : Tissue.METAL + 1], 0, 1, out=shares[Tissue.FEMUR : Tissue.METAL + 1])
    shares[Tissue.STREAK] = streaks(shares[Tissue.METAL], random, voxel_mm)
    return Tissues(shares, matrix)


def _parts(subject: Subject, pelvis: Structure, sacrum: Structure | None) -> list[tuple[Tissue, NDArray[np.float32]]]:
    """Which bone of the pelvis fills what share of a voxel, each on the grid of the pelvis."""
    if sacrum is not None:
        sacral = np.minimum(sacrum.values, pelvis.values)
        return [(Tissue.HIP, pelvis.values - sacral), (Tissue.SACRUM, sacral)]
    origin_mm = pelvis_rotation(subject).T @ pelvis.patient_from_voxel[:3, 3]
    parts = pelvis_parts(subject.pelvis, pelvis.values, origin_mm)
    return [
        (channel, np.where(parts == part, pelvis.values, np.float32(0)))
        for channel, part in (
            (Tissue.HIP, PelvisPart.HIP_BONE),
            (Tissue.SACRUM, PelvisPart.SACRUM),
            (Tissue.OTHER_BONE, PelvisPart.LUMBAR),
        )
    ]


def add_structure(
    channel: NDArray[np.float32],
    values: NDArray[np.float32],
    patient_from_structure: NDArray[np.float64],
    patient_from_voxel: NDArray[np.float64],
) -> None:
    """Add a structure, averaged by a Gaussian about as wide as half a voxel, so that thin cortex keeps its mass."""
    spacing_mm = float(np.linalg.norm(patient_from_structure[:3, 0]))
    voxel_mm = float(patient_from_voxel[0, 0])
    if spacing_mm < 0.75 * voxel_mm:
        values = ndimage.gaussian_filter(values, 0.42 * voxel_mm / spacing_mm, mode="constant", truncate=3)
    voxel_from_structure = np.linalg.inv(patient_from_voxel) @ patient_from_structure
    high = np.array(values.shape[::-1]) - 1
    corners = np.array([[*(high * share), 1] for share in np.ndindex(2, 2, 2)]) @ voxel_from_structure.T
    first = np.maximum(np.floor(corners.min(axis=0)[:3]).astype(int), 0)
    last = np.minimum(np.ceil(corners.max(axis=0)[:3]).astype(int) + 1, channel.shape[::-1])
    if (last <= first).any():
        return
    structure_from_voxel = np.linalg.inv(voxel_from_structure)
    box = tuple(slice(a, b) for a, b in zip(first[::-1], last[::-1], strict=True))
    channel[box] += ndimage.affine_transform(
        values,
        structure_from_voxel[:3, :3][::-1, ::-1],
        (structure_from_voxel @ [*first, 1])[:3][::-1],
        channel[box].shape,
        order=1,
    )


def _add_lumbar(shares: NDArray[np.float32], subject: Subject, matrix: NDArray[np.float64]) -> None:
    """Put the phantom's lowest vertebrae, which the pelvis of the atlas lacks, above its sacrum."""
    mineral, volume, origin_mm = pelvis_volumes(subject.pelvis, subject.pelvis_quality, subject.seed)
    is_lumbar = pelvis_parts(subject.pelvis, volume, origin_mm) == PelvisPart.LUMBAR
    place = patient_from_pelvis(subject) @ local_from_voxel(origin_mm, PELVIS_VOXEL_MM)
    free = np.clip(1 - shares[Tissue.FEMUR : Tissue.OTHER_BONE + 1].sum(axis=0), 0, 1)
    for channel, values in ((Tissue.OTHER_BONE, volume), (Tissue.MINERAL, mineral)):
        added = np.zeros_like(free)
        add_structure(added, np.where(is_lumbar, values, np.float32(0)), place, matrix)
        shares[channel] += added * free


def _add_vertebrae(shares: NDArray[np.float32], subject: Subject, matrix: NDArray[np.float64]) -> None:
    """Go on with the spine: the uppermost vertebra of the phantom again and again, up to the top of the grid."""
    voxel_mm = float(matrix[0, 0])
    top_mm = 110.0 * subject.pelvis.height_scale + 64.0
    step = round(VERTEBRA_MM / voxel_mm)
    middle = round((top_mm - matrix[2, 3]) / voxel_mm)
    low = middle - step // 2
    across = slice(None), slice(round((-45 - matrix[0, 3]) / voxel_mm), round((45 - matrix[0, 3]) / voxel_mm))
    source = slice(low, low + step)
    bone = shares[(Tissue.OTHER_BONE, source, *across)].copy()
    mineral = np.where(bone > 0, shares[(Tissue.MINERAL, source, *across)], 0)
    for start in range(low + step, shares.shape[1], step):
        count = min(step, shares.shape[1] - start)
        target = (slice(start, start + count), *across)
        shares[(Tissue.OTHER_BONE, *target)] = bone[:count]
        shares[(Tissue.MINERAL, *target)] = mineral[:count]


def _add_ribs(
    shares: NDArray[np.float32], subject: Subject, matrix: NDArray[np.float64], random: np.random.Generator
) -> None:
    """Arcs within the trunk's wall from 19 cm above the heads on."""
    body = subject.body
    wide = 0.85 * body.half_width_mm - 0.7 * body.fat_mm - 12
    deep = max(body.half_depth_mm - body.fat_mm - 10, 60)
    start_mm = random.uniform(190, 260)
    capsules = []
    for level in np.arange(start_mm, HIGH_MM[2] + 80, 28):
        angles = np.radians(np.linspace(75, random.uniform(-60, -20), 8))
        radius = random.uniform(3.5, 6)
        for side in (-1, 1):
            points = np.stack(
                [
                    side * wide * np.cos(angles),
                    body.centre_depth_mm + deep * np.sin(angles),
                    level - 45 * (math.radians(75) - angles),
                ],
                axis=1,
            )
            capsules += [[*a, radius, *b, radius] for a, b in pairwise(points)]
    shape = shares.shape[1:]
    ribs = metal_fraction(np.array(capsules), (shape[0], shape[1], shape[2]), matrix[:3, 3], float(matrix[0, 0]))
    ribs *= shares[Tissue.OTHER_BONE] == 0
    shares[Tissue.OTHER_BONE] += ribs
    shares[Tissue.MINERAL] += ribs * np.float32(random.uniform(0.2, 0.7))


def _add_table(shares: NDArray[np.float32], random: np.random.Generator, voxel_mm: float) -> None:
    """A curved couch under the lowest skin: a dense shell with foam in it."""
    rows = np.nonzero((shares[Tissue.MUSCLE] + shares[Tissue.ADIPOSE]).max(axis=(0, 2)) > 0.3)[0]
    x = (np.arange(shares.shape[3]) - shares.shape[3] / 2) * voxel_mm
    hollow = random.uniform(0, 60) * (x / 200) ** 2  # its edges stand higher
    top = rows[-1] * voxel_mm + random.uniform(0, 12) - hollow
    y = np.arange(shares.shape[2])[:, None] * voxel_mm
    depth = y - top
    thick = random.uniform(8, 50)
    skin = np.clip(1.2 - np.abs(depth) / 4, 0, 1) + np.clip(1.2 - np.abs(depth - thick) / 4, 0, 1)
    foam = (depth > 0) & (depth < thick)
    couch = (random.uniform(0.3, 1.0) * skin + random.uniform(0, 0.15) * foam) * (np.abs(x) < random.uniform(180, 260))
    empty = np.clip(1 - shares[Tissue.MUSCLE] - shares[Tissue.ADIPOSE], 0, 1)
    shares[Tissue.ADIPOSE] += empty * couch.astype(np.float32)


def streaks(metal: NDArray[np.float32], random: np.random.Generator, voxel_mm: float) -> NDArray[np.float32]:
    """Draw what filtered back-projection makes of rays that metal has starved, slice by slice: (z, y, x), -1 to 1.

    The error of a ray is what its path through metal lacks after saturation, plus noise that grows with the path. Parallel rays,
    every second voxel; a likeness for training, no model of a scanner.
    """
    streak = np.zeros_like(metal)
    levels = np.nonzero(metal.max(axis=(1, 2)) > 0.2)[0]
    if not len(levels):
        return streak
    slab = metal[levels[0] : levels[-1] + 1]
    coarse = torch.nn.functional.avg_pool2d(torch.from_numpy(slab)[None], 2, ceil_mode=True)
    edge = 2 * (max(coarse.shape[-2:]) // 2) + 2
    pad_y, pad_x = edge - coarse.shape[-2], edge - coarse.shape[-1]
    square = torch.nn.functional.pad(coarse, (pad_x // 2, pad_x - pad_x // 2, pad_y // 2, pad_y - pad_y // 2))
    ramp = torch.fft.rfftfreq(2 * edge)
    noise = torch.Generator().manual_seed(int(random.integers(2**31)))
    total = torch.zeros_like(square)
    for angle in np.arange(STREAK_ANGLES) * math.pi / STREAK_ANGLES:
        path_mm = _turned(square, angle).sum(dim=2) * 2 * voxel_mm
        starved = 1 - torch.exp(-path_mm / STREAK_LIMIT_MM)
        error = starved * STREAK_LIMIT_MM - path_mm
        error = error + 0.25 * starved.square() * torch.randn(path_mm.shape, generator=noise) * STREAK_LIMIT_MM
        filtered = torch.fft.irfft(torch.fft.rfft(error, 2 * edge) * ramp, 2 * edge)[..., :edge]
        total += _turned(filtered[:, :, None, :].expand(square.shape).contiguous(), -angle)
    inner = total[:, :, pad_y // 2 : pad_y // 2 + coarse.shape[-2], pad_x // 2 : pad_x // 2 + coarse.shape[-1]]
    fine = torch.nn.functional.interpolate(inner, slab.shape[1:], mode="bilinear").numpy()[0]
    outside = np.abs(fine[slab < 0.05])
    streak[levels[0] : levels[-1] + 1] = np.clip(fine / max(float(np.quantile(outside, 0.999)), 1e-6), -1, 1)
    return streak


def _turned(slices: torch.Tensor, angle: float) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[[c, -s, 0], [s, c, 0]]], dtype=torch.float32)
    size = [int(n) for n in slices.shape]
    return torch.nn.functional.grid_sample(
        slices, torch.nn.functional.affine_grid(matrix, size, align_corners=False), align_corners=False
    )


def read_at(values: NDArray[np.float32], points_voxel: torch.Tensor) -> NDArray[np.float32]:
    """Read a volume of several channels at points, linearly; 0 beyond its grid.

    Args:
        values: (channels, z, y, x).
        points_voxel: (z, y, x, 3) voxel indices (x, y, z) of `values`.

    Returns:
        (channels, z, y, x), the latter three those of the points.
    """
    size = torch.tensor(values.shape[:0:-1], dtype=torch.float32)
    grid = (2 * points_voxel + 1) / size - 1
    found = torch.nn.functional.grid_sample(
        torch.from_numpy(values)[None], grid[None].float(), padding_mode="zeros", align_corners=False
    )
    return found[0].numpy()


def hu_of_tissues(
    shares: NDArray[np.float32], energy_kev: float = 70.0, yellow_marrow: float = 0.7, streak_hu: float = 0.0
) -> NDArray[np.float32]:
    """Hounsfield units of tissues, as at one energy: every material adds its mass times its attenuation.

    Within bone: mineral, the organic matrix around it, and marrow in the rest (`training.targets`). Bones and metal displace the
    soft tissue of their place. Metal saturates.

    Args:
        shares: (len(Tissue), z, y, x).
        yellow_marrow: share of fat in the marrow's volume.
        streak_hu: size of the metal's artefact.

    Returns:
        (z, y, x), from -1000 to `SATURATED_HU`.
    """
    energy = np.array([energy_kev])
    water = mass_attenuation_cm2_g("water", energy)[0]

    def relative(material: str) -> np.float32:
        return np.float32(mass_attenuation_cm2_g(material, energy)[0] / water)

    metal = shares[Tissue.METAL]
    bone = np.clip(shares[Tissue.FEMUR : Tissue.OTHER_BONE + 1].sum(axis=0) - metal, 0, 1)
    mineral = np.minimum(shares[Tissue.MINERAL], np.float32(MATRIX_MINERAL_G_CM3) * bone)
    matrix = mineral / np.float32(MATRIX_MINERAL_G_CM3)
    marrow = bone - matrix
    free = np.clip(1 - bone - metal, 0, 1)
    organic = (matrix - mineral / np.float32(MINERAL_G_CM3)) * np.float32(MATRIX_ORGANIC_G_CM3)
    water_like = (
        relative("muscle") * (free * shares[Tissue.MUSCLE] + organic)
        + relative("adipose_3") * free * shares[Tissue.ADIPOSE]
        + relative("hydroxyapatite") * mineral
        + marrow
        * (
            relative("yellow_marrow") * np.float32(yellow_marrow * YELLOW_MARROW_G_CM3)
            + relative("red_marrow") * np.float32((1 - yellow_marrow) * RED_MARROW_G_CM3)
        )
    )
    hu = 1000 * (water_like - 1) + (METAL_HU + 1000) * metal
    hu += streak_hu * shares[Tissue.STREAK]
    return np.asarray(np.clip(hu, -1000, SATURATED_HU), np.float32)


def label_values(shares: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The network's classes by voxel: 0 nothing, 1 femur, 2 hip bone, 3 sacrum; whatever fills more than half of a voxel."""
    names = (Tissue.FEMUR, Tissue.HIP, Tissue.SACRUM)
    largest = shares[Tissue.FEMUR : Tissue.SACRUM + 1].argmax(axis=0)
    filled = np.max([shares[name] for name in names], axis=0)
    return np.asarray(np.where(filled > 0.5, largest + 1, 0), np.uint8)
