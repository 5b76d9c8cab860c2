//! INT8 and INT4 codec: weights of 4096x4096. One thread.

use squish_bench::{
    Aligned, Checked, Limit, Residency, Row, Target, Unchecked, Work, black_box, input,
};
use squish_quant::{Granularity, IntFormat, IntQuantizer, IntView, NonFinite};

use common::{LARGE, at_least, square, square_mut};

mod common;

const fn row(
    id: &'static str,
    operation: &'static str,
    bits: u64,
    encodes: bool,
    targets: &'static [Target],
) -> Row {
    let n = (LARGE * LARGE) as u64;
    let (floats, codes) = (4 * n, n * bits / 8);
    Row {
        id,
        module: "IntQuantizer",
        operation,
        shape: "4096x4096",
        work: if encodes { Work::bytes(floats, codes) } else { Work::bytes(codes, floats) },
        limit: Limit::Copy(Residency::Dram),
        targets,
        ..Row::LLM
    }
}

static ENCODE_INT8: Row = row(
    "int/encode_int8_channel",
    "encode_into(), Saturate, INT8 per channel",
    8,
    true,
    &[at_least(0.55)],
);
static DECODE_INT8: Row =
    row("int/decode_int8_channel", "decode_into() INT8 per channel", 8, false, &[at_least(0.85)]);
static ENCODE_INT4: Row = row(
    "int/encode_int4_g128",
    "encode_into(), Saturate, INT4, groups of 128",
    4,
    true,
    &[at_least(0.55)],
);
static DECODE_INT4: Row =
    row("int/decode_int4_g128", "decode_into() INT4, groups of 128", 4, false, &[at_least(0.85)]);

fn main() {
    let mut suite = common::suite();
    let int8 = IntQuantizer { non_finite: NonFinite::Saturate, ..IntQuantizer::default() };
    let int4 =
        IntQuantizer { format: IntFormat::Int4, granularity: Granularity::Block1d(128), ..int8 };
    suite.row(&ENCODE_INT8, |row| encode(row, int8));
    suite.row(&DECODE_INT8, |row| decode(row, int8));
    suite.row(&ENCODE_INT4, |row| encode(row, int4));
    suite.row(&DECODE_INT4, |row| decode(row, int4));
    suite.finish();
}

/// Code of element `i` of a row-major matrix.
fn code(format: IntFormat, codes: &[u8], i: usize) -> i8 {
    match format {
        IntFormat::Int8 => codes[i] as i8,
        IntFormat::Int4 => (codes[i / 2] >> (4 * (i % 2)) & 0xf) as i8 - 8,
    }
}

fn group(quantizer: IntQuantizer, side: usize) -> usize {
    if quantizer.granularity == Granularity::Channel { side } else { 128 }
}

fn encode(row: Unchecked<'_>, quantizer: IntQuantizer) -> Checked<'_> {
    let side = row.size(LARGE, 256);
    let (x, group) = (input::weights(side, side, 1), group(quantizer, side));
    let mut codes = Aligned::<u8>::zeroed(side * side * quantizer.format.bits() / 8);
    let mut scales = Aligned::<f32>::zeroed(side * side / group);
    row.check(|| {
        quantizer.encode_into(square(&x, side), &mut codes, &mut scales, None).expect("finite");
        let [least, greatest] = quantizer.format.limits(quantizer.range).map(f32::from);
        for (i, x) in x.iter().enumerate() {
            let exact = (x / scales[i / group]).clamp(least, greatest);
            assert!(
                (f32::from(code(quantizer.format, &codes, i)) - exact).abs() <= 0.5001,
                "{i}: {x}"
            );
        }
    })
    .ours_and_memcpy(4 * side * side, || {
        quantizer
            .encode_into(square(black_box(&x), side), &mut codes, &mut scales, None)
            .expect("finite");
    })
}

fn decode(row: Unchecked<'_>, quantizer: IntQuantizer) -> Checked<'_> {
    let side = row.size(LARGE, 256);
    let tensor = quantizer.encode(square(&input::weights(side, side, 1), side)).expect("finite");
    let mut codes = Aligned::<u8>::zeroed(tensor.codes().len());
    codes.copy_from_slice(tensor.codes());
    let shape = [side, side];
    let view = IntView::new(
        quantizer.format,
        quantizer.granularity,
        shape,
        &*codes,
        tensor.scales(),
        None,
    )
    .expect("valid");
    let mut out = Aligned::<f32>::zeroed(side * side);
    let decode_into = |out: &mut [f32]| {
        black_box(view).decode_into(square_mut(out, side)).expect("same shape");
    };
    row.check(|| {
        decode_into(&mut out);
        let group = group(quantizer, side);
        for (i, out) in out.iter().enumerate() {
            assert_eq!(
                *out,
                f32::from(code(quantizer.format, &codes, i)) * tensor.scales()[i / group]
            );
        }
    })
    .ours_and_memcpy(4 * side * side, || decode_into(&mut out))
}
