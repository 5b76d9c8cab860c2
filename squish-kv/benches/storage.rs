//! Caches with their storage: what a token costs to append, a sequence to copy out, and a prompt to store and to find. One thread.

use squish_bench::{
    Checked, Limit, Residency, Row, Suite, Table, Target, Unchecked, Work, black_box,
};
use squish_kv::{
    GqaCache, KvShape, KvSource, PagedKvCache, PrefixKey, PrefixPool, Retention, Salt, Scaling,
    Scope, SequenceId, SlidingWindowKv,
    ndarray::{Array3, ArrayView3, Axis},
};

const HEADS: usize = 2;
const DIM: usize = 64;
const BLOCK: usize = 16;

/// Tokens of a sequence before it begins anew.
const LONG: usize = 512;

const WINDOW: usize = 128;

static PAGED_APPEND: Row = Row {
    id: "paged_kv/append",
    module: "PagedKvCache",
    operation: "append() of one token",
    shape: "2x64",
    work: TOKEN,
    targets: NEAR_COPY,
    note: "blocks of 16, the mean over 512 tokens; the probe copies the same rows to slots of an array; at most 40 ns are wanted",
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

static RING_APPEND: Row = Row {
    id: "sliding_window/append",
    module: "SlidingWindowKv",
    operation: "append() of one token",
    shape: "2x64",
    note: "as above, in a full ring of 128",
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
    table: Table::Llm,
    ..GATHER
};

const fn prefix(id: &'static str, operation: &'static str, shape: &'static str) -> Row {
    Row {
        id,
        module: "PrefixPool",
        operation,
        shape,
        note: "keys and values of 2 heads of 64, in 64 blocks of 16",
        ..Row::SEED
    }
}

static PUT: Row = prefix("prefix_pool/put", "put() of a new prompt", "16");
static GET_HIT: Row = prefix("prefix_pool/get_hit", "get(), release()", "16");
static GET_MISS: Row = prefix("prefix_pool/get_miss", "get()", "20");

fn main() {
    let mut suite = Suite::new();
    suite.row(&PAGED_APPEND, paged_append);
    suite.row(&GQA_APPEND, gqa_append);
    suite.row(&RING_APPEND, ring_append);
    suite.row(&GATHER, |row| gather(row, 32, HEADS, DIM, BLOCK));
    suite.row(&GATHER_LONG, |row| {
        let n_tokens = row.size(8192, 96);
        gather(row, n_tokens, 8, 128, 32)
    });
    suite.row(&PUT, put);
    suite.row(&GET_HIT, |row| get(row, 16, 16));
    suite.row(&GET_MISS, |row| get(row, 20, 0));
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
        copy_rows(&k, &v, LONG),
    )
}

/// Copies of the rows of a token to arrays `[heads][n_slots][DIM]`, one token behind the other.
fn copy_rows(k: &Array3<f32>, v: &Array3<f32>, n_slots: usize) -> impl FnMut() {
    let mut arrays = [0, 1].map(|_| vec![0.0_f32; HEADS * n_slots * DIM]);
    let mut len = 0;
    move || {
        for (array, rows) in arrays.iter_mut().zip([k, v]) {
            let rows = black_box(rows).as_slice().expect("plain");
            for (head, row) in rows.chunks_exact(DIM).enumerate() {
                array[(head * n_slots + len) * DIM..][..DIM].copy_from_slice(row);
            }
        }
        black_box(&mut arrays);
        len = (len + 1) % n_slots;
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
        copy_rows(&k, &v, LONG),
    )
}

