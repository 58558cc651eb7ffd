"""The official Python client against a running `tpla serve`: models, chat, streaming, usage, stop, logprobs, JSON, errors.

    tpla serve --model MODEL &
    pip install openai
    python3 scripts/openai-client.py http://127.0.0.1:8080/v1

Prints one line for each check; the exit code is 1 when one fails. Set TPLA_API_KEY where the server asks for a key.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key=os.environ.get("TPLA_API_KEY", "none"), max_retries=0)
model = client.models.list().data[0].id
failed = False


def check(name, passed, shown=""):
    global failed
    failed = failed or not passed
    print(f"{'ok  ' if passed else 'FAIL'} {name}{': ' if shown else ''}{shown}")


def chat(content, **options):
    options = {"model": model, "temperature": 0, "max_tokens": 24, **options}
    return client.chat.completions.create(messages=[{"role": "user", "content": content}], **options)


def streamed(content, **options):
    chunks = list(chat(content, stream=True, stream_options={"include_usage": True}, **options))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    return text, chunks


question = "Name a river in Europe."
answer = chat(question)
text = answer.choices[0].message.content
check("chat", bool(text) and answer.choices[0].finish_reason in ("stop", "length"), repr(text))
check("usage", answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens)

again, chunks = streamed(question)
check("stream equals its twin", again == text)
check("usage chunk", chunks[-1].usage.completion_tokens == answer.usage.completion_tokens)

word = text.split()[-1]
stopped = chat(question, stop=[word]).choices[0]
check("stop", stopped.finish_reason == "stop" and word not in stopped.message.content, f"before {word!r}")

scored = chat(question, logprobs=True, top_logprobs=3, max_tokens=4).choices[0].logprobs.content
check("logprobs", len(scored) == 4 and all(len(token.top_logprobs) == 3 for token in scored))

made = chat("Give a city as JSON.", response_format={"type": "json_object"}, max_tokens=128).choices[0]
parsed = json.loads(made.message.content) if made.finish_reason == "stop" else {}
check("JSON mode", isinstance(parsed, dict), made.finish_reason)

completion = client.completions.create(model=model, prompt="Once upon a time", max_tokens=8, temperature=0)
check("completion", completion.usage.completion_tokens == 8, repr(completion.choices[0].text))

questions = [f"Name a river in Europe, answer {i}." for i in range(50)]
with ThreadPoolExecutor(50) as pool:
    at_once = list(pool.map(lambda each: streamed(each, max_tokens=8)[0], questions))
check("50 streams at once, equal to one by one", at_once[:5] == [streamed(each, max_tokens=8)[0] for each in questions[:5]])

for name, kind, call in (
    ("unknown model is 404", openai.NotFoundError, lambda: chat("x", model="nobody")),
    ("too long is 400", openai.BadRequestError, lambda: chat("river " * 20000)),
    ("a wrong type is 400", openai.BadRequestError, lambda: chat("x", extra_body={"top_k": "many"})),
):
    try:
        call()
        check(name, False, "no error")
    except kind as error:
        check(name, True, str(error)[:120])

sys.exit(1 if failed else 0)
