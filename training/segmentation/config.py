"""A segmentation run is one TOML file, read by the manner of `training.config`."""

from dataclasses import dataclass
from pathlib import Path

from dicomnode.errors import ConfigurationError
from training.config import SplitConfiguration, read_frozen


@dataclass(frozen=True)
class PhantomsConfiguration:
    """The people that are learned from."""

    count: int
    seed: int


@dataclass(frozen=True)
class AtlasConfiguration:
    """A real anatomy beside the phantoms (`training.segmentation.atlas`)."""

    count: int = 0
    """How often the mineral of its bones is drawn; 0 for none."""
    share: float = 0.0
    """Of the examples."""


@dataclass(frozen=True)
class NetworkConfiguration:
    """MONAI's residual U-Net: each level halves the grid, the first one too."""

    voxel_mm: float
    """Of the cubic grid that it sees; CTs are resampled to it and back."""
    channels: tuple[int, ...]
    residual_units: int
    dropout: float
    """Share of the channels that are left out, in training and in each sample of the inference."""


@dataclass(frozen=True)
class TrainingConfiguration:
    """How it is trained."""

    patch: int
    """Edge in voxels of the cubes that are learned from, and of the sliding window."""
    steps: int
    batch: int
    learning_rate: float
    """Peak of a one-cycle schedule."""
    weight_decay: float = 1e-4
    ema: float = 0.99
    """Decay of the exponential moving average of the weights, which is what is used."""


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
    phantoms: PhantomsConfiguration
    split: SplitConfiguration
    network: NetworkConfiguration
    training: TrainingConfiguration
    inference: InferenceConfiguration
    atlas: AtlasConfiguration = AtlasConfiguration()


def load_segmentation(path: Path) -> SegmentationRun:
    """Read and check a run's TOML file.

    Raises:
        ConfigurationError: unreadable, a key is missing or unknown, or a value is out of range; the message names its place.
    """
    run: SegmentationRun = read_frozen(path, SegmentationRun)
    stride = 2 ** (len(run.network.channels) - 1)
    for is_right, place, expected in (
        (0 < run.split.validation + run.split.test < 1, "split", "validation + test between 0 and 1"),
        (run.phantoms.count > 0, "phantoms.count", "at least 1"),
        (
            0 <= run.atlas.share < 1 and run.atlas.count >= 0,
            "atlas",
            "a count of at least 0, a share from 0 to below 1",
        ),
        (run.atlas.count > 0 or run.atlas.share == 0, "atlas.count", "at least 1 where atlas.share is not 0"),
        (run.network.voxel_mm > 0, "network.voxel_mm", "more than 0"),
        (len(run.network.channels) > 1, "network.channels", "two levels or more"),
        (0 <= run.network.dropout < 1, "network.dropout", "from 0 to below 1"),
        (
            run.training.patch > 0 and run.training.patch % stride == 0,
            "training.patch",
            f"a multiple of {stride}, which is what the network's levels divide by",
        ),
        (run.training.steps > 0 and run.training.batch > 0, "training.steps and training.batch", "at least 1"),
        (run.inference.samples > 0, "inference.samples", "at least 1"),
        (0 <= run.inference.overlap < 1, "inference.overlap", "from 0 to below 1"),
        (0 < run.inference.least_dice < 1, "inference.least_dice", "between 0 and 1"),
    ):
        if not is_right:
            raise ConfigurationError(f"{path}: {place}: expected {expected}")
    return run
