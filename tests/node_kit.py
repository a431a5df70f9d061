"""Small parts from which tests put a node together: radiographs, light measuring and encoding, an archive with a script."""

import hashlib
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from dicomnode.domain.measurement import (
    Estimate,
    HipMaps,
    HipMeasurement,
    Measurement,
    ModelIdentity,
    Region,
    RegionMeasurement,
    Status,
    TrainingData,
)
from dicomnode.domain.radiograph import Side
from dicomnode.services.worker import Encoded

MODEL = ModelIdentity("fake", "1", "f" * 64, trained_on=TrainingData.SIMULATED)
KINDS = {"structured_report": ComprehensiveSRStorage, "secondary_capture": SecondaryCaptureImageStorage}


def radiograph(seed: int = 0, side: str = "R", rows: int = 64, patient_id: str = "TEST-1") -> Dataset:
    """A small DX object; the same seed gives the same bytes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = _uid("source", seed)
    dataset.StudyInstanceUID = _uid("study", seed)
    dataset.SeriesInstanceUID = _uid("series", seed)
    dataset.PatientID = patient_id
    dataset.PatientName = "Test^Radiograph"
    dataset.Modality = "DX"
    dataset.ImageLaterality = side
    dataset.Rows = dataset.Columns = rows
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PhotometricInterpretation = "MONOCHROME2"
    pixels = np.random.default_rng(seed).integers(0, 4096, (rows, rows), dtype=np.uint16)
    dataset.PixelData = pixels.tobytes()
    return dataset


def measurement(source_uid: str) -> Measurement:
    """Figures and maps for one hip."""
    rng = np.random.default_rng(1)
    maps = HipMaps(
        radiograph=rng.normal(size=(8, 6)).astype(np.float32),
        areal_density_g_cm2=rng.random((8, 6), dtype=np.float32),
        path_length_cm=rng.random((8, 6), dtype=np.float32),
        pelvis_g_cm2=np.zeros((8, 6), np.float32),
        region_labels=np.ones((8, 6), np.uint8),
        spacing_mm=0.7,
        image_from_frame=np.eye(3),
    )
    region = RegionMeasurement(
        Region.TOTAL_HIP,
        Status.MEASURED,
        areal_bmd_g_cm2=Estimate(0.9, 0.8, 1.0),
        contour_px=np.array([[0.5, 0.5], [4.5, 0.5], [4.5, 6.5], [0.5, 0.5]], np.float32),
    )
    hip = HipMeasurement(Side.RIGHT, Status.MEASURED, regions=(region,), maps=maps, magnification=1.15)
    return Measurement(source_uid, Status.MEASURED, (hip,), MODEL)


def measure(path: Path) -> Measurement:
    """Stand in for the pipeline."""
    return measurement(str(dcmread(path, stop_before_pixels=True).SOPInstanceUID))


def encode(path: Path, measured: Measurement) -> Sequence[Encoded]:
    """Stand in for the builders of SR and SC: two small objects with derived UIDs, but a moment of creation in each."""
    source = dcmread(path, stop_before_pixels=True)
    return [Encoded(kind, result(source, kind)) for kind in KINDS]


def result(source: Dataset, kind: str) -> Dataset:
    """One result object of a source."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = KINDS[kind]
    made.SOPInstanceUID = result_uid(str(source.SOPInstanceUID), kind)
    made.StudyInstanceUID = source.StudyInstanceUID
    made.SeriesInstanceUID = _uid("results", kind)
    made.PatientID = source.PatientID
    made.PatientName = source.PatientName
    made.Laterality = source.ImageLaterality
    # Differs from run to run, as the creation time of a real report does: bytes that are made twice would be noticed.
    made.ContentDescription = uuid.uuid4().hex
    return made


def result_uid(source_uid: str, kind: str) -> str:
    """UID of a result, derived from its source and kind alone."""
    return _uid(source_uid, kind)


def _uid(*parts: object) -> str:
    return str(generate_uid(entropy_srcs=[str(part) for part in ("node kit", *parts)]))


