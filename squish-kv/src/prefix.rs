//! Which block holds which tokens behind which prefix.
//!
//! A table of chains whose links live in an array beside the blocks, so that nothing is allocated after construction and a block leaves in
//! O(1). Blocks with the same content are *twins*: several sequences may compute one prefix at the same time, and their tables
//! are never rewritten. Twins form a ring, one of them stands in the chain for all, and when it leaves another takes its place.
//!
//! A hash only says where to look: a block is found if its hash, its parent's hash and its tokens are those asked for. Two contents with one
//! hash would stand in a chain side by side.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
};

use crate::{
    block::{BlockId, NULL_BLOCK},
    error::{Error, Result},
    hash::BlockHash,
};

/// Stands for both links of a twin that is in no chain.
const TWIN: BlockId = NULL_BLOCK - 1;

/// A block of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedBlock<'a> {
    /// The hash of the block.
    pub hash: BlockHash,
    /// The hash of the block before it, or the root of its key.
    pub parent: BlockHash,
    /// Its tokens, as many as the block has slots.
    pub tokens: &'a [u32],
}

/// Blocks by content, and the tokens of all blocks.
#[derive(Clone)]
pub(crate) struct PrefixIndex {
    entries: Vec<Entry>,
    /// First block of each chain; a power of two of them, at least as many as blocks.
    buckets: Vec<BlockId>,
    /// `[n_blocks, block_size]`
    tokens: Vec<u32>,
    block_size: usize,
    n_indexed: usize,
    /// Which chain a hash belongs to is not to be foreseen by who chooses the tokens.
    seed: u64,
    hash: fn(&BlockHash, &[u32]) -> BlockHash,
}

/// `twin_next` is [`NULL_BLOCK`] if the block is not indexed, and the block itself if it has no twins.
#[derive(Clone, Copy)]
struct Entry {
    hash: BlockHash,
    parent: BlockHash,
    prev: BlockId,
    next: BlockId,
    twin_prev: BlockId,
    twin_next: BlockId,
}

const EMPTY: Entry = Entry {
    hash: BlockHash([0; 32]),
    parent: BlockHash([0; 32]),
    prev: NULL_BLOCK,
    next: NULL_BLOCK,
    twin_prev: NULL_BLOCK,
    twin_next: NULL_BLOCK,
};

impl fmt::Debug for PrefixIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrefixIndex").field("n_indexed", &self.n_indexed).finish_non_exhaustive()
    }
}

impl PrefixIndex {
    /// An index of none of `n_blocks` blocks. Their slots are as many as [`MAX_SLOTS`](crate::block::MAX_SLOTS) at most.
    pub(crate) fn new(n_blocks: usize, block_size: usize) -> Result<Self> {
        Ok(Self {
            entries: filled(EMPTY, n_blocks, n_blocks)?,
            buckets: filled(NULL_BLOCK, n_blocks.next_power_of_two(), n_blocks)?,
            tokens: filled(0, n_blocks * block_size, n_blocks)?,
            block_size,
            n_indexed: 0,
            seed: RandomState::new().hash_one(0),
            hash: BlockHash::of,
        })
    }

    /// The hash of the block that holds `tokens` and follows `parent`.
    pub(crate) fn hash(&self, parent: &BlockHash, tokens: &[u32]) -> BlockHash {
        (self.hash)(parent, tokens)
    }

    pub(crate) fn n_indexed(&self) -> usize {
        self.n_indexed
    }

    #[inline]
    pub(crate) fn contains(&self, block: BlockId) -> bool {
        self.entries[block as usize].twin_next != NULL_BLOCK
    }

