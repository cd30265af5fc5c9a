"""Turns and GPU slots: one after the other, free the moment a holder dies, nothing without a GPU."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path

import pytest

from lewis_core.config.gpus import GpuConfig
from lewis_core.errors import ConfigError, ProcessError
from tasks import gpus
from tasks.gpus import GpuPool, Kind, cuda_environment, driver_cards, find_gpus
from tasks.processes import process_scope
from tasks.turns import holder, try_lock, turn

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_flow_is_ending() -> Iterator[None]:
    """Waiting ends when a flow ends; so none must be ending."""
    with process_scope():
        yield


def pool(folder: Path, ids: tuple[int, ...] = (0, 1), **settings: object) -> GpuPool:
    return GpuPool(GpuConfig.model_validate({"ids": ids, "lock_dir": folder, **settings}), is_used=True)


@pytest.mark.parametrize(
    ("ids", "services", "settings", "sharing"),
    [((0,), 1, {}, 1), ((0, 1), 1, {}, 0), ((0, 1), 3, {}, 2), ((0, 1), 1, {"services": "shared"}, 1)],
)
def test_services_for_which_no_gpu_is_left_share_one(
    tmp_path: Path, ids: tuple[int, ...], services: int, settings: dict[str, object], sharing: int
) -> None:
    own = pool(tmp_path, ids, **settings)
    assert own.sharing(1, services) == sharing
    with contextlib.ExitStack() as stack:
        [training] = stack.enter_context(own.lease(1, "training"))
        taken = [stack.enter_context(own.lease(1, "service", "service"))[0] for _ in range(services)]
    assert taken.count(training) == sharing


def test_a_second_waits_until_the_first_is_done(tmp_path: Path) -> None:
    order: list[str] = []
    entered = threading.Event()

    def second() -> None:
        entered.set()
        with turn(tmp_path / "lock", "second") as has_waited:
            order.append(f"second, waited: {has_waited}")

    with turn(tmp_path / "lock", "first") as has_waited:
        assert not has_waited
        thread = threading.Thread(target=second)
        thread.start()
        entered.wait()
        time.sleep(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second, waited: True"]


def test_waiting_ends_with_the_flow(tmp_path: Path) -> None:
    held = try_lock(tmp_path / "lock")
    assert held is not None
    failures: list[str] = []

    def wait() -> None:
        try:
            with turn(tmp_path / "lock", "late"):
                pass
        except ProcessError as error:
            failures.append(str(error))

    with process_scope():
        thread = threading.Thread(target=copy_context().run, args=(wait,))
        thread.start()
        time.sleep(0.1)
    thread.join(120)
    held.close()
    assert ["the flow is ending" in failure for failure in failures] == [True]


def test_kill_9_of_a_holder_gives_everything_back(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from lewis_core.config.gpus import GpuConfig
from tasks.gpus import GpuPool
with GpuPool(GpuConfig(ids=(0,), lock_dir=Path({str(tmp_path)!r})), is_used=True).lease(1, "holder") as names:
    print(names, flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "('0',)\n"
        assert try_lock(tmp_path / "gpu0.lock") is None
        assert f"process {process.pid} on " in holder(tmp_path / "gpu0.lock")
        with (
            pytest.raises(ProcessError, match="no 1 GPUs became free within"),
            pool(tmp_path, (0,), max_wait_s=0.3).lease(1, "other"),
        ):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with pool(tmp_path, (0,), max_wait_s=120.0).lease(1, "other") as names:
        assert names == ("0",)


CONTENDER = """
import sys, time
from pathlib import Path
from lewis_core.config.gpus import GpuConfig
from tasks.gpus import GpuPool

folder, leases, hold_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
own = GpuPool(GpuConfig(lock_dir=folder), is_used=True)
for number in range(leases):
    with own.lease(1, f"lease {number}") as (name,):
        print("enter", name, time.monotonic_ns(), flush=True)
        time.sleep(hold_s)
        print("leave", name, time.monotonic_ns(), flush=True)
