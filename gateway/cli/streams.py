"""Owns the standard streams of the command line: what becomes of one that is closed, full, or not UTF-8.

Its rule: what was not written is never taken for written. A write that fails raises StreamError, so that nothing is
done which relies on it; what standard error can't take is dropped, for there is no other place to tell it.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from gateway.errors import StreamError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

NO_OUTPUT = "there is no standard output, it is closed; redirect it to a file, or to /dev/null"


class _Output(io.FileIO):
    """Standard output. missing: the process was started without one."""

    def __init__(self, fd: int, missing: bool) -> None:
        super().__init__(fd, "wb", closefd=False)
        self.missing = missing

    def write(self, octets: ReadableBuffer, /) -> int:
        try:
            return super().write(octets)
        except BrokenPipeError:
            raise  # the reader has had enough, which is no fault
        except OSError as error:
            why = NO_OUTPUT if self.missing else f"standard output can't be written: {error.strerror or error}"
            raise StreamError(why) from error


class _ErrorOutput(io.FileIO):
    """Standard error."""

    def write(self, octets: ReadableBuffer, /) -> int:
        try:
            return super().write(octets)
        except OSError:
            return memoryview(octets).nbytes


class _NoInput(io.FileIO):
    """Stands for a standard input that the process was started without."""

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        raise StreamError("there is no standard input, it is closed")

    def readall(self) -> bytes:
        raise StreamError("there is no standard input, it is closed")


def prepare() -> None:
    """Call it before anything is read, written or opened. A descriptor that is closed is taken, so that no file or
    socket gets its number and is written to by mistake. Streams that somebody else has put in place are left alone."""
    if sys.stdin is None:
        fd = os.open(os.devnull, os.O_WRONLY)
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_NoInput(fd, "rb", closefd=False)), encoding="utf-8")
    if sys.stdout is sys.__stdout__:
        fd = os.open(os.devnull, os.O_RDONLY) if sys.stdout is None else sys.stdout.fileno()
        sys.stdout = _text(_Output(fd, missing=sys.stdout is None), sys.stdout)
    if sys.stderr is sys.__stderr__:
        fd = os.open(os.devnull, os.O_WRONLY) if sys.stderr is None else sys.stderr.fileno()
        sys.stderr = _text(_ErrorOutput(fd, "wb", closefd=False), sys.stderr)


def must_have_output() -> None:
    """Raises StreamError where there is no standard output at all: a command that can't answer does nothing."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Output) and raw.missing:
        raise StreamError(NO_OUTPUT)


def discard_output() -> None:
    """Drops what is not written yet, and all that is written from now on."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


def _text(raw: io.FileIO, before: object) -> io.TextIOWrapper:
    """As Python makes it for this process, but that a character which the encoding lacks is escaped."""
    encoding, is_buffered = "utf-8", True
    if isinstance(before, io.TextIOWrapper):
        before.flush()
        encoding, is_buffered = before.encoding, not (before.line_buffering or before.write_through)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=not is_buffered
    )
