"""Seconds of the networks, and of the whole measurement, on the CPU for one radiograph."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from dicomnode.dicom.pixels import read_radiograph
from dicomnode.dicom.reader import Limits
from dicomnode.domain.object_plane import object_plane
from dicomnode.domain.radiograph import Side
from dicomnode.inference.bundle import load_bundle
from dicomnode.inference.predictor import HipCandidate, Predictor
from dicomnode.pipeline import measure

REPEATS = 10
FEWEST_REPEATS = 3
BUDGET_S = 15.0
"""No part is repeated beyond this, so that a slow machine gets fewer repeats rather than a long wait."""


@dataclass(frozen=True)
class NetworkTimes:
    """Median seconds for one radiograph."""

    model: str
    threads: int
    hips: int
    """Hips that the decomposer ran on."""
    found: bool
    """False: the locator found none, and the decomposer ran on the middle of the picture instead."""
    read_s: float
    """File to grey levels."""
    locate_s: float
    decompose_s: float
    """All hips of the radiograph together."""
    measure_s: float
    """`pipeline.measure`: everything from grey levels to figures or reasons."""


def time_networks(file: Path, model: Path) -> NetworkTimes:
    """Time reading, locator, decomposer and the whole measurement of one radiograph.

    Raises:
        BundleError: there is no sound bundle in `model`.
    """
    predictor = Predictor(load_bundle(model), "cpu")
    limits = Limits()
    radiograph = read_radiograph(file, limits)
    plane = object_plane(radiograph.geometry)
    assert plane is not None, "the benchmark's radiograph states its geometry"
    image, spacing_mm = radiograph.image, plane.spacing_mm
    found = predictor.locate(image, spacing_mm)
    rows, columns = image.shape
    hips = found or [HipCandidate(Side.RIGHT, (columns / 2, rows / 2), 1.0)]
    return NetworkTimes(
        model=f"{predictor.bundle.identity.name} {predictor.bundle.identity.version}",
        threads=torch.get_num_threads(),
        hips=len(hips),
        found=bool(found),
        read_s=_median_s(lambda: read_radiograph(file, limits)),
        locate_s=_median_s(lambda: predictor.locate(image, spacing_mm)),
        decompose_s=_median_s(lambda: [predictor.decompose(image, spacing_mm, hip) for hip in hips]),
        measure_s=_median_s(lambda: measure(radiograph, predictor, lambda *_: None)),
    )


def _median_s(run: Callable[[], object]) -> float:
    run()  # the first one pays for what is made once
    started = time.perf_counter()
    seconds: list[float] = []
    while len(seconds) < FEWEST_REPEATS or (len(seconds) < REPEATS and time.perf_counter() - started < BUDGET_S):
        seconds.append(_seconds(run))
    return median(seconds)


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
