"""Owns the sampler: a program that runs the daemon's command in its own process and, between two signals, counts where
the main thread's CPU time goes. `python sampler.py PYTHON -m gateway run CONFIG`; it prints JSON lines to stderr.

Its rule: the clock that drives it is the main thread's own CPU time, so waiting is never counted, and its handler only
adds to a dictionary: at some hundred samples a second it takes less than a thousandth of the time.

The interpreter calls a handler at its next check for signals, at the start of a function, after a call into C or at the
end of a loop's pass. So a sample at the very start of a function is the time of what called it, be that Python or the
event loop; what remains is that the tail of a function behind its last check counts for its caller.
"""

from __future__ import annotations

import ctypes
import json
import opcode
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from types import CodeType, FrameType

if __name__ == "__main__":  # as a script its own folder would come first, and its modules' names are common ones
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.stages import OTHER, stage_of

BEGIN, END = signal.SIGUSR1, signal.SIGUSR2
INTERVAL_NANOSECONDS = 1_000_000
"""Of CPU time; the kernel rounds it up to its tick, usually 4 ms."""
RESUME = opcode.opmap["RESUME"]
CLOCK_THREAD_CPUTIME_ID = 3
SHOWN = 8


class Event(ctypes.Structure):
    """struct sigevent."""

    _fields_ = [
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_char * 48),
    ]


class Times(ctypes.Structure):
    """struct itimerspec."""

    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns")]


class Sampler:
    """Of the main thread, which makes it."""

    def __init__(self) -> None:
        self._samples: dict[str, int] = {}
        self._unnamed: dict[str, int] = {}
        self._stages: dict[CodeType, str | None] = {}
        self._main = 0.0
        self._others: dict[str, float] = {}
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = ctypes.c_void_p()
        event = Event(None, signal.SIGPROF, 0, b"")
        self._call("timer_create", CLOCK_THREAD_CPUTIME_ID, ctypes.byref(event), ctypes.byref(self._timer))
        for number, handler in ((BEGIN, self._begin), (END, self._end), (signal.SIGPROF, self._sample)):
            signal.signal(number, handler)
            signal.siginterrupt(number, False)

    def _call(self, name: str, *arguments: object) -> None:
        if getattr(self._libc, name)(*arguments):
            raise OSError(ctypes.get_errno(), name)

    def _every(self, nanoseconds: int) -> None:
        times = Times(0, nanoseconds, 0, nanoseconds)
        self._call("timer_settime", self._timer, 0, ctypes.byref(times), None)

    def _begin(self, number: int, frame: FrameType | None) -> None:
        self._samples.clear()
        self._unnamed.clear()
        self._others = other_threads()
        self._main = time.thread_time()
        self._every(INTERVAL_NANOSECONDS)
        tell("sampling")

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._every(0)
        used = time.thread_time() - self._main
        others = {name: seconds - self._others.get(name, 0.0) for name, seconds in other_threads().items()}
        most = sorted(self._unnamed.items(), key=lambda item: -item[1])[:SHOWN]
        tell("sampled", samples=self._samples, main=used, others=others, unnamed=dict(most))

    def _sample(self, number: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code.co_code[max(frame.f_lasti, 0)] == RESUME:
            frame = frame.f_back
        innermost = frame
        stages, stage = self._stages, None
        while frame is not None:
            code = frame.f_code
            try:
                stage = stages[code]
            except KeyError:
                stage = stages[code] = stage_of(code)
            if stage is not None:
                break
            frame = frame.f_back
        if stage is None:
            stage = OTHER
            name = innermost.f_code.co_qualname if innermost else "nothing"
            self._unnamed[name] = self._unnamed.get(name, 0) + 1
        self._samples[stage] = self._samples.get(stage, 0) + 1


def other_threads() -> dict[str, float]:
    """CPU seconds of every thread but this one, by name."""
    found: dict[str, float] = {}
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.native_id is not None:
            try:
                with open(f"/proc/self/task/{thread.native_id}/schedstat") as file:
                    nanoseconds = int(file.read().split()[0])
            except FileNotFoundError:  # it has just ended
                continue
            found[thread.name] = found.get(thread.name, 0.0) + nanoseconds / 1e9
    return found


def tell(event: str, **fields: object) -> None:
    sys.stderr.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stderr.flush()


def main() -> None:
    """Runs `python -m MODULE ARGUMENTS` as Python would."""
    _, option, module, *arguments = sys.argv[1:]
    if option != "-m":
        raise SystemExit("usage: sampler.py PYTHON -m MODULE [ARGUMENTS]")
    sys.argv = [module, *arguments]
    Sampler()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
