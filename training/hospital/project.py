"""One hip of a registered CT in the measurement frame, beside the real radiograph: what training learns from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomnode.domain.object_plane import object_plane
from dicomnode.domain.radiograph import Radiograph, Side, Technique
from dicomnode.errors import DicomNodeError
from dicomnode.inference.frame import SPACING_MM, Label, image_from_frame, resample
from training.anatomy.femur import FemurLandmarks
from training.anatomy.regions import label_regions, project_landmarks
from training.anatomy.volume import Structure
from training.projection.geometry import ConeBeam, anteroposterior, detector_depths, detector_from_patient
from training.projection.projector import project_structures
from training.targets import MARGIN_PX, SHAPE, canonical_figures, hip_beam, region_figures

NOMINAL_SDD_MM = 1150.0
"""Where nothing is stated. Source: EUR 16260 EN (1996), pelvis: 115 cm."""
CT_END_MM = 10.0
"""So near to the CT's first or last slice a ray may leave the CT before it has crossed the bone (assumption: bones lie within
50 mm of the femoral head's depth, and rays and slices within 11 degrees of each other)."""


class NoGeometry(DicomNodeError):
    """The radiograph does not say how large its pixels are; the message says what to add."""


@dataclass(frozen=True)
class RealHip:
    """One hip in the frame with its margin, as in `training.targets.HipTarget`; the radiograph is a real one."""

    image: NDArray[np.float16]
    """(rows, columns), larger is more attenuation, 0..1 over the whole radiograph."""
    inside: NDArray[np.bool_]
    """(rows, columns) what lies on the radiograph."""
    field: NDArray[np.bool_]
    """(rows, columns) where it was exposed as well."""
    targets: NDArray[np.float16]
    """(3, rows, columns) femur density g/cm2, femur path cm, pelvis density g/cm2; NaN beyond what the CT holds."""
    labels: NDArray[np.uint8]
    figures: dict[str, Any]
    """What is known of this hip; see `training.hospital.cases.load_real_hips`."""

    @property
    def technique(self) -> Technique:
        """What the header of its radiograph states."""
        return Technique(**{one.name: self.figures.get(one.name) for one in fields(Technique)})


@dataclass(frozen=True)
class CalibratedBones:
    """The bones of a CT, in its frame."""

    femora: Mapping[Side, tuple[Structure, Structure]]
    """Mineral (g/cm3) and volume of each femur."""
    pelvis: Structure
    """Mineral (g/cm3)."""
    landmarks: Mapping[Side, FemurLandmarks]
    shape: tuple[int, ...]
    """(z, y, x) of the CT."""
    patient_from_voxel: NDArray[np.float64]
    """4 x 4, of the CT."""


@dataclass(frozen=True)
class Registered:
    """Where the patient of a CT lay when the radiograph was taken: 4 x 4 motions, patient from CT."""

    pelvis: NDArray[np.float64]
    femora: Mapping[Side, NDArray[np.float64]]
    similarity: float
    confidence: float
    """0..1."""
    failure: str | None
    """Why the poses are not to be used."""


def nominal_beam(
    radiograph: Radiograph, isocentre_mm: NDArray[np.float64], sdd_mm: float | None, spd_mm: float | None
) -> tuple[ConeBeam, tuple[str, ...]]:
    """The geometry as header or table state it; the central ray is taken to meet the middle of the image.

    A central ray that met another pixel is, to a good part, taken up by the registration's shift.

    Returns:
        The beam, and what had to be assumed.

    Raises:
        NoGeometry: no pixel size in the header, or pixels that are no squares.
    """
    plane = object_plane(radiograph.geometry)
    if plane is None:
        raise NoGeometry("the radiograph states no pixel size (Imager Pixel Spacing); export it with its full header")
    if abs(plane.spacing_mm[0] / plane.spacing_mm[1] - 1) > 0.01:
        raise NoGeometry(f"the radiograph's pixels measure {plane.spacing_mm} mm, expected squares")
    doubts = [] if plane.source != "assumed" or spd_mm is not None else [plane.note]
    sdd = sdd_mm or radiograph.geometry.sdd_mm
    if sdd is None:
        sdd = NOMINAL_SDD_MM
        doubts.append(f"the distance from source to detector is not known, {NOMINAL_SDD_MM:g} mm is assumed")
    magnification = plane.magnification if plane.magnification > 1 else 1.1
    spd = spd_mm or radiograph.geometry.spd_mm or sdd / magnification
    object_spacing_mm = plane.spacing_mm[0]
    if plane.source != "calibrated" and radiograph.geometry.detector_spacing_mm is not None:
        object_spacing_mm = radiograph.geometry.detector_spacing_mm[0] * spd / sdd
    rows, columns = radiograph.image.shape
    return anteroposterior(isocentre_mm, sdd, spd, object_spacing_mm, (rows, columns)), tuple(doubts)


