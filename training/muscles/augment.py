"""From stored projections to one example: fat in the muscles, exposure, vendor's processing, geometry and field drawn anew.

All of it is linear before the radiograph is simulated: what leaves a muscle's map leaves the soft tissue and enters the fat, pixel
by pixel, so that radiograph and target stay true to each other.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from dicomnode.inference.frame import LOCATOR_SIZE, LOCATOR_SPACING_MM
from dicomnode.inference.intensity import standardise
from training.anatomy.muscles import CHANNELS, Muscle
from training.augment import random_radiograph
from training.muscles.config import InfiltrationConfiguration

SOFT, ADIPOSE = 0, 1
BINNING = 2
"""Pixels of the overview per pixel of the network, along each axis: soft tissue varies slowly, and fewer pixels learn faster."""
SIZE = LOCATOR_SIZE // BINNING
PIXEL_CM2 = (BINNING * LOCATOR_SPACING_MM / 10) ** 2
"""Of the network, in the plane of the heads."""
MIRRORED = np.roll(np.arange(len(CHANNELS)), len(Muscle))
"""The other side's channel of each channel."""
_MOST_TURN_DEG = 8.0
_ZOOM = (0.92, 1.08)
_SHIFT_PX = 10.0
_BORDER_PX = 8.0
"""How far each border of the field is moved, either way."""


@dataclass(frozen=True)
class MuscleExample:
    """One example; arrays are (SIZE, SIZE)."""

    network_input: NDArray[np.float32]
    """(2, rows, columns), see `inference.intensity.standardise`."""
    maps: NDArray[np.float32]
    """(CHANNELS, rows, columns) lean mass that lies in the field, g/cm2 of the pixel."""
    field: NDArray[np.float32]
    """1 where any of the pixel was exposed."""


def draw_shares(configuration: InfiltrationConfiguration, rng: np.random.Generator) -> NDArray[np.float32]:
    """(CHANNELS,) part of each muscle that becomes fat: mostly little, at times much, each muscle on its own (assumption)."""
    if rng.random() >= configuration.share:
        return np.zeros(len(CHANNELS), np.float32)
    return np.asarray(configuration.most * rng.random(len(CHANNELS)) ** 2, np.float32)


def infiltrate(
    materials: NDArray[np.float32], maps: NDArray[np.float32], shares: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Turn a share of each muscle's lean mass into as much fat; the mass of every pixel stays what it was.

    Where bones have displaced so much soft tissue that too little is left, all shares of the pixel shrink alike.

    Args:
        materials: (4, rows, columns) soft, adipose, mineral, metal in g/cm2.
        maps: (CHANNELS, rows, columns) lean mass in g/cm2.
        shares: (CHANNELS,) from 0 to 1.

    Returns:
        Materials and maps anew.
    """
    wanted = maps * shares[:, None, None]
    total = wanted.sum(0)
    moved = wanted * np.where(total > materials[SOFT], materials[SOFT] / np.maximum(total, 1e-6), 1).astype(np.float32)
    changed = materials.copy()
    changed[SOFT] -= moved.sum(0)
    changed[ADIPOSE] += moved.sum(0)
    return changed, maps - moved


def muscle_example(
    materials: NDArray[np.float32],
    maps: NDArray[np.float32],
    field_px: tuple[float, float, float, float],
    configuration: InfiltrationConfiguration,
    rng: np.random.Generator,
) -> MuscleExample:
    """Draw a training example from one person's stored projections.

    Args:
        materials: (4, LOCATOR_SIZE, LOCATOR_SIZE) in g/cm2.
        maps: (CHANNELS, LOCATOR_SIZE, LOCATOR_SIZE) in g/cm2.
        field_px: the exposed field, see `training.muscles.targets.MuscleTarget`; its borders are moved at random.
    """
    materials, maps = infiltrate(materials, maps, draw_shares(configuration, rng))
    image, _ = random_radiograph(materials, LOCATOR_SPACING_MM, rng)
    first_row, last_row, first_column, last_column = np.array(field_px) + rng.uniform(-_BORDER_PX, _BORDER_PX, 4)
    mirrored = rng.random() < 0.5
    x, y = _stored_from_shown(mirrored, rng)
    field = (x >= first_column) & (x <= last_column) & (y >= first_row) & (y <= last_row)
    field &= (x > -0.5) & (x < LOCATOR_SIZE - 0.5) & (y > -0.5) & (y < LOCATOR_SIZE - 0.5)
    planes = _sample(np.concatenate([image[None], maps]), x, y)
    shown = planes[1:][MIRRORED] if mirrored else planes[1:]
    return _binned(standardise(planes[0], field), shown, field)


def plain_example(
    materials: NDArray[np.float32], maps: NDArray[np.float32], field: NDArray[np.bool_], rng: np.random.Generator
) -> MuscleExample:
    """A radiograph as it comes: exposure and vendor at random, nothing moved.

    Args:
        field: (LOCATOR_SIZE, LOCATOR_SIZE) True where exposed.
    """
    image, _ = random_radiograph(materials, LOCATOR_SPACING_MM, rng)
    return _binned(standardise(image, field), maps, field)


def _binned(network_input: NDArray[np.float32], maps: NDArray[np.float32], field: NDArray[np.bool_]) -> MuscleExample:
    """What lies outside of the field is cut off before pixels are averaged, so that masses in the field are kept."""
    means = [planes.reshape(-1, SIZE, BINNING, SIZE, BINNING).mean((2, 4)) for planes in (network_input, maps * field)]
    seen = field.reshape(SIZE, BINNING, SIZE, BINNING).any((1, 3))
    return MuscleExample(means[0], means[1], np.asarray(seen, np.float32))


def _stored_from_shown(mirrored: bool, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(rows, columns) stored column and row of each pixel shown: turned, scaled, shifted and perhaps mirrored."""
    turn = np.radians(rng.uniform(-_MOST_TURN_DEG, _MOST_TURN_DEG))
    scale = rng.uniform(*_ZOOM)
    shift = rng.uniform(-_SHIFT_PX, _SHIFT_PX, 2)
    centre = (LOCATOR_SIZE - 1) / 2
    rows, columns = np.mgrid[:LOCATOR_SIZE, :LOCATOR_SIZE] - centre
    columns = -columns if mirrored else columns
    cosine, sine = np.cos(turn) / scale, np.sin(turn) / scale
    return cosine * columns - sine * rows + shift[0] + centre, sine * columns + cosine * rows + shift[1] + centre


def _sample(planes: NDArray[np.float32], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float32]:
    """Read planes at columns x and rows y (pixel centres at integers), the nearest border value outside."""
    grid = torch.from_numpy((np.stack([x, y], -1) * (2 / (LOCATOR_SIZE - 1)) - 1).astype(np.float32))
    read = F.grid_sample(torch.from_numpy(planes)[None], grid[None], padding_mode="border", align_corners=True)
    return np.asarray(read[0].numpy())
