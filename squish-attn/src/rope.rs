//! Rotary position embeddings (RoPE): configuration, frequencies, tables, and their application to queries and keys.
//!
//! Pair `i` of a head at position `p` turns by the angle `p · inv_freq[i]`, and its length is scaled by the attention factor:
//!
//! ```text
//! inv_freq[i] = base^(−2 i / rotary_dim)            i in 0..rotary_dim / 2, then changed by a scaling
//! a, b = a·c − b·s, b·c + a·s                       c, s = cos, sin of the angle, times the attention factor
//! ```
//!
//! (J. Su et al., arXiv 2104.09864.) Which elements are a pair is the [`RopeLayout`]; [`permute_rows`] makes weights of one
//! layout those of the other. Elements from `rotary_dim` on are not rotated.
//!
//! | type | holds |
//! |---|---|
//! | [`RopeConfig`] | head width, base, [`RopeScaling`]; from a checkpoint's JSON |
//! | [`InvFreq`] | the frequencies of one configuration and length, in a [`RopeMode`] |
//! | [`RopeTable`] | cosines and sines of all positions so far; rotates queries and keys |
//! | [`RopeShift`] | a rotation of keys that are rotated already: to other positions, or to other frequencies |

mod config;
#[cfg(feature = "json")]
mod hf;
mod inv_freq;
mod permute;
mod shift;
mod table;

pub use config::{Llama3, LongRope, RopeConfig, RopeScaling, Yarn};
pub use inv_freq::{InvFreq, RopeMode};
pub use permute::{permute_rows, permute_rows_into};
pub use shift::RopeShift;
pub use squish_kernels::RopeLayout;
pub use table::{FactorSwitch, LengthRule, RopeOptions, RopeTable};
