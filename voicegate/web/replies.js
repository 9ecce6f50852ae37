// Reading what the server sends: answers, refusals, waiting times.

/** The addresses an answer offers, as [{address, port}]. */
export function candidatesOf(sdp) {
  return [...sdp.matchAll(/^a=candidate:\S+ \d+ \S+ \d+ (\S+) (\d+) /gm)].map(([, address, port]) => ({ address, port }));
}

export function isLoopback(address) {
  return address.startsWith("127.") || address === "::1";
}

/** The fields of the contract's error body; none when the body is something else. */
export function errorOf(body) {
  try {
    const { message, code, param } = JSON.parse(body).error;
    return { message, code, param };
  } catch {
    return {};
  }
}

/** Retry-After in seconds, 1 to 120; it may be a number or a date (RFC 9110 section 10.2.3). */
export function secondsOf(header) {
  if (!header) return 5;
  const seconds = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.min(Math.max(Math.ceil(seconds), 1), 120) : 5;
}
