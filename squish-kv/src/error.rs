//! Why a call was refused.

use crate::{BlockId, SequenceId};

/// Why a call was refused. Nothing has changed when one is returned.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // Construction.
    /// A size that must not be zero is.
    #[error("`{what}` is zero")]
    Zero {
        /// The argument, by name.
        what: &'static str,
    },
    /// More slots than ids have bits for.
    #[error("{n_blocks} blocks of {block_size} slots are more than {max} slots")]
    TooManySlots {
        /// Blocks asked for.
        n_blocks: usize,
        /// Slots of a block.
        block_size: usize,
        /// The most slots of a pool.
        max: usize,
    },
    /// The allocator has no room for the accounting itself.
    #[error("no memory for the accounting of {n_blocks} blocks")]
    Memory {
        /// Blocks asked for.
        n_blocks: usize,
    },

    // Blocks.
    /// A step needs more blocks than are free. Freeing a sequence may help, and so may a smaller batch.
    #[error("{needed} blocks are needed, {free} are free")]
    PoolExhausted {
        /// Blocks that the whole batch needs.
        needed: usize,
        /// Blocks that were free.
        free: usize,
    },
    /// An id that is no block of the pool.
    #[error("block {block} of a pool of {n_blocks}")]
    UnknownBlock {
        /// The id.
        block: BlockId,
        /// Blocks of the pool.
        n_blocks: usize,
    },
    /// A block was released that nobody holds.
    #[error("block {block} is free already")]
    DoubleFree {
        /// The block.
        block: BlockId,
    },
    /// A block has as many references as can be counted.
    #[error("block {block} has {} references, the most that are counted", u32::MAX)]
    TooManyReferences {
        /// The block.
        block: BlockId,
    },

    // Sequences.
    /// An id that these tables never gave out.
    #[error("sequence {id} does not exist")]
    UnknownSequence {
        /// The id.
        id: SequenceId,
    },
    /// The sequence was freed; its place may belong to another one by now.
    #[error("sequence {id} was freed")]
    StaleSequence {
        /// The id.
        id: SequenceId,
    },
    /// As many sequences as ids can name.
    #[error("{max} sequences are the most")]
    TooManySequences {
        /// The most places.
        max: usize,
    },
    /// The sequence would be longer than positions are counted.
    #[error("{n_new} tokens do not fit behind {len}, {max} are the most")]
    TooLong {
        /// Tokens of the sequence.
        len: usize,
        /// Tokens to be appended.
        n_new: usize,
        /// The longest sequence.
        max: usize,
    },
    /// A sequence was to be cut to more than it has.
    #[error("a sequence of {len} tokens cannot be cut to {to}")]
    Truncate {
        /// Tokens of the sequence.
        len: usize,
        /// The length asked for.
        to: usize,
    },
    /// A sequence with a window was to be cut to where it has given blocks back already.
    #[error("a cut to {to} tokens needs those from {needed} on, kept are those from {kept} on")]
    LeftWindow {
        /// The length asked for.
        to: usize,
        /// The first position whose block would be needed.
        needed: usize,
        /// The first position whose block is there.
        kept: usize,
    },

    // Steps.
    /// A sequence stands in a batch twice.
    #[error("sequence {id} is in the batch twice")]
    DuplicateSequence {
        /// The sequence.
        id: SequenceId,
    },
    /// A step was asked about a sequence that is not in its batch.
    #[error("sequence {id} is not in the step")]
    NotInStep {
        /// The sequence.
        id: SequenceId,
    },
    /// Not as many token ids as the step commits for the sequence.
    #[error("{actual} tokens were given for the {expected} of the step")]
    TokenCount {
        /// Tokens that the step commits.
        expected: usize,
        /// Tokens that were given.
        actual: usize,
    },
    /// An accepted path whose nodes do not ascend, or that has one which the step does not.
    #[error("node {node} stands at {index} of a path, expected one from {least} on of {n_new}")]
    Path {
        /// Where in the path.
        index: usize,
        /// The node there.
        node: usize,
        /// The least that could stand there.
        least: usize,
        /// Nodes of the step.
        n_new: usize,
    },

    // Storage.
    /// The allocator has no room for keys and values.
    #[error("no memory for {bytes} bytes of `{what}`")]
    StorageMemory {
        /// What it was for.
        what: &'static str,
        /// Its size; [`usize::MAX`] if it is larger.
        bytes: usize,
    },
    /// An axis of an array does not have the length that the cache or other arguments imply.
    #[error("`{what}` has {axis} {actual}, expected {expected}")]
    Axis {
        /// The argument, by name.
        what: &'static str,
        /// The axis, by name.
        axis: &'static str,
        /// The length implied by the cache.
        expected: usize,
        /// The length that was given.
        actual: usize,
    },
    /// The rows of a token, or of a head that is gathered, do not lie in one piece.
    #[error("rows of `{what}` do not lie in one piece: shape {shape:?}, strides {strides:?}")]
    Layout {
        /// The argument, by name.
        what: &'static str,
        /// Its shape.
        shape: [usize; 3],
        /// Its strides, in elements.
        strides: [isize; 3],
    },
    /// A layer that the cache does not have.
    #[error("layer {layer} of {n_layers}")]
    UnknownLayer {
        /// The layer.
        layer: usize,
        /// Layers of the cache.
        n_layers: usize,
    },
    /// Scales were given for a type whose rows are not scaled.
    #[error("rows of {element} are stored without scales")]
    NotScaled {
        /// The type.
        element: &'static str,
    },
    /// A scale by which nothing can be divided.
    #[error("the scale of `{what}` in layer {layer} is {scale}, expected a positive normal number")]
    Scale {
        /// Keys or values.
        what: &'static str,
        /// The layer.
        layer: usize,
        /// The scale.
        scale: f32,
    },
    /// A number that is not finite, for a type that has no code for it.
    #[error("token {token}, head {head} of `{what}` is not finite, which {element} cannot store")]
    NotFinite {
        /// Keys or values.
        what: &'static str,
        /// The type.
        element: &'static str,
        /// The token.
        token: usize,
        /// The head.
        head: usize,
    },
    /// So many sinks that a window has no room for a token beside them.
    #[error("{n_sinks} sinks in a window of {window} tokens leave no room for others")]
    Sinks {
        /// Tokens that are kept for ever.
        n_sinks: usize,
        /// Tokens of the window, sinks included.
        window: usize,
    },
    /// A cache in one piece has no room for that many tokens.
    #[error("{n_new} tokens do not fit behind {len} in a cache of {capacity}")]
    Full {
        /// Tokens of the cache.
        len: usize,
        /// Tokens to be appended.
        n_new: usize,
        /// The most tokens.
        capacity: usize,
    },
    /// A step was to be read or committed before all that it asks for was written.
    #[error("layer {layer} of sequence {index} of the step was not written")]
    NotWritten {
        /// The layer.
        layer: usize,
        /// The sequence, by its place in the batch.
        index: usize,
    },
    /// A slot outside its block.
    #[error("slots up to {end} of a block of {block_size}")]
    UnknownSlot {
        /// One more than the largest slot.
        end: usize,
        /// Slots of a block.
        block_size: usize,
    },
}

impl Error {
    /// `Ok` if `actual` is `expected`.
    #[inline]
    pub(crate) fn check_axis(
        what: &'static str,
        axis: &'static str,
        expected: usize,
        actual: usize,
    ) -> Result<()> {
        if expected == actual { Ok(()) } else { Err(Self::Axis { what, axis, expected, actual }) }
    }
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
