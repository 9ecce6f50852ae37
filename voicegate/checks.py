"""What the configuration points at outside itself: can it be used? None, or a sentence for a person."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    import maxminddb

_REDIS_SCHEMES = ("redis", "rediss", "unix")
_REDIS_OPTIONS = frozenset({"db", "username", "password", "client_name"})
_REDISS_OPTIONS = frozenset(
    {"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_check_hostname"}
    | {"ssl_cert_reqs"}
)
"""What a query may say. The rest of what redis-py takes there would change what we rely on."""


def redis_problem(text: str) -> str | None:
    """What is wrong with the URL, without repeating any of it: it may hold a password."""
    if not text.startswith(tuple(f"{scheme}://" for scheme in _REDIS_SCHEMES)):
        return "must be a URL that begins with redis://, rediss:// or unix://"
    try:
        url = urlsplit(text)
        # Port 0 is what redis-py takes for none at all.
        port_is_wrong = url.port == 0
    except ValueError:
        port_is_wrong = True
    if port_is_wrong:
        return "must have an IP address or name and a port from 1 to 65535 (%-encode / ? # @ : in a password)"
    options = {name: values[0] for name, values in parse_qs(url.query).items()}
    known = _REDIS_OPTIONS | (_REDISS_OPTIONS if url.scheme == "rediss" else frozenset())
    if options.keys() - known:
        return f"has an option other than {', '.join(sorted(known))}"
    if url.scheme == "unix" and not url.path.strip("/"):
        return "must name a socket, as in unix:///run/redis.sock?db=0"
    database = options.get("db", "" if url.scheme == "unix" else unquote(url.path).strip("/"))
    if database and not (database.isascii() and database.isdigit()):
        return "must end in the number of a database, as in redis://127.0.0.1:6379/0"
    if options.get("ssl_cert_reqs", "none") not in ("none", "optional", "required"):
        return "must have none, optional or required as ssl_cert_reqs"
    return None


def directory_problem(path: str) -> str | None:
    """Whether files can be made there."""
    if not os.path.isabs(path):
        return f"{path!r} must be an absolute path"
    if not os.path.isdir(path):
        return f"{path} is not a directory; make one that only voicegate's user can read"
    if not os.access(path, os.W_OK | os.X_OK):
        return f"{path} cannot be written to by this user"
    return None


def geoip_problem(path: str) -> str | None:
    """Open the database as signaling will."""
    try:
        open_geoip(path).close()
    except ImportError:
        return "needs the package maxminddb: pip install '.[geoip]'"
    except OSError as error:
        return f"cannot read {path}: {error.strerror or error}"
    except ValueError:
        return f"{path} is not a MaxMind database"
    return None


def open_geoip(path: str) -> maxminddb.Reader:
    """A MaxMind database, read into memory. OSError: it cannot be read; ValueError: it is none; ImportError:
    the package is optional.

    It costs as much memory as the file has bytes, and twice that while a new one is opened. Mapped, as is
    usual, it would cost the pages that are looked at; but a file that is cut short while it is mapped kills
    the process with SIGBUS, on its next look-up.
    """
    import maxminddb

    try:
        return maxminddb.open_database(path, maxminddb.MODE_MEMORY)
    except (maxminddb.InvalidDatabaseError, TypeError) as error:  # TypeError: of metadata that are incomplete
        raise ValueError(str(error)) from error


def pair_problem(certificate: str, private_key: str) -> str | None:
    """Load the two as the server will. OpenSSL does not say which file it means, so each is looked at."""
    try:
        chain = Path(certificate).read_bytes()
        key = Path(private_key).read_bytes()
    except OSError as error:
        return f"signaling.certificate or signaling.private_key: {error.filename}: {error.strerror}"
    if b"-----BEGIN " not in chain or b"CERTIFICATE-----" not in chain:
        return f"signaling.certificate: {certificate} holds no certificate in PEM form"
    if b"PRIVATE KEY-----" not in key:
        return f"signaling.private_key: {private_key} holds no private key in PEM form"
    encrypted = False

    def no_password() -> str:
        nonlocal encrypted
        encrypted = True
        return ""

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, private_key, no_password)
    except (OSError, ValueError) as error:
        if encrypted:
            return (
                f"signaling.private_key: {private_key} is encrypted; voicegate cannot ask for a pass phrase"
            )
        reason = getattr(error, "reason", None) or error
        if reason == "KEY_VALUES_MISMATCH":
            return (
                f"signaling.private_key: {private_key} is not the key of signaling.certificate {certificate}"
            )
        return (
            f"signaling.certificate {certificate} and signaling.private_key {private_key} cannot be loaded:"
            f" {reason}"
        )
    return None
