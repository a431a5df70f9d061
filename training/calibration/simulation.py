"""A CT with rods under the patient whose line is known: for tests and benchmarks of the calibration.

Two steps that go together or alone: `subject_ct` makes a CT of a person of the phantom population, `with_rod_pad` lays a pad of
rods under whoever is in a CT. Nothing here models a scanner: the CT values are those of one energy, blur and noise are added, and
streaks are a pattern, not physics.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from scipy import fft, ndimage

from training.anatomy.body import ADIPOSE_G_CM3
from training.anatomy.ct import METAL_HU, CtVolume
from training.anatomy.phantom import Phantom
from training.anatomy.volume import Structure
from training.calibration.rod_phantom import RodPhantom
from training.projection.attenuation import mass_attenuation_cm2_g

sitk: Any = SimpleITK
"""SimpleITK is only partly typed: this says so once."""

AIR_HU = -1000.0
BODY_HU = -300.0
SATURATED_HU = 3071.0
"""What a 12-bit scanner stores for metal."""
LIPID_RICH_G_CM3 = 0.93
"""Adipose tissue 3, see `training.projection.tables`: the CT values of fat in adults are nearer to its than to ICRU-44's."""
STREAK_SPOKES = 7
STREAK_DECAY_MM = 120.0


@dataclass(frozen=True)
class RodScene:
    """How the phantom lies, how the scanner sees it; everything that a calibration must find out or withstand."""

    slope_hu_cm3_mg: float = 1.3
    intercept_hu: float = -3.0
    pad_hu: float = 8.0
    gap_mm: float = 0.0
    """Between the lowest skin and the pad; 0 touches, negative presses the pad into the body."""
    roll_deg: float = 0.0
    """Around the table's axis."""
    tilt_deg: float = 0.0
    """Rods descend towards the feet."""
    yaw_deg: float = 0.0
    """Rods run aside."""
    is_reversed: bool = False
    z_share: tuple[float, float] = (0.0, 1.0)
    """Part of the volume's height that the rods take up; the pad is as long as the rods."""
    blur_mm: float = 0.6
    """SD of a Gaussian within the slice."""
    noise_hu: float = 20.0
    """SD in each voxel."""
    white_noise: bool = False
    """False: spectrum of a filtered back-projection within each slice, which rises with frequency, so that means over areas are
    quieter than those of white noise. Source: Riederer, Pelc, Chesler 1978, doi:10.1088/0031-9155/23/3/008."""
    streak_hu: float = 0.0
    """Largest deviation of the bright and dark spokes around metal."""
    seed: int = 0


def subject_ct(
    phantom: Phantom,
    energy_kev: float = 70.0,
    shape: tuple[int, int, int] = (60, 512, 512),
    spacing_mm: tuple[float, float, float] = (0.86, 0.86, 3.0),
) -> CtVolume:
    """Fill a person of the population into a CT grid around the hips, without blur and noise.

    Args:
        shape: (z, y, x).
        spacing_mm: (x, y, z).
    """
    size = np.array(shape[::-1])
    origin = -(size - 1) / 2 * spacing_mm
    # A third of the slices above the femoral heads; the back, and what lies under it, within the field of view.
    origin[2] = -0.67 * shape[0] * spacing_mm[2]
    origin[1] += 30.0
    grid = sitk.Image([int(n) for n in size], sitk.sitkFloat32)
    grid.SetSpacing(spacing_mm)
    grid.SetOrigin(origin.tolist())
    amounts = {name: np.zeros(shape, np.float32) for name in ("muscle", "adipose_3", "hydroxyapatite")}
    metal = np.zeros(shape, np.float32)
    for structure in phantom.structures:
        if structure.name.endswith("_mineral"):
            amounts["hydroxyapatite"] += _resampled(structure, grid)
        elif structure.name == "metal_volume":
            metal += _resampled(structure, grid)
        elif structure.name == "soft":
            amounts["muscle"] += _resampled(structure, grid)
        elif structure.name == "adipose":  # the same volume, with the lipid of an adult's subcutaneous fat
            amounts["adipose_3"] += _resampled(structure, grid) * np.float32(LIPID_RICH_G_CM3 / ADIPOSE_G_CM3)
    energy = np.array([energy_kev])
    water = mass_attenuation_cm2_g("water", energy)[0]
    relative = {name: float(mass_attenuation_cm2_g(name, energy)[0] / water) for name in amounts}
    # Mineral displaces the soft tissue that it lies in, by its own density of 3.16 g/cm3.
    displaced = 1.0 - amounts["hydroxyapatite"] / 3.16
    tissue = relative["muscle"] * amounts["muscle"] + relative["adipose_3"] * amounts["adipose_3"]
    hu = 1000.0 * (tissue * displaced + relative["hydroxyapatite"] * amounts["hydroxyapatite"] - 1.0)
    hu = np.where(metal > 0.5, SATURATED_HU, np.minimum(hu, SATURATED_HU)).astype(np.float32)
    patient_from_voxel = np.diag([*spacing_mm, 1.0])
    patient_from_voxel[:3, 3] = origin
    return CtVolume(hu, patient_from_voxel)


def resampled_onto(structure: Structure, ct: CtVolume) -> NDArray[np.float32]:
    """A structure on the grid of a CT whose axes are the patient's, linearly interpolated; 0 beyond its own grid."""
    grid = sitk.Image([int(n) for n in ct.hu.shape[::-1]], sitk.sitkFloat32)
    grid.SetSpacing(np.diag(ct.patient_from_voxel)[:3].tolist())
    grid.SetOrigin(ct.patient_from_voxel[:3, 3].tolist())
    return _resampled(structure, grid)


