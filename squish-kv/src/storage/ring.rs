//! Which tokens a ring holds, and in which slots.
//!
//! ```text
//! n_ring = window - n_sinks
//!
//! the token at position p sees t    if t <= p and (t < n_sinks or t + n_ring > p)
//! slot of t                         t                                    if t < n_sinks
//!                                   n_sinks + (t - n_sinks) % n_ring     else
//! ```
//!
//! Without sinks that is the window of Mistral and Gemma: `window` tokens, the token itself included. With them it is `StreamingLLM`
//! (arXiv 2309.17453, section 3.2): as many tokens, of which the first ones of the sequence never leave.

use std::ops::Range;

use squish_kernels::kv::Run;

use crate::{
    block::Slot,
    error::{Error, Result},
};

/// The first tokens of a sequence, which stay beside the last ones of the window (`StreamingLLM`). Not the sinks that are learned, which are
/// logits and have no keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamingSinks {
    /// How many tokens stay.
    pub n_sinks: usize,
    /// Where tokens stand, once some have left.
    pub positions: Positions,
}

/// As in the paper: 4 sinks, and positions in the cache.
impl Default for StreamingSinks {
    fn default() -> Self {
        Self { n_sinks: 4, positions: Positions::CacheRelative }
    }
}

/// What a view of a ring gives as the position of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Positions {
    /// That in the sequence. Keys are stored as attention reads them, rotated by this position.
    /// Between sinks and ring there is a gap.
    #[default]
    Absolute,
    /// That in the cache: the first token of a view has 0, the next one 1, whatever has left between them. The position of a token
    /// changes with every one that leaves, so keys are stored as they were *before* their rotation, and who attends rotates copies of
    /// them. In a step of one token the query has position `view.len() - 1`: sinks are no farther away than they would be in a sequence
    /// of `window` tokens.
    ///
    /// In a step of several tokens all rows share the view, so the last row has that position and sinks are as many tokens farther away
    /// as have left the window of a row in its step. Where that matters, steps have one token.
    ///
    /// Distances are all that a rotation tells, so the same comes from keys that are rotated by their absolute positions if those of the
    /// sinks, and no others, are rotated by as many positions more as tokens have left: `position - start` of the last run of an
    /// [`Absolute`](Self::Absolute) view. Or else a query that meets sinks is rotated by as many fewer, whichever row it is of: what
    /// [`split_sinks`](crate::RingView::split_sinks) is for, and keys stay as they are.
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_attn::{Mask, Options, RopeConfig, RopeLayout::HalfSplit, RopeOptions, RopeTable, Sequence, Team, Workspace};
    /// use squish_kv::{KvArrays, KvShape, KvSource, Scaling, SlidingWindowKv, StreamingSinks};
    /// use squish_kv::ndarray::{Array3, Axis};
    ///
    /// let mut table = RopeTable::new(RopeConfig::new(64, 10000.0, 4096), RopeOptions::default())?;
    /// table.extend_to(16)?; // the window: no position is larger
    /// let mut cache = SlidingWindowKv::<f32>::with_sinks(KvShape::new(1, 2, 64), 16, StreamingSinks::default(), Scaling::Dynamic)?;
    /// let mut workspace = Workspace::new(Team::new(1)?.into());
    ///
    /// for token in 0..100 {
    ///     let (mut q, k, v) = (Array3::ones([1, 8, 64]), Array3::ones([1, 2, 64]), Array3::from_elem([1, 2, 64], token as f32));
    ///     let mut step = cache.begin(1)?;
    ///     step.write(0, k.view(), v.view())?; // not rotated
    ///     let n = step.view(0)?.len();
    ///     assert_eq!(n, 16.min(token + 1));
    ///
    ///     let (mut keys, values) = squish_kv::gather(&step.view(0)?)?;
    ///     let positions: Vec<usize> = (0..n).collect();
    ///     for head in keys.outer_iter_mut() {
    ///         table.apply_in_place(head.insert_axis(Axis(1)), &positions, HalfSplit)?;
    ///     }
    ///     table.apply_in_place(q.view_mut(), &[n - 1], HalfSplit)?;
    ///
    ///     let arrays = [&keys, &values].map(|x| x.as_slice().expect("plain"));
    ///     let source = KvArrays::new(arrays, 2, n, [64, 64]).expect("as many numbers");
    ///     let row = Sequence { source: &source, n_rows: 1, mask: Mask::Full };
    ///     let mut out = Array3::zeros([1, 8, 64]);
    ///     workspace.attend_into(q.view(), &[row], &Options::default(), out.view_mut())?;
    ///     step.commit()?;
    /// }
    /// // The first 4 tokens and the last 12.
    /// let (_, values) = cache.gather(0)?;
    /// let tokens: Vec<f32> = values.index_axis(Axis(0), 1).column(0).to_vec();
    /// assert_eq!(tokens[..5], [0.0, 1.0, 2.0, 3.0, 88.0]);
    /// assert_eq!(tokens[15], 99.0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    CacheRelative,
}

