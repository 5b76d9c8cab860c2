"""MXFP8 and MXFP6 blocks of 32 from torchao 0.18, and NVFP4 from torchao, compressed-tensors 0.20 and gguf 0.19 (ggml's bytes).

x                   f32 [n, 32]   every third of the blocks of `mx.py`
FMT in e4m3, e5m2, e3m2, e2m3; RULE in floor, even, ceil, rceil:
FMT.RULE.scales     u8 [n]        torchao `to_mx(FMT, 32, RULE)`
FMT.RULE.codes      u8 [n, 32]    one code a byte
FMT.RULE.exact      u8 [n]        1 where scale and codes are those of the definition below, 0 where torchao departs from it
FMT.floor.decoded   f32 [n, 32]   torchao `to_dtype` of those; exact
nvfp4.x             f32 [32, 128] normal, with a row of zeros, a row of 1e-3 and outliers
nvfp4.global        f32 [1]       amax / 2688
nvfp4.scales        u8 [32, 8]    torchao `nvfp4_quantize` with that scale: E4M3, at least 2^-6
nvfp4.codes         u8 [32, 64]   two codes a byte, element 2j in the low nibble
nvfp4.exact         u8 [32, 8]    1 where scale and codes of a block are those of the definition below
nvfp4.decoded       f32 [32, 128] torchao's own: code * (global * scale), each product rounded to f32
nvfp4.divisor       f32 [1]       2688 / amax; nvfp4.divided f32 [32, 128]: compressed-tensors `dequantize`, code * (scale / divisor)
normal.x            f32 [128, 128] numpy default_rng(42), standard normal: the matrix behind the table of signal-to-noise ratios in `specs/quant.md` 1.3
ggml.bytes          u8 [256, 36]  random codes, every byte among the scales; ggml.decoded f32 [256, 64] gguf `NVFP4.dequantize`

Definition of MX: as in `mx.py`, with emax, the largest value and the bits of the mantissa of the format. Where torchao departs from it: (1)
scale byte 0: it divides by 2^-126 (rceil: 1); (2) rceil takes a rounded f32 log2.
Definition of NVFP4: s = E4M3(amax of the block / 6 / g), code = E2M1(x * (1 / (s * g))), all in f32. Where torchao departs from it: (1) scales
below 2^-6 are raised to that; (2) it multiplies by (1 / g) / s.
"""

import common
import ml_dtypes
import mx
import numpy as np

# Type, emax, largest value, bits of the mantissa.
FORMATS = {
    "e4m3": (ml_dtypes.float8_e4m3fn, 8, 448.0, 3),
    "e5m2": (ml_dtypes.float8_e5m2, 15, 57344.0, 2),
    "e3m2": (ml_dtypes.float6_e3m2fn, 4, 28.0, 2),
    "e2m3": (ml_dtypes.float6_e2m3fn, 2, 7.5, 3),
}


def definition(fmt, rule, x):
    """Scale bytes and codes."""
    dtype, emax, largest, mantissa_bits = FORMATS[fmt]
    amax = np.abs(x).max(axis=1)
    bits = amax.view(np.uint32).astype(np.int64)
    if rule == "rceil":
        mantissa, power = np.frexp(amax.astype(np.float64) / largest)
        exponent = np.where(amax > 0, power - (mantissa == 0.5), -127)
    else:
        carry = {"floor": 0, "even": 1 << (22 - mantissa_bits), "ceil": 0x7FFFFF}[rule]
        exponent = ((bits + carry) >> 23) - 127 - emax
    exponent = np.clip(exponent, -127, 127)
    scaled = np.ldexp(x.astype(np.float64), -exponent[:, None])
    codes = np.clip(scaled, -largest, largest).astype(dtype).view(np.uint8)
    return (exponent + 127).astype(np.uint8), codes


