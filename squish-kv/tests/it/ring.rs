//! The ring: attention over it is attention over the whole sequence with a window, bit for bit.

use std::sync::Arc;

use squish_attn::{
    BitMask, Mask, Options, RopeConfig, RopeLayout, RopeOptions, RopeTable, Sequence, Team,
    Workspace, merge_in_place,
};
use squish_bench::alloc::count_allocations;
use squish_kv::{
    E4M3, E5M2, Error, GqaCache, KvArrays, KvElement, KvShape, KvSource, Positions, RingView,
    Scaling, SlidingWindowKv, StreamingSinks, bf16, f16, gather,
    ndarray::{Array2, Array3, ArrayView3, Axis, s},
};

use crate::{
    gqa::{numbers, rows},
    paged::attend,
};

const SHAPE: KvShape = KvShape { n_layers: 2, n_heads: 2, key_dim: 8, value_dim: 6 };

/// Query heads.
const N_HEADS: usize = 4;

const SCALES: [[f32; 2]; 2] = [[0.01, 0.02], [0.005, 0.01]];

/// Rows of `n` new tokens for a layer.
fn tokens(n: usize, layer: usize, seed: usize) -> [Array3<f32>; 2] {
    let seed = 10 * seed + layer;
    [
        numbers(n, SHAPE.n_heads, SHAPE.key_dim, seed),
        numbers(n, SHAPE.n_heads, SHAPE.value_dim, seed + 5),
    ]
}

const fn absolute(n_sinks: usize) -> StreamingSinks {
    StreamingSinks { n_sinks, positions: Positions::Absolute }
}

/// The tokens of a step, and what becomes of them.
#[derive(Clone, Debug)]
enum Rows {
    Chunk(usize),
    /// Parents, and the nodes that are accepted.
    Tree(Vec<Option<u32>>, Vec<usize>),
}

impl Rows {
    fn len(&self) -> usize {
        match self {
            Self::Chunk(n) => *n,
            Self::Tree(parents, _) => parents.len(),
        }
    }
}