def send(port: int, datasets: Sequence[Dataset], called: str = "NODE", calling: str = "MODALITY") -> list[int | None]:
    """Send as a modality does, in one association; None where there was no answer."""
    entity = AE(calling)
    entity.add_requested_context(DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
    association = entity.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        return [None] * len(datasets)
    try:
        return [_status(association, dataset) for dataset in datasets]
    finally:
        if association.is_established:
            association.release()


def _status(association: Any, dataset: Dataset) -> int | None:
    if not association.is_established:
        return None
    answer = association.send_c_store(dataset)
    return int(answer.Status) if "Status" in answer else None


@dataclass(frozen=True)
class Stored:
    """What an archive got in one C-STORE."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    sha256: str
    """Over the encoded data set."""


@dataclass
class Archive:
    """A Storage SCP that keeps what it gets; `answer` decides on each C-STORE's status (0x0000 at first, 0x0111 on repeats)."""

    port: int = 0
    accepted_syntaxes: Sequence[str] = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    sop_classes: Sequence[str] = tuple(KINDS.values())
    received: list[Stored] = field(default_factory=list)
    hang_up_on: set[str] = field(default_factory=set)
    """UIDs at which it aborts instead of answering."""
    answer: Callable[["Archive", Stored], int | Dataset] = lambda archive, stored: archive.duplicate_or_success(stored)

    def uids(self) -> set[str]:
        """UIDs of all that was received."""
        return {stored.sop_instance_uid for stored in self.received}

    def duplicate_or_success(self, stored: Stored) -> int:
        """Answer as many archives do."""
        return (
            0x0111 if sum(entry.sop_instance_uid == stored.sop_instance_uid for entry in self.received) > 1 else 0x0000
        )

    def store(self, event: Event) -> int | Dataset:
        """Handle EVT_C_STORE."""
        encoded = event.encoded_dataset(include_meta=False)
        request: Any = event.request
        stored = Stored(
            str(request.AffectedSOPInstanceUID),
            str(request.AffectedSOPClassUID),
            str(event.context.transfer_syntax),
            hashlib.sha256(encoded).hexdigest(),
        )
        self.received.append(stored)
        if stored.sop_instance_uid in self.hang_up_on:
            event.assoc.abort()
        return self.answer(self, stored)

    @contextmanager
    def listening(self) -> Iterator["Archive"]:
        """Listen on `port` (0: a free one, then told in `port`)."""
        entity = AE("ARCHIVE")
        entity.add_supported_context(Verification)
        for sop_class_uid in self.sop_classes:
            entity.add_supported_context(sop_class_uid, list(self.accepted_syntaxes))
        server = entity.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self.store)]
        )
        assert server is not None
        self.port = server.server_address[1]
        try:
            yield self
        finally:
            server.shutdown()


@contextmanager
def recorded_file_calls(root: Path) -> Iterator[list[tuple[str, str]]]:
    """Record, in their order, what below `root` is synchronised or renamed, as (call, kind of file or folder)."""
    calls: list[tuple[str, str]] = []
    real_fsync, real_fdatasync, real_rename, real_replace = os.fsync, os.fdatasync, os.rename, os.replace

    def kind(path: Path) -> str:
        parts = path.relative_to(root).parts
        return "/".join([*parts[:1], *("shard" if len(part) == 2 else "file" for part in parts[1:])])

    def synchronised(real: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            real(descriptor)
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path.is_relative_to(root):
                calls.append(("synchronise", kind(path)))

        return call

    def renamed(real: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        def call(source: Path, target: Path) -> None:
            real(source, target)
            calls.append(("rename", f"{kind(Path(source))} {kind(Path(target))}"))

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", synchronised(real_fsync))
        patch.setattr(os, "fdatasync", synchronised(real_fdatasync))
        patch.setattr(os, "rename", renamed(real_rename))
        patch.setattr(os, "replace", renamed(real_replace))
        yield calls


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(condition: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
    """Wait until `condition` holds.

    Raises:
        AssertionError: it does not in time.
    """
    pause = threading.Event()
    for _ in range(int(within_s / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError(f"not within {within_s} s: {what}")
