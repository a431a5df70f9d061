"""A ladder: the same hips on rung after rung, and how reading agrees with truth on each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dicomnode.domain.measurement import Reason
from dicomnode.domain.radiograph import UNSTATED
from dicomnode.inference import frame
from dicomnode.inference.frame import FramedHip
from training.evaluate import locator_error_px, stored_from_frame
from training.ladders.reading import Read, Reading, true_figures
from training.projection.radiograph import (
    Exposure,
    Metal,
    VendorProcessing,
    random_exposure,
    random_processing,
    simulate,
    stated_technique,
)
from training.statistics import Agreement, Values, agreement, bootstrap_intervals, r_and_rmse, share_interval

_FEWEST = 5
"""Fewer measured hips on a rung have no agreement worth a figure."""


class Hip(Protocol):
    """A stored pair (`training.pairs.HipPair`) or a fresh target (`training.targets.HipTarget`)."""

    @property
    def materials(self) -> NDArray[np.float16]:
        """(4, rows, columns) of the frame with its margin, see `training.projection.radiograph.MATERIALS`."""

    @property
    def labels(self) -> NDArray[np.uint8]:
        """(rows, columns) `dicomnode.inference.frame.Label`, with the same margin."""

    @property
    def figures(self) -> dict[str, Any]:
        """What is true of the hip, see `training.targets.HipTarget`."""


@dataclass(frozen=True)
class Conditions:
    """How one radiograph of a hip is taken, processed and cut out."""

    exposure: Exposure
    processing: VendorProcessing
    metal: Metal
    offset_px: tuple[int, int]
    """(row, column) by which the head is missed."""
    noise_seed: int
    stated_off_kv: float | None = 0.0
    """How far the header's tube voltage lies from that of the exposure; None: it states none."""
    states_filters: bool = True
    """Whether it states filter and detector."""


@dataclass(frozen=True)
class Case:
    """One reading of one hip."""

    rung: str
    subject: int
    side: str
    true: dict[str, float]
    reading: Reading


@dataclass(frozen=True)
class RungFigures:
    """How one quantity fares on one rung."""

    rung: str
    quantity: str
    hips: int
    """Readings on this rung, of hips of which the quantity is known."""
    refused: int
    refused_interval: tuple[float, float]
    """95 % of the share."""
    agreement: Agreement | None
    """None with fewer than five measured hips."""
    r_interval: tuple[float, float] | None
    """95 %, by patient."""
    rmse_interval: tuple[float, float] | None
    change_percent: tuple[float, float] | None
    """Median and 95th percentile over hips of |reading - reading on the reference rung|, in per cent of the latter."""


