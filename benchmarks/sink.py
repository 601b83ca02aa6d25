"""Owns the sink: a process that speaks as much MQTT and AMQP as the load generator hears, and answers and delivers
without looking. What the generator reaches against it is the generator's own ceiling.

Its rule: it does only what no broker can do less of: one read and one write for each lot and receiver.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from collections.abc import Callable

from pamqp import commands, frame

from benchmarks import amqp, mqtt

RECEIVE_SIZE = 1 << 18
PUBACK = b"\x40\x02\x00\x01"
LOT = 4096
FULL = 1 << 20
EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
REPLIES: dict[type, frame.FrameTypes] = {
    commands.Connection.StartOk: commands.Connection.Tune(8, amqp.MAX_FRAME, 0),
    commands.Connection.Open: commands.Connection.OpenOk(),
    commands.Channel.Open: commands.Channel.OpenOk(),
    commands.Basic.Qos: commands.Basic.QosOk(),
    commands.Basic.Consume: commands.Basic.ConsumeOk("bench"),
    commands.Confirm.Select: commands.Confirm.SelectOk(),
}


class Connection:
    """One of the generator's. `on_data` is what it is at the time: a greeting, a publisher, a subscriber."""

    def __init__(self, sink: Sink, connection: socket.socket, greet: Callable[[Connection, bytes], None]) -> None:
        self.sink = sink
        self.socket = connection
        self.on_data: Callable[[Connection, bytes], None] = greet
        self.filter = b""
        self.count = 0
        self.size = 0
        self.rest = 0
        self.tail = b""
        self.qos = 0
        self.receivers: list[Connection] = []
        self.unsent = b""

    def write(self, data: bytes) -> None:
        data = self.unsent + data if self.unsent else data
        try:
            self.unsent = data[self.socket.send(data) :]
        except BlockingIOError:
            self.unsent = data

    @property
    def is_full(self) -> bool:
        return len(self.unsent) > FULL

    def counted(self, octets: int) -> int:
        """Packets that are whole with these octets."""
        count, self.rest = divmod(self.rest + octets, self.size)
        self.count += count
        return count


class Sink:
    """Everything that is published goes to the subscribers of its topic, or is owed to the one AMQP consumer."""

    def __init__(self) -> None:
        self.subscribers: list[Connection] = []
        self.consumer: Connection | None = None
        self._owed = 0
        self._delivery = b""

    def owe(self, count: int) -> None:
        self._owed += count
        self.pump()

    def learn(self, body: bytes) -> None:
        """What is delivered for each message."""
        self._delivery = amqp.delivery(body)

    def pump(self) -> None:
        consumer = self.consumer
        while consumer and self._owed and not consumer.is_full:
            count = min(self._owed, LOT)
            self._owed -= count
            consumer.write(self._delivery * count)

    def gone(self, connection: Connection) -> None:
        if connection is self.consumer:
            self.consumer = None
        if connection in self.subscribers:
            self.subscribers.remove(connection)

    def serve(self) -> None:
        """Prints the ports as JSON; runs until it is killed."""
        listeners = {
            name: socket.create_server(("127.0.0.1", 0), backlog=1024) for name in ("mqtt", "amqp")
        }  # fmt: skip
        greetings = {"mqtt": greet_mqtt, "amqp": greet_amqp}
        epoll = select.epoll()
        accepting = {}
        for name, listener in listeners.items():
            epoll.register(listener, select.EPOLLIN)
            accepting[listener.fileno()] = (listener, greetings[name])
        print(json.dumps({name: listener.getsockname()[1] for name, listener in listeners.items()}), flush=True)
        connections: dict[int, Connection] = {}
        while True:
            for descriptor, event in epoll.poll():
                connection = connections.get(descriptor)
                if connection is None:
                    listener, greet = accepting[descriptor]
                    accepted, _ = listener.accept()
                    accepted.setblocking(False)
                    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    connections[accepted.fileno()] = Connection(self, accepted, greet)
                    epoll.register(accepted, EVENTS)
                    continue
                try:
                    if event != select.EPOLLOUT:
                        read(connection)
                    if event & select.EPOLLRDHUP:
                        raise EOFError
                    if connection.unsent:
                        connection.write(b"")
                    if connection is self.consumer:
                        self.pump()
                except (ConnectionError, EOFError):
                    self.gone(connection)
                    del connections[descriptor]
                    connection.socket.close()


