//! Sequences as tables of blocks: what is shared, what is cached, and what becomes free.
//!
//! | call | tables | references |
//! |---|---|---|
//! | `create` | an empty one | |
//! | `create_with_prefix` | starts with the cached blocks of the prompt | one more on each |
//! | `fork` | a copy | one more on each |
//! | `begin` … `commit` | new blocks behind; the last one replaced by a copy if others can see it | one on each new block |
//! | `truncate`, `free` | blocks fall off the end, last first | one less on each |
//! | a window moves on | leading blocks become [`NULL_BLOCK`] | one less on each |
//!
//! A block without references is free. If it is indexed it stays a hit until it is taken, and it is taken after all others that are free
//! already; so of one sequence the tail goes before the prefix that it depends on.
//!
//! A sequence holds a block once and there are fewer than 2^32 sequences, so references never overflow.
//!
//! A block is *written* only by a sequence that holds it alone and only if it is not indexed: what others can see never changes.

use std::{fmt, num::NonZeroUsize};

use crate::{
    block::{BlockId, MAX_SLOTS, NULL_BLOCK},
    error::{Error, Result},
    hash::{BlockHash, PrefixKey},
    open_step::OpenStep,
    pool::{BlockPool, Reuse},
    prefix::{CachedBlock, PrefixIndex},
    sequence::{NO_ENTRY, Sequence, SequenceId, Sequences},
};

/// Which tokens a sequence keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// All of them.
    All,
    /// Those that its next token reads in layers with a sliding window of so many tokens, itself included. Blocks that have left the window
    /// are given back.
    Window(NonZeroUsize),
}

impl Retention {
    /// How many positions before the next one are read.
    fn reach(self) -> u32 {
        match self {
            Self::All => u32::MAX,
            Self::Window(window) => u32::try_from(window.get() - 1).unwrap_or(u32::MAX),
        }
    }
}

/// The block pool, the sequences' tables and the prefix index.
///
/// Nothing here knows an element type or holds a key or a value: a scheduler can own it, while the arenas belong to who runs the model.
#[derive(Clone)]
pub struct BlockTables {
    pub(crate) block_size: u32,
    pub(crate) pool: BlockPool,
    pub(crate) index: PrefixIndex,
    pub(crate) sequences: Sequences,
    pub(crate) open: OpenStep,
}

impl fmt::Debug for BlockTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockTables")
            .field("block_size", &self.block_size)
            .field("pool", &self.pool)
            .field("index", &self.index)
            .field("n_sequences", &self.n_sequences())
            .finish_non_exhaustive()
    }
}

impl BlockTables {
    /// Tables without a sequence over `n_blocks` free blocks of `block_size` tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Zero`], [`Error::TooManySlots`], [`Error::Memory`].
    pub fn new(n_blocks: usize, block_size: usize) -> Result<Self> {
        if block_size == 0 {
            return Err(Error::Zero { what: "block_size" });
        }
        if n_blocks.checked_mul(block_size).is_none_or(|n_slots| n_slots > MAX_SLOTS) {
            return Err(Error::TooManySlots { n_blocks, block_size, max: MAX_SLOTS });
        }
        Ok(Self {
            block_size: block_size as u32,
            pool: BlockPool::new(n_blocks)?,
            index: PrefixIndex::new(n_blocks, block_size)?,
            sequences: Sequences::default(),
            open: OpenStep::default(),
        })
    }

    /// Makes room for `n_sequences` of `seq_len` tokens each, so that nothing allocates while there are no more and no longer ones.
    pub fn reserve(&mut self, n_sequences: usize, seq_len: usize) {
        self.sequences.reserve(n_sequences, seq_len.div_ceil(self.block_size()));
        self.open.reserve(n_sequences);
    }

    // Sequences.

    /// A sequence without tokens, whose blocks will not be found by others.
    ///
    /// # Errors
    ///
    /// [`Error::TooManySequences`].
    pub fn create(&mut self, retention: Retention) -> Result<SequenceId> {
        self.roll_back();
        let id = self.sequences.create()?;
        self.sequence_mut(id)?.reach = retention.reach();
        Ok(id)
    }

    /// A sequence that starts with what is cached of the prompt `tokens` under `key`, and how many tokens that is.
    ///
    /// Only whole blocks are found, and never the last token: somebody has to compute logits from it. A window needs only the blocks that
    /// the first token behind the hit reads; the others are [`NULL_BLOCK`]. The blocks that the sequence fills are indexed under the same
    /// key, as long as the ids of its tokens are given.
    ///
    /// # Errors
    ///
    /// [`Error::TooManySequences`].
    pub fn create_with_prefix(
        &mut self,
        key: &PrefixKey,
        tokens: &[u32],
        retention: Retention,
    ) -> Result<(SequenceId, usize)> {
        self.create_behind(key, tokens, tokens.len().saturating_sub(1), retention)
    }

