"""A parametric proximal femur: shape, cortex, trabecular groups, landmarks.

Frame "femur": origin in the centre of the head, +x lateral, +y posterior, +z superior, in mm, with the proximal shaft along z.
A left femur lies so in the patient frame; a right one is its mirror image.
"""

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from training.anatomy.implicit import (
    BLOCK,
    cone,
    coverage,
    ellipse,
    grid,
    noise,
    noise_lattice,
    segment_distance,
    smooth_min,
    smooth_step,
)

VOXEL_MM = 0.9
SHAFT_BELOW_HEAD_MM = 260.0
"""The modelled shaft ends here: beyond the frame's lower border, also when the hip is flexed."""


@dataclass(frozen=True)
class FemurShape:
    """Sizes that a surgeon would measure; drawn in `population`."""

    head_radius_mm: float
    neck_length_mm: float
    """Centre of the head to the shaft's axis, along the neck's axis."""
    neck_shaft_angle_deg: float
    anteversion_deg: float
    neck_height_mm: float
    """Superoinferior width of the neck at its narrowest."""
    neck_depth_ratio: float
    """Anteroposterior over superoinferior width of the neck."""
    shaft_diameter_mm: float
    """Mediolateral, 5 cm below the lesser trochanter."""
    trochanter_height_mm: float
    """Tip of the greater trochanter above the centre of the head."""
    trochanter_size: float
    """Factor on the greater trochanter's girth."""
    lesser_size: float
    """Factor on the lesser trochanter's prominence."""
    bow_mm: float
    """Forward bow of the shaft at its modelled end."""


@dataclass(frozen=True)
class BoneQuality:
    """Mineral, independent of the shape."""

    cortical_density_g_cm3: float
    """Mass of hydroxyapatite per volume of cortical bone."""
    shaft_cortex_mm: float
    calcar_cortex_mm: float
    """Inferomedial neck and medial shaft above the lesser trochanter."""
    shell_cortex_mm: float
    """Everywhere else."""
    trabecular_density_g_cm3: float
    """In the head, apart from the groups."""
    group_contrast: float
    """How far the compressive and tensile groups stand out."""
    ward_depth: float
    """0..1: how empty Ward's triangle is."""
    trochanter_fill: float
    """Trabecular density of the trochanter relative to the head."""
    patchiness: float
    """Standard deviation of the slow variation."""
    texture: float
    """Standard deviation of the trabecular texture."""


