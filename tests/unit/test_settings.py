"""Settings: defaults, every fault with its line, and what must fit together."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from gateway import files
from gateway.address import Address
from gateway.auth.users import hash_password
from gateway.config.checks import SUGGESTIONS, Checks
from gateway.config.document import Faults, parse
from gateway.config.settings import Settings, load
from gateway.errors import ConfigError, ListenError
from gateway.model.policy import Octets, QueuePolicy, Seconds
from gateway.net import http_server as web
from gateway.transport import registry as plugins

HASH = hash_password("secret")


@pytest.fixture
def read(tmp_path: Path):
    """`read(text)` gives the settings; `read(text, name=value)` sets the environment."""

    def read(text: str, **environ: str) -> Settings:
        path = tmp_path / "gateway.yaml"
        path.write_text(text)
        return load(path, environ, strict=True)

    return read


@pytest.fixture
def faults(read, tmp_path: Path):
    """`faults(text)` gives the lines of the error, without the folder."""

    def faults(text: str, **environ: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            read(text, **environ)
        return str(caught.value).replace(f"{tmp_path}/", "").splitlines()

    return faults


def test_empty_braces_are_all_defaults(read):
    settings = read("{}")
    assert settings == Settings()
    assert settings.store.path == "./data"
    assert settings.store.reserve == settings.max_backlog == 64 << 20
    assert settings.max_memory == 256 << 20
    assert settings.drain_timeout == 10
    assert settings.admin is not None
    assert settings.admin.listen == "127.0.0.1:8080"
    assert settings.log.format == "auto"


def test_the_shape_that_users_write(read):
    settings = read("""
store: {path: /var/data, reserve: 1GB}
admin: {listen: "[::1]:9000"}
transports:
  web: {type: http, listen: 127.0.0.1:0, max_body: 2MB}
queues:
  orders:
    group: "{topic[1]}"
    dedup: {key: "{header[order-id]}", window: 1h30m}
    ack_timeout: 30s
    max_deliveries: 5
    retry_delay: 1s..1m
    dead_letter: orders.dead
  orders.dead:
routes:
  - {from: "shop/+/orders", to: orders, source: web}
  - {from: "line/#", to: [orders, orders.dead]}
