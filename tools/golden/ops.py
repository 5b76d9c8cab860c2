"""Row operations, from torch 2.15 in f64 and from the RMS norm modules of transformers 5.23.

f64 results of f32 inputs; a test allows its own bound around them:
exp.x f32 [n], exp.y f64 [n]           whole range: underflow to subnormals and zero, overflow, values around every k * ln 2
rows.SET.x f32 [r, n]                  SET in 4x256 (normal), 3x37 (ragged), wide (6 x 64: logits up to 1e4, all equal, -inf masks,
                                       one finite value, tiny differences)
rows.SET.softmax, .log_softmax f64 [r, n], .logsumexp f64 [r]
act.x f32 [n], act.silu, act.gelu_erf, act.gelu_tanh f64 [n]
layer_norm.SET.w, .b f32 [n], .y f64 [r, n]    of rows.SET.x for SET in 4x256, 3x37; biased variance, eps 1e-5

Norms by the transformers modules, in the dtype T of x (T in f32, bf16, f16; SET in 4x256, 3x37):
rms.SET.T.x, .r [r, n], .w [n]         input, residual, weight
rms.SET.T.h                            x + r, rounded to T
rms.SET.T.VARIANT.y, .fused            norm(x) and norm(h); VARIANT in
    llama    LlamaRMSNorm, eps 1e-5: normed x rounded to T, then times w in T
    gemma    GemmaRMSNorm (Gemma3RMSNorm gives the same bits), eps 1e-6: times (1 + w) in f32, rounded once
    gptoss   GptOssRMSNorm, eps 1e-5: times w in f32, rounded once; w is f32 here, as wide as `.w`
For bf16 and f16 the rows are drawn until a relative error of 2^-21 in the inverse RMS changes no bit, so that a sum in any order
gives these bits. For f32 the modules' own order of summation is in the last bits.
"""

import common
import ml_dtypes
import numpy as np

SETS = {"4x256": (4, 256), "3x37": (3, 37)}
EPS = {"llama": 1e-5, "gemma": 1e-6, "gptoss": 1e-5}


def exp_inputs(rng):
    near = np.arange(-150, 129) * np.log(2.0)
    near32 = near.astype(np.float32)
    edges = [0.0, -0.0, 1.0, -1.0, 88.72283, 88.72284, 88.8, -87.33654, -87.33655, -103.27893, -103.97207, -103.97209, -104.5, -1e4, 1e4]
    tiny = [1e-30, -1e-30, 2.0**-24, -(2.0**-25), np.inf, -np.inf]
    return np.concatenate([
        near32, common.up(near32), common.down(near32), (near + np.log(2.0) / 2).astype(np.float32),
        np.array(edges + tiny, np.float32), rng.uniform(-105, 89, 1000).astype(np.float32), rng.standard_normal(500).astype(np.float32),
    ])


def row_sets(rng):
    wide = np.zeros((6, 64), np.float32)
    wide[0] = rng.uniform(-1e4, 1e4, 64)
    wide[1] = 3.25
    wide[2] = np.where(rng.random(64) < 0.5, -np.inf, rng.standard_normal(64))
    wide[3] = -np.inf
    wide[3, 40] = -7.5
    wide[4] = 1000 + np.arange(64) * 2.0**-12
    wide[5] = rng.standard_normal(64) * 30
    sets = {name: (rng.standard_normal(shape) * 4).astype(np.float32) for name, shape in SETS.items()}
    return {**sets, "wide": wide}


def modules(n, dtype, w):
    """The transformers norm of each variant with weight `w`."""
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    classes = {"llama": LlamaRMSNorm, "gemma": GemmaRMSNorm, "gemma3": Gemma3RMSNorm, "gptoss": GptOssRMSNorm}
    norms = {}
    for name, make in classes.items():
        norm = make(n, eps=EPS.get(name, 1e-6))
        norm.weight.data = w.float() if name == "gptoss" else w.to(dtype)
        norms[name] = norm
    return norms


