#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod awq;
mod band;
pub mod calibrate;
pub mod compressed_tensors;
pub mod error;
pub mod fp8;
pub mod ggml;
mod granularity;
pub mod hadamard;
pub mod int;
pub mod mx;
pub mod nvfp4;
pub mod packed;
mod parallel;
mod scales;
pub mod smooth;
pub mod smx;
pub mod sparsity;
pub mod stats;

pub use awq::{AwqScales, AwqSearch, awq_scales};
pub use calibrate::{
    CalibrationStats, CalibratorOptions, ChannelStats, Method, MseSearch, NonFiniteBatch,
    QuantAwareCalibrator, Statistic, Target,
};
pub use error::{Error, Result};
pub use fp8::{Fp8Format, Fp8Quantizer, Fp8Tensor, Fp8View};
pub use granularity::{Granularity, NonFinite};
pub use hadamard::{hadamard_block, hadamard_in_place};
pub use int::{IntFormat, IntQuantizer, IntRange, IntTensor, IntView, Symmetry};
pub use mx::{MX_BLOCK, MxFormat, MxQuantizer, MxTensor, MxView, ScaleRule};
pub use ndarray;
pub use nvfp4::{
    GlobalDirection, GlobalScale, NVFP4_BLOCK, NvFp4Quantizer, NvFp4Tensor, NvFp4View,
};
pub use packed::{
    Activation, ColumnMatrix, Dense, Epilogue, Gate, PackedMatrix, PackedView, Product, Saved,
    Verify, Weights, Workspace,
};
pub use scales::{ScaleBytes, ScaleType};
pub use smooth::{smooth_scales, smooth_scales_into};
pub use smx::{SMX_BLOCK, SmxFormat, SmxQuantizer, SmxTensor, SmxView};
pub use sparsity::{ActSparsityPredictor, SparseFfnGate, SparsityOptions, SparsityStatistic};
pub use stats::{ErrorStats, error_stats};
