//! What an open step has done to the tables, and how it is undone or made good.
//!
//! While it is open, tables are longer than their sequences, and a block that was replaced by a copy has a reference less than
//! tables say; everything else is as before. Entries stand in the order of the batch, so that blocks can be put back in the reverse order.

use crate::{
    block::{BlockCopy, BlockId, NULL_BLOCK},
    error::{Error, Result},
    pool::{BlockPool, Reuse},
    sequence::{NO_ENTRY, SequenceId},
    tables::{BlockTables, let_go, settle},
};

/// The step that is open, with memory that is kept from one to the next.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenStep {
    pub(crate) batch: Vec<Entry>,
    pub(crate) copies: Vec<BlockCopy>,
}

/// What a step does to one sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) place: u32,
    /// Tokens to be committed.
    pub(crate) n_new: u32,
    /// Blocks of the table before the step.
    pub(crate) n_before: u32,
    /// The block that a copy has replaced, or [`NULL_BLOCK`].
    copied: BlockId,
    /// Whether the index has the ids of the new tokens in their slots.
    pub(crate) is_recorded: bool,
}

impl OpenStep {
    /// Whether the step has replaced `block` where it holds more than `n_slots` tokens: to be undone, they must stay.
    #[inline]
    pub(crate) fn has_copied(&self, block: BlockId, n_slots: u32) -> bool {
        self.copies.iter().any(|copy| copy.from == block && copy.n_slots > n_slots)
    }

    pub(crate) fn reserve(&mut self, n_sequences: usize) {
        self.batch.reserve(n_sequences);
        self.copies.reserve(n_sequences);
    }
}

impl BlockTables {
    /// Extends the tables of a batch and says how many blocks that took. If it fails, what was done is there to be rolled back.
    pub(crate) fn take_blocks(&mut self, batch: &[(SequenceId, usize)]) -> Result<usize> {
        let (mut n_taken, mut n_missing) = (0, 0);
        for &(id, n_new) in batch {
            let place = self.sequences.find(id)?;
            let sequence = self.sequences.at(place);
            if sequence.entry != NO_ENTRY {
                return Err(Error::DuplicateSequence { id });
            }
            let (len, room) = (sequence.len, sequence.room);
            let fits = |&n_new: &u32| len.checked_add(n_new).is_some();
            let Some(n_new) = u32::try_from(n_new).ok().filter(fits) else {
                return Err(Error::TooLong { len: len as usize, n_new, max: u32::MAX as usize });
            };
            let must_copy = n_new > 0 && self.must_copy(sequence);
            let Self { block_size, pool, sequences, open, .. } = self;
            let sequence = sequences.at_mut(place);
            sequence.entry = open.batch.len() as u32;
            let n_before = sequence.table.len() as u32;
            let mut entry = Entry {
                place: place as u32,
                n_new,
                n_before,
                copied: NULL_BLOCK,
                is_recorded: false,
            };
            if must_copy {
                let last = sequence.table.last_mut().expect("the room is in a block");
                entry.copied = *last;
                // From here on a sequence that shares the block may be its only owner, and write to it after the copy.
                pool.suspend(*last);
                let (from, n_slots) = (*last, *block_size - room);
                let to = pool.take().inspect(|&to| *last = to);
                open.copies.push(BlockCopy { from, to: to.unwrap_or(NULL_BLOCK), n_slots });
                n_taken += usize::from(to.is_some());
                n_missing += usize::from(to.is_none());
            }
            open.batch.push(entry);
            if n_new > room {
                let n_blocks = (n_new - room).div_ceil(*block_size) as usize;
                let blocks = std::iter::from_fn(|| pool.take()).take(n_blocks);
                sequence.table.extend(blocks);
                let n_here = sequence.table.len() - n_before as usize;
                n_taken += n_here;
                n_missing += n_blocks - n_here;
            }
        }
        if n_missing > 0 {
            let (needed, free) = (n_taken + n_missing, self.pool.n_free() + n_taken);
            return Err(Error::PoolExhausted { needed, free });
        }
        Ok(n_taken)
    }

    /// Takes the blocks of a step out of the index, and tells it about the copies.
    pub(crate) fn forget_contents(&mut self) {
        for &BlockCopy { from, to, n_slots } in &self.open.copies {
            self.index.remove(to);
            self.index.copy_tokens(from, to, n_slots as usize);
        }
        for entry in &self.open.batch {
            let sequence = self.sequences.at(entry.place as usize);
            for &block in &sequence.table[entry.n_before as usize..] {
                self.index.remove(block);
            }
        }
    }