max_memory: 10MB
log: {level: debug, format: json}
""")
    orders = settings.queues["orders"]
    assert orders.dedup is not None
    assert orders.dedup.window == 5400
    assert orders.retry_delay == (1, 60)
    assert settings.transports["web"].max_body == 2 << 20
    assert settings.routes[0].source == "web"
    assert [route.targets for route in settings.routes] == [("orders",), ("orders", "orders.dead")]
    assert settings.admin.listen.host == "::1"
    assert settings.admin.listen.port == 9000


def test_admin_can_be_off_and_on(read):
    assert read("admin: false").admin is None
    assert read("admin: true").admin == Settings().admin
    assert read("admin:").admin is None or read("admin:").admin == Settings().admin


def test_a_queue_of_dead_letters_tries_for_ever_and_discards(read):
    queues = read("queues: {a: {dead_letter: a.dead}, a.dead: , b: {dead_letter: none}}").queues
    assert (queues["a.dead"].max_deliveries, queues["a.dead"].dead_letter) == (None, "none")
    assert queues["a"].max_deliveries == QueuePolicy().max_deliveries
    assert queues["b"].dead_letter == "none"


def test_a_chain_of_dead_letters_may_be_written(read):
    queues = read("queues: {a: {dead_letter: b}, b: {dead_letter: c, max_deliveries: 3}, c: }").queues
    assert (queues["b"].max_deliveries, queues["b"].dead_letter) == (3, "c")
    assert queues["c"].dead_letter == "none"


def test_the_built_in_dead_letters_may_be_limited(read):
    policy = read("queues: {dead-letters: {max_messages: 10}}").queues["dead-letters"]
    assert (policy.max_messages, policy.dead_letter, policy.max_deliveries) == (10, "none", None)


FAULTS = [
    ("quues: {}", '1: quues: unknown key; did you mean "queues"?'),
    ("store: {pth: x}", '1: store.pth: unknown key; did you mean "path"?'),
    ("queues:\n  a:\n    ack_timout: 30s", '3: queues.a.ack_timout: unknown key; did you mean "ack_timeout"?'),
    ("queues:\n  a:\n    dedup: {key: sha256, windw: 1m}",
     '3: queues.a.dedup.windw: unknown key; did you mean "window"?'),
    ("queues: {a: {dedup: {window: 1m}}}", '1: queues.a.dedup: missing key "key"'),
    ("queues: {a: {max_deliveries: many}}", '1: queues.a.max_deliveries: expected a whole number >= 1, got "many"'),
    ("queues: {a: {max_deliveries: 0}}", "1: queues.a.max_deliveries: expected a whole number >= 1, got 0"),
    ("queues: {a: {group: x, group_in_flight: 1001}}",
     "1: queues.a.group_in_flight: expected a whole number >= 1 and <= 1000, got 1001"),
    ("queues: {a: {max_messages: 0}}", "1: queues.a.max_messages: must be above 0; leave it out for no limit"),
    ("queues: {a: {durable: 1}}", "1: queues.a.durable: expected true or false, got 1"),
    ("queues: {a: {group: 5}}", "1: queues.a.group: expected text, got a whole number; put it in quotes"),
    ("queues: {a: {on_exhausted: skp}}",
     '1: queues.a.on_exhausted: expected one of skip, park, block, got "skp"; did you mean "skip"?'),
    ("queues: {a: [b]}", "1: queues.a: expected keys and values, got a list"),
    ("queues: [a]", "1: queues: expected keys and values, got a list"),
    ("queues: {a: {ttl: 5x}}", "1: queues.a.ttl: '5x' is no duration; write for example 500ms, 30s, 5m or 1h30m"),
    ("queues: {a: {retry_delay: 1m..1s}}",
     "1: queues.a.retry_delay: '1m..1s' runs backwards; write the shorter duration first, as in 1s..1m"),
    ("queues: {a: {max_bytes: 5 apples}}",
     "1: queues.a.max_bytes: '5 apples' is no size; write for example 65536, 64KB, 10MB or 2GB"),
    ("queues: {a: {ack_timeout: 0}}", "1: queues.a.ack_timeout: must be above 0; leave it out for no timeout"),
    ("queues: {a: {max_bytes: 0}}", "1: queues.a.max_bytes: must be above 0; leave it out for no limit"),
    ("queues: {a: {delay: 8d}}", "1: queues.a.delay: is longer than max_delay"),
    ("queues: {a: {expires: 1h}}",
     "1: queues.a.expires: a queue of the configuration does not expire; take this key out"),
    ("queues: {a: {on_exhausted: park}}", "1: queues.a.on_exhausted: park holds a group; give the queue a group"),
    ("queues: {a: {group_in_flight: 2}}",
     "1: queues.a.group_in_flight: needs a group; a queue without one has no such limit"),
    ("queues: {a: {dedup: {key: sha256, scope: group}}}", "1: queues.a.dedup.scope: scope group needs a group"),
    ("queues: {a: {dedup: {key: sha256, window: 0}}}",
     "1: queues.a.dedup.window: must be above 0; leave dedup out to store every message"),
    ("queues: {a: {dead_letter: {exchange: x}}}", "1: queues.a.dead_letter: expected the name of a queue"),
    ("queues:\n  orders: {dead_letter: orders.ded}\n  orders.dead:",
     '2: queues.orders.dead_letter: no queue is named "orders.ded"; did you mean "orders.dead"?'),
    ("queues: {mqtt.x: }", "1: queues.mqtt.x: names that begin with mqtt. are reserved"),
    ("queues: {link.x: }", "1: queues.link.x: names that begin with link. are reserved"),
    ("queues: {amq.x: }", "1: queues.amq.x: names that begin with amq. are reserved"),
    ("queues: {none: }", "1: queues.none: none stands for no queue; choose another name"),
    ("queues: {'a+': }", "1: queues.a+: a queue's name has no wildcards"),
    ("queues: {' a': }", "1: queues. a: a queue's name is printable text without blanks at its ends"),
    ("queues: {a: {group: '{topc[1]}'}}",
     "1: queues.a.group: {topc[1]} is unknown; there are {topic}, {topic[n]}, {client_id}, {header[name]} and "
     "{body.path}"),
    ("queues: {a: {dedup: {key: '{body.x'}}}", "1: queues.a.dedup.key: '{body.x': a { without its }"),
    ("queues: {orders: }\nroutes:\n  - {from: 'shop/#', to: ordrs}",
     '3: routes[0].to: no queue is named "ordrs"; did you mean "orders"?'),
    ("queues: {orders: }\nroutes:\n  - from: 'shop/#'\n    to:\n      - orders\n      - nowhere-at-all",
     '4: routes[0].to: no queue is named "nowhere-at-all"; known queues: orders'),
    ("queues: {a: }\nroutes: [{from: 'x', to: []}]", "2: routes[0].to: names no queue"),
    ("queues: {a: }\nroutes: [{from: 'x'}]", '2: routes[0]: missing key "to"'),
    ("queues: {a: }\nroutes: [{to: a}]", '2: routes[0]: missing key "from"'),
    ("queues: {a: }\nroutes: [{from: 'x/y#', to: a}]",
     "2: routes[0].from: \"x/y#\" has a wildcard beside other characters in level 'y#'"),
    ("queues: {a: }\nroutes: [{from: '', to: a}]", '2: routes[0].from: "" is empty'),
    ("queues: {a: }\nroutes: [{from: '$queue/a', to: a}]",
     "2: routes[0].from: what is sent to $queue/ goes straight to that queue, past the routes"),
    ("transports: {web: {type: http}}\nqueues: {a: }\nroutes: [{from: x, to: a, source: wob}]",
     '3: routes[0].source: no transport is named "wob"; did you mean "web"?'),
    ("transports: {web: {type: http}}\nqueues: {a: }\nroutes: [{from: x, to: 'wib:y'}]",
     '3: routes[0].to: no link is named "wib"; did you mean "web"?'),
    ("transports: {web: {type: http}}\nqueues: {a: }\nroutes: [{from: x, to: 'web:y'}]",
     '3: routes[0].to: transport "web" of type http takes no messages from routes; a link does'),
    ("transports: {web: {type: http}}\nqueues: {'web:a': }",
     '2: queues.web:a: this name would mean a target of the link "web"'),
    ("transports:\n  web: {type: htp}", '2: transports.web.type: unknown transport type "htp"; did you mean "http"?'),
    ("transports: {web: {listen: 127.0.0.1:1}}", '1: transports.web: missing key "type"'),
    ("transports: {web: 5}", "1: transports.web: expected keys and values, as in {type: mqtt, listen: 127.0.0.1:1883}"),
    ("transports: {web: {type: http, lisen: 127.0.0.1:1}}",
     '1: transports.web.lisen: unknown key; did you mean "listen"?'),
    ("transports: {web: {type: http, listen: 127.0.0.1}}",
     "1: transports.web.listen: '127.0.0.1' is no address; write for example 127.0.0.1:1883, [::1]:1883 or :1883"),
    ("transports: {hook: {type: webhook, queue: a, url: 'http://x'}}\nqueues: {b: }",
     '1: transports.hook.queue: no queue is named "a"; known queues: b'),
    ("transports: {hook: {type: webhook, queue: a, url: 'ftp://x'}}\nqueues: {a: }",
     "1: transports.hook.url: expected an address such as https://shop.example/hook"),
    ("transports: {hook: {type: webhook, queue: a, url: 'http://x', in_flight: 0}}\nqueues: {a: }",
     "1: transports.hook.in_flight: expected a whole number >= 1 and <= 1000, got 0"),
    ("admin: {listen: 0.0.0.0:1}",
     "1: admin.listen: 0.0.0.0:1 can be reached from other machines and there are no users: add `users`, listen on "
     "127.0.0.1, or write `allow_anonymous: true` here"),
    ("transports:\n  web: {type: http, listen: ':1'}",
     "2: transports.web.listen: :1 can be reached from other machines and there are no users: add `users`, listen on "
     "127.0.0.1, or write `allow_anonymous: true` here"),
    ("users: {a: {password_hash: secret}}",
     "1: users.a.password_hash: is no argon2 hash; make one with `gateway hash-password`"),
    ("users: {a: {password: secret}}", '1: users.a.password: unknown key; did you mean "password_hash"?'),
    ("log: {level: loud}", '1: log.level: expected one of debug, info, warning, error, got "loud"'),
    ("drain_timeout: -1", "1: drain_timeout: -1 is no duration; write for example 500ms, 30s, 5m or 1h30m"),
    ("store: {memory: 'yes'}", '1: store.memory: expected true or false, got "yes"'),
    ("transports: {m: {type: mqtt, listen: 127.0.0.1:1883}, w: {type: http, listen: 127.0.0.1:1883}}",
     "1: transports.w.listen: 127.0.0.1:1883 is taken: transports.m listens on 127.0.0.1:1883"),
    ("transports:\n  m: {type: mqtt, listen: 127.0.0.1:8080}",
     "2: transports.m.listen: 127.0.0.1:8080 is taken: admin listens on 127.0.0.1:8080"),
    ("queues:\n  q:\n    group: '{topic[5]}'\nroutes: [{from: x/+, to: q}]",
     "3: queues.q.group: {topic[5]} needs a topic of 6 levels (topic[0] is the first), and x/+ has 2 levels, which "
     "routes[0] brings here"),
    ("queues:\n  q: {dedup: {key: 'a{topic[1]}'}}\nroutes: [{from: x/#, to: q}, {from: x, to: [dead-letters, q]}]",
     "2: queues.q.dedup.key: a{topic[1]} needs a topic of 2 levels (topic[0] is the first), and x has 1 level, which "
     "routes[1] brings here"),
    ("transports: {l: {type: mqtt-client, url: 'mqtt://x'}}\nroutes:\n  - {from: a/b, to: 'l:{topic[0]}/{topic[2]}'}",
     "3: routes[0].to: {topic[0]}/{topic[2]} needs a topic of 3 levels (topic[0] is the first), and a/b has 2 levels"),
    ("transports:\n  l: {type: mqtt-client, url: 'mqtt://x', outbox: {group: '{topic[7]}'}}\n"
     "routes: [{from: a/b, to: 'l:{topic}'}]",
     "2: transports.l.outbox.group: {topic[7]} needs a topic of 8 levels (topic[0] is the first), and a/b has 2 "
     "levels, which routes[0] brings here"),
    ("queues: {q: }\nroutes: [{from: a/#/b, to: q}]", '2: routes[0].from: "a/#/b" has # before its last level'),
    ("transports:\n  l: {type: mqtt-client, url: 'mqtt://x', subscribe: [a, a/#/b]}",
     "2: transports.l.subscribe[1]: 'a/#/b' has # before its last level"),
    ("queues: {q: {max_messages: 010}}",
     "1: queues.q.max_messages: 010 is octal to some and decimal to others; write 10, or 0x... for another base"),
    ("queues: {q: {max_bytes: '010'}}",
     "1: queues.q.max_bytes: 010 is octal to some and decimal to others; write 10, or 0x... for another base"),
    ("queues: {q: {ttl: -01}}",
     "1: queues.q.ttl: -01 is octal to some and decimal to others; write 1, or 0x... for another base"),
    ("transports: {l: {type: amqp-client, url: 'amqp://x', topology: {queues: {q: {arguments: {x-max: 010}}}}}}",
     "1: transports.l.topology.queues.q.arguments.x-max: 010 is octal to some and decimal to others; write 10, or "
     "0x... for another base"),
    ("queues: {q: {group: {topic}}}",
     '1: queues.q.group: expected text, got keys and values; a template is put in quotes, "{topic}"'),
    ("users: {a: {password_hash_file: \"a\\0b\"}}",
     "1: users.a.password_hash_file: a\\x00b cannot be read: is no path (embedded null byte)"),
    ("- a", "1: a configuration is a mapping of keys, as in `store: {path: ./data}`"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "fault"), FAULTS, ids=[fault for _, fault in FAULTS])
def test_fault_names_line_key_and_advice(faults, text, fault):
    assert f"gateway.yaml:{fault}" in faults(text)


def test_all_faults_are_told_at_once_in_the_order_of_the_file(faults):
    found = faults("""
