//! Casts against ml_dtypes and PyTorch: all codes, all `bf16` inputs, all rounding boundaries, on every level.

use proptest::prelude::*;
use squish_bench::golden::Golden;
use squish_kernels::{
    Isa,
    cast::{
        decode_bf16_with, decode_blocks_with, encode_bf16_with, encode_blocks_with, narrow_with,
        widen_with,
    },
    element::{E2M1, E2M3, E3M2, E4M3, E5M2, E8M0, Element, Overflow},
    nibble::{decode_e2m1_blocks_with, encode_e2m1_blocks_with},
};

fn golden() -> Golden {
    Golden::load(env!("CARGO_MANIFEST_DIR"), "elements")
}

/// Runs `check` with the spelling of each format and the code that an encoding in ml_dtypes must have for NaN.
macro_rules! for_each_format {
    ($check:ident $(, $arg:expr)*) => {
        $check::<E4M3>($($arg),*);
        $check::<E5M2>($($arg),*);
        $check::<E3M2>($($arg),*);
        $check::<E2M3>($($arg),*);
        $check::<E2M1>($($arg),*);
    };
}

fn decodes<E: Element>(golden: &Golden) {
    let want = golden.f32(&format!("decode.{}", E::NAME));
    let codes: Vec<E> = (0..want.len()).map(|code| E::from_bits(code as u8)).collect();
    for isa in Isa::available() {
        let mut got = vec![0.0; want.len()];
        decode_blocks_with(isa, &codes, codes.len(), &[1.0], &mut got);
        let mut got_bf16 = vec![half::bf16::ZERO; want.len()];
        decode_bf16_with(isa, &codes, &mut got_bf16);
        for ((code, want), (got, bf16)) in codes.iter().zip(&want).zip(got.iter().zip(got_bf16)) {
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                "{isa:?} {code:?}: {got}, not {want}"
            );
            assert!(bf16.to_f32().to_bits() == got.to_bits(), "{isa:?} {code:?}: {bf16} as bf16");
        }
    }
}

#[test]
fn every_code_decodes_as_in_ml_dtypes_and_torch() {
    for_each_format!(decodes, &golden());
    let want = golden().f32("decode.e8m0");
    for (code, want) in want.iter().enumerate() {
        let got = E8M0::from_bits(code as u8).to_f32();
        assert!(
            got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
            "{code:#04x}: {got:e}, not {want:e}"
        );
    }
}

/// Tensor of codes for `overflow`; formats without NaN and infinity have one for both.
fn codes_of<E: Element>(
    golden: &Golden,
    prefix: &str,
    suffix: &str,
    overflow: Overflow,
) -> Vec<u8> {
    let mode = if overflow == Overflow::Saturate { "saturate" } else { "ieee" };
    let by_mode = format!("{prefix}.{}{suffix}.{mode}", E::NAME);
    let name = if E::BITS == 8 { by_mode } else { format!("{prefix}.{}{suffix}", E::NAME) };
    golden.u8(&name)
}

fn same_code<E: Element>(got: E, want: u8) -> bool {
    // NaN has several codes in E5M2, and tools choose different ones.
    got.to_bits() == want
        || got.is_nan() && E::from_bits(want).is_nan() && (got.to_bits() ^ want) & 0x80 == 0
}

fn encodes_bf16<E: Element>(golden: &Golden) {
    for overflow in [Overflow::Saturate, Overflow::Ieee] {
        let want = codes_of::<E>(golden, "encode", "", overflow);
        let bf16s: Vec<_> = (0..=u16::MAX).map(half::bf16::from_bits).collect();
        let f32s: Vec<f32> = bf16s.iter().map(|x| x.to_f32()).collect();
        for isa in Isa::available() {
            let mut from_bf16 = vec![E::from_bits(0); want.len()];
            encode_bf16_with(isa, &bf16s, &mut from_bf16, overflow);
            let mut from_f32 = from_bf16.clone();
            encode_blocks_with(isa, &f32s, f32s.len(), &[1.0], &mut from_f32, overflow);
            for ((x, want), (a, b)) in f32s.iter().zip(&want).zip(from_bf16.iter().zip(&from_f32)) {
                assert!(
                    same_code(*a, *want),
                    "{isa:?} {overflow:?}: bf16 {x:e} is {a:?}, not {want:#04x}"
                );
                assert_eq!(a, b, "{isa:?} {overflow:?}: {x:e}");
            }
        }
    }
}

