//! Where the scales of rows come from.

use squish_kernels::kv::{KvElement, RowScales};

use super::plane::Place;
use crate::error::{Error, Result};

/// What rows of keys and values are divided by before they are rounded to a type of 8 bits. `f32`, `bf16` and `f16` are stored as they are.
#[derive(Clone, Copy, Debug, Default)]
pub enum Scaling<'a> {
    /// The largest magnitude of a row, head by head and token by token, becomes the largest code. A row of which a number is not finite is
    /// NaN as a whole.
    #[default]
    Dynamic,
    /// One scale of keys and one of values for each layer, `[n_layers][keys, values]`: `k_scale` and `v_scale` of checkpoints. What is
    /// larger than the largest code saturates. E4M3 and E5M2 keep numbers that are not finite (E4M3 as NaN); int8 cannot, and
    /// refuses them ([`Error::NotFinite`]).
    Static(&'a [[f32; 2]]),
}

impl Scaling<'_> {
    /// `Ok` if `E` can be scaled like that in so many layers.
    pub(crate) fn check<E: KvElement>(self, n_layers: usize) -> Result<()> {
        let Self::Static(scales) = self else { return Ok(()) };
        if E::LARGEST.is_none() {
            return Err(Error::NotScaled { element: E::NAME });
        }
        Error::check_axis("scales", "layers", n_layers, scales.len())?;
        for (layer, scales) in scales.iter().enumerate() {
            for (what, &scale) in ["keys", "values"].into_iter().zip(scales) {
                // So that both the scale and its reciprocal are numbers.
                if !(scale.is_normal() && scale > 0.0 && scale.recip().is_normal()) {
                    return Err(Error::Scale { what, layer, scale });
                }
            }
        }
        Ok(())
    }
}

/// The scales of a plane of rows.
#[derive(Clone)]
pub(crate) enum Scales {
    /// The type has none.
    None,
    /// One for each row, `[n_layers][n_blocks][n_heads][block_size]`.
    PerRow(Vec<f32>),
    /// The same for all rows of a layer, as often as a block has slots: `[n_layers][block_size]`.
    PerLayer { scales: Vec<f32>, block_size: usize },
}

impl Scales {
    /// `which` is 0 for keys and 1 for values.
    pub(crate) fn new<E: KvElement>(
        scaling: Scaling<'_>,
        which: usize,
        n_rows: usize,
        block_size: usize,
    ) -> Result<Self> {
        let room = |n: usize| {
            let (mut scales, bytes) = (Vec::new(), n.saturating_mul(size_of::<f32>()));
            let reserved = scales.try_reserve_exact(n);
            reserved.map_err(|_| Error::StorageMemory { what: "scales", bytes })?;
            Ok(scales)
        };
        match scaling {
            _ if E::LARGEST.is_none() => Ok(Self::None),
            Scaling::Dynamic => {
                let mut scales = room(n_rows)?;
                // Rows that were not written are zeros.
                scales.resize(n_rows, 1.0);
                Ok(Self::PerRow(scales))
            }
            Scaling::Static(layers) => {
                let mut scales = room(layers.len().saturating_mul(block_size))?;
                for layer in layers {
                    scales.extend(std::iter::repeat_n(layer[which], block_size));
                }
                Ok(Self::PerLayer { scales, block_size })
            }
        }
    }

    /// Those of `n` rows of a head in a block; `row` is the first of them among all rows.
    #[inline]
    pub(crate) fn of_rows(&self, place: Place, row: usize, n: usize) -> Option<&[f32]> {
        match self {
            Self::None => None,
            Self::PerRow(scales) => Some(&scales[row..row + n]),
            Self::PerLayer { scales, block_size } => {
                Some(&scales[place.layer * block_size + place.slot..][..n])
            }
        }
    }

    /// Those of `n` rows that stand beside the rows: none if the type has none or a layer one.
    #[cfg(feature = "disk")]
    pub(crate) fn stored(&self, row: usize, n: usize) -> &[f32] {
        if let Self::PerRow(scales) = self { &scales[row..row + n] } else { &[] }
    }

    #[cfg(feature = "disk")]
    pub(crate) fn stored_mut(&mut self, row: usize, n: usize) -> &mut [f32] {
        if let Self::PerRow(scales) = self { &mut scales[row..row + n] } else { &mut [] }
    }

    /// The same, for rows that are about to be written.
    #[inline]
    pub(crate) fn for_write(&mut self, place: Place, row: usize, n: usize) -> RowScales<'_> {
        match self {
            Self::None => RowScales::None,
            Self::PerRow(scales) => RowScales::PerRow(&mut scales[row..row + n]),
            Self::PerLayer { scales, block_size } => {
                RowScales::Given(scales[place.layer * *block_size])
            }
        }
    }

    /// Copies those of `n` rows.
    pub(crate) fn copy(&mut self, from: usize, to: usize, n: usize) {
        if let Self::PerRow(scales) = self {
            scales.copy_within(from..from + n, to);
        }
    }

    /// Stores those of rows from elsewhere, from `row` on.
    pub(crate) fn copy_from(&mut self, row: usize, from: Option<&[f32]>) {
        if let (Self::PerRow(scales), Some(from)) = (self, from) {
            scales[row..row + from.len()].copy_from_slice(from);
        }
    }
}
