//! The tokens of a tile, where they lie.

use super::TILE;
use crate::{kv::KvElement, prefetch};

/// Tokens of a tile whose rows lie at one stride.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a, E> {
    /// From the first row of keys to the end of the last, or further.
    pub keys: &'a [E],
    /// From the first row of values to the end of the last, or further.
    pub values: &'a [E],
    /// Elements from a row to the next, of keys and of values.
    pub strides: [usize; 2],
    /// Tokens, at least one.
    pub n_tokens: usize,
}

/// Tokens that are attended to together.
#[derive(Clone, Copy, Debug)]
pub struct Tile<'a, E> {
    /// At most [`TILE`] tokens.
    pub parts: &'a [Part<'a, E>],
    /// Width of a row of keys and of one of values.
    pub dims: [usize; 2],
    /// What the keys of each token are multiplied by.
    pub key_scales: Option<&'a [f32; TILE]>,
    /// What the values of each token are multiplied by.
    pub value_scales: Option<&'a [f32; TILE]>,
    /// Position of each token, for ALiBi.
    pub positions: &'a [f32; TILE],
    /// If memory is to be asked for before it is read: what the next call reads, which may be nothing.
    pub ahead: Option<&'a [Part<'a, E>]>,
}

/// Which rows of a token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Keys,
    Values,
}

impl<'a, E: KvElement> Tile<'a, E> {
    pub(super) fn n_tokens(&self) -> usize {
        self.parts.iter().map(|part| part.n_tokens).sum()
    }

    /// Whether every part has its rows.
    pub(super) fn is_whole(&self) -> bool {
        let holds = |data: &[E], stride: usize, n: usize, dim: usize| {
            let end = (n - 1).checked_mul(stride).and_then(|n| n.checked_add(dim));
            end.is_some_and(|end| end <= data.len())
        };
        self.parts.iter().all(|part| {
            part.n_tokens > 0
                && holds(part.keys, part.strides[0], part.n_tokens, self.dims[0])
                && holds(part.values, part.strides[1], part.n_tokens, self.dims[1])
        })
    }

    /// Rows from the first on.
    #[inline(always)]
    pub(super) fn rows(&self, kind: Kind) -> Cursor<'a, E> {
        Cursor::new(self.parts, kind, self.dims[kind as usize])
    }

    /// What to ask for along with the rows of one kind: those that are read somewhat later, the first ones of the next kind included.
    #[inline(always)]
    pub(super) fn later_rows(&self, kind: Kind) -> Option<Later<'a, E>> {
        let next_tile = self.ahead?;
        let (then, then_kind) = match kind {
            Kind::Keys => (self.parts, Kind::Values),
            Kind::Values => (next_tile, Kind::Keys),
        };
        let row_bytes = self.dims[kind as usize] * size_of::<E>();
        let mut now = self.rows(kind);
        now.skip((FETCHED / row_bytes.max(1)).clamp(1, TILE));
        Some(Later { now, then: Cursor::new(then, then_kind, self.dims[then_kind as usize]) })
    }
}

/// Bytes between what is read and what is asked for.
const FETCHED: usize = 4096;

/// Rows one after another.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a, E> {
    /// From the next row on.
    data: &'a [E],
    stride: usize,
    /// Rows that are left of the part.
    n_left: usize,
    parts: &'a [Part<'a, E>],
    kind: Kind,
    dim: usize,
}

impl<'a, E> Cursor<'a, E> {
    #[inline(always)]
    fn new(parts: &'a [Part<'a, E>], kind: Kind, dim: usize) -> Self {
        Self { data: &[], stride: 0, n_left: 0, parts, kind, dim }
    }

    /// Goes to the next part, if there is one.
    #[inline(always)]
    fn next_part(&mut self) -> bool {
        let Some((part, rest)) = self.parts.split_first() else { return false };
        let (data, stride) = match self.kind {
            Kind::Keys => (part.keys, part.strides[0]),
            Kind::Values => (part.values, part.strides[1]),
        };
        (self.data, self.stride, self.n_left, self.parts) = (data, stride, part.n_tokens, rest);
        true
    }

    /// The next row.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Option<&'a [E]> {
        if self.n_left == 0 && !self.next_part() {
            return None;
        }
        let row = &self.data[..self.dim];
        self.data = self.data.get(self.stride..).unwrap_or_default();
        self.n_left -= 1;
        Some(row)
    }

    pub(super) fn skip(&mut self, mut n: usize) {
        while n > 0 && (self.n_left > 0 || self.next_part()) {
            let here = n.min(self.n_left);
            self.data = self.data.get(here * self.stride..).unwrap_or_default();
            self.n_left -= here;
            n -= here;
        }
    }
}

/// Rows to ask for.
#[derive(Clone, Copy)]
pub(super) struct Later<'a, E> {
    now: Cursor<'a, E>,
    then: Cursor<'a, E>,
}

impl<'a, E: KvElement> Later<'a, E> {
    /// The row to ask for along with the next one that is read; none at the end of all.
    #[inline(always)]
    pub(super) fn next(&mut self) -> &'a [E] {
        self.now.next().or_else(|| self.then.next()).unwrap_or_default()
    }
}

/// Asks for the lines of `n` elements of a row from `first` on.
#[inline(always)]
pub(super) fn fetch<E: KvElement>(row: &[E], first: usize, n: usize) {
    for at in (0..n * size_of::<E>()).step_by(64) {
        prefetch::line_at(E::as_bytes(row), first * size_of::<E>() + at);
    }
}