    /// As [`create_with_prefix`](Self::create_with_prefix), with the first `most` tokens at most.
    pub(crate) fn create_behind(
        &mut self,
        key: &PrefixKey,
        tokens: &[u32],
        most: usize,
        retention: Retention,
    ) -> Result<(SequenceId, usize)> {
        self.roll_back();
        let id = self.sequences.create()?;
        let mut table = std::mem::take(&mut self.sequence_mut(id)?.table);
        let reach = retention.reach();
        let found = self.search(key, tokens, most, reach, |block| {
            table.push(block.unwrap_or(NULL_BLOCK));
        });
        table.truncate(found.n_blocks);
        let n_null = found.n_blocks - found.n_read;
        table[..n_null].fill(NULL_BLOCK);
        for &block in &table[n_null..] {
            self.pool.hold(block);
        }
        let n_cached = found.n_blocks * self.block_size();
        let empty = self.sequence_mut(id)?;
        *empty = Sequence {
            table,
            len: n_cached as u32,
            room: 0,
            owns_last: false,
            n_null: n_null as u32,
            reach,
            entry: NO_ENTRY,
            key: Some(*key),
            n_known: n_cached as u32,
            chain: found.chain,
        };
        Ok((id, n_cached))
    }

    /// How many tokens of a prompt [`create_with_prefix`](Self::create_with_prefix) would find. Changes nothing, the order of reuse included.
    #[must_use]
    pub fn cached_len(&self, key: &PrefixKey, tokens: &[u32], retention: Retention) -> usize {
        let most = tokens.len().saturating_sub(1);
        self.search(key, tokens, most, retention.reach(), |_| {}).n_blocks * self.block_size()
    }

    /// A sequence with the tokens of `id`. Blocks are shared until one of both writes.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSequence`], [`Error::StaleSequence`], [`Error::TooManySequences`].
    pub fn fork(&mut self, id: SequenceId) -> Result<SequenceId> {
        self.roll_back();
        let parent = self.sequences.find(id)?;
        let child_id = self.sequences.create()?;
        let child = self.sequences.find(child_id)?;
        let [parent, child] = self.sequences.pair_mut(parent, child);
        parent.owns_last = false;
        let mut table = std::mem::take(&mut child.table);
        table.extend_from_slice(&parent.table);
        *child = Sequence { table, ..*parent };
        for at in child.n_null as usize..child.table.len() {
            self.pool.hold(child.table[at]);
        }
        Ok(child_id)
    }

    /// Cuts a sequence to its first `len` tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Truncate`] if it is shorter; [`Error::LeftWindow`] if the tokens that the next one reads are gone;
    /// [`Error::UnknownSequence`], [`Error::StaleSequence`].
    pub fn truncate(&mut self, id: SequenceId, len: usize) -> Result<()> {
        self.roll_back();
        self.check_truncate(id, len)?;
        self.cut_known(id, len)?;
        let block_size = self.block_size();
        let n_blocks = len.div_ceil(block_size);
        let Self { pool, index, sequences, .. } = self;
        let sequence = sequences.at_mut(sequences.find(id)?);
        let n_null = n_blocks.min(sequence.n_null as usize);
        for block in sequence.table.drain(n_blocks..).rev() {
            let_go(pool, index, block);
        }
        sequence.len = len as u32;
        sequence.room = (n_blocks * block_size - len) as u32;
        sequence.owns_last = false;
        sequence.n_null = n_null as u32;
        Ok(())
    }

    /// Whether [`truncate`](Self::truncate) would do it, for who cuts several sequences or none.
    ///
    /// # Errors
    ///
    /// As [`truncate`](Self::truncate).
    pub fn check_truncate(&self, id: SequenceId, len: usize) -> Result<()> {
        let (block_size, sequence) = (self.block_size(), self.sequences.get(id)?);
        if len > sequence.len as usize {
            return Err(Error::Truncate { len: sequence.len as usize, to: len });
        }
        let first = len.saturating_sub(sequence.reach as usize) / block_size;
        let n_null = sequence.n_null as usize;
        if n_null.min(len.div_ceil(block_size)) > first {
            let (needed, kept) = (first * block_size, n_null * block_size);
            return Err(Error::LeftWindow { to: len, needed, kept });
        }
        Ok(())
    }

    /// Ends a sequence and gives its blocks back, the last first.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`] if that has been done; [`Error::UnknownSequence`].
    pub fn free(&mut self, id: SequenceId) -> Result<()> {
        self.roll_back();
        let Self { pool, index, sequences, .. } = self;
        let place = sequences.find(id)?;
        for block in sequences.at_mut(place).table.drain(..).rev() {
            let_go(pool, index, block);
        }
        sequences.vacate(place);
        Ok(())
    }

    // What there is.

