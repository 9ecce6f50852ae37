"""The page examples as their readers build them: npm installs the exact versions, esbuild bundles them.

    page = example("agents-realtime")     # a directory with index.html and bundle.js
    with served(page) as url: ...

What was installed is kept in tests/.cache, by the hash of package.json; what was built by the hash of that
and of the example's files. Only the first run needs the registry.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
CACHE = ROOT / "tests" / ".cache"
INSTALL_SECONDS = 300.0
BUNDLE_SECONDS = 60.0
ATTEMPTS = 3
"""A registry that hiccups once is no reason to fail."""


def example(name: str) -> Path:
    """The built example: its own files and `bundle.js`."""
    source = EXAMPLES / name
    package = source / "package.json"
    files = [path for path in sorted(source.iterdir()) if path.suffix in {".html", ".js", ".css", ".json"}]
    files = [path for path in files if path.name not in {"bundle.js", "package-lock.json"}]
    built = CACHE / "pages" / f"{name}-{_digest(files)}"
    if not built.exists():
        modules = _installed(package)
        with _made_whole(built) as directory:
            for path in files:
                shutil.copy(path, directory)
            # The bundler is called with the options of the example's own `build` script.
            _run(
                [
                    *_esbuild(modules),
                    str(source / "main.js"),
                    "--bundle",
                    "--format=esm",
                    f"--outfile={directory / 'bundle.js'}",
                ],
                directory,
                BUNDLE_SECONDS,
                NODE_PATH=str(modules),
            )
    return built


@contextlib.contextmanager
def served(directory: Path) -> Iterator[str]:
    """The directory on a free port of this machine; gives the base URL."""
    handler = partial(_Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="pages", daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def _installed(package: Path) -> Path:
    """node_modules of that package.json."""
    directory = CACHE / "npm" / _digest([package])
    if not directory.exists():
        npm = shutil.which("npm")
        assert npm, "npm is not installed; the page examples are built with it (Debian, Ubuntu: nodejs npm)"
        with _made_whole(directory) as made:
            shutil.copy(package, made)
            options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
            for attempt in range(ATTEMPTS):
                try:
                    _run([npm, "install", *options], made, INSTALL_SECONDS)
                    break
                except AssertionError:
                    if attempt == ATTEMPTS - 1:
                        raise
    return directory / "node_modules"


def _esbuild(modules: Path) -> list[str]:
    """The native program where npm has put one, else the package's own start script."""
    native = sorted(modules.glob("@esbuild/*/bin/esbuild"))
    return [str(native[0])] if native else [str(modules / ".bin" / "esbuild")]


def _run(command: list[str], directory: Path, timeout: float, **environment: str) -> None:
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        check=False,
    )
    said = done.stdout.decode(errors="replace")[-4000:]
    assert done.returncode == 0, f"{Path(command[0]).name} ended with {done.returncode}:\n{said}"


@contextlib.contextmanager
def _made_whole(wanted: Path) -> Iterator[Path]:
    """A directory that gets its name only when it is complete: two runs at once never see half of one."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wanted.parent, prefix=".making-") as directory:
        made = Path(directory, "whole")
        made.mkdir()
        yield made
        with contextlib.suppress(OSError):  # another run was first
            made.rename(wanted)
    assert wanted.exists(), f"{wanted} could not be made"


def _digest(files: list[Path]) -> str:
    digest = hashlib.blake2s(digest_size=8)
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
