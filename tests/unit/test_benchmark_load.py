"""The load generator of the benchmarks finds what is lost, repeated, reordered, refused or damaged."""

from __future__ import annotations

import functools
import importlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import amqp, load, mqtt, rounds, stages
from benchmarks.consumer import Consumer
from benchmarks.messages import Flow, LoadError
from benchmarks.publisher import Confirms, PubAcks, Publisher
from benchmarks.report import cell, ratios
from benchmarks.rounds import Bench, Figure, Spread
from benchmarks.schedule import percentile
from benchmarks.subscriber import Expected, Subscriber
from gateway.queueing.dedup import Dedup
from gateway.routing.templates import Template

BODIES = [b'{"id":"%010d","v":"xxxx"}' % n for n in range(8)]


def consumed(*chunks: bytes) -> Consumer:
    """A consumer that has read these chunks."""
    here, there = socket.socketpair()
    with here, there:
        consumer = Consumer(here)
        consumer.expect(8)
        for chunk in chunks:
            there.sendall(chunk)
            consumer.receive()
    return consumer


@pytest.mark.parametrize("size", [1, 7, 64, 65, 1000])
def test_deliveries_are_found_wherever_a_read_ends(size: int) -> None:
    octets = b"".join(amqp.delivery(body) for body in BODIES)
    consumer = consumed(*(octets[i : i + size] for i in range(0, len(octets), size)))
    consumer.check(0, 8, groups=2)
    assert consumer.finished


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ([0, 1, 2, 3, 4, 5, 6], "7 came"),
        ([0, 1, 2, 3, 4, 5, 6, 6], "7 different"),
        ([0, 1, 2, 3, 4, 5, 6, 7, 7], "9 came"),
        ([0, 1, 4, 3, 2, 5, 6, 7], "message 2 came after 4"),
    ],
    ids=["lost", "lost and repeated", "repeated", "order"],
)
def test_wrong_deliveries_are_found(numbers: list[int], complaint: str) -> None:
    consumer = consumed(b"".join(amqp.delivery(BODIES[n]) for n in numbers))
    with pytest.raises(LoadError, match=complaint):
        consumer.check(0, 8, groups=2)


def test_wrong_pubacks_are_found() -> None:
    here, there = socket.socketpair()
    with here, there:
        flow = Flow(3, publishers=1, groups=1, body_size=64)
        publisher = Publisher(here, mqtt.publishes(flow, 0), 10, PubAcks())
        publisher.begin()
        there.sendall(mqtt.pubacks(2) + mqtt.pubacks(1))
        publisher.receive()
        assert publisher.finished
        with pytest.raises(LoadError, match="one PUBACK for each"):
            publisher.check()


@given(st.permutations(range(1, 9)), st.integers(1, 21))
def test_confirms_count_in_any_order_wherever_a_read_ends(order: list[int], size: int) -> None:
    octets = b"".join(amqp.CONFIRM.pack(1, 1, 13, 60, 80, tag, 0, 0xCE) for tag in order) + amqp.ack(10)
    confirms = Confirms()
    for at in range(0, len(octets), size):
        confirms.take(octets[at : at + size])
    assert confirms.count == 10
    confirms.check(10)


def test_one_confirm_may_be_for_many() -> None:
    confirms = Confirms()
    confirms.take(amqp.ack(5))
    assert confirms.count == 5
    confirms.take(amqp.ack(7))
    confirms.check(7)
    with pytest.raises(LoadError, match="8 messages were published, 7 confirmed"):
        confirms.check(8)


@pytest.mark.parametrize(
    ("octets", "complaint"),
    [
        (amqp.CONFIRM.pack(1, 1, 13, 60, 120, 1, 0, 0xCE), "was answered by"),
        (amqp.ack(3) + amqp.ack(2), "publish 2 was confirmed twice"),
        (amqp.ack(1) + amqp.CONFIRM.pack(1, 1, 13, 60, 80, 1, 0, 0xCE), "publish 1 was confirmed twice"),
    ],
    ids=["nack", "fewer", "twice"],
)
def test_wrong_confirms_are_found(octets: bytes, complaint: str) -> None:
    with pytest.raises(LoadError, match=complaint):
        Confirms().take(octets)


def subscribed(expected: Expected, octets: bytes, size: int) -> tuple[Subscriber, bytes]:
    """A subscriber that has read these octets in pieces of that size, and what it answered."""
    here, there = socket.socketpair()
    with here, there:
        subscriber = Subscriber(here, expected)
        for at in range(0, len(octets), size):
            there.sendall(octets[at : at + size])
            subscriber.receive()
        there.setblocking(False)
        return subscriber, there.recv(1000) if expected.qos else b""


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("size", [1, 50, 95, 1000])
def test_subscribers_know_what_must_come_whatever_its_packet_ids(qos: int, size: int) -> None:
    packets = mqtt.publishes(Flow(5, publishers=1, groups=1, body_size=64, qos=qos), 0)
    octets = bytearray(packets.octets)
    ids = [7, 513, 65535, 1, 2]
    if qos:
        at = mqtt.id_offset(octets)
        for index, ident in enumerate(ids):
            begin = index * packets.size + at
            octets[begin : begin + 2] = ident.to_bytes(2, "big")
    subscriber, answer = subscribed(Expected(packets, qos), bytes(octets), size)
    assert subscriber.finished and subscriber.count == 5
    assert answer == (b"".join(b"\x40\x02" + ident.to_bytes(2, "big") for ident in ids) if qos else b"")


