"""Quantized checkpoints: those of squish-model as transformers computes with them, and layers as compressed-tensors writes them.

Ours to theirs. `squish-model`'s example `quantize_checkpoint` (built by cargo) writes fixtures/tiny/base in each format; transformers 5.23 loads that
folder by compressed-tensors 0.20, in f32 with eager attention:

formats          u8, JSON     list of names: `fp8-e4m3`, `int8`, `int4`, `mxfp4`, and the dense `f16`
prompt           i64 [n]      tokens (BOS first)
rows             i64 [3]      positions within the prompt
FORMAT.logits    f32 [3, 2048]  logits at those positions

Theirs to ours. The compressor of compressed-tensors writes one linear layer of random weights, scales made by its `calculate_qparams`:

cases            u8, JSON     list of `{"name", "shape": [rows, cols], "config", "tensors": {name: [dtype, shape]}}`; `config` is the
                              quantization_config as the library dumps it
CASE.TENSOR      u8           bytes of a tensor of the layer, named without its module
CASE.values      f32 [rows * cols]  (code - zero point) * scale, in f32: what the library's decompressor makes of the codes with scales that
                              are widened to f32
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import common
import numpy as np
from common import ROOT

BASE = ROOT / "fixtures" / "tiny" / "base"
TEXT = "The function returns the number of elements in the list, or zero if it is empty."
FORMATS = ["fp8-e4m3", "int8", "int4", "mxfp4", "f16"]


def main():
    return {**ours(), **theirs()}


def text(value):
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def ours():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = {"formats": text(FORMATS)}
    cargo = ["cargo", "run", "--quiet", "--package", "squish-model", "--example", "quantize_checkpoint", "--"]
    # Threads are what common.py keeps from torch, and a quantizer's results do not depend on them.
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name in FORMATS:
            to = Path(folder) / name
            subprocess.run([*cargo, BASE, to, name], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            ids = AutoTokenizer.from_pretrained(to)(TEXT, return_tensors="pt")["input_ids"]
            model = AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32, attn_implementation="eager").eval()
            if hasattr(model, "hf_quantizer"):
                # On the first pass otherwise, and to bfloat16 for MXFP4, whose values that holds.
                model.hf_quantizer.compressor.decompress_model(model)
                for parameter in model.parameters():
                    parameter.data = parameter.data.float()
            rows = torch.tensor([0, ids.shape[1] // 2, ids.shape[1] - 1])
            out["prompt"], out["rows"] = ids[0].numpy(), rows.numpy()
            out[f"{name}.logits"] = model(ids).logits[0, rows].numpy()
    return out


def schemes():
    """Name, shape, format, arguments of the weights, type of the weights."""
    integer = {"type": "int", "symmetric": True}
    float8 = {"num_bits": 8, "type": "float", "symmetric": True}
    for bits in (4, 8):
        for symmetric in (True, False):
            kind = {**integer, "num_bits": bits, "symmetric": symmetric}
            suffix = f"{bits}_{'sym' if symmetric else 'asym'}"
            yield f"pack_group{suffix}", (24, 128), "pack-quantized", {**kind, "strategy": "group", "group_size": 32}, "bfloat16"
            yield f"pack_channel{suffix}", (20, 64), "pack-quantized", {**kind, "strategy": "channel"}, "float16"
            yield f"pack_tensor{suffix}", (8, 64), "pack-quantized", {**kind, "strategy": "tensor"}, "float32"
    for symmetric in (True, False):
        kind = {**integer, "num_bits": 8, "symmetric": symmetric}
        suffix = "sym" if symmetric else "asym"
        yield f"int_channel_{suffix}", (24, 96), "int-quantized", {**kind, "strategy": "channel"}, "bfloat16"
        yield f"naive_tensor_{suffix}", (24, 96), "naive-quantized", {**kind, "strategy": "tensor"}, "float16"
    yield "fp8_tensor", (40, 96), "float-quantized", {**float8, "strategy": "tensor"}, "bfloat16"
    yield "fp8_channel", (40, 96), "float-quantized", {**float8, "strategy": "channel"}, "float16"
    yield "fp8_block", (72, 128), "float-quantized", {**float8, "strategy": "block", "block_structure": [32, 64]}, "float32"
    yield "fp8_naive", (40, 96), "naive-quantized", {**float8, "strategy": "channel"}, "float32"
    mxfp4 = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
    yield "mxfp4", (40, 96), "mxfp4-pack-quantized", mxfp4, "bfloat16"


def theirs():
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    names = {torch.float8_e4m3fn: "F8_E4M3", torch.int32: "I32", torch.int8: "I8", torch.int64: "I64", torch.uint8: "U8"}
    names |= {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
    generator = torch.Generator().manual_seed(11)
    out, cases = {}, []
    for name, (rows, cols), form, args, dtype in schemes():
        args = QuantizationArgs(**args)
        # Of one sign for the most part, so that zero points are not all alike.
        weight = (torch.randn(rows, cols, generator=generator) + 0.7).to(getattr(torch, dtype))
        low, high = extremes(weight, args)
        scale, zero_point = calculate_qparams(low, high, args)
        scale = scale.to(weight.dtype)
        if args.strategy == "tensor":
            scale, zero_point = scale.reshape(1), zero_point.reshape(1)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        compressor = BaseCompressor.get_value_from_registry(form)
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero_point.to(torch.int8)}
        tensors = compressor.compress(state, scheme)
        wide = {key: x.float() if key == "weight_scale" and x.dtype in (torch.bfloat16, torch.float16) else x for key, x in tensors.items()}
        values = compressor.decompress(wide, scheme)["weight"].float()
        error = (values - weight.float()).abs().max().item()
        assert values.shape == (rows, cols) and error < 1.0, (name, error)
        config = QuantizationConfig(config_groups={"group_0": scheme}, format=form, quantization_status="compressed", ignore=["lm_head"])
        cases.append({
            "name": name,
            "shape": [rows, cols],
            "config": json.loads(config.model_dump_json()),
            "tensors": {key: [names[x.dtype], list(x.shape)] for key, x in sorted(tensors.items())},
        })
        for key, x in tensors.items():
            out[f"{name}.{key}"] = x.contiguous().reshape(-1).view(torch.uint8).numpy()
        out[f"{name}.values"] = values.reshape(-1).numpy()
    return {"cases": text(cases), **out}


def extremes(weight, args):
    """The least and the largest of the weights that share a scale, in the shape of the scales."""
    import torch

    weight = weight.float()
    rows, cols = weight.shape
    if args.strategy == "tensor":
        groups = weight.reshape(1, 1, -1)
    elif args.strategy == "channel":
        groups = weight.reshape(rows, 1, cols)
    elif args.strategy == "group":
        groups = weight.reshape(rows, cols // args.group_size, args.group_size)
    else:
        a, b = args.block_structure
        padded = torch.nn.functional.pad(weight, (0, -cols % b, 0, -rows % a))
        blocks = padded.reshape(padded.shape[0] // a, a, padded.shape[1] // b, b)
        groups = blocks.permute(0, 2, 1, 3).reshape(blocks.shape[0], blocks.shape[2], -1)
    return groups.amin(-1), groups.amax(-1)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    common.run(main, "squish-model", "quantized", ["compressed-tensors", "torch", "transformers"])
