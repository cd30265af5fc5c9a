"""What the garbage collector finds never waits for SQLite, on which Prefect's server would stand still."""

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import prefect
import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from deployments.sqlite_cursors import connect_with


@pytest.fixture
def collected_by_hand() -> Iterator[None]:
    """The collector runs when the test says so."""
    gc.disable()
    yield
    gc.enable()


async def fail(connection: AsyncConnection) -> None:
    """A statement fails, and its traceback is garbage: the collector's, as it is in a cycle."""
    try:
        await connection.execute(text("INSERT INTO a VALUES (NULL)"))
    except IntegrityError as error:
        error.itself = error  # type: ignore[attr-defined]
    await connection.rollback()


async def write_while_another_does(url: str) -> None:
    """One connection waits for the other's commit when its own garbage is collected by the loop that is to commit."""
    engine = create_async_engine(url, connect_args={"timeout": 5.0})
    async with engine.connect() as one, engine.connect() as two:
        await one.execute(text("CREATE TABLE a (x INTEGER NOT NULL)"))
        await one.commit()
        await fail(one)
        await two.execute(text("BEGIN IMMEDIATE"))
        waiting = asyncio.create_task(one.execute(text("BEGIN IMMEDIATE")))
        await asyncio.sleep(0.2)
        gc.collect()
        await two.rollback()
        await waiting
    await engine.dispose()


@pytest.mark.usefixtures("collected_by_hand")
def test_a_failed_statement_s_garbage_does_not_hold_up_the_event_loop(tmp_path: Path) -> None:
    installed = event.contains(Engine, "do_connect", connect_with)
    assert installed, f"Prefect {prefect.__version__} found no plugin lewis_sqlite_cursors: install Lewis again"
    asyncio.run(write_while_another_does(f"sqlite+aiosqlite:///{tmp_path}/a.db"))
