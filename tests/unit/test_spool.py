"""The spool: whole or not there, and never where a peer wants it."""

import errno
import hashlib
import os
import time
from pathlib import Path

import pytest

from dicomnode.errors import CannotUnderstand, OutOfResources, PermanentFailure
from dicomnode.storage.spool import CHECKPOINTS, OBJECTS, Incoming, Spool
from tests.node_kit import recorded_file_calls

HEAD = b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL\x04\0" + (8).to_bytes(4, "little") + b"metameta"
PLENTY = 1 << 40


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "spool", watermark_bytes=1000, max_object_bytes=100, free=lambda _: PLENTY)
    spool.prepare()
    return spool


def files(spool: Spool) -> list[str]:
    return sorted(str(path.relative_to(spool.root)) for path in spool.root.rglob("*") if path.is_file())


def received(spool: Spool, *fragments: bytes) -> Incoming:
    incoming = spool.receive(HEAD)
    for fragment in fragments:
        incoming.write(fragment)
    return incoming


def test_fragments_arrive_as_one_file_with_the_digest_of_the_data_set_alone(spool: Spool) -> None:
    with received(spool, b"abc", b"def") as incoming:
        sha256 = incoming.finish()
        path = spool.keep(incoming.path)
    assert sha256 == hashlib.sha256(b"abcdef").hexdigest()
    assert spool.absolute(path).read_bytes() == HEAD + b"abcdef"
    assert spool.dataset_digest(path) == (sha256, 6)
    assert files(spool) == [path]


def test_what_is_not_kept_is_gone(spool: Spool) -> None:
    with received(spool, b"abc") as incoming:
        incoming.finish()
    assert files(spool) == []


def test_below_the_watermark_nothing_is_written_and_the_refusal_is_transient(tmp_path: Path) -> None:
    spool = Spool(tmp_path, watermark_bytes=1000, max_object_bytes=100, free=lambda _: 999)
    spool.prepare()
    with received(spool, b"abc") as incoming:
        assert files(spool) == []
        with pytest.raises(OutOfResources, match="999 bytes free, watermark 1000") as refusal:
            incoming.finish()
    assert refusal.value.status == 0xA700


def test_an_object_beyond_the_limit_is_read_to_its_end_and_refused(spool: Spool) -> None:
    with received(spool, b"x" * 60, b"x" * 60, b"x" * 60) as incoming:
        assert incoming.path.stat().st_size <= len(HEAD) + 100
        with pytest.raises(CannotUnderstand, match="larger than 100 bytes"):
            incoming.finish()
    assert files(spool) == []


def test_a_refused_request_writes_nothing(spool: Spool) -> None:
    with spool.refuse(CannotUnderstand("no")) as incoming:
        incoming.write(b"abc")
        with pytest.raises(CannotUnderstand, match="no"):
            incoming.finish()
    assert files(spool) == []


def test_a_full_disk_while_receiving_is_told_at_the_end_and_leaves_nothing(tmp_path: Path) -> None:
    class FullDisk(Incoming):
        @staticmethod
        def _put(file: object, data: bytes) -> None:
            if data != HEAD:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    spool = Spool(tmp_path, 1000, 100, free=lambda _: PLENTY)
    spool.prepare()
    with FullDisk(spool, HEAD) as incoming:
        incoming.write(b"abc")
        incoming.write(b"def")
        with pytest.raises(OutOfResources, match="No space left"):
            incoming.finish()
    assert files(spool) == []


def test_a_folder_that_cannot_be_written_is_out_of_resources(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "absent", 1000, 100, free=lambda _: PLENTY)
    with received(spool, b"abc") as incoming, pytest.raises(OutOfResources, match="No such file"):
        incoming.finish()


def test_a_failed_write_leaves_nothing_behind(spool: Spool) -> None:
    (spool.root / OBJECTS).rmdir()
    with pytest.raises(FileNotFoundError):
        spool.write(OBJECTS, ".dcm", b"abc")
    assert files(spool) == []


def test_a_written_file_is_read_back_only_unchanged(spool: Spool) -> None:
    kept = spool.write(CHECKPOINTS, ".npz", b"figures")
    assert spool.read(kept.path, kept.sha256) == b"figures"
    spool.absolute(kept.path).write_bytes(b"forged!")
    with pytest.raises(PermanentFailure, match="has changed"):
        spool.read(kept.path, kept.sha256)
    spool.discard(kept.path)
    with pytest.raises(PermanentFailure, match="missing"):
        spool.read(kept.path, kept.sha256)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "instances/../../outside"])