/// The tokens of a sequence as far as they are held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    window: usize,
    sinks: StreamingSinks,
    len: usize,
    /// The first token that the ring holds beside the sinks: no sink, and none behind what the next token sees.
    first: usize,
}

/// Consecutive tokens whose slots follow each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) run: Run,
    pub(super) slot: Slot,
}

/// Tokens in their order: sinks, and the ring from its oldest token on; then the new ones of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spans {
    spans: [Span; 4],
    n_spans: usize,
}

impl Ring {
    pub(super) fn new(window: usize, sinks: StreamingSinks) -> Result<Self> {
        let n_sinks = sinks.n_sinks;
        if window == 0 {
            return Err(Error::Zero { what: "window" });
        }
        if n_sinks >= window {
            return Err(Error::Sinks { n_sinks, window });
        }
        Ok(Self { window, sinks, len: 0, first: n_sinks })
    }

    pub(super) const fn window(&self) -> usize {
        self.window
    }

    pub(super) const fn sinks(&self) -> StreamingSinks {
        self.sinks
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Whether the token at `position` sees `token`.
    pub(super) const fn sees(&self, position: usize, token: usize) -> bool {
        token <= position && (token < self.sinks.n_sinks || position - token < self.n_ring())
    }

    /// All tokens that are held.
    pub(super) fn held(&self) -> Spans {
        self.spans(self.first)
    }

    /// The tokens that the next one sees.
    pub(super) fn seen(&self) -> Spans {
        self.spans(self.first_seen(self.len))
    }

    /// Where those of `n_new` tokens go that stay.
    pub(super) fn landing(&self, n_new: usize) -> Spans {
        let (len, end) = (self.len, self.len + n_new);
        let mut spans = Spans::EMPTY;
        spans.push_sinks(len..end.min(self.sinks.n_sinks));
        let first = end.saturating_sub(self.n_ring()).max(self.sinks.n_sinks);
        self.push_ring(&mut spans, first.max(len)..end);
        spans
    }

    /// Counts `n_new` tokens.
    pub(super) fn advance(&mut self, n_new: usize) {
        self.len += n_new;
        self.first = self.first.max(self.len.saturating_sub(self.n_ring()));
    }

    pub(super) fn check_truncate(&self, to: usize) -> Result<()> {
        if to > self.len {
            return Err(Error::Truncate { len: self.len, to });
        }
        let needed = self.first_seen(to);
        if needed < to.min(self.first) {
            return Err(Error::LeftWindow { to, needed, kept: self.first });
        }
        Ok(())
    }

    pub(super) fn truncate(&mut self, to: usize) -> Result<()> {
        self.check_truncate(to)?;
        self.len = to;
        self.first = self.first.min(to.max(self.sinks.n_sinks));
        Ok(())
    }

    pub(super) fn clear(&mut self) {
        (self.len, self.first) = (0, self.sinks.n_sinks);
    }

    const fn n_ring(&self) -> usize {
        self.window - self.sinks.n_sinks
    }

    /// The first token beside the sinks that the token at `position` sees, itself included.
    fn first_seen(&self, position: usize) -> usize {
        position.saturating_sub(self.n_ring() - 1).max(self.sinks.n_sinks)
    }

    /// The sinks, and the tokens from `first` on.
    fn spans(&self, first: usize) -> Spans {
        debug_assert!(first >= self.first, "{first} was overwritten: {self:?}");
        let mut spans = Spans::EMPTY;
        spans.push_sinks(0..self.len.min(self.sinks.n_sinks));
        self.push_ring(&mut spans, first..self.len);
        spans
    }

    /// Pushes tokens that are no sinks, as many as a ring has at most.
    fn push_ring(&self, spans: &mut Spans, tokens: Range<usize>) {
        if tokens.is_empty() {
            return;
        }
        let n_sinks = self.sinks.n_sinks;
        let slot = n_sinks + (tokens.start - n_sinks) % self.n_ring();
        let wrap = tokens.end.min(tokens.start + (self.window - slot));
        spans.push(tokens.start..wrap, slot);
        spans.push(wrap..tokens.end, n_sinks);
    }
}

impl Spans {
    pub(super) const EMPTY: Self = {
        let run = Run { start: 0, len: 0, position: 0 };
        Self { spans: [Span { run, slot: Slot { block: 0, offset: 0 } }; 4], n_spans: 0 }
    };

