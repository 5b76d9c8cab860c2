"""Attention in f64, by torch 2.15 and, with sinks, by the code of gpt-oss in transformers 5.23.

cases         u8 [n]                             JSON: the fields of each CASE, as in CASES below
CASE.out      f64 [n_rows, n_heads, value_dim]   scaled_dot_product_attention with an explicit mask; with a softcap, which that one does not
                                                 have, flex_attention; with sinks, gpt-oss's eager_attention_forward
CASE.lse      f64 [n_rows, n_heads]              the natural logarithm of the sum of e^score, of flex_attention; the sink's with it
CASE.visible  u8 [n_rows, n_tokens]              of a custom mask: 1 where a row sees a token

Inputs are made again by the tests: `numbers(n, seed)` below, keys `[n_kv_heads, n_tokens, key_dim]` of seed 1, values `[n_kv_heads,
n_tokens, value_dim]` of seed 2, queries `[n_rows, n_heads, key_dim]` of seed 3 times `q_times`. Keys and values are rounded to `dtype`; those
of 8 bits are codes, which are multiplied by a scale for each token and head, (2 + number of seed 4 for keys, 5 for values) / `unit`. The
reference takes the values that come out, exactly.

Every result is computed twice: by flex_attention, and by the function named above; the two agree to 1e-12. Where a model has code of its own
with a softmax in f32 (softcap of Gemma 2, ALiBi of Bloom), it agrees to 1e-6. Masks of causal and windowed rows are those of transformers'
masking_utils. And the numbers that the definitions of attention were published with come out (`SMALL`).
"""

import json
import types

import common
import numpy as np

HEADS_3 = {"heads": [3, 1], "dims": [16, 4]}
SINKS = {"sinks": [0.5, -1.0, 3.0, 0.0, -2.0, 1.0]}
# A child of the last token before the tree is -1.
PARENTS = [-1, 0, 0, 1, -1, 4, 2, 3, 3, 5]
CODES = {"heads": [4, 2], "n_rows": 1, "n_tokens": 99, "dims": [64, 48]}


def case(heads, n_rows, n_tokens, dims, mask="causal", **options):
    """Query heads and heads of keys, rows, tokens, widths of keys and values."""
    return {"heads": heads, "n_rows": n_rows, "n_tokens": n_tokens, "dims": dims, "mask": mask, **options}


def cases(slopes):
    """The fields of every case; `slopes` are ALiBi's of six heads."""
    six = {"heads": [6, 2], "dims": [32, 8]}
    all_options = {"softcap": 2.5, "window": 40, "scale": 0.75, "alibi": slopes, **SINKS}
    return {
        "decode_mha": case([4, 4], 1, 70, [32, 32]),
        "decode_group_3": case([6, 2], 1, 131, [64, 64]),
        "decode_group_5": case([5, 1], 1, 100, [80, 80]),
        "decode_group_7": case([7, 1], 1, 77, [96, 96]),
        "decode_128": case([4, 2], 1, 200, [128, 128]),
        "decode_256": case([3, 1], 1, 65, [256, 256]),
        "decode_one_token": case([3, 1], 1, 1, [16, 16]),
        "decode_splits": case([2, 1], 1, 2500, [32, 32]),
        "decode_sharp": case([4, 2], 1, 150, [64, 32], q_times=8.0),
        "decode_keys_wider": case([2, 1], 1, 90, [72, 40]),
        "decode_values_wider": case([3, 3], 1, 90, [20, 36]),
        "prefill": case(n_rows=70, n_tokens=70, **HEADS_3),
        "chunk": case(n_rows=9, n_tokens=150, **six),
        "chunk_splits": case([2, 1], 70, 1090, [16, 4]),
        "window_decode": case(n_rows=1, n_tokens=150, window=70, **six),
        "window_1": case(n_rows=5, n_tokens=12, window=1, **HEADS_3),
        "window_chunk": case([2, 1], 90, 150, [16, 4], window=70),
        "window_larger": case(n_rows=5, n_tokens=30, window=31, **HEADS_3),
        "scale": case(n_rows=3, n_tokens=80, scale=0.75, **six),
        "softcap": case(n_rows=5, n_tokens=80, softcap=1.5, q_times=4.0, **six),
        "softcap_50": case(n_rows=2, n_tokens=150, softcap=50.0, scale=0.0625, q_times=4.0, heads=[2, 1], dims=[256, 16]),
        "alibi": case(n_rows=5, n_tokens=80, alibi=slopes, **six),
        "sinks": case(n_rows=1, n_tokens=150, **SINKS, **six),
        "sinks_window": case(n_rows=6, n_tokens=150, window=16, **SINKS, **six),
        "all_options": case(n_rows=7, n_tokens=90, q_times=4.0, **all_options, **six),
        "full": case(n_rows=5, n_tokens=90, mask="full", **six),
        "custom": case(n_rows=4, n_tokens=200, mask="custom", **six),
        "custom_sinks": case(n_rows=4, n_tokens=70, mask="custom", **SINKS, **six),
        "tree": case(n_rows=len(PARENTS), n_tokens=140, mask="tree", parents=PARENTS, **HEADS_3),
        "tree_options": case([6, 2], len(PARENTS), 75, [32, 4], mask="tree", parents=PARENTS, window=40, alibi=slopes),
        "bf16": case(dtype="bf16", **CODES),
        "f16": case(dtype="f16", **CODES),
        "int8": case(dtype="int8", unit=508.0, **CODES),
        "int8_chunk": case([6, 2], 9, 80, [32, 8], dtype="int8", unit=508.0, window=30, softcap=1.5),
        "e4m3": case(dtype="e4m3", unit=4.0, **CODES),
        "e5m2": case(dtype="e5m2", unit=4.0, **CODES),
    }


