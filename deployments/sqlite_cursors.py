"""Prefect's server on SQLite never stands still: cursors are closed where their statement failed.

SQLAlchemy leaves such a cursor open, and the traceback keeps it until Python's garbage collector finds it, as a rule
in the thread of the server's event loop. To free it, that thread waits for the cursor's connection. By then another
transaction may have it and wait, for Prefect's 60 s, for the end of a third one: which cannot end, as the event loop
waits. For a minute nobody got an answer, and then "database is locked".

A plugin (entry point group ``prefect.plugins``), so that servers have it however they are started.
"""

import sqlite3
from collections.abc import Callable
from typing import Any

from prefect.plugins import register_hook
from sqlalchemy import event
from sqlalchemy.engine import Dialect, Engine

PREFECT_PLUGIN_API_REQUIRES = ">=0.1,<1"


class Cursor(sqlite3.Cursor):
    """Closes itself when its statement fails, in the thread that executed it."""

    def _or_close(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except BaseException:
            self.close()
            raise

    def execute(self, *arguments: Any) -> "Cursor":
        """As of every cursor."""
        self._or_close(super().execute, *arguments)
        return self

    def executemany(self, *arguments: Any) -> "Cursor":
        """As of every cursor."""
        self._or_close(super().executemany, *arguments)
        return self

    def fetchall(self) -> list[Any]:
        """As of every cursor."""
        rows: list[Any] = self._or_close(super().fetchall)
        return rows


class Connection(sqlite3.Connection):
    """Gives out cursors of this module."""

    def cursor(self, factory: Any = Cursor) -> Any:
        """As of every connection."""
        return super().cursor(factory)


def connect_with(dialect: Dialect, record: object, arguments: list[Any], options: dict[str, Any]) -> None:
    """SQLAlchemy is about to connect: to SQLite from an event loop, with connections of this module."""
    if dialect.name == "sqlite" and dialect.driver == "aiosqlite":
        options.setdefault("factory", Connection)


@register_hook
def setup_environment(*, ctx: Any) -> None:
    """Have all engines connect so; called by Prefect when it is imported."""
    if not event.contains(Engine, "do_connect", connect_with):
        event.listen(Engine, "do_connect", connect_with)