def _resampled(structure: Structure, grid: Any) -> NDArray[np.float32]:
    matrix = structure.patient_from_voxel
    spacing_mm = np.linalg.norm(matrix[:3, :3], axis=0)
    image = sitk.GetImageFromArray(structure.values)
    image.SetSpacing(spacing_mm.tolist())
    direction = matrix[:3, :3] / spacing_mm
    if np.linalg.det(direction) < 0:  # a right femur is a mirrored left one, which SimpleITK's directions cannot say
        image = sitk.GetImageFromArray(np.ascontiguousarray(structure.values[:, :, ::-1]))
        image.SetSpacing(spacing_mm.tolist())
        last = matrix @ [structure.values.shape[2] - 1, 0, 0, 1]
        image.SetOrigin(last[:3].tolist())
        direction = direction * [-1.0, 1.0, 1.0]
    else:
        image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection(direction.ravel().tolist())
    found = sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    return np.asarray(sitk.GetArrayFromImage(found), np.float32)


def with_rod_pad(ct: CtVolume, phantom: RodPhantom, scene: RodScene) -> CtVolume:
    """Lay the pad under the patient, then blur, streak and add noise to the whole.

    The volume's axes must be the patient's (`subject_ct`, or a CT after `training.calibration.detection.axial`); the rods'
    reference values times slope plus intercept are their true CT values.
    """
    hu = ct.hu.copy()
    nz, ny, nx = hu.shape
    dx, dy, dz = (float(ct.patient_from_voxel[n, n]) for n in range(3))
    body = np.nonzero((hu > BODY_HU).any(axis=(0, 2)))[0]
    back_mm = (float(body[-1]) if len(body) else 0.3 * ny) * dy
    radius = phantom.diameter_mm / 2
    half_height = radius + 6.0
    positions = np.array([rod.position_mm for rod in phantom.rods])
    offsets = (positions - (positions.min() + positions.max()) / 2) * (-1.0 if scene.is_reversed else 1.0)
    values = [
        scene.intercept_hu + scene.slope_hu_cm3_mg * rod.mineral_mg_cm3 + rod.water_mg_cm3 - 1000.0
        for rod in phantom.rods
    ]
    half_width = float(np.ptp(offsets)) / 2 + radius + 10.0
    x = np.arange(nx) * dx - (nx - 1) / 2 * dx
    y = (np.arange(ny) * dy - (back_mm + scene.gap_mm + half_height))[:, None]
    cosine, sine = math.cos(math.radians(scene.roll_deg)), math.sin(math.radians(scene.roll_deg))
    first, last = (round(share * nz) for share in scene.z_share)
    far_mm = half_width + half_height  # nothing of the pad lies further from its middle, whatever its roll
    for level in range(first, last):
        height_mm = (level - (nz - 1) / 2) * dz
        across = x - math.tan(math.radians(scene.yaw_deg)) * height_mm
        down = y + math.tan(math.radians(scene.tilt_deg)) * height_mm
        near = np.abs(down[:, 0]) < far_mm
        down = down[near]
        u, v = cosine * across + sine * down, -sine * across + cosine * down
        inside = _coverage(np.maximum(np.abs(u) - half_width, np.abs(v) - half_height), dx)
        image = hu[level, near]
        image += inside * (scene.pad_hu - image)
        for offset, value in zip(offsets, values, strict=True):
            image += _coverage(np.hypot(u - offset, v) - radius, dx) * (value - image)
        hu[level, near] = image
    hu = ndimage.gaussian_filter(hu, (0.0, scene.blur_mm / dy, scene.blur_mm / dx))
    if scene.streak_hu:
        _add_streaks(hu, ct.hu >= METAL_HU, (dx, dy), scene.streak_hu)
    hu += _noise((nz, ny, nx), scene)
    return CtVolume(np.clip(hu, -1024.0, SATURATED_HU), ct.patient_from_voxel)


def _coverage(distance_mm: NDArray[np.float64], pixel_mm: float) -> NDArray[np.float64]:
    return np.asarray(np.clip(0.5 - distance_mm / pixel_mm, 0.0, 1.0))


def _add_streaks(
    hu: NDArray[np.float32], metal: NDArray[np.bool_], pixel_mm: tuple[float, float], hu_peak: float
) -> None:
    """Spokes of alternating sign around the metal's centre, in the slices that have metal."""
    for level in np.nonzero(metal.any(axis=(1, 2)))[0]:
        rows, columns = np.nonzero(metal[level])
        y = (np.arange(hu.shape[1]) - rows.mean())[:, None] * pixel_mm[1]
        x = (np.arange(hu.shape[2]) - columns.mean()) * pixel_mm[0]
        spokes = np.cos(STREAK_SPOKES * np.arctan2(y, x) + 0.7 * level)
        hu[level] += (hu_peak * spokes * np.exp(-np.hypot(x, y) / STREAK_DECAY_MM)).astype(np.float32)


def _noise(shape: tuple[int, int, int], scene: RodScene) -> NDArray[np.float32]:
    random = np.random.default_rng(scene.seed)
    white = random.standard_normal(shape, np.float32)
    if scene.white_noise:
        return white * np.float32(scene.noise_hu)
    frequency = np.hypot(np.fft.fftfreq(shape[1])[:, None], np.fft.rfftfreq(shape[2]))
    # The ramp's square root of power, rolled off towards the Nyquist frequency as a soft-tissue kernel does.
    gain = (np.sqrt(frequency) * np.clip(np.cos(math.pi * frequency), 0.0, None)).astype(np.float32)
    for level in range(shape[0]):
        white[level] = fft.irfft2(fft.rfft2(white[level]) * gain, shape[1:])
    return white * np.float32(scene.noise_hu / white[0].std())