#[test]
fn every_bf16_encodes_as_in_ml_dtypes_and_torch() {
    for_each_format!(encodes_bf16, &golden());
}

fn encodes_boundaries<E: Element>(golden: &Golden) {
    let x = golden.f32(&format!("boundary.{}.x", E::NAME));
    for overflow in [Overflow::Saturate, Overflow::Ieee] {
        let want = codes_of::<E>(golden, "boundary", ".code", overflow);
        for isa in Isa::available() {
            let mut got = vec![E::from_bits(0); want.len()];
            encode_blocks_with(isa, &x, x.len(), &[1.0], &mut got, overflow);
            for ((x, want), got) in x.iter().zip(&want).zip(got) {
                assert!(
                    same_code(got, *want),
                    "{isa:?} {overflow:?}: {x:e} is {got:?}, not {want:#04x}"
                );
            }
        }
    }
}

#[test]
fn every_rounding_boundary_and_its_neighbors_encode_as_in_ml_dtypes_and_torch() {
    for_each_format!(encodes_boundaries, &golden());
}

#[test]
fn e8m0_encodes_as_torch_but_for_signs_and_the_lowest_binade() {
    let want = golden().u8("encode.e8m0.torch");
    for (bits, &want) in want.iter().enumerate() {
        let x = half::bf16::from_bits(bits as u16).to_f32();
        let got = E8M0::from_f32(x, Overflow::Ieee).to_bits();
        // PyTorch drops the sign, and rounds all of (2^-127, 2^-126) up, where the middle is 1.5 · 2^-127.
        if x.is_sign_negative() || (1e-38..1.2e-38).contains(&x) || x > 0.0 && x < f32::MIN_POSITIVE
        {
            continue;
        }
        assert_eq!(got, want, "{x:e}");
    }
}

#[test]
fn halves_convert_as_in_torch() {
    let golden = golden();
    for isa in Isa::available() {
        let (x, want) = (golden.f32("f16.from_f32.x"), golden.u16("f16.from_f32.bits"));
        let mut got = vec![half::f16::ZERO; x.len()];
        narrow_with(isa, &x, &mut got);
        for ((x, want), got) in x.iter().zip(want).zip(got) {
            let want = half::f16::from_bits(want);
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                "{isa:?}: {x:e} is {got:?}, not {want:?}"
            );
        }
        let (x, want) = (golden.f32("bf16.from_f32.x"), golden.u16("bf16.from_f32.bits"));
        let mut got = vec![half::bf16::ZERO; x.len()];
        narrow_with(isa, &x, &mut got);
        for ((x, want), got) in x.iter().zip(want).zip(got) {
            let want = half::bf16::from_bits(want);
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                "{isa:?}: {x:e} is {got:?}, not {want:?}"
            );
        }
    }
}

#[test]
fn all_65536_halves_widen_to_the_values_of_the_half_crate() {
    let f16s: Vec<_> = (0..=u16::MAX).map(half::f16::from_bits).collect();
    let bf16s: Vec<_> = (0..=u16::MAX).map(half::bf16::from_bits).collect();
    let mut got = vec![0.0; f16s.len()];
    for isa in Isa::available() {
        widen_with(isa, &f16s, &mut got);
        for (x, got) in f16s.iter().zip(&got) {
            assert!(
                got.to_bits() == x.to_f32().to_bits() || got.is_nan() && x.is_nan(),
                "{isa:?}: {x:?} is {got}"
            );
        }
        widen_with(isa, &bf16s, &mut got);
        for (x, got) in bf16s.iter().zip(&got) {
            assert!(
                got.to_bits() == x.to_f32().to_bits() || got.is_nan() && x.is_nan(),
                "{isa:?}: {x:?} is {got}"
            );
        }
    }
}

/// Any bits, and lengths around the steps of every level.
fn bits(max_len: usize) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(any::<u32>().prop_map(f32::from_bits), 0..=max_len)
}

