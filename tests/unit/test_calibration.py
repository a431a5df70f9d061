"""From Hounsfield units to mineral: rods whose line is known, tissues whose energy is known, and what must be refused."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import SimpleITK
from typer.testing import CliRunner

from dicomnode.errors import ConfigurationError
from training.anatomy.ct import CtVolume, read_ct
from training.anatomy.phantom import Phantom
from training.anatomy.volume import Structure
from training.calibration.detection import axial, find_rods
from training.calibration.line import Calibration, CalibrationFailed, Method, mineral_mg_cm3
from training.calibration.rod_phantom import Material, RodPhantom, Standing, load_rod_phantom
from training.calibration.rods import calibrate_by_rods, fit_rods, robust_mean
from training.calibration.simulation import RodScene, subject_ct, with_rod_pad
from training.calibration.tissues import (
    TISSUES,
    calibrate_by_tissues,
    fit_tissues,
    hydroxyapatite_hu_cm3_mg,
    reference_hu,
)
from training.cli import app

sitk: Any = SimpleITK  # only partly typed
PHANTOMS = Path(__file__).parents[2] / "conf" / "training" / "phantoms"
B_MAS200 = load_rod_phantom(PHANTOMS / "b-mas200.toml")
MINDWAYS = replace(
    load_rod_phantom(PHANTOMS / "mindways-example.toml"), standing=Standing.CERTIFICATE, serial_number="0001"
)
QUIET = RodScene(noise_hu=10.0)


def patient(metal: bool = False) -> CtVolume:
    """An oval of muscle in fat with two bones, 120 mm of it; air below for a pad."""
    x, y = np.meshgrid(np.arange(140) * 1.8 - 125.1, np.arange(108) * 1.8 - 80.0)
    slice_hu = np.full(x.shape, -1000.0)
    slice_hu[(x / 110) ** 2 + (y / 65) ** 2 < 1] = -101.0
    slice_hu[(x / 95) ** 2 + (y / 50) ** 2 < 1] = 43.0
    slice_hu[np.hypot(np.abs(x) - 55, y) < 18] = 900.0
    slice_hu[np.hypot(np.abs(x) - 55, y) < 12] = 120.0
    hu = np.repeat(slice_hu[None].astype(np.float32), 24, axis=0)
    if metal:
        hu[8:14, (np.hypot(x - 55, y) < 12)] = 3071.0
    return CtVolume(hu, np.diag([1.8, 1.8, 5.0, 1.0]), 120.0)


def assert_calibrated(calibration: Calibration, scene: RodScene) -> None:
    assert calibration.slope_hu_cm3_mg == pytest.approx(scene.slope_hu_cm3_mg, rel=5e-3)
    assert calibration.intercept_hu == pytest.approx(scene.intercept_hu, abs=0.5)


@pytest.mark.parametrize(
    "scene",
    [
        replace(QUIET, gap_mm=8.0),
        replace(QUIET, gap_mm=0.0, pad_hu=-3.0),
        replace(QUIET, gap_mm=-8.0, slope_hu_cm3_mg=0.9, intercept_hu=12.0),
        replace(QUIET, is_reversed=True, roll_deg=12.0, tilt_deg=8.0, yaw_deg=-6.0),
        replace(QUIET, z_share=(0.6, 1.0)),
        replace(QUIET, noise_hu=25.0, white_noise=True),
    ],
    ids=["gap", "touches, 0 mg like the pad", "pressed in", "askew and reversed", "cut", "white noise of 25 HU"],
)
def test_rods_are_found_however_they_lie(scene: RodScene) -> None:
    calibration, found = calibrate_by_rods(with_rod_pad(patient(), B_MAS200, scene), B_MAS200)
    assert calibration.r is not None
    assert calibration.r > 0.9999
    assert_calibrated(calibration, scene)
    directions = found.ends_mm[:, 1] - found.ends_mm[:, 0]
    tangents = directions[:, :2] / directions[:, 2:]
    expected = np.tan(np.radians([scene.yaw_deg, -scene.tilt_deg]))
    np.testing.assert_allclose(tangents, np.broadcast_to(expected, tangents.shape), atol=0.01)


def test_rods_with_a_contrast_below_50_hu_count_as_well() -> None:
    low = replace(B_MAS200, rods=tuple(replace(rod, mineral_mg_cm3=rod.mineral_mg_cm3 / 4) for rod in B_MAS200.rods))
    scene = replace(QUIET, noise_hu=3.0, slope_hu_cm3_mg=0.9, pad_hu=0.0, intercept_hu=0.0)  # at most 45 HU
    calibration, _ = calibrate_by_rods(with_rod_pad(patient(), low, scene), low)
    assert_calibrated(calibration, scene)


def test_streaks_of_an_implant_cost_slices_and_no_accuracy() -> None:
    scene = replace(QUIET, streak_hu=400.0)
    calibration, _ = calibrate_by_rods(with_rod_pad(patient(metal=True), B_MAS200, scene), B_MAS200)
    assert_calibrated(calibration, scene)


def test_potassium_phosphate_is_corrected_for_the_water_of_its_rods() -> None:
    scene = replace(QUIET, slope_hu_cm3_mg=1.5, is_reversed=True)
    calibration, _ = calibrate_by_rods(with_rod_pad(patient(), MINDWAYS, scene), MINDWAYS)
    assert calibration.material is Material.K2HPO4
    assert calibration.reference == "Mindways 0001"
    assert calibration.slope_hu_cm3_mg == pytest.approx(1.5 - 0.2174, rel=5e-3)
    assert calibration.intercept_hu == pytest.approx(scene.intercept_hu - 0.4, abs=0.5)
    assert not calibration.doubts


def test_the_rods_are_found_whatever_the_order_of_the_voxels_is() -> None:
    ct = with_rod_pad(patient(), B_MAS200, QUIET)
    size = ct.hu.shape[::-1]
    voxel_from_other = np.array([[0, 0, -1, size[0] - 1], [1, 0, 0, 0], [0, -1, 0, size[2] - 1], [0, 0, 0, 1.0]])
    other = CtVolume(ct.hu.transpose(2, 0, 1)[::-1, ::-1], ct.patient_from_voxel @ voxel_from_other)
    turned, patient_from_grid, spacing_mm = axial(other)
    np.testing.assert_array_equal(turned, ct.hu)
    np.testing.assert_allclose(patient_from_grid, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(spacing_mm, [1.8, 1.8, 5.0])
    np.testing.assert_allclose(find_rods(other, B_MAS200).ends_mm, find_rods(ct, B_MAS200).ends_mm, atol=1e-6)


def test_a_ct_without_rods_is_refused() -> None:
    ct = with_rod_pad(patient(), B_MAS200, replace(QUIET, z_share=(0.0, 0.0)))
    with pytest.raises(CalibrationFailed, match=r"rods of B-MAS200 were not found.*expected 2"):
        calibrate_by_rods(ct, B_MAS200)


def test_rods_in_another_order_than_the_files_are_refused() -> None:
    minerals = (0.0, 100.0, 50.0, 150.0, 200.0)
    rods = tuple(replace(rod, mineral_mg_cm3=m) for rod, m in zip(B_MAS200.rods, minerals, strict=True))
    with pytest.raises(CalibrationFailed, match=r"not found|no line"):
        calibrate_by_rods(with_rod_pad(patient(), B_MAS200, QUIET), replace(B_MAS200, rods=rods))


def test_the_real_ct_has_no_rods_and_its_tissues_are_in_reach(reference_data: Path) -> None:
    ct = read_ct(reference_data / "ct" / "example_ct.nii.gz")
    with pytest.raises(CalibrationFailed, match="not found"):
        calibrate_by_rods(ct, B_MAS200)
    calibration = calibrate_by_tissues(ct)
    assert all(abs(point.residual_mg_cm3) < 10.0 for point in calibration.points)
    assert calibration.doubts == ("the tube voltage is not known, 120 kV is assumed",)
    turned, _, spacing_mm = axial(ct)
    roomy = np.pad(turned, ((0, 0), (0, 40), (0, 0)), constant_values=-1000.0)
    scene = RodScene(noise_hu=0.0, gap_mm=-5.0)
    laid = with_rod_pad(CtVolume(roomy, np.diag([*spacing_mm, 1.0])), B_MAS200, scene)
    assert_calibrated(calibrate_by_rods(laid, B_MAS200)[0], scene)


def test_a_line_through_exact_rods_is_exact_though_a_third_of_a_rods_slices_are_spoilt() -> None:
    slices = np.tile([7.0 + 1.2 * rod.mineral_mg_cm3 for rod in B_MAS200.rods], (30, 1))
    slices += np.random.default_rng(1).normal(0.0, 1e-6, slices.shape)
    slices[:10, 3] += 80.0
    calibration = fit_rods(slices, B_MAS200)
    assert calibration.slope_hu_cm3_mg == pytest.approx(1.2, abs=1e-6)
    assert calibration.intercept_hu == pytest.approx(7.0, abs=1e-5)
    assert calibration.residual_sd_mg_cm3 == pytest.approx(0.0, abs=1e-5)
    assert [point.reference_mg_cm3 for point in calibration.points] == [0, 50, 100, 150, 200]


def test_a_rod_that_is_mostly_spoilt_raises_a_doubt_and_a_bent_line_is_refused() -> None:
    slices = np.tile([7.0 + 1.2 * rod.mineral_mg_cm3 for rod in B_MAS200.rods], (30, 1))
    slices += np.random.default_rng(1).normal(0.0, 0.01, slices.shape)
    spoilt = slices.copy()
    spoilt[:16, 3] += np.linspace(-80.0, 80.0, 16)
    assert "rod HA 150: its slices scatter by" in " ".join(fit_rods(spoilt, B_MAS200).doubts)
    assert "scatter" not in " ".join(fit_rods(slices, B_MAS200).doubts)
    slices[:, 2] += 20.0
    with pytest.raises(CalibrationFailed, match=r"r 0\.99\d\d, expected 0\.999 or more \(HA 0 0 mg/cm3 7\.0 HU"):
        fit_rods(slices, B_MAS200)


def test_a_robust_mean_is_as_exact_as_a_mean_and_forgets_outliers() -> None:
    values = np.random.default_rng(2).normal(5.0, 1.0, 20_000)
    mean, error, scatter = robust_mean(values)
    assert mean == pytest.approx(5.0, abs=4 * error)
    assert error == pytest.approx(1.0 / np.sqrt(20_000) / np.sqrt(0.95), rel=0.05)
    assert scatter == pytest.approx(1.0, rel=0.03)
    assert robust_mean(np.array([1.0, 1.1, 0.9, 1.0, 50.0]))[0] == pytest.approx(1.0, abs=0.01)
    assert robust_mean(np.ones(4)) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("diameter_mm", "diametre_mm"), "unknown key 'diametre_mm'"),
        (('"hydroxyapatite"', '"chalk"'), "material is 'chalk', expected one of hydroxyapatite, K2HPO4"),
        (('"nominal"', '"certificate"'), "need its serial_number"),
        (("position_mm = 30", "position_mm = 10"), "one inside the other"),
        (("mineral_mg_cm3 = 50", 'mineral_mg_cm3 = "50"'), "rod 2: mineral_mg_cm3 is '50', expected a number"),
        (('name = "B-MAS200"', ""), "missing 1 required"),
        (("[[rods]]", "[[rod]]"), "unknown key 'rod'|0 rods"),
        (("name =", "name"), "no readable TOML"),
    ],
)
def test_a_phantoms_file_with_a_fault_is_refused_with_its_place(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    text = (PHANTOMS / "b-mas200.toml").read_text(encoding="utf-8")
    assert change[0] in text
    file = tmp_path / "phantom.toml"
    file.write_text(text.replace(*change), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message):
        load_rod_phantom(file)


def test_an_example_calibrates_nothing() -> None:
    example = load_rod_phantom(PHANTOMS / "mindways-example.toml")
    with pytest.raises(ConfigurationError, match="values of 'Mindways' are an example"):
        calibrate_by_rods(patient(), example)


def test_tissues_tell_energy_stretch_and_shift() -> None:
    energy_kev = 68.0  # what 120 kV stand for
    hu = {name: 1.02 * reference_hu(TISSUES[name], energy_kev) + 3.0 for name in ("air", "adipose", "muscle", "blood")}
    calibration = fit_tissues(hu, 120.0)
    assert calibration.slope_hu_cm3_mg == pytest.approx(1.02 * hydroxyapatite_hu_cm3_mg(energy_kev), rel=0.01)
    assert calibration.intercept_hu == pytest.approx(3.0, abs=1.5)  # partly taken for the tissues' own spread
    assert calibration.method is Method.TISSUES
    assert calibration.uncertainty_mg_cm3 < 10.0
    assert calibration.r is None
    without_blood = fit_tissues({name: hu[name] for name in ("air", "adipose", "muscle")}, 120.0)
    assert without_blood.uncertainty_mg_cm3 > calibration.uncertainty_mg_cm3


def test_an_uncertain_calibration_by_tissues_says_so() -> None:
    hu = {name: reference_hu(TISSUES[name], 55.4) for name in ("air", "muscle")}
    calibration = fit_tissues(hu, 80.0)
    assert calibration.uncertainty_mg_cm3 > 10.0
    assert calibration.is_doubtful
    assert "more than 10" in calibration.doubts[0]


def test_tissues_that_no_energy_explains_are_refused() -> None:
    hu = {name: reference_hu(TISSUES[name], 68.0) for name in ("air", "adipose", "muscle")}
    with pytest.raises(CalibrationFailed, match="muscle has 110 HU"):
        fit_tissues(hu | {"muscle": 110.0}, 120.0)
    with pytest.raises(CalibrationFailed, match="tube voltage 60 kV, expected 80 to 140"):
        fit_tissues(hu, 60.0)
    with pytest.raises(CalibrationFailed, match="no tissue 'bone'"):
        calibrate_by_tissues(patient(), 120.0, {"bone": 900.0})


def test_the_tissues_peaks_are_found_in_noise() -> None:
    ct = with_rod_pad(patient(), B_MAS200, replace(QUIET, noise_hu=20.0, z_share=(0.0, 0.0)))
    ct = replace(ct, kilovolt=120.0)
    calibration = calibrate_by_tissues(ct)
    measured = {point.label: point.measured_hu for point in calibration.points}
    assert measured["air"] == pytest.approx(-1000.0, abs=4.0)
    assert measured["adipose"] == pytest.approx(-101.0, abs=4.0)
    assert measured["muscle"] == pytest.approx(43.0, abs=3.0)
    fat = (ct.hu < -30.0) & (ct.hu > -300.0)
    lean = replace(ct, hu=np.where(fat, ct.hu + np.float32(144.0), ct.hu))
    with pytest.raises(CalibrationFailed, match="ml of adipose"):
        calibrate_by_tissues(lean)


def test_mineral_is_kept_below_zero_and_left_out_in_gas_and_metal() -> None:
    calibration = replace(fit_rods(exact_slices(), B_MAS200), slope_hu_cm3_mg=1.25, intercept_hu=-5.0)
    hu = np.array([[-1000.0, -201.0, -105.0, -5.0], [120.0, 1245.0, 2500.0, 3071.0]], np.float32)
    values = mineral_mg_cm3(hu, calibration)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [[0.0, 0.0, -80.0, 0.0], [100.0, 1000.0, 0.0, 0.0]], atol=1e-4)


def exact_slices() -> np.ndarray:
    return np.tile([1.3 * rod.mineral_mg_cm3 for rod in B_MAS200.rods], (4, 1))


def test_a_simulated_person_has_the_ct_values_of_the_tissues() -> None:
    """A box of muscle; to its left, on a mirrored grid as a right femur's is, a box with mineral in it."""
    matrix = np.diag([4.0, 4.0, 4.0, 1.0])
    matrix[:3, 3] = -40.0, -10.0, -60.0
    mirrored = np.diag([-2.0, 2.0, 2.0, 1.0])
    mirrored[:3, 3] = 60.0, 0.0, -20.0
    soft = Structure("soft", np.full((20, 10, 30), 1.05, np.float32), "g/cm3", matrix)
    mineral = Structure("left_femur_mineral", np.full((10, 5, 6), 0.2, np.float32), "g/cm3", mirrored)
    person = cast(Phantom, SimpleNamespace(structures=(soft, mineral)))
    ct = subject_ct(person, 70.0, (20, 40, 60), (3.0, 3.0, 4.0))
    assert ct.hu[voxel(ct, (-20.0, 4.0, 0.0))] == pytest.approx(reference_hu(TISSUES["muscle"], 70.0), abs=0.1)
    assert ct.hu[voxel(ct, (-80.0, 4.0, 0.0))] == -1000.0
    # 200 mg/cm3 add 1.62 x 200 and displace 6.3 % of the muscle.
    muscle = 1000.0 + reference_hu(TISSUES["muscle"], 70.0)
    added = 200.0 * (hydroxyapatite_hu_cm3_mg(70.0) + 1 / 3.156)
    expected = muscle * (1 - 0.2 / 3.16) + added - 1000.0
    assert ct.hu[voxel(ct, (55.0, 4.0, -10.0))] == pytest.approx(expected, abs=1.0)


