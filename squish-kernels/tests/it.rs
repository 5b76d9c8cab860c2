//! Public behavior of the crate, module per module.

#[path = "it/activation.rs"]
mod activation;
#[path = "it/allocation.rs"]
mod allocation;
#[path = "it/cast.rs"]
mod cast;
#[path = "it/columns.rs"]
mod columns;
#[path = "it/common.rs"]
mod common;
#[path = "it/divergence.rs"]
mod divergence;
#[path = "it/dot.rs"]
mod dot;
#[path = "it/exp.rs"]
mod exp;
#[path = "it/hadamard.rs"]
mod hadamard;
#[path = "it/histogram.rs"]
mod histogram;
#[path = "it/kv.rs"]
mod kv;
#[path = "it/log_sum_exp.rs"]
mod log_sum_exp;
#[path = "it/norm.rs"]
mod norm;
#[path = "it/panel.rs"]
mod panel;
#[path = "it/reduce.rs"]
mod reduce;
#[path = "it/rope.rs"]
mod rope;
#[path = "it/select.rs"]
mod select;
#[path = "it/soft_cap.rs"]
mod soft_cap;
#[path = "it/softmax.rs"]
mod softmax;
#[path = "it/top_k.rs"]
mod top_k;

#[global_allocator]
static ALLOCATOR: squish_bench::alloc::CountingAllocator = squish_bench::alloc::CountingAllocator;
