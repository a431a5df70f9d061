"""Reading CT volumes and splitting them into materials."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from training.anatomy.ct import (
    AIR_HU,
    CtVolume,
    UnusableCt,
    body_mask,
    mass_density_g_cm3,
    material_structures,
    mineral_g_cm3,
    read_ct,
    resampled,
)

sitk: Any = SimpleITK  # only partly typed


def tilted_image() -> Any:
    """A volume whose every voxel has its own value, on an oblique grid with three spacings."""
    image = sitk.GetImageFromArray(np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6))
    image.SetSpacing((0.7, 0.9, 2.5))
    image.SetOrigin((-12.0, 30.0, 44.0))
    cosine, sine = np.cos(0.3), np.sin(0.3)
    image.SetDirection((cosine, -sine, 0.0, sine, cosine, 0.0, 0.0, 0.0, 1.0))
    return image


def write_series(
    folder: Path, positions_mm: tuple[float, ...], series_uid: str = "1.2.826.0.1.3680043.8.498.1"
) -> None:
    """CT slices of 8 x 9 pixels; rescaled, so that stored 1024 is 0 HU."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number, z in enumerate(positions_mm):
        image = sitk.GetImageFromArray(np.full((8, 9), number * 10, np.int16))
        image.SetSpacing((0.5, 0.5))
        for tag, value in {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{series_uid}.{number + 1}",
            "0020|000d": "1.2.826.0.1.3680043.8.498.9",
            "0020|000e": series_uid,
            "0020|0032": f"-2\\-3\\{z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(number),
            "0028|1052": "-1024",
            "0028|1053": "1",
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{series_uid[-1]}_{number}.dcm"))
        writer.Execute(image)


HEAD_FIRST = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def write_slices(
    folder: Path,
    hu: NDArray[np.float32],
    positions_mm: NDArray[np.float64],
    orientation: tuple[float, ...] = HEAD_FIRST,
    **changes: Any,
) -> Path:
    """A CT series as a scanner writes it: stored values are 1024 above the HU, pixels 2 x 1 mm, files in no order.

    Args:
        hu: (slices, rows, columns).
        positions_mm: (slices, 3) Image Position (Patient).
        changes: attributes by keyword, in every slice; None leaves one out.
    """
    folder.mkdir(exist_ok=True)
    series = generate_uid(entropy_srcs=[str(folder)])
    for number, (image, position) in enumerate(zip(hu, positions_mm, strict=True)):
        dataset = Dataset()
        # SOP Common, General Series, Frame of Reference
        dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = f"{series}.{number}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{series}.100", series
        dataset.Modality = "CT"
        # Image Plane, CT Image, Image Pixel
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.ImagePositionPatient = [round(float(value), 4) for value in position]
        dataset.ImageOrientationPatient = [round(value, 6) for value in orientation]
        dataset.PixelSpacing = [2.0, 1.0]
        dataset.InstanceNumber = 100 - number
        dataset.KVP = 100
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.Rows, dataset.Columns = image.shape
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        dataset.PixelData = (np.rint(image) + 1024).astype("<u2").tobytes()
        for keyword, value in changes.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(folder / f"{(7 * number) % 11}.dcm", enforce_file_format=True)
    return folder


def straight(count: int, step_mm: tuple[float, float, float] = (0.0, 0.0, 3.0)) -> NDArray[np.float64]:
    return np.asarray(np.array([-2.0, -3.0, 1.0]) + np.arange(count)[:, None] * np.array(step_mm), np.float64)


def ramp(count: int, rows: int = 8, columns: int = 9) -> NDArray[np.float32]:
    """Every voxel has its own HU, from -500 on."""
    return np.arange(count * rows * columns, dtype=np.float32).reshape(count, rows, columns) - 500.0


def test_a_scanners_series_is_read_in_hounsfield_units_with_its_tube_voltage(tmp_path: Path) -> None:
    ct = read_ct(write_slices(tmp_path / "ct", ramp(5), straight(5)))
    np.testing.assert_array_equal(ct.hu, ramp(5))
    np.testing.assert_allclose(ct.patient_from_voxel @ [1, 1, 1, 1], [-1.0, -1.0, 4.0, 1.0])
    assert ct.kilovolt == 100.0


def test_a_sagittal_series_lies_in_the_patient_as_its_geometry_says(tmp_path: Path) -> None:
    orientation = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)  # columns to the back, rows to the feet, slices to the right
    ct = read_ct(write_slices(tmp_path / "ct", ramp(4), straight(4, (2.5, 0.0, 0.0)), orientation))
    for index in [(0, 0, 0), (8, 0, 0), (0, 7, 0), (3, 2, 3)]:
        x, y, z, _ = ct.patient_from_voxel @ [*index, 1.0]
        level, row, column = (x + 2.0) / 2.5, (1.0 - z) / 2.0, y + 3.0
        expected = ramp(4)[round(level), round(row), round(column)]
        assert ct.hu[index[2], index[1], index[0]] == expected