@dataclass(frozen=True)
class Ladder:
    """Everything that is known of one condition."""

    name: str
    title: str
    axis: str
    """What the rungs are, with unit."""
    reference: str
    """The rung that changes are counted from; empty where the hips differ between rungs, or no rung is the usual one."""
    rungs: tuple[str, ...]
    figures: tuple[RungFigures, ...]
    cases: tuple[Case, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the cases."""
        return {
            "title": self.title,
            "axis": self.axis,
            "reference": self.reference,
            "rungs": [asdict(figures) for figures in self.figures],
        }


def draw_conditions(seed: int, figures: Mapping[str, Any], take: int = 0) -> Conditions:
    """Draw how a hip is taken; the same for the same hip and take, so that rungs differ by what they change alone."""
    rng = np.random.default_rng((seed, 5, int(figures["index"]), figures["side"] == "L", take))
    row, column = locator_error_px(rng)
    return Conditions(
        exposure=random_exposure(rng),
        processing=random_processing(rng),
        metal=list(Metal)[rng.integers(len(Metal))],
        offset_px=(int(row), int(column)),
        noise_seed=int(rng.integers(2**31)),
    )


def take(materials: NDArray[np.float16], conditions: Conditions) -> FramedHip:
    """Take a hip's radiograph and lay the measurement frame over it."""
    image = simulate(
        materials.astype(np.float32),
        frame.SPACING_MM,
        conditions.exposure,
        conditions.processing,
        np.random.default_rng(conditions.noise_seed),
        conditions.metal,
    )
    stated = stated_technique(conditions.exposure) if conditions.states_filters else UNSTATED
    stated_kv = None if conditions.stated_off_kv is None else conditions.exposure.kilovolt + conditions.stated_off_kv
    return FramedHip(image, stored_from_frame(conditions.offset_px), replace(stated, kilovolt=stated_kv))


def read_hip(read: Read, hip: Hip, conditions: Conditions, rung: str) -> Case:
    """Take a radiograph and read it."""
    reading = read(take(hip.materials, conditions))
    return Case(rung, int(hip.figures["index"]), str(hip.figures["side"]), true_figures(hip.figures), reading)


def make_ladder(name: str, title: str, axis: str, cases: Iterable[Case], reference: str = "") -> Ladder:
    """Sum up cases; rungs stand in the order in which they first appear."""
    cases = tuple(cases)
    rungs = tuple(dict.fromkeys(case.rung for case in cases))
    figures = [
        _rung_figures(rung, name_, [case for case in cases if case.rung == rung], cases, reference)
        for rung in rungs
        for name_ in quantities(cases)
    ]
    return Ladder(name, title, axis, reference, rungs, tuple(figures), cases)


def regrouped(cases: Iterable[Case], group: Callable[[Case], str], order: Sequence[str]) -> list[Case]:
    """The same cases on other rungs, in this order."""
    moved = [replace(case, rung=group(case)) for case in cases]
    return sorted(moved, key=lambda case: order.index(case.rung))


def quantities(cases: Iterable[Case]) -> tuple[str, ...]:
    """What was read at least once, and has a truth; in the order of the truth."""
    read = {name for case in cases if not isinstance(case.reading, Reason) for name in case.reading}
    true = dict.fromkeys(name for case in cases for name in case.true)
    return tuple(name for name in true if name in read)


def value_of(reading: Reading, quantity: str) -> float | None:
    """One figure of a reading, None where it was refused."""
    return None if isinstance(reading, Reason) else reading.get(quantity)


def truth_and_reading(cases: Iterable[Case], quantity: str) -> tuple[Values, Values, NDArray[np.int64]]:
    """Three (n,) arrays over the cases that have the figure: truth, reading, number of the patient."""
    rows = [
        (case.true[quantity], value, case.subject)
        for case in cases
        if quantity in case.true and (value := value_of(case.reading, quantity)) is not None
    ]
    truth, reading, subject = np.array(rows, np.float64).reshape(-1, 3).T
    return truth, reading, subject.astype(np.int64)


def _rung_figures(
    rung: str, quantity: str, cases: Sequence[Case], all_cases: Sequence[Case], reference: str
) -> RungFigures:
    known = [case for case in cases if quantity in case.true]
    truth, reading, patients = truth_and_reading(known, quantity)
    refused = len(known) - truth.size
    enough = truth.size >= _FEWEST
    r, rmse = bootstrap_intervals(r_and_rmse, patients, truth, reading) if enough else (None, None)
    return RungFigures(
        rung=rung,
        quantity=quantity,
        hips=len(known),
        refused=refused,
        refused_interval=share_interval(refused, len(known)),
        agreement=agreement(truth, reading) if enough else None,
        r_interval=None if r is None else (float(r[0]), float(r[1])),
        rmse_interval=None if rmse is None else (float(rmse[0]), float(rmse[1])),
        change_percent=_change_percent(cases, all_cases, quantity, reference) if reference else None,
    )


def _change_percent(
    cases: Sequence[Case], all_cases: Sequence[Case], quantity: str, reference: str
) -> tuple[float, float] | None:
    before = {
        (case.subject, case.side): value_of(case.reading, quantity) for case in all_cases if case.rung == reference
    }
    changes = [
        100 * abs(value - first) / first
        for case in cases
        if (value := value_of(case.reading, quantity)) is not None
        and (first := before.get((case.subject, case.side))) is not None
    ]
    if not changes:
        return None
    median, high = np.percentile(changes, (50, 95))
    return float(median), float(high)
