"""10,000 routes and 100,000 subscriptions, against one route.

10 MQTT publishers with a window of 200 send QoS 1 messages of 64 bytes to 10,000 topics. With one route a wildcard
leads all of them to the queue; with 10,000 each topic has a route of its own, and 100 connections hold 1,000
subscriptions each that match nothing of it. Mosquitto has no routes, so it has the subscriptions alone.
"""

from __future__ import annotations

import contextlib
import itertools

from benchmarks import brokers, mqtt, transfer
from benchmarks.brokers import GATEWAY, MOSQUITTO, QUEUE, SINK, Broker, Layout
from benchmarks.messages import Flow
from benchmarks.rounds import Bench, Found, Measured, Profile, Size

ONE, MANY = "one route", "many routes"
TOPIC = b"bench/%04d/orders"
WINDOW = 200
PER_CONNECTION = 1000
PER_PACKET = 100


def measure(bench: Bench, contender: str, variant: str) -> Measured:
    routes, subscriptions = bench.sizes["routes"], bench.sizes["subscriptions"]
    flow = Flow(bench.sizes["messages"], publishers=10, groups=routes, body_size=64, topic=TOPIC)
    layout = brokers.FULL if variant == ONE else with_routes(routes)
    with bench.broker(contender, layout) as broker, contextlib.ExitStack() as stack:
        if variant == MANY:
            subscribe(broker, subscriptions, stack)
        return transfer.ingest(broker, flow, WINDOW, bench.core, stored=contender == GATEWAY)


def with_routes(number: int) -> Layout:
    """One for each topic."""
    routes = [{"from": (TOPIC % group).decode(), "to": QUEUE} for group in range(number)]
    about = f"{brokers.FULL.about}, {number:,} routes"
    return Layout({**brokers.FULL.gateway, "routes": routes}, True, about)


def subscribe(broker: Broker, number: int, stack: contextlib.ExitStack) -> None:
    """So many subscriptions, on connections that the stack closes."""
    filters = iter([b"plant/%06d/+/state" % each for each in range(number)])
    for index in itertools.count():
        share = list(itertools.islice(filters, PER_CONNECTION))
        if not share:
            return
        session = stack.enter_context(mqtt.open_session(broker.mqtt, f"subscriber{index}"))
        for at in range(0, len(share), PER_PACKET):
            some = share[at : at + PER_PACKET]
            mqtt.call(session, mqtt.subscribe(some, 1), mqtt.suback(len(some), 1))


def remarks(found: Found) -> list[str]:
    """The one against the other."""
    lines = []
    for contender in found.get(ONE, {}):
        if contender in found.get(MANY, {}) and contender != SINK:
            one, many = (found[variant][contender]["answered"].median for variant in (ONE, MANY))
            lines.append(f"{contender}: with many it is {many / one:.2f} of the rate with one.")
    return lines


PROFILE = Profile(
    name="routes",
    title=f"10 MQTT publishers, QoS 1, window {WINDOW}, 64 B: one route, or a route for each topic and subscriptions",
    contenders=(GATEWAY, MOSQUITTO, SINK),
    variants=(ONE, MANY),
    smoke=(MANY,),
    sizes={
        "messages": Size(500_000, 2_000, "in each round"),
        "routes": Size(10_000, 100, "and topics; a multiple of 10, at most 10,000"),
        "subscriptions": Size(100_000, 1_200, "that match nothing"),
    },
    figures=(transfer.ANSWERED, transfer.BUSY),
    measure=measure,
    remarks=remarks,
)
