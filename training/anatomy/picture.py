"""A phantom as a picture for people: the whole radiograph, and per hip the radiograph, femur, regions."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dicomnode.inference.frame import SPACING_MM
from training.anatomy.phantom import Phantom
from training.projection.radiograph import random_exposure, random_processing, simulate
from training.targets import field_materials, make_targets

FIELD_SPACING_MM = 0.8
FIELD_SHAPE = (480, 520)


def draw_phantom(phantom: Phantom, png: Path) -> None:
    """Draw one phantom's simulated radiograph, densities and labels into a PNG file."""
    matplotlib.use("Agg")
    subject, rng = phantom.subject, np.random.default_rng(phantom.subject.seed)
    exposure, processing = random_exposure(rng), random_processing(rng)
    target = make_targets(phantom)
    figure = Figure(figsize=(22, 13), layout="constrained")
    axes = figure.subplot_mosaic("AABC;AADE;FGHI")
    field = simulate(
        field_materials(phantom, FIELD_SPACING_MM, FIELD_SHAPE), FIELD_SPACING_MM, exposure, processing, rng
    )
    axes["A"].imshow(field, cmap="gray")
    axes["A"].set_title(
        f"{subject.sex} {subject.age_years:.0f} y, BMI {subject.bmi_kg_m2:.0f}, frog leg {subject.is_frog_leg}"
    )
    for hip, panels in zip(target.hips, ("BCFG", "DEHI"), strict=True):
        materials = hip.materials.astype(np.float32)
        figures = hip.figures["regions"]["total_hip"]
        image = simulate(materials, SPACING_MM, exposure, processing, rng)
        axes[panels[0]].imshow(image, cmap="gray")
        axes[panels[1]].imshow(hip.targets[0].astype(np.float32), cmap="gray", vmax=2.5)
        axes[panels[2]].imshow(hip.targets[2].astype(np.float32), cmap="gray", vmax=1.8)
        axes[panels[3]].imshow(hip.labels, cmap="tab10", vmax=9)
        areal = figures["areal_bmd_g_cm2"]
        axes[panels[1]].set_title(
            f"{hip.figures['side']} total hip {areal if areal is None else round(areal, 3)} g/cm2"
        )
        axes[panels[0]].set_title(f"{hip.figures['implant'] or ''}")
    for axis in axes.values():
        axis.set_axis_off()
    figure.savefig(png, dpi=60)
