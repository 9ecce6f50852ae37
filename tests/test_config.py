"""Loading and checking the configuration: every problem is a sentence that names its key."""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from voicegate.config import (
    DEFAULT_ADVERTISE,
    ROLES,
    Config,
    ConfigError,
    Role,
    StaticTransceiver,
    load_config,
    parse_listen,
)
from voicegate.config_checks import check
from voicegate.net.registry import open_registry
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.ticket import GRACE_SECONDS, expired

FILES = Path(__file__).resolve().parents[1] / "config"
SECRET = "0:" + "s" * 32


def test_defaults_run_in_one_process() -> None:
    config = load_config(None, {})
    assert config == Config()
    assert check(config, ROLES) == []
    assert config.signaling.advertise == DEFAULT_ADVERTISE == config.relay.listen


def test_the_full_file_names_every_key_with_its_default() -> None:
    data = tomllib.loads((FILES / "voicegate.toml").read_text())
    assert set(data) == set(Config.__struct_fields__)
    for section, table in data.items():
        assert set(table) == set(getattr(Config(), section).__struct_fields__), section
    assert load_config(FILES / "voicegate.toml", {}) == Config()


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("voicegate", ROLES),
        ("relay", ("relay",)),
        ("transceiver", ("transceiver",)),
        ("signaling", ("signaling",)),
        ("cluster", ("relay",)),
        ("cluster", ("transceiver",)),
        ("cluster", ("signaling",)),
    ],
)
def test_every_file_is_usable_for_its_role(name: str, roles: tuple[Role, ...]) -> None:
    environ = {} if name in ("voicegate", "cluster") else {"VOICEGATE_KEYS_SECRETS": SECRET}
    assert check(load_config(FILES / f"{name}.toml", environ), roles) == []


def test_the_shared_files_hold_no_secret_but_the_marked_one() -> None:
    for path in FILES.glob("*.toml"):
        secrets = load_config(path, {}).keys.secrets
        assert not secrets or (path.name == "cluster.toml" and "development-only" in secrets[0])


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[relay]\nlisten = ["127.0.0.1:1"]\nmax_flows = 5\n[signaling]\ndemo_page = true\n')
    environ = {
        "VOICEGATE_RELAY_LISTEN": "127.0.0.1:2, [::1]:3,",
        "VOICEGATE_SIGNALING_DEMO_PAGE": "false",
        "VOICEGATE_REGISTRY_LEASE_SECONDS": "2.5",
        "VOICEGATE_REGISTRY_TRANSCEIVERS": '[{"id": 3, "link": "10.0.0.1:1", "control": "10.0.0.1:2"}]',
        "VOICEGATE_KEYS_SECRETS": "",
        "PATH": "/bin",
    }
    config = load_config(path, environ)
    assert config.relay.listen == ("127.0.0.1:2", "[::1]:3")
    assert config.relay.max_flows == 5
    assert config.signaling.demo_page is False
    assert config.registry.lease_seconds == 2.5
    assert config.registry.transceivers == (StaticTransceiver(id=3, link="10.0.0.1:1", control="10.0.0.1:2"),)
    assert config.keys.secrets == ()


def test_every_key_has_a_variable() -> None:
    for section in Config.__struct_fields__:
        for key, value in msgspec.structs.asdict(getattr(Config(), section)).items():
            if key in ("transceivers", "relays") or (section, key) == ("signaling", "keys"):
                text = "[]"
            else:
                text = ",".join(value) if isinstance(value, tuple) else str(value).lower()
            assert load_config(None, {f"VOICEGATE_{section}_{key}".upper(): text}) == Config(), (section, key)


