"""A radiograph from what lies in the beam: tube, tissue, scatter, detector, and what vendors make of it.

From areal densities of four materials to a displayed picture in two steps, `expose` (physics: relative detector signal)
and `process` (vendor: grey values). Ranges drawn by `random_exposure` and `random_processing` are those of adult pelvis
examinations where a source is named, else assumptions chosen wide, so that no single maker is learnt.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.linalg import toeplitz
from scipy.optimize import nnls

from dicomnode.domain.radiograph import Technique
from dicomnode.inference.technique import MOST_TRAINED_COPPER_MM, TRAINED_KV
from training.projection.attenuation import mass_attenuation_cm2_g, tungsten_spectrum

MATERIALS = ("soft", "adipose", "mineral", "metal")
"""Order of the material maps, each an areal density in g/cm2.

Bone is hydroxyapatite ("mineral") plus the collagen, water and marrow that fill the rest ("soft", "adipose").
"""
TISSUES: Mapping[str, str] = {"soft": "soft_tissue", "adipose": "adipose", "mineral": "hydroxyapatite"}
"""Material map to column of the attenuation table; "metal" is chosen per call."""

BODY_G_CM2 = 5.0
"""A pixel with more soft tissue than this (5 cm) belongs to the patient, as automatic exposure control would see it."""
PHOTONS_PER_MM2_UGY = 30174.0
"""Squared signal-to-noise ratio of the beam per mm2 and uGy of air kerma. Source: IEC 62220-1:2003, table 2, RQA5."""


class Detector(StrEnum):
    """Phosphor of the detector."""

    CSI = "CsI"
    GOS = "Gd2O2S"
    STORAGE_PHOSPHOR = "BaFBr"


PHOSPHOR_G_CM2: Mapping[Detector, float] = {Detector.CSI: 0.2, Detector.GOS: 0.1, Detector.STORAGE_PHOSPHOR: 0.1}
"""Areal density of the phosphor layer; assumption: CsI 0.55 mm thick and 80 % packed, powder screens 100 mg/cm2."""


class Metal(StrEnum):
    """What an implant is made of (columns of the attenuation table)."""

    TITANIUM = "titanium"
    STAINLESS_STEEL = "stainless_steel"
    COBALT_CHROME = "cobalt_chrome"


@dataclass(frozen=True)
class Exposure:
    """How a radiograph is taken. Lengths are in the object plane."""

    kilovolt: int = 80
    """Tube voltage, 60 to 100."""
    added_al_mm: float = 0.0
    """Filtration in addition to the tube's 3 mm Al."""
    added_cu_mm: float = 0.0
    detector: Detector = Detector.CSI
    detector_kerma_ugy: float = 2.5
    """Air kerma behind the patient, at the median of the anatomy, which automatic exposure control holds."""
    dqe: float = 0.6
    """Detective quantum efficiency at low frequencies."""
    electronic_noise_ugy: float = 0.03
    """Air kerma at which quantum noise equals the electronic noise."""
    scatter_to_primary: float = 0.5
    """Mean over the anatomy, behind the grid if there is one."""
    scatter_sigma_mm: float = 45.0
    blur_mm: float = 0.2
    """Standard deviation of focal spot and detector together."""
    heel_fraction: float = 0.0
    """Change of the fluence from the upper to the lower border that flat-field correction left over."""


def stated_technique(exposure: Exposure) -> Technique:
    """What a complete header says of an exposure."""
    return Technique(exposure.kilovolt, exposure.added_cu_mm, exposure.detector is Detector.STORAGE_PHOSPHOR)


