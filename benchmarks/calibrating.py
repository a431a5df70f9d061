"""How well and how fast a CT is calibrated: simulated CTs of clinical size whose line from HU to mg/cm3 is known."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from dicomnode.errors import DicomNodeError
from training.anatomy.ct import CtVolume
from training.anatomy.phantom import make_phantom
from training.anatomy.population import draw_subject
from training.calibration.line import TYPICAL_MG_CM3, mineral_mg_cm3
from training.calibration.rod_phantom import load_rod_phantom
from training.calibration.rods import calibrate_by_rods
from training.calibration.simulation import SATURATED_HU, RodScene, subject_ct, with_rod_pad
from training.calibration.tissues import calibrate_by_tissues, hydroxyapatite_hu_cm3_mg

PHANTOM = Path(__file__).parents[1] / "conf" / "training" / "phantoms" / "b-mas200.toml"
SCENES: Mapping[str, RodScene] = {
    "no noise: what the method errs by itself": RodScene(noise_hu=0.0),
    "pad 10 mm below the body": RodScene(gap_mm=10.0),
    "pad touches the body": RodScene(),
    "pad pressed in by 10 mm": RodScene(gap_mm=-10.0),
    "rod of 0 mg/cm3 as bright as the pad": RodScene(pad_hu=-3.0),
    "slope 1.0 HU per mg/cm3, 8 HU at none": RodScene(slope_hu_cm3_mg=1.0, intercept_hu=8.0),
    "roll 8, tilt 5, yaw 4 degrees, reversed": RodScene(roll_deg=8.0, tilt_deg=5.0, yaw_deg=4.0, is_reversed=True),
    "rods in a third of the slices": RodScene(z_share=(0.4, 0.74)),
    "noise 15 HU": RodScene(noise_hu=15.0),
    "noise 25 HU": RodScene(noise_hu=25.0),
    "noise 20 HU, white": RodScene(white_noise=True),
    "streaks of 300 HU from a hip implant": RodScene(streak_hu=300.0),
}
"""All with 20 HU of noise in the spectrum of a filtered back-projection, unless said otherwise."""
TISSUE_CASES = {"tissues, 64 keV": 64.0, "tissues, 68 keV": 68.0, "tissues, 72 keV": 72.0}
"""At 120 kV: the effective energies that filters and patients make of it."""
IMPLANT = (slice(22, 42), slice(245, 270), slice(365, 392))
"""(z, y, x) voxels of metal at a hip, for the streaks."""


@dataclass(frozen=True)
class Calibrated:
    """One way to lay the phantom, over several noises."""

    name: str
    slope_errors_percent: tuple[float, ...]
    offset_errors_mg_cm3: tuple[float, ...]
    """Of a voxel without mineral; for tissues of one with 100 mg/cm3."""
    cpu_seconds: tuple[float, ...]
    """Processor time of this thread's process: one core, whatever else runs on the machine."""
    failures: tuple[str, ...]

    @property
    def rms_slope_percent(self) -> float:
        """Root mean square of the slope's errors."""
        return float(np.sqrt(np.mean(np.square(self.slope_errors_percent)))) if self.slope_errors_percent else math.nan

    @property
    def worst_slope_percent(self) -> float:
        """Largest deviation either way."""
        return max((abs(error) for error in self.slope_errors_percent), default=math.nan)

    @property
    def worst_offset_mg_cm3(self) -> float:
        """Largest deviation either way."""
        return max((abs(error) for error in self.offset_errors_mg_cm3), default=math.nan)

    @property
    def median_cpu_s(self) -> float:
        """Of the calibrations that succeeded."""
        return median(self.cpu_seconds) if self.cpu_seconds else math.nan


def calibrate(volumes: int, told: Callable[[str], None]) -> tuple[Calibrated, ...]:
    """Calibrate `volumes` noises of every scene: 512 x 512 x 60 voxels of 0.86 x 0.86 x 3 mm."""
    told("making a patient")
    patient = make_phantom(draw_subject(1, 0))
    body = subject_ct(patient)
    results = []
    for name, scene in SCENES.items():
        told(name)
        seen = _with_implant(body) if scene.streak_hu else body
        results.append(_by_rods(name, seen, scene, volumes))
    for name, energy_kev in TISSUE_CASES.items():
        told(name)
        results.append(_by_tissues(name, subject_ct(patient, energy_kev), energy_kev, volumes))
    return tuple(results)


def _with_implant(ct: CtVolume) -> CtVolume:
    hu = ct.hu.copy()
    hu[IMPLANT] = SATURATED_HU
    return replace(ct, hu=hu)


def _by_rods(name: str, body: CtVolume, scene: RodScene, volumes: int) -> Calibrated:
    phantom = load_rod_phantom(PHANTOM)
    slopes, offsets, seconds, failures = [], [], [], []
    for seed in range(volumes):
        ct = with_rod_pad(body, phantom, replace(scene, seed=seed))
        started = time.process_time()
        try:
            calibration, _ = calibrate_by_rods(ct, phantom)
        except DicomNodeError as error:
            failures.append(str(error))
            continue
        seconds.append(time.process_time() - started)
        slopes.append(100.0 * (calibration.slope_hu_cm3_mg / scene.slope_hu_cm3_mg - 1.0))
        offsets.append(float(mineral_mg_cm3(np.array([scene.intercept_hu], np.float32), calibration)[0]))
    return Calibrated(name, tuple(slopes), tuple(offsets), tuple(seconds), tuple(failures))


def _by_tissues(name: str, body: CtVolume, energy_kev: float, volumes: int) -> Calibrated:
    truth = hydroxyapatite_hu_cm3_mg(energy_kev)
    nobody = replace(RodScene(), z_share=(0.0, 0.0))
    phantom = load_rod_phantom(PHANTOM)
    slopes, offsets, seconds, failures = [], [], [], []
    for seed in range(volumes):
        ct = with_rod_pad(body, phantom, replace(nobody, seed=seed))
        started = time.process_time()
        try:
            calibration = calibrate_by_tissues(ct, 120.0)
        except DicomNodeError as error:
            failures.append(str(error))
            continue
        seconds.append(time.process_time() - started)
        slopes.append(100.0 * (calibration.slope_hu_cm3_mg / truth - 1.0))
        read = mineral_mg_cm3(np.array([truth * TYPICAL_MG_CM3], np.float32), calibration)[0]
        offsets.append(float(read) - TYPICAL_MG_CM3)
    return Calibrated(name, tuple(slopes), tuple(offsets), tuple(seconds), tuple(failures))
