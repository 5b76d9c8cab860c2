//! Rotations that spread outliers over all channels, for formats of few bits: the Walsh-Hadamard transform in place.
//!
//! ```text
//! W x = (W H) (H x)        H symmetric and orthonormal, its own inverse
//! ```
//!
//! Rotating the rows of a weight `[outputs, inputs]` and the input leaves the product as it is, up to rounding, while an element that stands out
//! becomes one `√n`-th of itself everywhere. A multiplication with H of the inputs can often be folded into the matrix before.
//!
//! | length of rows | blocks |
//! |---|---|
//! | 2^k, 12 · 2^k, 20 · 2^k, 28 · 2^k: 4096, 3072, 5120, 14336 | the row |
//! | others: 11008 = 43 · 256 | of the largest such length that divides it ([`hadamard_block`]): 256 |
//!
//! A rotation in blocks spreads an outlier over its block alone. The transforms themselves: [`squish_kernels::hadamard`].
//!
//! Source: S. Ashkboos et al., `QuaRot`, arXiv 2404.00456; the random signs that it multiplies with are left to the caller.

pub use squish_kernels::hadamard::hadamard_block;

use crate::error::{Error, Result};

/// Transforms each block of `n` elements of `x`, in place; the same call undoes it. Allocates nothing.
///
/// # Errors
///
/// [`Error::Hadamard`] if there is no transform of `n` elements, [`Error::BlockAlign`] if `x` is no whole number of blocks. Then nothing is
/// written.
///
/// # Examples
///
/// ```
/// use squish_quant::{hadamard_block, hadamard_in_place};
///
/// let mut x = vec![0.0; 11008];
/// x[5] = 16.0;
/// hadamard_in_place(&mut x, hadamard_block(11008))?;
/// assert!(x[..256].iter().all(|x| x.abs() == 1.0) && x[256] == 0.0);
/// # Ok::<(), squish_quant::Error>(())
/// ```
pub fn hadamard_in_place(x: &mut [f32], n: usize) -> Result<()> {
    let block = hadamard_block(n);
    if block != n {
        return Err(Error::Hadamard { n, block });
    }
    if !x.len().is_multiple_of(n) {
        return Err(Error::BlockAlign { len: x.len(), block: n });
    }
    squish_kernels::hadamard_in_place(x, n);
    Ok(())
}
