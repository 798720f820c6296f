"""Numbers of different devices are not comparable any more: digests are made again from the stamps."""

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_BEFORE = (
    *("split", "digest", "join", "bos", "window", "stride", "windows", "tokens", "tokenizer"),
    *("loss_dtype", "model_dtype"),
)


def upgrade() -> None:
    _digest((*_BEFORE, "device"))


def downgrade() -> None:
    _digest(_BEFORE)


def _digest(keys: tuple[str, ...]) -> None:
    connection = op.get_bind()
    protocols = sa.table("protocols", sa.column("digest"), sa.column("comparable"), sa.column("stamp"))
    for digest, text in connection.execute(sa.select(protocols.c.digest, protocols.c.stamp)).all():
        stamp = json.loads(text)
        if "digest" in stamp:
            told = json.dumps({key: stamp[key] for key in keys if key in stamp}, sort_keys=True, default=str)
            comparable = hashlib.sha256(told.encode()).hexdigest()[:16]
            connection.execute(
                sa.update(protocols).where(protocols.c.digest == digest).values(comparable=comparable)
            )
