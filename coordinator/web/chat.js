/** The chat: a conversation kept in the page, answers streamed into it, stopped at once. Read next: server.js. */
import { stream } from './server.js';

const element = (id) => document.getElementById(id);
const list = element('messages');
const message = element('message');
const notice = element('notice');
const messages = [];
let controller;

/** @param hasTemplate asks whether the model knows chats; without it the text is continued as it is */
export function startChat(hasTemplate) {
  element('composer').addEventListener('submit', (event) => {
    event.preventDefault();
    void send(hasTemplate());
  });
  message.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    element('composer').requestSubmit();
  });
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') controller?.abort();
  });
  element('stop').addEventListener('click', () => controller?.abort());
  element('clear').addEventListener('click', () => {
    controller?.abort();
    messages.length = 0;
    list.replaceChildren();
    notice.textContent = '';
    message.focus();
  });
}

async function send(hasTemplate) {
  const text = message.value;
  if (text.trim() === '' || controller !== undefined) return;
  message.value = '';
  notice.textContent = '';
  messages.push({ role: 'user', content: text });
  show('You').textContent = text;
  const answer = { role: 'assistant', content: '' };
  const place = show('Model');
  setBusy(true);
  const startedAt = performance.now();
  let pieces = 0;
  try {
    await ask(hasTemplate, text, (piece) => {
      pieces++;
      answer.content += piece;
      place.textContent = answer.content;
      list.scrollTop = list.scrollHeight;
    });
  } catch (error) {
    if (error.name !== 'AbortError') notice.textContent = error.message;
  } finally {
    if (answer.content === '') place.textContent = '(no text)';
    else messages.push(answer);
    const seconds = (performance.now() - startedAt) / 1000;
    element('speed').textContent = `${pieces} pieces in ${seconds.toFixed(1)} s`;
    setBusy(false);
  }
}

function ask(hasTemplate, text, take) {
  controller = new AbortController();
  const number = (id) => (element(id).value === '' ? undefined : Number(element(id).value));
  const options = {
    temperature: number('temperature'),
    top_p: number('top-p'),
    max_tokens: number('max-tokens'),
    seed: number('seed'),
  };
  if (!hasTemplate)
    return stream('/v1/completions', { ...options, prompt: text }, controller.signal, (chunk) => {
      const piece = chunk.choices[0]?.text;
      if (piece) take(piece);
    });
  const system = element('system').value;
  const all = system.trim() === '' ? messages : [{ role: 'system', content: system }, ...messages];
  return stream('/v1/chat/completions', { ...options, messages: all }, controller.signal, (chunk) => {
    const piece = chunk.choices[0]?.delta.content;
    if (piece) take(piece);
  });
}

/** A new entry of the conversation. Returns the element for its text. */
function show(who) {
  const item = document.createElement('div');
  const label = document.createElement('span');
  label.className = 'who';
  label.textContent = who;
  const text = document.createElement('span');
  item.append(label, text);
  list.append(item);
  list.scrollTop = list.scrollHeight;
  return text;
}

/** While an answer grows, a screen reader waits for its end. */
function setBusy(isBusy) {
  list.setAttribute('aria-busy', String(isBusy));
  element('send').disabled = isBusy;
  element('stop').disabled = !isBusy;
  if (!isBusy) controller = undefined;
}
