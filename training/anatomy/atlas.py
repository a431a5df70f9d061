"""People whose bones come from elsewhere: a statistical shape model, segmented bones, a computed tomogram.

The files are reference data that the caller names by their folder; nothing of them is part of the project. Everything else of a
person (mineral, pose, soft tissue, view) is drawn as for phantoms, so that only the anatomy is another.

`python -m training.anatomy.atlas FOLDER --seed S --index I --png FILE` draws one for people to look at.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dicomnode.domain.radiograph import Side
from dicomnode.errors import DicomNodeError
from training.anatomy.femur import SHAFT_BELOW_HEAD_MM, BoneQuality, FemurLandmarks, FemurShape, mineral_inside
from training.anatomy.femur import VOXEL_MM as FEMUR_VOXEL_MM
from training.anatomy.implicit import coverage, grid, local_from_voxel, noise, noise_lattice, smooth_step
from training.anatomy.landmarks import find_landmarks
from training.anatomy.mesh import Mesh, UnusableMesh, depth_mm, volume_fraction
from training.anatomy.pelvis import SOFTENING, PelvisQuality
from training.anatomy.pelvis import VOXEL_MM as PELVIS_VOXEL_MM
from training.anatomy.phantom import NAMES, Phantom, body_structures, patient_from_femur, patient_from_pelvis
from training.anatomy.population import Hip, Subject, draw_subject, pelvis_rotation
from training.anatomy.volume import Structure

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""The reference meshes are RAS."""
MODES = 5
MODE_RANGE_SD = 1.5
"""Within this range of the first five modes no drawn femur crosses itself (0 of 200, says the shape model's description)."""
BETWEEN_SIDES_SD = 0.15
"""By which the two femora of one person differ in each mode. Assumption."""
MOST_DRAWS = 20
FIND_VOXEL_MM = 1.5
"""Landmarks are found on voxels of this size: less than 0.5 mm from those of finer ones."""
JOINT_SPACE_MM = (2.5, 4.5)
"""Head to bony socket. Assumption, as for phantoms."""
CAP_MM = 12.0
"""A femur that was cut off is closed by a flat face, which has no cortex: so much above it is left out."""
PELVIC_BONES = ("right_hemipelvis", "left_hemipelvis", "sacrum")


class Source(StrEnum):
    """Where the femur comes from; the pelvis is one subject's, scaled to the heads."""

    SHAPE_MODEL = "femur_ssm"
    """A statistical model of 26 femora, drawn."""
    LIBHIP = "femur_libhip_m3_left"
    """One segmented femur, scaled a little."""


class UnusableAtlas(DicomNodeError):
    """The reference anatomy is absent or cannot be used; the message says what is missing."""


@dataclass(frozen=True)
class AtlasFemur:
    """A left femur in the frame "femur" (see `femur`); a right one is its mirror image."""

    mesh: Mesh
    points: FemurLandmarks
    own_from_source: NDArray[np.float64]
    """4 x 4: from the frame that the mesh was given in."""


def atlas_subject(folder: Path, seed: int, index: int, source: Source = Source.SHAPE_MODEL) -> Phantom:
    """Draw person `index` of the population `seed` with bones of the reference anatomy: what `targets.make_targets` takes.

    Pose, view, mineral, age and body are those of phantom `index` of the same seed, without metal.

    Args:
        folder: with `femur_ssm.npz`, `pelvis.npz` and so on.

    Raises:
        UnusableAtlas: a file is not there.
    """
    subject = draw_subject(seed, index)
    random = np.random.default_rng(np.random.SeedSequence([seed, index, list(Source).index(source)]))
    femora = _draw_femora(folder, source, random)
    volumes = {hip.side: voxelised_femur(femora[hip.side], hip.quality, hip.seed) for hip in subject.hips}
    return place(subject, femora, volumes, load(folder, "pelvis"), float(random.uniform(*JOINT_SPACE_MM)))


