"""From a radiograph's grey levels to hips and their decomposition. The only place where a network is run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dicomnode.domain.radiograph import Side, Technique
from dicomnode.errors import ConfigurationError
from dicomnode.inference import frame
from dicomnode.inference.bundle import Bundle
from dicomnode.inference.canonical import CanonicalFigures, Method, canonical_figures, combined, corrected
from dicomnode.inference.channels import INDEX, LABELS, MAPS, REGIONAL_VERDICTS, VERDICTS
from dicomnode.inference.field import exposed_field
from dicomnode.inference.frame import FramedHip, Label
from dicomnode.inference.intensity import standardise
from dicomnode.inference.technique import departures, technique

_RECENTRE_MM = 3.0
"""A second look is taken where the head lies further than this from where the locator put it."""
_METAL_LOGIT = 2.0
"""Metal's pixels weigh more in training than they are frequent (`training.losses.METAL_WEIGHT`), so that 0 would be too early."""
VIEWS = (
    (0.0, (0.0, 0.0)),
    *((12.0, (-8.0, 8.0)), (-12.0, (8.0, -8.0)), (6.0, (8.0, 8.0)), (-6.0, (-8.0, -8.0))),
    *((8.0, (6.0, -6.0)), (-8.0, (-6.0, 6.0)), (4.0, (-6.0, -6.0)), (-4.0, (6.0, 6.0))),
)
"""Degrees and pixels by which the frame is turned and moved for the looks that figures are the mean of: each reads the same hip a
little differently, and nobody puts a patient down twice alike. The first is the frame itself. Why so far apart: ADR 0009."""
_PEAK_WINDOW_PX = 4
_HEADS_APART_MM = 80.0
"""Two femoral heads of an adult are never nearer: their centres lie about 175 mm apart."""


@dataclass(frozen=True)
class HipCandidate:
    """A femoral head that the locator found."""

    side: Side
    head_px: tuple[float, float]
    """(column, row) on the radiograph, pixel centres at integers + 0.5."""
    score: float
    """Probability, 0..1."""


@dataclass(frozen=True)
class Decomposition:
    """What the network reads in one hip's frame; arrays are (ROWS, COLUMNS)."""

    grey: NDArray[np.float32]
    density_g_cm2: NDArray[np.float32]
    path_cm: NDArray[np.float32]
    pelvis_g_cm2: NDArray[np.float32]
    soft_g_cm2: NDArray[np.float32]
    labels: NDArray[np.uint8]
    metal: NDArray[np.bool_]
    field: NDArray[np.bool_]
    """True inside the image and inside the exposed field."""
    anteroposterior_hip: float
    """Probability that this is an AP hip in a pose that was trained for."""
    implant: float
    """Probability that there is metal."""
    fracture: float
    """Probability that the femur is broken and displaced."""
    canonical: CanonicalFigures
    """What a densitometer's pose would show; of regions that are not wholly seen it says nothing that may be used."""
    apart: Mapping[Method, CanonicalFigures]
    """What each of the methods reads that `canonical` is the mean of."""
    image_from_frame: NDArray[np.float64]


