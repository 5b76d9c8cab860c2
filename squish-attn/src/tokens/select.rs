//! Selection by scores: the largest ones, those of an image within a prompt (`FastV`), outliers, magnitudes.

use std::ops::Range;

use ndarray::{ArrayView2, Axis};
use squish_kernels::{
    Isa, dot::dot_with, reduce::abs_max_with, top_k::top_k_with, top_k_scratch_len,
};

use super::{
    TokensWorkspace,
    selection::{Selection, check_count},
};
use crate::{
    AttnError, Result,
    rows::{check_contiguous, contiguous},
};

/// How many tokens remain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// So many, or all if there are fewer.
    Tokens(usize),
    /// A share from 0 to 1 of the tokens, to the nearest count; halves are rounded up.
    Share(f64),
}

impl Keep {
    /// How many of `n_tokens` that is.
    ///
    /// # Errors
    ///
    /// [`AttnError::Value`] of a share that is not from 0 to 1.
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_attn::Keep;
    ///
    /// assert_eq!(Keep::Share(0.5).of(5)?, 3);
    /// assert_eq!(Keep::Tokens(9).of(5)?, 5);
    /// # Ok::<(), squish_attn::AttnError>(())
    /// ```
    pub fn of(self, n_tokens: usize) -> Result<usize> {
        match self {
            Self::Tokens(n) => Ok(n.min(n_tokens)),
            Self::Share(share) => {
                let holds = (0.0..=1.0).contains(&share);
                AttnError::check_value("share", share, holds, "from 0 to 1")?;
                Ok(((n_tokens as f64 * share).round() as usize).min(n_tokens))
            }
        }
    }
}

/// The quartiles of scores and the fence beyond which one is an outlier (J. W. Tukey, 1977); zeros where there are no scores.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fences {
    /// First quartile, interpolated linearly.
    pub q1: f64,
    /// Third quartile.
    pub q3: f64,
    /// `q3 + 1.5 · (q3 − q1)`: what is larger is an outlier.
    pub upper: f64,
}

/// Room for selections.
#[derive(Debug, Default)]
pub(super) struct TopScratch {
    values: Vec<f32>,
    indices: Vec<u32>,
    entries: Vec<u64>,
    sorted: Vec<f32>,
}

impl TopScratch {
    /// The indices of the `k` largest of at least as many scores, of which none is NaN: the largest first, and of equal ones the lowest
    /// index first.
    pub(super) fn largest(&mut self, isa: Isa, scores: &[f32], k: usize) -> &mut [u32] {
        self.values.resize(k, 0.0);
        self.indices.resize(k, 0);
        let n_entries = top_k_scratch_len(k).max(self.entries.len());
        self.entries.resize(n_entries, 0);
        let n = top_k_with(isa, scores, &mut self.values, &mut self.indices, &mut self.entries);
        debug_assert_eq!(n, k, "no score is NaN");
        &mut self.indices
    }

    /// The fences of scores that are finite.
    pub(super) fn fences(&mut self, scores: &[f32]) -> Fences {
        let Some(last) = scores.len().checked_sub(1) else { return Fences::default() };
        self.sorted.clear();
        self.sorted.extend_from_slice(scores);
        self.sorted.sort_unstable_by(f32::total_cmp);
        let quantile = |share: f64| {
            let at = share * last as f64;
            let (below, above) = (at.floor() as usize, at.ceil() as usize);
            let [below_value, above_value] = [below, above].map(|i| f64::from(self.sorted[i]));
            below_value + (at - below as f64) * (above_value - below_value)
        };
        let (q1, q3) = (quantile(0.25), quantile(0.75));
        Fences { q1, q3, upper: q3 + 1.5 * (q3 - q1) }
    }
}

impl TokensWorkspace {
    /// Keeps the tokens with the largest of `scores`, `[n_tokens]`; of equal scores those with the lowest index.
    ///
    /// With the attention that tokens receive from the class token this is the dominant half of `VisionZip`.
    ///
    /// # Errors
    ///
    /// [`AttnError::NotFinite`] of a score; [`AttnError::Value`] of `keep`.
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_attn::{Keep, Selection, TokensWorkspace};
    ///
    /// let mut kept = Selection::default();
    /// TokensWorkspace::new().largest_into(&[0.1, 0.4, 0.1, 0.4], Keep::Tokens(3), &mut kept)?;
    /// assert_eq!(kept.indices(), [0, 1, 3]);
    /// # Ok::<(), squish_attn::AttnError>(())
    /// ```
    pub fn largest_into(&mut self, scores: &[f32], keep: Keep, out: &mut Selection) -> Result<()> {
        self.select_into("scores", scores, 0..scores.len(), keep, out)
    }