def test_the_slices_of_a_tilted_gantry_are_put_upright(tmp_path: Path) -> None:
    """Each slice is a linear function of the place, so that interpolation is exact: it must come back as that function."""
    angle = np.radians(15.0)
    orientation = (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(np.sin(angle)))
    positions = straight(6, (0.0, 0.0, 4.0))  # the table moves level
    axes = np.array(orientation).reshape(2, 3)
    row, column = np.mgrid[:20, :12]
    places = positions[:, None, None] + column[..., None] * axes[0] + 2.0 * row[..., None] * axes[1]
    hu = (places @ [5.0, -7.0, 11.0]).astype(np.float32)
    ct = read_ct(write_slices(tmp_path / "ct", hu, positions, orientation))
    lengths_mm = np.linalg.norm(ct.patient_from_voxel[:3, :3], axis=0)
    directions = ct.patient_from_voxel[:3, :3] / lengths_mm
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-5)
    assert lengths_mm[2] == pytest.approx(4.0 * np.cos(angle), abs=1e-3)
    z, y, x = np.nonzero(ct.hu != AIR_HU)
    assert len(z) >= 6 * 19 * 12
    found = (np.stack([x, y, z, np.ones_like(x)], axis=1) @ ct.patient_from_voxel.T)[:, :3] @ [5.0, -7.0, 11.0]
    np.testing.assert_allclose(ct.hu[z, y, x], found, atol=1.0)  # stored as integers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RescaleIntercept": None}, "no Rescale Slope and Intercept"),
        ({"RescaleType": "MGML"}, "values in 'MGML'"),
        ({"RescaleIntercept": 0, "RescaleSlope": 2}, "rescale intercept .* was not applied"),
        ({"Modality": "MR"}, "Modality 'MR', expected CT"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "is a localizer"),
        ({"PixelSpacing": None}, "cannot be stacked"),
    ],
)
def test_a_series_that_is_no_ct_in_hounsfield_units_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnusableCt, match=message):
        read_ct(write_slices(tmp_path / "ct", ramp(3), straight(3), **changes))


def test_slices_that_leave_the_line_are_refused(tmp_path: Path) -> None:
    positions = straight(4)
    positions[2:, 1] += 1.5  # patient moved, or two scans in one series; the distances stay nearly equal
    positions[2:, 2] -= 0.4
    with pytest.raises(UnusableCt, match=r"one straight line|distances between slices"):
        read_ct(write_slices(tmp_path / "ct", ramp(4), positions))


