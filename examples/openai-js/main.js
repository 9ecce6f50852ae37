// The `openai` package's WebRTC class in front of a voicegate. The class makes the offer and speaks the events; this
// page brings the microphone and carries the offer to whoever makes the call: the gateway, or a server of yours that
// keeps the tools (../python).

import { OpenAIRealtimeWebRTC } from 'openai/realtime/webrtc';

const $ = (id) => document.getElementById(id);
$('calls').value =
  new URLSearchParams(location.search).get('calls') ?? 'http://127.0.0.1:8080/v1/realtime/calls';

let connection = null;
let microphone = null;

async function connect() {
  microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
  connection = new OpenAIRealtimeWebRTC();
  window.connection = connection; // to look at from the console
  connection.peerConnection.addTrack(microphone.getAudioTracks()[0], microphone);
  connection.peerConnection.addEventListener('track', ({ streams }) => ($('voice').srcObject = streams[0]));
  connection.onConnectionEvent((event) => {
    if (event.type === 'closed') ended(event.reason);
    if (event.type === 'error') complain(event.error);
  });
  listen(connection);
  state('connecting');
  await connection.connect({ exchangeSdp });
  state('connected');
}

async function exchangeSdp(offer, { signal }) {
  const key = $('key').value;
  const response = await fetch($('calls').value, {
    method: 'POST',
    headers: { 'Content-Type': 'application/sdp', ...(key && { Authorization: `Bearer ${key}` }) },
    body: offer,
    signal,
  }).catch(() => {
    throw new Error(`${$('calls').value} does not answer, or not to this page.`);
  });
  if (!response.ok) throw new Error(await response.text());
  return response.text();
}

function listen(connection) {
  connection.on('conversation.item.done', ({ item }) => item.type === 'message' && line(item.id, item));
  connection.on('response.output_audio_transcript.delta', ({ item_id, delta }) => add(item_id, delta));
  connection.on('response.output_text.delta', ({ item_id, delta }) => add(item_id, delta));
  connection.on('response.function_call_arguments.done', ({ item_id, name, arguments: given }) =>
    line(item_id, { role: 'tool', content: [{ text: `${name ?? 'tool'}(${given})` }] }));
  connection.on('output_audio_buffer.started', () => state('speaking'));
  connection.on('output_audio_buffer.stopped', () => state('listening'));
  connection.on('output_audio_buffer.cleared', () => state('listening'));
  connection.on('error', ({ error }) => complain(error));
}

function ended(reason) {
  for (const track of microphone.getTracks()) track.stop();
  connection = null;
  state(reason === 'remote' ? 'ended by the other side' : 'ended');
}

$('talk').onclick = async () => {
  $('problem').hidden = true;
  if (connection) return connection.close();
  try {
    await connect();
  } catch (error) {
    complain(error);
    state('error');
  }
};
$('interrupt').onclick = () => {
  connection.send({ type: 'response.cancel' });
  connection.send({ type: 'output_audio_buffer.clear' });
};
$('ask').onsubmit = (event) => {
  event.preventDefault();
  const content = [{ type: 'input_text', text: $('text').value }];
  connection.send({ type: 'conversation.item.create', item: { type: 'message', role: 'user', content } });
  connection.send({ type: 'response.create' });
  $('text').value = '';
};
$('place').onsubmit = (event) => event.preventDefault();

// --- What is seen ---------------------------------------------------------------------------------------

function state(name) {
  $('state').textContent = $('state').dataset.state = name;
  const live = ['connected', 'speaking', 'listening'].includes(name);
  for (const id of ['interrupt', 'text', 'send']) $(id).disabled = !live;
  for (const id of ['calls', 'key']) $(id).disabled = connection !== null;
  $('talk').textContent = connection ? 'Hang up' : 'Talk';
  $('talk').toggleAttribute('data-on', connection !== null);
}

function complain(error) {
  console.error(error);
  $('problem').textContent = error.cause?.message ?? error.message ?? String(error);
  $('problem').hidden = false;
}

function line(id, item) {
  const words = item.content.map((part) => part.text ?? part.transcript ?? '').join(' ');
  const said = row(id, item.role);
  said.textContent = words || (item.role === 'user' ? '(spoken)' : said.textContent);
  said.classList.toggle('cut', item.status === 'incomplete');
}

function add(id, words) {
  row(id, 'assistant').append(words);
}

function row(id, role) {
  const known = document.querySelector(`[data-item="${CSS.escape(id)}"]`);
  if (known) return known.lastElementChild;
  const row = document.createElement('li');
  row.dataset.item = id;
  row.className = role;
  const who = document.createElement('small');
  who.textContent = { user: 'You', assistant: 'Agent', tool: 'Tool' }[role] ?? role;
  row.append(who, document.createElement('span'));
  $('history').append(row);
  return row.lastElementChild;
}
