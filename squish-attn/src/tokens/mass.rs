//! The scores that tokens are selected by, from queries and keys.

use ndarray::ArrayView3;
use squish_kernels::kv::KvSource;

use super::TokensWorkspace;
use crate::{Options, Result, Sequence};

impl TokensWorkspace {
    /// The attention that each token of a sequence receives, the mean over the rows and heads of `queries`, `[rows, heads, width]`, into
    /// `mass`, `[n_tokens]`. With all rows seeing something and no sinks, the sum of it is 1.
    ///
    /// `FastV`'s released code takes the last row of a prompt, `VisionZip` and `PruMerge` that of the class token; an encoder without one
    /// all rows with [`Mask::Full`](crate::Mask::Full). A matrix of rows and tokens is never made: memory is 256 bytes a token. Within 2e-5
    /// of the exact mass, relatively, for scores up to 30; a score that is NaN or positive infinity makes NaN of what the row adds to.
    ///
    /// # Errors
    ///
    /// As [`Workspace::attend_into`](crate::Workspace::attend_into), and [`AttnError::Length`](crate::AttnError::Length) of `mass`; then
    /// nothing is written.
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_attn::{KvArrays, Options, Sequence, TokensWorkspace, ndarray::Array3};
    ///
    /// // One head of keys and values, two tokens of two numbers; each sees itself and what is before.
    /// let keys = [0.0; 4];
    /// let source = KvArrays::new([&keys, &keys], 1, 2, [2, 2]).expect("as many numbers");
    /// let queries = Array3::ones((2, 1, 2));
    /// let mut mass = [0.0; 2];
    /// TokensWorkspace::new().attention_mass_into(
    ///     queries.view(),
    ///     Sequence::causal(&source, 2),
    ///     &Options::default(),
    ///     &mut mass,
    /// )?;
    /// assert_eq!(mass, [0.75, 0.25]);
    /// # Ok::<(), squish_attn::AttnError>(())
    /// ```
    pub fn attention_mass_into<S: KvSource>(
        &mut self,
        queries: ArrayView3<'_, f32>,
        sequence: Sequence<'_, S>,
        options: &Options<'_>,
        mass: &mut [f32],
    ) -> Result<()> {
        self.mass.run(self.isa, queries, sequence, options, mass)
    }
}
