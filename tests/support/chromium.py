"""A real headless Chromium over its DevTools protocol, with a WAV as its microphone.

    with Chromium(microphone=path) as browser:
        page = browser.open("http://127.0.0.1:8080/")
        page.click('[data-testid="talk"]')
        page.wait("window.voicegate.state === 'connected'", 10)
        sound = page.heard()

Every page gets a small script before its own: it taps the microphone and each remote track on one clock, so
that a test can lay what was said beside what was heard.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from websockets.sync.client import ClientConnection, connect

from tests.support import speech

START_SECONDS = 30.0
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-features=MediaRouter,OptimizationHints,Translate,AutofillServerCommunication,InterestFeedContentSuggestions,CertificateTransparencyComponentUpdater",
    "--disable-breakpad",
    "--disable-client-side-phishing-detection",
    "--metrics-recording-only",
    "--mute-audio",
    "--password-store=basic",
    "--use-mock-keychain",
    "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-port=0",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost, EXCLUDE [::1]",
    "--window-size=1280,900",
)

# ScriptProcessor and not a worklet: no module to load, and blocks of 1024 keep it off the page's back.
TAP = """
(() => {
  if (window.__ears) return;
  const ears = window.__ears = {microphone: [], remote: [], errors: [], connections: []};
  let context = null;
  const tap = (stream, into) => {
    try {
      context = context || new AudioContext({sampleRate: 48000});
      context.resume();
      const source = context.createMediaStreamSource(stream);
      const node = context.createScriptProcessor(1024, 1, 1);
      node.onaudioprocess = (event) => {
        const samples = event.inputBuffer.getChannelData(0);
        const block = new Int16Array(samples.length);
        for (let i = 0; i < samples.length; i++)
          block[i] = Math.max(-32768, Math.min(32767, Math.round(samples[i] * 32767)));
        into.push([event.playbackTime, block]);
      };
      source.connect(node);
      node.connect(context.destination);
      (ears.keep = ears.keep || []).push(source, node, stream);
    } catch (error) { ears.errors.push(String(error)); }
  };
  const media = navigator.mediaDevices;
  if (media) {
    const ask = media.getUserMedia.bind(media);
    media.getUserMedia = async (constraints) => {
      const stream = await ask(constraints);
      tap(stream.clone(), ears.microphone);
      return stream;
    };
  }
  const Native = window.RTCPeerConnection;
  window.RTCPeerConnection = function (...args) {
    const connection = new Native(...args);
    ears.connections.push(connection);
    connection.addEventListener('track', (event) => {
      const stream = new MediaStream([event.track]);
      // Chromium decodes a remote track for Web Audio only while an element plays it.
      const element = new Audio();
      element.muted = true;
      element.srcObject = stream;
      element.play().catch((error) => ears.errors.push(String(error)));
      (ears.keep = ears.keep || []).push(element);
      tap(stream, ears.remote);
    });
    return connection;
  };
  window.RTCPeerConnection.prototype = Native.prototype;
  Object.setPrototypeOf(window.RTCPeerConnection, Native);
  window.__take = (name) => {
    const blocks = ears[name];
    const start = blocks.length ? blocks[0][0] : 0;
    let size = 0;
    for (const [, block] of blocks) size += block.length;
    const all = new Int16Array(size);
    let place = 0;
    for (const [, block] of blocks) { all.set(block, place); place += block.length; }
    const bytes = new Uint8Array(all.buffer);
    let text = '';
    for (let i = 0; i < bytes.length; i += 32768)
      text += String.fromCharCode.apply(null, bytes.subarray(i, i + 32768));
    return {start, samples: btoa(text)};
  };
})();
"""


class BrowserError(AssertionError):
    """The page threw, or the browser refused a command."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Sound at 48 kHz; `start` is on the page's audio clock, the same for microphone and remote."""

    start: float
    sound: speech.Sound


@dataclass
class Chromium:
    """The browser's process and its debugging socket. A context manager."""

    microphone: Path | None = None
    """Played once from the moment the microphone is opened, then silence. None: no device, access refused."""
    loop: bool = False
    flags: tuple[str, ...] = ()
    viewport: tuple[int, int] | None = None
    """Width and height of a phone, in CSS pixels."""
    program: str = ""

    def __enter__(self) -> Self:
        program = self.program or shutil.which("chromium") or shutil.which("chromium-browser") or ""
        assert program, "Chromium is not installed"
        self._profile = tempfile.mkdtemp(prefix="voicegate-chromium-")
        flags = [*FLAGS, f"--user-data-dir={self._profile}", *self.flags]
        if self.microphone is not None:
            once = "" if self.loop else "%noloop"
            flags += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
            flags += [f"--use-file-for-fake-audio-capture={self.microphone}{once}"]
        self._log = Path(self._profile, "stderr.log").open("wb")
        self.process = subprocess.Popen(
            [program, *flags, "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
        )
        try:
            self._ids = itertools.count(1)
            self._answers: dict[int, dict[str, Any]] = {}
            self._pages: dict[str, Page] = {}
            self._changed = threading.Condition()
            self._closing = contextlib.ExitStack()
            self._socket = self._connect()
            self._reader = threading.Thread(target=self._read, name="chromium", daemon=True)
            self._reader.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        socket = getattr(self, "_socket", None)
        if socket is not None:
            with contextlib.suppress(Exception):
                self.send("Browser.close", timeout=5)
            with contextlib.suppress(Exception):
                self._closing.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._log.close()
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, url: str) -> Page:
        """A new tab with the page loaded."""
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        page.send("Page.addScriptToEvaluateOnNewDocument", {"source": TAP})
        if self.viewport is not None:
            page.resize(*self.viewport, mobile=True)
        page.go(url)
        return page

    def send(
        self,
        method: str,
        parameters: dict[str, Any] | None = None,
        session: str | None = None,
        *,
        timeout: float = 20,
    ) -> Any:
        """One DevTools command; BrowserError when it is refused or not answered."""
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters or {}}
        if session is not None:
            message["sessionId"] = session
        self._socket.send(json.dumps(message))
        with self._changed:
            if not self._changed.wait_for(lambda: number in self._answers, timeout):
                raise BrowserError(f"{method}: no answer in {timeout} s")
            answer = self._answers.pop(number)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _connect(self) -> ClientConnection:
        told = Path(self._profile, "DevToolsActivePort")
        deadline = time.monotonic() + START_SECONDS
        while not (told.exists() and len(lines := told.read_text().split()) == 2):
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = Path(self._profile, "stderr.log").read_text(errors="replace")[-2000:]
                raise BrowserError(f"Chromium did not start ({self.process.poll()}): {said}")
            time.sleep(0.02)
        # Recordings of a call come back as one message.
        url = f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        return self._closing.enter_context(connect(url, max_size=256 << 20, compression=None, proxy=None))

    def _read(self) -> None:
        with contextlib.suppress(Exception):  # the end of the connection
            for text in self._socket:
                message = json.loads(text)
                with self._changed:
                    if "id" in message:
                        self._answers[message["id"]] = message
                    elif (page := self._pages.get(message.get("sessionId", ""))) is not None:
                        page._event(message["method"], message["params"])
                    self._changed.notify_all()


