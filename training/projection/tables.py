"""Recompute the committed physics tables: `python -m training.projection.tables` (needs the extra "tables").

The tables are what the simulation reads; xraydb and spekpy are needed only to make them again.
"""

import csv
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parent.parent / "tables"
ENERGIES_KEV = np.arange(10, 151)
BIN_CENTRES_KEV = np.arange(10.5, 100.0)
TUBE_VOLTAGES_KV = range(60, 101)
ANODE_ANGLE_DEG = 12.0
INHERENT_FILTRATION_MM_AL = 3.0
"""Total filtration of the tabulated spectra; tubes have at least 2.5 mm Al (IEC 60601-1-3:2008, 7.1)."""

MASS_FRACTIONS: Mapping[str, Mapping[str, float]] = {
    # ICRU Report 44 (1989), Appendix A
    "soft_tissue": {
        "H": 0.102,
        "C": 0.143,
        "N": 0.034,
        "O": 0.708,
        "Na": 0.002,
        "P": 0.003,
        "S": 0.003,
        "Cl": 0.002,
        "K": 0.003,
    },
    "muscle": {
        "H": 0.102,
        "C": 0.143,
        "N": 0.034,
        "O": 0.710,
        "Na": 0.001,
        "P": 0.002,
        "S": 0.003,
        "Cl": 0.001,
        "K": 0.004,
    },
    "adipose": {"H": 0.114, "C": 0.598, "N": 0.007, "O": 0.278, "Na": 0.001, "S": 0.001, "Cl": 0.001},
    "cortical_bone": {
        "H": 0.034,
        "C": 0.155,
        "N": 0.042,
        "O": 0.435,
        "Na": 0.001,
        "Mg": 0.002,
        "P": 0.103,
        "S": 0.003,
        "Ca": 0.225,
    },
    "air": {"C": 0.000124, "N": 0.755268, "O": 0.231781, "Ar": 0.012827},
    # Adipose tissue 3 (0.93 g/cm3, rich in lipid) of Woodard and White 1986, doi:10.1259/0007-1285-59-708-1209
    "adipose_3": {"H": 0.116, "C": 0.681, "N": 0.002, "O": 0.198, "Na": 0.001, "S": 0.001, "Cl": 0.001},
    # ICRU Report 46 (1992), Appendix A
    "red_marrow": {
        "H": 0.105,
        "C": 0.414,
        "N": 0.034,
        "O": 0.439,
        "P": 0.001,
        "S": 0.002,
        "Cl": 0.002,
        "K": 0.002,
        "Fe": 0.001,
    },
    "yellow_marrow": {"H": 0.115, "C": 0.644, "N": 0.007, "O": 0.231, "Na": 0.001, "S": 0.001, "Cl": 0.001},
    "blood": {
        "H": 0.102,
        "C": 0.110,
        "N": 0.033,
        "O": 0.745,
        "Na": 0.001,
        "P": 0.001,
        "S": 0.002,
        "Cl": 0.003,
        "K": 0.002,
        "Fe": 0.001,
    },
    # Implant alloys at nominal composition: ISO 5832-1 (316L), ISO 5832-4 (CoCr28Mo6)
    "stainless_steel": {"Fe": 0.655, "Cr": 0.18, "Ni": 0.14, "Mo": 0.025},
    "cobalt_chrome": {"Cr": 0.28, "Co": 0.66, "Mo": 0.06},
}
FORMULAS: Mapping[str, str] = {
    "water": "H2O",
    "hydroxyapatite": "Ca10P6O26H2",
    "titanium": "Ti",
    "aluminium": "Al",
    "copper": "Cu",
    "PMMA": "C5H8O2",
    "CsI": "CsI",
    "Gd2O2S": "Gd2O2S",
    "BaFBr": "BaFBr",
}


def mass_attenuation_table() -> dict[str, NDArray[np.float64]]:
    """Total mass attenuation (photoelectric, coherent, incoherent) in cm2/g at `ENERGIES_KEV`, by the mixture rule."""
    import xraydb

    energies_ev = ENERGIES_KEV * 1000.0
    fractions = {name: dict(parts) for name, parts in MASS_FRACTIONS.items()}
    for name, formula in FORMULAS.items():
        masses = {symbol: n * xraydb.atomic_mass(symbol) for symbol, n in xraydb.chemparse(formula).items()}
        fractions[name] = {symbol: mass / sum(masses.values()) for symbol, mass in masses.items()}
    return {
        name: sum(share * xraydb.mu_elam(symbol, energies_ev) for symbol, share in parts.items())
        for name, parts in fractions.items()
    }


def spectrum_table() -> dict[str, NDArray[np.float64]]:
    """Photons per cm2, keV and mAs at 100 cm in bins of 1 keV around `BIN_CENTRES_KEV`, by tube voltage."""
    import spekpy

    table = {}
    for kilovolt in TUBE_VOLTAGES_KV:
        tube = spekpy.Spek(kvp=kilovolt, th=ANODE_ANGLE_DEG, dk=1.0, mas=1.0, z=100.0)
        tube.filter("Al", INHERENT_FILTRATION_MM_AL)
        energies_kev, fluence = tube.get_spectrum(edges=False)
        table[f"kV{kilovolt}"] = np.interp(BIN_CENTRES_KEV, energies_kev, fluence, right=0.0)
    return table


def write_table(
    path: Path,
    comments: Sequence[str],
    energies_kev: NDArray[np.generic],
    columns: Mapping[str, NDArray[np.float64]],
    digits: int,
) -> None:
    """Write a CSV with its origin in comment lines at the top."""
    with path.open("w", encoding="ascii", newline="") as file:
        file.writelines(f"# {line}\n" for line in comments)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["energy_keV", *columns])
        for row, energy in enumerate(energies_kev):
            writer.writerow([energy, *(f"{column[row]:.{digits}g}" for column in columns.values())])


def main() -> None:
    """Write both tables beside the package."""
    write_table(
        FOLDER / "mass_attenuation.csv",
        [
            "Total mass attenuation coefficients in cm2/g (photoelectric, coherent and incoherent),"
            f" xraydb {version('xraydb')}",
            "Made by `python -m training.projection.tables`; compositions and their sources stand in that module",
        ],
        ENERGIES_KEV,
        mass_attenuation_table(),
        6,
    )
    write_table(
        FOLDER / "tungsten_spectra.csv",
        [
            f"Photons per cm2, keV and mAs at 100 cm: tungsten, {ANODE_ANGLE_DEG:g} deg,"
            f" {INHERENT_FILTRATION_MM_AL:g} mm Al, spekpy {version('spekpy')}, model spekpy-v2-casim",
            "Made by `python -m training.projection.tables`; energies are bin centres",
        ],
        BIN_CENTRES_KEV,
        spectrum_table(),
        5,
    )
    sys.stdout.write(f"written to {FOLDER}\n")


if __name__ == "__main__":
    main()