"""


def contender(folder: Path, cards: str, leases: int, hold_s: float) -> subprocess.Popen[str]:
    """A process that takes a GPU again and again, and says when it had which."""
    command = [sys.executable, "-c", CONTENDER, str(folder), str(leases), str(hold_s)]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": cards}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)


def intervals(said: str) -> list[tuple[str, int, int]]:
    """GPU, begin and end of each lease."""
    lines = [line.split() for line in said.splitlines()]
    pairs = zip(lines[::2], lines[1::2], strict=True)
    return [(name, int(begin), int(end)) for (_, name, begin), (_, _, end) in pairs]


@pytest.mark.parametrize("cards", ["0", "0,1"], ids=["one-gpu", "two-gpus"])
def test_processes_that_compete_never_share_a_gpu_though_holders_are_killed(tmp_path: Path, cards: str) -> None:
    """Holders of all GPUs are killed while others wait; each of these gets every lease, and no two overlap."""
    count = len(cards.split(","))
    holders = [contender(tmp_path, cards, 1, 600) for _ in range(count)]
    taken = [holder.stdout.readline().split()[:2] for holder in holders if holder.stdout is not None]
    others = [contender(tmp_path, cards, 5, 0.02) for _ in range(3)]
    killed_ns = time.monotonic_ns()
    for process in holders:
        process.kill()
    said = [process.communicate(timeout=120)[0] for process in [*others, *holders]]
    assert sorted(name for _, name in taken) == cards.split(",")
    assert [process.returncode for process in others] == [0, 0, 0]
    leases = sorted(lease for lines in said[:3] for lease in intervals(lines))
    assert len(leases) == 15
    assert min(begin for _, begin, _ in leases) > killed_ns
    for (gpu, _, end), (next_gpu, begin, _) in itertools.pairwise(leases):
        assert gpu != next_gpu or end < begin, (gpu, end, begin)


def test_two_runs_never_have_the_same_gpu(tmp_path: Path) -> None:
    first, second = pool(tmp_path), pool(tmp_path, max_wait_s=0.3)
    with first.lease(1, "a") as mine, second.lease(1, "b") as theirs:
        assert (mine, theirs) == (("0",), ("1",))
        with pytest.raises(ProcessError, match=r"0 has process \d+ on .*"), second.lease(1, "c"):
            pass
    with second.lease(2, "d") as both:
        assert both == ("0", "1")


def test_many_threads_of_two_runs_share_two_gpus_without_a_clash(tmp_path: Path) -> None:
    in_use: set[str] = set()
    clashes: list[str] = []
    done: list[int] = []

    def work(own: GpuPool, count: int) -> None:
        with own.lease(count, "work") as names:
            clashes.extend(name for name in names if name in in_use)
            in_use.update(names)
            time.sleep(0.02)
            in_use.difference_update(names)
        done.append(count)

    pools = [pool(tmp_path), pool(tmp_path)]
    threads = [threading.Thread(target=work, args=(pools[i % 2], 1 + i % 3 // 2)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert (len(done), clashes) == (12, [])


def test_a_service_shares_with_its_run_if_none_is_free(tmp_path: Path) -> None:
    own = pool(tmp_path, (0,))
    with own.lease(1, "training", "training") as stage, own.lease(1, "listener", "service") as service:
        assert stage == service == ("0",)
        assert own.trains_on(service)
    assert not own.trains_on(service)
    left = try_lock(tmp_path / "gpu0.lock")
    assert left is not None, "not everything was given back"
    left.close()


def test_a_service_has_its_own_if_one_is_free_unless_told_to_share(tmp_path: Path) -> None:
    for setting, expected in (("own_if_free", ("1",)), ("shared", ("0",))):
        own = pool(tmp_path, services=setting)
        with own.lease(1, "training"), own.lease(1, "listener", "service") as service:
            assert service == expected


def test_a_stage_follows_a_service_onto_its_gpu_and_keeps_it(tmp_path: Path) -> None:
    own, other = pool(tmp_path, (0,)), pool(tmp_path, (0,), max_wait_s=0.2)
    with own.lease(1, "describing"):
        with own.lease(1, "listener", "service"):
            pass
        with pytest.raises(ProcessError, match="no 1 GPUs became free"), other.lease(1, "other"):
            pass
    with other.lease(1, "other") as names:
        assert names == ("0",)


@pytest.mark.parametrize("kind", ["stage", "training"])
def test_two_stages_of_a_run_do_not_share(tmp_path: Path, kind: Kind) -> None:
    own = pool(tmp_path, (0,), max_wait_s=0.2)
    with own.lease(1, "a", kind), pytest.raises(ProcessError, match="this run has them all"), own.lease(1, "b"):
        pass


def test_more_than_there_are_is_refused_at_once(tmp_path: Path) -> None:
    reason = r"needs 3 GPUs; this run may use 2 \(0, 1\): lower training.num_processes"
    with pytest.raises(ConfigError, match=reason), pool(tmp_path).lease(3, "train-speaker"):
        pass


def test_without_a_gpu_nothing_is_locked_or_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unused = GpuPool(GpuConfig(ids=(0,), lock_dir=tmp_path / "locks"), is_used=False)
    with unused.lease(4, "training") as names:
        assert names == ()
        assert cuda_environment(names) == {}
    assert not (tmp_path / "locks").exists()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_gpus(None) == []


def test_children_see_their_gpus_only() -> None:
    assert cuda_environment(("1", "GPU-ab")) == {"CUDA_VISIBLE_DEVICES": "1,GPU-ab", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_a_card_has_one_lock_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cards; the one that comes first on the bus is the driver's number 5."""
    for place, uuid, minor in (("0000:17:00.0", "GPU-aa", 5), ("0000:2a:00.0", "GPU-bb", 1)):
        (tmp_path / place).mkdir()
        (tmp_path / place / "information").write_text(
            f"Model: \t\t H100\nGPU UUID: \t {uuid}\nDevice Minor: \t {minor}\n"
        )
    monkeypatch.setattr(gpus, "DRIVER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert driver_cards() == [("GPU-aa", "5"), ("GPU-bb", "1")]
    assert [(gpu.name, gpu.lock) for gpu in find_gpus(None)] == [("0", "gpu5"), ("1", "gpu1")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb,0")
    assert [(gpu.name, gpu.lock) for gpu in find_gpus(None)] == [("GPU-bb", "gpu1"), ("0", "gpu5")]
    assert [gpu.name for gpu in find_gpus((1,))] == ["1"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-bb,0"
