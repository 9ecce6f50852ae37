"""DTLS against others: plain pyOpenSSL in many shapes, aiortc's transport, the openssl command."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import pytest
from aiortc.rtcdtlstransport import RTCCertificate, RTCDtlsFingerprint, RTCDtlsParameters, RTCDtlsTransport
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL

from tests.proto.dtls_network import OURS, WALL, Path, World, deliver, incoming, outgoing
from voicegate.proto import dtls_openssl
from voicegate.proto.dtls import (
    DtlsCertificate,
    DtlsClosed,
    DtlsConnected,
    DtlsData,
    DtlsEndpoint,
    DtlsEvent,
)
from voicegate.proto.dtls_guard import verify_signature
from voicegate.proto.dtls_wire import SignedParameters
from voicegate.proto.srtp import SrtpProfile

Identity = tuple[Any, x509.Certificate]


def identity(key: Any, digest: hashes.HashAlgorithm | None) -> Identity:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "foreign")])
    today = datetime.datetime.fromtimestamp(WALL, datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    builder = builder.public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(today - datetime.timedelta(days=2))
    # Long expired: RFC 8827 section 6.5 makes the fingerprint the identity, and dates do not matter.
    builder = builder.not_valid_after(today - datetime.timedelta(days=1))
    return key, builder.sign(key, digest)


IDENTITIES: dict[str, Identity] = {
    "p256": identity(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()),
    "p384": identity(ec.generate_private_key(ec.SECP384R1()), hashes.SHA384()),
    "rsa2048": identity(rsa.generate_private_key(65537, 2048), hashes.SHA256()),
    "rsa4096": identity(rsa.generate_private_key(65537, 4096), hashes.SHA512()),
    "ed25519": identity(ed25519.Ed25519PrivateKey.generate(), None),
}


def fingerprints(who: Identity) -> tuple[tuple[str, bytes], ...]:
    return (("sha-256", hashlib.sha256(who[1].public_bytes(Encoding.DER)).digest()),)


class Foreign:
    """Plain pyOpenSSL as the manual says, with the verbs of an endpoint. It repeats nothing by itself."""

    def __init__(
        self,
        who: Identity,
        *,
        active: bool,
        mtu: int = 1200,
        srtp: bytes = b"SRTP_AES128_CM_SHA1_80:SRTP_AEAD_AES_128_GCM",
        ciphers: bytes | None = None,
        cookie: bool = False,
        chain: tuple[x509.Certificate, ...] = (),
    ) -> None:
        context = SSL.Context(SSL.DTLS_METHOD)
        context.use_privatekey(who[0])
        context.use_certificate(who[1])
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
        context.set_options(SSL.OP_NO_QUERY_MTU)
        context.set_tlsext_use_srtp(srtp)
        if ciphers:
            context.set_cipher_list(ciphers)
        for extra in chain:
            context.add_extra_chain_cert(extra)
        if cookie:
            context.set_options(SSL.OP_COOKIE_EXCHANGE)
            context.set_cookie_generate_callback(lambda _: b"a cookie")
            context.set_cookie_verify_callback(lambda _, value: value == b"a cookie")
        self.ssl = SSL.Connection(context)
        self.ssl.set_ciphertext_mtu(mtu)
        if active:
            self.ssl.set_connect_state()
        else:
            self.ssl.set_accept_state()
        self.active, self.mtu = active, mtu
        self.outbox: list[bytes] = []
        self.events: list[DtlsEvent] = []
        self.connected = False
        self.step()

    def step(self) -> None:
        try:
            if not self.connected:
                self.ssl.do_handshake()
                self.connected = True
                name = self.ssl.get_selected_srtp_profile()
                gcm = name == b"SRTP_AEAD_AES_128_GCM"
                profile = SrtpProfile.AEAD_AES_128_GCM if gcm else SrtpProfile.AES128_CM_SHA1_80
                keys = self.ssl.export_keying_material(b"EXTRACTOR-dtls_srtp", profile.material_length)
                self.events.append(DtlsConnected(profile, keys, self.active))
            while True:
                self.events.append(DtlsData(self.ssl.recv(2000)))
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.events.append(DtlsClosed("remote_close"))
        self.flush()

    def flush(self) -> None:
        stream = b""
        try:
            while True:
                stream += self.ssl.bio_read(65536)
        except SSL.Error:
            pass
        datagram = b""
        while stream:
            size = 13 + int.from_bytes(stream[11:13], "big")
            if len(datagram) + size > self.mtu:
                self.outbox.append(datagram)
                datagram = b""
            datagram, stream = datagram + stream[:size], stream[size:]
        if datagram:
            self.outbox.append(datagram)

    def receive_datagram(self, data: bytes, now: float) -> None:
        self.ssl.bio_write(data)
        self.step()

    def handle_timeout(self, now: float) -> None:
        raise AssertionError("there is no deadline")

    def poll_transmit(self) -> bytes | None:
        return self.outbox.pop(0) if self.outbox else None

    def poll_event(self) -> DtlsEvent | None:
        return self.events.pop(0) if self.events else None

    def next_deadline(self) -> float | None:
        return None


def ours(who: Identity, *, active: bool) -> DtlsEndpoint:
    return DtlsEndpoint(OURS, active=active, remote_fingerprints=fingerprints(who), now=0.0)


@pytest.mark.parametrize(
    ("name", "active"),
    # OpenSSL has no cipher suite for an Ed25519 server under DTLS 1.2.
    [
        (name, active)
        for name in IDENTITIES
        for active in (True, False)
        if (name, active) != ("ed25519", True)
    ],
)
def test_every_kind_of_certificate(name: str, active: bool) -> None:
    """RSA-4096 makes flights of several datagrams; both roles, in the minimal number of round trips."""
    foreign = Foreign(IDENTITIES[name], active=not active)
    mine = ours(IDENTITIES[name], active=active)
    world = World(mine, foreign, Path(rtt=0.1)).run()
    assert world.connected()
    assert world.connected_at(0) == pytest.approx(0.2 if active else 0.15)
    check_data(mine, foreign)


def check_data(mine: DtlsEndpoint, foreign: Foreign) -> None:
    outgoing(mine), outgoing(foreign)
    mine.send(b"to you")
    deliver(outgoing(mine), foreign)
    assert incoming(foreign) == [DtlsData(b"to you")]
    foreign.ssl.send(b"to me")
    foreign.flush()
    deliver(outgoing(foreign), mine)
    assert incoming(mine) == [DtlsData(b"to me")]


@pytest.mark.parametrize("active", [True, False])
def test_a_large_certificate_of_our_own_is_cut_at_the_mtu(active: bool) -> None:
    who = IDENTITIES["p256"]
    mine = DtlsEndpoint(
        DtlsCertificate(*IDENTITIES["rsa4096"]),
        active=active,
        remote_fingerprints=fingerprints(who),
        now=0.0,
    )
    world = World(mine, Foreign(who, active=not active), Path(rtt=0.1)).run()
    assert world.connected()
    assert sum(side == 0 for _, side, _ in world.datagrams) > 2
    assert all(len(data) <= 1200 for _, _, data in world.datagrams)


def test_under_a_rare_cipher_suite_a_lost_finished_waits_for_openssl() -> None:
    """Its own repetitions are replays to the server until OpenSSL's clock has run; nothing breaks by them."""
    who = IDENTITIES["p256"]
    foreign, mine = (
        Foreign(who, active=False, ciphers=b"ECDHE-ECDSA-CHACHA20-POLY1305"),
        ours(who, active=True),
    )
    held: list[bytes] = []

    def lost(to: int, data: bytes) -> bool:
        if to == 0 and foreign.connected:
            held.append(data)
        return to == 0 and foreign.connected

    world = World(mine, foreign, Path(rtt=0.02), lost=lost).run(limit=1.0)
    assert world.events[0] == [] and mine.statistics().repeated_flights >= 3
    deliver(held, mine, 1.0)
    assert isinstance(incoming(mine)[0], DtlsConnected)
    check_data(mine, foreign)


