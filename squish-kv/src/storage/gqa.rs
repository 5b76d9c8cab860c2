//! The cache of one sequence, in one piece.
//!
//! A head has room for `capacity` tokens from the start, and attention reads it as a plain array. Memory grows when [`GqaCache::reserve`]
//! says so and at no other time: a step allocates nothing, and one that does not fit is refused.

use ndarray::{Array3, ArrayView3, ArrayViewMut3};
use squish_kernels::kv::KvElement;

use super::{
    arena::Arena,
    gather::{gather, gather_into},
    scaling::Scaling,
    shape::KvShape,
    view::KvView,
};
use crate::{
    block::{BlockId, Slot, SlotMove},
    error::{Error, Result},
    step::check_path,
};

/// The one block.
const TABLE: &[BlockId] = &[0];

/// Contiguous keys and values of one sequence in all layers, `[layer][head][capacity][width]`, for any number of query heads that share them:
/// what is called a contiguous or static cache elsewhere.
///
/// # Examples
///
/// ```
/// use squish_kv::{GqaCache, KvShape, KvSource, Scaling, ndarray::Array3};
///
/// // 2 layers with 2 heads of 64, and room for 100 tokens.
/// let mut cache = GqaCache::<f32>::new(KvShape::new(2, 2, 64), 100, Scaling::Dynamic)?;
/// let (k, v) = (Array3::ones([3, 2, 64]), Array3::ones([3, 2, 64]));
///
/// let mut step = cache.begin(3)?;
/// for layer in 0..2 {
///     step.write(layer, k.view(), v.view())?;
///     assert_eq!(step.view(layer)?.len(), 3); // what the layer's attention reads
/// }
/// step.commit()?; // dropped instead, the step would leave nothing behind
/// assert_eq!(cache.len(), 3);
/// # Ok::<(), squish_kv::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GqaCache<E> {
    arena: Arena<E>,
    len: usize,
    /// Layers that the open step has written.
    written: Vec<bool>,
}

/// New tokens of a [`GqaCache`], written layer by layer. Dropping it leaves the cache as it was.
#[derive(Debug)]
#[must_use = "a step that is dropped is undone"]
pub struct GqaStep<'a, E> {
    cache: &'a mut GqaCache<E>,
    n_new: usize,
}

impl<E: KvElement> GqaCache<E> {
    /// A cache of no tokens, with room for `capacity`.
    ///
    /// # Errors
    ///
    /// [`Error::Zero`], [`Error::TooManySlots`], [`Error::StorageMemory`]; [`Error::NotScaled`], [`Error::Scale`] or [`Error::Axis`] for scales
    /// that do not fit.
    pub fn new(shape: KvShape, capacity: usize, scaling: Scaling<'_>) -> Result<Self> {
        if capacity == 0 {
            return Err(Error::Zero { what: "capacity" });
        }
        let arena = Arena::new(shape, 1, capacity, scaling)?;
        Ok(Self { arena, len: 0, written: vec![false; shape.n_layers] })
    }

    /// Makes room for `capacity` tokens in all, if there is less: moves all tokens.
    ///
    /// # Errors
    ///
    /// [`Error::TooManySlots`], [`Error::StorageMemory`].
    pub fn reserve(&mut self, capacity: usize) -> Result<()> {
        if capacity > self.capacity() {
            self.arena = self.arena.with_block_size(capacity, self.len)?;
        }
        Ok(())
    }