def test_wrong_messages_of_a_subscriber_are_found() -> None:
    packets = mqtt.publishes(Flow(3, publishers=1, groups=1, body_size=64, qos=0), 0)
    size, octets = packets.size, bytes(packets.octets)
    swapped = octets[:size] + octets[2 * size :] + octets[size : 2 * size]
    with pytest.raises(LoadError, match="others than the next 3"):
        subscribed(Expected(packets, 0), swapped, 1000)
    with pytest.raises(LoadError, match="after 1 messages"):
        subscribed(Expected(packets, 0), octets[:size] + octets[:size], size)


def test_a_closed_connection_is_told_with_how_far_it_came() -> None:
    here, there = socket.socketpair()
    with here:
        packets = mqtt.publishes(Flow(3, publishers=1, groups=1, body_size=64, qos=0), 0)
        subscriber = Subscriber(here, Expected(packets, 0))
        there.sendall(packets.octets[: packets.size])
        there.close()
        with pytest.raises(LoadError, match="closed a connection: 1 of 3 messages reached a subscriber"):
            load.run([subscriber], None)


def test_a_connection_that_is_cut_is_told_with_how_far_it_came() -> None:
    here, there = socket.socketpair()
    with here:
        publisher = Publisher(here, mqtt.publishes(Flow(3, 1, 1, 64), 0), 10, PubAcks())
        there.close()
        with pytest.raises(LoadError, match=r"cut a connection \(.*\): 0 of 3 messages were answered"):
            load.run([publisher], None)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=200).map(sorted), st.floats(0.01, 1))
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values) + 1e-9


FIGURE = Figure("rate", "msg/s", compared=True, ceiling=True)


def profile_of(measure: Callable[[Bench, str, str], rounds.Measured]) -> rounds.Profile:
    return rounds.Profile("p", "", (), ("v",), {}, (FIGURE,), measure)


def spread(*values: float) -> dict[str, Spread]:
    return {"rate": Spread.of(values)}


def test_ratios_are_of_medians_and_the_generator_is_named_where_it_may_be_the_limit() -> None:
    profile = profile_of(lambda bench, contender, variant: {})
    found = {"v": {"gateway": spread(1, 30, 40), "rabbitmq": spread(10, 9, 200), "sink": spread(39)}}
    assert ratios(profile, found)["v"]["rabbitmq"] == {"rate": 3.0}
    assert [note.split(":")[0] for note in rounds.limits(profile, found)] == ["v, gateway"]
    assert cell(found["v"]["gateway"]["rate"], 0) == "30 (1-40)"


def test_rounds_are_interleaved_and_who_fails_has_no_numbers(tmp_path: Path) -> None:
    calls: list[str] = []

    def measure(bench: Bench, contender: str, variant: str) -> rounds.Measured:
        calls.append(contender)
        if contender == "b" and len(calls) > 2:
            raise LoadError("3 messages were stored, 2 came")
        return {"rate": float(len(calls))}

    found, failures = rounds.run(profile_of(measure), Bench(tmp_path, {}), 3, ["v"], ["a", "b", "c"])
    assert calls == ["a", "b", "c", "a", "b", "c", "a", "c"]
    assert found == {"v": {"a": spread(1, 4, 7), "c": spread(3, 6, 8)}}
    assert failures == ["round 2, v, b failed: 3 messages were stored, 2 came"]


def test_the_functions_of_every_stage_exist() -> None:
    for module, functions in stages.names().items():
        for name in functions:
            member = functools.reduce(getattr, name.split("."), importlib.import_module(module))
            function = member.fget if isinstance(member, property) else member
            assert function.__qualname__ == name


def test_what_is_defined_in_a_function_belongs_to_its_stage() -> None:
    digest = Dedup(b"").digest
    assert stages.stage_of(digest.__code__) == "group, dedup"
    render = Template("{topic[1]}").render
    assert stages.stage_of(render.__code__) == "group, dedup"
    assert stages.stage_of(test_one_confirm_may_be_for_many.__code__) is None


KNOWN = """
import os, random, threading, time
from benchmarks import sampler

sampler.stage_of = lambda code: code.co_name if code.co_name in ("long", "short") else None
used = {"long": 0.0, "short": 0.0}

def step(total):
    for number in range(50):
        total += number
    return total

def long():
    for _ in range(random.randrange(600, 1200)):
        step(0)

def short():
    for _ in range(random.randrange(200, 400)):
        step(0)

def work(seconds):
    end = time.thread_time() + seconds
    while (began := time.thread_time()) < end:
        for function in (long, short):
            function()
            now = time.thread_time()
            used[function.__name__] += now - began
            began = now

sampler.Sampler()
os.kill(os.getpid(), sampler.BEGIN)
work(1.5)
time.sleep(0.2)
os.kill(os.getpid(), sampler.END)
sampler.tell("known", used=used)
"""


def test_the_sampler_shares_out_what_clocks_measure() -> None:
    """Functions that were given known parts of the time; waiting is none of it."""
    done = subprocess.run([sys.executable, "-c", KNOWN], stderr=subprocess.PIPE, check=True, timeout=30)
    told = {record.pop("event"): record for record in map(json.loads, done.stderr.splitlines())}
    used, samples = told["known"]["used"], told["sampled"]["samples"]
    assert told["sampled"]["main"] == pytest.approx(sum(used.values()), abs=0.1)
    share = samples["long"] / sum(samples.values())
    assert share == pytest.approx(used["long"] / sum(used.values()), abs=0.12)
