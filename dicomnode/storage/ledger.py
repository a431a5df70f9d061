"""The ledger: which instances were received, what was made of them, and what waits for a person. It is the truth.

The durable-workflow engine only drives the work; whatever it forgets is started again from here (`workflow.sweep`).
Each method is one transaction. Callers get frozen values.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any

from sqlalchemy import ColumnElement, Engine, and_, exists, func, not_, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from dicomnode.errors import NotFound, PermanentFailure
from dicomnode.storage.database import Clock, reading, utc_now, writing
from dicomnode.storage.mapping import columns, frozen
from dicomnode.storage.rows import (
    UNFINISHED,
    Attempt,
    Conflict,
    Delivery,
    DeliveryDetail,
    DeliveryState,
    Instance,
    InstanceState,
    Job,
    JobDetail,
    NewInstance,
    NewObject,
    Object,
    Result,
    Retried,
)
from dicomnode.storage.schema import (
    AeTable,
    AttemptTable,
    ConflictTable,
    DeliveryTable,
    HeartbeatTable,
    InstanceTable,
    ObjectTable,
    ResultTable,
)

Enqueue = Callable[[Session, int, int], None]
"""Puts the workflow of (instance id, run) into the engine's queue, inside the caller's transaction."""
EXECUTOR_SILENCE = timedelta(seconds=90)
"""A worker that has not given a sign of life for this long is taken for dead, and its work is taken over."""


class Arrival(Enum):
    """What a received object is to the ledger."""

    NEW = "new"
    REPEATED = "repeated"
    """Same SOP Instance UID, same bytes: nothing is done twice."""
    CONFLICTING = "conflicting"
    """Same SOP Instance UID, other bytes: kept and flagged, not measured."""


@dataclass(frozen=True)
class Registration:
    """Outcome of `Ledger.register`."""

    arrival: Arrival
    instance: Instance
    kept_path: str
    """Spool path that the ledger now refers to for these bytes; the caller's own copy is superfluous when it differs."""


