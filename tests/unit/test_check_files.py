"""`gateway check` looks at the certificates and keys that a configuration names, those of links too."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import pytest
import trustme
import yaml

from gateway.config.document import Faults
from gateway.config.settings import load
from gateway.errors import ConfigError
from gateway.net.certificates import validity

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Folder:
    """Files and a configuration that names them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(path / "ca.pem")

    def sign(self, name: str, before: datetime.datetime | None = None, after: datetime.datetime | None = None) -> None:
        """Writes NAME.pem with its chain, and NAME.key."""
        made = self.ca.issue_cert("localhost", not_before=before, not_after=after)
        (self.path / f"{name}.pem").write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))
        made.private_key_pem.write_to_path(self.path / f"{name}.key")

    def check(self, cert: str, key: str, ca: str = "ca.pem") -> tuple[list[str], list[str]]:
        """What is wrong, and what it is warned of, without the paths: the same for a listener and a link."""
        names = {"cert": cert, "key": key}
        tls = {name: str(self.path / file) for name, file in names.items()}
        found = []
        for way, section in {
            "listener": {"type": "mqtt", "listen": "127.0.0.1:0", "tls": {**tls, "client_ca": str(self.path / ca)}},
            "link": {"type": "mqtt-client", "url": "mqtts://localhost", "tls": {**tls, "ca": str(self.path / ca)}},
        }.items():
            config = self.path / "gateway.yaml"
            config.write_text(yaml.safe_dump({"transports": {way: section}}, sort_keys=False))
            warnings, faults = Faults(str(config)), ""
            try:
                load(config, {}, strict=True, warnings=warnings)
            except ConfigError as error:
                faults = str(error)
            found.append((self._short(faults.splitlines(), way), self._short(warnings.lines(), way)))
        assert found[0] == found[1]
        return found[0]

    def _short(self, lines: list[str], way: str) -> list[str]:
        said = []
        for line in lines:
            place, key, text = line.split(": ", 2)
            assert place.startswith(f"{self.path / 'gateway.yaml'}:") and key.startswith(f"transports.{way}.tls.")
            number = int(place.rpartition(":")[2])
            name = key.rpartition(".")[2]
            assert (self.path / "gateway.yaml").read_text().splitlines()[number - 1].strip().startswith(f"{name}:")
            said.append(f"{name.removeprefix('client_')}: {text.replace(f'{self.path}/', '')}")
        return said


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path)
    made.sign("good")
    made.sign("other")
    return made


def test_files_that_fit_are_passed_over(folder: Folder) -> None:
    assert folder.check("good.pem", "good.key") == ([], [])


def test_files_that_are_not_there_are_named_with_their_place(folder: Folder) -> None:
    assert folder.check("none.pem", "none.key", "none") == (
        [
            f"{key}: {file}: No such file or directory"
            for key, file in (("cert", "none.pem"), ("key", "none.key"), ("ca", "none"))
        ],
        [],
    )


def test_a_key_of_another_certificate(folder: Folder) -> None:
    assert folder.check("good.pem", "other.key") == (["key: other.key is not the key of good.pem"], [])


def test_files_that_are_none(folder: Folder) -> None:
    (folder.path / "text").write_text("no certificate")
    faults, warnings = folder.check("text", "good.key", "text")
    assert [fault.partition(":")[0] for fault in faults] == ["cert", "ca"] and warnings == []


def test_a_certificate_out_of_its_time_is_a_warning(folder: Folder) -> None:
    folder.sign("old", NOW - 9 * DAY, NOW - 2 * DAY)
    folder.sign("early", NOW + 2 * DAY, NOW + 9 * DAY)
    assert folder.check("old.pem", "old.key") == ([], [f"cert: old.pem: expired on {(NOW - 2 * DAY):%Y-%m-%d}"])
    assert folder.check("early.pem", "early.key") == (
        [],
        [f"cert: early.pem: is not valid before {(NOW + 2 * DAY):%Y-%m-%d}"],
    )
    (folder.path / "two.pem").write_bytes(b"".join((folder.path / one).read_bytes() for one in ("ca.pem", "old.pem")))
    assert folder.check("good.pem", "good.key", "two.pem") == (
        [],
        [f"ca: two.pem, certificate 2: expired on {(NOW - 2 * DAY):%Y-%m-%d}"],
    )


@pytest.mark.parametrize("year", [1970, 1999, 2049, 2050, 2120])
def test_times_before_and_after_2050_are_read(folder: Folder, year: int) -> None:
    moment = datetime.datetime(year, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
    made = folder.ca.issue_cert("localhost", not_before=moment, not_after=moment + DAY)
    der = ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())
    assert validity(der) == (moment.timestamp(), (moment + DAY).timestamp())