# gen(a, b)[i] = (((a i + b) mod 64) - 32) / 32: two query heads of 2 gen(37, 11), five tokens of 2 gen(23, 3) and gen(19, 9), scale 1/2.
SMALL = {
    "plain": [.0249239709856, -.336073966577, .249473505376, -.193826029014, -.137419433711, .205393227528, -.260116189505, -.356169433711],
    "sinks": [.0208515097212, -.281161039113, .208710691629, -.162155754818, -.133875493074, .200096295458, -.25340799468, -.3469841002],
    "softcap": [.0391991734127, -.329332900061, .200036586075, -.179550826587, -.113326048726, .0796263626679, -.150409388419, -.332076048726],
    "window": [.473520727777, -.915693031337, -.338979272223, .254770727777, .160934873936, .371631965811, -.651565126064, -.0578151260638],
}
SMALL_OPTIONS = {"plain": {}, "sinks": {"sinks": [0.5, -1.0]}, "softcap": {"softcap": 1.5}, "window": {"window": 3}}
SMALL_LSE = [2.13317880439, 2.63167092979]


def numbers(shape, seed):
    """Numbers of f32 from -1 up to 1."""
    state, mask, out = seed, 2**64 - 1, np.empty(np.prod(shape), np.float32)
    for i in range(len(out)):
        state = (state * 6364136223846793005 + 1442695040888963407) & mask
        out[i] = (state >> 40) / 2**23 - 1
    return out.reshape(shape)


def rounded(x, fields, seed):
    """The values of `x` `[n_kv_heads, n_tokens, width]` in the case's type, in f64."""
    import torch

    x, dtype = torch.from_numpy(x), fields.get("dtype", "f32")
    types_of_torch = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
    codes = (x * 127).to(torch.int8) if dtype == "int8" else x.to(types_of_torch[dtype])
    values = codes.double()
    if "unit" in fields:
        scales = (2 + numbers(x.shape[:2], seed)) / np.float32(fields["unit"])
        assert scales.dtype == np.float32
        values = values * torch.from_numpy(scales).double()[..., None]
    return values


def is_visible_in_custom(row, token):
    """Some bits; the second row sees nothing."""
    return row != 1 and (row * 7 + token * token) % 3 != 0 and token != row


def visible(fields):
    """Bits `[n_rows, n_tokens]`, and positions of rows and of tokens for each row: what a node does not see stands anywhere."""
    import torch
    from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

    n_rows, n_tokens, mask = fields["n_rows"], fields["n_tokens"], fields["mask"]
    rows = torch.arange(n_rows)[:, None] + n_tokens - n_rows
    tokens = torch.arange(n_tokens)[None].expand(n_rows, -1)
    window = fields.get("window")
    if mask == "custom":
        bits = torch.tensor([[is_visible_in_custom(row, token) for token in range(n_tokens)] for row in range(n_rows)])
        return bits, rows, tokens
    if mask == "full":
        return torch.ones(n_rows, n_tokens, dtype=torch.bool), rows, tokens
    seen = torch.ones(n_rows, n_tokens, dtype=torch.bool)
    if mask == "tree":
        before, parents = n_tokens - n_rows, fields["parents"]
        paths = []
        for node in range(n_rows):
            path = [node]
            while parents[path[-1]] >= 0:
                path.append(parents[path[-1]])
            paths.append(path)
        depths = torch.tensor([before + len(path) - 1 for path in paths])
        rows, tokens = depths[:, None], torch.cat([torch.arange(before), depths])[None].expand(n_rows, -1)
        for node, path in enumerate(paths):
            seen[node, before:] = False
            seen[node, [before + ancestor for ancestor in path]] = True
    in_order = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
    return seen & in_order(None, None, rows, tokens), rows, tokens


