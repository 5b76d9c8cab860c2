//! Keys and values of prompts, found by their tokens: for who computes in a cache elsewhere and wants to begin where an earlier prompt ended.
//!
//! ```text
//! put    whole blocks are copied in, and left to be found; the last tokens, less than a block, are not kept
//! get    the longest prefix of whole blocks, held until it is released
//! ```
//!
//! It is a [`PagedKvCache`] whose sequences end as soon as they are written: their blocks are free, and stay hits until they are needed for
//! others, least recently used first and tails before what they follow. A server that generates in the paged cache itself needs no pool:
//! [`PagedKvCache::create_with_prefix`] finds the same blocks without a copy.

use ndarray::{ArrayView4, ArrayViewMut3, Axis, Slice};
use squish_kernels::kv::KvElement;

use super::{
    gather::gather_into, paged_cache::PagedKvCache, scaling::Scaling, shape::KvShape, view::KvView,
};
use crate::{
    error::{Error, Result},
    hash::PrefixKey,
    sequence::SequenceId,
    tables::{BlockTables, Retention},
};

/// Prompts with their keys and values, in blocks that they share as far as they agree.
///
/// # Examples
///
/// ```
/// use squish_kv::{KvShape, KvSource, PrefixPool, Salt, Scaling, Scope, ndarray::Array4};
///
/// // 2 layers with 2 heads of 64; 100 blocks of 16 tokens.
/// let mut pool = PrefixPool::<f32>::new(KvShape::new(2, 2, 64), 100, 16, Scaling::Dynamic)?;
/// let key = Scope { model: b"llama-3-8b", adapter: None, layer_group: 0, salt: Salt::Shared }.key();
///
/// // Keys and values of a prompt of 40 tokens: [layers, tokens, heads, width].
/// let prompt: Vec<u32> = (0..40).collect();
/// let (k, v) = (Array4::ones([2, 40, 2, 64]), Array4::zeros([2, 40, 2, 64]));
/// assert_eq!(pool.put(&key, &prompt, k.view(), v.view())?, 32);
///
/// // A longer one begins with them.
/// let longer: Vec<u32> = (0..100).collect();
/// let hit = pool.get(&key, &longer)?.expect("two blocks are there");
/// assert_eq!((hit.n_tokens(), pool.view(&hit, 1)?.len()), (32, 32));
/// pool.release(hit)?;
/// # Ok::<(), squish_kv::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PrefixPool<E> {
    cache: PagedKvCache<E>,
}

/// A prefix that was found. Its blocks are held until it is [released](PrefixPool::release); if it is dropped instead, as long as the pool lives.
#[derive(Debug)]
#[must_use = "its blocks are held until it is released"]
pub struct PrefixHit {
    id: SequenceId,
    n_tokens: usize,
}

impl PrefixHit {
    /// How many tokens of the prompt were found.
    #[must_use]
    pub const fn n_tokens(&self) -> usize {
        self.n_tokens
    }
}

impl<E: KvElement> PrefixPool<E> {
    /// No prompts, and room for `n_blocks` blocks of `block_size` tokens.
    ///
    /// # Errors
    ///
    /// As [`PagedKvCache::new`].
    pub fn new(
        shape: KvShape,
        n_blocks: usize,
        block_size: usize,
        scaling: Scaling<'_>,
    ) -> Result<Self> {
        Ok(Self { cache: PagedKvCache::new(shape, n_blocks, block_size, scaling)? })
    }

    /// Makes room for `n_hits` at a time of `seq_len` tokens each, so that [`get`](Self::get) allocates nothing.
    pub fn reserve(&mut self, n_hits: usize, seq_len: usize) {
        self.cache.reserve(n_hits.saturating_add(1), seq_len);
    }

