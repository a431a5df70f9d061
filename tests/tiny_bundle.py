"""A bundle of the right form with small random networks, for tests that need no figures."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from dicomnode.inference import intensity
from dicomnode.inference.bundle import FORMAT, frame_document
from dicomnode.inference.channels import CANONICAL, CHANNELS, LOCATOR_CHANNELS, REGIONAL_VERDICTS, REGIONS, VERDICTS
from dicomnode.inference.network import HipNet, NetworkShape, Regressor, RegressorShape
from dicomnode.inference.technique import CORRECTED, FACTORS


def write_tiny_bundle(folder: Path) -> Path:
    """Write the bundle and return its folder."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    shapes = {
        "locator": NetworkShape(2, len(LOCATOR_CHANNELS), (4, 6, 8)),
        "decomposer": NetworkShape(
            2,
            len(CHANNELS),
            (4, 6, 8),
            len(VERDICTS),
            canonical=True,
            factors=len(FACTORS),
            regional_verdicts=len(REGIONAL_VERDICTS),
        ),
    }
    regressor = RegressorShape(2, (4, 6), len(FACTORS))
    networks: dict[str, HipNet | Regressor] = {
        **{name: HipNet(shape) for name, shape in shapes.items()},
        "regressor": Regressor(regressor),
    }
    tensors: dict[str, torch.Tensor] = {}
    for name, network in networks.items():
        state = network.state_dict()
        tensors |= {
            f"{name}.{key}": value.half() if value.is_floating_point() else value for key, value in state.items()
        }
    weights = folder / "weights.safetensors"
    save_file(tensors, weights)
    document = {
        "format": FORMAT,
        "name": "tiny",
        "version": "0",
        "trained_on_simulation": True,
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "frame": frame_document(),
        "intensity_transform": intensity.VERSION,
        "networks": {name: asdict(network.shape) for name, network in networks.items()},
        "regressed": {region.value: {name: 0.5 for name, _ in CANONICAL} for region in REGIONS},
        "usual_technique": dict.fromkeys(CORRECTED, 0.0),
        "corrections": {
            name: {
                factor: {region.value: {one: 0.0 for one, _ in CANONICAL} for region in REGIONS} for factor in CORRECTED
            }
            for name in ("decomposer", "regressor")
        },
        "limits": {
            "locator_score": 0.3,
            "anteroposterior_hip": 0.5,
            "implant": 0.5,
            "fracture": 0.5,
            "metal_cm2": 0.5,
            "explained": 0.2,
            "femur_area_cm2": [10.0, 150.0],
            "shaft_angle_deg": [-20.0, 20.0],
            "canonical_share": [0.0, 100.0],
        },
        "intervals": {"canonical": {}, "projected": {}},
    }
    (folder / "model.json").write_text(json.dumps(document))
    return folder
