"""Greedy text and last logits of fixtures/tiny/base over its held-out texts, by transformers 5.23 in f32 (eager attention).

Prompts of different lengths, for runtimes that batch them; `model.py` has logits and hidden states within prompts.

prompt.J     i64 [12..=60]    the first tokens (BOS included) of a held-out text; J in 0..20: prose 0-7, code 8-13, tool 14-19
greedy.J     i64 [64]         argmax continuation without a stop token, of equal logits the lowest id
margin.J     f32 [64]         gap between the two largest logits of each step
margins      f32 [20]         the least of each prompt, above 1e-3: another order of summation gives the same text
texts        i64 [212, 128]   the first tokens of each text of the metadata's `texts`, filled up with -1
last         f32 [212, 2048]  logits after the last of these tokens

Weights are the bf16 ones widened to f32. The texts are named in the metadata by their ids: `texts` are all of prose and code and every second
of tool; `prompts` are the first of `pick` whose margins suffice.
"""

import json

import common
import numpy as np
from common import ROOT

BASE = ROOT / "fixtures" / "tiny" / "base"
HELDOUT = ROOT / "fixtures" / "tiny" / "heldout"
N_GREEDY, N_CONTEXT, MARGIN = 64, 128, 1e-3
COUNTS = {"prose": 8, "code": 6, "tool": 6}
LENGTHS = [12 + 48 * j // 19 for j in range(20)]


def texts(kind):
    with open(HELDOUT / f"{kind}.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def pick(kind):
    """All texts of a kind, neighbors of the file far apart."""
    every = texts(kind)
    return [every[(3 + i * 7) % len(every)] for i in range(len(every))]


def greedy(model, prompt):
    """The continuation and its margins, each token from a pass over all tokens; None when a margin is too small."""
    ids, margins = prompt, []
    for _ in range(N_GREEDY):
        best = model(ids[None], use_cache=False).logits[0, -1].topk(2)
        margins.append((best.values[0] - best.values[1]).item())
        if margins[-1] <= MARGIN:
            return None
        ids = ids.new_tensor([*ids.tolist(), best.indices[0].item()])
    return ids[len(prompt) :].numpy(), np.array(margins, np.float32)


def main(metadata):
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32, attn_implementation="eager").eval()
    assert all(p.dtype == torch.float32 for p in model.parameters())

    def tokens(text, n):
        ids = tokenizer(text["text"])["input_ids"][:n]
        assert ids[0] == tokenizer.bos_token_id
        return torch.tensor(ids)

    out, prompts, least = {}, [], []
    with torch.no_grad():
        for kind, count in COUNTS.items():
            candidates = iter(pick(kind))
            while count > 0:
                text, j = next(candidates), len(prompts)
                ids = tokens(text, LENGTHS[j])
                continuation = greedy(model, ids) if len(ids) == LENGTHS[j] else None
                if continuation is None:
                    print(f"{text['id']}: too short, or a margin too small")
                    continue
                out |= {f"prompt.{j}": ids.numpy(), f"greedy.{j}": continuation[0], f"margin.{j}": continuation[1]}
                least.append(continuation[1].min())
                prompts.append(text["id"])
                count -= 1
        chosen = [*texts("prose"), *texts("code"), *texts("tool")[::2]]
        rows = [tokens(text, N_CONTEXT) for text in chosen]
        out["last"] = np.stack([model(ids[None], use_cache=False).logits[0, -1].numpy() for ids in rows])
    out["texts"] = np.array([[*ids.tolist(), *[-1] * (N_CONTEXT - len(ids))] for ids in rows], np.int64)
    out["margins"] = np.array(least, np.float32)
    metadata |= {"prompts": " ".join(prompts), "texts": " ".join(text["id"] for text in chosen)}
    print(f"least margins {[round(float(m), 4) for m in least]}")
    return out


if __name__ == "__main__":
    sources = {}
    common.run(lambda: main(sources), "squish-model", "fixture", ["torch", "transformers"], sources)
