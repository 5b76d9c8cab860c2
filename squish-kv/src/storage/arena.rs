//! Keys and values of all blocks in all layers: what every cache here is made of.
//!
//! Who owns an arena knows which slots are in use; the arena knows where they lie. What it is asked is checked for shape first
//! ([`Arena::check`]) and carried out afterwards without an error, so that a refused call has written nothing.

use std::fmt;

use ndarray::ArrayView3;
use squish_kernels::kv::{KvElement, Rows};

use super::{
    input::Input,
    plane::{Place, Plane},
    scaling::Scaling,
    shape::KvShape,
};
use crate::{
    block::{BlockCopy, BlockId, MAX_SLOTS, Slot, SlotMove},
    error::{Error, Result},
};

#[derive(Clone)]
pub(crate) struct Arena<E> {
    shape: KvShape,
    n_blocks: usize,
    block_size: usize,
    /// Whether the type has no code for numbers that are not finite, nor scales that say so.
    wants_finite: bool,
    /// Scales of keys and values in each layer, if they were given.
    scales: Option<Vec<[f32; 2]>>,
    keys: Plane<E>,
    values: Plane<E>,
}

impl<E> fmt::Debug for Arena<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("shape", &self.shape)
            .field("n_blocks", &self.n_blocks)
            .field("block_size", &self.block_size)
            .finish_non_exhaustive()
    }
}

/// Keys and values of new tokens that fit the arena.
#[derive(Clone, Copy)]
pub(crate) struct NewTokens<'a> {
    layer: usize,
    keys: Input<'a>,
    values: Input<'a>,
}

impl<E: KvElement> Arena<E> {
    /// Zeros, in `n_blocks` blocks of `block_size` tokens.
    pub(crate) fn new(
        shape: KvShape,
        n_blocks: usize,
        block_size: usize,
        scaling: Scaling<'_>,
    ) -> Result<Self> {
        shape.check()?;
        for (what, n) in [("n_blocks", n_blocks), ("block_size", block_size)] {
            if n == 0 {
                return Err(Error::Zero { what });
            }
        }
        if n_blocks.checked_mul(block_size).is_none_or(|n_slots| n_slots > MAX_SLOTS) {
            return Err(Error::TooManySlots { n_blocks, block_size, max: MAX_SLOTS });
        }
        scaling.check::<E>(shape.n_layers)?;
        let plane = |which: usize| {
            let dims = [shape.n_layers, n_blocks, shape.n_heads, block_size, shape.dims()[which]];
            Plane::new(which, dims, scaling)
        };
        let scales = match scaling {
            Scaling::Dynamic => None,
            Scaling::Static(scales) => Some(scales.to_vec()),
        };
        let wants_finite = scales.is_some() && !E::HAS_NAN;
        let (keys, values) = (plane(0)?, plane(1)?);
        Ok(Self { shape, n_blocks, block_size, wants_finite, scales, keys, values })
    }

    /// A copy of the first `n_slots` slots of each block, in blocks of another size.
    pub(crate) fn with_block_size(&self, block_size: usize, n_slots: usize) -> Result<Self> {
        let scaling = self.scales.as_deref().map_or(Scaling::Dynamic, Scaling::Static);
        let mut out = Self::new(self.shape, self.n_blocks, block_size, scaling)?;
        for block in 0..self.n_blocks as BlockId {
            let first = Slot { block, offset: 0 };
            out.copy_from(self, first, first, n_slots);
        }
        Ok(out)
    }

    /// Copies `n` tokens in all layers, from those at a slot of another arena of this shape and scaling to those at a slot of this one.
    pub(crate) fn copy_from(&mut self, other: &Self, from: Slot, to: Slot, n: usize) {
        for layer in 0..self.shape.n_layers {
            let [from, to] = [from, to].map(|slot| place(layer, 0, slot));
            self.keys.copy_from(&other.keys, from, to, n);
            self.values.copy_from(&other.values, from, to, n);
        }
    }

    pub(crate) const fn shape(&self) -> KvShape {
        self.shape
    }

    pub(crate) const fn n_blocks(&self) -> usize {
        self.n_blocks
    }

    pub(crate) const fn block_size(&self) -> usize {
        self.block_size
    }

