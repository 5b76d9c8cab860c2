//! One forward pass over a batch, as a reservation: all of its blocks or none, and no sequence is longer before it is committed.
//!
//! ```text
//! begin    blocks for the new tokens of every sequence; copies of blocks that others can see
//!          the storage makes the copies, writes keys and values to the slots, layer after layer, and reads them back
//! record   the ids of the new tokens, if they are to be indexed
//! accept   of a tree of draft tokens one path stays; the storage moves it together
//! commit   lengths move, full blocks are indexed, blocks that left a window are given back
//! drop     instead of that: blocks go back to where they were
//! ```
//!
//! What a dropped step cannot give back is the content of the free blocks that it took, which the storage may have overwritten: they are
//! out of the index as soon as `begin` has succeeded. One that fails changes nothing at all.

use crate::{
    block::{BlockCopy, BlockId, NULL_BLOCK, Slot, SlotMove},
    error::{Error, Result},
    pool::{BlockPool, Reuse},
    sequence::{NO_ENTRY, Sequence, SequenceId},
    tables::{BlockTables, let_go, settle},
};

/// A batch whose blocks are reserved. Dropping it undoes that.
#[derive(Debug)]
#[must_use = "a step that is dropped is undone"]
pub struct Step<'a> {
    tables: &'a mut BlockTables,
}

impl BlockTables {
    /// Reserves slots for so many new tokens of each sequence.
    ///
    /// A sequence whose last block is not full and can be seen by others gets a copy of it first: see [`Step::copies`].
    ///
    /// # Errors
    ///
    /// [`Error::PoolExhausted`] if not all blocks are to be had; [`Error::DuplicateSequence`], [`Error::TooLong`],
    /// [`Error::UnknownSequence`], [`Error::StaleSequence`].
    pub fn begin(&mut self, batch: &[(SequenceId, usize)]) -> Result<Step<'_>> {
        // Left behind only by a step that was forgotten instead of dropped.
        self.roll_back();
        match self.take_blocks(batch) {
            Ok(0) => {}
            Ok(_) => self.forget_contents(),
            Err(error) => {
                self.roll_back();
                return Err(error);
            }
        }
        Ok(Step { tables: self })
    }
}

impl Step<'_> {
    /// The copies that the storage has to make before it writes.
    #[must_use]
    pub fn copies(&self) -> &[BlockCopy] {
        &self.tables.open.copies
    }

    /// Tokens of a block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.tables.block_size()
    }

    /// The blocks of a sequence, those of its new tokens included.
    ///
    /// # Errors
    ///
    /// [`Error::NotInStep`], as all functions of a step that name a sequence; [`Error::UnknownSequence`], [`Error::StaleSequence`].
    pub fn table(&self, id: SequenceId) -> Result<&[BlockId]> {
        Ok(&self.find(id)?.0.table)
    }

    /// Tokens of a sequence before the step.
    ///
    /// # Errors
    ///
    /// As [`table`](Self::table).
    pub fn len(&self, id: SequenceId) -> Result<usize> {
        Ok(self.find(id)?.0.len as usize)
    }

    /// Tokens of a sequence with its new ones.
    ///
    /// # Errors
    ///
    /// As [`table`](Self::table).
    pub fn len_with_new(&self, id: SequenceId) -> Result<usize> {
        let (sequence, entry) = self.find(id)?;
        Ok(sequence.len as usize + entry.n_new as usize)
    }

    /// Where the new tokens of a sequence belong, in their order.
    ///
    /// # Errors
    ///
    /// As [`table`](Self::table).
    pub fn slots(&self, id: SequenceId) -> Result<Slots<'_>> {
        let (sequence, entry) = self.find(id)?;
        Ok(entry.slots(sequence, self.tables.block_size))
    }

    /// Says which tokens are new, as many as the step commits for the sequence. Blocks that they fill can be found by them.
    ///
    /// # Errors
    ///
    /// [`Error::TokenCount`]; and as [`table`](Self::table).
    pub fn record(&mut self, id: SequenceId, tokens: &[u32]) -> Result<()> {
        let (sequence, entry) = self.find(id)?;
        let (expected, actual) = (entry.n_new as usize, tokens.len());
        if expected != actual {
            return Err(Error::TokenCount { expected, actual });
        }
        let at = sequence.entry as usize;
        let BlockTables { open, index, sequences, block_size, .. } = &mut *self.tables;
        let entry = &mut open.batch[at];
        let sequence = sequences.at(entry.place as usize);
        // The ids are of use to those alone whose blocks can be found.
        if sequence.key.is_some() {
            entry.is_recorded = true;
            for (Slot { block, offset }, &token) in entry.slots(sequence, *block_size).zip(tokens) {
                index.tokens_mut(block)[offset as usize] = token;
            }
        }
        Ok(())
    }

    /// Keeps of a sequence's new tokens those at the indices `path`, which ascend, and returns the moves that bring them together: the
    /// storage has to make them in their order. The tokens of a tree stand in its step with parents before children, so a path from the root
    /// to a node ascends. Of an empty path nothing stays.
    ///
    /// # Errors
    ///
    /// [`Error::Path`]; and as [`table`](Self::table).
    pub fn accept<'s>(&'s mut self, id: SequenceId, path: &'s [usize]) -> Result<Moves<'s>> {
        let (sequence, entry) = self.find(id)?;
        let (n_new, mut least) = (entry.n_new as usize, 0);
        for (index, &node) in path.iter().enumerate() {
            if node < least || node >= n_new {
                return Err(Error::Path { index, node, least, n_new });
            }
            least = node + 1;
        }
        let at = sequence.entry as usize;
        let BlockTables { open, index, sequences, block_size, .. } = &mut *self.tables;
        let entry = &mut open.batch[at];
        let sequence = sequences.at(entry.place as usize);
        let moves = Moves { slots: entry.slots(sequence, *block_size), path, at: 0 };
        entry.n_new = path.len() as u32;
        if entry.is_recorded {
            for SlotMove { from, to } in moves.clone() {
                let token = index.tokens_mut(from.block)[from.offset as usize];
                index.tokens_mut(to.block)[to.offset as usize] = token;
            }
        }
        Ok(moves)
    }

    /// Makes the new tokens part of their sequences.
    pub fn commit(self) {
        self.tables.commit_open();
    }

    #[inline]
    fn find(&self, id: SequenceId) -> Result<(&Sequence, &Entry)> {
        let sequence = self.tables.sequences.get(id)?;
        match self.tables.open.batch.get(sequence.entry as usize) {
            Some(entry) => Ok((sequence, entry)),
            None => Err(Error::NotInStep { id }),
        }
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        // A committed step has left nothing to undo.
        self.tables.roll_back();
    }
}

