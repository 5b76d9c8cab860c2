#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod config;
mod error;
mod weights;

pub mod nll;
pub mod reference;
#[cfg(feature = "tokenizer")]
mod tokenizer;

pub use config::Config;
pub use error::Error;
pub use nll::{Nll, perplexity, token_nll};
pub use reference::{Reference, Session};
pub use squish_checkpoint::Checkpoint;
#[cfg(feature = "tokenizer")]
pub use tokenizer::Tokenizer;
pub use weights::{Kind, Tensor, Weights};
