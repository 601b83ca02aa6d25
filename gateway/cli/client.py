"""Owns how the command line asks a running daemon: the admin API from the other side.

Its rule: whatever goes wrong ends as one clear sentence, never as a traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import httpx
import msgspec

from gateway.errors import DeniedError, NoTextError, UnreachableError, check_text

T = TypeVar("T")
_API = "/api/v1/"


class AdminClient:
    """One daemon's admin API. Every call raises UnreachableError or DeniedError."""

    def __init__(self, url: str, user: str | None = None, password: str | None = None, timeout: float = 30.0) -> None:
        self.url = url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}"
        credentials = (check_text(user), check_text(password or "", "the password")) if user else None
        try:
            # A proxy of the environment is for the web, not for a daemon on this machine.
            self._http = httpx.Client(base_url=self.url, auth=credentials, timeout=timeout, trust_env=False)
        except (httpx.InvalidURL, ValueError) as error:
            raise UnreachableError(f"{url!r} is no address of an admin API: {error}") from error

    def get(self, path: str, gives: type[T], **query: Any) -> T:
        asked = {name: _query(value) for name, value in query.items() if value is not None}
        return self._read(self._ask("GET", path, params=asked), gives)

    def post(self, path: str, body: Any, gives: type[T], also: tuple[int, ...] = ()) -> T:
        """`also`: statuses that carry the answer too."""
        content = _encoded(body)
        headers = {"content-type": "application/json"}
        return self._read(self._ask("POST", path, content=content, headers=headers), gives, also)

    def lines(self, path: str, body: Any, gives: type[T], idle: float | None = None) -> Iterator[T]:
        """A stream, one value a line. `idle`: seconds without a line after which it ends; None: never."""
        decoder = msgspec.json.Decoder(gives)
        headers = {"content-type": "application/json"}
        timeout = httpx.Timeout(30.0, read=idle)
        try:
            with self._http.stream(
                "POST", _API + path, content=_encoded(body), headers=headers, timeout=timeout
            ) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    self._check(answer)
                for line in answer.iter_lines():
                    yield decoder.decode(line)
        except httpx.ReadTimeout:
            return
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _ask(self, method: str, path: str, **fields: Any) -> httpx.Response:
        try:
            return self._http.request(method, _API + path, **fields)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> UnreachableError:
        return UnreachableError(
            f"no daemon answers at {self.url} ({error or type(error).__name__}); start one with `gateway run`, or say "
            f"where it is with --admin or GATEWAY_ADMIN"
        )

    def _read(self, answer: httpx.Response, gives: type[T], also: tuple[int, ...] = ()) -> T:
        if answer.status_code not in also:
            self._check(answer)
        try:
            return msgspec.json.decode(answer.content, type=gives)
        except msgspec.DecodeError as error:
            raise UnreachableError(f"what answers at {self.url} is no gateway: {error}") from error

    def _check(self, answer: httpx.Response) -> None:
        if answer.is_success:
            return
        try:
            text = msgspec.json.decode(answer.content)["error"]
        except (msgspec.DecodeError, KeyError, TypeError):
            raise UnreachableError(f"what answers at {self.url} is no gateway (HTTP {answer.status_code})") from None
        if answer.status_code == 401:
            text += "; give --user and --password, or GATEWAY_USER and GATEWAY_PASSWORD"
        raise DeniedError(str(text), answer.status_code)


def _query(value: Any) -> str:
    return check_text(str(value).lower() if isinstance(value, bool) else str(value))


def _encoded(body: Any) -> bytes:
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError as error:
        raise NoTextError(error.object) from error