@dataclass(frozen=True)
class VendorProcessing:
    """How a detector signal becomes grey values."""

    band_gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Gain of the fine, middle and coarse band (finer than 1.2, 4 and 14 mm) of the logarithmic signal."""
    base_gain: float = 1.0
    """Gain of what is coarser still; below 1 it evens out the soft tissue."""
    centre_quantile: float = 0.5
    """The quantile of the anatomy that is drawn at mid grey."""
    slope: float = 0.45
    """Grey (of 0..1) per unit of the logarithmic signal at mid grey."""
    sigmoid: bool = True
    """A characteristic curve with toe and shoulder; otherwise a straight window."""
    window: tuple[float, float] = (0.0, 1.0)
    """Grey values of the curve that become 0 and 1; what lies outside is clipped."""
    bits: int = 12
    """Bits Stored: 8, 10 or 12."""
    monochrome1: bool = False
    """Stored values fall with attenuation (Photometric Interpretation MONOCHROME1)."""
    jpeg_quality: int | None = None
    """Quality of a lossy baseline JPEG that the picture went through, None for lossless."""


BAND_EDGES_MM = (1.2, 4.0, 14.0)
"""Standard deviations of the Gaussians between the bands; assumption, about the octaves that multi-scale methods use."""


def random_exposure(rng: np.random.Generator) -> Exposure:
    """Draw the conditions of an adult AP pelvis or hip.

    Source: EUR 16260 EN (1996), pelvis: 75-90 kV, total filtration at least 3 mm Al, moving grid r = 10, speed class
    400 (2.5 uGy). Widened to `TRAINED_KV`, 0.8-8 uGy and examinations without grid for what is seen outside of Europe and
    on mobile units; scatter, blur and noise are assumptions.
    """
    gridless = rng.random() < 0.1
    return Exposure(
        kilovolt=int(rng.integers(TRAINED_KV[0], TRAINED_KV[1] + 1)),
        added_al_mm=float(rng.choice([0.0, 0.0, 0.5, 1.0])),
        added_cu_mm=float(rng.choice([0.0, 0.0, 0.1, MOST_TRAINED_COPPER_MM])),
        detector=list(Detector)[int(rng.choice(3, p=[0.6, 0.15, 0.25]))],
        detector_kerma_ugy=_log_uniform(rng, 0.8, 8.0),
        dqe=float(rng.uniform(0.25, 0.7)),
        electronic_noise_ugy=_log_uniform(rng, 0.01, 0.1),
        scatter_to_primary=_log_uniform(rng, 1.5, 4.0) if gridless else _log_uniform(rng, 0.15, 1.0),
        scatter_sigma_mm=float(rng.uniform(25.0, 70.0)),
        blur_mm=float(rng.uniform(0.1, 0.5)),
        heel_fraction=float(rng.normal(0.0, 0.05)),
    )


def random_processing(rng: np.random.Generator) -> VendorProcessing:
    """Draw a maker's processing; every range is an assumption, wide enough to span film look and strong equalisation.

    Multi-scale methods are turned up and down by one strength: what lifts fine structures evens out the coarse ones. So the
    gains of the bands follow one number, each with 10 % of its own, and are not drawn apart.
    """
    sigmoid = bool(rng.random() < 0.7)
    band_gains, base_gain = _gains(float(rng.uniform(0.0, 1.0)), 0.1, rng)
    return VendorProcessing(
        band_gains=band_gains,
        base_gain=base_gain,
        centre_quantile=float(rng.uniform(0.3, 0.75)),
        slope=_log_uniform(rng, 0.25, 0.8),
        sigmoid=sigmoid,
        window=(float(rng.uniform(-0.1, 0.08)), float(rng.uniform(0.92, 1.1))),
        bits=int(rng.choice([8, 10, 12], p=[0.15, 0.25, 0.6])),
        monochrome1=bool(rng.random() < 0.3),
        jpeg_quality=int(rng.integers(50, 96)) if rng.random() < 0.2 else None,
    )


def _gains(strength: float, own_sd: float, rng: np.random.Generator) -> tuple[tuple[float, float, float], float]:
    """Gains of the three bands and of the base at one strength of the method, each with so much of its own."""
    followed = np.array([1.0, 1.0, 1.0, 1.0]) + strength * np.array([1.2, 0.7, 0.35, -0.45])
    fine, middle, coarse, base = followed * np.exp(rng.normal(0.0, own_sd, 4).clip(-2 * own_sd, 2 * own_sd))
    return (float(fine), float(middle), float(coarse)), float(base)


def reprocess(image: NDArray[np.float32], spacing_mm: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Change a finished picture as another setting of its maker's processing would: bands, curve, noise, bits, JPEG.

    All mildly, for it is processed already; every range is an assumption.

    Args:
        image: (rows, columns) within 0..1, larger is more attenuation.

    Returns:
        The same kind of picture; the curve is monotone, from 0 to 1.
    """
    band_gains, base_gain = _gains(float(rng.uniform(-0.25, 0.35)), 0.05, rng)
    processing = VendorProcessing(
        band_gains=band_gains,
        base_gain=base_gain,
        bits=int(rng.choice([8, 10, 12])),
        jpeg_quality=int(rng.integers(60, 96)) if rng.random() < 0.2 else None,
    )
    middle = np.float32(image.mean())  # the base gain turns about it, so that the whole keeps its brightness
    banded = np.clip(_gain_bands(image - middle, spacing_mm, processing) + middle, 0.0, 1.0)
    curved = banded ** np.float32(_log_uniform(rng, 0.75, 1.33))
    noise = np.float32(rng.uniform(0.0, 0.01)) * rng.standard_normal(image.shape, dtype=np.float32)
    return _as_stored(np.asarray(np.clip(curved + noise, 0.0, 1.0), np.float32), processing)


