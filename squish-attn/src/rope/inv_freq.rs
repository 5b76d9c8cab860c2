//! The frequencies of a rotary embedding: [`InvFreq`].
//!
//! [`RopeMode::HfF32`] has the numbers that transformers computes, which are those that a model was trained with: each step
//! is rounded to `f32` where transformers stores a tensor,
//!
//! ```text
//! e_i = fl(2 i) / fl(r),  p_i = base^e_i,  inv_freq_i = 1 / p_i       fl and every step: rounded to f32
//! angle = fl(fl(position) · inv_freq_i),  c = fl(fl(cos(angle)) · fl(attention factor))
//! ```
//!
//! [`RopeMode::Exact`] rounds nothing but the cosine and sine. At position 131071 the two differ by up to 3.4e-3 in a cosine.
//!
//! How the code departs from the formulas: a step of `f32` is one of `f64`, rounded, which for `+ − · /` is the same number;
//! `p_i` is `e^(e_i · ln base)`, whose error of 1e-15 changes its rounding to `f32` once in some ten million times. Torch's own power
//! is off by a last place in up to 5 frequencies of 128, depending on how it was built.

use std::f64::consts::TAU;

use super::{Llama3, RopeConfig, RopeScaling, Yarn};
use crate::{AttnError, Result};

/// How precisely angles are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RopeMode {
    /// As transformers does, in `f32` and in its order.
    #[default]
    HfF32,
    /// As the formulas say, in `f64`.
    Exact,
}

/// The frequencies of pairs of elements, in radians per position, and the attention factor.
#[derive(Clone, Debug, PartialEq)]
pub struct InvFreq {
    values: Vec<f64>,
    attention_factor: f64,
    mode: RopeMode,
}

impl InvFreq {
    /// The frequencies of `config` for a sequence of `seq_len` tokens.
    ///
    /// # Errors
    ///
    /// As [`RopeConfig::check`].
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_attn::{InvFreq, RopeConfig, RopeMode};
    ///
    /// let freqs = InvFreq::new(&RopeConfig::new(64, 10000.0, 4096), 1, RopeMode::Exact)?;
    /// assert_eq!(freqs.values()[0], 1.0);
    /// assert!((freqs.values()[16] - 0.01).abs() < 1e-15);
    /// # Ok::<(), squish_attn::AttnError>(())
    /// ```
    pub fn new(config: &RopeConfig, seq_len: usize, mode: RopeMode) -> Result<Self> {
        let mut values = vec![0.0; config.rotary_dim / 2];
        config.inv_freq_into(seq_len, mode, &mut values)?;
        Ok(Self { values, attention_factor: config.attention_factor(), mode })
    }

    /// Frequencies that come from elsewhere, such as a file; angles are computed in [`RopeMode::HfF32`].
    ///
    /// # Errors
    ///
    /// [`AttnError::Length`] without any; [`AttnError::Value`] if one is not finite, or the attention factor is not above 0.
    pub fn from_values(values: &[f32], attention_factor: f64) -> Result<Self> {
        if values.is_empty() {
            return Err(AttnError::Length { what: "values", expected: 1, actual: 0 });
        }
        let values: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
        check_finite(&values)?;
        let holds = attention_factor.is_finite() && attention_factor > 0.0;
        let (what, expected) = ("attention_factor", "finite and above 0");
        AttnError::check_value(what, attention_factor, holds, expected)?;
        Ok(Self { values, attention_factor, mode: RopeMode::HfF32 })
    }

    /// The frequencies, `[rotary_dim / 2]`; in [`RopeMode::HfF32`] all are numbers of `f32`.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// What cosines and sines are multiplied by.
    #[must_use]
    pub fn attention_factor(&self) -> f64 {
        self.attention_factor
    }

    /// How angles are computed.
    #[must_use]
    pub fn mode(&self) -> RopeMode {
        self.mode
    }

    /// The angles at `position`, in radians.
    pub(crate) fn angles(&self, position: usize) -> impl Iterator<Item = f64> + '_ {
        let mode = self.mode;
        let position = mode.round(position as f64);
        self.values.iter().map(move |value| mode.round(position * value))
    }

    /// Cosines and then sines at `position`, times the attention factor, into a row of a table.
    pub(crate) fn row_into(&self, position: usize, row: &mut [f32]) {
        let (cos, sin) = row.split_at_mut(self.values.len());
        let round = |x: f64| self.mode.round(x);
        let factor = round(self.attention_factor);
        for ((cos, sin), angle) in cos.iter_mut().zip(sin).zip(self.angles(position)) {
            let (s, c) = angle.sin_cos();
            *cos = (round(c) * factor) as f32;
            *sin = (round(s) * factor) as f32;
        }
    }
}

impl RopeConfig {
    /// The frequencies for a sequence of `seq_len` tokens, into `out` `[rotary_dim / 2]`. Allocates nothing.
    ///
    /// # Errors
    ///
    /// As [`RopeConfig::check`]; [`AttnError::Length`]; [`AttnError::Value`] of a frequency that is not finite, and then `out` holds
    /// anything.
    pub fn inv_freq_into(&self, seq_len: usize, mode: RopeMode, out: &mut [f64]) -> Result<()> {
        self.check()?;
        AttnError::check_length("out", self.rotary_dim / 2, out.len())?;
        // Two instances, so that the rounding is no branch in the loops.
        match mode {
            RopeMode::HfF32 => fill(self, seq_len, |x| f64::from(x as f32), out),
            RopeMode::Exact => fill(self, seq_len, |x| x, out),
        }
        check_finite(out)
    }
}

