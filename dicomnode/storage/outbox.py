"""Deliveries: one row per object and destination, claimed by a sender for a while, with the history of its attempts."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Engine, and_, or_, select, update
from sqlalchemy.orm import Session

from dicomnode.errors import NotFound
from dicomnode.storage.database import Clock, reading, utc_now, writing
from dicomnode.storage.mapping import frozen
from dicomnode.storage.rows import AttemptOutcome, Delivery, DeliveryState, Due, Object
from dicomnode.storage.schema import AttemptTable, DeliveryTable, InstanceTable, ObjectTable


class Outbox:
    """What waits to be delivered, and what became of it."""

    def __init__(self, engine: Engine, now: Clock = utc_now) -> None:
        self.engine = engine
        self._now = now

    def destinations_due(self, sender_id: str) -> list[str]:
        """Name the destinations for which something is due now that this sender may claim."""
        with reading(self.engine) as session:
            return list(session.scalars(select(DeliveryTable.destination).where(self._due(sender_id)).distinct()))

    def claim(self, destination: str, sender_id: str, lease: timedelta, most: int) -> list[Due]:
        """Claim up to `most` due deliveries for one destination and count an attempt for each.

        Those with the fewest attempts come first, so that one that fails (or kills the sender) again and again stands behind
        the others. A claim that its sender does not finish within `lease` is free for any sender. For the same sender it is free
        at once: it serves a destination in one thread, so that an older claim of its own is one that it died with.
        """
        with writing(self.engine) as session:
            rows = session.scalars(
                select(DeliveryTable)
                .where(DeliveryTable.destination == destination, self._due(sender_id))
                .order_by(DeliveryTable.attempts, DeliveryTable.next_attempt_at, DeliveryTable.id)
                .limit(most)
                .with_for_update(skip_locked=True)
            ).all()
            for row in rows:
                row.attempts += 1
                row.claimed_by, row.claimed_until = sender_id, self._now() + lease
            session.flush()
            return [_with_object(session, row) for row in rows]

    def _due(self, sender_id: str) -> ColumnElement[bool]:
        now = self._now()
        expired = DeliveryTable.claimed_until < now
        return and_(
            DeliveryTable.state == DeliveryState.PENDING.value,
            DeliveryTable.next_attempt_at <= now,
            or_(DeliveryTable.claimed_until.is_(None), expired, DeliveryTable.claimed_by == sender_id),
        )

    def delivered(self, delivery_id: int, status: int, detail: str = "") -> None:
        """Record that the destination has the object."""
        with writing(self.engine) as session:
            row = self._end(session, delivery_id, AttemptOutcome.DELIVERED, status, detail)
            row.state, row.delivered_at = DeliveryState.DELIVERED.value, self._now()

    def failed(self, delivery_id: int, status: int | None, detail: str, next_attempt_at: datetime) -> None:
        """Record a failure that is worth another attempt, not before `next_attempt_at`."""
        with writing(self.engine) as session:
            row = self._end(session, delivery_id, AttemptOutcome.FAILED, status, detail)
            row.next_attempt_at = next_attempt_at

    def held(self, delivery_id: int, status: int | None, detail: str) -> None:
        """Record that a person must look."""
        with writing(self.engine) as session:
            row = self._end(session, delivery_id, AttemptOutcome.REFUSED, status, detail)
            row.state = DeliveryState.HELD.value

    def _end(
        self, session: Session, delivery_id: int, outcome: AttemptOutcome, status: int | None, detail: str
    ) -> DeliveryTable:
        row = session.get(DeliveryTable, delivery_id, with_for_update=True)
        if row is None:
            raise NotFound(f"no delivery {delivery_id} in the ledger")
        row.claimed_by, row.claimed_until, row.status, row.detail = None, None, status, detail
        session.add(
            AttemptTable(
                delivery_id=delivery_id, ended_at=self._now(), outcome=outcome.value, status=status, detail=detail
            )
        )
        return row

    def give_back(self, delivery_ids: Collection[int]) -> None:
        """Free claims whose turn did not come; they do not count as attempts."""
        with writing(self.engine) as session:
            session.execute(
                update(DeliveryTable)
                .where(DeliveryTable.id.in_(delivery_ids), DeliveryTable.claimed_by.is_not(None))
                .values(claimed_by=None, claimed_until=None, attempts=DeliveryTable.attempts - 1)
            )

    def delivery(self, delivery_id: int) -> Delivery:
        """Read one delivery.

        Raises:
            NotFound: no such row.
        """
        with reading(self.engine) as session:
            row = session.get(DeliveryTable, delivery_id)
            if row is None:
                raise NotFound(f"no delivery {delivery_id} in the ledger")
            return frozen(Delivery, row)

    def all(self, states: Sequence[DeliveryState] = tuple(DeliveryState)) -> list[Delivery]:
        """List deliveries in these states, the oldest first."""
        with reading(self.engine) as session:
            names = [state.value for state in states]
            rows = session.scalars(
                select(DeliveryTable).where(DeliveryTable.state.in_(names)).order_by(DeliveryTable.id)
            )
            return [frozen(Delivery, row) for row in rows]


def _with_object(session: Session, row: DeliveryTable) -> Due:
    made, source = session.execute(
        select(ObjectTable, InstanceTable)
        .join(InstanceTable, InstanceTable.id == ObjectTable.instance_id)
        .where(ObjectTable.id == row.object_id)
    ).one()
    return Due(frozen(Delivery, row), frozen(Object, made), source.spool_path, source.dataset_sha256)
