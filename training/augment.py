"""From a stored pair to one training example: geometry, exposure, vendor's processing and field of view drawn anew each time.

What is stored of phantoms are projections of materials; the radiograph is simulated here, so that each example is seen under
another tube voltage, dose, scatter and vendor. Geometry is changed before the radiograph is simulated, for materials and targets
alike and isotropically, so that areal densities keep their meaning (facts on mass conservation: arXiv 2307.11513).
Of a real hip the radiograph itself is stored: geometry and field change in the same way, grey levels mildly.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F

from dicomnode.domain.measurement import Region
from dicomnode.inference import frame
from dicomnode.inference.channels import CANONICAL, LABELS_OF_REGION, REGIONS
from dicomnode.inference.intensity import standardise
from dicomnode.inference.technique import technique
from training.projection.radiograph import (
    Exposure,
    Metal,
    VendorProcessing,
    random_exposure,
    random_processing,
    reprocess,
    simulate,
)
from training.targets import MARGIN_PX, scale_mineral

METAL_G_CM2 = 0.5
"""Metal above this counts as an implant: 1.1 mm of titanium (4.5 g/cm3)."""
MINERAL_FACTOR = (0.6, 1.4)
"""Range of the factor on all mineral, even in the logarithm; the densest cortex then exceeds bone: no anatomy, but a lesson."""
_LEAST_IMPLANT_CM2 = 0.5
"""Metal that is seen on less than this is no implant that anybody could recognise."""
_FIELD_CUT_SHARE = 0.5
_SHORT_SHARE = 0.4
"""Of the fields that are cut below: those that end near the neck, as that of a tomogram of the pelvis may."""
_SHUTTER_MM = (2.0, 20.0)
"""Width of the border that a shutter leaves in the image, where it does not reach to the frame's end."""
_BLUR_SHARE = 0.2
_BLUR_SD_MM = (0.3, 2.2)
"""From what a detector blurs to what voxels of 3 mm do; fluoroscopes, old cassettes and radiographs of tomograms lie between."""
_NEGATIVE_SHARE = 0.1
_SHIFT_SD_MM = 4.0
_MOST_SHIFT_MM = 15.0
_MOST_TURN_DEG = 8.0
_ZOOM = (0.93, 1.07)
_IS_AREA = np.array([unit == "cm2" for _, unit in CANONICAL])


@dataclass(frozen=True)
class HipExample:
    """One example for the decomposer; arrays are (rows, columns) of the measurement frame."""

    network_input: NDArray[np.float32]
    """(2, rows, columns), see `inference.intensity.standardise`."""
    technique: NDArray[np.float32]
    """(factors,), see `inference.technique`."""
    maps: NDArray[np.float32]
    """(4, rows, columns): femur density g/cm2, femur path cm, pelvis density g/cm2, soft g/cm2; NaN where it is not known."""
    labels: NDArray[np.int64]
    metal: NDArray[np.float32]
    """1 where there is metal, else 0; NaN where it is not known."""
    field: NDArray[np.float32]
    """1 where the radiograph shows anatomy: inside the image and the exposed field."""
    anteroposterior_hip: float
    """1 for an AP hip in its frame, else 0; then the maps are not learned from."""
    implant: float
    """1 where metal is seen, else 0; NaN where it is not known."""
    fracture: float
    """1 where a broken total hip is wholly seen, 0 where it is whole; NaN where that is not known, or cannot be seen."""
    canonical: NDArray[np.float32]
    """(regions, quantities) natural logarithms, see `inference.channels.CANONICAL`; 0 where there is nothing to learn."""
    canonical_weight: NDArray[np.float32]
    """(regions,) 1 where the whole region of an AP hip without metal or fracture is seen, else 0."""


