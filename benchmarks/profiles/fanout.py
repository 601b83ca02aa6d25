"""One MQTT publisher, 1,000 subscribers of its topic.

Messages of 64 bytes with QoS 0 and with QoS 1, to clean sessions. The publisher is at most 50 messages ahead of what
its subscribers have, so no broker has a reason to drop any. Nothing is stored by anyone: a subscription without a
lasting session is live. Every subscriber must get every message, octet for octet and in order.
"""

from __future__ import annotations

from benchmarks import load, mqtt
from benchmarks.brokers import GATEWAY, MOSQUITTO, SINK, Layout
from benchmarks.fanout import FanOut
from benchmarks.messages import Flow
from benchmarks.rounds import Bench, Figure, Measured, Profile, Size
from benchmarks.transfer import BUSY

QOS = {"QoS 0": 0, "QoS 1": 1}
WINDOW = 50
TOPIC = b"fan/%04d/out"
LAYOUT = Layout({}, queue=False, about="no queue, live subscriptions")
DELIVERIES = Figure("deliveries", "deliveries/s", compared=True, ceiling=True)


def measure(bench: Bench, contender: str, variant: str) -> Measured:
    subscribers, qos = bench.sizes["subscribers"], QOS[variant]
    flow = Flow(bench.sizes["messages"], publishers=1, groups=1, body_size=64, topic=TOPIC, qos=qos)
    load.need_descriptors(subscribers)
    with bench.broker(contender, LAYOUT) as broker:
        publisher = FanOut(broker.mqtt, mqtt.publishes(flow, 0), WINDOW, qos)
        with load.closing([publisher]):
            publisher.subscribe(TOPIC % 0, subscribers)
            with load.closing(publisher.subscribers):
                timing = load.run([publisher, *publisher.subscribers], bench.core)
                if broker.honest:
                    publisher.check()
    seconds = timing.until(publisher.subscribers)
    return {DELIVERIES.key: flow.total * subscribers / seconds, BUSY.key: 100 * timing.busy}


PROFILE = Profile(
    name="fanout",
    title="1 MQTT publisher to many subscribers of its topic, 64 B",
    contenders=(GATEWAY, MOSQUITTO, SINK),
    variants=tuple(QOS),
    smoke=tuple(QOS),
    sizes={"subscribers": Size(1000, 50, "connections"), "messages": Size(1000, 100, "published in each round")},
    figures=(DELIVERIES, BUSY),
    measure=measure,
)
