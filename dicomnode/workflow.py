"""The durable workflow: measure, encode, deliver. The only module that knows the engine (DBOS Transact).

The ledger is the truth; the engine only drives. A workflow gets a row id and nothing else. Its steps read the ledger, do their
part once, and write how far they came in the same transaction as its fruit, so that a step may run again at any time. The
engine's tables lie in the same database, so that an instance and its workflow are committed together. Should they be lost,
`sweep` starts everything that the ledger knows to be unfinished again.

Guards, each against something seen to fail:

- constant application version (the default is a hash of the code: after an update all work would be stranded);
- executor ids that are unique and stay the same over a restart (the default is "local" for all);
- queue polling every 0.05 s (default 1 s);
- the portable JSON serializer (default: pickle);
- at most three recoveries (default 100), and before that the ledger's own count of begun steps;
- a run whose thread in the engine has died is taken over (the engine repeats its own writes on SQLite only where the database is
  locked; on a full or failing disk its thread dies, and the run stays "running" under a live executor for ever);
- no listener, no telemetry, no cloud: what would make the engine speak to anybody is refused.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from dbos import DBOS, DBOSClient, DBOSConfig, DBOSPortableJSONSerializer, EnqueueOptions
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from dicomnode.errors import ConfigurationError, LedgerUnavailable
from dicomnode.logline import line
from dicomnode.storage.database import open_engine
from dicomnode.storage.ledger import EXECUTOR_SILENCE, Ledger
from dicomnode.storage.rows import Instance

LOGGER = logging.getLogger(__name__)

# The engine's own console handler would write lines of another form: its records go where ours go.
logging.getLogger("dbos").addHandler(logging.NullHandler())
logging.getLogger("dbos").setLevel(logging.WARNING)

APPLICATION = "dicomnode"
APPLICATION_VERSION = "1"
"""Never derived from the code. Changed only when queued work of an older version could not be run, which row ids prevent."""
QUEUE = "instances"
WORKFLOW = "process_instance"
POLLING_S = 0.05
MOST_RECOVERIES = 3
SWEEP_AT_ONCE = 500
STRANDED_AFTER_S = 30.0
"""A run that its live executor has not named for this long is taken for stranded. Longer than the time between two signs of life,
and far longer than the engine takes between claiming a run and beginning it, or between its end and the record of it."""


class Progress(Enum):
    """What a step says to the workflow."""

    GO_ON = "go on"
    STOP = "stop"
    """Quarantined, postponed, or waiting for a destination: the ledger says which."""


@dataclass(frozen=True)
class Step:
    """One step of the workflow."""

    name: str
    run: Callable[[int], Progress]
    """From the instance's row id; idempotent; raises nothing that the ledger could record."""


class WorkflowState(Enum):
    """What the engine knows of one workflow."""

    LOST = "lost"
    """The engine has never heard of it, or has lost its tables' content."""
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    POISONED = "poisoned"
    """Recovered too often."""


@dataclass(frozen=True)
class WorkflowStatus:
    """State of one workflow, and who runs it."""

    state: WorkflowState
    executor_id: str | None


_STATES = {
    "ENQUEUED": WorkflowState.WAITING,
    "DELAYED": WorkflowState.WAITING,
    "PENDING": WorkflowState.RUNNING,
    "SUCCESS": WorkflowState.ENDED,
    "ERROR": WorkflowState.ENDED,
    "CANCELLED": WorkflowState.ENDED,
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": WorkflowState.POISONED,
}


def workflow_id(instance_id: int, run: int) -> str:
    """Name the workflow of one run of one instance."""
    return f"instance-{instance_id}-run-{run}"


def prepare(url: str) -> None:
    """Create or migrate the engine's tables in the ledger's database, and its queue. At every start, before any service.

    Raises:
        ConfigurationError: the environment would make the engine speak to a cloud.
        LedgerUnavailable: the database cannot be reached, or its user may not make the engine's tables.
    """
    _refuse_cloud()
    engine = open_engine(url)
    try:
        DBOS.migrate(engine.url.render_as_string(hide_password=False))
        client = Client(engine)
        client.register_queue()
        client.close()
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise LedgerUnavailable(f"engine's tables: {type(cause).__name__}: {str(cause).splitlines()[0]}") from error
    finally:
        engine.dispose()


