// One call: microphone, offer, answer, connection, hang-up. Knows nothing of the page; it tells what happens
// through events ("change", "milestone", "log", "hint", "remote", "server", "turn") and ends with exactly one "over".

import { candidatesOf, errorOf, isLoopback, secondsOf } from "./replies.js";

const CALLS = "/v1/realtime/calls";
const POST_TIMEOUT_MS = 15_000; // longer than the server's own wait for a transceiver
const CONNECT_TIMEOUT_MS = 20_000; // browsers give up on a candidate pair after about 15 s
const SLOW_MS = 4_000; // a call over a 200-ms path is up in well under a second
const POLL_MS = 1_000;
const POLL_WAIT_MAX_MS = 8_000; // between polls of a server that does not answer
const TURN = "voicegate.turn."; // docs/turns.md
const GOODBYE_MS = 1_000; // for the hang-up's reply, before the connection is closed without it

/** Why there is no call: `kind` chooses the words (messages.js), `facts` fill them. */
export class Problem extends Error {
  constructor(kind, facts = {}) {
    super(kind);
    this.kind = kind;
    this.facts = facts;
  }
}

export class Call extends EventTarget {
  state = "connecting"; // then "connected", then "ended" or "error"
  phase = "microphone"; // then "offer", "answer", "ice", "dtls", "talking"
  milestones = { click: 0 }; // ms since the click
  callId = null;
  server = null; // the last status the server gave
  muted = false;
  peer = new RTCPeerConnection();
  #settings;
  #began = performance.now();
  #microphone = null;
  #location = null;
  #candidates = [];
  #timers = new Set();
  #pollWait = POLL_MS; // doubles while HTTP gets no answer
  #over = false;

  constructor(settings) {
    super();
    this.#settings = settings;
    this.#watchPeer();
    this.#watchTurns();
  }

  /** Runs the set-up; never rejects: whatever goes wrong becomes "over". */
  async start() {
    try {
      await this.#openMicrophone();
      await this.#exchange();
    } catch (error) {
      this.#fail(error instanceof Problem ? error : new Problem("unexpected", { message: String(error) }));
    }
  }

  get elapsed() {
    return performance.now() - this.#began;
  }