class Ledger:
    """Instances, results and objects. Deliveries: `storage.outbox`; peers: `storage.peers`."""

    def __init__(self, engine: Engine, now: Clock = utc_now) -> None:
        self.engine = engine
        self._now = now

    # -- receiving ----------------------------------------------------------------------------------------------

    def register(self, new: NewInstance, enqueue: Enqueue) -> Registration:
        """Write the instance row and enqueue its workflow in one transaction; recognise repeats and conflicts.

        Raises:
            LedgerUnavailable: nothing was written.
        """
        try:
            return self._register(new, enqueue)
        except IntegrityError:
            # Another receiver committed the same SOP Instance UID in between (PostgreSQL): now it is a repeat or a conflict.
            return self._register(new, enqueue)

    def _register(self, new: NewInstance, enqueue: Enqueue) -> Registration:
        with writing(self.engine) as session:
            known = session.scalar(select(InstanceTable).where(InstanceTable.sop_instance_uid == new.sop_instance_uid))
            if known is not None:
                return self._recognise(session, known, new)
            now = self._now()
            state = InstanceState.RECEIVED.value
            row = InstanceTable(**columns(new), state=state, received_at=now, changed_at=now)
            session.add(row)
            session.flush()
            enqueue(session, row.id, row.run)
            return Registration(Arrival.NEW, frozen(Instance, row), new.spool_path)

    def _recognise(self, session: Session, known: InstanceTable, new: NewInstance) -> Registration:
        instance = frozen(Instance, known)
        if known.dataset_sha256 == new.dataset_sha256:
            return Registration(Arrival.REPEATED, instance, known.spool_path)
        same_bytes = (ConflictTable.instance_id == known.id) & (ConflictTable.dataset_sha256 == new.dataset_sha256)
        conflict = session.scalar(select(ConflictTable).where(same_bytes))
        if conflict is None:
            conflict = ConflictTable(
                instance_id=known.id,
                dataset_sha256=new.dataset_sha256,
                size_bytes=new.size_bytes,
                spool_path=new.spool_path,
                calling_ae_title=new.calling_ae_title,
                received_at=self._now(),
            )
            session.add(conflict)
        else:
            conflict.times_received += 1
        return Registration(Arrival.CONFLICTING, instance, conflict.spool_path)

    def unknown_paths(self, paths: Collection[str]) -> list[str]:
        """Tell which of these spool paths no instance and no conflict refers to, in the order given."""
        with reading(self.engine) as session:
            known: set[str] = set()
            for table in (InstanceTable, ConflictTable):
                known.update(session.scalars(select(table.spool_path).where(table.spool_path.in_(paths))))
        return [path for path in paths if path not in known]

    # -- working ------------------------------------------------------------------------------------------------

    def instance(self, instance_id: int) -> Instance:
        """Read one instance.

        Raises:
            NotFound: no such row.
        """
        with reading(self.engine) as session:
            return frozen(Instance, _instance(session, instance_id))

    def begin_step(self, instance_id: int, step: str, most_attempts: int) -> Instance:
        """Count the beginning of a step, durably, so that a process that dies in it is seen by its successor.

        When the step was begun `most_attempts` times without an end, the instance is quarantined instead. One that is quarantined
        or dispatched is given back as it is.
        """
        with writing(self.engine) as session:
            row = _instance(session, instance_id)
            if row.state in (InstanceState.QUARANTINED.value, InstanceState.DISPATCHED.value):
                return frozen(Instance, row)
            if row.step != step:
                row.step, row.attempts, row.shortages = step, 0, 0
            if row.attempts >= most_attempts:
                note = f"{step}: the process ended {row.attempts} times without a result"
                self._quarantine(row, f"{note}; last reason recorded: {row.note}" if row.note else note)
            else:
                row.attempts += 1
                row.next_attempt_at = None
            return frozen(Instance, row)

    def record_result(
        self,
        instance_id: int,
        model_digest: str,
        configuration_digest: str,
        figures: Mapping[str, Any],
        checkpoint_path: str,
    ) -> Result:
        """Write the figures; a second result of the same model and configuration is never written, the first one stands."""
        with writing(self.engine) as session:
            row = _instance(session, instance_id)
            result = _result(session, instance_id, model_digest, configuration_digest)
            if result is None:
                result = ResultTable(
                    instance_id=instance_id,
                    model_digest=model_digest,
                    configuration_digest=configuration_digest,
                    figures=dict(figures),
                    checkpoint_path=checkpoint_path,
                    created_at=self._now(),
                )
                session.add(result)
                session.flush()
            self._advance(row, InstanceState.MEASURED)
            return frozen(Result, result)

    def result(self, instance_id: int, model_digest: str, configuration_digest: str) -> Result | None:
        """Read the result of one model under one configuration, None where there is none yet."""
        with reading(self.engine) as session:
            row = _result(session, instance_id, model_digest, configuration_digest)
            return frozen(Result, row) if row is not None else None

    def replace_result(self, result_id: int, figures: Mapping[str, Any], checkpoint_path: str) -> None:
        """Write figures and checkpoint of a result anew, whose checkpoint was lost before any object was made of it.

        Raises:
            PermanentFailure: there are objects: what they say must stay what the ledger says.
        """
        with writing(self.engine) as session:
            row = session.get_one(ResultTable, result_id)
            _instance(session, row.instance_id)
            if _objects(session, result_id):
                raise PermanentFailure(f"result {result_id} has objects already: its figures stand")
            row.figures, row.checkpoint_path = dict(figures), checkpoint_path

    def record_objects(self, result: Result, objects: Sequence[NewObject]) -> tuple[Object, ...]:
        """Write the rows of all objects of a result at once; where they exist, they stand and are given back.

        From this commit on the objects' files never change: a later run reuses them.
        """
        with writing(self.engine) as session:
            row = _instance(session, result.instance_id)
            existing = _objects(session, result.id)
            if not existing:
                session.add_all(
                    ObjectTable(
                        **columns(made), instance_id=result.instance_id, result_id=result.id, created_at=self._now()
                    )
                    for made in objects
                )
                session.flush()
                existing = _objects(session, result.id)
            self._advance(row, InstanceState.ENCODED)
            return tuple(frozen(Object, entry) for entry in existing)

    def objects(self, result_id: int) -> tuple[Object, ...]:
        """Read the objects of a result; empty until they are recorded."""
        with reading(self.engine) as session:
            return tuple(frozen(Object, row) for row in _objects(session, result_id))

    def dispatch(self, instance_id: int) -> int:
        """Make one delivery row per object and destination, for the objects of the instance's latest encoded result.

        Returns:
            The number of destinations. With 0 the instance stays ENCODED, with a note, until a destination is configured.
        """
        with writing(self.engine) as session:
            row = _instance(session, instance_id)
            destinations = list(session.scalars(select(AeTable.ae_title).where(AeTable.receives_results)))
            if not destinations:
                row.note, row.attempts = "no destination is configured; add one: dicomnode ae add", 0
                return 0
            latest = select(func.max(ObjectTable.result_id)).where(ObjectTable.instance_id == instance_id)
            for entry in _objects(session, session.scalar(latest)):
                self._address(session, entry.id, destinations)
            self._advance(row, InstanceState.DISPATCHED)
            return len(destinations)

    def _address(self, session: Session, object_id: int, destinations: Sequence[str]) -> None:
        known = set(session.scalars(select(DeliveryTable.destination).where(DeliveryTable.object_id == object_id)))
        now = self._now()
        for destination in destinations:
            if destination not in known:
                pending = DeliveryState.PENDING.value
                session.add(
                    DeliveryTable(
                        object_id=object_id, destination=destination, state=pending, next_attempt_at=now, since=now
                    )
                )

    def postpone(self, instance_id: int, delay: timedelta, note: str, *, counted: bool, shortage: bool = False) -> None:
        """Let the instance wait. A failure that is not `counted` is no fault of the instance (a full disk, a lost database).

        A `shortage` of memory may be either's, and has a count of its own.
        """
        with writing(self.engine) as session:
            row = _instance(session, instance_id)
            row.next_attempt_at, row.note, row.changed_at = self._now() + delay, note, self._now()
            if not counted:
                row.attempts = max(0, row.attempts - 1)
            row.shortages += shortage

    def quarantine(self, instance_id: int, note: str) -> None:
        """Take the instance out of the work until a person has looked."""
        with writing(self.engine) as session:
            self._quarantine(_instance(session, instance_id), note)

    def _quarantine(self, row: InstanceTable, note: str) -> None:
        row.state, row.note, row.next_attempt_at, row.changed_at = (
            InstanceState.QUARANTINED.value,
            note,
            None,
            self._now(),
        )

    def _advance(self, row: InstanceTable, state: InstanceState) -> None:
        row.state, row.changed_at = state.value, self._now()
        row.attempts, row.shortages, row.step, row.note, row.next_attempt_at = 0, 0, "", "", None

    # -- sweeping -----------------------------------------------------------------------------------------------

    def workable(self, limit: int = 1000) -> list[Instance]:
        """List unfinished instances that could be worked on now, the longest unchanged first.

        Encoded ones only when a destination is configured.
        """
        with reading(self.engine) as session:
            has_destination = session.scalar(select(func.count()).where(AeTable.receives_results)) or 0
            states = [state.value for state in UNFINISHED if state is not InstanceState.ENCODED or has_destination]
            due = or_(InstanceTable.next_attempt_at.is_(None), InstanceTable.next_attempt_at <= self._now())
            rows = session.scalars(
                select(InstanceTable)
                .where(InstanceTable.state.in_(states), due)
                .order_by(InstanceTable.changed_at, InstanceTable.id)
                .limit(limit)
            )
            return [frozen(Instance, row) for row in rows]

    def enqueue_again(self, instance: Instance, enqueue: Enqueue, *, as_new_run: bool) -> bool:
        """Enqueue an instance that the engine has lost, or (as a new run) one whose last run ended early.

        Returns:
            False when the row has changed since `instance` was read, so that nothing was done.
        """
        with writing(self.engine) as session:
            row = _instance(session, instance.id)
            seen = (instance.state.value, instance.run, instance.attempts, instance.next_attempt_at)
            if (row.state, row.run, row.attempts, row.next_attempt_at) != seen:
                return False
            row.run += as_new_run
            enqueue(session, row.id, row.run)
            return True

    def beat(self, executor_id: str, host: str, pid: int, working_on: int | None = None) -> None:
        """Say that a worker is alive, and on which instance it works."""
        with writing(self.engine) as session:
            row = session.get(HeartbeatTable, executor_id)
            if row is None:
                row = HeartbeatTable(executor_id=executor_id)
                session.add(row)
            row.host, row.pid, row.instance_id, row.beat_at = host, pid, working_on, self._now()

    def live_executors(self, within: timedelta) -> dict[str, int | None]:
        """Name the workers that have given a sign of life `within` this time, each with the instance that it works on."""
        with reading(self.engine) as session:
            rows = session.execute(
                select(HeartbeatTable.executor_id, HeartbeatTable.instance_id).where(self._alive(within))
            )
            return {row.executor_id: row.instance_id for row in rows}

    def _alive(self, within: timedelta) -> ColumnElement[bool]:
        return HeartbeatTable.beat_at > self._now() - within

    # -- for a person -------------------------------------------------------------------------------------------

    def jobs(self, limit: int = 50, state: InstanceState | DeliveryState | None = None) -> list[Job]:
        """List instances, the latest first, with the number of their deliveries by state.

        Args:
            limit: how many at most.
            state: only those whose `Job.summary` is this; DISPATCHED: whatever became of their deliveries.
        """
        with reading(self.engine) as session:
            query = select(InstanceTable).order_by(InstanceTable.id.desc()).limit(limit)
            if state is not None:
                query = query.where(_summed_up_as(state))
            instances = [frozen(Instance, row) for row in session.scalars(query)]
            ids = [instance.id for instance in instances]
            outcomes = _outcomes(session, ids)
            deliveries = _delivery_counts(session, ids)
            conflicts = _conflict_counts(session, ids)
        return [
            Job(entry, outcomes.get(entry.id, ""), deliveries.get(entry.id, {}), conflicts.get(entry.id, 0))
            for entry in instances
        ]

    def find(self, text: str) -> Instance:
        """Find an instance by its row id or its SOP Instance UID.

        Raises:
            NotFound: neither fits.
        """
        with reading(self.engine) as session:
            by_id = InstanceTable.id == int(text) if text.isdecimal() and len(text) < 19 else None
            by_uid = InstanceTable.sop_instance_uid == text
            row = session.scalar(select(InstanceTable).where(by_uid if by_id is None else or_(by_id, by_uid)))
            if row is None:
                raise NotFound(f"no job {text!r}: give a number of `dicomnode jobs` or a SOP Instance UID")
            return frozen(Instance, row)

    def job(self, instance_id: int) -> JobDetail:
        """Read everything about one instance.

        Raises:
            NotFound: no such row.
        """
        with reading(self.engine) as session:
            instance = frozen(Instance, _instance(session, instance_id))
            results = session.scalars(
                select(ResultTable).where(ResultTable.instance_id == instance_id).order_by(ResultTable.id)
            )
            conflicts = session.scalars(
                select(ConflictTable).where(ConflictTable.instance_id == instance_id).order_by(ConflictTable.id)
            )
            objects = session.scalars(
                select(ObjectTable).where(ObjectTable.instance_id == instance_id).order_by(ObjectTable.id)
            ).all()
            return JobDetail(
                instance=instance,
                results=tuple(frozen(Result, row) for row in results),
                deliveries=tuple(detail for row in objects for detail in _deliveries(session, row)),
                objects=tuple(frozen(Object, row) for row in objects),
                conflicts=tuple(frozen(Conflict, row) for row in conflicts),
            )

    def retry(self, instance_id: int, enqueue: Enqueue) -> Retried:
        """Set going again what is not through: the instance if quarantined or unfinished, and its deliveries.

        An instance that a live worker works on is left to it. One that merely waits for its turn gets a second run, which finds
        nothing left to do.

        Raises:
            NotFound: no such row.
        """
        with writing(self.engine) as session:
            row = _instance(session, instance_id)
            resumed_from = None
            waits = row.state == InstanceState.QUARANTINED.value or row.next_attempt_at is not None
            if waits or (InstanceState(row.state) in UNFINISHED and not self._is_worked_on(session, instance_id)):
                resumed_from = _state_by_evidence(session, instance_id)
                self._advance(row, resumed_from)
                row.run += 1
                enqueue(session, row.id, row.run)
            return Retried(resumed_from, self._retry_deliveries(session, instance_id))

    def _is_worked_on(self, session: Session, instance_id: int) -> bool:
        by_a_live_one = (HeartbeatTable.instance_id == instance_id) & self._alive(EXECUTOR_SILENCE)
        return session.scalar(select(exists().where(by_a_live_one))) is True

    def _retry_deliveries(self, session: Session, instance_id: int) -> int:
        of_instance = DeliveryTable.object_id.in_(select(ObjectTable.id).where(ObjectTable.instance_id == instance_id))
        now = self._now()
        pending = DeliveryState.PENDING.value
        unclaimed = or_(DeliveryTable.claimed_until.is_(None), DeliveryTable.claimed_until < now)
        changed = session.execute(
            update(DeliveryTable)
            .where(of_instance, DeliveryTable.state != DeliveryState.DELIVERED.value, unclaimed)
            .values(state=pending, attempts=0, next_attempt_at=now, since=now)
            .returning(DeliveryTable.id)
        )
        return len(changed.all())


