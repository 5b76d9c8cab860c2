//! What each granularity and scale rule of squish-quant does: error of the weights, and perplexity.

use std::collections::HashMap;

use squish_bench::{Cell, Format, Section};
use squish_model::{DenseTensor, Error, KvType, Projection, TensorSource};
use squish_quant::{
    Dense, Fp8Format, Fp8Quantizer, Fp8Tensor, Granularity, IntFormat, IntQuantizer, IntTensor,
    MxFormat, MxQuantizer, MxTensor, NvFp4Quantizer, NvFp4Tensor, ScaleRule, SmxFormat,
    SmxQuantizer, SmxTensor, Symmetry, ndarray::ArrayView2,
};

use crate::setup::{Kind, Setup, load, ppl};

/// Kinds of text whose perplexity is taken.
const KINDS: [Kind; 2] = [Kind::Prose, Kind::Code];

pub(crate) fn sections(setup: &Setup) -> Vec<Section> {
    let note = format!(
        "The matrices of the layers pass through a format and back, embedding, head and norms stay bf16; products in f32, f32 keys and \
         values. Perplexity on {}. The signal-to-noise ratio and the relative error are of the weights: norm of the error over norm of \
         the weights. How fast formats decode is in BENCHMARKS.md.",
        setup.texts_note(&KINDS)
    );
    let mut section = Section::new(
        "formats",
        "Granularities and scale rules",
        note,
        &[
            ("format", Format::Text),
            ("bits per weight", Format::Fixed(2)),
            ("SNR, dB", Format::Fixed(1)),
            ("relative error", Format::Scientific),
            ("perplexity, prose", Format::Fixed(3)),
            ("perplexity, code", Format::Fixed(3)),
        ],
    );
    let ppl_of = |source: &dyn TensorSource| {
        let mut runner = setup.runner(load(source, &setup.config), KvType::F32);
        KINDS.map(|kind| ppl(setup.nll(&mut runner, kind)))
    };
    let exact = ppl_of(setup.source());
    let [prose, code] = exact;
    section.push([
        "bf16, as stored".into(),
        16.0.into(),
        Cell::Empty,
        0.0.into(),
        prose.into(),
        code.into(),
    ]);
    for (name, encode) in formats() {
        let passed = Passed::new(setup, &encode);
        let ppls = ppl_of(&passed);
        check(&name, &passed, ppls, exact);
        let Passed { bits_per_weight, snr_db, relative_error, .. } = passed;
        let numbers = [bits_per_weight, snr_db, relative_error].into_iter().chain(ppls);
        section.push([Cell::from(name)].into_iter().chain(numbers.map(Cell::from)));
    }
    vec![section]
}

