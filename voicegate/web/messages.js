// The words for everything that can go wrong or end: what is wrong, then what to do.
// Each answer is {title, text: [paragraphs], code?: text to copy, settings?: true to open the settings}.

const isFirefox = navigator.userAgent.includes("Firefox/");

/** @param {{kind: string, facts: object}} problem */
export function explain({ kind, facts }) {
  return (PROBLEMS[kind] ?? PROBLEMS.unexpected)(facts);
}

/** Why a call that was there is over. `lasted` in ms. */
export function explainEnd({ reason, detail, lasted, wasConnected }) {
  const after = lasted > 0 ? ` after ${duration(lasted)}` : "";
  if (reason === "you") {
    return wasConnected ? { title: "Call ended", text: [`You hung up${after}.`] } : { title: "Cancelled", text: ["No call was made."] };
  }
  const known = (reason === "agent_lost" && AGENT_ENDINGS[detail]) || ENDINGS.find(({ names }) => names.includes(reason));
  const words = known ? `${known.text} The call ended${after}.` : `The call ended${after}. The server’s reason: ${String(reason).replaceAll("_", " ")}.`;
  return {
    title: known?.title ?? "The server ended the call",
    text: [words, ...(detail && !isCode(detail) ? [`It says: ${sentence(detail)}`] : [])],
  };
}

/** What is said while a call goes on or comes up. */
export function explainHint(kind, facts) {
  if (kind === "slow_ice" && isFirefox && facts.loopbackOnly) return loopbackText(facts);
  if (kind === "slow_ice") return `Nothing has come back from ${places(facts)} over UDP yet. Still trying.`;
  return HINTS[kind] ?? "";
}

