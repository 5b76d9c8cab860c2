//! Public behavior of the crate, module per module.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; the lint spares functions marked as tests, not what they call"
)]

#[path = "it/common.rs"]
mod common;

//mod config;
#[path = "it/families.rs"]
mod families;
#[cfg(feature = "tokenizer")]
#[path = "it/tokenizer.rs"]
mod tokenizer;
#[path = "it/transformers.rs"]
mod transformers;
