"""Owns Disk: what a directory may hold when the power fails at any moment of a trace.

Its rule: what a completed fsync of a file, or of the directory, covers is there; of the rest, each sector and each
name is as it was at any one moment since, independently of all others (dropped, torn and reordered).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from tests.faults.shim import Event

SECTOR = 512
GHOSTS = ("-shm",)
"""Made by mmap, rebuilt by whoever opens the store first: what the disk has of them means nothing."""

Fate = Callable[[int], int]
"""Of n things that may have happened to one place, how many did."""


class Node:
    """A file, whatever its names. `synced`: what is there for sure. `pending`: (offset, data) of writes, (size, None)
    of truncates, in order, that may be there. names: those it may have in the directory, the first for sure."""

    def __init__(self, name: str) -> None:
        self.synced = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []
        self.doubtful: dict[int, list[bytes]] = {}
        """Sectors, as they may be since an fsync failed: none that follows makes them sure, only a new write."""
        self.names: list[str | None] = [None, name]

    def sync(self) -> None:
        for sector in self._replay(self.synced)[0]:
            self.doubtful.pop(sector, None)
        self.pending.clear()

    def sync_failed(self) -> None:
        versions, _ = self._replay(bytearray(self.synced))
        for sector, contents in versions.items():
            self.doubtful.setdefault(sector, []).extend(contents)
        self.pending.clear()

    def after(self, fate: Fate) -> bytes:
        """What the disk may have of it."""
        file = bytearray(self.synced)
        versions, sizes = self._replay(bytearray(file))
        for some in (self.doubtful, versions):
            for sector, contents in some.items():
                if arrived := fate(len(contents)):
                    _put(file, sector * SECTOR, contents[arrived - 1])
        if self.pending:
            _cut(file, sizes[fate(len(sizes) - 1)])
        return bytes(file)

    def _replay(self, file: bytearray) -> tuple[dict[int, list[bytes]], list[int]]:
        """Does to `file` what is pending. Returns all that each sector touched was, and all sizes."""
        sizes = [len(file)]
        versions: dict[int, list[bytes]] = {}
        for place, data in self.pending:
            if data is None:
                _cut(file, place)
                # What was cut off reads as zeros if the file grows again.
                for sector in [at for at in versions if at * SECTOR >= place]:
                    versions[sector].append(bytes(SECTOR))
            else:
                _put(file, place, data)
                for sector in range(place // SECTOR, (place + len(data) - 1) // SECTOR + 1):
                    content = bytes(file[sector * SECTOR : (sector + 1) * SECTOR])
                    versions.setdefault(sector, []).append(content)
            sizes.append(len(file))
        return versions, sizes


class Disk:
    """Fed with the events of a trace, it can be asked at any moment for what a power cut leaves."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.marks: list[bytes] = []
        self._by_name: dict[str, Node] = {}
        self._by_fd: dict[int, Node] = {}
        self._directories: set[int] = set()

    def feed(self, event: Event) -> None:
        match event.kind:
            case "start":
                self._by_fd.clear()
                self._directories.clear()
            case "open" if not event.name:
                self._directories.add(event.fd)
            case "open":
                self._open(event)
            case "close":
                self._by_fd.pop(event.fd, None)
                self._directories.discard(event.fd)
            case "write":
                self._by_fd[event.fd].pending.append((event.number, event.data))
            case "truncate":
                self._by_fd[event.fd].pending.append((event.number, None))
            case "sync" if event.fd in self._directories:
                self._sync_names()
            case "sync":
                self._by_fd[event.fd].sync()
            case "sync failed" if event.fd in self._by_fd:
                self._by_fd[event.fd].sync_failed()
            case "rename":
                self._rename(event.name, event.data.decode())
            case "unlink":
                self._by_name.pop(event.name).names.append(None)
            case "mark":
                self.marks.append(event.data)

    def _open(self, event: Event) -> None:
        node = self._by_name.get(event.name)
        if node is None:
            node = self._by_name[event.name] = Node(event.name)
            if not event.created:
                node.names = [event.name]
            self.nodes.append(node)
        elif event.number:
            node.pending.append((0, None))
        self._by_fd[event.fd] = node

    def _rename(self, old: str, new: str) -> None:
        if replaced := self._by_name.pop(new, None):
            replaced.names.append(None)
        node = self._by_name[new] = self._by_name.pop(old)
        node.names.append(new)

    def _sync_names(self) -> None:
        for node in self.nodes:
            del node.names[:-1]
        self.nodes = [node for node in self.nodes if node.names != [None] or node in self._by_fd.values()]

    def after(self, fate: Fate) -> dict[str, bytes]:
        """The files of the directory as the disk may have them now. Where two may have one name, the later one has."""
        files: dict[str, bytes] = {}
        for node in self.nodes:
            name = node.names[fate(len(node.names) - 1)]
            if name is not None and not name.endswith(GHOSTS):
                files[name] = node.after(fate)
        return files


def nothing(count: int) -> int:
    """The disk has only what it must have."""
    return 0


def everything(count: int) -> int:
    """All has arrived in time."""
    return count


def at_random(choices: random.Random) -> Fate:
    """Each sector and each name by itself; how likely it is to have arrived differs from one cut to the next."""
    likely = choices.choice((0.02, 0.2, 0.5, 0.8, 0.98))

    def fate(count: int) -> int:
        if count <= 1:
            return int(choices.random() < likely) if count else 0
        return count if choices.random() < likely else choices.randrange(count)

    return fate


def write(files: dict[str, bytes], folder: Path) -> None:
    """They, and nothing else, in that folder."""
    for found in folder.iterdir():
        found.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def _put(file: bytearray, place: int, data: bytes) -> None:
    if len(file) < place:
        file.extend(bytes(place - len(file)))
    file[place : place + len(data)] = data


def _cut(file: bytearray, size: int) -> None:
    if len(file) < size:
        file.extend(bytes(size - len(file)))
    else:
        del file[size:]
