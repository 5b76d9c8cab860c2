//! What each format of squish-quant does to the trained checkpoint: error of the weights, rate of decoding, and perplexity
//! on held-out prose and code.
//!
//! All matrices of the layers pass through a format and back; embedding (here also the head) and norms stay as they are.
//! `cargo bench -p squish-model --bench fixture` writes the table for `cargo xtask bench`; `--quick` after `--` takes two texts
//! of each kind instead of sixteen. Without `--bench`, as under `cargo test --benches`, a short piece of one text runs through
//! each format, and nothing is written.

use std::{
    fs,
    num::NonZero,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use serde_json::Value;
use squish_bench::{Fixture, FixtureRow, black_box};
use squish_model::{Kind, Nll, Reference, Tokenizer, Weights, perplexity};
use squish_quant::{
    Fp8Format, Fp8Quantizer, Fp8Tensor, Granularity, IntFormat, IntQuantizer, IntTensor,
    MxQuantizer, MxTensor, ScaleRule, Symmetry,
    ndarray::{ArrayView2, ArrayViewMut2},
};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tiny");

/// How much is measured.
#[derive(Clone, Copy)]
struct Effort {
    /// Texts of each kind.
    texts_per_kind: usize,
    /// Tokens of a text at most.
    tokens_per_text: usize,
    /// Times that all matrices are decoded.
    rounds_of_decoding: usize,
}

const FULL: Effort = Effort { texts_per_kind: 16, tokens_per_text: 512, rounds_of_decoding: 15 };
const QUICK: Effort = Effort { texts_per_kind: 2, tokens_per_text: 512, rounds_of_decoding: 5 };
const TEST: Effort = Effort { texts_per_kind: 1, tokens_per_text: 48, rounds_of_decoding: 1 };

/// A matrix in some format.
trait Packed {
    fn n_bytes(&self) -> usize;
    fn decode_into(&self, out: ArrayViewMut2<'_, f32>);
}

macro_rules! packed {
    ($($tensor:ty)*) => {$(
        impl Packed for $tensor {
            fn n_bytes(&self) -> usize {
                <$tensor>::n_bytes(self)
            }

            fn decode_into(&self, out: ArrayViewMut2<'_, f32>) {
                <$tensor>::decode_into(self, out).expect("the buffer has the shape of the matrix");
            }
        }
    )*};
}
packed!(Fp8Tensor MxTensor IntTensor);

type Encode = Box<dyn Fn(ArrayView2<'_, f32>) -> Box<dyn Packed>>;

/// The formats by name, in the order of printing.
fn formats() -> Vec<(String, Encode)> {
    let mut all = Vec::new();
    for format in [Fp8Format::E4M3, Fp8Format::E5M2] {
        for (scales, granularity) in [
            ("per tensor", Granularity::Tensor),
            ("per channel", Granularity::Channel),
            ("blocks of 128", Granularity::Block1d(128)),
            ("blocks of 128x128", Granularity::Block2d { rows: 128, cols: 128 }),
        ] {
            let quantizer = Fp8Quantizer { format, granularity, ..Default::default() };
            let encode: Encode =
                Box::new(move |x| Box::new(quantizer.encode(x).expect("finite weights")));
            all.push((format!("fp8 {}, {scales}", format.name()), encode));
        }
    }
    for rule in
        [ScaleRule::Floor, ScaleRule::Even, ScaleRule::Ceil, ScaleRule::RoundUp, ScaleRule::MinMse]
    {
        let quantizer = MxQuantizer { rule, ..Default::default() };
        let encode: Encode = Box::new(move |x| {
            Box::new(quantizer.encode(x).expect("finite weights in rows of whole blocks"))
        });
        all.push((format!("mxfp4, scales {rule:?}"), encode));
    }
    for (format, symmetry) in [
        (IntFormat::Int8, Symmetry::Symmetric),
        (IntFormat::Int4, Symmetry::Symmetric),
        (IntFormat::Int4, Symmetry::Asymmetric),
    ] {
        for group in [128, 32] {
            let granularity = Granularity::Block1d(group);
            let quantizer = IntQuantizer { format, granularity, symmetry, ..Default::default() };
            let encode: Encode = Box::new(move |x| {
                Box::new(quantizer.encode(x).expect("finite weights in rows of even length"))
            });
            let zero_point = if symmetry == Symmetry::Symmetric { "" } else { " with zero points" };
            all.push((format!("{}{zero_point}, groups of {group}", format.name()), encode));
        }
    }
    all
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| args.iter().any(|arg| arg == name);
    if has("--list") {
        return;
    }
    let effort = match (has("--bench") && !has("--test"), has("--quick")) {
        (false, _) => TEST,
        (true, true) => QUICK,
        (true, false) => FULL,
    };

    // Encoding and decoding are on one thread, whether squish-quant was built to use more or not.
    rayon_core::ThreadPoolBuilder::new()
        .num_threads(1)
        .build_global()
        .expect("the first pool of the process");
    let model = Reference::open(format!("{FIXTURES}/base")).expect("the fixture is a checkpoint");
    let tokenizer = Tokenizer::from_file(format!("{FIXTURES}/base/tokenizer.json"))
        .expect("the fixture has a tokenizer");
    let [prose, code] = ["prose", "code"].map(|kind| texts(kind, &tokenizer, effort));
    let weights = model.weights().clone();

    let exact = row("bf16, as stored", &model, &prose, &code);
    let mut rows = vec![FixtureRow { bits_per_weight: 16.0, ..exact }];
    for (name, encode) in formats() {
        let passed = pass(&weights, &encode, effort);
        let row = FixtureRow {
            bits_per_weight: passed.bits_per_weight,
            snr_db: Some(passed.snr_db),
            relative_error: passed.relative_error,
            decode_gbps: (passed.decode_gbps > 0.0).then_some(passed.decode_gbps),
            ..row(&name, &Reference::new(passed.weights), &prose, &code)
        };
        check(&row, &rows[0]);
        rows.push(row);
    }
    if effort.tokens_per_text < FULL.tokens_per_text {
        return;
    }

    let n_scored = |texts: &[Vec<u32>]| texts.iter().map(|text| text.len() - 1).sum::<usize>();
    let note = format!(
        "The trained checkpoint of `fixtures/` (Llama, 4.75 M parameters), computed in f32: all matrices of the layers pass through \
         the format and back, embedding and norms stay bf16. Perplexity per token over the first {} tokens at most of {} texts of prose ({} \
         tokens scored) and {} of code ({}), none of which training saw. Decoding: all matrices one after the other into one buffer, \
         on one thread, bytes read and written, the fastest of {} rounds.",
        effort.tokens_per_text,
        prose.len(),
        n_scored(&prose),
        code.len(),
        n_scored(&code),
        effort.rounds_of_decoding,
    );
    Fixture { rows, note }.write().expect("the folder of results can be written");
}

/// Tokens of texts spread over a held-out file, so that they are of different documents.
fn texts(kind: &str, tokenizer: &Tokenizer, effort: Effort) -> Vec<Vec<u32>> {
    let lines = fs::read_to_string(format!("{FIXTURES}/heldout/{kind}.jsonl"))
        .expect("the fixture has held-out texts");
    let lines: Vec<&str> = lines.lines().collect();
    let tokens = |i: usize| {
        let line: Value = serde_json::from_str(lines[i * lines.len() / effort.texts_per_kind])
            .expect("each line is a JSON object");
        let text = line["text"].as_str().expect("each object has a text");
        let mut tokens = tokenizer.encode(text).expect("any text can be encoded");
        tokens.truncate(effort.tokens_per_text);
        tokens
    };
    (0..effort.texts_per_kind).map(tokens).collect()
}

/// A row with the perplexities of `model`, and exact weights.
fn row(format: &str, model: &Reference, prose: &[Vec<u32>], code: &[Vec<u32>]) -> FixtureRow {
    let [ppl_prose, ppl_code] = [prose, code]
        .map(|texts| total(model, texts).perplexity().expect("each text has more than a token"));
    FixtureRow { format: format.to_owned(), ppl_prose, ppl_code, ..FixtureRow::default() }
}

/// Negative log-likelihood of all texts, taken by as many threads as there are cores. The sum is in the order of the texts.
fn total(model: &Reference, texts: &[Vec<u32>]) -> Nll {
    let n_threads = thread::available_parallelism().map_or(1, NonZero::get).min(texts.len());
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let text_idx = next.fetch_add(1, Ordering::Relaxed);
            let Some(text) = texts.get(text_idx) else { return done };
            done.push((
                text_idx,
                perplexity(model, text, text.len()).expect("texts fit the model"),
            ));
        }
    };
    let mut done: Vec<(usize, Nll)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no text panics")).collect()
    });
    done.sort_unstable_by_key(|(text_idx, _)| *text_idx);
    done.into_iter().map(|(_, nll)| nll).sum()
}

