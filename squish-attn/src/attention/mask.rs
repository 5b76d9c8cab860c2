//! Which tokens a query row sees.

use std::ops::Range;

use crate::error::{AttnError, Result};

/// Which tokens of its sequence a query row sees, before the window.
#[derive(Clone, Copy, Debug, Default)]
pub enum Mask<'a> {
    /// The rows are the last tokens of the source, and each sees itself and all before: row `i` of `n` sees the first
    /// `len - n + i + 1`.
    #[default]
    Causal,
    /// All tokens.
    Full,
    /// The rows are the last tokens of the source, and nodes of a tree: each sees all tokens before the tree, its ancestors and itself.
    /// Item `i` is the parent of node `i`, a node before it, or `None` for a child of the last token before the tree.
    Tree(&'a [Option<u32>]),
    /// Row `i` sees token `j` if the bit is set.
    Custom(&'a BitMask),
}

/// Bits `[rows, tokens]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitMask {
    n_rows: usize,
    n_tokens: usize,
    words: Vec<u64>,
}

impl BitMask {
    /// The bits that `is_visible(row, token)` says.
    #[must_use]
    pub fn from_fn(
        n_rows: usize,
        n_tokens: usize,
        mut is_visible: impl FnMut(usize, usize) -> bool,
    ) -> Self {
        let per_row = n_tokens.div_ceil(64);
        let mut words = vec![0; n_rows * per_row];
        for (row, words) in words.chunks_exact_mut(per_row.max(1)).enumerate() {
            for token in (0..n_tokens).filter(|&token| is_visible(row, token)) {
                words[token / 64] |= 1 << (token % 64);
            }
        }
        Self { n_rows, n_tokens, words }
    }

    /// Rows and tokens.
    #[must_use]
    pub const fn shape(&self) -> [usize; 2] {
        [self.n_rows, self.n_tokens]
    }

    /// Appends the ranges of tokens that `row` sees and that lie in `within`.
    fn ranges_into(&self, row: usize, within: Range<usize>, out: &mut Vec<Range<usize>>) {
        let per_row = self.n_tokens.div_ceil(64);
        let words = &self.words[row * per_row..(row + 1) * per_row];
        let is_set = |token: usize| words[token / 64] >> (token % 64) & 1 == 1;
        let mut at = within.start;
        while at < within.end {
            let rest = words[at / 64] >> (at % 64);
            if rest == 0 {
                at = (at / 64 + 1) * 64;
                continue;
            }
            at += rest.trailing_zeros() as usize;
            let start = at;
            while at < within.end && is_set(at) {
                at += 1;
            }
            if start < at {
                out.push(start..at);
            }
        }
    }
}

/// The mask of one sequence with the shapes that it must fit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visibility<'a> {
    pub(super) mask: Mask<'a>,
    pub(super) window: Option<usize>,
    pub(super) n_rows: usize,
    pub(super) n_tokens: usize,
}

impl Visibility<'_> {
    /// Whether rows and tokens fit the mask.
    pub(super) fn check(&self) -> Result<()> {
        let Self { mask, n_rows, n_tokens, .. } = *self;
        match mask {
            Mask::Full => Ok(()),
            Mask::Causal if n_rows <= n_tokens => Ok(()),
            Mask::Tree(parents) if n_rows <= n_tokens && parents.len() == n_rows => {
                let ahead = (0..n_rows).find(|&i| parents[i].is_some_and(|p| p as usize >= i));
                ahead.map_or(Ok(()), |node| {
                    let parent = parents[node].unwrap_or_default() as usize;
                    Err(AttnError::Parent { node, parent })
                })
            }
            Mask::Custom(bits) if bits.shape() == [n_rows, n_tokens] => Ok(()),
            Mask::Custom(bits) => {
                Err(AttnError::Mask { expected: [n_rows, n_tokens], actual: bits.shape() })
            }
            Mask::Tree(parents) if n_rows <= n_tokens => {
                Err(AttnError::Length { what: "parents", expected: n_rows, actual: parents.len() })
            }
            Mask::Causal | Mask::Tree(_) => Err(AttnError::Rows { n_rows, n_tokens }),
        }
    }

    /// The first token of a causal row, and the end of those that it sees.
    pub(super) fn causal(&self, row: usize) -> Range<usize> {
        let end = self.n_tokens - self.n_rows + row + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Appends what a row sees as ranges of tokens, in ascending order.
    pub(super) fn ranges_into(&self, row: usize, out: &mut Vec<Range<usize>>) {
        let first = out.len();
        match self.mask {
            Mask::Causal => out.push(self.causal(row)),
            Mask::Full => {
                // The last row stands at the last token.
                let end = (self.n_tokens + row + 1).saturating_sub(self.n_rows);
                out.push(self.window.map_or(0, |window| end.saturating_sub(window))..self.n_tokens);
            }
            Mask::Tree(parents) => {
                let before = self.n_tokens - self.n_rows;
                let mut node = Some(row as u32);
                while let Some(at) = node {
                    out.push(before + at as usize..before + at as usize + 1);
                    node = parents[at as usize];
                }
                let n_ancestors = out.len() - first;
                let seen =
                    self.window.map_or(before, |w| w.saturating_sub(n_ancestors).min(before));
                if let Some(window) = self.window {
                    // Ancestors that left the window, those farthest away.
                    out.truncate(first + n_ancestors.min(window));
                }
                out.push(before - seen..before);
                out[first..].reverse();
            }
            Mask::Custom(bits) => {
                let end = (self.n_tokens + row + 1).saturating_sub(self.n_rows);
                let start = self.window.map_or(0, |window| end.saturating_sub(window));
                bits.ranges_into(row, start..self.n_tokens, out);
            }
        }
        let mut kept = first;
        for i in first..out.len() {
            if !out[i].is_empty() {
                out.swap(kept, i);
                kept += 1;
            }
        }
        out.truncate(kept);
    }

    /// Position of a row, where the last token of the source stands before `end`.
    pub(super) fn position(&self, row: usize, end: usize) -> usize {
        let depth = match self.mask {
            Mask::Tree(parents) => {
                let (mut depth, mut node) = (0, parents[row]);
                while let Some(at) = node {
                    depth += 1;
                    node = parents[at as usize];
                }
                depth
            }
            _ => row,
        };
        (end + depth).saturating_sub(self.n_rows)
    }
}
