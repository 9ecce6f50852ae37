// The page: connects the call to what is seen. All state of a call lives in Call; this file only shows it.

import { Call } from "./call.js";
import { EventLog } from "./log.js";
import { duration, explain, explainEnd, explainHint } from "./messages.js";
import { showServer } from "./server.js";
import { TurnView } from "./turns.js";
import { Settings } from "./settings.js";
import { LineReader, Numbers } from "./stats.js";
import { Waterfall } from "./waterfall.js";
import { Meter, Stage } from "./waveform.js";

const AUDIBLE = 0.003; // RMS, about -50 dBFS: above coding noise, below a whisper
const RETRIES = 5; // then a person decides

const find = (id) => document.getElementById(id);
const page = document.documentElement;
const stage = new Stage(find("voices"));
const turns = new TurnView(stage, find("turn"));
const waterfall = new Waterfall(find("waterfall"));
const numbers = new Numbers(find("numbers"));
const log = new EventLog(find("log"), () => {
  find("log-empty").hidden = true;
  find("copy-log").hidden = false;
});
const settings = new Settings(find("settings"), find("settings-toggle"), () => {
  if (page.dataset.error === "unauthorized") talk();
});

let call = null;
let audio = null; // AudioContext, made by the first click as browsers demand
let line = null; // the last numbers of the call
let retry = null; // {timer, left, count}: waiting for a busy server
let busyCount = 0;

// what a person can do

find("talk").addEventListener("click", () => {
  busyCount = 0;
  talk();
});
find("hang-up").addEventListener("click", () => call?.hangUp());
find("mute").addEventListener("click", () => call?.setMuted(!call.muted));
find("stop-waiting").addEventListener("click", () => {
  cancelRetry();
  showIdle();
  find("talk").focus();
});
find("copy-log").addEventListener("click", copyLog);
window.addEventListener("pagehide", () => call?.abandon());
window.addEventListener("keydown", (event) => {
  if (!inCall() || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Escape") {
    call.hangUp();
  } else if (event.key === " " && !event.target.closest?.("button, input, textarea, select, summary, a")) {
    event.preventDefault();
    call.setMuted(!call.muted);
  }
});

function talk() {
  if (inCall()) return;
  cancelRetry();
  audio ??= new AudioContext();
  audio.resume();
  call = new Call(settings.values);
  line = null;
  stage.begin();
  turns.begin();
  waterfall.clear();
  numbers.clear();
  find("server").hidden = true;
  find("numbers-title").textContent = "The line now";
  watch(call);
  showCall();
  find("mute").focus({ preventScroll: true });
  log.add("you", "Call started");
  call.start();
  readLine(call, new LineReader(call.peer));
  requestAnimationFrame(drawWaterfall);
}

function inCall() {
  return call !== null && (call.state === "connecting" || call.state === "connected");
}

// what the call tells

function watch(current) {
  const on = (type, action) => current.addEventListener(type, ({ detail }) => current === call && action(detail));
  on("change", showCall);
  on("log", ({ who, text }) => log.add(who, text));
  on("milestone", showWaterfall);
  on("turn", (event) => turns.show(event));
  on("hint", ({ kind, ...facts }) => showHint(kind ? explainHint(kind, facts) : ""));
  on("server", () => {
    find("server").hidden = false;
    showServer(find("server-facts"), call.server);
  });
  on("local", ({ stream }) => (stage.you.meter = new Meter(audio, stream)));
  on("remote", ({ stream }) => {
    play(stream);
    stage.agent.meter = new Meter(audio, stream);
  });
  on("over", showOver);
}

stage.onlevels = ({ agent }) => {
  if (agent > AUDIBLE && call.state === "connected" && !("first_audio" in call.milestones)) {
    call.mark("first_packet"); // what is heard has arrived, even if the counters are read a moment later
    call.mark("first_audio");
    log.add("browser", "First audio heard");
  }
};

async function play(stream) {
  const element = find("remote-audio");
  element.srcObject = stream;
  try {
    await element.play();
  } catch (error) {
    if (error.name !== "NotAllowedError") return; // a new call has taken the element
    showHint(explainHint("playback_blocked"));
    const again = () => element.play().then(() => showHint(""), () => {});
    for (const type of ["pointerdown", "keydown"]) window.addEventListener(type, again, { once: true });
  }
}

/** Every second; more often until the first packet, whose time is one of the marks. */
async function readLine(current, reader) {
  while (current === call && inCall()) {
    const read = current.state === "connected" ? await reader.read().catch(() => null) : null;
    if (current !== call || !inCall()) return;
    if (read) {
      if (read.packetsIn > 0) current.mark("first_packet");
      line = read;
      numbers.update(read);
      find("clock").textContent = duration(current.elapsed - current.milestones.dtls);
    }
    const eager = !("first_packet" in current.milestones);
    await new Promise((resolve) => setTimeout(resolve, eager ? 50 : 1000));
  }
}

// what is shown

const IDLE_TEXT = "Press Talk and speak. Where no agent is configured a parrot answers: it lets you finish, then says it back.";
const PHASES = {
  microphone: "Allow the microphone if the browser asks.",
  offer: "Preparing the offer.",
  answer: "Waiting for the server’s answer.",
  ice: "Looking for a way through over UDP.",
  dtls: "Securing the line.",
};

function showIdle() {
  setState("idle");
  headline("Talk to the agent", IDLE_TEXT);
  controls("Talk");
}