proptest! {
    #[test]
    fn runs_have_their_own_factors_whatever_their_length(x in bits(300), block in 1usize..140, scale in -40i32..40) {
        let factors: Vec<f32> = (0..x.len().div_ceil(block)).map(|i| (scale as f32 / 8.0).exp2() * (1.0 + i as f32 / 7.0)).collect();
        for isa in Isa::available() {
            let mut codes = vec![E4M3::from_bits(0); x.len()];
            encode_blocks_with(isa, &x, block, &factors, &mut codes, Overflow::Ieee);
            let mut values = vec![0.0; x.len()];
            decode_blocks_with(isa, &codes, block, &factors, &mut values);
            for (i, ((x, code), value)) in x.iter().zip(&codes).zip(values).enumerate() {
                let factor = factors[i / block];
                prop_assert_eq!(*code, E4M3::from_f32(x * factor, Overflow::Ieee), "{:?}: {}", isa, x);
                let want = code.to_f32() * factor;
                prop_assert!(value.to_bits() == want.to_bits() || value.is_nan() && want.is_nan(), "{isa:?}: {value}, not {want}");
            }
        }
    }

    #[test]
    fn factors_of_any_size_and_sign_round_once(codes in prop::collection::vec(any::<u8>(), 0..100), bits in any::<u32>()) {
        let factor = f32::from_bits(bits);
        let codes: Vec<E5M2> = codes.into_iter().map(E5M2::from_bits).collect();
        for isa in Isa::available() {
            let mut values = vec![0.0; codes.len()];
            decode_blocks_with(isa, &codes, codes.len().max(1), &[factor], &mut values);
            for (code, value) in codes.iter().zip(values) {
                let want = code.to_f32() * factor;
                prop_assert!(value.to_bits() == want.to_bits() || value.is_nan() && want.is_nan(), "{isa:?}: {code:?} * {factor:e} = {value:e}, not {want:e}");
            }
        }
    }

    #[test]
    fn packed_e2m1_is_e2m1_two_to_a_byte(blocks in 0usize..20, seed in any::<u32>(), any_bits in any::<bool>()) {
        let x: Vec<f32> = (0..blocks * 16).map(|i| {
            let bits = seed.wrapping_add(i as u32).wrapping_mul(0x9e37_79b9);
            if any_bits { f32::from_bits(bits) } else { (bits >> 8) as f32 / 1e6 - 8.0 }
        }).collect();
        let factors: Vec<f32> = (0..blocks).map(|i| (i as f32 - 9.0).exp2()).collect();
        for isa in Isa::available() {
            let mut packed = vec![0; x.len() / 2];
            encode_e2m1_blocks_with::<16>(isa, &x, &factors, &mut packed);
            let mut values = vec![0.0; x.len()];
            decode_e2m1_blocks_with::<16>(isa, &packed, &factors, &mut values);
            for (i, (x, value)) in x.iter().zip(values).enumerate() {
                let code = E2M1::from_bits(packed[i / 2] >> (4 * (i % 2)) & 0xf);
                prop_assert_eq!(code, E2M1::from_f32(x * factors[i / 16], Overflow::Saturate), "{:?}: {}", isa, x);
                prop_assert_eq!(value.to_bits(), (code.to_f32() * factors[i / 16]).to_bits());
            }
        }
    }
}

#[test]
fn results_too_large_for_the_caches_are_the_same() {
    // Above 24 MiB results go around the caches, by tiles; an odd length and start make all their edges.
    let n = (6 << 20) + 4321;
    let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin() * 500.0).collect();
    let isa = Isa::detect();
    let mut codes = vec![E4M3::from_bits(0); n + 1];
    encode_blocks_with(
        isa,
        &x,
        4099,
        &vec![1.25; n / 4099 + 1],
        &mut codes[1..],
        Overflow::Saturate,
    );
    let mut values = vec![0.0; n + 3];
    decode_blocks_with(isa, &codes[1..], 4099, &vec![0.8; n / 4099 + 1], &mut values[3..]);
    for ((x, code), value) in x.iter().zip(&codes[1..]).zip(&values[3..]) {
        assert_eq!(*code, E4M3::from_f32(x * 1.25, Overflow::Saturate));
        assert_eq!(*value, code.to_f32() * 0.8);
    }
    let n = n / 32 * 32;
    let mut packed = vec![0; n / 2];
    encode_e2m1_blocks_with::<32>(isa, &x[..n], &vec![0.01; n / 32], &mut packed);
    let mut values = vec![0.0; n + 5];
    decode_e2m1_blocks_with::<32>(isa, &packed, &vec![100.0; n / 32], &mut values[5..]);
    for (i, x) in x[..n].iter().enumerate() {
        let code = E2M1::from_bits(packed[i / 2] >> (4 * (i % 2)) & 0xf);
        assert_eq!(code, E2M1::from_f32(x * 0.01, Overflow::Saturate));
        assert_eq!(values[5 + i], code.to_f32() * 100.0);
    }
}