quues: {}
queues:
  a: {ttl: x, group: 5}
  b: {max_deliveries: 0}
routes:
  - {from: "a/#", to: c}
drain_timeout: x
""")
    assert [line.split(":")[1] for line in found] == ["2", "4", "4", "5", "7", "8"]


def test_a_fault_hides_no_other(faults):
    found = faults("""
queues:
  a: {ttl: x, group: "{topc}", dead_letter: nope, on_exhausted: park}
  b: 5
  c: {max_bytes: 0, dedup: {window: x, key: "{"}}
routes:
  - {from: "a/#/b", to: nowhere, deliver_within: x}
  - {from: 5, to: nowhere}
  - 5
  - {from: "b#", to: a, surce: web}
  - {from: "c", to: c, source: wob, ack: stred}
  - {from: "d/#/e", to: b}
transports:
  web: {type: http, max_body: x, listen: 127.0.0.1:8080}
  hook: {type: webhook, queue: nope, url: "http://x", timeout: x}
""")
    places = [line.split(": ")[0].removeprefix("gateway.yaml:") + " " + line.split(": ")[1] for line in found]
    assert places == [
        "3 queues.a.ttl", "3 queues.a.dead_letter", "3 queues.a.group",
        "4 queues.b",
        "5 queues.c.dedup.window", "5 queues.c.dedup.key", "5 queues.c.max_bytes",
        "7 routes[0].deliver_within", "7 routes[0].from", "7 routes[0].to",
        "8 routes[1].from", "8 routes[1].to",
        "9 routes[2]",
        "10 routes[3].surce", "10 routes[3].from",
        "11 routes[4].ack", "11 routes[4].source",
        "12 routes[5].from",
        "14 transports.web.max_body", "14 transports.web.listen",
        "15 transports.hook.timeout", "15 transports.hook.queue",
    ]  # fmt: skip


def test_what_a_fault_leaves_unknown_is_not_held_against_its_neighbours(faults):
    """Each of these has one fault; what depends on the value that can't be read is not told besides."""
    for text in (
        "queues: {a: {group: 5, on_exhausted: park, group_in_flight: 2, dedup: {key: sha256, scope: group}}}",
        "queues: {a: {grup: x, on_exhausted: park}}",
        "queues: {a: {delay: 8d, max_delay: x}}",
        "queues: {a: {group: '{topic[5]}'}}\nroutes: [{from: 5, to: a}]",
        "queues: {a: {group: '{topic[5]}'}}\nroutes: [{from: x/+, to: [a, 5]}]",
        "admin: {listen: x}\ntransports: {web: {type: http, listen: 127.0.0.1:8080}}",
        "admin: {listen: ':9', allow_anonymous: x}",
        "users_file: [x]\nadmin: {listen: ':9'}",
        "users_file: nope\nadmin: {listen: ':9'}",
        "userz: {}\nadmin: {listen: ':9'}",
        "users: {a: {password_hash: 5}}\nadmin: {listen: ':9'}",
        "transports: {l: {type: mqtt-client, url: 5, tls: {ca: x}, password: y}}",
        "transports: {l: {type: mqtt-client, url: 'mqtt://x'}}\n"
        "routes: [{from: a/b, to: 'l:x', ack: delivered}, {from: 5, to: 'l:x'}]",
        "transports: {l: {type: mqtt-client, url: 'mqtt://x'}}\n"
        "routes: [{from: a/b, to: 'l:x', ack: delivred, deliver_within: 5s}]",
    ):
        assert len(faults(text)) == 1, text