def sacrum_volume(folder: Path, phantom: Phantom) -> Structure:
    """What of the pelvis of an `atlas_subject` is its sacrum: shares of voxels, on the grid of its "pelvis_volume".

    Raises:
        UnusableAtlas: the pelvis is not there.
    """
    pelvis, subject = load(folder, "pelvis"), phantom.subject
    volume = next(structure for structure in phantom.structures if structure.name == "pelvis_volume")
    pelvis_from_source, _ = _pelvis_motion(pelvis, subject.hips, subject.pelvis.joint_space_mm)
    origin = pelvis_rotation(subject).T @ volume.patient_from_voxel[:3, 3]
    share = volume_fraction(_mesh(pelvis, "sacrum", pelvis_from_source), origin, PELVIS_VOXEL_MM, volume.values.shape)
    return replace(volume, name="sacrum_volume", values=share)


@dataclass(frozen=True)
class FemurVolumes:
    """A femur on a grid of its own frame."""

    mineral: NDArray[np.float32]
    volume: NDArray[np.float32]
    local_from_voxel: NDArray[np.float64]
    shape: FemurShape


def place(
    subject: Subject,
    femora: Mapping[Side, AtlasFemur],
    volumes: Mapping[Side, FemurVolumes],
    pelvis: Mapping[str, NDArray[np.float64]],
    joint_space_mm: float,
) -> Phantom:
    """Put femora into the sockets of a pelvis, in a person's pose and soft tissue."""
    hips = tuple(replace(hip, femur=volumes[hip.side].shape, implant=None) for hip in subject.hips)
    pelvis_from_source, half_width_mm = _pelvis_motion(pelvis, hips, joint_space_mm)
    subject = _widened(subject, (hips[0], hips[1]), half_width_mm, joint_space_mm)
    motions = {hip.side: patient_from_femur(subject, hip) for hip in subject.hips}
    structures = []
    for side, volume in volumes.items():
        matrix = motions[side] @ volume.local_from_voxel
        structures.append(Structure(f"{NAMES[side]}_mineral", volume.mineral, "g/cm3", matrix))
        structures.append(Structure(f"{NAMES[side]}_volume", volume.volume, "1", matrix))
    structures += _pelvis_structures(subject, pelvis, pelvis_from_source)
    structures += body_structures(subject, motions)
    points = {side: femora[side].points.moved(motions[side]) for side in femora}
    return Phantom(subject, tuple(structures), points, motions)


def load(folder: Path, name: str) -> Mapping[str, NDArray[np.float64]]:
    """Read one file of the reference anatomy.

    Raises:
        UnusableAtlas: it is not there.
    """
    path = folder / f"{name}.npz"
    if not path.is_file():
        raise UnusableAtlas(f"{path} does not exist; expected the folder of the reference anatomy")
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def shape_model_femur(model: Mapping[str, NDArray[np.float64]], weights_sd: NDArray[np.float64]) -> AtlasFemur:
    """The femur of a statistical shape model with these weights, in standard deviations of the first modes.

    Raises:
        UnusableMesh: the surface crosses itself.
    """
    weights = np.zeros(len(model["modes"]))
    weights[: len(weights_sd)] = weights_sd * np.sqrt(model["variance"][: len(weights_sd)])
    points = model["landmark_mean"] + np.tensordot(weights, model["landmark_modes"], 1)
    named = dict(zip(model["landmark_names"].tolist(), points @ LPS_FROM_RAS[:3, :3], strict=True))
    mesh = Mesh(shape_model_vertices(model, weights_sd), model["triangles"].astype(np.int64))
    return in_own_frame(mesh, named["posterior_condyle_lateral"] - named["posterior_condyle_medial"])


def shape_model_vertices(
    model: Mapping[str, NDArray[np.float64]], weights_sd: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n, 3) vertices of a drawn shape in the patient's directions (LPS), head of the mean shape at the origin."""
    weights = weights_sd * np.sqrt(model["variance"][: len(weights_sd)])
    vertices = model["vertices_mean"] + np.tensordot(weights, model["modes"][: len(weights_sd)], 1)
    return np.asarray(vertices @ LPS_FROM_RAS[:3, :3], np.float64)


