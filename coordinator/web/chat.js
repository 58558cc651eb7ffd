/** The chat: a conversation kept in the page, answers streamed into it, stopped at once. Read next: server.js. */
import { stream } from './server.js';

const element = (id) => document.getElementById(id);
const list = element('messages');
const welcome = element('welcome');
const message = element('message');
const notice = element('notice');
const messages = [];
let controller;

/** @param hasTemplate asks whether the model knows chats; without it the text is continued as it is */
export function startChat(hasTemplate) {
  element('composer').addEventListener('submit', (event) => {
    event.preventDefault();
    void send(message.value, hasTemplate());
  });
  message.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    element('composer').requestSubmit();
  });
  message.addEventListener('input', fit);
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') controller?.abort();
  });
  element('stop').addEventListener('click', () => controller?.abort());
  element('clear').addEventListener('click', clear);
  element('again').addEventListener('click', () => void again(hasTemplate()));
  for (const button of document.querySelectorAll('.suggestion'))
    button.addEventListener('click', () => void send(button.textContent, hasTemplate()));
}

function clear() {
  controller?.abort();
  messages.length = 0;
  list.replaceChildren(welcome);
  notice.textContent = '';
  element('clear').disabled = element('again').disabled = true;
  message.focus();
}

/** Another answer to the last message. */
async function again(hasTemplate) {
  const at = messages.findLastIndex(({ role }) => role === 'user');
  if (at === -1 || controller !== undefined) return;
  const [{ content }] = messages.splice(at);
  const shown = [...list.children];
  shown.slice(shown.findLastIndex((item) => item.className === 'user')).forEach((item) => item.remove());
  await send(content, hasTemplate);
}

async function send(text, hasTemplate) {
  if (text.trim() === '' || controller !== undefined) return;
  message.value = '';
  fit();
  notice.textContent = '';
  welcome.remove();
  messages.push({ role: 'user', content: text });
  show('user', 'You').text.textContent = text;
  const answer = { role: 'assistant', content: '' };
  const place = show('assistant', 'Model');
  setBusy(true);
  place.item.dataset.growing = '';
  const timing = { asked: performance.now(), first: 0, tokens: 0, reason: undefined };
  try {
    await ask(hasTemplate, text, timing, (piece) => {
      if (timing.first === 0) timing.first = performance.now();
      const follows = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
      answer.content += piece;
      place.text.textContent = answer.content;
      if (follows) list.scrollTop = list.scrollHeight;
    });
  } catch (error) {
    if (error.name === 'AbortError') timing.reason = 'stopped';
    else notice.textContent = error.message;
  } finally {
    delete place.item.dataset.growing;
    place.foot.textContent = summary(timing);
    if (answer.content === '') place.text.textContent = '(no text)';
    else messages.push(answer);
    list.scrollTop = list.scrollHeight;
    setBusy(false);
  }
}

/** 47 tokens, 28.1 per second, first after 0.14 s, stopped */
function summary({ asked, first, tokens, reason }) {
  const parts = [];
  const seconds = (performance.now() - first) / 1000;
  if (tokens > 0) parts.push(`${tokens} token${tokens === 1 ? '' : 's'}`);
  if (tokens > 1 && first > 0) parts.push(`${((tokens - 1) / seconds).toFixed(1)} per second`);
  if (first > 0) parts.push(`first after ${((first - asked) / 1000).toFixed(2)} s`);
  if (reason === 'stopped') parts.push('stopped');
  if (reason === 'length') parts.push('cut at the limit of tokens (Settings)');
  return parts.join(', ');
}

function ask(hasTemplate, text, timing, take) {
  controller = new AbortController();
  const number = (id) => (element(id).value === '' ? undefined : Number(element(id).value));
  const options = {
    temperature: number('temperature'),
    top_p: number('top-p'),
    max_tokens: number('max-tokens'),
    seed: number('seed'),
    stream_options: { include_usage: true },
  };
  const heed = ({ choices: [choice], usage }) => {
    if (usage) timing.tokens = usage.completion_tokens;
    if (choice?.finish_reason) timing.reason = choice.finish_reason;
    const piece = choice?.delta?.content ?? choice?.text;
    if (piece) take(piece);
  };
  if (!hasTemplate) return stream('/v1/completions', { ...options, prompt: text }, controller.signal, heed);
  const system = element('system').value;
  const all = system.trim() === '' ? messages : [{ role: 'system', content: system }, ...messages];
  return stream('/v1/chat/completions', { ...options, messages: all }, controller.signal, heed);
}

/** A new entry of the conversation. */
function show(kind, who) {
  const item = document.createElement('div');
  item.className = kind;
  const part = (className, text) => {
    const span = document.createElement('span');
    span.className = className;
    span.textContent = text;
    item.append(span);
    return span;
  };
  part('who', who);
  const entry = { item, text: part('text', ''), foot: part('foot', '') };
  list.append(item);
  list.scrollTop = list.scrollHeight;
  return entry;
}

/** As high as its text, up to what the style allows. */
function fit() {
  message.style.height = 'auto';
  message.style.height = `${message.scrollHeight + 2}px`;
}

/** While an answer grows, a screen reader waits for its end. */
function setBusy(isBusy) {
  const hadFocus = document.activeElement === element(isBusy ? 'send' : 'stop');
  list.setAttribute('aria-busy', String(isBusy));
  element('send').hidden = isBusy;
  element('stop').hidden = !isBusy;
  element('clear').disabled = false;
  element('again').disabled = isBusy;
  if (hadFocus) element(isBusy ? 'stop' : 'send').focus();
  if (!isBusy) controller = undefined;
}
