"""Radiographs from files: right way round in every encoding, geometry told apart, and clear reasons where nothing can be read."""

import struct
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dicomnode.dicom.codestream import FrameSize, frame_size
from dicomnode.dicom.decoding import decode, pixel_layout
from dicomnode.dicom.grayscale import _first_table, attenuation
from dicomnode.dicom.pixels import read_header, read_radiograph
from dicomnode.dicom.reader import DEFAULT_LIMITS, read_encoded
from dicomnode.domain.measurement import Reason
from dicomnode.domain.radiograph import Sex, Side
from dicomnode.errors import CannotUnderstand, NotMeasurable
from tests.written_objects import (
    SOP_INSTANCE_UID,
    compressed_by_dcmtk,
    compressed_by_pydicom,
    hip_like,
    radiograph_dataset,
    write,
)

UNCOMPRESSED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
COMPRESSED = (RLELossless, JPEGLSLossless, JPEG2000Lossless)


def _read(tmp_path: Path, dataset: Dataset) -> Any:
    return read_radiograph(write(tmp_path / "object.dcm", dataset))


def _stored(path: Path) -> NDArray[np.integer]:
    encoded = read_encoded(path)
    return decode(encoded, pixel_layout(encoded.dataset, DEFAULT_LIMITS))[0]


# --- Encodings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transfer_syntax", UNCOMPRESSED + COMPRESSED, ids=lambda uid: uid.name)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_lossless_encodings_give_the_stored_values(tmp_path: Path, transfer_syntax: UID, dtype: type) -> None:
    image = (hip_like() >> 4).astype(np.uint8) if dtype == np.uint8 else hip_like().astype(dtype)
    if dtype == np.int16:
        image = image - 2048
    dataset = radiograph_dataset(image, BitsStored=8 if dtype == np.uint8 else 12)
    path = tmp_path / "object.dcm"
    if transfer_syntax in COMPRESSED:
        compressed_by_pydicom(path, dataset, transfer_syntax)
    else:
        write(path, dataset, transfer_syntax)
    radiograph = read_radiograph(path)
    assert np.array_equal(radiograph.image, image.astype(np.float32))
    assert radiograph.image.dtype == np.float32
    assert not radiograph.lossy


@pytest.mark.parametrize("option", ["+e1", "+el"], ids=["selection value 1", "process 14"])
def test_jpeg_lossless_gives_the_stored_values(tmp_path: Path, dcmtk: Path, option: str) -> None:
    path = compressed_by_dcmtk(tmp_path / "object.dcm", radiograph_dataset(), dcmtk, option)
    assert np.array_equal(read_radiograph(path).image, hip_like().astype(np.float32))


def _decoded_by_dcmtk(path: Path, dcmtk: Path) -> NDArray[np.float32]:
    plain = path.with_suffix(".decoded.dcm")
    subprocess.run([dcmtk / "dcmdjpeg", path, plain], check=True, capture_output=True)
    decoded: NDArray[np.float32] = pydicom.dcmread(plain).pixel_array.astype(np.float32)
    return decoded


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("option", "bits"), [("+eb", 8), ("+ee", 8), ("+ee", 12)])
def test_lossy_jpeg_is_as_dcmtk_decodes_it_and_the_right_way_round(
    tmp_path: Path, dcmtk: Path, photometric: str, option: str, bits: int
) -> None:
    image = hip_like(bits=bits).astype(np.uint8 if bits == 8 else np.uint16)
    dataset = radiograph_dataset(image, BitsStored=bits, PhotometricInterpretation=photometric)
    path = compressed_by_dcmtk(tmp_path / "object.dcm", dataset, dcmtk, option)
    radiograph = read_radiograph(path)
    upright = radiograph.image if photometric == "MONOCHROME2" else -radiograph.image
    # Two implementations of the inverse DCT may differ by a step or two of the output (ISO/IEC 10918-2).
    assert np.abs(upright - _decoded_by_dcmtk(path, dcmtk)).max() <= 2
    assert np.corrcoef(upright.ravel(), image.ravel().astype(np.float32))[0, 1] > 0.99
    assert radiograph.lossy


@pytest.mark.parametrize("option", ["+eb", "+ee", "+e1"])
def test_eight_bits_may_be_allocated_sixteen(tmp_path: Path, dcmtk: Path, option: str) -> None:
    image = hip_like() >> 4
    path = compressed_by_dcmtk(tmp_path / "object.dcm", radiograph_dataset(image, BitsStored=8), dcmtk, option)
    expected = _decoded_by_dcmtk(path, dcmtk)
    dataset = pydicom.dcmread(path)
    dataset.BitsAllocated = 16
    dataset.save_as(path)
    assert np.abs(read_radiograph(path).image - expected).max() <= 2


def test_want_of_disk_is_not_blamed_on_the_object(tmp_path: Path, dcmtk: Path) -> None:
    path = compressed_by_dcmtk(tmp_path / "object.dcm", radiograph_dataset(), dcmtk, "+ee")
    program = (
        "import pathlib, resource, sys, tempfile\n"
        "from dicomnode.dicom.pixels import read_radiograph\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try: read_radiograph(pathlib.Path(sys.argv[1]))\n"
        "except OSError as error: print('OSError', error.errno)\n"
    )
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, cwd=root)
    assert ran.stdout.startswith("OSError"), ran.stderr