    /// `FastV`'s rule (arXiv 2403.06764): of the tokens of an image those that receive most attention remain, and all others of the prompt.
    ///
    /// `attention`, `[n_tokens]`, is what each token of the prompt receives at a layer, as
    /// [`attention_mass_into`](Self::attention_mass_into) says; the released code takes that of the last row, the paper the mean of all.
    /// `keep` is of the tokens in `image`: half of them, after the second layer, in the paper. Of equal ones the lowest index remains.
    ///
    /// # Errors
    ///
    /// [`AttnError::NotFinite`] of the attention to a token of the image; [`AttnError::Value`] of `keep`, or if `image` is no range of
    /// tokens.
    pub fn fast_v_into(
        &mut self,
        attention: &[f32],
        image: Range<usize>,
        keep: Keep,
        out: &mut Selection,
    ) -> Result<()> {
        self.select_into("attention", attention, image, keep, out)
    }

    /// Keeps the largest scores within a range, and what is outside.
    fn select_into(
        &mut self,
        what: &'static str,
        scores: &[f32],
        within: Range<usize>,
        keep: Keep,
        out: &mut Selection,
    ) -> Result<()> {
        let n_tokens = scores.len();
        check_count(n_tokens)?;
        let Range { start, end } = within;
        let holds = start <= end && end <= n_tokens;
        AttnError::check_value("end of `image`", end as f64, holds, "a range of the tokens")?;
        let scores = &scores[start..end];
        check_scores(what, self.isa, scores, start)?;
        let k = keep.of(scores.len())?;
        out.n_tokens = n_tokens;
        out.indices.clear();
        out.indices.extend(0..start as u32);
        if k == scores.len() {
            out.indices.extend(start as u32..end as u32);
        } else {
            let largest = self.top.largest(self.isa, scores, k);
            largest.sort_unstable();
            out.indices.extend(largest.iter().map(|i| i + start as u32));
        }
        out.indices.extend(end as u32..n_tokens as u32);
        Ok(())
    }

    /// Keeps the outliers of `scores`, `[n_tokens]`, those beyond the upper fence, and returns the fences: how `PruMerge` (arXiv
    /// 2403.15388) finds how many tokens an image needs. It can be none.
    ///
    /// # Errors
    ///
    /// [`AttnError::NotFinite`] of a score.
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_attn::{Selection, TokensWorkspace};
    ///
    /// let mut kept = Selection::default();
    /// let fences = TokensWorkspace::new().outliers_into(&[1.0, 2.0, 9.0, 3.0, 4.0], &mut kept)?;
    /// assert_eq!((fences.q1, fences.q3, fences.upper), (2.0, 4.0, 7.0));
    /// assert_eq!(kept.indices(), [2]);
    /// # Ok::<(), squish_attn::AttnError>(())
    /// ```
    pub fn outliers_into(&mut self, scores: &[f32], out: &mut Selection) -> Result<Fences> {
        check_count(scores.len())?;
        check_scores("scores", self.isa, scores, 0)?;
        let fences = self.top.fences(scores);
        out.n_tokens = scores.len();
        out.indices.clear();
        let beyond = scores.iter().enumerate().filter(|&(_, &s)| f64::from(s) > fences.upper);
        out.indices.extend(beyond.map(|(i, _)| i as u32));
        Ok(fences)
    }

    /// Keeps the rows of `tokens`, `[n_tokens, dim]`, with the largest Euclidean norm; of equal ones those with the lowest index. A
    /// baseline: no published method for vision tokens uses it alone.
    ///
    /// # Errors
    ///
    /// [`AttnError::NotFinite`] of a row that is not finite, or whose square is not; [`AttnError::Layout`]; [`AttnError::Value`] of `keep`.
    pub fn magnitude_into(
        &mut self,
        tokens: ArrayView2<'_, f32>,
        keep: Keep,
        out: &mut Selection,
    ) -> Result<()> {
        squares_into("tokens", self.isa, tokens, &mut self.squares)?;
        let squares = std::mem::take(&mut self.squares);
        let result = self.largest_into(&squares, keep, out);
        self.squares = squares;
        result
    }
}

/// `Ok` if all scores are finite; the first one has the index `first`.
pub(super) fn check_scores(
    what: &'static str,
    isa: Isa,
    scores: &[f32],
    first: usize,
) -> Result<()> {
    if abs_max_with(isa, scores).is_finite() {
        return Ok(());
    }
    let index = scores.iter().position(|s| !s.is_finite());
    index.map_or(Ok(()), |i| Err(AttnError::NotFinite { what, index: first + i }))
}

/// The products of rows with themselves, if the rows are contiguous and these numbers finite.
pub(super) fn squares_into(
    what: &'static str,
    isa: Isa,
    rows: ArrayView2<'_, f32>,
    out: &mut Vec<f32>,
) -> Result<()> {
    check_count(rows.nrows())?;
    check_contiguous(what, rows.insert_axis(Axis(1)))?;
    out.clear();
    for (index, row) in rows.outer_iter().enumerate() {
        let row = contiguous(row);
        let square = dot_with(isa, row, row);
        if !square.is_finite() {
            return Err(AttnError::NotFinite { what, index });
        }
        out.push(square);
    }
    Ok(())
}