class Client:
    """Enqueues and inspects workflows from processes that do not run them."""

    def __init__(self, engine: Engine) -> None:
        _refuse_cloud()
        self._client = DBOSClient(
            system_database_engine=engine,
            serializer=DBOSPortableJSONSerializer(),
            application_name=APPLICATION,
            lazy=True,
            retry_connection_errors=False,
        )

    def enqueue(self, session: Session, instance_id: int, run: int) -> None:
        """Enqueue a run inside the caller's transaction; a run that is enqueued already stays as it is."""
        options: EnqueueOptions = {
            "workflow_name": WORKFLOW,
            "queue_name": QUEUE,
            "workflow_id": workflow_id(instance_id, run),
            "app_version": APPLICATION_VERSION,
        }
        self._client.enqueue_in_transaction(session, options, instance_id)

    def statuses(self, instances: Sequence[Instance]) -> dict[int, WorkflowStatus]:
        """Ask what the engine knows of the present run of each instance, by instance id."""
        if not instances:
            return {}  # the engine would take an empty list for "all"
        names = {workflow_id(instance.id, instance.run): instance.id for instance in instances}
        known = {instance.id: WorkflowStatus(WorkflowState.LOST, None) for instance in instances}
        for found in self._client.list_workflows(workflow_ids=list(names), load_input=False, load_output=False):
            known[names[found.workflow_id]] = WorkflowStatus(_STATES[found.status], found.executor_id)
        return known

    def take_over(self, instance_id: int, run: int) -> None:
        """Put a run that nobody runs any more back into the queue. Without the queue's name it would escape the queue's limits."""
        self._client.resume_workflow(workflow_id(instance_id, run), queue_name=QUEUE)

    def register_queue(self) -> None:
        """Store the queue's settings: one instance at a time in each worker, since a crash takes all that run beside it."""
        self._client.register_queue(QUEUE, worker_concurrency=1, polling_interval_sec=POLLING_S)

    def close(self) -> None:
        """Let go of the engine; the database connections are the caller's."""
        self._client.destroy()


class Runner:
    """Runs workflows in this process. One per process: the engine is global to it.

    Args:
        engine: the ledger's database.
        executor_id: unique among all processes on this database, and the same after a restart: a restarted worker resumes what
            its predecessor of the same id had begun.
        steps: in order.
    """

    def __init__(self, engine: Engine, executor_id: str, steps: Sequence[Step]) -> None:
        _refuse_cloud()
        self._engine = engine
        self._executor_id = executor_id
        self._steps = tuple(steps)
        self.working_on: int | None = None
        """The instance whose steps run at this moment."""

    def start(self) -> None:
        """Resume what a predecessor had begun, then take work from the queue."""
        DBOS(config=self._configuration())
        steps = [(step, DBOS.step(name=step.name)(_as_text(step.run))) for step in self._steps]

        @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=MOST_RECOVERIES)
        def process_instance(instance_id: int) -> str:
            self.working_on = instance_id
            try:
                for step, run in steps:
                    if Progress(run(instance_id)) is Progress.STOP:
                        return f"stopped in {step.name}"
                return "done"
            finally:  # also where the engine cannot write what a step answered
                self.working_on = None

        DBOS.listen_queues([QUEUE])
        DBOS.launch()

    def stop(self, grace_s: int) -> None:
        """Take no more work, and give what runs `grace_s` to end."""
        DBOS.destroy(destroy_registry=True, workflow_completion_timeout_sec=grace_s)

    def _configuration(self) -> DBOSConfig:
        return {
            "name": APPLICATION,
            "system_database_engine": self._engine,
            "application_version": APPLICATION_VERSION,
            "executor_id": self._executor_id,
            "serializer": DBOSPortableJSONSerializer(),
            "enable_otlp": False,
            "run_migrations": False,
            "log_level": "WARNING",
        }