def simulate(
    maps_g_cm2: NDArray[np.float32],
    spacing_mm: float,
    exposure: Exposure,
    processing: VendorProcessing,
    rng: np.random.Generator,
    metal: Metal = Metal.TITANIUM,
) -> NDArray[np.float32]:
    """Take and process a radiograph.

    Args:
        maps_g_cm2: (4, rows, columns), see `MATERIALS`.
        spacing_mm: pixel size in the object plane.

    Returns:
        (rows, columns) within 0..1, larger is more attenuation (bone bright), with the steps of the stored bits and the
        losses of JPEG already in it.
    """
    signal = expose(maps_g_cm2, spacing_mm, exposure, rng, metal)
    anatomy = maps_g_cm2[0] + maps_g_cm2[1] > BODY_G_CM2
    return _as_stored(process(signal, anatomy, spacing_mm, processing), processing)


def expose(
    maps_g_cm2: NDArray[np.float32],
    spacing_mm: float,
    exposure: Exposure,
    rng: np.random.Generator,
    metal: Metal = Metal.TITANIUM,
) -> NDArray[np.float32]:
    """Detector signal with scatter, blur and noise, relative to the beam without patient; positive, (rows, columns)."""
    primary = blur(transmission(maps_g_cm2, exposure, metal), exposure.blur_mm / spacing_mm)
    anatomy = maps_g_cm2[0] + maps_g_cm2[1] > BODY_G_CM2
    signal = primary + scatter(primary, anatomy, spacing_mm, exposure)
    fluence = np.linspace(1 - exposure.heel_fraction / 2, 1 + exposure.heel_fraction / 2, signal.shape[0])
    return add_noise(signal * fluence.astype(np.float32)[:, None], anatomy, spacing_mm, exposure, rng)


def transmission(
    maps_g_cm2: NDArray[np.float32], exposure: Exposure, metal: Metal = Metal.TITANIUM
) -> NDArray[np.float32]:
    """Primary detector signal relative to the unattenuated beam, with beam hardening.

    `sum_k w_k exp(-sum_m mu_m(E_k) a_m)` over the few energies of `quadrature`.
    """
    mu_cm2_g, weights = quadrature(
        exposure.kilovolt, exposure.added_al_mm, exposure.added_cu_mm, exposure.detector, metal
    )
    flat = maps_g_cm2.reshape(len(MATERIALS), -1).astype(np.float32, copy=False)
    exponents = -(mu_cm2_g.T.astype(np.float32) @ flat)
    signal = weights.astype(np.float32) @ np.exp(exponents, out=exponents)
    return np.asarray(signal.reshape(maps_g_cm2.shape[1:]), np.float32)


