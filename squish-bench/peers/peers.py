"""Times torch, ml_dtypes and numpy on the operations of the tables, on one thread unless the shape says otherwise, and prints one JSON
object per line:

    {"row": "fp8/encode_e4m3_channel", "peer": "torch 2.15.0", "shape": "128x128", "ns_min": 16650.0, "ns_median": 17010.0,
     "threads": 1, "form": "abs().amax(1), scale, (x * inv).to(float8_e4m3fn)"}

`row` and `shape` are those of the rows that the benches declare; the times are of one call. Where a library has several ways to the
answer, such as with its own allocation or into a buffer made before timing, the fastest one counts and `form` says which it is. Each
answer is compared with the definition before it is timed, and a wrong one ends the program. A library that is not installed is left
out, with a line on stderr.

    python peers.py [--filter TEXT] [--quick]
"""

import itertools
import os
import sys

# One thread, whatever the libraries would choose, and each on a core of its own where there are more; read when they are imported.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ |= {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}

# Counted before a library pins this thread.
PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

import numpy as np  # noqa: E402

from timing import parser, print_fastest  # noqa: E402

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None
    print("ml_dtypes is not installed; FP8 is left out, since its codes are the definition", file=sys.stderr)
try:
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)
except ImportError:
    torch = None
    print("torch is not installed; its column is left out", file=sys.stderr)

MATRICES = [(128, 128), (4096, 4096)]
E4M3_MAX = np.float32(448)
# Products: rows of activations, rows of weights, threads; then the columns of both, and the bytes that all copies of the weights take,
# which are more than any last level of cache holds.
PRODUCTS = [(m, 4096, 1) for m in (1, 4, 8, 16, 512)] + [(1, 4096, 2), (512, 4096, 2), (1, 14336, 1), (1, 14336, 2)]
PRODUCT_COLS = 4096
ROTATED_BYTES = 400e6


def weights(rows, cols):
    """Normal weights of deviation 0.02 with one wide column in 128, as the benches have them."""
    rng = np.random.default_rng(1)
    columns = np.where(rng.integers(0, 128, cols) == 0, 0.16, 0.02).astype(np.float32)
    return rng.standard_normal((rows, cols), dtype=np.float32) * columns


def scales_of(x):
    """Scales per row [rows, 1] by the definition, in f32."""
    amax = np.abs(x).max(axis=1, keepdims=True)
    return np.where(amax == 0, np.float32(1), np.maximum(amax / E4M3_MAX, np.float32(2.0**-126)))


