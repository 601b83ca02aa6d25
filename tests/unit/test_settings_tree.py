"""Every value of a configuration, in every place, may fail to resolve: it is told with its place, and nothing else is.

The tree is made from the settings types, so a new setting is in it by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest
import trustme
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.address import Address
from gateway.auth.scram import make_verifier
from gateway.auth.users import hash_password
from gateway.config.document import Faults
from gateway.config.settings import Route as RouteSettings
from gateway.config.settings import Settings, TransportSettings, UserSettings, load
from gateway.errors import ConfigError
from gateway.model.policy import ExchangeTarget, Octets, QueuePolicy, Seconds, SecondsRange
from gateway.transport import registry as plugins

HASH, VERIFIER = hash_password("secret"), str(make_verifier("secret"))
Place = tuple[str | int, ...]

# What no type says: names that must be there, values that must fit together.
URLS = {
    "mqtt-client": "mqtts://remote.example",
    "amqp-client": "amqps://remote.example",
    "webhook": "https://x.example",
}
LEFT_OUT = {"expires", "users_file", "proxy_protocol"}
SAMPLES: dict[str, Any] = {
    "dead_letter": "dead-letters", "queue": "main", "unroutable": "main", "source": "mqtt", "from": "a/+/c",
    "to": "main", "ack": "stored", "deliver_within": None, "scope": "group", "group": "{topic[1]}", "key": "{body.id}",
    "password_hash": HASH, "scram": VERIFIER, "username": "u", "password": "p", "consume": ["q"],
    "subscribe": ["a/#"], "vhosts": ["blue"], "client_id": "c", "max_bytes": "1MB", "level": "info",
    "max_delay": "7d", "delay": "1s", "server_reference": "", "memory": True, "qos": 1, "exchange": "e",
    "ca": "ca.pem", "client_ca": "ca.pem", "to_exchange": None, "origins": ["https://app.example"],
    "trusted_proxies": ["192.0.2.0/24"], "path": "/mqtt",
}  # fmt: skip


class Ports:
    def __init__(self) -> None:
        self.port = 20_000

    def next(self) -> str:
        self.port += 1
        return f"127.0.0.1:{self.port}"


def sample(kind: Any, name: str, ports: Ports) -> Any:
    """A value of that type, as it is written."""
    if kind is Any:
        return "any"
    if name in SAMPLES and not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return SAMPLES[name]
    if get_origin(kind) is Literal:
        return get_args(kind)[0]
    if get_origin(kind) is dict:
        return {"one": sample(get_args(kind)[1], "", ports)}
    if get_origin(kind) in (list, tuple):
        return [sample(get_args(kind)[0], "", ports)]
    if hasattr(kind, "__metadata__"):
        least = [note.ge for note in kind.__metadata__ if getattr(note, "ge", None)]
        inner = get_args(kind)[0]
        return least[0] if least and inner is int else sample(inner, name, ports)
    if get_origin(kind) is not None or str(type(kind)) == "<class 'types.UnionType'>":
        return sample(
            next(member for member in get_args(kind) if member not in (type(None), ExchangeTarget)), name, ports
        )
    if issubclass(kind, msgspec.Struct):
        return section(kind, ports)
    return {bool: False, int: 1, float: 1.0, str: "text", Seconds: "10s", SecondsRange: "1s..1m", Octets: "64MB"}.get(
        kind
    ) or (ports.next() if kind is Address else False)


def section(kind: type[msgspec.Struct], ports: Ports) -> dict[str, Any]:
    made = {}
    for field in msgspec.structs.fields(kind):
        if field.encode_name in LEFT_OUT:
            continue
        value = sample(field.type, field.encode_name, ports)
        if value is not None:
            made[field.encode_name] = value
    return made


def whole() -> dict[str, Any]:
    """A valid configuration that says every setting there is, of every transport."""
    ports = Ports()
    made: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        if field.encode_name in LEFT_OUT or field.type == dict[str, TransportSettings]:
            continue
        made[field.encode_name] = sample(field.type, field.encode_name, ports)
    made["transports"] = {}
    for kind in sorted(plugins.installed()):
        found = section(plugins.load(kind).Settings, ports) | {"type": kind}
        if kind in URLS:
            found["url"] = URLS[kind]
        if "tls" in found:
            found["tls"] |= {"cert": "cert.pem", "key": "cert.key"}
        found.pop("outbox", None)
        if plugins.is_link(kind):
            found["outbox"] = section(QueuePolicy, ports)
            found["outbox"].pop("max_priority")
        made["transports"][kind] = found
    made["transports"]["amqp"]["frame_max"] = "1MB"
    made["transports"]["amqp"]["max_unfinished"] = "128MB"
    made["transports"]["mqtt-client"]["version"] = 5
    made["queues"] = {"main": section(QueuePolicy, ports), "other": section(QueuePolicy, ports)}
    for policy in made["queues"].values():
        policy.pop("max_priority")
    made["queues"]["plain"] = {"max_priority": 5, "delay": "1s", "max_delay": "1h"}
    made["users"] = {"alice": section(UserSettings, ports)}
    made["routes"] = [
        section(RouteSettings, ports),
        {"from": "a/#", "to": ["main", "other", "mqtt-client:x/{topic}"]},
        {"from": "d/+", "source": "http", "to": "amqp-client:e/{topic[1]}", "ack": "delivered", "deliver_within": "5s"},
    ]
    return made


WHOLE = whole()


def leaves(value: Any, place: Place = ()) -> Iterator[Place]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*place, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from leaves(item, (*place, number))
    else:
        yield place


def nodes(value: Any, place: Place = ()) -> Iterator[Place]:
    if place:
        yield place
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from nodes(item, (*place, key))


LEAVES, NODES = list(leaves(WHOLE)), list(nodes(WHOLE))


def put(value: Any, place: Place, new: Any) -> bool:
    """False if that place is gone."""
    for key in place[:-1]:
        try:
            value = value[key]
        except (LookupError, TypeError):
            return False
    if not isinstance(value, (dict, list)):
        return False
    value[place[-1]] = new
    return True


def name(place: Place) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


@pytest.fixture(scope="module", autouse=True)
def transports() -> Iterator[None]:
    """What is installed is looked up once for all configurations: it takes longer than all the rest."""
    found = {kind: plugins.load(kind) for kind in plugins.installed()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "load", lambda kind: found[kind] if kind in found else load_plugin(kind))
        yield


load_plugin = plugins.load


def check(folder: Path, value: Any, environ: dict[str, str]) -> tuple[str, list[str]]:
    """The text, and its faults without their file."""
    path = folder / "gateway.yaml"
    text = yaml.safe_dump(value, sort_keys=False, width=10_000)
    path.write_text(text)
    try:
        load(path, environ, strict=True, warnings=Faults(str(path)))
    except ConfigError as error:
        lines = str(error).splitlines()
        assert all(line.startswith(f"{path}:") for line in lines), lines
        return text, [line.removeprefix(f"{path}:") for line in lines]
    return text, []


@pytest.fixture(scope="module")
def certificates() -> dict[str, bytes]:
    authority = trustme.CA()
    made = authority.issue_cert("localhost")
    return {
        "cert.pem": made.cert_chain_pems[0].bytes(),
        "cert.key": made.private_key_pem.bytes(),
        "ca.pem": authority.cert_pem.bytes(),
    }


@pytest.fixture(autouse=True)
def files(certificates: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tree names is there."""
    monkeypatch.chdir(tmp_path)
    for name, octets in certificates.items():
        (tmp_path / name).write_bytes(octets)


