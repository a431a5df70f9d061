"""Divide phantoms into muscles, train on their projections, evaluate: `python -m training muscles`."""

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from training.anatomy.muscles import bone_share, make_muscles
from training.anatomy.phantom import patient_from_femur
from training.anatomy.population import draw_subject
from training.muscles.config import MusclesRun, load_muscles_run
from training.muscles.evaluate import MuscleFigures, load_network, measure, summarise, write_summary
from training.muscles.picture import draw_agreement, draw_partition
from training.muscles.shards import make_shards, shards_of
from training.muscles.train import held_out_subjects, train, training_subjects
from training.pairs import SUBJECTS_PER_SHARD, load_pairs
from training.provenance import code_commit

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help=__doc__, context_settings={"help_option_names": ["-h", "--help"]}
)
console = Console()

Config = Annotated[Path, typer.Option("--config", "-c", help="The run's TOML file.")]
PairsFolder = Annotated[Path, typer.Option("--pairs", "-p", help="The pairs of phantoms; nothing in it is rewritten.")]
Maps = Annotated[
    Path | None, typer.Option("--maps", "-m", help="Where the muscles' maps lie; by default beside the pairs.")
]
Folder = Annotated[Path, typer.Option("--folder", "-f", help="Where checkpoints, weights and evaluation lie.")]
_CONFIG = Path("conf/training/muscles.toml")
_PAIRS = Path("runs/hip/pairs")
_FOLDER = Path("runs/muscles")


@app.command(name="pairs")
def pairs_command(config: Config = _CONFIG, pairs: PairsFolder = _PAIRS, maps: Maps = None) -> None:
    """Make the muscles' maps of the phantoms that the run uses; goes on where it was interrupted."""
    run = load_muscles_run(config)
    shards = shards_of([*training_subjects(run), *held_out_subjects(run)])
    start = time.process_time()
    with tqdm(total=len(shards) * SUBJECTS_PER_SHARD, desc="muscles", unit="phantom") as progress:
        make_shards(run.pairs.seed, run.pairs.count, shards, maps or pairs, progress.update)
    console.print(f"written   {maps or pairs}; {time.process_time() - start:.0f} s of processor time")


@app.command(name="train")
def train_command(
    config: Config = _CONFIG, pairs: PairsFolder = _PAIRS, maps: Maps = None, folder: Folder = _FOLDER, workers: int = 0
) -> None:
    """Train on the maps and the pairs' overviews; goes on from the last checkpoint."""
    start = time.process_time()
    train(load_muscles_run(config), load_pairs(pairs), maps or pairs, folder, workers=workers)
    console.print(f"trained   {folder / 'network.pt'}; {time.process_time() - start:.0f} s of processor time")


@app.command()
def evaluate(
    config: Config = _CONFIG, pairs: PairsFolder = _PAIRS, maps: Maps = None, folder: Folder = _FOLDER
) -> None:
    """Weigh the muscles of the test phantoms on simulated radiographs; prints agreement and draws a scatter plot."""
    run = load_muscles_run(config)
    network = load_network(run, folder)
    start = time.process_time()
    with tqdm(total=len(held_out_subjects(run)), desc="phantoms", unit="phantom") as progress:
        cases = measure(run, network, load_pairs(pairs), maps or pairs, progress.update)
    figures, output = summarise(cases), folder / "evaluation"
    write_summary(figures, cases, _provenance(run, config), output)
    draw_agreement(cases, output / "scatter.png")
    _print(figures)
    console.print(f"written   {output}; {time.process_time() - start:.0f} s of processor time")


@app.command()
def picture(
    output: Annotated[Path, typer.Argument(help="PNG file to write.", metavar="OUTPUT.png")],
    index: Annotated[int, typer.Option(help="Number of the phantom.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the population.")] = 1,
) -> None:
    """Draw slices through one phantom with its muscles in colour."""
    subject = draw_subject(seed, index)
    muscles = make_muscles(subject)
    motions = {hip.side: patient_from_femur(subject, hip) for hip in subject.hips}
    draw_partition(muscles, bone_share(subject, motions, muscles.labels.shape, muscles.patient_from_voxel), output)
    console.print(f"drawn     {output}")


def _provenance(run: MusclesRun, config: Path) -> dict[str, str | int]:
    return {
        "name": run.name,
        "version": run.version,
        "seed": run.seed,
        "configuration": config.name,
        "commit": code_commit(),
        "torch": torch.__version__,
    }


def _print(figures: list[MuscleFigures]) -> None:
    table = Table(title="Held-out phantoms, simulated radiographs: says nothing about patients", box=SIMPLE_HEAD)
    for heading in ("muscle", "fat", "seen", "n", "mean g", "SD g", "r", "95 %", "RMSE g", "bias g"):
        text = heading in ("muscle", "fat", "seen")
        table.add_column(heading, justify="left" if text else "right", no_wrap=not text)
    for f in figures:
        low, high = f.pearson_r_interval
        table.add_row(
            f.muscle.replace("_", " "),
            f.variant,
            f.selection,
            str(f.n),
            f"{f.truth_mean_g:.0f}",
            f"{f.truth_sd_g:.0f}",
            f"{f.pearson_r:.3f}",
            f"{low:.2f} to {high:.2f}",
            f"{f.rmse_g:.1f}",
            f"{f.bias_g:+.1f}",
        )
    console.print(table)
