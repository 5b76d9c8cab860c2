"""Logits, greedy text and hidden states of one tiny random model per architecture and RoPE variant, by transformers 5.23 in f32 (eager attention).

No checkpoint is committed: the weights are bf16 numbers of a generator that a test runs again. For the tensor called `name`, as in the
checkpoint, of the model with `seed`, and its elements i = 0.. in row-major order, with integers modulo 2^64:

    state = fnv1a64(utf-8 bytes of name) XOR seed
    u     = mix(state + (i + 1) * 0x9E3779B97F4A7C15)         mix is the finalizer of SplitMix64
    r     = (u >> 40) * 2^-24 - 1/2 + 2^-25                   exact in f32, in (-1/2, 1/2)
    value = offset + r * a                                    product and sum rounded to f32, then to bf16, ties to even

    a      = f32(sqrt(12) * 1/sqrt(last dimension)) of a matrix, f32(sqrt(12) * 0.1) of a vector, computed in f64
    offset = 1 for a vector that has `norm` in its name, of a family whose norms multiply by w; otherwise there is none (Gemma's by 1 + w)

    fnv1a64(bytes): h = 0xcbf29ce484222325; for each byte: h = (h XOR byte) * 0x100000001b3
    mix(z): z = (z XOR z >> 30) * 0xBF58476D1CE4E5B9; z = (z XOR z >> 27) * 0x94D049BB133111EB; z XOR z >> 31

generator        u8 [n]          JSON: name, seed, shape and offset of examples of the generator
generator.I      bf16            their values
variants         u8 [n]          JSON: the names of all variants, in the order of VARIANTS below
prompt.J         i64 [24 or 37]  tokens; J in 0, 1
V.config         u8 [n]          config.json as save_pretrained writes it for the bf16 checkpoint
V.old_config     u8 [n]          of the variants with `old`: a config.json in the words of transformers 4, which gives the same model
V.seed           i64 [1]         the least seed from 1 on for which all margins are above 1e-3
V.tensors        u8 [n]          JSON: the names of the checkpoint's tensors and their shapes
V.logits.J       f32 [n, 128]    logits at every position of prompt J, of one forward pass
V.greedy.J       i64 [32]        argmax continuation of prompt J with a cache: one pass over the prompt, then one for each token
V.margin.J       f32 [32]        gap between the two largest logits of each step
V.last.J         f32 [128]       logits of the last step, from which greedy.J[31] was taken
V.recomputed.J   i64 [32]        only where frequencies depend on the length (dynamic, longrope): the continuation when each step is a pass
                                 over all tokens. With a cache the keys stay as they were rotated; so the two differ beyond the original length
V.recomputed_margin.J, V.recomputed_last.J  as above
V.hidden.L       f32 [24, h]     of the variants with `hidden`, prompt 0: L = 0 the embeddings (Gemma's after their scale), L = 1.. the
                                 output of layer L, `norm` the last one after the final norm

The script asserts that the checkpoint as saved and loaded again gives the logits; that the cache changes nothing, except as above; that the
old configuration gives the same bits; and that each change of `sensitive` moves some logit by more than 5e-4, so that no feature of a variant
can be left out unseen.
"""

import json
import tempfile
from pathlib import Path

import common
import ml_dtypes
import numpy as np

N_GREEDY, MARGIN, SEEN = 32, 1e-3, 5e-4
LENGTHS = [24, 37]

SIZES = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
}
LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5}
MISTRAL = {"model_type": "mistral", "rms_norm_eps": 1e-5, "num_hidden_layers": 3}
QWEN2 = {"model_type": "qwen2"}
QWEN3 = {"model_type": "qwen3", "head_dim": 32}
GEMMA2 = {"model_type": "gemma2", "num_hidden_layers": 4, "sliding_window": 8, "query_pre_attn_scalar": 24}
GEMMA3 = {"model_type": "gemma3_text", "query_pre_attn_scalar": 20, "sliding_window": 8}

# The factors of long sequences differ much from those of short ones.
LISTS = {"short_factor": [1 + i / 8 for i in range(8)], "long_factor": [1 + i for i in range(8)]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}


def rope(rope_type, **others):
    """A `rope_parameters` of today's configurations."""
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **others}}


def old(scaling=None, without=(), **others):
    """What makes an old configuration of today's: `rope_scaling` and `rope_theta`, fewer fields, `torch_dtype`."""
    return {"scaling": scaling, "without": without, "others": {"rope_theta": 10000.0, **others}}


