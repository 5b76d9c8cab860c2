//! Attention of decode steps and of prefills, by shape and by the type of keys and values.

use std::sync::Arc;

use half::bf16;
use ndarray::Array3;
use squish_attn::{KvArrays, KvElement, Options, Sequence, Team, Workspace};
use squish_bench::{
    Aligned, Checked, Limit, Residency, Row, Suite, Target, Unchecked, Work, black_box, input,
    probe::pin,
};
use squish_kernels::{
    Isa,
    element::{E4M3, Element, Overflow},
    probe as kernels,
};

/// Layers in turn hold so many bytes at least, a dozen times what the last cache level holds.
const ROTATED: usize = 400 << 20;

/// Heads of queries, heads of keys and values, rows, tokens and width of a row.
#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    rows: usize,
    tokens: usize,
    dim: usize,
    window: Option<usize>,
}

const fn decode(heads: usize, kv_heads: usize, tokens: usize, dim: usize) -> Shape {
    Shape { heads, kv_heads, rows: 1, tokens, dim, window: None }
}

impl Shape {
    /// Keys and values that are read, in elements.
    const fn read(self) -> u64 {
        (2 * self.kv_heads * self.tokens * self.dim) as u64
    }

    /// Two multiply-adds for each number of a row of keys and of values that a row of queries meets.
    const fn flops(self) -> u64 {
        // A causal row `i` of `n` sees `tokens - n + i + 1`.
        let seen = self.rows * self.tokens - self.rows * (self.rows - 1) / 2;
        (4 * self.heads * self.dim * seen) as u64
    }
}

const fn peers(torch: f64) -> Target {
    Target::AtLeastTimesPeer { peer: "torch", times: torch }
}

const CANDLE: Target = Target::AtLeastTimesPeer { peer: "candle", times: 5.0 };

const fn of_read(share: f64) -> Target {
    Target::AtLeastShareOfProbe { probe: "read", share }
}

const SEQ_512: Shape = decode(8, 8, 512, 64);
const SEQ_64: Shape = decode(8, 8, 64, 64);
const GQA: Shape = decode(8, 2, 32, 64);
const WINDOW: Shape = Shape { window: Some(128), ..decode(8, 2, 128, 64) };
const LLAMA: Shape = decode(32, 8, 8192, 128);
const PREFILL: Shape = Shape { rows: 2048, ..decode(32, 8, 2048, 128) };

const DECODE_512: Row = Row {
    id: "flash_decode/decode_seq512",
    module: "Workspace",
    operation: "attend: decode, f32",
    shape: "8x512x64",
    work: Work::bytes(4 * SEQ_512.read(), 0).with_flops(SEQ_512.flops()),
    limit: Limit::Read(Residency::L3),
    targets: &[of_read(0.6), peers(2.0), CANDLE],
    ..Row::SEED
};
const DECODE_64: Row = Row {
    id: "flash_decode/decode_seq64",
    shape: "8x64x64",
    work: Work::bytes(4 * SEQ_64.read(), 0).with_flops(SEQ_64.flops()),
    limit: Limit::Read(Residency::L2),
    targets: &[peers(2.0)],
    ..DECODE_512
};
const GQA_32: Row = Row {
    id: "gqa/attention",
    shape: "8q2kv_32x64",
    work: Work::bytes(4 * GQA.read(), 0).with_flops(GQA.flops()),
    limit: Limit::Fma,
    targets: &[Target::AtLeastShareOfLimit { share: 0.5 }, peers(2.0)],
    ..DECODE_512
};
const WINDOW_128: Row = Row {
    id: "sliding_window/attention",
    operation: "attend: decode, f32, window 128",
    shape: "8q2kv_128x64",
    work: Work::bytes(4 * WINDOW.read(), 0).with_flops(WINDOW.flops()),
    limit: Limit::Fma,
    targets: &[Target::AtLeastShareOfLimit { share: 0.5 }, peers(2.0)],
    ..DECODE_512
};