def hip_example(
    materials: NDArray[np.float32],
    targets: NDArray[np.float32],
    labels: NDArray[np.uint8],
    anteroposterior: bool,
    canonical: NDArray[np.float32],
    rng: np.random.Generator,
    mineral_scaled: float = 0.0,
    voltage_told: float = 0.0,
    *,
    spoiled: bool = True,
    broken: bool = False,
) -> HipExample:
    """Draw a training example from one hip's stored maps.

    Args:
        materials: (4, rows + 2 margin, columns + 2 margin) soft, adipose, mineral, metal in g/cm2.
        targets: (3, ...) femur density, femur path, pelvis density.
        labels: (...) region labels.
        anteroposterior: False for a view that must be refused (frog-leg).
        canonical: (regions, quantities) as `targets.canonical_logarithms` gives them.
        mineral_scaled: how often all mineral is multiplied by a factor of `MINERAL_FACTOR`.
        voltage_told: how often the tube voltage is told.
        spoiled: whether the hip may lie wrong, and its field may be cut: what must be recognised, but cannot be measured.
        broken: whether the femur has a displaced fracture.
    """
    if mineral_scaled > 0 and rng.random() < mineral_scaled:
        factor = float(np.exp(rng.uniform(*np.log(MINERAL_FACTOR))))
        materials, targets = scale_mineral(materials, targets, factor)
        canonical = canonical + (np.log(factor) * ~_IS_AREA).astype(np.float32)
    planes = np.concatenate([materials, targets]).astype(np.float32)
    planes, moved_labels, grown, negative = _moved(planes, labels, canonical, rng, spoiled=spoiled)
    good = anteroposterior and not negative
    return finish_hip_example(planes, moved_labels, good, grown, rng, voltage_told, spoiled=spoiled, broken=broken)


def real_hip_example(
    image: NDArray[np.float32],
    inside: NDArray[np.bool_],
    field: NDArray[np.bool_],
    targets: NDArray[np.float32],
    labels: NDArray[np.uint8],
    canonical: NDArray[np.float32],
    rng: np.random.Generator,
    kilovolt: float | None = None,
    *,
    spoiled: bool = True,
) -> HipExample:
    """Draw a training example from a real AP hip's radiograph and what its CT says of it.

    Soft tissue and metal are not known: no loss comes from them.

    Args:
        image: (rows + 2 margin, columns + 2 margin) grey levels within 0..1, larger is more attenuation.
        inside: (...) what lies on the radiograph.
        field: (...) where it was exposed as well.
        targets: (3, ...) femur density, femur path, pelvis density; NaN where the CT says nothing.
        labels: (...) region labels.
        canonical: (regions, quantities) as `targets.canonical_logarithms` gives them.
        kilovolt: the tube voltage to tell; None: none.
        spoiled: as for `hip_example`.
    """
    # Beyond what is stored lies no radiograph: the outermost pixels, which are repeated there, say so.
    seen = np.pad(np.stack([inside, field])[:, 1:-1, 1:-1], ((0, 0), (1, 1), (1, 1))).astype(np.float32)
    planes = np.concatenate([image[None], seen, targets]).astype(np.float32)
    planes, moved_labels, grown, negative = _moved(planes, labels, canonical, rng, spoiled=spoiled)
    moved_inside, moved_field = planes[1:3] > 0.5
    pictured = _blur(planes[[0, 3, 4, 5]], rng)
    picture = reprocess(pictured[0], frame.SPACING_MM, rng)
    cut, cut_inside, cut_field = _cut_field(picture, rng) if spoiled else _whole_field(picture)
    unknown = np.full_like(picture, np.nan)
    return _example(
        cut,
        moved_inside & cut_inside,
        moved_field & cut_field,
        np.concatenate([pictured[1:], unknown[None]]),
        unknown,
        moved_labels,
        not negative,
        grown,
        kilovolt,
        broken=None,
    )


def _moved(
    planes: NDArray[np.float32],
    labels: NDArray[np.uint8],
    canonical: NDArray[np.float32],
    rng: np.random.Generator,
    *,
    spoiled: bool = True,
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32], bool]:
    """Draw a geometry; returns planes and labels in the frame, the figures there, and whether the hip is spoiled by it."""
    negative = rng.random() < _NEGATIVE_SHARE and spoiled
    matrix = _spoiled_geometry(rng) if negative else _geometry(rng)
    moved, moved_labels = _transform(planes, labels, matrix)
    # Larger on the image at the same densities: only areas grow.
    grown = canonical - np.log(np.linalg.det(matrix[:2, :2]).clip(1e-3)) * _IS_AREA
    return moved, moved_labels, grown.astype(np.float32), negative