def test_the_tree_is_a_valid_configuration(tmp_path):
    assert check(tmp_path, WHOLE, {})[1] == []


def test_the_tree_has_every_setting():
    said = {place[-1] for place in NODES}
    for kind in (Settings, QueuePolicy, RouteSettings, UserSettings):
        missing = {field.encode_name for field in msgspec.structs.fields(kind)} - said - LEFT_OUT
        assert not missing, missing


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(NODES), min_size=1, max_size=5, unique=True))
def test_what_is_not_set_is_told_with_its_place_and_nothing_else_is(tmp_path, places):
    value = copy.deepcopy(WHOLE)
    done = []
    for number, place in enumerate(places):
        if put(value, place, f"${{UNSET_{number}}}"):
            done.append((number, place))
    text, faults = check(tmp_path, value, {})
    # One that was put above another took it away.
    lines = {
        number: at for at, line in enumerate(text.splitlines(), 1) for number, _ in done if f"UNSET_{number}}}" in line
    }
    wanted = {
        f"{lines[number]}: {name(place)}: environment variable UNSET_{number} is not set; set it or write "
        f"${{UNSET_{number}:-default}}"
        for number, place in done
        if number in lines
    }
    assert set(faults) == wanted


@pytest.mark.parametrize("place", LEAVES, ids=name)
def test_each_value_alone_may_be_not_set(tmp_path, place):
    value = copy.deepcopy(WHOLE)
    put(value, place, "${UNSET}")
    _, faults = check(tmp_path, value, {})
    assert len(faults) == 1
    assert f": {name(place)}: environment variable UNSET is not set" in faults[0]


ODD = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
    | st.sampled_from(["", "010", "\0", "$argon2id$v=x$m=1", "SCRAM-SHA-256$1:a$b:c", "http://[", "mqtt://[x", "a:b",
                       "{topic[99]}", "{", "a/#/b", "$queue/x", "1..", "..", "1e999", "9" * 5000, "${", "$${", "\x85"])
    | st.just([]) | st.just({}) | st.just({"a": 1}) | st.just([1, [2]])
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(NODES), ODD, st.booleans()), min_size=1, max_size=4))
def test_whatever_stands_there_is_read_or_refused(tmp_path, changes):
    """Never a traceback; a value of the environment or of a file beside the configuration may be anything, too."""
    value = copy.deepcopy(WHOLE)
    environ = {}
    for number, (place, odd, by_variable) in enumerate(changes):
        if by_variable and isinstance(odd, str) and "\0" not in odd:
            environ[f"V{number}"] = odd
            odd = f"${{V{number}}}"
        put(value, place, odd)
    check(tmp_path, value, environ)


@pytest.mark.parametrize("octets", [b"", b"\xff", b"\n\n", b"x" * 5000, None], ids=repr)
@pytest.mark.parametrize(
    "place", [place for place in LEAVES if place[-1] in ("password_hash", "scram", "password", "url", "group")],
    ids=name,
)  # fmt: skip
def test_what_a_file_holds_may_be_anything(tmp_path, place, octets):
    value = copy.deepcopy(WHOLE)
    parent: Any = value
    for key in place[:-1]:
        parent = parent[key]
    del parent[place[-1]]
    parent[f"{place[-1]}_file"] = "secret"
    if octets is not None:
        (tmp_path / "secret").write_bytes(octets)
    _, faults = check(tmp_path, value, {})
    if octets in (b"\xff", None):
        told = [fault for fault in faults if f"{name(place)}_file: " in fault]
        assert len(told) == len(faults) == 1, faults
