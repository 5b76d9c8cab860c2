//! The cache of one sequence in layers with a sliding window: a ring.
//!
//! Memory is that of `window` tokens, and of the largest step. A step's new tokens stay apart until it is committed: its first row still
//! sees tokens whose slots the last one needs, and a step that is dropped has overwritten nothing.

use ndarray::{Array3, ArrayView3, ArrayViewMut3};
use squish_kernels::kv::KvElement;

use super::{
    arena::Arena,
    gather::{gather, gather_into},
    ring::{Positions, Ring, StreamingSinks},
    ring_step::SlidingWindowStep,
    ring_view::RingView,
    scaling::Scaling,
    shape::KvShape,
};
use crate::error::{Error, Result};

/// The last tokens of one sequence in all layers, as many as a window has; with [sinks](Self::with_sinks) the first ones, too.
///
/// A token sees `window` tokens, itself included: attention with that window over these views has the same bits as over a
/// [`GqaCache`](crate::GqaCache) of the whole sequence.
///
/// # Examples
///
/// ```
/// use squish_kv::{KvShape, KvSource, Scaling, SlidingWindowKv, ndarray::Array3};
///
/// // 2 layers with 2 heads of 64, and a window of 128 tokens.
/// let mut cache = SlidingWindowKv::<f32>::new(KvShape::new(2, 2, 64), 128, Scaling::Dynamic)?;
/// let (k, v) = (Array3::ones([100, 2, 64]), Array3::ones([100, 2, 64]));
///
/// for n_old in [0, 100, 127, 127] {
///     let mut step = cache.begin(100)?;
///     for layer in 0..2 {
///         step.write(layer, k.view(), v.view())?;
///         assert_eq!(step.view(layer)?.len(), n_old + 100); // what the layer's attention reads
///     }
///     step.commit()?; // dropped instead, the step would leave nothing behind
/// }
/// assert_eq!((cache.len(), cache.view(0)?.len()), (400, 128));
/// assert_eq!(cache.view(0)?.run(0).position, 400 - 128);
/// # Ok::<(), squish_kv::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SlidingWindowKv<E> {
    pub(super) ring: Ring,
    /// One block with a slot for each token of the window.
    pub(super) arena: Arena<E>,
    /// One block with a slot for each token of the largest step.
    pub(super) staging: Arena<E>,
    /// Layers that the open step has written.
    pub(super) written: Vec<bool>,
}

impl<E: KvElement> SlidingWindowKv<E> {
    /// A cache of no tokens, with room for `window`, and for steps of one token.
    ///
    /// # Errors
    ///
    /// [`Error::Zero`], [`Error::TooManySlots`], [`Error::StorageMemory`]; [`Error::NotScaled`], [`Error::Scale`] or [`Error::Axis`] for scales
    /// that do not fit.
    pub fn new(shape: KvShape, window: usize, scaling: Scaling<'_>) -> Result<Self> {
        let none = StreamingSinks { n_sinks: 0, positions: Positions::Absolute };
        Self::with_sinks(shape, window, none, scaling)
    }

    /// The same, of whose `window` tokens the first [`n_sinks`](StreamingSinks::n_sinks) are the first of the sequence.
    ///
    /// # Errors
    ///
    /// [`Error::Sinks`] if they leave no room for others; and as [`new`](Self::new).
    pub fn with_sinks(
        shape: KvShape,
        window: usize,
        sinks: StreamingSinks,
        scaling: Scaling<'_>,
    ) -> Result<Self> {
        let ring = Ring::new(window, sinks)?;
        let arena = Arena::new(shape, 1, window, scaling)?;
        let staging = arena.with_block_size(1, 0)?;
        Ok(Self { ring, arena, staging, written: vec![false; shape.n_layers] })
    }

    /// Makes room for steps of `n_new` tokens, which the first step as large would do otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::TooManySlots`], [`Error::StorageMemory`].
    pub fn reserve(&mut self, n_new: usize) -> Result<()> {
        if n_new > self.staging.block_size() {
            self.staging = self.arena.with_block_size(n_new, 0)?;
        }
        Ok(())
    }

    /// Room for `n_new` tokens behind the others. Allocates if no step before had as many, and [`reserve`](Self::reserve) did not ask for
    /// them.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`] where positions end; and as [`reserve`](Self::reserve).
    pub fn begin(&mut self, n_new: usize) -> Result<SlidingWindowStep<'_, E>> {
        self.check_len(n_new)?;
        self.reserve(n_new)?;
        self.written.fill(false);
        Ok(SlidingWindowStep { cache: self, n_new })
    }

    /// Appends tokens to a cache of one layer: keys and values `[tokens, heads, width]`. Writes those that stay, to where they stay, and needs
    /// no room for a step.
    ///
    /// # Errors
    ///
    /// [`Error::Axis`], also of a cache with more layers; [`Error::Layout`], [`Error::NotFinite`], [`Error::TooLong`].
    pub fn append(&mut self, keys: ArrayView3<'_, f32>, values: ArrayView3<'_, f32>) -> Result<()> {
        Error::check_axis("cache", "layers", 1, self.shape().n_layers)?;
        let n_new = keys.dim().0;
        self.check_len(n_new)?;
        let tokens = self.arena.check(0, n_new, &keys, &values)?;
        for span in self.ring.landing(n_new).as_slice() {
            let first = span.run.position - self.ring.len();
            self.arena.write_run(&tokens, first, span.slot, span.run.len);
        }
        self.ring.advance(n_new);
        Ok(())
    }

    /// Cuts the sequence to its first `len` tokens, if what the next one sees is still here. Behind a full window that is a cut by one token,
    /// and one to no more than the sinks; before it is full, any.
    ///
    /// # Errors
    ///
    /// [`Error::Truncate`] if it is shorter, [`Error::LeftWindow`] if tokens that would be seen have left.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.ring.truncate(len)
    }

    /// Whether [`truncate`](Self::truncate) would do it, for who cuts several caches or none.
    ///
    /// # Errors
    ///
    /// As [`truncate`](Self::truncate).
    pub fn check_truncate(&self, len: usize) -> Result<()> {
        self.ring.check_truncate(len)
    }

    /// Cuts the sequence to nothing.
    pub fn clear(&mut self) {
        self.ring.clear();
    }

    /// All tokens of a layer that are here, without a copy: what the last one sees, unless the sequence was cut.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLayer`].
    pub fn view(&self, layer: usize) -> Result<RingView<'_, E>> {
        self.shape().check_layer(layer)?;
        let Self { ring, arena, staging, .. } = self;
        Ok(RingView::new([arena, staging], layer, *ring, ring.held(), 0))
    }

    /// What [`view`](Self::view) holds as `f32`: keys `[heads, tokens, key_dim]` and values `[heads, tokens, value_dim]`.
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

    /// Tokens of the sequence, those that have left included.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.ring.len()
    }

    /// Whether the sequence has no tokens.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that a token sees at most, itself and the sinks included.
    #[must_use]
    pub const fn window(&self) -> usize {
        self.ring.window()
    }

    /// The first tokens, which stay, and where tokens stand.
    #[must_use]
    pub const fn sinks(&self) -> StreamingSinks {
        self.ring.sinks()
    }

    /// What a token consists of.
    #[must_use]
    pub const fn shape(&self) -> KvShape {
        self.arena.shape()
    }

    fn check_len(&self, n_new: usize) -> Result<()> {
        let (len, max) = (self.len(), usize::MAX);
        if n_new <= max - len { Ok(()) } else { Err(Error::TooLong { len, n_new, max }) }
    }
}
