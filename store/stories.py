"""Stories: written, rewritten, removed. The views are JSON that only the layers above understand."""

import time

from sqlalchemy import delete, insert, update

from store.database import Database
from store.tables import Story
from store.writes import bump, clean


def create(database: Database, *, story_id: str, title: str, summary: str, views: str, user: str) -> None:
    """A new story of this user."""
    now = time.time()
    told = {"title": clean(title), "summary": clean(summary), "views": clean(views)}
    with database.write() as connection:
        connection.execute(insert(Story).values(id=story_id, user=user, created=now, changed=now, **told))
        bump(connection)


def rewrite(database: Database, story_id: str, *, title: str, summary: str, views: str) -> bool:
    """Whether the story was there to be rewritten."""
    told = {"title": clean(title), "summary": clean(summary), "views": clean(views)}
    with database.write() as connection:
        there = update(Story).where(Story.id == story_id).values(changed=time.time(), **told)
        found = connection.execute(there).rowcount
        bump(connection)
    return found > 0


def remove(database: Database, story_id: str) -> bool:
    """Whether the story was there."""
    with database.write() as connection:
        gone = connection.execute(delete(Story).where(Story.id == story_id)).rowcount
        bump(connection)
    return gone > 0
