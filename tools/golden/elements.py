"""Codes and values of the 8, 6 and 4-bit element types and of f16 and bf16, from ml_dtypes 0.6 and torch 2.15.

decode.FMT            f32 [256|64|16]  value of each code, ml_dtypes; torch agrees on all finite values of E4M3, E5M2, E8M0
encode.FMT.MODE       u8 [65536]       code of each bf16 (index = its bits)
    e4m3.saturate     torch: above 464 and infinity give the largest finite value, NaN gives 0x7F | sign
    e4m3.ieee         ml_dtypes: above 464 and infinity give NaN
    e5m2.ieee         ml_dtypes: from 61440 on infinity; NaN gives 0x7E | sign (torch: 0x7F | sign, else equal)
    e5m2.saturate     e5m2.ieee with infinity replaced by the largest finite value; no library has this cast
encode.FMT            u8 [65536]       the same for formats with one mode
    e3m2, e2m3, e2m1  ml_dtypes: saturating, infinity too; a positive NaN gives -0 and a negative NaN +0, since the formats have none
encode.e8m0.torch     u8 [65536]       torch float8_e8m0fnu: nearest power of two to |x| by value, ties away from zero; from
                                       1.5 * 2^127 on, infinity and NaN give 0xFF; up to 2^-127, 0 included, 0x00. Not the
                                       nearest: between 2^-127 and 1.5 * 2^-127, which all give 0x01. ml_dtypes agrees on
                                       positive x and gives 0xFF for zero and negative values.
boundary.FMT.x        f32 [n]          midpoint of each pair of adjacent finite codes and its two f32 neighbours, each finite
                                       value, the overflow tie with neighbours, 2^-149, smallest normal, largest f32, infinity;
                                       both signs; no NaN
boundary.FMT.code[.MODE]  u8 [n]       codes of those, sources as above (E8M0: positive x only, torch)
f16.from_f32.x, .bits  f32, u16 [n]    torch: midpoints with neighbours around every f16 subnormal, around 1500 normals, the
bf16.from_f32.x, .bits                 overflow ties, and random bit patterns without NaN
"""

import common
import ml_dtypes
import numpy as np
from common import bits_f32, down, up

F32_MAX = np.float32(np.finfo(np.float32).max)
EXTREMES = np.array([2.0**-149, np.finfo(np.float32).tiny, F32_MAX, np.inf], np.float32)
ML = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e8m0": ml_dtypes.float8_e8m0fnu,
}
N_CODES = {"e4m3": 256, "e5m2": 256, "e3m2": 64, "e2m3": 64, "e2m1": 16, "e8m0": 256}


def ml_codes(x, fmt):
    with np.errstate(invalid="ignore"):
        return np.asarray(x).astype(ML[fmt]).view(np.uint8)


def torch_codes(x, dtype):
    import torch

    return torch.from_numpy(np.array(x, np.float32)).to(dtype).view(torch.uint8).numpy()


def e5m2_saturated(codes, x):
    overflowed = (codes & 0x7F == 0x7C) & ~np.isnan(x)
    return np.where(overflowed, codes & 0x80 | 0x7B, codes).astype(np.uint8)


def e8m0_by_definition(x):
    """What the table above says of torch's cast."""
    with np.errstate(invalid="ignore"):
        x = np.abs(x.astype(np.float64))
        mantissa, exponent = np.frexp(np.where(np.isfinite(x) & (x > 0), x, 1.0))
        nearest = exponent - 1 + 127 + (mantissa >= 0.75)
        code = np.where(x <= 2.0**-127, 0, np.where(x < 1.5 * 2.0**-127, 1, nearest))
        return np.where(x < 1.5 * 2.0**127, code, 0xFF).astype(np.uint8)


def midpoints(magnitudes):
    """Exact midpoints of adjacent magnitudes, each with its f32 neighbours below and above."""
    wide = magnitudes.astype(np.float64)
    exact = (wide[1:] + wide[:-1]) / 2
    middle = exact.astype(np.float32)
    assert (middle == exact).all(), "every midpoint is an f32"
    return np.concatenate([down(middle), middle, up(middle)])


def both_signs(x):
    x = np.unique(x)
    return np.concatenate([x, -x])


def boundary(fmt, values):
    finite = values[np.isfinite(values)]
    magnitudes = np.unique(np.abs(finite))
    step = magnitudes[-1] - magnitudes[-2]
    tie = np.float32(magnitudes[-1] + step / 2)
    beyond = [down(tie), tie, up(tie), magnitudes[-1] + step, down(magnitudes[-1] + step)]
    return both_signs(np.concatenate([midpoints(magnitudes), magnitudes, beyond, EXTREMES]).astype(np.float32))


def halves(codes_total, normal_from, to_float, overflow, rng):
    """Inputs for a cast from f32 to a 16-bit float whose positive finite codes are 0..codes_total."""
    values = to_float(np.arange(codes_total, dtype=np.uint16))
    subnormal = midpoints(values[: normal_from + 2])
    start = rng.integers(normal_from, codes_total - 2, 1500)
    pairs = np.concatenate([midpoints(values[i : i + 2]) for i in start])
    edges = np.concatenate([down(overflow), overflow, up(overflow), values[-1:], EXTREMES])
    random = bits_f32(rng.integers(0, 2**32, 4096, dtype=np.uint32))
    random = random[~np.isnan(random)]
    return np.concatenate([both_signs(np.concatenate([subnormal, pairs, edges])), random])