/// Attention of every step over a ring has the bits of attention over the whole sequence, masked by the window's definition.
fn ring_is_the_whole_masked<E: KvElement>(
    window: usize,
    n_sinks: usize,
    scaling: Scaling<'_>,
    steps: &[Rows],
) {
    let mut ring =
        SlidingWindowKv::<E>::with_sinks(SHAPE, window, absolute(n_sinks), scaling).unwrap();
    let capacity = steps.iter().map(Rows::len).sum::<usize>().max(1);
    let mut whole = GqaCache::<E>::new(SHAPE, capacity, scaling).unwrap();
    let windowed = Options { window: Some(window), ..Options::default() };
    for (seed, step) in steps.iter().enumerate() {
        let (len, n) = (whole.len(), step.len());
        let queries = numbers(n, N_HEADS, SHAPE.key_dim, seed + 1000);
        let mut ring_step = ring.begin(n).unwrap();
        let mut whole_step = whole.begin(n).unwrap();
        for layer in 0..SHAPE.n_layers {
            let [k, v] = tokens(n, layer, seed);
            ring_step.write(layer, k.view(), v.view()).unwrap();
            whole_step.write(layer, k.view(), v.view()).unwrap();
            let (few, all) = (ring_step.view(layer).unwrap(), whole_step.view(layer).unwrap());
            assert!(few.len() < window + n.max(1));
            let sees = |row: usize, token: usize| {
                let is_near = token + window - n_sinks > len + row;
                token <= len + row && (token < n_sinks || is_near)
            };
            let (mask_few, mask_all) = match step {
                Rows::Chunk(_) => (
                    BitMask::from_fn(n, few.len(), |row, token| few.sees(row, token)),
                    BitMask::from_fn(n, len + n, sees),
                ),
                Rows::Tree(parents, _) => (
                    BitMask::from_fn(n, few.len(), |row, token| {
                        tree_sees(parents, few.len() - n, row, token, |depth, token| {
                            few.sees(depth, token)
                        })
                    }),
                    BitMask::from_fn(n, len + n, |row, token| {
                        tree_sees(parents, len, row, token, sees)
                    }),
                ),
            };
            let plain = Options::default();
            let want = attend(&all, queries.view(), Mask::Custom(&mask_all), &plain);
            let same = |got: &[u32], how: &str| {
                assert!(
                    got == want,
                    "{} {window} {n_sinks}, {step:?} behind {len}: {how}",
                    E::NAME
                );
            };
            same(&attend(&few, queries.view(), Mask::Custom(&mask_few), &plain), "sees");
            if n_sinks == 0 {
                let mask = match step {
                    Rows::Chunk(_) => Mask::Causal,
                    Rows::Tree(parents, _) => Mask::Tree(parents),
                };
                same(&attend(&all, queries.view(), mask, &windowed), "the whole, by its window");
                same(&attend(&few, queries.view(), mask, &windowed), "the ring, by its window");
                // Distances are between positions in the sequence.
                let sloped = Options { alibi: Some(&[0.5, 0.25, 0.125, 0.0625]), ..windowed };
                let [got, want] = [
                    attend(&few, queries.view(), mask, &sloped),
                    attend(&all, queries.view(), mask, &sloped),
                ];
                assert!(got == want, "{} {window}, {step:?} behind {len}: ALiBi", E::NAME);
            }
            if n == 1 {
                same(&attend(&few, queries.view(), Mask::Full, &plain), "all that is there");
            }
        }
        if let Rows::Tree(_, path) = step {
            ring_step.accept(path).unwrap();
            whole_step.accept(path).unwrap();
        }
        ring_step.commit().unwrap();
        whole_step.commit().unwrap();
        assert_eq!(ring.len(), whole.len());

        // Between steps: what the last token sees.
        for layer in (0..SHAPE.n_layers).filter(|_| !whole.is_empty()) {
            let (few, all) = (ring.view(layer).unwrap(), whole.view(layer).unwrap());
            assert_eq!(few.len(), window.min(whole.len()));
            let (got, want) = (rows(&few), rows(&all));
            // Four rows of a token: keys and values of two heads.
            let sinks = 4 * n_sinks.min(whole.len());
            let ring = got.len() - sinks;
            assert!(got[..sinks] == want[..sinks] && got[sinks..] == want[want.len() - ring..]);
        }
    }
}

/// Whether a node of a tree behind `n_before` tokens sees a token. `sees` says it of a depth and of where a token stands.
fn tree_sees(
    parents: &[Option<u32>],
    n_before: usize,
    row: usize,
    token: usize,
    sees: impl Fn(usize, usize) -> bool,
) -> bool {
    let ancestors = |node: usize| {
        std::iter::successors(Some(node), |&node| parents[node].map(|parent| parent as usize))
    };
    let depth = |node: usize| ancestors(node).count() - 1;
    if token < n_before {
        sees(depth(row), token)
    } else {
        let node = token - n_before;
        ancestors(row).any(|ancestor| ancestor == node) && sees(depth(row), n_before + depth(node))
    }
}

fn chunks(steps: &[usize]) -> Vec<Rows> {
    steps.iter().map(|&n| Rows::Chunk(n)).collect()
}

fn every_type(window: usize, n_sinks: usize, steps: &[Rows]) {
    let (dynamic, given) = (Scaling::Dynamic, Scaling::Static(&SCALES));
    ring_is_the_whole_masked::<f32>(window, n_sinks, dynamic, steps);
    ring_is_the_whole_masked::<bf16>(window, n_sinks, dynamic, steps);
    ring_is_the_whole_masked::<f16>(window, n_sinks, dynamic, steps);
    ring_is_the_whole_masked::<i8>(window, n_sinks, dynamic, steps);
    ring_is_the_whole_masked::<i8>(window, n_sinks, given, steps);
    ring_is_the_whole_masked::<E4M3>(window, n_sinks, dynamic, steps);
    ring_is_the_whole_masked::<E5M2>(window, n_sinks, given, steps);
}

