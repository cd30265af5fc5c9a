"""The command line of the stack: ``bash infra/stack.sh up | down | status | logs | deploy``."""

import argparse
import fcntl
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from infra.stack.parts import Stack, ask_prefect, env_file
from infra.stack.processes import Keeper, StackError, descendants
from infra.stack.settings import ROOT, StackSettings

DEPLOYMENTS, TEMPLATE = "deployments/prefect.yaml", "infra/work_pools/process.json"
STOPPED = "The stack was stopped while this ran. `prefect flow-run retry {}` goes on where it was."


def say(text: str = "") -> None:
    """Print a line at once."""
    print(text, flush=True)


@contextmanager
def only_one(stack: Stack) -> Iterator[None]:
    """Hold the stack's lock: two commands at once would start everything twice.

    Raises:
        StackError: If another command holds it.
    """
    stack.settings.folder.mkdir(parents=True, exist_ok=True)
    with (stack.settings.folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StackError("another infra/stack.sh is at work on this stack; wait for it") from error
        yield


def up(stack: Stack, keeper: Keeper) -> int:
    """Start what is not running."""
    with only_one(stack):
        if stack.database is None:
            why = "" if stack.settings.database == "sqlite" else "no PostgreSQL found (initdb): "
            say(f"{why}using sqlite, which is for one person on a laptop")
        else:
            stack.database.prepare()
        write_env(stack)
        for part in stack.parts():
            if part.name == "worker" and keeper.find("worker") is None:
                register(stack)
            is_new = keeper.start(part, stack.settings.start_timeout_s)
            say(f"{part.name:<10}{'started' if is_new else 'was running'} at {part.address}")
            if part.name == "postgres" and stack.database is not None:
                stack.database.make_databases()
    say(f"\nPrefect   http://127.0.0.1:{stack.settings.prefect_port}")
    say(f"MLflow    {stack.settings.mlflow_url}/#/experiments?workflowType=machine_learning\n")
    say(f"source {shlex.quote(str(env_file(stack)))}     # points this shell at the stack; then")
    say("prefect deployment run full-pipeline")
    return 0


def write_env(stack: Stack) -> None:
    """Write the file that points a shell at the stack."""
    scripts = Path(sys.executable).parent
    lines = [f"export {name}={shlex.quote(value)}" for name, value in stack.client_env().items()]
    lines.append(f'case ":$PATH:" in *:{scripts}:*) ;; *) export PATH={shlex.quote(str(scripts))}:"$PATH" ;; esac')
    env_file(stack).write_text("\n".join(lines) + "\n", encoding="utf-8")


def register(stack: Stack) -> None:
    """Make the work pool, or update it, and register all deployments.

    Raises:
        StackError: If Prefect refuses; carries what it said.
    """
    pool = [
        "work-pool",
        "create",
        stack.settings.pool,
        "--type",
        "process",
        "--base-job-template",
        TEMPLATE,
        "--overwrite",
    ]
    prefect(stack, *pool)
    prefect(stack, "deploy", "--prefect-file", DEPLOYMENTS, "--all")
    run_python(stack, "deployments.automations")
    say("          work pool, deployments and automations are registered")


def prefect(stack: Stack, *words: str) -> None:
    """Run Prefect's command line against the stack.

    Raises:
        StackError: If it fails.
    """
    run_python(stack, "prefect", "--no-prompt", *words)


def run_python(stack: Stack, module: str, *words: str) -> None:
    """Run a module as a program against the stack.

    Raises:
        StackError: If it fails.
    """
    command = [sys.executable, "-m", module, *words]
    env = {**os.environ, **stack.client_env()}
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300)
    if ran.returncode != 0:
        raise StackError(f"`{' '.join((module, *words))}` failed:\n{ran.stdout}{ran.stderr}")


