//! Keys and values of the tokens that tables and caches count.
//!
//! ```text
//! keys      [layer][block][head][slot][key_dim]         separate from
//! values    [layer][block][head][slot][value_dim]       and blocks start on cache lines
//! scales    [layer][block][head][slot]                  of keys and of values, for types that have them
//! ```
//!
//! The rows of a head in a block lie in one piece: what reads them reads pages, not rows. A cache of one sequence has one block.
//!
//! New tokens come as `f32`, `[tokens, heads, width]`, and are rounded to the type of the cache before anybody reads them
//! ([`squish_kernels::kv::encode_rows_into`] says how).

mod arena;
mod buffer;
mod gather;
mod gqa;
mod input;
mod paged;
mod paged_cache;
mod paged_step;
mod plane;
mod prefix_pool;
mod ring;
mod ring_cache;
mod ring_step;
mod ring_view;
mod scaling;
mod shape;
mod view;

#[cfg(feature = "disk")]
pub(crate) use arena::Arena;
pub use gather::{gather, gather_into};
pub use gqa::{GqaCache, GqaStep};
pub use paged::PagedArenas;
pub use paged_cache::PagedKvCache;
pub use paged_step::PagedStep;
pub use prefix_pool::{PrefixHit, PrefixPool};
pub use ring::{Positions, StreamingSinks};
pub use ring_cache::SlidingWindowKv;
pub use ring_step::SlidingWindowStep;
pub use ring_view::RingView;
pub use scaling::Scaling;
pub use shape::KvShape;
pub use view::KvView;
