"""Windows and perplexities by lm-evaluation-harness 0.4.13, transformers 5.23 and the formulas of llama.cpp; divergences by torch in f64.

windows.hf.N.L.S        i64 [w, 4]   begin and end of each window, tokens that are new in it, and labels that transformers' loss has, of a
                                     text of N tokens in windows of L by S, by the code of transformers' docs (perplexity.md)
windows.rolling.N.L.C   i64 [w, 4]   of lm_eval.utils.get_rolling_token_windows and make_disjoint_window: begin and end of what is fed, in
                                     tokens of the text with the prefix at index 0, and the first and the end of what is foreseen, without it
embed, head             f64 [v, d]   a model: h <- 0.97 h + 0.2 embed[token], from h = 0; logits = head h
tokens                  i64 [n]
NAME.mean               f64 []       mean nll of `tokens` under the model by each recipe of RECIPES; HF's by ForCausalLMLoss of transformers,
                                     lm-eval's from its weighted_perplexity; those of llama.cpp and the exact one by their formulas
rolling.bits_per_byte   f64 []       lm-eval's, for 3 bytes per token

kl.base, kl.other       f32 [r, v]   logits; the last row of `other` is that of `base`, some of both are masked in both
kl.targets              i64 [r]
kl.values, kl.delta_p, kl.base_nll, kl.other_nll   f64 [r]   torch.nn.functional.kl_div in f64, and what it is made of
kl.summary              f64 [15]     SUMMARY, of the above: numpy's means, percentiles and covariance
kl.coarse               f64 [r]      divergences through the file, by llama.cpp's formula
file                    u8 [n]       llama.cpp's file of kl.base: chunks of N_CTX tokens, `kl.targets` where they are foreseen and 0 elsewhere
file.log_probs          f32 [r, v]   what the file says
"""

import math
import struct

import common
import numpy as np

VOCAB, WIDTH, N_TOKENS = 50, 12, 203
# Length of the text, window, stride.
HF = [(10, 4, 2), (10, 4, 4), (11, 4, 3), (4, 4, 4), (5, 4, 4), (9, 4, 4), (3, 8, 8), (2, 4, 1), (203, 32, 16), (100, 7, 1)]
# Length of the text, window, context.
ROLLING = [(10, 4, 1), (10, 4, 2), (10, 4, 4), (1, 4, 1), (4, 4, 1), (5, 4, 1), (203, 32, 1), (100, 7, 3), (3, 1, 1)]
MAX_LEN, STRIDE, PREFIX = 32, 16, 0
RECIPES = ["hf_doc", "hf_doc_disjoint", "strided", "strided_disjoint", "strided_prefix", "llama_cpp", "llama_cpp_bos", "rolling"]
N_CTX, N_CHUNKS, KL_VOCAB = 8, 40, 101
PERCENTILES = [0.1, 1, 5, 10, 50, 90, 95, 99, 99.9]
SUMMARY = [*(f"kl p{p}" for p in PERCENTILES), "kl mean", "kl se", "delta_p rms", "log ratio", "log ratio se", "correlation"]


def hf_windows(n, max_len, stride):
    """Begin, end and new tokens, as the code of the docs has them."""
    windows, prev_end = [], 0
    for begin in range(0, n, stride):
        end = min(begin + max_len, n)
        windows.append((begin, end, end - prev_end))
        prev_end = end
        if end == n:
            break
    return windows


def hf_labels(n, begin, end, new):
    """Labels that the loss has, of inputs whose older ones are -100; it shifts them by one."""
    labels = np.arange(begin, end)
    labels[: end - begin - new] = -100
    return labels[1:][labels[1:] != -100]


