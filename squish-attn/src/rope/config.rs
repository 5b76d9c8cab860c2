//! What a model's rotary embedding is: [`RopeConfig`] and its [`RopeScaling`].
//!
//! Scalings stretch a trained context of `M` positions. With `θ_i = base^(−2 i / r)`, `r` being `rotary_dim`:
//!
//! | [`RopeScaling`] | frequency `i` | attention factor |
//! |---|---|---|
//! | `Default` | `θ_i` | 1 |
//! | `Linear` | `θ_i / factor` | 1 |
//! | `NtkAware` | `θ_i` of `base · factor^(r / (r − 2))`: the first stays, the last is divided by `factor` | 1 |
//! | `DynamicNtk` | the same with `factor · L / M − (factor − 1)`, `L` being the longest sequence, at least `M` | 1 |
//! | `Yarn` | between `θ_i` and `θ_i / factor`, by how often it turns in the trained context | [`RopeConfig::attention_factor`] |
//! | `LongRope` | `θ_i / ext_i`, with one list for short sequences and one for long ones | [`RopeConfig::attention_factor`] |
//! | `Llama3` | `θ_i`, `θ_i / factor` or between, by its wavelength | 1 |
//! | `Proportional` | `θ_i / factor` for a first part of the frequencies, 0 for the others | 1 |
//!
//! (Linear: arXiv 2306.15595. NTK-aware and dynamic: bloc97 and emozilla, 2023. YaRN: B. Peng et al., arXiv 2309.00071, equations
//! 17 to 23. LongRoPE: Y. Ding et al., arXiv 2402.13753. All but NTK-aware as in `ROPE_INIT_FUNCTIONS` of transformers 5.23.)

use crate::{AttnError, Result};

/// The rotary embedding of a model, or of one kind of its layers.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Width of a head; at most 65536, so that a file cannot ask for all memory.
    pub head_dim: usize,
    /// The first elements of a head, which are rotated; even, at most `head_dim`.
    pub rotary_dim: usize,
    /// `rope_theta`.
    pub base: f64,
    /// The longest sequence that the model is for.
    pub max_position_embeddings: usize,
    /// How the frequencies differ from those of `base`.
    pub scaling: RopeScaling,
}

/// How frequencies are stretched beyond the context of pretraining; the module has the formulas.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    Default,
    /// All alike, as if positions were closer.
    Linear {
        /// How much longer the context becomes.
        factor: f64,
    },
    /// By another base, whatever the length of a sequence.
    NtkAware {
        /// How much the lowest frequency is divided by.
        factor: f64,
    },
    /// By a base that grows with the length of a sequence beyond `max_position_embeddings`.
    DynamicNtk {
        /// The slope of that growth.
        factor: f64,
    },
    /// By parts.
    Yarn(Yarn),
    /// By searched factors, one for each frequency.
    LongRope(LongRope),
    /// By wavelength, with a smooth passage.
    Llama3(Llama3),
    /// Of full-sized heads, a part of which is rotated: Gemma 4.
    Proportional {
        /// What all frequencies are divided by.
        factor: f64,
        /// The part of the frequencies that is not 0.
        partial_rotary_factor: f64,
    },
}

/// The parameters of [`RopeScaling::Yarn`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// How much longer the context becomes.
    pub factor: f64,
    /// The context of pretraining.
    pub original_max_position_embeddings: usize,
    /// Frequencies that turn more often than this in it stay; by default 32.
    pub beta_fast: f64,
    /// Frequencies that turn less often than this are divided by `factor`; by default 1.
    pub beta_slow: f64,
    /// Whether the ends of the passage are rounded to whole indices; by default they are.
    pub truncate: bool,
    /// Given together with `mscale_all_dim`, in DeepSeek's files.
    pub mscale: Option<f64>,
    /// Given together with `mscale`.
    pub mscale_all_dim: Option<f64>,
    /// Instead of the attention factor that follows from the others.
    pub attention_factor: Option<f64>,
}

impl Yarn {
    /// The paper's values for a context that becomes `factor` times as long.
    #[must_use]
    pub const fn new(factor: f64, original_max_position_embeddings: usize) -> Self {
        Self {
            factor,
            original_max_position_embeddings,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            mscale: None,
            mscale_all_dim: None,
            attention_factor: None,
        }
    }
}

/// The parameters of [`RopeScaling::LongRope`].
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// Divisors for sequences of up to `original_max_position_embeddings`, `[rotary_dim / 2]`.
    pub short_factor: Vec<f64>,
    /// Divisors for longer ones, `[rotary_dim / 2]`.
    pub long_factor: Vec<f64>,
    /// The context of pretraining.
    pub original_max_position_embeddings: usize,
    /// What the attention factor follows from; by default `max_position_embeddings` over the context of pretraining.
    pub factor: Option<f64>,
    /// Instead of the attention factor that follows from the others.
    pub attention_factor: Option<f64>,
}

/// The parameters of [`RopeScaling::Llama3`]; by default those of Llama 3.1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama3 {
    /// What low frequencies are divided by.
    pub factor: f64,
    /// Wavelengths above the original context divided by this are low frequencies.
    pub low_freq_factor: f64,
    /// Wavelengths below the original context divided by this are high frequencies, which stay.
    pub high_freq_factor: f64,
    /// The context of pretraining.
    pub original_max_position_embeddings: usize,
}

