"""Checkpoints: a measurement comes back equal, and nothing else is accepted."""

from dataclasses import dataclass, fields, is_dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pytest

from dicomnode.domain.measurement import Measurement, Reason, Status
from dicomnode.errors import PermanentFailure
from dicomnode.storage import checkpoint
from tests.node_kit import MODEL, measurement


def same(one: Any, other: Any) -> bool:
    """Compare trees of dataclasses; arrays by dtype, shape and every value."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if is_dataclass(one):
        return type(one) is type(other) and all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def test_a_measurement_with_maps_and_contours_comes_back_equal() -> None:
    measured = measurement("1.2.3")
    assert same(checkpoint.load(Measurement, checkpoint.dump(measured)), measured)


def test_a_measurement_without_figures_comes_back_equal() -> None:
    refused = Measurement("1.2.3", Status.NOT_MEASURABLE, (), MODEL, Reason.NO_HIP, "no hip was found", ("ノート",))
    assert same(checkpoint.load(Measurement, checkpoint.dump(refused)), refused)


def test_numpy_scalars_become_plain_numbers() -> None:
    @dataclass(frozen=True)
    class Figure:
        value: float

    assert same(checkpoint.load(Figure, checkpoint.dump(Figure(np.float32(0.5)))), Figure(0.5))  # type: ignore[arg-type]


def test_the_same_value_gives_the_same_figures_whenever_it_is_dumped() -> None:
    first, second = (checkpoint.load(Measurement, checkpoint.dump(measurement("1.2.3"))) for _ in range(2))
    assert same(first, second)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"\x80\x04K\x01."])
def test_a_damaged_checkpoint_is_a_permanent_failure(content: bytes) -> None:
    with pytest.raises(PermanentFailure, match="checkpoint is no Measurement"):
        checkpoint.load(Measurement, content)


def test_a_truncated_checkpoint_is_a_permanent_failure() -> None:
    content = checkpoint.dump(measurement("1.2.3"))
    with pytest.raises(PermanentFailure):
        checkpoint.load(Measurement, content[: len(content) // 2])


def test_a_checkpoint_of_other_fields_is_a_permanent_failure() -> None:
    @dataclass(frozen=True)
    class Older:
        status: str

    with pytest.raises(PermanentFailure, match="other fields"):
        checkpoint.load(Measurement, checkpoint.dump(Older("measured")))


def test_pickled_objects_are_never_loaded() -> None:
    buffer = BytesIO()
    np.savez(buffer, tree=np.array([{"a": 1}], dtype=object))
    with pytest.raises(PermanentFailure):
        checkpoint.load(Measurement, buffer.getvalue())


def test_a_value_that_cannot_come_back_is_refused_when_written() -> None:
    @dataclass(frozen=True)
    class Odd:
        value: object

    with pytest.raises(TypeError, match="a set cannot be kept"):
        checkpoint.dump(Odd({1}))
