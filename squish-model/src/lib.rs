#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod config;
mod error;

mod format;
mod model;
mod random;
mod source;

mod batch;
mod forward;
mod hooks;
mod kv;
mod products;
mod runner;

#[cfg(feature = "tokenizer")]
mod tokenizer;

pub use batch::{Part, Wanted};
pub use config::{Config, Family, LayerConfig};
pub use error::Error;
pub use format::WeightFormat;
pub use hooks::{Adapter, Hooks, Observer, Recorder, Site, Sparsity};
pub use kv::{KvLayout, KvOptions, KvType, Windows};
pub use model::{LoadOptions, Model, Projection};
pub use random::RandomCheckpoint;
pub use runner::{Output, RopeLength, Runner, RunnerOptions, SequenceId};
pub use source::{DenseTensor, TensorSource};
pub use squish_attn::{RmsVariant, RopeConfig, RopeMode, RopeScaling};
pub use squish_checkpoint::Checkpoint;
pub use squish_kv::{Positions, StreamingSinks};
pub use squish_quant::{Activation, Dense, Gate, ndarray};
#[cfg(feature = "tokenizer")]
pub use tokenizer::Tokenizer;