def finish_hip_example(
    planes: NDArray[np.float32],
    labels: NDArray[np.uint8],
    anteroposterior: bool,
    canonical: NDArray[np.float32],
    rng: np.random.Generator,
    voltage_told: float = 0.0,
    *,
    spoiled: bool = True,
    broken: bool = False,
) -> HipExample:
    """Simulate the radiograph of maps that are already in the frame, and cut its field at random if it may be `spoiled`."""
    planes = _blur(planes, rng)
    materials, targets = planes[:4], planes[4:]
    image, exposure = random_radiograph(materials, frame.SPACING_MM, rng)
    image, inside, field = _cut_field(image, rng) if spoiled else _whole_field(image)
    maps = np.concatenate([targets, materials[:1] + materials[1:2]])
    metal = (materials[3] > METAL_G_CM2).astype(np.float32)
    told = voltage_told > 0 and rng.random() < voltage_told
    kilovolt = exposure.kilovolt if told else None
    return _example(image, inside, field, maps, metal, labels, anteroposterior, canonical, kilovolt, broken=broken)


def _example(
    image: NDArray[np.float32],
    inside: NDArray[np.bool_],
    field: NDArray[np.bool_],
    maps: NDArray[np.float32],
    metal: NDArray[np.float32],
    labels: NDArray[np.uint8],
    anteroposterior: bool,
    canonical: NDArray[np.float32],
    kilovolt: float | None,
    *,
    broken: bool | None,
) -> HipExample:
    """What of a picture in the frame can be learned; `metal` is NaN and `broken` None where it is not known."""
    seen_cm2 = float(((metal > 0) & field).sum()) * (frame.SPACING_MM / 10) ** 2
    learnable = anteroposterior and seen_cm2 < _LEAST_IMPLANT_CM2
    measurable = learnable and not broken
    weight = np.array([measurable and _is_seen(labels, field, region) for region in REGIONS], np.float32)
    weight *= np.isfinite(canonical).all(1)
    return HipExample(
        network_input=standardise(image, inside),
        technique=technique(kilovolt),
        maps=maps.astype(np.float32),
        labels=labels.astype(np.int64),
        metal=metal,
        field=field.astype(np.float32),
        anteroposterior_hip=float(anteroposterior),
        implant=float(np.nan if np.isnan(metal).any() else seen_cm2 >= _LEAST_IMPLANT_CM2),
        fracture=_is_broken(labels, field, broken) if learnable else np.nan,
        canonical=np.where(weight[:, None] > 0, canonical, np.float32(0)),
        canonical_weight=weight,
    )


def _is_broken(labels: NDArray[np.uint8], field: NDArray[np.bool_], broken: bool | None) -> float:
    """See `HipExample.fracture`: of a bone that is seen in part, nobody knows where it is broken."""
    if broken is None or (broken and not _is_seen(labels, field, Region.TOTAL_HIP)):
        return float(np.nan)
    return float(broken)


def _is_seen(labels: NDArray[np.uint8], field: NDArray[np.bool_], region: Region) -> bool:
    mask = np.isin(labels, [int(label) for label in LABELS_OF_REGION[region]])
    return bool(mask.any() and not (mask & ~field).any())


