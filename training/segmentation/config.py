"""A segmentation run is one TOML file, read by the manner of `training.config`."""

from dataclasses import dataclass, field
from pathlib import Path

from training.config import (
    EngineConfiguration,
    NetworkConfiguration,
    PairsConfiguration,
    SplitConfiguration,
    check_engine,
    check_network,
    check_values,
    read_frozen,
)


@dataclass(frozen=True)
class AtlasConfiguration:
    """Real anatomy beside the phantoms."""

    count: int = 0
    """How often the mineral of a label map's bones is drawn (`training.segmentation.atlas`); 0 for none."""
    persons: int = 0
    """People with femora of a shape model and a real pelvis (`training.anatomy.atlas.atlas_subject`); 0 for none."""
    share: float = 0.0
    """Of the examples."""


@dataclass(frozen=True)
class HospitalConfiguration:
    """CTs of patients with label maps beside the phantoms, and which of the patients are held out."""

    table: str
    """CSV file, see `training.segmentation.labelled.read_cases`."""
    share: float
    """Of the examples."""
    test: float
    """Share of the patients that are held out: Dice on patients' CTs is measured on them."""


@dataclass(frozen=True)
class UNetConfiguration:
    """MONAI's residual U-Net in 3D: each level, a width of the network, halves the grid, the first one too."""

    voxel_mm: float
    """Of the cubic grid that it sees; CTs are resampled to it and back."""
    patch: int
    """Edge in voxels of the cubes that are learned from, and of the sliding window."""
    residual_units: int
    dropout: float
    """Share of the channels that are left out, in training and in each sample of the inference."""


@dataclass(frozen=True)
class BorderConfiguration:
    """The network that reads a bone's border off the CT's own voxels, see `training.segmentation.border`."""

    scans: int
    """Pieces of people, each by a scanner of its own, that it learns from."""
    steps: int
    learning_rate: float


@dataclass(frozen=True)
class MusclesConfiguration:
    """The U-Net of the muscles, on coarser voxels; it sees the CT and the bones that were found in it."""

    voxel_mm: float
    patch: int
    """As `UNetConfiguration.patch`."""
    atlas_share: float
    """Of the examples: real muscles of a label map (`atlas.count` drawings); the others are phantoms'."""
    least_dice: float
    """As `InferenceConfiguration.least_dice`: what phantoms' muscles have for borders is less certain than bone."""
    network: NetworkConfiguration


@dataclass(frozen=True)
class InferenceConfiguration:
    """How a CT is segmented."""

    samples: int
    """With dropout; their spread is the uncertainty."""
    overlap: float
    """Of neighbouring windows, as a share of their edge."""
    least_dice: float
    """A structure whose predicted Dice lies below is flagged."""


@dataclass(frozen=True)
class SegmentationRun:
    """Everything that decides what a run produces."""

    name: str
    version: str
    seed: int
    phantoms: PairsConfiguration
    """The people that are learned from."""
    split: SplitConfiguration
    network: NetworkConfiguration
    unet: UNetConfiguration
    border: BorderConfiguration
    inference: InferenceConfiguration
    atlas: AtlasConfiguration = AtlasConfiguration()
    muscles: MusclesConfiguration | None = None
    """None: bones only."""
    hospital: HospitalConfiguration | None = None
    start: str | None = None
    """Folder of a model whose weights the network begins with; None: random ones."""
    engine: EngineConfiguration = field(default_factory=EngineConfiguration)


def load_segmentation(path: Path) -> SegmentationRun:
    """Read and check a run's TOML file.

    Raises:
        ConfigurationError: unreadable, a key is missing or unknown, or a value is out of range; the message names its place.
    """
    run: SegmentationRun = read_frozen(path, SegmentationRun)
    check_network(f"{path}: network", run.network)
    check_engine(f"{path}: engine", run.engine)
    check_values(
        path,
        (0 < run.split.validation + run.split.test < 1, "split", "validation + test between 0 and 1"),
        (run.phantoms.count > 0, "phantoms.count", "at least 1"),
        (
            0 <= run.atlas.share < 1 and min(run.atlas.count, run.atlas.persons) >= 0,
            "atlas",
            "a count and persons of at least 0, a share from 0 to below 1",
        ),
        (
            run.atlas.count + run.atlas.persons > 0 or run.atlas.share == 0,
            "atlas.count",
            "at least 1, or atlas.persons, where atlas.share is not 0",
        ),
        (
            run.hospital is None or (0 < run.hospital.share < 1 and 0 <= run.hospital.test < 1),
            "hospital",
            "a share between 0 and 1 (phantoms are needed too), and test from 0 to below 1",
        ),
        (len(run.network.widths) > 1, "network.widths", "two levels or more"),
        (run.unet.voxel_mm > 0, "unet.voxel_mm", "more than 0"),
        (0 <= run.unet.dropout < 1, "unet.dropout", "from 0 to below 1"),
        _whole_levels("unet.patch", run.unet.patch, run.network),
        (
            run.border.scans > 0 and run.border.steps > 0 and run.border.learning_rate > 0,
            "border",
            "scans, steps and a learning_rate of more than 0",
        ),
        (run.inference.samples > 0, "inference.samples", "at least 1"),
        (0 <= run.inference.overlap < 1, "inference.overlap", "from 0 to below 1"),
        (0 < run.inference.least_dice < 1, "inference.least_dice", "between 0 and 1"),
    )
    if run.muscles is not None:
        check_network(f"{path}: muscles.network", run.muscles.network)
        check_values(
            path,
            (len(run.muscles.network.widths) > 1, "muscles.network.widths", "two levels or more"),
            (run.muscles.voxel_mm > 0, "muscles.voxel_mm", "more than 0"),
            _whole_levels("muscles.patch", run.muscles.patch, run.muscles.network),
            (0 <= run.muscles.atlas_share < 1, "muscles.atlas_share", "from 0 to below 1"),
            (
                run.atlas.count > 0 or run.muscles.atlas_share == 0,
                "atlas.count",
                "at least 1 where muscles.atlas_share is not 0",
            ),
            (0 < run.muscles.least_dice < 1, "muscles.least_dice", "between 0 and 1"),
        )
    return run


def _whole_levels(place: str, patch: int, network: NetworkConfiguration) -> tuple[bool, str, str]:
    stride = 2 ** (len(network.widths) - 1)
    expected = f"a multiple of {stride}, which is what the network's levels divide by"
    return patch > 0 and patch % stride == 0, place, expected
