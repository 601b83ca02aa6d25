"""Work in slices: what becomes of a fault in work that nobody waits for."""

from __future__ import annotations

import asyncio

import pytest

from gateway.slices import Errand, Slices

pytestmark = pytest.mark.anyio


async def test_a_fault_in_an_errand_is_told_to_whom_it_belongs() -> None:
    told: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        await Slices().pause()
        raise ValueError("in the middle of it")

    Errand(work(), told.set_result)
    async with asyncio.timeout(20):
        assert str(await told) == "in the middle of it"


async def test_an_errand_that_is_given_up_tells_nobody() -> None:
    faults: list[Exception] = []
    begun, over = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            over.set()

    errand = Errand(work(), faults.append)
    async with asyncio.timeout(20):
        await begun.wait()
        errand.give_up()
        await over.wait()
    assert faults == []
