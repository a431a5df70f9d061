"""The file ladder: the same radiographs as smaller and smaller files, read from the file as the node reads it."""

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, JPEGBaseline8Bit
from tqdm import tqdm

from dicomnode.domain.measurement import Reason
from training.anatomy.population import draw_subject
from training.ladders.ladder import Case, Ladder, draw_conditions, make_ladder
from training.ladders.reading import Reading, true_figures
from training.targets import is_native
from training.whole import phantom_dx

RATIOS = (5, 10, 20, 50, 100)
"""Of the 12-bit pixels to the compressed file."""
UNCOMPRESSED = "12 bit"
DETECTOR_SPACING_MM = 0.2
_BITS = 12
_BISECTIONS = 14
_TABLE_FACTORS = (0.02, 60.0)
"""Finest and coarsest factor on the standard's quantisation table; all its entries are 1 and 255 there."""

ReadFile = Callable[[Path], Mapping[str, Reading]]
"""A DICOM file to the reading of each side that is found on it."""


@dataclass(frozen=True)
class Encoded:
    """A radiograph in some encoding."""

    rung: str
    dataset: Dataset
    pixel_bytes: int


@dataclass(frozen=True)
class Compression:
    """The ladder, and how small the files really became."""

    ladder: Ladder
    ratios: dict[str, float]
    """Rung to the median ratio of 12-bit pixels to encoded pixels."""


def compression_ladder(
    read: ReadFile, table: Sequence[Mapping[str, Any]], count: int, population_seed: int, seed: int
) -> Compression:
    """Read whole radiographs of the first `count` persons of a table who have a native hip in the field.

    Args:
        table: figures of hips, see `training.pairs.Pairs`.
    """
    shown: dict[int, list[Mapping[str, Any]]] = {}
    for figures in table:
        if is_native(figures) and figures["head_in_field"]:
            shown.setdefault(int(figures["index"]), []).append(figures)
    cases: list[Case] = []
    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "radiograph.dcm"
        for number in tqdm(list(shown)[:count], desc="compression", unit="radiograph"):
            conditions = draw_conditions(seed, shown[number][0])
            processing = replace(conditions.processing, bits=_BITS, monochrome1=False, jpeg_quality=None)
            subject = draw_subject(population_seed, number)
            dataset = phantom_dx(
                subject, seed, conditions.exposure, processing, detector_spacing_mm=DETECTOR_SPACING_MM
            )
            for encoded in encodings(dataset):
                encoded.dataset.save_as(path, enforce_file_format=True)
                readings = read(path)
                ratios.setdefault(encoded.rung, []).append(raw_bytes(dataset) / encoded.pixel_bytes)
                for figures in shown[number]:
                    reading = readings.get(figures["side"], Reason.NO_HIP)
                    cases.append(Case(encoded.rung, number, figures["side"], true_figures(figures), reading))
    ladder = make_ladder("compression", "Size of the file", "encoding, ratio to 12-bit pixels", cases, UNCOMPRESSED)
    return Compression(ladder, {rung: median(found) for rung, found in ratios.items()})


def raw_bytes(dataset: Dataset) -> int:
    """Size of the pixels at 12 bits each, which every ratio refers to."""
    return int(dataset.Rows) * int(dataset.Columns) * _BITS // 8


def encodings(dataset: Dataset) -> Iterator[Encoded]:
    """All rungs of one uncompressed 12-bit MONOCHROME2 radiograph, the uncompressed one first."""
    stored = dataset.pixel_array
    yield Encoded(UNCOMPRESSED, dataset, raw_bytes(dataset))
    yield Encoded("MONOCHROME1", as_monochrome1(dataset, stored), raw_bytes(dataset))
    for ratio in RATIOS:
        smaller = as_jpeg(dataset, stored, raw_bytes(dataset) / ratio)
        yield Encoded(f"JPEG 1/{ratio}", smaller, codestream_bytes(smaller))
    for ratio in RATIOS:
        smaller = as_jpeg2000(dataset, ratio)
        yield Encoded(f"JPEG 2000 1/{ratio}", smaller, codestream_bytes(smaller))


def as_monochrome1(dataset: Dataset, stored: NDArray[np.uint16]) -> Dataset:
    """The same picture, stored the other way round."""
    inverted = deepcopy(dataset)
    inverted.PhotometricInterpretation = "MONOCHROME1"
    inverted.PixelData = (2**_BITS - 1 - stored).astype("<u2").tobytes()
    return inverted


def as_jpeg(dataset: Dataset, stored: NDArray[np.uint16], target_bytes: float) -> Dataset:
    """Baseline JPEG (process 1) of the upper 8 of 12 bits, its quantisation table as coarse as the target size asks.

    If the coarsest table does not get there, that one is taken.
    """
    eight_bit = Image.fromarray((stored >> (_BITS - 8)).astype(np.uint8))
    fine, coarse = _TABLE_FACTORS
    for _ in range(_BISECTIONS):
        middle = float(np.sqrt(fine * coarse))
        if len(_jpeg(eight_bit, middle)) > target_bytes:
            fine = middle
        else:
            coarse = middle
    smaller = deepcopy(dataset)
    smaller.BitsAllocated = smaller.BitsStored = 8
    smaller.HighBit = 7
    smaller.WindowCenter, smaller.WindowWidth = 128, 256
    smaller.LossyImageCompression = "01"
    smaller.LossyImageCompressionMethod = "ISO_10918_1"
    smaller.PixelData = encapsulate([_jpeg(eight_bit, coarse)])
    smaller["PixelData"].is_undefined_length = True
    smaller["PixelData"].VR = "OB"
    smaller.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return smaller


def _jpeg(image: Image.Image, factor: float) -> bytes:
    """Source of the table: ITU-T T.81, table K.1, as libjpeg uses it at quality 50."""
    table = [min(max(round(entry * factor), 1), 255) for entry in _standard_table()]
    file = io.BytesIO()
    image.save(file, "JPEG", qtables=[table], optimize=True)
    return file.getvalue()


def _standard_table() -> list[int]:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG", quality=50)
    reopened: Any = Image.open(file)
    table: list[int] = list(reopened.quantization[0])
    return table


def as_jpeg2000(dataset: Dataset, ratio: float) -> Dataset:
    """JPEG 2000 (lossy) with the rate of 12-bit pixels over `ratio`."""
    smaller = deepcopy(dataset)
    smaller.compress(JPEG2000, j2k_cr=[ratio], generate_instance_uid=False)
    return smaller


def codestream_bytes(dataset: Dataset) -> int:
    """Size of an encapsulated single frame."""
    return len(dataset.PixelData)
