"""Simulated radiographs: the physics against direct integration, the processing against what it must not do."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from training.projection.attenuation import mass_attenuation_cm2_g, tungsten_spectrum
from training.projection.radiograph import (
    MATERIALS,
    PHOTONS_PER_MM2_UGY,
    TISSUES,
    Detector,
    Exposure,
    Metal,
    VendorProcessing,
    _gaussian_matrix,
    blur,
    detected_spectrum,
    expose,
    process,
    quadrature,
    random_exposure,
    random_processing,
    simulate,
    to_stored_values,
    transmission,
)

NO_SCATTER = replace(Exposure(), scatter_to_primary=0.0, blur_mm=0.0, electronic_noise_ugy=0.0)


def uniform(shape: tuple[int, int], **g_cm2: float) -> NDArray[np.float32]:
    """Material maps that are the same everywhere."""
    maps = np.zeros((len(MATERIALS), *shape), np.float32)
    for name, value in g_cm2.items():
        maps[MATERIALS.index(name)] = value
    return maps


def hip(shape: tuple[int, int] = (256, 192)) -> NDArray[np.float32]:
    """A disc of bone in soft tissue, with air at the left."""
    maps = uniform(shape, soft=16.0, adipose=3.0)
    rows, columns = np.indices(shape)
    maps[2] = np.where((rows - 128) ** 2 + (columns - 100) ** 2 < 45**2, 1.2, 0.0)
    maps[:, :, :20] = 0.0
    return maps


@pytest.mark.parametrize("metal", Metal)
@pytest.mark.parametrize("detector", Detector)
@pytest.mark.parametrize(
    ("kilovolt", "al_mm", "cu_mm"), [(60, 0.0, 0.0), (65, 1.0, 0.0), (80, 0.0, 0.1), (100, 0.5, 0.2)]
)
def test_a_few_energies_transmit_as_the_full_spectrum(
    kilovolt: int, al_mm: float, cu_mm: float, detector: Detector, metal: Metal
) -> None:
    g_cm2 = np.random.default_rng(kilovolt).random((4, 25, 40)) * np.array([50.0, 10.0, 4.0, 6.0])[:, None, None]
    exposure = Exposure(kilovolt=kilovolt, added_al_mm=al_mm, added_cu_mm=cu_mm, detector=detector)
    energies_kev, weights = detected_spectrum(kilovolt, al_mm, cu_mm, detector)
    mu = [mass_attenuation_cm2_g(TISSUES.get(name, metal.value), energies_kev) for name in MATERIALS]
    expected = np.exp(-np.einsum("mrc,me->rce", g_cm2, np.stack(mu))) @ weights
    seen = transmission(g_cm2.astype(np.float32), exposure, metal)
    np.testing.assert_allclose(np.log(seen), np.log(expected), atol=1e-3)
    assert len(quadrature(kilovolt, al_mm, cu_mm, detector, metal)[1]) <= 12


def test_the_detected_spectrum_is_that_of_an_energy_integrating_phosphor_behind_its_filters() -> None:
    energies_kev, fluence = tungsten_spectrum(80)
    aluminium = mass_attenuation_cm2_g("aluminium", energies_kev)
    csi = mass_attenuation_cm2_g("CsI", energies_kev)
    expected = fluence * np.exp(-0.2699 * aluminium) * energies_kev * (1 - np.exp(-0.2 * csi))
    seen_kev, weights = detected_spectrum(80, 1.0, 0.0, Detector.CSI)
    np.testing.assert_array_equal(seen_kev, energies_kev)
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-9)


def test_nothing_in_the_beam_transmits_everything() -> None:
    assert transmission(uniform((3, 3)), Exposure()) == pytest.approx(1.0, abs=1e-4)


def test_bone_loses_about_thirty_percent_of_its_contrast_between_10_and_30_cm_of_water_at_80_kv() -> None:
    """Beam hardening. A little mineral displaces its own volume of soft tissue, which stands for water here."""
    mineral_g_cm2 = 0.1

    def contrast(soft_g_cm2: float) -> float:
        displaced_g_cm2 = mineral_g_cm2 / 3.156 * 1.06  # densities of hydroxyapatite and soft tissue, ICRU-44
        without = transmission(uniform((1, 1), soft=soft_g_cm2), Exposure(kilovolt=80))
        bone = uniform((1, 1), soft=soft_g_cm2 - displaced_g_cm2, mineral=mineral_g_cm2)
        return float(np.log(without / transmission(bone, Exposure(kilovolt=80)))[0, 0])

    loss = 1 - contrast(30.0) / contrast(10.0)
    assert 0.27 < loss < 0.33


def test_scatter_has_the_asked_ratio_over_the_anatomy_and_lowers_contrast() -> None:
    maps = hip()
    quiet = replace(NO_SCATTER, detector_kerma_ugy=1e9)
    rng = np.random.default_rng(0)
    primary = expose(maps, 0.7, quiet, rng)
    total = expose(maps, 0.7, replace(quiet, scatter_to_primary=0.6), rng)
    anatomy = maps[0] > 5
    assert (total - primary)[anatomy].mean() / primary[anatomy].mean() == pytest.approx(0.6, rel=1e-3)
    bone = maps[2] > 0
    soft = anatomy & ~bone
    assert np.log(total[soft].mean() / total[bone].mean()) < 0.8 * np.log(primary[soft].mean() / primary[bone].mean())


@pytest.mark.parametrize("kerma_ugy", [0.5, 2.5, 10.0])
def test_noise_is_that_of_the_quanta_counted(kerma_ugy: float) -> None:
    maps = uniform((200, 200), soft=20.0)
    exposure = replace(NO_SCATTER, detector_kerma_ugy=kerma_ugy, dqe=0.5)
    signal = expose(maps, 0.7, exposure, np.random.default_rng(1))
    quanta = kerma_ugy * PHOTONS_PER_MM2_UGY * 0.7**2 * 0.5
    assert signal.std() / signal.mean() == pytest.approx(1 / np.sqrt(quanta), rel=0.02)


def test_electronic_noise_doubles_the_variance_where_its_kerma_arrives() -> None:
    maps = uniform((200, 200), soft=20.0)
    quiet = replace(NO_SCATTER, detector_kerma_ugy=0.5)
    loud = replace(quiet, electronic_noise_ugy=0.5)
    ratio = (
        expose(maps, 0.7, loud, np.random.default_rng(2)).var()
        / expose(maps, 0.7, quiet, np.random.default_rng(2)).var()
    )
    assert ratio == pytest.approx(2.0, rel=1e-3)


def test_the_heel_effect_runs_from_the_upper_to_the_lower_border() -> None:
    exposure = replace(NO_SCATTER, heel_fraction=0.2, detector_kerma_ugy=1e9)
    signal = expose(uniform((101, 20), soft=20.0), 0.7, exposure, np.random.default_rng(0)).mean(axis=1)
    assert signal[-1] / signal[0] == pytest.approx(1.1 / 0.9, rel=1e-3)


@pytest.mark.parametrize("sigma_px", [0.3, 1.7, 6.0, 20.0])
def test_blur_multiplies_by_no_subnormal_numbers(sigma_px: float) -> None:
    matrix = _gaussian_matrix(256, sigma_px)
    assert matrix[matrix > 0].min() > np.finfo(np.float32).tiny


@pytest.mark.parametrize("sigma_px", [0.8, 3.0, 20.0])
def test_blur_has_its_standard_deviation_and_keeps_a_constant(sigma_px: float) -> None:
    np.testing.assert_allclose(blur(np.full((40, 30), 2.5, np.float32), sigma_px), 2.5, rtol=1e-5)
    point = np.zeros((301, 301), np.float32)
    point[150, 150] = 1.0
    spread = blur(point, sigma_px)
    rows = np.arange(301) - 150
    assert spread.sum() == pytest.approx(1.0, rel=1e-4)
    assert np.sqrt((spread.sum(axis=1) * rows**2).sum()) == pytest.approx(sigma_px, rel=0.01)


def test_with_all_gains_at_one_the_bands_add_up_to_the_logarithm() -> None:
    signal = expose(hip(), 0.7, Exposure(), np.random.default_rng(3))
    straight = VendorProcessing(slope=0.05, sigmoid=False, centre_quantile=0.5)
    grey = process(signal, hip()[0] > 5, 0.7, straight)
    attenuation = -np.log(signal)
    inside = (grey > 0) & (grey < 1)
    assert inside.all()
    slope, _ = np.polyfit(attenuation.ravel(), grey.ravel(), 1)
    assert slope == pytest.approx(0.05, rel=1e-4)
    assert np.corrcoef(attenuation.ravel(), grey.ravel())[0, 1] > 0.99999


@pytest.mark.parametrize("seed", range(20))
def test_bone_is_bright_and_air_dark_whatever_the_maker(seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps = hip()
    image = simulate(maps, 0.7, random_exposure(rng), random_processing(rng), rng)
    assert image.shape == (256, 192) and image.dtype == np.float32
    assert image.min() >= 0.0 and image.max() <= 1.0
    bone, soft, air = image[maps[2] > 0], image[(maps[0] > 0) & (maps[2] == 0)], image[:, :15]
    assert np.median(bone) > np.median(soft) > np.median(air)


def test_metal_is_brighter_than_bone() -> None:
    maps = hip()
    maps[3, 120:140, 90:110] = 5.0
    image = simulate(maps, 0.7, Exposure(), VendorProcessing(slope=0.2), np.random.default_rng(0), Metal.COBALT_CHROME)
    assert image[125:135, 95:105].mean() > image[100:110, 95:105].mean() + 0.1


def test_the_same_seed_gives_the_same_radiograph_and_another_seed_another() -> None:
    def taken(seed: int) -> NDArray[np.float32]:
        rng = np.random.default_rng(seed)
        return simulate(hip(), 0.7, random_exposure(rng), random_processing(rng), rng)

    np.testing.assert_array_equal(taken(5), taken(5))
    assert np.abs(taken(5) - taken(6)).max() > 0.01


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_stored_values_hold_exactly_what_was_simulated_and_monochrome1_is_its_complement(bits: int) -> None:
    processing = VendorProcessing(bits=bits)
    image = simulate(hip(), 0.7, Exposure(), processing, np.random.default_rng(0))
    stored = to_stored_values(image, processing)
    np.testing.assert_allclose(stored / (2**bits - 1), image, atol=1e-6)
    inverted = to_stored_values(image, replace(processing, monochrome1=True))
    np.testing.assert_array_equal(inverted, 2**bits - 1 - stored)


def test_jpeg_loses_a_little_and_the_more_the_lower_its_quality() -> None:
    def loss(quality: int) -> float:
        rng = np.random.default_rng(0), np.random.default_rng(0)
        clean = simulate(hip(), 0.7, Exposure(), VendorProcessing(), rng[0])
        return float(
            np.abs(simulate(hip(), 0.7, Exposure(), VendorProcessing(jpeg_quality=quality), rng[1]) - clean).mean()
        )

    assert 0.0 < loss(95) < loss(50) < 0.02


def test_air_alone_is_still_a_picture() -> None:
    image = simulate(uniform((64, 48)), 0.7, Exposure(), VendorProcessing(), np.random.default_rng(0))
    assert np.isfinite(image).all()
