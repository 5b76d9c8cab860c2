//! New tokens of a ring, apart from it until they are committed.

use ndarray::ArrayView3;
use squish_kernels::kv::KvElement;

use super::{ring::at, ring_cache::SlidingWindowKv, ring_view::RingView};
use crate::{
    block::SlotMove,
    error::{Error, Result},
    step::check_path,
};

/// New tokens of a [`SlidingWindowKv`], written layer by layer. Dropping it leaves the cache as it was.
#[derive(Debug)]
#[must_use = "a step that is dropped is undone"]
pub struct SlidingWindowStep<'a, E> {
    pub(super) cache: &'a mut SlidingWindowKv<E>,
    pub(super) n_new: usize,
}

impl<E: KvElement> SlidingWindowStep<'_, E> {
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
        let SlidingWindowKv { staging, written, .. } = &mut *self.cache;
        let tokens = staging.check(layer, self.n_new, &keys, &values)?;
        staging.write_run(&tokens, 0, at(0), self.n_new);
        written[layer] = true;
        Ok(())
    }

    /// What the first new token sees in a layer, and all new tokens, without a copy.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLayer`], and [`Error::NotWritten`] before the layer's new tokens are.
    pub fn view(&self, layer: usize) -> Result<RingView<'_, E>> {
        let SlidingWindowKv { ring, arena, staging, .. } = &*self.cache;
        arena.shape().check_layer(layer)?;
        self.check_written(layer)?;
        Ok(RingView::new([arena, staging], layer, *ring, ring.seen(), self.n_new))
    }

    /// Keeps of the new tokens those at the indices `path`, which ascend, and brings them together in all layers. The tokens of a tree stand
    /// with parents before children, so a path from the root to a node ascends.
    ///
    /// # Errors
    ///
    /// [`Error::Path`].
    pub fn accept(&mut self, path: &[usize]) -> Result<()> {
        check_path(path, self.n_new)?;
        let moved = path.iter().enumerate().filter(|(to, from)| to != *from);
        let moves = moved.map(|(to, &from)| SlotMove { from: at(from), to: at(to) });
        self.cache.staging.move_tokens(moves);
        self.n_new = path.len();
        Ok(())
    }

    /// Makes the new tokens part of the sequence: the last ones take the slots of those that leave the window.
    ///
    /// # Errors
    ///
    /// [`Error::NotWritten`] if a layer was left out; then the step is undone.
    pub fn commit(self) -> Result<()> {
        (0..self.cache.written.len()).try_for_each(|layer| self.check_written(layer))?;
        let SlidingWindowKv { ring, arena, staging, .. } = self.cache;
        for span in ring.landing(self.n_new).as_slice() {
            let from = at(span.run.position - ring.len());
            arena.copy_from(staging, from, span.slot, span.run.len);
        }
        ring.advance(self.n_new);
        Ok(())
    }

    /// Tokens of the sequence with its new ones.
    #[must_use]
    pub fn len_with_new(&self) -> usize {
        self.cache.len() + self.n_new
    }

    fn check_written(&self, layer: usize) -> Result<()> {
        if self.cache.written[layer] || self.n_new == 0 {
            Ok(())
        } else {
            Err(Error::NotWritten { layer, index: 0 })
        }
    }
}