@dataclass
class Idle:
    """Which runs the engine calls running though their live executors do not name them, and since when.

    One that has just begun or just ended looks so too, for a moment: only what stands so is stranded.
    """

    now_s: Callable[[], float] = time.monotonic
    since_s: dict[str, float] = field(default_factory=dict)

    def stranded(self, runs: Sequence[str]) -> set[str]:
        """Take what looks so in this round; give what has looked so in every round for `STRANDED_AFTER_S`."""
        now_s = self.now_s()
        self.since_s = {run: self.since_s.get(run, now_s) for run in runs}
        return {run for run, since_s in self.since_s.items() if now_s - since_s >= STRANDED_AFTER_S}


def sweep(ledger: Ledger, client: Client, idle: Idle) -> int:
    """Compare the ledger with the engine and set going what stands still; give the number of instances touched.

    Args:
        ledger: the truth.
        client: asks and steers the engine.
        idle: what earlier rounds have seen.

    Raises:
        LedgerUnavailable: the database cannot be reached.
    """
    live = ledger.live_executors(EXECUTOR_SILENCE)
    instances = ledger.workable(SWEEP_AT_ONCE)
    try:
        # The engine is asked after the ledger: whatever was enqueued together with a row is seen.
        statuses = client.statuses(instances)
        left = _left(instances, statuses, live, idle)
        return sum(_set_going(ledger, client, instance, statuses[instance.id], left) for instance in instances)
    except SQLAlchemyError as error:
        raise LedgerUnavailable(f"engine's tables: {type(error).__name__}") from error


def _left(
    instances: Sequence[Instance], statuses: Mapping[int, WorkflowStatus], live: Mapping[str, int | None], idle: Idle
) -> set[int]:
    """Name the instances whose runs nobody runs any more: the executor is dead, or lives and has lost them."""
    running = [entry for entry in instances if statuses[entry.id].state is WorkflowState.RUNNING]
    executors = {entry.id: statuses[entry.id].executor_id for entry in running}
    dead = {entry.id for entry in running if executors[entry.id] not in live}
    unnamed = {
        workflow_id(entry.id, entry.run): entry.id
        for entry in running
        if entry.id not in dead and live[executors[entry.id] or ""] != entry.id
    }
    return dead | {unnamed[run] for run in idle.stranded(list(unnamed))}


def _set_going(ledger: Ledger, client: Client, instance: Instance, status: WorkflowStatus, left: set[int]) -> bool:
    if status.state is WorkflowState.POISONED:
        ledger.quarantine(instance.id, f"the engine gave up: {instance.step or 'the workflow'} never came to an end")
        return _told("quarantined", instance, status)
    if status.state is WorkflowState.LOST:
        return ledger.enqueue_again(instance, client.enqueue, as_new_run=False) and _told("enqueued", instance, status)
    if status.state is WorkflowState.ENDED:
        return ledger.enqueue_again(instance, client.enqueue, as_new_run=True) and _told("run again", instance, status)
    if instance.id in left:
        client.take_over(instance.id, instance.run)
        return _told("taken over", instance, status)
    return False


def _told(what: str, instance: Instance, status: WorkflowStatus) -> bool:
    LOGGER.info(
        line(
            "swept",
            action=what,
            job=instance.id,
            run=instance.run,
            state=instance.state.value,
            engine=status.state.value,
            executor=status.executor_id,
            sop_instance_uid=instance.sop_instance_uid,
        )
    )
    return True


def _as_text(run: Callable[[int], Progress]) -> Callable[[int], str]:
    """Let a step answer with a text: what the engine stores of a step must be plain JSON."""

    def step(instance_id: int) -> str:
        return run(instance_id).value

    return step


def _refuse_cloud() -> None:
    """Refuse an environment that would make the engine connect to its maker's services or take its identity from there.

    Raises:
        ConfigurationError: such a variable is set.
    """
    names = sorted(name for name in os.environ if name.startswith(("DBOS__", "DBOS_")))
    if names:
        raise ConfigurationError(
            f"environment variables {', '.join(names)} would steer the workflow engine; unset them"
        )
