"""Muscles: a partition that adds up, projections that weigh what the voxels weigh, fat that changes no mass."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dicomnode.domain.radiograph import Side
from dicomnode.errors import ConfigurationError
from dicomnode.inference.frame import LOCATOR_SIZE
from training.anatomy.femur import femur_volumes
from training.anatomy.labels import read_labels
from training.anatomy.muscles import (
    CHANNELS,
    FEMUR_VOXEL_MM,
    NAMES,
    PELVIS_VOXEL_MM,
    Muscle,
    Muscles,
    bone_share,
    label_nearest,
    make_muscles,
    skeletons,
)
from training.anatomy.pelvis import enclosing_balls, pelvis_volumes
from training.anatomy.phantom import body_structures, patient_from_femur
from training.anatomy.population import Subject, draw_subject
from training.muscles.augment import MIRRORED, PIXEL_CM2, SIZE, infiltrate, muscle_example, plain_example
from training.muscles.config import InfiltrationConfiguration, load_muscles_run
from training.muscles.evaluate import Case, summarise
from training.muscles.picture import draw_agreement, draw_partition
from training.muscles.shards import load_muscles, make_shards, shards_of
from training.muscles.targets import field_mask, make_muscle_target, masses_g, posed, project_muscles
from training.muscles.train import held_out_subjects, muscle_loss, training_subjects
from training.targets import field_beam

CONFIG = Path(__file__).resolve().parents[2] / "conf" / "training" / "muscles.toml"
PEOPLE = (2, 5, 11)
"""AP views of population 1."""

HANDSFIELD = {
    Muscle.GLUTEUS_MAXIMUS: 0.1193,
    Muscle.GLUTEUS_MEDIUS: 0.0454,
    Muscle.GLUTEUS_MINIMUS: 0.0147,
    Muscle.ILIOPSOAS: 0.0380 + 0.0248,
    Muscle.ADDUCTORS: 0.0786 + 0.0226 + 0.0147 + 0.0146,
    Muscle.QUADRICEPS: 0.1166 + 0.0606 + 0.0384 + 0.0379 + 0.0229 + 0.0089,
    Muscle.HAMSTRINGS: 0.0346 + 0.0292 + 0.0260 + 0.0140,
}
"""Shares of a lower limb's muscle volume, which is 47 x mass (kg) x height (m) + 1285 cm3: Handsfield 2014,
doi:10.1016/j.jbiomech.2013.11.037, 24 healthy people by MRI; as summed up here without the pectineus."""
MODELLED = {Muscle.QUADRICEPS: 0.65, Muscle.HAMSTRINGS: 0.65}
"""Of the thigh's muscles in the body's modelled 30 cm below the heads: assumption, from a femur of 43 cm."""


@pytest.fixture(scope="module")
def people() -> list[tuple[Subject, Muscles]]:
    return [(subject, make_muscles(subject)) for subject in (draw_subject(1, index) for index in PEOPLE)]


def test_muscles_and_the_rest_add_up_to_the_soft_tissue_without_bones(people: list[tuple[Subject, Muscles]]) -> None:
    subject, muscles = people[0]
    motions = {hip.side: patient_from_femur(subject, hip) for hip in subject.hips}
    soft, _ = body_structures(subject, motions)
    bone = bone_share(subject, motions, soft.values.shape, soft.patient_from_voxel)
    parts = np.stack([muscles.part(channel) for channel in range(len(CHANNELS))])
    rest = np.where(muscles.labels == 0, muscles.lean, 0)
    assert (np.count_nonzero(parts, axis=0) <= 1).all()
    np.testing.assert_array_equal(parts.sum(0) + rest, muscles.lean)
    np.testing.assert_allclose(muscles.lean + bone * soft.values, soft.values, atol=1e-6)
    np.testing.assert_allclose(muscles.mass_g(), parts.sum((1, 2, 3), dtype=float) * 0.064, rtol=1e-5)


def test_volumes_are_of_the_published_order(people: list[tuple[Subject, Muscles]]) -> None:
    ratios: dict[Muscle, list[float]] = {muscle: [] for muscle in Muscle}
    for subject, muscles in people:
        height = subject.height_cm / 100
        limb = 47 * subject.bmi_kg_m2 * height**3 + 1285
        volumes = [float((muscles.labels == channel + 1).sum()) * muscles.voxel_cm3 for channel in range(len(CHANNELS))]
        for (_, muscle), volume in zip(CHANNELS, volumes, strict=True):
            ratios[muscle].append(volume / (limb * HANDSFIELD[muscle] * MODELLED.get(muscle, 1.0)))
    for muscle, values in ratios.items():
        least = 0.4 if muscle is Muscle.GLUTEUS_MAXIMUS else 0.55  # the phantoms' buttocks are flat
        assert least < np.mean(values) < 1.4, (muscle, values)


def _centre_mm(mask: NDArray[np.bool_], matrix: NDArray[np.float64], head: NDArray[np.float64]) -> NDArray[np.float64]:
    points = np.argwhere(mask)[:, ::-1] @ matrix[:3, :3].T + matrix[:3, 3] - head
    return np.asarray(points[points[:, 2] < 150].mean(0))  # the woman's picture ends there


def test_the_muscles_of_the_hip_lie_where_those_of_a_woman_do(
    people: list[tuple[Subject, Muscles]], reference_data: Path
) -> None:
    woman = read_labels(reference_data / "anatomy" / "vhf_hip_labels.nii.gz")
    matrix = woman.patient_from_voxel
    cartilage = np.argwhere(woman.mask("hip_cartilage"))[:, ::-1] @ matrix[:3, :3].T + matrix[:3, 3]
    middle = cartilage[:, 0].mean()
    for muscle in (Muscle.GLUTEUS_MAXIMUS, Muscle.GLUTEUS_MEDIUS, Muscle.GLUTEUS_MINIMUS, Muscle.ILIOPSOAS):
        theirs, ours = [], []
        for side, sign, place in (("right", -1.0, 0), ("left", 1.0, 1)):
            name = f"{side}_{muscle.name.lower()}"
            head = cartilage[sign * (cartilage[:, 0] - middle) > 0].mean(0)
            theirs.append(_centre_mm(woman.mask(name), matrix, head) * [sign, 1, 1])
            for subject, muscles in people:
                motion = patient_from_femur(subject, subject.hips[place])
                mask = muscles.labels == NAMES.index(name) + 1
                ours.append(_centre_mm(mask, muscles.patient_from_voxel, motion[:3, 3]) * [sign, 1, 1])
        # Lateral, posterior, superior of the head; the phantoms' buttocks are flat.
        apart = np.abs(np.mean(ours, 0) - np.mean(theirs, 0))
        most = (12, 35, 12) if muscle is Muscle.GLUTEUS_MAXIMUS else (12, 12, 12)
        assert (apart < most).all(), (muscle, apart)


def test_no_muscle_lies_in_bone_or_on_the_other_side(people: list[tuple[Subject, Muscles]]) -> None:
    for subject, muscles in people:
        motions = {hip.side: patient_from_femur(subject, hip) for hip in subject.hips}
        bone = bone_share(subject, motions, muscles.labels.shape, muscles.patient_from_voxel)
        assert bone[muscles.labels > 0].max() < 0.5
        x = muscles.patient_from_voxel[0, 3] + 4.0 * np.arange(muscles.labels.shape[2])
        right = (muscles.labels > 0) & (muscles.labels <= len(Muscle))
        assert (x[right.any((0, 1))] < 0).all()
        assert (x[(muscles.labels > len(Muscle)).any((0, 1))] > 0).all()


def test_a_capsule_alone_in_muscle_has_the_volume_of_a_capsule() -> None:
    labels = np.zeros((60, 60, 60), np.uint8)
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    matrix[:3, 3] = (3.0, -59.0, -59.0)
    corners = np.array([[[60, 0, -30, 15.0], [60, 0, 30, 15.0], [60, 0, 30, 15.0]]])
    free, owners, reach = np.ones(labels.shape, bool), np.zeros(1, np.int64), np.array([3.0])
    label_nearest(labels, free, matrix, 1.0, corners, enclosing_balls(corners), owners, reach, 5)
    expected = math.pi * 18**2 * 60 + 4 / 3 * math.pi * 18**3
    assert set(np.unique(labels)) == {0, 5}
    assert (labels == 5).sum() * 8 == pytest.approx(expected, rel=0.01)


def test_between_two_equal_skeletons_the_border_lies_halfway() -> None:
    labels = np.zeros((9, 9, 60), np.uint8)
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    matrix[:3, 3] = (1.0, -8.0, -8.0)
    balls = [[[x, 0, 0, 10.0]] * 3 for x in (40.0, 80.0)]
    corners, free = np.array(balls), np.ones(labels.shape, bool)
    reach = np.array([50.0, 50.0])
    label_nearest(labels, free, matrix, 1.0, corners, enclosing_balls(corners), np.array([0, 1]), reach, 1)
    x = 1.0 + 2.0 * np.arange(60)
    assert (labels[4, 4, (x < 60)] == 1).all()
    assert (labels[4, 4, (x > 60)] == 2).all()


def test_skeletons_of_a_mirrored_person_are_mirrored() -> None:
    subject = draw_subject(1, 2)
    right, left = subject.hips
    swapped = replace(
        subject,
        hips=(replace(left, side=Side.RIGHT), replace(right, side=Side.LEFT)),
        pelvic_rotation_deg=-subject.pelvic_rotation_deg,
        pelvic_obliquity_deg=-subject.pelvic_obliquity_deg,
    )
    for hip, twin in zip(subject.hips, reversed(swapped.hips), strict=True):
        corners, owners = skeletons(subject, hip, patient_from_femur(subject, hip))
        mirrored, same = skeletons(swapped, twin, patient_from_femur(swapped, twin))
        np.testing.assert_allclose(mirrored, corners * np.array([-1, 1, 1, 1]), atol=1e-9)
        np.testing.assert_array_equal(same, owners)


def test_insertions_follow_the_femur_and_origins_stay_with_the_pelvis() -> None:
    subject = draw_subject(1, 2)
    hip = subject.hips[1]
    bent = replace(hip, pose=replace(hip.pose, flexion_deg=hip.pose.flexion_deg + 20))
    before, after = patient_from_femur(subject, hip), patient_from_femur(subject, bent)
    still, owners = skeletons(subject, hip, before)
    moved, _ = skeletons(subject, bent, after)
    rigid = after @ np.linalg.inv(before)
    carried = still[..., :3] @ rigid[:3, :3].T + rigid[:3, 3]
    stays = np.abs(moved - still)[..., :3].max(-1) < 1e-6
    # The thigh begins beside the head, whatever the pose.
    follows = np.linalg.norm(moved[..., :3] - carried, axis=-1) < 5
    assert (stays | follows).all()
    for muscle in Muscle:
        assert stays[owners == muscle].any() or muscle is Muscle.QUADRICEPS
        assert follows[owners == muscle].any()


def test_bones_keep_their_volume_on_the_coarse_grid() -> None:
    subject = draw_subject(1, 2)
    motions = {hip.side: patient_from_femur(subject, hip) for hip in subject.hips}
    matrix = np.diag([4.0, 4.0, 4.0, 1.0])
    matrix[:3, 3] = (-200, -160, -330)
    share = bone_share(subject, motions, (180, 90, 101), matrix)
    _, pelvis, _ = pelvis_volumes(subject.pelvis, subject.pelvis_quality, subject.seed, PELVIS_VOXEL_MM)
    expected = pelvis.sum(dtype=float) * PELVIS_VOXEL_MM**3
    for hip in subject.hips:
        _, femur, _ = femur_volumes(hip.femur, hip.quality, hip.seed, FEMUR_VOXEL_MM)
        expected += femur.sum(dtype=float) * FEMUR_VOXEL_MM**3
    assert share.sum(dtype=float) * 64 == pytest.approx(expected, rel=0.02)  # what exceeds a voxel is cut off


def test_a_projected_muscle_weighs_its_voxels_times_their_magnification(people: list[tuple[Subject, Muscles]]) -> None:
    subject, muscles = people[0]
    phantom = posed(subject)
    maps = project_muscles(phantom, muscles)
    beam = field_beam(phantom, 1.0, (2, 2))
    spd = subject.view.sdd_mm - subject.view.head_to_detector_mm
    for channel in (NAMES.index("left_gluteus_medius"), NAMES.index("right_gluteus_minimus")):
        places = np.argwhere(muscles.labels == channel + 1)
        points = places[:, ::-1] * 4.0 + muscles.patient_from_voxel[:3, 3]
        rays = points - beam.source_mm
        oblique = np.linalg.norm(rays, axis=1) / rays[:, 1]
        weights = muscles.lean[tuple(places.T)] * muscles.voxel_cm3
        expected = float((weights * (spd / rays[:, 1]) ** 2 * oblique).sum())
        assert masses_g(maps)[channel] == pytest.approx(expected, rel=0.01)


def test_figures_of_a_target_weigh_what_its_maps_show(people: list[tuple[Subject, Muscles]]) -> None:
    subject, muscles = people[1]
    target = make_muscle_target(subject)
    figures = target.figures["muscles"]
    field = field_mask(target.figures["field_px"])
    size = np.array(subject.view.field_size_mm) / 3.5
    assert field.sum() == pytest.approx(np.minimum(size, LOCATOR_SIZE).prod(), rel=0.05)
    for channel, name in enumerate(NAMES):
        assert figures[name]["lean_g"] == pytest.approx(muscles.mass_g()[channel])
        seen = masses_g(target.maps[channel].astype(np.float32) * field)
        assert figures[name]["field_g"] == pytest.approx(seen, rel=2e-3, abs=0.05)
        assert figures[name]["field_g"] <= figures[name]["projected_g"] + 1e-6


def test_fat_in_muscles_changes_no_mass_and_takes_from_the_target_what_the_soft_tissue_loses() -> None:
    rng = np.random.default_rng(1)
    maps = rng.uniform(0, 1, (14, 8, 8)).astype(np.float32)
    materials = rng.uniform(20, 30, (4, 8, 8)).astype(np.float32)
    shares = rng.uniform(0, 0.5, 14).astype(np.float32)
    changed, left = infiltrate(materials, maps, shares)
    np.testing.assert_allclose(changed[:2].sum(0), materials[:2].sum(0), rtol=1e-6)
    np.testing.assert_array_equal(changed[2:], materials[2:])
    np.testing.assert_allclose(left, maps * (1 - shares[:, None, None]), rtol=1e-5)
    np.testing.assert_allclose((maps - left).sum(0), materials[0] - changed[0], atol=1e-4)


def test_no_more_soft_tissue_becomes_fat_than_there_is() -> None:
    maps = np.full((14, 2, 2), 2.0, np.float32)
    materials = np.full((4, 2, 2), 7.0, np.float32)
    changed, left = infiltrate(materials, maps, np.full(14, 0.5, np.float32))
    np.testing.assert_allclose(changed[0], 0.0, atol=1e-5)
    np.testing.assert_allclose(changed[1], 14.0, rtol=1e-6)
    np.testing.assert_allclose(maps.sum(0) - left.sum(0), 7.0, rtol=1e-5)


def test_each_muscle_mirrors_into_its_namesake() -> None:
    for channel, twin in enumerate(MIRRORED):
        assert CHANNELS[channel][1] == CHANNELS[twin][1]
        assert CHANNELS[channel][0] != CHANNELS[twin][0]


def _body() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rows, columns = np.mgrid[:LOCATOR_SIZE, :LOCATOR_SIZE]
    body = np.exp(-(((columns - 63.5) / 40) ** 2)).astype(np.float32)
    materials = np.stack([15 * body, 5 * body, 0.5 * body, 0 * body])
    maps = np.zeros((14, LOCATOR_SIZE, LOCATOR_SIZE), np.float32)
    maps[8] = 3 * np.exp(-(((columns - 104) / 6) ** 2) - ((rows - 60) / 9) ** 2)
    return materials, maps


def test_masses_in_the_field_survive_the_coarser_pixels() -> None:
    materials, maps = _body()
    field = field_mask((21.3, 63.0, 10.0, 104.6))
    example = plain_example(materials, maps, field, np.random.default_rng(2))
    assert example.network_input.shape == (2, SIZE, SIZE)
    expected = masses_g(maps * field)
    np.testing.assert_allclose(PIXEL_CM2 * (example.maps * example.field).sum((1, 2)), expected, rtol=1e-5, atol=1e-6)


def test_an_example_moves_radiograph_and_target_alike_and_knows_left_from_right() -> None:
    materials, maps = _body()
    materials[2] += 3 * maps[8]  # a bright spot where the muscle lies
    none = InfiltrationConfiguration(share=0.0, most=0.5)
    seen = set()
    for number in range(8):
        rng = np.random.default_rng(number)
        example = muscle_example(materials, maps, (0.0, 127.0, 0.0, 127.0), none, rng)
        channel = int(example.maps.sum((1, 2)).argmax())
        seen.add(channel)
        place = np.argwhere(example.maps[channel] == example.maps[channel].max())[0]
        assert (place[1] > SIZE / 2) == (channel == 8)
        grey = example.network_input[0]
        assert grey[place[0], place[1]] > grey[place[0] - 14, place[1]] + 0.1
        again = muscle_example(materials, maps, (0.0, 127.0, 0.0, 127.0), none, np.random.default_rng(number))
        np.testing.assert_array_equal(again.network_input, example.network_input)
    assert seen == {1, 8}


def test_the_loss_is_nothing_at_the_truth_and_counts_masses_relatively() -> None:
    target = torch.zeros(2, 14, 16, 16)
    target[:, 3] = 2.0
    field = torch.ones(2, 16, 16)
    assert sum(muscle_loss(target, target, field).values()) == 0
    terms = muscle_loss(1.1 * target, target, field)
    assert float(terms["maps"]) == pytest.approx(0.2, rel=1e-5)
    assert float(terms["mass"]) == pytest.approx(0.2, rel=1e-5)  # twice the tenth
    field[:, :8] = 0
    wrong = target.clone()
    wrong[:, :, :8] = 9.0  # outside of the field
    assert float(muscle_loss(wrong, target, field)["maps"]) == 0


def test_shards_are_made_once_and_kept_apart_by_seed(tmp_path: Path) -> None:
    done: list[int] = []
    make_shards(1, 1, [0], tmp_path, done.append)
    stored = load_muscles(tmp_path, 0)
    np.testing.assert_array_equal(stored.maps, make_muscle_target(draw_subject(1, 0)).maps)
    assert stored.figures["index"] == 0
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert set(written) == {"0000_muscles.npy", "0000_muscles.jsonl", "muscles.json"}
    make_shards(1, 1, [0], tmp_path, done.append)
    assert done == [1, 1]
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
    with pytest.raises(ConfigurationError, match="choose another folder"):
        make_shards(2, 1, [0], tmp_path)
    with pytest.raises(ConfigurationError, match="python -m training muscles pairs"):
        load_muscles(tmp_path, 30)


def test_the_run_trains_and_tests_on_different_phantoms_of_the_right_parts() -> None:
    run = load_muscles_run(CONFIG)
    training, test = set(training_subjects(run).tolist()), set(held_out_subjects(run).tolist())
    assert len(training) == run.subjects.training
    assert len(test) == run.subjects.test
    assert max(training) < 728
    assert min(test) >= 896
    assert shards_of([0, 24, 25, 900]) == [0, 1, 36]


def test_a_value_out_of_range_is_refused_with_its_place(tmp_path: Path) -> None:
    text = CONFIG.read_text(encoding="utf-8")
    for old, new, place in (
        ("most = 0.5", "most = 1.0", "infiltration.most"),
        ("[24, 32", "[20, 32", "network.widths"),
        ("steps = 1800", "steps = 1800\nadversarial = 1.0", "network.stages: adversarial is for"),
    ):
        assert old in text
        path = tmp_path / "run.toml"
        path.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(ConfigurationError, match=place):
            load_muscles_run(path)


def _case(subject: int, share: float, truth: float, prediction: float) -> Case:
    return Case(subject, "as drawn", "L", "gluteus_medius", share, 0.0, truth, prediction)


def test_muscles_that_lie_mostly_outside_of_the_field_are_not_judged() -> None:
    rng = np.random.default_rng(3)
    seen = [_case(n, 0.6 if n % 2 else 1.0, 200.0 + n, 210.0 + n) for n in range(40)]
    cut = [_case(n, 0.49, float(rng.uniform(0, 300)), 0.0) for n in range(40)]
    figures = summarise(seen + cut)
    assert [(f.selection, f.n) for f in figures] == [("in field", 40), ("whole", 20)]
    for f in figures:
        assert f.pearson_r == pytest.approx(1.0)
        assert f.rmse_g == pytest.approx(10.0)
        assert f.bias_g == pytest.approx(10.0)


def test_pictures_are_drawn(people: list[tuple[Subject, Muscles]], tmp_path: Path) -> None:
    _, muscles = people[0]
    draw_partition(muscles, np.zeros(muscles.labels.shape, np.float32), tmp_path / "slices.png")
    draw_agreement([_case(n, 1.0, 200.0 + n, 210.0 + n) for n in range(5)], tmp_path / "scatter.png")
    assert (tmp_path / "slices.png").stat().st_size > 10_000
    assert (tmp_path / "scatter.png").stat().st_size > 10_000
