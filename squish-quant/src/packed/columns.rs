//! Weights input by input: [`ColumnMatrix`].

use squish_kernels::{
    Isa, memory,
    panel::{
        COLUMN_BLOCK, ColumnLayout, Line, LiveColumns, PanelScale, PanelSource, columns_into,
        pack_columns,
    },
};

use super::{
    Activation, Weights, code_name,
    product::{MOST_TASKS, TASK_BYTES, check_live},
    source::Source,
    workspace::Workspace,
};
use crate::{
    error::{Error, Result},
    parallel::{Rows, for_bands},
};

/// Weights `[outputs, inputs]` that stand input by input, for products with one row of inputs of which many are left out.
///
/// [`PackedMatrix::gemv_sparse_into`](super::PackedMatrix::gemv_sparse_into) reads pieces of a few lines, and what lies between them is fetched
/// along. Here the weights of an input are one piece, so that time is in proportion to the inputs that are left. It multiplies no
/// more than one row: who multiplies several, too, has both.
///
/// Of f32, bf16 and FP8 weights, with scales by output or one for all. Results have the bits of the packed product.
///
/// # Examples
///
/// ```
/// use squish_quant::{
///     Activation, ColumnMatrix, Fp8Quantizer, PackedMatrix, SparseFfnGate, Workspace, ndarray::Array2,
/// };
///
/// let weight = Array2::from_shape_fn([96, 64], |(row, col)| ((row * 64 + col) as f32).sin());
/// let weight = Fp8Quantizer::default().encode(weight.view())?;
/// let columns = ColumnMatrix::pack(&weight, Activation::Bf16)?;
///
/// let mut x: Vec<f32> = (0..64).map(|i| (i as f32).cos()).collect();
/// let (mut indices, mut values) = ([0; 64], [0.0; 64]);
/// let gate = SparseFfnGate::new(0.5)?;
/// let n = gate.select_into(&x, &mut indices, &mut values)?;
/// let (mut workspace, mut y) = (Workspace::default(), [0.0; 96]);
/// columns.gemv_sparse_into(&mut workspace, &indices[..n], &values[..n], &mut y)?;
///
/// // As with zeros at the inputs that are left out.
/// gate.apply_in_place(&mut x);
/// let mut whole = [0.0; 96];
/// PackedMatrix::pack(&weight, Activation::Bf16)?.gemv_into(&mut workspace, &x, &mut whole)?;
/// assert_eq!(y, whole);
/// # Ok::<(), squish_quant::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnMatrix {
    layout: ColumnLayout,
    n_inputs: usize,
    /// Column after column.
    lines: Vec<Line>,
    /// Of blocks of outputs; none without scales.
    scales: Vec<[f32; COLUMN_BLOCK]>,
}

