"""Scores after each of transformers' logits processors, in the order of its `generate`, and the probabilities that are sampled from.

Rows of logits of different lengths lie one after the other. Row R has lengths[R] logits and history_lengths[R] tokens before it.

rows              u8 [n]      JSON: the names of the r = 13 rows, in their order
logits            f32 [t]     the logits of all rows, t = 974
lengths           i64 [r]
history           i64 [h]     the tokens before each row, one row after the other; some come twice
history_lengths   i64 [r]
cases             u8 [n]      JSON: name and parameters of each CASE of `cases()`; an absent parameter is one without effect. Order of the
                              stages: repetition_penalty, temperature, top_k, top_p, min_p; min_tokens_to_keep is of the last three
CASE.STAGE        f32 [t]     the scores after that stage, for each parameter of the case that is applied; a removed token has -inf
CASE.probs        f64 [t]     softmax in f64 of the scores after the last stage
CASE.certain      u8 [r]      2 where rounding cannot change which tokens remain in a row: their number is the same when top_p is 1e-5 larger
                              or smaller, or min_p by this part of itself, and no removed score equals one that remains; 1 where only
                              their number is certain, since an order of equal scores decides; 0 where neither is
penalties         u8 [n]      JSON: name, presence and frequency of each PENALTY of `penalties()`
PENALTY.scores    f64 [t]     logit - count * frequency - (count > 0) * presence, of the API reference of OpenAI, where count is how often
                              the token is in the history of the row; in f64 from the f32 logits

What transformers means. The penalty of repetition divides scores that are not negative and multiplies the others, once however often a token
occurs. top_k keeps every token whose score is not below the k-th largest, so all of equal scores. top_p removes the least probable tokens as
long as their sum is at most 1 - top_p, of equal scores the lower ids first; it is not applied when it is 1. min_p removes probabilities
strictly below min_p times the largest.
"""

import json

import common
import numpy as np

STAGES = ["repetition_penalty", "temperature", "top_k", "top_p", "min_p"]
# How much a threshold may move in `certainty`.
SLACK = 1e-5


def rows():
    """Name -> logits and the tokens before them."""
    rng = np.random.default_rng(23)

    def normal(n, scale):
        return (scale * rng.standard_normal(n)).astype(np.float32)

    infinite = normal(64, 2.0)
    infinite[rng.permutation(64)[:40]] = -np.inf
    one_left = np.full(16, -np.inf, np.float32)
    one_left[5] = -3.5
    ties = np.repeat(np.array([2.0, 1.0, 0.0, -1.0], np.float32), [3, 6, 10, 21])
    out = {
        "normal": normal(128, 2.5),
        "peaked": np.concatenate([normal(31, 1.0), [np.float32(14.0)], normal(32, 1.0)]).astype(np.float32),
        "near_flat": normal(100, 0.01),
        "flat": np.zeros(16, np.float32),
        "flat_negative": np.full(50, -7.25, np.float32),
        "ties": ties[rng.permutation(40)],
        "two_peaks": np.where(np.isin(np.arange(48), [3, 40]), np.float32(9.0), normal(48, 1.0)).astype(np.float32),
        "infinite": infinite,
        "one_left": one_left,
        "eight": normal(8, 1.5),
        "wide": normal(300, 6.0),
        "zipf": -1.1 * np.log1p(rng.permutation(120)).astype(np.float32),
        "signs": np.array([-0.0, 0.0, 1e-6, -1e-6, 30.0, -30.0, 29.5, 5.0, 88.0, -88.0, 87.5, 80.0, 1.0, -1.0, 2.0, -2.0, 60.0, 3.0, 3.0, -3.0],
                          np.float32),
    }
    history = {}
    for name, row in out.items():
        assert row.dtype == np.float32
        tokens = rng.integers(0, len(row), 10).tolist()
        history[name] = [*tokens, tokens[0], tokens[0], tokens[3], int(row.argmax())]
    history["eight"] = []
    return out, history