def _instance(session: Session, instance_id: int) -> InstanceTable:
    row = session.get(InstanceTable, instance_id, with_for_update=True)
    if row is None:
        raise NotFound(f"no instance {instance_id} in the ledger")
    return row


def _result(session: Session, instance_id: int, model_digest: str, configuration_digest: str) -> ResultTable | None:
    return session.scalar(
        select(ResultTable).where(
            ResultTable.instance_id == instance_id,
            ResultTable.model_digest == model_digest,
            ResultTable.configuration_digest == configuration_digest,
        )
    )


def _objects(session: Session, result_id: int | None) -> Sequence[ObjectTable]:
    return session.scalars(select(ObjectTable).where(ObjectTable.result_id == result_id).order_by(ObjectTable.id)).all()


def _deliveries(session: Session, made: ObjectTable) -> list[DeliveryDetail]:
    rows = session.scalars(select(DeliveryTable).where(DeliveryTable.object_id == made.id).order_by(DeliveryTable.id))
    return [DeliveryDetail(frozen(Delivery, row), frozen(Object, made), _history(session, row.id)) for row in rows]


def _history(session: Session, delivery_id: int) -> tuple[Attempt, ...]:
    rows = session.scalars(
        select(AttemptTable).where(AttemptTable.delivery_id == delivery_id).order_by(AttemptTable.id)
    )
    return tuple(frozen(Attempt, row) for row in rows)