const LLAMA_F32: Row = Row {
    id: "attention/decode_f32",
    module: "Workspace",
    operation: "attend: decode, f32",
    shape: "32q8kv_8192x128",
    work: Work::bytes(4 * LLAMA.read(), 0).with_flops(LLAMA.flops()),
    limit: Limit::Read(Residency::Dram),
    targets: &[of_read(0.75), peers(2.0), CANDLE],
    ..Row::LLM
};
const LLAMA_BF16: Row = Row {
    id: "attention/decode_bf16",
    operation: "attend: decode, bf16",
    work: Work::bytes(2 * LLAMA.read(), 0).with_flops(LLAMA.flops()),
    targets: &[of_read(0.80), peers(2.0)],
    ..LLAMA_F32
};
/// How a step grows with the tokens before it.
const fn by_length(shape: &'static str, tokens: usize) -> Row {
    let read = decode(32, 8, tokens, 128);
    Row {
        shape,
        work: Work::bytes(2 * read.read(), 0).with_flops(read.flops()),
        targets: &[],
        ..LLAMA_BF16
    }
}

static BY_LENGTH: [(Row, usize); 3] = [
    (by_length("32q8kv_512x128", 512), 512),
    (by_length("32q8kv_2048x128", 2048), 2048),
    (by_length("32q8kv_32768x128", 32768), 32768),
];

const LLAMA_INT8: Row = Row {
    id: "attention/decode_int8",
    operation: "attend: decode, int8 with a scale a row",
    work: Work::bytes(LLAMA.read(), 0).with_flops(LLAMA.flops()),
    targets: &[],
    ..LLAMA_F32
};
const LLAMA_FP8: Row = Row {
    id: "attention/decode_e4m3",
    operation: "attend: decode, E4M3 with a scale a row",
    ..LLAMA_INT8
};
const LLAMA_BF16_T2: Row =
    Row { shape: "32q8kv_8192x128_t2", threads: 2, targets: &[of_read(0.75)], ..LLAMA_BF16 };
const PREFILL_2048: Row = Row {
    id: "attention/prefill_f32",
    operation: "attend: causal prefill, f32",
    shape: "32q8kv_2048x128",
    work: Work::bytes(4 * PREFILL.read(), 0).with_flops(PREFILL.flops()),
    limit: Limit::Fma,
    targets: &[Target::AtLeastShareOfLimit { share: 0.5 }, peers(1.0)],
    ..LLAMA_F32
};

fn main() {
    let mut suite = Suite::new();
    let [one, two] = [1, 2].map(|n| {
        let pinned = |idx| {
            pin(idx);
        };
        Arc::new(Team::with_hook(n, pinned).expect("threads"))
    });
    pin(0);
    let float = |x: f32| x;
    for (row, shape) in
        [(&DECODE_512, SEQ_512), (&DECODE_64, SEQ_64), (&GQA_32, GQA), (&WINDOW_128, WINDOW)]
    {
        suite.row(row, |row| attend(row, shape, 1, float, None, &one));
    }
    let layers = |bytes: u64| (ROTATED as u64 / (bytes * LLAMA.read()) + 1) as usize;
    for (row, tokens) in &BY_LENGTH {
        let shape = decode(32, 8, *tokens, 128);
        let n_layers = (ROTATED as u64 / (2 * shape.read()) + 1) as usize;
        suite.row(row, |row| attend(row, shape, n_layers, bf16::from_f32, None, &one));
    }
    suite.row(&LLAMA_F32, |row| attend(row, LLAMA, layers(4), float, None, &one));
    suite.row(&LLAMA_BF16, |row| attend(row, LLAMA, layers(2), bf16::from_f32, None, &one));
    suite.row(&LLAMA_BF16_T2, |row| attend(row, LLAMA, layers(2), bf16::from_f32, None, &two));
    suite.row(&LLAMA_INT8, |row| {
        attend(
            row,
            LLAMA,
            layers(1),
            |x| (127.0 * (x / 4.0).clamp(-1.0, 1.0)) as i8,
            Some(4.0 / 127.0),
            &one,
        )
    });
    suite.row(&LLAMA_FP8, |row| {
        attend(row, LLAMA, layers(1), |x| E4M3::from_f32(x, Overflow::Saturate), Some(1.0), &one)
    });
    suite.row(&PREFILL_2048, |row| attend(row, PREFILL, 1, float, None, &one));
    suite.finish();
}