  setMuted(muted) {
    this.muted = muted;
    for (const track of this.#microphone?.getAudioTracks() ?? []) track.enabled = !muted;
    this.#log("you", muted ? "Microphone muted" : "Microphone open again");
    this.#emit("change");
  }

  hangUp() {
    if (this.#over) return;
    this.#log("you", this.state === "connected" ? "Hung up" : "Cancelled");
    // Closing first would let the DTLS close overtake the request, which then finds no call.
    const answered = this.#tellServer();
    this.#finish("ended", { reason: "you", wasConnected: this.state === "connected" }, answered);
  }

  /** The page goes away: no time for anything but one request that outlives it. */
  abandon() {
    if (this.#over) return;
    this.#tellServer();
    this.#finish("ended", { reason: "page" });
  }

  // set-up

  async #openMicrophone() {
    if (!window.isSecureContext) throw new Problem("insecure");
    if (!navigator.mediaDevices?.getUserMedia) throw new Problem("unsupported");
    let stream;
    try {
      const { echoCancellation, noiseSuppression, autoGainControl } = this.#settings;
      stream = await navigator.mediaDevices.getUserMedia({
        audio: { echoCancellation, noiseSuppression, autoGainControl },
      });
    } catch (error) {
      throw microphoneProblem(error);
    }
    if (this.#over) {
      stopAll(stream);
      return;
    }
    this.#microphone = stream;
    const [track] = stream.getAudioTracks();
    track.enabled = !this.muted;
    track.addEventListener("ended", () => this.#emit("hint", { kind: "microphone_gone" }));
    this.#mark("microphone");
    this.#log("browser", `Microphone open: ${track.label || "unnamed"}`);
    this.#emit("local", { stream });
    this.peer.addTrack(track, stream);
  }

  async #exchange() {
    if (this.#over) return;
    this.#enter("offer");
    const offer = await this.peer.createOffer();
    if (this.#over) return;
    const local = this.peer.setLocalDescription(offer);
    // The server is ICE-lite and learns our address from the first check, so the offer goes without candidates.
    this.#mark("post");
    this.#enter("answer");
    const reply = await this.#post(offer.sdp);
    const sdp = await this.#accept(reply);
    if (this.#over) {
      this.#tellServer(); // cancelled while the server was answering
      return;
    }
    this.#mark("answer");
    this.#log("server", `Answer received, call ${this.callId ?? "without an id"}`);
    this.#candidates = candidatesOf(sdp);
    this.#enter("ice");
    await local;
    try {
      await this.peer.setRemoteDescription({ type: "answer", sdp });
    } catch (error) {
      if (this.#over) return; // cancelled meanwhile, and the server told
      this.#tellServer();
      throw new Problem("bad_answer", { message: error.message });
    }
    for (const receiver of this.peer.getReceivers()) askForNoDelay(receiver);
    this.#watchTransport();
    this.#after(SLOW_MS, () => this.#hintIfSlow());
    this.#after(CONNECT_TIMEOUT_MS, () => this.state === "connecting" && this.#transportFailed());
    this.#poll();
  }

  async #post(sdp) {
    const { model } = this.#settings;
    const url = model ? `${CALLS}?model=${encodeURIComponent(model)}` : CALLS;
    try {
      return await fetch(url, {
        method: "POST",
        headers: { "Content-Type": "application/sdp", Accept: "application/sdp", ...this.#authorization() },
        body: sdp,
        signal: AbortSignal.timeout?.(POST_TIMEOUT_MS),
      });
    } catch (error) {
      throw new Problem(error.name === "TimeoutError" ? "server_slow" : "unreachable", { message: error.message });
    }
  }

  /** The SDP of a 2xx; every other status is a Problem with what the server said. */
  async #accept(reply) {
    const body = await reply.text();
    if (reply.ok) {
      const location = reply.headers.get("Location");
      if (location) {
        this.#location = new URL(location, reply.url).href;
        this.callId = new URL(this.#location).pathname.split("/").pop();
      }
      return body;
    }
    const facts = { status: reply.status, ...errorOf(body) };
    this.#log("server", `Refused with ${reply.status}${facts.message ? `: ${facts.message}` : ""}`);
    if (reply.status === 503 || reply.status === 429) {
      throw new Problem("busy", { ...facts, retryAfter: secondsOf(reply.headers.get("Retry-After")) });
    }
    throw new Problem(reply.status === 401 || reply.status === 403 ? "unauthorized" : "refused", facts);
  }

  // the connection

  #watchPeer() {
    const peer = this.peer;
    peer.addEventListener("iceconnectionstatechange", () => {
      const state = peer.iceConnectionState;
      this.#log("browser", `ICE ${state}`);
      if (state === "connected" || state === "completed") this.#iceConnected();
    });
    peer.addEventListener("connectionstatechange", () => {
      const state = peer.connectionState;
      if (state === "connected") this.#connected();
      if (state === "disconnected") this.#emit("hint", { kind: "interrupted" });
      if (state === "failed") this.#transportFailed();
    });
    peer.addEventListener("track", (event) => {
      const stream = event.streams[0] ?? new MediaStream([event.track]);
      if (!this.#over) this.#emit("remote", { stream });
    });
  }

  /** The events of the Realtime API, of which the page shows only what the server decides about turns. */
  #watchTurns() {
    const channel = this.peer.createDataChannel("oai-events");
    channel.addEventListener("open", () => channel.send(JSON.stringify({ type: "voicegate.turns.watch" })));
    channel.addEventListener("message", ({ data }) => {
      const event = JSON.parse(data);
      if (!this.#over && event.type?.startsWith(TURN)) this.#emit("turn", { ...event, what: event.type.slice(TURN.length) });
    });
  }

  #watchTransport() {
    const transport = this.peer.getSenders()[0]?.transport;
    transport?.addEventListener("statechange", () => {
      this.#log("browser", `DTLS ${transport.state}`);
      if (transport.state === "connected") {
        this.#mark("ice"); // its own event may come later, the fact cannot
        this.#mark("dtls");
      }
      if (transport.state === "closed") this.#closedByServer();
    });
  }

  #iceConnected() {
    this.#mark("ice");
    if (this.state === "connecting") this.#enter("dtls");
    else this.#emit("hint", { kind: null });
  }

  #connected() {
    this.#mark("ice");
    this.#mark("dtls");
    this.#emit("hint", { kind: null });
    if (this.state !== "connecting") return;
    this.state = "connected";
    this.#log("browser", "Connected");
    this.#enter("talking");
  }

  #hintIfSlow() {
    if (this.state !== "connecting" || "ice" in this.milestones) return;
    this.#emit("hint", { kind: "slow_ice", ...this.#candidateFacts() });
  }

  async #transportFailed() {
    if (this.#over) return;
    if (this.state === "connected") {
      await this.#endWithReason("connection_lost");
      return;
    }
    this.#tellServer();
    this.#fail(new Problem("ice" in this.milestones ? "dtls_failed" : "ice_failed", this.#candidateFacts()));
  }

  #closedByServer() {
    if (!this.#over) this.#endWithReason("closed");
  }

  #candidateFacts() {
    return {
      candidates: this.#candidates.map(({ address, port }) => (address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`)),
      loopbackOnly: this.#candidates.length > 0 && this.#candidates.every(({ address }) => isLoopback(address)),
    };
  }

