import asyncio
import subprocess
import sys
import threading

import pytest

from milepost.cluster.base.deadline import on_a_thread, unless, while_it_goes_on


def test_it_returns_and_raises_what_the_call_does() -> None:
    assert asyncio.run(on_a_thread(lambda: 7, timeout_s=10)) == 7
    with pytest.raises(ValueError, match="no"):
        asyncio.run(on_a_thread(lambda: int("no"), timeout_s=10))


def test_a_call_that_never_returns_is_left_behind_and_the_process_ends() -> None:
    program = """
import asyncio, threading
from milepost.cluster.base.deadline import on_a_thread, unless, while_it_goes_on
try:
    asyncio.run(on_a_thread(threading.Event().wait, timeout_s=0.1))
except TimeoutError:
    print("late")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "late\n"


def test_a_call_that_ends_after_its_caller_was_cancelled_harms_nobody() -> None:
    gate = threading.Event()

    async def cancel() -> None:
        waiting = asyncio.create_task(on_a_thread(gate.wait, timeout_s=10))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gate.set()
        await asyncio.sleep(0.01)

    asyncio.run(cancel())


def test_work_that_goes_on_may_take_any_time_and_work_that_stalls_may_not() -> None:
    done = 0

    async def work(steps: int) -> str:
        nonlocal done
        for _ in range(steps):
            await asyncio.sleep(0.1)
            done += 1
        await asyncio.sleep(60 if steps == 2 else 0)
        return "finished"

    async def done_so_far() -> int:
        return done

    assert asyncio.run(while_it_goes_on(work(8), done_so_far, stall_timeout_s=0.4)) == "finished"
    with pytest.raises(TimeoutError):
        asyncio.run(while_it_goes_on(work(2), done_so_far, stall_timeout_s=0.4))
    with pytest.raises(ZeroDivisionError):
        asyncio.run(while_it_goes_on(_fails(), done_so_far, stall_timeout_s=0.4))


async def _fails() -> int:
    return 1 // 0


def test_work_is_left_where_a_stop_comes_and_done_where_none_does() -> None:
    async def go(stop_after_s: float) -> list[str]:
        done, stopping = list[str](), asyncio.Event()

        async def work() -> None:
            await asyncio.sleep(0.1)
            done.append("done")

        asyncio.get_running_loop().call_later(stop_after_s, stopping.set)
        await unless(stopping, work())
        return done

    assert asyncio.run(go(0.01)) == []
    assert asyncio.run(go(10)) == ["done"]
    with pytest.raises(ZeroDivisionError):
        asyncio.run(unless(asyncio.Event(), _fails()))
