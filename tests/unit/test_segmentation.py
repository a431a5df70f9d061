"""Segmentation of CT: the phantom's CT, the network's inference, sides, quality, files and settings."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from dicomnode.domain.radiograph import Side
from dicomnode.errors import BundleError, ConfigurationError
from training.anatomy.atlas import atlas_subject, sacrum_volume
from training.anatomy.ct import CtVolume, sitk
from training.anatomy.implant import Implant, ImplantKind
from training.anatomy.labels import LabelMap, label_map, read_labels
from training.anatomy.lean import ADIPOSE_HU, MUSCLE_HU, muscle_masses
from training.anatomy.muscles import NAMES as MUSCLE_CHANNELS
from training.anatomy.muscles import Muscle, make_muscles
from training.anatomy.pelvis import PelvisPart, pelvis_parts, pelvis_volumes
from training.anatomy.phantom import Phantom, make_phantom
from training.anatomy.population import draw_subject
from training.calibration.tissues import TISSUES as CT_TISSUES
from training.config import NetworkConfiguration, PairsConfiguration, SplitConfiguration, Stage
from training.projection.attenuation import mass_attenuation_cm2_g
from training.segmentation import sampling
from training.segmentation.border import FEATURES, REACH_MM, STEPS_MM, build_border, profiles, sharpened
from training.segmentation.cli import write_labels
from training.segmentation.config import (
    AtlasConfiguration,
    BorderConfiguration,
    HospitalConfiguration,
    InferenceConfiguration,
    MusclesConfiguration,
    SegmentationRun,
    UNetConfiguration,
    load_segmentation,
)
from training.segmentation.evaluate import (
    Case,
    Summary,
    WarningFigures,
    compare,
    finish,
    held_out_cts,
    learned_from,
    summarise,
)
from training.segmentation.grid import to_grid
from training.segmentation.labelled import labelled_pieces, read_cases
from training.segmentation.library import (
    Example,
    ct_files,
    draw_ct_example,
    draw_example,
    draw_muscle_example,
    draw_scan,
    library_size,
    load_tissues,
    make_library,
    phantom_file,
)
from training.segmentation.model import (
    FORMAT,
    SHIPPED_SEGMENTATION,
    MuscleModel,
    SegmentationModel,
    load_model,
    save_model,
)
from training.segmentation.model_card import write_card
from training.segmentation.muscles import atlas_muscles, coarse_grid
from training.segmentation.network import (
    CLASSES,
    MUSCLE_CLASSES,
    build_muscle_network,
    build_network,
    muscle_input,
    network_input,
)
from training.segmentation.phantom_ct import PELVIS, LabelledCt, hip_box, hip_case, labelled_ct, pelvis_case
from training.segmentation.predict import (
    Segmentation,
    segment,
    without_holes,
)
from training.segmentation.quality import QualityLine, auroc, dice_coefficient, fit_quality
from training.segmentation.sampling import Sampled, StructureFigures, sample_probabilities
from training.segmentation.scanner import Scanner, ordinary_scanner, recorded
from training.segmentation.structures import (
    ABOVE_CRESTS_MM,
    CLASS_OF,
    FIRST_MUSCLE,
    MUSCLE_CLASS_OF,
    NAMES,
    muscles_with_sides,
    with_sides,
)
from training.segmentation.tissues import (
    SATURATED_HU,
    Tissue,
    Tissues,
    hu_of_tissues,
    label_values,
    packed,
    streaks,
    tissues_of,
    unpacked,
)
from training.segmentation.train import begin_with, train, trained, trained_muscles
from training.segmentation.train_border import fit_border, train_border

CONFIGURATION = Path(__file__).resolve().parents[2] / "conf" / "training" / "segmentation.toml"
RUN = SegmentationRun(
    name="tiny",
    version="0",
    seed=1,
    phantoms=PairsConfiguration(count=1, seed=1),
    split=SplitConfiguration(0.0, 0.1),
    network=NetworkConfiguration(widths=(8, 8), batch=2, stages=(Stage(4, 1e-3),)),
    unet=UNetConfiguration(voxel_mm=6.0, patch=16, residual_units=1, dropout=0.3),
    border=BorderConfiguration(scans=2, steps=3, learning_rate=1e-3),
    inference=InferenceConfiguration(samples=3, overlap=0.25, least_dice=0.9),
)
MUSCLES = MusclesConfiguration(voxel_mm=6.0, patch=16, atlas_share=0.0, least_dice=0.8, network=RUN.network)
WITH_MUSCLES = replace(RUN, muscles=MUSCLES)
VOXEL_MM = 2.5
"""Coarser than what a training stores: these tests are about places and tissues."""
SUMMARY = summarise([], [Case(1, "clean", "sacrum", 50.0, 50.0, dice, 0.1, dice) for dice in (0.8, 0.95)])
LINE = QualityLine((0.0, 0.1), (1.0, 0.5))


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    """A person without metal."""
    subject = draw_subject(1, 3)
    right, left = (replace(hip, implant=None) for hip in subject.hips)
    return make_phantom(replace(subject, hips=(right, left)))


@pytest.fixture(scope="module")
def tissues(phantom: Phantom) -> Tissues:
    return tissues_of(phantom, voxel_mm=VOXEL_MM)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom of `RUN`, with its muscles."""
    folder = tmp_path_factory.mktemp("phantoms")
    make_library(WITH_MUSCLES, folder, None, lambda n: None)
    return folder


def at(tissues: Tissues, volume: NDArray[Any], point_mm: NDArray[np.float64]) -> float:
    x, y, z = np.rint((np.linalg.inv(tissues.patient_from_voxel) @ [*point_mm, 1])[:3]).astype(int)
    return float(volume[z, y, x])


def tiny_model(
    dropout: float = 0.3, network: nn.Module | None = None, border: nn.Module | None = None
) -> SegmentationModel:
    torch.manual_seed(0)
    run = replace(RUN, unet=replace(RUN.unet, dropout=dropout))
    return SegmentationModel(run, (network or build_network(run)).eval(), (border or build_border()).eval(), LINE)


def sampled(hu: NDArray[np.float32], model: SegmentationModel, seed: int) -> Sampled:
    return sample_probabilities(model.network, network_input(hu), model.run.unet.patch, model.run.inference, seed)


class OneFeature(nn.Module):
    """In place of a border's network: one column of the profiles against a limit."""

    def __init__(self, column: int, limit: float) -> None:
        super().__init__()
        self.column, self.limit = column, nn.Parameter(torch.tensor(limit))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return 20 * (features[:, self.column : self.column + 1] - self.limit)


HERE = 3 * int(np.flatnonzero(STEPS_MM == 0)[0])
"""Column of the Hounsfield units of a profile's own voxel; the bone's own probability is the next one."""


def one_voxel(**shares: float) -> float:
    values = np.zeros((len(Tissue), 1, 1, 1), np.float32)
    for name, share in shares.items():
        values[Tissue[name.upper()]] = share
    return float(hu_of_tissues(values)[0, 0, 0])


def test_tissues_have_their_hounsfield_units() -> None:
    assert one_voxel() == -1000
    assert 35 < one_voxel(muscle=1.05) < 70
    assert -130 < one_voxel(adipose=0.95) < -70
    assert 1200 < one_voxel(femur=1, mineral=1.08) < 2000  # ICRU's cortical bone
    assert -110 < one_voxel(femur=1) < 0  # marrow alone
    assert one_voxel(femur=1, metal=1) == SATURATED_HU


