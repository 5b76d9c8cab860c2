#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod block;
mod error;

mod hash;
mod pool;
mod prefix;

mod open_step;
mod sequence;
mod step;
mod tables;

mod storage;

#[cfg(feature = "disk")]
pub mod disk;

pub use block::{BlockCopy, BlockId, NULL_BLOCK, Slot, SlotMove};
pub use error::{Error, Result};
pub use hash::{BlockHash, PrefixKey, Salt, Scope};
pub use ndarray;
pub use pool::{BlockPool, Reuse};
pub use prefix::CachedBlock;
pub use sequence::SequenceId;
pub use squish_kernels::kv::{E4M3, E5M2, KvArrays, KvElement, KvSource, Rows, Run, bf16, f16};
pub use step::{Moves, Slots, Step};
pub use storage::{
    GqaCache, GqaStep, KvShape, KvView, PagedArenas, PagedKvCache, PagedStep, Positions, PrefixHit,
    PrefixPool, RingView, Scaling, SlidingWindowKv, SlidingWindowStep, StreamingSinks, gather,
    gather_into,
};
pub use tables::{BlockTables, Retention};
