"""X-ray attenuation of materials and spectra of tubes, read from the committed tables.

The tables' first lines say how they were made; `training.projection.tables` makes them again.
"""

from functools import lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=2)
def read_table(name: str) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Read one of `training/tables/*.csv`.

    Returns:
        Energies in keV, and each further column by its name; both read-only.
    """
    text = (files("training") / "tables" / name).read_text(encoding="ascii")
    header, *rows = [line.split(",") for line in text.splitlines() if not line.startswith("#")]
    numbers = np.array(rows, np.float64)
    numbers.flags.writeable = False
    return numbers[:, 0], {column: numbers[:, i] for i, column in enumerate(header) if i > 0}


def mass_attenuation_cm2_g(material: str, energies_kev: NDArray[np.float64]) -> NDArray[np.float64]:
    """Total mass attenuation coefficient, interpolated linearly in log-log.

    Raises:
        ValueError: an unknown material, or energies outside the table (10 to 150 keV).
    """
    table_kev, columns = read_table("mass_attenuation.csv")
    if material not in columns:
        raise ValueError(f"no attenuation of {material!r} is tabulated; known: {', '.join(columns)}")
    if energies_kev.min() < table_kev[0] or energies_kev.max() > table_kev[-1]:
        raise ValueError(f"energies must lie within {table_kev[0]:g} to {table_kev[-1]:g} keV")
    return np.asarray(np.exp(np.interp(np.log(energies_kev), np.log(table_kev), np.log(columns[material]))), np.float64)


def tungsten_spectrum(kilovolt: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Photon fluence behind 3 mm Al.

    Returns:
        Bin centres in keV (1 keV wide, up to the tube voltage), and photons per cm2, keV and mAs at 100 cm.

    Raises:
        ValueError: a tube voltage that is not tabulated (60 to 100 kV in steps of 1).
    """
    table_kev, columns = read_table("tungsten_spectra.csv")
    column = f"kV{kilovolt}"
    if column not in columns:
        raise ValueError(f"no spectrum for {kilovolt} kV; tabulated: {', '.join(columns)}")
    used = columns[column] > 0
    return table_kev[used], columns[column][used]
