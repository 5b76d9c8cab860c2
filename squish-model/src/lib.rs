#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod config;
mod error;

mod format;
mod memory;
mod model;
mod packed;
pub mod quantize;
pub mod quantized;
mod random;
mod source;

mod batch;
mod forward;
mod hooks;
mod kv;
mod products;
mod runner;

pub mod calibration;

mod generation_config;
pub mod sampler;
mod stop_strings;
#[cfg(feature = "tokenizer")]
mod text_stream;
#[cfg(feature = "tokenizer")]
mod tokenizer;

#[cfg(feature = "chat")]
pub mod chat;
#[cfg(feature = "eval")]
mod eval;
#[cfg(feature = "tokenizer")]
mod generate;

pub use batch::{Part, Wanted};
pub use calibration::{
    Calibration, CalibrationOptions, GroupScales, Scaled, StaticScales, WeightMethod,
};
#[cfg(feature = "chat")]
pub use chat::ChatTemplate;
pub use config::{Config, Family, LayerConfig};
pub use error::Error;
#[cfg(feature = "eval")]
pub use eval::Hooked;
pub use format::WeightFormat;
#[cfg(feature = "tokenizer")]
pub use generate::{Finish, GenerateOptions, Generation};
pub use generation_config::{GenerationConfig, SamplingOverrides};
pub use hooks::{Adapter, Hooks, Observer, Recorder, Rounding, Site, Sparsity};
pub use kv::{KvLayout, KvOptions, KvType, Windows};
pub use model::{LoadOptions, Model, Projection};
pub use packed::Packed;
pub use quantize::{
    CalibrationMethod, Progress, QuantizeOptions, Report, SavedLayout, quantize,
    quantize_calibrated, quantize_with,
};
pub use quantized::{Quantization, QuantizedCheckpoint};
pub use random::RandomCheckpoint;
pub use runner::{Output, RopeLength, Runner, RunnerOptions, SequenceId};
pub use sampler::{Sampler, Sampling};
pub use source::{DenseTensor, TensorSource};
pub use squish_attn::{RmsVariant, RopeConfig, RopeMode, RopeScaling};
pub use squish_checkpoint::Checkpoint;
pub use squish_kernels::Team;
pub use squish_kv::{Positions, StreamingSinks};
pub use squish_quant::{Activation, Dense, Gate, ScaleType, Verify, ndarray};
pub use stop_strings::StopStrings;
#[cfg(feature = "tokenizer")]
pub use text_stream::TextStream;
#[cfg(feature = "tokenizer")]
pub use tokenizer::Tokenizer;