impl Default for Llama3 {
    fn default() -> Self {
        Self {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        }
    }
}

impl RopeConfig {
    /// Heads that are rotated as a whole, without scaling.
    #[must_use]
    pub const fn new(head_dim: usize, base: f64, max_position_embeddings: usize) -> Self {
        Self {
            head_dim,
            rotary_dim: head_dim,
            base,
            max_position_embeddings,
            scaling: RopeScaling::Default,
        }
    }

    /// `Ok` if the numbers can be those of an embedding.
    ///
    /// # Errors
    ///
    /// [`AttnError::Value`] or, for a list, [`AttnError::Length`].
    pub fn check(&self) -> Result<()> {
        let check = AttnError::check_value;
        let positive =
            |what, x: f64| check(what, x, x.is_finite() && x > 0.0, "finite and above 0");
        let context =
            |x: usize| check("original_max_position_embeddings", x as f64, x >= 2, "at least 2");
        let (r, width) = (self.rotary_dim, self.head_dim);
        check("head_dim", width as f64, width <= 1 << 16, "at most 65536")?;
        let pairs = r > 0 && r.is_multiple_of(2) && r <= self.head_dim;
        check("rotary_dim", r as f64, pairs, "even, above 0, and at most `head_dim`")?;
        let longest = self.max_position_embeddings;
        check("max_position_embeddings", longest as f64, longest > 0, "at least 1")?;
        positive("base", self.base)?;
        match &self.scaling {
            RopeScaling::Default => Ok(()),
            RopeScaling::Linear { factor } => positive("factor", *factor),
            RopeScaling::NtkAware { factor } | RopeScaling::DynamicNtk { factor } => {
                check("rotary_dim", r as f64, r > 2, "above 2, for another base")?;
                positive("factor", *factor)
            }
            RopeScaling::Yarn(yarn) => {
                check("base", self.base, self.base > 1.0, "above 1, for YaRN")?;
                positive("factor", yarn.factor)?;
                positive("beta_fast", yarn.beta_fast)?;
                positive("beta_slow", yarn.beta_slow)?;
                context(yarn.original_max_position_embeddings)?;
                positive("attention_factor", self.attention_factor())
            }
            RopeScaling::LongRope(long) => {
                context(long.original_max_position_embeddings)?;
                for (what, list) in
                    [("short_factor", &long.short_factor), ("long_factor", &long.long_factor)]
                {
                    AttnError::check_length(what, r / 2, list.len())?;
                    list.iter().try_for_each(|&factor| positive(what, factor))?;
                }
                positive("factor", self.longrope_factor(long))?;
                positive("attention_factor", self.attention_factor())
            }
            RopeScaling::Llama3(llama) => {
                positive("factor", llama.factor)?;
                positive("low_freq_factor", llama.low_freq_factor)?;
                positive("high_freq_factor", llama.high_freq_factor)?;
                let (low, high) = (llama.low_freq_factor, llama.high_freq_factor);
                check("high_freq_factor", high, high > low, "above `low_freq_factor`")?;
                context(llama.original_max_position_embeddings)
            }
            RopeScaling::Proportional { factor, partial_rotary_factor: part } => {
                check("rotary_dim", r as f64, r == self.head_dim, "`head_dim`, for proportional")?;
                check("partial_rotary_factor", *part, (0.0..=1.0).contains(part), "in 0..=1")?;
                positive("factor", *factor)
            }
        }
    }

    /// What cosines and sines are multiplied by: 1 but for YaRN and LongRoPE.
    ///
    /// It does not depend on the length of a sequence: LongRoPE scales short ones, too.
    #[must_use]
    pub fn attention_factor(&self) -> f64 {
        match &self.scaling {
            RopeScaling::Yarn(yarn) => {
                let derived = match (yarn.mscale, yarn.mscale_all_dim) {
                    (Some(m), Some(all)) => mscale(yarn.factor, m) / mscale(yarn.factor, all),
                    _ => mscale(yarn.factor, 1.0),
                };
                yarn.attention_factor.unwrap_or(derived)
            }
            RopeScaling::LongRope(long) => long.attention_factor.unwrap_or_else(|| {
                let factor = self.longrope_factor(long);
                let original = long.original_max_position_embeddings as f64;
                if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() }
            }),
            _ => 1.0,
        }
    }

    /// What DeepSeek's models multiply the scale of the scores by, beside the attention factor: 1 without `mscale_all_dim`.
    ///
    /// It is not part of the tables: `1 / √head_dim` becomes `softmax_scale_multiplier / √head_dim`. Other models with YaRN
    /// do without.
    #[must_use]
    pub fn softmax_scale_multiplier(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn(Yarn { factor, mscale_all_dim: Some(all), .. }) => {
                mscale(factor, all).powi(2)
            }
            _ => 1.0,
        }
    }

    /// Whether the frequencies depend on the length of the sequence.
    #[must_use]
    pub fn depends_on_length(&self) -> bool {
        matches!(self.scaling, RopeScaling::DynamicNtk { .. } | RopeScaling::LongRope(_))
    }

    fn longrope_factor(&self, long: &LongRope) -> f64 {
        let ratio =
            self.max_position_embeddings as f64 / long.original_max_position_embeddings as f64;
        long.factor.unwrap_or(ratio)
    }
}

fn mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}
