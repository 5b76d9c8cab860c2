//! Random operations on a ring, against a vector of all tokens and the positions that are held. Shared with the fuzz target.
//!
//! A token's keys and values are made from a number that no other token of the sequence has. After each operation the rows that are
//! held are those of their tokens, bit for bit, and they are the sinks and what the definition of the window says.

use squish_kernels::element::{E4M3, E5M2};
use squish_kv::{
    Error, KvElement, KvSource, Positions, RingView, Scaling, SlidingWindowKv, SlidingWindowStep,
    StreamingSinks,
};

use super::{
    walk::{Choices, mix},
    walk_cache::{SCALES, SHAPE, arrays, numbers, rounded, value},
};

/// The definition: a sequence of which nothing is forgotten, and the first token of the ring that was not overwritten.
struct Model {
    window: usize,
    sinks: StreamingSinks,
    tokens: Vec<u64>,
    first: usize,
}

impl Model {
    fn n_ring(&self) -> usize {
        self.window - self.sinks.n_sinks
    }

    fn sees(&self, position: usize, token: usize) -> bool {
        let is_near = token + self.n_ring() > position;
        token <= position && (token < self.sinks.n_sinks || is_near)
    }

    /// What is held of the first `len` tokens.
    fn is_held(&self, token: usize) -> bool {
        token < self.tokens.len() && (token < self.sinks.n_sinks || token >= self.first)
    }

    fn commit(&mut self, tokens: &[u64]) {
        self.tokens.extend(tokens);
        self.first = self.first.max(self.tokens.len().saturating_sub(self.n_ring()));
    }
}

struct World<E> {
    cache: SlidingWindowKv<E>,
    is_static: bool,
    model: Model,
    n_made: u64,
}

/// Carries out the operations that `bytes` say, and checks everything after each.
pub(crate) fn walk_ring(bytes: &[u8]) {
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
    let window = 1 + choices.below(9);
    let n_sinks = choices.below(window);
    let positions = [Positions::Absolute, Positions::CacheRelative][choices.below(2)];
    let sinks = StreamingSinks { n_sinks, positions };
    let mut world = World::<E> {
        cache: SlidingWindowKv::with_sinks(SHAPE, window, sinks, scaling).unwrap(),
        is_static: matches!(scaling, Scaling::Static(_)),
        model: Model { window, sinks, tokens: Vec::new(), first: 0 },
        n_made: 0,
    };
    while !choices.0.is_empty() {
        match choices.below(8) {
            0 => world.truncate(&mut choices),
            1 if choices.below(4) == 0 => {
                world.cache.clear();
                (world.model.tokens, world.model.first) = (Vec::new(), 0);
            }
            _ => world.step(&mut choices),
        }
        world.check();
    }
}

impl<E: KvElement> World<E> {
    fn truncate(&mut self, choices: &mut Choices<'_>) {
        let len = self.model.tokens.len();
        // Near the end, where a ring still has what is needed, or anywhere.
        let to = match choices.below(2) {
            0 => len.saturating_sub(choices.below(4)),
            _ => choices.below(len + 2),
        };
        let seen = |token| self.model.sees(to, token);
        let missing = (0..to.min(len)).find(|&token| seen(token) && !self.model.is_held(token));
        match (self.cache.truncate(to), missing) {
            (Ok(()), None) => {
                assert!(to <= len);
                self.model.tokens.truncate(to);
                self.model.first = self.model.first.min(to);
            }
            (Err(error), _) if to > len => assert_eq!(error, Error::Truncate { len, to }),
            (Err(error), Some(needed)) => {
                assert_eq!(error, Error::LeftWindow { to, needed, kept: self.model.first });
            }
            (result, missing) => panic!("{result:?}, of a cut to {to} that lacks {missing:?}"),
        }
    }