def down(stack: Stack, keeper: Keeper) -> int:
    """Stop everything, the worker first; its runs become Crashed and can be retried."""
    with only_one(stack):
        parts = stack.parts()
        lost = runs_of_worker(stack, keeper)
        for part in reversed(parts):
            was_running = keeper.stop(part)
            say(f"{part.name:<10}{'stopped' if was_running else 'was not running'}")
            if part.name == "worker":
                mark_crashed(stack, lost)
    return 0


def runs_of_worker(stack: Stack, keeper: Keeper) -> list[str]:
    """Ids of flow runs whose processes are the worker's."""
    worker = keeper.find("worker")
    if worker is None:
        return []
    pids = {str(process.pid) for process in descendants(worker)}
    wanted = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}}
    with suppress(httpx.HTTPError):
        found = ask_prefect(stack.settings.prefect_api, "/flow_runs/filter", wanted)
        return [run["id"] for run in found if str(run.get("infrastructure_pid")).rpartition(":")[2] in pids]
    return []


def mark_crashed(stack: Stack, runs: Sequence[str]) -> None:
    """Say of runs that ended with the worker what became of them."""
    for run in runs:
        state = {"type": "CRASHED", "name": "Crashed", "message": STOPPED.format(run)}
        with suppress(httpx.HTTPError):
            now = ask_prefect(stack.settings.prefect_api, f"/flow_runs/{run}")["state"]["type"]
            if now in {"RUNNING", "PENDING", "CANCELLING"}:
                body = {"state": state, "force": True}
                ask_prefect(stack.settings.prefect_api, f"/flow_runs/{run}/set_state", body)
                say(f"          run {run} was ended; prefect flow-run retry {run} goes on with it")


def status(stack: Stack, keeper: Keeper) -> int:
    """Show every part; the exit status is 1 if one does not run or does not answer."""
    is_well = True
    for part in stack.parts():
        process = keeper.find(part.name)
        state = "down" if process is None else "up" if part.is_ready() else "no answer"
        is_well &= state == "up"
        memory = "" if process is None else f"{sum(map(memory_mib, [process, *descendants(process)])):6.0f} MiB"
        say(f"{part.name:<10}{state:<11}{process.pid if process else '-':<9}{memory:<12}{part.address}")
    return 0 if is_well else 1


def memory_mib(process: psutil.Process) -> float:
    """Memory of a process, in MiB; what it shares with others is divided among them."""
    with suppress(psutil.Error):
        return float(process.memory_full_info().pss) / 2**20
    return 0.0


def logs(stack: Stack, keeper: Keeper, name: str, follow: bool) -> int:
    """Show the end of a part's log.

    Raises:
        StackError: If there is no such part.
    """
    names = [part.name for part in stack.parts()]
    if name not in names:
        raise StackError(f"there is no part {name!r}; there are {', '.join(names)}")
    if follow:
        os.execvp("tail", ["tail", "-n", "100", "-F", str(keeper.log(name))])
    say(keeper.tail(name, 100))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(prog="bash infra/stack.sh", description="The production stack as local processes.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("up", "start what is not running"),
        ("down", "stop everything; data stays"),
        ("status", "what runs, and whether it answers"),
        ("deploy", "register the work pool and all deployments again"),
    ):
        commands.add_parser(name, help=text)
    shown = commands.add_parser("logs", help="the end of a part's log")
    shown.add_argument("part")
    shown.add_argument("-f", "--follow", action="store_true", help="go on as it grows")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = build_parser().parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background shell, and children inherit that
    try:
        stack = Stack(StackSettings())
        keeper = Keeper(stack.settings.folder, ROOT)
        commands: dict[str, Callable[[], int]] = {
            "up": lambda: up(stack, keeper),
            "down": lambda: down(stack, keeper),
            "status": lambda: status(stack, keeper),
            "deploy": lambda: (register(stack), 0)[1],
            "logs": lambda: logs(stack, keeper, options.part, options.follow),
        }
        return commands[options.command]()
    except StackError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
