// What getStats says of a voice call, as the few numbers a person can use.

/**
 * Reads one peer connection; every field is null until it is known.
 * Rates (loss, playout wait) cover the time since the previous read.
 */
export class LineReader {
  #peer;
  #last = {};

  constructor(peer) {
    this.#peer = peer;
  }

  async read() {
    const reports = [...(await this.#peer.getStats()).values()];
    const of = (type) => reports.find((report) => report.type === type && (report.kind ?? "audio") === "audio");
    const inbound = of("inbound-rtp");
    const outbound = of("outbound-rtp");
    const heard = of("remote-inbound-rtp"); // our packets, as the server reports them
    const transport = of("transport");
    const byId = (id) => reports.find((report) => report.id === id);
    const pair =
      byId(transport?.selectedCandidatePairId) ??
      reports.find((report) => report.type === "candidate-pair" && (report.selected || report.nominated));
    const remote = byId(pair?.remoteCandidateId);
    const codec = byId(inbound?.codecId) ?? byId(outbound?.codecId);
    return {
      roundTrip: milliseconds(pair?.currentRoundTripTime ?? heard?.roundTripTime),
      jitterIn: milliseconds(inbound?.jitter),
      jitterOut: milliseconds(heard?.jitter),
      lossIn: this.#rate("lossIn", inbound?.packetsLost, inbound && inbound.packetsLost + inbound.packetsReceived),
      lossOut: heard?.fractionLost ?? null,
      wait: milliseconds(this.#rate("wait", inbound?.jitterBufferDelay, inbound?.jitterBufferEmittedCount)),
      packetsIn: inbound?.packetsReceived ?? 0,
      packetsOut: outbound?.packetsSent ?? 0,
      lostIn: inbound?.packetsLost ?? 0,
      codec: codec?.mimeType?.replace("audio/", "") ?? null,
      server: remote?.address ? `${remote.address.includes(":") ? `[${remote.address}]` : remote.address}:${remote.port}` : null,
      cipher: transport?.srtpCipher ?? null,
    };
  }

  /** Change of `part` over change of `whole` since the last read. */
  #rate(name, part, whole) {
    if (part === undefined || whole === undefined) return null;
    const before = this.#last[name] ?? { part: 0, whole: 0 };
    this.#last[name] = { part, whole };
    return whole > before.whole ? Math.max(0, (part - before.part) / (whole - before.whole)) : null;
  }
}

const ROWS = [
  ["roundTrip", "Round trip", "large", (line) => ms(line.roundTrip)],
  ["lossIn", "Loss from the agent", "large", (line) => percent(line.lossIn, line.packetsIn)],
  ["jitterIn", "Jitter from the agent", "large", (line) => ms(line.jitterIn)],
  ["lossOut", "Loss from you", "", (line) => percent(line.lossOut, line.packetsOut)],
  ["jitterOut", "Jitter from you", "", (line) => ms(line.jitterOut)],
  ["wait", "Held before playing", "", (line) => ms(line.wait)],
  ["packets", "Packets in / out", "", (line) => [`${line.packetsIn} / ${line.packetsOut}`, ""]],
  ["codec", "Codec", "", (line) => [line.codec, ""]],
  ["cipher", "Encryption", "", (line) => [line.cipher?.replace(/^SRTP_/, "").replaceAll("_", " "), ""]],
  ["server", "Media goes to", "", (line) => [line.server, ""]],
];

/** The definition list on the page. */
export class Numbers {
  #cells = new Map();

  constructor(list) {
    for (const [name, label, size] of ROWS) {
      const row = document.createElement("div");
      row.className = size;
      row.append(document.createElement("dt"), document.createElement("dd"));
      row.firstChild.textContent = label;
      row.lastChild.dataset.testid = `number-${name}`;
      list.append(row);
      this.#cells.set(name, row.lastChild);
    }
    this.clear();
  }

  clear() {
    for (const cell of this.#cells.values()) show(cell, null, "");
  }

  update(line) {
    for (const [name, , , format] of ROWS) show(this.#cells.get(name), ...format(line));
  }
}

function show(cell, value, unit) {
  cell.replaceChildren(value ?? "–");
  if (value === null || value === undefined || !unit) return;
  const small = document.createElement("small");
  small.textContent = unit;
  cell.append(small);
}

function milliseconds(seconds) {
  return seconds === undefined || seconds === null ? null : seconds * 1000;
}

function ms(value) {
  if (value === null) return [null, ""];
  return [value < 10 ? value.toFixed(1) : String(Math.round(value)), "ms"];
}

function percent(part, packets) {
  if (part === null || packets === 0) return [null, ""];
  return [part === 0 ? "0" : (part * 100).toFixed(1), "%"];
}