def main():
    import torch

    out = {}
    bf16 = np.arange(65536, dtype=np.uint16).view(ml_dtypes.bfloat16)
    x = bf16.astype(np.float32)
    decode = {}
    for fmt, n in N_CODES.items():
        decode[fmt] = np.arange(n, dtype=np.uint8).view(ML[fmt]).astype(np.float32)
        out[f"decode.{fmt}"] = decode[fmt]
    torch_types = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "e8m0": torch.float8_e8m0fnu}
    for fmt, dtype in torch_types.items():
        theirs = torch.arange(256, dtype=torch.uint8).view(dtype).float().numpy()
        same = (theirs == decode[fmt]) & (np.signbit(theirs) == np.signbit(decode[fmt]))
        assert (same | np.isnan(theirs) & np.isnan(decode[fmt])).all(), fmt

    def encode(prefix, x, source):
        """All encoders on the floats `x`; `source` is the same data in the type that is cast from."""
        e4m3 = ml_codes(source, "e4m3")
        saturated = torch_codes(x, torch.float8_e4m3fn)
        in_range = np.abs(x) <= 464
        assert (e4m3[in_range] == saturated[in_range]).all()
        e5m2 = ml_codes(source, "e5m2")
        theirs = torch_codes(x, torch.float8_e5m2)
        assert (e5m2[~np.isnan(x)] == theirs[~np.isnan(x)]).all()
        out[f"{prefix}e4m3{{}}.saturate"] = saturated
        out[f"{prefix}e4m3{{}}.ieee"] = e4m3
        out[f"{prefix}e5m2{{}}.ieee"] = e5m2
        out[f"{prefix}e5m2{{}}.saturate"] = e5m2_saturated(e5m2, x)

    encode("encode.", x, bf16)
    for name in [n for n in out if "{}" in n]:
        out[name.format("")] = out.pop(name)
    for fmt in ("e3m2", "e2m3", "e2m1"):
        out[f"encode.{fmt}"] = ml_codes(bf16, fmt)
        finite = ~np.isnan(x)
        assert (out[f"encode.{fmt}"][finite] == ml_codes(x, fmt)[finite]).all()
    out["encode.e8m0.torch"] = torch_codes(x, torch.float8_e8m0fnu)
    assert (out["encode.e8m0.torch"] == e8m0_by_definition(x)).all()
    assert (out["encode.e8m0.torch"] == ml_codes(bf16, "e8m0"))[x > 0].all()

    for fmt in ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1"):
        edge = boundary(fmt, decode[fmt])
        assert not np.isnan(edge).any()
        out[f"boundary.{fmt}.x"] = edge
        codes = ml_codes(edge, fmt)
        if fmt == "e4m3":
            out["boundary.e4m3.code.ieee"] = codes
            out["boundary.e4m3.code.saturate"] = torch_codes(edge, torch.float8_e4m3fn)
        elif fmt == "e5m2":
            assert (codes == torch_codes(edge, torch.float8_e5m2)).all()
            out["boundary.e5m2.code.ieee"] = codes
            out["boundary.e5m2.code.saturate"] = e5m2_saturated(codes, edge)
        else:
            out[f"boundary.{fmt}.code"] = codes
    powers = decode["e8m0"][:255]
    tie = np.float32(1.5 * 2.0**127)
    more = np.array([0, down(tie), tie, up(tie)], np.float32)
    edge = np.unique(np.concatenate([midpoints(powers), powers, down(powers), up(powers), more, EXTREMES]))
    out["boundary.e8m0.x"] = edge
    out["boundary.e8m0.code"] = torch_codes(edge, torch.float8_e8m0fnu)
    assert (out["boundary.e8m0.code"] == e8m0_by_definition(edge)).all()
    assert (out["boundary.e8m0.code"] == ml_codes(edge, "e8m0"))[edge > 0].all()

    rng = np.random.default_rng(20)
    kinds = {
        "f16": (0x7C00, 0x0400, np.float16, torch.float16, [65519.99609375, 65520.0, 65536.0]),
        "bf16": (0x7F80, 0x0080, ml_dtypes.bfloat16, torch.bfloat16, []),
    }
    for name, (codes_total, normal_from, numpy_type, dtype, overflow) in kinds.items():
        # The overflow tie of bf16 is 2^128 - 2^119, between its largest value and 2^128.
        ties = np.array(overflow, np.float32) if overflow else bits_f32([0x7F7F8000])
        x16 = halves(codes_total, normal_from, lambda c, t=numpy_type: c.view(t).astype(np.float32), ties, rng)
        bits = torch.from_numpy(x16.copy()).to(dtype).view(torch.int16).numpy().view(np.uint16)
        with np.errstate(over="ignore"):
            assert (bits == x16.astype(numpy_type).view(np.uint16)).all(), name
        out[f"{name}.from_f32.x"] = x16
        out[f"{name}.from_f32.bits"] = bits
    return out


if __name__ == "__main__":
    common.run(main, "squish-kernels", "elements", ["torch"])