#[test]
fn chunks_from_every_offset_of_the_ring_have_the_bits_of_the_whole() {
    for window in [1, 2, 5] {
        for n_sinks in 0..window {
            for before in 0..=2 * window {
                for n in [1, window - 1, window, window + 1, 2 * window + 3] {
                    let steps = chunks(&[before, n, 1, 1]);
                    ring_is_the_whole_masked::<f32>(window, n_sinks, Scaling::Dynamic, &steps);
                }
            }
        }
    }
}

#[test]
fn rings_longer_than_a_tile_have_the_bits_of_the_whole_in_every_type() {
    for window in [63, 70, 128] {
        for n_sinks in [0, 4] {
            let chunk = window + 33;
            every_type(window, n_sinks, &chunks(&[40, 1, chunk, 1, 1, 0, window, 3, 64, 1]));
        }
    }
}

#[test]
fn trees_have_the_bits_of_the_whole() {
    let parents = vec![None, Some(0), Some(0), Some(2), None, Some(3), Some(5)];
    let tree = |path: &[usize]| Rows::Tree(parents.clone(), path.to_vec());
    for window in [1, 2, 3, 4, 6, 70] {
        for n_sinks in [0, 1, 3].into_iter().filter(|&n| n < window) {
            let mut steps = vec![tree(&[0, 2, 3, 5]), Rows::Chunk(1), tree(&[4])];
            steps.extend([Rows::Chunk(window), tree(&[]), Rows::Chunk(1), tree(&[0, 1])]);
            every_type(window, n_sinks, &steps);
        }
    }
}

#[test]
fn one_call_appends_as_a_step_does() {
    fn check<E: KvElement>(window: usize, n_sinks: usize, scaling: Scaling<'_>) {
        let shape = KvShape { n_layers: 1, ..SHAPE };
        let new =
            || SlidingWindowKv::<E>::with_sinks(shape, window, absolute(n_sinks), scaling).unwrap();
        let (mut appended, mut stepped) = (new(), new());
        for (seed, n) in [3, 1, 0, 2 * window + 1, 1, window, 1].into_iter().enumerate() {
            // Tokens lie apart, every other one.
            let apart = tokens(2 * n, 0, seed);
            let [k, v] = apart.each_ref().map(|x| x.slice(s![..;2, .., ..]));
            appended.append(k, v).unwrap();
            let mut step = stepped.begin(n).unwrap();
            step.write(0, k, v).unwrap();
            step.commit().unwrap();
            assert_eq!(appended.len(), stepped.len());
            let [a, b] = [&appended, &stepped].map(|cache| rows(&cache.view(0).unwrap()));
            assert!(a == b, "{} {window} {n_sinks}: {n} tokens", E::NAME);
        }
    }
    for window in [1, 2, 5, 9] {
        for n_sinks in 0..window.min(5) {
            check::<f32>(window, n_sinks, Scaling::Dynamic);
            check::<i8>(window, n_sinks, Scaling::Dynamic);
            check::<E4M3>(window, n_sinks, Scaling::Static(&SCALES[..1]));
        }
    }
}

/// Writes tokens of `seed` to all layers.
fn append<E: KvElement>(cache: &mut SlidingWindowKv<E>, n: usize, seed: usize) {
    let mut step = cache.begin(n).unwrap();
    for layer in 0..SHAPE.n_layers {
        let [k, v] = tokens(n, layer, seed);
        step.write(layer, k.view(), v.view()).unwrap();
    }
    step.commit().unwrap();
}