/// Times rows that attend to keys and values `[heads, tokens, width]` of one layer after another.
fn attend<'s, E: KvElement>(
    row: Unchecked<'s>,
    shape: Shape,
    n_layers: usize,
    encode: impl Fn(f32) -> E,
    scale: Option<f32>,
    team: &Arc<Team>,
) -> Checked<'s> {
    let tokens = row.size(shape.tokens, shape.tokens.min(96));
    let n_rows = shape.rows.min(tokens);
    let n_layers = row.size(n_layers, 1);
    let n = shape.kv_heads * tokens * shape.dim;
    let encoded = |seed| {
        let x = input::normal(n, seed);
        Aligned::from_fn(n, |i| encode(x[i]))
    };
    let (keys, values) = (encoded(1), encoded(2));
    let copies: Vec<[Aligned<E>; 2]> =
        (0..n_layers).map(|_| [keys.clone(), values.clone()]).collect();
    let scales = scale.map(|scale| vec![scale; shape.kv_heads * tokens]);
    let sources: Vec<KvArrays<'_, E>> = copies
        .iter()
        .map(|[keys, values]| {
            let dims = [shape.dim; 2];
            let source = KvArrays::new([keys, values], shape.kv_heads, tokens, dims);
            let source = source.expect("as many numbers as rows have");
            scales.as_ref().map_or(source, |scales| {
                source.with_scales([scales, scales]).expect("one for each row")
            })
        })
        .collect();
    let queries = input::normal(n_rows * shape.heads * shape.dim, 3).to_vec();
    let queries = Array3::from_shape_vec((n_rows, shape.heads, shape.dim), queries).expect("shape");
    let mut out = Array3::zeros(queries.dim());
    let options = Options { window: shape.window, ..Options::default() };
    let mut workspace = Workspace::new(Arc::clone(team));
    let row = row.check(|| {
        let sequences = [Sequence::causal(&sources[0], n_rows)];
        workspace.attend_into(queries.view(), &sequences, &options, out.view_mut()).expect("fits");
        let decoded = |data: &[E]| -> Vec<f64> {
            data.iter().map(|x| f64::from(x.to_f32()) * f64::from(scale.unwrap_or(1.0))).collect()
        };
        assert_rows(shape, tokens, &queries, [&decoded(&keys), &decoded(&values)], &out);
    });
    let mut turn = sources.iter().cycle();
    let ours = || {
        let sequences = [Sequence::causal(black_box(turn.next().expect("a layer")), n_rows)];
        workspace
            .attend_into(queries.view(), &sequences, &options, out.view_mut())
            .expect("as checked");
    };
    if n_rows > 1 {
        let mut ours = ours;
        return row.ours(|bench| bench.iter(&mut ours));
    }
    let isa = Isa::detect();
    let mut turn_to_read = copies.iter().cycle().skip(n_layers / 2);
    let n_bytes = 2 * n * size_of::<E>();
    row.ours_and_probe("read", n_bytes as u64, ours, || {
        let copy = black_box(turn_to_read.next().expect("a layer"));
        let mut parts = [(&[][..], 0); 16];
        let all = copy.iter().flat_map(|data| {
            let bytes: &[u8] = E::as_bytes(data);
            bytes.chunks(bytes.len().div_ceil(8).max(1))
        });
        for (part, bytes) in parts.iter_mut().zip(all) {
            part.0 = bytes;
        }
        team.for_each(&mut parts, |(bytes, any)| *any = kernels::read_bytes(isa, bytes));
        parts.iter().fold(0, |all, (_, any)| all | any)
    })
}

/// Asserts a sample of rows and heads against the definition in f64.
fn assert_rows(
    shape: Shape,
    tokens: usize,
    queries: &Array3<f32>,
    [keys, values]: [&[f64]; 2],
    out: &Array3<f32>,
) {
    let (n_rows, dim) = (queries.dim().0, shape.dim);
    for i in 0..4 {
        let (row, head) = (i * (n_rows - 1) / 3, i * (shape.heads - 1) / 3);
        let kv_head = head / (shape.heads / shape.kv_heads);
        let seen = tokens - n_rows + row + 1;
        let at = |token: usize| (kv_head * tokens + token) * dim;
        let scores: Vec<f64> = (0..seen)
            .map(|token| {
                let key = &keys[at(token)..][..dim];
                let dot: f64 = (0..dim).map(|e| f64::from(queries[[row, head, e]]) * key[e]).sum();
                dot / (dim as f64).sqrt()
            })
            .collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
        for column in 0..dim {
            let weighted =
                |(token, s): (usize, &f64)| (s - most).exp() / sum * values[at(token) + column];
            let exact: f64 = scores.iter().enumerate().map(weighted).sum();
            let got = f64::from(out[[row, head, column]]);
            assert!((got - exact).abs() < 1e-5, "row {row}, head {head}: {got} is not {exact}");
        }
    }
}
