//! Tables and arenas as one cache.

use ndarray::{Array3, ArrayView3, ArrayViewMut3};
use squish_kernels::kv::KvElement;

use super::{
    gather::{gather, gather_into},
    paged::PagedArenas,
    paged_step::PagedStep,
    scaling::Scaling,
    shape::KvShape,
    view::KvView,
};
use crate::{
    error::{Error, Result},
    hash::PrefixKey,
    sequence::SequenceId,
    tables::{BlockTables, Retention},
};

/// Keys and values of many sequences, in blocks that they share as far as they agree: [`BlockTables`] and [`PagedArenas`].
///
/// # Examples
///
/// ```
/// use squish_kv::{KvShape, KvSource, PagedKvCache, Retention, Scaling, ndarray::Array3};
///
/// // One layer of 2 heads of 64, in 16 blocks of 4 tokens.
/// let mut cache = PagedKvCache::<f32>::new(KvShape::new(1, 2, 64), 16, 4, Scaling::Dynamic)?;
/// let id = cache.create(Retention::All)?;
/// let (k, v) = (Array3::ones([6, 2, 64]), Array3::zeros([6, 2, 64]));
/// cache.append(id, k.view(), v.view())?;
///
/// let fork = cache.fork(id)?;
/// cache.append(fork, k.view(), v.view())?;
/// assert_eq!((cache.view(0, id)?.len(), cache.view(0, fork)?.len()), (6, 12));
/// assert_eq!(cache.tables().pool().n_free(), 16 - 2 - 2); // the first block is shared
/// # Ok::<(), squish_kv::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PagedKvCache<E> {
    pub(crate) tables: BlockTables,
    pub(crate) arenas: PagedArenas<E>,
    /// What the open step has written, `[sequences][n_layers]`.
    pub(super) written: Vec<bool>,
}

impl<E: KvElement> PagedKvCache<E> {
    /// No sequences, and `n_blocks` free blocks of `block_size` tokens.
    ///
    /// # Errors
    ///
    /// As [`BlockTables::new`] and [`PagedArenas::new`].
    pub fn new(
        shape: KvShape,
        n_blocks: usize,
        block_size: usize,
        scaling: Scaling<'_>,
    ) -> Result<Self> {
        let arenas = PagedArenas::new(shape, n_blocks, block_size, scaling)?;
        Self::from_parts(BlockTables::new(n_blocks, block_size)?, arenas)
    }

    /// Tables and arenas that belong together: what the sequences hold is in the arenas.
    ///
    /// # Errors
    ///
    /// [`Error::Axis`] if their blocks differ in number or size.
    pub fn from_parts(tables: BlockTables, arenas: PagedArenas<E>) -> Result<Self> {
        let (n_blocks, block_size) = (tables.pool().n_blocks(), tables.block_size());
        Error::check_axis("arenas", "blocks", n_blocks, arenas.n_blocks())?;
        Error::check_axis("arenas", "slots of a block", block_size, arenas.block_size())?;
        Ok(Self { tables, arenas, written: Vec::new() })
    }

    /// The tables and the arenas, apart.
    #[must_use]
    pub fn into_parts(self) -> (BlockTables, PagedArenas<E>) {
        (self.tables, self.arenas)
    }

    /// Makes room for `n_sequences` of `seq_len` tokens each, as [`BlockTables::reserve`], so that no step allocates.
    pub fn reserve(&mut self, n_sequences: usize, seq_len: usize) {
        self.tables.reserve(n_sequences, seq_len);
        let n_flags = n_sequences.saturating_mul(self.shape().n_layers);
        self.written.reserve(n_flags.saturating_sub(self.written.len()));
    }

    /// A sequence without tokens, as [`BlockTables::create`].
    ///
    /// # Errors
    ///
    /// [`Error::TooManySequences`].
    pub fn create(&mut self, retention: Retention) -> Result<SequenceId> {
        self.tables.create(retention)
    }

    /// A sequence that starts with what is cached of the prompt `tokens` under `key`, and how many tokens that is, as
    /// [`BlockTables::create_with_prefix`].
    ///
    /// # Errors
    ///
    /// [`Error::TooManySequences`].
    pub fn create_with_prefix(
        &mut self,
        key: &PrefixKey,
        tokens: &[u32],
        retention: Retention,
    ) -> Result<(SequenceId, usize)> {
        self.tables.create_with_prefix(key, tokens, retention)
    }

