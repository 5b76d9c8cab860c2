"""Vision tokens: what was recorded from ToMe's module, and the definitions of VisionZip, FastV and PruMerge by numpy in f64.

tokens          f32 [12, 4]     multiples of 1/512
attention       f32 [12]        of the class token, a softmax
outliers        f32 [12]        the same with two outliers
tome.out        f32 [8, 4]      bipartite_soft_matching(metric=tokens, r=4) and merge_wavg of facebookresearch/ToMe (tome/merge.py),
tome.size       f32 [8]         as recorded with torch; the definition below agrees
fast_v          i64 [6]         the half of the tokens with most attention, ascending
fences          f64 [2, 3]      first and third quartile by numpy.percentile and Q3 + 1.5 IQR, of `attention` and of `outliers`
visionzip.hidden, .keys, .out   f32 [13, 4], [13, 4], [6, 4]   class token first; 3 dominant and 2 contextual tokens by `attention`, as the
                                released code of dvlab-research/VisionZip: a contextual token is its target plus the mean of the others
prumerge.tokens, .keys, .attention                  f32 [60, 6], [60, 5], [60]   normal numbers, and attention with 7 outliers
prumerge.out, .plus, .quarter   f64 [n, 6]  by the steps of the released code of 42Shawn/LLaVA-PruMerge, with 32 neighbors: as many as
                                there are outliers; with evenly spaced tokens besides; the 15 with most attention
"""

import common
import numpy as np

TOKENS = """-701 678 -507 -147 603 -927 -181 968 -519 802 -158 898 335 -212 -638 -388 114 -341 -916 -59 -506 308 -731 -788
887 -800 325 205 -263 -46 -121 -982 -509 -417 420 -932 -749 -390 197 805 -562 -54 -275 -477 642 827 93 47"""
HIDDEN = """-212 -98 -161 -940 1 541 284 -394 545 209 545 -856 777 -468 782 20 -737 -379 -359 810 226 -37 404 -714 -938 -78
289 442 -802 526 236 -329 702 255 -577 -466 -728 409 -412 -962 458 -858 582 -3 -661 618 -692 -66 503 549 470 -501"""
KEYS = """241 722 12 -336 -300 -310 516 719 661 -87 688 61 998 612 700 224 -746 -399 -873 -549 -201 206 971 115 -641 -925
-729 352 929 605 415 -3 99 591 133 768 -925 -191 -717 364 -240 741 -990 -558 -519 722 -291 294 -803 977 -373 -490"""
ATTENTION = [
    0.08584877103567123, 0.1723351776599884, 0.11501673609018326, 0.1567337065935135, 0.10416354238986969, 0.06719484180212021,
    0.01903379149734974, 0.028530338779091835, 0.00614562164992094, 0.1733526587486267, 0.006484783720225096, 0.065159872174263,
]  # fmt: skip
TOME_OUT = [
    1.732421875, -1.5625, 0.634765625, 0.400390625, -1.013671875, 1.56640625, -0.30859375, 1.75390625, 1.177734375, -1.810546875,
    -0.353515625, 1.890625, 0.4384765625, -0.5400390625, -1.517578125, -0.4365234375, -1.1516927480697632, 0.6067708134651184,
    -0.9850260615348816, -0.9192708134651184, -0.75390625, -0.4521484375, 0.2919921875, -1.869140625, -1.462890625, -0.76171875,
    0.384765625, 1.572265625, 1.25390625, 1.615234375, 0.181640625, 0.091796875,
]  # fmt: skip
TOME_SIZE = [1, 1, 1, 2, 3, 2, 1, 1]


def rows(text, width):
    return np.array(text.split(), np.float32).reshape(-1, width) / np.float32(512)


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def largest(x, k):
    """Indices of the k largest, the largest first, and of equal ones the first."""
    return np.argsort(-x, kind="stable")[:k]


