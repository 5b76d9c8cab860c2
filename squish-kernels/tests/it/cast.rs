//! Casts against ml_dtypes and PyTorch: all codes, all `bf16` inputs, all rounding boundaries, on every level.

use proptest::prelude::*;
use squish_bench::golden::Golden;
use squish_kernels::{
    Isa,
    cast::{
        decode_bf16_with, decode_blocks_into, decode_blocks_to, encode_bf16_into, encode_bf16_with,
        encode_blocks_to, encode_into, narrow_with, widen_with,
    },
    element::{E2M1, E2M3, E3M2, E4M3, E5M2, E8M0, Element, Overflow},
    nibble::{decode_e2m1_blocks_into, decode_e2m1_blocks_to, encode_e2m1_blocks_to},
    stream::Stores,
};

fn golden() -> Golden {
    Golden::load(env!("CARGO_MANIFEST_DIR"), "elements")
}

/// Runs `check` for each format.
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
        decode_blocks_to(isa, Stores::Cached, &codes, codes.len(), &[1.0], &mut got);
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
            encode_blocks_to(
                isa,
                Stores::Cached,
                &f32s,
                f32s.len(),
                &[1.0],
                &mut from_f32,
                overflow,
            );
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
            encode_blocks_to(isa, Stores::Cached, &x, x.len(), &[1.0], &mut got, overflow);
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
    fn runs_have_their_own_factors_whatever_their_length(x in bits(600), block in prop_oneof![1usize..140, Just(16), Just(32)], scale in -40i32..40) {
        let factors: Vec<f32> = (0..x.len().div_ceil(block)).map(|i| (scale as f32 / 8.0).exp2() * (1.0 + i as f32 / 7.0)).collect();
        for (isa, stores) in Isa::available().flat_map(|isa| [Stores::Cached, Stores::Streamed].map(|to| (isa, to))) {
            let mut codes = vec![E4M3::from_bits(0); x.len()];
            encode_blocks_to(isa, stores, &x, block, &factors, &mut codes, Overflow::Ieee);
            let mut values = vec![0.0; x.len()];
            decode_blocks_to(isa, stores, &codes, block, &factors, &mut values);
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
            decode_blocks_to(isa, Stores::Cached, &codes, codes.len().max(1), &[factor], &mut values);
            for (code, value) in codes.iter().zip(values) {
                let want = code.to_f32() * factor;
                prop_assert!(value.to_bits() == want.to_bits() || value.is_nan() && want.is_nan(), "{isa:?}: {code:?} * {factor:e} = {value:e}, not {want:e}");
            }
        }
    }

    #[test]
    fn packed_e2m1_is_e2m1_two_to_a_byte(blocks in 0usize..24, seed in any::<u32>(), any_bits in any::<bool>(), start in 0usize..70) {
        packed_e2m1::<16>(blocks, seed, any_bits, start);
        packed_e2m1::<32>(blocks, seed, any_bits, start);
    }
}