def test_nifti_comes_back_in_the_patient_frame_whatever_its_own_axes_are(tmp_path: Path) -> None:
    image = tilted_image()
    sitk.WriteImage(image, str(tmp_path / "ct.nii.gz"))
    ct = read_ct(tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(ct.hu, sitk.GetArrayFromImage(image))
    for index in [(0, 0, 0), (5, 4, 3), (2, 0, 1)]:
        expected = image.TransformContinuousIndexToPhysicalPoint([float(i) for i in index])
        np.testing.assert_allclose((ct.patient_from_voxel @ [*index, 1.0])[:3], expected, atol=1e-3)


def test_a_dicom_series_is_stacked_by_position(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", (10.0, 4.0, 7.0, 1.0))
    ct = read_ct(tmp_path / "ct")
    assert ct.hu.shape == (4, 8, 9)
    np.testing.assert_array_equal(ct.hu[:, 0, 0], [30.0, 10.0, 20.0, 0.0])
    np.testing.assert_allclose(ct.patient_from_voxel @ [1, 1, 1, 1], [-1.5, -2.5, 4.0, 1.0])


def test_a_series_with_a_missing_slice_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", (1.0, 4.0, 10.0))
    with pytest.raises(ValueError, match=r"range from 3.00 to 6.00 mm"):
        read_ct(tmp_path / "ct")


def test_two_series_in_one_folder_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", (1.0, 4.0))
    write_series(tmp_path / "ct", (1.0, 4.0), "1.2.826.0.1.3680043.8.498.2")
    with pytest.raises(ValueError, match="holds 2 DICOM series"):
        read_ct(tmp_path / "ct")


def test_what_is_no_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_ct(tmp_path / "nothing.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 5), np.int16)), str(tmp_path / "flat.nii.gz"))
    with pytest.raises(ValueError, match="dimensions"):
        read_ct(tmp_path / "flat.nii.gz")


@pytest.mark.parametrize(
    ("hu", "g_cm3"), [(-1000.0, 0.0), (-98.0, 0.930), (0.0, 1.018), (20.0, 1.03), (50.0, 1.061), (1524.0, 1.919)]
)
def test_mass_density_is_schneiders(hu: float, g_cm3: float) -> None:
    assert mass_density_g_cm3(np.array([hu], np.float32))[0] == pytest.approx(g_cm3, abs=1e-3)


def test_cortical_bone_holds_the_mineral_of_icru_44_and_soft_tissue_none() -> None:
    np.testing.assert_allclose(
        mineral_g_cm3(np.array([-100.0, 40.0, 1524.0], np.float32)), [0.0, 0.0, 1.083], atol=1e-3
    )


def patient_on_a_couch() -> CtVolume:
    """A box of soft tissue with a rim of fat, a bone and a piece of metal, above a thin couch."""
    hu = np.full((30, 60, 60), -1000.0, np.float32)
    hu[:, 10:40, 10:50] = -100.0
    hu[:, 14:36, 14:46] = 40.0
    hu[:, 20:30, 20:30] = 1000.0
    hu[10:20, 22:28, 36:42] = 3071.0
    hu[:, 50, :] = 200.0
    return CtVolume(hu, np.diag([2.0, 2.0, 2.0, 1.0]))


def test_the_couch_is_no_part_of_the_patient() -> None:
    ct = patient_on_a_couch()
    expected = np.zeros(ct.hu.shape, bool)
    expected[:, 10:40, 10:50] = True
    np.testing.assert_array_equal(body_mask(ct), expected)


def test_a_volume_without_patient_is_refused() -> None:
    with pytest.raises(ValueError, match="no patient"):
        body_mask(CtVolume(np.full((5, 5, 5), -1000.0, np.float32), np.eye(4)))


def test_the_materials_add_up_to_the_mass_density_and_metal_stands_alone() -> None:
    ct = patient_on_a_couch()
    inside = body_mask(ct)
    structures = {s.name: s for s in material_structures(ct, inside)}
    assert list(structures) == ["soft", "adipose", "mineral", "metal"]
    assert all(s.unit == "g/cm3" and s.values.dtype == np.float32 for s in structures.values())
    metal: NDArray[np.bool_] = structures["metal"].values > 0
    np.testing.assert_array_equal(metal, ct.hu == 3071.0)
    total = np.sum([structures[name].values for name in ("soft", "adipose", "mineral")], axis=0)
    np.testing.assert_allclose(total[inside & ~metal], mass_density_g_cm3(ct.hu)[inside & ~metal], rtol=1e-5)
    assert not total[~inside | metal].any()
    assert structures["adipose"].values[0, 11, 11] == pytest.approx(0.928, abs=1e-3)
    assert structures["adipose"].values[0, 25, 40] == 0.0
    assert structures["mineral"].values[0, 25, 25] == pytest.approx(1.083 * 986 / 1510, rel=1e-3)


def test_resampling_keeps_what_is_where() -> None:
    x, y, z = np.meshgrid(np.arange(12.0), np.arange(10.0), np.arange(8.0), indexing="ij")
    hu = (5 * x + 3 * y - 2 * z).transpose(2, 1, 0).astype(np.float32)  # linear: any good interpolation is exact inside
    affine = np.diag([3.0, 3.0, 1.0, 1.0])
    affine[:3, 3] = 10.0, -20.0, 5.0
    fine = resampled(CtVolume(hu, affine), 1.5)
    assert fine.hu.shape == (8, 19, 23)
    np.testing.assert_allclose(fine.patient_from_voxel @ [2, 2, 0, 1], affine @ [1, 1, 0, 1])
    np.testing.assert_allclose(fine.hu[:, ::2, ::2], hu, atol=1e-3)
    np.testing.assert_allclose(fine.hu[4, 9, 11], 5 * 5.5 + 3 * 4.5 - 2 * 4, atol=0.5)
    assert resampled(fine, 1.5) is fine


def test_the_real_ct_has_its_metal_on_the_patients_left(reference_data: Path) -> None:
    ct = read_ct(reference_data / "ct" / "example_ct.nii.gz")
    metal = next(s for s in material_structures(ct, body_mask(ct)) if s.name == "metal")
    z, y, x = np.nonzero(metal.values)
    centre = (ct.patient_from_voxel @ [x.mean(), y.mean(), z.mean(), 1.0])[:3]
    assert centre[0] > 80.0  # LPS: +x is the patient's left
