"""`python -m training`: from nothing to a served bundle, step by step or in one go."""

import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydicom.uid import JPEGLSLossless
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from dicomnode.errors import ConfigurationError, DicomNodeError
from dicomnode.inference.bundle import SHIPPED, load_bundle
from dicomnode.inference.predictor import Predictor
from training.anatomy.ct import read_ct
from training.anatomy.population import draw_subject
from training.attribution import attribute, write_attributions
from training.calibration.picture import draw_rods
from training.calibration.report import calibration_table, write_calibration
from training.calibration.rod_phantom import load_rod_phantom
from training.calibration.rods import calibrate_by_rods
from training.calibration.tissues import calibrate_by_tissues
from training.cases import QUANTITY_LABELS
from training.config import RunConfiguration, load_run
from training.evaluate import Summary, evaluate, summarise, write_evaluation
from training.evaluate_real import evaluate_real, summarise_real
from training.export import export
from training.hospital.cases import decide
from training.hospital.make import SegmentByModel, Tools, fit_dxa_lines, make_hospital_pairs, register_by_similarity
from training.hospital.report import Verdict, reports_table
from training.hospital.table import read_table
from training.ladders.command import ladders_command
from training.muscles.cli import app as muscles
from training.pairs import Pairs, load_beside, load_pairs, make_pairs
from training.projection.radiograph import Exposure
from training.real import load_real
from training.segmentation.cli import app as segmentation
from training.segmentation.model import SHIPPED_SEGMENTATION
from training.simulate_dx import DEFAULT_PROCESSING
from training.split import split_subjects
from training.train import train
from training.whole import measure_whole, phantom_dx

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help=__doc__, context_settings={"help_option_names": ["-h", "--help"]}
)
app.command(name="ladders")(ladders_command)
app.add_typer(muscles, name="muscles")
app.add_typer(segmentation, name="segmentation")
console = Console()
log = logging.getLogger(__name__)

Config = Annotated[Path, typer.Option("--config", "-c", help="The run's TOML file.")]
Folder = Annotated[Path, typer.Option("--folder", "-f", help="Where pairs, checkpoints and evaluation lie.")]
Workers = Annotated[int, typer.Option("--workers", "-w", help="Processes that make or load examples.")]
Anatomy = Annotated[
    Path | None,
    typer.Option(
        "--anatomy", help="Folder of reference anatomy, see docs/data.md; without it phantoms alone are learned from."
    ),
]
Whole = Annotated[int, typer.Option("--whole", help="How many test phantoms are measured on whole radiographs too.")]
_WHOLE = 60
_CONFIG = Path("conf/training/hip.toml")
_FOLDER = Path("runs/hip")


@app.command(name="pairs")
def pairs_command(
    config: Config = _CONFIG, folder: Folder = _FOLDER, workers: Workers = 2, anatomy: Anatomy = None
) -> None:
    """Make the pairs of radiograph materials and targets; goes on where it was interrupted."""
    _pairs(load_run(config), folder, workers, anatomy)


@app.command(name="train")
def train_command(config: Config = _CONFIG, folder: Folder = _FOLDER, workers: Workers = 1) -> None:
    """Train locator and decomposer; goes on from the last checkpoint."""
    _train(load_run(config), folder, workers)


@app.command(name="export")
def export_command(
    config: Config = _CONFIG,
    folder: Folder = _FOLDER,
    output: Annotated[Path, typer.Option(help="The bundle's folder.")] = SHIPPED,
    whole: Whole = _WHOLE,
) -> None:
    """Write the bundle with its limits, intervals, measured figures and model card."""
    _export(load_run(config), folder, output, whole)


@app.command(name="evaluate")
def evaluate_command(
    config: Config = _CONFIG,
    folder: Folder = _FOLDER,
    bundle: Annotated[Path, typer.Option(help="The bundle to evaluate.")] = SHIPPED,
    output: Annotated[Path, typer.Option(help="Where figures.json, cases.csv and plots go.")] = Path("runs/evaluation"),
    whole: Whole = _WHOLE,
) -> None:
    """Measure a bundle on the held-out phantoms of a run: agreement, scatter and Bland-Altman plots, what the errors go with."""
    run = load_run(config)
    pairs = _load(run, folder)
    predictor = Predictor(load_bundle(bundle))
    test = split_subjects(run.pairs.count, run.split).test
    cases, _ = evaluate(predictor, pairs, test, run.seed)
    summary = summarise(
        cases, predictor.bundle.intervals, measure_whole(predictor, pairs, test[:whole], run.pairs.seed, run.seed)
    )
    if (real := load_real(run.hospital)) is not None:
        of_real, _ = evaluate_real(predictor, real.test, run.seed)
        refitted = predictor.bundle.document["figures"].get("real", {}).get("intervals_from_real_hips", [])
        summary = replace(summary, real=summarise_real(of_real, real.test, predictor.bundle.intervals, refitted))
    write_evaluation(output, cases, summary)
    write_attributions(attribute(cases, run.pairs.seed, run.seed), output)
    _print(summary, output)


