//! Paged storage: the same rows as in one piece, and the same bits of attention.

use std::{num::NonZeroUsize, sync::Arc};

use proptest::prelude::*;
use squish_attn::{Mask, Options, Sequence, Team, Workspace};
use squish_bench::alloc::count_allocations;
use squish_kv::{
    BlockCopy, BlockTables, E4M3, E5M2, Error, GqaCache, KvArrays, KvElement, KvShape, KvSource,
    NULL_BLOCK, PagedArenas, PagedKvCache, Retention, Scaling, SequenceId, Slot, SlotMove, bf16,
    f16, gather,
    ndarray::{Array3, ArrayView3},
};

use crate::gqa::{numbers, rows};

const SHAPE: KvShape = KvShape { n_layers: 2, n_heads: 2, key_dim: 8, value_dim: 6 };

/// Rows of `n` new tokens for a layer.
fn tokens(n: usize, layer: usize, seed: usize) -> [Array3<f32>; 2] {
    let seed = 10 * seed + layer;
    [
        numbers(n, SHAPE.n_heads, SHAPE.key_dim, seed),
        numbers(n, SHAPE.n_heads, SHAPE.value_dim, seed + 5),
    ]
}

/// Writes tokens of `seed` to all layers of a sequence, and keeps those of `path`.
fn append<E: KvElement>(
    cache: &mut PagedKvCache<E>,
    id: SequenceId,
    n: usize,
    seed: usize,
    path: Option<&[usize]>,
) {
    let mut step = cache.begin(&[(id, n)]).unwrap();
    for layer in 0..SHAPE.n_layers {
        let [k, v] = tokens(n, layer, seed);
        step.write(layer, id, k.view(), v.view()).unwrap();
    }
    if let Some(path) = path {
        step.accept(id, path).unwrap();
    }
    step.commit().unwrap();
}

/// The same, in one piece.
fn append_to<E: KvElement>(cache: &mut GqaCache<E>, n: usize, seed: usize, path: Option<&[usize]>) {
    let mut step = cache.begin(n).unwrap();
    for layer in 0..SHAPE.n_layers {
        let [k, v] = tokens(n, layer, seed);
        step.write(layer, k.view(), v.view()).unwrap();
    }
    if let Some(path) = path {
        step.accept(path).unwrap();
    }
    step.commit().unwrap();
}

