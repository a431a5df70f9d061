"""From stored values to attenuation.

The grayscale pipeline of the standard (PS3.4 N.2) is Modality LUT, VOI LUT, Presentation LUT. Values after the Modality LUT are
used and no VOI: a window clips, and a VOI LUT or SIGMOID is the maker's display curve, put there to please the eye and
changeable by the user; before it, For Presentation values are as close to logarithmic in exposure as the object offers. Of the
VOI LUT only the direction counts: whether it turns the picture over. The overlay shows the same values under a window of its own
(`overlay.window_for_display`).

Which end is bone is decided by Photometric Interpretation for images meant for display: a wrong one is seen by the first
radiologist, a wrong Pixel Intensity Relationship Sign by nobody. For Processing images, which nobody looks at, the sign
decides where it is present. A contradiction is told in the notes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import DigitalXRayImageStorageForProcessing
from scipy import ndimage

from dicomnode.dicom.attributes import integer, items, number, text, values
from dicomnode.dicom.decoding import PixelLayout
from dicomnode.domain.measurement import Reason
from dicomnode.errors import NotMeasurable

_WHOLE_LUT = 65536
"""A LUT Descriptor's number of entries 0 means this. Source: PS3.3 C.11.1.1.1."""


@dataclass(frozen=True)
class LookupTable:
    """An item of a Modality LUT or VOI LUT Sequence."""

    first: int
    """Input value that maps to the first entry; values outside map to the ends."""
    entries: NDArray[np.float32]

    def __call__(self, image: NDArray[np.generic]) -> NDArray[np.float32]:
        index = np.rint(image).astype(np.int32) - np.int32(self.first)
        np.clip(index, 0, len(self.entries) - 1, out=index)
        looked_up: NDArray[np.float32] = self.entries[index]
        return looked_up

    @property
    def direction(self) -> int:
        """+1 where larger inputs have larger outputs on the whole, -1 where smaller."""
        ramp = np.arange(len(self.entries)) - (len(self.entries) - 1) / 2
        return -1 if float(ramp @ self.entries) < 0 else 1


@dataclass(frozen=True)
class _Modality:
    """Stored values after the Modality LUT or Rescale Slope and Intercept."""

    image: NDArray[np.float32]
    direction: int
    """Whether a larger stored value is a larger value here (+1) or a smaller one (-1)."""
    notes: tuple[str, ...]


