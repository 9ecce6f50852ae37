"""voicegate in three regions: relays in each, transceivers in two, one Redis, signaling behind a proxy.

    frankfurt   cluster 1   10.77.1.1   relay, transceiver, signaling, Redis, an agent
    virginia    cluster 2   10.77.2.1   relay, transceiver, an agent
    singapore   cluster 3   10.77.3.1   a relay and nothing else: calls go on to another cluster's relay
    client                  10.77.9.1   the trusted proxy, and where calls come from; 10.77.9.2: a stranger

Each region is a network namespace; packets between regions take DELAYS one way.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.gaps import PlainCall
from tests.support.light_client import Fleet, request
from tests.support.netns import Network
from tests.support.servers import START_SECONDS, Gate, parse_metrics, running, script, spawn
from tests.support.talking_agent import TalkingAgent
from voicegate.proto.keys import ClusterKeys

HOSTS = {"frankfurt": "10.77.1.1", "virginia": "10.77.2.1", "singapore": "10.77.3.1"}
CLUSTERS = {"frankfurt": 1, "virginia": 2, "singapore": 3}
PLACES = {"frankfurt": (50.11, 8.68), "virginia": (38.95, -77.45), "singapore": (1.35, 103.82)}
PROXY, STRANGER = "10.77.9.1", "10.77.9.2"
DELAYS = {
    ("frankfurt", "virginia"): 0.040,
    ("frankfurt", "singapore"): 0.080,
    ("virginia", "singapore"): 0.110,
    ("client", "frankfurt"): 0.010,
    ("client", "virginia"): 0.010,
    ("client", "singapore"): 0.010,
}
"""Seconds one way. The client is 10 ms from each ingress, for its place is what the headers say."""
LEASE_SECONDS = 3.0
API_KEY = "sk-regions-0123456789"


@dataclass
class Regions:
    network: Network
    gate: Gate
    agents: Mapping[str, TalkingAgent]
    keys: ClusterKeys

    def ask(self, sdp: str, place: tuple[float, float] | None, source: str = PROXY) -> str:
        """POST an offer as the proxy does for a client at that place, or as `source` says of itself; the
        answer."""
        with self.network.inside("client"):
            answer = request(
                "POST",
                self.gate.calls_url,
                sdp,
                content_type="application/sdp",
                key=API_KEY,
                headers=headers(place),
                source=source,
            )
        assert answer.status == 201, answer
        return answer.body

    def call(self, fleet: Fleet, place: tuple[float, float], name: str) -> PlainCall:
        """A call from there, which talks and hears."""
        with self.network.inside("client"):
            call = fleet.call(
                f"{self.gate.calls_url}?model={name}",
                key=API_KEY,
                headers=headers(place),
                host=PROXY,
                kind=PlainCall,
            )
        assert isinstance(call, PlainCall)
        call.wait_for("heard", 10)
        return call

    def cluster_of(self, call: PlainCall) -> int:
        """Whose transceiver has it, by its ticket."""
        assert call.answer is not None
        return self.keys.tickets.open_untrusted(call.answer.ufrag.encode()).cluster

    def statistics(self, fleet: Fleet, call: PlainCall) -> dict[str, int]:
        """What the transceiver received of it."""
        with self.network.inside("client"):
            told = json.loads(request("GET", fleet.locations[id(call)], key=API_KEY).body)
        received: dict[str, int] = told["statistics"]["audio"]["receive"]
        return received

    def hang_up(self, fleet: Fleet, call: PlainCall) -> None:
        with self.network.inside("client"):
            assert fleet.hang_up(call, key=API_KEY) == 200
        call.wait_for("closed", 5)


def headers(place: tuple[float, float] | None) -> dict[str, str]:
    """The generic pair of location headers."""
    if place is None:
        return {}
    return {"X-Client-Latitude": str(place[0]), "X-Client-Longitude": str(place[1])}


def ingress_of(answer: str) -> str:
    """The region whose addresses are the answer's candidates, all of them."""
    hosts = {line.split()[4] for line in re.findall(r"^a=candidate:.*", answer, re.M)}
    names = [region for region, host in HOSTS.items() if hosts == {host}]
    assert len(names) == 1, f"candidates of {hosts}"
    return names[0]


