"""What a configuration may say of a link to RabbitMQ, and what it is told when it says something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.admin.explain import configured, explain
from gateway.config import links
from gateway.config.settings import load
from gateway.errors import ConfigError
from gateway.model.message import Message
from gateway.model.policy import QueuePolicy, decode_custom
from transports.amqp.link.settings import AmqpClientSettings, check_target

RABBIT = "rabbit: {type: amqp-client, url: 'amqp://rabbit.example'}"


def read(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    return load(path, {})


def test_a_link_has_an_outbox_and_explain_tells_where_it_sends(tmp_path: Path) -> None:
    settings = read(
        tmp_path, f"transports: {{{RABBIT}}}\nroutes: [{{from: 'line/#', to: 'rabbit:telemetry/{{topic}}'}}]"
    )
    outbox = QueuePolicy(group="{topic}", retry_delay=(1.0, 60.0))  # type: ignore[arg-type]
    assert links.policies(settings)["link.rabbit"] == outbox
    (step,) = explain(configured(settings), Message("line/7", b""))
    assert (step.queue, step.target) == ("link.rabbit", "telemetry/line/7")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"transports: {{{RABBIT}}}\nroutes:\n  - {{from: x, to: 'rabbit:telemetry'}}",
         '3: routes[0].to: says no exchange; write EXCHANGE/KEY, as in "telemetry/{topic}", or /QUEUE'),
        (f"transports: {{{RABBIT}}}\nroutes:\n  - {{from: x, to: 'rabbit:a/{{topik}}'}}",
         "3: routes[0].to: {topik} is unknown; there are {topic}, {topic[n]}, {client_id}, {header[name]} and "
         "{body.path}"),
        ("transports:\n  rabbit:\n    type: amqp-client\n    url: amqp://x\n    unroutable: lost\nqueues: {last: }",
         '5: transports.rabbit.unroutable: no queue is named "lost"; did you mean "last"?'),
        ("transports:\n  rabbit: {type: amqp-client, url: 'mqtt://:secret@x'}",
         "2: transports.rabbit.url: expected amqp:// or amqps:// and a host, as in amqps://rabbit.example/vhost"),
        ("transports:\n  rabbit:\n    type: amqp-client\n    url: amqp://x\n    prefetsch: 5",
         '5: transports.rabbit.prefetsch: unknown key; did you mean "prefetch"?'),
    ],
)  # fmt: skip
def test_faults_name_line_and_key(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert str(error.value).splitlines() == [f"{tmp_path}/gateway.yaml:{fault}"]


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("telemetry/{topic}", ""),
        ("{header[exchange]}/a/{topic[1]|none.}", ""),
        ("/orders.dead", ""),
        ("fanout/", ""),
        ("telemetry", "says no exchange; write EXCHANGE/KEY, as in \"telemetry/{topic}\", or /QUEUE"),
        ("{header[a/b]}", "says no exchange; write EXCHANGE/KEY, as in \"telemetry/{topic}\", or /QUEUE"),
        ("/", "says no queue; write /QUEUE, or EXCHANGE/KEY"),
        ("telemetry/cmd.{topic}",
         "separate the words of a routing key by slashes, as in a topic; they go out as dots"),
    ],
)  # fmt: skip
def test_a_template_that_is_no_place_is_told(template: str, fault: str) -> None:
    assert check_target(template) == fault


@pytest.mark.parametrize(
    ("url", "shown", "vhost"),
    [
        ("amqp://rabbit.example", "amqp://rabbit.example:5672", "/"),
        ("amqps://user:secret@rabbit.example/shop", "amqps://rabbit.example:5671/shop", "shop"),
        ("amqp://[::1]:5000/%2F", "amqp://[::1]:5000", "/"),
        ("amqp://h/a%2Fb", "amqp://h:5672/a/b", "a/b"),
    ],
)
def test_where_a_remote_is_shows_no_secret(url: str, shown: str, vhost: str) -> None:
    place = AmqpClientSettings(url=url).place
    assert (str(place), place.vhost) == (shown, vhost)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"url": "http://user:secret@h"}, "url: expected amqp:// or amqps:// and a host"),
        ({"url": "amqp://h/a/b"}, "a slash in its name is written %2F"),
        ({"url": "amqp://h?heartbeat=5"}, "is a setting of its own"),
        ({"url": "amqp://h", "tls": {}}, "the url says no TLS"),
        ({"url": "amqp://h", "password": "hunter2"}, "needs a username"),
        ({"url": "amqp://h", "consume": ["a", "a"]}, "a queue stands twice"),
        ({"url": "amqp://h", "heartbeat": 0.5}, "whole seconds"),
        ({"url": "amqp://h", "topology": {"bindings": [{"exchange": "e"}]}}, "one of them"),
    ],
)
def test_faults_of_settings_are_told_without_secrets(settings: dict[str, Any], fault: str) -> None:

    with pytest.raises(msgspec.ValidationError, match=fault) as error:
        msgspec.convert(settings, AmqpClientSettings, dec_hook=decode_custom)
    assert "secret" not in str(error.value) and "hunter2" not in str(error.value)
