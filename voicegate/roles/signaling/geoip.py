"""The MaxMind database file that tells where an address is (`signaling.geoip_database`).

It is read into memory, and a look-up takes 30 microseconds. When the file is replaced the new one is used
within a minute. Replace it by renaming, as geoipupdate and `mv` do: half a file is no database, and the old
one stays until the file changes once more.
"""

from __future__ import annotations

import os
from typing import Any

import maxminddb

from voicegate import logs
from voicegate.checks import open_geoip
from voicegate.roles.signaling.location import Address
from voicegate.roles.signaling.steering import Place, place_of

LOOK_SECONDS = 60.0
"""How often a look-up also looks whether the file was replaced; the databases are published twice a week."""

_log = logs.get_logger(__name__)


class GeoDatabase:
    """An open database. Raises what `open_geoip` does."""

    def __init__(self, path: str, now: float) -> None:
        self._path = path
        self._seen = self._stamp()
        self._reader = open_geoip(path)
        self._look_at = now + LOOK_SECONDS

    def find(self, address: Address, now: float) -> Place | None:
        """Where the address is, if the database knows; LookupError where it is damaged."""
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._reopen()
        try:
            return _place(self._reader.get(address))
        except (maxminddb.InvalidDatabaseError, UnicodeDecodeError, TypeError) as error:
            raise LookupError(str(error)) from None
        except ValueError:  # IPv6 in a database of IPv4
            return None

    def _reopen(self) -> None:
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return
            self._seen = stamp  # a file that cannot be used is tried once, not every minute
            reader = open_geoip(self._path)
        except (OSError, ValueError) as error:
            _log.warning("signaling.geoip_database cannot be read again; the old one stays", error=str(error))
            return
        self._reader.close()
        self._reader = reader
        _log.info("signaling.geoip_database was replaced", built=reader.metadata().build_epoch)

    def _stamp(self) -> tuple[int, int, int]:
        status = os.stat(self._path)
        return status.st_ino, status.st_mtime_ns, status.st_size


def _place(found: Any) -> Place | None:
    """Out of a record of GeoLite2-City, GeoIP2-Enterprise, DBIP-City and the like."""
    location = found.get("location") if isinstance(found, dict) else None
    if not isinstance(location, dict):
        return None
    latitude, longitude = location.get("latitude"), location.get("longitude")
    if isinstance(latitude, float | int) and isinstance(longitude, float | int):
        return place_of(latitude, longitude)
    return None