#[test]
fn a_refused_call_says_why_and_changes_nothing() {
    fn new(window: usize, n_sinks: usize) -> Option<Error> {
        let sinks = absolute(n_sinks);
        SlidingWindowKv::<f32>::with_sinks(SHAPE, window, sinks, Scaling::Dynamic).err()
    }
    assert_eq!(new(0, 0), Some(Error::Zero { what: "window" }));
    assert_eq!(new(4, 4), Some(Error::Sinks { n_sinks: 4, window: 4 }));
    assert_eq!(new(4, usize::MAX), Some(Error::Sinks { n_sinks: usize::MAX, window: 4 }));
    assert_eq!(new(4, 3), None);
    let (n_blocks, max) = (1, u32::MAX as usize - 2);
    let too_many = |block_size| Some(Error::TooManySlots { n_blocks, block_size, max });
    assert_eq!(new(max + 1, 0), too_many(max + 1));
    let shape = KvShape { n_heads: 0, ..SHAPE };
    let error = SlidingWindowKv::<f32>::new(shape, 4, Scaling::Dynamic).err();
    assert_eq!(error, Some(Error::Zero { what: "n_heads" }));
    let error = SlidingWindowKv::<f16>::new(SHAPE, 4, Scaling::Static(&SCALES)).err();
    assert_eq!(error, Some(Error::NotScaled { element: "f16" }));
    let (what, axis) = ("scales", "layers");
    let error = SlidingWindowKv::<i8>::new(SHAPE, 4, Scaling::Static(&SCALES[..1])).err();
    assert_eq!(error, Some(Error::Axis { what, axis, expected: 2, actual: 1 }));

    let given = Scaling::Static(&SCALES);
    let mut cache = SlidingWindowKv::<i8>::with_sinks(SHAPE, 6, absolute(2), given).unwrap();
    append(&mut cache, 9, 1);
    let before = rows(&cache.view(1).unwrap());
    assert_eq!(cache.begin(max + 1).err(), too_many(max + 1));
    assert_eq!(cache.reserve(max + 1).err(), too_many(max + 1));
    let too_long = Error::TooLong { len: 9, n_new: usize::MAX, max: usize::MAX };
    assert_eq!(cache.begin(usize::MAX).err(), Some(too_long));
    assert_eq!(cache.truncate(10), Err(Error::Truncate { len: 9, to: 10 }));
    assert_eq!(cache.truncate(7), Err(Error::LeftWindow { to: 7, needed: 4, kept: 5 }));
    assert_eq!(cache.truncate(3), Err(Error::LeftWindow { to: 3, needed: 2, kept: 5 }));
    assert_eq!(cache.view(2).err(), Some(Error::UnknownLayer { layer: 2, n_layers: 2 }));
    let [k, mut v] = tokens(2, 0, 4);
    let axis = |what, axis, expected, actual| Err(Error::Axis { what, axis, expected, actual });
    assert_eq!(cache.append(k.view(), v.view()), axis("cache", "layers", 1, 2));
    let mut step = cache.begin(2).unwrap();
    let unknown = Error::UnknownLayer { layer: 2, n_layers: 2 };
    assert_eq!(step.write(2, k.view(), v.view()), Err(unknown));
    assert_eq!(step.view(2).err(), Some(unknown));
    assert_eq!(step.write(0, k.slice(s![..1, .., ..]), v.view()), axis("keys", "tokens", 2, 1));
    assert_eq!(step.write(0, k.view(), k.view()), axis("values", "width", 6, 8));
    assert_eq!(
        step.write(0, k.slice(s![.., .., ..;-1]), v.view()),
        Err(Error::Layout { what: "keys", shape: [2, 2, 8], strides: [16, 8, -1] })
    );
    assert_eq!(step.view(0).err(), Some(Error::NotWritten { layer: 0, index: 0 }));
    step.write(0, k.view(), v.view()).unwrap();
    v[[1, 0, 3]] = f32::NAN;
    let refused = Error::NotFinite { what: "values", element: "int8", token: 1, head: 0 };
    assert_eq!(step.write(1, k.view(), v.view()), Err(refused));
    let path = Error::Path { index: 0, node: 2, least: 0, n_new: 2 };
    assert_eq!(step.accept(&[2]), Err(path));
    assert_eq!(step.commit(), Err(Error::NotWritten { layer: 1, index: 0 }));
    assert_eq!((cache.len(), rows(&cache.view(1).unwrap())), (9, before.clone()));

    let one = KvShape { n_layers: 1, ..SHAPE };
    let mut cache = SlidingWindowKv::<i8>::new(one, 6, Scaling::Static(&SCALES[..1])).unwrap();
    let [k, good] = tokens(2, 0, 4);
    cache.append(k.view(), good.view()).unwrap();
    let before = rows(&cache.view(0).unwrap());
    assert_eq!(cache.append(k.view(), v.view()), Err(refused));
    assert_eq!(cache.append(k.view(), good.slice(s![..1, .., ..])), axis("values", "tokens", 2, 1));
    assert_eq!((cache.len(), rows(&cache.view(0).unwrap())), (2, before));
}

