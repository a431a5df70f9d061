"""The model card, written from the figures of the evaluation so that no figure in it can differ from them."""

from pathlib import Path
from statistics import mean

from training.anatomy.muscles import Muscle
from training.markdown import table
from training.segmentation.border import REACH_MM
from training.segmentation.config import SegmentationRun
from training.segmentation.evaluate import Summary, WarningFigures
from training.segmentation.model import SegmentationModel
from training.segmentation.structures import NAMES

_PHANTOMS = ("parametric phantoms (`training/anatomy`)", "Apache-2.0, as the code")
_DRAWINGS = (
    "label map of the Visible Human Female's hips (Andreassen 2023, doi:10.1038/s41597-022-01905-2; pelvis of GIAS3)",
    "CC BY 4.0, MPL-2.0",
)
_NAMES = ", ".join(muscle.name.lower().replace("_", " ") for muscle in Muscle)
_PERSONS = ("femur shape model of 26 CTs and one subject's pelvis (GIAS3 examples)", "MPL-2.0")


def write_card(model: SegmentationModel, summary: Summary, folder: Path) -> None:
    """Write `MODEL_CARD.md` into the folder of a model."""
    (folder / "MODEL_CARD.md").write_text(_card(model, summary), encoding="utf-8")


def _card(model: SegmentationModel, summary: Summary) -> str:
    """Render the card (Mitchell et al. 2019, doi:10.1145/3287560.3287596, shortened to what applies)."""
    run = model.run
    net, how = run.unet, run.inference
    steps = sum(stage.steps for stage in run.network.stages)
    sources = [_PHANTOMS, *[_DRAWINGS] * (run.atlas.count > 0), *[_PERSONS] * (run.atlas.persons > 0)]
    pelves = (
        (name, f"{row['mean']:.3f}", f"{row['least']:.3f}", f"{100 * row['volume_error']:.1f} %", f"{row['n']:.0f}")
        for name, row in summary.pelves.items()
    )
    muscles = summary.muscle_dice
    hips = (
        (spoil.replace("_", " "), f"{dice:.3f}", *([f"{muscles[spoil]:.3f}"] if muscles else []))
        for spoil, dice in summary.hip_dice.items()
    )
    return f"""# Model card: {run.name} {run.version}

**Learned from {" and ".join(model.learned_from)}. Not a medical device; not for diagnosis.**

## What it is
A residual U-Net in 3D (MONAI) on voxels of {net.voxel_mm:g} mm, {steps} steps of {run.network.batch} cubes of {net.patch} voxels.
It labels femora, hip bones and sacrum in a CT of the pelvis; sides are told by geometry afterwards. Within {REACH_MM:g} mm of a
border that it found, the CT's own voxels are decided by a second network, by their profiles across it. Dropout stays on for
{how.samples} samples, whose spread predicts each structure's Dice; below {how.least_dice:g} the structure is flagged.
{_muscles(run)}
## Intended use
Labels for `python -m training hospital` where a CT has none. Every case that it labelled waits for a person who looks at its
picture.

## Data
{run.phantoms.count} phantoms (seed {run.phantoms.seed}): {100 * run.split.validation:g} % for the line from spread to Dice,
{100 * run.split.test:g} % for the figures below.
{_atlas(model)}
{_patients(model)}Energy, kernel, slice thickness, noise, contrast medium, metal streaks, pose and shape are drawn anew for each
cube of a phantom or of the atlas.

{table(("source of anatomy", "licence"), sources)}

## Figures on held-out phantoms (simulated CT, not patients)
Whole pelves as hospitals scan them: voxels of 0.7 to 1 mm, slices of 1 to 3 mm.

{table(("whole pelvis", "mean Dice", "least", "volume error", "n"), pelves)}

Single hips by scanners of every kind with voxels of 2 to 3 mm, as they come and spoilt.

{table(("single hip, scan", "mean Dice of the bones", *["of the muscles"] * bool(muscles)), hips)}

{_warning("bones", summary.warning)}
{_warning("muscles", summary.muscle_warning)}{_real(summary)}{_held_out(summary)}
## Known limits
- Bones of phantoms are smoother and more alike than people's; vertebrae above the sacrum, ribs and couch are rough copies.
{_muscle_limits(run)}- The line from spread to Dice is that of phantoms.{_none_seen(model)}
"""


def _muscles(run: SegmentationRun) -> str:
    muscles = run.muscles
    if muscles is None:
        return ""
    steps = sum(stage.steps for stage in muscles.network.stages)
    return f"""
Another such U-Net on voxels of {muscles.voxel_mm:g} mm ({steps} steps of {muscles.network.batch} cubes of {muscles.patch} voxels)
sees the CT and the bones that were found, and labels muscles and groups of muscles of each side: {_NAMES}.
Below a predicted Dice of {muscles.least_dice:g} a muscle is flagged.
"""


def _warning(what: str, warning: WarningFigures | None) -> str:
    if warning is None:
        return ""
    area = "no AUROC" if warning.auroc is None else f"AUROC {warning.auroc:.3f}"
    return (
        f"Warning by spread, {what} of single hips in all scans: {warning.failures} of {warning.n} under Dice"
        f" {warning.failure_dice:g}, {area}.\nPredicted and true Dice agree with r {warning.pearson_r:.3f}, mean error"
        f" {warning.mean_absolute_error:.3f}.\n"
    )


def _atlas(model: SegmentationModel) -> str:
    atlas = model.run.atlas
    if not atlas.share:
        return "No real anatomy."
    return (
        f"{100 * atlas.share:g} % of the cubes come from real anatomy: {atlas.count} drawings of a label map's mineral,"
        f" {atlas.persons} persons with femora of a shape model and a real pelvis."
    )


def _patients(model: SegmentationModel) -> str:
    hospital = model.run.hospital
    if hospital is None:
        return ""
    return (
        f"{100 * hospital.share:g} % of the cubes come from the CTs of {Path(hospital.table).name}, of whose patients"
        f" {100 * hospital.test:g} % are held out.\n"
    )


def _muscle_limits(run: SegmentationRun) -> str:
    if run.muscles is None:
        return ""
    return f"""- Muscles of phantoms have no fascia between them: where one ends is a convention (`training/anatomy/muscles.py`).
  {100 * run.muscles.atlas_share:g} % of the cubes of muscles come from the label map of one woman.
"""


def _none_seen(model: SegmentationModel) -> str:
    return "\n- Of patients' CTs it has seen none in training." if len(model.learned_from) == 1 else ""


def _held_out(summary: Summary) -> str:
    if not summary.held_out_cts:
        return ""
    rows = []
    for name in NAMES.values():
        own = [case[name] for case in summary.held_out_cts.values() if name in case]
        if own:
            dice, predicted = ([one[key] for one in own] for key in ("dice", "predicted_dice"))
            rows.append((name, f"{mean(dice):.3f}", f"{min(dice):.3f}", f"{mean(predicted):.3f}", str(len(own))))
    return f"""
## CTs of held-out patients, against the label maps of the table
{table(("structure", "mean Dice", "least", "mean predicted", "n"), rows)}
"""


def _real(summary: Summary) -> str:
    if not summary.real_ct:
        return ""
    rows = ((n, f"{row['dice']:.3f}", f"{row['predicted_dice']:.3f}") for n, row in summary.real_ct.items())
    return f"""
## One CT of a patient, against the label map that came with it
{table(("structure", "Dice", "predicted"), rows)}
"""
