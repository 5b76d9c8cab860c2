//! MXFP4 codec: the seed's rows at 128x128, and weights of 4096x4096 by every scale rule that costs differently. One
//! thread.

use squish_bench::{
    Aligned, Checked, Limit, Residency, Row, Table, Target, Unchecked, Work, black_box, input,
};
use squish_kernels::element::{E2M1, E8M0, Element, Overflow};
use squish_quant::{MX_BLOCK, MxFormat, MxQuantizer, MxView, NonFinite, ScaleRule};

use common::{LARGE, SMALL, at_least, at_most, square, square_mut};

mod common;

const fn row(
    id: &'static str,
    operation: &'static str,
    side: usize,
    encodes: bool,
    targets: &'static [Target],
) -> Row {
    let n = (side * side) as u64;
    let packed = n / 2 + n / MX_BLOCK as u64;
    Row {
        id,
        module: "MxQuantizer",
        operation,
        shape: if side == SMALL { "128x128" } else { "4096x4096" },
        work: if encodes { Work::bytes(4 * n, packed) } else { Work::bytes(packed, 4 * n) },
        limit: Limit::Copy(if side == SMALL { Residency::L2 } else { Residency::Dram }),
        targets,
        note: if side == SMALL {
            "the seed's MX4 has no element exponent; this is OCP MXFP4"
        } else {
            ""
        },
        release_profile: side == SMALL,
        table: if side == SMALL { Table::Seed } else { Table::Llm },
        ..Row::SEED
    }
}

static ENCODE: Row =
    row("mx/encode_mx4", "encode() MXFP4, rule Floor", SMALL, true, &[at_most(4.2)]);
static DECODE: Row = row("mx/decode_mx4", "decode_into() MXFP4", SMALL, false, &[at_most(1.5)]);
static ENCODE_LARGE: Row = row(
    "mx/encode_mx4",
    "encode_into(), Saturate, MXFP4, rule Floor",
    LARGE,
    true,
    &[at_least(0.55)],
);
static ENCODE_MIN_MSE: Row =
    row("mx/encode_mx4_min_mse", "encode_into(), Saturate, MXFP4, rule MinMse", LARGE, true, &[]);
static DECODE_LARGE: Row =
    row("mx/decode_mx4", "decode_into() MXFP4", LARGE, false, &[at_least(0.85)]);

fn main() {
    let mut suite = common::suite();
    suite.row(&ENCODE, |row| encode_small(row, MxQuantizer::default()));
    suite.row(&DECODE, |row| decode(row, SMALL));
    let saturating = MxQuantizer { non_finite: NonFinite::Saturate, ..MxQuantizer::default() };
    suite.row(&ENCODE_LARGE, |row| encode_large(row, saturating));
    suite.row(&ENCODE_MIN_MSE, |row| {
        encode_large(row, MxQuantizer { rule: ScaleRule::MinMse, ..saturating })
    });
    suite.row(&DECODE_LARGE, |row| decode(row, LARGE));
    suite.finish();
}

/// Asserts the codes of every block by the definition, given its scale, and the scale by the rule.
fn assert_encoded(x: &[f32], rule: ScaleRule, codes: &[u8], scales: &[u8]) {
    for ((x, codes), scale) in x.chunks(MX_BLOCK).zip(codes.chunks(MX_BLOCK / 2)).zip(scales) {
        let amax = x.iter().fold(0f32, |amax, x| amax.max(x.abs()));
        let floor = 2f32.powf(amax.log2().floor() - 2.0);
        let value = E8M0::from_bits(*scale).to_f32();
        assert!(value == floor || rule == ScaleRule::MinMse && value == 2.0 * floor);
        let code = |x: f32| E2M1::from_f32(x / value, Overflow::Saturate).to_bits();
        assert!(x.chunks(2).zip(codes).all(|(x, byte)| *byte == code(x[0]) | code(x[1]) << 4));
    }
}

/// The form that allocates, which is what the seed's row times.
fn encode_small(row: Unchecked<'_>, quantizer: MxQuantizer) -> Checked<'_> {
    let x = input::weights(SMALL, SMALL, 1);
    let x = square(&x, SMALL);
    row.check(|| {
        let tensor = quantizer.encode(x).expect("finite");
        assert_encoded(
            x.as_slice().expect("standard layout"),
            quantizer.rule,
            tensor.codes(),
            tensor.scales(),
        );
    })
    .ours_and_memcpy(4 * SMALL * SMALL, || quantizer.encode(black_box(x)).expect("finite"))
}

fn encode_large(row: Unchecked<'_>, quantizer: MxQuantizer) -> Checked<'_> {
    let side = row.size(LARGE, SMALL);
    let x = input::weights(side, side, 1);
    let mut codes = Aligned::<u8>::zeroed(side * side / 2);
    let mut scales = Aligned::<u8>::zeroed(side * side / MX_BLOCK);
    row.check(|| {
        quantizer.encode_into(square(&x, side), &mut codes, &mut scales).expect("finite");
        assert_encoded(&x, quantizer.rule, &codes, &scales);
    })
    .ours_and_memcpy(4 * side * side, || {
        quantizer
            .encode_into(square(black_box(&x), side), &mut codes, &mut scales)
            .expect("finite");
    })
}

fn decode(row: Unchecked<'_>, side: usize) -> Checked<'_> {
    let side = row.size(side, SMALL);
    let tensor = MxQuantizer::default()
        .encode(square(&input::weights(side, side, 1), side))
        .expect("finite");
    let view =
        MxView::new(MxFormat::MxFp4, [side, side], tensor.codes(), tensor.scales()).expect("valid");
    let mut out = Aligned::<f32>::zeroed(side * side);
    let decode_into = |out: &mut [f32]| {
        black_box(view).decode_into(square_mut(out, side)).expect("same shape");
    };
    row.check(|| {
        decode_into(&mut out);
        for (i, out) in out.iter().enumerate() {
            let code = E2M1::from_bits(view.codes()[i / 2] >> (4 * (i % 2)) & 0xf);
            assert_eq!(*out, code.to_f32() * E8M0::from_bits(view.scales()[i / MX_BLOCK]).to_f32());
        }
    })
    .ours_and_memcpy(4 * side * side, || decode_into(&mut out))
}
