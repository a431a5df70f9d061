"""`python -m training ladders`: climb all ladders with a bundle."""

from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from tqdm import tqdm

from dicomnode.clinical.reference import load_population
from dicomnode.config import SHIPPED_FOLDER
from dicomnode.domain.radiograph import Side
from dicomnode.errors import ConfigurationError
from dicomnode.inference.bundle import SHIPPED, Bundle, load_bundle
from dicomnode.inference.predictor import Predictor
from training.anatomy.atlas import Source, UnusableAtlas, atlas_subject
from training.anatomy.ct import read_ct
from training.anatomy.ct_femur import ct_subject
from training.anatomy.labels import read_labels
from training.calibration.tissues import calibrate_by_tissues
from training.config import load_run
from training.ladders import exposure, groups
from training.ladders.compression import compression_ladder
from training.ladders.diagnosis import diagnose
from training.ladders.ladder import Hip
from training.ladders.persons import (
    arthritis_ladder,
    broken_hips,
    loss_ladder,
    mineral_ladder,
    mineral_slopes,
    native_subjects,
    repeat,
)
from training.ladders.reading import read_figures, read_file
from training.ladders.refusals import (
    file_outcomes,
    native_outcomes,
    spoiled_outcomes,
    summarise_refusals,
    whole_outcomes,
)
from training.ladders.report import Evidence, print_evidence, write_evidence
from training.pairs import load_pairs
from training.split import split_subjects
from training.targets import SubjectTarget, canonical_figures, is_native, make_targets
from training.whole import measure_whole

_REFERENCE = SHIPPED_FOLDER / "reference" / "nhanes3.toml"

_CT_DENSITIES_G_CM2 = (0.5, 1.1)
"""Areal BMD of the total hip that a CT's femur is scaled to: from osteoporosis to a young adult's."""
_DEVICES = 5
_DEVICE_HIPS_FACTOR = 4
"""Times the hips of other rungs: here agreement counts, there the change."""
_PAGE_COLUMNS = 170
"""Width of the tables where they go to a file."""


