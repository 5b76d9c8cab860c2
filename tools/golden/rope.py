"""Rotary embeddings of transformers 5.23: frequencies, tables of cosines and sines, and rotated heads.

Of each CASE below:
CASE.config            u8 [n]         the bytes of a config.json, from which transformers' own configuration class is made
CASE.layer_type        u8 [n]         type of layer, empty where all are alike
CASE.seq_len           i64 [1]        length of the sequence that the frequencies are for
CASE.inv_freq          f32 [r / 2]    by ROPE_INIT_FUNCTIONS, or compute_default_rope_parameters of the model's embedding
CASE.exact_inv_freq    f64 [r / 2]    by the same code with f64 in place of f32
CASE.attention_factor  f64 [1]
CASE.cos, CASE.sin     f32 [8, r / 2] by LlamaRotaryEmbedding.forward with these, at the positions of `positions`
positions              i64 [8]

`ntk_aware` is by Hunyuan's compute_ntk_alpha_rope_parameters, whose alpha is the factor of static NTK.

Heads x f32 [5, 3, 64], rotated at apply.positions i64 [5] with apply.FORM.cos, .sin f32 [5, r / 2]:
apply.half.y           Llama's apply_rotary_pos_emb
apply.interleaved.y    GLM's apply_rotary_pos_emb, of the first 32 elements
apply.deepseek.y       DeepSeek-V3's apply_rotary_pos_emb_interleave, whose result has the two halves apart
"""

import contextlib
import json

import common
import numpy as np

POSITIONS = [0, 1, 100, 4095, 4096, 8191, 32767, 131071]


def heads(head_dim, longest, **others):
    return {"hidden_size": 4 * head_dim, "num_attention_heads": 4, "head_dim": head_dim, "max_position_embeddings": longest, **others}


def yarn(factor, original, **others):
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **others}