@dataclass(frozen=True)
class FemurLandmarks:
    """Points (3,) in mm that the regions are drawn from, whatever frame they are in and whatever found them."""

    head_centre: NDArray[np.float64]
    head_radius_mm: float
    head_neck_junction: NDArray[np.float64]
    """On the neck's axis, where the head's sphere passes into the neck."""
    neck_base: NDArray[np.float64]
    """On the neck's axis, where it meets the shaft's."""
    greater_trochanter_tip: NDArray[np.float64]
    lesser_trochanter_tip: NDArray[np.float64]
    shaft_proximal: NDArray[np.float64]
    """On the shaft's axis, at the level of the lesser trochanter."""
    shaft_distal: NDArray[np.float64]
    """On the shaft's axis, 5 cm further down."""

    def moved(self, matrix: NDArray[np.float64]) -> "FemurLandmarks":
        """Return the landmarks after a 4 x 4 rigid (or mirroring) motion."""

        def move(point: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray(matrix[:3, :3] @ point + matrix[:3, 3])

        return FemurLandmarks(
            move(self.head_centre),
            self.head_radius_mm,
            move(self.head_neck_junction),
            move(self.neck_base),
            move(self.greater_trochanter_tip),
            move(self.lesser_trochanter_tip),
            move(self.shaft_proximal),
            move(self.shaft_distal),
        )


def neck_axis(shape: FemurShape) -> NDArray[np.float64]:
    """Unit vector from the head's centre along the neck to the shaft."""
    lean, version = math.radians(180 - shape.neck_shaft_angle_deg), math.radians(shape.anteversion_deg)
    return np.array([math.sin(lean) * math.cos(version), math.sin(lean) * math.sin(version), -math.cos(lean)])


def _lesser_level_mm(shape: FemurShape, base: NDArray[np.float64]) -> float:
    return float(base[2] - 0.95 * shape.head_radius_mm)


def landmarks(shape: FemurShape) -> FemurLandmarks:
    """Landmarks in the femur's frame, known by construction."""
    axis = neck_axis(shape)
    base = shape.neck_length_mm * axis
    shaft, size = shape.shaft_diameter_mm / 2, shape.lesser_size
    level = _lesser_level_mm(shape, base)
    half_neck = shape.neck_height_mm / 2
    junction = math.sqrt(max(shape.head_radius_mm**2 - half_neck**2, 0.25 * shape.head_radius_mm**2))
    return FemurLandmarks(
        head_centre=np.zeros(3),
        head_radius_mm=shape.head_radius_mm,
        head_neck_junction=junction * axis,
        neck_base=base,
        greater_trochanter_tip=np.array([base[0] + 0.5 * shaft, base[1] + 0.65 * shaft, shape.trochanter_height_mm]),
        lesser_trochanter_tip=np.array([base[0] - shaft * (1.35 + 0.55 * size), base[1] + shaft * 0.85 * size, level]),
        shaft_proximal=np.array([base[0], base[1], level]),
        shaft_distal=np.array([base[0], base[1], level - 50.0]),
    )


def _parameters(shape: FemurShape, quality: BoneQuality) -> NDArray[np.float64]:
    """Everything that the kernel needs, in the order in which it unpacks it."""
    axis = neck_axis(shape)
    base = shape.neck_length_mm * axis
    return np.array(
        [
            shape.head_radius_mm,
            shape.neck_length_mm,
            math.radians(180 - shape.neck_shaft_angle_deg),
            math.radians(shape.anteversion_deg),
            shape.neck_height_mm / 2,
            shape.neck_depth_ratio,
            shape.shaft_diameter_mm / 2,
            shape.trochanter_height_mm,
            shape.trochanter_size,
            shape.lesser_size,
            shape.bow_mm,
            base[0],
            base[1],
            base[2],
            _lesser_level_mm(shape, base),
            quality.cortical_density_g_cm3,
            quality.shaft_cortex_mm,
            quality.calcar_cortex_mm,
            quality.shell_cortex_mm,
            quality.trabecular_density_g_cm3,
            quality.group_contrast,
            quality.ward_depth,
            quality.trochanter_fill,
            quality.patchiness,
            quality.texture,
        ]
    )


@njit(cache=True)
def _distance(x: float, y: float, z: float, p: NDArray[np.float64]) -> float:
    """Signed distance to the femur's surface."""
    head, length, lean, version = p[0], p[1], p[2], p[3]
    neck, depth, shaft, tip, girth, lesser, bow = p[4], p[5], p[6], p[7], p[8], p[9], p[10]
    bx, by, bz, level = p[11], p[12], p[13], p[14]
    h = x * math.cos(version) + y * math.sin(version)
    a = h * math.sin(lean) - z * math.cos(lean)  # along the neck, from the head's centre
    b = h * math.cos(lean) + z * math.sin(lean)  # across it, superolateral
    c = -x * math.sin(version) + y * math.cos(version)  # across it, posterior

    ball = math.sqrt(x * x + y * y + z * z) - head

    # The neck: narrowest halfway, widening to its base; its lower border runs into the calcar.
    s = a / length
    wide = 1.0 + (1.0 if s > 0.46 else 0.55) * (s - 0.46) ** 2 * (2.6 if s > 0.46 else 1.0)
    sag = -0.10 * head * smooth_step(0.45, 0.95, s)
    cylinder = ellipse(b - sag, c, neck * wide, neck * depth * (1.0 + 0.9 * (s - 0.46) ** 2))
    stem = max(cylinder, max(-a, a - length))

    # Shaft: round below, wider mediolaterally towards the trochanters, with a forward bow.
    below = level - 20.0 - z
    bend = bow * max(below, 0.0) ** 2 / 110.0**2
    flare = smooth_step(level - 42.0, bz + 4.0, z)
    rx = shaft * (1.0 + 0.50 * flare)
    ry = shaft * (0.98 + 0.12 * flare)
    tube = ellipse(x - bx + 0.10 * shaft * flare, y - by + bend, rx, ry)
    tube = -smooth_min(-tube, bz + 0.35 * shaft - z, 1.2 * shaft)  # rounded top; the grid cuts the lower end

    # Greater trochanter: a body beside the shaft's top and a crest that rises backwards and inwards to the tip.
    gr = 1.05 * shaft * girth
    tip_r = 0.60 * shaft * girth
    trochanter = cone(
        x, y, z,
        bx + 0.60 * shaft, by + 0.10 * shaft, bz - 0.05 * shaft, gr,
        bx + 0.50 * shaft, by + 0.65 * shaft, tip - tip_r, tip_r,
    )  # fmt: skip
    crest = cone(
        x, y, z,
        bx + 0.2 * shaft, by + 0.75 * shaft, tip - 0.9 * shaft, 0.48 * shaft,
        bx - 1.1 * shaft, by + 0.55 * shaft, level + 0.9 * shaft, 0.48 * shaft,
    )  # fmt: skip
    small = cone(
        x, y, z,
        bx - 0.75 * shaft, by + 0.25 * shaft, level + 0.35 * shaft, 0.75 * shaft,
        bx - shaft * (1.0 + 0.55 * lesser), by + shaft * (0.35 + 0.5 * lesser), level, 0.36 * shaft,
    )  # fmt: skip
    fillet = 0.45 * head
    d = smooth_min(tube, trochanter, fillet)
    d = smooth_min(d, stem, 0.9 * fillet)
    d = smooth_min(d, crest, 0.7 * fillet)
    d = smooth_min(d, small, 0.8 * fillet)
    return smooth_min(d, ball, 0.22 * head)


@njit(cache=True)
def _cortex_mm(x: float, y: float, z: float, p: NDArray[np.float64]) -> float:
    """Thickness of the cortex under the surface nearest to a point."""
    head, length, lean, version = p[0], p[1], p[2], p[3]
    bx, bz, level = p[11], p[13], p[14]
    thick, calcar, shell = p[16], p[17], p[18]
    h = x * math.cos(version) + y * math.sin(version)
    a = h * math.sin(lean) - z * math.cos(lean)
    b = h * math.cos(lean) + z * math.sin(lean)
    t = shell + (0.45 * thick - shell) * smooth_step(level + 30.0, level - 10.0, z)
    t += 0.55 * thick * smooth_step(level - 5.0, level - 55.0, z)
    under = smooth_step(0.1 * head, -0.55 * head, b) * smooth_step(0.35, 0.7, a / length)
    medial = smooth_step(bx, bx - 0.6 * p[6], x) * smooth_step(bz + 12.0, bz - 10.0, z)
    inner = max(under, medial) * smooth_step(level - 45.0, level - 10.0, z)
    t = max(t, shell + (calcar - shell) * inner)
    superior = (
        smooth_step(0.2 * head, 0.6 * head, b) * smooth_step(0.3, 0.5, a / length) * smooth_step(1.0, 0.8, a / length)
    )
    return float(t * (1.0 + 0.25 * superior))


@njit(cache=True)
def _trabecular(
    x: float, y: float, z: float, p: NDArray[np.float64], slow: NDArray[np.float32], fine: NDArray[np.float32]
) -> float:
    """Mass of hydroxyapatite per volume of trabecular bone, g/cm3."""
    head, length, lean, version = p[0], p[1], p[2], p[3]
    shaft, bx, by, bz, level = p[6], p[11], p[12], p[13], p[14]
    contrast, ward, fill = p[20], p[21], p[22]
    h = x * math.cos(version) + y * math.sin(version)
    c = -x * math.sin(version) + y * math.cos(version)
    hb = bx * math.cos(version) + by * math.sin(version)
    a = h * math.sin(lean) - z * math.cos(lean)
    s = a / length

    # Principal compressive group: from the loaded dome of the head straight down to the calcar.
    foot_h, foot_z = hb - 1.55 * shaft, bz - 0.55 * head
    compressive = math.exp(-((segment_distance(h, z, -0.12 * head, 0.95 * head, foot_h, foot_z) / (0.42 * head)) ** 2))
    # Principal tensile group: an arch from the lateral cortex under the trochanter over the neck into the lower head.
    d1 = segment_distance(h, z, hb + 1.15 * shaft, bz - 0.2 * head, 0.55 * hb, 0.05 * head)
    d2 = segment_distance(h, z, 0.55 * hb, 0.05 * head, -0.6 * head, -0.35 * head)
    tensile = math.exp(-((min(d1, d2) / (0.30 * head)) ** 2))
    # Secondary compressive group: from the lesser trochanter fanning up to the greater one.
    secondary = math.exp(
        -((segment_distance(h, z, hb - 1.2 * shaft, level, hb + 0.6 * shaft, bz + 0.8 * head) / (0.4 * head)) ** 2)
    )

    distal = smooth_step(level + 15.0, level - 30.0, z)
    base = 1.0 + (fill - 1.0) * smooth_step(0.30, 0.75, s)
    relative = base * (1.0 - 0.25 * contrast) + contrast * (
        0.75 * compressive + 0.45 * tensile * (1.0 - 0.4 * s) + 0.18 * secondary
    )
    ward_h, ward_z = 0.66 * hb, 0.72 * bz
    hole = math.exp(-(((h - ward_h) ** 2 + (z - ward_z) ** 2) / (0.42 * head) ** 2))
    relative *= 1.0 - ward * hole
    relative *= 1.0 - 0.93 * distal

    # Texture: two families of streaks, along the compressive and along the tensile group.
    cx, cz = foot_h + 0.12 * head, foot_z - 0.95 * head
    norm = math.sqrt(cx * cx + cz * cz)
    patch = noise(slow, x / 16.0, y / 16.0, z / 16.0)
    sway = noise(slow, x / 12.0 + 9.0, y / 12.0, z / 12.0)  # the streaks are not straight
    along, across = (h * cx + z * cz) / norm + 2.0 * patch, (h * cz - z * cx) / norm + 2.5 * sway
    family = compressive / (compressive + tensile + 0.15)
    streak = family * noise(fine, along / 7.0, across / 1.5, c / 1.8) + (1.0 - family) * noise(
        fine, across / 7.0 + 11.0, (along + 0.5 * across) / 1.5, c / 1.8
    )
    grain = noise(fine, x / 1.3, y / 1.3, z / 1.3 + 7.0)
    factor = (1.0 + p[23] * patch) * (1.0 + p[24] * (0.7 * streak + 0.6 * grain))
    return float(p[19] * relative * max(factor, 0.05))


@njit(cache=True)
def _fill(
    mineral: NDArray[np.float32],
    volume: NDArray[np.float32],
    origin: NDArray[np.float64],
    voxel: float,
    p: NDArray[np.float64],
    slow: NDArray[np.float32],
    fine: NDArray[np.float32],
) -> None:
    """Fill (z, y, x) grids block by block; blocks that lie outside are not looked at."""
    nz, ny, nx = mineral.shape
    reach = 1.4 * (0.5 * (BLOCK - 1) * voxel * math.sqrt(3.0) + voxel)  # distances are approximate
    for z0 in range(0, nz, BLOCK):
        for y0 in range(0, ny, BLOCK):
            for x0 in range(0, nx, BLOCK):
                half = 0.5 * (BLOCK - 1)
                cx, cy, cz = (
                    origin[0] + (x0 + half) * voxel,
                    origin[1] + (y0 + half) * voxel,
                    origin[2] + (z0 + half) * voxel,
                )
                if _distance(cx, cy, cz, p) > reach:
                    continue
                for k in range(z0, min(z0 + BLOCK, nz)):
                    for j in range(y0, min(y0 + BLOCK, ny)):
                        for i in range(x0, min(x0 + BLOCK, nx)):
                            x, y, z = origin[0] + i * voxel, origin[1] + j * voxel, origin[2] + k * voxel
                            d = _distance(x, y, z, p)
                            inside = coverage(d, voxel)
                            if inside == 0.0:
                                continue
                            t = _cortex_mm(x, y, z, p)
                            spongy = coverage(d + t, max(voxel, 0.3 * t))
                            density = p[15] * (1.0 - spongy)
                            if spongy > 0.0:
                                density += spongy * _trabecular(x, y, z, p, slow, fine)
                            # Within the outermost voxel the cortex may be thinner than the covered part.
                            mineral[k, j, i] = min(density, p[15]) * inside
                            volume[k, j, i] = inside


def femur_volumes(
    shape: FemurShape, quality: BoneQuality, seed: int, voxel_mm: float = VOXEL_MM
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Return mineral (g/cm3) and volume fraction, (z, y, x), and the origin (x, y, z) of the grid in the femur's frame."""
    random = np.random.default_rng(seed)
    slow, fine = noise_lattice(random), noise_lattice(random)
    base = shape.neck_length_mm * neck_axis(shape)
    head, shaft = shape.head_radius_mm, shape.shaft_diameter_mm / 2
    low = np.array([-head - 3, min(-head, base[1] - 1.6 * shaft) - 3 - shape.bow_mm, -SHAFT_BELOW_HEAD_MM])
    high = np.array(
        [base[0] + 2.6 * shaft, max(head, base[1] + 1.9 * shaft) + 3, max(head, shape.trochanter_height_mm) + 3]
    )
    size, origin = grid(low, high, voxel_mm)
    mineral, volume = np.zeros(size, np.float32), np.zeros(size, np.float32)
    _fill(mineral, volume, origin, voxel_mm, _parameters(shape, quality), slow, fine)
    return mineral, volume, origin


@njit(cache=True)
def _fill_inside(
    mineral: NDArray[np.float32],
    volume: NDArray[np.float32],
    depth: NDArray[np.float32],
    origin: NDArray[np.float64],
    voxel: float,
    p: NDArray[np.float64],
    slow: NDArray[np.float32],
    fine: NDArray[np.float32],
) -> None:
    """Fill a femur whose surface is given; the same cortex and trabeculae as in `_fill`."""
    nz, ny, nx = mineral.shape
    for k in range(nz):
        for j in range(ny):
            for i in range(nx):
                inside = volume[k, j, i]
                if inside == 0.0:
                    continue
                x, y, z = origin[0] + i * voxel, origin[1] + j * voxel, origin[2] + k * voxel
                t = _cortex_mm(x, y, z, p)
                spongy = coverage(t - depth[k, j, i], max(voxel, 0.3 * t))
                density = p[15] * (1.0 - spongy)
                if spongy > 0.0:
                    density += spongy * _trabecular(x, y, z, p, slow, fine)
                mineral[k, j, i] = min(density, p[15]) * inside


def mineral_inside(
    volume: NDArray[np.float32],
    depth_mm: NDArray[np.float32],
    origin_mm: NDArray[np.float64],
    voxel_mm: float,
    shape: FemurShape,
    quality: BoneQuality,
    lesser_level_mm: float,
    seed: int,
) -> NDArray[np.float32]:
    """Give mineral (g/cm3) to a femur whose surface came from elsewhere: regions and trabecular groups follow its landmarks.

    Args:
        volume: (z, y, x) fraction of each voxel inside, on a grid in the femur's frame.
        depth_mm: (z, y, x) of the voxels' centres below the surface.
        origin_mm: (x, y, z) of the centre of the first voxel.
        lesser_level_mm: height of the lesser trochanter's tip in the femur's frame.
    """
    random = np.random.default_rng(seed)
    slow, fine = noise_lattice(random), noise_lattice(random)
    parameters = _parameters(shape, quality)
    parameters[14] = lesser_level_mm
    mineral = np.zeros(volume.shape, np.float32)
    _fill_inside(mineral, volume, depth_mm, origin_mm, voxel_mm, parameters, slow, fine)
    return mineral