  // the server's view

  async #poll() {
    const known = await this.#askServer();
    if (known && !this.#over) this.#after(this.#pollWait, () => this.#poll());
  }

  /** Reads the call's status once; false when there is nothing more to ask. */
  async #askServer() {
    if (!this.#location || this.#over) return false;
    let reply;
    try {
      reply = await fetch(this.#location, { headers: this.#authorization(), cache: "no-store" });
    } catch {
      this.#pollWait = Math.min(this.#pollWait * 2, POLL_WAIT_MAX_MS);
      return true; // the call itself does not need HTTP; a later poll may get through
    }
    this.#pollWait = POLL_MS;
    if (this.#over) return false;
    if (reply.status === 404 && this.server) {
      this.#finish("ended", { reason: "gone" });
      return false;
    }
    if (!reply.ok) return reply.status >= 500 || reply.status === 429;
    const status = await reply.json().catch(() => null);
    if (!status || typeof status !== "object" || this.#over) return !this.#over;
    if (status.status !== this.server?.status) this.#log("server", `Status: ${status.status ?? "not given"}`);
    this.server = status;
    this.#emit("server");
    if (status.status === "ended") this.#endedByServer(status);
    return !this.#over;
  }

  #endedByServer({ reason, detail }) {
    // The server gave up waiting for our packets: the same trouble, seen from its side.
    if (reason === "setup_timeout" && this.state === "connecting") this.#transportFailed();
    else this.#finish("ended", { reason: reason ?? "unknown", detail });
  }

  async #endWithReason(fallback) {
    await this.#askServer();
    this.#finish("ended", { reason: this.#pollWait > POLL_MS ? "server_gone" : fallback });
  }

  #tellServer() {
    if (!this.#location) return null;
    const sent = fetch(`${this.#location}/hangup`, { method: "POST", headers: this.#authorization(), keepalive: true });
    return sent.catch((error) => this.#log("browser", `The hang-up did not reach the server: ${error.message}`));
  }

  #authorization() {
    return this.#settings.apiKey ? { Authorization: `Bearer ${this.#settings.apiKey}` } : {};
  }

  // bookkeeping

  #enter(phase) {
    this.phase = phase;
    this.#emit("change");
  }

  /** Notes a milestone once; also called from outside for what only the page can hear or count. */
  mark(name) {
    this.#mark(name);
  }

  #mark(name) {
    if (this.#over || name in this.milestones) return;
    this.milestones[name] = this.elapsed;
    this.#emit("milestone", { name });
  }

  #fail(problem) {
    this.#finish("error", { problem });
  }

  /** @param {Promise|null} goodbye what the connection may stay open for, silent */
  #finish(state, outcome, goodbye = null) {
    if (this.#over) return;
    this.#over = true;
    for (const timer of this.#timers) clearTimeout(timer);
    if (this.#microphone) stopAll(this.#microphone);
    if (goodbye) Promise.race([goodbye, new Promise((resolve) => setTimeout(resolve, GOODBYE_MS))]).then(() => this.peer.close());
    else this.peer.close();
    const lasted = "dtls" in this.milestones ? this.elapsed - this.milestones.dtls : 0;
    this.state = state;
    this.#emit("over", { lasted, ...outcome });
  }

  #after(ms, action) {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      if (!this.#over) action();
    }, ms);
    this.#timers.add(timer);
  }

  #log(who, text) {
    this.#emit("log", { who, text });
  }

  #emit(type, detail = {}) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

function stopAll(stream) {
  for (const track of stream.getTracks()) track.stop();
}

function microphoneProblem(error) {
  const kinds = {
    NotAllowedError: "microphone_refused",
    SecurityError: "microphone_refused",
    NotFoundError: "microphone_missing",
    OverconstrainedError: "microphone_missing",
    NotReadableError: "microphone_taken",
    AbortError: "microphone_taken",
  };
  return new Problem(kinds[error.name] ?? "unexpected", { message: `${error.name}: ${error.message}` });
}

/** Plays what arrives at once; each browser has its own name for it, and unknown names do nothing. */
function askForNoDelay(receiver) {
  if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0;
  if ("playoutDelayHint" in receiver) receiver.playoutDelayHint = 0;
}
