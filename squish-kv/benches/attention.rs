//! Decode steps that read keys and values from blocks where they lie. One thread.

use std::sync::Arc;

use squish_attn::{Options, Sequence, Team, Workspace};
use squish_bench::{
    Checked, Limit, Residency, Row, Suite, Target, Unchecked, Work, black_box, input, probe::pin,
};
use squish_kernels::{Isa, probe as kernels};
use squish_kv::{
    GqaCache, KvElement, KvShape, KvSource, PagedKvCache, Retention, Scaling, SequenceId, bf16,
    ndarray::{Array3, ArrayView3},
};

/// Tokens of a block.
const BLOCK: usize = 32;

/// Bytes of keys and values that are read in turn at least, a dozen times what the last cache level holds.
const ROTATED: usize = 400 << 20;

/// Heads of queries, heads of keys, tokens and width.
#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    tokens: usize,
    dim: usize,
}

impl Shape {
    const fn numbers(self) -> u64 {
        (2 * self.kv_heads * self.tokens * self.dim) as u64
    }

    const fn flops(self) -> u64 {
        (4 * self.heads * self.tokens * self.dim) as u64
    }
}

const LLAMA: Shape = Shape { heads: 32, kv_heads: 8, tokens: 8192, dim: 128 };
const SMALL: Shape = Shape { heads: 8, kv_heads: 8, tokens: 512, dim: 64 };

static LLAMA_BF16: Row = Row {
    id: "attention/decode_bf16_paged",
    module: "PagedKvCache",
    operation: "attend: decode, bf16 in blocks",
    shape: "32q8kv_8192x128",
    work: Work::bytes(2 * LLAMA.numbers(), 0).with_flops(LLAMA.flops()),
    limit: Limit::Read(Residency::Dram),
    targets: &[Target::AtLeastShareOfProbe { probe: "read", share: 0.7 }],
    note: "blocks of 32 in no order",
    ..Row::LLM
};

static SMALL_F32: Row = Row {
    id: "attention/decode_f32_paged",
    operation: "attend: decode, f32 in blocks",
    shape: "8x512x64",
    work: Work::bytes(4 * SMALL.numbers(), 0).with_flops(SMALL.flops()),
    limit: Limit::Read(Residency::L3),
    targets: &[Target::AtMostTimesProbe { probe: "contiguous", times: 1.1 }],
    note: "as above; the probe is the same call on a cache in one piece",
    ..LLAMA_BF16
};

fn main() {
    let mut suite = Suite::new();
    pin(0);
    suite.row(&LLAMA_BF16, from_memory);
    suite.row(&SMALL_F32, beside_contiguous);
    suite.finish();
}

fn rows(n_tokens: usize, n_heads: usize, dim: usize, seed: u64) -> Array3<f32> {
    let numbers = input::normal(n_tokens * n_heads * dim, seed).to_vec();
    Array3::from_shape_vec((n_tokens, n_heads, dim), numbers).expect("as many")
}

/// A sequence of one layer whose blocks lie in no order, for each of `n_copies`.
fn filled<E: KvElement>(shape: Shape, n_copies: usize) -> (PagedKvCache<E>, Vec<SequenceId>) {
    let Shape { kv_heads, tokens, dim, .. } = shape;
    let n_blocks = n_copies * tokens.div_ceil(BLOCK);
    let layer = KvShape::new(1, kv_heads, dim);
    let mut cache =
        PagedKvCache::<E>::new(layer, n_blocks, BLOCK, Scaling::Dynamic).expect("memory");
    // Blocks are taken in the order of their return.
    let one = rows(1, kv_heads, dim, 0);
    let mut ids: Vec<SequenceId> = (0..n_blocks)
        .map(|_| {
            let id = cache.create(Retention::All).expect("a sequence");
            cache.append(id, one.view(), one.view()).expect("room");
            id
        })
        .collect();
    let mut state = 1_u64;
    for last in (1..ids.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ids.swap(last, (state >> 33) as usize % (last + 1));
    }
    for id in ids {
        cache.free(id).expect("alive");
    }
    let (k, v) = (rows(tokens, kv_heads, dim, 1), rows(tokens, kv_heads, dim, 2));
    let ids = (0..n_copies)
        .map(|_| {
            let id = cache.create(Retention::All).expect("a sequence");
            cache.append(id, k.view(), v.view()).expect("room");
            id
        })
        .collect();
    (cache, ids)
}

