//! Rows and tokens cut into units of work.

use std::ops::Range;

use super::{
    mask::{Mask, Visibility},
    run::SPLIT,
};

/// Rows of queries, times heads that share keys, that meet a tile together.
const MOST_ROWS: usize = 64;

/// Rows of one sequence that see the same tokens but for the last ones.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) sequence: usize,
    /// First row of the sequence, among all.
    pub(super) first_row: usize,
    /// Among the rows of the sequence.
    pub(super) rows: Range<usize>,
    /// Where its ranges of tokens are.
    pub(super) ranges: Range<usize>,
    /// Tokens that the first row sees; each next one sees one more, if `grows`.
    pub(super) n_visible: usize,
    pub(super) grows: bool,
}

impl Block {
    pub(super) fn visible(&self, row: usize) -> usize {
        if self.grows { self.n_visible + row - self.rows.start } else { self.n_visible }
    }

    pub(super) fn most_visible(&self) -> usize {
        self.visible(self.rows.end - 1)
    }

    pub(super) fn n_splits(&self) -> usize {
        self.most_visible().div_ceil(SPLIT).max(1)
    }
}

/// Some splits of a block and a head of keys, whose states are merged into one.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) block: usize,
    pub(super) head: usize,
    pub(super) splits: Range<usize>,
}

/// The blocks of a call.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) blocks: Vec<Block>,
    /// Tokens that the rows of blocks see.
    pub(super) ranges: Vec<Range<usize>>,
}

impl Plan {
    pub(super) fn clear(&mut self) {
        self.blocks.clear();
        self.ranges.clear();
    }

    /// Cuts the rows of a sequence into blocks, where `group` heads of queries share keys.
    pub(super) fn add(
        &mut self,
        sequence: usize,
        first_row: usize,
        visibility: &Visibility<'_>,
        group: usize,
    ) {
        let (mut row, most_rows) = (0, (MOST_ROWS / group).max(1));
        while row < visibility.n_rows {
            let most = most_rows.min(visibility.n_rows - row);
            let first_range = self.ranges.len();
            let (n_rows, grows) = match visibility.mask {
                Mask::Causal => {
                    let seen = visibility.causal(row);
                    let same =
                        (1..most).take_while(|i| visibility.causal(row + i).start == seen.start);
                    let n_rows = 1 + same.count();
                    self.ranges.push(seen.start..visibility.causal(row + n_rows - 1).end);
                    (n_rows, true)
                }
                Mask::Full if visibility.window.is_none() => {
                    self.ranges.push(0..visibility.n_tokens);
                    (most, false)
                }
                Mask::Full | Mask::Tree(_) | Mask::Custom(_) => {
                    visibility.ranges_into(row, &mut self.ranges);
                    (1, false)
                }
            };
            let ranges = first_range..self.ranges.len();
            let n_visible: usize = self.ranges[ranges.clone()].iter().map(Range::len).sum();
            let n_visible = if grows { n_visible + 1 - n_rows } else { n_visible };
            let rows = row..row + n_rows;
            self.blocks.push(Block { sequence, first_row, rows, ranges, n_visible, grows });
            row += n_rows;
        }
    }
}
