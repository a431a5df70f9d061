"""A trained segmentation on disk: `segmentation.json` (what it is, how it came about) beside `weights.safetensors` (float16)."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dicomnode.errors import BundleError, ConfigurationError
from training.config import build_frozen
from training.segmentation.border import build_border
from training.segmentation.config import MusclesConfiguration, SegmentationRun
from training.segmentation.network import build_muscle_network, build_network
from training.segmentation.quality import QualityLine

FORMAT = 5
SHIPPED_SEGMENTATION = Path(__file__).resolve().parents[1] / "models" / "segmentation"
"""The model that comes with the project; its card says what it can do."""


@dataclass(frozen=True)
class MuscleModel:
    """What labels the muscles around bones that were found."""

    run: MusclesConfiguration
    network: nn.Module
    """Of `training.segmentation.network.build_muscle_network`."""
    quality: QualityLine


@dataclass(frozen=True)
class SegmentationModel:
    """Ready to be used."""

    run: SegmentationRun
    network: nn.Module
    """Of `training.segmentation.network`."""
    border: nn.Module
    """Of `training.segmentation.border`."""
    quality: QualityLine
    muscles: MuscleModel | None = None
    """None where it knows bones only."""
    learned_from: tuple[str, ...] = ("simulated CT",)
    sha256: str = ""
    """Of the stored weights; empty where they were not stored yet."""


def save_model(model: SegmentationModel, provenance: dict[str, Any], folder: Path) -> None:
    """Write the model; computation is in float32 wherever it is loaded, the weights are stored as float16."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "weights.safetensors"
    muscles = model.muscles
    state = _parts(model.network, model.border, None if muscles is None else muscles.network).state_dict()
    save_file({name: tensor.half().contiguous() for name, tensor in state.items()}, weights)
    document = {
        "format": FORMAT,
        "learned_from": model.learned_from,
        "run": asdict(model.run, dict_factory=_stated),
        "quality": asdict(model.quality),
        "muscle_quality": None if muscles is None else asdict(muscles.quality),
        "provenance": provenance,
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    (folder / "segmentation.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _stated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What a TOML file would state: a value that is not there has no name there either."""
    return {name: value for name, value in pairs if value is not None}


def load_model(folder: Path) -> SegmentationModel:
    """Load and verify a model, onto CUDA where there is one.

    Raises:
        BundleError: files missing, damaged, or of another format.
    """
    try:
        document = json.loads((folder / "segmentation.json").read_text(encoding="utf-8"))
        stored = (folder / "weights.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{folder} holds no segmentation: {error}; `python -m training segmentation evaluate` makes one"
        ) from error
    if document.get("format") != FORMAT:
        raise BundleError(f"{folder}: format {document.get('format')}, expected {FORMAT}: made by another version")
    digest = hashlib.sha256(stored).hexdigest()
    if digest != document["weights_sha256"]:
        raise BundleError(
            f"{folder / 'weights.safetensors'} has SHA-256 {digest}, segmentation.json states {document['weights_sha256']};"
            " copy the model again"
        )
    try:
        run: SegmentationRun = build_frozen(SegmentationRun, document["run"], str(folder))
    except ConfigurationError as error:
        raise BundleError(str(error)) from error
    muscles = None if run.muscles is None else build_muscle_network(run, run.muscles)
    parts = _parts(build_network(run), build_border(), muscles)
    parts.load_state_dict({k: v.float() for k, v in load_file(folder / "weights.safetensors").items()})
    parts.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return SegmentationModel(
        run,
        parts["network"],
        parts["border"],
        _line(document["quality"]),
        None
        if muscles is None or run.muscles is None
        else MuscleModel(run.muscles, muscles, _line(document["muscle_quality"])),
        tuple(document["learned_from"]),
        digest,
    )


def _line(stored: dict[str, list[float]]) -> QualityLine:
    return QualityLine(tuple(stored["uncertainty"]), tuple(stored["predicted_dice"]))


def _parts(network: nn.Module, border: nn.Module, muscles: nn.Module | None) -> nn.ModuleDict:
    parts = {"network": network, "border": border}
    return nn.ModuleDict(parts if muscles is None else parts | {"muscles": muscles})
