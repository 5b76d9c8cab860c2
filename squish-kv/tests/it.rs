//! Public behavior of the crate, module per module.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; the lint spares functions marked as tests, not what they call"
)]

#[cfg(feature = "disk")]
#[path = "it/disk.rs"]
mod disk;
#[path = "it/gqa.rs"]
mod gqa;
#[path = "it/hash.rs"]
mod hash;
#[path = "it/model.rs"]
mod model;
#[path = "it/paged.rs"]
mod paged;
#[path = "it/pool.rs"]
mod pool;
#[path = "it/prefix.rs"]
mod prefix;
#[path = "it/prefix_pool.rs"]
mod prefix_pool;
#[path = "it/ring.rs"]
mod ring;
#[path = "it/step.rs"]
mod step;
#[path = "it/tables.rs"]
mod tables;
#[path = "it/walk.rs"]
mod walk;
#[path = "it/walk_cache.rs"]
mod walk_cache;
#[path = "it/walk_ring.rs"]
mod walk_ring;
#[cfg(feature = "disk")]
#[path = "it/walk_stored.rs"]
mod walk_stored;

#[global_allocator]
static ALLOCATOR: squish_bench::alloc::CountingAllocator = squish_bench::alloc::CountingAllocator;
