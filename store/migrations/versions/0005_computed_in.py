"""Numbers computed in different types are not comparable any more: digests are made again from the stamps."""

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_BEFORE = (
    *("split", "digest", "join", "bos", "window", "stride", "windows", "tokens", "tokenizer"),
    *("loss_dtype", "model_dtype", "device"),
)


def upgrade() -> None:
    _digest((*_BEFORE, "compute_dtype"))


def downgrade() -> None:
    _digest(_BEFORE)


def _digest(keys: tuple[str, ...]) -> None:
    connection = op.get_bind()
    protocols = sa.table("protocols", sa.column("digest"), sa.column("comparable"), sa.column("stamp"))
    for digest, text in connection.execute(sa.select(protocols.c.digest, protocols.c.stamp)).all():
        stamp = json.loads(text)
        if "digest" not in stamp:
            continue
        if "model_dtype" in stamp:
            # What is from before the stamp told it was computed as it was stored.
            stamp = {"compute_dtype": stamp["model_dtype"], **stamp}
        told = json.dumps({key: stamp[key] for key in keys if key in stamp}, sort_keys=True, default=str)
        comparable = hashlib.sha256(told.encode()).hexdigest()[:16]
        connection.execute(
            sa.update(protocols).where(protocols.c.digest == digest).values(comparable=comparable)
        )