# name -> fields beyond SIZES; `sensitive`: changes that must show in the logits; `old`: see `old_config`; `hidden`: whether states are saved
VARIANTS = {
    "llama": {**LLAMA, "hidden": True, "sensitive": [rope("default", rope_theta=500.0), {"rms_norm_eps": 1e-2}]},
    "llama_tied": {**LLAMA, "tie_word_embeddings": True, "head_dim": 32, "num_hidden_layers": 3, "old": old()},
    "llama_mha": {**LLAMA, "num_key_value_heads": 4, "head_dim": 24, **rope("default", rope_theta=500000.0)},
    "llama_mqa": {**LLAMA, "num_key_value_heads": 1, "num_hidden_layers": 1},
    "llama_bias": {**LLAMA, "attention_bias": True, "mlp_bias": True, "hidden": True},
    "llama_linear": {
        **LLAMA, **rope("linear", factor=4.0), "sensitive": [rope("default")], "old": old({"type": "linear", "factor": 4.0}),
    },
    "llama_dynamic": {
        **LLAMA, "max_position_embeddings": 32, **rope("dynamic", factor=4.0), "sensitive": [rope("default")],
        "old": old({"type": "dynamic", "factor": 4.0}),
    },
    "llama_dynamic_below": {**LLAMA, **rope("dynamic", factor=4.0)},
    "llama_yarn": {
        **LLAMA, "max_position_embeddings": 256, **rope("yarn", factor=4.0, original_max_position_embeddings=64),
        "sensitive": [
            rope("default"), rope("yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=1.0),
            rope("yarn", factor=4.0, original_max_position_embeddings=64, truncate=False),
        ],
        "old": old({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
    },
    "llama_yarn_options": {
        **LLAMA, "head_dim": 32, **rope(
            "yarn", factor=8.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.25, mscale=1.0, mscale_all_dim=0.5,
            truncate=False,
        ),
        "sensitive": [rope("yarn", factor=8.0, original_max_position_embeddings=16)],
    },
    "llama_longrope": {
        **LLAMA, **rope("longrope", original_max_position_embeddings=32, **LISTS),
        "sensitive": [rope("default"), rope("longrope", original_max_position_embeddings=32, attention_factor=1.0, **LISTS)],
        "old": old({"type": "longrope", "original_max_position_embeddings": 32, **LISTS}),
    },
    "llama_longrope_factor": {
        **LLAMA, "max_position_embeddings": 32, **rope("longrope", original_max_position_embeddings=32, factor=16.0, **LISTS),
        "sensitive": [rope("longrope", original_max_position_embeddings=32, **LISTS)],
    },
    "llama_llama3": {
        **LLAMA, "max_position_embeddings": 512, **rope("llama3", **LLAMA3), "sensitive": [rope("default"), rope("linear", factor=8.0)],
        "old": old({"rope_type": "llama3", **LLAMA3}),
    },
    "mistral": {**MISTRAL, "sliding_window": 8, "hidden": True, "sensitive": [{"sliding_window": 9}], "old": old()},
    "mistral_full": {**MISTRAL, "sliding_window": None, "head_dim": 32},
    "qwen2": {**QWEN2, "head_dim": None, "hidden": True, "old": old(None, ["layer_types"], sliding_window=16, max_window_layers=2)},
    "qwen2_tied": {**QWEN2, "head_dim": None, "tie_word_embeddings": True, **rope("default", rope_theta=1000000.0)},
    "qwen2_window": {
        **QWEN2, "head_dim": None, "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1,
        "sensitive": [{"sliding_window": 9}, {"max_window_layers": 0}, {"max_window_layers": 2}, {"use_sliding_window": False}],
        "old": old(None, ["layer_types"]),
    },
    "qwen2_yarn": {
        **QWEN2, "head_dim": None, **rope("yarn", factor=4.0, original_max_position_embeddings=32), "sensitive": [rope("default")],
        "old": old({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, ["layer_types"]),
    },
    "qwen3": {**QWEN3, "hidden": True, "old": old(None, ["layer_types"], max_window_layers=2)},
    "qwen3_tied": {**QWEN3, "tie_word_embeddings": True, "head_dim": 16, "attention_bias": True},
    "qwen3_window": {
        **QWEN3, "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 8,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "sensitive": [{"sliding_window": 9}, {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}],
    },
    "gemma2": {
        **GEMMA2, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0, "hidden": True,
        "sensitive": [
            {"attn_logit_softcapping": None}, {"final_logit_softcapping": None}, {"query_pre_attn_scalar": 16}, {"sliding_window": 9},
            {"layer_types": ["full_attention", "sliding_attention"] * 2}, {"hidden_activation": "gelu"},
        ],
        "old": old(None, ["layer_types"], hidden_act="gelu_pytorch_tanh", cache_implementation="hybrid"),
    },
    "gemma2_scale": {
        # The scale of the embeddings, sqrt(72), is no bf16 number; it stays in f32 here.
        **GEMMA2, "hidden_size": 72, "head_dim": 32, "num_hidden_layers": 2, "attn_logit_softcapping": None, "final_logit_softcapping": None,
        "tie_word_embeddings": False,
    },
    "gemma3": {
        **GEMMA3, "num_hidden_layers": 6, "head_dim": 32,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}, "sliding_attention": DEFAULT,
        },
        "hidden": True,
        "sensitive": [
            {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1000000.0}, "sliding_attention": DEFAULT}},
            {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0}, "sliding_attention": DEFAULT}},
            {"query_pre_attn_scalar": 32}, {"sliding_window": 9}, {"layer_types": ["sliding_attention"] * 6},
        ],
        "old": old(
            {"rope_type": "linear", "factor": 8.0}, ["layer_types"],
            rope_theta=1000000.0, rope_local_base_freq=10000.0, sliding_window_pattern=6,
        ),
    },
    "gemma3_layers": {
        **GEMMA3, "num_hidden_layers": 3, "hidden_size": 72, "final_logit_softcapping": 5.0, "tie_word_embeddings": False,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 100000.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
        "sensitive": [{"final_logit_softcapping": None}],
        "old": old(None, rope_theta=100000.0, rope_local_base_freq=500.0),
    },
}
NOT_FIELDS = ["sensitive", "old", "hidden"]
GENERATOR = [
    ("model.embed_tokens.weight", 1, [2, 64], 0.0),
    ("model.layers.0.self_attn.q_proj.weight", 7, [3, 96], 0.0),
    ("model.layers.1.self_attn.k_proj.bias", 7, [32], 0.0),
    ("model.layers.0.input_layernorm.weight", 2, [64], 1.0),
    ("model.layers.0.input_layernorm.weight", 2, [64], 0.0),
    ("model.norm.weight", 2**63 - 1, [72], 1.0),
]