def attention(q, k, v, fields):
    """Results `[n_rows, n_heads, value_dim]` and logarithms of sums `[n_rows, n_heads]` of `q` `[n_rows, n_heads, key_dim]`."""
    import torch
    import torch.nn.functional as F
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.gemma2 import modeling_gemma2
    from transformers.models.gpt_oss import modeling_gpt_oss

    bits, rows, tokens = visible(fields)
    (n_rows, n_heads, key_dim), (n_kv_heads, n_tokens, value_dim) = q.shape, v.shape
    scale, softcap = fields.get("scale", key_dim**-0.5), fields.get("softcap")
    batch = q.transpose(0, 1)[None], k[None], v[None]
    bias = torch.zeros(n_heads, n_rows, n_tokens, dtype=torch.float64)
    if "alibi" in fields:
        bias = torch.tensor(fields["alibi"]).double()[:, None, None] * (tokens - rows)
    bias = bias.masked_fill(~bits, -torch.inf)

    def capped(score):
        return score if softcap is None else softcap * torch.tanh(score / softcap)

    def flex(key, value, modified):
        out, aux = flex_attention(batch[0], key, value, modified, scale=scale, enable_gqa=True, return_aux=AuxRequest(lse=True))
        return out, aux.lse

    close = {"rtol": 0, "atol": 1e-12}
    out, lse = flex(*batch[1:], lambda score, b, h, i, j: capped(score) + bias[h, i, j])
    module = types.SimpleNamespace(num_key_value_groups=n_heads // n_kv_heads, training=False)
    if softcap is None:
        sdpa = F.scaled_dot_product_attention(*batch, attn_mask=bias[None], scale=scale, enable_gqa=True)
        torch.testing.assert_close(out, sdpa, **close)
        out = sdpa
    elif bits.any(-1).all():
        gemma, _ = modeling_gemma2.eager_attention_forward(module, *batch, bias[None], scaling=scale, softcap=softcap)
        torch.testing.assert_close(out, gemma.transpose(1, 2), rtol=0, atol=1e-6)
    if "alibi" in fields and fields["mask"] == "causal" and softcap is None:
        bloom = build_alibi_tensor(torch.ones(1, n_tokens, dtype=torch.int64), n_heads, torch.float64)
        bloom = bloom.expand(n_heads, n_rows, n_tokens).masked_fill(~bits, -torch.inf)
        other = F.scaled_dot_product_attention(*batch, attn_mask=bloom[None], scale=scale, enable_gqa=True)
        torch.testing.assert_close(out, other, rtol=0, atol=1e-6)
    if "sinks" in fields:
        sinks = torch.tensor(fields["sinks"]).double()
        # A token whose score is the sink and whose value is zero.
        longer = [F.pad(x, (0, 0, 0, 1)) for x in batch[1:]]
        longer_bias = torch.cat([bias, sinks[:, None, None].expand(-1, n_rows, 1)], -1)
        out, lse = flex(*longer, lambda score, b, h, i, j: torch.where(j < n_tokens, capped(score), 0.0) + longer_bias[h, i, j])
        if softcap is None:
            module.sinks = sinks
            gpt_oss, _ = modeling_gpt_oss.eager_attention_forward(module, *batch, bias[None], scaling=scale)
            gpt_oss = gpt_oss.transpose(1, 2)
            torch.testing.assert_close(out, gpt_oss, **close)
            out = gpt_oss
    assert torch.isfinite(out).all() and out.dtype == torch.float64
    return out[0].transpose(0, 1).numpy(), lse[0].T.numpy()


def check_small():
    """Whether the published numbers come out."""
    import torch

    def tensor(a, b, shape, times=1.0):
        i = torch.arange(np.prod(shape), dtype=torch.float64)
        return times * (((a * i + b) % 64 - 32) / 32).reshape(shape)

    q, k, v = tensor(37, 11, (1, 2, 4), 2), tensor(23, 3, (1, 5, 4), 2), tensor(19, 9, (1, 5, 4))
    for name, want in SMALL.items():
        out, lse = attention(q, k, v, case([2, 1], 1, 5, [4, 4], scale=0.5, **SMALL_OPTIONS[name]))
        np.testing.assert_allclose(out.ravel(), want, rtol=0, atol=1e-12)
        if name == "plain":
            np.testing.assert_allclose(lse.ravel(), SMALL_LSE, rtol=0, atol=1e-11)


def main():
    import torch
    import torch.nn.attention.flex_attention as flex
    from transformers.models.bloom.modeling_bloom import _get_alibi_slopes

    # By plain operations of torch, and not compiled for each shape.
    flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
    check_small()
    out = {}
    all_cases = cases([float(slope) for slope in _get_alibi_slopes(6, "cpu")])
    out["cases"] = np.frombuffer(json.dumps(all_cases, separators=(",", ":")).encode(), np.uint8)
    for name, fields in all_cases.items():
        (n_heads, n_kv_heads), dims = fields["heads"], fields["dims"]
        k, v = (rounded(numbers((n_kv_heads, fields["n_tokens"], dims[i]), 1 + i), fields, 4 + i) for i in range(2))
        q = numbers((fields["n_rows"], n_heads, dims[0]), 3) * np.float32(fields.get("q_times", 1))
        out[f"{name}.out"], out[f"{name}.lse"] = attention(torch.from_numpy(q).double(), k, v, fields)
        if fields["mask"] == "custom":
            out[f"{name}.visible"] = visible(fields)[0].numpy().astype(np.uint8)
    return out


if __name__ == "__main__":
    common.run(main, "squish-attn", "attention", ["torch", "transformers"])