def in_own_frame(mesh: Mesh, lateral: NDArray[np.float64]) -> AtlasFemur:
    """Find the landmarks of a left femur, and turn it into its own frame.

    Args:
        mesh: in the patient's directions, head up.
        lateral: across the condyles, or the patient's left: what anteversion is counted from.

    Raises:
        UnusableMesh: the surface crosses itself.
    """
    top = mesh.vertices.max(axis=0)
    low = np.maximum(mesh.vertices.min(axis=0), [-np.inf, -np.inf, top[2] - SHAFT_BELOW_HEAD_MM])
    size, origin = grid(low - 3.0, top + 3.0, FIND_VOXEL_MM)
    rough = volume_fraction(mesh, origin, FIND_VOXEL_MM, size)
    points = find_landmarks(Structure("femur", rough, "1", local_from_voxel(origin, FIND_VOXEL_MM)), Side.LEFT)
    up = points.shaft_proximal - points.shaft_distal
    up = up / np.linalg.norm(up)
    across = lateral - (lateral @ up) * up
    across = across / np.linalg.norm(across)
    femur_from_source = np.eye(4)
    femur_from_source[:3, :3] = np.stack([across, np.cross(up, across), up])
    femur_from_source[:3, 3] = -femur_from_source[:3, :3] @ points.head_centre
    return AtlasFemur(mesh.moved(femur_from_source), points.moved(femur_from_source), femur_from_source)


def _draw_femora(folder: Path, source: Source, random: np.random.Generator) -> dict[Side, AtlasFemur]:
    """Both femora of one person; shapes that cross themselves are drawn again."""
    model = load(folder, source)
    if source is Source.LIBHIP:
        mesh = Mesh(model["vertices"].astype(np.float64), model["triangles"].astype(np.int64)).moved(LPS_FROM_RAS)
        femur = in_own_frame(mesh.moved(np.diag([*[random.uniform(0.93, 1.07)] * 3, 1.0])), np.array([1.0, 0.0, 0.0]))
        return dict.fromkeys(NAMES, femur)
    for _ in range(MOST_DRAWS):
        weights = random.uniform(-MODE_RANGE_SD, MODE_RANGE_SD, MODES)
        try:
            return {
                side: shape_model_femur(
                    model,
                    np.clip(weights + random.normal(0, BETWEEN_SIDES_SD, MODES), -MODE_RANGE_SD, MODE_RANGE_SD),
                )
                for side in NAMES
            }
        except UnusableMesh:
            continue
    raise UnusableAtlas(f"{folder / source}: {MOST_DRAWS} drawn shapes in a row cross themselves; is the file damaged?")


def voxelised_femur(femur: AtlasFemur, quality: BoneQuality, seed: int) -> FemurVolumes:
    """Give a femur its cortex and trabeculae on voxels as fine as a phantom's."""
    vertices = femur.mesh.vertices[femur.mesh.vertices[:, 2] > -SHAFT_BELOW_HEAD_MM]
    low, high = vertices.min(axis=0) - 2.0, vertices.max(axis=0) + 2.0
    low[2] = max(low[2] + CAP_MM, -SHAFT_BELOW_HEAD_MM)
    size, origin = grid(low, high, FEMUR_VOXEL_MM)
    volume = volume_fraction(femur.mesh, origin, FEMUR_VOXEL_MM, size)
    shape = _measured(femur.points, volume, origin)
    depth = depth_mm(femur.mesh, volume, origin, FEMUR_VOXEL_MM)
    level = float(femur.points.lesser_trochanter_tip[2])
    mineral = mineral_inside(volume, depth, origin, FEMUR_VOXEL_MM, shape, quality, level, seed)
    return FemurVolumes(mineral, volume, local_from_voxel(origin, FEMUR_VOXEL_MM), shape)