def rsa_signature(padding_: Any, digest: hashes.HashAlgorithm) -> bytes:
    signature: bytes = IDENTITIES["rsa2048"][0].sign(b"signed", padding_, digest)
    return signature


def test_signature_schemes() -> None:
    """RFC 8446 section 4.2.3 and RFC 5246 section 7.4.1.4.1; SHA-1 and mismatched keys verify nothing."""
    rsa_key = IDENTITIES["rsa2048"][1].public_bytes(Encoding.DER)
    ec_key = IDENTITIES["p256"][1].public_bytes(Encoding.DER)
    ed_key = IDENTITIES["ed25519"][1].public_bytes(Encoding.DER)
    for scheme, digest in ((0x0401, hashes.SHA256()), (0x0501, hashes.SHA384()), (0x0601, hashes.SHA512())):
        good = SignedParameters(b"", scheme, rsa_signature(padding.PKCS1v15(), digest))
        assert verify_signature(rsa_key, good, b"signed")
        assert not verify_signature(rsa_key, good, b"Signed")
        assert not verify_signature(ec_key, good, b"signed")
        pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
        good = SignedParameters(b"", 0x0804 + (scheme >> 8) - 4, rsa_signature(pss, digest))
        assert verify_signature(rsa_key, good, b"signed")
        signature = IDENTITIES["p256"][0].sign(b"signed", ec.ECDSA(digest))
        assert verify_signature(ec_key, SignedParameters(b"", scheme + 2, signature), b"signed")
    good = SignedParameters(b"", 0x0807, IDENTITIES["ed25519"][0].sign(b"signed"))
    assert verify_signature(ed_key, good, b"signed")
    weak = IDENTITIES["p256"][0].sign(b"signed", ec.ECDSA(hashes.SHA1()))
    assert not verify_signature(ec_key, SignedParameters(b"", 0x0203, weak), b"signed")
    assert not verify_signature(b"no certificate", good, b"signed")


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize(
    "ciphers",
    [
        b"ECDHE-ECDSA-AES128-GCM-SHA256",
        b"ECDHE-ECDSA-CHACHA20-POLY1305",
        b"ECDHE-ECDSA-AES256-GCM-SHA384",
    ],
)
def test_every_cipher_suite(ciphers: bytes, active: bool) -> None:
    who = IDENTITIES["p256"]
    foreign, mine = Foreign(who, active=not active, ciphers=ciphers), ours(who, active=active)
    assert World(mine, foreign).run().connected()
    check_data(mine, foreign)


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        (b"SRTP_AES128_CM_SHA1_80", SrtpProfile.AES128_CM_SHA1_80),
        (b"SRTP_AEAD_AES_256_GCM:SRTP_AEAD_AES_128_GCM", SrtpProfile.AEAD_AES_128_GCM),
    ],
)
def test_srtp_profiles(offered: bytes, expected: SrtpProfile, active: bool) -> None:
    who = IDENTITIES["p256"]
    world = World(ours(who, active=active), Foreign(who, active=not active, srtp=offered)).run()
    assert world.connected()
    event = world.events[0][0]
    assert isinstance(event, DtlsConnected) and event.profile is expected


