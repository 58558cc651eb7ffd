/** What the page asks of the server that sent it. Read next: chat.js, cluster.js. */

const keyField = document.querySelector('#api-key');
// For this tab only: a key should not outlive it.
keyField.value = sessionStorage.getItem('tpla-api-key') ?? '';
keyField.addEventListener('change', () => sessionStorage.setItem('tpla-api-key', keyField.value));

function headers() {
  return keyField.value === '' ? {} : { authorization: `Bearer ${keyField.value}` };
}

/** GET as JSON. Throws an Error with the server's own words. */
export async function get(path) {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw new Error(await refusalOf(response));
  return response.json();
}

/** POST whose answer is a stream of events; `take` is called with each event's JSON. */
export async function stream(path, body, signal, take) {
  const response = await fetch(path, {
    method: 'POST',
    headers: { ...headers(), 'content-type': 'application/json' },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  if (!response.ok) throw new Error(await refusalOf(response));
  let held = '';
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (held + value).split('\n\n');
    held = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, '');
      if (data === '[DONE]') return;
      const message = JSON.parse(data);
      if (message.error) throw new Error(message.error.message);
      take(message);
    }
  }
}

async function refusalOf(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    return response.status === 401 ? `${error.message} (Settings, API key)` : error.message;
  } catch {
    return `${response.status} ${text.slice(0, 200)}`;
  }
}
