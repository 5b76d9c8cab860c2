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

    /// What to ask for while this tile is attended to: what is read somewhat later, the first keys of the next tile included. `pieces` is room
    /// for it.
    #[inline(always)]
    pub(super) fn later<'p>(&self, pieces: &'p mut [&'a [u8]; PIECES]) -> Option<Later<'p, 'a>> {
        let next_tile = self.ahead?;
        let mut n = 0;
        for (parts, kind) in
            [(self.parts, Kind::Keys), (self.parts, Kind::Values), (next_tile, Kind::Keys)]
        {
            let dim = self.dims[kind as usize];
            let mut skipped = if n == 0 && kind == Kind::Keys { FETCHED } else { 0 };
            for part in parts {
                let (data, stride) = part.rows(kind);
                // Pieces are as long as rows lie one behind the other.
                let (n_pieces, n_rows) =
                    if stride == dim { (1, part.n_tokens) } else { (part.n_tokens, 1) };
                for first in (0..n_pieces).map(|i| i * stride) {
                    let bytes = E::as_bytes(&data[first..first + n_rows * dim]);
                    let here = skipped.min(bytes.len());
                    skipped -= here;
                    if let (Some(piece), true) = (pieces.get_mut(n), here < bytes.len()) {
                        *piece = &bytes[here..];
                        n += 1;
                    }
                }
            }
        }
        Some(Later { piece: &[], rest: &pieces[..n] })
    }

    /// Bytes of its keys and values.
    pub(super) fn n_bytes(&self) -> usize {
        self.n_tokens() * (self.dims[0] + self.dims[1]) * size_of::<E>()
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

/// Most pieces of a tile's keys and values and the next one's keys: a row each.
pub(super) const PIECES: usize = 3 * TILE;

/// Memory to ask for, in the order in which it is read.
pub(super) struct Later<'p, 'a> {
    /// What is left of the present piece.
    piece: &'a [u8],
    rest: &'p [&'a [u8]],
}

impl Later<'_, '_> {
    /// Asks for some three quarters of `n_bytes`, at most to the end of a piece: what is asked for along with the scores or the values of so many
    /// bytes. The last quarter is left for the weights in between ([`ask_much`](Self::ask_much)), which read nothing, so that the memory is
    /// never idle.
    #[inline(always)]
    pub(super) fn ask(&mut self, n_bytes: usize) {
        self.ask_piece(n_bytes / 4 * 3);
    }

    #[inline(always)]
    fn ask_piece(&mut self, n_bytes: usize) {
        if let Some((here, rest)) = self.piece.split_at_checked(n_bytes) {
            prefetch::far_lines(here, 0);
            self.piece = rest;
        } else {
            prefetch::far_lines(self.piece, 0);
            let next = self.rest.split_first();
            (self.piece, self.rest) = next.map_or((&[][..], &[][..]), |(next, rest)| (*next, rest));
        }
    }

    /// Asks for the next `n_bytes`.
    #[inline(always)]
    pub(super) fn ask_much(&mut self, mut n_bytes: usize) {
        while n_bytes > 0 && !(self.piece.is_empty() && self.rest.is_empty()) {
            let here = n_bytes.min(self.piece.len());
            self.ask_piece(here.max(1));
            n_bytes -= here;
        }
    }
}
