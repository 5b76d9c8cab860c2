//! Public behavior of the crate, module per module.

#[path = "it/awq.rs"]
mod awq;
#[path = "it/bytes.rs"]
mod bytes;
#[path = "it/calibrate.rs"]
mod calibrate;
#[path = "it/compressed_tensors.rs"]
mod compressed_tensors;
#[path = "it/fp8.rs"]
mod fp8;
#[path = "it/hadamard.rs"]
mod hadamard;
#[path = "it/int.rs"]
mod int;
#[path = "it/mx.rs"]
mod mx;
#[path = "it/mx_formats.rs"]
mod mx_formats;
#[path = "it/nvfp4.rs"]
mod nvfp4;
#[path = "it/packed.rs"]
mod packed;
#[path = "it/smooth.rs"]
mod smooth;
#[path = "it/smx.rs"]
mod smx;
#[path = "it/sparsity.rs"]
mod sparsity;
#[path = "it/stats.rs"]
mod stats;

#[global_allocator]
static ALLOCATOR: squish_bench::alloc::CountingAllocator = squish_bench::alloc::CountingAllocator;
