"""The judge of the crash harness accepts good histories and names each kind of broken promise in bad ones."""

from __future__ import annotations

import io

import pytest

from tests.crash.history import Event, History, Key, Place
from tests.crash.publishers import body_of, key_of

PLACES = (
    Place("fifo", in_flight=1, dead="dead"),
    Place("wide", in_flight=2),
    Place("plain"),
    Place("dead"),
    Place("session", ordered=True, dedup=False),
    Place("exact", ordered=True, once=True),
)
ROUTES = {"f": ("fifo",), "w": ("wide",), "p": ("plain",), "s": ("session",), "e": ("exact",), "two": ("fifo", "plain")}


def tell(history: History, text: str) -> None:
    """One event for each line: `send GROUP NUMBER`, `stored GROUP NUMBER`, `deliver PLACE WHO GROUP NUMBER [AGAIN]`,
    `done|retry|dead PLACE WHO GROUP NUMBER`, `lost WHO`, `mark|durable WHO NUMBER`, `begin`, `end`."""
    for line in filter(None, map(str.strip, text.splitlines())):
        kind, *rest = line.split()
        if kind in ("send", "stored", "refused"):
            history.tell(Event(kind, who="publisher", group=rest[0], number=int(rest[1])))
        elif kind in ("mark", "durable"):
            history.tell(Event(kind, who=rest[0], number=int(rest[1])))
        elif kind in ("begin", "end", "lost"):
            history.tell(Event(kind, who=rest[0] if rest else "-"))
        else:
            history.tell(Event(kind, rest[0], rest[1], rest[2], int(rest[3]), *rest[4:]))


def faults(text: str) -> list[str]:
    history = History(PLACES, ROUTES)
    tell(history, "begin\n" + text)
    return history.check()


def sent(group: str, count: int) -> str:
    return "".join(f"send {group} {number}\nstored {group} {number}\n" for number in range(count))


GOOD = {
    "in order": sent("f/a", 2)
    + """
        deliver fifo one f/a 0 no
        done fifo one f/a 0
        deliver fifo two f/a 1 no
        done fifo two f/a 1""",
    "given back, then lost, then done": sent("f/a", 1)
    + """
        deliver fifo one f/a 0 no
        retry fifo one f/a 0
        deliver fifo two f/a 0 yes
        lost two
        deliver fifo one f/a 0 yes
        done fifo one f/a 0""",
    "a settlement that a crash took back": sent("f/a", 2)
    + """
        deliver fifo one f/a 0 no
        done fifo one f/a 0
        deliver fifo one f/a 1 no
        done fifo one f/a 1
        end
        begin
        deliver fifo three f/a 0 yes
        done fifo three f/a 0
        deliver fifo three f/a 1 yes
        done fifo three f/a 1""",
    "a crash goes back to the middle": sent("f/a", 3)
    + """
        deliver fifo one f/a 0 no
        done fifo one f/a 0
        deliver fifo one f/a 1 no
        done fifo one f/a 1
        deliver fifo one f/a 2 no
        end
        begin
        deliver fifo two f/a 1 yes
        done fifo two f/a 1
        deliver fifo two f/a 2 yes
        done fifo two f/a 2""",
    "an ack that went down with its connection": sent("f/a", 1)
    + """
        deliver fifo one f/a 0 no
        done fifo one f/a 0
        lost one
        deliver fifo two f/a 0 yes
        done fifo two f/a 0""",
    "rejected and buried": sent("f/a", 2)
    + """
        deliver fifo one f/a 0 no
        dead fifo one f/a 0
        deliver fifo one f/a 1 no
        deliver dead two f/a 0 no
        done dead two f/a 0
        done fifo one f/a 1""",
    "unanswered and never stored": "send f/a 0",
    "unanswered and delivered": "send f/a 0\ndeliver fifo one f/a 0 no\ndone fifo one f/a 0",
    "several in flight, settled in any order": sent("w/a", 3)
    + """
        deliver wide one w/a 0 no
        deliver wide one w/a 1 no
        done wide one w/a 1
        deliver wide one w/a 2 no
        done wide one w/a 2
        done wide one w/a 0""",
    "two copies in a session of what was sent twice": """
        send s/a 0
        end
        begin
        send s/a 0
        stored s/a 0
        deliver session one s/a 0 -
        done session one s/a 0
        deliver session one s/a 0 -
        done session one s/a 0""",
    "two copies in flight at once": """
        send s/a 0
        send s/a 0
        stored s/a 0
        deliver session one s/a 0 -
        deliver session one s/a 0 -
        done session one s/a 0
        done session one s/a 0""",
    "fan-out": sent("two/a", 1)
    + """
        deliver fifo one two/a 0 no
        deliver plain two two/a 0 no
        done plain two two/a 0
        done fifo one two/a 0""",
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD.keys())
def test_good_histories(text: str) -> None:
    assert faults(text) == []


