"""From a person in voxels to what is stored for training: material maps, targets, labels and figures, hip by hip.

Each hip is projected straight onto the pixels of the measurement frame (plus a margin), left hips with the detector's columns
running the other way: nothing is resampled, so mass is kept as the projector keeps it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from dicomnode.domain.radiograph import Side
from dicomnode.inference.channels import CANONICAL, LABELS_OF_REGION, REGIONS
from dicomnode.inference.frame import (
    COLUMNS,
    HEAD_COLUMN,
    HEAD_ROW,
    LOCATOR_SIZE,
    LOCATOR_SPACING_MM,
    ROWS,
    SPACING_MM,
)
from training.anatomy.femur import FemurLandmarks
from training.anatomy.phantom import NAMES, Phantom
from training.anatomy.population import Hip, Subject
from training.anatomy.regions import label_regions, project_landmarks
from training.anatomy.volume import Structure
from training.projection.geometry import ConeBeam, ParallelBeam, anteroposterior, detector_from_patient
from training.projection.projector import project_structures, project_volumes

MARGIN_PX = 32
"""Stored around the frame, so that training can shift, turn and scale."""
SHAPE = (ROWS + 2 * MARGIN_PX, COLUMNS + 2 * MARGIN_PX)

TISSUE_SPACING_MM = 3.5
TISSUE_SHAPE = (176, 176)
"""Soft tissue varies slowly: it is projected on these pixels and interpolated. Wider than any field."""

MATRIX_MINERAL_G_CM3 = 1.2
"""Hydroxyapatite per volume of compact bone matrix. Source: ICRU-44 cortical bone, 1.92 g/cm3 with 22.5 % calcium (hydroxyapatite:
39.9 %), is 1.08 with its canals; without them about a tenth more."""
MINERAL_G_CM3 = 3.16
"""Density of hydroxyapatite crystals."""
MATRIX_ORGANIC_G_CM3 = 1.15
"""Collagen and water between the crystals: brings compact bone matrix to ICRU's 1.92 g/cm3."""
RED_MARROW_G_CM3 = 1.03
"""Source: ICRU-44."""
YELLOW_MARROW_G_CM3 = 0.98
"""Source: ICRU-44."""
MUSCLE_G_CM3 = 1.05
PELVIC_YELLOW_SHARE = 0.55
"""Share of fat in the marrow of an adult's pelvis; more cellular than the femur's."""
_YELLOW_SHARE = 0.7
"""Where femur and pelvis lie in one beam; between the two."""

MATERIAL_ORDER = ("soft", "adipose", "mineral", "metal")
TARGET_ORDER = ("femur_density", "femur_path", "pelvis_density")


@dataclass(frozen=True)
class HipTarget:
    """One hip in the frame with its margin; right hips as displayed, left hips mirrored."""

    materials: NDArray[np.float16]
    """(4, rows, columns) soft, adipose, mineral, metal in g/cm2."""
    targets: NDArray[np.float16]
    """(3, rows, columns) femur density g/cm2, femur path cm, pelvis density g/cm2."""
    labels: NDArray[np.uint8]
    figures: dict[str, Any]
    """What is true of this hip, flat enough for a JSON line."""


@dataclass(frozen=True)
class OverviewTarget:
    """The whole radiograph, coarse."""

    materials: NDArray[np.float16]
    """(4, LOCATOR_SIZE, LOCATOR_SIZE) in g/cm2."""
    heads_px: dict[str, tuple[float, float]]
    """"R", "L" to (column, row) of the head, pixel centres at integers + 0.5; absent outside the field."""


@dataclass(frozen=True)
class SubjectTarget:
    """Everything that is stored of one person."""

    hips: tuple[HipTarget, HipTarget]
    """Right, left."""
    overview: OverviewTarget


def field_beam(phantom: Phantom, object_spacing_mm: float, shape: tuple[int, int]) -> ConeBeam:
    """The person's projection, centred on the field, with pixels that measure so much in the plane of the heads."""
    view = phantom.subject.view
    x, z = view.field_centre_mm
    depth = float(np.mean([points.head_centre[1] for points in phantom.landmarks.values()]))
    spd = view.sdd_mm - view.head_to_detector_mm
    return anteroposterior(np.array([x, depth, z]), view.sdd_mm, spd, object_spacing_mm, shape)


