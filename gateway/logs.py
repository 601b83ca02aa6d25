"""Owns what a log line looks like: text on a terminal, one JSON object a line otherwise, on stderr.

Its rule: an event is a few fixed words, everything that varies is a field, and no field ever holds a message's body
or a secret.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import Any, Literal, TextIO

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Log:
    """Says events: `log.info("listening", transport="mqtt", address="mqtt://127.0.0.1:1883")`."""

    __slots__ = ("_logger",)

    def __init__(self, name: str = "gateway") -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: Any) -> None:
        self._say(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._say(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._say(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._say(logging.ERROR, event, fields)

    def fault(self, event: str, error: BaseException, **fields: Any) -> None:
        """An exception that should not have been: an error with its traceback."""
        fields["error"] = f"{type(error).__name__}: {error}"
        fields["traceback"] = "".join(traceback.format_exception(error))
        self._say(logging.ERROR, event, fields)

    def _say(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", event, extra={"fields": fields})


log = Log()


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _stamp(record), "level": record.levelname.lower(), "event": record.getMessage()}
        if record.name != "gateway":
            line["logger"] = record.name
        line |= _fields(record)
        return json.dumps(line, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        trace = fields.pop("traceback", "")
        pairs = "".join(f" {key}={_quoted(value)}" for key, value in fields.items())
        line = f"{_stamp(record)} {record.levelname.lower():7} {printable(record.getMessage())}{pairs}"
        return f"{line}\n{trace.rstrip()}" if trace else line


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = dict(getattr(record, "fields", {}))
    if record.exc_info and record.exc_info[1] is not None:  # from a library that logs its own way
        fields["error"] = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
    return fields


def _stamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def printable(text: str) -> str:
    """What a client calls itself, or sends, must not be able to forge a line or steer the terminal."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _quoted(value: Any) -> str:
    text = printable(str(value))
    return text if text and " " not in text and '"' not in text else json.dumps(text, ensure_ascii=False)


def setup(level: str = "info", format: Literal["auto", "text", "json"] = "auto", stream: TextIO | None = None) -> None:
    """Sends all of the process's logging there; a second call replaces the first. `auto` is text on a terminal."""
    stream = stream or sys.stderr
    text = format == "text" or (format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Text() if text else _Json())
    root = logging.getLogger()
    for old in list(root.handlers):
        if getattr(old, "of_gateway", False):
            root.removeHandler(old)
    # A mark of ours, which logging.Handler does not declare.
    handler.of_gateway = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    # Libraries speak only when something is wrong.
    root.setLevel(logging.WARNING)
    logging.getLogger("gateway").setLevel(_LEVELS[level])
