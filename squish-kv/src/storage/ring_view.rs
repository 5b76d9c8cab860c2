//! What attention reads of a ring: sinks, the ring in the order of its tokens, and the new tokens of a step.

use squish_kernels::kv::{KvElement, KvSource, Rows, Run};

use super::{
    arena::Arena,
    ring::{Positions, Ring, Span, Spans},
};

/// Tokens of a [`SlidingWindowKv`](crate::SlidingWindowKv) in one layer, in the order of their positions: four runs at most.
///
/// Under a step these are the tokens that its first new row sees, and the new ones. The last of several rows sees fewer of the old ones:
/// without sinks it is the window of `squish-attn`'s options that says so, with a causal mask or a tree's; with sinks it is a mask made of
/// [`sees`](Self::sees). A single row sees all.
#[derive(Debug)]
pub struct RingView<'a, E> {
    arena: &'a Arena<E>,
    /// Where the rows of the new tokens are.
    staging: &'a Arena<E>,
    layer: usize,
    ring: Ring,
    /// By absolute positions.
    spans: Spans,
    /// Spans that lie in the ring.
    n_old: usize,
}

impl<E> Clone for RingView<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for RingView<'_, E> {}

impl<'a, E: KvElement> RingView<'a, E> {
    /// Tokens of the ring in `spans`, then `n_new` from the first slot of `staging` on.
    pub(super) fn new(
        [arena, staging]: [&'a Arena<E>; 2],
        layer: usize,
        ring: Ring,
        mut spans: Spans,
        n_new: usize,
    ) -> Self {
        let n_old = spans.as_slice().len();
        spans.push(ring.len()..ring.len() + n_new, 0);
        Self { arena, staging, layer, ring, spans, n_old }
    }

    /// Whether the new token `row` sees the token at index `token`, in causal order: what a bit of `squish-attn`'s `BitMask` says, `[n_new,
    /// len]`. Outside of a step, `row` counts from the token that comes next.
    ///
    /// In a tree a node stands at its depth: with that as `row` this is true of the tokens before the tree, and for its ancestors, each
    /// at the index that its depth would have, too.
    #[must_use]
    pub fn sees(&self, row: usize, token: usize) -> bool {
        if token >= self.len() {
            return false;
        }
        let Span { run, .. } = self.span(self.run_of(token));
        self.ring.sees(self.ring.len() + row, run.position + (token - run.start))
    }

    /// The sinks, and all other tokens: for attention that counts positions in the cache, whose queries stand elsewhere for sinks than for the
    /// others, in two calls whose results are merged.
    #[must_use]
    pub fn split_sinks(&self) -> [Self; 2] {
        let empty = Self { spans: Spans::EMPTY, n_old: 0, ..*self };
        let mut parts = [empty; 2];
        for (idx, &Span { run, slot }) in self.spans.as_slice().iter().enumerate() {
            let first = run.position;
            let cut = self.ring.sinks().n_sinks.clamp(first, first + run.len);
            for (part, tokens) in parts.iter_mut().zip([first..cut, cut..first + run.len]) {
                part.n_old += usize::from(idx < self.n_old && !tokens.is_empty());
                let slot = slot.offset as usize + (tokens.start - first);
                part.spans.push(tokens, slot);
            }
        }
        parts
    }

    fn span(&self, run: usize) -> Span {
        self.spans.as_slice()[run]
    }

    #[inline]
    fn arena_of(&self, run: usize) -> &'a Arena<E> {
        if run < self.n_old { self.arena } else { self.staging }
    }
}

impl<E: KvElement> KvSource for RingView<'_, E> {
    type Element = E;

    fn n_heads(&self) -> usize {
        self.arena.shape().n_heads
    }

    fn key_dim(&self) -> usize {
        self.arena.shape().key_dim
    }

    fn value_dim(&self) -> usize {
        self.arena.shape().value_dim
    }

    #[inline]
    fn len(&self) -> usize {
        self.spans.n_tokens()
    }

    fn n_runs(&self) -> usize {
        self.spans.as_slice().len()
    }

    #[inline]
    fn run(&self, run: usize) -> Run {
        let Span { run, .. } = self.span(run);
        match self.ring.sinks().positions {
            Positions::Absolute => run,
            Positions::CacheRelative => Run { position: run.start, ..run },
        }
    }

    #[inline]
    fn run_of(&self, index: usize) -> usize {
        let ends_before = |span: &&Span| span.run.start + span.run.len <= index;
        self.spans.as_slice().iter().take_while(ends_before).count()
    }

    #[inline]
    fn keys(&self, head: usize, run: usize) -> Rows<'_, E> {
        let Span { run: Run { len, .. }, slot } = self.span(run);
        self.arena_of(run).keys(self.layer, head, slot, len)
    }

    #[inline]
    fn values(&self, head: usize, run: usize) -> Rows<'_, E> {
        let Span { run: Run { len, .. }, slot } = self.span(run);
        self.arena_of(run).values(self.layer, head, slot, len)
    }
}
