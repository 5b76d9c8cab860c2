//! One forward pass over a batch, with its storage.
//!
//! ```text
//! begin     blocks for all new tokens of the batch, or an error; shared ones are copied before they are written
//! write     layer after layer, keys and values of a sequence's new tokens; view is what its attention reads
//! record    the ids of the new tokens, if they are to be found by others
//! accept    of a tree of draft tokens one path stays, moved together in all layers
//! commit    the new tokens belong to their sequences
//! drop      instead of that: nothing has happened
//! ```

use ndarray::ArrayView3;
use squish_kernels::kv::KvElement;

use super::{arena::Arena, view::KvView};
use crate::{
    error::{Error, Result},
    sequence::SequenceId,
    step::Step,
};

/// A batch of a [`PagedKvCache`](crate::PagedKvCache) whose blocks are reserved. Dropping it undoes that.
#[derive(Debug)]
#[must_use = "a step that is dropped is undone"]
pub struct PagedStep<'a, E> {
    pub(super) step: Step<'a>,
    pub(super) arena: &'a mut Arena<E>,
    /// `[sequences][n_layers]`
    pub(super) written: &'a mut [bool],
}

impl<E: KvElement> PagedStep<'_, E> {
    /// Writes the new tokens of a sequence in a layer, keys `[n_new, n_heads, key_dim]` and values `[n_new, n_heads, value_dim]`.
    ///
    /// # Errors
    ///
    /// [`Error::NotInStep`], [`Error::UnknownSequence`], [`Error::StaleSequence`]; [`Error::UnknownLayer`], [`Error::Axis`],
    /// [`Error::Layout`], [`Error::NotFinite`].
    pub fn write(
        &mut self,
        layer: usize,
        id: SequenceId,
        keys: ArrayView3<'_, f32>,
        values: ArrayView3<'_, f32>,
    ) -> Result<()> {
        let (index, slots) = (self.step.index(id)?, self.step.slots(id)?);
        let tokens = self.arena.check(layer, slots.len(), &keys, &values)?;
        self.arena.write(&tokens, slots.runs());
        self.written[index * self.arena.shape().n_layers + layer] = true;
        Ok(())
    }

    /// The tokens of a sequence in a layer, its new ones included, without a copy.
    ///
    /// # Errors
    ///
    /// [`Error::NotInStep`], [`Error::UnknownSequence`], [`Error::StaleSequence`], [`Error::UnknownLayer`]; [`Error::NotWritten`] before the
    /// layer's new tokens are.
    pub fn view(&self, layer: usize, id: SequenceId) -> Result<KvView<'_, E>> {
        self.arena.shape().check_layer(layer)?;
        let index = self.step.index(id)?;
        self.check_written(layer, index)?;
        let (table, len) = (self.step.table(id)?, self.step.len_with_new(id)?);
        Ok(KvView::new(self.arena, layer, table, self.step.n_null(id)?, len))
    }

    /// Says which tokens are new, as [`Step::record`].
    ///
    /// # Errors
    ///
    /// [`Error::TokenCount`]; and as [`Step::table`].
    pub fn record(&mut self, id: SequenceId, tokens: &[u32]) -> Result<()> {
        self.step.record(id, tokens)
    }

    /// Keeps of a sequence's new tokens those at the indices `path`, which ascend, and brings them together in all layers, as
    /// [`Step::accept`]. What is written afterwards is as many tokens as the path has.
    ///
    /// # Errors
    ///
    /// [`Error::Path`]; and as [`Step::table`].
    pub fn accept(&mut self, id: SequenceId, path: &[usize]) -> Result<()> {
        self.arena.move_tokens(self.step.accept(id, path)?);
        Ok(())
    }

    /// Makes the new tokens part of their sequences.
    ///
    /// # Errors
    ///
    /// [`Error::NotWritten`] if a layer of a sequence was left out; then the step is undone.
    pub fn commit(self) -> Result<()> {
        let n_layers = self.arena.shape().n_layers;
        for index in 0..self.written.len() / n_layers {
            (0..n_layers).try_for_each(|layer| self.check_written(layer, index))?;
        }
        self.step.commit();
        Ok(())
    }

    /// The accounting of the step: tables, lengths, slots.
    pub const fn step(&self) -> &Step<'_> {
        &self.step
    }

    fn check_written(&self, layer: usize, index: usize) -> Result<()> {
        let is_written = self.written[index * self.arena.shape().n_layers + layer];
        if is_written || self.step.n_new(index) == 0 {
            Ok(())
        } else {
            Err(Error::NotWritten { layer, index })
        }
    }
}
