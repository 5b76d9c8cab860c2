#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod block;
mod error;

mod pool;
mod sequence;
mod step;
mod tables;

mod hash;
mod prefix;

pub use block::{BlockCopy, BlockId, NULL_BLOCK, Slot, SlotMove};
pub use error::{Error, Result};
pub use hash::{BlockHash, PrefixKey, Salt, Scope};
pub use pool::{BlockPool, Reuse};
pub use prefix::CachedBlock;
pub use sequence::SequenceId;
pub use step::{Moves, Slots, Step};
pub use tables::{BlockTables, Retention};
