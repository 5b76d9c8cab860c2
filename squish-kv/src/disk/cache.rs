//! A paged cache and a store.

use super::{
    BlockStore, DiskError,
    format::{self, SUM},
};
use crate::{
    BlockHash, CachedBlock, Error, KvElement, PagedKvCache, PrefixKey, Retention, SequenceId,
};

impl<E: KvElement> PagedKvCache<E> {
    /// Saves the whole blocks of a sequence that can be found by their tokens (those of [`create_with_prefix`](Self::create_with_prefix) whose
    /// tokens were recorded), as far as the store has not got them, and returns how many that were.
    ///
    /// # Errors
    ///
    /// [`DiskError::Cache`] of an unknown or stale sequence; [`DiskError::Store`], and then blocks before the one that is named are saved.
    pub fn save_blocks(&self, id: SequenceId, store: &impl BlockStore) -> Result<usize, DiskError> {
        let sequence = self.tables.sequences.get(id)?;
        let (mut header, mut n_saved) = (Vec::new(), 0);
        for &block in &sequence.table[sequence.n_null as usize..] {
            let Some(cached) = self.tables.cached_block(block) else { continue };
            let hash = cached.hash;
            if store.contains(&hash).map_err(DiskError::of(hash))? {
                continue;
            }
            let arena = &self.arenas.arena;
            format::header_into(arena, cached, &mut header);
            let content = || [&header[..]].into_iter().chain(arena.block_bytes(block));
            let sum = format::sum(content());
            store.store(&hash, &mut content().chain([&sum[..]])).map_err(DiskError::of(hash))?;
            n_saved += 1;
        }
        Ok(n_saved)
    }

    /// As [`create_with_prefix`](Self::create_with_prefix), where blocks behind those in the cache are taken from a store, into blocks of their
    /// own: a sequence, and how many tokens of the prompt it has.
    ///
    /// What the store has got and is not the block that was saved is removed from it, and ends the prefix. So does a full pool.
    ///
    /// # Errors
    ///
    /// [`DiskError::Cache`] of too many sequences; [`DiskError::Store`], and then there is no new sequence.
    pub fn create_with_stored_prefix(
        &mut self,
        key: &PrefixKey,
        tokens: &[u32],
        retention: Retention,
        store: &impl BlockStore,
    ) -> Result<(SequenceId, usize), DiskError> {
        let (id, mut n_cached) = self.create_with_prefix(key, tokens, retention)?;
        // Somebody has to compute logits from the last token.
        let most = tokens.len().saturating_sub(1);
        let (mut header, mut stored) = (Vec::new(), Vec::new());
        let mut parent = self.tables.sequences.get(id)?.chain;
        let blocks = tokens[n_cached..most.max(n_cached)].chunks_exact(self.tables.block_size());
        for tokens in blocks {
            let hash = BlockHash::of(&parent, tokens);
            let block = CachedBlock { hash, parent, tokens };
            match self.load(id, block, store, &mut header, &mut stored) {
                Ok(true) => {}
                Ok(false) | Err(DiskError::Cache(Error::PoolExhausted { .. })) => break,
                Err(error) => {
                    self.free(id)?;
                    return Err(error);
                }
            }
            n_cached += tokens.len();
            parent = hash;
        }
        Ok((id, n_cached))
    }

    /// Appends a stored block to a sequence that ends with a whole one. `false` if there is none.
    fn load(
        &mut self,
        id: SequenceId,
        block: CachedBlock<'_>,
        store: &impl BlockStore,
        header: &mut Vec<u8>,
        stored: &mut Vec<u8>,
    ) -> Result<bool, DiskError> {
        let (hash, arena) = (block.hash, &mut self.arenas.arena);
        format::header_into(arena, block, header);
        let n_bytes = arena.block_bytes(0).map(<[u8]>::len).sum::<usize>();
        stored.resize(header.len() + n_bytes + SUM, 0);
        if !store.load(&hash, stored).map_err(DiskError::of(hash))? {
            return Ok(false);
        }
        let Some(payload) = format::payload(stored, header) else {
            store.remove(&hash).map_err(DiskError::of(hash))?;
            return Ok(false);
        };
        let mut step = self.tables.begin(&[(id, block.tokens.len())])?;
        let slot = step.slots(id)?.next();
        arena.fill_block(slot.expect("a block has slots").block, payload);
        step.record(id, block.tokens)?;
        step.commit();
        Ok(true)
    }
}