def test_templates_with_a_default_or_where_some_topics_have_the_level(read):
    read("queues: {a: {group: '{topic[5]|x}'}}\nroutes: [{from: x/+, to: a}]")
    read("queues: {a: {group: '{topic[5]}'}}\nroutes: [{from: x/#, to: a}, {from: '#', to: a}]")
    read("queues: {a: {group: '{topic[1]}'}}\nroutes: [{from: x/+, to: a}]")
    read("queues: {a: {dedup: {key: '{topic[5]}', required: false}}}\nroutes: [{from: x/+, to: a}]")


def test_text_with_a_leading_zero_is_text_as_it_stands(read):
    assert read("queues: {a: {group: 010}}").queues["a"].group == "010"
    settings = read("transports: {l: {type: mqtt-client, url: 'mqtt://x', username: u, password: '${P}'}}", P="0123")
    assert settings.transports["l"].password == "0123"


def test_keys_that_begin_with_x_are_the_users_own(read, faults):
    settings = read("""
x-defaults: &defaults {max_deliveries: 3, retry_delay: 1s}
x-anything: [1, {a: ["${NOT_SET}"]}]
queues:
  a: {<<: *defaults, ttl: 5s}
  b: *defaults
""")
    assert [settings.queues[name].max_deliveries for name in "ab"] == [3, 3]
    assert faults("queues: {a: {x-own: 1}}")[0].startswith("gateway.yaml:1: queues.a.x-own: unknown key")
    assert faults("X-own: 1")[0].startswith("gateway.yaml:1: X-own: unknown key")


