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
            let (data, stride) = part.rows(kind);
            let of_part = &mut rows[n..n + part.n_tokens];
            if stride == dim && dim > 0 {
                for (row, own) in of_part.iter_mut().zip(data.chunks_exact(dim)) {
                    *row = own;
                }
            } else {
                let mut rest = data;
                for row in of_part {
                    *row = &rest[..dim];
                    rest = rest.get(stride..).unwrap_or_default();
                }
            }
            n += part.n_tokens;
        }
        if n > 0 {
            let last = rows[n - 1];
            rows[n..n.next_multiple_of(SIDE_BY_SIDE)].fill(last);
        }
    }

    /// What to ask for while this tile is attended to: what is read somewhat later, the keys of the next tile included.
    #[inline(always)]
    pub(super) fn later(&self, next_tile: &'a [Part<'a, E>]) -> Later<'a, E> {
        let pieces =
            |parts, kind: Kind| Pieces { parts, kind, dim: self.dims[kind as usize], taken: 0 };
        let keys = pieces(self.parts, Kind::Keys);
        let rest = [keys, pieces(self.parts, Kind::Values), pieces(next_tile, Kind::Keys)];
        let mut later = Later { piece: &[], rest, owed: 0 };
        let mut skipped = FETCHED;
        while skipped > 0
            && let Some(piece) = later.rest[0].next()
        {
            let here = skipped.min(piece.len());
            later.piece = &piece[here..];
            skipped -= here;
        }
        later
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

/// Rows of parts, in pieces as long as they lie one behind the other.
struct Pieces<'a, E> {
    /// Those that are not over.
    parts: &'a [Part<'a, E>],
    kind: Kind,
    dim: usize,
    /// Rows of the first part that were taken.
    taken: usize,
}

impl<'a, E: KvElement> Iterator for Pieces<'a, E> {
    type Item = &'a [u8];

    #[inline(always)]
    fn next(&mut self) -> Option<&'a [u8]> {
        let (part, rest) = self.parts.split_first()?;
        let (data, stride) = part.rows(self.kind);
        let first = self.taken * stride;
        let n_rows = if stride == self.dim { part.n_tokens } else { 1 };
        self.taken += n_rows;
        if self.taken == part.n_tokens {
            (self.parts, self.taken) = (rest, 0);
        }
        Some(E::as_bytes(&data[first..first + n_rows * self.dim]))
    }
}

/// Memory to ask for, in the order in which it is read.
pub(super) struct Later<'a, E> {
    /// What is left of the present piece.
    piece: &'a [u8],
    /// What comes then: the tile's keys and values, and the keys of the next one.
    rest: [Pieces<'a, E>; 3],
    /// Bytes that are to be asked for.
    owed: usize,
}

impl<'a, E: KvElement> Later<'a, E> {
    /// Asks for the next `n_bytes`, where there are as many, as soon as they make whole requests.
    #[inline(always)]
    pub(super) fn ask(&mut self, n_bytes: usize) {
        self.owed += n_bytes;
        while self.owed >= REQUEST {
            if let Some((here, rest)) = self.piece.split_first_chunk::<REQUEST>() {
                prefetch::far_lines(here, 0);
                self.piece = rest;
                self.owed -= REQUEST;
                continue;
            }
            prefetch::far_lines(self.piece, 0);
            let Some(next) = self.next_piece() else {
                (self.piece, self.owed) = (&[], 0);
                return;
            };
            self.owed -= self.piece.len();
            self.piece = next;
        }
    }

    /// Inlined, though rarely needed: around a call kernels would keep their sums in memory.
    #[inline(always)]
    fn next_piece(&mut self) -> Option<&'a [u8]> {
        self.rest.iter_mut().find_map(Iterator::next)
    }
}

/// Bytes of a request: a few lines, since to count bytes takes as many instructions as to ask for them.
pub(super) const REQUEST: usize = 256;
