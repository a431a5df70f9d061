"""The first ledger: instances, conflicts, results, objects, deliveries with their attempts, peers, heartbeats."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "ae",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("ae_title", sa.String(length=16), nullable=False),
        sa.Column("may_send", sa.Boolean(), nullable=False),
        sa.Column("calls_from", sa.String(length=64), nullable=False),
        sa.Column("receives_results", sa.Boolean(), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("port", sa.Integer(), nullable=True),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "NOT receives_results OR (host <> '' AND port IS NOT NULL)", name=op.f("ck_ae_destination_has_address")
        ),
        sa.CheckConstraint("port BETWEEN 1 AND 65535", name=op.f("ck_ae_port_range")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ae")),
        sa.UniqueConstraint("ae_title", name=op.f("uq_ae_ae_title")),
    )
    op.create_table(
        "heartbeat",
        sa.Column("executor_id", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("beat_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("executor_id", name=op.f("pk_heartbeat")),
    )
    op.create_table(
        "instance",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(length=64), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("calling_ae_title", sa.String(length=16), nullable=False),
        sa.Column("called_ae_title", sa.String(length=16), nullable=False),
        sa.Column("peer_address", sa.String(length=64), nullable=False),
        sa.Column("dataset_sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("spool_path", sa.String(length=255), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("step", sa.String(length=16), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "state IN ('received', 'measured', 'encoded', 'dispatched', 'quarantined')",
            name=op.f("ck_instance_state_known"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance")),
        sa.UniqueConstraint("sop_instance_uid", name=op.f("uq_instance_sop_instance_uid")),
    )
    op.create_index(op.f("ix_instance_state_next_attempt_at"), "instance", ["state", "next_attempt_at"], unique=False)
    op.create_index(op.f("ix_instance_study_instance_uid"), "instance", ["study_instance_uid"], unique=False)

    op.create_table(
        "conflict",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("instance_id", ROW_ID, nullable=False),
        sa.Column("dataset_sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("spool_path", sa.String(length=255), nullable=False),
        sa.Column("calling_ae_title", sa.String(length=16), nullable=False),
        sa.Column("times_received", sa.Integer(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["instance.id"], name=op.f("fk_conflict_instance_id"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_conflict")),
        sa.UniqueConstraint("instance_id", "dataset_sha256", name=op.f("uq_conflict_instance_id_dataset_sha256")),
    )
    op.create_table(
        "result",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("instance_id", ROW_ID, nullable=False),
        sa.Column("model_digest", sa.String(length=64), nullable=False),
        sa.Column("configuration_digest", sa.String(length=64), nullable=False),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.Column("checkpoint_path", sa.String(length=255), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["instance.id"], name=op.f("fk_result_instance_id"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_result")),
        sa.UniqueConstraint(
            "instance_id",
            "model_digest",
            "configuration_digest",
            name=op.f("uq_result_instance_id_model_digest_configuration_digest"),
        ),
    )
    op.create_table(
        "object",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("instance_id", ROW_ID, nullable=False),
        sa.Column("result_id", ROW_ID, nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("spool_path", sa.String(length=255), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["instance.id"], name=op.f("fk_object_instance_id"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(["result_id"], ["result.id"], name=op.f("fk_object_result_id"), ondelete="RESTRICT"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_object")),
        sa.UniqueConstraint("result_id", "kind", name=op.f("uq_object_result_id_kind")),
        sa.UniqueConstraint("sop_instance_uid", name=op.f("uq_object_sop_instance_uid")),
    )
    op.create_index(op.f("ix_object_instance_id"), "object", ["instance_id"], unique=False)

    op.create_table(
        "delivery",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("object_id", ROW_ID, nullable=False),
        sa.Column("destination", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("claimed_by", sa.String(length=64), nullable=True),
        sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'held')", name=op.f("ck_delivery_state_known")),
        sa.ForeignKeyConstraint(["object_id"], ["object.id"], name=op.f("fk_delivery_object_id"), ondelete="RESTRICT"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery")),
        sa.UniqueConstraint("object_id", "destination", name=op.f("uq_delivery_object_id_destination")),
    )
    op.create_index(op.f("ix_delivery_destination_state"), "delivery", ["destination", "state"], unique=False)
    op.create_index(op.f("ix_delivery_state_next_attempt_at"), "delivery", ["state", "next_attempt_at"], unique=False)

    op.create_table(
        "attempt",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("delivery_id", ROW_ID, nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.CheckConstraint("outcome IN ('delivered', 'failed', 'refused')", name=op.f("ck_attempt_outcome_known")),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["delivery.id"], name=op.f("fk_attempt_delivery_id"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempt")),
    )
    op.create_index(op.f("ix_attempt_delivery_id"), "attempt", ["delivery_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_attempt_delivery_id"), table_name="attempt")

    op.drop_table("attempt")
    op.drop_index(op.f("ix_delivery_state_next_attempt_at"), table_name="delivery")
    op.drop_index(op.f("ix_delivery_destination_state"), table_name="delivery")

    op.drop_table("delivery")
    op.drop_index(op.f("ix_object_instance_id"), table_name="object")

    op.drop_table("object")
    op.drop_table("result")
    op.drop_table("conflict")
    op.drop_index(op.f("ix_instance_study_instance_uid"), table_name="instance")
    op.drop_index(op.f("ix_instance_state_next_attempt_at"), table_name="instance")

    op.drop_table("instance")
    op.drop_table("heartbeat")
    op.drop_table("ae")