def hip_beam(field: ConeBeam, head_mm: NDArray[np.float64], side: Side) -> ConeBeam:
    """The same source and detector plane, cut to the measurement frame of one hip plus margin."""
    axis = np.cross(field.row_direction, field.column_direction)
    to_detector = abs(float(axis @ (field.detector_origin_mm - field.source_mm)))
    to_head = abs(float(axis @ (head_mm - field.source_mm)))
    spacing = SPACING_MM * to_detector / to_head
    shown = field.source_mm + (head_mm - field.source_mm) * to_detector / to_head
    columns = field.column_direction if side is Side.RIGHT else -field.column_direction
    origin = (
        shown - (HEAD_ROW + MARGIN_PX) * spacing * field.row_direction - (HEAD_COLUMN + MARGIN_PX) * spacing * columns
    )
    return ConeBeam(field.source_mm, origin, columns, field.row_direction, (spacing, spacing), SHAPE)


def make_targets(phantom: Phantom) -> SubjectTarget:
    """Project a person and measure what is to be learned."""
    coarse = field_beam(phantom, TISSUE_SPACING_MM, TISSUE_SHAPE)
    tissue = project_structures(_named(phantom, ("soft", "adipose")), coarse, parallel=False)
    right, left = (_hip_target(phantom, hip, coarse, tissue) for hip in phantom.subject.hips)
    fine = field_beam(phantom, LOCATOR_SPACING_MM / 2, (LOCATOR_SIZE * 2, LOCATOR_SIZE * 2))
    overview = _bin(_beam_materials(phantom, coarse, tissue, fine), 2)
    return SubjectTarget((right, left), OverviewTarget(overview.astype(np.float16), _heads(phantom)))


