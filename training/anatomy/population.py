"""Draws people: shape, mineral, body, pose, implants and how they were put before the detector.

Mineral is drawn apart from shape, and cortical and trabecular mineral apart from each other, so that a network that reads
density from the outline of the bone fails.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dicomnode.domain.radiograph import Sex, Side
from training.anatomy.body import BodyShape
from training.anatomy.disease import Fracture, FractureKind
from training.anatomy.femur import BoneQuality, FemurShape
from training.anatomy.implant import Implant, ImplantKind
from training.anatomy.pelvis import PelvisQuality, PelvisShape

SHARE_OF_WOMEN = 0.62
"""Who is sent for an assessment of bone density is mostly female; own choice."""
SHARE_WITH_METAL = 0.15
"""Of hips."""
SHARE_OF_WRONG_VIEWS = 0.10
"""Of radiographs."""
SHARE_OF_SINGLE_HIPS = 0.35
"""Of radiographs: field centred on and collimated to one hip."""
SHAFT_LEAN_DEG = 6.0
"""The femoral shaft leans medially downwards by this much in a neutral stance (anatomical against mechanical axis)."""


@dataclass(frozen=True)
class Pose:
    """A hip's position, 0 as in neutral stance."""

    flexion_deg: float
    abduction_deg: float
    """Negative is adduction."""
    internal_rotation_deg: float
    """Negative is external rotation."""


@dataclass(frozen=True)
class Hip:
    """One side."""

    side: Side
    femur: FemurShape
    quality: BoneQuality
    pose: Pose
    implant: Implant | None
    seed: int
    osteoarthritis: float = 0.0
    """0 healthy to 1, see `disease`; nobody is drawn with it. The joint space of both hips narrows by the worse one."""
    fracture: Fracture | None = None
    """Nobody is drawn with one, see `broken`; not together with an implant, whose metal would stay. Fragments may run into each
    other."""


@dataclass(frozen=True)
class View:
    """Tube, detector and field; distances in mm, field in the plane through the middle of the heads."""

    sdd_mm: float
    head_to_detector_mm: float
    field_centre_mm: tuple[float, float]
    """(x, z) in the patient frame."""
    field_size_mm: tuple[float, float]
    """(height, width)."""


@dataclass(frozen=True)
class Subject:
    """One phantom: a person on the table."""

    index: int
    sex: Sex
    age_years: float
    height_cm: float
    bmi_kg_m2: float
    hips: tuple[Hip, Hip]
    """Right, left."""
    pelvis: PelvisShape
    pelvis_quality: PelvisQuality
    pelvic_tilt_deg: float
    """Positive: the symphysis moves back and up under the trunk (posterior tilt)."""
    pelvic_rotation_deg: float
    """About the long axis."""
    pelvic_obliquity_deg: float
    body: BodyShape
    view: View
    is_frog_leg: bool
    yellow_marrow: float
    """Share of fat in the femoral marrow."""
    seed: int


def draw_subject(seed: int, index: int) -> Subject:
    """Draw person `index` of the population `seed`; the same two numbers give the same person."""
    random = np.random.default_rng(np.random.SeedSequence([seed, index]))
    sex = Sex.FEMALE if random.random() < SHARE_OF_WOMEN else Sex.MALE
    age = float(np.clip(random.normal(64, 16), 20, 98))
    # Source: NCD Risk Factor Collaboration (adult height about 162 / 175 cm, SD 7); loss of height after 50: own choice.
    height = float(random.normal(162 if sex is Sex.FEMALE else 175, 7) - 0.08 * max(age - 50, 0))
    bmi = float(np.clip(26 * math.exp(random.normal(0, 0.19)), 16.5, 45))
    is_frog_leg = bool(random.random() < SHARE_OF_WRONG_VIEWS)
    shape, quality = _femur_shape(random, sex, height), _bone_quality(random, sex, age)
    hips = (
        _hip(random, Side.RIGHT, shape, quality, is_frog_leg),
        _hip(random, Side.LEFT, shape, quality, is_frog_leg),
    )
    pelvis = _pelvis_shape(random, sex, height, hips)
    return Subject(
        index=index,
        sex=sex,
        age_years=age,
        height_cm=height,
        bmi_kg_m2=bmi,
        hips=hips,
        pelvis=pelvis,
        pelvis_quality=_pelvis_quality(random, quality),
        pelvic_tilt_deg=float(np.clip(random.normal(2, 7), -16, 20)),
        pelvic_rotation_deg=float(np.clip(random.normal(0, 3), -9, 9)),
        pelvic_obliquity_deg=float(np.clip(random.normal(0, 2), -6, 6)),
        body=_body_shape(random, sex, bmi, pelvis),
        view=_view(random, pelvis),
        is_frog_leg=is_frog_leg,
        yellow_marrow=float(np.clip(random.normal(0.80, 0.08), 0.5, 0.95)),
        seed=int(random.integers(2**31)),
    )