    pub(crate) fn get(&self, block: BlockId) -> Option<CachedBlock<'_>> {
        let Entry { hash, parent, .. } = *self.entries.get(block as usize)?;
        self.contains(block).then(|| CachedBlock { hash, parent, tokens: self.tokens(block) })
    }

    /// A block with this content.
    pub(crate) fn find(
        &self,
        hash: &BlockHash,
        parent: &BlockHash,
        tokens: &[u32],
    ) -> Option<BlockId> {
        let mut block = self.buckets[self.bucket(hash)];
        while block != NULL_BLOCK {
            let entry = &self.entries[block as usize];
            if entry.hash == *hash && entry.parent == *parent && self.tokens(block) == tokens {
                return Some(block);
            }
            block = entry.next;
        }
        None
    }

    /// Indexes `block` by the tokens that it has; it must not be indexed.
    pub(crate) fn insert(&mut self, block: BlockId, hash: BlockHash, parent: BlockHash) {
        debug_assert!(!self.contains(block), "block {block} is indexed already");
        let twin = self.find(&hash, &parent, self.tokens(block));
        let mut entry = Entry { hash, parent, twin_prev: block, twin_next: block, ..EMPTY };
        if let Some(twin) = twin {
            let after = self.entries[twin as usize].twin_next;
            entry = Entry { twin_prev: twin, twin_next: after, prev: TWIN, next: TWIN, ..entry };
            self.entries[twin as usize].twin_next = block;
            self.entries[after as usize].twin_prev = block;
        } else {
            let bucket = self.bucket(&hash);
            entry.next = self.buckets[bucket];
            if entry.next != NULL_BLOCK {
                self.entries[entry.next as usize].prev = block;
            }
            self.buckets[bucket] = block;
        }
        self.entries[block as usize] = entry;
        self.n_indexed += 1;
    }

    /// Forgets `block`, if it is indexed.
    pub(crate) fn remove(&mut self, block: BlockId) {
        let Entry { hash, prev, next, twin_prev, twin_next, .. } = self.entries[block as usize];
        if twin_next == NULL_BLOCK {
            return;
        }
        self.entries[twin_prev as usize].twin_next = twin_next;
        self.entries[twin_next as usize].twin_prev = twin_prev;
        self.entries[block as usize] = EMPTY;
        self.n_indexed -= 1;
        if next == TWIN {
            return;
        }
        // What the neighbors in the chain see from now on: a twin, or each other.
        let (mut before, mut after) = (prev, next);
        if twin_next != block {
            self.entries[twin_next as usize].prev = prev;
            self.entries[twin_next as usize].next = next;
            (before, after) = (twin_next, twin_next);
        }
        if prev == NULL_BLOCK {
            let bucket = self.bucket(&hash);
            self.buckets[bucket] = after;
        } else {
            self.entries[prev as usize].next = after;
        }
        if next != NULL_BLOCK {
            self.entries[next as usize].prev = before;
        }
    }

    /// The tokens of the block's slots. They mean something as far as who holds the block knows them.
    pub(crate) fn tokens(&self, block: BlockId) -> &[u32] {
        &self.tokens[block as usize * self.block_size..][..self.block_size]
    }

    pub(crate) fn tokens_mut(&mut self, block: BlockId) -> &mut [u32] {
        &mut self.tokens[block as usize * self.block_size..][..self.block_size]
    }

    /// Copies the first `n_slots` tokens.
    pub(crate) fn copy_tokens(&mut self, from: BlockId, to: BlockId, n_slots: usize) {
        let start = from as usize * self.block_size;
        self.tokens.copy_within(start..start + n_slots, to as usize * self.block_size);
    }

    /// The chain of a hash: its first bytes, mixed with the seed by a folded product.
    fn bucket(&self, hash: &BlockHash) -> usize {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let [first, ..] = hash.0.as_chunks().0 else { unreachable!("a hash has 32 bytes") };
        let product = u128::from(u64::from_le_bytes(*first) ^ self.seed) * u128::from(ODD);
        let folded = (product >> 64) as u64 ^ product as u64;
        folded as usize & (self.buckets.len() - 1)
    }
}

