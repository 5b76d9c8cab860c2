//! What each format of squish-quant does to the trained checkpoint: error of the weights, rate of decoding, and perplexity
//! on held-out prose and code.
//!
//! All matrices of the layers pass through a format and back; embedding (here also the head) and norms stay as they are.
//! For one granularity of each format, the perplexity is taken once more for each mode of the products with packed weights.
//! `cargo bench -p squish-model --bench fixture` writes the tables for `cargo xtask bench`; `--quick` after `--` takes two texts
//! of each kind instead of sixteen. Without `--bench`, as under `cargo test --benches`, a short piece of one text runs through
//! each format, and nothing is written.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use half::bf16;
use serde_json::Value;
use squish_bench::{Fixture, FixtureMode, FixtureRow, black_box};
use squish_kernels::{Team, cast::narrow_into};
use squish_model::{Kind, Nll, Reference, Tensor, Tokenizer, Weights, perplexity};
use squish_quant::{
    Activation, Fp8Format, Fp8Quantizer, Fp8Tensor, Granularity, IntFormat, IntQuantizer,
    IntTensor, MxQuantizer, MxTensor, PackedMatrix, ScaleRule, Symmetry, Workspace,
    ndarray::{ArrayView2, ArrayViewMut2},
    packed,
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
trait Encoded {
    fn n_bytes(&self) -> usize;
    fn decode_into(&self, out: ArrayViewMut2<'_, f32>);
    fn pack(&self, activation: Activation) -> PackedMatrix;
}

macro_rules! encoded {
    ($($tensor:ty)*) => {$(
        impl Encoded for $tensor {
            fn n_bytes(&self) -> usize {
                <$tensor>::n_bytes(self)
            }

            fn decode_into(&self, out: ArrayViewMut2<'_, f32>) {
                <$tensor>::decode_into(self, out).expect("the buffer has the shape of the matrix");
            }

            fn pack(&self, activation: Activation) -> PackedMatrix {
                PackedMatrix::pack(self, activation).expect("a mode of the format")
            }
        }
    )*};
}
encoded!(Fp8Tensor MxTensor IntTensor);

type Encode = Box<dyn Fn(ArrayView2<'_, f32>) -> Box<dyn Encoded>>;

/// The name of the format that the checkpoint is stored in.
const STORED: &str = "bf16, as stored";

/// Modes to take the perplexity of: none but for one granularity of each format.
fn modes(format: &str) -> &'static [Activation] {
    match format {
        STORED | "fp8 e4m3, per channel" => &[Activation::F32, Activation::Bf16],
        "mxfp4, scales MinMse" => &Activation::ALL,
        "int8, groups of 128" | "int4, groups of 32" | "int4 with zero points, groups of 32" => {
            &[Activation::F32, Activation::Q8]
        }
        _ => &[],
    }
}

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

    let exact = row(STORED, &model, &prose, &code);
    let mut rows = vec![FixtureRow { bits_per_weight: 16.0, ..exact }];
    let pack_stored = |activation| {
        let matrices = weights.tensors().filter(|tensor| tensor.kind() == Kind::Linear);
        matrices.map(|w| (w.name().to_owned(), pack_bf16(w, activation))).collect()
    };
    let mut mode_rows = rows_of_modes(&rows[0], &weights, pack_stored, &prose, &code);
    for (name, encode) in formats() {
        let passed = pass(&weights, &encode, effort);
        let pack = |activation| {
            let matrices = passed.matrices.iter();
            matrices.map(|(name, matrix)| (name.clone(), matrix.pack(activation))).collect()
        };
        let row = FixtureRow {
            bits_per_weight: passed.bits_per_weight,
            snr_db: Some(passed.snr_db),
            relative_error: passed.relative_error,
            decode_gbps: (passed.decode_gbps > 0.0).then_some(passed.decode_gbps),
            ..row(&name, &Reference::new(passed.weights), &prose, &code)
        };
        check(&row, &rows[0]);
        mode_rows.extend(rows_of_modes(&row, &weights, pack, &prose, &code));
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
    Fixture { rows, modes: mode_rows, note }.write().expect("the folder of results can be written");
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

/// Matrices of layers, packed, by name.
type PackedLayers = HashMap<String, PackedMatrix>;

/// The rows of the [`modes`] of a format whose perplexities with decoded weights are those of `decoded`.
fn rows_of_modes(
    decoded: &FixtureRow,
    weights: &Weights,
    pack: impl Fn(Activation) -> PackedLayers,
    prose: &[Vec<u32>],
    code: &[Vec<u32>],
) -> Vec<FixtureMode> {
    let row_of = |&activation: &Activation| {
        let layers = pack(activation);
        let n_bytes: usize = layers.values().map(PackedMatrix::n_bytes).sum();
        let n_weights: usize = layers.values().map(|w| w.shape()[0] * w.shape()[1]).sum();
        let model = packed_model(weights.clone(), layers);
        let FixtureRow { format, ppl_prose, ppl_code, .. } =
            row(&decoded.format, &model, prose, code);
        let mode = activation.name();
        // The order of a sum is all that the exact mode may change.
        let most = if activation == Activation::F32 { 1e-3 } else { 0.05 };
        for (got, want) in [(ppl_prose, decoded.ppl_prose), (ppl_code, decoded.ppl_code)] {
            let change = (got / want).ln();
            assert!(change.abs() < most, "{format}, {mode}: perplexity {got}, {want} decoded");
        }
        let bits_per_weight = 8.0 * n_bytes as f64 / n_weights as f64;
        FixtureMode { format, mode: mode.to_owned(), bits_per_weight, ppl_prose, ppl_code }
    };
    modes(&decoded.format).iter().map(row_of).collect()
}

/// A matrix of the checkpoint as it is stored.
fn pack_bf16(w: &Tensor, activation: Activation) -> PackedMatrix {
    let mut stored = vec![bf16::ZERO; w.data().len()];
    narrow_into(w.data(), &mut stored);
    let bytes: Vec<u8> = stored.into_iter().flat_map(bf16::to_le_bytes).collect();
    let (dense, shape) = (packed::Dense::Bf16, [w.shape()[0], w.shape()[1]]);
    PackedMatrix::pack(packed::Weights::Dense { dense, shape, bytes: &bytes }, activation)
        .expect("a mode of the format")
}

/// The model whose layers multiply by `layers`; of `weights`, only embedding and norms are used.
fn packed_model(weights: Weights, layers: PackedLayers) -> Reference {
    thread_local! {
        // Texts are what runs in parallel, so that products stay on the thread of theirs.
        static WORKSPACE: RefCell<Workspace> =
            RefCell::new(Workspace::new(Arc::new(Team::new(1).expect("no thread is spawned"))));
    }
    Reference::with_products(weights, move |w, x, y| {
        let packed = &layers[w.name()];
        let [n_out, n_in] = packed.shape();
        let n_tokens = x.len() / n_in;
        let x = ArrayView2::from_shape([n_tokens, n_in], x).expect("rows of inputs");
        let y = ArrayViewMut2::from_shape([n_tokens, n_out], y).expect("rows of outputs");
        WORKSPACE
            .with_borrow_mut(|workspace| packed.gemm_into(workspace, x, y))
            .expect("the shapes are those of the matrix");
    })
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
    /// By name.
    matrices: Vec<(String, Box<dyn Encoded>)>,
    bits_per_weight: f64,
    snr_db: f64,
    relative_error: f64,
    decode_gbps: f64,
}

/// Passes the matrices of the layers through `encode` and back.
fn pass(exact: &Weights, encode: &Encode, effort: Effort) -> Passed {
    let mut weights = exact.clone();
    let (mut n_weights, mut signal, mut noise) = (0, 0.0, 0.0);
    let mut encoded: Vec<([usize; 2], Box<dyn Encoded>)> = Vec::new();
    let mut names = Vec::new();
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
        encoded.push((shape, matrix));
        names.push(tensor.name().to_owned());
    }

    let mut buffer =
        vec![0.0; encoded.iter().map(|(shape, _)| shape[0] * shape[1]).max().unwrap_or(0)];
    let n_bytes: usize = encoded.iter().map(|(_, matrix)| matrix.n_bytes()).sum();
    let seconds = (0..effort.rounds_of_decoding).map(|_| {
        let start = Instant::now();
        for (shape, matrix) in &encoded {
            decode(&**matrix, *shape, black_box(&mut buffer[..shape[0] * shape[1]]));
        }
        start.elapsed().as_secs_f64()
    });
    let fastest = seconds.fold(f64::INFINITY, f64::min);
    Passed {
        weights,
        matrices: names.into_iter().zip(encoded.into_iter().map(|(_, matrix)| matrix)).collect(),
        bits_per_weight: 8.0 * n_bytes as f64 / n_weights as f64,
        snr_db: 10.0 * (signal / noise).log10(),
        relative_error: (noise / signal).sqrt(),
        decode_gbps: (n_bytes + 4 * n_weights) as f64 / fastest / 1e9,
    }
}

fn decode(matrix: &dyn Encoded, shape: [usize; 2], out: &mut [f32]) {
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
