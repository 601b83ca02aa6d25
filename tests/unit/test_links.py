"""Links as the core and the configuration know them: targets, outboxes, no loops, and how a source offers messages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.admin.explain import configured, explain
from gateway.config import links
from gateway.config.settings import load
from gateway.errors import ConfigError
from gateway.model.message import Message, Properties
from gateway.model.policy import QueuePolicy
from gateway.transport import Binding, Offer, Options, Outcome
from tests.harness.kernel import Kernel

STORED, REFUSED, UNROUTED, DUPLICATE = Outcome.STORED, Outcome.REFUSED, Outcome.UNROUTED, Outcome.DUPLICATE
DOCUMENT = Path(__file__).parents[2] / "docs" / "links.md"
PLANT = "plant: {type: mqtt-client, url: 'mqtt://plant.example'}"


@pytest.fixture
def read(tmp_path):
    def load_text(text: str, strict: bool = True):
        path = tmp_path / "gateway.yaml"
        path.write_text(text)
        return load(path, {}, strict)

    return load_text


@pytest.fixture
def faults(read, tmp_path):
    def find(text: str) -> list[str]:
        with pytest.raises(ConfigError) as error:
            read(text)
        return [line.removeprefix(f"{tmp_path}/") for line in str(error.value).splitlines()]

    return find


def kernel_with_link(policy: QueuePolicy | None = None, *targets: str) -> Kernel:
    kernel = Kernel({"link.plant": policy or QueuePolicy(), "q": QueuePolicy()})
    for target in targets:
        options = Options(target=target)
        kernel.core.bind(Binding(queue="link.plant", filter="a/#", owner="config", options=options, not_source="plant"))
    return kernel


def targets(kernel: Kernel) -> list[str | None]:
    worker = kernel.worker("link.plant")
    kernel.run()
    return [seen.options.target for seen in worker.seen]


# configuration


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"transports: {{{PLANT}}}\nroutes:\n  - {{from: x, to: 'plnt:y'}}",
         '3: routes[0].to: no link is named "plnt"; did you mean "plant"?'),
        (f"transports: {{{PLANT}}}\nroutes:\n  - {{from: x, to: plant}}",
         '3: routes[0].to: "plant" is a link; say where it sends, as in "plant:{topic}"'),
        (f"transports: {{{PLANT}}}\nroutes:\n  - {{from: x, to: 'plant:'}}",
         '3: routes[0].to: says no place at the link; write for example "plant:{topic}"'),
        (f"transports: {{{PLANT}}}\nroutes:\n  - {{from: x, to: 'plant:a/{{topik}}'}}",
         "3: routes[0].to: {topik} is unknown; there are {topic}, {topic[n]}, {client_id}, {header[name]} and "
         "{body.path}"),
        ("transports:\n  plant:\n    type: mqtt-client\n    url: mqtt://x\n    outbox:\n      dead_letter: graves",
         '6: transports.plant.outbox.dead_letter: no queue is named "graves"; known queues: dead-letters, none'),
        ("transports:\n  plant:\n    type: mqtt-client\n    url: mqtt://x\n    outbox:\n      max_message: 5",
         '6: transports.plant.outbox.max_message: unknown key; did you mean "max_messages"?'),
        ("transports:\n  plant:\n    type: mqtt-client\n    url: mqtt://x\n    unroutable: lost\nqueues: {last: }",
         '5: transports.plant.unroutable: no queue is named "lost"; did you mean "last"?'),
        ("transports:\n  plant:\n    type: mqtt-client\n    url: 'amqp://:secret@x'",
         "4: transports.plant.url: expected mqtt://, mqtts://, ws:// or wss:// and a host, as in mqtts://plant.example"),
        ("transports:\n  plant: {type: mqtt-client, url: 'mqtt://x', subscribe: ['a#']}",
         "2: transports.plant.subscribe[0]: 'a#' has a wildcard beside other characters in level 'a#'"),
        ("transports:\n  plant: {type: mqtt-client, url: 'mqtt://x', tls: {ca: x}}",
         "2: transports.plant.tls: the url says no TLS; write mqtts:// or wss://"),
        ("transports:\n  plant: {type: mqtt-client, url: 'mqtt://x', max_packet_size: 256MB}",
         "2: transports.plant.max_packet_size: must be from 1KB to below 256MB"),
        ("transports:\n  plant: {type: mqtt-client, url: 'mqtt://x', password: hunter2}",
         "2: transports.plant.password: needs a username"),
    ],
)  # fmt: skip
def test_faults_name_line_and_key(faults, text, fault):
    assert faults(text) == [f"gateway.yaml:{fault}"]


@pytest.mark.parametrize(
    ("routes", "fault"),
    [
        ("{from: x, to: [q, 'plant:x'], ack: delivered}",
         "3: routes[0].ack: delivered: needs one target, which is a link"),
        ("{from: x, to: q, ack: delivered}", "3: routes[0].ack: delivered: needs one target, which is a link"),
        ("{from: x, to: 'plant:x', ack: stored, deliver_within: 1s}",
         "3: routes[0].deliver_within: means something with `ack: delivered` only"),
        ("{from: x, to: 'plant:x', ack: sometime}", "3: routes[0].ack: expected one of stored, delivered"),
        ("{from: x, to: 'plant:x', ack: delivered, deliver_within: 0s}",
         "3: routes[0].deliver_within: must be above 0"),
        ("{from: 'a/+/c', to: 'plant:x', ack: delivered}\n  - {from: 'a/b/#', to: q}",
         "3: routes[0].ack: delivered: routes[1] takes some of these messages, too, and then they would be refused"),
        ("{from: 'a/b/#', to: q}\n  - {from: '#', to: 'plant:x', ack: delivered, source: plant}",
         None),
        ("{from: 'a', to: 'plant:x', ack: delivered}\n  - {from: 'a', to: 'plant:y', ack: delivered}",
         "4: routes[1].ack: delivered: routes[0] takes some of these messages, too, and then they would be refused"),
        ("{from: 'a/#', to: 'plant:x', ack: delivered}\n  - {from: 'a/#', to: q, source: plant}", None),
        ("{from: 'a/#', to: 'plant:x', ack: delivered}\n  - {from: 'b/#', to: q}", None),
    ],
)  # fmt: skip
def test_what_is_acknowledged_when_delivered_has_one_target(faults, read, routes, fault):
    text = f"transports: {{{PLANT}}}\nroutes:\n  - {routes}\nqueues: {{q: }}"
    if fault is None:
        read(text)
    else:
        assert fault in "\n".join(faults(text))


def test_a_link_has_no_colon_in_its_name(faults):
    assert "a link has no colon in its name" in faults("transports: {'a:b': {type: mqtt-client, url: 'mqtt://x'}}")[0]


def test_explain_tells_when_a_sender_is_answered(read):
    route = "{from: 'line/#', to: 'plant:up/{topic[1]}', ack: delivered, deliver_within: 5s}"
    core = configured(read(f"transports: {{{PLANT}}}\nqueues: {{q: }}\nroutes: [{route}]"))
    (step,) = explain(core, Message("line/7", b""))
    assert (step.queue, step.target, step.within, step.refused) == ("link.plant:delivered", "up/7", 5.0, None)
    (missing,) = explain(core, Message("line", b""))
    assert missing.refused == "{topic[1]} is missing"
    core.bind(Binding(queue="q", filter="line/+", owner="client"))
    both = explain(core, Message("line/7", b""))
    assert {step.refused for step in both} == {"what is acknowledged when it is delivered may be kept nowhere else"}


def test_qos_2_needs_a_link_without_a_session(faults, read):
    plant = "type: mqtt-client, url: 'mqtt://x', qos: 2"
    assert "needs a link of its own" in faults(f"transports: {{plant: {{{plant}, subscribe: ['#']}}}}")[0]
    read(f"transports: {{plant: {{{plant}}}}}")


def test_an_outbox_is_a_queue_with_defaults_of_its_own(read):
    settings = read(
        f"transports: {{{PLANT}, other: {{type: mqtt-client, url: 'ws://x', outbox: {{max_messages: 5, group: }}}}}}"
    )
    found = links.policies(settings)
    beside = {name: found.pop(name) for name in list(found) if name.endswith(":delivered")}
    assert list(beside) == ["link.plant:delivered", "link.other:delivered"]
    assert not any(policy.durable for policy in beside.values())
    assert found == {
        "link.plant": QueuePolicy(group="{topic}", retry_delay=(1.0, 60.0)),  # type: ignore[arg-type]
        "link.other": QueuePolicy(group=None, max_messages=5, retry_delay=(1.0, 60.0)),  # type: ignore[arg-type]
    }
    assert {type(policy) for policy in found.values()} == {QueuePolicy}


def test_a_queue_whose_name_looks_like_a_target_is_that_queue(read):
    settings = read("queues: {'a:b': }\nroutes: [{from: x, to: 'a:b'}]")
    assert links.bindings(settings) == [Binding(queue="a:b", filter="x", owner="config")]


def test_explain_tells_where_a_link_sends(read):
    core = configured(
        read(
            f"transports: {{{PLANT}}}\nqueues: {{q: }}\nroutes: [{{from: 'line/#', to: [q, 'plant:up/{{topic[1]}}']}}]"
        )
    )
    steps = explain(core, Message("line/7", b""))
    assert [(step.queue, step.target, step.group) for step in steps] == [
        ("q", None, None),
        ("link.plant", "up/7", "line/7"),
    ]
    (_, missing) = explain(core, Message("line", b""))
    assert missing.invalid == "{topic[1]} is missing"
    assert [step.queue for step in explain(core, Message("line/7", b"", source="plant"))] == ["q"]


# targets


def test_a_target_is_rendered_for_each_message() -> None:
    kernel = kernel_with_link(None, "up/{topic[1]}")
    kernel.accept(Message("a/1", b""), Message("a/2", b""))
    assert targets(kernel) == ["up/1", "up/2"]


def test_two_templates_of_one_text_are_one_entry() -> None:
    kernel = kernel_with_link(None, "up/{topic[1]}", "up/1", "other")
    kernel.accept(Message("a/1", b""))
    assert sorted(map(str, targets(kernel))) == ["other", "up/1"]


def test_a_target_survives_a_crash() -> None:
    kernel = kernel_with_link(None, "up/{topic[1]}")
    kernel.accept(Message("a/1", b""))
    kernel.run()
    kernel = kernel.crash()
    assert targets(kernel) == ["up/1"]


def test_a_message_without_a_target_is_a_dead_letter() -> None:
    kernel = kernel_with_link(None, "up/{header[site]}")
    answer = kernel.accept(Message("a/1", b"1"), Message("a/1", b"2", properties=Properties(headers=(("site", "x"),))))
    assert targets(kernel) == ["up/x"]
    assert answer.outcomes == [STORED, STORED]
    assert kernel.content("dead-letters") == ["1"]


def test_nothing_goes_back_over_the_link_it_came_by() -> None:
    kernel = kernel_with_link(None, "{topic}")
    answer = kernel.accept(Message("a/1", b"", source="plant"), Message("a/2", b"", source="other"))
    assert targets(kernel) == ["a/2"]
    assert answer.outcomes == [UNROUTED, STORED]


# offers


def test_behind_a_refused_message_all_are_refused() -> None:
    kernel = Kernel({"full": QueuePolicy(max_messages=1), "free": QueuePolicy()}, [("a", "full"), ("b", "free")])
    batch = (Message("a", b"1"), Message("a", b"2"), Message("b", b"3"))
    offered = kernel.accept(*batch, offer=Offer(in_order=True))
    kernel.run()
    assert offered.outcomes == [STORED, REFUSED, REFUSED]
    assert kernel.content("free") == []
    plain = kernel.accept(*batch[1:])
    kernel.run()
    assert plain.outcomes == [REFUSED, STORED]


def test_a_refused_message_of_qos_0_holds_up_nothing_if_its_source_drops_it() -> None:
    kernel = Kernel({"full": QueuePolicy(max_messages=1), "free": QueuePolicy()}, [("a", "full"), ("b", "free")])
    batch = (Message("a", b"1"), Message("a", b"2", qos=0), Message("b", b"3"))
    dropping = kernel.accept(*batch, offer=Offer(in_order=True, drops_qos0=True))
    keeping = kernel.accept(*batch[1:], offer=Offer(in_order=True))
    kernel.run()
    assert dropping.outcomes == [STORED, REFUSED, STORED]
    assert keeping.outcomes == [REFUSED, REFUSED]


def test_what_no_route_takes_is_kept_as_it_is_and_stays_unrouted() -> None:
    kernel = Kernel({"lost": QueuePolicy(max_messages=1), "q": QueuePolicy()}, [("b", "q")])
    answer = kernel.accept(Message("a/1", b"1"), Message("b", b"2"), offer=Offer(in_order=True, unroutable="lost"))
    kernel.run()
    assert answer.outcomes == [UNROUTED, STORED]
    worker = kernel.worker("lost")
    kernel.run()
    assert [(seen.message.topic, seen.message.exchange) for seen in worker.seen] == [("a/1", "amq.topic")]
    full = kernel.accept(Message("a/2", b"3"), offer=Offer(in_order=True, unroutable="lost"))
    gone = kernel.accept(Message("a/2", b"3"), offer=Offer(in_order=True, unroutable="no such queue"))
    plain = kernel.accept(Message("a/2", b"3"))
    kernel.run()
    assert (full.outcomes, gone.outcomes, plain.outcomes) == ([REFUSED], [UNROUTED], [UNROUTED])


def test_an_offer_is_decided_again_after_a_failed_commit() -> None:
    kernel = Kernel({"q": QueuePolicy(max_messages=1)}, [("a", "q")])
    first = kernel.accept(Message("a", b"1"), offer=Offer(in_order=True))
    assert kernel.begin() is not None
    second = kernel.accept(Message("a", b"2"), Message("a", b"3"), offer=Offer(in_order=True))
    kernel.fail()
    kernel.run()
    assert (first.outcomes, second.outcomes) == ([REFUSED], [STORED, REFUSED])
    assert kernel.content("q") == ["2"]


# the document


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL))
def test_what_the_document_says_to_paste_is_a_configuration(tmp_path, text):
    for name in ("plant", "rabbit"):
        (tmp_path / f"{name}.password").write_text("secret")
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    settings = load(path, {"CLOUD_PASSWORD": "secret"}, True)
    assert links.policies(settings).keys() >= {"link." + name for name in settings.transports}


# a reload


def test_a_link_that_goes_on_keeps_its_outbox(read):
    before = read(f"transports: {{{PLANT}}}")
    after = read("transports: {other: {type: mqtt-client, url: 'mqtt://x', outbox: {max_messages: 1}}}")
    found = links.policies(after, before.transports)
    assert list(found) == ["link.plant", "link.other", "link.plant:delivered", "link.other:delivered"]
    changed = read("transports: {plant: {type: mqtt-client, url: 'mqtt://x', outbox: {max_messages: 5}}}")
    assert links.policies(changed, before.transports)["link.plant"].max_messages == 5
    assert links.waiting_for_restart(after, before.transports) == [
        "link plant: goes on until a restart, with its outbox",
        "link other: starts with a restart; what is sent there waits in its outbox",
    ]
    assert links.waiting_for_restart(changed, before.transports) == []