@app.command()
def example(
    output: Annotated[Path, typer.Argument(help="DICOM file to write.", metavar="OUTPUT.dcm")],
    index: Annotated[int, typer.Option(help="Number of the phantom; take one of the test split.")],
    config: Config = _CONFIG,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 1,
) -> None:
    """Write one phantom's radiograph as a DX object, as a modality would send it."""
    run = load_run(config)
    dataset = phantom_dx(draw_subject(run.pairs.seed, index), seed, Exposure(), DEFAULT_PROCESSING)
    dataset.compress(JPEGLSLossless)
    dataset.save_as(output, enforce_file_format=True)
    console.print(f"{output}: {dataset.Rows} x {dataset.Columns}, SOP Instance UID {dataset.SOPInstanceUID}")


@app.command()
def calibrate(
    ct: Annotated[Path, typer.Argument(help="NIfTI file, or folder with one DICOM CT series.", metavar="CT")],
    phantom: Annotated[
        Path | None, typer.Option(help="The rod phantom's TOML file; without one, the patient's own tissues are used.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG file to draw rods and line into.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")] = Path("calibration.json"),
    kilovolt: Annotated[
        float | None, typer.Option(help="Tube voltage; without a phantom, where the CT does not state it.")
    ] = None,
    blood: Annotated[float | None, typer.Option(help="HU measured in a large vessel; without a phantom.")] = None,
) -> None:
    """Find the line from HU to mg/cm3 of a CT, by the rods under the patient or by the patient's tissues."""
    if phantom is None and picture is not None:
        raise ConfigurationError("--picture shows rods: give --phantom as well")
    if phantom is not None and (kilovolt is not None or blood is not None):
        raise ConfigurationError(
            "--kilovolt and --blood are for a CT without rods: leave them out, or leave out --phantom"
        )
    rods = None if phantom is None else load_rod_phantom(phantom)
    volume = read_ct(ct)
    if rods is None:
        calibration = calibrate_by_tissues(volume, kilovolt, {} if blood is None else {"blood": blood})
    else:
        calibration, found = calibrate_by_rods(volume, rods)
        if picture is not None:
            draw_rods(volume, found, calibration, rods.diameter_mm, picture)
            console.print(f"drawn     {picture}")
    console.print(calibration_table(calibration))
    for doubt in calibration.doubts:
        console.print(f"[yellow]doubtful[/]  {doubt}", soft_wrap=True)
    write_calibration(calibration, output)
    console.print(f"written   {output}")


@app.command()
def hospital(
    table: Annotated[Path, typer.Argument(help="CSV file with a line per case; see training/hospital/table.py.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where pairs and reports go.")] = Path("runs/hospital"),
    segmentation: Annotated[
        Path,
        typer.Option(
            help="Folder of a segmentation model, for CTs without a label map.", show_default="the shipped one"
        ),
    ] = SHIPPED_SEGMENTATION,
) -> None:
    """Make pairs of a hospital's own CTs and radiographs; goes on where it was interrupted."""
    cases = read_table(table)
    tools = Tools(register_by_similarity, SegmentByModel(segmentation))
    with tqdm(total=len(cases), desc="cases", unit="case") as progress:
        reports = make_hospital_pairs(cases, output, tools, lambda _: progress.update())
    console.print(reports_table(reports))
    for line in fit_dxa_lines(cases, reports, output):
        console.print(
            f"{line.maker}, {line.region.replace('_', ' ')}: DXA = {line.intercept_g_cm2:.4f} + {line.slope:.4f} x CT g/cm2,"
            f" n {line.n}, r {line.r:.3f}, SEE {line.see_g_cm2:.4f} g/cm2"
        )
    console.print(f"Reports, pictures and pairs: {output}")


@app.command(name="hospital-review")
def hospital_review(
    folder: Annotated[Path, typer.Argument(help="What `training hospital` wrote.")],
    case: Annotated[str, typer.Argument(help="The case whose picture was looked at.")],
    verdict: Annotated[Verdict, typer.Argument(help="Whether its pairs may be used.")],
    by: Annotated[str, typer.Option(help="Who decides.")],
    reason: Annotated[str, typer.Option(help="What was seen.")],
) -> None:
    """Accept or reject a case after looking at its report.png; name, reason and time stay in its report.json."""
    report = decide(folder, case, verdict, by=by, reason=reason, now=datetime.now(UTC))
    console.print(f"{case} is {report.status} and {verdict}: its pairs are {'used' if report.usable else 'not used'}")