def test_marrow_is_the_mean_of_its_two_kinds() -> None:
    """Hounsfield units are linear in what fills a voxel."""
    marrow = np.zeros((len(Tissue), 1, 1, 1), np.float32)
    marrow[Tissue.HIP] = 1
    red, mixed, yellow = (float(hu_of_tissues(marrow, yellow_marrow=share)[0, 0, 0]) for share in (0.0, 0.5, 1.0))
    assert mixed == pytest.approx((red + yellow) / 2, abs=0.01)
    assert yellow < red


def test_bones_lie_where_their_landmarks_are(phantom: Phantom, tissues: Tissues) -> None:
    hu, classes = hu_of_tissues(tissues.shares), label_values(tissues.shares)
    for points in phantom.landmarks.values():
        assert at(tissues, classes, points.head_centre) == 1
        assert at(tissues, hu, points.head_centre) > 100  # spongy bone
        assert at(tissues, hu, points.shaft_distal) < 300  # marrow cavity
    assert at(tissues, hu, np.array([0.0, -170.0, 280.0])) == -1000


def test_bone_keeps_its_volume_on_the_grid(phantom: Phantom, tissues: Tissues) -> None:
    lowest = tissues.patient_from_voxel[2, 3]
    for name, low_half in (("right_femur", True), ("left_femur", False)):
        (volume,) = (s for s in phantom.structures if s.name == f"{name}_volume")
        index = np.argwhere(volume.values > 0)
        z = index[:, ::-1] @ volume.patient_from_voxel[2, :3] + volume.patient_from_voxel[2, 3]
        kept = z > lowest
        expected = volume.values[tuple(index[kept].T)].sum() * abs(np.linalg.det(volume.patient_from_voxel[:3, :3]))
        half = tissues.shares[Tissue.FEMUR][:, :, : tissues.shares.shape[3] // 2] if low_half else None
        half = tissues.shares[Tissue.FEMUR][:, :, tissues.shares.shape[3] // 2 :] if half is None else half
        assert float(half.sum()) * VOXEL_MM**3 == pytest.approx(expected, rel=0.01)


def test_hip_bones_are_to_both_sides_of_the_sacrum() -> None:
    subject = draw_subject(1, 0)
    _, volume, origin = pelvis_volumes(subject.pelvis, subject.pelvis_quality, 1, voxel_mm=4.0)
    parts = pelvis_parts(subject.pelvis, volume, origin, voxel_mm=4.0)
    assert ((parts != PelvisPart.NONE) == (volume > 0)).all()
    x = origin[0] + 4.0 * np.arange(volume.shape[2])
    z = origin[2] + 4.0 * np.arange(volume.shape[0])
    sacrum, hips, spine = (parts == part for part in (PelvisPart.SACRUM, PelvisPart.HIP_BONE, PelvisPart.LUMBAR))
    assert np.abs(x[sacrum.any(axis=(0, 1))]).max() < 65
    assert np.abs(x[hips.any(axis=(0, 1))]).max() > 100
    assert z[spine.any(axis=(1, 2))].min() > 110 * subject.pelvis.height_scale
    assert sacrum.sum() * 0.064 > 80  # cm3


def test_a_person_of_the_atlas_has_its_bones_apart(reference_data: Path) -> None:
    person = atlas_subject(reference_data / "anatomy", 7, 3)
    tissues = tissues_of(person, sacrum_volume(reference_data / "anatomy", person), VOXEL_MM)
    classes = label_values(tissues.shares)
    for points in person.landmarks.values():
        assert at(tissues, classes, points.head_centre) == 1
    named = with_sides(classes, tissues.patient_from_voxel)
    middles = [np.argwhere(named == value).mean(axis=0) for value in (3, 5, 4)]  # (z, y, x)
    assert middles[0][2] + 20 < middles[1][2] < middles[2][2] - 20  # right hip bone, sacrum, left hip bone
    assert middles[1][1] > max(middles[0][1], middles[2][1]) + 8  # the sacrum behind
    sacrum_cm3 = float((named == 5).sum()) * VOXEL_MM**3 / 1000
    assert 100 < sacrum_cm3 < 450
    above = tissues.shares[Tissue.OTHER_BONE, -20:, :, classes.shape[2] // 2]
    assert above.max() > 0.5  # vertebrae, which the pelvis of the atlas comes without


def test_packing_loses_less_than_a_grey_level(tissues: Tissues) -> None:
    again = unpacked(packed(tissues))
    assert np.abs(hu_of_tissues(again) - hu_of_tissues(tissues.shares)).max() < 25
    assert (label_values(again) == label_values(tissues.shares)).mean() > 0.9999


def test_streaks_come_from_metal_alone() -> None:
    metal = np.zeros((6, 40, 60), np.float32)
    assert not streaks(metal, np.random.default_rng(0), VOXEL_MM).any()
    metal[2:4, 18:22, 20:24] = metal[2:4, 18:22, 40:44] = 1
    found = streaks(metal, np.random.default_rng(0), VOXEL_MM)
    assert not found[0].any()
    assert found[2, 18:22, 27:37].mean() < -0.1  # the dark band between two pieces
    assert np.abs(found).max() <= 1


def test_a_scan_has_truth_on_its_own_grid_and_sides_of_the_patient(phantom: Phantom, tissues: Tissues) -> None:
    random = np.random.default_rng(0)
    for side, value in ((Side.RIGHT, 1), (Side.LEFT, 2)):
        box = hip_box(phantom.subject, side)
        scanned = labelled_ct(tissues, phantom.subject, box, (3.0, 3.0, 4.0), Scanner(), random)
        assert scanned.ct.hu.shape == scanned.truth.values.shape
        assert (scanned.truth.values == value).sum() * 0.036 > 50
        x, y, z = np.rint(
            (np.linalg.inv(scanned.ct.patient_from_voxel) @ [*phantom.landmarks[side].head_centre, 1])[:3]
        )
        assert scanned.truth.values[int(z), int(y), int(x)] == value
        label_map(scanned.truth.values, NAMES, scanned.truth.patient_from_voxel)  # whose check of sides passes


def test_a_scan_on_coarser_voxels_keeps_places_and_values_and_loses_what_is_finer() -> None:
    hu = np.zeros((40, 40, 40), np.float32)
    hu[10:20, 12:22, 14:24] = 800
    hu[30, :, :] = 500  # thinner than a voxel of the scan
    scanner = Scanner(noise_hu=0.0, voxel_mm=(5.0, 0.0, 4.0))
    seen = recorded(hu, scanner, (1.0, 1.0, 1.0), np.random.default_rng(0))
    assert seen.shape == hu.shape
    assert seen.mean() == pytest.approx(hu.mean(), rel=0.02)
    block = seen[5:25] * (seen[5:25] > 1)
    middle = [
        (block.sum(axis=tuple({0, 1, 2} - {n})) * np.arange(block.shape[n])).sum() / block.sum() for n in range(3)
    ]
    assert middle == pytest.approx([14.5 - 5, 16.5, 18.5], abs=0.3)
    assert seen[30].max() < 350
    same = recorded(hu, Scanner(noise_hu=0.0), (1.0, 1.0, 1.0), np.random.default_rng(0))
    assert (same == hu).all()


def test_a_pelvis_is_judged_as_hospitals_scan(phantom: Phantom, tissues: Tissues) -> None:
    scanned = pelvis_case(tissues, phantom.subject, np.random.default_rng(1))
    x, y, z = np.diag(scanned.ct.patient_from_voxel)[:3]
    assert 0.7 <= x == y <= 1.0 and 1.0 <= z <= 3.0
    assert np.array(scanned.ct.hu.shape[::-1]) * [x, y, z] == pytest.approx(np.subtract(PELVIS[1], PELVIS[0]), abs=3)
    assert set(np.unique(scanned.truth.values)) == {0, *NAMES}


def test_sides_are_told_by_geometry_alone(phantom: Phantom, tissues: Tissues) -> None:
    named = with_sides(label_values(tissues.shares), tissues.patient_from_voxel)
    assert at(tissues, named, phantom.landmarks[Side.RIGHT].head_centre) == 1
    assert at(tissues, named, phantom.landmarks[Side.LEFT].head_centre) == 2
    assert {int(value) for value in np.unique(named)} == {0, *NAMES}


def test_a_mirrored_patient_has_mirrored_sides(tissues: Tissues) -> None:
    classes = label_values(tissues.shares)
    named = with_sides(classes, tissues.patient_from_voxel)
    mirrored = with_sides(np.ascontiguousarray(classes[:, :, ::-1]), tissues.patient_from_voxel)
    swapped = np.array([0, 2, 1, 4, 3, 5], np.uint8)[named][:, :, ::-1]
    assert (mirrored == swapped).mean() > 0.9995


def test_a_scan_tells_its_muscles_and_their_sides(library: Path) -> None:
    person, subject = load_tissues(phantom_file(library, 0)), draw_subject(1, 0)
    spacing_mm = (4.0, 4.0, 4.0)
    scanned = labelled_ct(person, subject, PELVIS, spacing_mm, Scanner(noise_hu=0.0), np.random.default_rng(0))
    values = {name: value for value, name in scanned.truth.names.items()}
    muscles = make_muscles(subject)
    lowest, highest = (np.array(corner) for corner in PELVIS)
    index = np.argwhere(muscles.labels > 0)
    points = index[:, ::-1] @ muscles.patient_from_voxel[:3, :3].T + muscles.patient_from_voxel[:3, 3]
    inside = ((points > lowest) & (points < highest)).all(axis=1)
    for name in ("right_gluteus_medius", "left_gluteus_maximus", "left_iliopsoas"):
        label = MUSCLE_CHANNELS.index(name) + 1
        expected = float((muscles.labels[tuple(index[inside].T)] == label).sum()) * muscles.voxel_cm3
        mask = scanned.truth.values == values[name]
        assert float(mask.sum()) * 0.064 == pytest.approx(expected, rel=0.1), name
        x = scanned.ct.patient_from_voxel[0, 3] + 4.0 * np.argwhere(mask)[:, 2]
        assert (np.median(x) > 0) == name.startswith("left")
    hu = scanned.ct.hu[scanned.truth.values >= FIRST_MUSCLE]
    assert -120 < np.median(hu) < 90


@pytest.mark.parametrize("one_hip", [False, True])
def test_the_sides_of_muscles_are_told_by_the_bones(library: Path, one_hip: bool) -> None:
    person, subject = load_tissues(phantom_file(library, 0)), draw_subject(1, 0)
    box = hip_box(subject, Side.LEFT) if one_hip else PELVIS
    scanned = labelled_ct(person, subject, box, (4.0, 4.0, 4.0), Scanner(), np.random.default_rng(0))
    truth = scanned.truth.values.astype(np.uint8)
    bones = np.where(truth < FIRST_MUSCLE, truth, 0).astype(np.uint8)
    classes = np.zeros_like(truth)
    for value, label in MUSCLE_CLASS_OF.items():
        classes[truth == value] = label
    trunk = classes.copy()
    if not one_hip:
        trunk[-1, trunk[-1] == 0] = Muscle.ADDUCTORS + 1  # as a liver may look; above the crests
        crest_mm = float(np.argwhere(np.isin(bones, (3, 4)))[:, 0].max()) * 4
        assert (len(bones) - 1) * 4 > crest_mm + ABOVE_CRESTS_MM
    named = muscles_with_sides(trunk, bones, scanned.ct.patient_from_voxel)
    both = (named > 0) & (truth >= FIRST_MUSCLE)
    assert both.sum() > 0.97 * (truth >= FIRST_MUSCLE).sum()  # but for crumbs
    assert (named == truth)[both].mean() > 0.99
    assert not named[truth == 0].any()


def test_the_woman_of_the_atlas_has_all_muscles_on_both_sides(reference_data: Path) -> None:
    classes = atlas_muscles(reference_data / "anatomy")
    shape, matrix = coarse_grid()
    assert classes.shape == shape
    x = matrix[0, 3] + matrix[0, 0] * np.arange(shape[2])
    for muscle in Muscle:
        right, left = (int((classes[:, :, side] == muscle + 1).sum()) for side in (x < 0, x > 0))
        assert min(right, left) * 0.027 > 20, muscle
        assert 0.6 < right / left < 1.6, muscle  # the hamstrings too, of which the map has half on the right


def test_a_cube_of_muscles_shows_them_where_they_are_and_not_in_bone(library: Path) -> None:
    examples = [draw_muscle_example(phantom_file(library, 0), 24, 5.0, np.random.default_rng(n)) for n in range(12)]
    lost = 0
    for example in examples:
        assert example.target.shape == (MUSCLE_CLASSES, 24, 24, 24)
        assert np.abs(example.target.sum(axis=0) - 1).max() < 1e-4
        assert example.target.min() > -1e-5
        assert (example.target[1:].sum(axis=0)[example.bones.sum(axis=0) > 0] <= 0.51).all()
        lost += int((example.bones.max(axis=(1, 2, 3)) == 0).sum())
        muscle = example.target[1:].sum(axis=0) > 0.9
        assert not muscle.any() or np.median(example.hu[muscle]) > -150
    assert 0 < lost < 24  # bones that lie elsewhere, or that were not found
    assert muscle_input(examples[0].hu, examples[0].bones).shape == (5, 24, 24, 24)


class _SoftTissue(nn.Module):
    """In place of the muscles' network: gluteus medius is what has the soft window's value of muscle, and is no bone."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        is_muscle = ((image[:, 0] > -0.4) & (image[:, 0] < 0.4) & (image[:, 2:].sum(dim=1) == 0)).float()
        logits = torch.zeros(len(image), MUSCLE_CLASSES, *image.shape[2:])
        logits[:, 0], logits[:, Muscle.GLUTEUS_MEDIUS + 1] = 5 * (1 - is_muscle), 5 * is_muscle
        return logits


def test_muscles_are_found_around_the_bones_and_never_in_them() -> None:
    hu = np.full((40, 50, 80), -100, np.float32)
    hu[5:27, 10:40, 3:77] = 50
    hu[15:25, 20:30, 8:18] = hu[15:25, 20:30, 62:72] = 800
    place = np.diag([3.0, 3, 3, 1])
    bones = _Threshold()
    bones.register_parameter("place", nn.Parameter(torch.zeros(1)))
    run = replace(WITH_MUSCLES, unet=replace(RUN.unet, voxel_mm=3.0), muscles=replace(MUSCLES, voxel_mm=3.0))
    model = replace(
        tiny_model(network=bones, border=OneFeature(HERE, 375 / 500)),
        run=run,
        muscles=MuscleModel(replace(MUSCLES, voxel_mm=3.0), _SoftTissue(), QualityLine((0.0,), (0.7,))),
    )
    found = segment(CtVolume(hu, place), model)
    right, left = (found.labels.mask(f"{side}_gluteus_medius") for side in ("right", "left"))
    assert dice_coefficient(right | left, (hu > 0) & (hu < 300)) > 0.95
    assert not (right | left)[hu > 300].any()
    assert not right[:, :, 45:].any() and not left[:, :, :35].any()
    figures = found.figures["left_gluteus_medius"]
    assert figures.predicted_dice == 0.7 and figures.is_doubtful
    assert figures.volume_cm3 == pytest.approx(float(left.sum()) * 0.027)
    assert found.figures["left_gluteus_maximus"].volume_cm3 == 0
    assert set(segment(CtVolume(hu, place), replace(model, muscles=None)).figures) == set(NAMES.values())


def test_muscles_are_trained_after_the_bones_and_stay_with_the_model(tmp_path: Path, library: Path) -> None:
    run = replace(WITH_MUSCLES, split=SplitConfiguration(0.0, 0.0))
    train(run, library, tmp_path)
    muscles = trained_muscles(run, MUSCLES, tmp_path)
    model = replace(tiny_model(), run=run, muscles=MuscleModel(MUSCLES, muscles, QualityLine((0.0, 0.2), (0.9, 0.4))))
    save_model(model, {}, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.muscles is not None and model.muscles is not None
    assert again.muscles.quality == model.muscles.quality
    cube = torch.randn(1, 5, 16, 16, 16)
    assert torch.allclose(muscles(cube), again.muscles.network(cube), atol=0.05)
    begun = build_muscle_network(run, MUSCLES)
    begin_with(replace(run, start="model"), tmp_path / "model", build_network(run), begun)
    assert all(torch.equal(a, b) for a, b in zip(begun.parameters(), again.muscles.network.parameters(), strict=True))
    finer = replace(run, muscles=replace(MUSCLES, voxel_mm=3.0))
    with pytest.raises(ConfigurationError, match="those of the muscles too"):
        begin_with(finer, tmp_path / "model", build_network(run), begun)
    (tmp_path / "model" / "muscles.safetensors").unlink()
    with pytest.raises(BundleError, match=r"muscles\.safetensors does not exist; copy the model again"):
        load_model(tmp_path / "model")


def test_lean_mass_is_what_lies_between_fat_and_muscle() -> None:
    hu = np.array([-200.0, -101, -29, 43, 43, 43], np.float32).reshape(1, 1, 6).repeat(3, axis=0).repeat(3, axis=1)
    values = np.zeros(hu.shape, np.uint16)
    values[1, 1, 1:5] = 7
    ct = CtVolume(hu, np.diag([10.0, 10, 10, 1]))
    masses = muscle_masses(ct, LabelMap(values, {7: "left_gluteus_medius", 1: "sacrum"}, ct.patient_from_voxel))
    assert set(masses) == {"left_gluteus_medius"}
    mass = masses["left_gluteus_medius"]
    assert mass.lean_g == pytest.approx((0 + 0.5 + 1 + 1) * 1.05)
    noise = np.random.default_rng(0).normal(0, 30, (20, 20, 20)).astype(np.float32)
    everywhere = LabelMap(np.full(noise.shape, 7, np.uint16), {7: "left_iliopsoas"}, ct.patient_from_voxel)
    for mean_hu, share in ((-29.0, 0.5), (35.0, 136 / 144), (70.0, 1.0)):  # the last with contrast medium
        noisy = muscle_masses(CtVolume(noise + mean_hu, ct.patient_from_voxel), everywhere)["left_iliopsoas"]
        assert noisy.lean_g == pytest.approx(8000 * 1.05 * share, rel=0.02)
    water = mass_attenuation_cm2_g("water", np.array([68.0]))[0]
    for name, expected in (("adipose", ADIPOSE_HU), ("muscle", MUSCLE_HU)):
        tissue = CT_TISSUES[name]
        relative = tissue.density_g_cm3 * mass_attenuation_cm2_g(tissue.material, np.array([68.0]))[0] / water
        assert 1000 * (relative - 1) == pytest.approx(expected, abs=1)
    assert mass.volume_cm3 == pytest.approx(4) and not mass.is_cut
    values[1, 1, 5] = 7
    assert muscle_masses(ct, LabelMap(values, {7: "left_gluteus_medius"}, ct.patient_from_voxel))[
        "left_gluteus_medius"
    ].is_cut


@pytest.mark.parametrize("side", [Side.RIGHT, Side.LEFT])
def test_one_hip_alone_has_its_side(tissues: Tissues, side: Side) -> None:
    classes = label_values(tissues.shares).copy()
    half = classes.shape[2] // 2
    if side is Side.RIGHT:
        classes[:, :, half - 8 :] = 0
    else:
        classes[:, :, : half + 8] = 0
    classes[classes == 3] = 0
    named = with_sides(classes, tissues.patient_from_voxel)
    assert set(np.unique(named)) == ({0, 1, 3} if side is Side.RIGHT else {0, 2, 4})


def test_a_vertebra_is_no_femur(tissues: Tissues) -> None:
    """Taken for a femur by the network and larger than any, it lies in the middle."""
    classes = label_values(tissues.shares)
    expected = with_sides(classes, tissues.patient_from_voxel)
    middle = classes.shape[2] // 2
    classes[-40:, 40:90, middle - 12 : middle + 14] = 1
    named = with_sides(classes, tissues.patient_from_voxel)
    assert (named == expected).all()


def test_crumbs_are_no_structure() -> None:
    classes = np.zeros((20, 20, 20), np.uint8)
    classes[2:4, 2:4, 2:4] = 1
    assert not with_sides(classes, np.diag([3.0, 3, 3, 1])).any()


def test_a_sliding_window_equals_the_whole_volume_for_a_pointwise_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "has_fast_bfloat16", lambda device: False)
    model = tiny_model(network=nn.Conv3d(2, CLASSES, 1))
    hu = np.random.default_rng(0).uniform(-500, 800, (20, 37, 25)).astype(np.float32)
    found = sampled(hu, model, seed=0)
    whole = model.network(network_input(hu)[None])[0].softmax(dim=0).detach().numpy()
    assert np.abs(found.mean - whole).max() < 1e-5
    assert found.variance.max() < 1e-6


def test_uncertainty_is_zero_without_dropout_and_grows_with_it() -> None:
    hu = np.random.default_rng(0).uniform(-500, 800, (16, 16, 16)).astype(np.float32)
    spread = [float(sampled(hu, tiny_model(share), seed=0).variance.mean()) for share in (0.0, 0.1, 0.5)]
    assert spread[0] < 1e-7
    assert spread[0] < spread[1] < spread[2]


def test_the_same_seed_gives_the_same_uncertainty() -> None:
    hu = np.random.default_rng(0).uniform(-500, 800, (16, 16, 16)).astype(np.float32)
    first, second = (sampled(hu, tiny_model(), seed=5).variance for _ in range(2))
    assert (first == second).all()


def test_resampling_keeps_places_whatever_the_ct_axes() -> None:
    """A ball at a known place, in a CT whose x axis runs to the right and whose slices are thick."""
    matrix = np.array([[-1.2, 0, 0, 60], [0, 1.5, 0, -40], [0, 0, 3.0, 10], [0, 0, 0, 1]], float)
    z, y, x = np.indices((30, 60, 100))
    points = np.stack([x, y, z], axis=-1) @ matrix[:3, :3].T + matrix[:3, 3]
    ball = (np.linalg.norm(points - [10.0, 5.0, 50.0], axis=-1) < 20).astype(np.float32)
    hu, patient_from_grid = to_grid(CtVolume(ball * 1000, matrix), 3.5)
    inside = np.argwhere(hu > 500)[:, ::-1]
    centre = (inside @ patient_from_grid[:3, :3].T + patient_from_grid[:3, 3]).mean(axis=0)
    assert np.abs(centre - [10, 5, 50]).max() < 0.6
    assert len(inside) * 3.5**3 == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.06)


class _Threshold(nn.Module):
    """Calls everything above 375 HU a hip bone, half-way between what the test has."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros((len(image), CLASSES, *image.shape[2:]))
        logits[:, 2] = (image[:, 1] - (2 * (375 + 1000) / 3000 - 1)) * 6
        return logits


def test_a_label_map_comes_back_on_the_ct_grid_and_from_its_file(tmp_path: Path) -> None:
    matrix = np.array([[-1.5, 0, 0, 60], [0, -1.5, 0, 40], [0, 0, 2.0, 10], [0, 0, 0, 1]], float)
    hu = np.full((40, 50, 80), -50, np.float32)
    hu[10:30, 12:38, 25:60] = 800
    network = _Threshold()
    network.register_parameter("place", nn.Parameter(torch.zeros(1)))
    model = tiny_model(network=network, border=OneFeature(HERE, 375 / 500))
    found = segment(CtVolume(hu, matrix), replace(model, run=replace(RUN, unet=replace(RUN.unet, voxel_mm=2.0))))
    assert found.labels.values.shape == hu.shape
    assert dice_coefficient(found.labels.values > 0, hu > 300) > 0.99
    volume = sum(figure.volume_cm3 for figure in found.figures.values())
    assert volume == pytest.approx((hu > 300).sum() * 4.5e-3, rel=0.03)
    write_labels(found.labels, tmp_path / "labels.nii.gz")
    again = read_labels(tmp_path / "labels.nii.gz")
    assert (again.mask("pelvis") == (found.labels.values > 0)).all()
    assert np.allclose(again.patient_from_voxel, matrix)


@dataclass(frozen=True)
class Ball:
    """A bright ball of 18 mm about (10, 5, 50) in an oblong CT whose x axis runs to the right; and what a U-Net made of it."""

    ct: CtVolume
    truth: NDArray[np.bool_]
    own: NDArray[np.float32]
    patient_from_grid: NDArray[np.float64]


@pytest.fixture(scope="module")
def ball() -> Ball:
    """What was found is 2 mm too large."""
    matrix = np.array([[-1.2, 0, 0, 60], [0, 0.8, 0, -30], [0, 0, 2.5, 10], [0, 0, 0, 1]], float)

    def depth_mm(shape: tuple[int, int, int], of: NDArray[np.float64]) -> NDArray[np.float64]:
        z, y, x = np.indices(shape)
        points = np.stack([x, y, z], axis=-1) @ of[:3, :3].T + of[:3, 3]
        return np.asarray(18 - np.linalg.norm(points - [10.0, 5.0, 50.0], axis=-1))

    depth = depth_mm((32, 90, 85), matrix)
    ct = CtVolume((500 * np.clip(depth / 2.5 + 0.5, 0, 1)).astype(np.float32), matrix)
    hu, patient_from_grid = to_grid(ct, 2.0)
    own = np.clip(0.5 + (depth_mm((hu.shape[0], hu.shape[1], hu.shape[2]), patient_from_grid) + 2) / 4, 0, 1)
    return Ball(ct, depth > 0, own.astype(np.float32), patient_from_grid)


def test_a_profile_runs_from_outside_to_inside_through_its_voxel(ball: Ball) -> None:
    ((index, features),) = profiles(ball.ct, ball.own > 0.5, ball.own, np.zeros_like(ball.own), ball.patient_from_grid)
    assert features.shape == (len(index), FEATURES)
    depth_mm = 2 * features[:, -4].numpy()
    assert np.abs(depth_mm).max() < REACH_MM
    volume_mm3 = len(index) * 1.2 * 0.8 * 2.5
    assert volume_mm3 == pytest.approx(4 / 3 * np.pi * ((20 + REACH_MM) ** 3 - (20 - REACH_MM) ** 3), rel=0.1)
    np.testing.assert_allclose(500 * features[:, HERE], ball.ct.hu[tuple(index.T)], atol=0.1)
    hu = features[:, 0 : 3 * len(STEPS_MM) : 3]
    assert (np.diff(hu.numpy(), axis=1).mean(axis=0) > -1e-3).all()  # brighter the further inside
    assert float((hu[:, -1] - hu[:, 0]).mean()) > 0.5
    up = ball.ct.patient_from_voxel[2, 3] + 2.5 * index[:, 0] - 50
    assert np.corrcoef(np.abs(up), features[:, -3].numpy())[0, 1] > 0.95  # across the slices above and below
    assert features[0, -2:].tolist() == pytest.approx([2.5, 0.8])


def test_how_a_profile_leans_is_told_by_the_slices_wherever_they_lie(ball: Ball) -> None:
    """The same CT with its axes in another order: what was the slices' direction is a row's now."""
    turned = ball.ct.patient_from_voxel[:, [2, 0, 1, 3]]
    coronal = CtVolume(np.ascontiguousarray(ball.ct.hu.transpose(1, 2, 0)), turned)
    ((index, features),) = profiles(coronal, ball.own > 0.5, ball.own, np.zeros_like(ball.own), ball.patient_from_grid)
    back_mm = turned[1, 3] + 0.8 * index[:, 0] - 5
    assert np.corrcoef(np.abs(back_mm), features[:, -3].numpy())[0, 1] > 0.95
    assert features[0, -2:].tolist() == pytest.approx([0.8, 1.2])


def test_the_border_is_read_from_the_ct_and_not_from_the_coarse_probability(ball: Ball) -> None:
    nothing = np.zeros_like(ball.own)
    as_found = sharpened(OneFeature(HERE + 1, 0.5), ball.ct, ball.own > 0.5, ball.own, nothing, ball.patient_from_grid)
    read = sharpened(OneFeature(HERE, 0.5), ball.ct, ball.own > 0.5, ball.own, nothing, ball.patient_from_grid)
    assert dice_coefficient(as_found > 0.5, ball.truth) < 0.9
    assert dice_coefficient(read > 0.5, ball.truth) > 0.995


def test_without_a_bone_there_is_no_border(ball: Ball) -> None:
    nothing = np.zeros_like(ball.own)
    assert not list(profiles(ball.ct, nothing > 0, nothing, nothing, ball.patient_from_grid))


def test_the_network_of_the_border_learns_what_its_profiles_say() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4000, FEATURES, generator=generator)
    truth = features[:, HERE] > 0.3
    torch.manual_seed(0)
    border = build_border()
    fit_border(border, features.half(), truth, replace(RUN, border=BorderConfiguration(1, 150, 3e-3)))
    assert float(((border(features)[:, 0] > 0) == truth).float().mean()) > 0.97


def test_a_border_is_trained_on_scans_of_the_library_once(tmp_path: Path, library: Path) -> None:
    run = replace(RUN, split=SplitConfiguration(0.0, 0.0))
    done: list[int] = []
    network = build_network(run)
    with torch.no_grad():  # bone everywhere, so that there are borders of noise
        for parameter in network.parameters():
            parameter.mul_(3)
    torch.save(network.state_dict(), tmp_path / "network.pt")
    train_border(run, library, tmp_path, done.append)
    assert len(done) == run.border.scans
    first = trained(build_border(), tmp_path / "border.pt").state_dict()
    train_border(run, library, tmp_path, done.append)
    assert len(done) == run.border.scans
    torch.save(network.state_dict(), tmp_path / "network.pt")  # as another training would: its borders are not these
    train_border(run, library, tmp_path, done.append)
    assert len(done) == 2 * run.border.scans
    again = trained(build_border(), tmp_path / "border.pt").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_a_network_that_finds_no_bone_has_no_border_to_learn_from(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(RUN, split=SplitConfiguration(0.0, 0.0))
    monkeypatch.setattr("training.segmentation.train_border.trained_network", lambda run, folder: _no_bone())
    with pytest.raises(ConfigurationError, match="no bone in 2 scans of people"):
        train_border(run, library, tmp_path, lambda n: None)


def test_a_border_is_trained_on_ct_of_patients_as_often_as_the_run_wants_them(
    tmp_path: Path, library: Path, patient: LabelledCt, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = HospitalConfiguration(str(_write_cases(tmp_path, patient, 2)), share=0.5, test=0.0)
    border = replace(RUN.border, scans=6)
    run = replace(RUN, hospital=hospital, border=border, split=SplitConfiguration(0.0, 0.0))
    drawn: list[tuple[int, ...]] = []

    def noted(*args: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        drawn.append(args[1].hu.shape)
        return [(torch.zeros(2, FEATURES), torch.tensor([True, False]))]

    monkeypatch.setattr("training.segmentation.train_border._examples", noted)
    torch.save(build_network(run).state_dict(), tmp_path / "network.pt")
    train_border(run, library, tmp_path, lambda n: None)
    edge_mm = run.unet.patch * run.unet.voxel_mm
    assert len(drawn) == 6
    assert all(
        shape <= (edge_mm / 3 + 2, edge_mm / 2 + 2, edge_mm / 2 + 2) for shape in drawn[:3]
    )  # its own flat voxels

    pieces = list(labelled_pieces(hospital, 5, 60.0, np.random.default_rng(0)))
    assert len(pieces) == 5
    ct_from_patient = np.linalg.inv(patient.ct.patient_from_voxel)
    for ct, classes in pieces:
        assert classes.shape == ct.hu.shape and classes.any()
        first = np.rint((ct_from_patient @ ct.patient_from_voxel)[:3, 3]).astype(int)[::-1]
        box = tuple(slice(a, a + n) for a, n in zip(first, ct.hu.shape, strict=True))
        assert np.allclose(patient.ct.hu[box], ct.hu)
        assert ((patient.truth.values[box] > 0) == (classes > 0)).all()


def test_a_piece_of_a_person_keeps_the_voxels_of_its_scan(library: Path) -> None:
    drawn = [draw_scan(phantom_file(library, 0), 60.0, np.random.default_rng(seed)) for seed in range(6)]
    for ct, target in drawn:
        size_mm = np.array(ct.hu.shape[::-1]) * np.diag(ct.patient_from_voxel)[:3]
        assert np.abs(size_mm - 60).max() < 2.0
        assert target.shape == (CLASSES, *ct.hu.shape)
        assert np.abs(target.sum(axis=0) - 1).max() < 1e-5
    assert {ct.patient_from_voxel[0, 0] < 1 for ct, _ in drawn} == {True, False}


def test_a_stem_counts_to_the_femur_and_a_cup_to_the_hip_bone() -> None:
    subject = draw_subject(1, 3)
    right, left = (
        replace(hip, fracture=None, implant=Implant(ImplantKind.TOTAL_ARTHROPLASTY, 4.43, 1.0)) for hip in subject.hips
    )
    whole = make_phantom(replace(subject, hips=(right, left)))
    of_stem, of_cup = (
        sum(
            float(part.values.sum()) * abs(float(np.linalg.det(part.patient_from_voxel[:3, :3]))) / 1000
            for part in whole.structures
            if part.name == "metal_volume" and (max(part.values.shape) > 100) is is_stem
        )
        for is_stem in (True, False)
    )
    found = tissues_of(whole, voxel_mm=VOXEL_MM)
    metal = found.shares[Tissue.METAL] * VOXEL_MM**3 / 1000
    assert of_stem > of_cup > 10
    assert float((metal * found.shares[Tissue.FEMUR]).sum()) > 0.8 * of_stem
    assert float((metal * found.shares[Tissue.HIP]).sum()) < of_cup + 0.1 * of_stem


def test_what_was_not_found_is_doubtful() -> None:
    found = segment(
        CtVolume(np.full((20, 20, 20), -1000, np.float32), np.diag([3.0, 3, 3, 1])), tiny_model(network=_no_bone())
    )
    assert not found.labels.values.any()
    assert all(figure.is_doubtful and figure.predicted_dice == 0 for figure in found.figures.values())


def _no_bone() -> nn.Module:
    network = nn.Conv3d(2, CLASSES, 1)
    nn.init.zeros_(network.weight)
    with torch.no_grad():
        assert network.bias is not None
        network.bias.copy_(torch.tensor([5.0, 0, 0, 0]))
    return network


def test_predicted_dice_falls_with_uncertainty() -> None:
    line = fit_quality([0.01, 0.02, 0.03, 0.04, 0.1], [0.97, 0.98, 0.9, 0.92, 0.3])
    predicted = [line.dice(u) for u in np.linspace(0, 0.2, 50)]
    assert (np.diff(predicted) <= 1e-12).all()
    assert line.dice(0.015) == pytest.approx(0.975)
    assert line.dice(1.0) == pytest.approx(0.3)


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    assert auroc([1, 2, 3, 4], [False, False, True, True]) == 1
    assert auroc([4, 3, 2, 1], [False, False, True, True]) == 0
    assert auroc([1, 1, 1, 1], [False, True, False, True]) == 0.5
    assert auroc([1, 3, 2, 4], [False, False, True, True]) == 0.75
    assert auroc([1, 2], [False, False]) is None


def test_a_model_comes_back_from_disk_and_damage_is_seen(tmp_path: Path) -> None:
    model = tiny_model()
    save_model(model, {}, tmp_path)
    again = load_model(tmp_path)
    assert again.run == model.run
    assert again.quality == LINE
    hu = np.random.default_rng(0).uniform(-500, 800, (16, 16, 16)).astype(np.float32)
    first, second = (sampled(hu, m, seed=0).mean for m in (model, again))
    assert np.abs(first - second).max() < 0.01  # weights are kept in half precision
    features = torch.randn(50, FEATURES)
    assert torch.allclose(model.border(features), again.border(features), atol=0.01)
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    with pytest.raises(BundleError, match="copy the model again"):
        load_model(tmp_path)
    document = json.loads((tmp_path / "segmentation.json").read_text())
    (tmp_path / "segmentation.json").write_text(json.dumps({**document, "format": 99}))
    with pytest.raises(BundleError, match=f"format 99, expected {FORMAT}"):
        load_model(tmp_path)
    with pytest.raises(BundleError, match="holds no segmentation"):
        load_model(tmp_path / "nowhere")


def _stops_after(count: int) -> Callable[..., Example]:
    calls = iter(range(count))

    def draws(file: Path, patch: int, voxel_mm: float, random: np.random.Generator) -> Example:
        if next(calls, None) is None:
            raise InterruptedError
        return draw_example(file, patch, voxel_mm, random)

    return draws


def test_an_interrupted_training_goes_on_to_the_weights_it_would_have_had(tmp_path: Path, library: Path) -> None:
    first, again = (draw_example(phantom_file(library, 0), 16, 6.0, np.random.default_rng(4)) for _ in range(2))
    assert (first.hu == again.hu).all()
    assert first.hu.shape == (16, 16, 16)
    assert np.abs(first.target.sum(axis=0) - 1).max() < 1e-5
    assert first.target.min() >= -1e-6
    run = replace(RUN, split=SplitConfiguration(0.0, 0.0))
    train(run, library, tmp_path / "run")
    weights = torch.load(tmp_path / "run" / "network.pt", weights_only=True)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.segmentation.train.draw_example", _stops_after(5))
        with pytest.raises(InterruptedError):
            train(run, library, tmp_path / "parts", save_every=2)
    assert (tmp_path / "parts" / "network.checkpoint.pt").exists()
    train(run, library, tmp_path / "parts", save_every=2)
    again_weights = torch.load(tmp_path / "parts" / "network.pt", weights_only=True)
    assert all(torch.equal(again_weights[name], tensor) for name, tensor in weights.items())  # dropout and all
    stored = load_tissues(phantom_file(library, 0))
    case = hip_case(stored, draw_subject(1, 0), "cut", np.random.default_rng(1))
    assert case.ct.hu.shape == case.truth.values.shape
    with pytest.raises(ConfigurationError, match=r"phantoms of seed 1, voxels of 1\.5 mm, version 3, expected 2"):
        make_library(replace(RUN, phantoms=PairsConfiguration(1, 2)), library, None, lambda n: None)
    with pytest.raises(ConfigurationError, match="--atlas"):
        make_library(replace(RUN, atlas=AtlasConfiguration(1, share=0.5)), library, None, lambda n: None)


def test_a_bone_has_no_holes_but_keeps_its_openings() -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[1:6, 1:6, 1:6] = 2
    labels[2:4, 2:4, 2:4] = 0  # closed
    labels[3, 3, 3] = 1
    labels[4, 4, 4:] = 0  # open to the outside
    labels[7, 7, 7] = 5
    filled = without_holes(labels)
    assert (filled[2:4, 2:4, 2:4] == 2).all()
    assert (filled[4, 4, 4:] == 0).all()
    assert (filled != labels).sum() == 8
    assert filled[7, 7, 7] == 5


def _write_cases(folder: Path, scanned: LabelledCt, count: int) -> Path:
    """A table of patients who are all alike, their CTs as NIfTI with the names that TotalSegmentator gives."""
    matrix = scanned.ct.patient_from_voxel
    for name, values in (("ct", scanned.ct.hu), ("labels", scanned.truth.values)):
        image = sitk.GetImageFromArray(values)
        image.SetSpacing(np.diag(matrix)[:3].tolist())
        image.SetOrigin(matrix[:3, 3].tolist())
        sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))
    names = {str(value): "_".join(reversed(name.split("_"))) for value, name in scanned.truth.names.items()}
    (folder / "labels.json").write_text(json.dumps(names), encoding="utf-8")
    table = folder / "cts.csv"
    lines = [f"c{number},ct.nii.gz,labels.nii.gz" for number in range(count)]
    table.write_text("\n".join(["case,ct,labels", *lines]) + "\n", encoding="utf-8")
    return table


@pytest.fixture(scope="module")
def patient(phantom: Phantom, tissues: Tissues) -> LabelledCt:
    """One hip in a CT with flat voxels."""
    box = hip_box(phantom.subject, Side.LEFT)
    return labelled_ct(tissues, phantom.subject, box, (2.0, 2.0, 3.0), Scanner(), np.random.default_rng(0))


def test_a_cube_of_a_patients_ct_shows_its_bones_where_its_labels_are(
    tmp_path: Path, library: Path, patient: LabelledCt
) -> None:
    table = _write_cases(tmp_path, patient, 1)
    run = replace(RUN, hospital=HospitalConfiguration(str(table), share=0.5, test=0.0))
    make_library(run, library, None, lambda n: None)
    assert library_size(run) == 2
    (file,) = ct_files(library, run).values()
    stored = np.load(file)
    assert set(np.unique(stored[1])) == {0, *(CLASS_OF[int(v)] for v in np.unique(patient.truth.values) if v)}
    voxel_cm3 = abs(float(np.linalg.det(patient.ct.patient_from_voxel[:3, :3]))) / 1000
    volume = float((patient.truth.values == 2).sum()) * voxel_cm3
    assert float((stored[1] == 1).sum()) * (1.5**3 / 1000) == pytest.approx(volume, rel=0.02)
    for seed in range(4):
        example = draw_ct_example(file, 48, 2.0, np.random.default_rng(seed))
        again = draw_ct_example(file, 48, 2.0, np.random.default_rng(seed))
        assert (example.hu == again.hu).all()
        assert np.abs(example.target.sum(axis=0) - 1).max() < 1e-5
        bone, rest = (example.hu[share > 0.99].mean() for share in (1 - example.target[0], example.target[0]))
        assert bone > rest + 150
    (tmp_path / "labels.json").write_text((tmp_path / "labels.json").read_text() + "\n", encoding="utf-8")
    assert list(ct_files(library, run).values()) != [file]  # other labels are read anew


def test_patients_are_learned_from_or_held_out_and_the_card_says_so(
    tmp_path: Path, library: Path, patient: LabelledCt
) -> None:
    hospital = HospitalConfiguration(str(_write_cases(tmp_path, patient, 4)), share=0.9, test=0.4)
    parts = read_cases(hospital)
    assert len(parts["training"]) + len(parts["test"]) == 4
    assert parts["test"] and not {case.patient for case in parts["test"]} & {case.patient for case in parts["training"]}
    run = replace(RUN, hospital=hospital, split=SplitConfiguration(0.0, 0.0))
    make_library(run, library, None, lambda n: None)
    train(run, library, tmp_path)
    with pytest.raises(ConfigurationError, match=r"split\.validation"):
        finish(run, tmp_path, library, {}, lambda n: None)
    network = build_network(run)
    network.load_state_dict(torch.load(tmp_path / "network.pt", weights_only=True))
    save_model(
        SegmentationModel(run, network, build_border(), LINE, learned_from=learned_from(run)), {}, tmp_path / "model"
    )
    model = load_model(tmp_path / "model")
    missed: list[str] = []
    compared = held_out_cts(model, lambda n: None, missed.append)
    assert not missed
    assert set(compared) == {case.case for case in parts["test"]}
    assert set(next(iter(compared.values()))) == {NAMES[int(v)] for v in np.unique(patient.truth.values) if v}
    write_card(model, replace(SUMMARY, held_out_cts=compared), tmp_path)
    card = (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"labelled CTs of {len(parts['training'])} patients (cts.csv)" in card.split("## What it is")[0]
    assert "| left_femur |" in card.split("held-out patients")[1] and "seen none in training" not in card

    (tmp_path / "labels.nii.gz").unlink()  # of everybody
    assert held_out_cts(model, lambda n: None, missed.append) == {}
    assert len(missed) == len(parts["test"]) and "left out: case c" in missed[0]

    begun = replace(RUN, start=str(tmp_path / "model"), split=SplitConfiguration(0.0, 0.0))
    network = build_network(begun)
    begin_with(begun, tmp_path / "model", network, None)
    weights = network.state_dict()
    assert all(torch.equal(tensor.half(), weights[n].half()) for n, tensor in model.network.state_dict().items())
    assert learned_from(begun) == model.learned_from  # what was learned before is not forgotten
    other = replace(begun, network=replace(RUN.network, widths=(8, 16)))
    with pytest.raises(ConfigurationError, match="they must be the same"):
        begin_with(other, tmp_path / "model", build_network(other), None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c1,nowhere.nii.gz,labels.nii.gz", "case c1: .*nowhere.nii.gz"),
        ("c1,ct.nii.gz,nowhere", "case c1: .*nowhere does not exist"),
        ("c1,ct.nii.gz,", "line 2: case c1 lacks its labels"),
        ("Hanako Yamada,ct.nii.gz,labels.nii.gz", "no name"),
        ("c1,ct.nii.gz,liver.nii.gz", "case c1: .*has liver; expected right_femur"),
    ],
)
def test_a_labelled_ct_that_cannot_be_used_is_named(
    tmp_path: Path, patient: LabelledCt, line: str, message: str
) -> None:
    table = _write_cases(tmp_path, patient, 1)
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((4, 4, 4), np.uint8)), str(tmp_path / "liver.nii.gz"))
    (tmp_path / "liver.json").write_text('{"1": "liver"}', encoding="utf-8")
    table.write_text(f"case,ct,labels\n{line}\n", encoding="utf-8")
    run = replace(RUN, phantoms=PairsConfiguration(0, 1), hospital=HospitalConfiguration(str(table), 0.5, 0.0))
    with pytest.raises(ConfigurationError, match=message):
        make_library(run, tmp_path / "library", None, lambda n: None)


def test_a_table_of_nobody_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cts.csv").write_text("case,ct,labels\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="none to learn from"):
        read_cases(HospitalConfiguration(str(tmp_path / "cts.csv"), 0.5, 0.2))


