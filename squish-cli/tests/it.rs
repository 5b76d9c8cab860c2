//! The program as a person runs it.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; the lint spares functions marked as tests, not what they call"
)]

#[path = "it/common.rs"]
mod common;

#[path = "it/errors.rs"]
mod errors;
#[path = "it/eval.rs"]
mod eval;
#[path = "it/generate.rs"]
mod generate;
#[path = "it/inspect.rs"]
mod inspect;
#[path = "it/quantize.rs"]
mod quantize;
