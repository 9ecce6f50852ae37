// The connection waterfall: one row a milestone, its bar from the milestone before it, on one linear axis whose
// zero is the POST. What takes a person's time (the permission prompt, the first words) may run off the axis.

const ROWS = [
  ["microphone", "Microphone", "Microphone open"],
  ["post", "Offer sent", "Offer sent"],
  ["answer", "Answer", "Answer received"],
  ["ice", "ICE", "ICE connected"],
  ["dtls", "DTLS", "DTLS connected"],
  ["first_packet", "First packet from the agent", "First audio packet received; the agent speaks after you"],
  ["first_audio", "First sound from the agent", "First audio heard; the agent speaks after you"],
];
const STRETCH = 3; // how far the axis may grow beyond the set-up for a slow first packet or first word
const TICK_PX = 44; // the widest label, with air

export class Waterfall {
  #rows = new Map();
  #grid;
  #origin;

  constructor(root) {
    this.#grid = element("div", "ticks");
    this.#grid.ariaHidden = "true";
    const head = element("div", "waterfall-head");
    head.ariaHidden = "true";
    head.append(element("span", "", "ms from"), element("span", "axis"), element("span", "number", "click"), element("span", "number", "POST"));
    const list = element("ol", "waterfall");
    for (const [name, label, said] of ROWS) list.append(this.#row(name, label, said));
    root.append(head, this.#grid, list);
    this.clear();
  }

  clear() {
    this.#origin = 0;
    this.#grid.replaceChildren();
    for (const row of this.#rows.values()) {
      row.item.dataset.status = "none";
      delete row.item.dataset.click;
      delete row.item.dataset.post;
      row.click.textContent = row.post.textContent = "–";
      row.said.textContent = "not yet";
      row.bar.hidden = true;
    }
  }

  /**
   * @param {Record<string, number>} milestones ms since the click
   * @param {number} elapsed ms since the click, for the bar that is still growing
   * @param {boolean} over no more milestones will come
   */
  update(milestones, elapsed, over) {
    const pending = over ? null : ROWS.map(([name]) => name).find((name) => !(name in milestones));
    // Nobody knows when the agent will speak: that row waits without a growing bar.
    const growing = pending === "first_audio" || pending === "first_packet" ? null : pending;
    const end = growing ? elapsed : 0;
    const axis = axisOf(milestones, end);
    if ("microphone" in milestones) this.#ticks(axis, milestones.post ?? end);
    let before = 0;
    for (const [name] of ROWS) {
      const row = this.#rows.get(name);
      const at = milestones[name];
      row.item.dataset.status = at !== undefined ? "done" : name === pending ? "pending" : "none";
      if (at !== undefined) this.#fill(row, at, milestones.post);
      this.#place(row.bar, axis, before, at ?? (name === growing ? elapsed : undefined));
      before = at ?? before;
    }
  }

  #row(name, label, said) {
    const item = element("li", "waterfall-row");
    item.dataset.testid = `waterfall-${name}`;
    item.dataset.name = name;
    const row = { item, bar: element("span", "bar"), click: element("span", "number"), post: element("span", "number"), said: element("span", "unseen") };
    const track = element("span", "track");
    track.append(row.bar);
    for (const part of [row.click, row.post, track]) part.ariaHidden = "true";
    const visible = element("span", "name", label);
    visible.title = said;
    item.append(visible, track, row.click, row.post, row.said);
    this.#rows.set(name, row);
    return item;
  }

  #fill(row, at, post) {
    row.item.dataset.click = at.toFixed(1);
    row.click.textContent = milliseconds(at);
    row.said.textContent = `${milliseconds(at)} ms after the click`;
    if (post === undefined || at < post) return;
    row.item.dataset.post = (at - post).toFixed(1);
    row.post.textContent = milliseconds(at - post);
    row.said.textContent += `, ${milliseconds(at - post)} ms after the POST`;
  }

  #place(bar, axis, from, to) {
    bar.hidden = to === undefined || to < axis.from || from > axis.to;
    if (to === undefined) return;
    if (from > axis.to) {
      // All of it lies beyond the axis: a stub at the edge says so.
      bar.hidden = false;
      from = axis.to - (axis.to - axis.from) * 0.1;
    }
    bar.classList.toggle("cut-start", from < axis.from);
    bar.classList.toggle("cut-end", to > axis.to);
    const scale = 100 / (axis.to - axis.from);
    const left = Math.max(from, axis.from);
    bar.style.left = `${(left - axis.from) * scale}%`;
    bar.style.width = `${Math.max((Math.min(to, axis.to) - left) * scale, 0)}%`;
  }

  #ticks(axis, zero) {
    const span = axis.to - axis.from;
    const width = this.#grid.clientWidth || 200;
    const step = niceStep((span * TICK_PX) / width);
    const key = `${width} ${axis.from.toFixed(1)} ${axis.to.toFixed(1)} ${zero.toFixed(1)}`;
    if (key === this.#origin) return;
    this.#origin = key;
    const ticks = [];
    for (let at = Math.ceil((axis.from - zero) / step) * step; at + zero <= axis.to; at += step) {
      const place = ((at + zero - axis.from) / span) * 100;
      if (place > 100 - (TICK_PX * 85) / width) continue;
      const tick = element("span", at === 0 ? "tick zero" : "tick", at === 0 ? "POST" : String(Number(at.toPrecision(6))));
      tick.style.left = `${place}%`;
      ticks.push(tick);
    }
    this.#grid.replaceChildren(...ticks);
  }
}

/** Shows the set-up in full; grows for what is next to it and cuts what is far away. */
function axisOf(milestones, end) {
  const post = milestones.post ?? end;
  const ready = Math.max(milestones.dtls ?? milestones.ice ?? milestones.answer ?? post, end, post + 10);
  const span = ready - post;
  const late = ["first_packet", "first_audio"].map((name) => milestones[name]).filter((at) => at < post + span * STRETCH);
  const cut = late.length < ["first_packet", "first_audio"].filter((name) => name in milestones).length;
  const from = milestones.post === undefined || post < span * STRETCH ? 0 : post - span * 0.35;
  const to = Math.max(ready, ...late);
  return { from, to: to + (to - from) * (cut ? 0.2 : 0.06) }; // room for a bar to be seen running off
}

function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].find((factor) => factor * power >= least) * power;
}

function milliseconds(ms) {
  return ms < 10 && ms > 0 ? ms.toFixed(1) : Math.round(ms).toLocaleString("en").replaceAll(",", "\u202f");
}

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}