def tome(tokens, r):
    """Section 3 of arXiv 2210.09461: new tokens and their sizes."""
    a, b = tokens[0::2], tokens[1::2]
    similarity = unit(a) @ unit(b).T
    order = largest(similarity.max(1), len(a))
    out, size = b.copy(), np.ones(len(b))
    for i in order[:r]:
        out[similarity[i].argmax()] += a[i]
        size[similarity[i].argmax()] += 1
    left = a[order[r:]]
    return np.concatenate([left, out / size[:, None]]), np.concatenate([np.ones(len(left)), size])


def vision_zip(hidden, keys, attention, n_dominant, n_contextual):
    dominant = np.sort(largest(attention, n_dominant)) + 1
    rest = np.setdiff1d(np.arange(1, len(hidden)), dominant)
    targets = rest[:: max(1, len(rest) // n_contextual)][:n_contextual]
    others = np.setdiff1d(rest, targets)
    nearest = (unit(keys[others]) @ unit(keys[targets]).T).argmax(1)
    contextual = [
        hidden[target] + (hidden[others[nearest == i]].mean(0) if (nearest == i).any() else 0) for i, target in enumerate(targets)
    ]
    return np.concatenate([hidden[:1], hidden[dominant], contextual])


def fences(attention):
    q1, q3 = np.percentile(attention, [25, 75])
    return q1, q3, q3 + 1.5 * (q3 - q1)


def pru_merge(tokens, keys, attention, n_kept, is_plus):
    kept = largest(attention, n_kept)
    if is_plus:
        step = len(tokens) // n_kept // 3
        kept = np.array([*kept, *(i for i in range(0, len(tokens) - 1, step) if i not in kept)])
    similarity = unit(keys[kept]) @ unit(keys).T
    similarity[np.arange(len(kept)), kept] = -np.inf
    out = []
    for i, row in zip(kept, similarity):
        near = largest(row, 32)
        out.append(tokens[i] + attention[near] @ tokens[near])
    rest = np.setdiff1d(np.arange(len(tokens)), kept)
    return np.array([*out, attention[rest] @ tokens[rest]])


def main():
    tokens, hidden, keys = rows(TOKENS, 4), rows(HIDDEN, 4), rows(KEYS, 4)
    attention = np.array(ATTENTION, np.float32)
    outliers = attention.copy()
    outliers[[3, 8]] = [0.6, 0.5]
    recorded = np.array(TOME_OUT).reshape(8, 4)
    out, size = tome(tokens.astype(np.float64), 4)
    assert np.allclose(out, recorded, rtol=0, atol=1e-6) and list(size) == TOME_SIZE
    exact = [x.astype(np.float64) for x in (hidden, keys, attention)]
    random = np.random.Generator(np.random.PCG64(7))
    big = [random.standard_normal((60, width)).astype(np.float32) for width in (6, 5)]
    of_big = random.uniform(0.5, 1.5, 60)
    of_big[[3, 11, 12, 29, 40, 57, 59]] = [9, 6, 7, 5, 8, 10, 4]
    of_big = (of_big / of_big.sum()).astype(np.float32)
    exact_big = [x.astype(np.float64) for x in (*big, of_big)]
    n_outliers = int((exact_big[2] > fences(exact_big[2])[2]).sum())
    assert n_outliers == 7
    return {
        "tokens": tokens,
        "attention": attention,
        "outliers": outliers,
        "tome.out": recorded.astype(np.float32),
        "tome.size": np.array(TOME_SIZE, np.float32),
        "fast_v": np.sort(largest(attention, 6)),
        "fences": np.array([fences(x.astype(np.float64)) for x in (attention, outliers)]),
        "visionzip.hidden": hidden,
        "visionzip.keys": keys,
        "visionzip.out": vision_zip(*exact, 3, 2).astype(np.float32),
        "prumerge.tokens": big[0],
        "prumerge.keys": big[1],
        "prumerge.attention": of_big,
        "prumerge.out": pru_merge(*exact_big, n_outliers, False),
        "prumerge.plus": pru_merge(*exact_big, n_outliers, True),
        "prumerge.quarter": pru_merge(*exact_big, 15, False),
    }


if __name__ == "__main__":
    common.run(main, "squish-attn", "tokens", [])