def test_the_card_and_the_figures_say_what_was_measured_and_on_what(tmp_path: Path) -> None:
    model = SegmentationModel(
        replace(RUN, atlas=AtlasConfiguration(count=2, persons=3, share=0.25)), build_network(RUN), build_border(), LINE
    )
    found = {"left_femur": StructureFigures(10.0, 0.1, 0.81, is_doubtful=True)}
    labels = LabelMap(np.full((2, 2, 2), 2, np.uint16), NAMES, np.eye(4))
    half = LabelMap(np.where(np.arange(8).reshape(2, 2, 2) < 4, 2, 0).astype(np.uint16), {2: "left_femur"}, np.eye(4))
    real = compare(Segmentation(labels, found), half)
    assert real == {"left_femur": {"dice": pytest.approx(2 / 3), "predicted_dice": 0.81}}
    hips = [Case(1, "metal", "left_femur", 50.0, 51.0, dice, 1 - dice, dice + 0.01) for dice in (0.98, 0.7, 0.95)]
    summary = replace(summarise([replace(hips[0], spoil="pelvis")], hips), real_ct=real)
    write_card(model, summary, tmp_path)
    card = (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "Learned from simulated CT" in card.split("## What it is")[0]
    assert "| left_femur | 0.980 | 0.980 | 2.0 % | 1 |" in card and "| metal | 0.877 |" in card
    assert "bones of single hips in all scans: 1 of 3 under Dice 0.9, AUROC 1.000" in card
    assert "CC BY 4.0" in card and "25 % of the cubes come from real anatomy: 2 drawings" in card
    assert "| left_femur | 0.667 | 0.810 |" in card
    write_card(replace(model, run=RUN), replace(summary, real_ct={}), tmp_path)
    plain = (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "CC BY" not in plain and "label map that came with it" not in plain


def test_the_shipped_configuration_is_sound() -> None:
    run = load_segmentation(CONFIGURATION)
    assert run.unet.patch % 2 ** (len(run.network.widths) - 1) == 0


def test_a_share_of_an_atlas_needs_something_to_draw(tmp_path: Path) -> None:
    file, text = tmp_path / "run.toml", CONFIGURATION.read_text(encoding="utf-8")
    without_drawings = text.replace("count = 6 ", "count = 0 ")
    file.write_text(without_drawings, encoding="utf-8")
    with pytest.raises(
        ConfigurationError, match=r"atlas\.count: expected at least 1 where muscles\.atlas_share is not 0"
    ):
        load_segmentation(file)
    without_drawings = without_drawings.replace("atlas_share = 0.4", "atlas_share = 0.0")
    file.write_text(without_drawings, encoding="utf-8")
    assert load_segmentation(file).atlas.persons > 0
    file.write_text(without_drawings.replace("persons = 18", "persons = 0"), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"atlas\.count: expected at least 1, or atlas\.persons"):
        load_segmentation(file)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("patch = 72", "patch = 50", "unet.patch: expected a multiple of 8"),
        ("dropout = 0.1", "dropout = 1.0", "unet.dropout: expected from 0 to below 1"),
        ("samples = 4", "samples = 0", "inference.samples: expected at least 1"),
        ("voxel_mm = 2.0", "voxel_cm = 2.0", "unet: unknown key 'voxel_cm'"),
        ("persons = 18", "persons = -1", "atlas: expected a count and persons of at least 0"),
        ("steps = 6000", "", "stages: .*steps"),
        ("steps = 6000", "steps = 0", "network: batch, stages and the steps of each stage must be at least 1"),
        (
            "[atlas]",
            "[hospital]\ntable = 't'\nshare = 1.0\ntest = 0.2\n\n[atlas]",
            "hospital: expected a share between 0 and 1",
        ),
        ("batch = 2", "batch = 0", "network: batch, stages and the steps"),
        ("steps = 6000", "steps = 6000\nadversarial = 1.0", "adversarial is for the decomposer"),
        ('precision = "bf16-mixed"', "devices = 0", "engine.devices = 0 must be"),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = CONFIGURATION.read_text(encoding="utf-8")
    assert old in text
    file = tmp_path / "run.toml"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message):
        load_segmentation(file)


def test_a_label_map_of_the_network_goes_under_the_names_of_the_project(tissues: Tissues) -> None:
    named = with_sides(label_values(tissues.shares), tissues.patient_from_voxel)
    ours = label_map(named, NAMES, tissues.patient_from_voxel)
    assert isinstance(ours, LabelMap)
    assert set(ours.names.values()) == {"right_femur", "left_femur", "pelvis"}


def test_the_card_of_the_shipped_model_says_what_was_measured(tmp_path: Path) -> None:
    figures = json.loads((SHIPPED_SEGMENTATION / "evaluation" / "figures.json").read_text(encoding="utf-8"))
    for name in ("warning", "muscle_warning"):
        figures[name] = WarningFigures(**figures[name])
    write_card(load_model(SHIPPED_SEGMENTATION), Summary(**figures), tmp_path)
    card, written = (
        (folder / "MODEL_CARD.md").read_text(encoding="utf-8") for folder in (SHIPPED_SEGMENTATION, tmp_path)
    )
    assert card == written


def test_the_shipped_model_finds_the_bones_of_a_hip_that_it_has_not_seen(phantom: Phantom) -> None:
    random = np.random.default_rng(0)
    scanner = ordinary_scanner(random, 0.9)
    spacing_mm = (0.9, 0.9, scanner.voxel_mm[0])
    box = hip_box(phantom.subject, Side.LEFT)
    scanned = labelled_ct(tissues_of(phantom), phantom.subject, box, spacing_mm, scanner, random)
    found = segment(scanned.ct, load_model(SHIPPED_SEGMENTATION))
    for value, name in ((2, "left_femur"), (4, "left_hip")):
        assert dice_coefficient(found.labels.values == value, scanned.truth.values == value) > 0.96, name
        assert not found.figures[name].is_doubtful
    assert not (found.labels.values == 1).any()