class Predictor:
    """Runs a bundle's networks on one device.

    Args:
        bundle: from `load_bundle`.
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
        threads: CPU threads; None leaves torch's choice.
    """

    def __init__(self, bundle: Bundle, device: str = "auto", threads: int | None = None) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigurationError("worker.device is 'cuda', but torch sees no CUDA device; use 'auto' or 'cpu'")
        if threads is not None:
            torch.set_num_threads(threads)
        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.device = torch.device(chosen)
        self.bundle = bundle
        self._locator = _placed(bundle.locator, self.device)
        self._decomposer = _placed(bundle.decomposer, self.device)
        self._regressor = None if bundle.regressor is None else _placed(bundle.regressor, self.device)

    def locate(self, image: NDArray[np.float32], spacing_mm: tuple[float, float]) -> list[HipCandidate]:
        """Find the femoral heads on the image: at most one per side, each at least as probable as the bundle's limit."""
        found = []
        for image_from_overview in frame.overview_windows(image.shape, spacing_mm):
            shape = (frame.LOCATOR_SIZE, frame.LOCATOR_SIZE)
            overview = standardise(*frame.resample(image, image_from_overview, shape))
            heat = self._run(self._locator, overview[None])[0]
            for side, channel in zip((Side.RIGHT, Side.LEFT), sigmoid(heat[0]), strict=True):
                for column, row, score in peaks(channel):
                    x, y, _ = image_from_overview @ (column, row, 1.0)
                    found.append(HipCandidate(side, (float(x), float(y)), score))
        likely = [
            candidate
            for candidate in found
            if candidate.score >= self.bundle.limits.locator_score and on_image(candidate, image.shape)
        ]
        return one_head_one_side(likely, spacing_mm)

    def decompose(
        self,
        image: NDArray[np.float32],
        spacing_mm: tuple[float, float],
        candidate: HipCandidate,
        stated: Technique,
    ) -> Decomposition:
        """Decompose the hip around a candidate; looks twice where the head lies off its place in the frame.

        Args:
            stated: what the header states of the exposure.
        """
        hip = FramedHip(image, frame.image_from_frame(candidate.head_px, candidate.side, spacing_mm), stated)
        head = head_centre(self._look(hip, VIEWS[:1]).labels)
        if head is not None and _off_place_mm(head) >= _RECENTRE_MM:
            column, row, _ = hip.image_from_frame @ (*head, 1.0)
            hip = replace(hip, image_from_frame=frame.image_from_frame((column, row), candidate.side, spacing_mm))
        return self.read(hip)

    def read(self, hip: FramedHip) -> Decomposition:
        """Decompose a hip whose place is known: maps as the frame shows it, verdicts and figures as the mean of several looks."""
        return self._look(hip, VIEWS)

    def _look(self, hip: FramedHip, views: Sequence[tuple[float, tuple[float, float]]]) -> Decomposition:
        crops = [frame.cut(hip, *view) for view in views]
        looks, told = network_inputs(crops, hip.technique.kilovolt)
        departure = departures(hip.technique, self.bundle.usual_technique)
        answers, verdicts, canonical = self._run(self._decomposer, looks, told)
        apart = {Method.DECOMPOSITION: corrected(canonical.mean(0), self.bundle.corrections["decomposer"], departure)}
        stated = apart[Method.DECOMPOSITION]
        if self._regressor is not None:
            (regressed,) = self._run(self._regressor, looks, told)
            apart[Method.REGRESSION] = corrected(regressed.mean(0), self.bundle.corrections["regressor"], departure)
            stated = combined(stated, apart[Method.REGRESSION], self.bundle.regressed)
        channels, (_, inside) = answers[0], crops[0]
        labels = channels[LABELS].argmax(0).astype(np.uint8)
        field = exposed_field(channels[INDEX["field"]] > 0, inside)
        labels[~field] = Label.BACKGROUND
        physical = np.maximum(channels[MAPS], 0.0)
        return Decomposition(
            grey=looks[0, 0],
            density_g_cm2=physical[INDEX["femur_density"]],
            path_cm=physical[INDEX["femur_path"]],
            pelvis_g_cm2=physical[INDEX["pelvis_density"]],
            soft_g_cm2=physical[INDEX["soft"]],
            labels=labels,
            metal=inside & (channels[INDEX["metal"]] > _METAL_LOGIT),
            field=field,
            **dict(zip(VERDICTS + REGIONAL_VERDICTS, sigmoid(verdicts.mean(0)).tolist(), strict=True)),
            canonical=canonical_figures(stated),
            apart={method: canonical_figures(answer) for method, answer in apart.items()},
            image_from_frame=hip.image_from_frame,
        )

    def _run(
        self, network: nn.Module, pictures: NDArray[np.float32], told: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], ...]:
        try:
            with torch.inference_mode():
                batch = torch.from_numpy(pictures).to(self.device, memory_format=torch.channels_last)
                answer = network(batch, None if told is None else torch.from_numpy(told).to(self.device))
            parts = (answer,) if isinstance(answer, torch.Tensor) else answer
            return tuple(part.float().cpu().numpy() for part in parts)
        except torch.OutOfMemoryError as error:  # a RuntimeError, as if the image were at fault
            raise MemoryError(f"the {self.device.type} device has not enough free memory") from error


