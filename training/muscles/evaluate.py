"""What a trained network can do: lean mass of each muscle in the field, on held-out phantoms, as they come and with fat in them.

Rule: a muscle is judged where at least `LEAST_SHARE` of its lean mass, as modelled, lies in the field; what is compared is the mass
in the field. Frog-leg views are left out, as the node refuses them.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dicomnode.errors import ConfigurationError
from training.anatomy.muscles import CHANNELS, NAMES, Muscle
from training.muscles.augment import PIXEL_CM2, draw_shares, infiltrate, plain_example
from training.muscles.config import InfiltrationConfiguration, MusclesRun
from training.muscles.shards import load_muscles
from training.muscles.targets import field_mask
from training.muscles.train import build_network, held_out_subjects, lean_maps
from training.pairs import Pairs
from training.statistics import agreement, bootstrap_intervals, r_and_rmse

LEAST_SHARE = 0.5
WHOLE_SHARE = 0.95
"""A muscle counts as whole in the field from here: its mass then says nothing of where the field ends."""
LEAST_CASES = 10
"""Fewer say too little for a correlation."""
VARIANTS = ("as drawn", "infiltrated")


@dataclass(frozen=True)
class Case:
    """One muscle of one side of one radiograph."""

    subject: int
    variant: str
    side: str
    muscle: str
    field_share: float
    """Of the lean mass as modelled: what lies in the field."""
    infiltrated_share: float
    """Of the lean mass: what was to be turned into fat."""
    truth_g: float
    prediction_g: float


@dataclass(frozen=True)
class MuscleFigures:
    """Agreement of one muscle, both sides together, masses in g."""

    variant: str
    muscle: str
    selection: str
    """"in field" (`LEAST_SHARE`) or "whole" (`WHOLE_SHARE`)."""
    n: int
    phantoms: int
    truth_mean_g: float
    truth_sd_g: float
    pearson_r: float
    pearson_r_interval: tuple[float, float]
    """95 %, by drawing phantoms with replacement."""
    rmse_g: float
    bias_g: float


def load_network(run: MusclesRun, folder: Path) -> nn.Module:
    """Read what `train` has left.

    Raises:
        ConfigurationError: nothing was trained in `folder`.
    """
    trained = folder / "network.pt"
    if not trained.exists():
        raise ConfigurationError(f"{trained} does not exist; run `python -m training muscles train`")
    network = build_network(run)
    network.load_state_dict(torch.load(trained, map_location="cpu", weights_only=True))
    return network.eval()


def measure(
    run: MusclesRun,
    network: nn.Module,
    pairs: Pairs,
    muscles: Path,
    done: Callable[[int], object] = lambda _: None,
) -> list[Case]:
    """Weigh the muscles of the test phantoms, each on two radiographs: as drawn, and with fat in every muscle."""
    cases = []
    for subject in held_out_subjects(run):
        if not pairs.table[2 * subject]["is_frog_leg"]:
            for variant in range(len(VARIANTS)):
                cases += _cases(run, network, pairs, muscles, int(subject), variant)
        done(1)
    return cases


def _cases(run: MusclesRun, network: nn.Module, pairs: Pairs, muscles: Path, subject: int, variant: int) -> list[Case]:
    rng = np.random.default_rng((run.seed, 1, subject, variant))
    stored = load_muscles(muscles, subject)
    always = InfiltrationConfiguration(share=float(variant), most=run.infiltration.most)
    shares = draw_shares(always, rng)
    overview = pairs.overview(subject).materials.astype(np.float32)
    materials, maps = infiltrate(overview, stored.maps.astype(np.float32), shares)
    field = field_mask(stored.figures["field_px"])
    example = plain_example(materials, maps, field, rng)
    with torch.inference_mode():
        predicted = lean_maps(network, torch.from_numpy(example.network_input)[None])[0].numpy()
    truth, prediction = (
        PIXEL_CM2 * (image * example.field).sum((1, 2), dtype=np.float64) for image in (example.maps, predicted)
    )
    cases = []
    for channel, (side, muscle) in enumerate(CHANNELS):
        figures = stored.figures["muscles"][NAMES[channel]]
        cases.append(
            Case(
                subject=subject,
                variant=VARIANTS[variant],
                side=str(side),
                muscle=muscle.name.lower(),
                field_share=figures["field_g"] / figures["lean_g"],
                infiltrated_share=float(shares[channel]),
                truth_g=float(truth[channel]),
                prediction_g=float(prediction[channel]),
            )
        )
    return cases


def summarise(cases: list[Case]) -> list[MuscleFigures]:
    """Gather the figures of each variant, muscle and selection that has `LEAST_CASES`."""
    figures = []
    for variant in VARIANTS:
        for muscle in Muscle:
            for selection, least in (("in field", LEAST_SHARE), ("whole", WHOLE_SHARE)):
                own = selected(cases, variant, muscle, least)
                if len(own) >= LEAST_CASES:
                    figures.append(_figures(own, selection))
    return figures


def selected(cases: list[Case], variant: str, muscle: Muscle, least_share: float) -> list[Case]:
    """The cases of one muscle that lie in the field to this share."""
    name = muscle.name.lower()
    return [c for c in cases if c.variant == variant and c.muscle == name and c.field_share >= least_share]


def _figures(cases: list[Case], selection: str) -> MuscleFigures:
    truth, prediction = (np.array([getattr(c, name) for c in cases]) for name in ("truth_g", "prediction_g"))
    phantoms: NDArray[np.int64] = np.array([c.subject for c in cases], np.int64)
    found = agreement(truth, prediction)
    low, high = bootstrap_intervals(r_and_rmse, phantoms, truth, prediction)[0]
    return MuscleFigures(
        variant=cases[0].variant,
        muscle=cases[0].muscle,
        selection=selection,
        n=found.n,
        phantoms=len(np.unique(phantoms)),
        truth_mean_g=found.truth_mean,
        truth_sd_g=found.truth_sd,
        pearson_r=found.pearson_r,
        pearson_r_interval=(float(low), float(high)),
        rmse_g=found.rmse,
        bias_g=found.bias,
    )


def write_summary(figures: list[MuscleFigures], cases: list[Case], provenance: dict[str, Any], folder: Path) -> None:
    """`figures.json` and `cases.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = {
        "note": "held-out phantoms, simulated radiographs: says nothing about patients",
        "rule": f"a muscle is judged where at least {LEAST_SHARE:.0%} of its modelled lean mass lies in the field",
        **provenance,
        "muscles": [asdict(f) for f in figures],
    }
    (folder / "figures.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases], indent=0) + "\n", encoding="utf-8")
