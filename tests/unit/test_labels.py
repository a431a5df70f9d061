"""Label maps: names, sides by geometry, grids."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from training.anatomy.ct import CtVolume, sitk
from training.anatomy.labels import UnusableLabels, label_map, on_grid, read_labels, structure_name

NAMES = {1: "femur_left", 2: "femur_right", 3: "hip_left", 4: "hip_right", 5: "sacrum", 6: "gluteus_medius_left"}
MATRIX = np.diag([2.0, 2.0, 2.0, 1.0])
"""Voxels of 2 mm, x to the patient's left."""


def _values() -> NDArray[np.uint16]:
    """Right (low x) femur and hip bone, sacrum, left hip bone, femur, muscle, each a block along x."""
    values = np.zeros((4, 4, 30), np.uint16)
    for place, value in ((1, 2), (6, 4), (14, 5), (20, 3), (26, 1), (28, 6)):
        values[1:3, 1:3, place : place + 2] = value
    return values


def _write(folder: Path, values: NDArray[np.uint16], names: dict[int, str], mirrored: bool = False) -> Path:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((2.0, 2.0, 2.0))
    image.SetDirection(np.diag([-1.0 if mirrored else 1.0, 1.0, 1.0]).ravel().tolist())
    sitk.WriteImage(image, str(folder / "labels.nii.gz"))
    (folder / "labels.json").write_text(json.dumps({str(value): name for value, name in names.items()}))
    return folder / "labels.nii.gz"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("femur_left", "left_femur"),
        ("left_femur", "left_femur"),
        ("hip_right", "pelvis"),
        ("left_hemipelvis", "pelvis"),
        ("sacrum", "pelvis"),
        ("gluteus_maximus_left", "left_gluteus_maximus"),
        ("left_GluteusMaximus", "left_gluteus_maximus"),
        ("right_PsoasMajor", "right_iliopsoas"),
        ("urinary_bladder", "urinary_bladder"),
    ],
)
def test_every_way_of_writing_a_structure_becomes_one_name(theirs: str, ours: str) -> None:
    assert structure_name(theirs) == ours


def test_hip_bones_and_sacrum_become_one_pelvis(tmp_path: Path) -> None:
    labels = read_labels(_write(tmp_path, _values(), NAMES))
    assert set(labels.names.values()) == {"left_femur", "right_femur", "pelvis", "left_gluteus_medius"}
    assert labels.mask("pelvis").sum() == 3 * 8
    assert labels.mask("right_femur").nonzero()[2].max() < labels.mask("left_femur").nonzero()[2].min()


def test_names_of_nnunet_say_the_same(tmp_path: Path) -> None:
    path = _write(tmp_path, _values(), NAMES)
    plain = read_labels(path)
    document = {"labels": {"background": 0, **{name: value for value, name in NAMES.items()}}}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    other = read_labels(path, tmp_path / "dataset.json")
    assert other.names == plain.names
    np.testing.assert_array_equal(other.values, plain.values)


def test_a_folder_of_masks_says_the_same_as_one_map(tmp_path: Path) -> None:
    one, values = read_labels(_write(tmp_path, _values(), NAMES)), _values()
    masks = tmp_path / "masks"
    masks.mkdir()
    for value, name in NAMES.items():
        image = sitk.GetImageFromArray((values == value).astype(np.uint8))
        image.SetSpacing((2.0, 2.0, 2.0))
        sitk.WriteImage(image, str(masks / f"{name}.nii.gz"))
    many = read_labels(masks)
    assert many.names == one.names
    np.testing.assert_array_equal(many.values, one.values)


def test_a_mirrored_transform_is_found_by_where_the_sides_lie(tmp_path: Path) -> None:
    with pytest.raises(UnusableLabels, match=r"left_femur.*other side of the patient"):
        read_labels(_write(tmp_path, _values(), NAMES, mirrored=True))


def test_swapped_names_of_one_pair_are_found_and_named() -> None:
    names = NAMES | {1: "femur_right", 2: "femur_left"}
    with pytest.raises(UnusableLabels, match=r"^left_femur, right_femur: "):
        label_map(_values(), names, MATRIX)


def test_a_single_femur_is_held_against_the_sacrum() -> None:
    values = _values()
    values[values == 2] = 0  # no right femur
    with pytest.raises(UnusableLabels, match=r"^right_femur: "):
        label_map(values, NAMES | {1: "femur_right"}, MATRIX)


def test_what_has_no_voxel_or_no_name_is_not_in_the_map() -> None:
    labels = label_map(_values(), NAMES | {9: "liver"}, MATRIX)
    with pytest.raises(UnusableLabels, match="no liver; it has"):
        labels.mask("liver")
    with pytest.raises(UnusableLabels, match="value 6"):
        label_map(_values(), {value: name for value, name in NAMES.items() if value != 6}, MATRIX)


def test_values_that_are_no_labels_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, _values(), NAMES)
    image = sitk.GetImageFromArray(np.full((3, 3, 3), 0.5, np.float32))
    sitk.WriteImage(image, str(path))
    with pytest.raises(UnusableLabels, match="is this a label map"):
        read_labels(path)


def test_a_map_without_names_says_which_file_is_missing(tmp_path: Path) -> None:
    path = _write(tmp_path, _values(), NAMES)
    (tmp_path / "labels.json").unlink()
    with pytest.raises(UnusableLabels, match=r"labels\.json does not exist"):
        read_labels(path)


def test_labels_are_moved_onto_the_grid_of_a_finer_ct() -> None:
    labels = label_map(_values(), NAMES, MATRIX)
    matrix = np.diag([1.0, 1.0, 1.0, 1.0])
    matrix[:3, 3] = -0.5  # both grids start at the same corner
    fine = on_grid(labels, CtVolume(np.zeros((8, 8, 60), np.float32), matrix))
    np.testing.assert_array_equal(fine.values, np.kron(labels.values, np.ones((2, 2, 2), np.uint16)))
    assert on_grid(fine, CtVolume(np.zeros((8, 8, 60), np.float32), matrix)) is fine


def test_the_segmentation_of_a_real_ct_has_its_sides_where_the_patient_has_them(reference_data: Path) -> None:
    labels = read_labels(reference_data / "ct" / "example_ct_labels_v1.nii.gz")
    assert {"right_femur", "left_femur", "pelvis", "left_gluteus_minimus", "right_iliopsoas"} <= set(
        labels.names.values()
    )
    other = read_labels(reference_data / "anatomy" / "vhf_hip_labels.nii.gz")
    assert {"right_femur", "left_femur", "pelvis", "left_iliopsoas"} <= set(other.names.values())
