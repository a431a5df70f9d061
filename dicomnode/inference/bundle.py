"""The model bundle: `model.json` beside `weights.safetensors`. What a measurement can be traced back to.

`model.json` holds name, version, format, channels with units, network shapes, intensity transform, prediction intervals,
plausibility limits, provenance (seeds, commit, configuration, split) and the SHA-256 of the weights. Weights are stored as
float16 and computed with in float32; every published figure is measured on the exported bundle.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from dicomnode.domain.measurement import ModelIdentity, TrainingData
from dicomnode.errors import BundleError
from dicomnode.inference import frame, intensity
from dicomnode.inference.channels import CANONICAL, REGIONS
from dicomnode.inference.network import HipNet, NetworkShape, Regressor, RegressorShape
from dicomnode.inference.technique import CORRECTED

_Net = TypeVar("_Net", bound=torch.nn.Module)

FORMAT = 6
SHIPPED = Path(__file__).resolve().parent.parent / "models" / "hip"
"""The bundle that comes with the package."""


@dataclass(frozen=True)
class Limits:
    """Beyond these, a hip is not measurable. Set from validation pairs at export."""

    locator_score: float
    """Least probability at the femoral head's peak."""
    anteroposterior_hip: float
    """Least probability of an AP hip."""
    implant: float
    """Largest probability of an implant."""
    fracture: float
    """Largest probability of a displaced fracture."""
    metal_cm2: float
    """Largest area of metal."""
    explained: float
    """Least correlation of the re-composed bone with the radiograph."""
    femur_area_cm2: tuple[float, float]
    """Range of the femur's projected area within the frame."""
    shaft_angle_deg: tuple[float, float]
    """Range of the shaft axis against the image's vertical, positive when its distal end points laterally."""
    canonical_share: tuple[float, float]
    """Range of a region's areal BMD in the canonical pose, as a share of the projected one."""


@dataclass(frozen=True)
class Intervals:
    """What turns figures into 90 % prediction intervals, calibrated on validation pairs; empty before that."""

    canonical: dict[str, dict[str, float]]
    """region -> quantity -> multiple of the figure's own spread, see `canonical.interval`."""
    projected: dict[str, float]
    """region -> half width for the areal BMD as projected in the pose of the radiograph, g/cm2."""


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle; `document` is the whole of `model.json`."""

    identity: ModelIdentity
    locator: HipNet
    decomposer: HipNet
    regressor: Regressor | None
    """Reads the figures of the canonical pose a second time; None: the decomposer alone states them."""
    regressed: NDArray[np.float32]
    """(regions, quantities) weight of the regressor's reading in the one that is stated, 0..1."""
    corrections: Mapping[str, NDArray[np.float32]]
    """Network -> (factors of `technique.CORRECTED`, regions, quantities) what its logarithms get per unit of each."""
    usual_technique: Mapping[str, float]
    """Factor of `technique.CORRECTED` -> its mean over the radiographs that the corrections were fitted to."""
    limits: Limits
    intervals: Intervals
    document: dict[str, Any]


def load_bundle(folder: Path = SHIPPED) -> Bundle:
    """Load and verify a bundle.

    Raises:
        BundleError: files missing, digest wrong, or made for another format, frame or intensity transform.
    """
    document = _read_document(folder)
    weights = folder / "weights.safetensors"
    digest = _sha256(weights)
    if digest != document["weights_sha256"]:
        raise BundleError(
            f"{weights} has SHA-256 {digest}, model.json states {document['weights_sha256']}; copy the bundle again"
        )
    _require(document, "format", FORMAT)
    _require(document, "intensity_transform", intensity.VERSION)
    _require(document, "frame", frame_document())
    tensors = {name: tensor.float() for name, tensor in load_file(weights).items()}
    return Bundle(
        identity=ModelIdentity(
            name=document["name"],
            version=document["version"],
            digest=_sha256(folder / "model.json"),
            trained_on=_trained_on(document),
        ),
        locator=_network(document["networks"]["locator"], tensors, "locator."),
        decomposer=_network(document["networks"]["decomposer"], tensors, "decomposer."),
        regressor=_regressor(document["networks"].get("regressor"), tensors),
        regressed=_by_region(document["regressed"]),
        corrections={
            network: np.stack([_by_region(table[factor]) for factor in CORRECTED])
            for network, table in document["corrections"].items()
        },
        usual_technique=document["usual_technique"],
        limits=_limits(document["limits"]),
        intervals=Intervals(**document["intervals"]),
        document=document,
    )


def _trained_on(document: dict[str, Any]) -> TrainingData:
    if not document["trained_on_simulation"]:
        return TrainingData.REAL
    provenance = document.get("provenance", {})
    # Weights keep what they have learned, whatever is learned afterwards.
    start = (provenance.get("start") or {}).get("trained_on", TrainingData.SIMULATED)
    has_real = "real" in provenance or start != TrainingData.SIMULATED
    return TrainingData.SIMULATED_AND_REAL if has_real else TrainingData.SIMULATED


def frame_document() -> dict[str, float]:
    """The frame that this code measures in, as it is written into bundles."""
    return {
        "rows": frame.ROWS,
        "columns": frame.COLUMNS,
        "spacing_mm": frame.SPACING_MM,
        "head_row": frame.HEAD_ROW,
        "head_column": frame.HEAD_COLUMN,
    }


def _read_document(folder: Path) -> dict[str, Any]:
    path = folder / "model.json"
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(
            f"no readable model bundle in {folder} ({error}); expected model.json and weights.safetensors"
        ) from error
    missing = {
        "format", "name", "version", "weights_sha256", "networks", "limits", "intervals", "intensity_transform", "frame",
        "regressed", "trained_on_simulation", "corrections", "usual_technique",
    } - document.keys()  # fmt: skip
    if missing:
        raise BundleError(f"{path} lacks {', '.join(sorted(missing))}; export the bundle again")
    if not (folder / "weights.safetensors").is_file():
        raise BundleError(f"{folder} has no weights.safetensors; copy the bundle again")
    return document


def _require(document: dict[str, Any], key: str, expected: object) -> None:
    if document[key] != expected:
        raise BundleError(
            f"bundle was made for {key} {document[key]!r}, this node needs {expected!r}; export it with this version"
        )


def _limits(document: dict[str, Any]) -> Limits:
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
    }
    return Limits(**values)


def _by_region(document: dict[str, dict[str, float]]) -> NDArray[np.float32]:
    return np.array([[document[region][name] for name, _ in CANONICAL] for region in REGIONS], np.float32)


def _regressor(document: dict[str, Any] | None, tensors: dict[str, torch.Tensor]) -> Regressor | None:
    if document is None:
        return None
    network = Regressor(RegressorShape(**{**document, "widths": tuple(document["widths"])}))
    return _loaded(network, tensors, "regressor.")


def _network(document: dict[str, Any], tensors: dict[str, torch.Tensor], prefix: str) -> HipNet:
    shape = NetworkShape(**{**document, "widths": tuple(document["widths"])})
    return _loaded(HipNet(shape), tensors, prefix)


def _loaded(network: _Net, tensors: dict[str, torch.Tensor], prefix: str) -> _Net:
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    try:
        network.load_state_dict(own)
    except RuntimeError as error:
        raise BundleError(f"weights do not fit the {prefix.rstrip('.')} network: {error}") from error
    return network.eval()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