/// Weights that passed through a format, and what that did to them.
struct Passed {
    weights: Weights,
    bits_per_weight: f64,
    snr_db: f64,
    relative_error: f64,
    decode_gbps: f64,
}

/// Passes the matrices of the layers through `encode` and back.
fn pass(exact: &Weights, encode: &Encode, effort: Effort) -> Passed {
    let mut weights = exact.clone();
    let (mut n_weights, mut signal, mut noise) = (0, 0.0, 0.0);
    let mut packed: Vec<([usize; 2], Box<dyn Packed>)> = Vec::new();
    for tensor in weights.tensors_mut().filter(|tensor| tensor.kind() == Kind::Linear) {
        let shape = [tensor.shape()[0], tensor.shape()[1]];
        let before = tensor.data().to_vec();
        let matrix =
            encode(ArrayView2::from_shape(shape, &before).expect("a matrix of that shape"));
        decode(&*matrix, shape, tensor.data_mut());
        for (before, after) in before.iter().zip(tensor.data()) {
            let (before, after) = (f64::from(*before), f64::from(*after));
            signal += before * before;
            noise += (after - before).powi(2);
        }
        n_weights += before.len();
        packed.push((shape, matrix));
    }

    let mut buffer =
        vec![0.0; packed.iter().map(|(shape, _)| shape[0] * shape[1]).max().unwrap_or(0)];
    let n_bytes: usize = packed.iter().map(|(_, matrix)| matrix.n_bytes()).sum();
    let seconds = (0..effort.rounds_of_decoding).map(|_| {
        let start = Instant::now();
        for (shape, matrix) in &packed {
            decode(&**matrix, *shape, black_box(&mut buffer[..shape[0] * shape[1]]));
        }
        start.elapsed().as_secs_f64()
    });
    let fastest = seconds.fold(f64::INFINITY, f64::min);
    Passed {
        weights,
        bits_per_weight: 8.0 * n_bytes as f64 / n_weights as f64,
        snr_db: 10.0 * (signal / noise).log10(),
        relative_error: (noise / signal).sqrt(),
        decode_gbps: (n_bytes + 4 * n_weights) as f64 / fastest / 1e9,
    }
}

fn decode(matrix: &dyn Packed, shape: [usize; 2], out: &mut [f32]) {
    let out = ArrayViewMut2::from_shape(shape, out).expect("a buffer of that shape");
    matrix.decode_into(out);
}

/// What holds for every format worth its bits, so that a fault shows before it gets into a table.
fn check(row: &FixtureRow, exact: &FixtureRow) {
    let name = &row.format;
    let snr = row.snr_db.unwrap_or(f64::INFINITY);
    // Each bit of a uniform quantizer gives 6 dB; scales cost bits and outliers cost steps.
    let least_snr = 2.5 * row.bits_per_weight;
    assert!(
        snr > least_snr && row.bits_per_weight < 9.5,
        "{name}: {snr} dB at {} bits",
        row.bits_per_weight
    );
    for (got, exact) in [(row.ppl_prose, exact.ppl_prose), (row.ppl_code, exact.ppl_code)] {
        let change = (got / exact).ln();
        assert!(change.abs() < 0.35, "{name}: perplexity {got}, {exact} as stored");
    }
}
