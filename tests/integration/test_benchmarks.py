"""The benchmarks run and their own checks find what they are for. How fast anything is stands in no test."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from benchmarks import disk, load, wire
from benchmarks.__main__ import main
from benchmarks.profiles import pipeline

BODIES = [b'{"id":"%010d","v":"xxxx"}' % n for n in range(8)]


@pytest.mark.timeout(120)
def test_pipeline_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", "--folder", str(tmp_path), "--messages", "3000", "--rounds", "1"]) == 0, (
        capsys.readouterr()
    )
    found = json.loads((tmp_path / "pipeline.json").read_text())["values"]
    assert set(found["median"]) == {"gateway", "rabbitmq"} and found["ratio"] > 0
    assert found["disk"]["fsync_p50"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline.json"], "a run leaves only its results"


def test_backlog_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backlog", "--folder", str(tmp_path), "--messages", "3000"]) == 0, capsys.readouterr()
    found = json.loads((tmp_path / "backlog.json").read_text())["values"]
    assert found["ready_seconds"] > 0 and found["drain_rate"] > 0


def test_ceiling_is_measured_against_the_sink() -> None:
    packets = [wire.publishes(i, 2, 1001, 10, 64) for i in range(2)]
    assert pipeline.measure_ceiling(packets, 1001, None) > 0


def test_a_folder_in_memory_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or disk.file_system(shm) not in disk.IN_MEMORY:
        pytest.skip("no tmpfs on this machine")
    folder = shm / f"gateway-bench-{os.getpid()}"
    try:
        assert main(["pipeline", "--folder", str(folder)]) == 1
        assert "tmpfs" in capsys.readouterr().err
    finally:
        folder.rmdir()


def took(*chunks: bytes) -> load.Consumer:
    """A consumer that has read these chunks."""
    here, there = socket.socketpair()
    with there:
        consumer = load.Consumer(here)
        consumer.expect(8)
        for chunk in chunks:
            there.sendall(chunk)
            consumer.receive()
    here.close()
    return consumer


def test_deliveries_are_found_wherever_a_read_ends() -> None:
    octets = b"".join(wire.delivery(body) for body in BODIES)
    for size in (1, 7, 64, 65, 1000):
        consumer = took(*(octets[i : i + size] for i in range(0, len(octets), size)))
        consumer.check(0, 8, groups=2)
        assert consumer.finished


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ([0, 1, 2, 3, 4, 5, 6], "7 came"),
        ([0, 1, 2, 3, 4, 5, 6, 6], "7 different"),
        ([0, 1, 2, 3, 4, 5, 6, 7, 7], "9 came"),
        ([0, 1, 4, 3, 2, 5, 6, 7], "message 2 came after 4"),
    ],
    ids=["lost", "lost and repeated", "repeated", "order"],
)
def test_wrong_deliveries_are_found(numbers: list[int], complaint: str) -> None:
    consumer = took(b"".join(wire.delivery(BODIES[n]) for n in numbers))
    with pytest.raises(load.LoadError, match=complaint):
        consumer.check(0, 8, groups=2)


def test_wrong_answers_are_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        publisher = load.Publisher(server.getsockname(), wire.publishes(0, 1, 3, 1, 64), 10, None)
        peer, _ = server.accept()
        with peer:
            publisher.fill()
            peer.sendall(wire.pubacks(2) + wire.pubacks(1))
            while not publisher.finished:
                publisher.receive()
        with pytest.raises(load.LoadError, match="one PUBACK for each"):
            publisher.check()
        publisher.close()