def robust(row, w, dtype):
    """Whether a slightly different inverse RMS leaves all three variants of this row as they are."""
    import torch

    wide = row.double()
    mean = wide.pow(2).mean(-1, keepdim=True)
    results = []
    for error in (-(2.0**-21), 0.0, 2.0**-21):
        normed = {eps: (wide * torch.rsqrt(mean + eps) * (1 + error)).float() for eps in set(EPS.values())}
        results.append(torch.stack([
            w * normed[EPS["llama"]].to(dtype),
            (normed[EPS["gemma"]] * (1 + w.float())).to(dtype),
            (w.float() * normed[EPS["gptoss"]]).to(dtype),
        ]))
    return all(torch.equal(results[1], other) for other in results)


def numpy_of(tensor):
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


@np.errstate(over="ignore")
def main():
    import torch
    import torch.nn.functional as F

    rng = np.random.default_rng(7)
    out = {}
    x = exp_inputs(rng)
    out["exp.x"] = x
    out["exp.y"] = torch.from_numpy(x).double().exp().numpy()

    special = [0.0, -0.0, 1e-30, -1e-30, 50, -50, 88, -88, -104, 1e4, -1e4]
    act = np.concatenate([np.linspace(-12, 12, 481), rng.standard_normal(400), special])
    act = act.astype(np.float32)
    wide = torch.from_numpy(act).double()
    out["act.x"] = act
    out["act.silu"] = F.silu(wide).numpy()
    out["act.gelu_erf"] = F.gelu(wide).numpy()
    out["act.gelu_tanh"] = F.gelu(wide, approximate="tanh").numpy()

    for name, rows in row_sets(rng).items():
        wide = torch.from_numpy(rows).double()
        out[f"rows.{name}.x"] = rows
        out[f"rows.{name}.softmax"] = wide.softmax(-1).numpy()
        out[f"rows.{name}.log_softmax"] = wide.log_softmax(-1).numpy()
        out[f"rows.{name}.logsumexp"] = wide.logsumexp(-1).numpy()
        if name in SETS:
            n = rows.shape[1]
            w = (1 + 0.2 * rng.standard_normal(n)).astype(np.float32)
            b = (0.1 * rng.standard_normal(n)).astype(np.float32)
            y = F.layer_norm(wide, (n,), torch.from_numpy(w).double(), torch.from_numpy(b).double(), 1e-5)
            out[f"layer_norm.{name}.w"], out[f"layer_norm.{name}.b"], out[f"layer_norm.{name}.y"] = w, b, y.numpy()

    dtypes = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
    for set_name, (n_rows, n) in SETS.items():
        for dtype_name, dtype in dtypes.items():
            w = torch.from_numpy((1 + 0.3 * rng.standard_normal(n)).astype(np.float32)).to(dtype)
            xs, rs = [], []
            while len(xs) < n_rows:
                # Rows of different sizes; the square of the largest overflows f16 unless the statistics are f32.
                scale = [1.0, 0.01, 300.0, 1e-3][len(xs)]
                x = torch.from_numpy((rng.standard_normal(n) * scale).astype(np.float32)).to(dtype)
                r = torch.from_numpy((rng.standard_normal(n) * scale).astype(np.float32)).to(dtype)
                if dtype == torch.float32 or robust(x, w, dtype) and robust(x + r, w, dtype):
                    xs.append(x)
                    rs.append(r)
            x, r = torch.stack(xs), torch.stack(rs)
            h = x + r
            prefix = f"rms.{set_name}.{dtype_name}"
            out |= {f"{prefix}.x": numpy_of(x), f"{prefix}.r": numpy_of(r), f"{prefix}.h": numpy_of(h), f"{prefix}.w": numpy_of(w)}
            norms = modules(n, dtype, w)
            with torch.no_grad():
                results = {name: (norm(x), norm(h)) for name, norm in norms.items()}
            assert all(torch.equal(a, b) for a, b in zip(results["gemma"], results.pop("gemma3"), strict=True))
            for name, (y, fused) in results.items():
                assert y.dtype == dtype and torch.isfinite(y).all()
                out[f"{prefix}.{name}.y"], out[f"{prefix}.{name}.fused"] = numpy_of(y), numpy_of(fused)
    return out


if __name__ == "__main__":
    epsilons = {f"eps.{name}": eps for name, eps in {"llama": "1e-5", "gemma": "1e-6", "gptoss": "1e-5", "layer_norm": "1e-5"}.items()}
    common.run(main, "squish-kernels", "ops", ["torch", "transformers"], epsilons)
