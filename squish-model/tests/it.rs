//! Public behavior of the crate, module per module.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; the lint spares functions marked as tests, not what they call"
)]

#[path = "it/allocation.rs"]
mod allocation;
#[path = "it/common.rs"]
mod common;

#[path = "it/calibration.rs"]
mod calibration;
#[cfg(feature = "chat")]
#[path = "it/chat.rs"]
mod chat;
#[path = "it/config.rs"]
mod config;
#[path = "it/families.rs"]
mod families;
#[path = "it/generation_config.rs"]
mod generation_config;
#[path = "it/hooks.rs"]
mod hooks;
#[path = "it/invariance.rs"]
mod invariance;
#[path = "it/loading.rs"]
mod loading;
#[path = "it/models.rs"]
mod models;
#[path = "it/quantize.rs"]
mod quantize;
#[path = "it/quantized.rs"]
mod quantized;
#[path = "it/runner.rs"]
mod runner;
#[path = "it/sampler.rs"]
mod sampler;
#[path = "it/saved.rs"]
mod saved;
#[path = "it/stop_strings.rs"]
mod stop_strings;
#[cfg(feature = "tokenizer")]
#[path = "it/text_stream.rs"]
mod text_stream;
#[cfg(feature = "tokenizer")]
#[path = "it/tokenizer.rs"]
mod tokenizer;
#[path = "it/transformers.rs"]
mod transformers;
#[cfg(feature = "chat")]
#[path = "it/walk_chat.rs"]
mod walk_chat;
#[path = "it/walk_config.rs"]
mod walk_config;
#[path = "it/walk_quantization.rs"]
mod walk_quantization;

#[global_allocator]
static ALLOCATOR: squish_bench::alloc::CountingAllocator = squish_bench::alloc::CountingAllocator;