def _outcomes(session: Session, instance_ids: Sequence[int]) -> dict[int, str]:
    """Say in a word what the latest result of each instance is (`domain.document`)."""
    figures = ResultTable.figures
    rows = session.execute(
        select(ResultTable.instance_id, figures["status"].as_string(), figures["reason"].as_string())
        .where(ResultTable.instance_id.in_(instance_ids))
        .order_by(ResultTable.id)
    )
    return {instance_id: reason or status or "" for instance_id, status, reason in rows}


def _delivery_counts(session: Session, instance_ids: Sequence[int]) -> dict[int, dict[DeliveryState, int]]:
    rows = session.execute(
        select(ObjectTable.instance_id, DeliveryTable.state, func.count())
        .join(DeliveryTable, DeliveryTable.object_id == ObjectTable.id)
        .where(ObjectTable.instance_id.in_(instance_ids))
        .group_by(ObjectTable.instance_id, DeliveryTable.state)
    )
    counts: dict[int, dict[DeliveryState, int]] = {}
    for instance_id, state, number in rows:
        counts.setdefault(instance_id, {})[DeliveryState(state)] = number
    return counts


def _conflict_counts(session: Session, instance_ids: Sequence[int]) -> dict[int, int]:
    rows = session.execute(
        select(ConflictTable.instance_id, func.count())
        .where(ConflictTable.instance_id.in_(instance_ids))
        .group_by(ConflictTable.instance_id)
    )
    return {row[0]: row[1] for row in rows}


