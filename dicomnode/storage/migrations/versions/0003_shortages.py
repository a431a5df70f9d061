"""An instance counts the times that memory ran short in its step."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("instance", sa.Column("shortages", sa.Integer(), nullable=False, server_default="0"))
