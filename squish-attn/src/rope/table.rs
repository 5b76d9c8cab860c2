//! Cosines and sines of all positions so far, and what they rotate: [`RopeTable`].
//!
//! A table row holds the `rotary_dim / 2` cosines of a position, and then as many sines: what a row of queries or keys needs lies
//! in one piece. Rows are made once, when a sequence first reaches their position, and stay; only a change of the frequencies
//! themselves, [`LengthRule::Dynamic`], drops them.

use std::mem;

use ndarray::ArrayViewMut3;
use squish_kernels::{Real, RopeLayout, rope_in_place};

use super::{InvFreq, RopeConfig, RopeMode, RopeScaling, RopeShift};
use crate::{
    AttnError, Result,
    rows::{check_contiguous, for_each_block},
};

/// How a table is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RopeOptions {
    /// How angles are computed.
    pub mode: RopeMode,
    /// Which length the frequencies are for, where they depend on one.
    pub length: LengthRule,
}

/// Which length of a sequence the frequencies of dynamic NTK and LongRoPE are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LengthRule {
    /// `max_position_embeddings`: a key that was cached once stays right, and a row does not depend on the call that it is in.
    #[default]
    Longest,
    /// This one, whatever the length of a sequence.
    Pinned(usize),
    /// That of each call, as transformers does. Keys in a cache keep the rotation that they had, unless a [`RopeShift`] changes
    /// them; and with dynamic NTK every step beyond `max_position_embeddings` makes the whole table anew.
    Dynamic,
}

/// The frequencies of a [`RopeTable`] changed.
#[derive(Clone, Debug, PartialEq)]
pub struct FactorSwitch {
    /// The length of the sequence that the change was made for.
    pub at: usize,
    /// The frequencies before, which keys in a cache have.
    pub from: InvFreq,
}

/// Cosines and sines by position, for one configuration.
///
/// # Examples
///
/// ```
/// use squish_attn::{RopeConfig, RopeLayout, RopeOptions, RopeTable, ndarray::Array3};
///
/// let mut table = RopeTable::new(RopeConfig::new(64, 10000.0, 4096), RopeOptions::default())?;
/// let (mut q, mut k) = (Array3::<f32>::ones([3, 4, 64]), Array3::<f32>::ones([3, 2, 64]));
/// table.extend_to(13)?; // positions 0 to 12
/// table.apply_qk_in_place(q.view_mut(), k.view_mut(), &[10, 11, 12], RopeLayout::HalfSplit)?;
/// assert_eq!(q[[1, 0, 0]], 11_f32.cos() - 11_f32.sin());
/// # Ok::<(), squish_attn::AttnError>(())
/// ```
#[derive(Clone, Debug)]
pub struct RopeTable {
    inv_freq: InvFreq,
    head_dim: usize,
    /// What chooses other frequencies, if anything does.
    dynamic: Option<RopeConfig>,
    /// The length that the frequencies are for, if they are dynamic.
    length: usize,
    /// `[n_positions, rotary_dim]`
    rows: Vec<f32>,
}

impl RopeTable {
    /// A table of no positions yet.
    ///
    /// # Errors
    ///
    /// As [`RopeConfig::check`].
    pub fn new(config: RopeConfig, options: RopeOptions) -> Result<Self> {
        let is_dynamic = options.length == LengthRule::Dynamic && config.depends_on_length();
        let length = match options.length {
            LengthRule::Longest => config.max_position_embeddings,
            LengthRule::Pinned(length) => length,
            LengthRule::Dynamic => next_length(&config, 0, 0),
        };
        let inv_freq = InvFreq::new(&config, length, options.mode)?;
        let head_dim = config.head_dim;
        let dynamic = is_dynamic.then_some(config);
        Ok(Self { inv_freq, head_dim, dynamic, length, rows: Vec::new() })
    }