def exposed(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The rectangle within the collimator's border, whose rows and columns are all of one value."""
    span = float(np.ptp(image)) or 1.0
    rows, columns = (np.flatnonzero(np.ptp(image, axis=axis) > 0.02 * span) for axis in (1, 0))
    inside = np.zeros(image.shape, np.bool_)
    if len(rows) and len(columns):
        inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return inside


def real_hip(
    bones: CalibratedBones, registered: Registered, radiograph: Radiograph, beam: ConeBeam, side: Side
) -> RealHip:
    """Project one hip into the frame, and cut the radiograph to it."""
    motion = registered.femora[side]
    points = bones.landmarks[side].moved(motion)
    cut = hip_beam(beam, points.head_centre, side)
    mineral, volume = (Structure(s.name, s.values, s.unit, motion @ s.patient_from_voxel) for s in bones.femora[side])
    pelvis = bones.pelvis
    moved = Structure(pelvis.name, pelvis.values, pelvis.unit, registered.pelvis @ pelvis.patient_from_voxel)
    images = project_structures((mineral, volume, moved), cut, parallel=False)
    density, path = images[mineral.name], images[volume.name]
    labels = label_regions(path, project_landmarks(points, cut, SPACING_MM))
    image, inside, field = _cut_image(radiograph, beam, points.head_centre, side)
    targets = np.stack([density, path, images[moved.name]]).astype(np.float16)
    targets[:, ~_scanned(bones, motion, cut, points.head_centre)] = np.nan
    return RealHip(
        image=image.astype(np.float16),
        inside=inside,
        field=field,
        targets=targets,
        labels=labels,
        figures={
            "side": str(side),
            "regions": region_figures(density, path, labels, SPACING_MM),
            "canonical": canonical_figures(bones.femora[side], bones.landmarks[side]),
            "seen_share": _seen_share(labels, field),
            **asdict(radiograph.technique),
        },
    )


def _cut_image(
    radiograph: Radiograph, beam: ConeBeam, head_mm: NDArray[np.float64], side: Side
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """The radiograph in the frame, where the frame lies on it, and where it was exposed."""
    row, column = detector_from_patient(head_mm[None], beam)[0] + 0.5
    depth = float(detector_depths(head_mm, beam))
    spacing_mm = (beam.detector_spacing_mm[0] * depth, beam.detector_spacing_mm[1] * depth)
    margin = np.eye(3)
    margin[:2, 2] = -MARGIN_PX
    image_from_stored = image_from_frame((float(column), float(row)), side, spacing_mm) @ margin
    low, high = float(radiograph.image.min()), float(radiograph.image.max())
    scaled = (radiograph.image - low) / max(high - low, 1e-6)
    image, on_image = resample(np.asarray(scaled, np.float32), image_from_stored, SHAPE)
    field, _ = resample(exposed(radiograph.image).astype(np.float32), image_from_stored, SHAPE)
    return image, on_image, on_image & (field > 0.5)


def _scanned(
    bones: CalibratedBones, motion: NDArray[np.float64], cut: ConeBeam, head_mm: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Where the plane through the femoral head lies between the first and the last slice of the CT.

    Beyond, the radiograph shows bone that the projection of the CT lacks.
    """
    rows, columns = np.indices(cut.shape)
    steps = rows[..., None] * cut.detector_spacing_mm[0] * cut.row_direction
    steps = steps + columns[..., None] * cut.detector_spacing_mm[1] * cut.column_direction
    rays = cut.detector_origin_mm + steps - cut.source_mm
    points = cut.source_mm + rays * detector_depths(head_mm, cut)
    voxel_from_patient = np.linalg.inv(motion @ bones.patient_from_voxel)
    slices = points @ voxel_from_patient[2, :3] + voxel_from_patient[2, 3]
    margin = CT_END_MM / float(np.linalg.norm(bones.patient_from_voxel[:3, 2]))
    return np.asarray((slices >= margin) & (slices <= bones.shape[0] - 1 - margin), np.bool_)


def _seen_share(labels: NDArray[np.uint8], field: NDArray[np.bool_]) -> float:
    """Share of the total hip's pixels that the radiograph shows."""
    total = (labels != Label.BACKGROUND) & (labels != Label.SHAFT) & (labels != Label.HEAD)
    return float((total & field).sum() / total.sum()) if total.any() else 0.0