def microscaling(x, out):
    import torch
    from torchao.prototype.mx_formats.config import ScaleCalculationMode as Mode
    from torchao.prototype.mx_formats.constants import DTYPE_FP6_E2M3, DTYPE_FP6_E3M2
    from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx

    types = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "e3m2": DTYPE_FP6_E3M2, "e2m3": DTYPE_FP6_E2M3}
    for fmt, dtype in types.items():
        for rule, mode in [("floor", Mode.FLOOR), ("even", Mode.EVEN), ("ceil", Mode.CEIL), ("rceil", Mode.RCEIL)]:
            scales, codes = to_mx(torch.from_numpy(x), dtype, 32, mode)
            if rule == "floor":
                out[f"{fmt}.floor.decoded"] = to_dtype(codes, scales, dtype, 32, torch.float32).numpy()
            scales = scales.view(torch.uint8).reshape(-1).numpy()
            codes = codes.view(torch.uint8).reshape(-1, 32).numpy()
            want_scales, want_codes = definition(fmt, rule, x)
            same_scale = scales == want_scales
            exact = same_scale & (codes == want_codes).all(axis=1)
            reason = (scales == 0) | (want_scales == 0) | (~same_scale if rule == "rceil" else False)
            assert (reason | exact).all(), (fmt, rule, np.nonzero(~exact & ~reason)[0])
            out[f"{fmt}.{rule}.scales"] = scales
            out[f"{fmt}.{rule}.codes"] = codes
            out[f"{fmt}.{rule}.exact"] = exact.astype(np.uint8)


def nvfp4(rng, out):
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize

    x = rng.standard_normal((32, 128)).astype(np.float32)
    x[3] = 0
    x[4] *= np.float32(1e-3)
    x[5, ::16] *= 8
    g = (np.abs(x).max() / np.float32(2688)).astype(np.float32)
    scales, codes = nvfp4_quantize(torch.from_numpy(x), 16, torch.tensor(g))
    scales = scales.view(torch.uint8).numpy().reshape(32, 8)
    codes = codes.numpy().reshape(32, 64)

    blocks = x.reshape(32, 8, 16)
    want_scales = (np.abs(blocks).max(axis=2) / np.float32(6) / g).astype(ml_dtypes.float8_e4m3fn)
    total = want_scales.astype(np.float32) * g
    with np.errstate(divide="ignore"):
        reciprocal = np.where(total > 0, np.float32(1) / total, np.float32(0))
    want = np.clip(blocks * reciprocal[..., None], -6, 6).astype(mx.E2M1).view(np.uint8)
    unpacked = np.stack([codes & 15, codes >> 4], axis=-1).reshape(32, 8, 16)
    exact = (scales == want_scales.view(np.uint8)) & (unpacked == want).all(axis=2)
    assert exact.sum() > 230, "one row of zeros, one of small scales, and rare ties"

    values = unpacked.view(mx.E2M1).astype(np.float32)
    as_float = scales.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    divisor = np.float32(2688) / np.abs(x).max()
    args = QuantizationArgs(num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True)
    divided = dequantize(
        torch.from_numpy(values.reshape(32, 128)),
        torch.from_numpy(as_float),
        args=args,
        dtype=torch.float32,
        global_scale=torch.tensor([divisor]),
    )
    out["nvfp4.x"] = x
    out["nvfp4.global"] = g.reshape(1)
    out["nvfp4.scales"] = scales
    out["nvfp4.codes"] = codes
    out["nvfp4.exact"] = exact.astype(np.uint8)
    out["nvfp4.decoded"] = (values * (g * as_float)[..., None]).astype(np.float32).reshape(32, 128)
    out["nvfp4.divisor"] = np.asarray(divisor, np.float32).reshape(1)
    out["nvfp4.divided"] = divided.numpy().reshape(32, 128)


def main():
    import gguf

    rng = np.random.default_rng(6)
    x = mx.blocks(np.random.default_rng(4))[::3].copy()
    out = {"x": x}
    microscaling(x, out)
    nvfp4(rng, out)
    out["normal.x"] = np.random.default_rng(42).standard_normal((128, 128)).astype(np.float32)
    random = rng.integers(0, 256, (256, 36), dtype=np.uint8)
    random[:, 0] = np.arange(256)
    out["ggml.bytes"] = random
    out["ggml.decoded"] = gguf.quants.dequantize(random, gguf.GGMLQuantizationType.NVFP4).astype(np.float32)
    return out


if __name__ == "__main__":
    common.run(main, "squish-quant", "formats", ["gguf", "torch", "torchao", "compressed-tensors"])