@contextlib.contextmanager
def regions(directory: Path) -> Iterator[Regions]:
    """All of it, ready for calls."""
    members = {region: [host] for region, host in HOSTS.items()} | {"client": [PROXY, STRANGER]}
    secret = f"0:{secrets.token_hex(24)}"
    gate = Gate(f"http://{HOSTS['frankfurt']}:8080", tuple(f"{host}:3478" for host in HOSTS.values()))
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network(members, DELAYS))
        agents = {}
        for region in ("frankfurt", "virginia"):
            with network.inside(region):
                agents[region] = stack.enter_context(TalkingAgent())
        stack.enter_context(running(gate, check_end=True))
        made = Regions(network, gate, agents, ClusterKeys.parse([secret]))
        _start(made, directory, secret)
        deadline = time.monotonic() + START_SECONDS
        with network.inside("client"):
            while why := _unready(gate):
                assert time.monotonic() < deadline, f"not ready in {START_SECONDS} s: {why}"
                time.sleep(0.2)
        yield made


def _start(made: Regions, directory: Path, secret: str) -> None:
    redis = ["redis-server", "--port", "6379", "--bind", HOSTS["frankfurt"], "--protected-mode", "no"]
    redis += ["--save", "", "--appendonly", "no", "--dir", str(directory)]

    def add(region: str, role: str, command: list[str], ops: str = "", **settings: str) -> None:
        name = f"{role}_{region}"
        own = {
            "keys_secrets": secret,
            "registry_redis": f"redis://{HOSTS['frankfurt']}:6379/0",
            "registry_cluster": str(CLUSTERS[region]),
            "registry_lease_seconds": str(LEASE_SECONDS),
            "registry_snapshot": str(directory / f"{name}.snapshot"),
            **settings,
        }
        inside = [*made.network.command(region), *command]
        made.gate.servers[name] = spawn(name, inside, directory, own, ops=ops)

    add("frankfurt", "redis", redis)
    for region, agent in made.agents.items():
        host = HOSTS[region]
        add(
            region,
            "transceiver",
            [script("voicegate"), "--role", "transceiver"],
            f"http://{host}:3601",
            transceiver_link_listen=f"{host}:3600",
            transceiver_control_listen=f"{host}:3601",
            agent_url=agent.url,
        )
    for region, host in HOSTS.items():
        add(
            region,
            "relay",
            [script("voicegate"), "--role", "relay"],
            f"http://{host}:9478",
            relay_listen=f"{host}:3478",
            relay_link_listen=f"{host}:3500",
            relay_ops_listen=f"{host}:9478",
            relay_allowed_networks="10.77.0.0/16",
            relay_ingress=region,
            relay_location=", ".join(map(str, PLACES[region])),
            relay_workers="1",
        )
    add(
        "frankfurt",
        "signaling",
        [script("voicegate"), "--role", "signaling"],
        made.gate.url,
        signaling_listen=f"{HOSTS['frankfurt']}:8080",
        signaling_advertise="",
        signaling_clusters="1,2",
        signaling_trusted_proxies=f"{PROXY}/32",
        signaling_api_keys=API_KEY,
    )


def _unready(gate: Gate) -> str:
    """Which role is not ready, and why. A relay of a cluster without transceivers need not be, for it takes
    the calls of others."""
    for server in gate.servers.values():
        code = server.process.poll()
        assert code is None, f"{server.name} ended with {code} at its start"
        probe = "healthz" if server.name == "relay_singapore" else "readyz"
        if server.ops:
            try:
                told = request("GET", f"{server.ops}/{probe}", timeout=2)
            except OSError as error:
                return f"{server.name}: {error}"
            if told.status != 200:
                return f"{server.name}: {told.body}"
    page = request("GET", f"{gate.url}/metrics", key=API_KEY).body
    relays = parse_metrics(page).total("voicegate_signaling_registry_relays")
    return "" if relays == len(HOSTS) else f"signaling knows of {relays:g} relays"