    /// A sequence with the tokens of `id`, as [`BlockTables::fork`].
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSequence`], [`Error::StaleSequence`], [`Error::TooManySequences`].
    pub fn fork(&mut self, id: SequenceId) -> Result<SequenceId> {
        self.tables.fork(id)
    }

    /// Cuts a sequence to its first `len` tokens, as [`BlockTables::truncate`].
    ///
    /// # Errors
    ///
    /// [`Error::Truncate`], [`Error::LeftWindow`], [`Error::UnknownSequence`], [`Error::StaleSequence`].
    pub fn truncate(&mut self, id: SequenceId, len: usize) -> Result<()> {
        self.tables.truncate(id, len)
    }

    /// Ends a sequence and gives its blocks back, as [`BlockTables::free`].
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSequence`], [`Error::StaleSequence`].
    pub fn free(&mut self, id: SequenceId) -> Result<()> {
        self.tables.free(id)
    }

    /// Room for so many new tokens of each sequence: for all of them or for none.
    ///
    /// # Errors
    ///
    /// As [`BlockTables::begin`].
    pub fn begin(&mut self, batch: &[(SequenceId, usize)]) -> Result<PagedStep<'_, E>> {
        let Self { tables, arenas, written } = self;
        let step = tables.begin(batch)?;
        arenas.arena.copy_blocks(step.copies());
        written.clear();
        written.resize(batch.len() * arenas.shape().n_layers, false);
        Ok(PagedStep { step, arena: &mut arenas.arena, written })
    }

    /// Appends tokens to a sequence in a cache of one layer: keys and values `[tokens, heads, width]`.
    ///
    /// # Errors
    ///
    /// [`Error::Axis`], also of a cache with more layers; [`Error::Layout`], [`Error::NotFinite`]; and as [`begin`](Self::begin).
    pub fn append(
        &mut self,
        id: SequenceId,
        keys: ArrayView3<'_, f32>,
        values: ArrayView3<'_, f32>,
    ) -> Result<()> {
        Error::check_axis("cache", "layers", 1, self.shape().n_layers)?;
        let arena = &mut self.arenas.arena;
        let n_new = keys.dim().0;
        let tokens = arena.check(0, n_new, &keys, &values)?;
        let step = self.tables.begin(&[(id, n_new)])?;
        arena.copy_blocks(step.copies());
        arena.write(&tokens, step.slots(id)?.runs());
        step.commit();
        Ok(())
    }

    /// All tokens of a sequence in a layer, without a copy; of a sequence with a window, those in the blocks that it has.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLayer`], [`Error::UnknownSequence`], [`Error::StaleSequence`].
    pub fn view(&self, layer: usize, id: SequenceId) -> Result<KvView<'_, E>> {
        self.shape().check_layer(layer)?;
        let sequence = self.tables.sequences.get(id)?;
        let (n_null, len) = (sequence.n_null as usize, sequence.len as usize);
        Ok(KvView::new(&self.arenas.arena, layer, &sequence.table, n_null, len))
    }

    /// What [`view`](Self::view) holds as `f32`: keys `[heads, tokens, key_dim]` and values `[heads, tokens, value_dim]`.
    ///
    /// # Errors
    ///
    /// As [`view`](Self::view) and [`gather()`].
    pub fn gather(&self, layer: usize, id: SequenceId) -> Result<(Array3<f32>, Array3<f32>)> {
        gather(&self.view(layer, id)?)
    }

    /// As [`gather`](Self::gather), into `keys` and `values`. Allocates nothing.
    ///
    /// # Errors
    ///
    /// As [`view`](Self::view) and [`gather_into`].
    pub fn gather_into(
        &self,
        layer: usize,
        id: SequenceId,
        keys: ArrayViewMut3<'_, f32>,
        values: ArrayViewMut3<'_, f32>,
    ) -> Result<()> {
        gather_into(&self.view(layer, id)?, keys, values)
    }

    /// Tokens of a sequence.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSequence`], [`Error::StaleSequence`].
    pub fn len(&self, id: SequenceId) -> Result<usize> {
        self.tables.len(id)
    }

    /// The accounting: what is free, shared and cached.
    #[must_use]
    pub const fn tables(&self) -> &BlockTables {
        &self.tables
    }

    /// What a token consists of.
    #[must_use]
    pub const fn shape(&self) -> KvShape {
        self.arenas.shape()
    }
}
