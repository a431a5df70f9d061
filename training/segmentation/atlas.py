"""Tissues from a label map of a real anatomy, beside the phantoms: its bones have shapes that no parameter gives.

A label map says what is bone, not how its mineral lies: cortex and spongiosa are drawn at random, as often as asked for.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.anatomy.ct import ct_from_image, sitk
from training.anatomy.labels import UnusableLabels
from training.segmentation.scanner import smooth_field
from training.segmentation.tissues import Tissue, Tissues, add_structure, phantom_grid

FILE = "vhf_hip_labels.nii.gz"
BONES = {
    "left_femur": Tissue.FEMUR,
    "right_femur": Tissue.FEMUR,
    "left_hemipelvis": Tissue.HIP,
    "right_hemipelvis": Tissue.HIP,
    "sacrum": Tissue.SACRUM,
}
AIR, FAT, FILLER, CARTILAGE = (
    "air",
    "adipose/subcutaneous+interstitial",
    "pelvic viscera / deep soft tissue (filler)",
    "hip cartilage",
)
CORTICAL_G_CM3 = 1.05


@dataclass(frozen=True)
class AtlasMap:
    """The label map, with the middle between its hip joints as the patient frame's origin."""

    values: NDArray[np.uint8]
    """(z, y, x)."""
    numbers: Mapping[str, int]
    """Name to value."""
    patient_from_voxel: NDArray[np.float64]
    """4 x 4."""

    @property
    def is_filler(self) -> NDArray[np.bool_]:
        """(z, y, x) where the map says soft tissue and not which."""
        return np.asarray(self.values == self.numbers[FILLER], np.bool_)


def read_map(folder: Path) -> AtlasMap:
    """Read `vhf_hip_labels.nii.gz` with its names.

    Raises:
        UnusableLabels: no such file, or one of the bones or tissues has no name in it.
    """
    file = folder / FILE
    if not file.is_file():
        raise UnusableLabels(f"{file} does not exist; expected a folder with this label map and its JSON file of names")
    volume = ct_from_image(sitk.ReadImage(str(file)))
    values, place = volume.hu.astype(np.uint8), volume.patient_from_voxel.copy()
    names = json.loads((folder / FILE.replace(".nii.gz", ".json")).read_text(encoding="utf-8"))
    numbers = {name: int(number) for number, name in names.items()}
    missing = [name for name in (*BONES, AIR, FAT, FILLER, CARTILAGE) if name not in numbers]
    if missing:
        raise UnusableLabels(f"{file} names no {missing[0]}; expected the bones and tissues of the Visible Human map")
    joints = np.argwhere(values == numbers[CARTILAGE])[:, ::-1]
    of_one = joints[:, 0] < (joints[:, 0].min() + joints[:, 0].max()) / 2  # which has half the other joint's cartilage
    middle = (joints[of_one].mean(axis=0) + joints[~of_one].mean(axis=0)) / 2
    place[:3, 3] -= (place @ [*middle, 1])[:3]
    return AtlasMap(values, numbers, place)


def atlas_tissues(folder: Path, seed: int) -> Tissues:
    """Read the label map, and draw the mineral of its bones.

    Cortex of 0.8 to 4 mm that varies along the bone, thicker in the femoral shafts, and spongiosa of 0.05 to 0.35 g/cm3: own
    choice.

    Raises:
        UnusableLabels: see `read_map`.
    """
    atlas = read_map(folder)
    values, numbers, place = atlas.values, atlas.numbers, atlas.patient_from_voxel
    random = np.random.default_rng(seed)
    shape, matrix = phantom_grid()
    shares = np.zeros((len(Tissue), *shape), np.float32)
    spacing_mm = float(np.linalg.norm(place[:3, 0]))
    for name, channel in BONES.items():
        mask = values == numbers[name]
        box = tuple(
            slice(max(part.start - 2, 0), part.stop + 2) for part in ndimage.find_objects(mask.astype(np.uint8))[0]
        )
        corner = np.eye(4)
        corner[:3, 3] = [part.start for part in box[::-1]]
        mineral, filled = _drawn_bone(mask[box], spacing_mm, channel is Tissue.FEMUR, random)
        add_structure(shares[channel], filled, place @ corner, matrix)
        add_structure(shares[Tissue.MINERAL], mineral, place @ corner, matrix)
    fat = np.isin(values, [numbers[FAT]]).astype(np.float32) + random.uniform(0.1, 0.6) * atlas.is_filler
    body = (values != numbers[AIR]).astype(np.float32)
    add_structure(shares[Tissue.MUSCLE], np.float32(1.05) * np.asarray(body - fat, np.float32), place, matrix)
    add_structure(shares[Tissue.ADIPOSE], np.float32(0.95) * np.asarray(fat, np.float32), place, matrix)
    np.clip(shares[Tissue.FEMUR : Tissue.METAL + 1], 0, 1, out=shares[Tissue.FEMUR : Tissue.METAL + 1])
    return Tissues(shares, matrix)


def _drawn_bone(
    mask: NDArray[np.bool_], spacing_mm: float, is_femur: bool, random: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mineral (g/cm3) and volume share of one bone, (z, y, x)."""
    smooth = ndimage.gaussian_filter(mask.astype(np.float32), 0.8)
    filled = np.clip((smooth - 0.5) * 2 + 0.5, 0, 1)
    depth_mm = np.asarray(ndimage.distance_transform_edt(mask), np.float32) * spacing_mm - spacing_mm / 2
    spacing = (spacing_mm, spacing_mm, spacing_mm)
    cortex_mm = random.uniform(0.8, 2.0) * np.exp(0.3 * smooth_field(mask.shape, spacing, 20.0, random))
    if is_femur:  # the shaft begins about 8 cm below the head
        down_mm = (mask.shape[0] - np.arange(mask.shape[0])) * spacing_mm
        cortex_mm += np.clip((down_mm - 80) / 50, 0, 1)[:, None, None] * random.uniform(1.5, 5)
    spongiosa = random.uniform(0.05, 0.35) * np.clip(1 + 0.4 * smooth_field(mask.shape, spacing, 12.0, random), 0.1, 2)
    if is_femur:
        spongiosa *= 1 - 0.9 * np.clip((down_mm - 80) / 40, 0, 1)[:, None, None]
    dense = np.clip(0.5 - (depth_mm - cortex_mm) / spacing_mm, 0, 1)
    mineral = (CORTICAL_G_CM3 * dense + spongiosa * (1 - dense)) * filled
    return np.asarray(mineral, np.float32), np.asarray(filled, np.float32)
