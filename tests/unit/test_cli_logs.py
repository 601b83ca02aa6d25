"""Log lines: one JSON object a line or text, and nothing that was sent can forge one."""

from __future__ import annotations

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restore():
    root, ours = logging.getLogger(), logging.getLogger("gateway")
    before = (root.level, ours.level)
    yield
    root.handlers = [handler for handler in root.handlers if not hasattr(handler, "of_gateway")]
    root.setLevel(before[0])
    ours.setLevel(before[1])


def written(stream: io.StringIO, level: str = "info", format: str = "auto", **fields: object) -> list[str]:
    logs.setup(level, format, stream)
    logs.log.info("it happened", **fields)
    return stream.getvalue().splitlines()


def test_json_in_a_pipe_and_text_on_a_terminal():
    (line,) = written(io.StringIO(), transport="mqtt", seconds=1.5)
    record = json.loads(line)
    assert record.pop("time").endswith("Z")
    assert record == {"level": "info", "event": "it happened", "transport": "mqtt", "seconds": 1.5}
    (line,) = written(Terminal(), transport="mqtt", seconds=1.5)
    assert line.endswith("info    it happened transport=mqtt seconds=1.5")
    assert json.loads(written(Terminal(), format="json")[0])
    assert "it happened" in written(io.StringIO(), format="text")[0].split("  ")[-1]


def test_levels():
    assert written(io.StringIO(), level="warning") == []
    stream = io.StringIO()
    logs.setup("debug", "json", stream)
    logs.log.debug("a")
    logging.getLogger("httpx").info("a library talks")
    logging.getLogger("httpx").warning("a library warns of %s", "x")
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(event["event"], event.get("logger")) for event in events] == [
        ("a", None),
        ("a library warns of x", "httpx"),
    ]


def test_a_second_setup_replaces_the_first():
    first = io.StringIO()
    written(first)
    second = io.StringIO()
    written(second)
    assert len(first.getvalue().splitlines()) == len(second.getvalue().splitlines()) == 1


def test_a_fault_has_its_cause():
    stream = io.StringIO()
    logs.setup("info", "json", stream)
    try:
        raise RuntimeError("boom")
    except RuntimeError as error:
        logs.log.fault("failed", error, transport="x")
    record = json.loads(stream.getvalue())
    assert record["error"] == "RuntimeError: boom"
    assert "Traceback" in record["traceback"]


@given(st.text())
def test_what_a_client_sent_stays_on_its_line(text):
    (line,) = written(Terminal(), client_id=text)
    assert line.isprintable()
    (line,) = written(io.StringIO(), client_id=text)
    assert json.loads(line)["client_id"] == text