fn packed_e2m1<const BLOCK: usize>(blocks: usize, seed: u32, any_bits: bool, start: usize) {
    let value = |i: usize| {
        let bits = seed.wrapping_add(i as u32).wrapping_mul(0x9e37_79b9);
        if any_bits { f32::from_bits(bits) } else { (bits >> 8) as f32 / 1e6 - 8.0 }
    };
    let x: Vec<f32> = (0..blocks * BLOCK).map(value).collect();
    let factors: Vec<f32> = (0..blocks).map(|i| (i as f32 - 9.0).exp2()).collect();
    for (isa, stores) in
        Isa::available().flat_map(|isa| [Stores::Cached, Stores::Streamed].map(|to| (isa, to)))
    {
        let mut packed = vec![0; start + x.len() / 2];
        encode_e2m1_blocks_to::<BLOCK>(isa, stores, &x, &factors, &mut packed[start..]);
        let mut values = vec![0.0; start + x.len()];
        decode_e2m1_blocks_to::<BLOCK>(
            isa,
            stores,
            &packed[start..],
            &factors,
            &mut values[start..],
        );
        for (i, (x, value)) in x.iter().zip(&values[start..]).enumerate() {
            let code = E2M1::from_bits(packed[start + i / 2] >> (4 * (i % 2)) & 0xf);
            let factor = factors[i / BLOCK];
            assert_eq!(code, E2M1::from_f32(x * factor, Overflow::Saturate), "{isa:?}: {x}");
            assert_eq!(value.to_bits(), (code.to_f32() * factor).to_bits(), "{isa:?}: {code:?}");
        }
        assert!(packed[..start].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn every_packed_byte_decodes_with_every_kind_of_factor_on_every_isa() {
    let packed: Vec<u8> = (0..=u8::MAX).collect();
    for factor in [1.0, 0.5, -3.0, 1e-40, f32::MAX, f32::INFINITY, f32::NAN] {
        for isa in Isa::available() {
            let mut values = [0.0; 512];
            decode_e2m1_blocks_to::<32>(isa, Stores::Cached, &packed, &[factor; 16], &mut values);
            for (i, value) in values.iter().enumerate() {
                let code = E2M1::from_bits(packed[i / 2] >> (4 * (i % 2)) & 0xf);
                let want = code.to_f32() * factor;
                assert!(
                    value.to_bits() == want.to_bits() || value.is_nan() && want.is_nan(),
                    "{isa:?}: {code:?} * {factor:e} is {value:e}, not {want:e}"
                );
            }
        }
    }
}

#[test]
fn results_that_go_around_the_caches_are_the_same_wherever_they_start() {
    let x: Vec<f32> = (0..1030).map(|i| (i as f32 * 0.37).sin() * 500.0).collect();
    for (isa, start) in Isa::available().flat_map(|isa| [0, 1, 3, 16, 61].map(|start| (isa, start)))
    {
        for (len, block) in [(0, 1), (255, 300), (256, 40), (257, 128), (1030, 4099), (1030, 300)] {
            let mut codes = vec![E4M3::from_bits(0); start + len];
            let (up, down) = (vec![1.25; len / block + 1], vec![0.8; len / block + 1]);
            let (x, to) = (&x[..len], Stores::Streamed);
            encode_blocks_to(isa, to, x, block, &up, &mut codes[start..], Overflow::Saturate);
            let mut values = vec![0.0; start + len];
            decode_blocks_to(isa, to, &codes[start..], block, &down, &mut values[start..]);
            for ((x, code), value) in x.iter().zip(&codes[start..]).zip(&values[start..]) {
                assert_eq!(*code, E4M3::from_f32(x * 1.25, Overflow::Saturate), "{isa:?} {start}");
                assert_eq!(*value, code.to_f32() * 0.8, "{isa:?} {start}");
            }
            assert!(values[..start].iter().all(|&value| value == 0.0));
        }
    }
}

#[test]
#[should_panic(expected = "encode: `x` and `out` differ in length")]
fn encoding_refuses_different_lengths() {
    encode_into(&[0.0; 3], &mut [E4M3::default(); 4], Overflow::Saturate);
}

#[test]
#[should_panic(expected = "encode: `x` and `out` differ in length")]
fn encoding_bf16_refuses_different_lengths() {
    encode_bf16_into(&[half::bf16::ZERO; 3], &mut [E4M3::default(); 2], Overflow::Saturate);
}

#[test]
#[should_panic(expected = "cast: 2 factors for 3 blocks")]
fn decoding_refuses_missing_factors() {
    decode_blocks_into(&[E4M3::default(); 5], 2, &[1.0; 2], &mut [0.0; 5]);
}

#[test]
#[should_panic(expected = "cast: `block` is zero")]
fn decoding_refuses_empty_blocks() {
    decode_blocks_into(&[E4M3::default(); 5], 0, &[1.0; 2], &mut [0.0; 5]);
}

#[test]
#[should_panic(expected = "nibble: 48 elements are no multiple of the block of 32")]
fn packed_decoding_refuses_part_of_a_block() {
    decode_e2m1_blocks_into::<32>(&[0; 24], &[1.0; 2], &mut [0.0; 48]);
}

#[test]
#[should_panic(expected = "nibble: 1 factors for 2 blocks")]
fn packed_decoding_refuses_missing_factors() {
    decode_e2m1_blocks_into::<32>(&[0; 32], &[1.0], &mut [0.0; 64]);
}
