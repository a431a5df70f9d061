"""The committed physics tables: against an independent computation and against known facts."""

from pathlib import Path

import numpy as np
import pytest

from training.projection.attenuation import mass_attenuation_cm2_g, read_table, tungsten_spectrum

OTHER_NAMES = {
    "soft_tissue": "soft_tissue_ICRU44",
    "muscle": "muscle_ICRU44",
    "adipose": "adipose_ICRU44",
    "cortical_bone": "cortical_bone_ICRU44",
    "red_marrow": "red_marrow_ICRU46",
    "yellow_marrow": "yellow_marrow_ICRU46",
    "water": "water",
    "hydroxyapatite": "hydroxyapatite",
    "titanium": "titanium",
    "cobalt_chrome": "CoCr28Mo6",
    "aluminium": "aluminium",
    "copper": "copper",
    "PMMA": "PMMA",
    "CsI": "CsI",
    "Gd2O2S": "Gd2O2S",
}
K_EDGES_KEV = {"CsI": (33.2, 36.0), "Gd2O2S": (50.2,), "cobalt_chrome": (20.0,)}


@pytest.mark.parametrize("material", OTHER_NAMES)
def test_mass_attenuation_agrees_with_another_library(material: str, reference_data: Path) -> None:
    other = np.genfromtxt(reference_data / "physics" / "mass_attenuation.csv", delimiter=",", names=True, skip_header=1)
    energies_kev, columns = read_table("mass_attenuation.csv")
    np.testing.assert_array_equal(energies_kev, other["energy_keV"])
    clear = np.all([abs(energies_kev - edge) > 1 for edge in K_EDGES_KEV.get(material, ())], axis=0)
    used = clear & (energies_kev >= 15)  # nothing below passes a patient
    np.testing.assert_allclose(columns[material][used], other[OTHER_NAMES[material]][used], rtol=1e-3)


@pytest.mark.parametrize("kilovolt", [60, 70, 80, 90, 100])
def test_spectra_agree_with_an_independent_run(kilovolt: int, reference_data: Path) -> None:
    path = reference_data / "physics" / "spectra_W_12deg_3mmAl.csv"
    other = np.genfromtxt(path, delimiter=",", names=True, skip_header=2)
    energies_kev, fluence = tungsten_spectrum(kilovolt)
    expected = np.interp(energies_kev, other["energy_keV"], other[f"kVp{kilovolt}"])
    np.testing.assert_allclose(fluence, expected, rtol=1e-3, atol=1e-3 * expected.max())


def test_water_at_60_kev_is_what_nist_says() -> None:
    """Source: NIST, Hubbell and Seltzer, NISTIR 5632, table 4: 0.2059 cm2/g."""
    assert mass_attenuation_cm2_g("water", np.array([60.0]))[0] == pytest.approx(0.2059, rel=5e-3)


def test_attenuation_between_tabulated_energies_follows_the_power_law() -> None:
    between = mass_attenuation_cm2_g("titanium", np.array([40.0, 40.5, 41.0]))
    assert between[1] == pytest.approx(np.sqrt(between[0] * between[2]), rel=2e-3)


@pytest.mark.parametrize("kilovolt", [60, 81, 100])
def test_no_photon_has_more_energy_than_the_tube_voltage_gives(kilovolt: int) -> None:
    energies_kev, fluence = tungsten_spectrum(kilovolt)
    assert energies_kev.max() == kilovolt - 0.5
    assert (fluence > 0).all()


def test_the_half_value_layer_of_80_kv_is_within_the_standard() -> None:
    """Source: 21 CFR 1020.30(m), table 1: at least 2.9 mm Al at 80 kV. Air: NIST, NISTIR 5632, table 4, mu_en."""
    energies_kev, fluence = tungsten_spectrum(80)
    mu_al = mass_attenuation_cm2_g("aluminium", energies_kev) * 2.699
    nodes_kev, mu_en_cm2_g = (
        [10, 15, 20, 30, 40, 50, 60, 80],
        [4.742, 1.334, 0.539, 0.154, 0.0683, 0.041, 0.0304, 0.0241],
    )
    mu_en_air = np.exp(np.interp(np.log(energies_kev), np.log(nodes_kev), np.log(mu_en_cm2_g)))
    weights = fluence * energies_kev * mu_en_air
    thickness_mm = np.linspace(1.0, 6.0, 501)
    passed = np.array([(weights * np.exp(-mu_al * t / 10)).sum() for t in thickness_mm]) / weights.sum()
    half_value_layer_mm = float(np.interp(-0.5, -passed, thickness_mm))
    assert 2.9 < half_value_layer_mm < 3.3


def test_what_is_not_tabulated_is_refused() -> None:
    with pytest.raises(ValueError, match="unobtainium"):
        mass_attenuation_cm2_g("unobtainium", np.array([60.0]))
    with pytest.raises(ValueError, match="10 to 150 keV"):
        mass_attenuation_cm2_g("water", np.array([200.0]))
    with pytest.raises(ValueError, match="no spectrum for 120 kV"):
        tungsten_spectrum(120)
