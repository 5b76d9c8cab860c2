#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod band;
pub mod compressed_tensors;
pub mod error;
pub mod fp8;
pub mod ggml;
mod granularity;
pub mod int;
pub mod mx;
pub mod packed;
mod parallel;
mod scales;
pub mod stats;

pub use error::{Error, Result};
pub use fp8::{Fp8Format, Fp8Quantizer, Fp8Tensor, Fp8View};
pub use granularity::{Granularity, NonFinite};
pub use int::{IntFormat, IntQuantizer, IntRange, IntTensor, IntView, Symmetry};
pub use mx::{MX_BLOCK, MxFormat, MxQuantizer, MxTensor, MxView, ScaleRule};
pub use ndarray;
pub use packed::{
    Activation, Dense, Epilogue, Gate, PackedMatrix, PackedView, Product, Saved, Verify, Weights,
    Workspace,
};
pub use scales::{ScaleBytes, ScaleType};
pub use stats::{ErrorStats, error_stats};
