"""MXFP4 blocks of 32 from torchao 0.18, gguf 0.19 (ggml's bytes) and transformers 5.23 (gpt-oss).

x                   f32 [n, 32]   finite blocks: zeros, all magnitudes, amax around powers of two and around 6 * 2^k, subnormal
                                  and huge amax, heavy tails, every rounding tie of E2M1
RULE.scales         u8 [n]        torchao `to_mx(float4_e2m1fn_x2, 32, RULE)`, RULE in floor, even, ceil, rceil
RULE.codes          u8 [n, 16]    two codes a byte, element 2j in the low nibble
RULE.decoded        f32 [n, 32]   torchao `to_dtype` of those (floor and even only); exact, and infinite where the code says 2^128
RULE.exact          u8 [n]        1 where scale and codes are those of the definition below, 0 where torchao departs from it
nonfinite.x         f32 [m, 32]   blocks with NaN or infinity; nonfinite.RULE.{scales,codes,decoded} as torchao makes them:
                                  scale 0xFF if there is a NaN; else the scale of infinity (rceil 0xFE, others 0xFD)
ggml.x              bf16 [k, 32]  the blocks of x rounded to bf16 that ggml can express (amax 0 or >= 2^-125)
ggml.bytes          u8 [k, 17]    gguf `MXFP4.quantize`: scale byte, then byte j = element j | element j + 16 << 4
ggml.decoded        f32 [k, 32]   gguf `MXFP4.dequantize` of those
ggml.any.bytes      u8 [256, 17]  random codes under every scale byte, 0xFF included (which ggml reads as 2^128, not NaN)
ggml.any.decoded    f32 [256, 32]
gptoss.blocks       u8 [2, 6, 4, 16]   random; gptoss.scales u8 [2, 6, 4] within 2^-20..2^20
gptoss.decoded      bf16 [2, 128, 6]   transformers `convert_moe_packed_tensors`, which transposes [experts, rows, cols]

Definition, with e(a) the exponent field of the f32 `a` less 127, amax = max|x|, X the scale exponent (byte X + 127):
    floor  X = e(amax) - 2
    even   X = e(amax + 2^21 in the bits, the half ulp of a one-bit mantissa) - 2
    ceil   X = e(amax) + (mantissa(amax) != 0) - 2
    rceil  X = ceil(log2(amax / 6)) with the quotient rounded to f32 and the logarithm exact
    X clamped to -127..127; codes = RNE to E2M1 of x * 2^-X with ties to even, saturating at 6, -0 kept.
Where torchao departs from it: (1) scale byte 0: floor, even and ceil divide by 2^-126 and rceil by 1, while decoding multiplies
by 2^-127; (2) rceil takes a rounded f32 log2, so it misses quotients that are just above a power of two. Elements equal ml_dtypes float4_e2m1fn for every block that is exact.
ggml: floor rule by f32 log2 (exact on bf16 data); the code is the first nearest of 0, .5, 1, 1.5, 2, 3, 4, 6, 0, -.5, ..., so ties go
toward zero for either sign, -0 becomes +0.
"""

import common
import ml_dtypes
import numpy as np
from common import bits_f32, down, up

E2M1 = ml_dtypes.float4_e2m1fn
TIES = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]


def blocks(rng):
    """The finite blocks [n, 32] of f32."""
    rows = []

    def filled(amax, spread=None):
        """A block whose largest magnitude is `amax`, at a random place, with either sign."""
        amax = np.float32(amax)
        body = rng.uniform(-1, 1, 32) if spread is None else rng.standard_normal(32) * spread
        row = (np.clip(body, -1, 1) * np.float64(amax)).astype(np.float32)
        row[rng.integers(32)] = amax if rng.random() < 0.5 else -amax
        assert np.abs(row).max() == amax
        return row

    zero = np.zeros(32, np.float32)
    rows += [zero, -zero, np.where(np.arange(32) % 2, -zero, zero)]
    rows += list(rng.standard_normal((140, 32)).astype(np.float32))
    rows += list((rng.standard_normal((60, 32)) * 0.02).astype(np.float32))
    rows += list(rng.standard_t(3, (80, 32)).astype(np.float32))
    for row in rng.standard_normal((20, 32)).astype(np.float32):
        row[rng.integers(32)] *= 200
        rows.append(row)
    # amax at 2^k, and its neighbours; then at the largest value 6 * 2^k, and at 7 * 2^k, where Even steps up.
    for k in [-120, -60, -30, -7, -1, 0, 1, 2, 3, 8, 40, 100, 126, 127]:
        power = np.float32(2.0**k)
        rows += [filled(v) for v in (down(power), power, up(power))]
        for top in (1.5, 1.75):
            if k < 127 or top < 1.75:
                v = np.float32(top * 2.0**k)
                rows += [filled(w) for w in (down(v), v, up(v))]
    # amax spread over all exponents.
    for k in range(-126, 128, 4):
        rows.append(filled(2.0**k * rng.uniform(1, 1.999)))
    # Every tie of E2M1 with its neighbours, exact under amax 4..6 (floor and even: scale 1).
    for sign in (1, -1):
        tie = np.array(TIES, np.float32)
        row = np.concatenate([tie, down(tie), up(tie), tie * -1, [6, 4, 0.5, 0]]).astype(np.float32) * sign
        rows += [row, row * np.float32(2.0**-20), row * np.float32(2.0**90)]
    # One element only, and subnormals.
    for value in (1.0, -3.0, 2.0**-126, 2.0**-127, -(2.0**-140), 2.0**-149, 3e38, np.finfo(np.float32).max):
        row = zero.copy()
        row[rng.integers(32)] = value
        rows.append(row)
    for k in (-149, -140, -130, -128, -127, -126, -125, -124, -123):
        rows.append(filled(np.float32(2.0**k) * np.float32(rng.choice([1.0, 1.5]))) if k > -149 else bits_f32(rng.integers(0, 9, 32)))
    return np.stack(rows).astype(np.float32)


