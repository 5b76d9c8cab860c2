//! Which blocks are in use, by how many, and which free one is taken next.
//!
//! Free blocks stand in a doubly linked list in the order in which they will be taken; its links live in the array of the blocks, so every
//! operation is O(1) and allocates nothing. A block enters at the end that its content deserves ([`Reuse`]) and can leave from the
//! middle, when a prefix that is still in it is wanted again.
//!
//! The source is vLLM's `FreeKVCacheBlockQueue` (`vllm/v1/core/kv_cache_utils.py`), with one departure: there all blocks enter at the end,
//! here those whose content nobody can find enter at the front, so that cached prefixes last longer.

use std::fmt;

use crate::{
    block::{BlockId, MAX_SLOTS, NULL_BLOCK},
    error::{Error, Result},
};

/// When a released block is taken again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Before all others: its content is worth nothing.
    First,
    /// After all others: its content may be wanted.
    Last,
}

/// Reference counts of blocks, and the free ones in the order of their reuse.
#[derive(Clone)]
pub struct BlockPool {
    /// One node per block, and at the end one that closes the list of the free into a ring.
    nodes: Vec<Node>,
    n_free: usize,
}

/// Links are [`NULL_BLOCK`] while the block is in no list.
#[derive(Clone, Copy)]
struct Node {
    n_refs: u32,
    prev: BlockId,
    next: BlockId,
}

impl fmt::Debug for BlockPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockPool")
            .field("n_blocks", &self.n_blocks())
            .field("n_free", &self.n_free)
            .finish_non_exhaustive()
    }
}

impl BlockPool {
    /// A pool of `n_blocks` free blocks, to be taken in ascending order.
    ///
    /// # Errors
    ///
    /// [`Error::Zero`], [`Error::TooManySlots`], [`Error::Memory`].
    pub fn new(n_blocks: usize) -> Result<Self> {
        if n_blocks == 0 {
            return Err(Error::Zero { what: "n_blocks" });
        }
        if n_blocks > MAX_SLOTS {
            return Err(Error::TooManySlots { n_blocks, block_size: 1, max: MAX_SLOTS });
        }
        let mut nodes = Vec::new();
        nodes.try_reserve_exact(n_blocks + 1).map_err(|_| Error::Memory { n_blocks })?;
        let last = n_blocks as BlockId;
        nodes.extend((0..=last).map(|id| Node {
            n_refs: 0,
            prev: id.checked_sub(1).unwrap_or(last),
            next: if id == last { 0 } else { id + 1 },
        }));
        Ok(Self { nodes, n_free: n_blocks })
    }

    /// Blocks of the pool.
    #[must_use]
    pub fn n_blocks(&self) -> usize {
        self.nodes.len() - 1
    }

    /// Blocks without a reference.
    #[must_use]
    pub fn n_free(&self) -> usize {
        self.n_free
    }

    /// How many hold `block`.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownBlock`].
    pub fn ref_count(&self, block: BlockId) -> Result<u32> {
        self.check(block)?;
        Ok(self.refs(block))
    }

    /// The free blocks, the next to be taken first.
    pub fn free_blocks(&self) -> impl Iterator<Item = BlockId> {
        let end = self.end();
        let next = move |&block: &BlockId| Some(self.nodes[block as usize].next);
        std::iter::successors(Some(self.nodes[end as usize].next), next)
            .take_while(move |&block| block != end)
    }

    /// Takes the next free block, with one reference; `None` if there is none.
    pub fn take(&mut self) -> Option<BlockId> {
        let block = self.nodes[self.end() as usize].next;
        if block == self.end() {
            return None;
        }
        self.unlink(block);
        self.nodes[block as usize].n_refs = 1;
        Some(block)
    }

    /// Adds a reference to `block`, free or not.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownBlock`], [`Error::TooManyReferences`].
    pub fn retain(&mut self, block: BlockId) -> Result<()> {
        self.check(block)?;
        if self.refs(block) == u32::MAX {
            return Err(Error::TooManyReferences { block });
        }
        self.hold(block);
        Ok(())
    }

    /// Takes a reference from `block`. Without any it is free, to be taken again when `reuse` says.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownBlock`], and [`Error::DoubleFree`] if nobody holds it.
    pub fn release(&mut self, block: BlockId, reuse: Reuse) -> Result<()> {
        self.check(block)?;
        if self.refs(block) == 0 {
            return Err(Error::DoubleFree { block });
        }
        self.suspend(block);
        self.settle(block, reuse);
        Ok(())
    }

    /// As [`ref_count`](Self::ref_count), of a block that is known to exist.
    #[inline]
    pub(crate) fn refs(&self, block: BlockId) -> u32 {
        self.nodes[block as usize].n_refs
    }

    /// As [`retain`](Self::retain), of a block that exists and has not all references that can be counted.
    pub(crate) fn hold(&mut self, block: BlockId) {
        if self.refs(block) == 0 {
            self.unlink(block);
        }
        self.nodes[block as usize].n_refs += 1;
    }

    /// Takes a reference from `block`, which does not become free before it is [settled](Self::settle).
    pub(crate) fn suspend(&mut self, block: BlockId) {
        debug_assert!(self.refs(block) > 0, "block {block} is free already");
        self.nodes[block as usize].n_refs -= 1;
    }

    /// Undoes [`suspend`](Self::suspend).
    pub(crate) fn resume(&mut self, block: BlockId) {
        self.nodes[block as usize].n_refs += 1;
    }

    /// Makes a block free that has lost its last reference.
    pub(crate) fn settle(&mut self, block: BlockId, reuse: Reuse) {
        let Node { n_refs, next, .. } = self.nodes[block as usize];
        if n_refs > 0 || next != NULL_BLOCK {
            return;
        }
        let end = self.end();
        let (prev, next) = match reuse {
            Reuse::First => (end, self.nodes[end as usize].next),
            Reuse::Last => (self.nodes[end as usize].prev, end),
        };
        self.nodes[block as usize] = Node { n_refs: 0, prev, next };
        self.nodes[prev as usize].next = block;
        self.nodes[next as usize].prev = block;
        self.n_free += 1;
    }

    fn unlink(&mut self, block: BlockId) {
        let node = &mut self.nodes[block as usize];
        let (prev, next) = (node.prev, node.next);
        (node.prev, node.next) = (NULL_BLOCK, NULL_BLOCK);
        self.nodes[prev as usize].next = next;
        self.nodes[next as usize].prev = prev;
        self.n_free -= 1;
    }

    fn check(&self, block: BlockId) -> Result<()> {
        let n_blocks = self.n_blocks();
        if (block as usize) < n_blocks {
            Ok(())
        } else {
            Err(Error::UnknownBlock { block, n_blocks })
        }
    }

    /// The node that closes the ring.
    fn end(&self) -> BlockId {
        self.n_blocks() as BlockId
    }
}