def test_a_server_without_a_common_srtp_profile_gives_no_keys() -> None:
    who = IDENTITIES["p256"]
    world = World(ours(who, active=True), Foreign(who, active=False, srtp=b"SRTP_AES128_CM_SHA1_32")).run()
    assert world.events[0] == [DtlsClosed("no_srtp_profile")]


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("name", ["p256", "rsa4096"])
def test_a_small_mtu_cuts_the_flight_into_many_pieces(name: str, active: bool) -> None:
    foreign = Foreign(IDENTITIES[name], active=not active, mtu=300)
    mine = ours(IDENTITIES[name], active=active)
    world = World(mine, foreign, Path(rtt=0.1, jitter=0.01, seed=4)).run()
    assert world.connected()
    check_data(mine, foreign)


def test_a_server_that_asks_for_a_cookie_is_answered_after_a_while() -> None:
    """RFC 6347 section 4.2.1. One patience and one round trip more than without."""
    who = IDENTITIES["p256"]
    foreign, mine = Foreign(who, active=False, cookie=True), ours(who, active=True)
    world = World(mine, foreign, Path(rtt=0.02)).run()
    assert world.connected()
    assert 0.5 < world.connected_at(0) < 1.6
    check_data(mine, foreign)


@pytest.mark.parametrize("name", ["p256", "rsa2048"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_server_that_lost_its_finished_answers_our_repetition(name: str, times: int) -> None:
    """It drops a record that it has seen and answers only a fresh one; ours comes with the first timer, not
    after OpenSSL's second. Data sent afterwards is no replay either."""
    who = IDENTITIES[name]
    foreign, mine = Foreign(who, active=False), ours(who, active=True)
    finals = 0

    def lost(to: int, data: bytes) -> bool:
        nonlocal finals
        finals += to == 0 and foreign.connected
        return to == 0 and foreign.connected and finals <= times

    world = World(mine, foreign, Path(rtt=0.02), lost=lost).run()
    assert world.connected()
    assert world.connected_at(0) == pytest.approx(0.02 + sum((0.05, 0.1, 0.2)[:times]) + 0.02)
    check_data(mine, foreign)


@pytest.mark.parametrize("active", [True, False])
def test_an_impostor_ends_the_call(active: bool) -> None:
    world = World(
        ours(IDENTITIES["p384"], active=active), Foreign(IDENTITIES["p256"], active=not active)
    ).run()
    assert world.events[0] == [DtlsClosed("fingerprint_mismatch")]


@pytest.mark.parametrize("active", [True, False])
def test_the_offer_s_certificate_behind_another_proves_nothing(active: bool) -> None:
    """Only the leaf counts: anybody can send along a certificate whose key he does not have."""
    stolen = IDENTITIES["p384"]
    foreign = Foreign(IDENTITIES["p256"], active=not active, chain=(stolen[1],))
    world = World(ours(stolen, active=active), foreign).run()
    assert world.events[0] == [DtlsClosed("fingerprint_mismatch")]


@pytest.mark.parametrize("active", [True, False])
def test_a_chain_behind_the_offer_s_certificate_does_not_matter(active: bool) -> None:
    who = IDENTITIES["p256"]
    foreign = Foreign(who, active=not active, chain=(IDENTITIES["rsa4096"][1],))
    assert World(ours(who, active=active), foreign).run().connected()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_callback_that_fails_fails_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2026-27448: with an older pyOpenSSL this handshake would succeed."""

    def broken(*_: object) -> bool:
        raise RuntimeError("broken")

    monkeypatch.setattr(dtls_openssl, "_accept_any_chain", broken)
    who = IDENTITIES["p256"]
    certificate = DtlsCertificate.generate(WALL)
    mine = DtlsEndpoint(certificate, active=True, remote_fingerprints=fingerprints(who), now=0.0)
    world = World(mine, Foreign(who, active=False))
    with pytest.raises(RuntimeError, match="broken"):
        world.run()
    assert world.events[0] == []


@pytest.mark.parametrize("active", [True, False])
def test_renegotiation_is_refused_and_the_call_goes_on(active: bool) -> None:
    who = IDENTITIES["p256"]
    foreign, mine = Foreign(who, active=not active), ours(who, active=active)
    assert World(mine, foreign).run().connected()
    foreign.ssl.renegotiate()
    try:
        foreign.ssl.do_handshake()
    except SSL.Error:
        pass
    foreign.flush()
    deliver(outgoing(foreign), mine)
    assert incoming(mine) == []
    mine.send(b"as before")
    assert outgoing(mine)


@pytest.mark.parametrize("active", [True, False])
def test_close_notify_both_ways(active: bool) -> None:
    who = IDENTITIES["p256"]
    foreign, mine = Foreign(who, active=not active), ours(who, active=active)
    assert World(mine, foreign).run().connected()
    foreign.ssl.shutdown()
    foreign.flush()
    deliver(outgoing(foreign), mine)
    assert incoming(mine) == [DtlsClosed("remote_close")]
    foreign, mine = Foreign(who, active=not active), ours(who, active=active)
    assert World(mine, foreign).run().connected()
    mine.close(0.0)
    deliver(outgoing(mine), foreign)
    assert incoming(foreign) == [DtlsClosed("remote_close")]


# --- aiortc ---------------------------------------------------------------------------------------


class Wire:
    """What aiortc's DTLS needs of an ICE transport."""

    role = "controlling"

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[bytes] = asyncio.Queue()
        self.outbox: list[bytes] = []

    async def _recv(self) -> bytes:
        return await self.inbox.get()

    async def _send(self, data: bytes) -> None:
        self.outbox.append(data)


@pytest.mark.parametrize("active", [True, False])
def test_aiortc(active: bool) -> None:
    """Its own certificate, profiles and verification, and an encrypted packet of its sender."""

    async def call() -> None:
        certificate = RTCCertificate.generateCertificate()
        wire = Wire()
        transport = RTCDtlsTransport(wire, [certificate])
        transport._set_role("server" if active else "client")
        sha256 = next(f.value for f in certificate.getFingerprints() if f.algorithm == "sha-256")
        mine = DtlsEndpoint(
            OURS,
            active=active,
            remote_fingerprints=(("sha-256", bytes.fromhex(sha256.replace(":", ""))),),
            now=0.0,
        )
        expected = OURS.fingerprint.hex(":").upper()
        parameters = RTCDtlsParameters([RTCDtlsFingerprint("sha-256", expected)])
        starting = asyncio.create_task(transport.start(parameters))
        events: list[DtlsEvent] = []
        for _ in range(50):
            for data in outgoing(mine):
                wire.inbox.put_nowait(data)
            await asyncio.sleep(0)
            sent, wire.outbox[:] = list(wire.outbox), []
            deliver(sent, mine)
            events += incoming(mine)
        await starting
        assert transport.state == "connected"
        assert [type(event) for event in events] == [DtlsConnected]
        await transport._send_data(b"from aiortc")
        deliver(wire.outbox, mine)
        assert incoming(mine) == [DtlsData(b"from aiortc")]
        await transport.stop()

    asyncio.run(call())


# --- the openssl command, another version in another process --------------------------------------

OPENSSL = shutil.which("openssl")


@pytest.fixture
def files(tmp_path: FilePath) -> Iterator[list[str]]:
    key, certificate = IDENTITIES["p256"]
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    yield ["-key", str(tmp_path / "key.pem"), "-cert", str(tmp_path / "cert.pem")]


@pytest.mark.skipif(OPENSSL is None, reason="needs the openssl command")
def test_a_certificate_with_explicit_curve_parameters_is_no_trap(tmp_path: FilePath) -> None:
    """CVE-2022-0778 looped on such a key. It verifies nothing, quickly."""
    assert OPENSSL is not None
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.der"
    curve = [
        "ecparam",
        "-name",
        "prime256v1",
        "-genkey",
        "-param_enc",
        "explicit",
        "-noout",
        "-out",
        str(key),
    ]
    subprocess.run([OPENSSL, *curve], check=True, capture_output=True)
    request = [
        "req",
        "-x509",
        "-key",
        str(key),
        "-subj",
        "/CN=x",
        "-outform",
        "DER",
        "-out",
        str(certificate),
    ]
    subprocess.run([OPENSSL, *request], check=True, capture_output=True)
    began = time.process_time()
    parameters = SignedParameters(b"", 0x0403, bytes(70))
    assert not verify_signature(certificate.read_bytes(), parameters, b"signed")
    assert time.process_time() - began < 0.05


@pytest.mark.skipif(OPENSSL is None, reason="needs the openssl command")
@pytest.mark.parametrize("active", [True, False])
def test_the_openssl_command(active: bool, files: list[str]) -> None:
    assert OPENSSL is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if active:
            command = ["s_server", "-dtls1_2", "-accept", str(port), "-Verify", "1", "-quiet"]
        else:
            command = ["s_client", "-dtls1_2", "-connect", f"127.0.0.1:{sock.getsockname()[1]}", "-quiet"]
        command = [OPENSSL, *command, *files, "-use_srtp", "SRTP_AEAD_AES_128_GCM"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            connect_over(sock, ("127.0.0.1", port) if active else None, process, active)
        finally:
            process.kill()
            process.communicate()


def connect_over(
    sock: socket.socket, peer: tuple[str, int] | None, process: subprocess.Popen[bytes], active: bool
) -> None:
    began = time.monotonic()
    mine = DtlsEndpoint(OURS, active=active, remote_fingerprints=fingerprints(IDENTITIES["p256"]), now=began)
    assert process.stdin is not None and process.stdout is not None
    while time.monotonic() < began + 10:
        while peer is not None and (data := mine.poll_transmit()) is not None:
            sock.sendto(data, peer)
        for event in incoming(mine):
            if isinstance(event, DtlsConnected):
                process.stdin.write(b"hello from openssl\n")
                process.stdin.flush()
            elif isinstance(event, DtlsData):
                assert event.data == b"hello from openssl\n"
                return
        if select.select([sock], [], [], 0.02)[0]:
            try:
                data, peer = sock.recvfrom(2000)
            except ConnectionRefusedError:  # the command is still starting
                continue
            deliver([data], mine, time.monotonic())
        mine.handle_timeout(time.monotonic())
    raise AssertionError("no connection in ten seconds")
