//! What attention reads: the tokens of a sequence in one layer, where they lie.

use squish_kernels::kv::{KvElement, KvSource, Rows, Run};

use super::arena::Arena;
use crate::block::{BlockId, Slot};

/// Keys and values of one sequence in one layer, a run for each block.
///
/// A window's blocks that were given back are left out: then the first token that is here has a position larger than 0.
#[derive(Debug)]
pub struct KvView<'a, E> {
    arena: &'a Arena<E>,
    layer: usize,
    /// The blocks that are here.
    table: &'a [BlockId],
    /// Position of the first token in them.
    position: usize,
    len: usize,
}

impl<E> Clone for KvView<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for KvView<'_, E> {}

impl<'a, E: KvElement> KvView<'a, E> {
    /// The first `len` tokens of a table of blocks of the arena, of which `n_null` blocks, all of them full, are not here.
    #[inline]
    pub(super) fn new(
        arena: &'a Arena<E>,
        layer: usize,
        table: &'a [BlockId],
        n_null: usize,
        len: usize,
    ) -> Self {
        let (block_size, position) = (arena.block_size(), n_null * arena.block_size());
        let table = &table[n_null..len.div_ceil(block_size)];
        Self { arena, layer, table, position, len: len - position }
    }

    fn first_slot(&self, run: usize) -> Slot {
        Slot { block: self.table[run], offset: 0 }
    }
}

impl<E: KvElement> KvSource for KvView<'_, E> {
    type Element = E;

    fn n_heads(&self) -> usize {
        self.arena.shape().n_heads
    }

    fn key_dim(&self) -> usize {
        self.arena.shape().key_dim
    }

    fn value_dim(&self) -> usize {
        self.arena.shape().value_dim
    }

    #[inline]
    fn len(&self) -> usize {
        self.len
    }

    fn n_runs(&self) -> usize {
        self.table.len()
    }

    #[inline]
    fn run(&self, run: usize) -> Run {
        let block_size = self.arena.block_size();
        let start = run * block_size;
        Run { start, len: block_size.min(self.len - start), position: self.position + start }
    }

    #[inline]
    fn run_of(&self, index: usize) -> usize {
        index / self.arena.block_size()
    }

    #[inline]
    fn keys(&self, head: usize, run: usize) -> Rows<'_, E> {
        self.arena.keys(self.layer, head, self.first_slot(run), self.run(run).len)
    }

    #[inline]
    fn values(&self, head: usize, run: usize) -> Rows<'_, E> {
        self.arena.values(self.layer, head, self.first_slot(run), self.run(run).len)
    }
}