fn ring_append(row: Unchecked<'_>) -> Checked<'_> {
    let shape = KvShape::new(1, HEADS, DIM);
    let mut cache = SlidingWindowKv::<f32>::new(shape, WINDOW, Scaling::Dynamic).expect("small");
    let (k, v) = (numbers(1, HEADS, DIM, 1), numbers(1, HEADS, DIM, 2));
    row.check(|| {
        for i in 0..2 * WINDOW + 33 {
            let (k, v) = (numbers(1, HEADS, DIM, i), numbers(1, HEADS, DIM, 3 * i));
            cache.append(k.view(), v.view()).expect("fits");
        }
        assert_last(&cache.view(0).expect("a layer"), WINDOW, 2 * WINDOW + 32);
    })
    .ours_and_probe(
        "rows",
        TOKEN.moved(),
        || cache.append(black_box(&k).view(), black_box(&v).view()).expect("fits"),
        copy_rows(&k, &v, WINDOW),
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
    // Blocks are taken in the reverse order of their return.
    let one = numbers(1, n_heads, dim, 0);
    let all: Vec<SequenceId> =
        (0..n_blocks).map(|_| cache.create(Retention::All).expect("a sequence")).collect();
    for &id in &all {
        cache.append(id, one.view(), one.view()).expect("room");
    }
    for id in all {
        cache.free(id).expect("alive");
    }
    let id = cache.create(Retention::All).expect("a sequence");
    let (k, v) = (numbers(n_tokens, n_heads, dim, 1), numbers(n_tokens, n_heads, dim, 2));
    cache.append(id, k.view(), v.view()).expect("room");
    assert!(cache.tables().table(id).expect("alive").is_sorted_by(|a, b| a > b));
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

fn pool() -> (PrefixPool<f32>, PrefixKey) {
    let shape = KvShape::new(1, HEADS, DIM);
    let mut pool = PrefixPool::new(shape, 64, BLOCK, Scaling::Dynamic).expect("small");
    pool.reserve(4, 64);
    let salt = Salt::Tenant(b"tenant");
    (pool, Scope { model: b"model", adapter: None, layer_group: 0, salt }.key())
}

fn prompt(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761) >> 15).collect()
}

fn put(row: Unchecked<'_>) -> Checked<'_> {
    let ((mut pool, key), mut tokens) = (pool(), prompt(16));
    let [k, v] = [1, 2].map(|seed| numbers(16, HEADS, DIM, seed).insert_axis(Axis(0)));
    // No prompt comes twice: each takes the block of the one that was there for longest.
    let mut put = |pool: &mut PrefixPool<f32>| {
        tokens[0] = tokens[0].wrapping_add(1);
        let n = pool.put(&key, black_box(&tokens), black_box(&k).view(), black_box(&v).view());
        (n.expect("room"), tokens[0])
    };
    row.check(|| {
        for _ in 0..300 {
            assert_eq!(put(&mut pool).0, 16);
        }
        let mut last = prompt(16);
        last[0] = put(&mut pool).1;
        let hit = pool.get(&key, &last).expect("few").expect("it was stored");
        let mut out = [0, 1].map(|_| Array3::<f32>::zeros((HEADS, 16, DIM)));
        let [keys, values] = &mut out;
        pool.gather_into(&hit, 0, keys.view_mut(), values.view_mut()).expect("fits");
        for (out, rows) in out.iter().zip([&k, &v]) {
            assert_eq!(out, rows.index_axis(Axis(0), 0).permuted_axes([1, 0, 2]));
        }
        pool.release(hit).expect("held");
    })
    .ours(|bencher| bencher.iter(|| put(&mut pool)))
}

/// Of a prompt of `n` tokens, `n_there` are there.
fn get(row: Unchecked<'_>, n: usize, n_there: usize) -> Checked<'_> {
    let ((mut pool, key), tokens) = (pool(), prompt(n));
    let [k, v] = [1, 2].map(|seed| numbers(n, HEADS, DIM, seed).insert_axis(Axis(0)));
    let mut stored = tokens.clone();
    stored[0] ^= u32::from(n_there == 0);
    pool.put(&key, &stored, k.view(), v.view()).expect("room");
    let get = |pool: &mut PrefixPool<f32>| {
        let hit = pool.get(&key, black_box(&tokens)).expect("few");
        hit.map_or(0, |hit| {
            let n = hit.n_tokens();
            pool.release(hit).expect("held");
            n
        })
    };
    row.check(|| assert_eq!(get(&mut pool), n_there))
        .ours(|bencher| bencher.iter(|| get(&mut pool)))
}