#[derive(Clone, Debug)]
enum Operation {
    Append(usize),
    Draft(usize, Vec<usize>),
    Truncate(usize),
    /// The sequence goes on as a fork; what it was is kept to be looked at.
    Fork,
    /// A step that is dropped when one layer is written.
    Drop(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    let path = |n: usize| (Just(n), prop::sample::subsequence((0..n).collect::<Vec<_>>(), 0..=n));
    prop_oneof![
        4 => (0..20_usize).prop_map(Operation::Append),
        2 => (1..12_usize).prop_flat_map(path).prop_map(|(n, path)| Operation::Draft(n, path)),
        1 => (0..100_usize).prop_map(Operation::Truncate),
        1 => Just(Operation::Fork),
        1 => (0..20_usize).prop_map(Operation::Drop),
    ]
}

/// Whether paged blocks, in an order that `order` has mixed up, hold the same rows as one piece, whatever was done to both.
fn paged_is_contiguous<E: KvElement>(
    block_size: usize,
    window: Option<NonZeroUsize>,
    order: &[usize],
    operations: &[Operation],
    scaling: Scaling<'_>,
) {
    let n_blocks = 600;
    let mut paged = PagedKvCache::<E>::new(SHAPE, n_blocks, block_size, scaling).unwrap();
    // Sequences of one block each, whose blocks come back in another order.
    let mut others: Vec<SequenceId> =
        order.iter().map(|_| paged.create(Retention::All).unwrap()).collect();
    for &id in &others {
        append(&mut paged, id, 1, 77, None);
    }
    for &at in order {
        let at = at % others.len();
        paged.free(others.swap_remove(at)).unwrap();
    }
    let retention = window.map_or(Retention::All, Retention::Window);
    let mut id = paged.create(retention).unwrap();
    let mut plain = GqaCache::<E>::new(SHAPE, 400, scaling).unwrap();
    let mut kept = Vec::new();
    for (seed, operation) in operations.iter().enumerate() {
        match operation {
            Operation::Append(n) => {
                append(&mut paged, id, *n, seed, None);
                append_to(&mut plain, *n, seed, None);
            }
            Operation::Draft(n, path) => {
                append(&mut paged, id, *n, seed, Some(path));
                append_to(&mut plain, *n, seed, Some(path));
            }
            Operation::Truncate(to) => {
                let to = to % (plain.len() + 1);
                if paged.truncate(id, to).is_ok() {
                    plain.truncate(to).unwrap();
                } else {
                    assert!(window.is_some());
                }
            }
            Operation::Fork => {
                kept.push((id, plain.clone()));
                id = paged.fork(id).unwrap();
            }
            Operation::Drop(n) => {
                let [k, v] = tokens(*n, 0, seed + 500);
                paged.begin(&[(id, *n)]).unwrap().write(0, id, k.view(), v.view()).unwrap();
                plain.begin(*n).unwrap().write(0, k.view(), v.view()).unwrap();
            }
        }
        for (id, plain) in kept.iter().chain([&(id, plain.clone())]) {
            assert_eq!(paged.len(*id), Ok(plain.len()));
            for layer in 0..SHAPE.n_layers {
                let (view, want) =
                    (paged.view(layer, *id).unwrap(), rows(&plain.view(layer).unwrap()));
                let got = rows(&view);
                let least = window.map_or(plain.len(), |window| plain.len().min(window.get() - 1));
                assert!(got.len() >= 4 * least, "{} of {least} tokens are there", got.len() / 4);
                assert!(got == want[want.len() - got.len()..], "layer {layer} of {id}");
                if view.n_runs() > 0 {
                    assert_eq!(view.run(0).position, plain.len() - view.len());
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn paged_rows_are_those_in_one_piece_bit_for_bit(
        kind in 0..7_usize,
        block_size in 1..20_usize,
        window in (0..30_usize).prop_map(NonZeroUsize::new),
        order in prop::collection::vec(any::<usize>(), 1..12),
        operations in prop::collection::vec(operation(), 1..16),
    ) {
        let scales = [[0.01, 0.02], [0.005, 0.01]];
        let (dynamic, given) = (Scaling::Dynamic, Scaling::Static(&scales));
        match kind {
            0 => paged_is_contiguous::<f32>(block_size, window, &order, &operations, dynamic),
            1 => paged_is_contiguous::<bf16>(block_size, window, &order, &operations, dynamic),
            2 => paged_is_contiguous::<f16>(block_size, window, &order, &operations, dynamic),
            3 => paged_is_contiguous::<i8>(block_size, window, &order, &operations, dynamic),
            4 => paged_is_contiguous::<E4M3>(block_size, window, &order, &operations, dynamic),
            5 => paged_is_contiguous::<E5M2>(block_size, window, &order, &operations, dynamic),
            _ => paged_is_contiguous::<i8>(block_size, window, &order, &operations, given),
        }
    }
}

pub(crate) fn attend<S: KvSource>(
    source: &S,
    queries: ArrayView3<'_, f32>,
    mask: Mask<'_>,
    options: &Options<'_>,
) -> Vec<u32> {
    let (n_rows, n_heads, _) = queries.dim();
    let mut out = Array3::from_elem((n_rows, n_heads, source.value_dim()), f32::NAN);
    let mut workspace = Workspace::new(Arc::new(Team::new(1).unwrap()));
    let batch = [Sequence { source, n_rows, mask }];
    workspace.attend_into(queries, &batch, options, out.view_mut()).unwrap();
    out.iter().map(|x| x.to_bits()).collect()
}

/// Decode, chunks, a tree and a window give the same bits over blocks of any size as over one piece.
fn same_attention<E: KvElement>() {
    const N: usize = 300;
    let shape = KvShape { n_layers: 1, n_heads: 2, key_dim: 32, value_dim: 48 };
    let (k, v) = (numbers(N, 2, 32, 1), numbers(N, 2, 48, 2));
    let mut plain = GqaCache::<E>::new(shape, N + 7, Scaling::Dynamic).unwrap();
    plain.append(k.view(), v.view()).unwrap();
    let queries = numbers(40, 6, 32, 3);
    let parents = [None, Some(0), Some(0), Some(2)];
    let window = Options { window: Some(70), ..Options::default() };
    let all = |source: &KvViewOf<'_, E>| {
        [1, 40].map(|n| {
            let queries = queries.slice(squish_kv::ndarray::s![..n, .., ..]);
            attend(source, queries, Mask::Causal, &Options::default())
        })
    };
    let whole = plain.view(0).unwrap();
    let decode = all(&whole);
    let tree =
        attend(&whole, numbers(4, 6, 32, 4).view(), Mask::Tree(&parents), &Options::default());
    let windowed = attend(&whole, numbers(1, 6, 32, 5).view(), Mask::Causal, &window);

    // What is read out has the same values. The order in which they are added is a matter of the type.
    if let (true, (keys, values)) = (E::LARGEST.is_none(), plain.gather(0).unwrap()) {
        let arrays = [keys.as_slice().unwrap(), values.as_slice().unwrap()];
        let arrays = KvArrays::new(arrays, 2, N, [32, 48]).unwrap();
        let queries = queries.slice(squish_kv::ndarray::s![..1, .., ..]);
        let of_arrays = attend(&arrays, queries, Mask::Causal, &Options::default());
        for (a, b) in of_arrays.into_iter().zip(&decode[0]) {
            let (a, b) = (f32::from_bits(a), f32::from_bits(*b));
            assert!((a - b).abs() <= 1e-6, "{a} is not {b}");
        }
    }
    for block_size in [1, 5, 16, 32, 64, 128, 300] {
        let n_blocks = 3 * N.div_ceil(block_size) + 3;
        let mut paged =
            PagedKvCache::<E>::new(shape, n_blocks, block_size, Scaling::Dynamic).unwrap();
        let retentions = [Retention::All, Retention::Window(NonZeroUsize::new(70).unwrap())];
        let ids = retentions.map(|retention| paged.create(retention).unwrap());
        // In turn, so that blocks of one sequence do not follow each other. The last token of the window is one of a step: once that is
        // committed, what the next token does not read is gone.
        for first in (0..N).step_by(25) {
            let part = |end: usize| squish_kv::ndarray::s![first..end, .., ..];
            let end = first + 25;
            paged.append(ids[0], k.slice(part(end)), v.slice(part(end))).unwrap();
            let end = end.min(N - 1);
            paged.append(ids[1], k.slice(part(end)), v.slice(part(end))).unwrap();
        }
        let view = paged.view(0, ids[0]).unwrap();
        assert_eq!(view.n_runs(), N.div_ceil(block_size));
        assert_eq!(all(&view), decode, "{} in blocks of {block_size}", E::NAME);
        let got =
            attend(&view, numbers(4, 6, 32, 4).view(), Mask::Tree(&parents), &Options::default());
        assert_eq!(got, tree, "{} in blocks of {block_size}", E::NAME);
        let mut step = paged.begin(&[(ids[1], 1)]).unwrap();
        let last = squish_kv::ndarray::s![N - 1.., .., ..];
        step.write(0, ids[1], k.slice(last), v.slice(last)).unwrap();
        let view = step.view(0, ids[1]).unwrap();
        assert!(view.len() < 70 + block_size);
        let got = attend(&view, numbers(1, 6, 32, 5).view(), Mask::Causal, &window);
        assert_eq!(got, windowed, "{} in blocks of {block_size}, a window", E::NAME);
    }
}

type KvViewOf<'a, E> = squish_kv::KvView<'a, E>;

#[test]
fn attention_has_the_same_bits_over_blocks_of_any_size() {
    same_attention::<f32>();
    same_attention::<bf16>();
    same_attention::<f16>();
    same_attention::<i8>();
    same_attention::<E4M3>();
    same_attention::<E5M2>();
}

#[test]
fn attention_to_a_row_that_is_not_finite_is_nan() {
    fn check<E: KvElement>() {
        let mut cache = GqaCache::<E>::new(KvShape::new(1, 1, 16), 9, Scaling::Dynamic).unwrap();
        let (mut k, v) = (numbers(9, 1, 16, 1), numbers(9, 1, 16, 2));
        k[[4, 0, 3]] = f32::INFINITY;
        cache.append(k.view(), v.view()).unwrap();
        let view = cache.view(0).unwrap();
        let got = attend(&view, numbers(1, 1, 16, 3).view(), Mask::Causal, &Options::default());
        assert!(got.iter().all(|&x| f32::from_bits(x).is_nan()), "{}", E::NAME);
    }
    check::<i8>();
    check::<E4M3>();
    check::<E5M2>();
}

#[test]
fn an_append_is_a_step_of_one_layer() {
    let shape = KvShape { n_layers: 1, ..SHAPE };
    let new = || PagedKvCache::<E4M3>::new(shape, 30, 4, Scaling::Dynamic).unwrap();
    let [mut by_append, mut by_step] = [new(), new()];
    let mut ids = vec![by_append.create(Retention::All).unwrap()];
    assert_eq!(by_step.create(Retention::All), Ok(ids[0]));
    // Forks whose last block is shared, full, and their own.
    for (seed, n) in [6, 3, 3, 1, 0, 5].into_iter().enumerate() {
        for at in 0..ids.len() {
            let (id, [k, v]) = (ids[at], tokens(n, 0, 10 * seed + at));
            by_append.append(id, k.view(), v.view()).unwrap();
            let mut step = by_step.begin(&[(id, n)]).unwrap();
            step.write(0, id, k.view(), v.view()).unwrap();
            step.commit().unwrap();
        }
        if seed < 3 {
            ids.push(by_append.fork(ids[0]).unwrap());
            assert_eq!(by_step.fork(ids[0]), Ok(ids[ids.len() - 1]));
        }
        for &id in &ids {
            let [got, want] = [&by_append, &by_step].map(|cache| rows(&cache.view(0, id).unwrap()));
            assert_eq!(got, want);
            assert_eq!(by_append.tables().table(id), by_step.tables().table(id));
        }
    }
}

#[test]
fn arenas_obey_a_step_of_tables_that_somebody_else_keeps() {
    let (n_blocks, bs) = (40, 3);
    let mut tables = BlockTables::new(n_blocks, bs).unwrap();
    let mut arenas = PagedArenas::<i8>::new(SHAPE, n_blocks, bs, Scaling::Dynamic).unwrap();
    let mut cache = PagedKvCache::<i8>::new(SHAPE, n_blocks, bs, Scaling::Dynamic).unwrap();
    let (id, same) =
        (tables.create(Retention::All).unwrap(), cache.create(Retention::All).unwrap());
    let path = [0, 2, 3, 6];
    let mut pairs = vec![(id, same)];
    for (seed, forks) in [(1, false), (2, true), (3, false)] {
        for at in 0..pairs.len() {
            let (id, same) = pairs[at];
            append(&mut cache, same, 7, seed + at, Some(&path));
            let mut step = tables.begin(&[(id, 7)]).unwrap();
            arenas.copy_blocks(step.copies()).unwrap();
            // As a scheduler would send it.
            let slots: Vec<Slot> = step.slots(id).unwrap().collect();
            for layer in 0..SHAPE.n_layers {
                let [k, v] = tokens(7, layer, seed + at);
                arenas.write(layer, slots.iter().copied(), k.view(), v.view()).unwrap();
            }
            let moves: Vec<SlotMove> = step.accept(id, &path).unwrap().collect();
            arenas.move_tokens(moves.iter().copied()).unwrap();
            step.commit();
            if forks {
                pairs.push((tables.fork(id).unwrap(), cache.fork(same).unwrap()));
            }
        }
    }
    for (id, same) in pairs {
        for layer in 0..SHAPE.n_layers {
            let view =
                arenas.view(layer, tables.table(id).unwrap(), tables.len(id).unwrap()).unwrap();
            assert_eq!(rows(&view), rows(&cache.view(layer, same).unwrap()));
        }
    }
    let cache = PagedKvCache::from_parts(tables, arenas).unwrap();
    let (tables, arenas) = cache.into_parts();
    let other = PagedArenas::<i8>::new(SHAPE, n_blocks, bs + 1, Scaling::Dynamic).unwrap();
    let (what, axis) = ("arenas", "slots of a block");
    let error = Error::Axis { what, axis, expected: bs, actual: bs + 1 };
    assert_eq!(PagedKvCache::from_parts(tables, other).err(), Some(error));
    let error = Error::Axis { what, axis: "blocks", expected: 2, actual: n_blocks };
    assert_eq!(
        PagedKvCache::from_parts(BlockTables::new(2, bs).unwrap(), arenas).err(),
        Some(error)
    );
}

#[test]
fn slots_may_stand_in_any_order() {
    let mut arenas = PagedArenas::<i8>::new(SHAPE, 2, 4, Scaling::Dynamic).unwrap();
    let places = [(1, 3), (0, 0), (0, 2), (0, 1), (0, 3), (1, 1), (1, 2), (1, 0)];
    let slots = places.map(|(block, offset)| Slot { block, offset });
    let [k, v] = tokens(8, 1, 1);
    arenas.write(1, slots.iter().copied(), k.view(), v.view()).unwrap();
    let mut in_order = PagedArenas::<i8>::new(SHAPE, 1, 8, Scaling::Dynamic).unwrap();
    let all = (0..8).map(|offset| Slot { block: 0, offset });
    in_order.write(1, all, k.view(), v.view()).unwrap();
    let (got, want) =
        (rows(&arenas.view(1, &[0, 1], 8).unwrap()), rows(&in_order.view(1, &[0], 8).unwrap()));
    // Keys and values of two heads.
    for (token, (block, offset)) in places.into_iter().enumerate() {
        let at = 4 * (4 * block + offset) as usize;
        assert_eq!(got[at..at + 4], want[4 * token..][..4], "token {token}");
    }
}

#[test]
fn arenas_refuse_blocks_and_slots_that_they_have_not() {
    let mut arenas = PagedArenas::<f32>::new(SHAPE, 4, 3, Scaling::Dynamic).unwrap();
    assert_eq!((arenas.n_blocks(), arenas.block_size(), arenas.shape()), (4, 3, SHAPE));
    let [k, v] = tokens(2, 0, 1);
    let slots = [(0, 0), (3, 2)].map(|(block, offset)| Slot { block, offset });
    let mut write = |slots: &[Slot]| arenas.write(0, slots.iter().copied(), k.view(), v.view());
    write(&slots).unwrap();
    let unknown = |block| Error::UnknownBlock { block, n_blocks: 4 };
    assert_eq!(write(&[slots[0], Slot { block: 4, offset: 0 }]), Err(unknown(4)));
    let end = Error::UnknownSlot { end: 4, block_size: 3 };
    assert_eq!(write(&[slots[0], Slot { block: 0, offset: 3 }]), Err(end));
    let (what, axis) = ("keys", "tokens");
    assert_eq!(write(&slots[..1]), Err(Error::Axis { what, axis, expected: 1, actual: 2 }));

    let copy = |from, to, n_slots| BlockCopy { from, to, n_slots };
    assert_eq!(
        arenas.copy_blocks(&[copy(0, 1, 3), copy(0, NULL_BLOCK, 1)]),
        Err(unknown(NULL_BLOCK))
    );
    assert_eq!(arenas.copy_blocks(&[copy(0, 1, 3), copy(9, 1, 1)]), Err(unknown(9)));
    assert_eq!(arenas.copy_blocks(&[copy(0, 1, 3), copy(0, 1, 4)]), Err(end));
    let to = Slot { block: 1, offset: 1 };
    let moved = |from| SlotMove { from, to };
    assert_eq!(
        arenas.move_tokens([moved(slots[0]), moved(Slot { block: 5, offset: 0 })].into_iter()),
        Err(unknown(5))
    );
    assert_eq!(
        arenas.move_tokens([moved(slots[0]), moved(Slot { block: 2, offset: 3 })].into_iter()),
        Err(end)
    );
    // Nothing was copied or moved.
    let (keys, _) = gather(&arenas.view(0, &[1], 3).unwrap()).unwrap();
    assert!(keys.iter().all(|&x| x == 0.0));

    assert_eq!(arenas.view(2, &[0], 1).err(), Some(Error::UnknownLayer { layer: 2, n_layers: 2 }));
    let (what, axis) = ("table", "blocks");
    let error = Error::Axis { what, axis, expected: 2, actual: 1 };
    assert_eq!(arenas.view(0, &[0], 4).err(), Some(error));
    assert_eq!(arenas.view(0, &[0, 4], 4).err(), Some(unknown(4)));
    assert_eq!(arenas.view(0, &[0, NULL_BLOCK], 4).err(), Some(unknown(NULL_BLOCK)));
    assert_eq!(arenas.view(0, &[0, NULL_BLOCK, 1], 7).err(), Some(unknown(NULL_BLOCK)));
    let view = arenas.view(0, &[NULL_BLOCK, 3, 7, 8], 5).unwrap();
    assert_eq!((view.len(), view.n_runs(), view.run(0).position), (2, 1, 3));
    assert_eq!(arenas.view(0, &[NULL_BLOCK], 3).unwrap().len(), 0);
    assert_eq!(arenas.view(0, &[], 0).unwrap().len(), 0);
}

#[test]
fn a_refused_step_of_the_cache_says_why() {
    let shape = KvShape { n_layers: 1, ..SHAPE };
    let mut cache = PagedKvCache::<f32>::new(shape, 3, 4, Scaling::Dynamic).unwrap();
    let id = cache.create(Retention::All).unwrap();
    let [k, v] = tokens(10, 0, 1);
    cache.append(id, k.view(), v.view()).unwrap();
    let before = rows(&cache.view(0, id).unwrap());
    let error = Error::PoolExhausted { needed: 2, free: 0 };
    assert_eq!(cache.append(id, k.view(), v.view()), Err(error));
    assert_eq!(cache.begin(&[(id, 10)]).err(), Some(error));
    let (what, axis) = ("values", "tokens");
    let error = Error::Axis { what, axis, expected: 10, actual: 1 };
    assert_eq!(cache.append(id, k.view(), tokens(1, 0, 1)[1].view()), Err(error));
    assert_eq!(cache.view(1, id).err(), Some(Error::UnknownLayer { layer: 1, n_layers: 1 }));
    let other = cache.create(Retention::All).unwrap();
    let mut step = cache.begin(&[(id, 2)]).unwrap();
    let [k, v] = tokens(2, 0, 2);
    assert_eq!(step.write(0, other, k.view(), v.view()), Err(Error::NotInStep { id: other }));
    assert_eq!(step.view(0, other).err(), Some(Error::NotInStep { id: other }));
    assert_eq!(step.record(id, &[1]), Err(Error::TokenCount { expected: 2, actual: 1 }));
    assert!(matches!(step.accept(id, &[2]), Err(Error::Path { .. })));
    step.write(0, id, k.view(), v.view()).unwrap();
    assert_eq!(step.step().len_with_new(id), Ok(12));
    drop(step);
    assert_eq!(
        cache.begin(&[(id, 2)]).unwrap().commit(),
        Err(Error::NotWritten { layer: 0, index: 0 })
    );
    assert_eq!((cache.len(id), rows(&cache.view(0, id).unwrap())), (Ok(10), before));
    cache.free(id).unwrap();
    let stale = Error::StaleSequence { id };
    assert_eq!(cache.append(id, k.view(), v.view()), Err(stale));
    assert_eq!(cache.view(0, id).err(), Some(stale));
    assert_eq!(cache.gather(0, id).err(), Some(stale));
    let huge =
        PagedKvCache::<f32>::new(KvShape::new(1 << 20, 64, 1 << 10), 1 << 10, 32, Scaling::Dynamic);
    assert!(matches!(huge.err(), Some(Error::StorageMemory { what: "keys", .. })));
}

#[test]
fn steps_allocate_nothing_once_there_is_room() {
    const N: usize = 3;
    let mut paged = PagedKvCache::<i8>::new(SHAPE, 400, 4, Scaling::Dynamic).unwrap();
    paged.reserve(N + 1, 300);
    let mut plain = GqaCache::<bf16>::new(SHAPE, 300, Scaling::Dynamic).unwrap();
    let mut single =
        PagedKvCache::<f32>::new(KvShape { n_layers: 1, ..SHAPE }, 100, 4, Scaling::Dynamic)
            .unwrap();
    single.reserve(1, 300);
    let alone = single.create(Retention::All).unwrap();
    let ids = [(); N].map(|()| paged.create(Retention::All).unwrap());
    let new: Vec<_> = (0..SHAPE.n_layers).map(|layer| tokens(5, layer, 1)).collect();
    let mut out = [8, 6].map(|width| Array3::<f32>::zeros((2, 60, width)));
    let mut run = || {
        for _ in 0..20 {
            let mut step = paged.begin(&ids.map(|id| (id, 5)))?;
            let mut in_one = plain.begin(5)?;
            for (layer, [k, v]) in new.iter().enumerate() {
                for id in ids {
                    step.write(layer, id, k.view(), v.view())?;
                    assert!(step.view(layer, id)?.len() > 0);
                }
                in_one.write(layer, k.view(), v.view())?;
                assert!(in_one.view(layer)?.len() > 0);
            }
            for id in ids {
                step.accept(id, &[0, 2, 4])?;
                step.record(id, &[1, 2, 3])?;
            }
            in_one.accept(&[0, 2, 4])?;
            step.commit()?;
            in_one.commit()?;
            let [k, v] = &new[0];
            single.append(alone, k.view(), v.view())?;
        }
        // A step of a fork copies a block.
        let fork = paged.fork(ids[0])?;
        let step = paged.begin(&[(fork, 1)])?;
        assert_eq!(step.step().copies().len(), 0, "the last block is full");
        drop(step);
        paged.truncate(fork, 59)?;
        assert_eq!(paged.begin(&[(fork, 1)])?.step().copies().len(), 1);
        paged.free(fork)?;
        let [keys, values] = &mut out;
        paged.gather_into(1, ids[0], keys.view_mut(), values.view_mut())?;
        plain.gather_into(1, keys.view_mut(), values.view_mut())?;
        plain.clear();
        single.truncate(alone, 0)?;
        ids.iter().try_for_each(|&id| paged.truncate(id, 0))
    };
    run().unwrap();
    assert_eq!(count_allocations(run), (Ok(()), 0));
}
