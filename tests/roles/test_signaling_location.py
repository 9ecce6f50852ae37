"""Where a client is: whose headers are believed, and a real MaxMind file."""

from __future__ import annotations

import ipaddress
import os
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from voicegate.config import Config
from voicegate.config_checks import check
from voicegate.roles.signaling.geoip import LOOK_SECONDS, GeoDatabase
from voicegate.roles.signaling.location import Address, Locator
from voicegate.roles.signaling.steering import Place

PROXY, CLOUD_EDGE, CLIENT, STRANGER = "10.0.0.7", "173.245.48.9", "1.1.1.1", "8.8.8.8"
TRUSTED = ("10.0.0.0/8", "::ffff:192.168.0.0/112", "173.245.48.0/20", "fd00::/8")
GENERIC = ("X-Client-Latitude", "x-client-longitude")
HERE, THERE = Place(52.37, 4.9), Place(-33.87, 151.21)
HERE_HEADERS = {"x-client-latitude": ["52.37"], "x-client-longitude": ["4.9"]}
THERE_HEADERS = {"cf-iplatitude": ["-33.87"], "cf-iplongitude": ["151.21"]}


class Asked:
    """A locator whose database notes what it was asked, and knows one address."""

    def __init__(self, generic: tuple[str, ...] = GENERIC) -> None:
        self.addresses: list[str] = []
        self.locator = Locator(TRUSTED, generic, self._look_up)

    def _look_up(self, address: Address) -> Place | None:
        self.addresses.append(str(address))
        return HERE if str(address) == CLIENT else None

    def locate(self, peer: str, headers: dict[str, list[str]]) -> Place | None:
        return self.locator.locate(peer, lambda name: headers.get(name, []))


@pytest.mark.parametrize(
    "peer", [PROXY, "::ffff:10.0.0.7", "192.168.1.1", "::ffff:192.168.1.1", "fd00::1%eth0"]
)
def test_headers_of_a_trusted_proxy(peer: str) -> None:
    asked = Asked()
    assert asked.locate(peer, HERE_HEADERS) == HERE
    assert asked.locate(peer, THERE_HEADERS) == THERE
    assert asked.locate(peer, {**HERE_HEADERS, **THERE_HEADERS}) == HERE
    assert asked.locator.sources == {"headers": 2, "cloudflare": 1} and asked.addresses == []
    assert Asked(generic=()).locate(peer, {**HERE_HEADERS, **THERE_HEADERS}) == THERE


@pytest.mark.parametrize("peer", [STRANGER, "::ffff:8.8.8.8", "2001:4860::8", "", "unix", "11.0.0.7"])
def test_headers_of_anybody_else_are_not_believed(peer: str) -> None:
    asked = Asked()
    spoofed = {**HERE_HEADERS, **THERE_HEADERS, "x-forwarded-for": [CLIENT], "cf-connecting-ip": [CLIENT]}
    assert asked.locate(peer, spoofed) is None
    assert asked.locator.ignored == {"untrusted_peer": 1}
    assert CLIENT not in asked.addresses, "the address that is looked up is the connection's"


@pytest.mark.parametrize(
    ("latitude", "longitude", "reason"),
    [
        (["52.37"], [], "incomplete"),
        ([""], ["4.9"], "incomplete"),
        (["52.37", "52.37"], ["4.9"], "repeated"),
        (["52.37,1"], ["4.9"], "not_a_place"),
        (["nan"], ["4.9"], "not_a_place"),
        (["inf"], ["4.9"], "not_a_place"),
        (["90.1"], ["4.9"], "not_a_place"),
        (["52.37"], ["180.5"], "not_a_place"),
        (["5_2"], ["4.9"], "not_a_place"),
        (["1e1"], ["4.9"], "not_a_place"),
        (["٥٢"], ["4.9"], "not_a_place"),
        (["1" * 4000], ["4.9"], "not_a_place"),
    ],
)
def test_what_is_no_place_is_ignored_and_counted(
    latitude: list[str], longitude: list[str], reason: str
) -> None:
    asked = Asked()
    headers = {"x-client-latitude": latitude, "x-client-longitude": longitude}
    assert asked.locate(PROXY, headers) is None
    assert asked.locator.ignored == {reason: 1} and asked.locator.sources == {"none": 1}
    assert asked.locate(PROXY, {**headers, **THERE_HEADERS}) == THERE, "the other pair is still good"