@app.command()
def build(
    config: Config = _CONFIG,
    folder: Folder = _FOLDER,
    output: Annotated[Path, typer.Option(help="The bundle's folder.")] = SHIPPED,
    workers: Workers = 2,
    whole: Whole = _WHOLE,
    anatomy: Anatomy = None,
) -> None:
    """All of it: pairs, training, export with evaluation."""
    run = load_run(config)
    _pairs(run, folder, workers, anatomy)
    _train(run, folder, max(1, workers - 1))
    _export(run, folder, output, whole)


def _pairs(run: RunConfiguration, folder: Path, workers: int, anatomy: Path | None) -> None:
    with tqdm(total=run.pairs.count, desc="pairs", unit="phantom") as progress:
        make_pairs(run.pairs, folder / "pairs", progress.update, workers=workers)
    if run.fractures is not None:
        with tqdm(total=run.fractures.count, desc="fractures", unit="person") as progress:
            make_pairs(run.fractures, folder / "fractures", progress.update, workers=workers)
    if run.atlas is None:
        return
    if anatomy is None:
        log.warning("no --anatomy: phantoms stand in for the %d persons with bones of an atlas", run.atlas.count)
        return
    with tqdm(total=run.atlas.count, desc="atlas", unit="person") as progress:
        make_pairs(run.atlas, folder / "atlas", progress.update, workers=workers, anatomy=anatomy)


def _load(run: RunConfiguration, folder: Path) -> Pairs:
    pairs = load_pairs(folder / "pairs")
    if pairs.count < run.pairs.count:
        raise ConfigurationError(
            f"{folder / 'pairs'} holds {pairs.count} of {run.pairs.count} phantoms; run `python -m training pairs`"
        )
    return pairs


def _train(run: RunConfiguration, folder: Path, workers: int) -> None:
    split = split_subjects(run.pairs.count, run.split)
    train(run, _load(run, folder), split, folder, beside=load_beside(folder, run), workers=workers)


def _export(run: RunConfiguration, folder: Path, output: Path, whole: int) -> None:
    split = split_subjects(run.pairs.count, run.split)
    summary = export(run, _load(run, folder), split, folder, output, whole_count=whole, beside=load_beside(folder, run))
    _print(summary, output / "evaluation")


def _agreement_table(title: str, agreement: dict[str, dict[str, dict[str, Any]]]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD)
    for heading in ("region", "quantity", "n", "r", "ICC", "slope", "RMSE", "bias"):
        text = heading in ("region", "quantity")  # folded where the terminal is narrow; figures never are
        table.add_column(heading, justify="left" if text else "right", no_wrap=not text)
    for region, quantities in agreement.items():
        for name, a in quantities.items():
            table.add_row(
                region.replace("_", " "),
                QUANTITY_LABELS[name],
                str(a["n"]),
                f"{a['pearson_r']:.3f}",
                f"{a['icc']:.3f}",
                f"{a['slope']:.3f}",
                f"{a['rmse']:.4g}",
                f"{a['bias']:+.3g}",
            )
    return table


def _print(summary: Summary, folder: Path) -> None:
    figures = summary.as_dict()
    console.print(
        _agreement_table("Held-out phantoms, simulated radiographs: says nothing about patients", figures["agreement"])
    )
    for region, comparisons in summary.methods.items():
        read = comparisons["areal_bmd_g_cm2"].agreement.items()
        console.print(
            f"{region.replace('_', ' ')} aBMD: "
            + ", ".join(f"{method} r {a.pearson_r:.3f}, RMSE {a.rmse:.4f} g/cm2" for method, a in read)
        )
    console.print(
        "90 % intervals of areal BMD cover: "
        + ", ".join(f"{k.replace('_', ' ')} {100 * v['areal_bmd_g_cm2']:.1f} %" for k, v in summary.coverage.items())
    )
    for kind, counts in summary.refusals.items():
        console.print(f"{kind}: " + ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items())))
    if summary.whole:
        console.print("Whole radiographs, from locator to figure:")
        for kind, counts in summary.whole["refusals"].items():
            console.print(f"  {kind}: " + ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items())))
        if (figures := summary.whole["total_hip_areal_bmd_g_cm2"]) is not None:
            console.print(
                f"  total hip areal BMD: n {figures['n']}, r {figures['pearson_r']:.3f}, RMSE {figures['rmse']:.4f} g/cm2"
            )
    if real := summary.real:
        title = f"Held-out patients: {real['patients']} with {real['hips']} hips, real radiographs, truth by CT"
        console.print(_agreement_table(title, real["agreement"]))
        for counts in real["refusals"].values():
            console.print("patients' hips: " + ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items())))
    console.print(f"Plots and tables: {folder}")


def main() -> None:
    """Entry point: errors of ours are one line that says what to do."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        app()
    except DicomNodeError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False)
        raise SystemExit(2) from error
