//! Keys and values where they lie: what caches hold and attention reads.
//!
//! A source presents the tokens of a sequence, of one layer, as *runs*: tokens whose rows lie at one stride. A plain array has one run,
//! a ring has two, a paged cache one for each block. A run has the same tokens for all heads, and a row holds one head of one token.
//!
//! Tokens have an *index* in the source, `0..len`, in the order of the runs, and a *position* in the text, which is the same unless a
//! window was kept.

pub use crate::element::{E4M3, E5M2};
pub use half::{bf16, f16};

pub use element::KvElement;
pub use plain::KvArrays;
pub use rows::{RowScales, decode_rows_into, encode_rows_into};
#[doc(hidden)]
pub use rows::{decode_rows_with, encode_rows_with};

mod convert;
mod element;
mod load;
mod plain;
mod rows;

pub(crate) use element::sealed;
pub(crate) use load::MOST_PARTS;

/// Consecutive tokens whose rows lie at one stride.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index of the first token.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
    /// Position of the first token in the text; the next ones follow it.
    pub position: usize,
}

/// The rows of one head in a run: row `i` is `data[i * stride..][..width]`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, E> {
    /// From the first row to the end of the last, or further.
    pub data: &'a [E],
    /// Elements from a row to the next.
    pub stride: usize,
    /// What each row is multiplied by, if it is: one for each token of the run.
    pub scales: Option<&'a [f32]>,
}

/// Keys and values of one sequence in one layer.
///
/// Indices and numbers that are out of range may panic; an implementation with runs that do not follow each other, or whose rows are too
/// short, gives wrong results or panics, and nothing worse.
pub trait KvSource: Sync {
    /// How a number is stored.
    type Element: KvElement;

    /// Heads of keys and values.
    fn n_heads(&self) -> usize;
    /// Width of a row of keys.
    fn key_dim(&self) -> usize;
    /// Width of a row of values.
    fn value_dim(&self) -> usize;
    /// Tokens.
    fn len(&self) -> usize;
    /// Whether there are no tokens.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Number of runs.
    fn n_runs(&self) -> usize;
    /// A run; together they hold all indices in order.
    fn run(&self, run: usize) -> Run;
    /// The run that holds the token of an index, in constant or logarithmic time.
    fn run_of(&self, index: usize) -> usize;
    /// The keys of a run.
    fn keys(&self, head: usize, run: usize) -> Rows<'_, Self::Element>;
    /// The values of a run.
    fn values(&self, head: usize, run: usize) -> Rows<'_, Self::Element>;
}