    /// Room for `n_new` tokens behind the others.
    ///
    /// # Errors
    ///
    /// [`Error::Full`].
    pub fn begin(&mut self, n_new: usize) -> Result<GqaStep<'_, E>> {
        let (len, capacity) = (self.len, self.capacity());
        if n_new > capacity - len {
            return Err(Error::Full { len, n_new, capacity });
        }
        self.written.fill(false);
        Ok(GqaStep { cache: self, n_new })
    }

    /// Appends tokens to a cache of one layer: keys and values `[tokens, heads, width]`.
    ///
    /// # Errors
    ///
    /// [`Error::Axis`], also of a cache with more layers; [`Error::Layout`], [`Error::NotFinite`], [`Error::Full`].
    pub fn append(&mut self, keys: ArrayView3<'_, f32>, values: ArrayView3<'_, f32>) -> Result<()> {
        Error::check_axis("cache", "layers", 1, self.shape().n_layers)?;
        let mut step = self.begin(keys.dim().0)?;
        step.write_rows(0, &keys, &values)?;
        step.commit()
    }

    /// Cuts the sequence to its first `len` tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Truncate`] if it is shorter.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len > self.len {
            return Err(Error::Truncate { len: self.len, to: len });
        }
        self.len = len;
        Ok(())
    }

    /// Cuts the sequence to nothing.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// All tokens in a layer, without a copy.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLayer`].
    pub fn view(&self, layer: usize) -> Result<KvView<'_, E>> {
        self.view_of(layer, self.len)
    }

    /// All tokens in a layer as `f32`: keys `[heads, tokens, key_dim]` and values `[heads, tokens, value_dim]`.
    ///
    /// # Errors
    ///
    /// As [`view`](Self::view) and [`gather()`].
    pub fn gather(&self, layer: usize) -> Result<(Array3<f32>, Array3<f32>)> {
        gather(&self.view(layer)?)
    }

    /// As [`gather`](Self::gather), into `keys` and `values`. Allocates nothing.
    ///
    /// # Errors
    ///
    /// As [`view`](Self::view) and [`gather_into`].
    pub fn gather_into(
        &self,
        layer: usize,
        keys: ArrayViewMut3<'_, f32>,
        values: ArrayViewMut3<'_, f32>,
    ) -> Result<()> {
        gather_into(&self.view(layer)?, keys, values)
    }

    /// Tokens.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no tokens.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that there is room for, in all.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.arena.block_size()
    }

    /// What a token consists of.
    #[must_use]
    pub const fn shape(&self) -> KvShape {
        self.arena.shape()
    }

    fn view_of(&self, layer: usize, len: usize) -> Result<KvView<'_, E>> {
        self.shape().check_layer(layer)?;
        Ok(KvView::new(&self.arena, layer, TABLE, 0, len))
    }
}

impl<E: KvElement> GqaStep<'_, E> {
    /// Writes the new tokens of a layer, keys `[n_new, n_heads, key_dim]` and values `[n_new, n_heads, value_dim]`.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLayer`], [`Error::Axis`], [`Error::Layout`], [`Error::NotFinite`].
    pub fn write(
        &mut self,
        layer: usize,
        keys: ArrayView3<'_, f32>,
        values: ArrayView3<'_, f32>,
    ) -> Result<()> {
        self.write_rows(layer, &keys, &values)
    }

    /// All tokens in a layer, the new ones included, without a copy.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLayer`], and [`Error::NotWritten`] before the layer's new tokens are.
    pub fn view(&self, layer: usize) -> Result<KvView<'_, E>> {
        let view = self.cache.view_of(layer, self.cache.len + self.n_new)?;
        self.check_written(layer)?;
        Ok(view)
    }

    /// Keeps of the new tokens those at the indices `path`, which ascend, and brings them together in all layers. The tokens of a tree stand
    /// with parents before children, so a path from the root to a node ascends.
    ///
    /// # Errors
    ///
    /// [`Error::Path`].
    pub fn accept(&mut self, path: &[usize]) -> Result<()> {
        check_path(path, self.n_new)?;
        let GqaCache { arena, len, .. } = &mut *self.cache;
        let moved = path.iter().enumerate().filter(|(to, from)| to != *from);
        arena.move_tokens(
            moved.map(|(to, from)| SlotMove { from: slot(*len + from), to: slot(*len + to) }),
        );
        self.n_new = path.len();
        Ok(())
    }

    /// Makes the new tokens part of the sequence.
    ///
    /// # Errors
    ///
    /// [`Error::NotWritten`] if a layer was left out; then the step is undone.
    pub fn commit(self) -> Result<()> {
        (0..self.cache.written.len()).try_for_each(|layer| self.check_written(layer))?;
        self.cache.len += self.n_new;
        Ok(())
    }

    /// Tokens of the sequence with its new ones.
    #[must_use]
    pub fn len_with_new(&self) -> usize {
        self.cache.len + self.n_new
    }

    #[inline]
    fn write_rows(
        &mut self,
        layer: usize,
        keys: &ArrayView3<'_, f32>,
        values: &ArrayView3<'_, f32>,
    ) -> Result<()> {
        let GqaCache { arena, len, written } = &mut *self.cache;
        let tokens = arena.check(layer, self.n_new, keys, values)?;
        arena.write(&tokens, std::iter::once((slot(*len), self.n_new)));
        written[layer] = true;
        Ok(())
    }

    fn check_written(&self, layer: usize) -> Result<()> {
        if self.cache.written[layer] || self.n_new == 0 {
            Ok(())
        } else {
            Err(Error::NotWritten { layer, index: 0 })
        }
    }
}

/// A capacity is no larger than what slots are counted with.
const fn slot(position: usize) -> Slot {
    Slot { block: 0, offset: position as u32 }
}