def test_a_queue_with_a_fault_is_still_one_that_a_route_may_name(faults):
    found = faults("queues: {a: {ttl: x}}\nroutes: [{from: x, to: a}]")
    assert len(found) == 1


def test_a_secret_is_never_shown(faults, tmp_path):
    found = faults("users: {a: {password_hash: hunter2}, b: {password_hash: 12345}}")
    assert len(found) == 2
    assert not any("hunter2" in line or "12345" in line for line in found)


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"])
def test_loopback_needs_no_users(read, listen):
    assert read(f"transports: {{web: {{type: http, listen: '{listen}'}}}}").users == {}


@pytest.mark.parametrize("listen", [":1", "0.0.0.0:1", "[::]:1", "192.168.0.1:1", "broker.example:1", "1"])
def test_beyond_loopback_needs_users_or_the_word(faults, read, listen):
    web = f"type: http, listen: '{listen}'"
    assert "there are no users" in faults(f"transports: {{web: {{{web}}}}}")[0]
    read(f"transports: {{web: {{{web}, allow_anonymous: true}}}}")
    read(f"transports: {{web: {{{web}}}}}\nusers: {{a: {{password_hash: '{HASH}'}}}}")


def test_an_empty_file_of_users_opens_nothing(faults, tmp_path):
    (tmp_path / "users").write_text("# nobody\n")
    assert "there are no users" in faults("users_file: users\nadmin: {listen: ':1'}")[0]


