"""The composition root: from the configuration it builds everything, and it alone.

torch, pydicom and the services are imported where they are needed: the command line stays quick, and a receiver never loads
a network.
"""

import dataclasses
import logging
import shutil
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicomnode.clinical.scores import References
from dicomnode.config import (
    AE_FILE,
    LEDGER_FILE,
    NODE_FILE,
    SHIPPED_FOLDER,
    ApplicationEntity,
    Configuration,
)
from dicomnode.domain.measurement import Assessment, Estimate, Measurement, ModelIdentity, Region, TrainingData
from dicomnode.domain.radiograph import Patient, Radiograph
from dicomnode.domain.reporting import ReportSettings
from dicomnode.errors import CannotUnderstand, ConfigurationError, NotMeasurable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset
    from sqlalchemy import Engine

    from dicomnode.dicom.equipment import Equipment
    from dicomnode.dicom.reader import Limits
    from dicomnode.inference.predictor import Predictor
    from dicomnode.services.worker import Encoded
    from dicomnode.storage.ledger import Ledger
    from dicomnode.storage.peers import Peers
    from dicomnode.storage.rows import Instance, NewAe, Retried
    from dicomnode.storage.spool import Spool

log = logging.getLogger(__name__)

SPOOL_FOLDER = "spool"
EXECUTOR_FILE = "executor-id"


