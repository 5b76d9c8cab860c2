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
    block::{BlockCopy, BlockId, Slot, SlotMove},
    error::{Error, Result},
    open_step::Entry,
    sequence::{Sequence, SequenceId},
    tables::BlockTables,
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
        Ok(Slots::of(sequence, entry, self.tables.block_size))
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
            for (Slot { block, offset }, &token) in
                Slots::of(sequence, entry, *block_size).zip(tokens)
            {
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
        check_path(path, entry.n_new as usize)?;
        let at = sequence.entry as usize;
        let BlockTables { open, index, sequences, block_size, .. } = &mut *self.tables;
        let entry = &mut open.batch[at];
        let sequence = sequences.at(entry.place as usize);
        let moves = Moves { slots: Slots::of(sequence, entry, *block_size), path, at: 0 };
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

    /// The place of a sequence in the batch.
    #[inline]
    pub(crate) fn index(&self, id: SequenceId) -> Result<usize> {
        Ok(self.find(id)?.0.entry as usize)
    }

    /// New tokens of the sequence at a place in the batch.
    #[inline]
    pub(crate) fn n_new(&self, index: usize) -> usize {
        self.tables.open.batch[index].n_new as usize
    }

    /// Leading blocks that a sequence has given back.
    pub(crate) fn n_null(&self, id: SequenceId) -> Result<usize> {
        Ok(self.find(id)?.0.n_null as usize)
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

/// `Ok` if `path` ascends among the `n_new` nodes of a step.
pub(crate) fn check_path(path: &[usize], n_new: usize) -> Result<()> {
    let mut least = 0;
    for (index, &node) in path.iter().enumerate() {
        if node < least || node >= n_new {
            return Err(Error::Path { index, node, least, n_new });
        }
        least = node + 1;
    }
    Ok(())
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

impl<'a> Slots<'a> {
    #[inline]
    fn of(sequence: &'a Sequence, entry: &Entry, block_size: u32) -> Self {
        let (n_skipped, offset) = match sequence.room {
            0 => (entry.n_before, 0),
            room => (entry.n_before - 1, block_size - room),
        };
        let table = &sequence.table[n_skipped as usize..];
        Self { table, offset, n_left: entry.n_new, block_size }
    }

    /// The slots of each block: the first one and their number.
    #[inline]
    pub(crate) fn runs(self) -> impl Iterator<Item = (Slot, usize)> + use<'a> {
        let Self { table, mut offset, mut n_left, block_size } = self;
        table.iter().map_while(move |&block| {
            let (slot, n) = (Slot { block, offset }, n_left.min(block_size - offset));
            (offset, n_left) = (0, n_left - n);
            (n > 0).then_some((slot, n as usize))
        })
    }

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