def detected_spectrum(
    kilovolt: int, added_al_mm: float, added_cu_mm: float, detector: Detector
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Energies in keV and the share of the signal that each gives: an energy-integrating phosphor behind the filters.

    `w(E) ~ fluence(E) * E * (1 - exp(-mu_phosphor(E) t))`, normalised to 1.
    """
    energies_kev, fluence = tungsten_spectrum(kilovolt)
    aluminium_g_cm2, copper_g_cm2 = added_al_mm * 0.2699, added_cu_mm * 0.896  # densities 2.699 and 8.96 g/cm3 (NIST)
    filtration = aluminium_g_cm2 * mass_attenuation_cm2_g("aluminium", energies_kev)
    filtration = filtration + copper_g_cm2 * mass_attenuation_cm2_g("copper", energies_kev)
    absorbed = -np.expm1(-PHOSPHOR_G_CM2[detector] * mass_attenuation_cm2_g(detector.value, energies_kev))
    weights = fluence * np.exp(-filtration) * energies_kev * absorbed
    return energies_kev, weights / weights.sum()


QUADRATURE_ENERGIES = 12
QUADRATURE_LOWEST_KEV = 17.5
_DESIGN_G_CM2 = np.stack(np.meshgrid((0, 3, 10, 20, 35, 60), (0, 8), (0, 1, 4), (0, 2, 6), indexing="ij")).reshape(
    4, -1
)
"""Paths of soft tissue, fat, mineral and metal in g/cm2 for which the quadrature is made."""


@lru_cache(maxsize=1024)
def quadrature(
    kilovolt: int, added_al_mm: float, added_cu_mm: float, detector: Detector, metal: Metal
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Few energies with weights that transmit as the full spectrum does, for any mixture of the materials.

    Non-negative least squares on the relative error of the transmission over a design of paths.

    Returns:
        Mass attenuation (4, n) in cm2/g of `MATERIALS`, and weights (n,), n at most `QUADRATURE_ENERGIES`.
    """
    energies_kev, weights = detected_spectrum(kilovolt, added_al_mm, added_cu_mm, detector)
    materials = [TISSUES.get(name, metal.value) for name in MATERIALS]
    mu_cm2_g = np.stack([mass_attenuation_cm2_g(material, energies_kev) for material in materials])
    passed = np.exp(-_DESIGN_G_CM2.T @ mu_cm2_g)
    wanted = np.linspace(QUADRATURE_LOWEST_KEV, energies_kev[-1] - 0.5, QUADRATURE_ENERGIES)
    nodes = np.unique(np.abs(energies_kev[None] - wanted[:, None]).argmin(axis=1))
    relative = passed[:, nodes] / (passed @ weights)[:, None]
    node_weights, _ = nnls(relative, np.ones(len(relative)))
    used = node_weights > 0
    return mu_cm2_g[:, nodes][:, used], node_weights[used]


def scatter(
    primary: NDArray[np.float32], anatomy: NDArray[np.bool_], spacing_mm: float, exposure: Exposure
) -> NDArray[np.float32]:
    """Scattered signal: where much is scattered and still gets out, spread by a wide Gaussian.

    The source term `-P ln P` is the forward-scatter model of Ohnesorge et al. 1999, doi:10.1007/s003300050710; it is
    scaled so that the mean ratio over the anatomy is `exposure.scatter_to_primary`.
    """
    if not anatomy.any():
        return np.zeros_like(primary)
    source = -primary * np.log(np.clip(primary, 1e-6, 1.0))
    spread = blur(source, exposure.scatter_sigma_mm / spacing_mm)
    scale = exposure.scatter_to_primary * float(primary[anatomy].mean()) / max(float(spread[anatomy].mean()), 1e-12)
    return np.asarray(scale * spread, np.float32)


def add_noise(
    signal: NDArray[np.float32],
    anatomy: NDArray[np.bool_],
    spacing_mm: float,
    exposure: Exposure,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Quantum and electronic noise at the dose of the exposure.

    The Poisson noise is drawn as a Gaussian of the same variance: at 0.7 mm and 1 uGy a pixel counts thousands of quanta.
    """
    reference = float(np.median(signal[anatomy])) if anatomy.any() else float(signal.max())
    quanta = exposure.detector_kerma_ugy * PHOTONS_PER_MM2_UGY * spacing_mm**2 * exposure.dqe / reference
    floor = exposure.electronic_noise_ugy / exposure.detector_kerma_ugy * reference
    deviation = np.sqrt((signal + floor) / quanta)
    noisy = signal + deviation * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.asarray(np.maximum(noisy, 0.1 * floor + 1e-7), np.float32)


def process(
    signal: NDArray[np.float32], anatomy: NDArray[np.bool_], spacing_mm: float, processing: VendorProcessing
) -> NDArray[np.float32]:
    """Grey values (rows, columns) within 0..1, larger is more attenuation: logarithm, bands, characteristic curve, window."""
    image = _gain_bands(-np.log(signal), spacing_mm, processing)
    shown = image[::3, ::3][anatomy[::3, ::3]]
    centre = float(np.quantile(shown if shown.size else image, processing.centre_quantile))
    grey = processing.slope * (image - centre)
    grey = 0.5 + 0.5 * np.tanh(2.0 * grey) if processing.sigmoid else 0.5 + grey
    low, high = processing.window
    return np.asarray(np.clip((grey - low) / (high - low), 0.0, 1.0), np.float32)


def _gain_bands(image: NDArray[np.float32], spacing_mm: float, processing: VendorProcessing) -> NDArray[np.float32]:
    result = np.zeros_like(image)
    for edge_mm, gain in zip(BAND_EDGES_MM, processing.band_gains, strict=True):
        coarser = blur(image, edge_mm / spacing_mm)
        result += np.float32(gain) * (image - coarser)
        image = coarser
    return result + np.float32(processing.base_gain) * image


def to_stored_values(image: NDArray[np.float32], processing: VendorProcessing) -> NDArray[np.uint16]:
    """Stored pixel values of a DICOM object: quantised to the bits, and inverted for MONOCHROME1."""
    top = 2**processing.bits - 1
    stored = np.rint(np.clip(image, 0.0, 1.0) * top).astype(np.uint16)
    return np.asarray(top - stored if processing.monochrome1 else stored, np.uint16)


def _as_stored(image: NDArray[np.float32], processing: VendorProcessing) -> NDArray[np.float32]:
    """What is left of an image after JPEG and the quantisation to the stored bits."""
    if processing.jpeg_quality is not None:
        image = image + _jpeg_loss(image, processing.jpeg_quality)
    top = 2**processing.bits - 1
    return np.asarray(np.rint(np.clip(image, 0.0, 1.0) * top) / top, np.float32)


def _jpeg_loss(image: NDArray[np.float32], quality: int) -> NDArray[np.float32]:
    """What baseline JPEG changes, without its rounding to 8 bits: stands for the 12-bit process too."""
    eight_bit = np.rint(image * 255.0).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(eight_bit).save(file, "JPEG", quality=quality)
    decoded = np.asarray(Image.open(file), np.float32)
    return np.asarray((decoded - eight_bit) / 255.0, np.float32)


def blur(image: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    """Gaussian blur as two matrix products: exact, and its time does not grow with sigma; borders are renormalised."""
    if sigma_px < 0.15:  # less than 0.1 % reaches the neighbour
        return image
    rows, columns = image.shape
    return np.asarray(_gaussian_matrix(rows, sigma_px) @ image @ _gaussian_matrix(columns, sigma_px).T, np.float32)


@lru_cache(maxsize=32)
def _gaussian_matrix(size: int, sigma_px: float) -> NDArray[np.float32]:
    distances = np.arange(size, dtype=np.float32) / np.float32(sigma_px)
    kernel = np.exp(-0.5 * distances**2)
    # Nothing in single precision, but subnormal numbers make the products ten times slower.
    kernel[kernel < 1e-20] = 0.0
    matrix = toeplitz(kernel)
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True), np.float32)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