fn in_one_piece<E: KvElement>(shape: Shape) -> GqaCache<E> {
    let Shape { kv_heads, tokens, dim, .. } = shape;
    let layer = KvShape::new(1, kv_heads, dim);
    let mut cache = GqaCache::<E>::new(layer, tokens, Scaling::Dynamic).expect("memory");
    let (k, v) = (rows(tokens, kv_heads, dim, 1), rows(tokens, kv_heads, dim, 2));
    cache.append(k.view(), v.view()).expect("room");
    cache
}

fn attend(
    workspace: &mut Workspace,
    queries: ArrayView3<'_, f32>,
    source: &impl KvSource,
    out: &mut Array3<f32>,
) {
    let batch = [Sequence::causal(black_box(source), 1)];
    workspace.attend_into(queries, &batch, &Options::default(), out.view_mut()).expect("fits");
}

/// Cold: one sequence after the other.
fn from_memory(row: Unchecked<'_>) -> Checked<'_> {
    let shape = Shape { tokens: row.size(LLAMA.tokens, 100), ..LLAMA };
    let n_bytes = 2 * shape.numbers() as usize;
    let (cache, ids) = filled::<bf16>(shape, row.size(ROTATED / n_bytes + 1, 2));
    let queries = rows(1, shape.heads, shape.dim, 3);
    let mut workspace = Workspace::new(Arc::new(Team::new(1).expect("no thread")));
    let mut out = Array3::zeros(queries.dim());
    let row = row.check(|| {
        let mut expected = out.clone();
        let whole = in_one_piece::<bf16>(shape);
        attend(&mut workspace, queries.view(), &whole.view(0).expect("a layer"), &mut expected);
        for &id in &ids {
            attend(&mut workspace, queries.view(), &cache.view(0, id).expect("alive"), &mut out);
            assert_eq!(out, expected, "the same bits");
        }
    });
    // What is read beside it lies in one piece.
    let plain = vec![1_u8; ids.len() * n_bytes];
    let (mut turn, mut turn_to_read) = (ids.iter().cycle(), plain.chunks_exact(n_bytes).cycle());
    let isa = Isa::detect();
    row.ours_and_probe(
        "read",
        n_bytes as u64,
        || {
            let id = *turn.next().expect("a sequence");
            attend(&mut workspace, queries.view(), &cache.view(0, id).expect("alive"), &mut out);
        },
        || kernels::read_bytes(isa, black_box(turn_to_read.next().expect("a piece"))),
    )
}

/// From the caches.
fn beside_contiguous(row: Unchecked<'_>) -> Checked<'_> {
    let shape = Shape { tokens: row.size(SMALL.tokens, 100), ..SMALL };
    let (cache, ids) = filled::<f32>(shape, 1);
    let (view, whole) = (cache.view(0, ids[0]).expect("alive"), in_one_piece::<f32>(shape));
    let whole = whole.view(0).expect("a layer");
    let queries = rows(1, shape.heads, shape.dim, 3);
    let [mut workspace, mut other] =
        [0, 1].map(|_| Workspace::new(Arc::new(Team::new(1).expect("no thread"))));
    let (mut out, mut expected) = (Array3::zeros(queries.dim()), Array3::zeros(queries.dim()));
    let row = row.check(|| {
        attend(&mut workspace, queries.view(), &view, &mut out);
        attend(&mut other, queries.view(), &whole, &mut expected);
        assert_eq!(out, expected, "the same bits");
    });
    row.ours_and_probe(
        "contiguous",
        4 * shape.numbers(),
        || attend(&mut workspace, queries.view(), &view, &mut out),
        || attend(&mut other, queries.view(), &whole, &mut expected),
    )
}
