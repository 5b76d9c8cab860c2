//! Caches with their storage: what a token costs to append, and a sequence to copy out. One thread.

use squish_bench::{Checked, Limit, Residency, Row, Suite, Target, Unchecked, Work, black_box};
use squish_kv::{
    GqaCache, KvShape, KvSource, PagedKvCache, Retention, Scaling, SequenceId,
    ndarray::{Array3, ArrayView3},
};

const HEADS: usize = 2;
const DIM: usize = 64;
const BLOCK: usize = 16;

/// Tokens of a sequence before it begins anew.
const LONG: usize = 4096;

static PAGED_APPEND: Row = Row {
    id: "paged_kv/append",
    module: "PagedKvCache",
    operation: "append() of one token",
    shape: "2x64",
    work: TOKEN,
    targets: NEAR_COPY,
    note: "blocks of 16, the mean over 4096 tokens; the probe copies the same rows to slots of an array; at most 40 ns are wanted",
    ..Row::SEED
};

static GQA_APPEND: Row = Row {
    id: "gqa/append",
    module: "GqaCache",
    operation: "append() of one token",
    shape: "2x64",
    note: "as above, in one piece",
    ..PAGED_APPEND
};

const TOKEN: Work = Work::bytes(bytes(1, HEADS, DIM), bytes(1, HEADS, DIM));

const NEAR_COPY: &[Target] = &[Target::AtMostTimesProbe { probe: "rows", times: 3.4 }];

/// Bytes of keys and values of so many tokens.
const fn bytes(n_tokens: usize, n_heads: usize, dim: usize) -> u64 {
    (2 * n_tokens * n_heads * dim * size_of::<f32>()) as u64
}

const AS_MEMCPY: &[Target] = &[Target::AtLeastShareOfProbe { probe: "memcpy", share: 0.6 }];

static GATHER: Row = Row {
    id: "paged_kv/gather",
    module: "PagedKvCache",
    operation: "gather_into() of a sequence",
    shape: "2x32x64",
    work: Work::bytes(bytes(32, HEADS, DIM), bytes(32, HEADS, DIM)),
    limit: Limit::Copy(Residency::L2),
    targets: AS_MEMCPY,
    note: "f32, blocks of 16",
    ..Row::SEED
};

static GATHER_LONG: Row = Row {
    shape: "8x8192x128",
    work: Work::bytes(bytes(8192, 8, 128), bytes(8192, 8, 128)),
    limit: Limit::Copy(Residency::Dram),
    note: "f32, blocks of 32 in descending order",
    table: squish_bench::Table::Llm,
    ..GATHER
};

fn main() {
    let mut suite = Suite::new();
    suite.row(&PAGED_APPEND, paged_append);
    suite.row(&GQA_APPEND, gqa_append);
    suite.row(&GATHER, |row| gather(row, 32, HEADS, DIM, BLOCK));
    suite.row(&GATHER_LONG, |row| {
        let n_tokens = row.size(8192, 96);
        gather(row, n_tokens, 8, 128, 32)
    });
    suite.finish();
}

fn numbers(n_tokens: usize, n_heads: usize, dim: usize, seed: usize) -> Array3<f32> {
    Array3::from_shape_fn((n_tokens, n_heads, dim), |(token, head, i)| {
        ((token * 31 + head * 17 + i * 7 + seed) % 1001) as f32 / 500.0 - 1.0
    })
}