    /// New tokens for `layer`: keys `[n_tokens, n_heads, key_dim]` and values `[n_tokens, n_heads, value_dim]`.
    ///
    /// Inlined, since a result that is returned through memory and moved at once costs a third of the append of a token.
    #[inline(always)]
    pub(crate) fn check<'a>(
        &self,
        layer: usize,
        n_tokens: usize,
        keys: &'a ArrayView3<'a, f32>,
        values: &'a ArrayView3<'a, f32>,
    ) -> Result<NewTokens<'a>> {
        self.shape.check_layer(layer)?;
        let KvShape { n_heads, key_dim, value_dim, .. } = self.shape;
        let keys = Input::new("keys", keys, [n_tokens, n_heads, key_dim])?;
        let values = Input::new("values", values, [n_tokens, n_heads, value_dim])?;
        if self.wants_finite {
            keys.check_finite(E::NAME)?;
            values.check_finite(E::NAME)?;
        }
        Ok(NewTokens { layer, keys, values })
    }

    /// Writes new tokens to as many slots: so many from each of these on, in one block.
    #[inline]
    pub(crate) fn write(
        &mut self,
        tokens: &NewTokens<'_>,
        runs: impl Iterator<Item = (Slot, usize)>,
    ) {
        let mut first = 0;
        for (slot, n) in runs {
            self.write_run(tokens, first, slot, n);
            first += n;
        }
    }

    /// Writes `n` of new tokens, from the one at `first` on, to slots from `slot` on, in one block.
    #[inline]
    pub(crate) fn write_run(&mut self, tokens: &NewTokens<'_>, first: usize, slot: Slot, n: usize) {
        let place = place(tokens.layer, 0, slot);
        self.keys.write(place, &tokens.keys, first, n);
        self.values.write(place, &tokens.values, first, n);
    }

    /// Copies the first slots of blocks to other blocks, in all layers.
    #[inline]
    pub(crate) fn copy_blocks(&mut self, copies: &[BlockCopy]) {
        for copy in copies {
            let [from, to] = [copy.from, copy.to].map(|block| Slot { block, offset: 0 });
            self.copy(from, to, copy.n_slots as usize);
        }
    }

    /// Copies tokens to other slots, one after the other, in all layers.
    pub(crate) fn move_tokens(&mut self, moves: impl Iterator<Item = SlotMove>) {
        for SlotMove { from, to } in moves {
            self.copy(from, to, 1);
        }
    }

    /// Bytes of a block in all layers: keys and values, each with their scales.
    #[cfg(feature = "disk")]
    pub(crate) fn block_bytes(&self, block: BlockId) -> impl Iterator<Item = &[u8]> {
        (0..self.shape.n_layers).flat_map(move |layer| {
            let (keys, values) =
                (self.keys.block_bytes(layer, block), self.values.block_bytes(layer, block));
            keys.into_iter().chain(values)
        })
    }

    /// Fills a block with what [`block_bytes`](Self::block_bytes) gave one behind the other.
    #[cfg(feature = "disk")]
    pub(crate) fn fill_block(&mut self, block: BlockId, mut bytes: &[u8]) {
        for layer in 0..self.shape.n_layers {
            let keys = self.keys.block_bytes_mut(layer, block);
            for place in keys.into_iter().chain(self.values.block_bytes_mut(layer, block)) {
                let (own, rest) = bytes.split_at(place.len());
                place.copy_from_slice(own);
                bytes = rest;
            }
        }
    }

    /// Scales of layers, if they were given.
    #[cfg(feature = "disk")]
    pub(crate) fn scales(&self) -> Option<&[[f32; 2]]> {
        self.scales.as_deref()
    }

    fn copy(&mut self, from: Slot, to: Slot, n: usize) {
        for layer in 0..self.shape.n_layers {
            let [from, to] = [from, to].map(|slot| place(layer, 0, slot));
            self.keys.copy(from, to, n);
            self.values.copy(from, to, n);
        }
    }

    /// The keys of `n` slots of a block that follow each other, the first of them at `slot`.
    #[inline]
    pub(crate) fn keys(&self, layer: usize, head: usize, slot: Slot, n: usize) -> Rows<'_, E> {
        self.keys.rows(place(layer, head, slot), n)
    }

    /// The values, as [`keys`](Self::keys).
    #[inline]
    pub(crate) fn values(&self, layer: usize, head: usize, slot: Slot, n: usize) -> Rows<'_, E> {
        self.values.rows(place(layer, head, slot), n)
    }
}

#[inline]
const fn place(layer: usize, head: usize, Slot { block, offset }: Slot) -> Place {
    Place { layer, block, head, slot: offset as usize }
}