def test_near_lossless_jpeg_ls_is_within_its_bound_and_lossy(tmp_path: Path) -> None:
    path = compressed_by_pydicom(tmp_path / "object.dcm", radiograph_dataset(), JPEGLSNearLossless, jls_error=3)
    radiograph = read_radiograph(path)
    assert np.abs(radiograph.image - hip_like()).max() == 3
    assert radiograph.lossy


def test_the_decoders_of_each_encoding_agree_on_monochrome1(tmp_path: Path, dcmtk: Path) -> None:
    # SimpleITK inverts MONOCHROME1 by itself; each decoder must give the same way round nevertheless.
    image = hip_like()
    paths = [write(tmp_path / "plain.dcm", radiograph_dataset(image, PhotometricInterpretation="MONOCHROME1"))]
    for option in ("+ee", "+e1", "+el"):
        dataset = radiograph_dataset(image, PhotometricInterpretation="MONOCHROME1")
        paths.append(compressed_by_dcmtk(tmp_path / f"{option}.dcm", dataset, dcmtk, option))
    for syntax in COMPRESSED:
        dataset = radiograph_dataset(image, PhotometricInterpretation="MONOCHROME1")
        paths.append(compressed_by_pydicom(tmp_path / f"{syntax}.dcm", dataset, syntax))
    for path in paths:
        assert np.corrcoef(read_radiograph(path).image.ravel(), image.ravel())[0, 1] < -0.99, path.name


def test_the_real_hip_is_the_same_in_every_lossless_encoding(reference_data: Path) -> None:
    folder = reference_data / "dicom" / "nema_wg04"
    expected = pydicom.dcmread(folder / "RG2_UNC.dcm").pixel_array.astype(np.float32)
    for encoding in ("UNC", "J2KR", "JLSL", "JPLL", "RLE"):
        radiograph = read_radiograph(folder / f"RG2_{encoding}.dcm")
        assert np.array_equal(radiograph.image, expected), encoding
        assert not radiograph.lossy
    near = read_radiograph(folder / "RG2_JLSN.dcm")
    assert np.abs(near.image - expected).max() == 4
    assert near.lossy