    /// Undoes the step that is open, if one is.
    #[inline]
    pub(crate) fn roll_back(&mut self) {
        if !self.open.batch.is_empty() {
            self.roll_back_open();
        }
    }

    /// The last block that was taken is put back first, so that the free ones stand as before.
    fn roll_back_open(&mut self) {
        let Self { pool, sequences, open, .. } = self;
        for Entry { place, n_before, copied, .. } in open.batch.drain(..).rev() {
            let sequence = sequences.at_mut(place as usize);
            sequence.entry = NO_ENTRY;
            put_back_from(n_before as usize, &mut sequence.table, pool);
            if copied != NULL_BLOCK {
                let last = sequence.table.last_mut().expect("a block was copied");
                // Where no block was left for the copy, the table still has the original.
                if *last != copied {
                    put_back(pool, *last);
                    *last = copied;
                }
                pool.resume(copied);
            }
        }
        open.copies.clear();
    }

    pub(crate) fn commit_open(&mut self) {
        for at in 0..self.open.batch.len() {
            let entry = self.open.batch[at];
            let sequence = self.sequences.at_mut(entry.place as usize);
            sequence.entry = NO_ENTRY;
            let old_len = sequence.len;
            sequence.len += entry.n_new;
            // What the step has taken, or written to in place.
            sequence.owns_last |= entry.n_new > 0 || entry.copied != NULL_BLOCK;
            let is_known = entry.is_recorded && sequence.n_known == old_len;
            if is_known {
                sequence.n_known = sequence.len;
            }
            // Most tokens go into a block that has room for more.
            if entry.n_new < sequence.room {
                sequence.room -= entry.n_new;
                let n_blocks = entry.n_before as usize;
                if sequence.table.len() > n_blocks {
                    put_back_from(n_blocks, &mut sequence.table, &mut self.pool);
                }
            } else {
                self.commit_blocks(entry, old_len, is_known);
            }
            if entry.copied != NULL_BLOCK {
                settle(&mut self.pool, &self.index, entry.copied);
            }
            self.leave_window(entry.place as usize);
        }
        self.open.batch.clear();
        self.open.copies.clear();
    }

    /// The part of a commit that has to do with blocks: those that are full are indexed, those of rejected tokens go back.
    fn commit_blocks(&mut self, entry: Entry, old_len: u32, is_known: bool) {
        let Self { block_size, pool, index, sequences, .. } = self;
        let (block_size, sequence) = (*block_size, sequences.at_mut(entry.place as usize));
        let n_more = entry.n_new.saturating_sub(sequence.room).div_ceil(block_size);
        let n_blocks = entry.n_before + n_more;
        put_back_from(n_blocks as usize, &mut sequence.table, pool);
        let n_slots = u64::from(n_blocks) * u64::from(block_size);
        sequence.room = (n_slots - u64::from(sequence.len)) as u32;
        if is_known {
            let (first, end) = (old_len / block_size, sequence.len / block_size);
            for &block in &sequence.table[first as usize..end as usize] {
                let parent = sequence.chain;
                sequence.chain = index.hash(&parent, index.tokens(block));
                index.insert(block, sequence.chain, parent);
            }
        }
    }

    /// Gives back the blocks that the next token does not read.
    #[inline]
    fn leave_window(&mut self, place: usize) {
        let Self { block_size, pool, index, sequences, .. } = self;
        let sequence = sequences.at_mut(place);
        if sequence.reach == u32::MAX {
            return;
        }
        let n_null = sequence.len.saturating_sub(sequence.reach) / *block_size;
        for at in sequence.n_null..n_null {
            let block = std::mem::replace(&mut sequence.table[at as usize], NULL_BLOCK);
            let_go(pool, index, block);
        }
        sequence.n_null = sequence.n_null.max(n_null);
    }
}

/// Cuts a table that a step has extended.
fn put_back_from(n_blocks: usize, table: &mut Vec<BlockId>, pool: &mut BlockPool) {
    for block in table.drain(n_blocks..).rev() {
        put_back(pool, block);
    }
}

/// Returns a block that a step has taken to the front of the free ones.
fn put_back(pool: &mut BlockPool, block: BlockId) {
    pool.suspend(block);
    pool.settle(block, Reuse::First);
}