def rolling_windows(n, max_len, context_len):
    """Windows of the tokens 1 to n, which are their indices with the prefix 0 in front."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    out = []
    pairs = get_rolling_token_windows(list(range(1, n + 1)), 0, max_len, context_len)
    for context, scored in map(make_disjoint_window, pairs):
        fed = (context + scored)[:-1]
        assert fed == list(range(fed[0], fed[-1] + 1)) and len(fed) <= max_len
        out.append((fed[0], fed[-1] + 1, scored[0] - 1, scored[-1]))
    return out


class Model:
    def __init__(self, rng):
        self.embed = rng.standard_normal((VOCAB, WIDTH))
        self.head = rng.standard_normal((VOCAB, WIDTH))

    def log_probs(self, tokens):
        """[len, vocab], after each of the tokens."""
        h, rows = np.zeros(WIDTH), []
        for token in tokens:
            h = 0.97 * h + 0.2 * self.embed[token]
            z = self.head @ h
            rows.append(z - z.max() - np.log(np.exp(z - z.max()).sum()))
        return np.array(rows)

    def nll(self, tokens, first):
        """Of tokens[first:], each after all before it."""
        rows = self.log_probs(tokens[:-1])
        return -rows[np.arange(first - 1, len(tokens) - 1), tokens[first:]]


def hf_doc(model, tokens, stride):
    import torch
    from transformers.loss.loss_utils import ForCausalLMLoss

    nll_sum, n_tokens = 0.0, 0
    for begin, end, new in hf_windows(len(tokens), MAX_LEN, stride):
        ids = torch.tensor(tokens[begin:end])[None]
        target_ids = ids.clone()
        target_ids[:, :-new] = -100
        loss = ForCausalLMLoss(torch.from_numpy(model.log_probs(tokens[begin:end]))[None], target_ids, VOCAB)
        num_loss_tokens = (target_ids != -100).sum().item() - target_ids.size(0)
        nll_sum += loss.item() * num_loss_tokens
        n_tokens += num_loss_tokens
    return nll_sum / n_tokens


def strided(model, tokens, stride):
    """Every token but the first, after what its window of the docs holds before it; a window that does not overlap has one token more."""
    nll = []
    for begin, end, new in hf_windows(len(tokens), MAX_LEN, stride):
        first = begin - 1 if end - new == begin > 0 else begin
        nll.extend(model.nll(tokens[first:end], max(end - new, 1) - first))
    assert len(nll) == len(tokens) - 1
    return np.mean(nll)


def llama_cpp(model, tokens, bos):
    nll = []
    for chunk in range(len(tokens) // MAX_LEN):
        window = tokens[chunk * MAX_LEN : (chunk + 1) * MAX_LEN]
        fed = [bos, *window[1:]] if bos is not None else window
        nll.extend(model.nll(np.array(fed), MAX_LEN // 2 + 1))
    return np.mean(nll)


def rolling(model, tokens):
    from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    likelihood = 0.0
    for context, scored in map(make_disjoint_window, get_rolling_token_windows(list(tokens), PREFIX, MAX_LEN, 1)):
        likelihood -= model.nll(np.array(context + scored), len(context)).sum()
    mean = math.log(weighted_perplexity([(likelihood, len(tokens))]))
    return mean, bits_per_byte([(likelihood, 3 * len(tokens))])


def encode(logits):
    """A row of the file in f32: scale, least log-probability, codes."""
    most, f32 = logits.max(), np.float32
    least = max(logits.min(), most - f32(16))
    log_sum = f32(np.log(np.exp((logits - most).astype(np.float64)).sum()))
    scale = (most - least) / f32(65535)
    codes = np.zeros(len(logits), np.uint16)
    if scale:
        above = logits > least
        codes[above] = np.rint((f32(1) / scale) * (logits[above] - least)).astype(np.uint16)
    return scale, least - most - log_sum, codes


def kl(rng):
    import torch
    import torch.nn.functional as F

    per_chunk = N_CTX - 1 - N_CTX // 2
    n_rows = per_chunk * N_CHUNKS
    base = (rng.standard_normal((n_rows, KL_VOCAB)) * rng.uniform(0.5, 6, (n_rows, 1))).astype(np.float32)
    noise = rng.standard_normal((n_rows, KL_VOCAB)) * 10 ** rng.uniform(-3, 0, (n_rows, 1))
    other = (base + noise).astype(np.float32)
    other[-1] = base[-1]
    base[5, 3], other[5, 3], base[6, :50], other[6, :50] = -np.inf, -np.inf, -np.inf, -np.inf
    base[7], other[7] = 0, noise[7]
    targets = rng.integers(50, KL_VOCAB, n_rows)
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (base, other))
    terms = F.kl_div(q, p, reduction="none", log_target=True)
    # -inf less -inf; such a token has no probability by either.
    values = torch.where(torch.isneginf(p), 0.0, terms).sum(-1).numpy()
    p, q = p.numpy(), q.numpy()
    rows = np.arange(n_rows)
    nll_p, nll_q = -p[rows, targets], -q[rows, targets]
    delta = np.exp(-nll_q) - np.exp(-nll_p)
    cov = np.cov(nll_q, nll_p, bias=True) / (n_rows - 1)
    summary = [
        *np.percentile(values, PERCENTILES),
        values.mean(),
        math.sqrt(((values**2).mean() - values.mean() ** 2) / (n_rows - 1)),
        math.sqrt((delta**2).mean()),
        nll_q.mean() - nll_p.mean(),
        math.sqrt(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]),
        cov[0, 1] / math.sqrt(cov[0, 0] * cov[1, 1]),
    ]

    tokens = np.zeros((N_CHUNKS, N_CTX), np.int32)
    tokens[:, N_CTX // 2 + 1 :] = targets.reshape(N_CHUNKS, per_chunk)
    file = b"_logits_" + struct.pack("<3i", N_CTX, KL_VOCAB, N_CHUNKS) + tokens.astype("<i4").tobytes()
    log_probs, coarse = [], []
    for row, log_q in zip(base, q, strict=True):
        scale, least, codes = encode(row)
        file += struct.pack("<2f", scale, least) + codes.astype("<u2").tobytes() + bytes(2 * (KL_VOCAB % 2))
        log_p = scale * codes.astype(np.float32) + least
        log_probs.append(log_p)
        kept = log_p > -16
        coarse.append((np.exp(log_p[kept].astype(np.float64)) * (log_p[kept] - log_q[kept])).sum())
    return {
        "kl.base": base, "kl.other": other, "kl.targets": targets, "kl.values": values, "kl.delta_p": delta,
        "kl.base_nll": nll_p, "kl.other_nll": nll_q, "kl.summary": np.array(summary), "kl.coarse": np.array(coarse),
        "file": np.frombuffer(file, np.uint8), "file.log_probs": np.array(log_probs, np.float32),
    }


@np.errstate(over="ignore", invalid="ignore")
def main():
    rng = np.random.default_rng(11)
    out = {}
    for n, max_len, stride in HF:
        windows = [(*window, len(hf_labels(n, *window))) for window in hf_windows(n, max_len, stride)]
        out[f"windows.hf.{n}.{max_len}.{stride}"] = np.array(windows, np.int64)
    for case in ROLLING:
        out["windows.rolling.{}.{}.{}".format(*case)] = np.array(rolling_windows(*case), np.int64)

    model = Model(rng)
    tokens = rng.integers(1, VOCAB, N_TOKENS)
    with_prefix = np.concatenate([[PREFIX], tokens])
    means = {
        "hf_doc": hf_doc(model, tokens, STRIDE),
        "hf_doc_disjoint": hf_doc(model, tokens, MAX_LEN),
        "strided": strided(model, tokens, STRIDE),
        "strided_disjoint": strided(model, tokens, MAX_LEN),
        "strided_prefix": strided(model, with_prefix, STRIDE),
        "llama_cpp": llama_cpp(model, tokens, None),
        "llama_cpp_bos": llama_cpp(model, tokens, PREFIX),
    }
    means["rolling"], bits_per_byte = rolling(model, tokens)
    assert list(means) == RECIPES
    out |= {"embed": model.embed, "head": model.head, "tokens": tokens, "rolling.bits_per_byte": np.array(bits_per_byte)}
    out |= {f"{name}.mean": np.array(mean) for name, mean in means.items()}
    return out | kl(rng)


if __name__ == "__main__":
    common.run(main, "squish-eval", "eval", ["lm_eval", "torch", "transformers"])
