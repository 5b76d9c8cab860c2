//! Codecs of the formats that are no rows of the seed, at 4096x4096: MXFP8, MXFP6, MXINT8, NVFP4 and shared microexponents.
//! One thread.

use squish_bench::{Aligned, Checked, Limit, Residency, Row, Unchecked, Work, black_box, input};
use squish_kernels::element::{E2M1, E3M2, E4M3, E8M0, Element, Overflow};
use squish_quant::{
    GlobalScale, MX_BLOCK, MxFormat, MxQuantizer, MxView, NVFP4_BLOCK, NonFinite, NvFp4Quantizer,
    NvFp4View, SMX_BLOCK, SmxFormat, SmxQuantizer, SmxView, ndarray::ArrayViewMut2,
};

use common::{LARGE, SMALL, at_least, square, square_mut};

mod common;

const SATURATE: NonFinite = NonFinite::Saturate;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Mx(MxFormat),
    NvFp4,
    Smx(SmxFormat),
}

const FORMATS: [Format; 7] = [
    Format::Mx(MxFormat::MxFp8E4M3),
    Format::Mx(MxFormat::MxFp6E3M2),
    Format::Mx(MxFormat::MxInt8),
    Format::NvFp4,
    Format::Smx(SmxFormat::Smx9),
    Format::Smx(SmxFormat::Smx6),
    Format::Smx(SmxFormat::Smx4),
];

fn main() {
    let mut suite = common::suite();
    for format in FORMATS {
        suite.row(format.row("encode", 0.25), |row| encode(row, format));
        suite.row(format.row("decode", 0.5), |row| decode(row, format));
    }
    suite.finish();
}