def attenuation(
    stored: NDArray[np.integer], layout: PixelLayout, dataset: Dataset
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Turn stored values into an image in which larger means more attenuation.

    Returns:
        The image (rows, columns), finite, in arbitrary units, and what had to be assumed, as sentences.

    Raises:
        NotMeasurable: (UNREADABLE) all pixels have one value, or nothing but padding.

    Source: PS3.3 C.11.1 (Modality LUT), C.8.11.3.1.2 (Pixel Intensity Relationship), C.7.5.1.1.2 (padding).
    """
    padding = _padding(stored, layout, dataset)
    modality = _apply_modality(stored, layout, dataset)
    bone_is_large, polarity_notes = _bone_is_large(modality, layout, dataset)
    image, scale_notes = _logarithmic(modality.image, bone_is_large, layout, dataset)
    padding_notes = _fill_padding(image, padding)
    if not np.all(np.isfinite((low := float(image.min()), high := float(image.max())))) or low == high:
        raise NotMeasurable(Reason.UNREADABLE, "all pixels have the same value: there is no picture")
    return image, (*modality.notes, *polarity_notes, *scale_notes, *padding_notes)


def _apply_modality(stored: NDArray[np.integer], layout: PixelLayout, dataset: Dataset) -> _Modality:
    table = _first_table(dataset, "ModalityLUTSequence", layout.signed)
    if table is not None:
        return _Modality(table(stored), table.direction, ())
    notes = ("The Modality LUT is damaged and was left out.",) if items(dataset, "ModalityLUTSequence") else ()
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    if slope == 0.0:
        slope, notes = None, (*notes, "Rescale Slope is 0 and was left out.")
    image = stored.astype(np.float32)
    if slope is not None and slope != 1.0:
        image *= np.float32(slope)
    if intercept:
        image += np.float32(intercept)
    return _Modality(image, -1 if slope is not None and slope < 0 else 1, notes)


def _bone_is_large(modality: _Modality, layout: PixelLayout, dataset: Dataset) -> tuple[bool, tuple[str, ...]]:
    """Decide whether larger values after the Modality LUT are more attenuation."""
    notes: list[str] = []
    voi = _first_table(dataset, "VOILUTSequence", layout.signed)
    shown_bright = not layout.monochrome1 if voi is None or voi.direction > 0 else layout.monochrome1
    shape = text(dataset, "PresentationLUTShape")
    if shape in ("IDENTITY", "INVERSE") and (shape == "INVERSE") != layout.monochrome1:
        notes.append(f"Presentation LUT Shape {shape} contradicts the Photometric Interpretation, which was followed.")
    sign = integer(dataset, "PixelIntensityRelationshipSign")
    if sign not in (-1, 1):
        return shown_bright, tuple(notes)
    # Sign -1: higher stored values are less beam, so more attenuation.
    by_sign = (sign == -1) == (modality.direction > 0)
    if _is_for_processing(dataset):
        return by_sign, tuple(notes)
    if by_sign != shown_bright:
        notes.append(
            "Pixel Intensity Relationship Sign contradicts the Photometric Interpretation, which was followed (bone shown bright)."
        )
    return shown_bright, tuple(notes)


def _logarithmic(
    image: NDArray[np.float32], bone_is_large: bool, layout: PixelLayout, dataset: Dataset
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Turn the right end up, and take the logarithm where the values are the beam's intensity itself (Beer-Lambert)."""
    relationship = text(dataset, "PixelIntensityRelationship").upper()
    if relationship != "LIN" or not _is_for_processing(dataset):
        notes = (
            ("The header calls a For Presentation image linear in exposure; its values were used as they are.",)
            if relationship == "LIN"
            else ()
        )
        return image if bone_is_large else -image, notes
    note = "The values are linear in exposure; their logarithm was used."
    intensity = float((1 << layout.bits_stored) - 1) - image if bone_is_large else image
    return -np.log(np.maximum(intensity, 1.0, dtype=np.float32), dtype=np.float32), (note,)


def _is_for_processing(dataset: Dataset) -> bool:
    return (
        text(dataset, "SOPClassUID") == DigitalXRayImageStorageForProcessing
        or text(dataset, "PresentationIntentType").upper() == "FOR PROCESSING"
    )


def _padding(stored: NDArray[np.integer], layout: PixelLayout, dataset: Dataset) -> NDArray[np.bool_] | None:
    """Find the pixels that fill the picture up to its rectangle, or None.

    Padding surrounds a picture. Pixels of the padding value that do not hang together with the border are taken as
    picture: a value of 0 is also what metal in a MONOCHROME1 image saturates at.

    Source: PS3.3 C.7.5.1.1.2 (value, and range to its limit).
    """
    start = integer(dataset, "PixelPaddingValue")
    if start is None:
        return None
    limit = integer(dataset, "PixelPaddingRangeLimit")
    low, high = sorted((start, start if limit is None else limit))
    if not layout.signed:
        low, high = low % _WHOLE_LUT, high % _WHOLE_LUT
    inside = (stored >= low) & (stored <= high)
    labels, count = ndimage.label(inside)
    if count == 0:
        return None
    touching = np.unique(np.concatenate((labels[0], labels[-1], labels[:, 0], labels[:, -1])))
    padding: NDArray[np.bool_] = np.isin(labels, touching[touching > 0])
    return padding if padding.any() else None


def _fill_padding(image: NDArray[np.float32], padding: NDArray[np.bool_] | None) -> tuple[str, ...]:
    """Make padding as dark as the darkest pixel of the picture, in place."""
    if padding is None:
        return ()
    if padding.all():
        raise NotMeasurable(Reason.UNREADABLE, "all pixels are padding: there is no picture")
    image[padding] = image[~padding].min()
    return (f"{100.0 * float(padding.mean()):.0f} % of the pixels are padding.",)


def _first_table(dataset: Dataset, sequence: str, signed: bool) -> LookupTable | None:
    """Return the sequence's first item as a table; None where it is absent or damaged."""
    for item in items(dataset, sequence)[:1]:
        return _table(item, signed)
    return None


def _table(item: Dataset, signed: bool) -> LookupTable | None:
    """Read LUT Descriptor (0028,3002) and LUT Data (0028,3006). Source: PS3.3 C.11.1.1.1 and C.11.2.1.1."""
    little = item.original_encoding[1] is not False
    descriptor = _words(values(item, "LUTDescriptor"), 2, little)
    if len(descriptor) != 3:
        return None
    count = int(descriptor[0]) % _WHOLE_LUT or _WHOLE_LUT
    first = int(descriptor[1]) % _WHOLE_LUT
    if signed and first >= _WHOLE_LUT // 2:
        first -= _WHOLE_LUT
    data = values(item, "LUTData")
    byte_count = len(data[0]) if len(data) == 1 and isinstance(data[0], bytes) else 2 * len(data)
    entries = _words(data, 1 if byte_count < 2 * count else 2, little)
    if not count <= len(entries) <= count + 1:
        return None
    table = entries[:count].astype(np.float32)
    return LookupTable(first, table) if table.min() < table.max() else None


def _words(data: tuple[object, ...], size_bytes: int, little: bool) -> NDArray[np.integer]:
    """Return US, SS or OW values as numbers, whichever of these pydicom took them for."""
    if len(data) == 1 and isinstance(data[0], bytes):
        raw = data[0][: len(data[0]) // size_bytes * size_bytes]
        return np.frombuffer(raw, np.dtype("u1") if size_bytes == 1 else np.dtype("<u2" if little else ">u2"))
    try:
        return np.array([int(str(value)) for value in data], dtype=np.int64)
    except ValueError:
        return np.empty(0, dtype=np.int64)