impl RopeMode {
    /// What a step of the computation stores.
    #[inline(always)]
    fn round(self, x: f64) -> f64 {
        match self {
            Self::HfF32 => f64::from(x as f32),
            Self::Exact => x,
        }
    }
}

/// The formulas, `round` being called where transformers stores a tensor or passes a number to an operation of one.
fn fill(config: &RopeConfig, seq_len: usize, round: impl Fn(f64) -> f64 + Copy, out: &mut [f64]) {
    let r = config.rotary_dim;
    match &config.scaling {
        RopeScaling::Default => fill_default(r, config.base, round, out),
        RopeScaling::Linear { factor } => {
            fill_default(r, config.base, round, out);
            let factor = round(*factor);
            for inv in out {
                *inv = round(*inv / factor);
            }
        }
        RopeScaling::NtkAware { factor } => {
            fill_default(r, ntk_base(config, *factor), round, out);
        }
        RopeScaling::DynamicNtk { factor } => {
            let longest = config.max_position_embeddings as f64;
            let stretch = factor * (seq_len as f64).max(longest) / longest - (factor - 1.0);
            fill_default(r, ntk_base(config, stretch), round, out);
        }
        RopeScaling::Yarn(yarn) => fill_yarn(config, yarn, round, out),
        RopeScaling::LongRope(long) => {
            let is_long = seq_len > long.original_max_position_embeddings;
            let list = if is_long { &long.long_factor } else { &long.short_factor };
            let powers = powers(r, config.base, round);
            for (i, (inv, factor)) in out.iter_mut().zip(list).enumerate() {
                *inv = round(1.0 / round(round(*factor) * powers(i)));
            }
        }
        RopeScaling::Llama3(llama) => {
            fill_default(r, config.base, round, out);
            for inv in out {
                *inv = llama3(*inv, llama, round);
            }
        }
        RopeScaling::Proportional { factor, partial_rotary_factor } => {
            let n_rotated = (partial_rotary_factor * config.head_dim as f64 / 2.0).floor() as usize;
            fill_default(r, config.base, round, out);
            let (rotated, still) = out.split_at_mut(n_rotated.min(r / 2));
            let factor = round(*factor);
            for inv in rotated {
                *inv = round(*inv / factor);
            }
            still.fill(0.0);
        }
    }
}

/// `base^(2 i / dim)` of each `i`.
fn powers(dim: usize, base: f64, round: impl Fn(f64) -> f64 + Copy) -> impl Fn(usize) -> f64 {
    let (ln, dim) = (round(base).ln(), round(dim as f64));
    move |i| round((round(round((2 * i) as f64) / dim) * ln).exp())
}

fn fill_default(dim: usize, base: f64, round: impl Fn(f64) -> f64 + Copy, out: &mut [f64]) {
    let powers = powers(dim, base, round);
    for (i, inv) in out.iter_mut().enumerate() {
        *inv = round(1.0 / powers(i));
    }
}

/// The base at which the last frequency is divided by `factor`.
fn ntk_base(config: &RopeConfig, factor: f64) -> f64 {
    let r = config.rotary_dim as f64;
    config.base * factor.powf(r / (r - 2.0))
}

fn fill_yarn(config: &RopeConfig, yarn: &Yarn, round: impl Fn(f64) -> f64 + Copy, out: &mut [f64]) {
    let r = config.rotary_dim as f64;
    // The index whose frequency turns so often in the original context.
    let index_of = |turns: f64| {
        let original = yarn.original_max_position_embeddings as f64;
        r * (original / (turns * TAU)).ln() / (2.0 * config.base.ln())
    };
    let (mut low, mut high) = (index_of(yarn.beta_fast), index_of(yarn.beta_slow));
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(r - 1.0));
    if low == high {
        high += 0.001; // Transformers' way around a division by zero.
    }
    let (start, span, factor) = (round(low), round(high - low), round(yarn.factor));
    let powers = powers(config.rotary_dim, config.base, round);
    for (i, inv) in out.iter_mut().enumerate() {
        let ramp = round(round(i as f64 - start) / span).clamp(0.0, 1.0);
        let kept = round(1.0 - ramp);
        let power = powers(i);
        let (plain, divided) = (round(1.0 / power), round(1.0 / round(factor * power)));
        *inv = round(round(divided * round(1.0 - kept)) + round(plain * kept));
    }
}

fn llama3(inv: f64, llama: &Llama3, round: impl Fn(f64) -> f64) -> f64 {
    let original = llama.original_max_position_embeddings as f64;
    let (low, high) = (llama.low_freq_factor, llama.high_freq_factor);
    // Torch divides a number by a tensor as the product with the reciprocal.
    let over = |x: f64, y: f64| round(round(1.0 / y) * round(x));
    let wavelength = over(TAU, inv);
    let factor = round(llama.factor);
    if wavelength > round(original / low) {
        return round(inv / factor);
    }
    if wavelength < round(original / high) {
        return inv;
    }
    let smooth = round(round(over(original, wavelength) - round(low)) / round(high - low));
    round(round(round(round(1.0 - smooth) * inv) / factor) + round(smooth * inv))
}

fn check_finite(values: &[f64]) -> Result<()> {
    match values.iter().find(|value| !value.is_finite()) {
        Some(&actual) => Err(AttnError::Value { what: "inv_freq", actual, expected: "finite" }),
        None => Ok(()),
    }
}