def test_users_file(read, faults, tmp_path):
    (tmp_path / "users").write_text(f"# people\n\nalice:{HASH}\n")
    assert read("users_file: users").users["alice"].password_hash == HASH
    (tmp_path / "users").write_text(f"alice:{HASH}\nbob:hunter2\n")
    found = faults(f"users_file: users\nusers: {{alice: {{password_hash: '{HASH}'}}}}")
    assert found == [
        "users:1: alice: user is defined twice",
        "users:2: bob: is no argon2 hash; make one with `gateway hash-password`",
    ]
    assert faults("users_file: nope") == ["gateway.yaml:1: users_file: nope cannot be read: No such file or directory"]


def test_secret_from_a_file(read, faults, tmp_path):
    (tmp_path / "hash").write_text(f"{HASH}\n")
    assert read("users: {a: {password_hash_file: hash}}").users["a"].password_hash == HASH
    assert faults("users: {a: {password_hash_file: nope}}") == [
        "gateway.yaml:1: users.a.password_hash_file: nope cannot be read: No such file or directory"
    ]
    assert faults(f"users: {{a: {{password_hash_file: hash, password_hash: '{HASH}'}}}}") == [
        "gateway.yaml:1: users.a.password_hash_file: give either password_hash or password_hash_file"
    ]


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(ConfigError, match=r"nope\.yaml: cannot be read: No such file"):
        load(tmp_path / "nope.yaml", {})
    (tmp_path / "bad.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(tmp_path / "bad.yaml", {})


def test_a_plugin_that_fails_to_import_stops_only_a_strict_check(tmp_path, monkeypatch):
    def broken(kind: str):
        raise plugins.PluginError(f'the plugin of transport type "{kind}" fails to import: ImportError: boom')

    monkeypatch.setattr(plugins, "load", broken)
    path = tmp_path / "gateway.yaml"
    path.write_text("transports:\n  web: {type: http, listen: 127.0.0.1:0}")
    with pytest.raises(ConfigError, match=r'gateway.yaml:2: transports.web.type: .*"http" fails to import: .*boom'):
        load(path, {}, strict=True)
    section = load(path, {}).transports["web"]
    path.write_text("transports: {web: {type: http, listen: ':1'}}")
    with pytest.raises(ConfigError, match="there are no users"):
        load(path, {})
    assert isinstance(section, plugins.Unloaded)
    assert section.section == {"type": "http", "listen": "127.0.0.1:0"}


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:1883", "127.0.0.1", 1883), ("[::1]:5", "::1", 5), (":80", "", 80), (80, "", 80), ("a.b:0", "a.b", 0)],
)
def test_address(text, host, port):
    address = Address.parse(text)
    assert (address.host, address.port) == (host, port)


