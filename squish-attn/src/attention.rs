//! Attention over keys and values where they lie.
//!
//! ```text
//! out = Σ e^s[j] · v[j] / Σ e^s[j]      over the tokens j that the row sees
//! s[j] = scale · q · k[j]               and cap · tanh(s / cap), then + slope · (position[j] - own position)
//! ```
//!
//! Query head `h` of `n` meets head `h / (n / m)` of the `m` heads of keys and values. A sink is one more score, which has no value.
//!
//! **A row has the same bits in every company.** The tokens that it sees are numbered in order; numbers from a multiple of 64 on are a
//! tile, those from a multiple of [`SPLIT`] on are a split. A split's state is computed tile by tile, and the states of splits are merged
//! in order. So nothing depends on how keys and values are stored (in one piece, in blocks, in a ring), on the other rows of a call
//! (whether a token is decoded alone or is one of a prefill, a batch or a tree), or on the number of threads.

mod gather;
mod mask;
mod mass;
mod merge;
mod plan;
mod run;
mod state;
mod unit;

use ndarray::{ArrayView3, ArrayViewMut2, ArrayViewMut3, Axis};
use squish_kernels::kv::KvSource;

use self::mask::Visibility;
use crate::{
    error::{AttnError, Result},
    rows::check_contiguous,
};

pub use mask::{BitMask, Mask};
pub(crate) use mass::MassScratch;
pub use merge::{merge_in_place, merge_in_place_with};
pub use run::{SPLIT, Workspace};

/// How scores become weights.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// What products of queries and keys are multiplied by, a finite number; by default `1 / sqrt(width)`.
    pub scale: Option<f32>,
    /// Scores are squashed between minus and plus this, a finite number above 0 (Gemma 2).
    pub softcap: Option<f32>,
    /// A row sees this many tokens at most, itself included: at least 1.
    pub window: Option<usize>,
    /// Of each query head, a score without a value (gpt-oss).
    pub sinks: Option<&'a [f32]>,
    /// Of each query head, the slope of ALiBi.
    pub alibi: Option<&'a [f32]>,
}

/// A sequence and how many of a call's query rows are its own.
#[derive(Debug)]
pub struct Sequence<'a, S> {
    /// Keys and values, those of the rows themselves included.
    pub source: &'a S,
    /// Query rows.
    pub n_rows: usize,
    /// Which tokens each of them sees.
    pub mask: Mask<'a>,
}

impl<S> Clone for Sequence<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Sequence<'_, S> {}

impl<'a, S: KvSource> Sequence<'a, S> {
    /// Causal rows, the last ones of the source.
    #[must_use]
    pub const fn causal(source: &'a S, n_rows: usize) -> Self {
        Self { source, n_rows, mask: Mask::Causal }
    }

    fn visibility(&self, options: &Options<'_>) -> Visibility<'a> {
        let (window, n_tokens) = (options.window, self.source.len());
        Visibility { mask: self.mask, window, n_rows: self.n_rows, n_tokens }
    }
}

impl Workspace {
    /// The attention of rows `[rows, heads, key width]`, those of one sequence after those of another, into `out`, `[rows, heads, value
    /// width]`. A row that sees nothing, and has no sink, becomes zeros.
    ///
    /// # Errors
    ///
    /// If shapes or masks do not fit each other, or a number of `options` is out of its range; then nothing is written.
    pub fn attend_into<S: KvSource>(
        &mut self,
        queries: ArrayView3<'_, f32>,
        sequences: &[Sequence<'_, S>],
        options: &Options<'_>,
        out: ArrayViewMut3<'_, f32>,
    ) -> Result<()> {
        check(queries, sequences, options, &out)?;
        self.run(queries, sequences, options, out, None)
    }

    /// [`attend_into`](Self::attend_into), with the natural logarithm of the sum of each row's `e^s` into `lse`, `[rows, heads]`: what
    /// [`merge_in_place`] takes. Negative infinity for a row that sees nothing.
    ///
    /// # Errors
    ///
    /// As [`attend_into`](Self::attend_into).
    pub fn attend_with_lse_into<S: KvSource>(
        &mut self,
        queries: ArrayView3<'_, f32>,
        sequences: &[Sequence<'_, S>],
        options: &Options<'_>,
        out: ArrayViewMut3<'_, f32>,
        mut lse: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        check(queries, sequences, options, &out)?;
        let (n_rows, n_heads, _) = queries.dim();
        AttnError::check_axis("lse", "rows", n_rows, lse.dim().0)?;
        AttnError::check_axis("lse", "heads", n_heads, lse.dim().1)?;
        check_contiguous("lse", lse.view().insert_axis(Axis(0)))?;
        let lse = lse.as_slice_mut();
        self.run(queries, sequences, options, out, lse)
    }
}

/// Whether everything fits but the masks.
fn check<S: KvSource>(
    queries: ArrayView3<'_, f32>,
    sequences: &[Sequence<'_, S>],
    options: &Options<'_>,
    out: &ArrayViewMut3<'_, f32>,
) -> Result<()> {
    let (n_rows, n_heads, key_dim) = queries.dim();
    AttnError::check_axis("out", "rows", n_rows, out.dim().0)?;
    AttnError::check_axis("out", "heads", n_heads, out.dim().1)?;
    check_contiguous("out", out.view())?;
    // What saturates is no number of rows that an array has.
    let of_sequences =
        sequences.iter().fold(0_usize, |n, sequence| n.saturating_add(sequence.n_rows));
    AttnError::check_axis("queries", "rows of the sequences", of_sequences, n_rows)?;
    for sequence in sequences {
        let source = sequence.source;
        check_source(source, n_heads, key_dim)?;
        let kv_heads = sequences[0].source.n_heads();
        AttnError::check_axis("source", "heads", kv_heads, source.n_heads())?;
        AttnError::check_axis("out", "width", source.value_dim(), out.dim().2)?;
        let width = source.value_dim();
        AttnError::check_value("width of values", width as f64, width > 0, "at least 1")?;
    }
    check_options(options, n_heads)
}

/// Whether the heads and the width of queries are those of the keys.
fn check_source<S: KvSource>(source: &S, n_heads: usize, key_dim: usize) -> Result<()> {
    let kv_heads = source.n_heads();
    if n_heads == 0 || kv_heads == 0 || !n_heads.is_multiple_of(kv_heads) {
        return Err(AttnError::Heads { n_heads, kv_heads });
    }
    AttnError::check_axis("queries", "width", source.key_dim(), key_dim)?;
    AttnError::check_value("width of keys", key_dim as f64, key_dim > 0, "at least 1")
}

/// Whether the numbers of `options` are in their ranges, and there are as many as heads.
fn check_options(options: &Options<'_>, n_heads: usize) -> Result<()> {
    let Options { scale, softcap, window, sinks, alibi } = *options;
    if let Some(scale) = scale {
        AttnError::check_value("scale", f64::from(scale), scale.is_finite(), "finite")?;
    }
    if let Some(cap) = softcap {
        let holds = cap.is_finite() && cap > 0.0;
        AttnError::check_value("softcap", f64::from(cap), holds, "finite and above 0")?;
    }
    if let Some(window) = window {
        AttnError::check_value("window", window as f64, window > 0, "at least 1")?;
    }
    for (what, given) in [("sinks", sinks), ("alibi", alibi)] {
        if let Some(given) = given {
            AttnError::check_length(what, n_heads, given.len())?;
        }
    }
    Ok(())
}