@pytest.mark.parametrize(
    ("text", "environ", "says"),
    [
        ("[relay]\nmax_flows = 'many'", {}, "relay.max_flows: Expected `int`, got `str`"),
        ("[relay]\nmax_flow = 1", {}, "relay: .* unknown field `max_flow`; did you mean max_flows[?]$"),
        ("[relay]\nbandwidth = 1", {}, "relay: .* unknown field `bandwidth`$"),
        (
            "[[signaling.keys]]\nname = 'a'\nkey = 'b'\nrecords = 'always'",
            {},
            r"signaling.keys\[0\]: .*`records`; did you mean record[?]$",
        ),
        ("[relais]\nx = 1", {}, r"no section \[relais\]; the sections are log, keys.*did you mean relay[?]$"),
        ("[relay", {}, "is not TOML"),
        ("relay = 3", {}, "relay: Expected `object`"),
        ("relay = 3", {"VOICEGATE_RELAY_MAX_FLOWS": "1"}, r"\[relay\] must be a table"),
        (
            "",
            {"VOICEGATE_RELAI_MAX_FLOW": "1"},
            "VOICEGATE_RELAI_MAX_FLOW names no key.*; did you mean VOICEGATE_RELAY_MAX_FLOWS[?]$",
        ),
        ("", {"VOICEGATE_X": "1"}, "VOICEGATE_X names no key of the configuration$"),
        ("", {"VOICEGATE_RELAY_MAX_FLOWS": "many"}, "VOICEGATE_RELAY_MAX_FLOWS: Expected `int`"),
        ("", {"VOICEGATE_LOG_LEVEL": "loud"}, "'loud'; write one of debug, info, warning, error$"),
        ("[log]\nlevel = 'loud'", {}, "log.level: .*'loud'; write one of debug, info, warning, error$"),
        ("[relay]\nworkers = 'many'", {}, "relay.workers: .*; write one of a number, auto$"),
        (
            "[[signaling.keys]]\nname = 'a'\nkey = 'b'\nrecord = 'yes'",
            {},
            r"signaling.keys\[0\].record: .*; write one of never, allowed, always$",
        ),
        ("[relay]\nlisten = '127.0.0.1:1'", {}, r"relay.listen: .*; write a list, as in \[\"...\"\]$"),
        ("", {"VOICEGATE_REGISTRY_TRANSCEIVERS": "{"}, "VOICEGATE_REGISTRY_TRANSCEIVERS: "),
    ],
)
def test_what_cannot_be_loaded_is_named(
    tmp_path: Path, text: str, environ: dict[str, str], says: str
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_config(path, environ)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none.toml: No such file"):
        load_config(tmp_path / "none.toml", {})


TABLE = [{"id": 1, "link": "10.0.0.1:1", "control": "10.0.0.1:2"}]
TABLE_KEY = {"name": "shop", "key": "k" * 16}
SPLIT = {"keys": {"secrets": [SECRET]}, "registry": {"redis": "redis://127.0.0.1/0"}}


@pytest.mark.parametrize(
    ("role", "changes", "says"),
    [
        ("relay", {"keys": {"secrets": []}}, "keys.secrets is empty"),
        ("relay", {"keys": {"secrets": ["9:" + "s" * 32]}}, "keys.secrets: a secret must be written"),
        ("relay", {"keys": {"secrets": ["0:short"]}}, "needs at least 32"),
        (
            "relay",
            {"keys": {"secrets": [SECRET], "file": "/none"}},
            "keys.file and keys.secrets are both set",
        ),
        ("relay", {"keys": {"secrets": [], "file": "/none"}}, "keys.file: cannot read /none: No such file"),
        ("relay", {"registry": {"redis": ""}}, "set registry.redis or list registry.transceivers"),
        ("relay", {"registry": {"redis": "localhost"}}, "registry.redis must be a URL"),
        ("relay", {"registry": {"redis": "redis://h:abc/0"}}, "registry.redis must have an IP address"),
        ("relay", {"registry": {"redis": "redis://h:0/0"}}, "a port from 1 to 65535"),
        ("relay", {"registry": {"redis": "redis://h:65536/0"}}, "a port from 1 to 65535"),
        ("relay", {"registry": {"redis": "redis://[::1/0"}}, "registry.redis must have an IP address"),
        ("relay", {"registry": {"redis": "redis://h/0?foo=bar"}}, "registry.redis has an option other than"),
        ("relay", {"registry": {"redis": "redis://h?protocol=3"}}, "registry.redis has an option other than"),
        ("relay", {"registry": {"redis": "redis://h?ssl_cert_reqs=none"}}, "has an option other than"),
        ("relay", {"registry": {"redis": "rediss://h?ssl_cert_reqs=maybe"}}, "as ssl_cert_reqs"),
        ("relay", {"registry": {"redis": "redis://h/zero"}}, "must end in the number of a database"),
        ("relay", {"registry": {"redis": "unix://?db=0"}}, "registry.redis must name a socket"),
        ("relay", {"registry": {"cluster": 4096}}, "registry.cluster must be"),
        ("relay", {"registry": {"lease_seconds": 0.1}}, "registry.lease_seconds"),
        ("relay", {"registry": {"transceivers": TABLE * 2}}, "ids are different numbers"),
        ("relay", {"registry": {"transceivers": [TABLE[0] | {"link": "10.0.0.1:0"}]}}, "needs a port"),
        ("relay", {"registry": {"transceivers": [TABLE[0] | {"capacity": 0}]}}, "capacity must be"),
        ("relay", {"relay": {"listen": []}}, "relay.listen is empty"),
        ("relay", {"relay": {"listen": ["example.org:1"]}}, "'example.org' is not an IP address"),
        ("relay", {"relay": {"listen": ["::1:80"]}}, "needs brackets"),
        ("relay", {"relay": {"listen": ["127.0.0.1:99999"]}}, "not of the form address:port"),
        ("relay", {"relay": {"link_listen": "0.0.0.0:1"}}, "relay.link_listen: 0.0.0.0:1 names no machine"),
        ("relay", {"relay": {"ops_listen": "x"}}, "relay.ops_listen"),
        ("transceiver", {"transceiver": {"ops_listen": "x"}}, "transceiver.ops_listen"),
        (
            "relay",
            {"relay": {"allowed_networks": ["10.0.0.1/8"]}},
            "allowed_networks: 10.0.0.1/8 has host",
        ),
        ("relay", {"relay": {"max_flows": 0}}, "relay.max_flows"),
        ("relay", {"relay": {"flow_idle_seconds": 0}}, "relay.flow_idle_seconds"),
        ("relay", {"relay": {"pin_cpu": -3}}, "relay.pin_cpu"),
        ("transceiver", {}, "agent.url is empty"),
        ("transceiver", {"agent": {"url": "http://x"}}, "agent.url must begin with ws"),
        ("transceiver", {"agent": {"headers": ["x"]}}, "agent.headers"),
        ("transceiver", {"agent": {"headers": ["x: 1\r\ny: 2"]}}, "agent.headers"),
        ("transceiver", {"agent": {"session": "[]"}}, "agent.session must be a JSON object"),
        ("transceiver", {"agent": {"stall_seconds": 0}}, "agent.stall_seconds"),
        ("transceiver", {"agent": {"url": "ws://x", "audio_rate_in": 44_100}}, "24000, 16000, 8000"),
        (
            "transceiver",
            {"agent": {"url": "ws://x", "audio_format_in": "audio/pcmu", "audio_rate_in": 16_000}},
            "agent.audio_rate_in: audio/pcmu is always 8000 Hz; leave the key out",
        ),
        (
            "transceiver",
            {"agent": {"audio_format_out": "audio/pcma"}},
            "agent.audio_format_out: the embedded parrot (agent.url is empty) knows only audio/pcm",
        ),
        ("transceiver", {"agent": {"audio_rate_out": 8000}}, "agent.audio_rate_out: the embedded parrot"),
        ("transceiver", {"transceiver": {"id": 2**20}}, "transceiver.id must be"),
        ("transceiver", {"transceiver": {"link_listen": "[::]:1"}}, "transceiver.link_listen"),
        ("transceiver", {"transceiver": {"control_listen": "0.0.0.0:0"}}, "transceiver.control_listen"),
        ("transceiver", {"transceiver": {"max_calls": 0}}, "transceiver.max_calls"),
        ("transceiver", {"transceiver": {"idle_seconds": 0}}, "transceiver.idle_seconds"),
        ("transceiver", {"transceiver": {"drain_seconds": -1}}, "transceiver.drain_seconds"),
        ("transceiver", {"transceiver": {"max_call_seconds": -1}}, "transceiver.max_call_seconds"),
        ("transceiver", {"transceiver": {"max_call_seconds": 2**23}}, "transceiver.max_call_seconds must be"),
        (
            "transceiver",
            {"registry": {"redis": "", "transceivers": TABLE}},
            "is not in registry.transceivers",
        ),
        (
            "transceiver",
            {"recording": {"directory": "calls"}},
            "recording.directory 'calls' must be an absolute",
        ),
        (
            "transceiver",
            {"recording": {"directory": "/none"}},
            "recording.directory /none is not a directory",
        ),
        ("transceiver", {"recording": {"max_bytes": 0}}, "recording.max_bytes must be more than 0"),
        ("transceiver", {"recording": {"max_seconds": -1}}, "recording.max_seconds must be more than 0"),
        ("signaling", {"signaling": {"listen": "0.0.0.0:80"}}, "needs signaling.api_keys"),
        ("signaling", {"signaling": {"listen": "203.0.113.1:80"}}, "needs signaling.api_keys"),
        ("signaling", {"signaling": {"api_keys": ["short"]}}, "signaling.api_keys: a key must have"),
        ("signaling", {"signaling": {"api_keys": ["schl\u00fcssel-schl\u00fcssel"]}}, "must be of ASCII"),
        ("signaling", {"signaling": {"api_keys": [" key-number-one-1"]}}, "must be of ASCII"),
        ("relay", {"relay": {"listen": ["127.0.0.1:1/sctp"]}}, "behind the / there is udp or tcp"),
        ("relay", {"relay": {"listen": ["127.0.0.1:443/tcp"]}}, "relay.listen has only TCP"),
        (
            "relay",
            {"relay": {"advertise": ["0.0.0.0:443/tcp"]}},
            "relay.advertise: 0.0.0.0:443 names no machine",
        ),
        ("relay", {"relay": {"location": "91, 0"}}, "relay.location: '91, 0' is no place"),
        ("relay", {"relay": {"location": "here"}}, "relay.location: 'here' is not of the form"),
        ("relay", {"relay": {"workers": -1}}, "relay.workers must be from 0 to 256, or auto"),
        (
            "transceiver",
            {"transceiver": {"workers": 0}},
            "transceiver.workers must be from 1 to 256, or auto",
        ),
        (
            "transceiver",
            {"transceiver": {"workers": 3, "id": 1048574}},
            "with 3 workers the last one's is 1048576",
        ),
        (
            "transceiver",
            {"transceiver": {"workers": 3, "control_listen": "127.0.0.1:65534"}},
            "3 workers need as many ports",
        ),
        ("relay", {"relay": {"max_connections": 0}}, "relay.max_connections must be at least 1"),
        ("signaling", {"signaling": {"clusters": [4096]}}, "signaling.clusters: 4096 is not from 0 to 4095"),
        (
            "signaling",
            {"signaling": {"trusted_proxies": ["10.0.0.1/8"]}},
            "signaling.trusted_proxies: 10.0.0.1/8",
        ),
        ("signaling", {"signaling": {"location_headers": ["x"]}}, "signaling.location_headers: name two"),
        (
            "signaling",
            {"signaling": {"advertise": ["127.0.0.1:0"]}},
            "advertise: 127.0.0.1:0 needs",
        ),
        ("signaling", {"signaling": {"advertise": ["0.0.0.0:1"]}}, "signaling.advertise"),
        ("signaling", {"signaling": {"certificate": "/x.pem"}}, "set without signaling.private_key"),
        ("signaling", {"signaling": {"private_key": "/x.pem"}}, "cannot read /x.pem"),
        ("signaling", {"signaling": {"allowed_origins": ["example.com"]}}, "signaling.allowed_origins"),
        ("signaling", {"signaling": {"max_setups": 0}}, "signaling.max_setups"),
        ("signaling", {"signaling": {"max_websockets": 0}}, "signaling.max_websockets"),
        ("signaling", {"signaling": {"keys": [TABLE_KEY | {"name": "a b"}]}}, "'a b': names are"),
        ("signaling", {"signaling": {"keys": [TABLE_KEY, TABLE_KEY]}}, "'shop': names are different"),
        ("signaling", {"signaling": {"keys": [TABLE_KEY | {"key": "short"}]}}, "'shop': a key must have"),
        ("signaling", {"signaling": {"keys": [TABLE_KEY | {"models": []}]}}, "'shop': models is empty"),
        ("signaling", {"signaling": {"keys": [TABLE_KEY | {"max_calls": -1}]}}, "not be negative"),
        (
            "signaling",
            {"signaling": {"keys": [TABLE_KEY], "api_keys": [TABLE_KEY["key"]]}},
            "a key is there twice",
        ),
        ("signaling", {"signaling": {"api_keys": ["ek_" + "x" * 20]}}, "ek_ is for the keys"),
        ("signaling", {"agent": {"url": "http://x"}}, "agent.url must begin with ws"),
    ],
)
def test_problems_are_sentences(role: Role, changes: dict[str, dict[str, Any]], says: str) -> None:
    data = {section: {**SPLIT.get(section, {}), **changes.get(section, {})} for section in {*SPLIT, *changes}}
    problems = check(msgspec.convert(data, type=Config), [role])
    assert any(says in problem for problem in problems), problems
    assert SECRET not in " ".join(problems)


@pytest.mark.parametrize("role", ["relay", "transceiver"])
def test_worker_processes_are_for_a_role_by_itself(role: Role) -> None:
    config = msgspec.convert({role: {"workers": 2}}, type=Config)
    assert f"{role}.workers is 2: processes are for a {role} by itself" in " ".join(check(config, ROLES))
    assert f"{role}.workers" not in " ".join(check(config, [role]))


def test_each_worker_needs_an_entry_in_a_static_registry() -> None:
    entry = {"id": 7, "link": "127.0.0.1:4000", "control": "127.0.0.1:4001"}
    data = {"registry": {"transceivers": [entry]}, "transceiver": {"id": 7, "workers": 2}}
    problems = check(msgspec.convert(data, type=Config), ["transceiver"])
    assert "transceiver.id 8 is not in registry.transceivers" in problems


def test_a_key_that_records_needs_somewhere_to_record_to(tmp_path: Path) -> None:
    data = {"signaling": {"keys": [TABLE_KEY | {"record": "always"}]}}
    words = "signaling.keys 'shop': record is always, but recording.directory is empty"
    assert check(msgspec.convert(data, type=Config), ROLES) == [words]
    data["recording"] = {"directory": str(tmp_path)}  # type: ignore[assignment]
    assert check(msgspec.convert(data, type=Config), ROLES) == []


@pytest.mark.parametrize("text", ["inf", "-inf", "nan"])
def test_every_number_is_finite(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.toml"
    names = [
        (section, key)
        for section in Config.__struct_fields__
        for key, value in msgspec.structs.asdict(getattr(Config(), section)).items()
        if isinstance(value, float)
    ]
    assert ("relay", "flow_idle_seconds") in names
    for section, key in names:
        path.write_text(f"[{section}]\n{key} = {text}\n")
        expected = [f"{section}.{key} must be a finite number, not {text}"]
        assert check(load_config(path, {}), ROLES) == expected


def test_the_longest_call_has_a_ticket_that_has_not_expired() -> None:
    longest = next(
        seconds
        for seconds in range(2**23, 0, -1)
        if not check(msgspec.convert({"transceiver": {"max_call_seconds": seconds}}, type=Config), ROLES)
    )
    keys = ClusterKeys.parse([SECRET]).tickets
    for wall in (1_800_000_000.0, 1_800_000_015.9):
        text = keys.mint(1, 1, wall + longest + GRACE_SECONDS, bytes(5))
        assert not expired(keys.open_untrusted(text.encode()), wall)
        assert not expired(keys.open_untrusted(text.encode()), wall - 200), "nor by a clock that is behind"


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://user:%2Fp%40ss@10.0.0.1:6379/15",
        "redis://[::1]:6379?db=2",
        "rediss://h/0?ssl_cert_reqs=none&ssl_ca_certs=/etc/ca.pem",
        "unix:///run/redis.sock?db=1",
    ],
)
def test_usable_redis_urls(url: str) -> None:
    config = msgspec.convert({**SPLIT, "registry": {"redis": url}}, type=Config)
    assert check(config, ["relay"]) == []
    open_registry(config, ClusterKeys.parse([SECRET]))


