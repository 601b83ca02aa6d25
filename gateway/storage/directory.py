"""Owns the directory of a store: its lock, the numbered database files in it, and the space held in reserve.

Its rule: a file gets its number by one rename, when everything in it is on disk, and the highest number is the
store. So whenever the process ends, one whole file is there, and it never meets another one's write-ahead log.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from gateway.errors import StoreError

_PREFIX = "gateway-"
_SUFFIX = ".db"
_ASIDE = "damaged-"
_BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite puts beside a database."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NOT_HELD = (*NO_ROOM, errno.EFBIG, errno.EOPNOTSUPP, errno.EINVAL)
"""The file system has no room, or no way, to set the reserve aside; the store works without it."""

PROBE_OCTETS = 64 << 10
"""More than one page of the write-ahead log with all that a file system needs for it."""


class StoreDirectory:
    """reserve: bytes of disk that are held by a file of that size, for settlements when all else is full."""

    def __init__(self, path: Path, reserve: int) -> None:
        self.path = path
        self.building = path / "building.db"
        """Where a new file is written until `publish`."""
        self._reserve = reserve
        self._reserve_file = path / "reserve"
        self._held = 0
        self._lock: int | None = None
        self._building_fd: int | None = None

    def lock(self) -> None:
        """Make the directory if it is missing and keep every other process out of it.

        Raises StoreError if it can't be made or written, or if it is in use."""
        try:
            missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
            for path in reversed(missing):
                path.mkdir(mode=0o700)
                sync(path.parent)
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(
                f"{self.path}: the store can't be written ({error.strerror}); "
                "make it a directory that this user may write, or set another store.path"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.pwrite(lock, b"%d\n" % os.getpid(), 0)
        except BlockingIOError as error:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
            os.close(lock)
            raise StoreError(
                f"{self.path}: the store is in use by process {holder}; stop that one, or set another store.path"
            ) from error
        except OSError as error:
            if error.errno not in NO_ROOM:  # the process id is only for people; the lock is what counts
                os.close(lock)
                raise StoreError(f"{self.path}: the store can't be locked ({error.strerror})") from error
        self._lock = lock
        if self._reserve_file.exists():  # left by a process that was killed
            self._held = self._reserve_file.stat().st_size

    def unlock(self) -> None:
        """A second call does nothing."""
        self._close_building()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def file(self, number: int) -> Path:
        return self.path / f"{_PREFIX}{number}{_SUFFIX}"

    def newest(self) -> int:
        """The number of the file that is the store; 0 if there is none."""
        return max((_number(name) for name in os.listdir(self.path) if name.endswith(_SUFFIX)), default=0)

    def begin(self) -> Path:
        """An empty file at `building` that only this user may read. Raises OSError."""
        _remove(self.building)
        self._close_building()
        self._building_fd = os.open(self.building, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        return self.building

    def abandon(self) -> None:
        """Remove what `begin` made and nobody published: on a full disk its room is what is missing. Raises OSError."""
        self._close_building()
        _remove(self.building)

    def publish(self, number: int) -> Path:
        """Give the file of `begin`, closed by whoever filled it, its number, durably. Raises OSError; then there is
        no such number."""
        assert self._building_fd is not None
        # Open since before the first write, so that no write's failure can be missed.
        os.fsync(self._building_fd)
        self._close_building()
        file = self.file(number)
        _remove(file)
        os.rename(self.building, file)
        try:
            sync(self.path)
        except OSError:
            self.withdraw(number)
            raise
        return file

    def secure_log(self, number: int) -> None:
        """Write what that file's write-ahead log reads as over itself, and fsync it. A process that died after an
        fsync that failed may have left parts of it in memory alone, where no later fsync finds them; a checkpoint
        that a power cut breaks off could then not be done again. Raises OSError."""
        try:
            fd = os.open(f"{self.file(number)}-wal", os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            place = 0
            while data := os.pread(fd, 1 << 20, place):
                place += os.pwrite(fd, data, place)
            os.fsync(fd)
        finally:
            os.close(fd)

    def withdraw(self, number: int) -> None:
        """Undo `publish`. Raises OSError."""
        _remove(self.file(number))

    def set_aside(self, number: int) -> Path:
        """Rename that database and what stands beside it, so that `keep` does not remove it. Raises OSError."""
        aside = self.path / f"{_ASIDE}{number}{_SUFFIX}"
        for beside in (*_BESIDE, ""):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self.file(number)}{beside}", f"{aside}{beside}")
        sync(self.path)
        return aside

    def keep(self, number: int) -> None:
        """Remove every database but that one. Raises OSError."""
        _remove(self.building)
        for name in os.listdir(self.path):
            if _number(name) not in (0, number):
                (self.path / name).unlink()

    def hold(self) -> None:
        """Take the reserve if there is room for it twice over; what is held already stays. Raises OSError."""
        if self._held >= self._reserve or self._free() + self._held < 2 * self._reserve:
            return
        fd = os.open(self._reserve_file, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(fd, 0, self._reserve)
            self._held = self._reserve
        except OSError as error:
            if error.errno not in _NOT_HELD:
                raise
            os.ftruncate(fd, self._held)
        finally:
            os.close(fd)

    def release(self) -> bool:
        """Give the reserve back to the file system; False if none was held. Raises OSError."""
        if not self._held:
            return False
        self._reserve_file.unlink(missing_ok=True)
        self._held = 0
        return True

    def room(self) -> int:
        """Bytes that can still be written before the reserve is touched."""
        return max(0, self._free() + self._held - self._reserve)

    def lacks(self, octets: int) -> bool:
        """Whether a file of that size finds no room, be it for want of blocks or because a quota is used up, of which
        `room` knows nothing. A disk that fails in another way does not lack room."""
        probe = self.path / "probe"
        try:
            fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                probe.unlink()  # it takes no room for longer than this, whatever becomes of the process
                os.posix_fallocate(fd, 0, octets)
            finally:
                os.close(fd)
        except OSError as error:
            return error.errno in NO_ROOM
        return False

    def lacks_reserve(self) -> bool:
        """Whether there is no room but what is, or should be, in reserve."""
        return self.lacks(self._reserve - self._held + PROBE_OCTETS)

    def size(self, number: int) -> int:
        """Bytes of that database and what stands beside it, without the reserve."""
        file = self.file(number)
        total = 0
        for path in (file, *(Path(f"{file}{beside}") for beside in _BESIDE)):
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue
        return total

    def _close_building(self) -> None:
        if self._building_fd is not None:
            os.close(self._building_fd)
            self._building_fd = None

    def _free(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize


def sync(path: Path) -> None:
    """fsync a file or directory. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(file: Path) -> None:
    for beside in (*_BESIDE, ""):
        Path(f"{file}{beside}").unlink(missing_ok=True)


def _number(name: str) -> int:
    """7 for `gateway-7.db` and for what SQLite puts beside it; 0 for any other name."""
    for beside in ("", *_BESIDE):
        digits = name.removeprefix(_PREFIX).removesuffix(_SUFFIX + beside)
        if name == f"{_PREFIX}{digits}{_SUFFIX}{beside}" and digits.isascii() and digits.isdecimal():
            return int(digits)
    return 0
