// What the server decides about turns, beside the voices: the events voicegate.turn.* of docs/turns.md in words.

const PAUSE_AFTER_MS = 100; // of silence, then the server calls it a pause
const KEPT = 500; // events, for tests and the curious

/** For each decision: what becomes of a voice's strip, a note beside the voice, and a sentence below. */
const WORDS = {
  speech_started: (e, { you }) => [you, "speech", "you speak", "You have the turn.", 300],
  pause_began: (e, { you }) => [you, "pause", "", "You pause.", PAUSE_AFTER_MS],
  judged: (e, { you }) => e.reason === "silence" ? [] : [you, null, `${Math.round(e.done * 100)} % ${words(e.reason)}`, `${Math.round(e.done * 100)} % sure that you are finished (${words(e.reason)}).`],
  resumed: (e, { you }) => [you, "speech", `went on after ${seconds(e.silence_ms)}`, "You go on."],
  ended: (e, { you }) => [you, "", `turn over: ${words(e.reason)}, ${seconds(e.silence_ms)}`, `Your turn is over: ${words(e.reason)}, after ${seconds(e.silence_ms)} of silence.`],
  eager: (e, { agent }) => [agent, null, "asked early", "The agent is asked already; its answer is held."],
  eager_wasted: (e, { agent }) => [agent, null, "early answer dropped", "You went on: the early answer is dropped."],
  output_paused: (e, { agent }) => [agent, "held", `held: ${words(e.reason)}`, "You are heard over the agent, which is held."],
  output_resumed: (e, { agent }) => [agent, "", `goes on: ${words(e.reason)}`, `It was no interruption (${words(e.reason)}): the agent goes on.`],
  output_stopped: (e, { agent }) => [agent, "", `stopped: ${words(e.reason)}`, `You interrupt the agent (${words(e.reason)}).`],
  idle_timeout: (e, { you }) => [you, null, "nobody speaks", "Nobody speaks: the agent is asked to."],
  user_idle: (e, { you }) => [you, null, "idle", "Nobody has spoken for a while."],
};

export class TurnView {
  events = [];
  #stage;
  #line;

  constructor(stage, line) {
    this.#stage = stage;
    this.#line = line;
  }

  begin() {
    this.events = [];
    this.#line.textContent = "";
  }

  show(event) {
    this.events.push({ ...event, at: performance.now() });
    if (this.events.length > KEPT) this.events.shift();
    const [voice, state, note, sentence, ago] = WORDS[event.what]?.(event, this.#stage) ?? [];
    if (!voice) return;
    this.#stage.note(voice, state, note, ago);
    if (event.what === "output_paused") this.#stage.note(this.#stage.you, "overlap", "", event.after_ms);
    if (event.what === "output_resumed") this.#stage.note(this.#stage.you, "");
    this.#line.textContent = sentence;
  }
}

function words(reason) {
  return String(reason ?? "").replaceAll("_", " ");
}

function seconds(ms) {
  return `${(ms / 1000).toFixed(2)} s`;
}
