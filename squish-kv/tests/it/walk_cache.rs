//! Random operations on a paged cache, against one vector of tokens per sequence. Shared with the fuzz target.
//!
//! A token's keys and values are made from a digest of the cache's key and of all tokens up to it, as they are in a model. After each
//! operation the rows of every sequence are those of its digests, bit for bit: a block that is shared with whom it should not be, written to
//! by one of several owners, or touched by a step that was dropped, shows.

use std::num::NonZeroUsize;

use squish_kernels::{
    element::{E4M3, E5M2},
    kv::{RowScales, decode_rows_into, encode_rows_into},
};
use squish_kv::{
    Error, KvElement, KvShape, KvSource, PagedKvCache, PrefixKey, Retention, Rows, Salt, Scaling,
    Scope, SequenceId, ndarray::ArrayView3,
};

use super::walk::{Choices, mix};

pub(crate) const SHAPE: KvShape = KvShape { n_layers: 2, n_heads: 2, key_dim: 5, value_dim: 3 };

/// Scales that are given, where they are: of keys and values in each layer.
pub(crate) const SCALES: [[f32; 2]; 2] = [[0.01, 0.02], [0.03, 0.004]];

#[derive(Clone, Debug)]
struct Model {
    id: SequenceId,
    tokens: Vec<u32>,
    digests: Vec<u64>,
    key: Option<usize>,
    window: Option<usize>,
}

impl Model {
    fn push(&mut self, tokens: &[u32]) {
        for &token in tokens {
            let seed = self.key.map_or(7, |key| key as u64);
            self.digests.push(mix(self.digests.last().copied().unwrap_or(seed), token));
            self.tokens.push(token);
        }
    }

    /// The first position that the next token reads.
    fn first_read(&self) -> usize {
        self.window.map_or(0, |window| self.tokens.len().saturating_sub(window - 1))
    }
}

struct World<E> {
    cache: PagedKvCache<E>,
    is_static: bool,
    keys: [PrefixKey; 2],
    live: Vec<Model>,
    freed: Vec<SequenceId>,
    n_garbage: u64,
}

/// Carries out the operations that `bytes` say, and checks everything after each.
pub(crate) fn walk_cache(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    match choices.below(5) {
        0 => walk::<f32>(choices, Scaling::Dynamic),
        1 => walk::<i8>(choices, Scaling::Dynamic),
        2 => walk::<E4M3>(choices, Scaling::Dynamic),
        3 => walk::<E5M2>(choices, Scaling::Static(&SCALES)),
        _ => walk::<i8>(choices, Scaling::Static(&SCALES)),
    }
}

fn walk<E: KvElement>(mut choices: Choices<'_>, scaling: Scaling<'_>) {
    let (n_blocks, block_size) = (1 + choices.below(12), 1 + choices.below(4));
    let key = |salt| Scope { model: b"model", adapter: None, layer_group: 0, salt }.key();
    let mut world = World::<E> {
        cache: PagedKvCache::new(SHAPE, n_blocks, block_size, scaling).unwrap(),
        is_static: matches!(scaling, Scaling::Static(_)),
        keys: [key(Salt::Shared), key(Salt::Tenant(b"salt"))],
        live: Vec::new(),
        freed: Vec::new(),
        n_garbage: 1 << 40,
    };
    while !choices.0.is_empty() {
        world.operate(&mut choices);
        world.check();
    }
    while let Some(model) = world.live.pop() {
        world.cache.free(model.id).unwrap();
        world.check();
    }
    assert_eq!(world.cache.tables().pool().n_free(), n_blocks, "all is free when all are freed");
}