def test_a_path_that_leads_out_of_the_spool_is_an_error(spool: Spool, path: str) -> None:
    with pytest.raises(PermanentFailure, match="leads out of the spool"):
        spool.absolute(path)


def kept(spool: Spool) -> tuple[str, str]:
    with received(spool, b"abc") as incoming:
        sha256 = incoming.finish()
        return spool.keep(incoming.path), sha256


def test_a_lost_or_damaged_file_is_replaced_by_a_repeat_and_a_sound_one_is_left(spool: Spool) -> None:
    (first, sha256), (second, _) = kept(spool), kept(spool)
    assert not spool.restore(second, first, sha256)
    assert files(spool) == sorted([first, second])
    for content in (None, b"", HEAD + b"abX", b"x" * 200):
        again, _ = kept(spool)
        spool.discard(first)
        if content is not None:
            spool.absolute(first).write_bytes(content)
        assert spool.restore(again, first, sha256)
        assert spool.dataset_digest(first) == (sha256, 3)
    assert files(spool) == sorted([first, second])


def durably(folder: str) -> list[tuple[str, str]]:
    """What makes a file of incoming/ survive a power cut under another folder."""
    return [
        ("synchronise", "incoming/file"),
        ("synchronise", folder),
        ("rename", f"incoming/file {folder}/shard/file"),
        ("synchronise", f"{folder}/shard"),
    ]


def test_every_file_is_synchronised_renamed_and_its_folders_synchronised_in_this_order(spool: Spool) -> None:
    with recorded_file_calls(spool.root) as calls:
        spool.write(OBJECTS, ".dcm", b"abc")
        assert calls == durably(OBJECTS)
        calls.clear()
        kept(spool)
        assert calls == durably("instances")


def test_a_shard_that_another_thread_has_just_made_is_synchronised_all_the_same(spool: Spool) -> None:
    for number in range(256):
        (spool.root / OBJECTS / f"{number:02x}").mkdir()
    with recorded_file_calls(spool.root) as calls:
        spool.write(OBJECTS, ".dcm", b"abc")
    assert calls == durably(OBJECTS)


def test_a_repeat_takes_the_place_of_a_damaged_file_durably(spool: Spool) -> None:
    (first, sha256), (second, _) = kept(spool), kept(spool)
    spool.discard(first)
    with recorded_file_calls(spool.root) as calls:
        spool.restore(second, first, sha256)
    assert calls == [
        ("synchronise", "instances"),
        ("rename", "instances/shard/file instances/shard/file"),
        ("synchronise", "instances/shard"),
    ]


def test_the_folders_are_made_durably(tmp_path: Path) -> None:
    with recorded_file_calls(tmp_path) as calls:
        Spool(tmp_path / "spool", 1000, 100).prepare()
    assert calls == [("synchronise", "spool")]


def test_leftovers_of_a_dead_receiver_are_removed(spool: Spool) -> None:
    received(spool, b"abc")  # never closed: the process died
    kept = spool.write(OBJECTS, ".dcm", b"one")
    assert spool.empty_incoming() == 1
    assert files(spool) == [kept.path]


def test_only_received_objects_of_some_age_are_listed(spool: Spool) -> None:
    with received(spool, b"abc") as incoming:
        incoming.finish()
        path = spool.keep(incoming.path)
    assert list(spool.received(older_than_s=60)) == []
    hour_ago = time.time() - 3600
    os.utime(spool.absolute(path), (hour_ago, hour_ago))
    assert list(spool.received(older_than_s=60)) == [path]


def test_a_file_that_the_spool_has_not_written_has_no_data_set_digest(spool: Spool) -> None:
    kept = spool.write(OBJECTS, ".dcm", b"no DICOM at all")
    with pytest.raises(PermanentFailure, match="damaged"):
        spool.dataset_digest(kept.path)


def test_folders_are_closed_to_others(spool: Spool) -> None:
    assert {oct(path.stat().st_mode)[-3:] for path in spool.root.iterdir()} == {"700"}
