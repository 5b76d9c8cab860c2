//! Public behavior of the crate, module per module.

#[path = "it/bytes.rs"]
mod bytes;
#[path = "it/compressed_tensors.rs"]
mod compressed_tensors;
#[path = "it/fp8.rs"]
mod fp8;
#[path = "it/int.rs"]
mod int;
#[path = "it/mx.rs"]
mod mx;
#[path = "it/packed.rs"]
mod packed;
#[path = "it/stats.rs"]
mod stats;

#[global_allocator]
static ALLOCATOR: squish_bench::alloc::CountingAllocator = squish_bench::alloc::CountingAllocator;