def voxel(ct: CtVolume, point_mm: tuple[float, float, float]) -> tuple[int, int, int]:
    x, y, z, _ = np.rint(np.linalg.inv(ct.patient_from_voxel) @ [*point_mm, 1.0]).astype(int)
    return int(z), int(y), int(x)


def test_the_command_prints_each_rod_writes_json_and_draws_the_rods(tmp_path: Path) -> None:
    ct = with_rod_pad(patient(), B_MAS200, QUIET)
    image = sitk.GetImageFromArray(np.rint(ct.hu).astype(np.int16))
    image.SetSpacing((1.8, 1.8, 5.0))
    sitk.WriteImage(image, str(tmp_path / "ct.nii.gz"))
    output, picture = tmp_path / "new" / "calibration.json", tmp_path / "rods.png"
    phantom = ["--phantom", str(PHANTOMS / "b-mas200.toml"), "--picture", str(picture)]
    result = CliRunner().invoke(app, ["calibrate", str(tmp_path / "ct.nii.gz"), *phantom, "--output", str(output)])
    assert result.exit_code == 0, result.output
    for words in ("HA 150", "Reference mg/cm3", "Residual mg/cm3", "doubtful", "nominal"):
        assert words in result.output
    document = json.loads(output.read_text(encoding="utf-8"))
    assert (document["material"], document["method"], document["doubtful"]) == ("hydroxyapatite", "rods", True)
    assert document["slope_hu_cm3_mg"] == pytest.approx(QUIET.slope_hu_cm3_mg, rel=5e-3)
    assert len(document["points"]) == 5
    assert picture.read_bytes().startswith(b"\x89PNG")
    tissues = CliRunner().invoke(app, ["calibrate", str(tmp_path / "ct.nii.gz"), "--blood", "48", "-o", str(output)])
    assert tissues.exit_code == 0, tissues.output
    assert "blood" in tissues.output


@pytest.mark.parametrize(
    "options", [["--picture", "x.png"], ["--phantom", "x.toml", "--kilovolt", "100"]], ids=["picture", "kilovolt"]
)
def test_options_that_do_not_go_together_are_refused(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["calibrate", "nothing.nii.gz", *options])
    assert isinstance(result.exception, ConfigurationError)


def test_a_phantom_of_two_rods_is_none() -> None:
    with pytest.raises(ConfigurationError, match="three at least"):
        RodPhantom("two", "", Material.HYDROXYAPATITE, Standing.NOMINAL, "", 20.0, B_MAS200.rods[:2])