    /// A table of no positions yet, of these frequencies, for heads of `head_dim`.
    ///
    /// # Errors
    ///
    /// [`AttnError::Value`] if the frequencies are those of larger heads.
    pub fn from_inv_freq(inv_freq: InvFreq, head_dim: usize) -> Result<Self> {
        let holds = 2 * inv_freq.values().len() <= head_dim;
        let expected = "at least two elements for each frequency";
        AttnError::check_value("head_dim", head_dim as f64, holds, expected)?;
        Ok(Self { inv_freq, head_dim, dynamic: None, length: 0, rows: Vec::new() })
    }

    /// Makes positions below `seq_len` ready, for a call whose sequence is that long, what is cached included.
    ///
    /// A step costs the positions that are new; a decoder that must not allocate calls this for the longest sequence first.
    ///
    /// Returns the frequencies before, if those of [`LengthRule::Dynamic`] changed and there were positions before. Then
    /// positions from `seq_len` on are not ready any more.
    ///
    /// # Errors
    ///
    /// [`AttnError::Memory`]; then the table is as it was.
    pub fn extend_to(&mut self, seq_len: usize) -> Result<Option<FactorSwitch>> {
        let mut changed = None;
        if let Some(config) = &self.dynamic {
            let length = next_length(config, self.length, seq_len);
            if length != self.length {
                changed = Some((length, InvFreq::new(config, length, self.inv_freq.mode())?));
            }
        }
        let (n_ready, rotary_dim) = (self.n_positions(), self.rotary_dim());
        let n_needed = if changed.is_some() { seq_len } else { seq_len.max(n_ready) };
        let n_elements = n_needed.checked_mul(rotary_dim).ok_or_else(|| no_memory(usize::MAX))?;
        self.rows
            .try_reserve(n_elements.saturating_sub(self.rows.len()))
            .map_err(|_| no_memory(n_elements.saturating_mul(size_of::<f32>())))?;
        let switch = changed.and_then(|(length, inv_freq)| {
            let from = mem::replace(&mut self.inv_freq, inv_freq);
            self.length = length;
            self.rows.clear();
            (n_ready > 0).then_some(FactorSwitch { at: seq_len, from })
        });
        for position in self.n_positions()..n_needed {
            let start = self.rows.len();
            self.rows.resize(start + rotary_dim, 0.0);
            self.inv_freq.row_into(position, &mut self.rows[start..]);
        }
        Ok(switch)
    }

    /// Rotates the heads of `x` `[n_rows, n_heads, head_dim]`, row `i` being that of position `positions[i]`.
    ///
    /// Products and sums are in `f32`, with one rounding to `T` at the end; all levels of SIMD give the same bits, and a row does
    /// not depend on the others. Rows must be contiguous, and may lie apart. Allocates nothing.
    ///
    /// # Errors
    ///
    /// [`AttnError::Axis`], [`AttnError::Layout`], [`AttnError::Position`] of one that [`extend_to`](Self::extend_to) has not made ready.
    pub fn apply_in_place<T: Real>(
        &self,
        x: ArrayViewMut3<'_, T>,
        positions: &[usize],
        layout: RopeLayout,
    ) -> Result<()> {
        self.check("x", &x, positions)?;
        rotate(x, self.head_dim, &self.rows, self.rotary_dim(), positions, layout);
        Ok(())
    }

    /// [`apply_in_place`](Self::apply_in_place) of queries `[n_rows, n_heads, head_dim]` and keys `[n_rows, n_kv_heads, head_dim]`.
    ///
    /// # Errors
    ///
    /// As there, and then neither is changed.
    pub fn apply_qk_in_place<T: Real>(
        &self,
        q: ArrayViewMut3<'_, T>,
        k: ArrayViewMut3<'_, T>,
        positions: &[usize],
        layout: RopeLayout,
    ) -> Result<()> {
        self.check("q", &q, positions)?;
        self.check("k", &k, positions)?;
        let rotary_dim = self.rotary_dim();
        rotate(q, self.head_dim, &self.rows, rotary_dim, positions, layout);
        rotate(k, self.head_dim, &self.rows, rotary_dim, positions, layout);
        Ok(())
    }

