//! What others do within a forward pass: adapters, sparsity, recording, rounding. A pass without them costs nothing.

use squish_quant::ndarray::{ArrayView2, ArrayViewMut2};

use crate::Projection;

/// A matrix of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    /// The layer, counted from 0; of the head, which [`Output::logits_with`](crate::Output::logits_with) asks about, the number of layers.
    pub layer: usize,
    /// Which of its matrices.
    pub projection: Projection,
}

/// Adds to the outputs of matrices: low-rank adapters.
pub trait Adapter {
    /// Adds to `y`, `[rows, outputs]`, what belongs to the inputs `x`, `[rows, inputs]`. `part_of` says of each row which part of the call
    /// it is of, so that sequences can have different adapters.
    ///
    /// So that rows stay independent of their company, each row of `y` may depend on its row of `x` alone.
    fn add(&self, site: Site, part_of: &[usize], x: ArrayView2<'_, f32>, y: ArrayViewMut2<'_, f32>);
}

/// Sees what matrices multiply: for calibration.
pub trait Recorder {
    /// `x`, `[rows, inputs]`, is what the matrix is about to multiply. Queries, keys and values have one input, and so have gate and up: it
    /// is shown once, as that of [`Projection::Q`] and of [`Projection::Gate`]. Inputs that a sparsity leaves out are still there.
    fn record(&mut self, site: Site, x: ArrayView2<'_, f32>);
}

/// Sees the residual stream: the features of drafters, and hidden states for embeddings.
pub trait Observer {
    /// `x`, `[rows, hidden_size]`, is the stream before layer `layer`, or after the last one, before the final norm, where `layer` is the number
    /// of layers.
    fn observe(&mut self, layer: usize, x: ArrayView2<'_, f32>);
}

/// Rounds the inputs of matrices, as a product with static scales would.
pub trait Rounding {
    /// Rounds `x`, `[rows, inputs]`, in place. Called for Q, O, Gate and Down, whose inputs are those of their neighbors, and not for the head:
    /// after a recorder, before a sparsity; adapters see what is rounded.
    ///
    /// So that rows stay independent of their company, each row may depend on what it was alone.
    fn round(&self, site: Site, x: ArrayViewMut2<'_, f32>);
}

/// Which inputs of matrices are left out.
pub trait Sparsity {
    /// Inputs of smaller magnitude than this count as zeros; 0 leaves none out. Asked for Q, O, Gate and Down, whose
    /// inputs are those of their neighbors.
    fn threshold(&self, site: Site) -> f32;
}

/// The hooks of a pass.
#[derive(Default)]
pub struct Hooks<'a> {
    /// Adds to the outputs of matrices.
    pub adapter: Option<&'a dyn Adapter>,
    /// Sees their inputs.
    pub recorder: Option<&'a mut dyn Recorder>,
    /// Sees the residual stream.
    pub observer: Option<&'a mut dyn Observer>,
    /// Rounds inputs.
    pub rounding: Option<&'a dyn Rounding>,
    /// Leaves inputs out.
    pub sparsity: Option<&'a dyn Sparsity>,
}

impl std::fmt::Debug for Hooks<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks")
            .field("adapter", &self.adapter.is_some())
            .field("recorder", &self.recorder.is_some())
            .field("observer", &self.observer.is_some())
            .field("rounding", &self.rounding.is_some())
            .field("sparsity", &self.sparsity.is_some())
            .finish()
    }
}