def read(connection: Connection) -> None:
    """All that is there."""
    size = RECEIVE_SIZE
    while size == RECEIVE_SIZE:
        try:
            data = connection.socket.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return
        size = len(data)
        if size:
            connection.on_data(connection, data)


def greet_mqtt(connection: Connection, data: bytes) -> None:
    """CONNECT, SUBSCRIBE, and the first PUBLISH, whose length is that of all that follow."""
    kind = data[0] >> 4
    if kind == 1:
        connection.write(mqtt.CONNACK)
    elif kind == 8:
        subscribe(connection, connection.tail + data)
    elif kind == 3:
        body_at, size = publish_layout(data)
        connection.size, connection.qos = size, data[0] >> 1 & 3
        topic_at = body_at - (2 if connection.qos else 0)
        topic = data[topic_at - topic_length(data) : topic_at]
        connection.receivers = [s for s in connection.sink.subscribers if s.filter == topic]
        connection.sink.learn(data[body_at:size])
        connection.on_data = take_mqtt
        take_mqtt(connection, data)


def subscribe(connection: Connection, data: bytes) -> None:
    """Takes the first filter for all of them: more than one are only for the broker to hold."""
    at = _after_length(data)
    whole = at + _length(data)
    if len(data) < whole:
        connection.tail = data
        connection.on_data = subscribe_rest
        return
    connection.on_data, connection.tail = greet_mqtt, b""
    at += 2
    filters = []
    while at < whole:
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        filters.append(data[at + 2 : end])
        at = end + 1
    connection.filter = filters[0]
    connection.sink.subscribers.append(connection)
    connection.write(mqtt.suback(len(filters), data[whole - 1]))


def subscribe_rest(connection: Connection, data: bytes) -> None:
    subscribe(connection, connection.tail + data)


def take_mqtt(connection: Connection, data: bytes) -> None:
    count = connection.counted(len(data))
    if connection.qos and count:
        connection.write(PUBACK * count)
    for receiver in connection.receivers:
        receiver.write(data)
    if not connection.receivers:
        connection.sink.owe(count)


def greet_amqp(connection: Connection, data: bytes) -> None:
    """The generator waits for each answer, so methods come whole; the first publish says how long they are."""
    if data.startswith(b"AMQP"):
        connection.write(frame.marshal(commands.Connection.Start(0, 9, {}, "PLAIN", "en_US"), 0))
        return
    while data:
        size, channel, method = frame.unmarshal(data)
        if isinstance(method, commands.Basic.Publish):
            for _ in range(2):
                more, _, last = frame.unmarshal(data[size:])
                size += more
            connection.size = size
            # After a publish come its header and its body; pamqp's type names all frames.
            connection.sink.learn(last.value)  # type: ignore[union-attr]
            connection.on_data = take_amqp
            take_amqp(connection, data)
            return
        data = data[size:]
        reply = REPLIES.get(type(method))
        if reply is not None:  # a method without arguments counts as false
            connection.write(frame.marshal(reply, channel))
        if isinstance(method, commands.Basic.Consume):
            connection.on_data = ignore
            connection.sink.consumer = connection
            connection.sink.pump()


def take_amqp(connection: Connection, data: bytes) -> None:
    if count := connection.counted(len(data)):
        connection.write(amqp.ack(connection.count))
        connection.sink.owe(count)


def ignore(connection: Connection, data: bytes) -> None:
    """Acks of a consumer."""


def publish_layout(packet: bytes) -> tuple[int, int]:
    """Where the body of a PUBLISH begins, and how long the packet is."""
    at = _after_length(packet)
    body_at = at + 2 + topic_length(packet) + (2 if packet[0] & 6 else 0)
    return body_at, at + _length(packet)


def topic_length(packet: bytes) -> int:
    at = _after_length(packet)
    return int.from_bytes(packet[at : at + 2], "big")


def _after_length(packet: bytes) -> int:
    at = 1
    while packet[at] & 0x80:
        at += 1
    return at + 1


def _length(packet: bytes) -> int:
    return sum((packet[at] & 0x7F) << 7 * (at - 1) for at in range(1, _after_length(packet)))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        os.sched_setaffinity(0, {int(sys.argv[1])})
    Sink().serve()