def test_the_real_chest_in_monochrome1_has_dark_air_and_bright_spine(reference_data: Path) -> None:
    radiograph = read_radiograph(reference_data / "dicom" / "nema_wg04" / "RG1_J2KI.dcm")
    rows, columns = radiograph.image.shape
    beside_the_patient = np.median(radiograph.image[: rows // 20, : columns // 20])
    below_the_diaphragm = np.median(radiograph.image[-rows // 8 :, columns // 2 - 100 : columns // 2 + 100])
    assert below_the_diaphragm > beside_the_patient
    assert radiograph.geometry.detector_spacing_mm is None
    assert radiograph.geometry.sdd_mm == 1996.0
    assert any("PixelSpacing is 0 x 0 mm" in note for note in radiograph.notes)


@pytest.mark.parametrize(
    ("name", "minimum", "maximum"),
    [
        ("pydicom-data/JLSL_08_07_0_1F.dcm", 0, 127),
        ("pydicom-data/JLSL_16_15_1_1F.dcm", None, None),
        ("pydicom-data/explicit_VR-UN.dcm", None, None),
        ("pydicom-data/MR_small_bigendian.dcm", None, None),
        ("pydicom-data/image_dfl.dcm", None, None),
        ("fo-dicom/GH133.dcm", None, None),
        ("pydicom-data/mlut_18.dcm", None, None),
    ],
)
def test_stored_values_agree_with_pydicom(
    reference_data: Path, name: str, minimum: int | None, maximum: int | None
) -> None:
    path = reference_data / "dicom" / name
    ours = _stored(path)
    assert np.array_equal(ours, pydicom.dcmread(path).pixel_array)
    if minimum is not None and maximum is not None:
        assert minimum <= ours.min() and ours.max() <= maximum


def test_a_real_jpeg_extended_picture_of_12_bits_is_decoded(reference_data: Path) -> None:
    stored = _stored(reference_data / "dicom" / "pydicom-data" / "JPEG-lossy.dcm")
    assert stored.shape == (1024, 256)
    assert stored.max() > 255  # more than eight bits
    assert np.median(stored[:50]) < np.median(stored[200:800, 100:156])  # a bone scan: dark above the head


def test_bits_beyond_bits_stored_are_no_part_of_the_value(tmp_path: Path) -> None:
    image = hip_like()
    overlay_in_unused_bits = image | (np.arange(image.size, dtype=np.uint16).reshape(image.shape) << 12)
    assert np.array_equal(_read(tmp_path, radiograph_dataset(overlay_in_unused_bits)).image, image)


def test_bits_below_the_low_bit_are_no_part_of_the_value(tmp_path: Path) -> None:
    image = hip_like()
    left_aligned = (image << 4) | 0b1010
    assert np.array_equal(_read(tmp_path, radiograph_dataset(left_aligned, HighBit=15)).image, image)


def test_the_sign_bit_is_that_of_bits_stored(tmp_path: Path) -> None:
    image = (hip_like().astype(np.int16) - 2048) & 0x0FFF  # the upper four bits are not extended
    dataset = radiograph_dataset(image.astype(np.int16))
    assert np.array_equal(_read(tmp_path, dataset).image, hip_like().astype(np.float32) - 2048)


def test_eight_bit_pixels_in_big_endian_words_keep_their_order(tmp_path: Path) -> None:
    image = (hip_like(31, 33) >> 4).astype(np.uint8)
    dataset = radiograph_dataset(image)
    padded = image.tobytes() + b"\0"
    dataset.PixelData = np.frombuffer(padded, "<u2").astype(">u2").tobytes()
    dataset["PixelData"].VR = "OW"
    path = write(tmp_path / "object.dcm", dataset, ExplicitVRBigEndian)
    assert np.array_equal(read_radiograph(path).image, image)


def test_many_fragments_make_one_picture(tmp_path: Path) -> None:
    dataset = radiograph_dataset()
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = pydicom.encaps.encapsulate([frame], fragments_per_frame=7)
    path = write(tmp_path / "object.dcm", dataset, JPEG2000Lossless)
    assert np.array_equal(read_radiograph(path).image, hip_like())


# --- Which end is bone -------------------------------------------------------------------------------------------------


def test_monochrome1_and_monochrome2_of_one_picture_differ_by_a_constant(tmp_path: Path) -> None:
    image = hip_like()
    bright = _read(tmp_path, radiograph_dataset(image)).image
    dark = _read(tmp_path, radiograph_dataset(4095 - image, PhotometricInterpretation="MONOCHROME1")).image
    assert np.ptp(bright - dark) == 0


def test_rescale_slope_and_intercept_are_applied_and_a_negative_slope_turns_nothing_round(tmp_path: Path) -> None:
    image = hip_like()
    dataset = radiograph_dataset(4095 - image, RescaleSlope="-2", RescaleIntercept="100")
    assert np.allclose(_read(tmp_path, dataset).image, -2.0 * (4095.0 - image) + 100.0)


def test_a_rescale_slope_of_zero_is_left_out_and_told(tmp_path: Path) -> None:
    radiograph = _read(tmp_path, radiograph_dataset(RescaleSlope="0", RescaleIntercept="0"))
    assert np.array_equal(radiograph.image, hip_like())
    assert "Rescale Slope is 0 and was left out." in radiograph.notes


def _lut_item(entries: NDArray[np.uint16], first: int, keyword: str) -> dict[str, Any]:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first, 16])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    if keyword == "ModalityLUTSequence":
        item.ModalityLUTType = "US"
    return {keyword: [item]}


@pytest.mark.parametrize("transfer_syntax", UNCOMPRESSED[:2], ids=lambda uid: uid.name)
def test_a_modality_lut_maps_values_and_clamps_outside(tmp_path: Path, transfer_syntax: UID) -> None:
    table = (np.arange(1000, dtype=np.uint16) * 3) + 7
    dataset = radiograph_dataset(**_lut_item(table, 500, "ModalityLUTSequence"))
    image = read_radiograph(write(tmp_path / "object.dcm", dataset, transfer_syntax)).image
    assert np.array_equal(image, table[np.clip(hip_like().astype(int) - 500, 0, 999)])


def test_a_lut_of_65536_entries_states_zero(tmp_path: Path) -> None:
    table = np.arange(65536, dtype=np.uint16) // 2
    image = _read(tmp_path, radiograph_dataset(**_lut_item(table, 0, "ModalityLUTSequence"))).image
    assert np.array_equal(image, hip_like() // 2)


def test_a_voi_lut_that_falls_says_that_large_values_are_shown_dark(tmp_path: Path) -> None:
    falling = np.arange(4095, -1, -1, dtype=np.uint16)
    radiograph = _read(tmp_path, radiograph_dataset(4095 - hip_like(), **_lut_item(falling, 0, "VOILUTSequence")))
    assert np.ptp(radiograph.image - hip_like()) == 0


def test_a_window_does_not_touch_what_is_measured(tmp_path: Path) -> None:
    radiograph = _read(tmp_path, radiograph_dataset(WindowCenter="2000", WindowWidth="10", VOILUTFunction="SIGMOID"))
    assert np.array_equal(radiograph.image, hip_like())


def test_linear_for_processing_data_become_proportional_to_thickness(tmp_path: Path) -> None:
    thickness_cm = np.tile(np.linspace(0.0, 20.0, 64), (32, 1))
    mu_per_cm = 0.2
    counts = np.rint(60_000.0 * np.exp(-mu_per_cm * thickness_cm)).astype(np.uint16)
    dataset = radiograph_dataset(
        counts,
        BitsStored=16,
        SOPClassUID=DigitalXRayImageStorageForProcessing,
        PresentationIntentType="FOR PROCESSING",
        PixelIntensityRelationship="LIN",
        PixelIntensityRelationshipSign=1,
        PhotometricInterpretation="MONOCHROME2",  # shown as it is, bone would be black: the sign decides
    )
    radiograph = _read(tmp_path, dataset)
    attenuation_line = radiograph.image - radiograph.image.min()
    assert np.allclose(attenuation_line, mu_per_cm * thickness_cm, atol=2e-3)
    assert "The values are linear in exposure; their logarithm was used." in radiograph.notes


def test_linear_data_with_sign_minus_one_are_turned_into_intensity_first(tmp_path: Path) -> None:
    thickness_cm = np.tile(np.linspace(0.0, 10.0, 64), (32, 1))
    counts = np.rint(60_000.0 * np.exp(-0.2 * thickness_cm)).astype(np.uint16)
    dataset = radiograph_dataset(
        65535 - counts,
        BitsStored=16,
        SOPClassUID=DigitalXRayImageStorageForProcessing,
        PixelIntensityRelationship="LIN",
        PixelIntensityRelationshipSign=-1,
    )
    image = _read(tmp_path, dataset).image
    assert np.allclose(image - image.min(), 0.2 * thickness_cm, atol=2e-3)


@pytest.mark.parametrize(("sign", "upright"), [(1, -1.0), (-1, 1.0)])
def test_logarithmic_for_processing_data_follow_the_sign(tmp_path: Path, sign: int, upright: float) -> None:
    dataset = radiograph_dataset(
        PresentationIntentType="FOR PROCESSING", PixelIntensityRelationship="LOG", PixelIntensityRelationshipSign=sign
    )
    assert np.array_equal(_read(tmp_path, dataset).image, upright * hip_like())


def test_for_presentation_the_photometric_interpretation_wins_over_the_sign_and_it_is_told(tmp_path: Path) -> None:
    dataset = radiograph_dataset(PixelIntensityRelationship="LOG", PixelIntensityRelationshipSign=1)
    radiograph = _read(tmp_path, dataset)
    assert np.array_equal(radiograph.image, hip_like())
    assert any("Sign contradicts" in note for note in radiograph.notes)
    agreeing = _read(tmp_path, radiograph_dataset(PixelIntensityRelationship="LOG", PixelIntensityRelationshipSign=-1))
    assert agreeing.notes == ()


def test_for_presentation_data_called_linear_are_left_alone_and_it_is_told(tmp_path: Path) -> None:
    radiograph = _read(tmp_path, radiograph_dataset(PixelIntensityRelationship="LIN"))
    assert np.array_equal(radiograph.image, hip_like())
    assert any("linear in exposure" in note for note in radiograph.notes)


@pytest.mark.parametrize(("photometric", "shape"), [("MONOCHROME2", "INVERSE"), ("MONOCHROME1", "IDENTITY")])
def test_a_presentation_lut_shape_that_contradicts_is_told(tmp_path: Path, photometric: str, shape: str) -> None:
    contradicting = radiograph_dataset(PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    assert any(f"Presentation LUT Shape {shape}" in note for note in _read(tmp_path, contradicting).notes)
    other = {"INVERSE": "IDENTITY", "IDENTITY": "INVERSE"}[shape]
    agreeing = radiograph_dataset(PhotometricInterpretation=photometric, PresentationLUTShape=other)
    assert _read(tmp_path, agreeing).notes == ()


def test_padding_round_the_picture_is_as_dark_as_its_darkest_pixel_and_metal_within_stays(tmp_path: Path) -> None:
    image = np.full((40, 40), 2000, np.uint16)
    image[10:30, 10:30] = 1000 + np.arange(400, dtype=np.uint16).reshape(20, 20)
    image[:4] = 0  # padding
    image[18:22, 18:22] = 0  # metal, saturated at the white end of MONOCHROME1
    radiograph = _read(
        tmp_path, radiograph_dataset(image, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0)
    )
    assert np.all(radiograph.image[:4] == -2000)
    assert np.all(radiograph.image[18:22, 18:22] == 0)
    assert radiograph.image[18, 18] == radiograph.image.max()
    assert "10 % of the pixels are padding." in radiograph.notes


def test_padding_may_be_a_range(tmp_path: Path) -> None:
    image = hip_like() // 2 + 100
    image[:, :10] = np.arange(10, dtype=np.uint16)
    dataset = radiograph_dataset(image, PixelPaddingValue=0, PixelPaddingRangeLimit=9)
    assert np.all(_read(tmp_path, dataset).image[:, :10] == image[:, 10:].min())


@pytest.mark.parametrize("name", ["pydicom-data/mlut_18.dcm", "fo-dicom/CR-ModalitySequenceLUT.dcm"])
def test_modality_luts_agree_with_pydicom(reference_data: Path, name: str) -> None:
    path = reference_data / "dicom" / name
    encoded = read_encoded(path)
    layout = pixel_layout(encoded.dataset, DEFAULT_LIMITS)
    image, _ = attenuation(decode(encoded, layout)[0], layout, encoded.dataset)
    dataset = pydicom.dcmread(path)
    expected = apply_modality_lut(dataset.pixel_array, dataset).astype(np.float32)
    assert np.array_equal(image, -expected if layout.monochrome1 else expected)


@pytest.mark.parametrize("name", ["pydicom-data/vlut_04.dcm", "fo-dicom/GH133.dcm"])
def test_voi_luts_agree_with_pydicom(reference_data: Path, name: str) -> None:
    path = reference_data / "dicom" / name
    encoded = read_encoded(path)
    layout = pixel_layout(encoded.dataset, DEFAULT_LIMITS)
    table = _first_table(encoded.dataset, "VOILUTSequence", layout.signed)
    assert table is not None
    dataset = pydicom.dcmread(path)
    assert np.array_equal(table(decode(encoded, layout)[0]), apply_voi(dataset.pixel_array, dataset))


# --- Geometry and patient ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "detector_mm", "patient_mm", "note"),
    [
        ({}, (0.15, 0.15), None, ""),
        ({"PixelSpacing": [0.15, 0.15]}, (0.15, 0.15), None, ""),
        ({"PixelSpacing": [0.13, 0.13]}, (0.15, 0.15), (0.13, 0.13), ""),
        ({"PixelSpacing": [0.15, 0.15], "PixelSpacingCalibrationType": "FIDUCIAL"}, (0.15, 0.15), (0.15, 0.15), ""),
        ({"ImagerPixelSpacing": None, "PixelSpacing": [0.2, 0.2]}, (0.2, 0.2), None, "not said to be calibrated"),
        (
            {"ImagerPixelSpacing": None, "PixelSpacing": [0.2, 0.2], "PixelSpacingCalibrationType": "GEOMETRY"},
            None,
            (0.2, 0.2),
            "",
        ),
        ({"ImagerPixelSpacing": None}, None, None, "No usable pixel spacing"),
        ({"ImagerPixelSpacing": [0, 0]}, None, None, "ImagerPixelSpacing is 0 x 0 mm"),
        ({"ImagerPixelSpacing": [-0.1, 0.1]}, None, None, "-0.1 x 0.1 mm"),
        ({"ImagerPixelSpacing": [150, 150]}, None, None, "150 x 150 mm"),
        ({"ImagerPixelSpacing": None, "NominalScannedPixelSpacing": [0.1, 0.1]}, (0.1, 0.1), None, ""),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, (0.1, 0.2), None, "differs between rows and columns"),
        ({"PixelSpacing": [0.0, 0.0]}, (0.15, 0.15), None, "PixelSpacing is 0 x 0 mm"),
    ],
)
def test_spacing_at_the_detector_and_in_the_patient_are_told_apart(
    tmp_path: Path,
    attributes: dict[str, Any],
    detector_mm: tuple[float, float] | None,
    patient_mm: tuple[float, float] | None,
    note: str,
) -> None:
    radiograph = _read(tmp_path, radiograph_dataset(**attributes))
    assert radiograph.geometry.detector_spacing_mm == detector_mm
    assert radiograph.geometry.patient_spacing_mm == patient_mm
    assert radiograph.notes == () if not note else any(note in said for said in radiograph.notes)


def test_distances_and_magnification_are_read_where_they_are_possible(tmp_path: Path) -> None:
    geometry = _read(
        tmp_path,
        radiograph_dataset(
            DistanceSourceToDetector="1150",
            DistanceSourceToPatient="1000",
            EstimatedRadiographicMagnificationFactor="1.15",
        ),
    ).geometry
    assert (geometry.sdd_mm, geometry.spd_mm, geometry.magnification_stated) == (1150.0, 1000.0, 1.15)


@pytest.mark.parametrize(
    ("attributes", "note"),
    [
        ({"DistanceSourceToDetector": "1000", "DistanceSourceToPatient": "1150"}, "exceeds"),
        ({"DistanceSourceToDetector": "115"}, "DistanceSourceToDetector is 115"),
        ({"EstimatedRadiographicMagnificationFactor": "0.8"}, "is 0.8 and was left out"),
        ({"DistanceSourceToDetector": "0", "EstimatedRadiographicMagnificationFactor": "0"}, ""),
    ],
)
def test_impossible_distances_are_left_out_and_told(tmp_path: Path, attributes: dict[str, str], note: str) -> None:
    radiograph = _read(tmp_path, radiograph_dataset(**attributes))
    geometry = radiograph.geometry
    assert (geometry.sdd_mm, geometry.spd_mm, geometry.magnification_stated) == (None, None, None)
    assert radiograph.notes == () if not note else any(note in said for said in radiograph.notes)


def test_a_magnification_that_contradicts_the_distances_is_told(tmp_path: Path) -> None:
    dataset = radiograph_dataset(
        DistanceSourceToDetector="1150", DistanceSourceToPatient="1000", EstimatedRadiographicMagnificationFactor="1.5"
    )
    assert any("contradicts the distances" in note for note in _read(tmp_path, dataset).notes)


@pytest.mark.parametrize(
    ("attributes", "side"),
    [
        ({"ImageLaterality": "L"}, Side.LEFT),
        ({"Laterality": "r"}, Side.RIGHT),
        ({"ImageLaterality": "R", "Laterality": "L"}, Side.RIGHT),
        ({"ImageLaterality": "B"}, None),
        ({"ImageLaterality": "", "Laterality": "L"}, Side.LEFT),
        ({}, None),
        ({"ImageLaterality": "LEFT"}, None),
    ],
)
def test_laterality_is_that_of_the_image_then_that_of_the_series(
    tmp_path: Path, attributes: dict[str, str], side: Side | None
) -> None:
    assert _read(tmp_path, radiograph_dataset(**attributes)).laterality_stated is side


@pytest.mark.parametrize(
    ("orientation", "note"),
    [(["L", "F"], ""), (["R", "F"], "mirrored"), (["L", "H"], "head up"), (["", ""], ""), (["A", "F"], "")],
)
def test_an_unusual_orientation_is_told(tmp_path: Path, orientation: list[str], note: str) -> None:
    notes = _read(tmp_path, radiograph_dataset(PatientOrientation=orientation)).notes
    assert notes == () if not note else any(note in said for said in notes)


@pytest.mark.parametrize(
    ("attributes", "age_years"),
    [
        ({"PatientBirthDate": "19500101", "StudyDate": "20200101"}, 70.0),
        ({"PatientAge": "070Y"}, 70.0),
        ({"PatientAge": "018M"}, 1.5),
        ({"PatientAge": "70"}, None),
        ({"PatientBirthDate": "00000000", "PatientAge": "065Y"}, 65.0),
        ({"PatientBirthDate": "1950.01.01", "StudyDate": "2020.01.01"}, 70.0),
        ({"PatientBirthDate": "20300101", "StudyDate": "20200101", "PatientAge": "070Y"}, 70.0),
        ({"PatientBirthDate": "19500101"}, None),
    ],
)
def test_age_comes_from_the_dates_and_else_as_stated(
    tmp_path: Path, attributes: dict[str, str], age_years: float | None
) -> None:
    found = _read(tmp_path, radiograph_dataset(**attributes)).patient.age_years
    assert found == age_years if age_years is None else found == pytest.approx(age_years, abs=0.01)


def test_identity_view_and_patient_are_read(tmp_path: Path) -> None:
    dataset = radiograph_dataset(
        PatientSex="f",
        StudyDate="20240229",
        LossyImageCompression="01",
    )
    radiograph = _read(tmp_path, dataset)
    assert radiograph.sop_instance_uid == SOP_INSTANCE_UID
    assert radiograph.patient.sex is Sex.FEMALE
    assert radiograph.patient.study_date == date(2024, 2, 29)
    assert radiograph.lossy


@pytest.mark.parametrize(
    ("stated", "kilovolt", "note"),
    [("77.5", 77.5, False), ("", None, False), ("0", None, False), ("80000", None, True), ("-80", None, True)],
)
def test_a_tube_voltage_is_read_where_it_can_be_one(
    tmp_path: Path, stated: str, kilovolt: float | None, note: bool
) -> None:
    radiograph = _read(tmp_path, radiograph_dataset(KVP=stated))
    assert radiograph.technique.kilovolt == kilovolt
    assert any("KVP" in one for one in radiograph.notes) == note


@pytest.mark.parametrize(
    ("filters", "copper_mm"),
    [
        ({}, None),
        ({"FilterType": "NONE"}, 0.0),
        ({"FilterType": "STRIP"}, None),
        ({"FilterType": "0.1Cu 1Al"}, 0.1),
        ({"FilterType": "1 mm Al + 0.2 mm Cu"}, 0.2),
        ({"FilterMaterial": "ALUMINUM"}, 0.0),
        ({"FilterMaterial": "COPPER"}, None),
        ({"FilterMaterial": "COPPER", "FilterThicknessMinimum": "0.2"}, 0.2),
        ({"FilterMaterial": "COPPER", "FilterThicknessMinimum": "0.1", "FilterThicknessMaximum": "0.3"}, None),
        ({"FilterMaterial": "COPPER", "FilterThicknessMinimum": "100"}, None),
        (
            {
                "FilterMaterial": ["ALUMINUM", "COPPER"],
                "FilterThicknessMinimum": ["1", "0.1"],
                "FilterThicknessMaximum": ["1", "0.1"],
            },
            0.1,
        ),
        ({"FilterMaterial": ["ALUMINUM", "COPPER"], "FilterThicknessMaximum": "0.1"}, None),
    ],
)
def test_copper_is_read_where_the_header_says_one_number(
    tmp_path: Path, filters: dict[str, object], copper_mm: float | None
) -> None:
    assert _read(tmp_path, radiograph_dataset(**filters)).technique.copper_mm == copper_mm


@pytest.mark.parametrize(
    ("stated", "storage_phosphor"),
    [
        ({"DetectorType": "STORAGE"}, True),
        ({"DetectorType": "SCINTILLATOR"}, False),
        ({"Modality": "CR"}, True),
        ({"Modality": "CR", "DetectorType": "DIRECT"}, False),
        ({"Modality": "DX"}, None),
    ],
)
def test_the_kind_of_detector_is_read(tmp_path: Path, stated: dict[str, object], storage_phosphor: bool | None) -> None:
    assert _read(tmp_path, radiograph_dataset(**stated)).technique.storage_phosphor is storage_phosphor


def test_damaged_attributes_are_as_good_as_absent(tmp_path: Path) -> None:
    path = write(tmp_path / "object.dcm", radiograph_dataset(RescaleSlope="1", WindowCenter="20", PatientAge="070Y"))
    damaged = path.read_bytes().replace(b"070Y", b"\xff\xfe\x00x").replace(b"DS\x02\x00" + b"20", b"DS\x02\x00" + b"xx")
    path.write_bytes(damaged)
    radiograph = read_radiograph(path)
    assert radiograph.patient.age_years is None
    assert np.array_equal(radiograph.image, hip_like())


# --- What cannot be measured -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "reason", "seen"),
    [
        ({"Modality": "MR"}, Reason.NOT_A_RADIOGRAPH, "Modality is 'MR'"),
        ({"Modality": "OT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, Reason.NOT_A_RADIOGRAPH, "Modality is 'OT'"),
        ({"NumberOfFrames": 2}, Reason.NOT_A_RADIOGRAPH, "2 frames"),
        ({"SamplesPerPixel": 3}, Reason.NOT_A_RADIOGRAPH, "3 samples per pixel"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, Reason.NOT_A_RADIOGRAPH, "PALETTE COLOR"),
        ({"PhotometricInterpretation": None}, Reason.UNREADABLE, "Photometric Interpretation is absent"),
        ({"Rows": 0}, Reason.UNREADABLE, "0 x 128"),
        ({"Rows": 65535, "Columns": 65535}, Reason.UNREADABLE, "more than the limit"),
        ({"Rows": 97}, Reason.UNREADABLE, "need 24832 bytes, the pixel data hold 24576"),
        ({"BitsAllocated": 12}, Reason.UNREADABLE, "Bits Allocated is 12"),
        ({"BitsAllocated": 32, "BitsStored": 32}, Reason.UNREADABLE, "Bits Allocated is 32"),
        ({"BitsStored": 17}, Reason.UNREADABLE, "do not fit"),
        ({"BitsStored": 12, "HighBit": 16}, Reason.UNREADABLE, "do not fit"),
        ({"BitsStored": 0, "HighBit": 0}, Reason.UNREADABLE, "do not fit"),
        ({"PixelData": None}, Reason.UNREADABLE, "no pixel data"),
        ({"PixelData": b""}, Reason.UNREADABLE, "the pixel data hold 0"),
        ({"PixelData": bytes(96 * 128 * 2)}, Reason.UNREADABLE, "same value"),
        ({"PixelData": bytes(96 * 128 * 2), "PixelPaddingValue": 0}, Reason.UNREADABLE, "all pixels are padding"),
    ],
)
def test_what_is_no_radiograph_or_unreadable_says_why(
    tmp_path: Path, attributes: dict[str, Any], reason: Reason, seen: str
) -> None:
    with pytest.raises(NotMeasurable) as refusal:
        _read(tmp_path, radiograph_dataset(**attributes))
    assert refusal.value.reason is reason
    assert seen in refusal.value.detail


@pytest.mark.parametrize("modality", ["", "OT"])
def test_an_untold_modality_is_what_the_sop_class_says(tmp_path: Path, modality: str) -> None:
    assert _read(tmp_path, radiograph_dataset(Modality=modality)).image.shape == (96, 128)


def test_truncated_pixel_data_are_never_a_picture(tmp_path: Path) -> None:
    path = write(tmp_path / "object.dcm", radiograph_dataset())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(NotMeasurable, match="need 24576 bytes, the pixel data hold 24575"):
        read_radiograph(path)


@pytest.mark.parametrize("transfer_syntax", COMPRESSED, ids=lambda uid: uid.name)
def test_truncated_compressed_pixel_data_are_never_a_picture(tmp_path: Path, transfer_syntax: UID) -> None:
    path = compressed_by_pydicom(tmp_path / "object.dcm", radiograph_dataset(), transfer_syntax)
    whole = path.read_bytes()
    for size in (len(whole) - 16, len(whole) - 1000, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(NotMeasurable) as refusal:
            read_radiograph(path)
        assert refusal.value.reason is Reason.UNREADABLE


def test_a_missing_end_of_the_fragments_alone_loses_nothing(tmp_path: Path) -> None:
    path = compressed_by_pydicom(tmp_path / "object.dcm", radiograph_dataset(), JPEG2000Lossless)
    path.write_bytes(path.read_bytes()[:-8])
    assert np.array_equal(read_radiograph(path).image, hip_like())


def test_values_beyond_bits_stored_are_told(tmp_path: Path) -> None:
    dataset = radiograph_dataset()
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    dataset.BitsStored, dataset.HighBit = 10, 9
    radiograph = read_radiograph(write(tmp_path / "object.dcm", dataset, JPEG2000Lossless))
    assert any("Bits Stored 10 has room to 1023" in note for note in radiograph.notes)


@pytest.mark.parametrize("transfer_syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_a_codestream_of_another_size_than_the_header_is_not_decoded(tmp_path: Path, transfer_syntax: UID) -> None:
    path = compressed_by_pydicom(tmp_path / "object.dcm", radiograph_dataset(), transfer_syntax)
    content = path.read_bytes()
    blown_up = (
        content.replace(struct.pack(">HH", 96, 128), struct.pack(">HH", 65535, 65535), 1)
        if transfer_syntax == JPEGLSLossless
        else content.replace(struct.pack(">LL", 128, 96), struct.pack(">LL", 2**31, 2**31), 1)
    )
    assert blown_up != content
    path.write_bytes(blown_up)
    with pytest.raises(NotMeasurable, match="the header states 96 x 128"):
        read_radiograph(path)


def test_an_rle_frame_unpacks_to_no_more_than_the_picture(tmp_path: Path) -> None:
    dataset = radiograph_dataset()
    runs = b"\x81\x07" * 1_000_000  # 128 times the byte 7, a million times
    header = struct.pack("<16L", 2, 64, 64 + len(runs), *[0] * 13)
    dataset.PixelData = pydicom.encaps.encapsulate([header + runs + runs])
    with pytest.raises(NotMeasurable, match="same value"):  # decoded, bounded, and blank
        read_radiograph(write(tmp_path / "object.dcm", dataset, RLELossless))


@pytest.mark.parametrize(
    ("frame", "seen"),
    [
        (b"\0" * 10, "shorter than its header"),
        (struct.pack("<16L", 3, *[64] * 15) + b"\0" * 10, "has 3 segments, 16 bits need 2"),
        (struct.pack("<16L", 2, 64, 70, *[0] * 13) + b"\x02abc" * 4, "unpacks to"),
        (struct.pack("<16L", 2, 2**31, 2**32 - 1, *[0] * 13), "unpacks to 0 bytes"),
    ],
)
def test_a_damaged_rle_frame_is_unreadable(tmp_path: Path, frame: bytes, seen: str) -> None:
    dataset = radiograph_dataset(PixelData=pydicom.encaps.encapsulate([frame]))
    with pytest.raises(NotMeasurable, match=seen):
        read_radiograph(write(tmp_path / "object.dcm", dataset, RLELossless))


def test_a_compressed_transfer_syntax_over_native_pixels_and_the_reverse_are_unreadable(tmp_path: Path) -> None:
    native = radiograph_dataset()
    path = write(tmp_path / "native.dcm", native)
    content = path.read_bytes()
    uid = str(ExplicitVRLittleEndian).encode() + b"\0"
    stated = content.replace(uid, b"1.2.840.10008.1.2.5\0", 1).replace(b"UI\x14\x00" + uid, b"UI\x14\x00" + uid, 1)
    path.write_bytes(stated)
    with pytest.raises(NotMeasurable, match="not encapsulated"):
        read_radiograph(path)
    encapsulated = compressed_by_pydicom(tmp_path / "rle.dcm", radiograph_dataset(), RLELossless)
    content = encapsulated.read_bytes()
    encapsulated.write_bytes(content.replace(b"1.2.840.10008.1.2.5\0", uid, 1))
    with pytest.raises(NotMeasurable, match="the pixel data are encapsulated"):
        read_radiograph(encapsulated)


def test_the_size_in_a_codestream_is_read_for_each_family(tmp_path: Path, dcmtk: Path) -> None:
    for option, bits in {"+e1": 16, "+eb": 8, "+ee": 12}.items():  # DCMTK keeps Bits Allocated in lossless JPEG
        image = (hip_like() >> 4).astype(np.uint8) if bits == 8 else hip_like()
        path = compressed_by_dcmtk(tmp_path / f"{option}.dcm", radiograph_dataset(image), dcmtk, option)
        frame = next(pydicom.encaps.generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))
        assert frame_size(frame) == FrameSize(96, 128, 1, bits), option
    for syntax in (JPEGLSLossless, JPEG2000Lossless):
        dataset = radiograph_dataset()
        dataset.compress(syntax)
        frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
        assert frame_size(frame) == FrameSize(96, 128, 1, 12)


@pytest.mark.parametrize(
    ("codestream", "seen"),
    [
        (b"", "is empty"),
        (b"\xff\xd8\xff\xd9", "no frame header"),
        (b"\xff\xd8" + b"\x00" * 200, "no end marker"),
        (b"BM" + b"\x00" * 20 + b"\xff\xd9", "starts neither"),
        (b"\xff\x4f\xff\x51" + b"\x00" * 40 + b"\xff\xd9", "empty grid"),
        (b"\xff\x4f\xff\x51\x00\xff\xd9", "no JPEG 2000 size"),
        (b"\xff\xd8\x12\x34\x56\x78\xff\xd9", "no marker segment"),
        (
            (b"\xff\xd8" + (b"\xff\xc3\x00\x0b\x0c\x00\x60\x00\x80\x01\x01\x11\x00") * 2 + b"\xff\xd9"),
            "more than one frame",
        ),
    ],
)
def test_a_damaged_codestream_is_unreadable_before_any_decoder_sees_it(codestream: bytes, seen: str) -> None:
    with pytest.raises(NotMeasurable, match=seen):
        frame_size(codestream)


def test_a_file_that_is_no_dicom_object_has_no_header_and_no_radiograph(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))
    with pytest.raises(CannotUnderstand):
        read_header(path)
    with pytest.raises(NotMeasurable) as refusal:
        read_radiograph(path)
    assert refusal.value.reason is Reason.UNREADABLE


def test_the_limit_of_pixels_is_a_setting(tmp_path: Path) -> None:
    path = write(tmp_path / "object.dcm", radiograph_dataset())
    with pytest.raises(NotMeasurable, match="96 x 128 pixels are more than the limit of 100"):
        read_radiograph(path, replace(DEFAULT_LIMITS, max_rows_columns=100))


def test_other_pictures_of_the_reference_data_are_no_radiographs(reference_data: Path) -> None:
    folder = reference_data / "dicom"
    for name in (
        "fo-dicom/GH133.dcm",
        "fo-dicom/GH538-jpeg14sv1.dcm",
        "pydicom-data/JPEG-lossy.dcm",
        "fo-dicom/GH1146.dcm",
    ):
        with pytest.raises(NotMeasurable) as refusal:
            read_radiograph(folder / name)
        assert refusal.value.reason is Reason.NOT_A_RADIOGRAPH, name