@pytest.mark.parametrize(
    ("chain", "looked_up"),
    [
        ([CLIENT], CLIENT),
        ([f" {CLIENT}:51234 "], CLIENT),
        ([f"::ffff:{CLIENT}"], CLIENT),
        (["[2606:4700::1111]:443"], "2606:4700::1111"),
        ([f"{STRANGER}, {CLIENT}, {CLOUD_EDGE}"], CLIENT),
        ([f"{STRANGER}, {CLIENT}", CLOUD_EDGE, "fd00::1, 192.168.4.4"], CLIENT),
        ([f"{CLIENT}, {STRANGER}"], STRANGER),
        ([f"{CLIENT}, unknown, {CLOUD_EDGE}"], None),
        ([f"{CLIENT}, "], None),
        ([CLOUD_EDGE], CLOUD_EDGE),
        (["10.1.1.1, 10.2.2.2"], None),
        (["192.0.2.7"], None),
        ([CLIENT + ", 10.0.0.1" * 5000], None),
    ],
)
def test_the_right_most_that_is_no_proxy_of_ours(chain: list[str], looked_up: str | None) -> None:
    asked = Asked()
    place = asked.locate(PROXY, {"x-forwarded-for": chain, "cf-connecting-ip": [STRANGER]})
    assert asked.addresses == ([] if looked_up is None else [looked_up])
    assert place == (HERE if looked_up == CLIENT else None)


def test_cloudflares_word_where_there_is_no_chain() -> None:
    asked = Asked()
    assert asked.locate(PROXY, {"cf-connecting-ip": [CLIENT]}) == HERE
    assert asked.locate(PROXY, {"cf-connecting-ip": ["what"]}) is None
    assert asked.locator.ignored == {"not_an_address": 1}
    assert asked.locate(CLIENT, {}) == HERE, "without a proxy: the connection's own address"
    assert asked.locator.sources == {"database": 2, "none": 1}


@pytest.mark.parametrize(
    "peer", ["127.0.0.1", "10.0.0.1", "192.168.9.9", "100.64.0.1", "::1", "fe80::1%eth0"]
)
def test_addresses_that_are_nowhere_are_not_looked_up(peer: str) -> None:
    asked = Asked()
    assert asked.locate(peer, {}) is None and asked.addresses == []


@given(
    st.text(max_size=20) | st.sampled_from([PROXY, CLIENT]),
    st.dictionaries(
        st.sampled_from([*HERE_HEADERS, *THERE_HEADERS, "x-forwarded-for", "cf-connecting-ip"]),
        st.lists(st.text(max_size=30) | st.sampled_from(["1", "-91", "1.1.1.1,2.2.2.2"]), max_size=3),
    ),
)
def test_whatever_is_sent_is_a_place_or_none(peer: str, headers: dict[str, list[str]]) -> None:
    place = Asked().locate(peer, headers)
    assert place is None or (abs(place.latitude) <= 90 and abs(place.longitude) <= 180)


def write_database(path: Path, place: Place, **more: object) -> None:
    """As geoipupdate: a new file takes the place of the old one."""
    writer = MMDBWriter(6, "GeoLite2-City", ipv4_compatible=True)
    city = {"location": {"latitude": place.latitude, "longitude": place.longitude}, **more}
    writer.insert_network(IPSet(["1.1.1.0/24", "2606:4700::/32"]), city)
    writer.insert_network(IPSet(["8.8.0.0/16"]), {"country": {"iso_code": "US"}})
    writer.insert_network(IPSet(["9.9.9.0/24"]), {"location": {"latitude": 91.0, "longitude": 0.0}})
    writer.insert_network(IPSet(["9.9.8.0/24"]), {"location": {"latitude": "52", "longitude": True}})
    fresh = path.with_suffix(".new")
    writer.to_db_file(str(fresh))
    fresh.replace(path)


