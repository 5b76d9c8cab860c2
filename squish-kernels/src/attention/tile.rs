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

    /// What to ask for while this tile is attended to: what is read somewhat later, the keys of the next tile included. `pieces` is room for
    /// it.
    #[inline(always)]
    pub(super) fn later<'p>(
        &self,
        next_tile: &'a [Part<'a, E>],
        pieces: &'p mut [&'a [u8]; PIECES],
    ) -> Later<'p, 'a> {
        let mut n = 0;
        for (parts, kind, mut skipped) in [
            (self.parts, Kind::Keys, FETCHED),
            (self.parts, Kind::Values, 0),
            (next_tile, Kind::Keys, 0),
        ] {
            let dim = self.dims[kind as usize];
            for part in parts {
                let (data, stride) = part.rows(kind);
                // Pieces are as long as rows lie one behind the other.
                let (n_pieces, n_rows) =
                    if stride == dim { (1, part.n_tokens) } else { (part.n_tokens, 1) };
                for first in (0..n_pieces).map(|i| i * stride) {
                    let bytes = E::as_bytes(&data[first..first + n_rows * dim]);
                    let here = skipped.min(bytes.len());
                    skipped -= here;
                    if here < bytes.len()
                        && let Some(piece) = pieces.get_mut(n)
                    {
                        *piece = &bytes[here..];
                        n += 1;
                    }
                }
            }
        }
        let tile_bytes = self.n_tokens() * (self.dims[0] + self.dims[1]) * size_of::<E>();
        Later { piece: &[], rest: &pieces[..n], owed: 0, tile_bytes }
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
    /// Bytes that are to be asked for.
    owed: usize,
    /// Bytes of the keys and values of the tile that is attended to.
    tile_bytes: usize,
}

/// Of the bytes of a tile so many parts of four are asked for along with its scores and values. The rest is asked for while weights are made
/// in between, which read nothing: the memory is never idle.
const BESIDE_READS: usize = 3;

impl Later<'_, '_> {
    /// Asks along with scores or values of so many bytes.
    #[inline(always)]
    pub(super) fn ask_beside_reads(&mut self, n_bytes: usize) {
        self.ask(n_bytes / 4 * BESIDE_READS);
    }

    /// Asks along with the weights of one of `n_rows` rows.
    #[inline(always)]
    pub(super) fn ask_beside_weights(&mut self, n_rows: usize) {
        self.ask(self.tile_bytes / 4 * (4 - BESIDE_READS) / n_rows);
    }

    /// Asks for the next `n_bytes`, where there are as many, as soon as they make whole requests.
    #[inline(always)]
    fn ask(&mut self, n_bytes: usize) {
        self.owed += n_bytes;
        while self.owed >= REQUEST {
            if let Some((here, rest)) = self.piece.split_first_chunk::<REQUEST>() {
                prefetch::far_lines(here, 0);
                self.piece = rest;
                self.owed -= REQUEST;
                continue;
            }
            prefetch::far_lines(self.piece, 0);
            let Some((next, rest)) = self.rest.split_first() else {
                (self.piece, self.owed) = (&[], 0);
                return;
            };
            self.owed -= self.piece.len();
            (self.piece, self.rest) = (next, rest);
        }
    }
}

/// Bytes of a request: a few lines, since to count bytes takes as many instructions as to ask for them.
pub(super) const REQUEST: usize = 256;