HOSTS = ["", "0.0.0.0", "[::]", "127.0.0.1", "127.0.0.2", "[::1]", "localhost"]


# Whether `localhost` has an address of IPv6, too, is the machine's.
PAIRS = [pair for pair in itertools.product(HOSTS, HOSTS) if not ("localhost" in pair and "::" in "".join(pair))]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_addresses_clash_where_the_kernel_says_so(first, second):
    """Against real sockets, which are opened as the daemon opens its own."""
    held = web.listen("first", Address.parse(f"{first}:0"))
    port = held[0].getsockname()[1]
    try:
        for one in web.listen("second", Address.parse(f"{second}:{port}")):
            one.close()
        clashed = False
    except ListenError as error:
        if "in use" not in str(error):
            raise
        clashed = True
    finally:
        for one in held:
            one.close()
    assert Address.parse(f"{first}:{port}").clashes(Address.parse(f"{second}:{port}")) is clashed
    assert Address.parse(f"{second}:{port}").clashes(Address.parse(f"{first}:{port}")) is clashed


def test_addresses_of_names_and_of_free_ports():
    def clash(first: str, second: str) -> bool:
        return Address.parse(first).clashes(Address.parse(second))

    assert clash("broker.example:1", "Broker.example:1") and clash(":1", "broker.example:1")
    assert not clash("broker.example:1", "other.example:1") and not clash("127.0.0.1:1", "127.0.0.1:2")
    assert not clash("127.0.0.1:0", "127.0.0.1:0") and clash("[::1]:5", "[0:0:0:0:0:0:0:1]:5")


@pytest.mark.parametrize("text", ["", "a", "a:b", "a:70000", "::1:80", "a:-1", None, True, "a:\u0661"])
def test_no_address(text):
    with pytest.raises(ValueError, match="is no address"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("text", "circles"),
    [
        ("queues: {a: {dead_letter: a}}", ["1: queues.a.dead_letter: dead letters go round in a circle: a -> a."]),
        ("queues:\n  a: {dead_letter: b}\n  b: {dead_letter: c}\n  c: {dead_letter: a}\n  d: {dead_letter: c}\n  e:",
         ["2: queues.a.dead_letter: dead letters go round in a circle: a -> b -> c -> a."]),
        ("queues:\n  work: {dead_letter: wait}\n  wait: {dead_letter: work, ttl: 1m}\n  x: {dead_letter: x}",
         ["2: queues.work.dead_letter: dead letters go round in a circle: work -> wait -> work.",
          "4: queues.x.dead_letter: dead letters go round in a circle: x -> x."]),
        ("queues: {a: {dead_letter: b}, b: {dead_letter: c}, c: }", []),
    ],
)  # fmt: skip
def test_a_circle_of_dead_letters_is_a_warning(tmp_path: Path, text: str, circles: list[str]) -> None:
    """It is how a message is tried again later; what it drops must be known."""
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    warnings = Faults(str(path))
    load(path, {}, strict=True, warnings=warnings)
    assert [line.partition(" A message")[0] for line in warnings.lines()] == [f"{path}:{circle}" for circle in circles]
    assert all("is dropped, counted and logged" in line for line in warnings.lines())
    load(path, {}, strict=True)  # the daemon takes it


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "-1", "", "9" * 400 + "d", "1001y", "400000d"])
def test_a_duration_is_a_time_that_can_come(faults, value: str) -> None:
    (fault,) = faults(f"queues: {{a: {{ttl: '{value}'}}, b: {{delay: {value or '[]'}}}}}")[:1]
    assert "queues.a.ttl" in fault