DONE = "deliver fifo one f/a 0 no\ndone fifo one f/a 0\n"
BAD = {
    "once, and once more after a crash": (
        sent("e/a", 1) + "deliver exact one e/a 0\ndone exact one e/a 0\nend\nbegin\ndeliver exact two e/a 0\n"
        "done exact two e/a 0",
        "run 2: e/a#0 came to exact a second time",
    ),
    "loss": (sent("f/a", 1), "run 1: f/a#0 was answered for and never came to fifo"),
    "loss of one copy of two": (
        sent("two/a", 1) + "deliver fifo one two/a 0 no\ndone fifo one two/a 0",
        "run 1: two/a#0 was answered for and never came to plain",
    ),
    "loss behind a gap": (
        sent("p/a", 3) + "deliver plain one p/a 2 no\ndone plain one p/a 2\ndeliver plain one p/a 0 no\n"
        "done plain one p/a 0",
        "run 1: p/a#1 was answered for and never came to plain",
    ),
    "not again": (
        sent("f/a", 1) + "deliver fifo one f/a 0 no\nretry fifo one f/a 0",
        "run 1: f/a#0 was given back at fifo and did not come again",
    ),
    "not again after a crash took the settlement back": (
        sent("f/a", 1) + DONE + "end\nbegin\ndeliver fifo two f/a 0 yes\nlost two",
        "run 2: f/a#0 was given back at fifo and did not come again",
    ),
    "not among the dead": (
        sent("f/a", 1) + "deliver fifo one f/a 0 no\ndead fifo one f/a 0",
        "run 1: f/a#0 was rejected and never came to dead",
    ),
    "invented": ("deliver fifo one f/a 0 no", "run 1: f/a#0 came to fifo and was never sent"),
    "answered without a question": ("stored f/a 0", "run 1: f/a#0 was answered and never sent"),
    "refused": ("send f/a 0\nrefused f/a 0", "run 1: f/a#0 was refused"),
    "led astray": (
        sent("f/a", 1) + DONE + "deliver plain one f/a 0 no",
        "run 1: f/a#0 came to plain, where it does not belong",
    ),
    "durable and back": (
        sent("f/a", 1)
        + DONE
        + "mark one 1\ndurable one 1\nend\nbegin\ndeliver fifo two f/a 0 yes\ndone fifo two f/a 0",
        "run 2: f/a#0 came to fifo although its settlement was durable",
    ),
    "settled and back in the same run": (
        sent("f/a", 1) + DONE + "deliver fifo two f/a 0 yes\ndone fifo two f/a 0",
        "run 1: f/a#0 came to fifo although one had settled it and is still there",
    ),
    "a second copy that is not marked": (
        sent("p/a", 1) + "deliver plain one p/a 0 no\ndone plain one p/a 0\nend\nbegin\nsend p/a 0\nstored p/a 0\n"
        "deliver plain two p/a 0 no\ndone plain two p/a 0",
        "run 2: p/a#0 came to plain as new although it had been delivered: a second copy",
    ),
    "a second copy beside the first": (
        sent("p/a", 1) + "deliver plain one p/a 0 no\ndeliver plain two p/a 0 yes\ndone plain two p/a 0",
        "run 1: p/a#0 came to plain a second time while one held it",
    ),
    "two at a time": (
        sent("f/a", 2)
        + "deliver fifo one f/a 0 no\ndeliver fifo two f/a 1 no\ndone fifo one f/a 0\ndone fifo two f/a 1",
        "run 1: f/a#1 came to fifo while one held 0",
    ),
    "overtaking": (
        sent("f/a", 2) + "deliver fifo one f/a 1 no\ndone fifo one f/a 1\n" + DONE,
        "run 1: f/a#1 came to fifo before 0 was settled",
    ),
    "before the retry": (
        sent("f/a", 2) + "deliver fifo one f/a 0 no\nretry fifo one f/a 0\ndeliver fifo one f/a 1 no\n"
        "done fifo one f/a 1\ndeliver fifo one f/a 0 yes\ndone fifo one f/a 0",
        "run 1: f/a#1 came to fifo before 0 was settled",
    ),
    "back in one run": (
        sent("f/a", 2) + DONE + "deliver fifo one f/a 1 no\ndone fifo one f/a 1\nlost one\n"
        "deliver fifo two f/a 0 yes\ndone fifo two f/a 0",
        "run 1: f/a#0 came to fifo after 1 in one run",
    ),
    "more in flight than allowed": (
        sent("w/a", 3) + "".join(f"deliver wide one w/a {n} no\n" for n in range(3)),
        "run 1: w/a#2 came to wide as one more than 2 in flight",
    ),
    "a group with two consumers": (
        sent("w/a", 2) + "deliver wide one w/a 0 no\ndeliver wide two w/a 1 no",
        "run 1: w/a#1 came to wide while one held others of its group",
    ),
    "first deliveries out of order": (
        sent("w/a", 2) + "deliver wide one w/a 1 no\ndeliver wide one w/a 0 no",
        "run 1: w/a#1 came to wide for the first time before 0",
    ),
    "a session out of order": (
        sent("s/a", 2) + "deliver session one s/a 1 -\ndeliver session one s/a 0 -",
        "run 1: s/a#1 came to session for the first time before 0",
    ),
    "buried without a word": (
        sent("f/a", 1) + "deliver dead two f/a 0 no\ndone dead two f/a 0",
        "run 1: f/a#0 is among the dead letters in dead, and nobody had rejected it",
    ),
    "in two queues": (
        sent("f/a", 1) + "deliver fifo one f/a 0 no\ndead fifo one f/a 0\ndeliver dead two f/a 0 no\n"
        "done dead two f/a 0\nend\nbegin\ndeliver fifo one f/a 0 yes\ndone fifo one f/a 0",
        "run 2: f/a#0 came to fifo although it was among the dead letters",
    ),
}