def _femur_shape(random: np.random.Generator, sex: Sex, height_cm: float) -> FemurShape:
    """Draw the shape that both sides vary around.

    Source: neck-shaft angle 124.7 +- 6.2 deg, version 14.5 +- 8.1 deg, offset 42.9 +- 6.8 mm: Carmona 2019,
    628 hips by CT, doi:10.1016/j.arth.2019.04.036. Women about 1.5 deg more valgus and 4 deg more anteverted: Fischer 2016, 1070
    femora by CT (PMC4775021). Head diameters: 43 and 48 mm with an SD of 2.2-2.6 mm, own choice after the sex
    differences of the forensic literature. Ratios of neck and shaft to head: set by eye against projections of femora.
    """
    female = sex is Sex.FEMALE
    tall = (height_cm - (162 if female else 175)) / 7
    head = float(np.clip((21.6 if female else 24.2) + 0.45 * tall + random.normal(0, 0.95), 18.0, 28.5))
    angle = float(np.clip(random.normal(125.2 if female else 123.9, 6.0), 108, 144))
    offset = float(np.clip(42.9 * (head / 22.7) ** 0.9 + random.normal(0, 4.5), 27, 60))
    length = offset / math.sin(math.radians(180 - angle))
    base_z = -length * math.cos(math.radians(180 - angle))
    return FemurShape(
        head_radius_mm=head,
        neck_length_mm=length,
        neck_shaft_angle_deg=angle,
        anteversion_deg=float(np.clip(random.normal(16.0 if female else 12.0, 8.0), -12, 40)),
        neck_height_mm=head * float(np.clip(random.normal(1.42, 0.08), 1.2, 1.65)),
        neck_depth_ratio=float(np.clip(random.normal(0.84, 0.06), 0.68, 1.0)),
        shaft_diameter_mm=head * float(np.clip(random.normal(1.24, 0.07), 1.05, 1.42)),
        trochanter_height_mm=float(np.clip(base_z + 1.5 * head + random.normal(0, 4.0), -12, 24)),
        trochanter_size=float(np.clip(random.normal(1.0, 0.07), 0.82, 1.2)),
        lesser_size=float(np.clip(random.normal(1.0, 0.22), 0.5, 1.6)),
        bow_mm=float(np.clip(random.normal(5, 2), 0, 11)),
    )


