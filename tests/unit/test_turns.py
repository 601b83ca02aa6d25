"""Answers in the order in which they were asked for, whatever order they are known in."""

from __future__ import annotations

import asyncio

import hypothesis.strategies as st
from hypothesis import given

from gateway.transport.ordered_replies import Turns


@given(st.permutations(range(6)))
def test_each_is_given_once_when_it_and_all_before_it_are_known(order: list[int]) -> None:
    async def run() -> None:
        turns, given_so_far = Turns(), list[int]()
        futures = [asyncio.get_running_loop().create_future() for _ in order]
        for number, future in enumerate(futures):
            turns.add(future, lambda done, number=number: given_so_far.append(number))
        known: set[int] = set()
        for number in order:
            if number == 3:
                futures[number].cancel()
            else:
                futures[number].set_result(None)
            known.add(number)
            await asyncio.sleep(0)
            ready = next(first for first in range(7) if first not in known)
            assert given_so_far == list(range(ready))

    asyncio.run(run())
