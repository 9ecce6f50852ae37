"""Steering through the whole of signaling: real HTTP, several clusters, the registry's relays."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.roles.test_signaling import CALLS, KEYS, Gate, Transceiver, error, gate, header
from tests.roles.test_signaling_location import write_database
from tests.roles.test_signaling_steering import AMSTERDAM, ASHBURN, AUCKLAND, SYDNEY, relay
from voicegate.config import Config, ConfigError, SignalingConfig
from voicegate.net.registry import MemoryRegistry, RelayRecord, TransceiverRecord
from voicegate.proto.callid import mint_call_id
from voicegate.roles.context import RoleContext
from voicegate.roles.signaling import placement
from voicegate.roles.signaling.shell import run
from voicegate.roles.signaling.steering import Place

pytestmark = pytest.mark.anyio
PROXIES = ("127.0.0.0/8",)


class Fleet(MemoryRegistry):
    """A registry in which relays come and go, as they do in Redis when leases begin and end."""

    def __init__(self, *relays: RelayRecord) -> None:
        super().__init__()
        for record in relays:
            self.put(record)

    def put(self, record: RelayRecord | TransceiverRecord) -> None:
        self._table(record).put(record)

    def kill(self, ingress: str) -> None:
        for record in self.relays.values():
            if record.ingress == ingress:
                self._relays.drop(record.id)


def three_regions() -> Fleet:
    return Fleet(relay("ams", AMSTERDAM), relay("iad", ASHBURN, 2), relay("syd", SYDNEY, 3))


def at_place(place: Place, family: str = "x-client-") -> dict[str, str]:
    return {f"{family}latitude": str(place.latitude), f"{family}longitude": str(place.longitude)}


async def entered(at: Gate, *transceivers: Transceiver, **headers: str) -> tuple[list[str], int]:
    """Set up a call: the candidates that its transceiver was given, and its cluster."""
    made = await at.offer(**headers)
    assert made.status == 201, made.content
    call_id = header(made, "location").removeprefix(CALLS + "/")
    (owner,) = [known for known in transceivers if call_id in known.calls]
    return owner.calls[call_id]["candidates"], owner.cluster


async def test_near_to_the_client_by_both_kinds_of_headers() -> None:
    here, there = Transceiver(7), Transceiver(7, cluster=2)
    settings = {"clusters": (1, 2), "advertise": (), "trusted_proxies": PROXIES}
    async with gate(here, there, registry=three_regions(), **settings) as at:
        for family in ("x-client-", "cf-ip"):
            assert await entered(at, here, there, **at_place(ASHBURN, family)) == (["iad:3478"], 2)
            assert await entered(at, here, there, **at_place(AMSTERDAM, family)) == (["ams:3478"], 1)
            assert (await entered(at, here, there, **at_place(AUCKLAND, family)))[0] == ["syd:3478"]
        assert await entered(at, here, there) == (["ams:3478"], 1), "nothing known: our own cluster"
        page = (await at.ask("GET", "/metrics")).content.decode()
        assert 'voicegate_signaling_steered_total{cluster="2",ingress="iad"} 2.0' in page
        assert 'voicegate_signaling_located_total{source="cloudflare"} 3.0' in page


async def test_a_stranger_cannot_say_where_it_is(tmp_path: Path) -> None:
    database = tmp_path / "city.mmdb"
    write_database(database, AUCKLAND)
    one = Transceiver(7)
    spoofed = {
        **at_place(ASHBURN),
        **at_place(ASHBURN, "cf-ip"),
        "x-forwarded-for": "1.1.1.1",
        "cf-connecting-ip": "1.1.1.1",
    }
    settings = {"advertise": (), "geoip_database": str(database)}
    async with gate(one, registry=three_regions(), **settings) as at:
        assert await entered(at, one, **spoofed) == (["ams:3478"], 1)
        page = (await at.ask("GET", "/metrics")).content.decode()
        assert 'location_headers_ignored_total{reason="untrusted_peer"} 1.0' in page
        assert 'voicegate_signaling_located_total{source="none"} 1.0' in page
    async with gate(one, registry=three_regions(), trusted_proxies=("10.0.0.0/8",), **settings) as at:
        assert await entered(at, one, **spoofed) == (["ams:3478"], 1)
    async with gate(one, registry=three_regions(), trusted_proxies=PROXIES, **settings) as at:
        assert await entered(at, one, **spoofed) == (["iad:3478"], 1)
        chain = "9.9.9.9, 1.1.1.1, 127.0.0.9"
        assert await entered(at, one, x_forwarded_for=chain) == (["syd:3478"], 1)
        assert await entered(at, one, x_forwarded_for="8.8.8.8") == (["ams:3478"], 1)
        assert await entered(at, one, x_forwarded_for="8.8.8.8", **at_place(SYDNEY)) == (["syd:3478"], 1)


async def test_a_killed_ingress_steers_elsewhere_and_none_is_said() -> None:
    one, fleet = Transceiver(7), three_regions()
    async with gate(one, registry=fleet, advertise=(), trusted_proxies=PROXIES) as at:
        where = at_place(AUCKLAND)
        assert await entered(at, one, **where) == (["syd:3478"], 1)
        fleet.kill("syd")
        assert (await entered(at, one, **where))[0] != ["syd:3478"]
        fleet.kill("iad")
        assert await entered(at, one, **where) == (["ams:3478"], 1)
        assert (await at.ask("GET", "/readyz")).status == 200
        (last,) = fleet.relays.values()
        fleet.put(msgspec.structs.replace(last, draining=True))
        reasons = [(await at.ask("GET", "/readyz")).content]
        fleet.put(msgspec.structs.replace(last, cluster=2))
        reasons.append((await at.ask("GET", "/readyz")).content)
        fleet.kill("ams")
        reasons.append((await at.ask("GET", "/readyz")).content)
        assert reasons == [
            b"every relay is draining, full or without a public address\n",
            b"no relay is registered in the transceivers' cluster\n",
            b"no relay is registered, and signaling.advertise names no address\n",
        ]
        refused = await at.offer()
        assert (refused.status, error(refused)["code"]) == (503, "no_relay")
        assert int(header(refused, "retry-after")) > 0
        assert b'setups_total{result="no_relay"} 1.0' in (await at.ask("GET", "/metrics")).content


async def test_a_full_and_a_dead_cluster_are_passed_over() -> None:
    full, dead, ours = Transceiver(7, capacity=0, cluster=2), Transceiver(7, cluster=3), Transceiver(7)
    fleet = three_regions()
    settings = {"clusters": (1, 2, 3), "advertise": (), "trusted_proxies": PROXIES}
    async with gate(full, ours, registry=fleet, **settings) as at:
        # The registry does not know yet that the one is full and the other gone.
        fleet.put(msgspec.structs.replace(fleet.clusters[2][7], capacity=10))
        await fleet.register(msgspec.structs.replace(fleet.clusters[2][7], cluster=3, control="127.0.0.1:1"))
        assert await entered(at, full, dead, ours, **at_place(ASHBURN)) == (["iad:3478"], 1)
        assert (fleet.clusters[2][7].calls, fleet.clusters[1][7].calls) == (10, 1), "remembered where it is"
        assert await entered(at, full, dead, ours, **at_place(SYDNEY)) == (["syd:3478"], 1)
        ours.capacity = 0
        refused = await at.offer(**at_place(ASHBURN))
        assert (refused.status, error(refused)["code"]) == (503, "overloaded")
        wrong = await at.offer("status 422", **at_place(ASHBURN))
        assert wrong.status == 422, "what is wrong with an offer is wrong in every cluster"
        page = (await at.ask("GET", "/metrics")).content
        assert b"voicegate_signaling_unreachable_total " in page


async def test_a_call_of_another_cluster_is_asked_after_there() -> None:
    here, there = Transceiver(7), Transceiver(7, cluster=2)
    settings = {"clusters": (2,), "advertise": (), "trusted_proxies": PROXIES}
    async with gate(here, there, registry=three_regions(), **settings) as at:
        location = header(await at.offer(**at_place(AMSTERDAM)), "location")
        assert (len(here.calls), len(there.calls)) == (0, 1), "only signaling.clusters get calls"
        assert (await at.ask("GET", location)).status == 200
        assert (await at.ask("POST", location + "/hangup")).status == 200
        assert there.calls == {}
        for cluster in (1, 2, 3):
            unknown = mint_call_id(KEYS.seal, cluster, 7, b"unknown!")
            assert (await at.ask("GET", f"{CALLS}/{unknown}")).status == 404


async def test_what_is_advertised_is_not_steered_but_the_cluster_is() -> None:
    here, there = Transceiver(7), Transceiver(8, cluster=2)
    addresses = ("203.0.113.1:443/tcp", "203.0.113.1:3478")
    settings = {"clusters": (1, 2), "advertise": addresses, "trusted_proxies": PROXIES}
    async with gate(here, there, registry=three_regions(), **settings) as at:
        assert await entered(at, here, there, **at_place(ASHBURN)) == ([*addresses], 2)
        assert await entered(at, here, there, **at_place(AMSTERDAM)) == ([*addresses], 1)
        assert await entered(at, here, there) == ([*addresses], 1)


async def test_signaling_is_registered_for_the_sake_of_its_keys() -> None:
    async with gate(Transceiver(7)) as at:
        (record,) = at.registry.signalings.values()
        assert len(record.boot) == 16 and record.id > 0


async def test_the_table_of_what_is_counted_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "MAX_STEERED", 1)
    one, fleet = Transceiver(7), three_regions()
    async with gate(one, registry=fleet, advertise=(), trusted_proxies=PROXIES) as at:
        for place in (AMSTERDAM, ASHBURN, SYDNEY, AMSTERDAM):
            await entered(at, one, **at_place(place))
        page = (await at.ask("GET", "/metrics")).content.decode()
        assert 'steered_total{cluster="1",ingress="ams"} 2.0' in page
        assert 'steered_total{cluster="other",ingress="other"} 2.0' in page


async def test_a_database_that_vanished_since_the_check_is_a_sentence(tmp_path: Path) -> None:
    config = Config(signaling=SignalingConfig(geoip_database=str(tmp_path / "gone.mmdb")))
    with pytest.raises(ConfigError, match="geoip_database cannot read"):
        await run(config, RoleContext(KEYS, MemoryRegistry()))