#[test]
fn a_cut_ends_where_the_window_ends() {
    // Without sinks, and behind as many tokens as to have wrapped: one token can be taken back, and then the others.
    for window in [2, 3, 7] {
        let mut cache = SlidingWindowKv::<f32>::new(SHAPE, window, Scaling::Dynamic).unwrap();
        append(&mut cache, 20, 1);
        for to in (0..20_usize).rev() {
            let needed = (to + 1).saturating_sub(window);
            let kept = 20 - window;
            let result = cache.truncate(to);
            if to == 19 {
                assert_eq!((result, cache.len()), (Ok(()), 19));
                assert_eq!(cache.view(0).unwrap().len(), window - 1);
            } else if to == 0 {
                assert_eq!((result, cache.view(0).unwrap().len()), (Ok(()), 0));
            } else {
                let error = Error::LeftWindow { to, needed, kept };
                assert_eq!((result, cache.len()), (Err(error), 19));
            }
        }
    }
    // A window of one token, of which the next one needs nothing; and down to the sinks, which never leave.
    for (window, n_sinks, to) in [(1, 0, 5), (8, 3, 3), (8, 3, 1), (4, 3, 9)] {
        let sinks = absolute(n_sinks);
        let mut cache =
            SlidingWindowKv::<f32>::with_sinks(SHAPE, window, sinks, Scaling::Dynamic).unwrap();
        append(&mut cache, 20, 1);
        let before = rows(&cache.view(1).unwrap());
        cache.truncate(to).unwrap();
        let n_left = n_sinks.min(to);
        assert_eq!(rows(&cache.view(1).unwrap()), before[..4 * n_left]);
        append(&mut cache, 1, 2);
        assert_eq!((cache.len(), cache.view(1).unwrap().len()), (to + 1, n_left + 1));
    }
}

#[test]
fn steps_allocate_nothing_once_there_is_room() {
    let mut cache =
        SlidingWindowKv::<i8>::with_sinks(SHAPE, 10, absolute(2), Scaling::Dynamic).unwrap();
    let one = KvShape { n_layers: 1, ..SHAPE };
    let mut single = SlidingWindowKv::<bf16>::new(one, 10, Scaling::Dynamic).unwrap();
    cache.reserve(23).unwrap();
    let input: Vec<[Array3<f32>; 2]> = (0..24).map(|n| tokens(n, 0, n)).collect();
    let mut out = [SHAPE.key_dim, SHAPE.value_dim].map(|width| Array3::zeros((2, 10, width)));
    let mut steps = || -> squish_kv::Result<usize> {
        let mut n_seen = 0;
        for n in [1, 23, 1, 4, 0, 1, 12] {
            let [k, v] = &input[n];
            let mut step = cache.begin(n)?;
            for layer in 0..SHAPE.n_layers {
                step.write(layer, k.view(), v.view())?;
                let view = step.view(layer)?;
                n_seen += (0..view.len()).filter(|&token| view.sees(0, token)).count();
            }
            if n == 4 {
                step.accept(&[0, 2])?;
            }
            step.commit()?;
            single.append(k.view(), v.view())?;
        }
        let [k, v] = &mut out;
        cache.gather_into(1, k.view_mut(), v.view_mut())?;
        cache.truncate(cache.len() - 1)?;
        cache.clear();
        Ok(n_seen)
    };
    // The first call reads the environment.
    steps().unwrap();
    assert_eq!(count_allocations(steps).1, 0);
    let (error, n) = count_allocations(|| cache.begin(24).map(drop));
    assert!(error.is_ok() && n > 0, "a larger step makes room");
    assert_eq!(count_allocations(|| cache.begin(24).map(drop)), (Ok(()), 0));
}

