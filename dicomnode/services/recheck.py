"""The last look before sending: does the result speak of the patient, the study and the side of the stored radiograph?

A result under another patient's name is the worst that a node can do. Every object was made from its source with care; this check
does not trust that, nor the ledger's row: it reads both files again. The source is read as the encoder reads it: a Patient ID whose
character set the modality did not declare is the same ID in the result, in other bytes.
"""

from collections.abc import Iterator

from pydicom.dataset import Dataset

from dicomnode.dicom.attributes import text
from dicomnode.dicom.normalise import normalise_source
from dicomnode.errors import PermanentFailure

SIDES = ("R", "L")
LATERALITY_CODE, MEASUREMENT_GROUP_CODE = "272741003", "125007"
"""Concepts Laterality (SCT) and Measurement Group (DCM). Source: PS3.16 TID 1501 and 1410, CID 244."""
SIDE_OF_CODE = {"24028007": "R", "7771000": "L"}
"""SCT Right, Left. Source: PS3.16 CID 244."""


def require_same_examination(source: Dataset, made: Dataset, undeclared_character_set: str = "ISO_IR 100") -> None:
    """Compare a result with its source.

    Args:
        source: header of the stored radiograph, as it came.
        made: the object that is about to be sent.
        undeclared_character_set: as for `normalise_source`.

    Raises:
        PermanentFailure: patient ID, study or side differ; the message names what, without the values.
        CannotUnderstand: the stored radiograph is one that nothing can refer to.
    """
    clean = normalise_source(source, undeclared_character_set)
    for keyword, words in (
        ("PatientID", "Patient ID (0010,0020)"),
        ("StudyInstanceUID", "Study Instance UID (0020,000D)"),
    ):
        if text(clean, keyword) != text(made, keyword):
            raise PermanentFailure(f"{words} differs from that of the stored radiograph; not sent")
    stated = stated_side(clean)
    reported = {side for side in (stated_side(made),) if side} | set(measured_sides(made))
    if stated and reported - {stated}:
        raise PermanentFailure("side differs from the Laterality of the stored radiograph; not sent")


def stated_side(dataset: Dataset) -> str:
    """Give "R" or "L" of Image Laterality (0020,0062) or Laterality (0020,0060), "" where neither is stated."""
    for keyword in ("ImageLaterality", "Laterality"):
        if text(dataset, keyword) in SIDES:
            return text(dataset, keyword)
    return ""


def measured_sides(made: Dataset) -> Iterator[str]:
    """Give the sides of all groups of a Structured Report that hold a figure. A group that says why there is none counts not."""
    for group in _containers(made, MEASUREMENT_GROUP_CODE):
        items = list(_items(group))
        if any(text(item, "ValueType") == "NUM" for item in items):
            yield from (side for side in map(_side, items) if side)


def _items(container: Dataset) -> Iterator[Dataset]:
    for item in container.get("ContentSequence") or ():
        yield item
        yield from _items(item)


def _containers(made: Dataset, code: str) -> Iterator[Dataset]:
    return (item for item in _items(made) if _concept(item) == code and text(item, "ValueType") == "CONTAINER")


def _concept(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence")
    return text(names[0], "CodeValue") if names else ""


def _side(item: Dataset) -> str:
    values = item.get("ConceptCodeSequence")
    if _concept(item) != LATERALITY_CODE or not values:
        return ""
    return SIDE_OF_CODE.get(text(values[0], "CodeValue"), "")