/// The slots of consecutive tokens.
#[derive(Clone, Debug)]
pub struct Slots<'a> {
    /// Blocks from that of the next slot on.
    table: &'a [BlockId],
    offset: u32,
    n_left: u32,
    block_size: u32,
}

impl Slots<'_> {
    /// The slot of the token `n` places on.
    fn ahead(&self, n: usize) -> Slot {
        let (at, block_size) = (self.offset as usize + n, self.block_size as usize);
        Slot { block: self.table[at / block_size], offset: (at % block_size) as u32 }
    }
}

impl Iterator for Slots<'_> {
    type Item = Slot;

    #[inline]
    fn next(&mut self) -> Option<Slot> {
        self.n_left = self.n_left.checked_sub(1)?;
        let slot = Slot { block: *self.table.first()?, offset: self.offset };
        self.offset += 1;
        if self.offset == self.block_size {
            (self.table, self.offset) = (&self.table[1..], 0);
        }
        Some(slot)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.n_left as usize, Some(self.n_left as usize))
    }
}

impl ExactSizeIterator for Slots<'_> {}

/// The moves of an accepted path, in the order in which they are to be made.
#[derive(Clone, Debug)]
pub struct Moves<'a> {
    slots: Slots<'a>,
    path: &'a [usize],
    at: usize,
}

impl Iterator for Moves<'_> {
    type Item = SlotMove;

    fn next(&mut self) -> Option<SlotMove> {
        // A path ascends, so no move writes where a later one reads.
        loop {
            let (to, &from) = (self.at, self.path.get(self.at)?);
            self.at += 1;
            if from != to {
                return Some(SlotMove { from: self.slots.ahead(from), to: self.slots.ahead(to) });
            }
        }
    }
}

/// The step that is open, with memory that is kept from one to the next.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenStep {
    batch: Vec<Entry>,
    copies: Vec<BlockCopy>,
}

/// What a step does to one sequence.
#[derive(Clone, Copy, Debug)]
struct Entry {
    place: u32,
    /// Tokens to be committed.
    n_new: u32,
    /// Blocks of the table before the step.
    n_before: u32,
    /// The block that a copy has replaced, or [`NULL_BLOCK`].
    copied: BlockId,
    /// Whether the index has the ids of the new tokens in their slots.
    is_recorded: bool,
}

impl Entry {
    #[inline]
    fn slots<'s>(&self, sequence: &'s Sequence, block_size: u32) -> Slots<'s> {
        let (n_skipped, offset) = match sequence.room {
            0 => (self.n_before, 0),
            room => (self.n_before - 1, block_size - room),
        };
        let table = &sequence.table[n_skipped as usize..];
        Slots { table, offset, n_left: self.n_new, block_size }
    }
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
    fn take_blocks(&mut self, batch: &[(SequenceId, usize)]) -> Result<usize> {
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
    fn forget_contents(&mut self) {
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

    fn commit_open(&mut self) {
        for at in 0..self.open.batch.len() {
            let entry = self.open.batch[at];
            let sequence = self.sequences.at_mut(entry.place as usize);
            sequence.entry = NO_ENTRY;
            let old_len = sequence.len;
            sequence.len += entry.n_new;
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