@pytest.mark.parametrize("text", ["0", "0s", "0ms"])
def test_a_ttl_of_0_is_not_the_same_as_none(read, text: str) -> None:
    queues = read(f"queues: {{zero: {{ttl: {text}}}, missing: {{ttl: null}}}}").queues
    assert (queues["zero"].ttl, queues["missing"].ttl) == (0, None)


def test_a_size_is_what_was_written(read, faults) -> None:
    assert read("queues: {a: {max_bytes: '9007199254740993'}}").queues["a"].max_bytes == 9007199254740993
    assert "is no size" in faults(f"queues: {{a: {{max_bytes: '{'9' * 400}'}}}}")[0]


@pytest.mark.parametrize("text", ["\u0661s", "1\u0661s", "\uff11s"])
def test_digits_are_those_of_ascii(text):
    with pytest.raises(ValueError, match="no duration"):
        Seconds.parse(text)
    with pytest.raises(ValueError, match="no size"):
        Octets.parse(text.removesuffix("s") + "MB")


@pytest.mark.parametrize("kind", ["chain", "ring", "chain into a ring", "rings"])
def test_dead_letters_are_walked_over_once(kind):
    """However long a chain of them is; a walk from each queue would take minutes with thousands."""
    count = 1000
    targets = {place: place + 1 for place in range(count - 1)}
    if kind == "ring":
        targets[count - 1] = 0
    elif kind == "chain into a ring":
        targets[count - 1] = count // 2
    elif kind == "rings":
        targets = {place: place ^ 1 for place in range(count)}
    looked = 0

    class Counted(dict):
        def __getitem__(self, name):
            nonlocal looked
            looked += 1
            return super().__getitem__(name)

    queues = {
        f"q{place}": QueuePolicy(dead_letter=f"q{targets[place]}" if place in targets else "none")
        for place in range(count)
    }
    root, warnings = parse("{}", {}, Faults("f")), Faults("f")
    checks = Checks(Settings(queues=queues), root, Faults("f"), warnings, [])
    checks._check_cycles(Counted(queues))
    assert looked == count
    expected = {"chain": 0, "ring": 1, "chain into a ring": 1, "rings": count // 2}[kind]
    assert len(warnings.lines()) == expected


def test_names_of_which_many_are_unknown_are_suggested_for_the_first(faults):
    routes = "".join(f"  - {{from: a{place}, to: orders{place}x}}\n" for place in range(50))
    found = faults("queues: {orders1: {}}\nroutes:\n" + routes)
    assert len(found) == 50
    assert sum("did you mean" in fault or "known queues" in fault for fault in found) == SUGGESTIONS


@pytest.mark.parametrize("key", ["users: {ann: {password_hash_file: NAME}}", "users_file: NAME"])
def test_a_file_that_could_keep_its_reader_waiting_is_refused(faults, tmp_path, key):
    os.mkfifo(tmp_path / "pipe")
    (fault,) = faults(key.replace("NAME", "pipe"))
    assert "pipe cannot be read: it is no regular file" in fault
    (fault,) = faults(key.replace("NAME", "/dev/zero"))
    assert "/dev/zero cannot be read: it is no regular file" in fault
    (tmp_path / "huge").write_bytes(b"x" * (files.MAX_OCTETS + 1))
    (fault,) = faults(key.replace("NAME", "huge"))
    assert "huge cannot be read: it has more than" in fault


@pytest.mark.parametrize("text", ['log:\n  level: "\\UFFFFFFFF"\n', f"\n%YAML 1.{'9' * 5000}\n---\nlog: {{}}\n"])
def test_what_yaml_cannot_convert_is_a_fault_with_its_line(faults, text):
    (fault,) = faults(text)
    assert "gateway.yaml:2: no valid YAML" in fault
