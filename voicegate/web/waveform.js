// The stage: two voices crossing one gate. Yours enters on the left and runs right, the agent's enters on the
// right and runs left. A bar that reaches the gate while it is shut ends there; that is what "not connected" means.
// Below each voice runs what the server takes it for, and above it why: its turns, in the same time.

const BAR_MS = 40; // two audio frames
const PITCH = 6; // px from bar to bar
const BAR = 3;
const ENTRY = 64; // px kept free for the name at the side where a voice comes in
const OPENING = 0.8; // of a lane's height; the loudest bar just passes
const GATE_MS = 420;
const STRIP = 4; // px, the thickness of what is taken for speech, a pause, a held voice
const NOTE_MS = 9_000; // a note runs out of the lane by then
const FLOOR_DB = -58;
const CEILING_DB = -12;

/** Loudness of one stream. */
export class Meter {
  #analyser;
  #samples;

  constructor(context, stream) {
    this.#analyser = context.createAnalyser();
    this.#analyser.fftSize = 2048; // 43 ms at 48 kHz: no gap between two bars
    this.#samples = new Float32Array(this.#analyser.fftSize);
    context.createMediaStreamSource(stream).connect(this.#analyser);
  }

  /** Root mean square of the last 43 ms, 0 to 1. */
  level() {
    this.#analyser.getFloatTimeDomainData(this.#samples);
    let sum = 0;
    for (const sample of this.#samples) sum += sample * sample;
    return Math.sqrt(sum / this.#samples.length);
  }
}

/** A voice's bars, oldest first: when each was heard and how high it stands (0 to 1). */
class Voice {
  bars = [];
  states = []; // {at, state}: "speech", "pause", "overlap", "held" or "", each until the next
  notes = []; // {at, text}
  meter = null;
  level = 0;

  hear(now) {
    this.level = this.meter ? this.meter.level() : 0;
    const last = this.bars.at(-1);
    if (last && now - last.at < BAR_MS) {
      last.height = Math.max(last.height, height(this.level));
      return;
    }
    // After a pause of the loop (hidden tab) the bars start afresh instead of catching up.
    const at = last && now - last.at < 10 * BAR_MS ? last.at + BAR_MS : now;
    this.bars.push({ at, height: height(this.level) });
  }

  forget(before) {
    while (this.bars.length && this.bars[0].at < before) this.bars.shift();
    while (this.states.length > 1 && this.states[1].at < before) this.states.shift();
    while (this.notes.length && this.notes[0].at < before) this.notes.shift();
  }

  get quiet() {
    return this.bars.every((bar) => bar.height === 0);
  }
}

export class Stage {
  you = new Voice();
  agent = new Voice();
  onlevels = null; // called for each frame of a call with ({you, agent}), RMS
  #canvas;
  #context;
  #colours = {};
  #live = false;
  #open = false;
  #turned = [-1e9]; // times at which the gate began to open, shut, open, …; shut before the second
  #frame = 0;
  #stillAt = 0;
  #still = matchMedia("(prefers-reduced-motion: reduce)");

  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    new ResizeObserver(() => this.#resize()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#restyle());
    this.#still.addEventListener("change", () => this.#wake());
    this.#restyle();
  }

  /** A call begins: forget the last one. */
  begin() {
    this.you = new Voice();
    this.agent = new Voice();
    this.#turned = [-1e9];
    this.#open = false;
    this.#live = true;
    this.#wake();
  }

  /** The call is over; what was said runs out and the gate shuts. */
  end() {
    this.setOpen(false);
    this.you.meter = this.agent.meter = null;
    this.#live = false;
    this.#wake();
  }

  /** What is being heard of a voice from `ago` ms before now on, and a note on why. */
  note(voice, state, text = "", ago = 0) {
    const at = performance.now() - ago;
    if (state !== null) voice.states.push({ at, state });
    if (text && state === null && voice.notes.at(-1)?.revised) voice.notes.pop(); // a judge that is asked again
    if (text) voice.notes.push({ at, text, revised: state === null });
    this.#wake();
  }

  setOpen(open) {
    if (open === this.#open) return;
    this.#open = open;
    this.#turned.push(performance.now());
    this.#wake();
  }

  #wake() {
    if (!this.#frame) this.#frame = requestAnimationFrame((now) => this.#tick(now));
  }

  #tick(now) {
    this.#frame = 0;
    const voices = [this.you, this.agent];
    const moving = this.#live || !voices.every((voice) => voice.quiet) || now - this.#turned.at(-1) < GATE_MS;
    for (const voice of voices) {
      voice.hear(now);
      voice.forget(now - (this.#width / PITCH + 2) * BAR_MS);
    }
    if (this.#live) this.onlevels?.({ you: this.you.level, agent: this.agent.level });
    if (!this.#still.matches) this.#draw(now);
    else if (now - this.#stillAt > 200 || !moving) {
      this.#stillAt = now;
      this.#drawStill();
    }
    if (moving) this.#wake();
  }

  #draw(now) {
    const { laneHeight, gate } = this.#clear();
    const aperture = this.#aperture(now);
    for (const [voice, lane, colour] of this.#lanes()) {
      const middle = laneHeight * (lane + 0.5);
      this.#baseline(middle, lane);
      this.#context.fillStyle = colour;
      for (const bar of voice.bars) {
        const run = this.#run(bar.at, now);
        const crossed = now - (run - gate) * (BAR_MS / PITCH);
        if (bar.height === 0 || (run > gate - 8 && !this.#wasOpen(crossed))) continue;
        this.#context.globalAlpha = this.#fade(run);
        this.#bar(lane === 0 ? run : this.#width - run, middle, bar.height * laneHeight * (OPENING - 0.06));
      }
      this.#context.globalAlpha = 1;
      this.#states(voice, lane, colour, now);
      this.#notes(voice, lane, now);
    }
    this.#gate(aperture);
  }

  /** A strip at the foot of the lane: full for speech, dashes for a pause, hollow for a voice that is held. */
  #states(voice, lane, colour, now) {
    const context = this.#context;
    const foot = (this.#height / 2) * (lane + 1) - STRIP - 2;
    voice.states.forEach(({ at, state }, index) => {
      if (!state) return;
      const until = voice.states[index + 1]?.at ?? now;
      const [from, to] = [this.#run(until, now), Math.min(this.#run(at, now), this.#width)];
      if (from >= to) return;
      const x = lane === 0 ? from : this.#width - to;
      context.globalAlpha = 0.9;
      context.fillStyle = context.strokeStyle = colour;
      if (state === "speech") context.fillRect(x, foot, to - from, STRIP);
      else if (state === "held") context.strokeRect(x + 0.5, foot + 0.5, to - from - 1, STRIP - 1);
      else {
        const step = state === "overlap" ? 4 : 8;
        for (let along = 0; along < to - from; along += step) context.fillRect(x + along, foot, Math.min(step / 2, to - from - along), STRIP);
      }
    });
    context.globalAlpha = 1;
  }

  /** Words at the head of the lane, in as many rows as keep them from running into each other. */
  #notes(voice, lane, now) {
    const context = this.#context;
    const head = (this.#height / 2) * lane + 14;
    const rows = [];
    context.font = "12px system-ui, sans-serif";
    context.textAlign = lane === 0 ? "left" : "right";
    for (const { at, text } of [...voice.notes].reverse()) {
      const run = this.#run(at, now);
      if (now - at > NOTE_MS || run > this.#width) continue;
      const [from, to] = [run, run + context.measureText(text).width];
      let row = rows.findIndex((end) => end + 10 < from);
      if (row < 0) row = rows.length;
      if (row > 2) continue;
      rows[row] = to;
      context.globalAlpha = 0.8;
      context.fillStyle = this.#colours.ground; // loud bars reach up here
      context.fillRect((lane === 0 ? from : this.#width - to) - 2, head + row * 15 - 11, to - from + 4, 15);
      context.globalAlpha = Math.max(0.25, this.#fade(run));
      context.fillStyle = this.#colours.ink;
      context.fillText(text, lane === 0 ? run : this.#width - run, head + row * 15);
    }
    context.globalAlpha = 1;
    context.textAlign = "left";
  }

  #run(at, now) {
    return ENTRY + (Math.max(0, now - at) / BAR_MS) * PITCH;
  }

  /** Without motion: each voice is a row whose bars stand as high as it is loud now. */
  #drawStill() {
    const { laneHeight, gate } = this.#clear();
    for (const [voice, lane, colour] of this.#lanes()) {
      const middle = laneHeight * (lane + 0.5);
      this.#baseline(middle, lane);
      this.#context.fillStyle = colour;
      const reach = this.#open ? this.#width : gate - 8;
      const tall = height(voice.level) * laneHeight * 0.6;
      for (let run = ENTRY; tall > 0 && run < reach; run += PITCH * 2) {
        this.#context.globalAlpha = this.#fade(run) * 0.8;
        this.#bar(lane === 0 ? run : this.#width - run, middle, tall);
      }
      this.#context.globalAlpha = 1;
    }
    this.#gate(this.#open ? 1 : 0);
  }

  #lanes() {
    return [
      [this.you, 0, this.#colours.you],
      [this.agent, 1, this.#colours.agent],
    ];
  }

  #clear() {
    this.#context.clearRect(0, 0, this.#width, this.#height);
    return { laneHeight: this.#height / 2, gate: this.#width / 2 };
  }

  #baseline(middle, lane) {
    this.#context.fillStyle = this.#colours.line;
    for (let run = ENTRY; run < this.#width; run += PITCH * 2) {
      this.#context.fillRect((lane === 0 ? run : this.#width - run) - PITCH / 2, middle - 0.5, PITCH, 1);
    }
  }

  #bar(x, middle, tall) {
    const length = Math.max(BAR, tall);
    this.#context.beginPath();
    this.#context.roundRect(x - BAR / 2, middle - length / 2, BAR, length, BAR / 2);
    this.#context.fill();
  }

  /** A wall with one opening for each voice; the leaves slide into the wall. */
  #gate(aperture) {
    const x = this.#width / 2;
    const lane = this.#height / 2;
    const opening = lane * OPENING;
    const leaf = (opening / 2) * (1 - aperture);
    const context = this.#context;
    context.fillStyle = this.#colours.ground;
    context.fillRect(x - 9, 0, 18, this.#height * (1 - aperture));
    context.fillStyle = this.#colours.gate;
    for (const middle of [lane * 0.5, lane * 1.5]) {
      if (leaf < 1) continue;
      for (const top of [middle - opening / 2, middle + opening / 2 - leaf]) context.fillRect(x - 1.5, top, 3, leaf);
    }
    const post = (from, to) => {
      context.beginPath();
      context.roundRect(x - 4, from, 8, to - from, 4);
      context.fill();
    };
    post(0, lane * 0.5 - opening / 2);
    post(lane * 0.5 + opening / 2, lane * 1.5 - opening / 2);
    post(lane * 1.5 + opening / 2, this.#height);
  }

  #aperture(now) {
    const part = Math.min((now - this.#turned.at(-1)) / GATE_MS, 1);
    const eased = 1 - (1 - part) ** 3;
    return this.#open ? eased : this.#turned.length > 1 ? 1 - eased : 0;
  }

  /** The gate starts shut and turns at each time in the list. */
  #wasOpen(at) {
    return this.#turned.filter((turn) => turn <= at).length % 2 === 0;
  }

  #fade(run) {
    return Math.max(0, Math.min(1, (this.#width - run) / (this.#width * 0.3), (run - ENTRY) / 24 + 0.2));
  }

  #resize() {
    const { clientWidth, clientHeight } = this.#canvas;
    const scale = window.devicePixelRatio || 1;
    this.#canvas.width = Math.round(clientWidth * scale);
    this.#canvas.height = Math.round(clientHeight * scale);
    this.#context.setTransform(scale, 0, 0, scale, 0, 0);
    this.#wake();
  }

  #restyle() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["you", "agent", "gate", "line", "ground", "ink"]) this.#colours[name] = style.getPropertyValue(`--${name}`).trim();
    this.#wake();
  }

  get #width() {
    return this.#canvas.clientWidth;
  }

  get #height() {
    return this.#canvas.clientHeight;
  }
}

/** Loudness to height: decibels, so that a whisper is seen and a shout fits. */
function height(level) {
  if (level <= 0) return 0;
  const part = (20 * Math.log10(level) - FLOOR_DB) / (CEILING_DB - FLOOR_DB);
  return Math.min(Math.max(part, 0), 1) ** 1.7; // the middle of the range is where speech differs
}
