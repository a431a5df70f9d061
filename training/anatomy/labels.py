"""A label map: which voxel belongs to which structure, under the names of this project, on a grid in the patient frame.

Names are "<side>_<structure>" or "<structure>" ("right_femur", "pelvis", "left_gluteus_maximus"). Whoever made the map may write
them otherwise ("femur_left", "left_GluteusMaximus"), and finer: the hip bones and the sacrum are one pelvis here.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.errors import DicomNodeError
from training.anatomy.ct import CtVolume, ct_from_image, sitk

WHOLES = {
    "hip": "pelvis",
    "hemipelvis": "pelvis",
    "sacrum": "pelvis",
    "coccyx": "pelvis",
    "iliacus": "iliopsoas",
    "psoas_major": "iliopsoas",
}
"""Parts (without their side) that this project does not tell apart. The pelvis has no side, muscles keep theirs."""
SIDES = ("left", "right")
BACKGROUND = ("background", "air")


@dataclass(frozen=True)
class LabelMap:
    """Each voxel belongs to one structure or to none."""

    values: NDArray[np.uint16]
    """(z, y, x); 0 is none."""
    names: Mapping[int, str]
    """Value to structure; each structure has one value."""
    patient_from_voxel: NDArray[np.float64]
    """4 x 4: homogeneous voxel index (x, y, z) of a voxel's centre to patient mm (LPS)."""

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Where a structure is, (z, y, x).

        Raises:
            UnusableLabels: the map has no such structure.
        """
        value = {structure: value for value, structure in self.names.items()}.get(name)
        if value is None:
            raise UnusableLabels(f"the label map has no {name}; it has {', '.join(sorted(self.names.values()))}")
        return np.asarray(self.values == value, np.bool_)


class UnusableLabels(DicomNodeError, ValueError):
    """A label map cannot be read or contradicts itself; the message says what was seen, what was expected and what to do."""


def read_labels(path: Path, names: Path | None = None, *, parts: bool = False) -> LabelMap:
    """Read a NIfTI file with its names, or a folder with one NIfTI mask per structure, as TotalSegmentator writes them.

    Args:
        path: `labels.nii.gz`, or a folder with `femur_left.nii.gz`, `hip_right.nii.gz` and so on.
        names: JSON file, `{"1": "femur_left", ...}` or (nnU-Net) `{"labels": {"femur_left": 1, ...}}`; by default the file
            beside `path` with the ending .json.
        parts: see `label_map`.

    Raises:
        UnusableLabels: no such file, no names, values that are no labels, or sides that contradict the patient frame.
    """
    if path.is_dir():
        return _read_folder(path, parts)
    names = names or names_beside(path)
    for file, what in ((path, "a NIfTI file or a folder of masks"), (names, "a JSON file of value and name")):
        if not file.is_file():
            raise UnusableLabels(f"{file} does not exist; expected {what}")
    values, matrix = _read_values(path)
    return label_map(values, _read_names(names), matrix, parts=parts)


def names_beside(path: Path) -> Path:
    """Where the names of a label map's values are looked for."""
    return path.with_name(re.sub(r"\.nii(\.gz)?$", "", path.name) + ".json")


def label_map(
    values: NDArray[Any], names: Mapping[int, str], patient_from_voxel: NDArray[np.float64], *, parts: bool = False
) -> LabelMap:
    """Bring a map under the names of this project, and check its sides.

    Structures without a voxel are left out.

    Args:
        parts: keep apart what `WHOLES` puts together ("right_hip", "sacrum").

    Raises:
        UnusableLabels: values without a name, or sides that contradict the patient frame.
    """
    present = sorted(int(value) for value in np.unique(values) if value != 0)
    unknown = [value for value in present if value not in names]
    if unknown:
        raise UnusableLabels(f"the label map holds the value {unknown[0]}, but names only {sorted(names)}")
    present = [value for value in present if _words(names[value])[1] not in BACKGROUND]
    finest = {value: "_".join(filter(None, _words(names[value]))) for value in present}
    _check_sides(values, finest, patient_from_voxel)
    wholes = finest if parts else {value: structure_name(names[value]) for value in present}
    numbers = {name: number for number, name in enumerate(sorted(set(wholes.values())), start=1)}
    ours = np.zeros(int(values.max(initial=0)) + 1, np.uint16)
    for value, name in wholes.items():
        ours[value] = numbers[name]
    return LabelMap(ours[values], {number: name for name, number in numbers.items()}, patient_from_voxel)


def structure_name(name: str) -> str:
    """Our name of a structure: "femur_left" is "left_femur", "hip_left" and "sacrum" are "pelvis"."""
    side, part = _words(name)
    whole = WHOLES.get(part, part)
    return whole if whole == "pelvis" or not side else f"{side}_{whole}"