function showCall() {
  setState(call.state);
  stage.setOpen(call.state === "connected");
  if (call.state === "connected") headline("You are connected", call.muted ? "Your microphone is muted." : "Speak, and the agent answers.");
  else headline("Connecting", PHASES[call.phase] ?? "");
  controls(null);
}

function showOver({ lasted, problem, ...ending }) {
  stage.end();
  audio.suspend();
  showHint("");
  showWaterfall();
  if (line) find("numbers-title").textContent = "The line at the end";
  find("remote-audio").srcObject = null;
  setState(problem ? "error" : "ended", problem?.kind);
  const waiting = problem?.kind === "busy" && ++busyCount <= RETRIES;
  if (problem) problem.facts.waiting = waiting;
  const words = problem ? explain(problem) : explainEnd({ ...ending, lasted });
  if (!problem) page.dataset.reason = ending.reason;
  const asked = ending.reason === "you" || ending.reason === "page";
  if (asked) headline(words.title, words.text.join(" "));
  else alertWith(words);
  log.add(problem ? "error" : "page", [words.title, ...words.text].map((part) => part.replace(/[.:]$/, "")).join(". "));
  controls(problem ? "Try again" : "Talk again");
  if (waiting) waitAndRetry(problem.facts.retryAfter);
  if (words.settings) settings.show(true, "apiKey");
  else find("talk").focus({ preventScroll: true });
}

function setState(state, problem = "") {
  page.dataset.state = state;
  if (problem) page.dataset.error = problem;
  else delete page.dataset.error;
  if (state !== "ended") delete page.dataset.reason;
}

function headline(title, detail) {
  find("problem").hidden = true;
  find("problem").replaceChildren();
  find("status").hidden = false;
  // Only what has changed is written, so that a screen reader does not repeat the rest.
  if (find("status-title").textContent !== title) find("status-title").textContent = title;
  if (find("status-detail").textContent !== detail) find("status-detail").textContent = detail;
}

function alertWith({ title, text, code }) {
  const parts = [make("h1", title), ...text.map((paragraph) => make("p", paragraph))];
  if (code) {
    const block = make("pre", "");
    const pieces = code.split("=").flatMap((piece, index) => (index ? ["=", make("wbr", ""), piece] : [piece]));
    block.append(...pieces); // a narrow page breaks the line at the value
    parts.push(block);
  }
  find("status").hidden = true;
  find("problem").hidden = false;
  find("problem").replaceChildren(...parts);
}

/** @param {string|null} talkLabel null while there is a call */
function controls(talkLabel) {
  const active = talkLabel === null;
  find("talk").hidden = active;
  find("talk-label").textContent = talkLabel ?? "Talk";
  find("mute").hidden = find("hang-up").hidden = find("keys").hidden = !active;
  find("stop-waiting").hidden = true;
  find("settings-toggle").hidden = active; // they count from the next call on
  if (active) settings.show(false);
  find("clock").hidden = call?.state !== "connected";
  find("hang-up-label").textContent = call?.state === "connected" ? "Hang up" : "Cancel";
  const muted = Boolean(active && call.muted);
  find("mute").ariaPressed = String(muted);
  find("mute-label").textContent = muted ? "Unmute" : "Mute";
  find("mute-icon").setAttribute("href", muted ? "#icon-mic-off" : "#icon-mic");
  for (const mark of document.querySelectorAll(".muted-mark")) mark.hidden = !muted;
}

function showHint(text) {
  find("hint").textContent = text;
  find("hint").hidden = !text;
}

function showWaterfall() {
  waterfall.update(call.milestones, call.elapsed, !inCall());
}

function drawWaterfall() {
  if (!inCall()) return;
  showWaterfall();
  // Once connected nothing grows any more; milestones redraw by themselves.
  if (call.state === "connecting") setTimeout(() => requestAnimationFrame(drawWaterfall), 80);
}

async function copyLog() {
  const copied = await navigator.clipboard?.writeText(log.text()).then(() => true, () => false);
  find("copy-label").textContent = copied ? "Copied" : "Not allowed";
  setTimeout(() => (find("copy-label").textContent = "Copy"), 1500);
}

// a busy server

function waitAndRetry(seconds) {
  retry = { left: seconds, timer: setInterval(tickRetry, 1000) };
  find("stop-waiting").hidden = false;
  showRetry();
}

function tickRetry() {
  retry.left -= 1;
  if (retry.left > 0) showRetry();
  else talk();
}

function showRetry() {
  find("talk-label").textContent = `Try now (${retry.left} s)`;
}

function cancelRetry() {
  if (retry) clearInterval(retry.timer);
  retry = null;
}

function make(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

// facts for tests and for the curious, read-only
Object.defineProperty(window, "voicegate", {
  value: Object.freeze({
    get state() {
      return page.dataset.state;
    },
    get error() {
      return page.dataset.error ?? null;
    },
    get reason() {
      return page.dataset.reason ?? null;
    },
    get milestones() {
      return { ...call?.milestones };
    },
    get callId() {
      return call?.callId ?? null;
    },
    get server() {
      return structuredClone(call?.server ?? null);
    },
    get line() {
      return line && { ...line };
    },
    get levels() {
      return { you: stage.you.level, agent: stage.agent.level };
    },
    get turns() {
      return [...turns.events];
    },
    get events() {
      return [...log.events];
    },
  }),
});

showIdle();
if (!window.isSecureContext) {
  setState("error", "insecure");
  alertWith(explain({ kind: "insecure", facts: {} }));
}
