// The event log: what happened, who said so, when.

const KEPT = 300; // a call has tens of events; the list must not grow with the day

export class EventLog {
  events = []; // {at: ISO time, who, text}
  #list;
  #onfirst;

  constructor(list, onfirst) {
    this.#list = list;
    this.#onfirst = onfirst;
    window.addEventListener("resize", () => {
      const following = this.#following;
      this.#fit();
      if (following) this.#list.scrollTop = this.#list.scrollHeight;
    });
  }

  /** @param {"page"|"you"|"browser"|"server"|"error"} who */
  add(who, text) {
    const now = new Date();
    this.events.push(Object.freeze({ at: now.toISOString(), who, text }));
    if (this.events.length === 1) this.#onfirst();
    const item = document.createElement("li");
    item.dataset.who = who;
    const time = document.createElement("time");
    time.dateTime = now.toISOString();
    time.textContent = clock(now);
    const source = document.createElement("span");
    source.className = "who";
    source.textContent = who;
    const words = document.createElement("span");
    words.className = "text";
    words.textContent = text;
    item.append(time, source, words);
    const following = this.#following;
    this.#list.append(item);
    if (this.events.length > KEPT) {
      this.events.shift();
      this.#list.firstElementChild.remove();
    }
    this.#fit();
    if (following) this.#list.scrollTop = this.#list.scrollHeight;
  }

  get #following() {
    return this.#list.scrollHeight - this.#list.scrollTop - this.#list.clientHeight < 24;
  }

  /** As high as the last rows that fit whole, so that none is cut in half. */
  #fit() {
    this.#list.style.maxHeight = "";
    const room = parseFloat(getComputedStyle(this.#list).maxHeight);
    let height = 0;
    for (let row = this.#list.lastElementChild; row; row = row.previousElementSibling) {
      const taller = height + row.getBoundingClientRect().height;
      if (taller > room) break;
      height = taller;
    }
    if (height) this.#list.style.maxHeight = `${height}px`;
  }

  /** The whole log as text, to paste into a report. */
  text() {
    return this.events.map(({ at, who, text }) => `${at}  ${who.padEnd(7)}  ${text}`).join("\n");
  }
}

function clock(date) {
  const two = (value) => String(value).padStart(2, "0");
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}