def nonfinite_blocks(rng):
    base = rng.standard_normal((8, 32)).astype(np.float32)
    base[0, 5] = np.nan
    base[1, 31] = np.inf
    base[2, 0] = -np.inf
    base[3, 3], base[3, 7] = np.nan, np.inf
    base[4, :] = np.nan
    base[5, :] = np.inf
    base[6, :] = 0
    base[6, 9] = -np.nan
    base[7, 2], base[7, 3] = np.inf, -np.inf
    return base


def scale_exponent(rule, amax):
    """X of the definition, as integers, for finite amax."""
    bits = amax.view(np.uint32).astype(np.int64)
    exponent = (bits >> 23) - 127
    if rule == "floor":
        x = exponent - 2
    elif rule == "even":
        x = ((bits + (1 << 21)) >> 23) - 127 - 2
    elif rule == "ceil":
        x = exponent + (bits & 0x7FFFFF != 0) - 2
    else:
        mantissa, power = np.frexp((amax / np.float32(6)).astype(np.float64))
        x = np.where(amax > 0, power - (mantissa == 0.5), -127)
    return np.clip(x, -127, 127)


def definition(rule, x):
    """Scale bytes and unpacked codes of the definition."""
    exponent = scale_exponent(rule, np.abs(x).max(axis=1))
    scaled = np.ldexp(x.astype(np.float64), -exponent[:, None])
    codes = np.clip(scaled, -6, 6).astype(E2M1).view(np.uint8)
    return (exponent + 127).astype(np.uint8), codes


def unpack(packed):
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), 32)


def torchao_rules(prefix, x, out):
    import torch
    from torchao.prototype.mx_formats.config import ScaleCalculationMode as Mode
    from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx

    dtype = torch.float4_e2m1fn_x2
    for rule, mode in [("floor", Mode.FLOOR), ("even", Mode.EVEN), ("ceil", Mode.CEIL), ("rceil", Mode.RCEIL)]:
        scales, codes = to_mx(torch.from_numpy(x), dtype, 32, mode)
        decoded = to_dtype(codes, scales, dtype, 32, torch.float32)
        out[f"{prefix}{rule}.scales"] = scales.view(torch.uint8).reshape(-1).numpy()
        out[f"{prefix}{rule}.codes"] = codes.view(torch.uint8).numpy()
        out[f"{prefix}{rule}.decoded"] = decoded.numpy()


def main():
    import gguf
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    rng = np.random.default_rng(4)
    x = blocks(rng)
    out = {"x": x}
    torchao_rules("", x, out)
    for rule in ("floor", "even", "ceil", "rceil"):
        scales, codes = definition(rule, x)
        same_scale = out[f"{rule}.scales"] == scales
        exact = same_scale & (unpack(out[f"{rule}.codes"]) == codes).all(axis=1)
        values = np.arange(16, dtype=np.uint8).view(E2M1).astype(np.float64)
        value = np.ldexp(values[unpack(out[f"{rule}.codes"])], out[f"{rule}.scales"].astype(int)[:, None] - 127)
        with np.errstate(over="ignore"):
            assert (value.astype(np.float32) == out[f"{rule}.decoded"]).all(), "decoding is exact"
        depart = ~exact
        reason = (scales == 0) | (~same_scale if rule == "rceil" else False)
        assert (reason | exact).all(), (rule, np.nonzero(depart & ~reason)[0])
        out[f"{rule}.exact"] = exact.astype(np.uint8)
    for rule in ("ceil", "rceil"):
        del out[f"{rule}.decoded"]

    nonfinite = nonfinite_blocks(rng)
    out["nonfinite.x"] = nonfinite
    torchao_rules("nonfinite.", nonfinite, out)

    half = x.astype(ml_dtypes.bfloat16)
    wide = half.astype(np.float32)
    amax = np.abs(wide).max(axis=1)
    keep = ((amax == 0) | (amax >= 2.0**-125)) & np.isfinite(amax)
    half, wide, amax = half[keep], wide[keep], amax[keep]
    kind = gguf.GGMLQuantizationType.MXFP4
    with np.errstate(over="ignore"):
        quantized = gguf.quants.quantize(wide, kind)
    assert (quantized[:, 0] == np.where(amax > 0, scale_exponent("floor", amax) + 127, 0)).all()
    out["ggml.x"] = half
    out["ggml.bytes"] = quantized
    out["ggml.decoded"] = gguf.quants.dequantize(quantized, kind)
    random = rng.integers(0, 256, (256, 17), dtype=np.uint8)
    random[:, 0] = np.arange(256)
    out["ggml.any.bytes"] = random
    with np.errstate(over="ignore"):
        out["ggml.any.decoded"] = gguf.quants.dequantize(random, kind)

    moe = rng.integers(0, 256, (2, 6, 4, 16), dtype=np.uint8)
    scales = rng.integers(107, 148, (2, 6, 4), dtype=np.uint8)
    decoded = convert_moe_packed_tensors(torch.from_numpy(moe), torch.from_numpy(scales))
    out["gptoss.blocks"] = moe
    out["gptoss.scales"] = scales
    out["gptoss.decoded"] = decoded.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return out


if __name__ == "__main__":
    common.run(main, "squish-quant", "mx", ["gguf", "torch", "torchao", "transformers"])
