"""Responses of `/v1/responses`."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Column

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "responses",
        Column("id", sa.String(64), nullable=False),
        Column("tenant", sa.String(64), nullable=False),
        Column("status", sa.String(16), nullable=False),
        Column("document", sa.JSON(), nullable=False),
        Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_responses"),
    )
    op.create_index("ix_responses_expires_at", "responses", ["expires_at"])