def codes_of(x, inverse):
    """E4M3 codes of `x * inverse` by the definition, from ml_dtypes."""
    return np.clip(x * inverse, -E4M3_MAX, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


def e4m3_values():
    """Values of the 256 codes, from the fields: 2^(e - 7) * (1 + m / 8), and m * 2^-9 below the normal range."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    magnitude = np.where(exponent == 0, mantissa * 2.0**-9, 2.0 ** (exponent - 7) * (1 + mantissa / 8))
    value = np.where(code >= 128, -magnitude, magnitude).astype(np.float32)
    value[[0x7F, 0xFF]] = np.nan
    return value


def close(got, want, relative):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    worst = np.max(np.abs(got - want) / np.maximum(np.abs(want), np.max(np.abs(want)) * 1e-3))
    assert worst <= relative, f"relative error {worst}"


def same(got, want):
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape and (got == want).all(), "codes or values differ"


def fp8_codecs():
    """Encoding and decoding of E4M3."""
    if ml_dtypes is None:
        return
    for rows, cols in MATRICES:
        shape = f"{rows}x{cols}"
        x = weights(rows, cols)
        scale = scales_of(x)
        inverse = np.float32(1) / scale
        want = codes_of(x, inverse)
        # Casts without a scale: standard normal numbers, as our benches have them.
        unit = np.random.default_rng(5).standard_normal((rows, cols), dtype=np.float32)
        unit_codes = codes_of(unit, np.float32(1))
        codes8 = unit_codes.view(ml_dtypes.float8_e4m3fn)
        same(codes8.astype(np.float32), e4m3_values()[unit_codes])
        yield "fp8/cast_e4m3", shape, "ml_dtypes", "x.astype(float8_e4m3fn)", lambda u=unit: u.astype(ml_dtypes.float8_e4m3fn)
        yield "fp8/cast_from_e4m3", shape, "ml_dtypes", "codes.astype(f32)", lambda c=codes8: c.astype(np.float32)
        if torch is None:
            continue
        fp8 = torch.float8_e4m3fn
        t, t_inverse, t_scale = torch.from_numpy(x), torch.from_numpy(inverse), torch.from_numpy(scale)
        t_unit = torch.from_numpy(unit)
        unit_codes8 = t_unit.to(fp8)
        same(unit_codes8.view(torch.uint8).numpy(), unit_codes)
        buffer, codes, back = torch.empty_like(t), torch.empty(rows, cols, dtype=fp8), torch.empty_like(t)

        def with_scale(t=t, t_inverse=t_inverse):
            return (t * t_inverse).to(fp8)

        def with_scale_into(t=t, t_inverse=t_inverse, buffer=buffer, codes=codes):
            torch.mul(t, t_inverse, out=buffer)
            return codes.copy_(buffer)

        def with_amax(t=t):
            amax = t.abs().amax(1, keepdim=True)
            scale = torch.where(amax == 0, 1.0, (amax / 448.0).clamp(min=2.0**-126))
            return (t * (1 / scale)).to(fp8), scale

        def with_amax_into(t=t, buffer=buffer, codes=codes):
            low, high = t.aminmax(dim=1, keepdim=True)
            amax = torch.maximum(-low, high)
            scale = torch.where(amax == 0, 1.0, (amax / 448.0).clamp(min=2.0**-126))
            torch.mul(t, 1 / scale, out=buffer)
            return codes.copy_(buffer), scale

        def decode(codes=codes, t_scale=t_scale):
            return codes.to(torch.float32) * t_scale

        def decode_into(codes=codes, t_scale=t_scale, back=back):
            return back.copy_(codes).mul_(t_scale)

        for run in (with_scale, with_scale_into, lambda: with_amax()[0], lambda: with_amax_into()[0]):
            same(run().view(torch.uint8).numpy(), want)
        for run in (with_amax, with_amax_into):
            same(run()[1].numpy(), scale)
        for run in (decode, decode_into):
            same(run().numpy(), e4m3_values()[want] * scale)
        if rows == 4096:
            yield "fp8/encode_e4m3_given", shape, "torch", "(x * inv).to(float8_e4m3fn)", with_scale
            yield "fp8/encode_e4m3_given", shape, "torch", "mul(x, inv, out=b); codes.copy_(b)", with_scale_into
        yield "fp8/cast_e4m3", shape, "torch", "x.to(float8_e4m3fn)", lambda u=t_unit: u.to(fp8)
        yield "fp8/cast_e4m3", shape, "torch", "codes.copy_(x)", lambda u=t_unit, c=torch.empty_like(codes): c.copy_(u)
        yield "fp8/encode_e4m3_channel", shape, "torch", "abs().amax(1), scale, (x * inv).to(float8_e4m3fn)", with_amax
        yield "fp8/encode_e4m3_channel", shape, "torch", "aminmax(1), scale, mul(x, inv, out=b), codes.copy_(b)", with_amax_into
        yield "fp8/decode_e4m3_channel", shape, "torch", "codes.to(f32) * scale", decode
        yield "fp8/decode_e4m3_channel", shape, "torch", "b.copy_(codes).mul_(scale)", decode_into
        yield "fp8/cast_from_e4m3", shape, "torch", "codes.to(f32)", lambda c=unit_codes8: c.to(torch.float32)
        yield "fp8/cast_from_e4m3", shape, "torch", "b.copy_(codes)", lambda c=unit_codes8, b=back: b.copy_(c)


def rows_of_logits():
    """Softmax, log-sum-exp, cross entropy."""
    if torch is None:
        return
    rng = np.random.default_rng(2)
    x = (rng.standard_normal(2048) * 2).astype(np.float32)
    t, out = torch.from_numpy(x), torch.empty(2048)
    wide = np.exp(x.astype(np.float64) - x.max())
    close(torch.softmax(t, -1).numpy(), wide / wide.sum(), 1e-5)
    yield "kernels/softmax", "2048", "torch", "softmax(x, -1)", lambda: torch.softmax(t, -1)
    yield "kernels/softmax", "2048", "torch", "softmax(x, -1, out=y)", lambda: torch.softmax(t, -1, out=out)

    z = (2 * rng.standard_normal((16, 131072)) - 4).astype(np.float32)
    targets = rng.integers(0, 131072, 16)
    z[np.arange(16), targets] = 6 + 12 * rng.random(16, dtype=np.float32)
    logits, ids = torch.from_numpy(z), torch.from_numpy(targets)
    wide = z.astype(np.float64)
    want = np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1)) + wide.max(1)
    loss = want - wide[np.arange(16), targets]

    def cross_entropy():
        return F.cross_entropy(logits, ids, reduction="none")

    close(torch.logsumexp(logits, 1).numpy(), want, 1e-5)
    # A loss is the difference of two numbers of this size.
    assert np.abs(cross_entropy().numpy() - loss).max() <= 1e-5 * want.max()
    yield "kernels/logsumexp", "16x131072", "torch", "cross_entropy(x, ids)", cross_entropy
    yield "kernels/logsumexp", "16x131072", "torch", "logsumexp(x, 1)", lambda: torch.logsumexp(logits, 1)
    yield from likelihoods(rng)


def likelihoods(rng):
    """Losses of rows of logits, and the divergence of rows from others."""
    for row, rows, vocab in [("ppl/record", 16, 1000), ("eval/nll", 64, 151936)]:
        z = (2 * rng.standard_normal((rows, vocab), dtype=np.float32) - 4).astype(np.float32)
        targets = rng.integers(0, vocab, rows)
        logits, ids = torch.from_numpy(z), torch.from_numpy(targets)
        wide = z.astype(np.float64)
        want = np.log(np.exp(wide).sum(1)) - wide[np.arange(rows), targets]

        def cross_entropy(logits=logits, ids=ids):
            return F.cross_entropy(logits, ids, reduction="none")

        def gathered(logits=logits, ids=ids):
            return torch.logsumexp(logits, 1) - logits.gather(1, ids[:, None])[:, 0]

        close(cross_entropy().numpy(), want, 1e-5)
        close(gathered().numpy(), want, 1e-5)
        yield row, f"{rows}x{vocab}", "torch", "cross_entropy(x, ids)", cross_entropy
        yield row, f"{rows}x{vocab}", "torch", "logsumexp(x, 1) - x.gather(1, ids)", gathered

    base = (2 * rng.standard_normal((16, 151936), dtype=np.float32) - 4).astype(np.float32)
    other = base + 0.05 * rng.standard_normal(base.shape, dtype=np.float32)
    p, q = torch.from_numpy(base), torch.from_numpy(other)

    def divergence():
        return F.kl_div(F.log_softmax(q, -1), F.log_softmax(p, -1), reduction="none", log_target=True).sum(-1)

    wide = F.kl_div(q.double().log_softmax(-1), p.double().log_softmax(-1), reduction="none", log_target=True).sum(-1)
    # Its terms cancel; of sums in f32, some 1e-4 of the result is left.
    close(divergence().numpy(), wide.numpy(), 1e-2)
    yield "eval/kl_divergence", "16x151936", "torch", "kl_div(log_softmax(q), log_softmax(p), log_target=True).sum(-1)", divergence


def norms():
    """RMS norm, alone and after a residual add."""
    if torch is None:
        return
    # In torch the sum goes to a buffer either way, so that what ours does in place and not are one form here.
    added_rows = {16: ["rmsnorm/forward_b16", "rmsnorm/fused_add_b16"], 64: ["rmsnorm/forward_b64"], 512: ["kernels/rms_norm_add"]}
    for rows, cols in [(16, 256), (64, 256), (512, 4096)]:
        shape = f"{rows}x{cols}"
        rng = np.random.default_rng(3)
        x, r = (rng.standard_normal((rows, cols), dtype=np.float32) for _ in range(2))
        w = 1 + 0.1 * rng.standard_normal(cols, dtype=np.float32)
        tx, tr, tw = map(torch.from_numpy, (x, r, w))
        buffer = torch.empty_like(tx)

        def definition(h, w=w):
            h = h.astype(np.float64)
            return h / np.sqrt((h * h).mean(1, keepdims=True) + 1e-5) * w

        def norm(tx=tx, tw=tw, cols=cols):
            return F.rms_norm(tx, (cols,), tw, 1e-5)

        def added(tx=tx, tr=tr, tw=tw, cols=cols, buffer=buffer):
            return F.rms_norm(torch.add(tx, tr, out=buffer), (cols,), tw, 1e-5)

        close(norm().numpy(), definition(x), 1e-4)
        close(added().numpy(), definition(x + r), 1e-4)
        yield "kernels/rms_norm", shape, "torch", "rms_norm(x, w)", norm
        for row in added_rows[rows]:
            yield row, shape, "torch", "rms_norm(add(x, r, out=h), w)", added


def rotary():
    """Rotation of heads by tables of cosines and sines made before."""
    if torch is None:
        return
    seq_len, n_heads, d = 512, 4, 64
    x = np.random.default_rng(7).standard_normal((seq_len, n_heads, d), dtype=np.float32)
    base = 10000.0 * 4 ** (d / (d - 2))
    angles = np.arange(seq_len)[:, None] * base ** (-np.arange(0, d, 2) / d)
    wide, (a, b) = x.astype(np.float64), (slice(None, d // 2), slice(d // 2, None))
    c, s = np.cos(angles)[:, None], np.sin(angles)[:, None]
    want = np.concatenate([wide[..., a] * c - wide[..., b] * s, wide[..., b] * c + wide[..., a] * s], -1)
    t = torch.from_numpy(x)
    cos, sin = (torch.from_numpy(np.concatenate([each, each], -1).astype(np.float32)) for each in (c, s))
    half_cos, half_sin = cos[..., a].contiguous(), sin[..., a].contiguous()
    low, high, out = t[..., a], t[..., b], torch.empty_like(t)

    def rotate_half():
        return t * cos + torch.cat((-high, low), -1) * sin

    def halves():
        return torch.cat((low * half_cos - high * half_sin, high * half_cos + low * half_sin), -1)

    def halves_into():
        torch.mul(low, half_cos, out=out[..., a]).addcmul_(high, half_sin, value=-1)
        torch.mul(high, half_cos, out=out[..., b]).addcmul_(low, half_sin)
        return out

    forms = [
        ("x * cos + rotate_half(x) * sin", rotate_half),
        ("cat((a * c - b * s, b * c + a * s))", halves),
        ("mul(a, c, out=y0).addcmul_(b, s), mul(b, c, out=y1).addcmul_(a, s)", halves_into),
    ]
    for form, run in forms:
        assert np.abs(run().numpy() - want).max() <= 1e-5
        yield "rope/ntk_apply", "512x4x64", "torch", form, run


def vectors():
    """Dot product."""
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal(4096, dtype=np.float32) for _ in range(2))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    bound = 4096 * 2.0**-24 * np.abs(a.astype(np.float64) * b).sum()
    assert abs(np.dot(a, b) - exact) <= bound
    yield "kernels/dot", "4096", "numpy", "dot(a, b)", lambda: np.dot(a, b)
    if torch is not None:
        ta, tb = torch.from_numpy(a), torch.from_numpy(b)
        assert abs(torch.dot(ta, tb).item() - exact) <= bound
        yield "kernels/dot", "4096", "torch", "dot(a, b)", lambda: torch.dot(ta, tb)


def products(text):
    """Products of weights with rows of activations, both in f32 or both in bf16, of the rows whose id contains the text."""
    if torch is None:
        return
    for row, dtype in [("product/f32", torch.float32), ("product/bf16", torch.bfloat16)]:
        if text not in row:
            continue
        copies = []
        for m, n, threads in PRODUCTS:
            if threads > PROCESSORS:
                continue
            shape = f"m{m}_{n}x{PRODUCT_COLS}" + (f"_t{threads}" if threads > 1 else "")
            generator = torch.Generator().manual_seed(6)
            x = torch.randn(m, PRODUCT_COLS, generator=generator).to(dtype)
            if not copies or len(copies[0]) != n:
                w = torch.randn(n, PRODUCT_COLS, generator=generator).mul_(0.02).to(dtype)
                copies = [w] + [w.clone() for _ in range(-int(-ROTATED_BYTES // w.nbytes) - 1)]
                wide_w = w.double().numpy()
            turn, out = itertools.cycle(copies), torch.empty(m, n, dtype=dtype)
            row_of_x, row_of_out = x[0], out[0]

            def linear(x=x, turn=turn):
                return F.linear(x, next(turn))

            def mm(x=x, turn=turn, out=out):
                return torch.mm(x, next(turn).t(), out=out)

            def mv(x=row_of_x, turn=turn, out=row_of_out):
                return torch.mv(next(turn), x, out=out)

            forms = [("linear(x, w)", linear), ("mm(x, w.t(), out=y)", mm)] + ([("mv(w, x, out=y)", mv)] if m == 1 else [])
            # Of many rows of activations, 8 are looked at.
            some = np.unique(np.linspace(0, m - 1, 8).astype(int))
            wide_x = x[some].double().numpy()
            exact, magnitude = wide_x @ wide_w.T, np.abs(wide_x) @ np.abs(wide_w).T
            # Sums are in f32, and rounded to the type at the end.
            bound = 2e-6 * magnitude + torch.finfo(dtype).eps / 2 * np.abs(exact)
            torch.set_num_threads(threads)
            for _, run in forms:
                got = run().reshape(m, n)[some].double().numpy()
                assert (np.abs(got - exact) <= bound).all(), f"{row} {shape}: wrong by {np.max(np.abs(got - exact))}"
            for form, run in forms:
                yield row, shape, "torch", form, run
            torch.set_num_threads(1)


def attention(text):
    """Attention of decode steps and of a prefill, over layers that take turns where they are too large for a cache."""
    if torch is None:
        return
    decode = [
        ("flash_decode/decode_seq512", "8x512x64", 8, 8, 512, 64, torch.float32, 1),
        ("flash_decode/decode_seq64", "8x64x64", 8, 8, 64, 64, torch.float32, 1),
        ("gqa/attention", "8q2kv_32x64", 8, 2, 32, 64, torch.float32, 1),
        ("sliding_window/attention", "8q2kv_128x64", 8, 2, 128, 64, torch.float32, 1),
        ("attention/decode_f32", "32q8kv_8192x128", 32, 8, 8192, 128, torch.float32, 1),
        ("attention/decode_bf16", "32q8kv_8192x128", 32, 8, 8192, 128, torch.bfloat16, 1),
        ("attention/decode_bf16", "32q8kv_8192x128_t2", 32, 8, 8192, 128, torch.bfloat16, 2),
    ]
    for row, shape, heads, kv_heads, tokens, dim, dtype, threads in decode:
        if text not in row or threads > PROCESSORS:
            continue
        generator = torch.Generator().manual_seed(9)
        q = torch.randn(1, heads, 1, dim, generator=generator).to(dtype)
        k = torch.randn(1, kv_heads, tokens, dim, generator=generator).to(dtype)
        v = torch.randn(1, kv_heads, tokens, dim, generator=generator).to(dtype)
        n_layers = 1 if k.nbytes < 16e6 else -int(-ROTATED_BYTES // (2 * k.nbytes))
        turn = itertools.cycle([(k, v)] + [(k.clone(), v.clone()) for _ in range(n_layers - 1)])
        folded = q.view(1, kv_heads, heads // kv_heads, dim)

        def in_groups(folded=folded, turn=turn):
            k, v = next(turn)
            return F.scaled_dot_product_attention(folded, k, v)

        def by_heads(q=q, turn=turn):
            k, v = next(turn)
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

        wide_q, wide_k, wide_v = folded.double(), k.double(), v.double()
        exact = ((wide_q @ wide_k.transpose(2, 3) / dim**0.5).softmax(3) @ wide_v).reshape(-1)
        torch.set_num_threads(threads)
        for form, run in [("sdpa of q in groups", in_groups), ("sdpa(enable_gqa)", by_heads)]:
            error = (run().double().reshape(-1) - exact).abs().max().item()
            assert error <= (1e-5 if dtype == torch.float32 else 2e-2), f"{row} {shape}: wrong by {error}"
            yield row, shape, "torch", form, run
        torch.set_num_threads(1)
    row, shape = "attention/prefill_f32", "32q8kv_2048x128"
    if text in row:
        generator = torch.Generator().manual_seed(9)
        q = torch.randn(1, 32, 2048, 128, generator=generator)
        k, v = (torch.randn(1, 8, 2048, 128, generator=generator) for _ in range(2))
        wide = [x.repeat_interleave(4, 1) for x in (k, v)]

        def gqa():
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        def repeated():
            return F.scaled_dot_product_attention(q, *wide, is_causal=True)

        scores = (q[0, 5].double() @ k[0, 1].double().T / 128**0.5).masked_fill(torch.ones(2048, 2048).triu(1).bool(), -torch.inf)
        exact = scores.softmax(1) @ v[0, 1].double()
        for form, run in [("sdpa(is_causal, enable_gqa)", gqa), ("sdpa(is_causal), heads repeated before", repeated)]:
            error = (run()[0, 5].double() - exact).abs().max().item()
            assert error <= 1e-5, f"{row} {shape}: wrong by {error}"
            yield row, shape, "torch", form, run


def vision_tokens():
    """Bipartite soft matching of tokens by the cosine of their numbers, and the merge of the most similar pairs."""
    if torch is None:
        return
    n, dim, r = 576, 1024, 256
    x = np.random.default_rng(10).standard_normal((n, dim), dtype=np.float32)
    tokens, ones = torch.from_numpy(x), torch.ones(n // 2, 1)
    a, b = tokens[0::2], tokens[1::2]

    def match(unit):
        best, partner = (unit[0::2] @ unit[1::2].T).max(1)
        order = best.argsort(descending=True)
        return order[:r], order[r:], partner[order[:r]]

    def indexed():
        merged, left, to = match(tokens / tokens.norm(dim=1, keepdim=True))
        sizes = ones.index_add(0, to, ones[:r])
        return torch.cat((a[left], b.index_add(0, to, a[merged]) / sizes)), torch.cat((ones[r:], sizes))

    def scattered():
        merged, left, to = match(F.normalize(tokens, dim=1))
        to = to[:, None]
        sizes = ones.scatter_add(0, to, ones[:r])
        sums = b.scatter_add(0, to.expand(-1, dim), a[merged])
        return torch.cat((a[left], sums / sizes)), torch.cat((ones[r:], sizes))

    wide = x.astype(np.float64)
    cosines = wide[0::2] @ wide[1::2].T / np.linalg.norm(wide[0::2], axis=1)[:, None] / np.linalg.norm(wide[1::2], axis=1)
    order = np.argsort(-cosines.max(1), kind="stable")
    groups = [[token] for token in wide[1::2]]
    for i in order[:r]:
        groups[cosines[i].argmax()].append(wide[2 * i])
    want = np.concatenate([wide[2 * order[r:]], [np.mean(group, axis=0) for group in groups]])
    sizes = [1] * (n // 2 - r) + [len(group) for group in groups]
    for form, run in [("max, argsort, index_add", indexed), ("max, argsort, scatter_add", scattered)]:
        got = run()
        assert np.abs(got[0].numpy() - want).max() <= 1e-5
        same(got[1].numpy()[:, 0], sizes)
        yield "vision/tome", "576x1024_r256", "torch", form, run


def name_and_version(peer):
    library = {"torch": torch, "ml_dtypes": ml_dtypes, "numpy": np}[peer]
    return f"{peer} {library.__version__.split('+')[0]}"


def n_threads(peer):
    return torch.get_num_threads() if peer == "torch" else 1


def main():
    options = parser(__doc__).parse_args()
    groups = [fp8_codecs(), rows_of_logits(), norms(), rotary(), vectors(), vision_tokens()]
    for group in [*groups, attention(options.filter), products(options.filter)]:
        print_fastest(group, options, name_and_version, n_threads)


if __name__ == "__main__":
    main()
