"""Logits, greedy text, token losses and tokens of fixtures/tiny/base by transformers 5.23 in f32 (eager attention).

prompt.I    i64 [n <= 48]     tokens (BOS first) of the start of a held-out text; I in 0..12: prose 0-3, code 4-7, tool 8-11
rows.I      i64 [4]           positions within the prompt
logits.I    f32 [4, 2048]     logits at those positions
hidden.L    f32 [16, 256]     of the first 16 tokens of prompt 0: L = 0 the embeddings, L = 1..6 the output of layer L, `norm` the last one after the final norm
greedy_prompt.J  i64 [n <= 48], greedy.J i64 [64]   prompt and 64 argmax continuations without a stop token; J in 0..20: prose 0-6,
                              code 7-13, tool 14-19
greedy_margin.J  f32 [64]     gap between the two largest logits of each step; a different order of summation may change the text only
                              where this is small
text.K      i64 [n <= 512]    first 512 tokens (BOS included) of a text; K in prose0, prose1, prose2, code0, code1, code2
nll.K       f64 [n - 1]       -log softmax of the next token in f64 from the f32 logits
tokens.K    i64 [m]           tokens of the whole text, cut to 6000 characters as in fixtures

The prompts come from the texts named in the metadata by their ids. Weights are the bf16 ones widened to f32.
"""

import json

import common
import numpy as np
from common import ROOT

BASE = ROOT / "fixtures" / "tiny" / "base"
HELDOUT = ROOT / "fixtures" / "tiny" / "heldout"
N_PROMPT, N_GREEDY, N_CONTEXT, N_HIDDEN = 48, 64, 512, 16


def texts(kind):
    with open(HELDOUT / f"{kind}.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def pick(kind, first, count):
    """Texts spread over the file, so that they are of different documents."""
    every = texts(kind)
    return [every[(first + i * 7) % len(every)] for i in range(count)]


PROMPTS = [*pick("prose", 0, 4), *pick("code", 0, 4), *pick("tool", 0, 4)]
GREEDY = [*pick("prose", 1, 7), *pick("code", 1, 7), *pick("tool", 1, 6)]
LOSSES = {f"{kind}{i}": text for kind in ("prose", "code") for i, text in enumerate(pick(kind, 2, 3))}


def main():
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32, attn_implementation="eager").eval()
    assert all(p.dtype == torch.float32 for p in model.parameters())

    def tokens(text, n=None):
        ids = tokenizer(text["text"])["input_ids"]
        assert ids[0] == tokenizer.bos_token_id and (len(ids) < 2 or ids[1] != tokenizer.bos_token_id)
        return torch.tensor(ids[:n])

    out = {}
    with torch.no_grad():
        for i, text in enumerate(PROMPTS):
            ids = tokens(text, N_PROMPT)
            result = model(ids[None])
            n = len(ids)
            rows = torch.tensor(sorted({0, n // 3, 2 * n // 3, n - 1}))
            out[f"prompt.{i}"], out[f"rows.{i}"] = ids.numpy(), rows.numpy()
            out[f"logits.{i}"] = result.logits[0, rows].numpy()
            if i == 0:
                out |= hidden_states(model, ids[:N_HIDDEN])
        for j, text in enumerate(GREEDY):
            ids = tokens(text, N_PROMPT)
            out[f"greedy_prompt.{j}"] = ids.numpy()
            out[f"greedy.{j}"], out[f"greedy_margin.{j}"] = greedy(model, ids)
        for name, text in LOSSES.items():
            ids = tokens(text, N_CONTEXT)
            logits = model(ids[None]).logits[0].double()
            out[f"text.{name}"] = ids.numpy()
            out[f"nll.{name}"] = -logits[:-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0].numpy()
            out[f"tokens.{name}"] = tokens(text).numpy()
    return out


def hidden_states(model, ids):
    """The residual stream after the embedding and after each layer, taken by hooks, and the last one after the final norm."""
    states = {}
    layers = [model.model.embed_tokens, *model.model.layers]

    def keep(name):
        def hook(_module, _inputs, output):
            states[name] = (output[0] if isinstance(output, tuple) else output).reshape(len(ids), -1).numpy().copy()

        return hook

    hooks = [layer.register_forward_hook(keep(f"hidden.{i}")) for i, layer in enumerate(layers)]
    hooks.append(model.model.norm.register_forward_hook(keep("hidden.norm")))
    model(ids[None])
    for hook in hooks:
        hook.remove()
    return states


def greedy(model, ids):
    """64 argmax tokens after `ids`, each from a full forward pass, with the margin of each choice."""
    n_prompt = len(ids)
    margins = []
    for _ in range(N_GREEDY):
        best = model(ids[None]).logits[0, -1].topk(2)
        margins.append((best.values[0] - best.values[1]).item())
        ids = ids.new_tensor([*ids.tolist(), best.indices[0].item()])
    return ids[n_prompt:].numpy(), np.array(margins, np.float32)


if __name__ == "__main__":
    sources = {
        "prompts": " ".join(t["id"] for t in PROMPTS),
        "greedy": " ".join(t["id"] for t in GREEDY),
        "texts": " ".join(t["id"] for t in LOSSES.values()),
    }
    common.run(main, "squish-model", "reference", ["torch", "transformers"], sources)