def on_grid(labels: LabelMap, ct: CtVolume) -> LabelMap:
    """The map on the voxels of a CT, by the nearest label; nothing beyond its borders."""
    if labels.values.shape == ct.hu.shape and np.allclose(labels.patient_from_voxel, ct.patient_from_voxel, atol=1e-3):
        return labels
    label_from_ct = np.linalg.inv(labels.patient_from_voxel) @ ct.patient_from_voxel
    values = ndimage.affine_transform(
        labels.values,
        label_from_ct[:3, :3][::-1, ::-1],
        label_from_ct[:3, 3][::-1],
        ct.hu.shape,
        order=0,
        mode="grid-constant",  # the outermost voxels count to their outer faces
        cval=0,
    )
    return LabelMap(values, labels.names, ct.patient_from_voxel)


def _words(name: str) -> tuple[str, str]:
    """Side ("" if it has none) and structure, in lower case with underscores."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace(" ", "_").split("_")
    side = next((word for word in words if word in SIDES), "")
    return side, "_".join(word for word in words if word != side)


def _check_sides(values: NDArray[Any], names: Mapping[int, str], patient_from_voxel: NDArray[np.float64]) -> None:
    """Left lies at greater x than right (LPS): between the two of a pair, or beside what has no side.

    Words in a file say nothing about this: a map that was mirrored on its way keeps its names.
    """
    places_mm = {names[value]: x for value, x in _middles_mm(values, names, patient_from_voxel).items()}
    middle = [places_mm[name] for name in ("sacrum", "pelvis") if name in places_mm]
    wrong = []
    for name, x in places_mm.items():
        side, _, part = name.partition("_")
        other = places_mm.get(f"right_{part}" if side == "left" else f"left_{part}", *middle[:1])
        if side in SIDES and other is not None and (x < other) == (side == "left"):
            wrong.append(name)
    if wrong:
        raise UnusableLabels(
            f"{', '.join(sorted(wrong))}: on the other side of the patient than the name says (left must lie at greater x, LPS)."
            " Either the map or its transform is mirrored, or the names are swapped: export the segmentation anew from the CT"
        )


def _middles_mm(
    values: NDArray[Any], names: Mapping[int, str], patient_from_voxel: NDArray[np.float64]
) -> dict[int, float]:
    """Median x of each value's voxels in patient mm; stray voxels do not move it."""
    middles = {}
    for value, box in enumerate(ndimage.find_objects(values.astype(np.int32)), start=1):
        if value in names and box is not None:
            index = np.argwhere(values[box] == value) + [part.start for part in box]
            middles[value] = float(np.median(index[:, ::-1] @ patient_from_voxel[0, :3] + patient_from_voxel[0, 3]))
    return middles


def _read_values(path: Path) -> tuple[NDArray[np.uint16], NDArray[np.float64]]:
    image = sitk.ReadImage(str(path))
    if image.GetDimension() != 3:
        raise UnusableLabels(f"{path} has {image.GetDimension()} dimensions, expected a volume")
    volume = ct_from_image(image)  # float32 holds every label
    if not (np.mod(volume.hu, 1) == 0).all() or volume.hu.min() < 0 or volume.hu.max() > np.iinfo(np.uint16).max:
        raise UnusableLabels(
            f"{path}: values from {volume.hu.min():g} to {volume.hu.max():g}, expected whole numbers from 0: is this a label map?"
        )
    return volume.hu.astype(np.uint16), volume.patient_from_voxel


def _read_names(path: Path) -> dict[int, str]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if "labels" in document:  # nnU-Net's dataset.json
            document = {value: name for name, value in document["labels"].items()}
        names = {int(value): str(name) for value, name in document.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UnusableLabels(f'{path}: {error}; expected {{"1": "femur_left", ...}}') from error
    return names


def _read_folder(folder: Path, parts: bool) -> LabelMap:
    """One mask per structure; where two overlap, the later name in the alphabet has the voxel."""
    files = sorted(file for file in folder.iterdir() if re.search(r"\.nii(\.gz)?$", file.name))
    if not files:
        raise UnusableLabels(f"{folder} holds no NIfTI file; expected one mask per structure (femur_left.nii.gz, ...)")
    values, matrix = _read_values(files[0])
    merged = np.zeros_like(values)
    for number, file in enumerate(files, start=1):
        mask, place = _read_values(file)
        if mask.shape != values.shape or not np.allclose(place, matrix, atol=1e-3):
            raise UnusableLabels(f"{file} lies on another grid than {files[0].name}; expected masks of one CT")
        merged[mask > 0] = number
    names = {number: re.sub(r"\.nii(\.gz)?$", "", file.name) for number, file in enumerate(files, start=1)}
    return label_map(merged, names, matrix, parts=parts)