fn encode(row: Unchecked<'_>, format: Format) -> Checked<'_> {
    let side = row.size(LARGE, SMALL);
    let x = input::weights(side, side, 1);
    let mut matrix = Matrix::new(format, side);
    row.check(|| {
        matrix.encode(&x);
        matrix.assert_encoded(&x);
    })
    .ours_and_memcpy(4 * side * side, || matrix.encode(black_box(&x)))
}

fn decode(row: Unchecked<'_>, format: Format) -> Checked<'_> {
    let side = row.size(LARGE, SMALL);
    let mut matrix = Matrix::new(format, side);
    matrix.encode(&input::weights(side, side, 1));
    let mut out = Aligned::<f32>::zeroed(side * side);
    let decoder = matrix.decoder();
    let decode = |out: &mut [f32]| decoder(square_mut(black_box(out), side));
    row.check(|| {
        decode(&mut out);
        assert!(out.iter().enumerate().all(|(i, out)| *out == matrix.value(i)));
    })
    .ours_and_memcpy(4 * side * side, || decode(&mut out))
}

impl Format {
    /// Elements that share a scale.
    const fn block(self) -> usize {
        match self {
            Self::Mx(_) => MX_BLOCK,
            Self::NvFp4 => NVFP4_BLOCK,
            Self::Smx(_) => SMX_BLOCK,
        }
    }

    /// Bits of a code, which follow each other from the lowest on.
    const fn code_bits(self) -> usize {
        match self {
            Self::Mx(format) => format.code_bits(),
            Self::NvFp4 => 4,
            Self::Smx(format) => format.code_bits(),
        }
    }

    /// Bytes of codes and of scales for each block. Those of shared microexponents lie together.
    const fn block_bytes(self) -> [usize; 2] {
        match self {
            Self::Smx(format) => [format.block_bytes(), 0],
            _ => [self.block() / 8 * self.code_bits(), 1],
        }
    }

    fn row(self, operation: &'static str, share: f64) -> &'static Row {
        let n = (LARGE * LARGE) as u64;
        let packed = n / self.block() as u64 * self.block_bytes().iter().sum::<usize>() as u64;
        let (module, quantizer, name) = match self {
            Self::Mx(format) => ("mx", "MxQuantizer", format.name()),
            Self::NvFp4 => ("nvfp4", "NvFp4Quantizer", "nvfp4"),
            Self::Smx(format) => ("smx", "SmxQuantizer", format.name()),
        };
        let encodes = operation == "encode";
        let what = if encodes { "encode_into(), Saturate," } else { "decode_into()" };
        // They live as long as the process, which ends with the suite.
        Box::leak(Box::new(Row {
            id: format!("{module}/{operation}_{name}").leak(),
            module: quantizer,
            operation: format!("{what} {}", name.to_uppercase()).leak(),
            shape: "4096x4096",
            work: if encodes { Work::bytes(4 * n, packed) } else { Work::bytes(packed, 4 * n) },
            limit: Limit::Copy(Residency::Dram),
            targets: vec![at_least(share)].leak(),
            ..Row::LLM
        }))
    }

    /// The number that a code stands for, in units of its scale.
    fn element(self, code: u8) -> f32 {
        match self {
            Self::Mx(MxFormat::MxFp8E4M3) => E4M3::from_bits(code).to_f32(),
            Self::Mx(MxFormat::MxFp6E3M2) => E3M2::from_bits(code).to_f32(),
            Self::NvFp4 => E2M1::from_bits(code).to_f32(),
            // Two's complement.
            _ => f32::from((code << (8 - self.code_bits())) as i8 >> (8 - self.code_bits())),
        }
    }

    /// The code nearest to `x`.
    fn nearest(self, x: f32) -> u8 {
        let integer =
            |limit: i32| x.round_ties_even().clamp(-limit as f32, limit as f32) as i8 as u8;
        match self {
            Self::Mx(MxFormat::MxFp8E4M3) => E4M3::from_f32(x, Overflow::Saturate).to_bits(),
            Self::Mx(MxFormat::MxFp6E3M2) => E3M2::from_f32(x, Overflow::Saturate).to_bits(),
            Self::NvFp4 => E2M1::from_f32(x, Overflow::Saturate).to_bits(),
            _ => integer((1 << (self.code_bits() - 1)) - 1) & (0xff >> (8 - self.code_bits())),
        }
    }
}

/// Writes the values of a matrix that is there.
type Decoder<'a> = dyn Fn(ArrayViewMut2<'_, f32>) + 'a;

/// A square matrix in one of the formats.
struct Matrix {
    format: Format,
    side: usize,
    codes: Aligned<u8>,
    scales: Aligned<u8>,
    global: GlobalScale,
}

impl Matrix {
    fn new(format: Format, side: usize) -> Self {
        let [codes, scales] =
            format.block_bytes().map(|n| Aligned::zeroed(side * side / format.block() * n));
        Self { format, side, codes, scales, global: GlobalScale::Multiply(1.0) }
    }

    fn encode(&mut self, x: &[f32]) {
        let Self { format, side, codes, scales, global } = self;
        let (x, non_finite) = (square(x, *side), SATURATE);
        match *format {
            Format::Mx(format) => MxQuantizer { format, non_finite, ..MxQuantizer::default() }
                .encode_into(x, codes, scales),
            Format::NvFp4 => NvFp4Quantizer { non_finite, ..NvFp4Quantizer::default() }
                .encode_into(x, codes, scales)
                .map(|of_tensor| *global = of_tensor),
            Format::Smx(format) => SmxQuantizer { format, non_finite }.encode_into(x, codes),
        }
        .expect("whole blocks");
    }

    /// Writes the values. What views check of their bytes is no part of that.
    fn decoder(&self) -> Box<Decoder<'_>> {
        let Self { format, side, codes, scales, global } = self;
        let (shape, valid, same) = ([*side; 2], "as encoded", "same shape");
        match *format {
            Format::Mx(format) => {
                let view = MxView::new(format, shape, codes, scales).expect(valid);
                Box::new(move |out| view.decode_into(out).expect(same))
            }
            Format::NvFp4 => {
                let view = NvFp4View::new(shape, codes, scales, *global).expect(valid);
                Box::new(move |out| view.decode_into(out).expect(same))
            }
            Format::Smx(format) => {
                let view = SmxView::new(format, shape, codes).expect(valid);
                Box::new(move |out| view.decode_into(out).expect(same))
            }
        }
    }

    /// The scale of element `i`, by the definition of the format.
    fn scale(&self, i: usize) -> f32 {
        let (block, within) = (i / self.format.block(), i % self.format.block());
        match self.format {
            Format::Mx(MxFormat::MxInt8) => E8M0::from_bits(self.scales[block]).to_f32() / 64.0,
            Format::Mx(_) => E8M0::from_bits(self.scales[block]).to_f32(),
            Format::NvFp4 => E4M3::from_bits(self.scales[block]).to_f32() * self.global.value(),
            Format::Smx(format) => {
                let [exponent, halved] =
                    [0, 1].map(|j| self.codes[block * format.block_bytes() + j]);
                let halved = i32::from(halved >> (within / 2) & 1);
                2f32.powi(i32::from(exponent) - 127 - halved - (format.code_bits() as i32 - 2))
            }
        }
    }

    /// The code of element `i`.
    fn code(&self, i: usize) -> u8 {
        let (n_bits, block) = (self.format.code_bits(), self.format.block());
        let header = if let Format::Smx(_) = self.format { 2 } else { 0 };
        let bytes = &self.codes[i / block * self.format.block_bytes()[0] + header..];
        let at = i % block * n_bits;
        let of_bit = |j: usize| bytes[(at + j) / 8] >> ((at + j) % 8) & 1;
        (0..n_bits).fold(0, |code, j| code | of_bit(j) << j)
    }

    fn value(&self, i: usize) -> f32 {
        self.format.element(self.code(i)) * self.scale(i)
    }

    /// Asserts the scales by their rule, and the codes by the definition, given these.
    fn assert_encoded(&self, x: &[f32]) {
        let exponent = |x: f32| x.log2().floor();
        let largest = |x: &[f32]| x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        if self.format == Format::NvFp4 {
            assert_eq!(self.global, GlobalScale::Multiply(largest(x) / (E4M3::MAX * E2M1::MAX)));
        }
        for (block, x) in x.chunks(self.format.block()).enumerate() {
            let (first, amax) = (block * self.format.block(), largest(x));
            match self.format {
                Format::Mx(format) => {
                    let want = exponent(amax) - exponent(format.max()) + 127.0;
                    assert_eq!(f32::from(self.scales[block]), want);
                }
                Format::NvFp4 => {
                    let want = amax / E2M1::MAX / self.global.value();
                    let want = E4M3::from_f32(want, Overflow::Saturate).to_bits();
                    assert_eq!(self.scales[block], want);
                }
                Format::Smx(format) => {
                    for (pair, x) in x.chunks(2).enumerate() {
                        let halved = exponent(largest(x)) < exponent(amax);
                        let steps = exponent(amax) - f32::from(u8::from(halved)) + 2.0;
                        let want = (steps - format.code_bits() as f32).exp2();
                        assert_eq!(self.scale(first + 2 * pair), want);
                    }
                }
            }
            for (i, x) in (first..).zip(x) {
                assert_eq!(
                    self.code(i),
                    self.format.nearest(x * self.scale(i).recip()),
                    "{i}: {x}"
                );
            }
        }
    }
}
