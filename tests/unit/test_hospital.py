"""A hospital's pairs: the table, the steps of a case, resuming, failing, and the lines to DXA."""

import csv
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.domain.measurement import Region
from dicomnode.domain.radiograph import Side
from dicomnode.errors import ConfigurationError
from dicomnode.inference.frame import HEAD_ROW, ROWS, SPACING_MM
from training.anatomy.ct import CtVolume, sitk
from training.anatomy.femur import FemurLandmarks, femur_volumes, landmarks
from training.anatomy.implicit import local_from_voxel
from training.anatomy.labels import read_labels
from training.anatomy.population import draw_subject
from training.anatomy.volume import Structure
from training.calibration.tissues import KEV_AT_KILOVOLT, hydroxyapatite_hu_cm3_mg
from training.hospital.cases import NothingToDecide, decide, load_real_hips
from training.hospital.dxa import NoDxaLine, fit_dxa
from training.hospital.make import SegmentByModel, Tools, fit_dxa_lines, make_hospital_pairs
from training.hospital.project import CT_END_MM, Registered
from training.hospital.report import Decision, Report, Status, Verdict, reports_table
from training.hospital.table import Case, read_table
from training.projection.geometry import ConeBeam, anteroposterior
from training.projection.projector import project_structures
from training.projection.radiograph import Exposure
from training.registration.anatomy import Bones
from training.segmentation.model import SHIPPED_SEGMENTATION, load_model
from training.segmentation.predict import Segmentation
from training.segmentation.sampling import StructureFigures
from training.simulate_dx import DEFAULT_PROCESSING, FictionalPatient, dx_from_maps
from training.targets import MARGIN_PX, canonical_figures

VOXEL_MM = 2.0
SHAPE = (135, 70, 90)
HEAD_MM = np.array([20.0, 0.0, 0.0])


class _Still:
    """The patient lies as in the CT; counts how often that was asked."""

    def __init__(self, failure: str | None = None, shift_mm: float = 0.0) -> None:
        self.failure, self.asked = failure, 0
        self.motion = np.eye(4)
        self.motion[0, 3] = shift_mm

    def __call__(
        self, ct: CtVolume, bones: Bones, image: NDArray[np.float32], beam: ConeBeam, mask: NDArray[np.bool_]
    ) -> Registered:
        self.asked += 1
        return Registered(self.motion, dict.fromkeys(bones.femora, self.motion), 0.9, 0.95, self.failure)


@cache
def _femur() -> tuple[Structure, Structure, FemurLandmarks]:
    """A left femur with its head at `HEAD_MM`."""
    hip = draw_subject(77, 3).hips[1]
    mineral, volume, origin = femur_volumes(hip.femur, hip.quality, hip.seed)
    motion = np.eye(4)
    motion[:3, 3] = HEAD_MM
    matrix = motion @ local_from_voxel(origin, 0.9)
    return (
        Structure("mineral", mineral, "g/cm3", matrix),
        Structure("volume", volume, "1", matrix),
        landmarks(hip.femur).moved(motion),
    )