/// `n` times `value`, or an error that names the blocks.
fn filled<T: Copy>(value: T, n: usize, n_blocks: usize) -> Result<Vec<T>> {
    let mut out = Vec::new();
    out.try_reserve_exact(n).map_err(|_| Error::Memory { n_blocks })?;
    out.resize(n, value);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: BlockHash = BlockHash([7; 32]);

    /// Puts `tokens` into `block` and indexes it.
    fn insert(
        index: &mut PrefixIndex,
        block: BlockId,
        parent: BlockHash,
        tokens: &[u32],
    ) -> BlockHash {
        index.tokens_mut(block).copy_from_slice(tokens);
        let hash = index.hash(&parent, tokens);
        index.insert(block, hash, parent);
        hash
    }

    fn find(index: &PrefixIndex, parent: BlockHash, tokens: &[u32]) -> Option<BlockId> {
        index.find(&index.hash(&parent, tokens), &parent, tokens)
    }

    /// An index whose hashes say where in a chain of blocks a block is, and nothing else.
    fn colliding(n_blocks: usize) -> PrefixIndex {
        let hash =
            |parent: &BlockHash, _: &[u32]| BlockHash(parent.0.map(|byte| byte.wrapping_add(1)));
        PrefixIndex { hash, ..PrefixIndex::new(n_blocks, 2).unwrap() }
    }

    #[test]
    fn contents_with_one_hash_are_told_apart_by_their_tokens() {
        let mut index = colliding(4);
        let hash = insert(&mut index, 0, ROOT, &[1, 2]);
        assert_eq!(find(&index, ROOT, &[1, 2]), Some(0));
        assert_eq!(find(&index, ROOT, &[1, 3]), None, "the hash alone is no hit");
        assert_eq!(insert(&mut index, 1, ROOT, &[1, 3]), hash);
        assert_eq!(find(&index, ROOT, &[1, 2]), Some(0));
        assert_eq!(find(&index, ROOT, &[1, 3]), Some(1));
        index.remove(0);
        assert_eq!(find(&index, ROOT, &[1, 2]), None);
        assert_eq!(find(&index, ROOT, &[1, 3]), Some(1));
    }

    #[test]
    fn contents_with_one_hash_and_the_same_tokens_are_told_apart_by_their_parents() {
        let mut index = PrefixIndex { hash: |_, _| BlockHash([9; 32]), ..colliding(4) };
        insert(&mut index, 0, ROOT, &[1, 1]);
        assert_eq!(find(&index, ROOT, &[1, 1]), Some(0));
        assert_eq!(find(&index, BlockHash([9; 32]), &[1, 1]), None);
    }

    #[test]
    fn a_twin_takes_the_place_of_one_that_leaves_whichever_leaves_first() {
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1], [1, 2, 0], [2, 0, 1]] {
            // Others before and behind in the same chain: all hashes are one.
            let mut index = colliding(8);
            insert(&mut index, 6, ROOT, &[6, 6]);
            for block in 0..3 {
                insert(&mut index, block, ROOT, &[1, 2]);
            }
            insert(&mut index, 7, ROOT, &[7, 7]);
            for (gone, &block) in order.iter().enumerate() {
                assert!(index.contains(block));
                index.remove(block);
                let found = find(&index, ROOT, &[1, 2]);
                assert_eq!(found.is_some(), gone < 2, "{order:?}");
                assert!(found.is_none_or(|found| !order[..=gone].contains(&found)), "{order:?}");
                assert_eq!(find(&index, ROOT, &[6, 6]), Some(6), "{order:?}");
                assert_eq!(find(&index, ROOT, &[7, 7]), Some(7), "{order:?}");
                assert_eq!(index.n_indexed(), 4 - gone);
            }
            index.remove(order[0]); // is not there any more
            for block in [6, 7] {
                index.remove(block);
                assert_eq!(find(&index, ROOT, &[block, block]), None);
            }
            assert!(
                index.n_indexed() == 0 && index.buckets.iter().all(|&first| first == NULL_BLOCK)
            );
        }
    }
}
