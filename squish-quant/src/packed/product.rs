//! Products of packed matrices with rows of inputs, and what is done to their results on the way out.

use std::ops::Range;

use ndarray::{ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis};
use squish_kernels::{
    Gelu, Isa, gelu_in_place,
    panel::{Line, LivePairs, PANEL, product_into, sparse_into},
    silu_in_place,
};

use super::{
    PackedMatrix, PackedView,
    workspace::{Prepared, Scratch, Workspace},
};
use crate::{
    band::check_rows,
    error::{Error, Result},
};

/// What becomes of a product, element by element, in `f32`.
#[derive(Clone, Copy, Debug, Default)]
pub enum Epilogue<'a> {
    /// `out = y`.
    #[default]
    Store,
    /// `out = out + y`: the sum with a residual stream.
    Add,
    /// `out = gate(y) · (up · x)`, where `up` has the shape and the activation of the matrix: the first half of a gated
    /// feed-forward network.
    Gated {
        /// What the product itself goes through.
        gate: Gate,
        /// The weights that it gates.
        up: PackedView<'a>,
    },
}

/// An activation function of a gated network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gate {
    /// Llama's.
    Silu,
    /// Gemma's: GELU by its hyperbolic tangent.
    GeluTanh,
}

/// One of the products of a call: `y = weights · x + bias`, and what becomes of it.
#[derive(Debug)]
pub struct Product<'a> {
    /// Weights `[outputs, inputs]`.
    pub weights: PackedView<'a>,
    /// Added to each row, `[outputs]`.
    pub bias: Option<&'a [f32]>,
    /// What becomes of the sum.
    pub epilogue: Epilogue<'a>,
    /// `[rows, outputs]`, rows contiguous.
    pub out: ArrayViewMut2<'a, f32>,
}

impl<'a> Product<'a> {
    /// `out = weights · x`.
    pub fn new<B: AsRef<[Line]>>(
        weights: &'a PackedMatrix<B>,
        out: ArrayViewMut2<'a, f32>,
    ) -> Self {
        Self { weights: weights.view(), bias: None, epilogue: Epilogue::Store, out }
    }
}

impl<B: AsRef<[Line]>> PackedMatrix<B> {
    /// The product with one row of inputs: `y = weights · x`, `[outputs]`.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] if `x` or `y` is too short or too long. Then nothing is written.
    pub fn gemv_into(&self, workspace: &mut Workspace, x: &[f32], y: &mut [f32]) -> Result<()> {
        let [n_outputs, n_inputs] = self.shape();
        Error::check_length("x", n_inputs, x.len())?;
        Error::check_length("y", n_outputs, y.len())?;
        let (x, y) = (ArrayView1::from(x), ArrayViewMut1::from(y));
        self.gemm_into(workspace, x.insert_axis(Axis(0)), y.insert_axis(Axis(0)))
    }

    /// The products with the rows of `x`, `[rows, inputs]`, into `out`, `[rows, outputs]`: `out = x · weightsᵀ`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`], and [`Error::Layout`] if rows of `x` or `out` are not contiguous. Then nothing is written.
    pub fn gemm_into(
        &self,
        workspace: &mut Workspace,
        x: ArrayView2<'_, f32>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        workspace.products_into(x, &mut [Product::new(self, out)])
    }

    /// Rows `rows` of the product with one row of inputs, in that order, into `y`, as long as `rows`.
    ///
    /// Computes every panel of 64 outputs that holds one of them, once for those of it that follow each other, on the calling
    /// thread.
    ///
    /// # Errors
    ///
    /// [`Error::Length`], and [`Error::Rows`] for a row that is not there. Then nothing is written.
    pub fn gemv_rows_into(
        &self,
        workspace: &mut Workspace,
        rows: &[usize],
        x: &[f32],
        y: &mut [f32],
    ) -> Result<()> {
        let [n_rows, n_inputs] = self.shape();
        Error::check_length("x", n_inputs, x.len())?;
        Error::check_length("y", rows.len(), y.len())?;
        if let Some(&row) = rows.iter().find(|&&row| row >= n_rows) {
            return Err(Error::Rows { start: row, end: row.saturating_add(1), n_rows });
        }
        let x = ArrayView1::from(x).insert_axis(Axis(0));
        let weights = self.view();
        let prepared = workspace.prepare(Isa::detect(), &weights.layout, x);
        let Scratch { product, sums, .. } = &mut *prepared.scratch();
        let mut at = None;
        for (y, row) in y.iter_mut().zip(rows) {
            let panel = row / PANEL;
            if at != Some(panel) {
                let bytes = weights.panel(panel);
                let sums = &mut sums[..1];
                product_into(&weights.layout, bytes, &prepared.inputs(), 0..1, product, sums);
                at = Some(panel);
            }
            *y = sums[0][row % PANEL];
        }
        Ok(())
    }

