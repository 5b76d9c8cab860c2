"""INT8 and INT4 weights from compressed-tensors 0.20 (its functions and its pack-quantized layout) and ggml's Q8_0 and Q4_0 from gguf 0.19.

x                    f32 [24, 256]  normal, with outliers, a zero row (3), a zero group (row 4, first 128), a row of 1e-20 (5),
                                    positive only (6), negative only (7), exact ties of the INT4 grid (8)
asym.x               f32 [24, 256]  x with the zeros of rows 3 and 4 replaced, for the asymmetric kinds: there a zero range gives 0 / 0
KIND in int8.channel, int8.g32, int8.g128, int4.g32, int4.g128 (symmetric, of x), int4.asym.g32, int4.asym.g128 (of asym.x):
KIND.scale           f32 [24, groups]
KIND.zero_point      i8 [24, groups]    asymmetric kinds only
KIND.codes           i8 [24, 256]
KIND.decoded         f32 [24, 256]      not for groups of 128
pack.KIND.weight_packed      i32 [24, 256 * bits / 32]   with bf16 scales: element j of a word in bits j * bits.., stored as code + 2^(bits - 1)
pack.KIND.weight_scale       bf16 [24, groups]           KIND.scale rounded
pack.KIND.weight_zero_point  i32 [24 * 4 / 32, groups]   asymmetric kinds only: packed the same way, but along the rows
pack.KIND.decoded            bf16 [24, 256]              the library's own decompression, (code - zero_point) * scale rounded to bf16
q8_0.bytes           u8 [24, 8 * 34]   gguf of x: blocks of 32: f16 scale, then 32 codes; q8_0.decoded f32 [24, 256]
q4_0.bytes           u8 [24, 8 * 18]   f16 scale, then byte j = element j | element j + 16 << 4, stored as code + 8; q4_0.decoded

compressed-tensors, in f32, with qmin..qmax = -128..127 or -8..7, min and max of the group widened to include 0:
    symmetric   scale = max(-min, max) / ((qmax - qmin) / 2), that is / 127.5 or / 7.5; a zero scale becomes 2^-23
    asymmetric  scale = (max - min) / (qmax - qmin); zero_point = round(clamp(qmin - min / scale, qmin, qmax))
    code        round(clamp(x / scale + zero_point, qmin, qmax)), a division, ties to even; so +amax / 127.5 saturates at 127
    decoded     (code - zero_point) * scale
In `pack` the codes come from the bf16 scales, widened; the zero points are those of the f32 scales.
ggml: Q8_0 scale = amax / 127, code = round(x * (1 / scale)) with ties away from zero; Q4_0 scale = m / -8 where m is the element of the
largest magnitude (the first of equals), code = min(15, trunc(x * (1 / scale) + 8.5)) - 8; both store the scale rounded to f16 after coding.
"""

import common
import ml_dtypes
import numpy as np

KINDS = {
    "int8.channel": (8, None, True),
    "int8.g32": (8, 32, True),
    "int8.g128": (8, 128, True),
    "int4.g32": (4, 32, True),
    "int4.g128": (4, 128, True),
    "int4.asym.g32": (4, 32, False),
    "int4.asym.g128": (4, 128, False),
}
ROWS, COLS = 24, 256


def weights(rng):
    x = (rng.standard_normal((ROWS, COLS)) * 0.05).astype(np.float32)
    x[:, 40] *= 20
    x[10, 200] = 3.5
    x[5] *= np.float32(1e-20)
    x[6], x[7] = np.abs(x[6]), -np.abs(x[7])
    # Groups of scale 1 for a division by 7.5, so that halves are exact ties.
    x[8] = rng.integers(-15, 16, COLS) / 2
    x[8, ::32] = 7.5
    asymmetric = x.copy()
    x[3] = 0
    x[4, :128] = 0
    return x, asymmetric


def bf16(tensor):
    import torch

    return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def main():
    import gguf
    import torch
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor as Packer
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
    from compressed_tensors.quantization.utils.helpers import calculate_qparams

    x, asymmetric = weights(np.random.default_rng(48))
    out = {"x": x, "asym.x": asymmetric}
    for kind, (bits, group, symmetric) in KINDS.items():
        weight = torch.from_numpy(x if symmetric else asymmetric)
        options = {"num_bits": bits, "type": "int", "symmetric": symmetric}
        options |= {"strategy": "channel"} if group is None else {"strategy": "group", "group_size": group}
        args = QuantizationArgs(**options, zp_dtype=torch.int8)
        groups = weight.reshape(ROWS, -1, group or COLS)
        scale, zero_point = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
        assert scale.dtype == torch.float32 and zero_point.dtype == torch.int8 and scale.shape == groups.shape[:2]
        codes = quantize(weight, scale, None if symmetric else zero_point, args, dtype=torch.int8)
        decoded = dequantize(codes, scale, None if symmetric else zero_point, args)
        assert decoded.dtype == torch.float32
        out[f"{kind}.scale"] = scale.numpy()
        out[f"{kind}.codes"] = codes.numpy()
        if not kind.endswith("g128"):
            out[f"{kind}.decoded"] = decoded.numpy()
        if not symmetric:
            out[f"{kind}.zero_point"] = zero_point.numpy()

        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        state = {"weight": weight, "weight_scale": scale.bfloat16(), "weight_zero_point": zero_point}
        packed = Packer.compress(state, scheme)
        assert packed["weight_shape"].tolist() == [ROWS, COLS]
        unpacked = Packer.decompress(packed, scheme)["weight"]
        assert unpacked.dtype == torch.bfloat16
        out[f"pack.{kind}.weight_packed"] = packed["weight_packed"].numpy()
        out[f"pack.{kind}.weight_scale"] = bf16(packed["weight_scale"])
        out[f"pack.{kind}.decoded"] = bf16(unpacked)
        if not symmetric:
            out[f"pack.{kind}.weight_zero_point"] = packed["weight_zero_point"].numpy()

    for name in ("Q8_0", "Q4_0"):
        kind = gguf.GGMLQuantizationType[name]
        out[f"{name.lower()}.bytes"] = gguf.quants.quantize(x, kind)
        out[f"{name.lower()}.decoded"] = gguf.quants.dequantize(out[f"{name.lower()}.bytes"], kind)
    return out


if __name__ == "__main__":
    common.run(main, "squish-quant", "int", ["compressed-tensors", "gguf", "torch"])