    /// Pushes tokens, the first of them at `slot`, if there are any.
    pub(super) fn push(&mut self, tokens: Range<usize>, slot: usize) {
        if tokens.is_empty() {
            return;
        }
        let run = Run { start: self.n_tokens(), len: tokens.len(), position: tokens.start };
        self.spans[self.n_spans] = Span { run, slot: at(slot) };
        self.n_spans += 1;
    }

    /// Tokens in all spans.
    pub(super) fn n_tokens(&self) -> usize {
        self.as_slice().last().map_or(0, |span| span.run.start + span.run.len)
    }

    pub(super) fn as_slice(&self) -> &[Span] {
        &self.spans[..self.n_spans]
    }

    fn push_sinks(&mut self, tokens: Range<usize>) {
        let slot = tokens.start;
        self.push(tokens, slot);
    }
}

/// A slot of the one block of a ring, or of a step's memory: an arena has no more than are counted with 32 bits.
pub(super) const fn at(offset: usize) -> Slot {
    Slot { block: 0, offset: offset as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Positions and slots, in order.
    fn slots(spans: &Spans) -> Vec<(usize, usize)> {
        let mut out = Vec::new();
        for span in spans.as_slice() {
            assert_eq!(span.run.start, out.len());
            let of = |i: usize| (span.run.position + i, span.slot.offset as usize + i);
            out.extend((0..span.run.len).map(of));
        }
        out
    }

    /// Steps of all sizes from all lengths: slots are written as the definition says, and hold what the next token sees.
    #[test]
    fn slots_hold_what_the_next_token_sees() {
        for window in 1..9 {
            for n_sinks in 0..window {
                let sinks = StreamingSinks { n_sinks, ..StreamingSinks::default() };
                for (before, n_new) in (0..30).flat_map(|before| (0..30).map(move |n| (before, n)))
                {
                    let mut ring = Ring::new(window, sinks).unwrap();
                    let mut memory = vec![usize::MAX; window];
                    for n in [before, n_new] {
                        for (position, slot) in slots(&ring.landing(n)) {
                            memory[slot] = position;
                        }
                        ring.advance(n);
                    }
                    let len = before + n_new;
                    assert_eq!(ring.len(), len);
                    let held = slots(&ring.held());
                    assert!(held.iter().all(|&(position, slot)| memory[slot] == position));
                    let want: Vec<usize> =
                        (0..len).filter(|&t| t < n_sinks || t + window - n_sinks >= len).collect();
                    let positions = |x: &[(usize, usize)]| -> Vec<usize> {
                        x.iter().map(|&(position, _)| position).collect()
                    };
                    assert_eq!(positions(&held), want, "{ring:?}");
                    let seen: Vec<usize> = (0..len).filter(|&t| ring.sees(len, t)).collect();
                    assert_eq!(positions(&slots(&ring.seen())), seen, "{ring:?}");
                    assert!(seen.len() < window && (len < window || seen.len() == window - 1));
                }
            }
        }
    }
}