def _blur(planes: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Sometimes see everything through a coarser system; materials and targets alike, so that mass stays where it is seen."""
    if rng.random() > _BLUR_SHARE:
        return planes
    sd = rng.uniform(*_BLUR_SD_MM) / frame.SPACING_MM
    return np.asarray(ndimage.gaussian_filter(planes, (0, sd, sd), mode="nearest"), np.float32)


def random_radiograph(
    materials: NDArray[np.float32], spacing_mm: float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], Exposure]:
    """Take and process a radiograph of material maps under conditions drawn at random; its exposure comes with it."""
    metal, exposure, processing = random_conditions(rng)
    return simulate(materials, spacing_mm, exposure, processing, rng, metal), exposure


def random_conditions(rng: np.random.Generator) -> tuple[Metal, Exposure, VendorProcessing]:
    """Draw how a radiograph is taken and processed."""
    metal = list(Metal)[rng.integers(len(Metal))]
    return metal, random_exposure(rng), random_processing(rng)


def _geometry(rng: np.random.Generator) -> NDArray[np.float64]:
    angle = np.radians(rng.uniform(-_MOST_TURN_DEG, _MOST_TURN_DEG))
    shift = np.clip(rng.normal(0, _SHIFT_SD_MM, 2), -_MOST_SHIFT_MM, _MOST_SHIFT_MM) / frame.SPACING_MM
    return _similarity(angle, 1 / rng.uniform(*_ZOOM), shift)


def _spoiled_geometry(rng: np.random.Generator) -> NDArray[np.float64]:
    """A hip that is not where, as large or as upright as the frame wants it: upside down, turned, mirrored, mis-scaled."""
    kind = rng.integers(4)
    if kind == 0:
        return _similarity(np.radians(rng.uniform(60, 300)), 1.0, rng.normal(0, 8, 2))
    if kind == 1:
        mirrored: NDArray[np.float64] = _similarity(0.0, 1.0, rng.normal(0, 8, 2)) @ np.diag([-1.0, 1.0, 1.0])
        return mirrored
    if kind == 2:
        return _similarity(0.0, float(rng.choice([rng.uniform(0.4, 0.65), rng.uniform(1.6, 2.5)])), rng.normal(0, 8, 2))
    direction = rng.uniform(0, 2 * np.pi)
    return _similarity(
        0.0, 1.0, rng.uniform(45, 90) / frame.SPACING_MM * np.array([np.cos(direction), np.sin(direction)])
    )


def _similarity(angle: float, scale: float, shift_px: NDArray[np.float64]) -> NDArray[np.float64]:
    """Stored (column, row) from frame (column, row), both relative to the femoral head."""
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cosine, -sine, shift_px[0]], [sine, cosine, shift_px[1]], [0.0, 0.0, 1.0]])


def _transform(
    planes: NDArray[np.float32], labels: NDArray[np.uint8], matrix: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    rows, columns = np.meshgrid(
        np.arange(frame.ROWS) - frame.HEAD_ROW, np.arange(frame.COLUMNS) - frame.HEAD_COLUMN, indexing="ij"
    )
    x = matrix[0, 0] * columns + matrix[0, 1] * rows + matrix[0, 2] + frame.HEAD_COLUMN + MARGIN_PX
    y = matrix[1, 0] * columns + matrix[1, 1] * rows + matrix[1, 2] + frame.HEAD_ROW + MARGIN_PX
    height, width = labels.shape
    grid = torch.from_numpy(np.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], -1).astype(np.float32))[None]
    smooth = F.grid_sample(torch.from_numpy(planes)[None], grid, padding_mode="border", align_corners=True)[0].numpy()
    nearest = F.grid_sample(
        torch.from_numpy(labels.astype(np.float32))[None, None],
        grid,
        mode="nearest",
        padding_mode="zeros",
        align_corners=True,
    )
    return smooth, nearest[0, 0].numpy().astype(np.uint8)


def _whole_field(image: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """As `_cut_field` gives it where nothing is cut."""
    return image, np.ones(image.shape, bool), np.ones(image.shape, bool)


def _cut_field(
    image: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Let part of the crop lie outside the image or under a collimator; returns image, inside the image, exposed field."""
    _, inside, field = _whole_field(image)
    if rng.random() > _FIELD_CUT_SHARE:
        return image, inside, field
    rows, columns = image.shape
    first_row, last_row, first_column, last_column = 0, rows, 0, columns
    # The lower border cuts hips most often, and that is where the total hip ends.
    if rng.random() < 0.6:
        lowest = frame.HEAD_ROW + 75 if rng.random() < _SHORT_SHARE else rows
        last_row = int(rng.uniform(frame.HEAD_ROW + 25, lowest))
    if rng.random() < 0.3:
        first_row = int(rng.uniform(0, frame.HEAD_ROW - 15))
    if rng.random() < 0.3:
        first_column = int(rng.uniform(0, frame.HEAD_COLUMN - 60))
    if rng.random() < 0.3:
        last_column = int(rng.uniform(frame.HEAD_COLUMN + 15, columns))
    field[:first_row] = field[last_row:] = False
    field[:, :first_column] = field[:, last_column:] = False
    cut = image.copy()
    shutter = rng.integers(4)
    if shutter == 0:
        return cut, field.copy(), field
    level = rng.choice([image.min(), image.max()])
    noise = 0.0 if shutter < 3 else rng.uniform(0.002, 0.02)
    cut[~field] = level + noise * rng.standard_normal(int((~field).sum()))
    if shutter == 1:  # a narrow one: the image ends a little beyond the exposed field
        width = int(rng.uniform(*_SHUTTER_MM) / frame.SPACING_MM)
        inside = ndimage.binary_dilation(field, np.ones((3, 3), bool), iterations=width)
    return cut, inside, field


@dataclass(frozen=True)
class OverviewExample:
    """One example for the locator; arrays are (LOCATOR_SIZE, LOCATOR_SIZE)."""

    network_input: NDArray[np.float32]
    heat: NDArray[np.float32]
    """(2, rows, columns): right head, left head, as Gaussians of 1 at their centres."""


_HEAT_SD_PX = 2.0


def overview_example(
    materials: NDArray[np.float32],
    heads_px: dict[str, tuple[float, float]],
    rng: np.random.Generator,
) -> OverviewExample:
    """Draw a locator example from a whole field's stored maps.

    Args:
        materials: (4, LOCATOR_SIZE, LOCATOR_SIZE) at LOCATOR_SPACING_MM.
        heads_px: "R" and / or "L" to (column, row) of the head, pixel centres at integers + 0.5; absent if not in the field.
    """
    size = frame.LOCATOR_SIZE
    image, _ = random_radiograph(materials, frame.LOCATOR_SPACING_MM, rng)
    mirror = rng.random() < 0.5
    turn = np.radians(rng.uniform(-12, 12))
    scale = rng.uniform(0.85, 1.2)
    shift = rng.uniform(-18, 18, 2)
    upside_down = rng.random() < 0.06
    if upside_down:
        turn += np.pi
    cosine, sine = np.cos(turn) / scale, np.sin(turn) / scale
    linear = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([-1.0 if mirror else 1.0, 1.0])
    centre = size / 2
    rows, columns = np.meshgrid(np.arange(size) + 0.5 - centre, np.arange(size) + 0.5 - centre, indexing="ij")
    stored = linear @ np.stack([columns.ravel(), rows.ravel()]) + shift[:, None] + centre  # stored from shown
    grid = torch.from_numpy((2 * stored.T / size - 1).reshape(1, size, size, 2).astype(np.float32))
    shown = F.grid_sample(torch.from_numpy(image)[None, None], grid, padding_mode="border", align_corners=False)[
        0, 0
    ].numpy()
    inside = ((stored > 0) & (stored < size)).all(0).reshape(size, size)
    shown, visible = _cut_overview(shown, inside, rng)
    heat = np.zeros((2, size, size), np.float32)
    inverse = np.linalg.inv(linear)
    for side, head in heads_px.items():
        x, y = inverse @ (np.array(head) - shift - centre) + centre
        if upside_down or not (0 <= x < size and 0 <= y < size) or not visible[int(y), int(x)]:
            continue
        channel = ("R", "L").index(side) ^ int(mirror)
        distance2 = (np.arange(size)[None] + 0.5 - x) ** 2 + (np.arange(size)[:, None] + 0.5 - y) ** 2
        heat[channel] = np.exp(-distance2 / (2 * _HEAT_SD_PX**2))
    return OverviewExample(standardise(shown, visible), heat)


def _cut_overview(
    image: NDArray[np.float32], inside: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Keep a random rectangle, as a smaller cassette or a collimator would."""
    if rng.random() < 0.4:
        return image, inside
    size = image.shape[0]
    height, width = rng.integers(size // 3, size, 2)
    row, column = rng.integers(0, size - height + 1), rng.integers(0, size - width + 1)
    window = np.zeros(image.shape, bool)
    window[row : row + height, column : column + width] = True
    if rng.random() < 0.5:
        return image, inside & window
    return np.where(window, image, rng.choice([image.min(), image.max()])).astype(np.float32), inside & window