/// Attention of `q`, `[heads, width]`, to tokens `[tokens, heads, width]`, in f64.
fn definition(q: &Array2<f32>, keys: &Array3<f32>, values: &Array3<f32>) -> Vec<f64> {
    let (n_heads, width) = q.dim();
    let group = n_heads / keys.dim().1;
    let mut out = Vec::new();
    for head in 0..n_heads {
        let dot = |token: usize| -> f64 {
            let k = keys.slice(s![token, head / group, ..]);
            q.row(head).iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum()
        };
        let scores: Vec<f64> =
            (0..keys.dim().0).map(|t| (dot(t) / (width as f64).sqrt()).exp()).collect();
        let sum: f64 = scores.iter().sum();
        for i in 0..values.dim().2 {
            let value = |t: usize| f64::from(values[[t, head / group, i]]);
            out.push(scores.iter().enumerate().map(|(t, s)| s * value(t)).sum::<f64>() / sum);
        }
    }
    out
}

fn close(got: &[u32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().map(|&x| f64::from(f32::from_bits(x))).zip(want) {
        assert!((got - want).abs() < 2e-6, "{got} is not {want}");
    }
}

/// Rotates tokens `[tokens, heads, width]`.
fn rotated(table: &RopeTable, x: ArrayView3<'_, f32>, positions: &[usize]) -> Array3<f32> {
    let mut x = x.as_standard_layout().into_owned();
    table.apply_in_place(x.view_mut(), positions, RopeLayout::HalfSplit).unwrap();
    x
}

#[test]
fn positions_in_the_cache_are_those_of_the_paper() {
    let (window, n_sinks, width) = (12, 3, 16);
    let shape = KvShape::new(1, 2, width);
    let mut table =
        RopeTable::new(RopeConfig::new(width, 100.0, 64), RopeOptions::default()).unwrap();
    table.extend_to(64).unwrap();
    let sinks = StreamingSinks { n_sinks, ..StreamingSinks::default() };
    let cache =
        |sinks| SlidingWindowKv::<f32>::with_sinks(shape, window, sinks, Scaling::Dynamic).unwrap();
    let (mut relative, mut moved) = (cache(sinks), cache(absolute(n_sinks)));
    let (all_k, all_v) = (numbers(40, 2, width, 1), numbers(40, 2, width, 2));
    for token in 0..40 {
        let here = s![token..=token, .., ..];
        let q = numbers(1, N_HEADS, width, token + 100);

        // The paper: keys of the first tokens and the last ones, rotated by where they stand among each other.
        let kept: Vec<usize> =
            (0..=token).filter(|&t| t < n_sinks || t + window - n_sinks > token).collect();
        let places: Vec<usize> = (0..kept.len()).collect();
        let last = kept.len() - 1;
        let keys = rotated(&table, all_k.select(Axis(0), &kept).view(), &places);
        let query = rotated(&table, q.view(), &[last]);
        let values = all_v.select(Axis(0), &kept);
        let want = definition(&query.index_axis(Axis(0), 0).to_owned(), &keys, &values);

        // Keys as they came, rotated when they are read.
        let mut step = relative.begin(1).unwrap();
        step.write(0, all_k.slice(here), all_v.slice(here)).unwrap();
        let view = step.view(0).unwrap();
        let position =
            |i: usize| view.run(view.run_of(i)).position + i - view.run(view.run_of(i)).start;
        let (mut keys, values) = gather(&view).unwrap();
        let positions: Vec<usize> = (0..view.len()).map(position).collect();
        assert_eq!(positions, places);
        for head in keys.outer_iter_mut() {
            let head = head.insert_axis(Axis(1));
            table.apply_in_place(head, &positions, RopeLayout::HalfSplit).unwrap();
        }
        let arrays = [keys.as_slice().unwrap(), values.as_slice().unwrap()];
        let source = KvArrays::new(arrays, 2, view.len(), [width, width]).unwrap();
        close(&attend(&source, query.view(), Mask::Full, &Options::default()), &want);
        step.commit().unwrap();

        // Keys rotated by their absolute positions; those of the sinks follow by as many tokens as have left.
        let mut step = moved.begin(1).unwrap();
        let key = rotated(&table, all_k.slice(here), &[token]);
        step.write(0, key.view(), all_v.slice(here)).unwrap();
        let query = rotated(&table, q.view(), &[token]);
        close(&by_moved_sinks(&table, &step.view(0).unwrap(), n_sinks, query.view()), &want);
        step.commit().unwrap();
    }
}

/// The ring is read in place, sinks as rotated copies, and both results are merged.
fn by_moved_sinks(
    table: &RopeTable,
    view: &RingView<'_, f32>,
    n_sinks: usize,
    query: ArrayView3<'_, f32>,
) -> Vec<u32> {
    let last = view.run(view.n_runs() - 1);
    let n_left = last.position - last.start;
    let (mut keys, values) = gather(view).unwrap();
    let n_sinks = n_sinks.min(view.len());
    let shift = table.rotate_by(n_left as isize);
    for mut head in keys.outer_iter_mut() {
        let sinks = head.slice_mut(s![..n_sinks, ..]).insert_axis(Axis(1));
        shift.apply_in_place(sinks, RopeLayout::HalfSplit).unwrap();
    }
    let width = view.key_dim();
    let arrays = [keys.as_slice().unwrap(), values.as_slice().unwrap()];
    let copies = KvArrays::new(arrays, 2, view.len(), [width, width]).unwrap();
    let (mut out, mut lse) = part(&copies, query, |token| token < n_sinks);
    let (others, their_lse) = part(view, query, |token| token >= n_sinks);
    merge_in_place(out.view_mut(), lse.view_mut(), others.view(), their_lse.view()).unwrap();
    out.iter().map(|x| x.to_bits()).collect()
}

/// Attention of one row to some of the tokens, and the logarithms of its sums.
fn part<S: KvSource>(
    source: &S,
    query: ArrayView3<'_, f32>,
    sees: impl Fn(usize) -> bool,
) -> (Array3<f32>, Array2<f32>) {
    let mask = BitMask::from_fn(1, source.len(), |_, token| sees(token));
    let row = Sequence { source, n_rows: 1, mask: Mask::Custom(&mask) };
    let mut out = Array3::zeros((1, N_HEADS, source.value_dim()));
    let mut lse = Array2::zeros((1, N_HEADS));
    let mut workspace = Workspace::new(Arc::new(Team::new(1).unwrap()));
    workspace
        .attend_with_lse_into(query, &[row], &Options::default(), out.view_mut(), lse.view_mut())
        .unwrap();
    (out, lse)
}

#[test]
fn a_cache_says_what_it_was_made_with() {
    let sinks = StreamingSinks::default();
    assert_eq!(sinks, StreamingSinks { n_sinks: 4, positions: Positions::CacheRelative });
    let cache = SlidingWindowKv::<f32>::with_sinks(SHAPE, 9, sinks, Scaling::Dynamic).unwrap();
    assert_eq!((cache.window(), cache.sinks(), cache.shape()), (9, sinks, SHAPE));
    let cache = SlidingWindowKv::<f32>::new(SHAPE, 9, Scaling::Dynamic).unwrap();
    assert_eq!(cache.sinks(), absolute(0));
    assert!(cache.is_empty() && cache.view(0).unwrap().is_empty());
}