@dataclass
class Page:
    """One tab."""

    browser: Chromium
    session: str
    console: list[str] = field(default_factory=list)
    """"level: text" of each console message."""
    exceptions: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    """URLs that the page asked for."""
    failed_requests: list[str] = field(default_factory=list)
    _loaded: int = 0

    def send(self, method: str, parameters: dict[str, Any] | None = None, *, timeout: float = 20) -> Any:
        return self.browser.send(method, parameters, self.session, timeout=timeout)

    def go(self, url: str) -> None:
        """Navigate and wait for the load event."""
        before = self._loaded
        result = self.send("Page.navigate", {"url": url})
        if result.get("errorText"):
            raise BrowserError(f"{url}: {result['errorText']}")
        with self.browser._changed:
            if not self.browser._changed.wait_for(lambda: self._loaded > before, 20):
                raise BrowserError(f"{url}: no load event")

    def evaluate(self, script: str, *, timeout: float = 20) -> Any:
        """The value of an expression; a promise is awaited. BrowserError when it throws."""
        result = self.send(
            "Runtime.evaluate",
            {"expression": script, "awaitPromise": True, "returnByValue": True, "userGesture": True},
            timeout=timeout,
        )
        if "exceptionDetails" in result:
            raise BrowserError(_exception_text(result["exceptionDetails"]))
        return result["result"].get("value")

    def wait(self, condition: str, timeout: float) -> Any:
        """Until the expression is truthy; its value. BrowserError with the page's console otherwise."""
        deadline = time.monotonic() + timeout
        while True:
            value = self.evaluate(condition)
            if value:
                return value
            if time.monotonic() > deadline:
                raise BrowserError(f"not within {timeout} s: {condition}\n{self.trouble()}")
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """A real mouse click in the middle of the element."""
        box = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " if (!e) return null; e.scrollIntoView({block: 'center', behavior: 'instant'});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        if box is None:
            raise BrowserError(f"no element {selector}")
        for kind in ("mousePressed", "mouseReleased"):
            self.send(
                "Input.dispatchMouseEvent",
                {"type": kind, "x": box[0], "y": box[1], "button": "left", "clickCount": 1},
            )

    def text(self, selector: str = "body") -> str:
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def resize(self, width: int, height: int, *, mobile: bool = False) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 2 if mobile else 1, "mobile": mobile},
        )

    def screenshot(self, path: Path) -> Path:
        data = self.send("Page.captureScreenshot", {"format": "png"})["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))
        return path

    def heard(self) -> Recording:
        """What came in from the far end so far."""
        return self._recording("remote")

    def said(self) -> Recording:
        """What the microphone gave, after the browser's own voice processing."""
        return self._recording("microphone")

    def trouble(self) -> str:
        return "\n".join([*self.exceptions, *self.console[-20:], *self.failed_requests])

    def _recording(self, name: str) -> Recording:
        taken = self.evaluate(f"window.__take({json.dumps(name)})", timeout=60)
        return Recording(float(taken["start"]), speech.from_pcm(base64.b64decode(taken["samples"])))

    def _event(self, method: str, parameters: dict[str, Any]) -> None:
        handlers: dict[str, Callable[[dict[str, Any]], None]] = {
            "Page.loadEventFired": lambda _p: setattr(self, "_loaded", self._loaded + 1),
            "Runtime.consoleAPICalled": lambda p: self.console.append(
                f"{p['type']}: " + " ".join(str(a.get("value", a.get("description", ""))) for a in p["args"])
            ),
            "Runtime.exceptionThrown": lambda p: self.exceptions.append(
                _exception_text(p["exceptionDetails"])
            ),
            "Log.entryAdded": lambda p: self.console.append(f"{p['entry']['level']}: {p['entry']['text']}"),
            "Network.requestWillBeSent": lambda p: self.requests.append(p["request"]["url"]),
            "Network.loadingFailed": lambda p: self.failed_requests.append(p.get("errorText", "")),
        }
        if method in handlers:
            handlers[method](parameters)


def _exception_text(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details.get("text", "?"))