    fn step(&mut self, choices: &mut Choices<'_>) {
        let most = [4, 30][choices.below(2)];
        let n_new = choices.below(most);
        let (is_dropped, is_incomplete) = (choices.below(4) == 0, choices.below(6) == 0);
        // Which of the new tokens stay, and after how many layers that is known.
        let stay: Vec<usize> = match choices.below(3) {
            0 => (0..n_new).filter(|_| choices.below(2) == 0).collect(),
            _ => (0..n_new).collect(),
        };
        let n_before_path = choices.below(SHAPE.n_layers + 1);
        let mut new: Vec<u64> = (0..n_new as u64).map(|i| mix(self.n_made + i, 5)).collect();
        self.n_made += n_new as u64;
        let n_written = if is_incomplete { 1 } else { SHAPE.n_layers };

        let mut step = self.cache.begin(n_new).unwrap();
        for layer in 0..=n_written {
            if layer == n_before_path.min(n_written) {
                step.accept(&stay).unwrap();
                new = stay.iter().map(|&node| new[node]).collect();
            }
            if layer == n_written {
                break;
            }
            if !new.is_empty() {
                let error = Error::NotWritten { layer, index: 0 };
                assert_eq!(step.view(layer).err(), Some(error));
            }
            write(&mut step, layer, &new);
            for written in 0..=layer {
                check_step(
                    &self.model,
                    &step.view(written).unwrap(),
                    &new,
                    written,
                    self.is_static,
                );
            }
        }
        assert_eq!(step.len_with_new(), self.model.tokens.len() + new.len());
        if is_dropped {
            return;
        }
        let missing = is_incomplete && !new.is_empty();
        match step.commit() {
            Ok(()) => {
                assert!(!missing);
                self.model.commit(&new);
            }
            Err(error) => {
                assert!(missing && matches!(error, Error::NotWritten { layer: 1, .. }), "{error}");
            }
        }
    }

    fn check(&self) {
        let n = self.model.tokens.len();
        assert_eq!((self.cache.len(), self.cache.is_empty()), (n, n == 0));
        let held: Vec<usize> = (0..n).filter(|&token| self.model.is_held(token)).collect();
        assert!((0..n).all(|token| !self.model.sees(n, token) || self.model.is_held(token)));
        for layer in 0..SHAPE.n_layers {
            let view = self.cache.view(layer).unwrap();
            check_rows(&self.model, &view, &held, &self.model.tokens, layer, self.is_static);
        }
    }
}

fn write<E: KvElement>(step: &mut SlidingWindowStep<'_, E>, layer: usize, new: &[u64]) {
    let [k, v] = [0, 1].map(|which| -> Vec<f32> {
        new.iter().flat_map(|&token| numbers(token, layer)[which].clone()).collect()
    });
    let [k, v] = arrays(new.len(), [&k, &v]);
    step.write(layer, k, v).unwrap();
    assert!(step.write(SHAPE.n_layers, k, v).is_err());
    assert_eq!(step.write(layer, v, v).is_ok(), new.is_empty() && SHAPE.key_dim == SHAPE.value_dim);
}

/// A step reads what its first new token sees, and all new ones.
fn check_step<E: KvElement>(
    model: &Model,
    view: &RingView<'_, E>,
    new: &[u64],
    layer: usize,
    is_static: bool,
) {
    let n_old = model.tokens.len();
    let mut tokens = model.tokens.clone();
    tokens.extend(new);
    let here: Vec<usize> =
        (0..tokens.len()).filter(|&token| token >= n_old || model.sees(n_old, token)).collect();
    check_rows(model, view, &here, &tokens, layer, is_static);
    for row in 0..new.len() {
        for (index, &token) in here.iter().enumerate() {
            assert_eq!(view.sees(row, index), model.sees(n_old + row, token));
        }
        assert!(!view.sees(row, here.len()));
        // Nothing that a row sees is left out.
        assert!((0..=n_old + row).all(|t| !model.sees(n_old + row, t) || here.contains(&t)));
    }
}

/// The view has the tokens at the positions `here`, in four runs at most, and their rows.
fn check_rows<E: KvElement>(
    model: &Model,
    view: &RingView<'_, E>,
    here: &[usize],
    tokens: &[u64],
    layer: usize,
    is_static: bool,
) {
    assert_eq!(view.len(), here.len());
    assert!(view.n_runs() <= 4);
    let mut index = 0;
    for at in 0..view.n_runs() {
        let run = view.run(at);
        assert!(run.len > 0 && run.start == index, "{run:?}");
        for i in 0..run.len {
            let position = match model.sinks.positions {
                Positions::Absolute => here[index],
                Positions::CacheRelative => index,
            };
            assert_eq!((view.run_of(index), run.position + i), (at, position));
            let want = numbers(tokens[here[index]], layer);
            for head in 0..SHAPE.n_heads {
                let rows = [view.keys(head, at), view.values(head, at)];
                for (which, dim) in [SHAPE.key_dim, SHAPE.value_dim].into_iter().enumerate() {
                    let scale = is_static.then(|| SCALES[layer][which]);
                    let want = rounded::<E>(&want[which][head * dim..][..dim], scale);
                    let (got, _) = value(rows[which], i, dim);
                    assert_eq!(got, want, "position {} of layer {layer}", here[index]);
                }
            }
            index += 1;
        }
    }
    assert_eq!(index, here.len());
}