    /// The product with a row of inputs of which all are zeros but `values` at `indices`, which ascend.
    ///
    /// Of f32, bf16 and FP8 weights it reads the codes of these inputs alone, in pairs of neighbors ([`ColumnMatrix`](super::ColumnMatrix) is
    /// faster where most are left); others are multiplied as a whole. The result has the bits of the whole product, but for the sign of a zero, unless a weight is NaN or
    /// infinite that a zero would meet.
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
        let n = self.shape()[1];
        let weights = self.view();
        let isa = Isa::detect();
        if !LivePairs::supports(&weights.layout) {
            let mut x = std::mem::take(&mut workspace.dense);
            x.clear();
            x.resize(n, 0.0);
            for (&index, &value) in indices.iter().zip(values) {
                x[index as usize] = value;
            }
            let result = self.gemv_into(workspace, &x, y);
            workspace.dense = x;
            return result;
        }
        workspace.live.prepare(isa, &weights.layout, indices, values);
        let (live, n_panels) = (&workspace.live, weights.n_panels());
        // Each task is worth waking a thread for, of the bytes that are read.
        let read = (live.len() * 2 * weights.layout.panel_bytes()).div_ceil(n.max(1));
        let each = (TASK_BYTES / read.max(1)).max(n_panels.div_ceil(MOST_TASKS)).max(1);
        let mut tasks = [const { None }; MOST_TASKS];
        let mut n_tasks = 0;
        for (i, y) in y.chunks_mut(each * PANEL).enumerate() {
            tasks[i] = Some((i * each, y));
            n_tasks = i + 1;
        }
        workspace.team().for_each(&mut tasks[..n_tasks], |task| {
            let Some((first, y)) = task else { return };
            for (i, y) in y.chunks_mut(PANEL).enumerate() {
                let mut sums = [0.0; PANEL];
                sparse_into(&weights.layout, weights.panel(*first + i), live, &mut sums);
                y.copy_from_slice(&sums[..y.len()]);
            }
        });
        Ok(())
    }
}

/// Whether a matrix of this shape has inputs at these ascending indices, and `y` has room for its outputs.
pub(super) fn check_live(
    [n_outputs, n]: [usize; 2],
    indices: &[u32],
    values: &[f32],
    y: &[f32],
) -> Result<()> {
    Error::check_length("values", indices.len(), values.len())?;
    Error::check_length("y", n_outputs, y.len())?;
    let mut least = 0;
    for (index, &value) in indices.iter().enumerate() {
        let value = value as usize;
        if value < least || value >= n {
            return Err(Error::Indices { what: "indices", index, value, n });
        }
        least = value + 1;
    }
    Ok(())
}

impl Workspace {
    /// Several products with the same inputs, `x` of `[rows, inputs]`, in one call: the queries, keys and values of a layer,
    /// say. Their matrices have one activation; each result is what a call of its own would give.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`], [`Error::Length`], [`Error::Unsupported`] for matrices of different activations, and
    /// [`Error::Layout`] if rows of `x` or of a result are not contiguous. Then nothing is written.
    pub fn products_into(
        &mut self,
        x: ArrayView2<'_, f32>,
        products: &mut [Product<'_>],
    ) -> Result<()> {
        check_rows("x", x.dim(), x.strides())?;
        for product in &*products {
            product.check(x, &products[0])?;
        }
        let Some(first) = products.first() else { return Ok(()) };
        if x.nrows() == 0 {
            return Ok(());
        }
        let prepared = self.prepare(Isa::detect(), &first.weights.layout, x);
        for products in products.chunks_mut(MOST_TASKS) {
            let mut tasks = [const { None }; MOST_TASKS];
            let n_tasks = split(products, prepared.team.n_threads(), &mut tasks);
            prepared.team.for_each(&mut tasks[..n_tasks], |task| {
                if let Some(task) = task {
                    task.run(&prepared);
                }
            });
        }
        Ok(())
    }
}

impl Product<'_> {
    fn check(&self, x: ArrayView2<'_, f32>, first: &Self) -> Result<()> {
        let [n_outputs, n_inputs] = self.weights.shape();
        let [n_rows, n_columns] = x.dim().into();
        if n_columns != n_inputs {
            let (expected, actual) = ([n_rows, n_inputs], [n_rows, n_columns]);
            return Err(Error::Shape { what: "x", expected, actual });
        }
        let (expected, actual) = ([n_rows, n_outputs], self.out.dim().into());
        if expected != actual {
            return Err(Error::Shape { what: "out", expected, actual });
        }
        check_rows("out", self.out.dim(), self.out.strides())?;
        if let Some(bias) = self.bias {
            Error::check_length("bias", n_outputs, bias.len())?;
        }
        let mut same_activation = self.weights.activation() == first.weights.activation();
        if let Epilogue::Gated { up, .. } = &self.epilogue {
            let (expected, actual) = (self.weights.shape(), up.shape());
            if expected != actual {
                return Err(Error::Shape { what: "up", expected, actual });
            }
            same_activation &= up.activation() == first.weights.activation();
        }
        if same_activation {
            Ok(())
        } else {
            let (format, what) = ("a call", "matrices of different activations");
            Err(Error::Unsupported { format, what })
        }
    }