@pytest.mark.parametrize(("text", "expected"), BAD.values(), ids=BAD.keys())
def test_bad_histories(text: str, expected: str) -> None:
    run, _, what = expected.partition(": ")
    # What is found at the end belongs to no run.
    assert any(found in (f"{run}: {what}", what) for found in faults(text)), faults(text)


def test_settlements_before_a_mark_are_durable_and_later_ones_are_not() -> None:
    history = History(PLACES, ROUTES)
    tell(
        history,
        "begin\n"
        + sent("p/a", 2)
        + """
        deliver plain one p/a 0 no
        deliver plain one p/a 1 no
        done plain one p/a 0
        mark one 1
        done plain one p/a 1
        durable one 1
        end
        begin
        deliver plain one p/a 1 yes
        done plain one p/a 1
        """,
    )
    assert history.check() == [] and history.durable == 1


def test_what_can_not_be_is_an_error_of_the_harness() -> None:
    history = History(PLACES, ROUTES)
    tell(history, "begin\n" + sent("f/a", 1) + "deliver fifo one f/a 0 no")
    with pytest.raises(ValueError, match="two does not hold"):
        tell(history, "done fifo two f/a 0")
    with pytest.raises(ValueError, match="was sent before 1"):
        tell(history, "send f/a 2")
    with pytest.raises(ValueError, match="goes nowhere"):
        tell(history, "send unknown/a 0")
    with pytest.raises(ValueError, match="is no event"):
        history.tell(Event("explode"))


def test_a_file_is_judged_as_the_run_was() -> None:
    file = io.StringIO()
    history = History(PLACES, ROUTES, file)
    tell(
        history,
        "begin\n" + sent("f/a", 2) + "deliver fifo one f/a 1 no\ndone fifo one f/a 1\nmark one 1\nlost one\nend",
    )
    again = History.replay(PLACES, ROUTES, file.getvalue().splitlines())
    assert again.check() == history.check() != []
    assert (again.messages, again.stored, again.delivered) == (2, 2, 1)


def test_figures() -> None:
    history = History(PLACES, ROUTES)
    tell(
        history, "begin\n" + sent("two/a", 1) + "end\nbegin\nsend two/a 0\nstored two/a 0\ndeliver fifo one two/a 0 no"
    )
    assert (history.messages, history.stored, history.duplicates, history.outstanding) == (1, 1, 1, 2)
    tell(history, "done fifo one two/a 0\nend\nbegin")
    assert history.outstanding == 1
    tell(history, "deliver fifo two two/a 0 yes")
    assert (history.outstanding, history.again, history.delivered) == (2, 1, 2)


def test_a_damaged_body_is_found() -> None:
    body = body_of(Key("f/a", 60))
    assert key_of(body) == ("f/a", 60) and len(body) > 20_000
    with pytest.raises(ValueError, match="is damaged"):
        key_of(body.replace(b"xxx", b"xyx", 1))
    with pytest.raises(ValueError, match="nobody sent"):
        key_of(b"\x00")
