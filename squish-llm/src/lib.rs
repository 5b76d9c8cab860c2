#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

#[cfg(feature = "attn")]
#[doc(inline)]
pub use squish_attn as attn;
#[cfg(feature = "checkpoint")]
#[doc(inline)]
pub use squish_checkpoint as checkpoint;
#[cfg(feature = "eval")]
#[doc(inline)]
pub use squish_eval as eval;
#[cfg(feature = "kernels")]
#[doc(inline)]
pub use squish_kernels as kernels;
#[cfg(feature = "kv")]
#[doc(inline)]
pub use squish_kv as kv;
#[cfg(feature = "model")]
#[doc(inline)]
pub use squish_model as model;
#[cfg(feature = "quant")]
#[doc(inline)]
pub use squish_quant as quant;
