"""Names that are somebody's own, by every way in: whoever brings such a name, the core refuses it where it is resolved.

The tests are the product of the ways in with the kinds of guarded names. A way that sends is tried with each queue that
no client may send to; one that uses, with each queue that is another's to use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from pamqp import commands

from tests.harness.daemon import Daemon
from tests.integration.amqp_calls import bind, consume, declare, delivery, exchange, get, put
from tests.integration.amqp_raw import Raw
from tests.integration.mqtt_raw import RawClient, unique
from transports.mqtt.packets import NO_PROPERTIES5, Property, Reason, Will

Basic, Channel, Exchange, Queue, Tx = (
    commands.Basic,
    commands.Channel,
    commands.Exchange,
    commands.Queue,
    commands.Tx,
)
LOOPBACK = {"listen": "127.0.0.1:0"}
CONFIG: dict[str, Any] = {
    "queues": {"open": {}, "failing": {"max_deliveries": 1, "dead_letter": "failed"}, "failed": {}},
    "routes": [{"from": "seen/#", "to": "open"}, {"from": "up/#", "to": "plant:{topic}"}],
    "transports": {
        "mqtt": {"type": "mqtt", **LOOPBACK},
        "amqp": {"type": "amqp", **LOOPBACK, "vhosts": ["blue"]},
        "web": {"type": "http", **LOOPBACK},
        "plant": {"type": "mqtt-client", "url": "mqtt://127.0.0.1:1"},
    },
}
OWN, SHARE, OUTBOX, BLUE = "mqtt.victim", "mqtt.$share/crew/of/all", "link.plant", "vhost.blue/jobs"
RESERVED = (OWN, SHARE, OUTBOX)
DENIED = Reason.NOT_AUTHORIZED


class House:
    """The daemon with one queue of each guarded kind, each of them empty."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.clients: list[Raw] = []
        with RawClient(daemon.address("mqtt")) as victim:
            victim.connect("victim", properties={Property.SESSION_EXPIRY_INTERVAL: 3600})
            assert victim.subscribe("$share/crew/of/all") == (1,)
            victim.disconnect()
        self.blue = self.amqp("blue")
        declare(self.blue, queue="jobs", exclusive=False)
        self.api = httpx.Client(base_url=daemon.url("admin") + "/api/v1/", trust_env=False)
        self.web = httpx.Client(base_url=daemon.url("web"), trust_env=False)

    def amqp(self, vhost: str = "/") -> Raw:
        raw = Raw(self.daemon.address("amqp"))
        self.clients.append(raw)
        raw.login(vhost=vhost)
        raw.call(commands.Confirm.Select(), commands.Confirm.SelectOk)
        return raw

    def queue(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(q for q in self.api.get("queues").json()["queues"] if q["name"] == name)
        return found

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.api.close()
        self.web.close()
        self.daemon.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    daemon = Daemon(tmp_path_factory.mktemp("names"), CONFIG)
    try:
        made = House(daemon.start())
    except BaseException:
        daemon.close()
        raise
    yield made
    made.close()


@pytest.fixture
def raw(house: House) -> Iterator[Raw]:
    made = house.amqp()
    yield made
    made.close()


@pytest.fixture
def device(house: House) -> Iterator[RawClient]:
    with RawClient(house.daemon.address("mqtt")) as made:
        made.connect(unique())
        yield made


def aimed(kind: type[Any], name: str, **options: Any) -> Any:
    """A method for a queue of any name; pamqp's own check takes none with a dollar sign."""
    unchecked: type[Any] = type(kind.__name__, (kind,), {"validate": lambda self: None})
    return unchecked(queue=name, **options)


def closed(raw: Raw) -> int:
    """Why the server has closed the channel, which is opened again; 0 if it confirmed instead."""
    found = raw.read()
    while isinstance(found, Basic.Return):
        raw.read()
        found = raw.read()
    if isinstance(found, Channel.Close):
        raw.send(Channel.CloseOk())
        raw.call(Channel.Open(), Channel.OpenOk)
        return int(found.reply_code)
    return 0


# ways that send: each ends when it is known what has become of the message


def by_mqtt(house: House, name: str) -> None:
    with RawClient(house.daemon.address("mqtt")) as client:
        client.connect(unique())
        assert client.publish("$queue/" + name).reason == DENIED


def by_will(house: House, name: str) -> None:
    with RawClient(house.daemon.address("mqtt")) as client:
        assert client.connect(unique(), will=Will("$queue/" + name, b"x", 1, False, NO_PROPERTIES5)).reason == DENIED


def by_amqp(house: House, name: str) -> None:
    raw = house.amqp()
    raw.publish(b"x", name)
    assert closed(raw) == 403
    raw.close()


def by_cc(house: House, name: str) -> None:
    copied(house, {"CC": [name]})


def by_bcc(house: House, name: str) -> None:
    copied(house, {"BCC": [name]})


def copied(house: House, headers: dict[str, Any]) -> None:
    raw = house.amqp()
    raw.publish(b"x", "open", properties={"headers": headers})
    assert closed(raw) == 403
    raw.close()


def by_tx(house: House, name: str) -> None:
    raw = Raw(house.daemon.address("amqp"))
    house.clients.append(raw)
    raw.login()
    raw.call(Tx.Select(), Tx.SelectOk)
    raw.publish(b"x", "open", properties={"headers": {"CC": [name]}})
    assert closed(raw) == 403
    raw.close()


def by_kept_key(house: House, name: str) -> None:
    """A dead letter that keeps the routing key of its publisher, at the default exchange."""
    raw = house.amqp()
    for arguments in ({}, {"x-overflow": "reject-publish-dlx", "x-max-length": 1}):
        via = exchange(raw, unique("via"), auto_delete=True)
        queue = declare(raw, {"x-dead-letter-exchange": "", **arguments})
        bind(raw, queue, via)
        put(raw, name, b"x", exchange=via)
        if arguments:
            raw.publish(b"x", name, via)
            assert isinstance(raw.read(), Basic.Nack)
            continue
        consume(raw, queue)
        raw.send(Basic.Reject(delivery_tag=delivery(raw)[0].delivery_tag, requeue=False))
        assert get(raw, queue) is None
    raw.close()


def by_dead_letter_key(house: House, name: str) -> None:
    """A dead letter with a key that its queue's arguments name."""
    raw = house.amqp()
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": name}
    raw.send(Queue.Declare(exclusive=True, arguments=arguments))
    assert closed(raw) in (403, 406)
    raw.close()


def by_alternate(house: House, name: str) -> None:
    """The default exchange, which knows every queue by its name, is nobody's alternate."""
    raw = house.amqp()
    raw.send(Exchange.Declare(exchange=unique("odd"), arguments={"alternate-exchange": ""}))
    assert closed(raw) == 406
    raw.close()


def by_exchange_binding(house: House, name: str) -> None:
    raw = house.amqp()
    raw.send(Exchange.Bind(source="amq.fanout", destination="", routing_key=name))
    assert closed(raw) == 403
    raw.close()


def by_answer(house: House, name: str) -> None:
    """A worker answers where a device asked it to: it may not either, and nothing comes there."""
    raw = house.amqp()
    queue = declare(raw)
    bind(raw, queue, "amq.topic", "ask.me")
    with RawClient(house.daemon.address("mqtt")) as client:
        client.connect(unique())
        client.publish("ask/me", properties={Property.RESPONSE_TOPIC: "$queue/" + name})
    raw.send(Basic.Get(queue=queue, no_ack=True))
    raw.expect(Basic.GetOk)
    asked = raw.read().properties.reply_to
    raw.publish(b"x", asked)
    assert closed(raw) == 403
    raw.close()


def by_http(house: House, name: str) -> None:
    assert house.web.post("/topics/$queue/" + name, content=b"x").status_code == 400


def by_admin(house: House, name: str) -> None:
    assert house.api.post("publish", json={"topic": "$queue/" + name}).status_code == 400


def by_redrive(house: House, name: str) -> None:
    asked = {"queue": "failed", "to": name}
    assert house.api.post("redrive", json=asked).status_code == 409


SENDING = (
    by_mqtt,
    by_will,
    by_amqp,
    by_cc,
    by_bcc,
    by_tx,
    by_kept_key,
    by_dead_letter_key,
    by_alternate,
    by_exchange_binding,
    by_answer,
    by_http,
    by_admin,
    by_redrive,
)
OF_AMQP = (by_amqp, by_cc, by_bcc, by_tx, by_kept_key, by_dead_letter_key, by_alternate, by_exchange_binding, by_answer)
"""Where another virtual host is not to be named: the whole names of its queues are for all but AMQP's clients."""


@pytest.mark.parametrize("name", RESERVED)
@pytest.mark.parametrize("way", SENDING)
def test_nobody_sends_to_a_reserved_name(house: House, way: Callable[[House, str], None], name: str) -> None:
    before = house.queue(name)["accepted"]
    way(house, name)
    after = house.queue(name)
    assert (after["accepted"], after["depth"]) == (before, 0)


@pytest.mark.parametrize("way", OF_AMQP)
def test_no_client_of_amqp_sends_to_another_virtual_host(house: House, way: Callable[[House, str], None]) -> None:
    before = house.queue(BLUE)["accepted"]
    way(house, BLUE)
    after = house.queue(BLUE)
    assert (after["accepted"], after["depth"]) == (before, 0)


def test_a_dead_letter_of_a_virtual_host_stays_there_whatever_its_key_says(house: House) -> None:
    blue = house.amqp("blue")
    via = exchange(blue, unique("via"), auto_delete=True)
    queue = declare(blue, {"x-dead-letter-exchange": ""})
    bind(blue, queue, via)
    put(blue, "jobs", b"mine", exchange=via)
    put(blue, "open", b"not the other's", exchange=via)
    before = house.queue("open")["accepted"]
    consume(blue, queue)
    for _ in range(2):
        blue.send(Basic.Reject(delivery_tag=delivery(blue)[0].delivery_tag, requeue=False))
    assert get(blue, queue) is None
    found = get(blue, "jobs")
    assert found is not None and found[2] == b"mine"
    assert house.queue("open")["accepted"] == before
    blue.close()


# ways that use: what another holds, and what is reserved


def held(house: House) -> tuple[Raw, str]:
    """An exclusive queue of another connection."""
    raw = house.amqp()
    queue = declare(raw)
    bind(raw, queue, "amq.fanout")  # to take away a binding that is not there is no error, whosever the queue is
    return raw, queue


def busy(house: House) -> tuple[Raw, str]:
    """A queue with an exclusive consumer."""
    raw = house.amqp()
    queue = declare(raw, queue=unique("busy"), exclusive=False, auto_delete=True)
    consume(raw, queue, exclusive=True)
    return raw, queue


def busy_configured(house: House) -> tuple[Raw, str]:
    raw = house.amqp()
    consume(raw, "open", exclusive=True)
    return raw, "open"


def answers(house: House) -> tuple[Raw, str]:
    """The queue of direct replies to another channel."""
    raw = house.amqp()
    consume(raw, "amq.rabbitmq.reply-to", no_ack=True)
    name = next(q["name"] for q in house.api.get("queues").json()["queues"] if "reply-to" in q["name"])
    return raw, name


def reserved(name: str) -> Callable[[House], tuple[Raw, str]]:
    return lambda house: (house.amqp(), name)


USED = {
    "exclusive": held,
    "exclusive consumer": busy,
    "exclusive consumer of a configured queue": busy_configured,
    "direct replies": answers,
    "session": reserved(OWN),
    "share": reserved(SHARE),
    "outbox": reserved(OUTBOX),
}


@pytest.fixture(params=USED)
def used(house: House, request: pytest.FixtureRequest) -> Iterator[str]:
    holder, name = USED[request.param](house)
    yield name
    holder.close()


def test_nobody_subscribes_to_it(device: RawClient, used: str) -> None:
    assert device.subscribe("$queue/" + used) == (DENIED,)


def test_nobody_consumes_it_by_amqp(raw: Raw, used: str) -> None:
    raw.send(aimed(Basic.Consume, used))
    assert closed(raw) in (403, 404, 405)


def test_nobody_consumes_it_by_the_admin_api(house: House, used: str) -> None:
    assert house.api.post("consume", json={"queue": used}).status_code == 409


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (Queue.Purge, {}),
        (Queue.Delete, {}),
        (Queue.Bind, {"exchange": "amq.fanout"}),
        (Queue.Unbind, {"exchange": "amq.fanout"}),
        (Queue.Declare, {"passive": True}),
        (Basic.Get, {}),
    ],
)
@pytest.mark.parametrize("kind", ["exclusive", "session", "share", "outbox"])
def test_nobody_does_anything_else_with_it(
    house: House, raw: Raw, kind: str, method: type[Any], options: dict[str, Any]
) -> None:
    holder, name = USED[kind](house)
    raw.send(aimed(method, name, **options))
    assert closed(raw) == (405 if kind == "exclusive" else 403)
    holder.close()


def test_a_device_still_answers_to_an_exclusive_queue(house: House, device: RawClient) -> None:
    """To send there is what answers are made of; to use it is the holder's."""
    holder, name = held(house)
    assert device.publish("$queue/" + name, b"an answer").reason == Reason.SUCCESS
    found = get(holder, name)
    assert found is not None and found[2] == b"an answer"
    holder.close()


def test_when_the_exclusive_consumer_leaves_others_may_come(house: House, device: RawClient) -> None:
    raw = house.amqp()
    queue = declare(raw, queue=unique("free"), exclusive=False)
    tag = consume(raw, queue, exclusive=True)
    assert device.subscribe("$queue/" + queue) == (DENIED,)
    raw.call(Basic.Cancel(consumer_tag=tag), Basic.CancelOk)
    assert device.subscribe("$queue/" + queue) == (1,)
    device.nothing_comes()
    raw.send(Basic.Consume(queue=queue, exclusive=True))
    assert closed(raw) == 403
    raw.call(Queue.Delete(queue=queue), Queue.DeleteOk)
    raw.close()