def _placed(network: nn.Module, device: torch.device) -> nn.Module:
    # channels_last is what oneDNN and cuDNN convolve fastest.
    placed: nn.Module = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def network_inputs(
    crops: Sequence[tuple[NDArray[np.float32], NDArray[np.bool_]]], kilovolt: float | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a network is given of one radiograph's crops, (n, 2, ROWS, COLUMNS), and of its technique, (n, factors)."""
    return np.stack([standardise(*crop) for crop in crops]), np.tile(technique(kilovolt), (len(crops), 1))


def _off_place_mm(head: tuple[float, float]) -> float:
    """How far a head at (column, row) lies from where the frame wants it."""
    return math.hypot(head[0] - frame.HEAD_COLUMN - 0.5, head[1] - frame.HEAD_ROW - 0.5) * frame.SPACING_MM


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logistic function, safe for large logits."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), np.float32)


def peak(heat: NDArray[np.float32]) -> tuple[float, float, float]:
    """Return (column, row, score) of the highest point, refined to a fraction of a pixel by the weights around it."""
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    r0, c0 = max(row - _PEAK_WINDOW_PX, 0), max(column - _PEAK_WINDOW_PX, 0)
    window = heat[r0 : row + _PEAK_WINDOW_PX + 1, c0 : column + _PEAK_WINDOW_PX + 1].astype(float)
    rows, columns = np.indices(window.shape)
    total = window.sum() or 1.0
    return (
        float((columns * window).sum() / total + c0 + 0.5),
        float((rows * window).sum() / total + r0 + 0.5),
        float(heat[row, column]),
    )


def peaks(heat: NDArray[np.float32]) -> list[tuple[float, float, float]]:
    """The highest peak, and the highest that is another head: (column, row, score) each."""
    first = peak(heat)
    rows, columns = np.indices(heat.shape) + 0.5
    elsewhere = np.hypot(columns - first[0], rows - first[1]) * frame.LOCATOR_SPACING_MM > _HEADS_APART_MM
    return [first, peak(np.where(elsewhere, heat, np.float32(0)))]


def on_image(candidate: HipCandidate, shape: tuple[int, ...]) -> bool:
    """Whether the head's centre lies on an image of (rows, columns); an overview reaches beyond it."""
    column, row = candidate.head_px
    return 0 <= column < shape[1] and 0 <= row < shape[0]


def one_head_one_side(candidates: list[HipCandidate], spacing_mm: tuple[float, float]) -> list[HipCandidate]:
    """Keep the most probable candidates such that no side and no head is taken twice."""
    kept: list[HipCandidate] = []
    for candidate in sorted(candidates, key=lambda one: one.score, reverse=True):
        apart = [
            np.hypot(
                (candidate.head_px[0] - other.head_px[0]) * spacing_mm[1],
                (candidate.head_px[1] - other.head_px[1]) * spacing_mm[0],
            )
            for other in kept
        ]
        if all(other.side is not candidate.side for other in kept) and all(mm > _HEADS_APART_MM for mm in apart):
            kept.append(candidate)
    return kept


def head_centre(labels: NDArray[np.uint8]) -> tuple[float, float] | None:
    """(column, row) of the head label's centroid in the frame, None where no head is seen."""
    rows, columns = np.nonzero(labels == Label.HEAD)
    if rows.size == 0:
        return None
    return float(columns.mean() + 0.5), float(rows.mean() + 0.5)