def test_a_password_in_a_bad_redis_url_is_not_repeated() -> None:
    for url in ("redis://:hush/hush@h:1/0", "redis://:hush?hush=1@h", "redis://:hush@h:hush/0"):
        problems = check(msgspec.convert({**SPLIT, "registry": {"redis": url}}, type=Config), ["relay"])
        assert problems and "hush" not in " ".join(problems)


def test_certificates_and_keys_are_looked_at(tmp_path: Path) -> None:
    certificate, key = make_pair(tmp_path, "one")
    _, other = make_pair(tmp_path, "two")
    _, locked = make_pair(tmp_path, "locked", serialization.BestAvailableEncryption(b"hush"))
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    torn = tmp_path / "torn.pem"
    torn.write_text(key.read_text()[:80] + "\n-----END PRIVATE KEY-----\n")

    def problems(certificate: Path, key: Path) -> list[str]:
        settings = {"certificate": str(certificate), "private_key": str(key)}
        return check(msgspec.convert({**SPLIT, "signaling": settings}, type=Config), ["signaling"])

    assert problems(certificate, key) == []
    for bad_certificate, bad_key, says in (
        (tmp_path, key, f"signaling.certificate: {tmp_path} is not a file"),
        (certificate, tmp_path, f"signaling.private_key: {tmp_path} is not a file"),
        (junk, key, f"signaling.certificate: {junk} holds no certificate in PEM form"),
        (key, certificate, f"signaling.certificate: {key} holds no certificate in PEM form"),
        (certificate, junk, f"signaling.private_key: {junk} holds no private key in PEM form"),
        (certificate, other, f"signaling.private_key: {other} is not the key of signaling.certificate"),
        (certificate, locked, f"signaling.private_key: {locked} is encrypted"),
        (certificate, torn, f"and signaling.private_key {torn} cannot be loaded"),
        (tmp_path / "a\0b", key, "signaling.certificate: cannot read"),
    ):
        (problem,) = problems(bad_certificate, bad_key)
        assert says in problem