class Composition:
    """Measuring, drawing and encoding of one radiograph, as the configuration wants them."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        chosen = configuration.settings.report
        self.references = References(configuration.population, chosen.criteria)
        self.report = ReportSettings(
            language=chosen.language.value,
            limitation=chosen.limitation,
            author_organisation=chosen.institution,
            burn_in_identification=chosen.burn_in_identification,
        )

    @cached_property
    def equipment(self) -> "Equipment":
        """This installation as DICOM names it."""
        from dicomnode.dicom.equipment import Equipment

        chosen = self.configuration.settings.report
        return Equipment(
            serial_number=chosen.serial_number,
            station_name=chosen.station_name,
            institution_name=chosen.institution,
            institutional_department_name=chosen.department,
        )

    @cached_property
    def limits(self) -> "Limits":
        """What one object may cost."""
        from dicomnode.dicom.reader import Limits

        return Limits(max_object_bytes=self.configuration.settings.receiver.maximum_object_bytes)

    @cached_property
    def predictor(self) -> "Predictor":
        """The networks; loaded and verified at the first use.

        Raises:
            BundleError: the bundle is damaged or of another kind.
        """
        from dicomnode.inference.bundle import SHIPPED, load_bundle
        from dicomnode.inference.predictor import Predictor

        worker = self.configuration.settings.worker
        return Predictor(load_bundle(worker.model_folder or SHIPPED), worker.device.value, worker.threads)

    @property
    def model(self) -> ModelIdentity:
        """Which model measures. Raises as `predictor`."""
        return self.predictor.bundle.identity

    def warm_up(self) -> None:
        """Load now what the first radiograph would otherwise wait for. Raises as `predictor`."""
        import numpy as np

        from dicomnode import pipeline
        from dicomnode.dicom import normalise, overlay, pixels, secondary_capture, structured_report

        for module in (pipeline, normalise, overlay, pixels, secondary_capture, structured_report):
            log.debug("loaded %s", module.__name__)
        self.predictor.locate(np.zeros((256, 256), np.float32), (1.0, 1.0))

    def measure(self, file: Path) -> Measurement:
        """Measure the radiograph in a DICOM file: figures, or the reason why there are none.

        Raises:
            CannotUnderstand: the file is no DICOM object; there is nothing to report on.
            OSError: it cannot be opened or read.
        """
        from dicomnode.pipeline import measure, not_measured

        radiograph = self._read(file)
        if isinstance(radiograph, NotMeasurable):
            return not_measured(self._instance_uid(file), self.model, radiograph)
        return measure(radiograph, self.predictor, self._assess)

    def draw(self, file: Path, measurement: Measurement) -> "NDArray[np.uint8]":
        """Draw the overlay, (rows, columns, 3) RGB. Raises as `measure`."""
        from dicomnode.dicom.overlay import render_overlay, window_for_display
        from dicomnode.dicom.secondary_capture import identification_line

        radiograph = self._read(file)
        patient, image = Patient(), None
        if isinstance(radiograph, Radiograph):
            patient, image = radiograph.patient, window_for_display(radiograph.image)
        burnt_in = self.report.burn_in_identification
        return render_overlay(
            measurement,
            image,
            patient=patient,
            references=self._curves(patient),
            settings=self.report,
            identification=identification_line(self._source(file)) if burnt_in else "",
        )

    def encode(self, file: Path, measurement: Measurement, picture: "NDArray[np.uint8]") -> "Mapping[str, Dataset]":
        """Make the Structured Report and the secondary capture of a measured file, by kind (`dicom.uids.Kind`).

        Their times are the file's own (in the spool: when it was received), so that encoding again gives the same bytes.
        Raises as `measure`.
        """
        from dicomnode.dicom.secondary_capture import build_secondary_capture
        from dicomnode.dicom.structured_report import build_structured_report
        from dicomnode.dicom.uids import Kind

        source = self._source(file)
        context: dict[str, Any] = {
            "equipment": self.equipment,
            "settings": self.report,
            "configuration_digest": self.configuration.digest,
            "now": datetime.fromtimestamp(file.stat().st_mtime, UTC).astimezone(),
        }
        return {
            Kind.STRUCTURED_REPORT: build_structured_report(source, measurement, **context),
            Kind.SECONDARY_CAPTURE: build_secondary_capture(source, picture, measurement, **context),
        }

    def _source(self, file: Path) -> "Dataset":
        """The radiograph's header, clean enough to be referred to."""
        from dicomnode.dicom.normalise import normalise_source
        from dicomnode.dicom.pixels import read_header

        undeclared = self.configuration.settings.report.undeclared_character_set
        return normalise_source(read_header(file, self.limits), undeclared)

    def _read(self, file: Path) -> Radiograph | NotMeasurable:
        from dicomnode.dicom.pixels import read_radiograph

        try:
            return read_radiograph(file, self.limits)
        except NotMeasurable as error:
            return error

    def _instance_uid(self, file: Path) -> str:
        from dicomnode.dicom.attributes import text
        from dicomnode.dicom.pixels import read_header

        uid = text(read_header(file, self.limits), "SOPInstanceUID")
        if not uid:
            raise CannotUnderstand("it has no SOP Instance UID: nothing can be said about it in a report")
        return uid

    def _assess(self, region: Region, areal_bmd_g_cm2: Estimate, patient: Patient) -> Assessment:
        # A simulation knows no densitometer: only a model that was fitted to one may claim its scale.
        on_dxa_scale = self.model.trained_on is TrainingData.REAL
        return self.references.assess(region, areal_bmd_g_cm2, patient, on_dxa_scale=on_dxa_scale)

    def _curves(self, patient: Patient) -> dict[Region, Any]:
        curves = {region: self.references.curve(region, patient) for region in Region}
        return {region: curve for region, curve in curves.items() if curve is not None}


