//! Public behavior of the crate, module per module.

#[path = "it/allocation.rs"]
mod allocation;
#[path = "it/common.rs"]
mod common;
#[path = "it/kl.rs"]
mod kl;
#[path = "it/llama_file.rs"]
mod llama_file;
#[path = "it/logits.rs"]
mod logits;
#[path = "it/nll.rs"]
mod nll;
#[path = "it/perplexity.rs"]
mod perplexity;
#[path = "it/recipe.rs"]
mod recipe;
#[path = "it/tracker.rs"]
mod tracker;
#[path = "it/walk_file.rs"]
mod walk_file;

#[global_allocator]
static ALLOCATOR: squish_bench::alloc::CountingAllocator = squish_bench::alloc::CountingAllocator;