fn paged_append(row: Unchecked<'_>) -> Checked<'_> {
    let shape = KvShape::new(1, HEADS, DIM);
    let mut cache =
        PagedKvCache::<f32>::new(shape, LONG / BLOCK, BLOCK, Scaling::Dynamic).expect("small");
    cache.reserve(1, LONG);
    let id = cache.create(Retention::All).expect("a sequence");
    let (k, v) = (numbers(1, HEADS, DIM, 1), numbers(1, HEADS, DIM, 2));
    let mut len = 0;
    let mut append =
        |cache: &mut PagedKvCache<f32>, k: ArrayView3<'_, f32>, v: ArrayView3<'_, f32>| {
            cache.append(black_box(id), k, v).expect("room");
            len += 1;
            if len == LONG {
                cache.truncate(id, 0).expect("shorter");
                len = 0;
            }
        };
    row.check(|| {
        for i in 0..2 * LONG + 33 {
            let (k, v) = (numbers(1, HEADS, DIM, i), numbers(1, HEADS, DIM, 3 * i));
            append(&mut cache, k.view(), v.view());
        }
        assert_last(&cache.view(0, id).expect("a layer"), 33, 2 * LONG + 32);
    })
    .ours_and_probe(
        "rows",
        TOKEN.moved(),
        || append(&mut cache, black_box(&k).view(), black_box(&v).view()),
        copy_rows(&k, &v),
    )
}

/// Copies of the rows of a token to arrays `[heads][LONG][DIM]`, one token behind the other.
fn copy_rows(k: &Array3<f32>, v: &Array3<f32>) -> impl FnMut() {
    let mut arrays = [0, 1].map(|_| vec![0.0_f32; HEADS * LONG * DIM]);
    let mut len = 0;
    move || {
        for (array, rows) in arrays.iter_mut().zip([k, v]) {
            let rows = black_box(rows).as_slice().expect("plain");
            for (head, row) in rows.chunks_exact(DIM).enumerate() {
                array[(head * LONG + len) * DIM..][..DIM].copy_from_slice(row);
            }
        }
        black_box(&mut arrays);
        len = (len + 1) % LONG;
    }
}

/// The last token of `n` is that of the seed.
fn assert_last(view: &impl KvSource<Element = f32>, n: usize, seed: usize) {
    assert_eq!(view.len(), n);
    let (k, v) = (numbers(1, HEADS, DIM, seed), numbers(1, HEADS, DIM, 3 * seed));
    let last = view.run_of(n - 1);
    let at = (view.run(last).len - 1) * DIM;
    for head in 0..HEADS {
        let row = |rows: squish_kv::Rows<'_, f32>| rows.data[at..at + DIM].to_vec();
        assert_eq!(row(view.keys(head, last)), k.as_slice().expect("plain")[head * DIM..][..DIM]);
        assert_eq!(row(view.values(head, last)), v.as_slice().expect("plain")[head * DIM..][..DIM]);
    }
}

fn gqa_append(row: Unchecked<'_>) -> Checked<'_> {
    let shape = KvShape::new(1, HEADS, DIM);
    let mut cache = GqaCache::<f32>::new(shape, LONG, Scaling::Dynamic).expect("small");
    let (k, v) = (numbers(1, HEADS, DIM, 1), numbers(1, HEADS, DIM, 2));
    let append = |cache: &mut GqaCache<f32>, k: ArrayView3<'_, f32>, v: ArrayView3<'_, f32>| {
        if cache.len() == LONG {
            cache.clear();
        }
        cache.append(k, v).expect("room");
    };
    row.check(|| {
        for i in 0..2 * LONG + 33 {
            let (k, v) = (numbers(1, HEADS, DIM, i), numbers(1, HEADS, DIM, 3 * i));
            append(&mut cache, k.view(), v.view());
        }
        assert_last(&cache.view(0).expect("a layer"), 33, 2 * LONG + 32);
    })
    .ours_and_probe(
        "rows",
        TOKEN.moved(),
        || append(&mut cache, black_box(&k).view(), black_box(&v).view()),
        copy_rows(&k, &v),
    )
}

/// A sequence whose blocks stand in the arena from the last to the first.
fn filled(
    n_tokens: usize,
    n_heads: usize,
    dim: usize,
    block: usize,
) -> (PagedKvCache<f32>, SequenceId) {
    let n_blocks = n_tokens.div_ceil(block);
    let mut cache =
        PagedKvCache::<f32>::new(KvShape::new(1, n_heads, dim), n_blocks, block, Scaling::Dynamic)
            .expect("memory");
    // The free blocks are taken in the reverse order of their return.
    let all = cache.create(Retention::All).expect("a sequence");
    let (k, v) = (numbers(n_tokens, n_heads, dim, 1), numbers(n_tokens, n_heads, dim, 2));
    cache.append(all, k.view(), v.view()).expect("room");
    cache.free(all).expect("alive");
    let id = cache.create(Retention::All).expect("a sequence");
    cache.append(id, k.view(), v.view()).expect("room");
    (cache, id)
}

fn gather(
    row: Unchecked<'_>,
    n_tokens: usize,
    n_heads: usize,
    dim: usize,
    block: usize,
) -> Checked<'_> {
    let (cache, id) = filled(n_tokens, n_heads, dim, block);
    let (k, v) = (numbers(n_tokens, n_heads, dim, 1), numbers(n_tokens, n_heads, dim, 2));
    let mut out = [0, 1].map(|_| Array3::<f32>::zeros((n_heads, n_tokens, dim)));
    let run = |out: &mut [Array3<f32>; 2]| {
        let [keys, values] = out;
        cache.gather_into(0, black_box(id), keys.view_mut(), values.view_mut()).expect("fits");
    };
    run(&mut out);
    row.check(|| {
        for (out, rows) in out.iter().zip([&k, &v]) {
            assert_eq!(out, rows.view().permuted_axes([1, 0, 2]));
        }
    })
    .ours_and_memcpy(bytes(n_tokens, n_heads, dim) as usize, || run(black_box(&mut out)))
}