def cases():
    """Name -> parameters."""
    alone = {
        "repetition_penalty": [1.2, 0.8, 3.0], "temperature": [0.7, 1.5, 0.05, 10.0], "top_k": [1, 5, 40, 299, 300, 1000],
        "top_p": [0.9, 0.5, 0.1, 0.999, 1e-4, 0.0, 1.0], "min_p": [0.05, 0.5, 0.001, 0.0, 1.0],
    }
    out = {f"{stage}_{value}": {stage: value} for stage, values in alone.items() for value in values}
    keeps = [{"top_k": 1}, {"top_p": 0.1}, {"min_p": 0.9}, {"top_k": 2, "top_p": 0.05, "min_p": 0.5}]
    out |= {f"keep_{'_'.join(case)}": {**case, "min_tokens_to_keep": 3} for case in keeps}
    out["keep_all"] = {"top_p": 0.1, "min_p": 0.9, "min_tokens_to_keep": 500}
    together = [
        {"temperature": 0.8, "top_p": 0.95},
        {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
        {"temperature": 1.3, "min_p": 0.1},
        {"top_k": 10, "top_p": 0.8},
        {"top_p": 0.7, "min_p": 0.2},
        {"repetition_penalty": 1.1, "temperature": 0.7, "top_k": 40, "top_p": 0.9},
        {"repetition_penalty": 1.3, "temperature": 0.5, "top_k": 8, "top_p": 0.9, "min_p": 0.05},
        {"repetition_penalty": 0.9, "temperature": 2.0, "top_k": 50, "top_p": 0.6, "min_p": 0.01},
    ]
    return out | {f"together_{i}": case for i, case in enumerate(together)}


def penalties():
    """Name -> presence and frequency."""
    values = [(0.6, 0.0), (0.0, 0.4), (1.5, 0.3), (-1.0, -0.5), (2.0, 2.0)]
    return {f"penalty_{i}": {"presence": presence, "frequency": frequency} for i, (presence, frequency) in enumerate(values)}


def processors(parameters, of_generate):
    """Stage -> the processor of transformers; those of `generate` are compared with ones made by hand."""
    import transformers.generation.logits_process as made_by

    parameters = dict(parameters)
    keep = {"min_tokens_to_keep": parameters.pop("min_tokens_to_keep", 1)}
    classes = {
        "repetition_penalty": (made_by.RepetitionPenaltyLogitsProcessor, {}),
        "temperature": (made_by.TemperatureLogitsWarper, {}),
        "top_k": (made_by.TopKLogitsWarper, keep),
        "top_p": (made_by.TopPLogitsWarper, keep),
        "min_p": (made_by.MinPLogitsWarper, keep),
    }
    by_hand = {stage: classes[stage][0](parameters[stage], **classes[stage][1]) for stage in STAGES if stage in parameters}
    if parameters.get("top_p") == 1.0:
        # As `generate` does; the class by itself would remove probabilities that are 0 in f32.
        del by_hand["top_p"]
    if keep["min_tokens_to_keep"] == 1:
        assert [type(processor) for processor in of_generate(parameters)] == [type(processor) for processor in by_hand.values()]
    return by_hand


def generate_list():
    """A function from parameters to the list that `generate` would apply."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes))

    def of_generate(parameters):
        none = {"temperature": None, "top_k": None, "top_p": None, "min_p": None}
        config = GenerationConfig(do_sample=True, **{**none, **parameters})
        return model._get_logits_processor(config, input_ids_seq_length=1)

    return of_generate


def removed(stage, value, before, keep):
    """Which tokens top_p or min_p removes, in f64."""
    probs = softmax(before)
    ascending = np.argsort(before, kind="stable")
    if stage == "min_p":
        out = probs < value * probs.max()
    else:
        # The sum of a token's probability and of all less probable ones; of equal scores, those of lower ids are less probable.
        sums = np.empty_like(probs)
        sums[ascending] = probs[ascending].cumsum()
        out = sums <= 1 - value
    out[ascending[::-1][:keep]] = False
    return out


def certainty(stage, value, before, after, keep):
    """What of a row is not up to rounding: 2 which tokens remain, 1 how many, 0 neither."""
    if stage not in ["top_p", "min_p"]:
        return 2
    finite = ~np.isneginf(before)
    gone = np.isneginf(after) & finite
    # No rounding makes 0 more than 0.
    slack = SLACK * (value if stage == "min_p" else np.sign(value))
    values = [value - slack, value, min(value + slack, 1.0)]
    counts = [(removed(stage, threshold, before, keep) & finite).sum() for threshold in values]
    if any(count != gone.sum() for count in counts):
        return 0
    return 1 if np.isin(before[gone], before[finite & ~gone]).any() else 2


def softmax(scores):
    shifted = np.exp(scores.astype(np.float64) - scores.max())
    return shifted / shifted.sum()


def main():
    import torch

    def text(value):
        return np.frombuffer(json.dumps(value).encode(), np.uint8)

    def lengths(lists):
        return np.array([len(one) for one in lists], np.int64)

    logits, history = rows()
    flat_history = [token for tokens in history.values() for token in tokens]
    out = {"rows": text(list(logits)), "logits": np.concatenate(list(logits.values())), "lengths": lengths(logits.values())}
    out |= {"history": np.array(flat_history, np.int64), "history_lengths": lengths(history.values())}
    out["cases"] = text([{"name": name, **parameters} for name, parameters in cases().items()])
    out["penalties"] = text([{"name": name, **parameters} for name, parameters in penalties().items()])
    of_generate = generate_list()
    for case, parameters in cases().items():
        stages = {stage: [] for stage in STAGES if stage in parameters}
        probs, certain = [], []
        if parameters.get("top_p") == 1.0:
            del stages["top_p"]
        for name, row in logits.items():
            ids = torch.tensor([history[name]], dtype=torch.long)
            scores = torch.from_numpy(row)[None]
            certain.append(2)
            for stage, processor in processors(parameters, of_generate).items():
                before = scores[0].numpy()
                scores = processor(ids, scores.clone())
                after = scores[0].numpy()
                keep = parameters.get("min_tokens_to_keep", 1)
                certain[-1] = min(certain[-1], certainty(stage, parameters[stage], before, after, keep))
                stages[stage].append(after)
            probs.append(softmax(scores[0].numpy()))
        assert all(np.isfinite(row).all() for row in probs)
        out |= {f"{case}.{stage}": np.concatenate(scores) for stage, scores in stages.items()}
        out |= {f"{case}.probs": np.concatenate(probs), f"{case}.certain": np.array(certain, np.uint8)}
        print(f"{case}: certainty {certain}, {sum((row > 0).sum() for row in probs)} tokens remain")
    for name, penalty in penalties().items():
        counts = [np.bincount(np.array(history[row], np.int64), minlength=len(scores)) for row, scores in logits.items()]
        scores = [
            row.astype(np.float64) - count * penalty["frequency"] - (count > 0) * penalty["presence"]
            for row, count in zip(logits.values(), counts, strict=True)
        ]
        out[f"{name}.scores"] = np.concatenate(scores)
    return out


if __name__ == "__main__":
    common.run(main, "squish-model", "sampling", ["torch", "transformers"])
