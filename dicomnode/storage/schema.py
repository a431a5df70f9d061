"""The ledger's tables (SQLAlchemy 2, typed). The database holds the rules that must not break: keys and known states.

`migrations/` builds exactly these tables; a test compares the two.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from dicomnode.storage.rows import AttemptOutcome, DeliveryState, InstanceState

UID = String(64)
"""Source: PS3.5 Section 9.1: a UID has at most 64 characters."""
AE_TITLE = String(16)
"""Source: PS3.5 Section 6.2, VR AE: at most 16 characters."""
SHA256 = String(64)
ROW_ID = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only in a column declared INTEGER."""


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC; SQLite would drop the zone silently."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC.

        Raises:
            ValueError: the value has no time zone.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone; use datetime.now(UTC)")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Table(DeclarativeBase):
    """Parent of the mapped tables; constraint names are fixed so that migrations can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def _one_of(column: str, states: type[StrEnum]) -> CheckConstraint:
    names = ", ".join(f"'{state.value}'" for state in states)
    return CheckConstraint(f"{column} IN ({names})", name=f"{column}_known")


class InstanceTable(Table):
    """Received instances: one row per SOP Instance UID."""

    __tablename__ = "instance"
    __table_args__ = (
        UniqueConstraint("sop_instance_uid"),
        _one_of("state", InstanceState),
        Index(None, "state", "next_attempt_at"),
        Index(None, "study_instance_uid"),
    )

    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    sop_instance_uid: Mapped[str] = mapped_column(UID)
    sop_class_uid: Mapped[str] = mapped_column(UID)
    transfer_syntax_uid: Mapped[str] = mapped_column(UID)
    study_instance_uid: Mapped[str] = mapped_column(UID)
    calling_ae_title: Mapped[str] = mapped_column(AE_TITLE)
    called_ae_title: Mapped[str] = mapped_column(AE_TITLE)
    peer_address: Mapped[str] = mapped_column(String(64))
    dataset_sha256: Mapped[str] = mapped_column(SHA256)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    spool_path: Mapped[str] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(16))
    run: Mapped[int] = mapped_column(Integer, default=1)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    shortages: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    step: Mapped[str] = mapped_column(String(16), default="")
    note: Mapped[str] = mapped_column(Text, default="")
    next_attempt_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    received_at: Mapped[datetime] = mapped_column(UtcDateTime)
    changed_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ConflictTable(Table):
    """Other bytes under a known SOP Instance UID."""

    __tablename__ = "conflict"
    __table_args__ = (UniqueConstraint("instance_id", "dataset_sha256"),)

    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey("instance.id", ondelete="RESTRICT"))
    dataset_sha256: Mapped[str] = mapped_column(SHA256)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    spool_path: Mapped[str] = mapped_column(String(255))
    calling_ae_title: Mapped[str] = mapped_column(AE_TITLE)
    times_received: Mapped[int] = mapped_column(Integer, default=1)
    received_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ResultTable(Table):
    """Figures: one row per instance, model and configuration."""

    __tablename__ = "result"
    __table_args__ = (UniqueConstraint("instance_id", "model_digest", "configuration_digest"),)

    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey("instance.id", ondelete="RESTRICT"))
    model_digest: Mapped[str] = mapped_column(String(64))
    configuration_digest: Mapped[str] = mapped_column(String(64))
    figures: Mapped[dict[str, Any]] = mapped_column(JSON)
    checkpoint_path: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ObjectTable(Table):
    """DICOM objects that we made: one row per result and kind, one per SOP Instance UID."""

    __tablename__ = "object"
    __table_args__ = (
        UniqueConstraint("sop_instance_uid"),
        UniqueConstraint("result_id", "kind"),
        Index(None, "instance_id"),
    )

    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey("instance.id", ondelete="RESTRICT"))
    result_id: Mapped[int] = mapped_column(ForeignKey("result.id", ondelete="RESTRICT"))
    kind: Mapped[str] = mapped_column(String(32))
    sop_class_uid: Mapped[str] = mapped_column(UID)
    sop_instance_uid: Mapped[str] = mapped_column(UID)
    transfer_syntax_uid: Mapped[str] = mapped_column(UID)
    sha256: Mapped[str] = mapped_column(SHA256)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    spool_path: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class DeliveryTable(Table):
    """One row per object and destination. No foreign key to `ae`: a destination may go, the history of what it got may not."""

    __tablename__ = "delivery"
    __table_args__ = (
        UniqueConstraint("object_id", "destination"),
        _one_of("state", DeliveryState),
        Index(None, "state", "next_attempt_at"),
        Index(None, "destination", "state"),
    )

    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    object_id: Mapped[int] = mapped_column(ForeignKey("object.id", ondelete="RESTRICT"))
    destination: Mapped[str] = mapped_column(AE_TITLE)
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    next_attempt_at: Mapped[datetime] = mapped_column(UtcDateTime)
    since: Mapped[datetime] = mapped_column(UtcDateTime)
    claimed_by: Mapped[str | None] = mapped_column(String(64))
    claimed_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    status: Mapped[int | None] = mapped_column(Integer)
    detail: Mapped[str] = mapped_column(Text, default="")
    delivered_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class AttemptTable(Table):
    """The history of a delivery."""

    __tablename__ = "attempt"
    __table_args__ = (_one_of("outcome", AttemptOutcome), Index(None, "delivery_id"))

    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    delivery_id: Mapped[int] = mapped_column(ForeignKey("delivery.id", ondelete="RESTRICT"))
    ended_at: Mapped[datetime] = mapped_column(UtcDateTime)
    outcome: Mapped[str] = mapped_column(String(16))
    status: Mapped[int | None] = mapped_column(Integer)
    detail: Mapped[str] = mapped_column(Text, default="")


class AeTable(Table):
    """Peers: who may send, who receives results."""

    __tablename__ = "ae"
    __table_args__ = (
        UniqueConstraint("ae_title"),
        CheckConstraint("port BETWEEN 1 AND 65535", name="port_range"),
        CheckConstraint("NOT receives_results OR (host <> '' AND port IS NOT NULL)", name="destination_has_address"),
    )

    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    ae_title: Mapped[str] = mapped_column(AE_TITLE)
    may_send: Mapped[bool] = mapped_column(default=False)
    calls_from: Mapped[str] = mapped_column(String(64), default="")
    receives_results: Mapped[bool] = mapped_column(default=False)
    host: Mapped[str] = mapped_column(String(255), default="")
    port: Mapped[int | None] = mapped_column(Integer)
    description: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class HeartbeatTable(Table):
    """When each worker was last alive and on what it worked, so that a sweeper knows what to take over."""

    __tablename__ = "heartbeat"

    executor_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int] = mapped_column(Integer)
    instance_id: Mapped[int | None] = mapped_column(BigInteger)
    beat_at: Mapped[datetime] = mapped_column(UtcDateTime)