    /// Stores the whole blocks of the prompt `tokens` that are not there yet, and returns how many tokens are there now.
    ///
    /// Keys are `[n_layers, tokens, n_heads, key_dim]` and values `[n_layers, tokens, n_heads, value_dim]`, the rows of a token in one piece.
    /// They are copied. If there is no room, what was not used for longest goes.
    ///
    /// # Errors
    ///
    /// [`Error::Axis`], [`Error::Layout`], [`Error::NotFinite`]; [`Error::PoolExhausted`] if hits hold too many blocks;
    /// [`Error::TooManySequences`]. Nothing is stored then.
    pub fn put(
        &mut self,
        key: &PrefixKey,
        tokens: &[u32],
        keys: ArrayView4<'_, f32>,
        values: ArrayView4<'_, f32>,
    ) -> Result<usize> {
        let n_layers = self.cache.shape().n_layers;
        Error::check_axis("keys", "layers", n_layers, keys.dim().0)?;
        Error::check_axis("values", "layers", n_layers, values.dim().0)?;
        let layer = |layer: usize| [&keys, &values].map(|x| x.index_axis(Axis(0), layer));
        for idx in 0..n_layers {
            let [keys, values] = &layer(idx);
            self.cache.arenas.arena.check(idx, tokens.len(), keys, values)?;
        }
        let block_size = self.cache.tables.block_size();
        let n_whole = tokens.len() / block_size * block_size;
        let (id, n_there) =
            self.cache.tables.create_behind(key, tokens, n_whole, Retention::All)?;
        let written = self.write(id, n_there, &tokens[..n_whole], layer);
        self.cache.free(id)?;
        written.map(|()| n_whole)
    }

    /// Writes the tokens from `first` on to the sequence that has those before.
    fn write<'a>(
        &mut self,
        id: SequenceId,
        first: usize,
        tokens: &[u32],
        layer: impl Fn(usize) -> [ndarray::ArrayView3<'a, f32>; 2],
    ) -> Result<()> {
        if first == tokens.len() {
            return Ok(());
        }
        let n_layers = self.cache.shape().n_layers;
        let mut step = self.cache.begin(&[(id, tokens.len() - first)])?;
        for idx in 0..n_layers {
            let new = Slice::from(first..tokens.len());
            let [keys, values] = &layer(idx);
            let [keys, values] = [keys, values].map(|x| x.slice_axis(Axis(0), new));
            step.write(idx, id, keys, values)?;
        }
        step.record(id, &tokens[first..])?;
        step.commit()
    }

    /// The longest prefix of the prompt `tokens` that is there, of whole blocks; `None` if not even one is.
    ///
    /// It may be the whole prompt: where the last token has to be computed anew, for its logits, leave it out of `tokens`.
    ///
    /// # Errors
    ///
    /// [`Error::TooManySequences`].
    pub fn get(&mut self, key: &PrefixKey, tokens: &[u32]) -> Result<Option<PrefixHit>> {
        let tables = &mut self.cache.tables;
        let (id, n_tokens) = tables.create_behind(key, tokens, tokens.len(), Retention::All)?;
        if n_tokens == 0 {
            tables.free(id)?;
            return Ok(None);
        }
        Ok(Some(PrefixHit { id, n_tokens }))
    }

    /// The tokens of a hit in a layer, without a copy.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLayer`]; [`Error::UnknownSequence`] or [`Error::StaleSequence`] of a hit of another pool.
    pub fn view(&self, hit: &PrefixHit, layer: usize) -> Result<KvView<'_, E>> {
        self.cache.view(layer, hit.id)
    }

    /// What [`view`](Self::view) holds as `f32`: keys `[heads, tokens, key_dim]` and values `[heads, tokens, value_dim]`. Allocates nothing.
    ///
    /// # Errors
    ///
    /// As [`view`](Self::view) and [`gather_into`].
    pub fn gather_into(
        &self,
        hit: &PrefixHit,
        layer: usize,
        keys: ArrayViewMut3<'_, f32>,
        values: ArrayViewMut3<'_, f32>,
    ) -> Result<()> {
        gather_into(&self.view(hit, layer)?, keys, values)
    }

    /// Lets go of a hit's blocks. They can still be found.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSequence`] or [`Error::StaleSequence`] of a hit of another pool.
    pub fn release(&mut self, hit: PrefixHit) -> Result<()> {
        self.cache.free(hit.id)
    }

    /// The accounting: what is free, held and cached.
    #[must_use]
    pub const fn tables(&self) -> &BlockTables {
        self.cache.tables()
    }
}
