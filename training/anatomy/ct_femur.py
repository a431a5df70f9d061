"""A person whose femora are that of a real CT: its own mineral, in the body, pelvis and pose of the atlas.

A CT that ends below the neck shows no shaft. The shape model is fitted to what there is, gives the surface and the landmarks, and
goes on below the end of the CT with mineral as phantoms have it. What the CT covers keeps the CT's mineral.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from dicomnode.domain.radiograph import Side
from training.anatomy.atlas import (
    MODES,
    AtlasFemur,
    FemurVolumes,
    Source,
    in_own_frame,
    load,
    place,
    shape_model_vertices,
    voxelised_femur,
)
from training.anatomy.ct import CtVolume
from training.anatomy.labels import LabelMap
from training.anatomy.landmarks import find_head, surface_mm
from training.anatomy.mesh import Mesh
from training.anatomy.phantom import NAMES, Phantom
from training.anatomy.population import draw_subject
from training.anatomy.volume import Structure
from training.calibration.line import Calibration, mineral_mg_cm3

MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])
FIT_POINTS = 2000
FIT_ROUNDS = 12
MOST_SD = 3.0
SHRINK_MM = 10.0
"""A mode at one standard deviation weighs as one point of the surface that is so far off."""
OUTLIER_MM = 2.0
SEAM_MM = 10.0
"""Above the end of the CT: there its mineral is held against the drawn one, which goes on below with the same mass."""
JOINT_SPACE_MM = 3.5


def ct_subject(
    anatomy: Path,
    ct: CtVolume,
    labels: LabelMap,
    calibration: Calibration,
    side: Side,
    seed: int,
    index: int,
    mineral_scale: float = 1.0,
) -> Phantom:
    """Draw person `index` with the femur of one side of a CT on both sides (mirrored), what `targets.make_targets` takes.

    Args:
        anatomy: folder of the reference anatomy.
        side: of the femur that is taken; without metal.
        mineral_scale: factor on all of its mineral, to see whether a model follows the mineral when nothing else changes.

    Raises:
        LandmarksNotFound: the CT shows no femoral head and neck.
        UnusableAtlas: a file of the reference anatomy is not there.
    """
    subject = draw_subject(seed, index)
    as_left = np.eye(4) if side is Side.LEFT else MIRROR
    mask = Structure("mask", labels.mask(NAMES[side]).astype(np.float32), "1", as_left @ labels.patient_from_voxel)
    femur, source_from_fitted = fit_shape_model(load(anatomy, Source.SHAPE_MODEL), mask)
    hip = subject.hips[0]
    volumes = voxelised_femur(femur, hip.quality, hip.seed)
    fitted_from_voxel = np.linalg.inv(femur.own_from_source) @ volumes.local_from_voxel
    mineral = _with_mineral_of(ct, calibration, as_left, source_from_fitted @ fitted_from_voxel, volumes)
    scaled = replace(volumes, mineral=mineral * np.float32(mineral_scale))
    both = dict.fromkeys(NAMES, scaled)
    return place(subject, dict.fromkeys(NAMES, femur), both, load(anatomy, "pelvis"), JOINT_SPACE_MM)


def fit_shape_model(
    model: Mapping[str, NDArray[np.float64]], femur: Structure
) -> tuple[AtlasFemur, NDArray[np.float64]]:
    """Fit the shape model to a left femur of which the head and neck are there at least.

    Nearest points in turn with least squares of the distances along the normals; modes are held near the mean.

    Returns:
        The femur in its own frame, and 4 x 4 from the frame that `own_from_source` starts from to the patient's.
    """
    head = find_head(femur)
    surface = surface_mm(femur)
    surface = surface[:: max(1, len(surface) // FIT_POINTS)]
    triangles = model["triangles"].astype(np.int64)
    parameters = np.zeros(6 + MODES)
    parameters[3:6] = head.centre
    for _ in range(FIT_ROUNDS):
        vertices, normals = _posed(model, triangles, parameters)
        _, nearest = cKDTree(vertices).query(surface)

        def misfits(
            values: NDArray[np.float64],
            near: NDArray[np.int64] = nearest,
            along: NDArray[np.float64] = normals[nearest],
        ) -> NDArray[np.float64]:
            off_mm = ((surface - _vertices(model, values)[near]) * along).sum(axis=1)
            return np.concatenate([off_mm, SHRINK_MM * values[6:]])

        limit = np.concatenate([np.full(6, np.inf), np.full(MODES, MOST_SD)])
        parameters = optimize.least_squares(
            misfits, parameters, bounds=(-limit, limit), loss="soft_l1", f_scale=OUTLIER_MM, max_nfev=20
        ).x
    mesh = Mesh(shape_model_vertices(model, parameters[6:]), triangles)
    patient_from_mesh = np.eye(4)
    patient_from_mesh[:3, :3] = Rotation.from_rotvec(parameters[:3]).as_matrix()
    patient_from_mesh[:3, 3] = parameters[3:6]
    return in_own_frame(mesh, np.array([1.0, 0.0, 0.0])), patient_from_mesh


def _vertices(model: Mapping[str, NDArray[np.float64]], parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    turn = Rotation.from_rotvec(parameters[:3]).as_matrix()
    return np.asarray(shape_model_vertices(model, parameters[6:]) @ turn.T + parameters[3:6])


def _posed(
    model: Mapping[str, NDArray[np.float64]], triangles: NDArray[np.int64], parameters: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Vertices and their outward normals."""
    vertices = _vertices(model, parameters)
    a, b, c = (vertices[triangles[:, n]] for n in range(3))
    faces = np.cross(b - a, c - a)
    normals = np.zeros_like(vertices)
    for n in range(3):
        np.add.at(normals, triangles[:, n], faces)
    return vertices, normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)


def _with_mineral_of(
    ct: CtVolume,
    calibration: Calibration,
    as_left: NDArray[np.float64],
    left_from_voxel: NDArray[np.float64],
    volumes: FemurVolumes,
) -> NDArray[np.float32]:
    """The femur's mineral where the CT covers it, and the drawn one elsewhere."""
    inside = volumes.volume > 0
    index = np.argwhere(inside)[:, ::-1]
    places = index @ left_from_voxel[:3, :3].T + left_from_voxel[:3, 3]
    ct_from_left = np.linalg.inv(as_left @ ct.patient_from_voxel)
    voxels = (places @ ct_from_left[:3, :3].T + ct_from_left[:3, 3])[:, ::-1].T
    covered = ((voxels >= 0) & (voxels <= np.array(ct.hu.shape)[:, None] - 1)).all(axis=0)
    read = ndimage.map_coordinates(mineral_mg_cm3(ct.hu, calibration) / 1000, voxels, order=1, mode="nearest")
    mineral, drawn = volumes.mineral.copy(), volumes.mineral[inside]
    measured = np.maximum(read, 0.0) * volumes.volume[inside]
    seam = covered & (voxels[0] < SEAM_MM / np.linalg.norm(ct.patient_from_voxel[:3, 2]))
    factor = measured[seam].sum() / drawn[seam].sum() if seam.any() else 1.0
    mineral[inside] = np.where(covered, measured, factor * drawn)
    return mineral