def _measured(points: FemurLandmarks, volume: NDArray[np.float32], origin_mm: NDArray[np.float64]) -> FemurShape:
    """The sizes of a femur that is given by its landmarks (in its own frame) and its volume.

    Those that only draw a phantom's surface (girths, bow, the neck's depth) are an average phantom's.
    """
    neck = points.neck_base - points.head_centre
    length = float(np.linalg.norm(neck))
    out = float(np.linalg.norm(points.head_neck_junction - points.head_centre))
    level = round(float((points.shaft_distal[2] - origin_mm[2]) / FEMUR_VOXEL_MM))
    shaft_mm2 = float(volume[level].sum()) * FEMUR_VOXEL_MM**2
    return FemurShape(
        head_radius_mm=points.head_radius_mm,
        neck_length_mm=length,
        neck_shaft_angle_deg=180.0 - math.degrees(math.acos(-neck[2] / length)),
        anteversion_deg=math.degrees(math.atan2(neck[1], neck[0])),
        neck_height_mm=2.0 * math.sqrt(points.head_radius_mm**2 - out**2),
        neck_depth_ratio=0.84,
        shaft_diameter_mm=2.0 * math.sqrt(shaft_mm2 / math.pi),
        trochanter_height_mm=float(points.greater_trochanter_tip[2]),
        trochanter_size=1.0,
        lesser_size=1.0,
        bow_mm=5.0,
    )


def _pelvis_motion(
    pelvis: Mapping[str, NDArray[np.float64]], hips: tuple[Hip, ...], joint_space_mm: float
) -> tuple[NDArray[np.float64], float]:
    """4 x 4 from the pelvis's file to the frame "pelvis", scaled so that the heads fit; and midline to head in mm."""
    right, left = (LPS_FROM_RAS[:3, :3] @ pelvis[f"acetabulum_centre_{side}"] for side in ("right", "left"))
    across = (left - right) / np.linalg.norm(left - right)
    up = np.array([0.0, 0.0, 1.0]) - across[2] * across
    up = up / np.linalg.norm(up)
    radius = float(np.mean([pelvis["acetabulum_radius_left"], pelvis["acetabulum_radius_right"]]))
    scale = (float(np.mean([hip.femur.head_radius_mm for hip in hips])) + joint_space_mm) / radius
    matrix = np.eye(4)
    matrix[:3, :3] = scale * np.stack([across, np.cross(up, across), up])
    matrix[:3, 3] = -matrix[:3, :3] @ (left + right) / 2
    return matrix @ LPS_FROM_RAS, scale * float(np.linalg.norm(left - right)) / 2


def _widened(subject: Subject, hips: tuple[Hip, Hip], half_width_mm: float, joint_space_mm: float) -> Subject:
    """The person with other hips; body and field follow the distance between them."""
    wider = half_width_mm - subject.pelvis.half_width_mm
    x, z = subject.view.field_centre_mm
    single = abs(x) > subject.pelvis.half_width_mm / 2
    return replace(
        subject,
        hips=hips,
        pelvis=replace(
            subject.pelvis,
            half_width_mm=half_width_mm,
            head_radii_mm=(hips[0].femur.head_radius_mm, hips[1].femur.head_radius_mm),
            joint_space_mm=joint_space_mm,
        ),
        body=replace(subject.body, half_width_mm=subject.body.half_width_mm + wider),
        view=replace(subject.view, field_centre_mm=(x + math.copysign(wider, x) if single else x, z)),
    )


