//! What a token consists of.

use crate::error::{Error, Result};

/// The rows of a token in a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers that have keys and values of their own here.
    pub n_layers: usize,
    /// Heads of keys and values.
    pub n_heads: usize,
    /// Width of a row of keys.
    pub key_dim: usize,
    /// Width of a row of values.
    pub value_dim: usize,
}

impl KvShape {
    /// Heads that are as wide for keys as for values.
    #[must_use]
    pub const fn new(n_layers: usize, n_heads: usize, head_dim: usize) -> Self {
        Self { n_layers, n_heads, key_dim: head_dim, value_dim: head_dim }
    }

    /// Widths of keys and of values.
    pub(crate) const fn dims(self) -> [usize; 2] {
        [self.key_dim, self.value_dim]
    }

    pub(crate) fn check(self) -> Result<()> {
        let named = [
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("key_dim", self.key_dim),
            ("value_dim", self.value_dim),
        ];
        match named.into_iter().find(|(_, n)| *n == 0) {
            Some((what, _)) => Err(Error::Zero { what }),
            None => Ok(()),
        }
    }

    pub(crate) fn check_layer(self, layer: usize) -> Result<()> {
        let n_layers = self.n_layers;
        if layer < n_layers { Ok(()) } else { Err(Error::UnknownLayer { layer, n_layers }) }
    }
}
