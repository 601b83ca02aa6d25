"""Owns templates: how a text such as `{topic[1]}` gets its value from a message (ruling 10).

Its rule: a template has a text of at most 1 KiB for a message, or it says why not; it never raises for one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from gateway.model.message import DEFAULT_EXCHANGE, Message

MAX_VALUE_BYTES = 1024
MAX_KNOWN_TOPICS = 10_000
_UNREAD: Any = object()
_decode = msgspec.json.Decoder().decode


class MissingValueError(Exception):
    """A template has no value for this message; the text says which part and why."""


class Fields(msgspec.Struct, gc=False):
    """One message, as templates look at it; topic and body are taken apart at most once."""

    message: Message
    _levels: list[str] | None = None
    _body: Any = _UNREAD

    @property
    def levels(self) -> list[str]:
        if self._levels is None:
            # What was sent straight to a queue has no topic (ruling 10).
            self._levels = [] if self.message.exchange == DEFAULT_EXCHANGE else self.message.topic.split("/")
        return self._levels

    @property
    def body(self) -> Any:
        """The body as JSON; None if it is none."""
        if self._body is _UNREAD:
            try:
                self._body = _decode(self.message.body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._body = None
        return self._body


def _text(value: Any) -> str | None:
    """A scalar as the text by which values are compared; None for anything else."""
    if isinstance(value, str):
        return value
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, int):
        # Python refuses to print huge integers; 1 KiB is the limit anyway.
        return str(value) if value.bit_length() < 3000 else None
    if isinstance(value, float):
        return repr(value)
    return None


def _variable(name: str) -> Callable[[Fields], Any]:
    """How to get a variable's raw value; raises ValueError for a name that is none."""
    if name == "topic":
        return lambda fields: fields.message.topic if fields.message.exchange != DEFAULT_EXCHANGE else None
    if name == "client_id":
        return lambda fields: fields.message.client_id or None
    if name.startswith("topic[") and name.endswith("]"):
        number = name[6:-1]
        if not number.isascii() or not number.isdigit() or len(number) > 9:
            raise ValueError(f"{{{name}}}: a topic level is a number from 0, as in {{topic[1]}}")
        place = int(number)
        return lambda fields: fields.levels[place] if place < len(fields.levels) else None
    if name.startswith("header[") and name.endswith("]") and len(name) > 8:
        header = name[7:-1]
        return lambda fields: fields.message.header(header)
    if name.startswith("body."):
        path = name[5:].split(".")
        if not all(path):
            raise ValueError(f"{{{name}}}: an empty name in the path, write for example {{body.order.id}}")
        if len(path) == 1:
            key = path[0]

            def first(fields: Fields) -> Any:
                body = fields._body
                if body is _UNREAD:
                    body = fields.body
                return body.get(key) if isinstance(body, dict) else None

            return first

        def deep(fields: Fields) -> Any:
            value = fields.body
            for step in path:
                if isinstance(value, dict):
                    value = value.get(step)
                elif isinstance(value, list) and step.isascii() and step.isdigit() and int(step) < len(value):
                    value = value[int(step)]
                else:
                    return None
            return value

        return deep
    raise ValueError(
        f"{{{name}}} is unknown; there are {{topic}}, {{topic[n]}}, {{client_id}}, {{header[name]}} and {{body.path}}"
    )


class Template:
    """Text with `{variables}`; `{x|literal}` gives a default. `{{` and `}}` stand for braces.

    Raises ValueError, for a text that is no template, saying what is wrong.
    """

    __slots__ = ("_parts", "render", "text")

    render: Callable[[Fields], str]
    """Raises MissingValueError where a variable has no value and no default, or the text is above 1 KiB."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts: list[str | tuple[str, Callable[[Fields], Any], str | None]] = []
        literal = ""
        place = 0
        while place < len(text):
            char = text[place]
            if text[place : place + 2] in ("{{", "}}"):
                literal += char
                place += 2
            elif char == "{":
                end = text.find("}", place)
                if end < 0:
                    raise ValueError(f"{text!r}: a {{ without its }}")
                if literal:
                    self._parts.append(literal)
                    literal = ""
                name, bar, default = text[place + 1 : end].partition("|")
                self._parts.append((name, _variable(name.strip()), default if bar else None))
                place = end + 1
            elif char == "}":
                raise ValueError(f"{text!r}: a }} without its {{; write }}}} for a brace")
            else:
                literal += char
                place += 1
        if literal or not self._parts:
            self._parts.append(literal)
        only = self._parts[0]
        names = [part[0].strip() for part in self._parts if not isinstance(part, str)]
        if all(name == "topic" or name.startswith("topic[") for name in names):
            self.render = self._remembering({})
        elif len(self._parts) == 1 and not isinstance(only, str):
            self.render = self._plain(only[1])
        else:
            self.render = self._render

    @property
    def least_levels(self) -> int:
        """How many levels a topic must have for each `{topic[n]}` without a default to have a value."""
        numbers = [part[0].strip() for part in self._parts if not isinstance(part, str) and part[2] is None]
        return max((int(name[6:-1]) + 1 for name in numbers if name.startswith("topic[")), default=0)

    @property
    def is_constant(self) -> bool:
        """It asks for nothing of the message."""
        return all(isinstance(part, str) for part in self._parts)

    def find(self, fields: Fields) -> str | None:
        """As `render`; None where a variable without a default is not there at all."""
        for part in self._parts:
            if not isinstance(part, str) and part[2] is None and part[1](fields) is None:
                return None
        return self.render(fields)

    def _remembering(self, known: dict[str, str]) -> Callable[[Fields], str]:
        """Of the topic alone: the same topics come again and again."""

        def render(fields: Fields) -> str:
            message = fields.message
            if message.exchange == DEFAULT_EXCHANGE:
                return self._render(fields)
            text = known.get(message.topic)
            if text is None:
                text = self._render(fields)
                if len(known) >= MAX_KNOWN_TOPICS:
                    known.clear()
                known[message.topic] = text
            return text

        return render

    def _plain(self, get: Callable[[Fields], Any]) -> Callable[[Fields], str]:
        """One variable alone: its text is mostly taken as it is."""

        def render(fields: Fields) -> str:
            value = get(fields)
            return value if type(value) is str and len(value) <= 256 else self._render(fields)

        return render

    def _render(self, fields: Fields) -> str:
        if len(self._parts) == 1:
            text = self._render_part(self._parts[0], fields)
        else:
            text = "".join([self._render_part(part, fields) for part in self._parts])
        if len(text) > 256 and len(text.encode("utf-8", "surrogatepass")) > MAX_VALUE_BYTES:
            raise MissingValueError(f"{self.text} is longer than {MAX_VALUE_BYTES} bytes")
        return text

    def _render_part(self, part: str | tuple[str, Callable[[Fields], Any], str | None], fields: Fields) -> str:
        if isinstance(part, str):
            return part
        name, get, default = part
        value = get(fields)
        text = value if type(value) is str else _text(value)
        if text is not None:
            return text
        if default is not None:
            return default
        missing = "is missing" if value is None else "is no text, number or boolean"
        raise MissingValueError(f"{{{name}}} {missing}")