impl ColumnMatrix {
    /// `weights` by input, for inputs that are rounded to `activation`: on all threads of the current rayon pool.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for other formats, scales of groups of inputs, or an activation that the format does not have;
    /// [`Error::Length`] if dense bytes are too few or too many, [`Error::TooLarge`], [`Error::Memory`].
    pub fn pack<'a>(weights: impl Into<Weights<'a>>, activation: Activation) -> Result<Self> {
        let weights = weights.into();
        let source = Source::new(weights)?;
        let shape @ [n_outputs, n_inputs] = weights.shape();
        let unsupported = |what| Error::Unsupported { format: code_name(weights.code()), what };
        let is_scaled = source.scale() == PanelScale::F32;
        if source.group() < n_inputs {
            return Err(unsupported("scales of groups of inputs where weights stand by input"));
        }
        let layout = ColumnLayout::new(weights.code(), activation, is_scaled, n_outputs)
            .filter(|_| is_scaled || source.scale() == PanelScale::Absent)
            .ok_or(unsupported("weights by input for inputs of this kind"))?;
        let bytes = layout.column_bytes().checked_mul(n_inputs);
        let bytes = bytes.filter(|&n| isize::try_from(n).is_ok());
        let bytes = bytes.ok_or(Error::TooLarge { shape })?;
        let no_memory = |_| Error::Memory { bytes };
        let mut lines = memory::filled(bytes / 64, Line([0; 64])).map_err(no_memory)?;
        let columns = Columns { first: 0, layout: &layout, lines: &mut lines };
        // As many as are read of an output at once.
        for_bands(columns, 64, bytes, &|columns: Columns<'_>| {
            let bytes = bytemuck::cast_slice_mut(columns.lines);
            pack_columns(&layout, &source, columns.first, bytes);
            Ok(())
        })?;
        let n_blocks = if is_scaled { layout.n_blocks() } else { 0 };
        let mut scales = vec![[0.0; COLUMN_BLOCK]; n_blocks];
        for (output, scale) in scales.as_flattened_mut().iter_mut().take(n_outputs).enumerate() {
            *scale = f32::from_bits(source.scale_bits(output, 0));
        }
        Ok(Self { layout, n_inputs, lines, scales })
    }

    /// Outputs and inputs: rows and columns of the weights.
    pub fn shape(&self) -> [usize; 2] {
        [self.layout.n_outputs(), self.n_inputs]
    }

    /// What inputs are rounded to.
    pub fn activation(&self) -> Activation {
        self.layout.activation()
    }

    /// Bytes of the columns and their scales.
    pub fn n_bytes(&self) -> usize {
        size_of_val(&self.lines[..]) + size_of_val(&self.scales[..])
    }

    /// The product with a row of inputs of which all are zeros but `values` at `indices`, which ascend: `y`, `[outputs]`. Reads the
    /// columns of these inputs alone.
    ///
    /// # Errors
    ///
    /// [`Error::Length`], [`Error::Indices`]. Then nothing is written.
    pub fn gemv_sparse_into(
        &self,
        workspace: &mut Workspace,
        indices: &[u32],
        values: &[f32],
        y: &mut [f32],
    ) -> Result<()> {
        check_live(self.shape(), indices, values, y)?;
        let layout = &self.layout;
        workspace.live_columns.prepare(Isa::detect(), layout.activation(), indices, values);
        let (live, team) = (&workspace.live_columns, workspace.team());
        // Each task is worth waking a thread for, of the bytes that are read.
        let (n_blocks, n_threads) = (layout.n_blocks(), team.n_threads());
        let of_block = (live.len() * layout.block_bytes()).max(1);
        let least = TASK_BYTES.div_ceil(of_block).max(n_blocks.div_ceil(MOST_TASKS));
        let each = n_blocks.div_ceil(n_threads).min(MOST_BLOCKS).max(least);
        let mut tasks = [const { None }; MOST_TASKS];
        let pieces = y.chunks_mut(each * COLUMN_BLOCK);
        let n_tasks = pieces.len();
        for (i, (task, y)) in tasks.iter_mut().zip(pieces).enumerate() {
            *task = Some((i * each, y));
        }
        team.for_each(&mut tasks[..n_tasks], |task| {
            let Some((first, y)) = task else { return };
            let (whole, rest) = y.as_chunks_mut::<COLUMN_BLOCK>();
            let mut at = *first;
            for sums in whole.chunks_mut(MOST_BLOCKS) {
                self.blocks_into(live, at, sums);
                at += sums.len();
            }
            if !rest.is_empty() {
                let mut sums = [[0.0; COLUMN_BLOCK]];
                self.blocks_into(live, at, &mut sums);
                rest.copy_from_slice(&sums[0][..rest.len()]);
            }
        });
        Ok(())
    }

    /// The sums of some blocks of outputs.
    fn blocks_into(&self, live: &LiveColumns, first: usize, sums: &mut [[f32; COLUMN_BLOCK]]) {
        let scales = self.scales.get(first..first + sums.len()).unwrap_or_default();
        let columns = bytemuck::cast_slice(&self.lines);
        columns_into(&self.layout, columns, live, scales, first, sums);
    }
}

/// Blocks of outputs whose sums stay in the first-level cache beside the codes, half of it. More have longer pieces of columns, of which a CPU sees
/// itself what comes.
const MOST_BLOCKS: usize = 32;

/// Columns to pack.
struct Columns<'a> {
    first: usize,
    layout: &'a ColumnLayout,
    lines: &'a mut [Line],
}

impl Rows for Columns<'_> {
    fn n_rows(&self) -> usize {
        // Columns of no outputs have no bytes, and need no packing.
        self.lines.len().checked_div(self.layout.column_bytes() / 64).unwrap_or(0)
    }

    fn split_at_row(self, n: usize) -> (Self, Self) {
        let Self { first, layout, lines } = self;
        let (lines, rest) = lines.split_at_mut(n * layout.column_bytes() / 64);
        (Self { first, layout, lines }, Self { first: first + n, layout, lines: rest })
    }
}
