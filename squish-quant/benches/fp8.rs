//! FP8 codec: the seed's rows at 128x128, weights of 4096x4096, and the casts below them.
//!
//! In cache, rows are compared with a `memcpy` of the same 64 KiB of `f32` in the same group; from memory, with one of
//! the same 64 MiB. One thread.

use squish_bench::{
    Aligned, Checked, Limit, Residency, Row, Target, Unchecked, Work, black_box, input,
};
use squish_kernels::{
    SimdLevel,
    cast::{decode_blocks_to, decode_into, encode_blocks_to, encode_into},
    element::{E4M3, E5M2, Element, Overflow},
    stream::Stores,
};
use squish_quant::{Fp8Format, Fp8Quantizer, Fp8View, Granularity, NonFinite};

use common::{LARGE, SMALL, at_least, at_most, square, square_mut};

mod common;

/// `f32` in, a code out; or the other way round.
const fn work(side: usize, reads_floats: bool) -> Work {
    let n = (side * side) as u64;
    if reads_floats { Work::bytes(4 * n, n) } else { Work::bytes(n, 4 * n) }
}

const fn small(
    id: &'static str,
    operation: &'static str,
    reads_floats: bool,
    targets: &'static [Target],
) -> Row {
    Row {
        id,
        module: "Fp8Quantizer",
        operation,
        shape: "128x128",
        work: work(SMALL, reads_floats),
        limit: Limit::Copy(Residency::L2),
        targets,
        release_profile: true,
        ..Row::SEED
    }
}

const fn large(
    id: &'static str,
    operation: &'static str,
    reads_floats: bool,
    targets: &'static [Target],
) -> Row {
    Row {
        shape: "4096x4096",
        work: work(LARGE, reads_floats),
        limit: Limit::Copy(Residency::Dram),
        release_profile: false,
        table: squish_bench::Table::Llm,
        ..small(id, operation, reads_floats, targets)
    }
}

static ENCODE: Row =
    small("fp8/encode_e4m3_channel", "encode() E4M3 per channel", true, &[at_most(4.2)]);
static DECODE: Row =
    small("fp8/decode_e4m3_channel", "decode_into() E4M3 per channel", false, &[at_most(1.2)]);
static ENCODE_E5M2: Row =
    small("fp8/encode_e5m2_block", "encode() E5M2 per block of 128", true, &[]);
static ENCODE_LARGE: Row = large(
    "fp8/encode_e4m3_channel",
    "encode_into(), Saturate, E4M3 per channel",
    true,
    &[
        at_least(0.6),
        Target::AtLeastTimesPeer { peer: "torch", times: 3.0 },
        Target::AtLeastTimesPeer { peer: "float8", times: 10.0 },
    ],
);
static ENCODE_GIVEN: Row = large(
    "fp8/encode_e4m3_given",
    "encode_with_scales_into(), Saturate, E4M3 per channel",
    true,
    &[at_least(0.8), Target::AtLeastTimesPeer { peer: "torch", times: 3.0 }],
);
static DECODE_LARGE: Row = large(
    "fp8/decode_e4m3_channel",
    "decode_into() E4M3 per channel",
    false,
    &[
        at_least(0.9),
        Target::AtLeastTimesPeer { peer: "torch", times: 20.0 },
        Target::AtLeastTimesPeer { peer: "float8", times: 10.0 },
    ],
);
static CAST: Row = cast(small("fp8/cast_e4m3", "f32 to E4M3", true, &[]));
static CAST_FROM: Row = cast(small("fp8/cast_from_e4m3", "E4M3 to f32", false, &[]));
static CAST_LARGE: Row = cast(large(
    "fp8/cast_e4m3",
    "f32 to E4M3",
    true,
    &[
        at_least(0.8),
        Target::AtLeastTimesPeer { peer: "torch", times: 3.0 },
        Target::AtLeastTimesPeer { peer: "float8", times: 10.0 },
    ],
));
static CAST_FROM_LARGE: Row = cast(large(
    "fp8/cast_from_e4m3",
    "E4M3 to f32",
    false,
    &[
        at_least(0.9),
        Target::AtLeastTimesPeer { peer: "torch", times: 20.0 },
        Target::AtLeastTimesPeer { peer: "float8", times: 10.0 },
    ],
));