@njit(cache=True)
def _fill_pelvis(
    mineral: NDArray[np.float32],
    fraction: NDArray[np.float32],
    depth: NDArray[np.float32],
    origin: NDArray[np.float64],
    voxel: float,
    p: NDArray[np.float64],
    slow: NDArray[np.float32],
    fine: NDArray[np.float32],
) -> None:
    """Cortex, thicker over the head, and trabeculae, denser there: as in the phantoms' pelvis."""
    nz, ny, nx = mineral.shape
    half, head, space, cortical, cortex, trabecular, patchiness, texture = (
        p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7],
    )  # fmt: skip
    for k in range(nz):
        for j in range(ny):
            for i in range(nx):
                inside = fraction[k, j, i]
                if inside == 0.0:
                    continue
                x, y, z = origin[0] + i * voxel, origin[1] + j * voxel, origin[2] + k * voxel
                r = math.sqrt((abs(x) - half) ** 2 + y * y + z * z) - head - space
                dome = smooth_step(7.0, 2.0, r) * smooth_step(0.15 * head, 0.75 * head, z)
                t = cortex * (1.0 + 0.8 * dome)
                spongy = coverage(t - depth[k, j, i], SOFTENING * voxel)
                loaded = 1.0 + 0.5 * smooth_step(30.0, 0.0, r) * smooth_step(-10.0, 25.0, z)
                patch = noise(slow, x / 22.0, y / 22.0, z / 22.0)
                streak = noise(fine, x / 1.8, y / 1.8, z / 5.0)
                soft = trabecular * loaded * max((1.0 + patchiness * patch) * (1.0 + texture * streak), 0.05)
                mineral[k, j, i] += (cortical * (1.0 - spongy) + min(soft, 0.6) * spongy) * inside


def _pelvis_structures(
    subject: Subject, pelvis: Mapping[str, NDArray[np.float64]], pelvis_from_source: NDArray[np.float64]
) -> list[Structure]:
    meshes = [_mesh(pelvis, bone, pelvis_from_source) for bone in PELVIC_BONES]
    everything = np.concatenate([mesh.vertices for mesh in meshes])
    size, origin = grid(everything.min(axis=0) - 3.0, everything.max(axis=0) + 3.0, PELVIS_VOXEL_MM)
    random = np.random.default_rng(subject.seed)
    lattices = noise_lattice(random), noise_lattice(random)
    mineral, volume = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for mesh in meshes:
        fraction = volume_fraction(mesh, origin, PELVIS_VOXEL_MM, size)
        depth = depth_mm(mesh, fraction, origin, PELVIS_VOXEL_MM)
        parameters = _pelvic_parameters(subject, subject.pelvis_quality)
        _fill_pelvis(mineral, fraction, depth, origin, PELVIS_VOXEL_MM, parameters, *lattices)
        volume += fraction
    matrix = patient_from_pelvis(subject) @ local_from_voxel(origin, PELVIS_VOXEL_MM)
    return [
        Structure("pelvis_mineral", mineral, "g/cm3", matrix),
        Structure("pelvis_volume", np.minimum(volume, 1.0), "1", matrix),
    ]


def _mesh(pelvis: Mapping[str, NDArray[np.float64]], bone: str, pelvis_from_source: NDArray[np.float64]) -> Mesh:
    vertices, triangles = pelvis[f"{bone}_vertices"], pelvis[f"{bone}_triangles"]
    return Mesh(vertices.astype(np.float64), triangles.astype(np.int64)).moved(pelvis_from_source)


def _pelvic_parameters(subject: Subject, quality: PelvisQuality) -> NDArray[np.float64]:
    return np.array(
        [
            subject.pelvis.half_width_mm,
            float(np.mean(subject.pelvis.head_radii_mm)),
            subject.pelvis.joint_space_mm,
            quality.cortical_density_g_cm3,
            quality.cortex_mm,
            quality.trabecular_density_g_cm3,
            quality.patchiness,
            quality.texture,
        ]
    )


def main() -> None:
    """Draw one person with bones of the reference anatomy."""
    parser = argparse.ArgumentParser(prog="python -m training.anatomy.atlas", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="reference anatomy: femur_ssm.npz, pelvis.npz, ...")
    parser.add_argument("--source", type=Source, choices=list(Source), default=Source.SHAPE_MODEL)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--png", type=Path, required=True)
    options = parser.parse_args()
    from training.anatomy.picture import draw_phantom

    draw_phantom(atlas_subject(options.folder, options.seed, options.index, options.source), options.png)


if __name__ == "__main__":
    main()
