//! Splitting the rows of large matrices over the threads of the current rayon pool.
//!
//! Every row's result is computed as it would be alone, so that no result depends on where the rows are split.

use crate::error::Result;

/// Bytes below which a band of rows is not split further: some ten times what waking a thread costs.
#[cfg(feature = "rayon")]
const BAND_BYTES: usize = 1 << 19;

/// Work on consecutive rows.
#[cfg_attr(not(feature = "rayon"), expect(dead_code, reason = "without threads nothing is split"))]
pub(crate) trait Rows: Send + Sized {
    /// Number of rows.
    fn n_rows(&self) -> usize;

    /// The first `n` rows, and the others.
    fn split_at_row(self, n: usize) -> (Self, Self);
}

/// Runs `body` on all rows, in bands of whole multiples of `unit` rows where `bytes` read and written in all pay for
/// threads. Of several errors the one of the earliest rows is returned.
#[cfg(feature = "rayon")]
pub(crate) fn for_bands<R: Rows>(
    rows: R,
    unit: usize,
    bytes: usize,
    body: &(impl Fn(R) -> Result<()> + Sync),
) -> Result<()> {
    let n_units = rows.n_rows().div_ceil(unit);
    if bytes < 2 * BAND_BYTES || n_units < 2 || rayon_core::current_num_threads() < 2 {
        return body(rows);
    }
    let (first, second) = rows.split_at_row(n_units / 2 * unit);
    let (a, b) = rayon_core::join(
        || for_bands(first, unit, bytes / 2, body),
        || for_bands(second, unit, bytes - bytes / 2, body),
    );
    a.and(b)
}

/// Runs `body` on all rows.
#[cfg(not(feature = "rayon"))]
pub(crate) fn for_bands<R: Rows>(
    rows: R,
    _unit: usize,
    _bytes: usize,
    body: &impl Fn(R) -> Result<()>,
) -> Result<()> {
    body(rows)
}