/// A cast belongs to the kernels and is no row of the seed.
const fn cast(row: Row) -> Row {
    Row {
        module: "squish_kernels::cast",
        table: squish_bench::Table::Llm,
        release_profile: false,
        ..row
    }
}

fn main() {
    let mut suite = common::suite();
    let per_channel = Fp8Quantizer::default();
    let per_block = Fp8Quantizer {
        format: Fp8Format::E5M2,
        granularity: Granularity::Block1d(128),
        ..per_channel
    };
    suite.row(&ENCODE, |row| encode_small(row, per_channel));
    suite.row(&DECODE, |row| decode(row, SMALL));
    suite.row(&ENCODE_E5M2, |row| encode_small(row, per_block));
    suite.row(&CAST, |row| encode_cast(row, SMALL));
    suite.row(&CAST_FROM, |row| decode_cast(row, SMALL));
    let unchecked = Fp8Quantizer { non_finite: NonFinite::Saturate, ..per_channel };
    suite.row(&ENCODE_LARGE, |row| encode_large(row, unchecked));
    suite.row(&ENCODE_GIVEN, |row| encode_given(row, unchecked));
    suite.row(&DECODE_LARGE, |row| decode(row, LARGE));
    suite.row(&CAST_LARGE, |row| encode_cast(row, LARGE));
    suite.row(&CAST_FROM_LARGE, |row| decode_cast(row, LARGE));
    suite.finish();
}

/// Asserts codes and scales by the definition, element by element.
fn assert_encoded<E: Element>(x: &[f32], block: usize, codes: &[u8], scales: &[f32]) {
    for ((x, codes), scale) in x.chunks(block).zip(codes.chunks(block)).zip(scales) {
        let amax = x.iter().fold(0f32, |amax, x| amax.max(x.abs()));
        assert_eq!(*scale, amax / E::MAX);
        let want = x.iter().map(|x| E::from_f32(x * (1.0 / scale), Overflow::Saturate).to_bits());
        assert!(want.eq(codes.iter().copied()));
    }
}