def fnv1a64(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return h


def generate(name, seed, shape, norm_offset):
    """The tensor of that name, in bf16."""
    state = np.uint64(fnv1a64(name.encode()) ^ seed)
    z = state + np.arange(1, np.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    r = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24) - np.float32(0.5) + np.float32(2.0**-25)
    value = r * np.float32(np.sqrt(12.0) * (0.1 if len(shape) == 1 else 1 / np.sqrt(shape[-1])))
    if len(shape) == 1 and "norm" in name:
        value = np.float32(norm_offset) + value
    assert value.dtype == np.float32
    return value.astype(ml_dtypes.bfloat16).reshape(shape)


def text(value):
    return np.frombuffer(value.encode(), np.uint8)


def configuration(fields):
    """The configuration object that transformers makes of the fields, which it may keep and change."""
    from transformers import AutoConfig

    fields = json.loads(json.dumps(fields))
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def old_config(config, scaling, without, others):
    """A config.json in the words of transformers 4."""
    new = ["rope_parameters", "dtype", "_sliding_window_pattern", "use_bidirectional_attention", *without]
    kept = {key: value for key, value in config.items() if key not in new}
    return {**kept, "rope_scaling": scaling, **others, "torch_dtype": "bfloat16", "transformers_version": "4.50.0"}


def make(config, weights=None):
    """A model in f32, with `weights` unless they are None."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    if weights is not None:
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}
    return model


def checkpoint(fields, seed):
    """config.json, weights in f32 and the model of a checkpoint that was saved in bf16 and loaded again."""
    import safetensors.torch
    import torch
    from transformers import AutoModelForCausalLM

    config = configuration(fields)
    model = make(config)
    names = {name: list(p.shape) for name, p in model.named_parameters()}
    assert ("lm_head.weight" in names) != config.tie_word_embeddings
    offset = 0.0 if config.model_type.startswith("gemma") else 1.0
    weights = {
        name: torch.from_numpy(generate(name, seed, shape, offset).astype(np.float32)) for name, shape in sorted(names.items())
    }
    model = make(config, weights).to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = safetensors.torch.load_file(Path(folder) / "model.safetensors")
        assert saved.keys() == weights.keys()
        for name, tensor in weights.items():
            assert saved[name].dtype == torch.bfloat16 and torch.equal(saved[name].float(), tensor), name
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        assert all(p.dtype == torch.float32 for p in model.parameters())
        return (Path(folder) / "config.json").read_text(), weights, model


def fresh(model):
    """Sets the frequencies back that depend on the lengths seen so far."""
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model


def logits_of(model, ids):
    return fresh(model)(ids[None], use_cache=False).logits[0]


def greedy(model, prompt, cached):
    """Argmax continuation, the margin of each choice and the logits of the last; None when a margin is too small."""
    fresh(model)
    ids, cache, margins = prompt, None, []
    while len(margins) < N_GREEDY:
        fed = ids if cache is None else ids[-1:]
        result = model(fed[None], past_key_values=cache, use_cache=cached)
        cache = result.past_key_values if cached else None
        last = result.logits[0, -1]
        best = last.topk(2)
        margins.append((best.values[0] - best.values[1]).item())
        if margins[-1] <= MARGIN:
            return None
        ids = ids.new_tensor([*ids.tolist(), best.indices[0].item()])
    return ids[len(prompt) :].numpy(), np.array(margins, np.float32), last.numpy()


def hidden_states(model, ids):
    """The residual stream after the embedding and after each layer, taken by hooks, and the last one after the final norm."""
    states = {}

    def keep(name):
        def hook(_module, _inputs, output):
            states[name] = (output[0] if isinstance(output, tuple) else output).reshape(len(ids), -1).numpy().copy()

        return hook

    layers = {"norm": model.model.norm, **dict(enumerate([model.model.embed_tokens, *model.model.layers]))}
    hooks = [layer.register_forward_hook(keep(f"hidden.{name}")) for name, layer in layers.items()]
    logits_of(model, ids)
    for hook in hooks:
        hook.remove()
    return states


def continuations(model, prompts, by_length):
    """The tensors of all continuations, or None when some margin is too small."""
    out = {}
    for j, prompt in enumerate(prompts):
        cached, recomputed = greedy(model, prompt, True), greedy(model, prompt, False)
        if cached is None or recomputed is None:
            return None
        out |= {f"greedy.{j}": cached[0], f"margin.{j}": cached[1], f"last.{j}": cached[2]}
        if by_length:
            out |= {f"recomputed.{j}": recomputed[0], f"recomputed_margin.{j}": recomputed[1], f"recomputed_last.{j}": recomputed[2]}
        else:
            assert np.array_equal(cached[0], recomputed[0]) and np.allclose(cached[2], recomputed[2], rtol=0, atol=1e-5)
    return out


def variant(name, given, prompts):
    """The tensors of a variant, and a line about it."""
    import torch
    from transformers import AutoConfig

    fields = {**SIZES, **{key: value for key, value in given.items() if key not in NOT_FIELDS}}
    fields = {key: value for key, value in fields.items() if value is not None or key != "head_dim"}
    by_length = fields.get("rope_parameters", {}).get("rope_type") in ["dynamic", "longrope"]
    for seed in range(1, 100):
        config, weights, model = checkpoint(fields, seed)
        out = continuations(model, prompts, by_length)
        if out is not None:
            break
    shapes = {name: list(tensor.shape) for name, tensor in weights.items()}
    out |= {"config": text(config), "seed": np.array([seed], np.int64), "tensors": text(json.dumps(shapes))}
    logits = [logits_of(model, prompt) for prompt in prompts]
    out |= {f"logits.{j}": row.numpy() for j, row in enumerate(logits)}
    if given.get("hidden"):
        out |= hidden_states(model, prompts[0])

    def difference(config):
        other = make(config, weights)
        return max((logits_of(other, prompt) - row).abs().max().item() for prompt, row in zip(prompts, logits, strict=True))

    assert difference(configuration(fields)) == 0
    changes = [difference(configuration({**fields, **change})) for change in given.get("sensitive", [])]
    assert all(change > SEEN for change in changes), (name, changes)
    if "old" in given:
        words = json.dumps(old_config(json.loads(config), **given["old"]), indent=2)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(words)
            assert difference(AutoConfig.from_pretrained(folder)) == 0, name
        out["old_config"] = text(words)
    margin = min(out[key].min() for key in out if "margin" in key)
    largest = torch.cat(logits).abs().max()
    line = f"{name}: seed {seed}, largest logit {largest:.2f}, least margin {margin:.4f}, changes {[round(c, 4) for c in changes]}"
    return {f"{name}.{key}": value for key, value in out.items()}, line


def main():
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    rng = np.random.default_rng(17)
    prompts = [torch.from_numpy(rng.integers(0, SIZES["vocab_size"], n)) for n in LENGTHS]
    keys = ["name", "seed", "shape", "norm_offset"]
    out = {f"prompt.{j}": prompt.numpy() for j, prompt in enumerate(prompts)}
    out["variants"] = text(json.dumps(list(VARIANTS)))
    out["generator"] = text(json.dumps([dict(zip(keys, example, strict=True)) for example in GENERATOR]))
    out |= {f"generator.{i}": generate(*example) for i, example in enumerate(GENERATOR)}
    with torch.no_grad():
        for name, given in VARIANTS.items():
            tensors, line = variant(name, given, prompts)
            print(line)
            out |= tensors
    return out


if __name__ == "__main__":
    common.run(main, "squish-model", "families", ["safetensors", "torch", "transformers"])
