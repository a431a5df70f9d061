"""One projection of a CT-sized volume: the project's projectors beside those that a user would take instead.

An ellipsoid of even density on a grid of 256 x 256 x 200 voxels of 1 mm, seen under a cone beam by 512 x 512 pixels. The
answer is known in closed form for each ray, so that each contender is timed and checked on the same voxels. The
contenders take turns; ratios hold within one run.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from training.projection.differentiable import project_poses
from training.projection.geometry import ConeBeam, anteroposterior, rays_mm
from training.projection.projector import project, project_volumes

SHAPE = (200, 256, 256)
SEMI_AXES_MM = np.array([124.0, 122.0, 96.0])
"""Along x, y, z: all but fills the grid, so that leaving out empty margins gains next to nothing."""
DENSITY_G_CM3 = 1.0
SDD_MM, SPD_MM, OBJECT_SPACING_MM, DETECTOR_SHAPE = 1150.0, 1000.0, 0.7, (512, 512)
STRUCTURES = 4
OURS = "dicomnode, fast"
SLOW_S = 5.0
"""What takes longer than this for one image takes part in the first round only."""
CM_PER_MM = 0.1


@dataclass(frozen=True)
class Scene:
    """What all contenders project."""

    values: NDArray[np.float32]
    """(z, y, x) g/cm3."""
    patient_from_voxel: NDArray[np.float64]
    beam: ConeBeam
    exact_g_cm2: NDArray[np.float64]
    """(rows, columns) closed form."""
    relative_distance: NDArray[np.float64]
    """(rows, columns) how far each ray passes from the centre; 1 touches the surface."""


Run = Callable[[], NDArray[np.float32]]


@dataclass(frozen=True)
class Contender:
    """A projector that takes part."""

    name: str
    needs: str | None
    """Python distribution; None: it is here."""
    prepare: Callable[[Scene], Run]
    """Make ready outside the timed part; the result gives (rows, columns) in g/cm2."""
    aim: float | None = None
    """Least ratio of its time to ours that the project aims at."""


@dataclass(frozen=True)
class ProjectorTimes:
    """What one contender took, and how right it was."""

    name: str
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    """Of this process alone: all threads together, whatever else the machine does."""
    mass_error: float
    """Relative, of the sum of all pixels."""
    ray_error: float
    """Relative, greatest of the rays that pass at most 0.9 of the way to the surface."""
    aim: float | None

    @property
    def median_s(self) -> float:
        """Median over the rounds."""
        return median(self.seconds)

    @property
    def median_cpu_s(self) -> float:
        """Median over the rounds."""
        return median(self.cpu_seconds)


def make_scene() -> Scene:
    """Voxels that hold the ellipsoid's share of their volume, and what each ray must see of it."""
    patient_from_voxel = np.eye(4)
    patient_from_voxel[:3, 3] = -(np.array(SHAPE[::-1]) - 1) / 2
    beam = anteroposterior(np.zeros(3), SDD_MM, SPD_MM, OBJECT_SPACING_MM, DETECTOR_SHAPE)
    z, y, x = (np.arange(size) - (size - 1) / 2 for size in SHAPE)
    a, b, c = SEMI_AXES_MM
    radius = np.sqrt((x / a) ** 2 + ((y / b) ** 2)[:, None] + ((z / c) ** 2)[:, None, None])
    steepness = np.sqrt((x / a**2) ** 2 + ((y / b**2) ** 2)[:, None] + ((z / c**2) ** 2)[:, None, None])
    depth_mm = (1 - radius) * radius / np.maximum(steepness, 1e-9)  # to first order, which is enough at the surface
    values = DENSITY_G_CM3 * np.clip(depth_mm + 0.5, 0.0, 1.0)
    starts, directions = rays_mm(beam)
    rows, columns = np.indices(DETECTOR_SHAPE)
    pixels = np.stack([rows, columns, np.ones_like(rows)], axis=-1)
    start, direction = pixels @ starts.T, pixels @ directions.T
    s, d = start / SEMI_AXES_MM, direction / SEMI_AXES_MM  # in these units the ellipsoid is a ball of radius 1
    distance = np.linalg.norm(np.cross(s, d), axis=-1) / np.linalg.norm(d, axis=-1)
    chord = 2 * np.sqrt(np.maximum(1 - distance**2, 0)) / np.linalg.norm(d, axis=-1)
    exact = DENSITY_G_CM3 * CM_PER_MM * chord * np.linalg.norm(direction, axis=-1)
    return Scene(values.astype(np.float32), patient_from_voxel, beam, exact, distance)


def compare(
    scene: Scene,
    contenders: Sequence[Contender],
    rounds: int,
    told: Callable[[str], None],
    missing: Callable[[str], None],
) -> list[ProjectorTimes]:
    """Let those that are installed take turns; say which are not, and how to install them."""
    runs: dict[str, Run] = {}
    slow = set()
    for contender in contenders:
        if contender.needs and not _is_here(contender.needs):
            missing(f"{contender.name}: {contender.needs} is not installed (pip install {contender.needs})")
            continue
        told(f"preparing {contender.name}")
        run = contender.prepare(scene)
        started = time.perf_counter()
        run()  # compiles, fills caches
        if time.perf_counter() - started > SLOW_S and contender.needs:
            slow.add(contender.name)
        runs[contender.name] = run
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    images: dict[str, NDArray[np.float32]] = {}
    for number in range(rounds):
        for name, run in runs.items():
            if number > 0 and name in slow:
                continue
            told(f"round {number + 1} of {rounds}: {name}")
            cpu, wall = time.process_time(), time.perf_counter()
            images[name] = run()
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return [
        _judged(scene, contender, taken[contender.name], images[contender.name])
        for contender in contenders
        if contender.name in runs
    ]


