// OpenAI's Agents SDK in front of a voicegate: the only thing that changes is `baseUrl`.

import { OpenAIRealtimeWebRTC, RealtimeAgent, RealtimeSession, tool } from '@openai/agents-realtime';
import { z } from 'zod';

const $ = (id) => document.getElementById(id);
$('gateway').value = new URLSearchParams(location.search).get('gateway') ?? 'http://127.0.0.1:8080';

const getTime = tool({
  name: 'get_time',
  description: 'The time of day in a time zone.',
  parameters: z.object({ zone: z.string().describe('IANA name, such as Europe/Berlin') }),
  execute: async ({ zone }) =>
    new Date().toLocaleTimeString('en-GB', { timeZone: zone, hour: '2-digit', minute: '2-digit' }),
});

const agent = new RealtimeAgent({
  name: 'Guide',
  instructions: 'You are brief and friendly. For the time you use the tool.',
  tools: [getTime],
});

let session = null;
const cut = new Set(); // items that were interrupted

async function connect() {
  const gateway = $('gateway').value.replace(/\/$/, '');
  session = new RealtimeSession(agent, {
    transport: new OpenAIRealtimeWebRTC({ baseUrl: `${gateway}/v1/realtime/calls` }),
  });
  window.session = session; // to look at from the console
  session.on('history_updated', showHistory);
  session.on('agent_tool_start', (_context, _agent, called) => show('state', `using ${called.name}`));
  session.on('agent_tool_end', () => show('state', 'connected'));
  session.on('error', ({ error }) => complain(error));
  session.transport.on('connection_change', (status) => status === 'disconnected' && ended());
  // When the agent is heard, when it no longer is, and what was cut: told by the gateway, which plays the sound.
  session.on('transport_event', ({ type, item_id }) => {
    if (type === 'output_audio_buffer.started') state('speaking');
    if (type === 'output_audio_buffer.stopped' || type === 'output_audio_buffer.cleared') state('listening');
    if (type === 'conversation.item.truncated') cut.add(item_id);
  });
  state('connecting');
  await session.connect({ apiKey: () => clientSecret(gateway) });
  state('connected');
}

// A short-lived key for this page. With a real key this request belongs on your own server: whoever can read the
// page can read what it sends.
async function clientSecret(gateway) {
  const key = $('key').value;
  const response = await fetch(`${gateway}/v1/realtime/client_secrets`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...(key && { Authorization: `Bearer ${key}` }) },
    body: JSON.stringify({ session: { type: 'realtime' } }),
  }).catch(() => {
    throw new Error(`${gateway} does not answer, or not to this page.`);
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error.message);
  return answer.value;
}

function ended() {
  session = null;
  state('ended');
}

$('talk').onclick = async () => {
  $('problem').hidden = true;
  if (session) return session.close();
  try {
    await connect();
  } catch (error) {
    complain(error);
    session?.close();
    session = null;
    state('error');
  }
};
$('interrupt').onclick = () => session.interrupt();
$('mute').onclick = () => {
  session.mute(!session.muted);
  $('mute').textContent = session.muted ? 'Unmute' : 'Mute';
};
$('ask').onsubmit = (event) => {
  event.preventDefault();
  if ($('text').value) session.sendMessage($('text').value);
  $('text').value = '';
};
$('place').onsubmit = (event) => event.preventDefault();

// --- What is seen ---------------------------------------------------------------------------------------

function state(name) {
  show('state', name);
  const live = ['connected', 'speaking', 'listening'].includes(name);
  for (const id of ['interrupt', 'mute', 'text', 'send']) $(id).disabled = !live;
  for (const id of ['gateway', 'key']) $(id).disabled = session !== null;
  $('talk').textContent = session ? 'Hang up' : 'Talk';
  $('talk').toggleAttribute('data-on', session !== null);
  if (!live) $('mute').textContent = 'Mute';
}

function show(id, text) {
  $(id).textContent = text;
  $(id).dataset.state = text;
}

function complain(error) {
  console.error(error);
  const inner = error?.error ?? error;
  $('problem').textContent = inner?.message ?? inner?.error?.message ?? String(error);
  $('problem').hidden = false;
}

function showHistory(history) {
  $('history').replaceChildren(...history.filter((item) => item.role !== 'system').map(bubble));
  $('history').lastElementChild?.scrollIntoView({ block: 'nearest' });
}

function bubble(item) {
  const line = document.createElement('li');
  if (item.type !== 'message') {
    line.className = 'tool';
    line.append(`${item.name}(${item.arguments}) → ${item.output ?? '…'}`);
    return line;
  }
  line.className = item.role;
  const who = document.createElement('small');
  who.textContent = item.role === 'user' ? 'You' : 'Agent';
  const words = item.content.map((part) => part.text ?? part.transcript ?? '').join(' ');
  const said = document.createElement('span');
  said.textContent = words || { user: '(spoken)', assistant: '…' }[item.role];
  if (item.status === 'incomplete' || cut.has(item.itemId)) {
    said.className = 'cut';
    said.append(' — interrupted');
  }
  line.append(who, said);
  return line;
}
