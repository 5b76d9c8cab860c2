//! Blocks and slots by number.
//!
//! A block is room for the keys and values of `block_size` tokens, in every layer that shares its table. Token `t` of a sequence lies in
//! block `table[t / block_size]` at offset `t % block_size`. What a block's memory looks like is the storage's affair.

/// The number of a block.
pub type BlockId = u32;

/// Stands in tables for blocks that a sequence with a window has given back.
pub const NULL_BLOCK: BlockId = u32::MAX;

/// The most slots of a pool: ids and flat slots are 32 bits, and the accounting keeps a few of them for itself.
pub(crate) const MAX_SLOTS: usize = u32::MAX as usize - 2;

/// Room for one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The block.
    pub block: BlockId,
    /// The token's place in it, less than the block size.
    pub offset: u32,
}

/// A copy that the storage has to make, in all layers, before it writes under a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockCopy {
    /// The block to read, which others keep.
    pub from: BlockId,
    /// The block to write.
    pub to: BlockId,
    /// How many slots, from the first on.
    pub n_slots: u32,
}

/// A token that the storage has to move, in all layers, before it reads under a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotMove {
    /// Where it is.
    pub from: Slot,
    /// Where it belongs.
    pub to: Slot,
}
