//! Public behavior of the crate, module per module.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; the lint spares functions marked as tests, not what they call"
)]

#[path = "it/hash.rs"]
mod hash;
#[path = "it/model.rs"]
mod model;
#[path = "it/pool.rs"]
mod pool;
#[path = "it/prefix.rs"]
mod prefix;
#[path = "it/step.rs"]
mod step;
#[path = "it/tables.rs"]
mod tables;
#[path = "it/walk.rs"]
mod walk;

#[global_allocator]
static ALLOCATOR: squish_bench::alloc::CountingAllocator = squish_bench::alloc::CountingAllocator;
