"""A place in the queue of its own, so that runs of one priority can change places."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("runs") as table:
        table.add_column(sa.Column("place", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute("UPDATE runs SET place = ticket")
    with op.batch_alter_table("runs") as table:
        table.drop_index("ix_runs_status_priority_enqueued")
        table.create_index("ix_runs_status_priority_place", ["status", "priority", "place"])


def downgrade() -> None:
    with op.batch_alter_table("runs") as table:
        table.drop_index("ix_runs_status_priority_place")
        table.create_index("ix_runs_status_priority_enqueued", ["status", "priority", "enqueued"])
        table.drop_column("place")