def _bone_quality(random: np.random.Generator, sex: Sex, age: float) -> BoneQuality:
    """Draw mineral, whose two parts share a quarter of their variance.

    Source: decline of the total hip with age like NHANES III (Looker 1998, doi:10.1007/s001980050093), trabecular
    bone losing about twice as fast as cortical. Cortical thickness index of the shaft about 0.56-0.62 after 50 years
    of age: Nguyen 2018, doi:10.4055/cios.2018.10.2.149. The scales were then
    set so that the projected total hip has about 0.83 +- 0.16 g/cm2.
    """
    female = sex is Sex.FEMALE
    shared = random.normal()
    old = max(age - 30, 0.0)
    spongy = math.exp(0.30 * (0.5 * shared + 0.87 * random.normal())) * math.exp(-(0.0095 if female else 0.0065) * old)
    dense = math.exp(0.17 * (0.5 * shared + 0.87 * random.normal())) * math.exp(-(0.0052 if female else 0.0030) * old)
    spread = random.normal(0, 0.10, 2)
    scale = 1.0 if female else 1.10
    return BoneQuality(
        cortical_density_g_cm3=float(np.clip(random.normal(1.05, 0.05), 0.88, 1.18)),
        shaft_cortex_mm=float(np.clip(7.8 * scale * dense * math.exp(spread[0]), 2.2, 12.0)),
        calcar_cortex_mm=float(np.clip(3.2 * scale * dense * math.exp(spread[1]), 1.0, 8.0)),
        shell_cortex_mm=float(np.clip(1.22 * dense * math.exp(random.normal(0, 0.10)), 0.4, 2.8)),
        trabecular_density_g_cm3=float(np.clip(0.225 * spongy, 0.04, 0.60)),
        group_contrast=float(np.clip(random.normal(0.55, 0.15), 0.15, 1.0)),
        ward_depth=float(np.clip(random.normal(0.45, 0.12) + 0.004 * old, 0.1, 0.92)),
        trochanter_fill=float(np.clip(random.normal(0.48, 0.10), 0.2, 0.8)),
        patchiness=float(random.uniform(0.05, 0.22)),
        texture=float(random.uniform(0.08, 0.40)),
    )


def _hip(random: np.random.Generator, side: Side, shape: FemurShape, quality: BoneQuality, is_frog_leg: bool) -> Hip:
    """One side: a little unlike the other in shape and mineral, with its own pose and perhaps metal."""

    def near(value: float, share: float) -> float:
        return value * float(random.normal(1, share))

    femur = FemurShape(
        head_radius_mm=near(shape.head_radius_mm, 0.008),
        neck_length_mm=near(shape.neck_length_mm, 0.03),
        neck_shaft_angle_deg=shape.neck_shaft_angle_deg + float(random.normal(0, 2)),
        anteversion_deg=shape.anteversion_deg + float(random.normal(0, 4)),
        neck_height_mm=near(shape.neck_height_mm, 0.02),
        neck_depth_ratio=near(shape.neck_depth_ratio, 0.02),
        shaft_diameter_mm=near(shape.shaft_diameter_mm, 0.015),
        trochanter_height_mm=shape.trochanter_height_mm + float(random.normal(0, 2)),
        trochanter_size=near(shape.trochanter_size, 0.02),
        lesser_size=near(shape.lesser_size, 0.08),
        bow_mm=shape.bow_mm,
    )
    density, cortex = near(1.0, 0.05), near(1.0, 0.04)
    mineral = BoneQuality(
        cortical_density_g_cm3=quality.cortical_density_g_cm3,
        shaft_cortex_mm=quality.shaft_cortex_mm * cortex,
        calcar_cortex_mm=quality.calcar_cortex_mm * cortex,
        shell_cortex_mm=quality.shell_cortex_mm * cortex,
        trabecular_density_g_cm3=quality.trabecular_density_g_cm3 * density,
        group_contrast=quality.group_contrast,
        ward_depth=quality.ward_depth,
        trochanter_fill=quality.trochanter_fill,
        patchiness=quality.patchiness,
        texture=quality.texture,
    )
    implant = _implant(random) if random.random() < SHARE_WITH_METAL else None
    return Hip(side, femur, mineral, draw_pose(random, is_frog_leg), implant, int(random.integers(2**31)))


def draw_pose(random: np.random.Generator, is_frog_leg: bool) -> Pose:
    """Draw one of the supine AP positions as they come, or of a view that must be recognised as another one."""
    if is_frog_leg:
        return Pose(float(random.uniform(35, 65)), float(random.uniform(25, 50)), float(random.uniform(-65, -30)))
    return Pose(
        flexion_deg=float(np.clip(abs(random.normal(0, 7)), 0, 20)),
        abduction_deg=float(np.clip(random.normal(2, 5), -10, 12)),
        internal_rotation_deg=float(np.clip(random.normal(4, 10), -18, 25)),
    )


