//! The products of a pass, with what hooks do about them.

use squish_kernels::{Gelu, gelu_in_place, select_into, silu_in_place, zero_below_in_place};
use squish_quant::{
    Epilogue, Gate, Product, Workspace,
    ndarray::{ArrayView2, ArrayViewMut2},
};

use crate::{
    Error, Hooks, Projection, Site,
    forward::rows,
    model::{Layer, Linear},
};

/// What products work with besides their operands.
pub(crate) struct Products<'a> {
    pub(crate) workspace: &'a mut Workspace,
    /// Of each row its part, for adapters.
    pub(crate) part_of: &'a [usize],
    /// Of a sparse product: the inputs that are left.
    pub(crate) live: &'a mut Live,
}

/// Inputs that are left of one row.
#[derive(Debug, Default)]
pub(crate) struct Live {
    /// How many there are, if some may have been left out of the latest inputs, and these are one row.
    n: Option<usize>,
    indices: Vec<u32>,
    values: Vec<f32>,
    sums: Vec<f32>,
}

impl Products<'_> {
    /// Shows inputs to who records them, rounds them, and leaves out those below the threshold.
    pub(crate) fn inputs(&mut self, hooks: &mut Hooks<'_>, site: Site, x: &mut [f32]) {
        let n_rows = self.part_of.len();
        if let Some(recorder) = &mut hooks.recorder {
            recorder.record(site, rows(x, x.len() / n_rows));
        }
        if let Some(rounding) = hooks.rounding {
            rounding.round(site, rows_mut(x, n_rows));
        }
        self.live.n = None;
        let threshold = hooks.sparsity.map_or(0.0, |sparsity| sparsity.threshold(site));
        if threshold > 0.0 {
            if n_rows == 1 {
                let Live { n, indices, values, .. } = &mut *self.live;
                indices.resize(x.len(), 0);
                values.resize(x.len(), 0.0);
                *n = Some(select_into(x, threshold, indices, values));
            }
            zero_below_in_place(x, threshold);
        }
    }

    /// `out = W x + b` for each matrix.
    pub(crate) fn run<const N: usize>(
        &mut self,
        hooks: &Hooks<'_>,
        layer: usize,
        x: &[f32],
        outputs: [(Projection, &Linear, &mut [f32]); N],
    ) -> Result<(), Error> {
        let x = rows(x, x.len() / self.part_of.len());
        if self.live.n.is_some() {
            for (projection, linear, out) in outputs {
                self.run_sparse(linear, out)?;
                self.adapt(hooks, Site { layer, projection }, x, out);
            }
            return Ok(());
        }
        let mut outputs = outputs;
        let mut products =
            outputs.each_mut().map(|(_, linear, out)| linear.product(rows_mut(out, x.nrows())));
        // Matrices that are stored in different formats may have different activations, and then a call each.
        let is_one = |products: &[Product<'_>]| {
            products
                .windows(2)
                .all(|two| two[0].weights.activation() == two[1].weights.activation())
        };
        let each = if is_one(&products) { N } else { 1 };
        for products in products.chunks_mut(each.max(1)) {
            self.workspace.products_into(x, products)?;
        }
        for (projection, _, out) in outputs {
            self.adapt(hooks, Site { layer, projection }, x, out);
        }
        Ok(())
    }

    /// `sum = sum + W x + b`.
    pub(crate) fn add(
        &mut self,
        hooks: &Hooks<'_>,
        site: Site,
        x: &[f32],
        linear: &Linear,
        sum: &mut [f32],
    ) -> Result<(), Error> {
        let x = rows(x, x.len() / self.part_of.len());
        if self.live.n.is_some() {
            let mut sums = std::mem::take(&mut self.live.sums);
            sums.resize(sum.len(), 0.0);
            let result = self.run_sparse(linear, &mut sums);
            sum.iter_mut().zip(&sums).for_each(|(x, y)| *x += y);
            self.live.sums = sums;
            result?;
        } else {
            let product = linear.product(rows_mut(sum, x.nrows()));
            let product = Product { epilogue: Epilogue::Add, ..product };
            self.workspace.products_into(x, &mut [product])?;
        }
        self.adapt(hooks, site, x, sum);
        Ok(())
    }

    /// `out = gate(Wgate x + b) ⊙ (Wup x + b)`. `up` is room for the second factor, which is not always needed.
    pub(crate) fn gated(
        &mut self,
        hooks: &Hooks<'_>,
        layer_idx: usize,
        x: &[f32],
        layer: &Layer,
        gate: Gate,
        out: &mut [f32],
        up: &mut Vec<f32>,
    ) -> Result<(), Error> {
        let is_apart = layer.up.bias.is_some()
            || hooks.adapter.is_some()
            || self.live.n.is_some()
            || layer.up.weights.activation() != layer.gate.weights.activation();
        if !is_apart {
            let x = rows(x, x.len() / self.part_of.len());
            let product = layer.gate.product(rows_mut(out, x.nrows()));
            let epilogue = Epilogue::Gated { gate, up: layer.up.weights.view() };
            self.workspace.products_into(x, &mut [Product { epilogue, ..product }])?;
            return Ok(());
        }
        up.resize(out.len(), 0.0);
        let outputs =
            [(Projection::Gate, &layer.gate, &mut *out), (Projection::Up, &layer.up, &mut up[..])];
        self.run(hooks, layer_idx, x, outputs)?;
        match gate {
            Gate::Silu => silu_in_place(out),
            Gate::GeluTanh => gelu_in_place(out, Gelu::Tanh),
        }
        out.iter_mut().zip(up).for_each(|(out, up)| *out *= *up);
        Ok(())
    }

    /// `out = W x + b` for the row whose inputs are live.
    fn run_sparse(&mut self, linear: &Linear, out: &mut [f32]) -> Result<(), Error> {
        let Live { n, indices, values, .. } = &*self.live;
        let n = n.unwrap_or_default();
        let (indices, values) = (&indices[..n], &values[..n]);
        match &linear.columns {
            Some(columns) => columns.gemv_sparse_into(self.workspace, indices, values, out)?,
            None => {
                linear.weights.view().gemv_sparse_into(self.workspace, indices, values, out)?;
            }
        }
        if let Some(bias) = &linear.bias {
            out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
        }
        Ok(())
    }

    fn adapt(&self, hooks: &Hooks<'_>, site: Site, x: ArrayView2<'_, f32>, out: &mut [f32]) {
        if let Some(adapter) = hooks.adapter {
            adapter.add(site, self.part_of, x, rows_mut(out, x.nrows()));
        }
    }
}

fn rows_mut(x: &mut [f32], n_rows: usize) -> ArrayViewMut2<'_, f32> {
    let width = x.len() / n_rows.max(1);
    ArrayViewMut2::from_shape((n_rows, width), x).expect("buffers hold whole rows")
}
