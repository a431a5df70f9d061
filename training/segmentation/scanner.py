"""How a CT scanner shows tissues: energy, kernel, slices, noise, contrast media and field of view.

All ranges are own choices: `ordinary_scanner` as hospitals scan a hip, `draw_scanner` far wider, for the network has to find
bones by shape and by contrast, not by a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from training.segmentation.tissues import SATURATED_HU, Tissue, hu_of_tissues

AIR_HU = -1000.0


@dataclass(frozen=True)
class Scanner:
    """One scan of one person."""

    energy_kev: float = 70.0
    yellow_marrow: float = 0.7
    mineral: float = 1.0
    """Factor on the mineral."""
    spongiosa_g_cm3: float = 0.0
    """Mineral added in bone, in patches."""
    muscle: float = 1.0
    """Factor on the muscle's density: contrast in vessels and the like."""
    lumps_hu: float = 0.0
    """SD of what organs, bowel and vessels differ from muscle."""
    contrast_hu: float = 0.0
    """Of the fullest lumps: contrast medium, stones."""
    streak_hu: float = 300.0
    blur_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """SD of a Gaussian along (z, y, x): kernel and slice thickness."""
    voxel_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of the scan's own grid (z, y, x), where that is coarser than the one that it is given on."""
    sharpening: float = 0.0
    """Share of the difference to a blurred copy that is added: edge-enhancing kernels."""
    noise_hu: float = 10.0
    noise_mm: float = 0.0
    """SD of the Gaussian that the noise is smoothed by, without losing its SD."""
    gain: float = 1.0
    offset_hu: float = 0.0


ORDINARY_VOXEL_MM = 0.8
"""In plane: 512 voxels across a field of 41 cm."""


def ordinary_scanner(random: np.random.Generator, in_plane_mm: float) -> Scanner:
    """Draw a scan of a hip as hospitals make it: 120 kV, slices of 1 to 3 mm, soft or bone kernel.

    Args:
        in_plane_mm: of the voxels that it is given on; coarser ones have less noise.
    """
    slice_mm = random.uniform(1.0, 3.0)
    kernel_mm = random.uniform(0.3, 0.7)
    return Scanner(
        energy_kev=float(random.uniform(64, 76)),
        yellow_marrow=float(random.uniform(0.4, 1.0)),
        mineral=float(random.uniform(0.85, 1.15)),
        spongiosa_g_cm3=_maybe(random, 0.3, random.uniform(0, 0.1)),
        muscle=float(random.uniform(0.98, 1.03)),
        lumps_hu=float(random.uniform(0, 40)),
        contrast_hu=_maybe(random, 0.3, random.uniform(50, 300)),
        streak_hu=float(np.exp(random.uniform(np.log(50), np.log(800)))),
        blur_mm=(0.29 * slice_mm, kernel_mm, kernel_mm),  # SD of a box of one slice
        voxel_mm=(slice_mm, 0.0, 0.0),
        sharpening=_maybe(random, 0.3, random.uniform(0, 0.6)),
        noise_hu=float(random.uniform(8, 30)) / max(in_plane_mm / ORDINARY_VOXEL_MM, 1.0),
        noise_mm=_maybe(random, 0.5, random.uniform(0.5, 1)),
        gain=float(random.uniform(0.98, 1.02)),
        offset_hu=float(random.normal(0, 4)),
    )


def _maybe(random: np.random.Generator, chance: float, value: float) -> float:
    return value if random.random() < chance else 0.0


def draw_scanner(random: np.random.Generator) -> Scanner:
    """Draw a scanner and its settings, also such as no hospital has."""
    maybe = partial(_maybe, random)
    kernel_mm = maybe(0.6, random.uniform(0.3, 1.5))
    in_plane_mm = maybe(0.2, random.uniform(2.0, 3.5))
    return Scanner(
        energy_kev=float(random.uniform(58, 82)),
        yellow_marrow=float(random.uniform(0.2, 1.0)),
        mineral=float(random.uniform(0.65, 1.4)),
        spongiosa_g_cm3=maybe(0.6, random.uniform(0, 0.25)),
        muscle=float(random.uniform(0.97, 1.05)),
        lumps_hu=maybe(0.8, random.uniform(0, 60)),
        contrast_hu=maybe(0.5, random.uniform(50, 500)),
        streak_hu=maybe(0.85, float(np.exp(random.uniform(np.log(50), np.log(1500))))),
        blur_mm=(maybe(0.5, random.uniform(0.5, 2.5)), kernel_mm, kernel_mm),
        voxel_mm=(maybe(0.4, random.uniform(2.0, 6.0)), in_plane_mm, in_plane_mm),
        sharpening=maybe(0.4, random.uniform(0, 1.5)),
        noise_hu=float(random.exponential(18)),
        noise_mm=maybe(0.5, random.uniform(1, 3)),
        gain=float(random.uniform(0.94, 1.06)),
        offset_hu=float(random.normal(0, 8)),
    )


def worsening(random: np.random.Generator) -> Scanner:
    """Draw what becomes of a CT that exists: coarser voxels, a softer kernel, noise, other units. Often little or nothing."""
    kernel_mm = _maybe(random, 0.3, random.uniform(0.3, 1.0))
    return Scanner(
        blur_mm=(_maybe(random, 0.3, random.uniform(0.5, 2.0)), kernel_mm, kernel_mm),
        voxel_mm=(_maybe(random, 0.4, random.uniform(2.0, 5.0)), 0.0, 0.0),
        sharpening=_maybe(random, 0.2, random.uniform(0, 0.6)),
        noise_hu=_maybe(random, 0.6, float(random.exponential(12))),
        noise_mm=_maybe(random, 0.5, random.uniform(1, 2)),
        gain=float(random.uniform(0.97, 1.03)),
        offset_hu=float(random.normal(0, 5)),
    )


