"""FP8 weights: scales and codes by numpy in f32, decoding by transformers 5.23 and compressed-tensors 0.20.

x                            f32 [37, 300]  normal, with outlier columns and rows, a zero row (5), a row of 1e-30 (6), a zero
                                            128-block (row 9)
FMT.GRAN.scales              f32            FMT in e4m3, e5m2; GRAN in
    tensor [1], channel [37] (rows), block1d [37, 3] (128 along a row, last one 44), block2d [1, 3] (128 x 128, ragged)
FMT.GRAN.codes               u8 [37, 300]
FMT.block2d_t.scales, .codes  f32 [3, 1], u8 [300, 37]: blocks of 128 x 128 of x transposed
e4m3.block1d.decoded         f32 [37, 300]  value of the code * scale, one f32 multiply
edge.x                       f32 [4, 300]   rows of subnormals, of one value 2^-149, up to the largest f32, around 2^-126 * 448;
                                            edge.FMT.{channel,block1d}.{scales,codes}
Definition, all in f32: amax = max|x| of the group; scale = max(amax / MAX, 2^-126) with MAX = 448 or 57344, and 1.0 when amax is
0; inv = 1 / scale; code = RNE(clip(x * inv, -MAX, MAX)). E4M3 is cast by torch, E5M2 by ml_dtypes; either agrees with the other.

deepseek.codes               u8 [132, 260]  every finite code of E4M3; deepseek.weight_scale_inv f32 [2, 3] (blocks of 128 x 128)
deepseek.decoded             f32 [132, 260] code * scale of its block. transformers' `Fp8Dequantize` refuses ragged shapes, so the
                                            codes are padded with zeros to 256 x 384 for it and the result is cut
ct.weight                    u8 [24, 96]    compressed-tensors FP8 channel weights, finite E4M3 codes
ct.weight_scale              bf16 [24, 1]
ct.decoded.bf16              bf16 [24, 96]  its `dequantize` in the dtype of the scales: the product of two bf16, rounded once
ct.decoded.f32               f32 [24, 96]   its `dequantize` with the scales widened to f32
"""

import common
import ml_dtypes
import numpy as np

MAX = {"e4m3": 448.0, "e5m2": 57344.0}
ML = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
BLOCK = 128


def weights(rng):
    x = rng.standard_normal((37, 300)).astype(np.float32)
    x[:, [17, 211]] *= np.float32(30)
    x[20] *= np.float32(100)
    x[5] = 0
    x[6] *= np.float32(1e-30)
    x[9, 128:256] = 0
    x[10, 0], x[10, 1] = -0.0, 2.0**-149
    return x


def edges(rng):
    x = rng.standard_normal((4, 300))
    x[0] = rng.integers(-(2**20), 2**20, 300) * 2.0**-149
    x[1] = 0
    x[1, 200] = -(2.0**-149)
    x[2] *= np.finfo(np.float32).max / np.abs(x[2]).max()
    x[3] = np.where(rng.random(300) < 0.5, 1, -1) * rng.uniform(0, 1.01, 300) * 448 * 2.0**-126
    return x.astype(np.float32)


def groups(name, shape):
    """For each element, the index of its group, and the shape of the scales."""
    rows, cols = np.indices(shape)
    tiles = -(-shape[1] // BLOCK)
    if name == "tensor":
        return rows * 0, (1,)
    if name == "channel":
        return rows, (shape[0],)
    if name == "block1d":
        return rows * tiles + cols // BLOCK, (shape[0], tiles)
    return rows // BLOCK * tiles + cols // BLOCK, (-(-shape[0] // BLOCK), tiles)


def cast(x, fmt):
    """RNE of values that are already within the format; both libraries must agree."""
    import torch

    dtype = torch.float8_e4m3fn if fmt == "e4m3" else torch.float8_e5m2
    codes = x.astype(ML[fmt]).view(np.uint8)
    assert (codes == torch.from_numpy(x).to(dtype).view(torch.uint8).numpy()).all()
    return codes


def quantize(x, fmt, granularity):
    index, shape = groups(granularity, x.shape)
    limit = np.float32(MAX[fmt])
    amax = np.zeros(np.prod(shape), np.float32)
    np.maximum.at(amax, index.ravel(), np.abs(x).ravel())
    scales = np.where(amax == 0, np.float32(1), np.maximum(amax / limit, np.float32(2.0**-126)))
    inverse = np.float32(1) / scales
    assert scales.dtype == inverse.dtype == np.float32
    with np.errstate(over="ignore"):
        scaled = np.clip(x * inverse[index], -limit, limit)
    codes = cast(scaled, fmt)
    decoded = codes.view(ML[fmt]).astype(np.float32) * scales[index]
    return scales.reshape(shape), codes, decoded


def finite_codes(rng, shape):
    codes = rng.integers(0, 256, shape, dtype=np.uint8)
    codes.flat[:256] = np.arange(256)
    return np.where(codes & 0x7F == 0x7F, np.uint8(0x38), codes)


def main():
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    rng = np.random.default_rng(8)
    x, edge = weights(rng), edges(rng)
    out = {"x": x, "edge.x": edge}
    for fmt in MAX:
        for granularity in ("tensor", "channel", "block1d", "block2d"):
            name = f"{fmt}.{granularity}"
            out[f"{name}.scales"], out[f"{name}.codes"], decoded = quantize(x, fmt, granularity)
            if name == "e4m3.block1d":
                out[f"{name}.decoded"] = decoded
            if granularity in ("channel", "block1d"):
                name = f"edge.{name}"
                out[f"{name}.scales"], out[f"{name}.codes"], _ = quantize(edge, fmt, granularity)
        out[f"{fmt}.block2d_t.scales"], out[f"{fmt}.block2d_t.codes"], _ = quantize(x.T, fmt, "block2d")

    codes = finite_codes(rng, (132, 260))
    inverse = (rng.uniform(0.5, 2, (2, 3)) * 1e-3).astype(np.float32)
    padded = np.zeros((256, 384), np.uint8)
    padded[:132, :260] = codes
    index, _ = groups("block2d", codes.shape)
    weight = torch.from_numpy(padded).view(torch.float8_e4m3fn)
    decoded = Fp8Dequantize(None)._dequantize_one(weight, torch.from_numpy(inverse), torch.float32).numpy()[:132, :260]
    assert (decoded == codes.view(ML["e4m3"]).astype(np.float32) * inverse.ravel()[index]).all()
    out["deepseek.codes"] = codes
    out["deepseek.weight_scale_inv"] = inverse
    out["deepseek.decoded"] = decoded.copy()

    weight = finite_codes(rng, (24, 96))
    scale = torch.from_numpy((rng.uniform(0.5, 2, (24, 1)) * 1e-2).astype(np.float32)).bfloat16()
    args = QuantizationArgs(num_bits=8, type="float", strategy="channel", symmetric=True)
    fp8 = torch.from_numpy(weight).view(torch.float8_e4m3fn)
    out["ct.weight"] = weight
    out["ct.weight_scale"] = scale.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    out["ct.decoded.bf16"] = dequantize(fp8, scale, None, args).view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    out["ct.decoded.f32"] = dequantize(fp8, scale.float(), None, args).numpy()
    assert out["ct.decoded.f32"].dtype == np.float32
    return out


if __name__ == "__main__":
    common.run(main, "squish-quant", "fp8", ["compressed-tensors", "torch", "transformers"])