    /// Tokens of a block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size as usize
    }

    /// The blocks with their references and the order of their reuse.
    #[must_use]
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Sequences that are not freed.
    #[must_use]
    pub fn n_sequences(&self) -> usize {
        self.sequences.n_live()
    }

    /// Blocks that can be found by their content, twins included.
    #[must_use]
    pub fn n_cached_blocks(&self) -> usize {
        self.index.n_indexed()
    }

    /// What `block` can be found by, if anything.
    #[must_use]
    pub fn cached_block(&self, block: BlockId) -> Option<CachedBlock<'_>> {
        self.index.get(block)
    }

    /// Tokens of a sequence.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSequence`], [`Error::StaleSequence`].
    pub fn len(&self, id: SequenceId) -> Result<usize> {
        Ok(self.sequences.get(id)?.len as usize)
    }

    /// The blocks of a sequence, in the order of its tokens; [`NULL_BLOCK`] for those that left its window.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSequence`], [`Error::StaleSequence`].
    pub fn table(&self, id: SequenceId) -> Result<&[BlockId]> {
        Ok(&self.sequences.get(id)?.table)
    }

    /// Blocks that a step of `n_new` tokens of this sequence alone would take.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSequence`], [`Error::StaleSequence`].
    pub fn blocks_needed(&self, id: SequenceId, n_new: usize) -> Result<usize> {
        let sequence = self.sequences.get(id)?;
        let n_copies = usize::from(n_new > 0 && self.must_copy(sequence));
        Ok(n_copies + n_new.saturating_sub(sequence.room as usize).div_ceil(self.block_size()))
    }

    // Inside.

    pub(crate) fn sequence_mut(&mut self, id: SequenceId) -> Result<&mut Sequence> {
        let place = self.sequences.find(id)?;
        Ok(self.sequences.at_mut(place))
    }

    /// Whether the next token would go into a block that others can see, or could see if the step is undone.
    #[inline]
    pub(crate) fn must_copy(&self, sequence: &Sequence) -> bool {
        let is_seen = |&block: &BlockId| {
            self.pool.refs(block) > 1
                || self.index.contains(block)
                || self.open.has_copied(block, self.block_size - sequence.room)
        };
        let last = sequence.table.last();
        debug_assert!(sequence.room == 0 || !sequence.owns_last || !last.is_some_and(is_seen));
        sequence.room > 0 && !sequence.owns_last && last.is_some_and(is_seen)
    }

    /// The longest hit of a prompt among its first `most` tokens; `visit` gets what is found for each block that was looked for.
    fn search(
        &self,
        key: &PrefixKey,
        tokens: &[u32],
        most: usize,
        reach: u32,
        mut visit: impl FnMut(Option<BlockId>),
    ) -> Found {
        let block_size = self.block_size();
        let tokens = &tokens[..tokens.len().min(u32::MAX as usize)];
        let n_whole = most.min(tokens.len()) / block_size;
        let n_read = (reach as usize).div_ceil(block_size);
        let mut parent = key.root();
        let mut found = Found { n_blocks: 0, n_read: 0, chain: parent };
        // Blocks up to here that are there without a gap.
        let mut n_there = 0;
        for (i, tokens) in tokens.chunks_exact(block_size).take(n_whole).enumerate() {
            let hash = self.index.hash(&parent, tokens);
            let block = self.index.find(&hash, &parent, tokens);
            visit(block);
            n_there = if block.is_some() { n_there + 1 } else { 0 };
            let n_read_here = n_read.min(i + 1);
            if n_there >= n_read_here {
                found = Found { n_blocks: i + 1, n_read: n_read_here, chain: hash };
            }
            // Behind a gap a hit needs room for all that is read.
            if block.is_none() && n_read > n_whole - (i + 1) {
                break;
            }
            parent = hash;
        }
        found
    }

    /// Takes the hashes of tokens from `len` on from what is known about a sequence, before its blocks fall off.
    fn cut_known(&mut self, id: SequenceId, len: usize) -> Result<()> {
        let block_size = self.block_size();
        let sequence = self.sequences.get(id)?;
        let (n_known, Some(key)) = (sequence.n_known as usize, &sequence.key) else {
            return Ok(());
        };
        if len >= n_known {
            return Ok(());
        }
        let n_full = len / block_size;
        let indexed = |at: usize| self.index.get(sequence.table[at]);
        let chain = if n_full == n_known / block_size {
            Some(sequence.chain)
        } else if n_full == 0 {
            Some(key.root())
        } else {
            // The block before the cut has the hash, and the one behind it has it, too, as its parent's.
            let before = indexed(n_full - 1).map(|block| block.hash);
            before.or_else(|| indexed(n_full).map(|block| block.parent))
        };
        // Where both are gone from the window nothing is known any more.
        let (n_known, chain) = chain.map_or((0, key.root()), |chain| (len as u32, chain));
        let sequence = self.sequence_mut(id)?;
        (sequence.n_known, sequence.chain) = (n_known, chain);
        Ok(())
    }
}

/// What a search has found.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// Length of the hit.
    n_blocks: usize,
    /// Of these, how many at the end are read by what follows.
    n_read: usize,
    /// The hash of the last one.
    chain: BlockHash,
}

/// Takes a reference from `block`, unless it is null.
pub(crate) fn let_go(pool: &mut BlockPool, index: &PrefixIndex, block: BlockId) {
    if block != NULL_BLOCK {
        pool.suspend(block);
        settle(pool, index, block);
    }
}

/// Makes `block` free if nobody holds it: late to be taken if it can be found.
pub(crate) fn settle(pool: &mut BlockPool, index: &PrefixIndex, block: BlockId) {
    pool.settle(block, if index.contains(block) { Reuse::Last } else { Reuse::First });
}
