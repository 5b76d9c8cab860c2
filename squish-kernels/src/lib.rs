#![doc = include_str!("../README.md")]

pub mod attention;
pub mod bits;
pub mod blocks;
mod bytes;
pub mod cast;
pub mod columns;
pub mod element;
mod float8;
pub mod hadamard;
pub mod histogram;
pub mod integer;
mod isa;
pub mod kv;
mod lanes;
pub mod memory;
pub mod nibble;
mod pairs;
pub mod panel;
mod prefetch;
#[doc(hidden)]
pub mod probe;
pub mod real;
mod rows;
pub mod select;
pub mod smx;
#[doc(hidden)]
pub mod stream;
pub mod team;

pub mod activation;
pub mod divergence;
pub mod dot;
pub mod exp;
pub mod log_sum_exp;
pub mod norm;
pub mod reduce;
pub mod rope;
pub mod soft_cap;
pub mod softmax;
pub mod top_k;

pub use activation::{Gelu, gelu_in_place, gelu_into, silu_in_place, silu_into};
pub use divergence::kl_divergence;
pub use dot::{axpy, dot, scale_add};
pub use exp::{exp_in_place, exp_into};
pub use hadamard::hadamard_in_place;
pub use log_sum_exp::{log_sum_exp, log_sum_exp_f64};
pub use norm::{
    RmsVariant, add_layer_norm_in_place, add_rms_norm_in_place, add_rms_norm_into, layer_norm_into,
    rms_norm_in_place, rms_norm_into,
};
pub use real::Real;
pub use reduce::{abs_max, argmax, max, min, sum};
pub use rope::{RopeLayout, rope_in_place};
pub use select::{select_into, zero_below_in_place};
pub use soft_cap::soft_cap_in_place;
pub use softmax::{log_softmax_in_place, log_softmax_into, softmax_in_place, softmax_into};
pub use team::Team;
pub use top_k::{top_k, top_k_scratch_len};

pub use isa::{Isa, SIMD_VARIABLE, SimdLevel, UnknownSimdLevel};
