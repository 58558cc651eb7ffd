"""Compares a folder of `tpla convert --portable` in stock transformers with this program's own logits.

    tpla eval logits --model FOLDER --ids 1,2,3 --out logits.safetensors
    python3 scripts/portable-check.py FOLDER logits.safetensors --ids 1,2,3 [--tolerance 0.01]

Needs Python with torch, transformers and safetensors; runs where they are, nowhere else. Loads FOLDER without remote code,
in float32, and prints the largest and the mean difference of logits, the share of positions with the same best token, and
the perplexity of the given tokens by both. Exit code 1 when the largest difference exceeds the tolerance.
"""

import argparse
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def perplexity(logits: torch.Tensor, ids: torch.Tensor) -> float:
    losses = torch.nn.functional.cross_entropy(logits[:-1].double(), ids[1:])
    return float(losses.exp())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("logits")
    parser.add_argument("--ids", required=True, help="the token ids that the logits belong to")
    parser.add_argument("--tolerance", type=float, default=0.01)
    args = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32)
    assert type(model).__module__.startswith("transformers."), "remote code was used"
    ids = torch.tensor([int(word) for word in args.ids.split(",")])
    expected = load_file(args.logits)["logits"].float()
    assert len(expected) == len(ids), f"logits of {len(expected)} tokens, {len(ids)} ids"
    with torch.no_grad():
        theirs = model(ids[None]).logits[0].float()

    difference = (theirs - expected).abs()
    same = (theirs.argmax(-1) == expected.argmax(-1)).float().mean()
    print(f"class {type(model).__name__}, {len(ids)} tokens")
    print(f"largest difference {difference.max():.6f}, mean {difference.mean():.6f}, same best token {same:.4f}")
    print(f"perplexity {perplexity(theirs, ids):.4f} in transformers, {perplexity(expected, ids):.4f} in tpla")
    return 0 if float(difference.max()) <= args.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