    /// Bytes that are read for a panel of outputs.
    fn panel_bytes(&self) -> usize {
        let up = if let Epilogue::Gated { up, .. } = &self.epilogue {
            up.layout.panel_bytes()
        } else {
            0
        };
        self.weights.layout.panel_bytes() + up
    }
}

/// Most tasks of a call, which stand on its stack.
pub(super) const MOST_TASKS: usize = 64;

/// Bytes of weights, for a single row, below which a task is not split further: some ten microseconds of a core's share of
/// the memory's bandwidth, a hundred times what claiming a task costs.
pub(super) const TASK_BYTES: usize = 1 << 18;

/// Some panels of a product.
struct Task<'a> {
    weights: PackedView<'a>,
    bias: Option<&'a [f32]>,
    epilogue: Epilogue<'a>,
    panels: Range<usize>,
    /// The columns of its outputs.
    out: ArrayViewMut2<'a, f32>,
}

/// Cuts products into tasks of about the same size, a few for each thread, so that one that is held up does not hold up all.
/// Returns their number.
fn split<'a>(
    products: &'a mut [Product<'_>],
    n_threads: usize,
    tasks: &mut [Option<Task<'a>>; MOST_TASKS],
) -> usize {
    let n_bytes: usize = products.iter().map(|p| p.weights.n_panels() * p.panel_bytes()).sum();
    // Each product may end in a smaller task, and has one at least.
    let most = MOST_TASKS.saturating_sub(products.len()).max(1);
    let at_once = if n_threads == 1 { 1 } else { 8 * n_threads };
    let n_rows = products.first().map_or(1, |product| product.out.nrows());
    let task_bytes = n_bytes.div_ceil(most.min(at_once)).max(TASK_BYTES / n_rows.max(1));
    let n_products = products.len();
    let mut n_tasks = 0;
    for (i, product) in products.iter_mut().enumerate() {
        let n_panels = product.weights.n_panels();
        // The last places are for the products to come.
        let places = MOST_TASKS.saturating_sub(n_tasks + n_products - i - 1).max(1);
        let each =
            (task_bytes / product.panel_bytes().max(1)).max(n_panels.div_ceil(places)).max(1);
        let mut out = product.out.view_mut();
        for first in (0..n_panels).step_by(each) {
            let panels = first..n_panels.min(first + each);
            let columns = (PANEL * panels.len()).min(out.ncols());
            let (own, rest) = out.split_at(Axis(1), columns);
            out = rest;
            let task = Task {
                weights: product.weights,
                bias: product.bias,
                epilogue: product.epilogue,
                panels,
                out: own,
            };
            tasks[n_tasks] = Some(task);
            n_tasks += 1;
        }
    }
    n_tasks
}

impl Task<'_> {
    fn run(&mut self, prepared: &Prepared<'_>) {
        let Scratch { product, sums, gated } = &mut *prepared.scratch();
        let inputs = prepared.inputs();
        for panel in self.panels.clone() {
            let first_column = (panel - self.panels.start) * PANEL;
            let n_columns = PANEL.min(self.out.ncols() - first_column);
            for tiles in prepared.plan.calls() {
                let rows = prepared.plan.rows(&tiles);
                let sums = &mut sums[..rows.len()];
                let weights = &self.weights;
                product_into(
                    &weights.layout,
                    weights.panel(panel),
                    &inputs,
                    tiles.clone(),
                    product,
                    sums,
                );
                if let Some(bias) = self.bias {
                    let bias = &bias[panel * PANEL..][..n_columns];
                    for sums in sums.iter_mut() {
                        sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
                    }
                }
                if let Epilogue::Gated { gate, up } = &self.epilogue {
                    let gated = &mut gated[..rows.len()];
                    product_into(&up.layout, up.panel(panel), &inputs, tiles, product, gated);
                    for (sums, gated) in sums.iter_mut().zip(&*gated) {
                        gate.apply(sums);
                        sums.iter_mut().zip(gated).for_each(|(sum, up)| *sum *= up);
                    }
                }
                let adds = matches!(self.epilogue, Epilogue::Add);
                for (row, sums) in rows.zip(&*sums) {
                    let mut out = self.out.index_axis_mut(Axis(0), row);
                    let out = out.as_slice_mut().expect("rows are contiguous");
                    let out = &mut out[first_column..first_column + n_columns];
                    if adds {
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                    } else {
                        out.copy_from_slice(&sums[..n_columns]);
                    }
                }
            }
        }
    }
}

impl Gate {
    fn apply(self, x: &mut [f32; PANEL]) {
        match self {
            Self::Silu => silu_in_place(x),
            Self::GeluTanh => gelu_in_place(x, Gelu::Tanh),
        }
    }
}