def ladders_command(
    config: Annotated[Path, typer.Option("--config", "-c", help="The run's TOML file.")] = Path(
        "conf/training/hip.toml"
    ),
    folder: Annotated[Path, typer.Option("--folder", "-f", help="Where the run's pairs lie.")] = Path("runs/hip"),
    bundle: Annotated[Path, typer.Option(help="The bundle to look at.")] = SHIPPED,
    output: Annotated[Path, typer.Option(help="Where ladders.json, cases.csv and pictures go.")] = Path("runs/ladders"),
    first: Annotated[
        int | None, typer.Option(help="First held-out phantom of the pairs; by default the test split's.")
    ] = None,
    hips: Annotated[
        int,
        typer.Option(help="Native hips on each rung of exposure and processing; four times as many on each device."),
    ] = 30,
    persons: Annotated[
        int,
        typer.Option(help="Persons whose mineral is scaled, who are put down anew, degenerate, and break their hips."),
    ] = 10,
    whole: Annotated[
        int, typer.Option(help="Whole radiographs that are compressed, and as many of all kinds measured.")
    ] = 8,
    files: Annotated[
        Path | None, typer.Option(help="Folder of DICOM files without a measurable hip: each must be refused.")
    ] = None,
    anatomy: Annotated[
        Path | None,
        typer.Option(help="Folder of reference anatomy, see training/anatomy/atlas.py: bones that no phantom has."),
    ] = None,
    ct: Annotated[
        Path | None,
        typer.Option(help="CT (NIfTI or DICOM folder) whose femur is put into the atlas's bodies; needs --anatomy."),
    ] = None,
    ct_labels: Annotated[
        Path | None, typer.Option(help="Label map of that CT, see training/anatomy/labels.py.")
    ] = None,
    ct_side: Annotated[Side, typer.Option(help="Side of that CT whose femur is native.")] = Side.RIGHT,
    reference: Annotated[Path, typer.Option(help="Reference population for classes.")] = _REFERENCE,
) -> None:
    """Show what a bundle does with less dose, other vendors, smaller files, other bodies, poses, and with what must be refused."""
    if ct is not None and (anatomy is None or ct_labels is None):
        raise ConfigurationError(
            "--ct needs --ct-labels, which voxel is femur, and --anatomy, whose bodies it is put into"
        )
    run = load_run(config)
    pairs = load_pairs(folder / "pairs")
    start = int(split_subjects(run.pairs.count, run.split).test[0]) if first is None else first
    if start >= pairs.count:
        raise ConfigurationError(f"{folder / 'pairs'} holds {pairs.count} phantoms, none from {start} on: make more")
    subjects = np.arange(start, pairs.count)
    table = pairs.table[2 * start :]
    predictor = Predictor(load_bundle(bundle))
    identity = predictor.bundle.identity
    read = partial(read_figures, predictor)
    held_out = [pairs.hip(int(number)) for number in pairs.hips_of(subjects)]
    natives = [hip for hip in held_out if is_native(hip.figures)]
    native = natives[:hips]
    lying = native_subjects(run.pairs.seed, start, persons)

    climbed = [exposure.climb(read, native, steps, run.seed) for steps in exposure.LADDERS]
    climbed.append(
        exposure.climb(read, natives[: _DEVICE_HIPS_FACTOR * hips], exposure.devices(_DEVICES, run.seed), run.seed)
    )
    everyone = groups.read_all(read, held_out, run.seed)
    mineral = [mineral_ladder(read, lying, run.seed), loss_ladder(read, lying, run.seed)]
    arthritis = arthritis_ladder(read, lying, run.seed)
    repeated, repeatability = repeat(read, lying, run.seed)
    compression = compression_ladder(partial(read_file, predictor), table, whole, run.pairs.seed, run.seed)
    sources = (
        {}
        if anatomy is None
        else {_named(one, predictor.bundle): _strangers(anatomy, run.pairs.seed, one, persons) for one in Source}
    )
    if ct is not None and ct_labels is not None and anatomy is not None:
        sources[f"femur of {ct.name}"] = _of_ct(anatomy, ct, ct_labels, ct_side, run.pairs.seed, persons)
    shift = [groups.anatomy_ladder(read, everyone, sources, run.seed)] if sources else []
    spoiled: list[Hip] = [*(hip for hip in held_out if not is_native(hip.figures)), *broken_hips(lying, run.seed)]
    outcomes = [*native_outcomes(everyone), *spoiled_outcomes(read, [*spoiled, *native], run.seed)]
    outcomes += whole_outcomes(measure_whole(predictor, pairs, subjects[:whole], run.pairs.seed, run.seed))
    if files is not None:
        found = sorted(path for path in files.rglob("*.dcm") if path.is_file())
        outcomes += file_outcomes(predictor, found, "real radiograph without AP hip")
    evidence = Evidence(
        model=f"{identity.name} {identity.version}, SHA-256 {identity.digest}",
        subjects=f"phantoms {start} to {pairs.count - 1} of population {run.pairs.seed}",
        ladders=(*climbed, *groups.group_ladders(everyone, table), *mineral, arthritis, *shift),
        compression=compression,
        mineral=tuple(mineral_slopes(mineral)),
        repeatability=tuple(repeatability),
        repeated=tuple(repeated),
        refusals=tuple(summarise_refusals(outcomes)),
        diagnoses=tuple(diagnose(everyone, table, load_population(reference))),
    )
    write_evidence(output, evidence)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PAGE_COLUMNS)
    print_evidence(console, evidence)
    console.print(f"Tables and pictures: {output}")


def _named(source: Source, bundle: Bundle) -> str:
    learned = bundle.document["provenance"].get("atlas") == source.value
    return f"{source.value} (others of it were learned from)" if learned else source.value


def _of_ct(
    anatomy: Path, ct: Path, labels: Path, side: Side, population_seed: int, persons: int
) -> list[SubjectTarget]:
    """One femur in many bodies and poses, its mineral scaled, so that there is something to read."""
    volume, map_ = read_ct(ct), read_labels(labels)
    drawn = partial(ct_subject, anatomy, volume, map_, calibrate_by_tissues(volume), side, population_seed + 1)
    as_it_is = drawn(0)
    own = canonical_figures(as_it_is.bone("right_femur"), as_it_is.landmarks[Side.RIGHT])["total_hip"]
    if own["areal_bmd_g_cm2"] is None:
        raise UnusableAtlas(f"{ct} shows no whole total hip on the {side.name.lower()} side")
    wanted = np.random.default_rng((population_seed, 7)).uniform(*_CT_DENSITIES_G_CM2, persons)
    scales = (wanted / own["areal_bmd_g_cm2"]).tolist()
    return [make_targets(drawn(number, scale)) for number, scale in enumerate(tqdm(scales, desc="CT", unit="person"))]


def _strangers(anatomy: Path, population_seed: int, source: Source, persons: int) -> list[SubjectTarget]:
    """Persons of another population than the pairs', with bones of reference anatomy."""
    numbers = tqdm(range(persons), desc=source.value, unit="person")
    return [make_targets(atlas_subject(anatomy, population_seed + 1, number, source)) for number in numbers]
