#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod detector;
pub mod divergence;
pub mod error;
pub mod kl;
pub mod llama_file;
pub mod logits;
pub mod model;
pub mod nll;
pub mod perplexity;
pub mod recipe;
pub mod tracker;

pub use detector::{Alert, Baseline, Detector, Edge};
pub use divergence::divergence;
pub use error::{EvalError, Result};
pub use kl::{Distribution, Estimate, KlReport, KlStats};
pub use llama_file::{LogitsReader, LogitsWriter, compare_with_base, write_base};
pub use logits::{Logits, nll, token_nll};
pub use model::{BatchSink, CausalLm, Prompt, RowSink};
pub use nll::Nll;
pub use perplexity::{Perplexity, ScoredRow, for_each_row, perplexity};
pub use recipe::{Lead, Recipe, Window, Windows};
pub use squish_kernels::Real;
pub use tracker::{PplTracker, TrackerOptions, Weighting};