# --- First start ----------------------------------------------------------------------------------------------------------
def write_configuration(path: Path) -> list[Path]:
    """Copy the commented configuration to where there is none yet; give what was written.

    Args:
        path: the folder, or the node.toml in it.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    folder = path.parent if path.suffix == ".toml" else path
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (NODE_FILE, AE_FILE):
            if not (folder / name).exists():
                shutil.copyfile(SHIPPED_FOLDER / name, folder / name)
                written.append(folder / name)
    except OSError as error:
        raise ConfigurationError(f"{folder}: cannot be written ({error.strerror}); choose another --config") from error
    return written


def prepare(configuration: Configuration, *, import_again: bool = False) -> int:
    """Make spool and tables, migrate them, import the first AE titles. Safe at every start.

    Args:
        configuration: what to prepare.
        import_again: import the AE titles that the ledger does not know even where it knows some. Else they are imported
            into a ledger without any only: a title that an administrator removed must not come back by a restart.

    Returns:
        The number of AE titles that were imported.

    Raises:
        ConfigurationError: the data folder cannot be written, or the database is none that we can use.
        LedgerUnavailable: the database does not answer.
    """
    from dicomnode import workflow
    from dicomnode.storage import database
    from dicomnode.storage.peers import Peers

    folder = configuration.settings.node.data_folder
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        open_spool(configuration).prepare()
    except OSError as error:
        raise ConfigurationError(f"node.data_folder {folder}: cannot be written ({error.strerror})") from error
    database.upgrade(configuration.database_url)
    workflow.prepare(configuration.database_url)
    engine = database.open_engine(configuration.database_url)
    try:
        peers = Peers(engine)
        if peers.all() and not import_again:
            return 0
        return peers.add_missing(new_ae(entity) for entity in configuration.application_entities.ae)
    finally:
        engine.dispose()


def new_ae(entity: ApplicationEntity) -> "NewAe":
    """Translate an AE of the configuration into a row of the ledger."""
    from dicomnode.storage.rows import NewAe

    return NewAe(**dataclasses.asdict(entity))


# --- The node's programs --------------------------------------------------------------------------------------------------
def run_all(configuration: Configuration, arguments: Sequence[str]) -> int:
    """Run every program as a process of its own, and start those again that die, until a signal stops all.

    Args:
        configuration: only its data folder is used here, to be the one node on it.
        arguments: what each program gets on its command line (`--config`, `--set`).

    Returns:
        Exit code for this process.
    """
    from dicomnode.services import process, supervisor

    command = (sys.executable, "-m", "dicomnode.cli", "serve", *arguments, "--supervised", "--only")
    with process.single(configuration.settings.node.data_folder, "node"):
        return supervisor.run_all([supervisor.Program(name, (*command, name)) for name in PROGRAMS])


def run_program(name: str, configuration: Configuration, *, supervised: bool) -> None:
    """Run one program in this process until it is stopped.

    Args:
        name: one of `PROGRAMS`.
        configuration: the whole configuration.
        supervised: end together with the parent process.
    """
    from dicomnode.services import process
    from dicomnode.storage import database

    if supervised:
        process.die_with_parent()
    stop = process.stop_on_signals()
    engine = database.open_engine(configuration.database_url)
    try:
        with process.single(configuration.settings.node.data_folder, name):
            PROGRAMS[name](configuration, engine, stop)
    finally:
        engine.dispose()


def _receiver(configuration: Configuration, engine: "Engine", stop: threading.Event) -> None:
    from dicomnode.services import receiver
    from dicomnode.storage.ledger import Ledger
    from dicomnode.storage.peers import Peers
    from dicomnode.workflow import Client

    node, chosen = configuration.settings.node, configuration.settings.receiver
    settings = receiver.ReceiverSettings(
        ae_title=node.ae_title,
        bind=node.bind,
        port=node.port,
        require_called_ae_title=chosen.require_called_ae_title,
        allow_unlisted_callers=chosen.allow_unlisted_callers,
        maximum_pdu_bytes=chosen.maximum_pdu_bytes,
        maximum_associations=chosen.maximum_associations,
        negotiation_timeout_s=chosen.negotiation_timeout_s,
        network_timeout_s=chosen.network_timeout_s,
        limits=Composition(configuration).limits,
    )
    client = Client(engine)
    try:
        receiver.serve(settings, Ledger(engine), Peers(engine), open_spool(configuration), client.enqueue, stop)
    except OSError as error:
        place = f"{node.bind}:{node.port}"
        raise ConfigurationError(f"cannot listen on {place} ({error.strerror}); dicomnode check says more") from error
    finally:
        client.close()


def _worker(configuration: Configuration, engine: "Engine", stop: threading.Event) -> None:
    from dicomnode.services import worker
    from dicomnode.storage.ledger import Ledger

    composition = Composition(configuration)
    composition.warm_up()

    def encode(file: Path, measurement: Measurement) -> "list[Encoded]":
        objects = composition.encode(file, measurement, composition.draw(file, measurement))
        return [worker.Encoded(kind, dataset) for kind, dataset in objects.items()]

    settings = worker.WorkerSettings(
        executor_id=executor_id(configuration.settings.node.data_folder),
        model_digest=composition.model.digest,
        configuration_digest=configuration.digest,
    )
    worker.serve(settings, engine, Ledger(engine), open_spool(configuration), composition.measure, encode, stop)


def _sender(configuration: Configuration, engine: "Engine", stop: threading.Event) -> None:
    from dicomnode.services import sender
    from dicomnode.storage.outbox import Outbox
    from dicomnode.storage.peers import Peers

    chosen = configuration.settings.sender
    settings = sender.SenderSettings(
        ae_title=configuration.settings.node.ae_title,
        sender_id=executor_id(configuration.settings.node.data_folder),
        first_delay_s=chosen.first_delay_s,
        longest_delay_s=chosen.longest_delay_s,
        maximum_age_s=chosen.maximum_age_hours * 3600.0,
        connection_timeout_s=chosen.connection_timeout_s,
        network_timeout_s=chosen.network_timeout_s,
        maximum_pdu_bytes=chosen.maximum_pdu_bytes,
        limits=Composition(configuration).limits,
        undeclared_character_set=configuration.settings.report.undeclared_character_set,
    )
    sender.serve(settings, Outbox(engine), Peers(engine), open_spool(configuration), stop)


PROGRAMS: Mapping[str, Callable[[Configuration, "Engine", threading.Event], None]] = {
    "receiver": _receiver,
    "worker": _worker,
    "sender": _sender,
}


def executor_id(data_folder: Path) -> str:
    """Name the worker of this data folder: unique on a shared database, the same after every restart."""
    file = data_folder / EXECUTOR_FILE
    if not file.exists():
        part = file.with_name(f"{EXECUTOR_FILE}.{uuid.uuid4().hex}")
        part.write_text(f"worker-{uuid.uuid4().hex[:12]}\n", encoding="ascii")
        try:
            file.hardlink_to(part)
        except FileExistsError:
            log.debug("another process has named the worker first")
        part.unlink()
    return file.read_text(encoding="ascii").strip()


# --- The ledger, for the command line -------------------------------------------------------------------------------------
def open_database(configuration: Configuration) -> "Engine":
    """Open the ledger's database, migrated to this version.

    Raises:
        ConfigurationError: there is none yet.
        LedgerUnavailable: it does not answer.
    """
    from dicomnode.storage import database

    file = configuration.settings.node.data_folder / LEDGER_FILE
    if not configuration.settings.database.url and not file.exists():
        raise ConfigurationError(f"there is no ledger at {file}; make one with `dicomnode init`, or name its --config")
    database.upgrade(configuration.database_url)
    return database.open_engine(configuration.database_url)


def open_ledger(configuration: Configuration) -> "Ledger":
    """Open the ledger. Raises as `open_database`."""
    from dicomnode.storage.ledger import Ledger

    return Ledger(open_database(configuration))


def open_peers(configuration: Configuration) -> "Peers":
    """Open the AE titles of the ledger. Raises as `open_database`."""
    from dicomnode.storage.peers import Peers

    return Peers(open_database(configuration))


def open_spool(configuration: Configuration) -> "Spool":
    """Open the spool in the data folder."""
    from dicomnode.storage.spool import Spool

    receiver = configuration.settings.receiver
    root = configuration.settings.node.data_folder / SPOOL_FOLDER
    return Spool(root, receiver.minimum_free_bytes, receiver.maximum_object_bytes)


def retry(configuration: Configuration, job: str) -> "tuple[Instance, Retried]":
    """Set a job going again.

    Raises:
        NotFound: there is no such job.
    """
    from dicomnode import workflow

    ledger = open_ledger(configuration)
    instance = ledger.find(job)
    client = workflow.Client(ledger.engine)
    try:
        return instance, ledger.retry(instance.id, client.enqueue)
    finally:
        client.close()