/// The form that allocates, which is what the seed's rows time.
fn encode_small(row: Unchecked<'_>, quantizer: Fp8Quantizer) -> Checked<'_> {
    let x = input::weights(SMALL, SMALL, 1);
    let x = square(&x, SMALL);
    row.check(|| {
        let tensor = quantizer.encode(x).expect("finite");
        let x = x.as_slice().expect("standard layout");
        match quantizer.format {
            Fp8Format::E4M3 => assert_encoded::<E4M3>(x, SMALL, tensor.codes(), tensor.scales()),
            Fp8Format::E5M2 => assert_encoded::<E5M2>(x, SMALL, tensor.codes(), tensor.scales()),
        }
    })
    .ours_and_memcpy(4 * SMALL * SMALL, || quantizer.encode(black_box(x)).expect("finite"))
}

fn encode_large(row: Unchecked<'_>, quantizer: Fp8Quantizer) -> Checked<'_> {
    let side = row.size(LARGE, 256);
    let x = input::weights(side, side, 1);
    let mut codes = Aligned::<u8>::zeroed(side * side);
    let mut scales = Aligned::<f32>::zeroed(side);
    row.check(|| {
        quantizer.encode_into(square(&x, side), &mut codes, &mut scales).expect("finite");
        assert_encoded::<E4M3>(&x, side, &codes, &scales);
    })
    .ours_and_memcpy(4 * side * side, || {
        quantizer
            .encode_into(square(black_box(&x), side), &mut codes, &mut scales)
            .expect("finite");
    })
}

fn encode_given(row: Unchecked<'_>, quantizer: Fp8Quantizer) -> Checked<'_> {
    let side = row.size(LARGE, 256);
    let x = input::weights(side, side, 1);
    let scales = quantizer.encode(square(&x, side)).expect("finite").scales().to_vec();
    let mut codes = Aligned::<u8>::zeroed(side * side);
    row.check(|| {
        quantizer.encode_with_scales_into(square(&x, side), &scales, &mut codes).expect("finite");
        assert_encoded::<E4M3>(&x, side, &codes, &scales);
    })
    .ours_and_memcpy(4 * side * side, || {
        quantizer
            .encode_with_scales_into(square(black_box(&x), side), &scales, &mut codes)
            .expect("finite");
    })
}

fn decode(row: Unchecked<'_>, side: usize) -> Checked<'_> {
    let side = row.size(side, side.min(256));
    let tensor = Fp8Quantizer::default()
        .encode(square(&input::weights(side, side, 1), side))
        .expect("finite");
    let mut codes = Aligned::<u8>::zeroed(side * side);
    codes.copy_from_slice(tensor.codes());
    let view =
        Fp8View::new(Fp8Format::E4M3, Granularity::Channel, [side, side], &codes, tensor.scales())
            .expect("valid");
    let mut out = Aligned::<f32>::zeroed(side * side);
    let decode_into = |out: &mut [f32]| {
        black_box(view).decode_into(square_mut(out, side)).expect("same shape");
    };
    row.check(|| {
        decode_into(&mut out);
        for ((codes, out), scale) in codes.chunks(side).zip(out.chunks(side)).zip(view.scales()) {
            assert!(
                codes
                    .iter()
                    .zip(out)
                    .all(|(&code, out)| *out == E4M3::from_bits(code).to_f32() * scale)
            );
        }
    })
    .ours_and_memcpy(4 * side * side, || decode_into(&mut out))
}

fn encode_cast(row: Unchecked<'_>, side: usize) -> Checked<'_> {
    let side = row.size(side, side.min(256));
    let x = input::normal(side * side, 1);
    let mut codes = vec![E4M3::default(); side * side];
    let mut codes_at_level = codes.clone();
    row.check(|| {
        encode_into(&x, &mut codes, Overflow::Saturate);
        assert!(
            x.iter().zip(&codes).all(|(&x, code)| *code == E4M3::from_f32(x, Overflow::Saturate))
        );
    })
    .ours_and_memcpy(4 * side * side, || encode_into(black_box(&x), &mut codes, Overflow::Saturate))
    .at_level(SimdLevel::Avx2, |isa, bench| {
        let (stores, codes) = (Stores::for_bytes(5 * x.len()), &mut codes_at_level);
        bench.iter(|| {
            let x = black_box(&x);
            encode_blocks_to(isa, stores, x, x.len(), &[1.0], codes, Overflow::Saturate);
        });
    })
}

fn decode_cast(row: Unchecked<'_>, side: usize) -> Checked<'_> {
    let side = row.size(side, side.min(256));
    let mut codes = vec![E4M3::default(); side * side];
    encode_into(&input::normal(side * side, 1), &mut codes, Overflow::Saturate);
    let (mut out, mut out_at_level) =
        (Aligned::<f32>::zeroed(side * side), Aligned::<f32>::zeroed(side * side));
    out_at_level.fill(1.0); // Pages are there before timing.
    row.check(|| {
        decode_into(&codes, &mut out);
        assert!(codes.iter().zip(&*out).all(|(code, out)| *out == code.to_f32()));
    })
    .ours_and_memcpy(4 * side * side, || decode_into(black_box(&codes), &mut out))
    .at_level(SimdLevel::Avx2, |isa, bench| {
        let (stores, out) = (Stores::for_bytes(5 * codes.len()), &mut out_at_level);
        bench.iter(|| {
            decode_blocks_to(isa, stores, black_box(&codes), codes.len(), &[1.0], out);
        });
    })
}
