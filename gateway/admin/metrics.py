"""Owns the counters and how Prometheus reads them.

Its rule: counting is a plain integer addition; everything else happens when somebody scrapes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import anyio
import anyio.to_thread

from gateway.model.counters import CommitStats, TransportCounters

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from gateway.admin.operations import Operations, QueueStats


_QUEUE_GAUGES = {
    "depth": ("messages", "Messages that wait for delivery"),
    "octets": ("bytes", "Bytes of the messages that are there"),
    "in_flight": ("in_flight_messages", "Messages delivered and not yet settled"),
    "consumers": ("consumers", "Consumers attached"),
    "groups": ("groups", "Groups with messages"),
    "parked_groups": ("parked_groups", "Groups held until an operator releases them"),
    "refused_dead_letters": ("refused_dead_letters", "Dead letters that wait, since their queue refuses them"),
    "oldest_age_seconds": ("oldest_age_seconds", "Age of the oldest message that is there"),
}
_QUEUE_COUNTERS = {
    "accepted": "Messages stored in the queue",
    "duplicates": "Messages answered with success and not stored, by their dedup key",
    "refused": "Messages refused at a limit",
    "delivered": "Deliveries to consumers",
    "settled": "Messages settled as done",
    "retried": "Deliveries that failed and counted an attempt",
    "returned": "Deliveries given back unused",
    "dead_lettered": "Messages that went to the dead letters",
    "expired": "Messages whose ttl ran out",
    "dropped": "Messages dropped by a stated policy",
    "circled": "Dead letters that were not stored in a queue since they would have gone round in a circle",
    "dead_on_arrival": "Messages that were dead letters as they came, since a template had no value for them",
    "stale_settlements": "Settlements of deliveries that the consumer no longer held",
}
_TRANSPORT_COUNTERS = {
    "connections_total": ("connections_opened", "Connections ever made"),
    "messages_in": ("messages_in", "Messages taken in"),
    "messages_out": ("messages_out", "Messages sent out"),
    "octets_in": ("bytes_in", "Bytes received"),
    "octets_out": ("bytes_out", "Bytes sent"),
}
_TRANSPORT_REASONS = {
    "dropped": ("dropped_messages", "Messages dropped by a stated policy"),
    "refusals": ("refusals", "Connections and requests refused"),
    "protocol_errors": ("protocol_errors", "Connections closed because of what the peer sent"),
}


class Holdings(NamedTuple):
    """What the whole daemon keeps in memory besides its queues' entries, and what it refused for its own limits."""

    message_octets: int = 0
    volatile_octets: int = 0
    retained_messages: int = 0
    retained_octets: int = 0
    dedup_keys: int = 0
    binding_octets: int = 0
    refused: Mapping[str, int] = {}


class _Families:
    """What was read, as a collector of `prometheus_client`."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def describe(self) -> Iterable[Metric]:
        """Nothing: so registering does not collect."""
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._families


def _queue_metrics(queues: Sequence[QueueStats]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for field, (name, text) in _QUEUE_GAUGES.items():
        gauge = GaugeMetricFamily(f"gateway_queue_{name}", text, labels=["queue"])
        for queue in queues:
            gauge.add_metric([queue.name], getattr(queue, field))
        yield gauge
    for field, text in _QUEUE_COUNTERS.items():
        counter = CounterMetricFamily(f"gateway_queue_{field}", text, labels=["queue"])
        for queue in queues:
            counter.add_metric([queue.name], getattr(queue, field))
        yield counter


def _transport_metrics(transports: Mapping[str, TransportCounters]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    gauge = GaugeMetricFamily("gateway_transport_connections", "Open connections", labels=["transport"])
    for name, counters in transports.items():
        gauge.add_metric([name], counters.connections)
    yield gauge
    for field, (metric, text) in _TRANSPORT_COUNTERS.items():
        counter = CounterMetricFamily(f"gateway_transport_{metric}", text, labels=["transport"])
        for name, counters in transports.items():
            counter.add_metric([name], getattr(counters, field))
        yield counter
    for field, (metric, text) in _TRANSPORT_REASONS.items():
        counter = CounterMetricFamily(f"gateway_transport_{metric}", text, labels=["transport", "reason"])
        for name, counters in transports.items():
            for reason, count in getattr(counters, field).items():
                counter.add_metric([name, reason], count)
        yield counter


def _commit_metrics(commits: CommitStats) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

    for name, text, histogram in (
        ("messages", "Messages in one commit", commits.messages),
        ("bytes", "Bytes written by one commit", commits.octets),
        ("seconds", "How long one commit took, fsync included", commits.seconds),
    ):
        family = HistogramMetricFamily(f"gateway_commit_{name}", text)
        family.add_metric([], list(histogram.cumulative()), histogram.total)
        yield family
    failures = CounterMetricFamily("gateway_commit_failures", "Commits that failed")
    failures.add_metric([], commits.failures)
    yield failures


_HOLDINGS = {
    "message_octets": ("memory_bytes", "Bytes of messages in memory, about"),
    "volatile_octets": ("memory_volatile_bytes", "Of these, bytes of messages that are on no disk"),
    "retained_messages": ("retained_messages", "Retained messages"),
    "retained_octets": ("retained_bytes", "What retained messages take in memory, about"),
    "binding_octets": ("bindings_bytes", "What bindings take in memory, about"),
    "dedup_keys": ("dedup_keys", "Dedup keys whose window may not be over"),
}


def _holdings_metrics(holdings: Holdings) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for field, (name, text) in _HOLDINGS.items():
        gauge = GaugeMetricFamily(f"gateway_{name}", text)
        gauge.add_metric([], getattr(holdings, field))
        yield gauge
    refused = CounterMetricFamily(
        "gateway_refused", "Messages and bindings refused at a limit of the whole daemon", labels=["reason"]
    )
    for reason, count in holdings.refused.items():
        refused.add_metric([reason], count)
    yield refused


async def exposition(operations: Operations, each_session: bool = False) -> tuple[bytes, str]:
    """Everything as Prometheus reads it, with its content type. each_session: sessions are not summed.

    What changes is read on the loop, queues in slices; the text is made in a thread, out of what nobody changes.
    """
    from prometheus_client.core import GaugeMetricFamily

    queues = await operations.stats(summed=not each_session)
    ready = GaugeMetricFamily("gateway_ready", "1 if the gateway is ready, as /readyz says")
    ready.add_metric([], float(operations.readiness().ready))
    others = [
        *_transport_metrics(operations.transports()),
        *_commit_metrics(operations.commits),
        *_holdings_metrics(operations.holdings()),
    ]
    return await anyio.to_thread.run_sync(_text, itertools.chain([ready], _queue_metrics(queues), others))


def _text(families: Iterable[Metric]) -> tuple[bytes, str]:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families))
    ProcessCollector(registry=registry)
    return generate_latest(registry), CONTENT_TYPE_LATEST
