"""Ladders of how a radiograph is taken and processed: dose, tube, filters, scatter, blur, vendor."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from string import ascii_uppercase
from typing import Any

import numpy as np
from tqdm import tqdm

from training.ladders.ladder import Hip, Ladder, draw_conditions, make_ladder, read_hip
from training.ladders.reading import Read
from training.projection.radiograph import VendorProcessing, random_exposure, random_processing

FILM_LOOK = "film look"
VENDORS: Mapping[str, VendorProcessing] = {
    FILM_LOOK: VendorProcessing(),
    "straight window": VendorProcessing(sigmoid=False, slope=0.4),
    "soft, 10 bit": VendorProcessing((1.3, 1.2, 1.1), 0.85, 0.45, 0.3, bits=10),
    "multi-frequency": VendorProcessing((1.6, 1.35, 1.17), 0.78, 0.6, 0.5),
    "strong equalisation": VendorProcessing((2.2, 1.7, 1.35), 0.55, 0.6, 0.6),
    "strong edges": VendorProcessing((3.0, 1.8, 1.2), 0.8, 0.5, 0.5),
    "hard, clipped": VendorProcessing(slope=0.8, window=(0.08, 0.92)),
    "flat, 8 bit": VendorProcessing(slope=0.25, bits=8),
}
"""Looks, not makers; all settings are assumptions. "strong edges" lies outside of what `random_processing` draws. Compression has a
ladder of its own: it works on the detector's pixels, not on those of the frame."""


@dataclass(frozen=True)
class Rung:
    """What one rung holds fixed; the rest stays as it was drawn for each hip."""

    label: str
    exposure: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Exposure`."""
    processing: VendorProcessing | None = None
    stated_off_kv: float | None = 0.0
    """How far the header's tube voltage lies from that of the exposure; None: it states none."""
    states_filters: bool = True
    """Whether it states filter and detector."""


@dataclass(frozen=True)
class Steps:
    """A ladder before anybody climbed it."""

    name: str
    title: str
    axis: str
    reference: str
    rungs: tuple[Rung, ...]


def _steps(name: str, title: str, axis: str, key: str, values: Sequence[float], reference: float) -> Steps:
    return Steps(name, title, axis, f"{reference:g}", tuple(Rung(f"{value:g}", {key: value}) for value in values))


LADDERS = (
    _steps("dose", "Dose", "detector air kerma, uGy", "detector_kerma_ugy", (0.2, 0.5, 1.0, 2.5, 5.0, 10.0), 2.5),
    _steps("tube_voltage", "Tube voltage", "tube voltage, kV", "kilovolt", (60, 70, 80, 90, 100), 80),
    Steps(
        "stated_technique",
        "What the header states of the technique",
        "stated",
        "all of it",
        (
            Rung("15 kV too low", stated_off_kv=-15.0),
            Rung("all of it"),
            Rung("15 kV too high", stated_off_kv=15.0),
            Rung("no voltage", stated_off_kv=None),
            Rung("no filter or detector", states_filters=False),
        ),
    ),
    Steps(
        "filtration",
        "Filtration beyond 3 mm Al",
        "added filter, mm",
        "none",
        tuple(
            Rung(label, {"added_al_mm": aluminium, "added_cu_mm": copper})
            for label, aluminium, copper in (
                ("none", 0.0, 0.0),
                ("1 Al", 1.0, 0.0),
                ("0.1 Cu", 0.0, 0.1),
                ("0.2 Cu + 1 Al", 1.0, 0.2),
                ("0.3 Cu", 0.0, 0.3),
            )
        ),
    ),
    _steps(
        "scatter",
        "Scatter: below 1 behind a grid, above without",
        "scatter to primary",
        "scatter_to_primary",
        (0.15, 0.3, 0.6, 1.0, 2.0, 4.0),
        0.3,
    ),
    _steps(
        "blur",
        "Blur of focal spot and detector",
        "SD in the object plane, mm",
        "blur_mm",
        (0.1, 0.3, 0.6, 1.2, 2.4),
        0.1,
    ),
    Steps(
        "vendor",
        "Vendor's processing",
        "look",
        FILM_LOOK,
        tuple(Rung(label, processing=processing) for label, processing in VENDORS.items()),
    ),
)


def devices(count: int, seed: int) -> Steps:
    """Devices drawn as those of the evaluation are, each with a protocol of its own: everybody is taken on it, as in one clinic.

    Tube voltage, filters, grid, detector and processing stay; the dose still varies from hip to hip, as under automatic
    exposure control.
    """
    rungs = []
    for number, name in enumerate(ascii_uppercase[:count]):
        rng = np.random.default_rng((seed, 8, number))
        own = asdict(random_exposure(rng))
        del own["detector_kerma_ugy"]
        rungs.append(Rung(f"{name}, {own['kilovolt']} kV, {own['detector'].value}", own, random_processing(rng)))
    return Steps("device", "Everybody on one device", "device", "", tuple(rungs))


def climb(read: Read, hips: Sequence[Hip], steps: Steps, seed: int) -> Ladder:
    """Read the same hips on every rung."""
    cases = []
    for rung in tqdm(steps.rungs, desc=steps.name, unit="rung"):
        for hip in hips:
            drawn = draw_conditions(seed, hip.figures)
            conditions = replace(
                drawn,
                exposure=replace(drawn.exposure, **rung.exposure),
                processing=rung.processing or drawn.processing,
                stated_off_kv=rung.stated_off_kv,
                states_filters=rung.states_filters,
            )
            cases.append(read_hip(read, hip, conditions, rung.label))
    return make_ladder(steps.name, steps.title, steps.axis, cases, steps.reference)
