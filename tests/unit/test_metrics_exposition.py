"""Metrics: what a scrape says is what was counted, in a form that Prometheus reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gateway.admin.metrics import exposition
from gateway.model.counters import CommitStats, Histogram
from gateway.model.message import Message
from gateway.model.names import Actor
from gateway.model.policy import QueuePolicy
from gateway.transport import Binding
from tests.harness.local import local_gateway

pytestmark = pytest.mark.anyio


@given(st.lists(st.floats(0, 1000)), st.sets(st.floats(0, 1000), min_size=1))
def test_histogram_counts_what_is_at_most_its_bounds(values, bounds):
    histogram = Histogram(sorted(bounds))
    for value in values:
        histogram.observe(value)
    found = [count for _, count in histogram.cumulative()]
    assert found == [sum(value <= bound for value in values) for bound in [*sorted(bounds), float("inf")]]
    assert histogram.total == pytest.approx(sum(values))


def test_a_commit_is_observed_once():
    stats = CommitStats()
    stats.observe(200, 10_000, 0.003)
    for histogram in (stats.messages, stats.octets, stats.seconds):
        assert list(histogram.cumulative())[-1] == ("+Inf", 1)


async def test_a_scrape_says_what_was_counted():
    config = 'queues: {q: {dedup: {key: sha256}}}\nroutes: [{from: "#", to: q}]'
    async with local_gateway(config) as (gateway, operator):
        counters = gateway.counters("door")
        counters.connections = 3
        counters.octets_in = 99
        counters.refusals["bad-credentials"] += 2
        counters.protocol_errors['a "quoted"\nreason'] += 1
        await gateway.accept([Message("a", b"1"), Message("a", b"1"), Message("a", b"2")])
        text, kind = await exposition(operator)
    assert kind.startswith("text/plain")
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }
    assert found["gateway_ready",] == 1
    assert found["gateway_queue_messages", "q"] == 2
    assert found["gateway_queue_accepted_total", "q"] == 2
    assert found["gateway_queue_duplicates_total", "q"] == 1
    assert found["gateway_transport_connections", "door"] == 3
    assert found["gateway_transport_bytes_in_total", "door"] == 99
    assert found["gateway_transport_refusals_total", "bad-credentials", "door"] == 2
    assert found["gateway_transport_protocol_errors_total", 'a "quoted"\nreason', "door"] == 1
    assert found["gateway_commit_messages_count",] >= 1
    assert found["process_resident_memory_bytes",] > 0
    for name in (
        "bytes",
        "in_flight_messages",
        "oldest_age_seconds",
        "groups",
        "parked_groups",
        "consumers",
        "refused_dead_letters",
    ):
        assert (f"gateway_queue_{name}", "q") in found
    counted = ("refused", "delivered", "settled", "retried", "returned", "dead_lettered", "expired", "dropped")
    for name in (*counted, "stale_settlements"):
        assert (f"gateway_queue_{name}_total", "q") in found


async def test_sessions_are_one_series_that_does_not_fall_when_one_ends():
    class Client:
        def deliver(self, batch): ...
        def closed(self, reason): ...

    async with local_gateway() as (gateway, operator):
        sessions = Actor("mqtt")
        for name in ("mqtt.one", "mqtt.two"):
            gateway.declare(name, QueuePolicy(dead_letter="none"), "mqtt")
            gateway.attach(name, Client(), live=True, actor=sessions)
            gateway.bind(Binding(queue=name, filter="a", owner="mqtt"))
        await gateway.accept([Message("a", b"1", qos=1)])
        for each, names in ((False, {"mqtt.*"}), (True, {"mqtt.one", "mqtt.two"})):
            found = await scraped(operator, each)
            assert {queue for name, queue in found if name == "gateway_queue_messages"} == {"dead-letters", *names}
            assert sum(value for (name, _), value in found.items() if name == "gateway_queue_accepted_total") == 2
        gateway.delete("mqtt.one")
        found = await scraped(operator)
        assert found["gateway_queue_accepted_total", "mqtt.*"] == 2
        assert found["gateway_queue_messages", "mqtt.*"] == 1
        gateway.delete("mqtt.two")
        found = await scraped(operator)
        assert found["gateway_queue_accepted_total", "mqtt.*"] == 2
        assert found["gateway_queue_messages", "mqtt.*"] == 0


async def scraped(operator, each_session=False):
    """Values of queues, by the sample's name and the queue."""
    text, _ = await exposition(operator, each_session)
    families = text_string_to_metric_families(text.decode())
    samples = (sample for family in families for sample in family.samples)
    return {(sample.name, sample.labels["queue"]): sample.value for sample in samples if "queue" in sample.labels}