def test_a_maxmind_file(tmp_path: Path) -> None:
    path = tmp_path / "city.mmdb"
    write_database(path, HERE)
    database = GeoDatabase(str(path), now=1000.0)
    assert check_database(path) == []

    def find(address: str, now: float = 1000.0) -> Place | None:
        return database.find(ipaddress.ip_address(address), now)

    assert find("1.1.1.1") == find("2606:4700::1111") == HERE
    for unknown in ("8.8.8.8", "9.9.9.9", "9.9.8.1", "5.5.5.5", "2a00::1"):
        assert find(unknown) is None, unknown
    write_database(path, THERE)
    assert find("1.1.1.1", 1000 + LOOK_SECONDS - 1) == HERE, "it is looked for once a minute"
    assert find("1.1.1.1", 1000 + LOOK_SECONDS) == THERE
    path.with_suffix(".new").write_bytes(b"torn")
    path.with_suffix(".new").replace(path)
    assert find("1.1.1.1", 1000 + 2 * LOOK_SECONDS) == THERE, "what cannot be read replaces nothing"
    os.remove(path)
    assert find("1.1.1.1", 1000 + 3 * LOOK_SECONDS) == THERE
    write_database(path, HERE)
    assert find("1.1.1.1", 1000 + 4 * LOOK_SECONDS) == HERE


def test_a_file_that_is_cut_short_in_its_place_is_used_on(tmp_path: Path) -> None:
    """Were it mapped, this would end the tests with SIGBUS."""
    path = tmp_path / "city.mmdb"
    write_database(path, HERE, filler="x" * (1 << 20))
    database = GeoDatabase(str(path), now=0.0)
    whole = path.read_bytes()
    for length in (len(whole) // 2, 0):
        os.truncate(path, length)
        for now in (0.0, LOOK_SECONDS, 2 * LOOK_SECONDS):
            assert database.find(ipaddress.ip_address(CLIENT), now) == HERE


@given(
    st.just(1.0) | st.floats(0, 1), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=20)
)
def test_a_damaged_file_is_none_or_knows_nothing(
    pristine: bytes, kept: float, bytes_at: list[tuple[float, int]]
) -> None:
    damaged = bytearray(pristine[: max(1, int(kept * len(pristine)))])
    for where, byte in bytes_at:
        damaged[int(where * len(damaged))] = byte
    with tempfile.NamedTemporaryFile(suffix=".mmdb") as file:
        file.write(damaged)
        file.flush()
        try:
            database = GeoDatabase(file.name, 0.0)
        except ValueError:
            return
        for address in ("1.1.1.1", "8.8.8.8", "2606:4700::1"):
            try:
                place = database.find(ipaddress.ip_address(address), 0.0)
            except LookupError:
                continue
            assert place is None or abs(place.latitude) <= 90


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("geoip") / "city.mmdb"
    write_database(path, HERE)
    return path.read_bytes()


def test_a_file_of_ipv4_only_and_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "four.mmdb"
    writer = MMDBWriter(4)
    writer.insert_network(IPSet(["1.1.1.0/24"]), {"location": {"latitude": 52.37, "longitude": 4.9}})
    writer.to_db_file(str(path))
    four = GeoDatabase(str(path), 0.0)
    assert four.find(ipaddress.ip_address(CLIENT), 0.0) == HERE
    assert four.find(ipaddress.ip_address("2606:4700::1"), 0.0) is None
    data = bytearray(path.read_bytes())
    end = data.index(b"\xab\xcd\xefMaxMind.com")
    start = data.index(bytes(16), 0, end) + 16
    data[start:end] = b"\xff" * (end - start)
    path.with_suffix(".bad").write_bytes(data)
    damaged = GeoDatabase(str(path.with_suffix(".bad")), 0.0)
    locator = Locator((), (), lambda address: damaged.find(address, 0.0))
    assert locator.locate(CLIENT, lambda name: []) is None
    assert locator.sources == {"damaged": 1}


def test_a_database_that_cannot_be_used_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    junk = tmp_path / "junk.mmdb"
    assert check_database(junk) == [f"signaling.geoip_database cannot read {junk}: No such file or directory"]
    for content in (b"", b"not a database" * 100):
        junk.write_bytes(content)
        assert check_database(junk) == [f"signaling.geoip_database {junk} is not a MaxMind database"]
    assert check_database(tmp_path) == [f"signaling.geoip_database cannot read {tmp_path}: Is a directory"]
    monkeypatch.setitem(sys.modules, "maxminddb", None)
    assert check_database(junk) == [
        "signaling.geoip_database needs the package maxminddb: pip install '.[geoip]'"
    ]


def check_database(path: Path) -> list[str]:
    data = {
        "keys": {"secrets": ["0:" + "k" * 32]},
        "registry": {"redis": "redis://127.0.0.1:6379/0"},
        "signaling": {"geoip_database": str(path)},
    }
    return check(msgspec.convert(data, type=Config), ["signaling"])