/// Bytes of an encoded matrix and its values, decoded.
type Encode = Box<dyn Fn(ArrayView2<'_, f32>) -> (usize, Vec<f32>)>;

/// A matrix in some format.
trait Encoded {
    fn bytes_and_values(&self) -> (usize, Vec<f32>);
}

macro_rules! encoded {
    ($($tensor:ty)*) => {$(
        impl Encoded for $tensor {
            fn bytes_and_values(&self) -> (usize, Vec<f32>) {
                (self.n_bytes(), self.decode().into_raw_vec_and_offset().0)
            }
        }
    )*};
}
encoded!(Fp8Tensor MxTensor NvFp4Tensor SmxTensor IntTensor);

/// The formats by name, in the order of printing.
fn formats() -> Vec<(String, Encode)> {
    let mut all: Vec<(String, Encode)> = Vec::new();
    for format in [Fp8Format::E4M3, Fp8Format::E5M2] {
        for (scales, granularity) in [
            ("per tensor", Granularity::Tensor),
            ("per channel", Granularity::Channel),
            ("blocks of 128", Granularity::Block1d(128)),
            ("blocks of 128x128", Granularity::Block2d { rows: 128, cols: 128 }),
        ] {
            let quantizer = Fp8Quantizer { format, granularity, ..Default::default() };
            all.push((
                format!("fp8 {}, {scales}", format.name()),
                Box::new(move |x| quantizer.encode(x).expect(FINITE).bytes_and_values()),
            ));
        }
    }
    for rule in
        [ScaleRule::Floor, ScaleRule::Even, ScaleRule::Ceil, ScaleRule::RoundUp, ScaleRule::MinMse]
    {
        let quantizer = MxQuantizer { rule, ..Default::default() };
        all.push((
            format!("mxfp4, scales {rule:?}"),
            Box::new(move |x| quantizer.encode(x).expect(FINITE).bytes_and_values()),
        ));
    }
    for format in MxFormat::ALL.into_iter().filter(|&format| format != MxFormat::MxFp4) {
        for rule in [ScaleRule::Floor, ScaleRule::MinMse] {
            let quantizer = MxQuantizer { format, rule, ..Default::default() };
            all.push((
                format!("{}, scales {rule:?}", format.name()),
                Box::new(move |x| quantizer.encode(x).expect(FINITE).bytes_and_values()),
            ));
        }
    }
    all.push((
        "nvfp4".to_owned(),
        Box::new(|x| NvFp4Quantizer::default().encode(x).expect(FINITE).bytes_and_values()),
    ));
    for format in SmxFormat::ALL {
        let quantizer = SmxQuantizer { format, ..Default::default() };
        all.push((
            format!("{}, shared microexponents", format.name()),
            Box::new(move |x| quantizer.encode(x).expect(FINITE).bytes_and_values()),
        ));
    }
    for (format, symmetry) in [
        (IntFormat::Int8, Symmetry::Symmetric),
        (IntFormat::Int4, Symmetry::Symmetric),
        (IntFormat::Int4, Symmetry::Asymmetric),
    ] {
        for group in [128, 32] {
            let granularity = Granularity::Block1d(group);
            let quantizer = IntQuantizer { format, granularity, symmetry, ..Default::default() };
            let zero_point = if symmetry == Symmetry::Symmetric { "" } else { " with zero points" };
            all.push((
                format!("{}{zero_point}, groups of {group}", format.name()),
                Box::new(move |x| quantizer.encode(x).expect(FINITE).bytes_and_values()),
            ));
        }
    }
    all
}

const FINITE: &str = "finite weights in rows of whole blocks";

/// A checkpoint whose layers passed through a format, and what that did to them.
struct Passed<'a> {
    setup: &'a Setup,
    /// By name.
    matrices: HashMap<String, DenseTensor>,
    bits_per_weight: f64,
    snr_db: f64,
    relative_error: f64,
}

impl<'a> Passed<'a> {
    fn new(setup: &'a Setup, encode: &Encode) -> Self {
        let (mut n_weights, mut n_bytes, mut signal, mut noise) = (0, 0, 0.0, 0.0);
        let mut matrices = HashMap::new();
        for layer in 0..setup.config.n_layers() {
            for projection in Projection::OF_LAYER {
                let name = format!("{}.weight", projection.module(layer));
                let shape = projection.shape(&setup.config);
                let tensor = setup.source().tensor(&name, &shape).expect("a matrix of a layer");
                let before = tensor.to_f32();
                let matrix = ArrayView2::from_shape(shape, &before).expect("a whole matrix");
                let (n_bytes_here, after) = encode(matrix);
                for (before, after) in before.iter().zip(&after) {
                    let (before, after) = (f64::from(*before), f64::from(*after));
                    signal += before * before;
                    noise += (after - before).powi(2);
                }
                n_weights += before.len();
                n_bytes += n_bytes_here;
                let bytes = after.iter().flat_map(|x| x.to_le_bytes()).collect();
                matrices.insert(name, DenseTensor::new(Dense::F32, bytes));
            }
        }
        Self {
            setup,
            matrices,
            bits_per_weight: 8.0 * n_bytes as f64 / n_weights as f64,
            snr_db: 10.0 * (signal / noise).log10(),
            relative_error: (noise / signal).sqrt(),
        }
    }
}

impl TensorSource for Passed<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<DenseTensor, Error> {
        match self.matrices.get(name) {
            Some(matrix) => Ok(matrix.clone()),
            None => self.setup.source().tensor(name, shape),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.setup.source().has(name)
    }
}

/// What holds for every format worth its bits, so that a fault shows before it gets into a table.
fn check(name: &str, passed: &Passed<'_>, ppls: [f64; 2], exact: [f64; 2]) {
    let Passed { bits_per_weight: bits, snr_db, .. } = passed;
    // Each bit of a uniform quantizer gives 6 dB; scales cost bits and outliers cost steps.
    assert!(*snr_db > 2.5 * bits && *bits < 9.5, "{name}: {snr_db} dB at {bits} bits");
    for (got, exact) in ppls.into_iter().zip(exact) {
        let change = (got / exact).ln();
        assert!(change.abs() < 0.35, "{name}: perplexity {got}, {exact} as stored");
    }
}
