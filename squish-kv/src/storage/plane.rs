//! The keys, or the values, of all blocks.

use squish_kernels::{
    Isa,
    kv::{KvElement, Rows, encode_rows_with},
};

use super::{
    buffer::{Buffer, LINE},
    input::Input,
    scaling::{Scales, Scaling},
};
use crate::{
    block::BlockId,
    error::{Error, Result},
};

/// Rows of one width, `[n_layers][n_blocks][n_heads][block_size]`.
#[derive(Clone)]
pub(crate) struct Plane<E> {
    isa: Isa,
    n_blocks: usize,
    n_heads: usize,
    block_size: usize,
    width: usize,
    /// Elements from a block to the next: whole cache lines.
    stride: usize,
    codes: Buffer<E>,
    scales: Scales,
}

/// Rows of one head in one block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) layer: usize,
    pub(crate) block: BlockId,
    pub(crate) head: usize,
    /// The first one.
    pub(crate) slot: usize,
}

impl<E: KvElement> Plane<E> {
    /// Zeros. `which` is 0 for keys and 1 for values.
    pub(crate) fn new(
        which: usize,
        [n_layers, n_blocks, n_heads, block_size, width]: [usize; 5],
        scaling: Scaling<'_>,
    ) -> Result<Self> {
        let what = ["keys", "values"][which];
        let product = |factors: &[usize]| {
            factors.iter().try_fold(1_usize, |product, &factor| product.checked_mul(factor))
        };
        let stride = product(&[n_heads, block_size, width])
            .and_then(|n| n.checked_next_multiple_of(LINE / size_of::<E>()));
        let len = stride.and_then(|stride| product(&[n_layers, n_blocks, stride]));
        let (Some(stride), Some(len)) = (stride, len) else {
            return Err(Error::StorageMemory { what, bytes: usize::MAX });
        };
        let codes = Buffer::zeroed(what, len)?;
        // No more than there are elements.
        let n_rows = n_layers * n_blocks * n_heads * block_size;
        let scales = Scales::new::<E>(scaling, which, n_rows, block_size)?;
        let isa = Isa::detect();
        Ok(Self { isa, n_blocks, n_heads, block_size, width, stride, codes, scales })
    }

    /// The first `n` rows from a place on.
    #[inline]
    pub(crate) fn rows(&self, place: Place, n: usize) -> Rows<'_, E> {
        debug_assert!(place.slot + n <= self.block_size, "{n} rows at {place:?}");
        Rows {
            data: &self.codes[self.element(place)..][..n * self.width],
            stride: self.width,
            scales: self.scales.of_rows(place, self.row(place), n),
        }
    }

    /// Writes all heads of `n` tokens of `input`, from the token `first` on, to slots that follow each other.
    #[inline]
    pub(crate) fn write(&mut self, place: Place, input: &Input<'_>, first: usize, n: usize) {
        debug_assert!(place.slot + n <= self.block_size, "{n} rows at {place:?}");
        // Tokens that lie apart are written one by one.
        let each = if input.is_whole() { n.max(1) } else { 1 };
        let (mut element, mut row) = (self.element(place), self.row(place));
        let Self { isa, n_heads, block_size, width, codes, scales, .. } = self;
        let codes: &mut [E] = codes;
        for head in 0..*n_heads {
            let mut token = 0;
            // No iterator of steps, which would divide.
            while token < n {
                let scales = scales.for_write(place, row + token, each);
                let codes = &mut codes[element + token * *width..][..each * *width];
                let rows = input.rows(first + token, head);
                encode_rows_with(*isa, rows, [each, *width], scales, codes);
                token += each;
            }
            element += *block_size * *width;
            row += *block_size;
        }
    }

    /// Copies `n` rows of every head, in one layer, to where they may overlap.
    pub(crate) fn copy(&mut self, from: Place, to: Place, n: usize) {
        for head in 0..self.n_heads {
            let (from, to) = (Place { head, ..from }, Place { head, ..to });
            let start = self.element(from);
            let target = self.element(to);
            self.codes.copy_within(start..start + n * self.width, target);
            self.scales.copy(self.row(from), self.row(to), n);
        }
    }

    /// Copies `n` rows of every head, from a place in another plane whose blocks may have another size.
    pub(crate) fn copy_from(&mut self, other: &Self, from: Place, place: Place, n: usize) {
        for head in 0..self.n_heads {
            let place = Place { head, ..place };
            let (to, row) = (self.element(place), self.row(place));
            let rows = other.rows(Place { head, ..from }, n);
            self.codes[to..to + rows.data.len()].copy_from_slice(rows.data);
            self.scales.copy_from(row, rows.scales);
        }
    }

    /// The bytes of a block in a layer: its codes, and the scales of their rows where each has its own.
    #[cfg(feature = "disk")]
    pub(crate) fn block_bytes(&self, layer: usize, block: BlockId) -> [&[u8]; 2] {
        let place = Place { layer, block, head: 0, slot: 0 };
        let n_rows = self.n_heads * self.block_size;
        let codes = &self.codes[self.element(place)..][..n_rows * self.width];
        [E::as_bytes(codes), bytemuck::cast_slice(self.scales.stored(self.row(place), n_rows))]
    }

    #[cfg(feature = "disk")]
    pub(crate) fn block_bytes_mut(&mut self, layer: usize, block: BlockId) -> [&mut [u8]; 2] {
        let place = Place { layer, block, head: 0, slot: 0 };
        let n_rows = self.n_heads * self.block_size;
        let (element, row) = (self.element(place), self.row(place));
        let codes = &mut self.codes[element..][..n_rows * self.width];
        [E::as_bytes_mut(codes), bytemuck::cast_slice_mut(self.scales.stored_mut(row, n_rows))]
    }

    #[inline]
    fn block(&self, place: Place) -> usize {
        debug_assert!((place.block as usize) < self.n_blocks, "{place:?} of {}", self.n_blocks);
        place.layer * self.n_blocks + place.block as usize
    }

    #[inline]
    fn element(&self, place: Place) -> usize {
        let in_block = (place.head * self.block_size + place.slot) * self.width;
        self.block(place) * self.stride + in_block
    }

    #[inline]
    fn row(&self, place: Place) -> usize {
        (self.block(place) * self.n_heads + place.head) * self.block_size + place.slot
    }
}
