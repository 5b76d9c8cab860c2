//! Public behavior of the crate, module per module.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; the lint spares functions marked as tests, not what they call"
)]

#[path = "it/common.rs"]
mod common;

#[path = "it/config.rs"]
mod config;
#[path = "it/nll.rs"]
mod nll;
#[path = "it/products.rs"]
mod products;
#[path = "it/reference.rs"]
mod reference;
#[cfg(feature = "tokenizer")]
#[path = "it/tokenizer.rs"]
mod tokenizer;
#[path = "it/transformers.rs"]
mod transformers;
#[path = "it/walk_config.rs"]
mod walk_config;
#[path = "it/weights.rs"]
mod weights;
