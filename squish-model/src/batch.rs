//! What a forward pass is asked for: new tokens of some sequences.

use std::ops::Range;

use crate::{Config, Error, SequenceId};

/// Of which tokens the logits are wanted: what follows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// Of none: a part of a prompt.
    None,
    /// Of the last one.
    #[default]
    Last,
    /// Of all.
    All,
    /// Of those from this one on, of the part's, counted from 0; there may be none.
    From(usize),
}

/// New tokens of a sequence.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The sequence, in one part of a batch at most.
    pub sequence: SequenceId,
    /// At least one.
    pub tokens: &'a [u32],
    /// If the tokens are the nodes of a tree: of each its parent, a node before it, or `None` for a child of the last token before the
    /// tree.
    pub parents: Option<&'a [Option<u32>]>,
    /// Which logits.
    pub wanted: Wanted,
}

impl<'a> Part<'a> {
    /// Tokens one behind the other, with the logits of the last one.
    pub const fn new(sequence: SequenceId, tokens: &'a [u32]) -> Self {
        Self { sequence, tokens, parents: None, wanted: Wanted::Last }
    }

    /// The nodes of a tree, with all logits.
    pub const fn tree(sequence: SequenceId, tokens: &'a [u32], parents: &'a [Option<u32>]) -> Self {
        Self { sequence, tokens, parents: Some(parents), wanted: Wanted::All }
    }

    /// The same part with other logits.
    #[must_use]
    pub const fn with_logits(self, wanted: Wanted) -> Self {
        Self { wanted, ..self }
    }

    pub(crate) fn check(&self, config: &Config) -> Result<(), Error> {
        let (actual, vocab_size) = (self.tokens.len(), config.vocab_size);
        if actual == 0 {
            return Err(Error::TooFewTokens { expected: 1, actual });
        }
        let outside = self.tokens.iter().position(|&token| token as usize >= vocab_size);
        if let Some(index) = outside {
            return Err(Error::Token { token: self.tokens[index], index, vocab_size });
        }
        let Some(parents) = self.parents else { return Ok(()) };
        if parents.len() != actual {
            return Err(Error::Parents { expected: actual, actual: parents.len() });
        }
        for (node, parent) in parents.iter().enumerate() {
            if let &Some(parent) = parent
                && parent as usize >= node
            {
                return Err(Error::Parent { node, parent });
            }
        }
        Ok(())
    }

    /// Indices of the tokens whose logits are wanted.
    pub(crate) fn wanted_rows(&self) -> Range<usize> {
        let n = self.tokens.len();
        match self.wanted {
            Wanted::None => n..n,
            Wanted::Last => n - 1..n,
            Wanted::All => 0..n,
            Wanted::From(first) => first.min(n)..n,
        }
    }
}

/// Parts with what their rows have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch<'a> {
    pub(crate) parts: &'a [Part<'a>],
    /// First row of each part, and the number of rows.
    pub(crate) first_rows: &'a [usize],
    /// Of each row, how many tokens of its part it comes after: its ancestors in a tree.
    pub(crate) depths: &'a [usize],
    /// Of each row.
    pub(crate) positions: &'a [usize],
    /// Of each row its part.
    pub(crate) part_of: &'a [usize],
}

/// The rows of one part, as attention sees them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    pub(crate) n: usize,
    /// Tokens of the sequence before them.
    pub(crate) n_before: usize,
    pub(crate) parents: Option<&'a [Option<u32>]>,
    pub(crate) depths: &'a [usize],
}

impl<'a> Batch<'a> {
    pub(crate) fn n_parts(&self) -> usize {
        self.parts.len()
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.positions.len()
    }

    /// The rows of some parts.
    pub(crate) fn range(&self, parts: Range<usize>) -> Range<usize> {
        self.first_rows[parts.start]..self.first_rows[parts.end]
    }

    pub(crate) fn rows(&self, part: usize) -> Rows<'a> {
        let range = self.range(part..part + 1);
        let parents = self.parts[part].parents;
        let n_before = self.positions[range.start] - self.depths[range.start];
        Rows { n: range.len(), n_before, parents, depths: &self.depths[range] }
    }
}

/// What a [`Batch`] borrows, kept from pass to pass.
#[derive(Debug, Default)]
pub(crate) struct BatchBuffers {
    first_rows: Vec<usize>,
    depths: Vec<usize>,
    positions: Vec<usize>,
    part_of: Vec<usize>,
}

impl BatchBuffers {
    /// The batch of `parts`, which were checked, behind as many tokens as `len_of` says of each.
    pub(crate) fn batch<'a>(
        &'a mut self,
        parts: &'a [Part<'a>],
        len_of: impl Fn(usize) -> usize,
    ) -> Batch<'a> {
        let Self { first_rows, depths, positions, part_of } = self;
        for numbers in [&mut *first_rows, depths, positions, part_of] {
            numbers.clear();
        }
        for (idx, part) in parts.iter().enumerate() {
            let first = depths.len();
            first_rows.push(first);
            for row in 0..part.tokens.len() {
                let depth = match part.parents {
                    None => row,
                    Some(parents) => {
                        parents[row].map_or(0, |parent| depths[first + parent as usize] + 1)
                    }
                };
                depths.push(depth);
                positions.push(len_of(idx) + depth);
                part_of.push(idx);
            }
        }
        first_rows.push(depths.len());
        Batch { parts, first_rows, depths, positions, part_of }
    }
}
