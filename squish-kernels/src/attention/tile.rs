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

/// Tokens whose rows are read side by side: few, so that memory is read nearly in order.
pub(super) const SIDE_BY_SIDE: usize = 4;

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

    /// The row of each token; the last one also stands for those that are missing from a multiple of [`SIDE_BY_SIDE`].
    #[inline(always)]
    pub(super) fn rows_into(&self, kind: Kind, rows: &mut [&'a [E]; TILE]) {
        let (dim, mut n) = (self.dims[kind as usize], 0);
        for part in self.parts {
            let (mut rest, stride) = part.rows(kind);
            for row in &mut rows[n..n + part.n_tokens] {
                *row = &rest[..dim];
                rest = rest.get(stride..).unwrap_or_default();
            }
            n += part.n_tokens;
        }
        if n > 0 {
            let last = rows[n - 1];
            rows[n..n.next_multiple_of(SIDE_BY_SIDE)].fill(last);
        }
    }

    /// What to ask for along with the rows of one kind: those that are read somewhat later, the first ones of the next kind included.
    #[inline(always)]
    pub(super) fn later(&self, kind: Kind) -> Option<Later<'a, E>> {
        let next_tile = self.ahead?;
        let (then, then_kind) = match kind {
            Kind::Keys => (self.parts, Kind::Values),
            Kind::Values => (next_tile, Kind::Keys),
        };
        let mut later = Later {
            piece: &[],
            now: Pieces::new(self.parts, kind, self.dims[kind as usize]),
            then: Pieces::new(then, then_kind, self.dims[then_kind as usize]),
        };
        later.skip(FETCHED);
        Some(later)
    }
}

impl<'a, E> Part<'a, E> {
    #[inline(always)]
    fn rows(&self, kind: Kind) -> (&'a [E], usize) {
        match kind {
            Kind::Keys => (self.keys, self.strides[0]),
            Kind::Values => (self.values, self.strides[1]),
        }
    }
}

/// Bytes between what is read and what is asked for.
const FETCHED: usize = 16384;

/// Rows of one kind in pieces that are as long as rows lie one behind the other.
#[derive(Clone, Copy)]
struct Pieces<'a, E> {
    parts: &'a [Part<'a, E>],
    kind: Kind,
    dim: usize,
    /// Rows of the first part that were taken.
    taken: usize,
}

impl<'a, E: KvElement> Pieces<'a, E> {
    #[inline(always)]
    fn new(parts: &'a [Part<'a, E>], kind: Kind, dim: usize) -> Self {
        Self { parts, kind, dim, taken: 0 }
    }

    fn next(&mut self) -> Option<&'a [u8]> {
        let (part, rest) = self.parts.split_first()?;
        let (data, stride) = part.rows(self.kind);
        let n_rows = if stride == self.dim { part.n_tokens } else { 1 };
        let first = self.taken * stride;
        self.taken += n_rows;
        if self.taken == part.n_tokens {
            (self.parts, self.taken) = (rest, 0);
        }
        Some(E::as_bytes(&data[first..first + n_rows * self.dim]))
    }
}

/// Memory to ask for: rows of one kind, and then rows of another.
#[derive(Clone, Copy)]
pub(super) struct Later<'a, E> {
    /// What is left of the present piece.
    piece: &'a [u8],
    now: Pieces<'a, E>,
    then: Pieces<'a, E>,
}

impl<E: KvElement> Later<'_, E> {
    /// Leaves out so many bytes, at most those of the first kind.
    fn skip(&mut self, mut n_bytes: usize) {
        while n_bytes > 0
            && let Some(piece) = self.now.next()
        {
            let here = n_bytes.min(piece.len());
            self.piece = &piece[here..];
            n_bytes -= here;
        }
    }

    /// Asks for the next `n_bytes`, where there are as many.
    #[inline(always)]
    pub(super) fn ask(&mut self, n_bytes: usize) {
        if let Some((here, rest)) = self.piece.split_at_checked(n_bytes) {
            ask_for(here);
            self.piece = rest;
        } else {
            self.ask_across(n_bytes);
        }
    }

    #[cold]
    fn ask_across(&mut self, mut n_bytes: usize) {
        while n_bytes > 0 {
            if self.piece.is_empty() {
                let Some(piece) = self.now.next().or_else(|| self.then.next()) else { return };
                self.piece = piece;
            }
            let (here, rest) = self.piece.split_at(n_bytes.min(self.piece.len()));
            ask_for(here);
            self.piece = rest;
            n_bytes -= here.len();
        }
    }
}

/// Into the second-level cache: the first can wait for two dozen lines at a time on many machines, too few for the memory's latency.
#[inline(always)]
fn ask_for(bytes: &[u8]) {
    for at in (0..bytes.len()).step_by(64) {
        prefetch::far_line_at(bytes, at);
    }
}
