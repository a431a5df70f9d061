"""Seconds of the networks, and of the whole measurement, on the CPU for one radiograph; torch beside other engines."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dicomnode.dicom.pixels import read_radiograph
from dicomnode.dicom.reader import Limits
from dicomnode.domain.object_plane import object_plane
from dicomnode.domain.radiograph import Side
from dicomnode.inference import frame
from dicomnode.inference.bundle import Bundle, load_bundle
from dicomnode.inference.network import HipNet, Regressor
from dicomnode.inference.predictor import HipCandidate, Predictor
from dicomnode.inference.technique import technique
from dicomnode.pipeline import measure

REPEATS = 10
FEWEST_REPEATS = 3
BUDGET_S = 15.0
"""No part is repeated beyond this, so that a slow machine gets fewer repeats rather than a long wait."""
ENGINE_ROUNDS = 9
ENGINE_THREADS = (1, 2)

Answer = tuple[NDArray[np.float32], ...]
Run = Callable[..., Answer]
"""From pictures (1, c, h, w) and, where the network takes them, technique factors (1, factors) to what `HipNet` answers."""


@dataclass(frozen=True)
class Engine:
    """Another program that runs the same weights on the CPU."""

    name: str
    needs: tuple[str, ...]
    """Python packages."""
    prepare: Callable[[nn.Module, tuple[torch.Tensor, ...], int], Run]
    """Convert a network for inputs like these and a number of threads, outside the timed part."""


@dataclass(frozen=True)
class EngineTimes:
    """How many times an engine's time torch takes: medians of the ratios within each round, (wall, processor)."""

    name: str
    threads: int
    locator: tuple[float, float]
    decomposer: tuple[float, float]
    """One hip."""
    measure: tuple[float, float]
    """`pipeline.measure`, which is what a radiograph gains."""
    difference: float
    """Largest of any number that the decomposer answers, from torch's, in its own unit."""


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
        decompose_s=_median_s(
            lambda: [predictor.decompose(image, spacing_mm, hip, radiograph.technique) for hip in hips]
        ),
        measure_s=_median_s(lambda: measure(radiograph, predictor, lambda *_: None)),
    )


def compare_engines(
    file: Path, model: Path, told: Callable[[str], None], missing: Callable[[str], None]
) -> list[EngineTimes]:
    """Let torch as the node runs it and the engines that are installed take turns on one radiograph.

    Raises:
        BundleError: there is no sound bundle in `model`.
    """
    present = []
    for engine in ENGINES:
        absent = [package for package in engine.needs if find_spec(package) is None]
        if absent:
            missing(f"{engine.name}: {', '.join(absent)} not installed (pip install {' '.join(absent)})")
        else:
            present.append(engine)
    radiograph, before = read_radiograph(file, Limits()), torch.get_num_threads()
    bundle = load_bundle(model)
    noise = np.random.default_rng(0)
    shapes = (
        (bundle.locator.shape.inputs, frame.LOCATOR_SIZE, frame.LOCATOR_SIZE),
        (bundle.decomposer.shape.inputs, frame.ROWS, frame.COLUMNS),
    )
    overview, crop = (noise.random((1, *shape), np.float32) for shape in shapes)
    factors = technique(radiograph.technique.kilovolt)[None]
    times = []
    for threads in ENGINE_THREADS if present else ():
        predictors = [Predictor(bundle, "cpu", threads)]
        for engine in present:
            told(f"converting the networks for {engine.name}, {threads} threads")
            predictors.append(_OtherEngine(bundle, engine, threads))
        steps: tuple[Callable[[Predictor], object], ...] = (
            lambda predictor: predictor._run(bundle.locator, overview),
            lambda predictor: predictor._run(bundle.decomposer, crop, factors),
            lambda predictor: measure(radiograph, predictor, lambda *_: None),
        )
        taken = np.empty((ENGINE_ROUNDS + 1, len(steps), len(predictors), 2))
        for number in range(ENGINE_ROUNDS + 1):
            told(f"engines, {threads} threads, round {number} of {ENGINE_ROUNDS}")
            for row, step in enumerate(steps):
                for column in np.roll(np.arange(len(predictors)), -number).tolist():
                    wall, cpu = time.perf_counter(), time.process_time()
                    step(predictors[column])
                    taken[number, row, column] = time.perf_counter() - wall, time.process_time() - cpu
        ratios = np.median(taken[1:, :, :1] / taken[1:], axis=0)  # the first round pays for what is made once
        expected = predictors[0]._run(bundle.decomposer, crop, factors)
        for column, engine in enumerate(present, 1):
            answer = predictors[column]._run(bundle.decomposer, crop, factors)
            difference = max(float(np.abs(a - b).max()) for a, b in zip(answer, expected, strict=True) if a.size)
            locator, decomposer, whole = ((float(wall), float(cpu)) for wall, cpu in ratios[:, column])
            times.append(EngineTimes(engine.name, threads, locator, decomposer, whole, difference))
    torch.set_num_threads(before)
    return times


class _OtherEngine(Predictor):
    """A predictor whose networks run elsewhere; all around them stays the node's own."""

    def __init__(self, bundle: Bundle, engine: Engine, threads: int) -> None:
        super().__init__(bundle, "cpu", threads)
        sizes = {
            bundle.locator: (frame.LOCATOR_SIZE, frame.LOCATOR_SIZE),
            bundle.decomposer: (frame.ROWS, frame.COLUMNS),
            bundle.regressor: (frame.ROWS, frame.COLUMNS),
        }
        self._runs: dict[nn.Module, Run] = {
            network: engine.prepare(network, _inputs(network, *size), threads)
            for network, size in sizes.items()
            if network is not None
        }

    def _run(
        self, network: nn.Module, pictures: NDArray[np.float32], told: NDArray[np.float32] | None = None
    ) -> Answer:
        given = (pictures,) if told is None else (pictures, told)
        # One after the other: the programs were made for one picture.
        answers = [self._runs[network](*(one[n : n + 1] for one in given)) for n in range(len(pictures))]
        return tuple(np.concatenate(parts) for parts in zip(*answers, strict=True))


def _inputs(network: HipNet | Regressor, rows: int, columns: int) -> tuple[torch.Tensor, ...]:
    """What a network takes: the picture and, if it is told any, the technique factors."""
    picture = torch.zeros(1, network.shape.inputs, rows, columns)
    return (picture, torch.zeros(1, network.shape.factors)) if network.shape.factors else (picture,)


def _onnxruntime(network: nn.Module, inputs: tuple[torch.Tensor, ...], threads: int) -> Run:
    import onnxruntime

    program = torch.onnx.export(network, inputs, dynamo=True, verbose=False)
    assert program is not None, "torch.onnx.export gives a program where no file is named"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [one.name for one in session.get_inputs()]
    return lambda *given: tuple(session.run(None, dict(zip(names, given, strict=True))))


def _openvino(network: nn.Module, inputs: tuple[torch.Tensor, ...], threads: int) -> Run:
    import openvino

    with torch.no_grad():
        converted = openvino.convert_model(network, example_input=inputs, input=[list(one.shape) for one in inputs])
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(converted, "CPU", settings).create_infer_request()
    return lambda *given: tuple(part.copy() for part in request.infer(list(given)).values())


ENGINES = (
    Engine("ONNX Runtime", ("onnxruntime", "onnx", "onnxscript"), _onnxruntime),
    Engine("OpenVINO", ("openvino",), _openvino),
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
