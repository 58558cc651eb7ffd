"""Does stock transformers read a folder of `tpla convert --portable` as this program does? Perplexity and greedy text.

    node scripts/setup.mjs
    python3 scripts/portable-quality.py FOLDER --text FILE [--windows 3] [--window 1024] [--max-tokens 24]

Needs Python with torch and transformers; runs where they are, nowhere else. Loads FOLDER without remote code, in float32,
scores the first windows of FILE as `tpla eval ppl` does (first token of each unscored), and continues three prompts greedily.
Exit code 1 when the perplexities differ by more than 0.5 % or a continuation differs.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROGRAM = ["node", str(Path(__file__).resolve().parent.parent / "dist" / "coordinator" / "main.js")]
PROMPTS = [
    "The capital of France is",
    "Water boils when",
    "A cat sat by the door and waited for",
]


def tpla(*args: str) -> dict:
    done = subprocess.run([*PROGRAM, *args, "--json"], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def perplexity(model, ids: list[int], window: int, windows: int) -> float:
    total, count = 0.0, 0
    for start in range(0, window * windows, window):
        piece = torch.tensor(ids[start : start + window])
        with torch.no_grad():
            logits = model(piece[None]).logits[0].double()
        total += float(torch.nn.functional.cross_entropy(logits[:-1], piece[1:], reduction="sum"))
        count += len(piece) - 1
    return math.exp(total / count)


def greedy(model, ids: list[int], tokens: int) -> list[int]:
    for _ in range(tokens):
        with torch.no_grad():
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--text", required=True)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--max-tokens", type=int, default=24)
    args = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32)
    assert type(model).__module__.startswith("transformers."), "remote code was used"
    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    ids = tokenizer(Path(args.text).read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    theirs = perplexity(model, ids, args.window, args.windows)
    sizes = ["--window", str(args.window), "--max-windows", str(args.windows)]
    ours = tpla("eval", "ppl", "--model", args.folder, "--scheme", "mla", "--ranks", "2", "--text", args.text, *sizes)["ppl"]
    print(f"perplexity of {args.windows} windows of {args.window}: {theirs:.4f} in transformers, {ours:.4f} in tpla")

    same = True
    for prompt in PROMPTS:
        float32 = ["--weights", "f32", "--cache-type", "f32", "--raw", "--max-tokens", str(args.max_tokens)]
        answer = tpla("run", prompt, "--model", args.folder, "--scheme", "mla", "--ranks", "2", *float32)
        start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if answer["promptTokens"] == len(start) + 1:  # the model's start token
            start = [tokenizer.bos_token_id, *start]
        # Generation ends here at an end token, which is not part of the answer.
        end = len(answer["tokenIds"]) if answer["finishReason"] == "stop" else args.max_tokens
        ids = greedy(model, start, args.max_tokens)[len(start) :][:end]
        same = same and ids == answer["tokenIds"]
        print(f"{'same' if ids == answer['tokenIds'] else 'DIFFERENT'}: {prompt!r} {tokenizer.decode(ids)!r} / {answer['text']!r}")
    return 0 if same and abs(theirs / ours - 1) <= 0.005 else 1


if __name__ == "__main__":
    sys.exit(main())