    /// The rotation that moves every key by `delta` positions, as when others before them are dropped.
    ///
    /// In [`RopeMode::HfF32`] it differs from a rotation at the new position by the rounding of angles, some 1e-7 of the
    /// position; [`move_keys`](Self::move_keys) does not.
    #[must_use]
    pub fn rotate_by(&self, delta: isize) -> RopeShift {
        RopeShift::uniform(&self.inv_freq, self.head_dim, delta)
    }

    /// The rotation that moves key `i` from position `from[i]` to position `to[i]`.
    ///
    /// # Errors
    ///
    /// [`AttnError::Length`] if they differ in length.
    pub fn move_keys(&self, from: &[usize], to: &[usize]) -> Result<RopeShift> {
        RopeShift::between((&self.inv_freq, from), (&self.inv_freq, to), self.head_dim)
    }

    /// The rotation that gives keys at `positions`, cached with the frequencies `from`, those of this table.
    ///
    /// # Errors
    ///
    /// [`AttnError::Length`] if there are more or fewer frequencies.
    pub fn switch_keys(&self, from: &InvFreq, positions: &[usize]) -> Result<RopeShift> {
        RopeShift::between((from, positions), (&self.inv_freq, positions), self.head_dim)
    }

    /// The frequencies.
    #[must_use]
    pub fn inv_freq(&self) -> &InvFreq {
        &self.inv_freq
    }

    /// How many positions are ready, from 0 on.
    #[must_use]
    pub fn n_positions(&self) -> usize {
        self.rows.len() / self.rotary_dim()
    }

    /// Cosines and sines at `position`, `[rotary_dim / 2]` each, times the attention factor; `None` if it is not ready.
    #[must_use]
    pub fn row(&self, position: usize) -> Option<(&[f32], &[f32])> {
        let start = position.checked_mul(self.rotary_dim())?;
        let row = self.rows.get(start..)?.get(..self.rotary_dim())?;
        Some(row.split_at(self.rotary_dim() / 2))
    }

    fn rotary_dim(&self) -> usize {
        2 * self.inv_freq.values().len()
    }

    fn check<T>(
        &self,
        what: &'static str,
        x: &ArrayViewMut3<'_, T>,
        positions: &[usize],
    ) -> Result<()> {
        check_heads(what, x, positions.len(), self.head_dim)?;
        let len = self.n_positions();
        match positions.iter().position(|&position| position >= len) {
            Some(index) => {
                let (what, position) = ("positions", positions[index]);
                Err(AttnError::Position { what, index, position, len })
            }
            None => Ok(()),
        }
    }
}

/// `Ok` if `x` is `[n_rows, _, head_dim]` with contiguous rows.
pub(super) fn check_heads<T>(
    what: &'static str,
    x: &ArrayViewMut3<'_, T>,
    n_rows: usize,
    head_dim: usize,
) -> Result<()> {
    let (rows, _, width) = x.dim();
    AttnError::check_axis(what, "n_rows", n_rows, rows)?;
    AttnError::check_axis(what, "head_dim", head_dim, width)?;
    check_contiguous(what, x.view())
}

/// Rotates what [`check_heads`] has seen.
pub(super) fn rotate<T: Real>(
    x: ArrayViewMut3<'_, T>,
    head_dim: usize,
    table: &[f32],
    rotary_dim: usize,
    positions: &[usize],
    layout: RopeLayout,
) {
    for_each_block(x, |rows, block| {
        rope_in_place(block, head_dim, table, rotary_dim, &positions[rows], layout);
    });
}

/// The length that transformers takes the frequencies of `config` for, in a call of `seq_len` after those for `length`.
fn next_length(config: &RopeConfig, length: usize, seq_len: usize) -> usize {
    match &config.scaling {
        RopeScaling::DynamicNtk { .. } => {
            let trained = config.max_position_embeddings;
            // It grows with the sequence, and starts anew with a short one.
            if seq_len < trained { trained } else { length.max(trained).max(seq_len) }
        }
        RopeScaling::LongRope(long) => {
            let original = long.original_max_position_embeddings;
            if seq_len > original { original.saturating_add(1) } else { original }
        }
        _ => length,
    }
}

fn no_memory(bytes: usize) -> AttnError {
    AttnError::Memory { what: "table", bytes }
}
