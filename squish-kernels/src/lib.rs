#![doc = include_str!("../README.md")]

mod isa;

pub use isa::{Isa, SIMD_VARIABLE, SimdLevel, UnknownSimdLevel};
