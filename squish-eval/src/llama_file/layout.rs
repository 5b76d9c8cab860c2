//! Where rows lie in a file, and which token each foresees.

use crate::error::{EvalError, Result};

/// The sizes of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) n_ctx: usize,
    pub(super) vocab_size: usize,
    pub(super) n_chunks: usize,
}

impl Layout {
    /// Chunks of fewer than 3 tokens have no row.
    pub(super) fn check(self) -> Result<()> {
        EvalError::check_value("n_ctx", self.n_ctx as f64, self.n_ctx >= 3, "3 or more")?;
        // Bytes of a row are to be a `usize`.
        let holds = (1..=usize::MAX / 4).contains(&self.vocab_size);
        EvalError::check_value("vocab_size", self.vocab_size as f64, holds, "1 or more")
    }

    pub(super) fn rows_of_chunk(self) -> usize {
        self.n_ctx - 1 - self.n_ctx / 2
    }

    pub(super) fn row_bytes(self) -> usize {
        8 + 2 * self.vocab_size.next_multiple_of(2)
    }
}

/// A row of a file: the next one to be read or written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    pub(super) chunk: usize,
    pub(super) row: usize,
}

impl Place {
    /// Index of the token that the row foresees; `None` at the end.
    pub(super) fn index(self, layout: Layout) -> Option<usize> {
        let first = layout.n_ctx / 2 + 1;
        (self.chunk < layout.n_chunks).then(|| self.chunk * layout.n_ctx + first + self.row)
    }

    pub(super) fn advance(&mut self, layout: Layout) {
        self.row += 1;
        if self.row == layout.rows_of_chunk() {
            *self = Self { chunk: self.chunk + 1, row: 0 };
        }
    }

    pub(super) fn rows_before(self, layout: Layout) -> u64 {
        (self.chunk * layout.rows_of_chunk() + self.row) as u64
    }
}