def llama3(factor):
    return {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


SHORT = [1 + i / 100 for i in range(32)]
LONG = [1 + i / 2 for i in range(32)]
PHI3 = {"model_type": "phi3", "rope_theta": 10000.0, "original_max_position_embeddings": 4096}
ORIGINAL = {"original_max_position_embeddings": 4096}
LISTS = {"short_factor": SHORT, "long_factor": LONG}
GEMMA3 = {"model_type": "gemma3_text", "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0}
NESTED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
DEEPSEEK = {"model_type": "deepseek_v3", "qk_rope_head_dim": 64, "rope_theta": 10000.0}

# name -> configuration, length of the sequence, type of layer
CASES = {
    "default_64": (heads(64, 4096, rope_theta=10000.0), 1, ""),
    "default_128": (heads(128, 8192, rope_theta=500000.0), 1, ""),
    "partial": (heads(64, 8192, model_type="glm", partial_rotary_factor=0.5, rope_theta=10000.0), 1, ""),
    "linear": (heads(64, 4096, rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 4.0}), 1, ""),
    "dynamic_short": (heads(64, 4096, rope_theta=10000.0, rope_scaling={"type": "dynamic", "factor": 2.0}), 4096, ""),
    "dynamic_8192": (heads(64, 4096, rope_theta=10000.0, rope_scaling={"type": "dynamic", "factor": 2.0}), 8192, ""),
    "dynamic_32768": (heads(64, 4096, rope_theta=10000.0, rope_scaling={"type": "dynamic", "factor": 8.0}), 32768, ""),
    "ntk_aware": (
        heads(64, 4096, model_type="hunyuan_v1_dense", rope_theta=10000.0, rope_scaling={"type": "dynamic", "alpha": 4.0, "factor": 1.0}), 1, "",
    ),
    "yarn": (heads(64, 32768, rope_theta=10000.0, rope_scaling=yarn(8.0, 4096)), 1, ""),
    "yarn_null_factor": (heads(64, 32768, rope_theta=10000.0, rope_scaling=yarn(None, 4096, beta_fast=None, beta_slow=0)), 1, ""),
    "yarn_qwen": (heads(128, 32768, rope_theta=1000000.0, rope_scaling=yarn(4.0, 32768)), 1, ""),
    "yarn_deepseek": (heads(64, 163840, **DEEPSEEK, rope_scaling=yarn(40, 4096, mscale=1.0, mscale_all_dim=1.0)), 1, ""),
    "yarn_mscale": (heads(64, 163840, **DEEPSEEK, rope_scaling=yarn(40, 4096, mscale=1.0, mscale_all_dim=0.5)), 1, ""),
    "yarn_gpt_oss": (heads(64, 131072, rope_parameters={**yarn(32.0, 4096, truncate=False), "rope_theta": 150000.0}), 1, ""),
    "yarn_truncated": (heads(64, 131072, rope_parameters={**yarn(32.0, 4096), "rope_theta": 150000.0}), 1, ""),
    "llama3_8b": (heads(128, 131072, rope_theta=500000.0, rope_scaling=llama3(8.0)), 1, ""),
    "llama3_1b": (heads(64, 131072, rope_theta=500000.0, rope_scaling=llama3(32.0)), 1, ""),
    "longrope_short": (heads(64, 131072, **PHI3, rope_scaling={"type": "longrope", **LISTS}), 4096, ""),
    "longrope_long": (heads(64, 131072, **PHI3, rope_scaling={"type": "su", **ORIGINAL, **LISTS}), 4097, ""),
    "longrope_phi3_yarn": (heads(64, 131072, **PHI3, rope_scaling={"type": "yarn", **ORIGINAL, **LISTS}), 131072, ""),
    "longrope_factor": (heads(64, 131072, **PHI3, rope_scaling={"rope_type": "longrope", "factor": 16.0, **LISTS}), 4096, ""),
    "proportional": (
        heads(64, 4096, rope_parameters={"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0}), 1, "",
    ),
    "gemma3_full": (heads(64, 8192, **GEMMA3, rope_scaling={"rope_type": "linear", "factor": 8.0}), 1, "full_attention"),
    "gemma3_sliding": (heads(64, 8192, **GEMMA3, rope_scaling={"rope_type": "linear", "factor": 8.0}), 1, "sliding_attention"),
    "nested_full": (heads(64, 8192, model_type="gemma3_text", rope_parameters=NESTED), 1, "full_attention"),
    "nested_sliding": (heads(64, 8192, model_type="gemma3_text", rope_parameters=NESTED), 1, "sliding_attention"),
}


def configuration(fields):
    """The configuration object that transformers makes of the fields."""
    from transformers import CONFIG_MAPPING

    fields = json.loads(json.dumps(fields))
    return CONFIG_MAPPING[fields.pop("model_type", "llama")](**fields)


def frequencies(config, seq_len, layer_type):
    """`inv_freq` and attention factor of a case."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
    from transformers.models.glm.modeling_glm import GlmRotaryEmbedding
    from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import HunYuanDenseV1RotaryEmbedding
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    parameters = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
    if parameters.get("alpha"):
        return HunYuanDenseV1RotaryEmbedding.compute_ntk_alpha_rope_parameters(config)
    named = {"layer_type": layer_type} if layer_type else {}
    if parameters["rope_type"] == "default":
        embedding = {"gemma3_text": Gemma3RotaryEmbedding, "glm": GlmRotaryEmbedding}.get(config.model_type, LlamaRotaryEmbedding)
        return embedding.compute_default_rope_parameters(config, **named)
    return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, seq_len=seq_len, **named)


@contextlib.contextmanager
def in_f64():
    """Code that asks torch for f32 has f64."""
    import torch

    names = [(torch, "float", torch.float64), (torch, "float32", torch.float64), (torch.Tensor, "float", torch.Tensor.double)]
    before = [getattr(owner, name) for owner, name, _ in names]
    try:
        for owner, name, wide in names:
            setattr(owner, name, wide)
        yield
    finally:
        for (owner, name, _), narrow in zip(names, before, strict=True):
            setattr(owner, name, narrow)


def table(inv_freq, factor, positions):
    """Cosines and sines by the model's code, of which the second half repeats the first."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    embedding = LlamaRotaryEmbedding(LlamaConfig(head_dim=2 * len(inv_freq)))
    embedding.inv_freq, embedding.attention_scaling = inv_freq, factor
    cos, sin = embedding(torch.zeros(1), torch.tensor([positions]))
    assert cos.dtype == torch.float32 and torch.equal(cos[..., : len(inv_freq)], cos[..., len(inv_freq) :])
    return cos[0], sin[0]


def main():
    import torch
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave
    from transformers.models.glm import modeling_glm
    from transformers.models.llama import modeling_llama

    def text(value):
        return np.frombuffer(value.encode(), np.uint8)

    out = {"positions": np.array(POSITIONS, np.int64)}
    freqs = {}
    for name, (fields, seq_len, layer_type) in CASES.items():
        inv_freq, factor = freqs[name] = frequencies(configuration(fields), seq_len, layer_type)
        assert inv_freq.dtype == torch.float32
        with in_f64():
            exact, exact_factor = frequencies(configuration(fields), seq_len, layer_type)
        assert exact.dtype == torch.float64 and exact_factor == factor
        torch.testing.assert_close(exact.float(), inv_freq, rtol=2e-6, atol=0)
        cos, sin = table(inv_freq, factor, POSITIONS)
        out |= {f"{name}.config": text(json.dumps(fields)), f"{name}.layer_type": text(layer_type)}
        out |= {f"{name}.seq_len": np.array([seq_len], np.int64), f"{name}.attention_factor": np.array([factor], np.float64)}
        half = len(inv_freq)
        out |= {f"{name}.inv_freq": inv_freq.numpy(), f"{name}.exact_inv_freq": exact.numpy()}
        out |= {f"{name}.cos": cos[:, :half].numpy(), f"{name}.sin": sin[:, :half].numpy()}

    positions = [0, 3, 50, 1000, 4095]
    x = torch.from_numpy(np.random.default_rng(11).standard_normal((5, 3, 64)).astype(np.float32))
    out |= {"apply.x": x.numpy(), "apply.positions": np.array(positions, np.int64)}
    forms = {
        "half": ("default_64", modeling_llama.apply_rotary_pos_emb),
        "interleaved": ("partial", modeling_glm.apply_rotary_pos_emb),
        "deepseek": ("yarn_mscale", apply_rotary_pos_emb_interleave),
    }
    for form, (case, apply) in forms.items():
        cos, sin = table(*freqs[case], positions)
        batch = x.transpose(0, 1)[None]
        y, other = apply(batch, batch, cos[None], sin[None])
        assert torch.equal(y, other)
        half = cos.shape[1] // 2
        out |= {f"apply.{form}.cos": cos[:, :half].numpy(), f"apply.{form}.sin": sin[:, :half].numpy()}
        out[f"apply.{form}.y"] = y[0].transpose(0, 1).numpy()
    return out


if __name__ == "__main__":
    common.run(main, "squish-attn", "rope", ["torch", "transformers"])