def ratio(ours: ProjectorTimes, other: ProjectorTimes) -> float:
    """How many times our time another takes: the median of the ratios within each round."""
    return median(theirs / own for theirs, own in zip(other.seconds, ours.seconds, strict=False))


def cpu_ratio(ours: ProjectorTimes, other: ProjectorTimes) -> float:
    """The same of the processor's seconds, which other programs on the machine disturb less."""
    return median(theirs / own for theirs, own in zip(other.cpu_seconds, ours.cpu_seconds, strict=False))


def _is_here(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


def _judged(
    scene: Scene, contender: Contender, taken: Sequence[tuple[float, float]], image: NDArray[np.float32]
) -> ProjectorTimes:
    walls, cpus = zip(*taken, strict=True)
    mass, ray = errors(scene, image)
    return ProjectorTimes(contender.name, walls, cpus, mass, ray, contender.aim)


def errors(scene: Scene, image: NDArray[np.float32]) -> tuple[float, float]:
    """Relative errors: of the total, and the greatest of the rays well inside."""
    inside = scene.relative_distance < 0.9
    mass = float(image.sum(dtype=np.float64) / scene.exact_g_cm2.sum() - 1)
    return mass, float(np.abs(image[inside] / scene.exact_g_cm2[inside] - 1).max())


def _ours(scene: Scene) -> Run:
    return lambda: project(scene.values, scene.patient_from_voxel, scene.beam)


def _ours_several(scene: Scene) -> Run:
    volumes = [scene.values] * STRUCTURES
    return lambda: project_volumes(volumes, scene.patient_from_voxel, scene.beam)[0]


def _ours_one_by_one(scene: Scene) -> Run:
    def run() -> NDArray[np.float32]:
        for _ in range(STRUCTURES):
            image = project(scene.values, scene.patient_from_voxel, scene.beam)
        return image

    return run


def _ours_torch(scene: Scene) -> Run:
    volumes, poses = torch.from_numpy(scene.values)[None], torch.zeros((1, 6))
    return lambda: np.asarray(
        project_poses(volumes, scene.patient_from_voxel, scene.beam, poses, np.zeros(3))[0, 0].numpy(), np.float32
    )


def _rtk(scene: Scene) -> Run:
    """ITK-RTK's Joseph filter. Its frame: source on +z, detector towards -z; so patient (x, y, z) is its (x, -z, y)."""
    import itk
    from itk import RTK as rtk

    image_type = itk.Image[itk.F, 3]
    rtk_from_patient = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    volume = itk.image_from_array(scene.values)
    volume.SetDirection(itk.matrix_from_array(rtk_from_patient))
    volume.SetOrigin(list(rtk_from_patient @ scene.patient_from_voxel[:3, 3]))
    geometry = rtk.ThreeDCircularProjectionGeometry.New()
    geometry.AddProjection(SPD_MM, SDD_MM, 0.0)
    rows, columns = DETECTOR_SHAPE
    spacing = scene.beam.detector_spacing_mm[0]
    empty = itk.image_from_array(np.zeros((1, rows, columns), np.float32))
    empty.SetSpacing([spacing, spacing, 1.0])
    empty.SetOrigin([-(columns - 1) / 2 * spacing, -(rows - 1) / 2 * spacing, 0.0])
    joseph = rtk.JosephForwardProjectionImageFilter[image_type, image_type].New()
    joseph.SetInput(0, empty)
    joseph.SetInput(1, volume)
    joseph.SetGeometry(geometry)
    joseph.SetInPlace(False)

    def run() -> NDArray[np.float32]:
        joseph.Modified()
        joseph.Update()
        image = itk.array_from_image(joseph.GetOutput())[0, ::-1]  # its rows go up
        return np.asarray(image * CM_PER_MM, np.float32)

    return run


def _nanodrr(scene: Scene) -> Run:
    """nanodrr, which marches along each ray; on the CPU. Its camera looks along z, with x to the right and y down."""
    from nanodrr.data import Subject
    from nanodrr.drr import DRR
    from torchio import ScalarImage

    beam = scene.beam
    values = torch.from_numpy(scene.values.transpose(2, 1, 0)[None].copy())
    subject = Subject.from_images(ScalarImage(tensor=values, affine=scene.patient_from_voxel), convert_to_mu=False)
    rows, columns = beam.shape
    row_mm, column_mm = beam.detector_spacing_mm
    drr = DRR.from_carm_intrinsics(SDD_MM, column_mm, row_mm, 0.0, 0.0, rows, columns, dtype=torch.float32)
    patient_from_camera = np.eye(4)
    ahead = np.cross(beam.column_direction, beam.row_direction)
    patient_from_camera[:3] = np.stack([beam.column_direction, beam.row_direction, ahead, beam.source_mm], axis=1)
    pose = torch.from_numpy(patient_from_camera).float()[None]

    def run() -> NDArray[np.float32]:
        with torch.no_grad():
            return np.asarray(drr(subject, pose)[0, 0].numpy() * CM_PER_MM, np.float32)

    return run


CONTENDERS = (
    Contender(OURS, None, _ours),
    Contender(f"dicomnode, fast, {STRUCTURES} structures in one pass", None, _ours_several),
    Contender(f"dicomnode, fast, {STRUCTURES} structures one by one", None, _ours_one_by_one),
    Contender("dicomnode, torch", None, _ours_torch),
    Contender("ITK-RTK, Joseph", "itk-rtk", _rtk, 2.0),
    Contender("nanodrr", "nanodrr", _nanodrr),
)