def overview_tissue(
    phantom: Phantom, volumes: Sequence[NDArray[np.float32]], patient_from_voxel: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Project parts of the soft tissue onto the overview by the very steps that its materials are made by.

    Returns:
        (volumes, LOCATOR_SIZE, LOCATOR_SIZE) in the unit of the volumes times cm.
    """
    coarse = field_beam(phantom, TISSUE_SPACING_MM, TISSUE_SHAPE)
    fine = field_beam(phantom, LOCATOR_SPACING_MM / 2, (LOCATOR_SIZE * 2, LOCATOR_SIZE * 2))
    images = project_volumes(volumes, patient_from_voxel, coarse, parallel=False)
    return _bin(np.stack([_resample(image, coarse, fine) for image in images]), 2)


def field_materials(phantom: Phantom, object_spacing_mm: float, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Project a whole radiograph: (4, rows, columns) soft, adipose, mineral, metal in g/cm2."""
    coarse = field_beam(phantom, TISSUE_SPACING_MM, TISSUE_SHAPE)
    tissue = project_structures(_named(phantom, ("soft", "adipose")), coarse)
    return _beam_materials(phantom, coarse, tissue, field_beam(phantom, object_spacing_mm, shape))


def _beam_materials(
    phantom: Phantom, coarse: ConeBeam, tissue: dict[str, NDArray[np.float32]], beam: ConeBeam
) -> NDArray[np.float32]:
    near = {name: _resample(image, coarse, beam) for name, image in tissue.items()}
    return _materials(phantom.subject, near, project_structures(_solid(phantom), beam, parallel=False))


def _named(phantom: Phantom, names: tuple[str, ...]) -> list[Structure]:
    return [structure for structure in phantom.structures if structure.name in names]


def _solid(phantom: Phantom) -> list[Structure]:
    return [structure for structure in phantom.structures if structure.name not in ("soft", "adipose")]


def _bin(image: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    planes, rows, columns = image.shape
    blocks = image.reshape(planes, rows // factor, factor, columns // factor, factor)
    return np.asarray(blocks.mean((2, 4)), np.float32)


def _materials(
    subject: Subject, tissue: dict[str, NDArray[np.float32]], solid: dict[str, NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Put bones and metal into the soft tissue.

    A bone's volume is mineral, the organic matrix around it, and marrow in the rest; all are linear in the projected mineral
    and volume. Bones and metal displace muscle.
    """
    zero = np.zeros_like(tissue["soft"])
    soft, adipose, mineral, occupied = tissue["soft"].copy(), tissue["adipose"].copy(), zero.copy(), zero.copy()
    shares = {"right_femur": subject.yellow_marrow, "left_femur": subject.yellow_marrow, "pelvis": PELVIC_YELLOW_SHARE}
    for name, yellow in shares.items():
        mass, volume = solid.get(f"{name}_mineral", zero), solid.get(f"{name}_volume", zero)
        matrix = mass / MATRIX_MINERAL_G_CM3
        marrow = np.maximum(volume - matrix, 0)
        soft += (matrix - mass / MINERAL_G_CM3) * MATRIX_ORGANIC_G_CM3 + marrow * (1 - yellow) * RED_MARROW_G_CM3
        adipose += marrow * yellow * YELLOW_MARROW_G_CM3
        mineral += mass
        occupied += volume
    occupied += solid.get("metal_volume", zero)
    soft = np.maximum(soft - occupied * MUSCLE_G_CM3, 0)
    return np.stack([soft, adipose, mineral, solid.get("metal_mass", zero)])


def scale_mineral(
    materials: NDArray[np.float32], targets: NDArray[np.float32], factor: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The same hip with so much of the mineral of every bone; outlines stay, matrix takes the place of marrow.

    Args:
        materials: (4, ...) of `MATERIAL_ORDER`.
        targets: (3, ...) of `TARGET_ORDER`.
    """
    more = (factor - 1) * materials[2]
    matrix = more / MATRIX_MINERAL_G_CM3
    soft = (matrix - more / MINERAL_G_CM3) * MATRIX_ORGANIC_G_CM3 - matrix * (1 - _YELLOW_SHARE) * RED_MARROW_G_CM3
    adipose = -matrix * _YELLOW_SHARE * YELLOW_MARROW_G_CM3
    changed = materials + np.stack([soft, adipose, more, np.zeros_like(more)])
    return np.maximum(changed, 0), targets * np.array([factor, 1, factor], np.float32)[:, None, None]


def _resample(image: NDArray[np.float32], image_beam: ConeBeam, beam: ConeBeam) -> NDArray[np.float32]:
    """Read a smooth image of one beam at the pixels of another beam with the same source and detector plane."""
    rows, columns = beam.shape
    corners = np.array([[0, 0], [rows - 1, 0], [0, columns - 1]])
    points = (
        beam.detector_origin_mm
        + corners[:, :1] * beam.detector_spacing_mm[0] * beam.row_direction
        + corners[:, 1:] * beam.detector_spacing_mm[1] * beam.column_direction
    )
    pixels = detector_from_patient(points, image_beam)
    r, c = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
    position = (
        pixels[0][:, None, None]
        + (pixels[1] - pixels[0])[:, None, None] * r
        + (pixels[2] - pixels[0])[:, None, None] * c
    )
    return np.asarray(map_coordinates(image, position, order=1, mode="nearest"), np.float32)


def _hip_target(phantom: Phantom, hip: Hip, coarse: ConeBeam, tissue: dict[str, NDArray[np.float32]]) -> HipTarget:
    points = phantom.landmarks[hip.side]
    beam = hip_beam(coarse, points.head_centre, hip.side)
    near = {name: _resample(image, coarse, beam) for name, image in tissue.items()}
    solid = project_structures(_solid(phantom), beam, parallel=False)
    name = NAMES[hip.side]
    density, path = solid[f"{name}_mineral"], solid[f"{name}_volume"]
    labels = label_regions(path, project_landmarks(points, beam, SPACING_MM))
    materials = _materials(phantom.subject, near, solid)
    return HipTarget(
        materials=materials.astype(np.float16),
        targets=np.stack([density, path, solid["pelvis_mineral"]]).astype(np.float16),
        labels=labels,
        figures=_figures(phantom, hip, beam, region_figures(density, path, labels, SPACING_MM)),
    )


def is_native(figures: Mapping[str, Any]) -> bool:
    """Whether a hip with these `HipTarget.figures` ought to be measured: AP, without metal or fracture.

    Pairs that were made before there were fractures say nothing of one.
    """
    return not figures["is_frog_leg"] and not figures["has_metal"] and figures.get("fracture") is None


def region_figures(
    density_g_cm2: NDArray[np.float32], path_cm: NDArray[np.float32], labels: NDArray[np.uint8], spacing_mm: float
) -> dict[str, dict[str, float | None]]:
    """Measure each region of one projected femur; area is that of the object plane. Empty regions have no densities."""
    pixel_cm2 = (spacing_mm / 10) ** 2
    figures: dict[str, dict[str, float | None]] = {}
    for region, members in LABELS_OF_REGION.items():
        mask = np.isin(labels, [int(label) for label in members])
        area = float(mask.sum()) * pixel_cm2
        bmc = float(density_g_cm2[mask].sum(dtype=np.float64)) * pixel_cm2
        volume = float(path_cm[mask].sum(dtype=np.float64)) * pixel_cm2
        figures[str(region)] = {
            "areal_bmd_g_cm2": bmc / area if area > 0 else None,
            "bmc_g": bmc,
            "area_cm2": area,
            "volumetric_bmd_mg_cm3": 1000 * bmc / volume if volume > 0 else None,
        }
    return figures


def canonical_figures(structures: tuple[Structure, ...], points: FemurLandmarks) -> dict[str, dict[str, float | None]]:
    """Measure the femur as a densitometer would: neck in the coronal plane, shaft upright, parallel rays.

    Source: Uemura 2023 (canonical pose); `facts.md` of the project: the projected figure changes with the pose.

    Args:
        structures: mineral and volume of one femur, in this order; of a broken one those of each fragment.
        points: its landmarks, in the frame of the structures.
    """
    up = points.shaft_proximal - points.shaft_distal
    up = up / np.linalg.norm(up)
    lateral = points.neck_base - points.head_centre
    lateral = lateral - (lateral @ up) * up
    lateral = lateral / np.linalg.norm(lateral)
    through = np.cross(lateral, up)
    columns = -lateral
    spacing = SPACING_MM
    origin = (
        points.head_centre
        - 300 * through
        + (HEAD_ROW + MARGIN_PX) * spacing * up
        + (HEAD_COLUMN + MARGIN_PX) * spacing * lateral
    )
    beam = ParallelBeam(through, origin, columns, -up, (spacing, spacing), SHAPE)
    images = project_structures(structures, beam, parallel=False)
    density, path = images.values()
    labels = label_regions(path, project_landmarks(points, beam, spacing))
    return region_figures(density, path, labels, spacing)


def canonical_logarithms(figures: dict[str, dict[str, float | None]]) -> NDArray[np.float32]:
    """(regions, quantities) natural logarithms of `canonical_figures` in the order of the network; NaN where there is no bone."""
    values = [[figures[region.value][name] or np.nan for name, _ in CANONICAL] for region in REGIONS]
    return np.log(np.array(values, np.float32))


def _figures(phantom: Phantom, hip: Hip, beam: ConeBeam, regions: dict[str, dict[str, float | None]]) -> dict[str, Any]:
    subject, points = phantom.subject, phantom.landmarks[hip.side]
    low_row, high_row, low_column, high_column = field_in(phantom, beam)
    spd = float(points.head_centre[1] - beam.source_mm[1])
    head_row, head_column = HEAD_ROW + MARGIN_PX, HEAD_COLUMN + MARGIN_PX
    return {
        "index": subject.index,
        "side": str(hip.side),
        "sex": str(subject.sex),
        "age_years": subject.age_years,
        "height_cm": subject.height_cm,
        "bmi_kg_m2": subject.bmi_kg_m2,
        "has_metal": hip.implant is not None,
        "implant": str(hip.implant.kind) if hip.implant is not None else None,
        "osteoarthritis": hip.osteoarthritis,
        "fracture": None if hip.fracture is None else str(hip.fracture.kind),
        "is_frog_leg": subject.is_frog_leg,
        "pose": asdict(hip.pose),
        "femur": asdict(hip.femur),
        "quality": asdict(hip.quality),
        "sdd_mm": subject.view.sdd_mm,
        "spd_mm": spd,
        "head_offset_mm": [
            float(points.head_centre[0] - beam.source_mm[0]),
            float(points.head_centre[2] - beam.source_mm[2]),
        ],
        "field_px": [low_row, high_row, low_column, high_column],
        "head_in_field": low_row <= head_row <= high_row and low_column <= head_column <= high_column,
        "regions": regions,
        "canonical": canonical_figures(phantom.bone(NAMES[hip.side]), points),
    }


def _field_corners(phantom: Phantom) -> NDArray[np.float64]:
    """(2, 3) upper right-hand and lower left-hand corner of the person's field in the plane of the heads, patient mm."""
    view = phantom.subject.view
    x, z = view.field_centre_mm
    height, width = view.field_size_mm
    depth = float(np.mean([points.head_centre[1] for points in phantom.landmarks.values()]))
    return np.array([[x - width / 2, depth, z + height / 2], [x + width / 2, depth, z - height / 2]])


def field_in(phantom: Phantom, beam: ConeBeam) -> tuple[float, float, float, float]:
    """First and last row, first and last column of the exposed field in the pixels of a beam; may lie outside of it."""
    pixels = detector_from_patient(_field_corners(phantom), beam)
    (row0, row1), (column0, column1) = np.sort(pixels[:, 0]), np.sort(pixels[:, 1])
    return float(row0), float(row1), float(column0), float(column1)


def _heads(phantom: Phantom) -> dict[str, tuple[float, float]]:
    beam = field_beam(phantom, LOCATOR_SPACING_MM, (LOCATOR_SIZE, LOCATOR_SIZE))
    heads = {}
    for side, points in phantom.landmarks.items():
        row, column = detector_from_patient(points.head_centre[None], beam)[0] + 0.5
        if 0 <= row < LOCATOR_SIZE and 0 <= column < LOCATOR_SIZE:
            heads[str(side)] = (float(column), float(row))
    return heads
