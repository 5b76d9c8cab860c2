//! Blocks of keys and values, for who keeps the tables elsewhere.
//!
//! A scheduler may own the [`BlockTables`](crate::BlockTables) while a runner owns the arenas, on another thread or in another process: what
//! they exchange is lists of numbers.
//!
//! | of a [`Step`](crate::Step) | is done by |
//! |---|---|
//! | [`copies`](crate::Step::copies) | [`PagedArenas::copy_blocks`], before anything is written |
//! | [`slots`](crate::Step::slots) | [`PagedArenas::write`], for each layer |
//! | [`table`](crate::Step::table), [`len_with_new`](crate::Step::len_with_new) | [`PagedArenas::view`], what attention reads |
//! | [`accept`](crate::Step::accept) | [`PagedArenas::move_tokens`], once all layers are written |

use ndarray::ArrayView3;
use squish_kernels::kv::KvElement;

use super::{arena::Arena, scaling::Scaling, shape::KvShape, view::KvView};
use crate::{
    block::{BlockCopy, BlockId, NULL_BLOCK, Slot, SlotMove},
    error::{Error, Result},
};

/// Keys and values of all layers in blocks: a block id indexes every layer.
///
/// # Examples
///
/// ```
/// use squish_kv::{BlockTables, KvShape, KvSource, PagedArenas, Retention, Scaling, ndarray::Array3};
///
/// // One layer of 2 heads of 64, in 16 blocks of 4 tokens.
/// let mut arenas = PagedArenas::<f32>::new(KvShape::new(1, 2, 64), 16, 4, Scaling::Dynamic)?;
/// let mut tables = BlockTables::new(16, 4)?;
/// let id = tables.create(Retention::All)?;
///
/// let step = tables.begin(&[(id, 6)])?;
/// arenas.copy_blocks(step.copies())?;
/// let (k, v) = (Array3::ones([6, 2, 64]), Array3::zeros([6, 2, 64]));
/// arenas.write(0, step.slots(id)?, k.view(), v.view())?;
/// let view = arenas.view(0, step.table(id)?, step.len_with_new(id)?)?;
/// assert_eq!((view.len(), view.n_runs()), (6, 2));
/// step.commit();
/// # Ok::<(), squish_kv::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PagedArenas<E> {
    pub(crate) arena: Arena<E>,
}

impl<E: KvElement> PagedArenas<E> {
    /// `n_blocks` blocks of `block_size` tokens, as [`BlockTables::new`](crate::BlockTables::new) counts them. 32 tokens are a good size: a
    /// head's rows in a block then are some pages, and of a sequence little room is unused.
    ///
    /// # Errors
    ///
    /// [`Error::Zero`], [`Error::TooManySlots`], [`Error::StorageMemory`]; [`Error::NotScaled`], [`Error::Scale`] or [`Error::Axis`] for scales
    /// that do not fit.
    pub fn new(
        shape: KvShape,
        n_blocks: usize,
        block_size: usize,
        scaling: Scaling<'_>,
    ) -> Result<Self> {
        Ok(Self { arena: Arena::new(shape, n_blocks, block_size, scaling)? })
    }

    /// Makes the copies of a step, in all layers.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownBlock`], [`Error::UnknownSlot`].
    pub fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<()> {
        for &BlockCopy { from, to, n_slots } in copies {
            self.check_block(from)?;
            self.check_block(to)?;
            self.check_slots(n_slots as usize)?;
        }
        self.arena.copy_blocks(copies);
        Ok(())
    }

    /// Writes new tokens of a layer to their slots: keys `[tokens, n_heads, key_dim]` and values `[tokens, n_heads, value_dim]`.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLayer`], [`Error::Axis`], [`Error::Layout`], [`Error::NotFinite`], [`Error::UnknownBlock`], [`Error::UnknownSlot`].
    pub fn write(
        &mut self,
        layer: usize,
        slots: impl ExactSizeIterator<Item = Slot> + Clone,
        keys: ArrayView3<'_, f32>,
        values: ArrayView3<'_, f32>,
    ) -> Result<()> {
        let tokens = self.arena.check(layer, slots.len(), &keys, &values)?;
        slots.clone().try_for_each(|slot| self.check_slot(slot))?;
        self.arena.write(&tokens, runs(slots));
        Ok(())
    }

    /// Makes the moves of an accepted path, in their order and in all layers.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownBlock`], [`Error::UnknownSlot`].
    pub fn move_tokens(&mut self, moves: impl Iterator<Item = SlotMove> + Clone) -> Result<()> {
        for SlotMove { from, to } in moves.clone() {
            self.check_slot(from)?;
            self.check_slot(to)?;
        }
        self.arena.move_tokens(moves);
        Ok(())
    }

    /// The first `len` tokens of a table in a layer, without a copy. Full blocks at its start may be [`NULL_BLOCK`]: their tokens are
    /// left out.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLayer`], [`Error::UnknownBlock`], and [`Error::Axis`] of a table with fewer blocks.
    pub fn view<'a>(
        &'a self,
        layer: usize,
        table: &'a [BlockId],
        len: usize,
    ) -> Result<KvView<'a, E>> {
        self.shape().check_layer(layer)?;
        let n_blocks = len.div_ceil(self.block_size());
        let Some(here) = table.get(..n_blocks) else {
            let (what, axis, actual) = ("table", "blocks", table.len());
            return Err(Error::Axis { what, axis, expected: n_blocks, actual });
        };
        let n_full = len / self.block_size();
        let is_null = |block: &&BlockId| **block == NULL_BLOCK;
        let n_null = here[..n_full].iter().take_while(is_null).count();
        here[n_null..].iter().try_for_each(|&block| self.check_block(block))?;
        Ok(KvView::new(&self.arena, layer, table, n_null, len))
    }

    /// What a token consists of.
    #[must_use]
    pub const fn shape(&self) -> KvShape {
        self.arena.shape()
    }

    /// Blocks.
    #[must_use]
    pub const fn n_blocks(&self) -> usize {
        self.arena.n_blocks()
    }

    /// Tokens of a block.
    #[must_use]
    pub const fn block_size(&self) -> usize {
        self.arena.block_size()
    }

    fn check_slot(&self, slot: Slot) -> Result<()> {
        self.check_block(slot.block)?;
        self.check_slots(slot.offset as usize + 1)
    }

    fn check_slots(&self, end: usize) -> Result<()> {
        let block_size = self.block_size();
        if end <= block_size { Ok(()) } else { Err(Error::UnknownSlot { end, block_size }) }
    }

    fn check_block(&self, block: BlockId) -> Result<()> {
        let n_blocks = self.n_blocks();
        if (block as usize) < n_blocks {
            Ok(())
        } else {
            Err(Error::UnknownBlock { block, n_blocks })
        }
    }
}

/// Slots that follow each other in a block, as the first one and their number.
fn runs(slots: impl Iterator<Item = Slot>) -> impl Iterator<Item = (Slot, usize)> {
    let mut slots = slots.peekable();
    std::iter::from_fn(move || {
        let first = slots.next()?;
        let mut end = first;
        while let Some(next) =
            slots.next_if(|next| (next.block, next.offset) == (end.block, end.offset + 1))
        {
            end = next;
        }
        Some((first, (end.offset - first.offset) as usize + 1))
    })
}