def draw_fracture(random: np.random.Generator, kind: FractureKind) -> Fracture:
    """Draw a displaced fracture; an undisplaced one hardly shows. Ranges are own choices after radiographs in textbooks."""
    return Fracture(
        kind,
        shortening_mm=float(random.uniform(5, 25)),
        varus_deg=float(random.uniform(5, 30)),
        external_rotation_deg=float(random.uniform(10, 60)),
    )


def broken(subject: Subject) -> Subject:
    """The same person after a fall: both hips broken, each in a way of its own, and without an implant."""
    random = np.random.default_rng((subject.seed, 1))
    kinds = list(FractureKind)
    right, left = (
        replace(hip, implant=None, fracture=draw_fracture(random, kinds[random.integers(len(kinds))]))
        for hip in subject.hips
    )
    return replace(subject, hips=(right, left))


def _implant(random: np.random.Generator) -> Implant:
    kinds = list(ImplantKind)
    kind = kinds[int(random.choice(len(kinds), p=[0.45, 0.15, 0.2, 0.12, 0.08]))]
    return Implant(kind, float(random.choice([4.43, 7.9, 8.3])), float(random.uniform(0.85, 1.2)))


def _pelvis_shape(random: np.random.Generator, sex: Sex, height_cm: float, hips: tuple[Hip, Hip]) -> PelvisShape:
    """Source: distance between the hip centres about 175-180 mm in both sexes (own summary of templates); women's pelves
    are relatively wider and lower, with a wider subpubic angle."""
    female = sex is Sex.FEMALE
    tall = (height_cm - 168) / 168
    return PelvisShape(
        half_width_mm=float(np.clip(87 * (1 + 0.3 * tall) + random.normal(0, 4), 74, 102)),
        height_scale=float(np.clip((0.97 if female else 1.04) * (1 + 0.5 * tall) + random.normal(0, 0.03), 0.85, 1.2)),
        depth_scale=float(np.clip(1 + 0.4 * tall + random.normal(0, 0.04), 0.85, 1.18)),
        flare_mm=float(random.normal(0, 6)),
        arch_mm=float(np.clip(random.normal(6 if female else -5, 4), -14, 16)),
        head_radii_mm=(hips[0].femur.head_radius_mm, hips[1].femur.head_radius_mm),
        joint_space_mm=float(np.clip(random.normal(3.9, 0.7), 1.5, 5.5)),
    )


def _pelvis_quality(random: np.random.Generator, femur: BoneQuality) -> PelvisQuality:
    """The pelvis loses mineral with the femur, loosely."""
    return PelvisQuality(
        cortical_density_g_cm3=femur.cortical_density_g_cm3,
        cortex_mm=float(np.clip(femur.shell_cortex_mm * 0.95 * math.exp(random.normal(0, 0.15)), 0.5, 2.6)),
        trabecular_density_g_cm3=float(
            np.clip(femur.trabecular_density_g_cm3 * 0.5 * math.exp(random.normal(0, 0.2)), 0.03, 0.3)
        ),
        patchiness=float(random.uniform(0.1, 0.3)),
        texture=float(random.uniform(0.15, 0.45)),
    )


