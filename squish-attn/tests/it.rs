//! Public behavior of the crate, module per module.

#[path = "it/allocation.rs"]
mod allocation;
#[path = "it/attention.rs"]
mod attention;
#[path = "it/attention_golden.rs"]
mod attention_golden;
#[path = "it/attention_properties.rs"]
mod attention_properties;
#[path = "it/config.rs"]
mod config;
#[path = "it/golden.rs"]
mod golden;
#[path = "it/norm.rs"]
mod norm;
#[path = "it/rope.rs"]
mod rope;
#[path = "it/tokens.rs"]
mod tokens;
#[path = "it/tokens_golden.rs"]
mod tokens_golden;
#[path = "it/tokens_properties.rs"]
mod tokens_properties;
#[path = "it/walk_rope.rs"]
mod walk_rope;

#[global_allocator]
static ALLOCATOR: squish_bench::alloc::CountingAllocator = squish_bench::alloc::CountingAllocator;
