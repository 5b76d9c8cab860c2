#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod attention;
pub mod error;
pub mod norm;
pub mod rope;
mod rows;
pub mod tokens;

pub use attention::{BitMask, Mask, Options, SPLIT, Sequence, Workspace, merge_in_place};
pub use error::{AttnError, Result};
pub use ndarray;
pub use norm::{FusedRmsNorm, QkNorm};
pub use rope::{
    FactorSwitch, InvFreq, LengthRule, Llama3, LongRope, RopeConfig, RopeLayout, RopeMode,
    RopeOptions, RopeScaling, RopeShift, RopeTable, Yarn,
};
pub use squish_kernels::{
    RmsVariant, Team,
    kv::{KvArrays, KvElement, KvSource, Rows, Run},
};
pub use tokens::{Assignment, Keep, Mixture, Selection, TokensWorkspace};
