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
  if (!response.ok) throw await refusalOf(response);
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
  if (!response.ok) throw await refusalOf(response);
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

/** An Error with the server's own words and its status. */
async function refusalOf(response) {
  const { status } = response;
  const text = await response.text();
  let message = `${status} ${text.slice(0, 200)}`;
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // Not from this server, but from something before it.
  }
  return Object.assign(new Error(status === 401 ? `${message} (in Settings, API key)` : message), { status });
}
