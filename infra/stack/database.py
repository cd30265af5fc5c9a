"""PostgreSQL for the stack: found, made once, started as a user that it accepts."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from infra.stack.processes import Part, StackError
from infra.stack.settings import StackSettings

DATABASES = ("prefect", "mlflow")
ROLE = "lewis"


def find_programs() -> Path | None:
    """Folder of ``initdb`` and ``postgres``: on the path, or the newest where Debian keeps them."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return versions[-1].parent if versions else None


class Database:
    """The stack's own PostgreSQL.

    Args:
        settings: The stack's settings.
        programs: Folder of its programs.
    """

    def __init__(self, settings: StackSettings, programs: Path) -> None:
        self._settings, self._programs = settings, programs
        self._data = settings.folder / "postgres"
        self.password_file = settings.folder / "secrets" / "pgpass"
        self._user = settings.postgres_user if os.geteuid() == 0 else None

    def url(self, driver: str, name: str) -> str:
        """SQLAlchemy address of a database; the password is in the password file, which clients get by PGPASSFILE."""
        return f"postgresql+{driver}://{ROLE}@127.0.0.1:{self._settings.postgres_port}/{name}"

    def part(self) -> Part:
        """The server process."""
        port = self._settings.postgres_port
        command = [str(self._programs / "postgres"), "-D", str(self._data), "-p", str(port)]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        return Part(
            "postgres",
            command,
            self._is_ready,
            f"127.0.0.1:{port}",
            port,
            user=self._user,
            stop_signal=signal.SIGINT,  # ends connections instead of waiting for them
        )

    def prepare(self) -> None:
        """Make the data folder, once; a half-made one is made anew.

        Raises:
            StackError: If PostgreSQL cannot make it; carries what it said.
        """
        self._write_password()
        if (self._data / "PG_VERSION").is_file():
            return
        fresh = self._data.with_name("postgres.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        password = fresh.with_name("postgres.password")
        password.write_text(self._password(), encoding="utf-8")
        if self._user is not None:
            self._hand_over(fresh, password)
        command = [str(self._programs / "initdb"), "-D", str(fresh), "-U", ROLE, "--auth=scram-sha-256"]
        command += [f"--pwfile={password}", "--encoding=UTF8", "--locale=C.UTF-8"]
        made = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            user=self._user,
            extra_groups=None if self._user is None else [],
            cwd="/",
        )
        password.unlink()
        if made.returncode != 0:
            raise StackError(f"PostgreSQL could not make {fresh}:\n{made.stdout}{made.stderr}{self._hint()}")
        fresh.rename(self._data)

    def make_databases(self) -> None:
        """Make the databases that are missing; the server has to run."""
        import psycopg
        from psycopg import sql

        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            there = {name for (name,) in connection.execute("SELECT datname FROM pg_database").fetchall()}
            for name in DATABASES:
                if name not in there:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def _is_ready(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self._conninfo("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _conninfo(self, name: str) -> str:
        return (
            f"host=127.0.0.1 port={self._settings.postgres_port} user={ROLE} dbname={name} "
            f"passfile='{self.password_file}' sslmode=disable"
        )

    def _write_password(self) -> None:
        self.password_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            handle = os.open(self.password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(f"127.0.0.1:*:*:{ROLE}:{secrets.token_urlsafe(24)}\n")

    def _password(self) -> str:
        return self.password_file.read_text(encoding="utf-8").strip().rpartition(":")[2]

    def _hand_over(self, *paths: Path) -> None:
        """Give files to the user that PostgreSQL runs as.

        Raises:
            StackError: If there is no such user.
        """
        try:
            owner = pwd.getpwnam(self._settings.postgres_user)
        except KeyError as error:
            raise StackError(
                "PostgreSQL does not run as root: start the stack as another user, or name one in "
                f"LEWIS_STACK_POSTGRES_USER (there is no user {self._settings.postgres_user!r})"
            ) from error
        for path in paths:
            path.chmod(0o700 if path.is_dir() else 0o600)
            os.chown(path, owner.pw_uid, owner.pw_gid)

    def _hint(self) -> str:
        if self._user is None:
            return ""
        return (
            f"Can user {self._user} enter all folders above it? If not, set LEWIS_STACK_DIR to a folder where it can.\n"
        )
