"""Deterministic UIDs."""

import re

from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from dicomnode.dicom.equipment import Equipment
from dicomnode.dicom.uids import (
    IMPLEMENTATION_CLASS_UID,
    Kind,
    result_instance_uid,
    result_series_uid,
    tracking_uid,
)

UIDS = st.from_regex(r"(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){1,5}", fullmatch=True)
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(st.sampled_from(Kind), UIDS, DIGESTS, DIGESTS)
def test_a_result_has_valid_uids_below_the_uuid_root(kind: Kind, source: str, model: str, configuration: str) -> None:
    for uid in (
        result_instance_uid(kind, source, model, configuration),
        result_series_uid(kind, source, model, configuration),
    ):
        assert UID(uid).is_valid
        assert re.fullmatch(r"2\.25\.[1-9][0-9]{0,38}", uid)


@given(UIDS, DIGESTS, DIGESTS)
def test_every_argument_makes_another_uid_and_repetition_the_same(source: str, model: str, configuration: str) -> None:
    calls = [
        (Kind.STRUCTURED_REPORT, source, model, configuration),
        (Kind.SECONDARY_CAPTURE, source, model, configuration),
        (Kind.STRUCTURED_REPORT, source + "1", model, configuration),
        (Kind.STRUCTURED_REPORT, source, model + "0", configuration),
        (Kind.STRUCTURED_REPORT, source, model, configuration + "0"),
    ]
    uids = [derive(*call) for derive in (result_instance_uid, result_series_uid) for call in calls]
    assert len(set(uids)) == len(uids)
    assert uids == [derive(*call) for derive in (result_instance_uid, result_series_uid) for call in calls]


def test_the_border_between_two_arguments_matters() -> None:
    one = result_instance_uid(Kind.STRUCTURED_REPORT, "1.2", "ab", "c")
    other = result_instance_uid(Kind.STRUCTURED_REPORT, "1.2", "a", "bc")
    assert one != other


def test_uids_never_change_between_releases() -> None:
    uid = result_instance_uid(Kind.STRUCTURED_REPORT, "1.2.3", "a" * 64, "b" * 64)
    assert uid == "2.25.193719133122936764981312673568207297521"
    assert IMPLEMENTATION_CLASS_UID == "2.25.164004324937317792185255416788766000102"


def test_regions_and_installations_are_told_apart() -> None:
    assert tracking_uid("1.2", "R total_hip") != tracking_uid("1.2", "L total_hip")
    assert Equipment(serial_number="1").uid != Equipment(serial_number="2").uid
    assert Equipment(serial_number="1").uid == Equipment(serial_number="1", software_version="another").uid