def _summed_up_as(state: InstanceState | DeliveryState) -> ColumnElement[bool]:
    """Write `Job.summary` as a condition on instances."""
    if isinstance(state, InstanceState):
        return InstanceTable.state == state.value
    held, pending = _has_delivery(DeliveryState.HELD), _has_delivery(DeliveryState.PENDING)
    deliveries = {
        DeliveryState.HELD: held,
        DeliveryState.PENDING: and_(pending, not_(held)),
        DeliveryState.DELIVERED: not_(or_(pending, held)),
    }
    return and_(InstanceTable.state == InstanceState.DISPATCHED.value, deliveries[state])


def _has_delivery(state: DeliveryState) -> ColumnElement[bool]:
    return exists().where(
        DeliveryTable.object_id == ObjectTable.id,
        ObjectTable.instance_id == InstanceTable.id,
        DeliveryTable.state == state.value,
    )


def _state_by_evidence(session: Session, instance_id: int) -> InstanceState:
    """Tell how far an instance had come, from the rows that its steps have left."""
    if session.scalar(select(func.count()).where(ObjectTable.instance_id == instance_id)):
        return InstanceState.ENCODED
    if session.scalar(select(func.count()).where(ResultTable.instance_id == instance_id)):
        return InstanceState.MEASURED
    return InstanceState.RECEIVED
