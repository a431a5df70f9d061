"""A worker's sign of life names the instance that it works on."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("heartbeat", sa.Column("instance_id", sa.BigInteger(), nullable=True))