def _body_shape(random: np.random.Generator, sex: Sex, bmi: float, pelvis: PelvisShape) -> BodyShape:
    """Outline by body mass index; coefficients by eye against computed tomograms of pelves."""
    over = bmi - 25
    count = int(random.integers(2, 12))
    centres = random.normal([0, -25, 110], [42, 18, 45], (count, 3))
    sizes = (3 + np.abs(random.normal(0, 11, (count, 1)))) * random.uniform(0.6, 1.5, (count, 3))
    fat = float(np.clip((28 if sex is Sex.FEMALE else 19) * math.exp(0.05 * over + random.normal(0, 0.22)), 6, 80))
    bladder = float(random.uniform(14, 42))
    return BodyShape(
        # Trochanters reach about 70 mm beyond the heads; muscle and fat lie over them.
        half_width_mm=pelvis.half_width_mm + 82 + 0.8 * fat + 0.8 * over + float(random.normal(0, 5)),
        half_depth_mm=float(np.clip(102 + 3.0 * over + random.normal(0, 6), 76, 175)),
        centre_depth_mm=float(10 - 0.5 * max(over, 0) + random.normal(0, 4)),
        belly_mm=float(np.clip(3.0 * over + random.normal(0, 10), -20, 70)),
        fat_mm=fat,
        thigh_radius_mm=float(np.clip(79 + 0.45 * fat + 1.5 * over + random.normal(0, 4), 66, 145)),
        muscle_fat=float(np.clip(random.normal(0.13, 0.05) + 0.004 * over, 0.02, 0.35)),
        visceral_fat=float(np.clip(random.normal(0.38, 0.12) + 0.01 * over, 0.08, 0.8)),
        bladder_mm=(1.25 * bladder, bladder, bladder),
        gas=np.concatenate([centres, sizes], axis=1) if random.random() < 0.85 else np.zeros((0, 6)),
    )


def _view(random: np.random.Generator, pelvis: PelvisShape) -> View:
    """Source: tables stand at 1000-1200 mm from the tube; the heads lie 50-150 mm above the detector (facts of the project)."""
    single = random.random() < SHARE_OF_SINGLE_HIPS
    if single:
        x = float(random.choice([-1, 1]) * (pelvis.half_width_mm + random.normal(8, 14)))
        centre = (x, float(random.normal(-32, 22)))
        size = (float(random.uniform(220, 380)), float(random.uniform(170, 300)))
    else:
        centre = (float(random.normal(0, 9)), float(random.normal(5, 24)))
        size = (float(random.uniform(280, 420)), float(random.uniform(330, 420)))
    return View(
        sdd_mm=float(random.uniform(1000, 1200)),
        head_to_detector_mm=float(random.uniform(50, 150)),
        field_centre_mm=centre,
        field_size_mm=size,
    )


def femur_rotation(pose: Pose) -> NDArray[np.float64]:
    """3 x 3: femur frame (a left femur's; lateral, posterior, superior) to the pelvis's axes, by a hip's position."""
    spin = math.radians(-pose.internal_rotation_deg)
    spread = math.radians(SHAFT_LEAN_DEG - pose.abduction_deg)
    bend = math.radians(-pose.flexion_deg)
    about_z = np.array([[math.cos(spin), -math.sin(spin), 0], [math.sin(spin), math.cos(spin), 0], [0, 0, 1]])
    about_y = np.array([[math.cos(spread), 0, math.sin(spread)], [0, 1, 0], [-math.sin(spread), 0, math.cos(spread)]])
    about_x = np.array([[1, 0, 0], [0, math.cos(bend), -math.sin(bend)], [0, math.sin(bend), math.cos(bend)]])
    return np.asarray(about_x @ about_y @ about_z, dtype=np.float64)


def pelvis_rotation(subject: Subject) -> NDArray[np.float64]:
    """3 x 3: pelvis frame to the patient frame's axes."""
    tilt = math.radians(subject.pelvic_tilt_deg)
    turn = math.radians(subject.pelvic_rotation_deg)
    lean = math.radians(subject.pelvic_obliquity_deg)
    about_x = np.array([[1, 0, 0], [0, math.cos(tilt), -math.sin(tilt)], [0, math.sin(tilt), math.cos(tilt)]])
    about_z = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    about_y = np.array([[math.cos(lean), 0, math.sin(lean)], [0, 1, 0], [-math.sin(lean), 0, math.cos(lean)]])
    return np.asarray(about_y @ about_z @ about_x, dtype=np.float64)