def make_pair(
    directory: Path,
    name: str,
    encryption: serialization.KeySerializationEncryption | None = None,
) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1)
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(2100, 1, 1))
        .sign(key, hashes.SHA256())
    )
    paths = directory / f"{name}.pem", directory / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    paths[1].write_bytes(key.private_bytes(*form, encryption or serialization.NoEncryption()))
    return paths


@pytest.mark.parametrize("keys", [{"api_keys": ["k" * 16]}, {"keys": [TABLE_KEY]}])
def test_a_public_address_is_served_with_keys(keys: dict[str, Any]) -> None:
    data = {**SPLIT, "signaling": {"listen": "0.0.0.0:443", **keys}}
    assert check(msgspec.convert(data, type=Config), ["signaling"]) == []


def test_keys_with_restrictions_from_the_environment() -> None:
    text = '[{"name": "shop", "key": "kkkkkkkkkkkkkkkk", "models": ["m"], "client_events": ["response.*"]}]'
    (key,) = load_config(None, {"VOICEGATE_SIGNALING_KEYS": text}).signaling.keys
    assert (key.name, key.models, key.client_events) == ("shop", ("m",), ("response.*",))
    assert (key.max_calls, key.calls_per_minute, key.server_events) == (0, 0, ("*",))


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_sentence(text: str) -> None:
    try:
        host, port = parse_listen(text)
    except ValueError as error:
        assert repr(text) in str(error)
    else:
        assert 0 <= port <= 65535 and host


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("judge", "oracle", "There is no turn judge 'oracle' here. There are: adaptive, fixed"),
        ("activity", "ear", "There is no voice activity 'ear' here"),
        ("policy", "polite", "There is no interruption policy 'polite' here"),
        ("judge", "smart-turn", "turns.smart_turn_model is empty: the judge smart-turn needs its ONNX file"),
        ("smart_turn_model", "/x.onnx", "turns.judge is adaptive: write smart-turn"),
        ("max_turn_seconds", "-1", "turns.max_turn_seconds must not be negative"),
        ("pause_after_seconds", "0", "turns.pause_after_seconds must be more than 0"),
        ("stop_after_seconds", "0.01", "must not be less than turns.pause_after_seconds"),
    ],
)
def test_turns(key: str, value: str, words: str) -> None:
    config = load_config(None, {f"VOICEGATE_TURNS_{key.upper()}": value})
    (problem,) = check(config, ROLES)
    assert words in problem
    assert not [p for p in check(config, ("relay",)) if "turns" in p], "which is not a relay's business"


@pytest.mark.parametrize(
    ("variable", "value"), [("AGENT_TURN_DETECTION", "psychic"), ("TURNS_EAGERNESS", "very")]
)
def test_unknown_words_about_turns(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match="Invalid enum value"):
        load_config(None, {f"VOICEGATE_{variable}": value})


def test_an_agent_that_commits_nothing_cannot_be_the_judge() -> None:
    environ = {"VOICEGATE_TURNS_JUDGE": "upstream", "VOICEGATE_AGENT_TURN_DETECTION": "none"}
    (problem,) = check(load_config(None, environ), ROLES)
    assert "there is no commit to wait for" in problem