/// What the token of a digest has in a layer: keys, then values, of all heads.
pub(crate) fn numbers(digest: u64, layer: usize) -> [Vec<f32>; 2] {
    let row = |which: u64, n: usize| {
        let of = |i: usize| {
            let bits = mix(digest ^ which << 60 ^ (layer as u64) << 50, i as u32);
            (bits >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        };
        (0..n).map(of).collect()
    };
    [row(1, SHAPE.n_heads * SHAPE.key_dim), row(2, SHAPE.n_heads * SHAPE.value_dim)]
}

impl<E: KvElement> World<E> {
    fn operate(&mut self, choices: &mut Choices<'_>) {
        let operation = choices.below(12);
        if operation < 2 || self.live.is_empty() {
            return self.create(choices, operation == 0);
        }
        let at = choices.below(self.live.len());
        match operation {
            2 => {
                let mut child = self.live[at].clone();
                child.id = self.cache.fork(child.id).unwrap();
                self.live.push(child);
            }
            3 => {
                let model = &mut self.live[at];
                let to = choices.below(model.tokens.len() + 2);
                match self.cache.truncate(model.id, to) {
                    Ok(()) => {
                        model.tokens.truncate(to);
                        model.digests.truncate(to);
                    }
                    Err(Error::Truncate { .. }) => assert!(to > model.tokens.len()),
                    Err(Error::LeftWindow { .. }) => assert!(model.window.is_some()),
                    Err(error) => panic!("{error}"),
                }
            }
            4 => {
                let model = self.live.swap_remove(at);
                self.cache.free(model.id).unwrap();
                self.freed.push(model.id);
            }
            5 => self.use_stale(choices),
            6 => self.append_to_layers(at),
            _ => self.step(choices),
        }
    }

    fn create(&mut self, choices: &mut Choices<'_>, without_key: bool) {
        let window = Some(choices.below(9)).filter(|&window| window > 0);
        let retention =
            window.and_then(NonZeroUsize::new).map_or(Retention::All, Retention::Window);
        let (tokens, digests) = (Vec::new(), Vec::new());
        if without_key {
            let id = self.cache.create(retention).unwrap();
            return self.live.push(Model { id, tokens, digests, key: None, window });
        }
        let key = choices.below(self.keys.len());
        let mut prompt = match self.live.get(choices.below(self.live.len() + 1)) {
            Some(model) => model.tokens.clone(),
            None => Vec::new(),
        };
        let n_more = choices.below(6);
        prompt.extend(choices.tokens(n_more));
        let (id, n_cached) =
            self.cache.create_with_prefix(&self.keys[key], &prompt, retention).unwrap();
        let mut model = Model { id, tokens, digests, key: Some(key), window };
        model.push(&prompt[..n_cached]);
        self.live.push(model);
    }

    fn use_stale(&mut self, choices: &mut Choices<'_>) {
        if self.freed.is_empty() {
            return;
        }
        let id = self.freed[choices.below(self.freed.len())];
        let stale = Error::StaleSequence { id };
        assert_eq!(self.cache.view(0, id).err(), Some(stale));
        assert_eq!(self.cache.free(id), Err(stale));
        let alive = self.live[0].id;
        assert_eq!(self.cache.begin(&[(alive, 1), (id, 1)]).err(), Some(stale));
        if let Ok(mut step) = self.cache.begin(&[(alive, 1)]) {
            let [k, v] = numbers(0, 0);
            let [k, v] = arrays(1, [&k, &v]);
            assert_eq!(step.write(0, id, k, v), Err(stale));
        }
    }

    /// A cache of several layers takes no tokens that have one.
    fn append_to_layers(&mut self, at: usize) {
        let [k, v] = numbers(0, 0);
        let [k, v] = arrays(1, [&k, &v]);
        let error = self.cache.append(self.live[at].id, k, v).err();
        let (what, axis) = ("cache", "layers");
        assert_eq!(error, Some(Error::Axis { what, axis, expected: 1, actual: SHAPE.n_layers }));
    }

    fn step(&mut self, choices: &mut Choices<'_>) {
        let n_sequences = 1 + choices.below(self.live.len().min(3));
        let first = choices.below(self.live.len());
        let chosen: Vec<usize> = (0..n_sequences).map(|i| (first + i) % self.live.len()).collect();
        let batch: Vec<(SequenceId, usize)> =
            chosen.iter().map(|&at| (self.live[at].id, choices.below(8))).collect();
        let (is_dropped, is_incomplete) = (choices.below(4) == 0, choices.below(6) == 0);
        let mut step = match self.cache.begin(&batch) {
            Ok(step) => step,
            Err(Error::PoolExhausted { needed, free }) => return assert!(needed > free),
            Err(error) => panic!("{error}"),
        };
        let mut committed = Vec::new();
        for (&at, &(id, n_new)) in chosen.iter().zip(&batch) {
            let mut model = self.live[at].clone();
            // Which of the new tokens stay, and what they are.
            let stay: Vec<usize> = match choices.below(3) {
                0 => (0..n_new).filter(|_| choices.below(2) == 0).collect(),
                _ => (0..n_new).collect(),
            };
            let nodes = choices.tokens(n_new);
            let kept: Vec<u32> = stay.iter().map(|&node| nodes[node]).collect();
            let n_before = model.tokens.len();
            model.push(&kept);
            let mut new: Vec<u64> = Vec::new();
            for node in 0..n_new {
                self.n_garbage += 1;
                let kept_at = stay.iter().position(|&kept| kept == node);
                new.push(kept_at.map_or(self.n_garbage, |i| model.digests[n_before + i]));
            }
            if is_dropped {
                for digest in &mut new {
                    *digest ^= 1 << 30;
                }
            }
            let (is_recorded, is_first) = (choices.below(4) > 0, choices.below(2) == 0);
            if is_recorded && is_first {
                step.record(id, &nodes).unwrap();
            }
            // After how many layers the path is known.
            let n_before_path = choices.below(SHAPE.n_layers + 1);
            let mut all = self.live[at].digests.clone();
            all.extend(&new);
            let n_written = if is_incomplete { 1 } else { SHAPE.n_layers };
            for layer in 0..=n_written {
                if layer == n_before_path.min(n_written) {
                    step.accept(id, &stay).unwrap();
                    all.truncate(n_before);
                    all.extend(stay.iter().map(|&node| new[node]));
                }
                if layer == n_written {
                    break;
                }
                if all.len() > n_before {
                    let (index, error) = (committed.len(), step.view(layer, id).err());
                    assert_eq!(error, Some(Error::NotWritten { layer, index }));
                }
                let n = all.len() - n_before;
                let [k, v] = [0, 1].map(|which| -> Vec<f32> {
                    let of = |&digest: &u64| numbers(digest, layer)[which].clone();
                    all[n_before..].iter().flat_map(of).collect()
                });
                let [k, v] = arrays(n, [&k, &v]);
                step.write(layer, id, k, v).unwrap();
                assert!(step.write(SHAPE.n_layers, id, k, v).is_err());
                assert_eq!(
                    step.write(layer, id, v, v).is_ok(),
                    n == 0 && SHAPE.key_dim == SHAPE.value_dim
                );
                for written in 0..=layer {
                    let view = step.view(written, id).unwrap();
                    check_rows(&view, &all, written, self.is_static);
                }
            }
            if is_recorded && !is_first {
                step.record(id, &kept).unwrap();
            }
            committed.push((at, model));
        }
        if is_dropped {
            return;
        }
        let mut has_new = chosen
            .iter()
            .zip(&committed)
            .map(|(&at, (_, model))| model.tokens.len() > self.live[at].tokens.len());
        let missing = is_incomplete && has_new.any(|has| has);
        match step.commit() {
            Ok(()) => {
                assert!(!missing);
                for (at, model) in committed {
                    self.live[at] = model;
                }
            }
            Err(error) => {
                assert!(missing && matches!(error, Error::NotWritten { .. }), "{error}");
            }
        }
    }

    fn check(&self) {
        for model in &self.live {
            assert_eq!(self.cache.len(model.id), Ok(model.tokens.len()));
            for layer in 0..SHAPE.n_layers {
                let view = self.cache.view(layer, model.id).unwrap();
                let first = check_rows(&view, &model.digests, layer, self.is_static);
                assert!(first <= model.first_read(), "{model:?} lacks what it reads");
            }
        }
    }
}

pub(crate) fn arrays(n_tokens: usize, rows: [&[f32]; 2]) -> [ArrayView3<'_, f32>; 2] {
    let array = |rows, dim| ArrayView3::from_shape((n_tokens, SHAPE.n_heads, dim), rows).unwrap();
    [array(rows[0], SHAPE.key_dim), array(rows[1], SHAPE.value_dim)]
}

/// The last tokens are where the runs say, and their rows are those of their digests. Returns the position of the first one that is there.
fn check_rows<S: KvSource>(view: &S, digests: &[u64], layer: usize, is_static: bool) -> usize {
    let first = digests.len() - view.len();
    let here = &digests[first..];
    let mut index = 0;
    for at in 0..view.n_runs() {
        let run = view.run(at);
        assert!(run.len > 0 && (run.start, run.position) == (index, first + index), "{run:?}");
        for i in 0..run.len {
            assert_eq!(view.run_of(index), at);
            let want = numbers(here[index], layer);
            for head in 0..SHAPE.n_heads {
                let rows = [view.keys(head, at), view.values(head, at)];
                for (which, dim) in [SHAPE.key_dim, SHAPE.value_dim].into_iter().enumerate() {
                    let scale = is_static.then(|| SCALES[layer][which]);
                    let want = rounded::<S::Element>(&want[which][head * dim..][..dim], scale);
                    let (got, _) = value(rows[which], i, dim);
                    assert_eq!(got, want, "position {} of layer {layer}", first + index);
                }
            }
            index += 1;
        }
    }
    assert_eq!(index, here.len());
    first
}

/// The bits of a row's values, and its scale.
pub(crate) fn value<E: KvElement>(
    rows: Rows<'_, E>,
    i: usize,
    dim: usize,
) -> (Vec<u32>, Option<f32>) {
    let scale = rows.scales.map(|scales| scales[i]);
    let row = &rows.data[i * rows.stride..][..dim];
    (row.iter().map(|x| (x.to_f32() * scale.unwrap_or(1.0)).to_bits()).collect(), scale)
}

/// The bits of what a row becomes in the cache.
pub(crate) fn rounded<E: KvElement>(x: &[f32], scale: Option<f32>) -> Vec<u32> {
    let (mut codes, mut scales) = (vec![E::default(); x.len()], [scale.unwrap_or(1.0)]);
    let asked = match (E::LARGEST, scale) {
        (None, _) => RowScales::None,
        (_, Some(scale)) => RowScales::Given(scale),
        (_, None) => RowScales::PerRow(&mut scales),
    };
    encode_rows_into(
        Rows { data: x, stride: x.len(), scales: None },
        [1, x.len()],
        asked,
        &mut codes,
    );
    let mut out = vec![0.0; x.len()];
    let scales = E::LARGEST.map(|_| &scales[..]);
    decode_rows_into(Rows { data: &codes, stride: x.len(), scales }, [1, x.len()], &mut out);
    out.iter().map(|x| x.to_bits()).collect()
}