def scan(
    shares: NDArray[np.float32], scanner: Scanner, spacing_mm: tuple[float, float, float], random: np.random.Generator
) -> NDArray[np.float32]:
    """Hounsfield units of tissues as this scanner shows them.

    Args:
        shares: (len(Tissue), z, y, x), see `training.segmentation.tissues`; left as they are.
        spacing_mm: (z, y, x).

    Returns:
        (z, y, x).
    """
    size = shares.shape[1:]
    shares = shares.copy()
    bone = shares[Tissue.FEMUR : Tissue.OTHER_BONE + 1].sum(axis=0)
    shares[Tissue.MINERAL] *= scanner.mineral
    if scanner.spongiosa_g_cm3:
        filled = np.clip(0.5 + 0.5 * smooth_field(size, spacing_mm, 25.0, random), 0, None)
        shares[Tissue.MINERAL] += scanner.spongiosa_g_cm3 * filled * np.clip(bone - shares[Tissue.METAL], 0, 1)
    shares[Tissue.MUSCLE] *= scanner.muscle
    hu = hu_of_tissues(shares, scanner.energy_kev, scanner.yellow_marrow, scanner.streak_hu)
    if scanner.lumps_hu or scanner.contrast_hu:
        lumps = smooth_field(size, spacing_mm, float(random.uniform(10, 40)), random)
        added = scanner.lumps_hu * lumps + scanner.contrast_hu * np.clip((lumps - 1.3) * 4, 0, 1)
        soft = np.clip(1 - bone - shares[Tissue.METAL], 0, 1) * np.clip(shares[Tissue.MUSCLE] - 0.5, 0, 0.5) * 2
        hu += (added * soft).astype(np.float32)
    return recorded(hu, scanner, spacing_mm, random)


def recorded(
    hu: NDArray[np.float32], scanner: Scanner, spacing_mm: tuple[float, float, float], random: np.random.Generator
) -> NDArray[np.float32]:
    """What a scanner makes of the Hounsfield units that are there: kernel, its own voxels, noise, other units.

    Args:
        hu: (z, y, x).
        spacing_mm: (z, y, x).

    Returns:
        (z, y, x), on the same grid.
    """
    size = hu.shape
    blur_px = tuple(blur / spacing for blur, spacing in zip(scanner.blur_mm, spacing_mm, strict=True))
    if max(blur_px) > 0:
        hu = ndimage.gaussian_filter(hu, blur_px, truncate=2.5)
    # Sharpening and noise belong to the scan's own voxels, which are then read on the grid that was asked for.
    own = [
        max(round(n * mm / max(wide, mm)), 1) for n, mm, wide in zip(size, spacing_mm, scanner.voxel_mm, strict=True)
    ]
    own_mm = [n * mm / m for n, mm, m in zip(size, spacing_mm, own, strict=True)]
    hu = _interpolated(hu, own, mode="area")
    if scanner.sharpening:
        hu += scanner.sharpening * (hu - ndimage.gaussian_filter(hu, 1.0, truncate=2.0))
    noise = random.standard_normal(own, np.float32)
    if scanner.noise_mm:
        noise = ndimage.gaussian_filter(noise, [scanner.noise_mm / mm for mm in own_mm], truncate=2.5)
        noise /= noise.std()
    hu += np.float32(scanner.noise_hu) * noise
    hu = (hu - AIR_HU) * scanner.gain + AIR_HU + scanner.offset_hu
    return _interpolated(np.clip(hu, -1024, SATURATED_HU), size, mode="trilinear")


def _interpolated(values: NDArray[np.float32], size: Sequence[int], mode: str) -> NDArray[np.float32]:
    """The same box on another number of voxels (z, y, x)."""
    if values.shape == tuple(size):
        return values
    found: Any = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], tuple(size), mode=mode)
    return np.asarray(found[0, 0].numpy(), np.float32)


def smooth_field(
    size: tuple[int, ...], spacing_mm: tuple[float, float, float], scale_mm: float, random: np.random.Generator
) -> NDArray[np.float32]:
    """Normal noise on a lattice of `scale_mm`, interpolated to (z, y, x); its SD is about 1 before interpolation."""
    lattice = [max(int(np.ceil(n * spacing / scale_mm)) + 1, 2) for n, spacing in zip(size, spacing_mm, strict=True)]
    coarse: Any = torch.from_numpy(random.standard_normal((1, 1, *lattice), np.float32))
    fine = torch.nn.functional.interpolate(coarse, size, mode="trilinear", align_corners=True)
    return np.asarray(fine[0, 0].numpy(), np.float32)


def cut_field(
    size: tuple[int, int, int], random: np.random.Generator, chance: float = 0.3, most: float = 0.45
) -> tuple[slice, slice, slice]:
    """Draw the box (z, y, x) that was scanned: each of its six faces may be moved inwards by up to `most` of the edge."""
    box = []
    for n in size:
        low, high = (int(n * random.uniform(0, most)) if random.random() < chance else 0 for _ in range(2))
        box.append(slice(low, n - high))
    return box[0], box[1], box[2]