/** 65000 → "1:05". */
export function duration(ms) {
  const seconds = Math.floor(ms / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

const HINTS = {
  interrupted: "The line is interrupted. Waiting for it to come back.",
  microphone_gone: "The microphone was unplugged or taken away; the agent hears silence. Hang up and talk again to choose another.",
  playback_blocked: "The browser holds back the sound. Press any key or click anywhere on the page to hear the agent.",
};

const PROBLEMS = {
  insecure: () => ({
    title: "The browser gives no microphone to this page",
    text: [
      "Microphones work only on https pages and on localhost. Open this page as http://localhost on the machine that runs voicegate, or give voicegate a certificate and open it with https.",
    ],
    code: "VOICEGATE_SIGNALING_CERTIFICATE=cert.pem\nVOICEGATE_SIGNALING_PRIVATE_KEY=key.pem",
  }),
  unsupported: () => ({
    title: "This browser cannot open a microphone",
    text: ["It lacks getUserMedia, or an embedding page keeps it away. Use a current Firefox, Chrome, Edge or Safari, in a tab of its own."],
  }),
  microphone_refused: () => ({
    title: "The microphone is refused",
    text: [
      "Allow it in the site settings, left of the address, and talk again. If it is allowed there, the operating system’s privacy settings keep it from the browser.",
    ],
  }),
  microphone_missing: () => ({
    title: "No microphone found",
    text: ["Plug one in or switch it on in the system’s sound settings, then talk again."],
  }),
  microphone_taken: ({ message }) => ({
    title: "The microphone does not start",
    text: [`Another program may hold it, or it has failed. Close what uses it and talk again. The browser says: ${message}`],
  }),
  busy: ({ message, waiting, code }) => ({
    title: code === "no_transceiver" ? "The server takes no calls" : "The server is busy",
    text: [
      message ? sentence(message) : "It carries as many calls as it may right now.",
      waiting ? "The page tries again by itself." : "It stayed busy through several tries; come back a little later.",
    ],
  }),
  unauthorized: ({ message, status }) => ({
    title: "The server wants an API key",
    text: [
      status === 403 ? "This key may not make calls here. Enter another below, then talk." : "Enter it below, then talk.",
      ...(message ? [`It says: ${sentence(message)}`] : []),
    ],
    settings: true,
  }),
  refused: ({ message, status, param }) => ({
    title: "The server refused the call",
    text: [
      message ? sentence(message) : `It answered with status ${status} and no reason.`,
      ...(param ? [`The part it objects to: ${param}`] : []),
      status >= 500 ? "Its log has more; talk again in a moment." : "A reload gives a fresh page; if that does not help, this browser and the server do not fit.",
    ],
  }),
  bad_answer: ({ message }) => ({
    title: "The browser rejects the server’s answer",
    text: [sentence(message)],
  }),
  unreachable: () => ({
    title: "The server does not answer",
    text: ["The request for a call got no reply. Is voicegate still running, and is this machine online?"],
  }),
  server_slow: () => ({
    title: "The server took too long",
    text: ["No answer within 15 seconds. Its log says what it was waiting for; talk again in a moment."],
  }),
  ice_failed: (facts) =>
    isFirefox && facts.loopbackOnly
      ? { title: "Firefox does not use 127.0.0.1", text: [`${loopbackText(facts)} Or use a Chromium browser.`], code: ADVERTISE }
      : {
          title: "No way through over UDP",
          text: [
            `The call was set up over HTTP, but nothing came back from ${places(facts)}. Either a firewall blocks UDP there, or the address that voicegate advertises is not one this browser can reach. Put an address of that machine which can be reached into relay.listen and signaling.advertise, for example in the environment:`,
          ],
          code: ADVERTISE,
        },
  dtls_failed: (facts) => ({
    title: "The line could not be secured",
    text: [`${places(facts)} answers, but the DTLS handshake did not finish. A middlebox may drop larger packets; the server’s log has the reason.`],
  }),
  unexpected: ({ message }) => ({
    title: "Something unexpected went wrong",
    text: [sentence(message ?? "No details."), "Copy the events below if you report it."],
  }),
};

const ENDINGS = [
  { names: ["page"], title: "Call ended", text: "You left the page." },
  { names: ["hangup"], title: "Hung up elsewhere", text: "Someone ended the call through the server." },
  {
    names: ["agent_lost"],
    title: "The agent is gone",
    text: "The server lost its connection to the agent or could not make one; check agent.url and the agent’s own log.",
  },
  { names: ["idle"], title: "The line went silent", text: "Nothing from this browser reached the server for too long." },
  { names: ["max_age"], title: "Time is up", text: "Calls here have a maximum length." },
  { names: ["shutdown", "draining"], title: "The server is stopping", text: "It is shut down or restarted; talk again in a moment." },
  { names: ["connection_lost"], title: "The connection is lost", text: "Packets stopped coming through; the network may have changed." },
  { names: ["remote_close", "bye"], title: "The connection was closed", text: "The server saw this browser close it." },
  { names: ["fingerprint_mismatch", "handshake_failed"], title: "The line could not be secured", text: "The server rejected the DTLS handshake; something between it and this browser may have changed it." },
  { names: ["setup_timeout"], title: "The connection did not come up in time", text: "The server stopped waiting for it." },
  { names: ["server_gone"], title: "The server is gone", text: "Neither media nor HTTP gets an answer; voicegate may have been stopped, or this machine is offline." },
  { names: ["closed"], title: "The server ended the call", text: "It closed the connection without giving a reason." },
  { names: ["gone"], title: "The server no longer knows the call", text: "It may have been restarted." },
];

const AGENT_ENDINGS = {
  agent_unreachable: { title: "The agent cannot be reached", text: "Nothing takes connections at agent.url (VOICEGATE_AGENT_URL); start the agent or correct the address." },
  agent_refused: { title: "The agent refuses the connection", text: "It does not accept the server’s request; check agent.url, agent.model and agent.api_key." },
  agent_timeout: { title: "The agent does not begin", text: "It took the connection, but no session began; check that agent.url is a Realtime WebSocket, and the agent’s own log." },
  agent_stalled: { title: "The agent has stopped", text: "It takes nothing of what is sent to it; the agent’s own log may say why." },
  agent_closed: { title: "The agent has hung up", text: "It closed its connection; the agent’s own log may say why." },
};

const ADVERTISE = "VOICEGATE_RELAY_LISTEN=ADDRESS:3478\nVOICEGATE_SIGNALING_ADVERTISE=ADDRESS:3478";

function loopbackText(facts) {
  return `voicegate advertises only ${places(facts)}, and Firefox as shipped does not pair loopback addresses with others. Put the machine’s own address into relay.listen and signaling.advertise.`;
}

function places({ candidates }) {
  return candidates?.length ? candidates.join(" or ") : "the advertised address";
}

/** A word for programs, such as agent_flood: the server's log has it, a person is not helped by it. */
function isCode(text) {
  return /^[a-z0-9_]+$/.test(text);
}

function sentence(text) {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
