"""The rewriting of sparse rows while its own commits are slow: every entry ends where its body is."""

from __future__ import annotations

from gateway.engine import compaction
from gateway.engine.compaction import Compaction
from gateway.model.policy import QueuePolicy
from tests.harness.kernel import Kernel, Worker


def sparse(kernel: Kernel, rows: int) -> Worker:
    """So many rows of ten bodies, of which all but three of each are settled; the rest is in flight."""
    for row in range(rows):
        kernel.send("q", *[f"{row}.{place}" for place in range(10)])
    worker = kernel.worker("q")
    kernel.run()
    worker.done(*[f"{row}.{place}" for row in range(rows) for place in range(7)])
    kernel.run()
    return worker


def test_no_pass_begins_before_the_last_one_is_committed() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    worker = sparse(kernel, compaction.FEW_ROWS)
    assert compaction.is_due(kernel.core)
    kernel.compact()
    slow = kernel.begin()
    assert slow is not None and slow.bodies
    worker.done(*[f"{row}.7" for row in range(compaction.FEW_ROWS)])  # the old rows are sparse once more
    while compaction.is_due(kernel.core):
        kernel.compact()
    kernel.end(slow)
    kernel.run()
    after = kernel.crash()
    assert not after.core.rows.unreadable
    assert after.content("q") == [f"{row}.{place}" for row in range(compaction.FEW_ROWS) for place in (8, 9)]


def test_a_pass_that_is_given_up_leaves_its_rows_to_the_next_one() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    sparse(kernel, compaction.FEW_ROWS)
    given_up = Compaction(kernel.core)
    given_up.step()
    assert not compaction.is_due(kernel.core)
    given_up.give_up()
    assert compaction.is_due(kernel.core)
