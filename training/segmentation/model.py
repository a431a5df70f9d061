"""A trained segmentation on disk: `segmentation.json` (what it is, how it came about) beside its weights (float16).

Those of the bones are `weights.safetensors`, those of the muscles `muscles.safetensors`.
"""

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
WEIGHTS, MUSCLES = "weights.safetensors", "muscles.safetensors"
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
    """Of the digests of the stored weights; empty where they were not stored yet."""


def save_model(model: SegmentationModel, provenance: dict[str, Any], folder: Path) -> None:
    """Write the model; computation is in float32 wherever it is loaded, the weights are stored as float16."""
    folder.mkdir(parents=True, exist_ok=True)
    muscles = model.muscles
    digests = {WEIGHTS: _store(_bones(model.network, model.border), folder / WEIGHTS)}
    if muscles is not None:
        digests[MUSCLES] = _store(muscles.network, folder / MUSCLES)
    document = {
        "format": FORMAT,
        "learned_from": model.learned_from,
        "run": asdict(model.run, dict_factory=_stated),
        "quality": asdict(model.quality),
        "muscle_quality": None if muscles is None else asdict(muscles.quality),
        "provenance": provenance,
        "weights_sha256": digests,
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
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{folder} holds no segmentation: {error}; `python -m training segmentation evaluate` makes one"
        ) from error
    if document.get("format") != FORMAT:
        raise BundleError(f"{folder}: format {document.get('format')}, expected {FORMAT}: made by another version")
    digests = document["weights_sha256"]
    try:
        run: SegmentationRun = build_frozen(SegmentationRun, document["run"], str(folder))
    except ConfigurationError as error:
        raise BundleError(str(error)) from error
    bones = _bones(build_network(run), build_border())
    _restore(bones, folder / WEIGHTS, digests)
    muscles = None
    if run.muscles is not None:
        muscles = MuscleModel(run.muscles, build_muscle_network(run, run.muscles), _line(document["muscle_quality"]))
        _restore(muscles.network, folder / MUSCLES, digests)
    together = hashlib.sha256("".join(digests.values()).encode()).hexdigest()
    network, border, quality = bones["network"], bones["border"], _line(document["quality"])
    return SegmentationModel(run, network, border, quality, muscles, tuple(document["learned_from"]), together)


def _line(stored: dict[str, list[float]]) -> QualityLine:
    return QualityLine(tuple(stored["uncertainty"]), tuple(stored["predicted_dice"]))


def _bones(network: nn.Module, border: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({"network": network, "border": border})


def _store(module: nn.Module, file: Path) -> str:
    """Write weights; returns their SHA-256."""
    save_file({name: tensor.half().contiguous() for name, tensor in module.state_dict().items()}, file)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _restore(module: nn.Module, file: Path, digests: dict[str, str]) -> None:
    """Read and verify weights, onto CUDA where there is one."""
    if not file.is_file():
        raise BundleError(f"{file} does not exist; copy the model again")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != digests[file.name]:
        raise BundleError(
            f"{file} has SHA-256 {digest}, segmentation.json states {digests[file.name]}; copy the model again"
        )
    module.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    module.to("cuda" if torch.cuda.is_available() else "cpu").eval()
