"""Train a Bayesian U-Net on phantoms as CT, evaluate it, segment a CT: `python -m training segmentation`."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from dicomnode.errors import ConfigurationError
from training.anatomy.ct import read_ct, sitk
from training.anatomy.labels import LabelMap
from training.anatomy.lean import muscle_masses
from training.anatomy.population import draw_subject
from training.provenance import code_commit
from training.segmentation.config import SegmentationRun, load_segmentation
from training.segmentation.evaluate import (
    Summary,
    compare,
    finish,
    held_out_cts,
    hip_cases,
    pelvis_cases,
    summarise,
    write_summary,
)
from training.segmentation.labelled import reference_labels
from training.segmentation.library import library_size, load_tissues, make_library, phantom_file
from training.segmentation.model import SHIPPED_SEGMENTATION, load_model
from training.segmentation.model_card import write_card
from training.segmentation.phantom_ct import pelvis_case
from training.segmentation.picture import draw_slices, draw_warning
from training.segmentation.predict import segment
from training.segmentation.train import train
from training.segmentation.train_border import train_border
from training.split import split_subjects

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help=__doc__, context_settings={"help_option_names": ["-h", "--help"]}
)
console = Console()

Config = Annotated[Path, typer.Option("--config", "-c", help="The run's TOML file.")]
Folder = Annotated[Path, typer.Option("--folder", "-f", help="Where phantoms, checkpoints, model and evaluation lie.")]
Atlas = Annotated[
    Path | None, typer.Option("--atlas", help="Folder of reference anatomy, where the run wants one; see docs/data.md.")
]
Picture = Annotated[Path | None, typer.Option(help="PNG file to draw slices with contours into.")]
Reference = Annotated[
    Path | None,
    typer.Option(help="Label map on the CT's grid (NIfTI, names in the JSON file beside it) to compare with."),
]
_CONFIG = Path("conf/training/segmentation.toml")
_FOLDER = Path("runs/segmentation")


@app.command(name="train")
def train_command(config: Config = _CONFIG, folder: Folder = _FOLDER, atlas: Atlas = None, workers: int = 0) -> None:
    """Make the phantoms and train on them; goes on where it was interrupted."""
    run = load_segmentation(config)
    _library(run, folder, atlas)
    library = folder / "phantoms"
    train(run, library, folder, workers=workers)
    with tqdm(total=run.border.scans, desc="borders", unit="scan") as progress:
        train_border(run, library, folder, progress.update)
    console.print(f"trained   {', '.join(str(file) for file in sorted(folder.glob('*.pt')))}")


@app.command()
def evaluate(
    config: Config = _CONFIG,
    folder: Folder = _FOLDER,
    atlas: Atlas = None,
    ct: Annotated[Path | None, typer.Option(help="A real CT to compare on too, with --ct-labels.")] = None,
    ct_labels: Annotated[
        Path | None, typer.Option(help="Its label map (NIfTI, names in the JSON file beside it).")
    ] = None,
) -> None:
    """Fit predicted Dice on the validation phantoms, write the model, and measure it on the test phantoms."""
    run = load_segmentation(config)
    if (ct is None) != (ct_labels is None):
        raise ConfigurationError("--ct and --ct-labels belong together: give both, or neither")
    real = None if ct is None or ct_labels is None else (volume := read_ct(ct), reference_labels(ct_labels, volume))
    _library(run, folder, atlas)
    library, split = folder / "phantoms", split_subjects(run.phantoms.count, run.split)
    start = time.process_time()
    with tqdm(desc="CTs", unit="CT") as progress:
        model = finish(run, folder, library, _provenance(config), progress.update)
        pelves = pelvis_cases(model, library, split.test, run.seed + 2, progress.update)
        hips = hip_cases(model, library, split.test, run.seed + 3, progress.update)
        patients = held_out_cts(model, progress.update, tqdm.write)
    summary, output = replace(summarise(pelves, hips), held_out_cts=patients), folder / "model" / "evaluation"
    if real is not None:
        summary = replace(summary, real_ct=compare(segment(real[0], model), real[1]))
    write_summary(summary, pelves + hips, output)
    write_card(model, summary, folder / "model")
    draw_warning([case for case in hips if not case.is_muscle], run.inference.least_dice, output / "warning.png")
    if run.muscles is not None:
        draw_warning([case for case in hips if case.is_muscle], run.muscles.least_dice, output / "warning_muscles.png")
    index = int(split.test[0])
    scanned = pelvis_case(
        load_tissues(phantom_file(library, index)), draw_subject(run.phantoms.seed, index), np.random.default_rng(0)
    )
    draw_slices(scanned.ct, segment(scanned.ct, model).labels.values, output / "phantom.png", scanned.truth.values)
    _print(summary)
    console.print(f"written   {folder / 'model'}; {time.process_time() - start:.0f} s of processor time")


@app.command()
def predict(
    ct: Annotated[Path, typer.Argument(help="NIfTI file, or folder with one DICOM CT series.", metavar="CT")],
    model: Annotated[
        Path, typer.Option("--model", "-m", help="Folder of a segmentation model.", show_default="the shipped one")
    ] = SHIPPED_SEGMENTATION,
    output: Annotated[Path, typer.Option("--output", "-o", help="NIfTI file to write; names go beside it.")] = Path(
        "labels.nii.gz"
    ),
    picture: Picture = None,
    reference: Reference = None,
    seed: Annotated[int, typer.Option(help="Seed of the dropout.")] = 0,
) -> None:
    """Label femora, hip bones, sacrum and the hips' muscles in a CT; says which structures a person must look at."""
    volume, loaded = read_ct(ct), load_model(model)
    found = segment(volume, loaded, seed, progress=True)
    truth = None if reference is None else reference_labels(reference, volume)
    compared = {} if truth is None else compare(found, truth)
    masses = muscle_masses(volume, found.labels)
    write_labels(found.labels, output)
    figures = {
        name: {
            "volume_cm3": figure.volume_cm3,
            "uncertainty": figure.uncertainty,
            "predicted_dice": figure.predicted_dice,
            "is_doubtful": figure.is_doubtful,
            "lean_g": masses[name].lean_g if name in masses else None,
            "is_cut": masses[name].is_cut if name in masses else None,
            "dice": compared.get(name, {}).get("dice"),
        }
        for name, figure in found.figures.items()
    }
    figures_file = output.with_name(output.name.replace(".nii.gz", ".figures.json"))
    figures_file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    table = Table(title=f"Learned from {' and '.join(loaded.learned_from)}", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("structure", "cm3", "lean g", "spread", "predicted", "Dice", ""):
        table.add_column(heading, justify="left" if heading in ("structure", "") else "right", no_wrap=True)
    for name, row in figures.items():
        dice = "" if row["dice"] is None else f"{row['dice']:.3f}"
        mass = masses.get(name)
        lean = "" if mass is None else f"{mass.lean_g:.0f}{' +' * mass.is_cut}"
        doubt = "[yellow]look at it[/]" if row["is_doubtful"] else ""
        if not row["volume_cm3"]:
            doubt = "[yellow]not found[/]"
        volume_cm3, uncertainty = f"{row['volume_cm3']:.1f}", f"{row['uncertainty']:.4f}"
        table.add_row(
            name.replace("_", " "), volume_cm3, lean, uncertainty, f"{row['predicted_dice']:.3f}", dice, doubt
        )
    console.print(table)
    if any(mass.is_cut for mass in masses.values()):
        console.print("+: the muscle goes on beyond the CT; what is weighed is the part that was scanned")
    if picture is not None:
        draw_slices(volume, found.labels.values, picture, None if truth is None else truth.values)
        console.print(f"drawn     {picture}")
    console.print(f"written   {output}, {figures_file}")


def write_labels(labels: LabelMap, file: Path) -> None:
    """Write a NIfTI file and its names, as `training.anatomy.labels.read_labels` reads them."""
    matrix = labels.patient_from_voxel
    spacing_mm = np.linalg.norm(matrix[:3, :3], axis=0)
    image = sitk.GetImageFromArray(labels.values)
    image.SetSpacing(spacing_mm.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection((matrix[:3, :3] / spacing_mm).ravel().tolist())
    sitk.WriteImage(image, str(file), True)
    names = {str(value): name for value, name in labels.names.items()}
    file.with_name(file.name.replace(".nii.gz", ".json")).write_text(
        json.dumps(names, indent=1) + "\n", encoding="utf-8"
    )


def _library(run: SegmentationRun, folder: Path, atlas: Path | None) -> None:
    with tqdm(total=library_size(run), desc="people", unit="person") as progress:
        make_library(run, folder / "phantoms", atlas, progress.update)


def _provenance(config: Path) -> dict[str, str]:
    return {"configuration": config.name, "commit": code_commit(), "torch": torch.__version__}


def _print(summary: Summary) -> None:
    table = Table(title="Held-out phantoms, simulated CT: says nothing about patients", box=SIMPLE_HEAD)
    for heading in ("whole pelvis", "mean Dice", "least", "volume error", "n"):
        table.add_column(heading, justify="left" if heading == "whole pelvis" else "right")
    for name, row in summary.pelves.items():
        error = f"{100 * row['volume_error']:.1f} %"
        table.add_row(name, f"{row['mean']:.3f}", f"{row['least']:.3f}", error, f"{row['n']:.0f}")
    console.print(table)
    for name, figures in summary.real_ct.items():
        console.print(
            f"real CT, {name}: Dice {figures['dice']:.3f} to its label map, predicted {figures['predicted_dice']:.3f}"
        )
    for what, dice, warning in (
        ("bones", summary.hip_dice, summary.warning),
        ("muscles", summary.muscle_dice, summary.muscle_warning),
    ):
        if warning is None:
            continue
        area = "none" if warning.auroc is None else f"{warning.auroc:.3f}"
        console.print(f"single hips, mean Dice of {what}: " + ", ".join(f"{k} {v:.3f}" for k, v in dice.items()))
        console.print(
            f"uncertainty: {warning.failures} of {warning.n} under Dice {warning.failure_dice:g}, AUROC {area};"
            f" predicted Dice: r {warning.pearson_r:.3f}, mean error {warning.mean_absolute_error:.3f}"
        )