def _on_grid(structure: Structure, matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    voxel = np.linalg.inv(structure.patient_from_voxel) @ matrix
    smooth = ndimage.gaussian_filter(structure.values, 0.35 * VOXEL_MM / 0.9)
    moved = ndimage.affine_transform(smooth, voxel[:3, :3][::-1, ::-1], voxel[:3, 3][::-1], SHAPE, order=1)
    return np.asarray(moved, np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One case: a thigh with a femur, its labels, and its radiograph."""
    place = tmp_path_factory.mktemp("hospital")
    matrix = local_from_voxel(np.array([-60.0, -70.0, -200.0]), VOXEL_MM)
    mineral, volume, _ = _femur()
    z, y, x = np.indices(SHAPE) * VOXEL_MM + np.array([-200.0, -70.0, -60.0]).reshape(3, 1, 1, 1)
    radius = np.hypot(x - 28, y)
    fraction = np.clip(_on_grid(volume, matrix), 0, 1)
    soft = np.where(radius < 52, 50.0, np.where(radius < 64, -102.0, -1000.0))
    slope = hydroxyapatite_hu_cm3_mg(KEV_AT_KILOVOLT[120.0])
    hu = soft * (1 - fraction) + 1000 * slope * _on_grid(mineral, matrix)
    hu = hu + np.random.default_rng(1).normal(0, 6, SHAPE)
    labels = np.where(fraction >= 0.5, 1, 0).astype(np.uint8)
    socket = np.sqrt((x - 20) ** 2 + y**2 + z**2)
    labels[(labels == 0) & (socket < 34) & (x < 20) & (z > 0)] = 2
    for values, name in ((hu.astype(np.float32), "ct"), (labels, "labels")):
        image = sitk.GetImageFromArray(values)
        image.SetSpacing((VOXEL_MM,) * 3)
        image.SetOrigin(matrix[:3, 3].tolist())
        sitk.WriteImage(image, str(place / f"{name}.nii.gz"))
    (place / "labels.json").write_text(json.dumps({"1": "femur_left", "2": "hip_left"}))
    beam = anteroposterior(HEAD_MM, 1150.0, 1050.0, 1.0, (320, 240))
    projected = project_structures((replace(mineral, name="m"),), beam)["m"]
    maps = np.stack([np.full(beam.shape, 15.0), np.full(beam.shape, 3.0), projected, np.zeros(beam.shape)])
    dx_from_maps(
        maps.astype(np.float32),
        beam,
        HEAD_MM,
        exposure=Exposure(),
        processing=DEFAULT_PROCESSING,
        patient=FictionalPatient(name="Yamada^Hanako"),
        seed=1,
    ).save_as(place / "hip.dcm", enforce_file_format=True)
    return place


def _case(folder: Path, name: str = "a1", **changes: object) -> Case:
    case = Case(name, folder / "ct.nii.gz", folder / "hip.dcm", folder / "labels.nii.gz", kilovolt=120.0)
    return replace(case, **changes)  # type: ignore[arg-type]


def test_a_case_gives_the_density_that_was_put_into_its_ct(folder: Path, tmp_path: Path) -> None:
    (report,) = make_hospital_pairs([_case(folder)], tmp_path, Tools(_Still()))
    assert report.status is Status.DONE, report
    true = canonical_figures(_femur()[:2], _femur()[2])["total_hip"]
    found = report.hips["L"]["canonical"]["total_hip"]
    assert found["areal_bmd_g_cm2"] == pytest.approx(true["areal_bmd_g_cm2"], rel=0.08)
    assert found["area_cm2"] == pytest.approx(true["area_cm2"], rel=0.04)
    assert report.hips["L"]["regions"]["total_hip"]["areal_bmd_g_cm2"] == pytest.approx(
        found["areal_bmd_g_cm2"], rel=0.08
    )
    assert report.hips["R"] == {"reason": "not in the label map"}
    (hip,) = load_real_hips(tmp_path)
    known = hip.field & np.isfinite(hip.targets).all(0)
    seen, density = hip.image.astype(np.float32)[known], hip.targets[0].astype(np.float32)[known]
    assert np.corrcoef(seen, density)[0, 1] > 0.8  # the radiograph shows the femur where the projection has it
    assert (tmp_path / "cases" / "a1" / "report.png").stat().st_size > 20_000


def test_what_is_written_names_no_patient(folder: Path, tmp_path: Path) -> None:
    make_hospital_pairs([_case(folder), _case(folder, "a2", ct=folder / "Yamada_Hanako")], tmp_path, Tools(_Still()))
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert texts
    assert not any(b"Yamada" in text or b"Hanako" in text for text in texts)
    assert not any("Yamada" in path.name for path in tmp_path.rglob("*"))


def test_an_interrupted_run_goes_on_and_repeats_nothing(folder: Path, tmp_path: Path) -> None:
    register = _Still()
    make_hospital_pairs([_case(folder)], tmp_path, Tools(register))
    (tmp_path / "cases" / ".a2.1.part").mkdir()  # was killed in the middle of a case
    seen: list[str] = []
    reports = make_hospital_pairs(
        [_case(folder), _case(folder, "a2")], tmp_path, Tools(register), lambda report: seen.append(report.case)
    )
    assert register.asked == 2
    assert seen == ["a1", "a2"]
    assert [report.status for report in reports] == [Status.DONE] * 2
    assert (
        reports[0].hips["L"]["regions"]["total_hip"]["bmc_g"] == reports[1].hips["L"]["regions"]["total_hip"]["bmc_g"]
    )


def test_a_case_that_fails_says_why_stops_no_other_and_is_tried_again(folder: Path, tmp_path: Path) -> None:
    broken = _case(folder, "b1", ct=folder / "absent.nii.gz")
    reports = make_hospital_pairs([broken, _case(folder)], tmp_path, Tools(_Still()))
    assert [report.status for report in reports] == [Status.FAILED, Status.DONE]
    assert "<ct>" in str(reports[0].reason) and "does not exist" in str(reports[0].reason)
    again = make_hospital_pairs([_case(folder, "b1")], tmp_path, Tools(_Still()))
    assert again[0].status is Status.DONE


def test_a_pose_that_is_not_to_be_believed_gives_no_pair_but_a_picture(folder: Path, tmp_path: Path) -> None:
    (report,) = make_hospital_pairs([_case(folder)], tmp_path, Tools(_Still("another patient")))
    assert report.status is Status.FAILED
    assert report.reason == "registration: another patient"
    assert not list(tmp_path.rglob("*.npz"))
    assert (tmp_path / "cases" / "a1" / "report.png").is_file()


def test_a_hip_that_the_field_cuts_off_gives_no_pair(folder: Path, tmp_path: Path) -> None:
    (report,) = make_hospital_pairs([_case(folder)], tmp_path, Tools(_Still(shift_mm=90.0)))
    assert report.status is Status.FAILED
    assert "lies in the field" in report.hips["L"]["reason"]


def _decided(output: Path, verdict: Verdict, case: str = "a1") -> Report:
    return decide(output, case, verdict, by="Reader 2", reason="outlines fit", now=datetime(2026, 1, 2, tzinfo=UTC))


def test_a_doubtful_case_is_used_only_once_a_person_has_accepted_it(folder: Path, tmp_path: Path) -> None:
    doubtful = _case(folder)
    (report,) = make_hospital_pairs([doubtful], tmp_path, Tools(_Still()))
    path = tmp_path / "cases" / "a1" / "report.json"
    path.write_text(path.read_text().replace('"status": "done"', '"status": "doubtful"'))
    assert load_real_hips(tmp_path) == []
    assert _decided(tmp_path, Verdict.ACCEPTED).usable
    (hip,) = load_real_hips(tmp_path)
    assert (hip.figures["case"], hip.figures["patient"], hip.figures["material"]) == ("a1", "a1", "hydroxyapatite")
    (kept,) = make_hospital_pairs([doubtful], tmp_path, Tools(_Still()))
    assert kept.status is Status.DOUBTFUL
    assert kept.decision == Decision(
        Verdict.ACCEPTED, "Reader 2", "outlines fit", "2026-01-02T00:00:00+00:00", report.inputs_sha256
    )


def test_a_rejected_case_is_never_used_and_the_last_word_holds(folder: Path, tmp_path: Path) -> None:
    (report,) = make_hospital_pairs([_case(folder)], tmp_path, Tools(_Still()))
    assert report.status is Status.DONE
    assert not _decided(tmp_path, Verdict.REJECTED).usable
    assert load_real_hips(tmp_path) == []
    assert len(_decided(tmp_path, Verdict.ACCEPTED).decisions) == 2
    assert len(load_real_hips(tmp_path)) == 1
    table = reports_table([_decided(tmp_path, Verdict.REJECTED)])
    assert list(table.columns[1].cells) == ["done, rejected"]


def test_a_case_made_of_other_inputs_is_made_anew_and_waits_for_another_decision(folder: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    shutil.copytree(folder, inputs)
    register = _Still()
    make_hospital_pairs([_case(inputs)], tmp_path, Tools(register))
    _decided(tmp_path, Verdict.REJECTED)
    moved = tmp_path / "moved"
    inputs.rename(moved)  # the same files elsewhere are the same inputs
    (same,) = make_hospital_pairs([_case(moved)], tmp_path, Tools(register))
    assert register.asked == 1
    assert not same.usable
    names = moved / "labels.json"
    names.write_text(names.read_text() + "\n")
    (other,) = make_hospital_pairs([_case(moved)], tmp_path, Tools(register))
    assert register.asked == 2
    assert other.decision is None
    assert other.usable
    assert [decision.verdict for decision in other.decisions] == [Verdict.REJECTED]  # what was said stays to be read


def test_reference_values_and_patients_that_the_table_learns_later_need_no_new_registration(
    folder: Path, tmp_path: Path
) -> None:
    register = _Still()
    make_hospital_pairs([_case(folder)], tmp_path, Tools(register))
    read = {(Side.LEFT, Region.TOTAL_HIP): 0.9}
    make_hospital_pairs([_case(folder, patient="p7", dxa_maker="A", dxa_g_cm2=read)], tmp_path, Tools(register))
    assert register.asked == 1
    (hip,) = load_real_hips(tmp_path)
    assert hip.figures["patient"] == "p7"
    assert hip.figures["reference"] == {"dxa_maker": "A", "dxa_g_cm2": {"total_hip": 0.9}, "qct_mg_cm3": {}}


def test_what_cannot_be_decided_is_refused_with_a_reason(folder: Path, tmp_path: Path) -> None:
    make_hospital_pairs([_case(folder, ct=folder / "absent.nii.gz")], tmp_path, Tools(_Still()))
    with pytest.raises(NothingToDecide, match="case a1 failed and has no pairs"):
        _decided(tmp_path, Verdict.ACCEPTED)
    with pytest.raises(NothingToDecide, match="no case 'b9'; it has a1"):
        _decided(tmp_path, Verdict.ACCEPTED, "b9")
    with pytest.raises(NothingToDecide, match="--by"):
        decide(tmp_path, "a1", Verdict.ACCEPTED, by=" ", reason="x", now=datetime(2026, 1, 2, tzinfo=UTC))


def test_where_the_ct_ends_before_the_radiograph_the_targets_are_unknown(folder: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.mkdir()
    for name in ("ct", "labels"):
        image = sitk.ReadImage(str(folder / f"{name}.nii.gz"))
        sitk.WriteImage(image[:, :, 45:], str(short / f"{name}.nii.gz"))  # begins 110 mm below the head instead of 200
    shutil.copy(folder / "labels.json", short)
    case = _case(folder, ct=short / "ct.nii.gz", labels=short / "labels.nii.gz")
    make_hospital_pairs([case, _case(folder, "a2")], tmp_path, Tools(_Still()))
    cut, whole = load_real_hips(tmp_path)
    known, all_known = (np.asarray(np.isfinite(hip.targets.astype(np.float32)).all(0), bool) for hip in (cut, whole))
    below_mm = np.flatnonzero(~known[MARGIN_PX + HEAD_ROW :].any(1))[0] * SPACING_MM
    assert below_mm == pytest.approx(110 - CT_END_MM, abs=3)
    assert all_known[MARGIN_PX + HEAD_ROW : MARGIN_PX + ROWS].all()
    np.testing.assert_allclose(cut.targets[0][known], whole.targets[0][known], atol=0.02)


def test_what_has_no_labels_is_segmented_by_the_shipped_model_unless_told_otherwise() -> None:
    assert Tools(_Still()).segment == SegmentByModel(SHIPPED_SEGMENTATION)
    assert SegmentByModel(SHIPPED_SEGMENTATION).sha256 == load_model(SHIPPED_SEGMENTATION).sha256


class _Told:
    """Segments by the label map that it was given."""

    def __init__(self, labels: Path, predicted_dice: float, sha256: str = "f" * 64) -> None:
        self.labels, self.predicted_dice, self.sha256, self.asked = read_labels(labels), predicted_dice, sha256, 0

    def __call__(self, ct: CtVolume) -> Segmentation:
        self.asked += 1
        names = {value: {"pelvis": "left_hip"}.get(name, name) for value, name in self.labels.names.items()}
        figure = StructureFigures(200.0, 0.1, self.predicted_dice, is_doubtful=self.predicted_dice < 0.9)
        return Segmentation(replace(self.labels, names=names), {"left_femur": figure, "left_hip": figure})


def test_a_ct_without_labels_is_segmented_and_waits_for_a_person(folder: Path, tmp_path: Path) -> None:
    unsure = _Told(folder / "labels.nii.gz", 0.8)
    case = _case(folder, labels=None)
    (report,) = make_hospital_pairs([case], tmp_path, Tools(_Still(), unsure))
    assert report.status is Status.DOUBTFUL
    step = report.steps["segmentation"]
    assert step["predicted_dice"] == {"left_femur": 0.8, "left_hip": 0.8}
    assert "segmented by a network" in step["doubts"][0]
    assert "outlines are uncertain, predicted Dice left_femur 0.80, left_hip 0.80" in step["doubts"]
    assert report.hips["L"]["canonical"]["total_hip"]["areal_bmd_g_cm2"] > 0.3
    make_hospital_pairs([case], tmp_path, Tools(_Still(), unsure))
    assert unsure.asked == 1  # nothing has changed
    sure = _Told(folder / "labels.nii.gz", 0.97, "e" * 64)
    (again,) = make_hospital_pairs([case], tmp_path, Tools(_Still(), sure))
    assert sure.asked == 1  # another model
    assert again.status is Status.DOUBTFUL
    assert len(again.steps["segmentation"]["doubts"]) == 1
    assert again.steps["muscles"] == {"doubts": []}
    (given,) = make_hospital_pairs([_case(folder)], tmp_path, Tools(_Still(), sure))
    assert sure.asked == 1  # a label map was given
    assert given.status is Status.DONE


def test_the_muscles_of_a_label_map_are_weighed(folder: Path, tmp_path: Path) -> None:
    image = sitk.ReadImage(str(folder / "labels.nii.gz"))
    labels = sitk.GetArrayFromImage(image)
    hu = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "ct.nii.gz")))
    soft = (hu > 0) & (hu < 100) & (labels == 0)
    soft[:20] = False
    labels[soft] = 3
    changed = sitk.GetImageFromArray(labels)
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(tmp_path / "labels.nii.gz"))
    names = {"1": "femur_left", "2": "hip_left", "3": "gluteus_medius_left"}
    (tmp_path / "labels.json").write_text(json.dumps(names))
    (report,) = make_hospital_pairs([_case(folder, labels=tmp_path / "labels.nii.gz")], tmp_path, Tools(_Still()))
    assert report.status is Status.DONE, report.reason
    mass = report.steps["muscles"]["left_gluteus_medius"]
    assert mass["volume_cm3"] == pytest.approx(float(soft.sum()) * 0.008)
    assert mass["lean_g"] == pytest.approx(mass["volume_cm3"] * 1.05, rel=0.03)  # 50 HU, but for the noise
    assert mass["is_cut"]  # its thigh goes on above the CT


def test_metal_in_the_femur_is_no_measurement(folder: Path, tmp_path: Path) -> None:
    image = sitk.ReadImage(str(folder / "ct.nii.gz"))
    hu = sitk.GetArrayFromImage(image)
    hu[90:110, 33:36, 40:46] = 3071
    metal = sitk.GetImageFromArray(hu)
    metal.CopyInformation(image)
    sitk.WriteImage(metal, str(tmp_path / "metal.nii.gz"))
    (report,) = make_hospital_pairs([_case(folder, ct=tmp_path / "metal.nii.gz")], tmp_path, Tools(_Still()))
    assert "metal in and around the femur" in str(report.reason)


def test_a_defect_is_told_by_its_kind_only(folder: Path, tmp_path: Path) -> None:
    def defect(*_: object, **__: object) -> Registered:
        raise KeyError("Yamada^Hanako")

    (report,) = make_hospital_pairs([_case(folder)], tmp_path, Tools(defect))
    assert report.status is Status.FAILED
    assert report.reason == "unexpected KeyError; run this case alone to see it"


def _write(path: Path, *lines: Mapping[str, str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return path


def test_the_table_is_read_with_paths_beside_it_and_values_by_side_and_region(tmp_path: Path) -> None:
    line = {"case": "c-1", "ct": "ct", "radiograph": "a.dcm", "labels": "", "dxa_maker": "A", "sdd_mm": "1150"}
    (case,) = read_table(_write(tmp_path / "t.csv", {**line, "dxa_left_total_hip_g_cm2": "0.812"}))
    assert case.ct == tmp_path / "ct"
    assert case.labels is None
    assert case.sdd_mm == 1150
    assert case.dxa_g_cm2 == {(Side.LEFT, Region.TOTAL_HIP): 0.812}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"case": "Yamada Hanako"}, "no name"),
        ({"case": "../x"}, "identifier"),
        ({"patient": "Hanako!"}, "patient 'Hanako!'"),
        ({"sdd_mm": "long"}, "sdd_mm 'long'"),
        ({"dxa_left_total_hip_g_cm2": "0.8"}, "dxa_maker"),
        ({"colour": "red"}, "unknown column 'colour'"),
        ({"ct": ""}, "lacks its ct"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, change: dict[str, str], message: str) -> None:
    line = {"case": "c1", "ct": "ct", "radiograph": "a.dcm", **change}
    with pytest.raises(ConfigurationError, match=message):
        read_table(_write(tmp_path / "t.csv", line))


def test_a_case_stands_in_the_table_once(tmp_path: Path) -> None:
    line = {"case": "c1", "ct": "ct", "radiograph": "a.dcm"}
    with pytest.raises(ConfigurationError, match="twice"):
        read_table(_write(tmp_path / "t.csv", line, {**line, "case": "C1"}))


def test_a_straight_line_to_dxa_is_found_as_it_was_drawn() -> None:
    ct = np.linspace(0.5, 1.1, 15)
    line = fit_dxa("A", Region.TOTAL_HIP, ct.tolist(), (0.03 + 1.08 * ct).tolist())
    assert (line.slope, line.intercept_g_cm2) == (pytest.approx(1.08), pytest.approx(0.03))
    assert line.r == pytest.approx(1)
    assert line.see_g_cm2 == pytest.approx(0, abs=1e-9)
    assert line.dxa_g_cm2(0.9) == pytest.approx(1.002)


def test_the_standard_error_is_that_of_the_scatter() -> None:
    random = np.random.default_rng(5)
    ct = random.normal(0.8, 0.15, 4000)
    line = fit_dxa("A", Region.TOTAL_HIP, ct.tolist(), (1.1 * ct + random.normal(0, 0.04, 4000)).tolist())
    assert line.see_g_cm2 == pytest.approx(0.04, rel=0.05)
    assert line.slope == pytest.approx(1.1, abs=0.02)


def test_few_equal_or_unrelated_hips_give_no_line() -> None:
    ct = np.linspace(0.5, 1.1, 12).tolist()
    with pytest.raises(NoDxaLine, match="9 hips"):
        fit_dxa("A", Region.TOTAL_HIP, ct[:9], ct[:9])
    with pytest.raises(NoDxaLine, match="same density"):
        fit_dxa("A", Region.TOTAL_HIP, [0.8] * 12, ct)
    with pytest.raises(NoDxaLine, match="correlate by -1"):
        fit_dxa("A", Region.TOTAL_HIP, ct, ct[::-1])


def test_each_maker_gets_its_line_from_the_hips_that_are_not_doubtful(tmp_path: Path) -> None:
    cases, reports = [], []
    for number in range(30):
        by_ct, maker = 0.6 + 0.01 * number, "AB"[number % 2]
        dxa = {(Side.LEFT, Region.TOTAL_HIP): by_ct * (1.1 if maker == "A" else 1.2)}
        cases.append(Case(f"c{number}", Path("x"), Path("y"), dxa_maker=maker, dxa_g_cm2=dxa))
        status = Status.DOUBTFUL if number >= 22 else Status.DONE
        hips = {"L": {"canonical": {"total_hip": {"areal_bmd_g_cm2": by_ct}}}}
        reports.append(Report(f"c{number}", status, hips=hips))
    lines = fit_dxa_lines(cases, reports, tmp_path)
    assert [(line.maker, line.n, round(line.slope, 6)) for line in lines] == [("A", 11, 1.1), ("B", 11, 1.2)]
    assert fit_dxa_lines(cases[:8], reports[:8], tmp_path) == []
    assert len(json.loads((tmp_path / "dxa.json").read_text())["refused"]) == 2
    assert reports_table(reports).row_count == 30
