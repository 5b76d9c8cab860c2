//! Copies of what a source holds, as arrays of `f32`.

use ndarray::{Array3, ArrayViewMut3, Axis};
use squish_kernels::{
    Isa,
    kv::{KvElement, KvSource, Rows, decode_rows_with},
};

use crate::error::{Error, Result};

/// The values of all tokens of `source` in their order, times their scales: keys `[heads, tokens, key width]` and values `[heads, tokens,
/// value width]`. Of each head the numbers have to lie in one piece. Allocates nothing.
///
/// # Errors
///
/// [`Error::Axis`], [`Error::Layout`].
pub fn gather_into<S: KvSource>(
    source: &S,
    mut keys: ArrayViewMut3<'_, f32>,
    mut values: ArrayViewMut3<'_, f32>,
) -> Result<()> {
    check("keys", source, source.key_dim(), &keys)?;
    check("values", source, source.value_dim(), &values)?;
    let isa = Isa::detect();
    for head in 0..source.n_heads() {
        let keys = head_of(&mut keys, head);
        let values = head_of(&mut values, head);
        for at in 0..source.n_runs() {
            let run = source.run(at);
            copy(isa, source.keys(head, at), source.key_dim(), run.start, run.len, keys);
            copy(isa, source.values(head, at), source.value_dim(), run.start, run.len, values);
        }
    }
    Ok(())
}

/// [`gather_into`] new arrays: keys and values.
///
/// # Errors
///
/// [`Error::StorageMemory`] if arrays of that size cannot be.
pub fn gather<S: KvSource>(source: &S) -> Result<(Array3<f32>, Array3<f32>)> {
    let array = |what, width: usize| {
        let dims = [source.n_heads(), source.len(), width];
        let bytes = dims.iter().try_fold(size_of::<f32>(), |bytes, &n| bytes.checked_mul(n));
        match bytes.filter(|&bytes| isize::try_from(bytes).is_ok()) {
            Some(_) => Ok(Array3::zeros(dims)),
            None => Err(Error::StorageMemory { what, bytes: usize::MAX }),
        }
    };
    let (mut keys, mut values) =
        (array("keys", source.key_dim())?, array("values", source.value_dim())?);
    gather_into(source, keys.view_mut(), values.view_mut())?;
    Ok((keys, values))
}

fn check<S: KvSource>(
    what: &'static str,
    source: &S,
    width: usize,
    out: &ArrayViewMut3<'_, f32>,
) -> Result<()> {
    let (heads, tokens, actual) = out.dim();
    Error::check_axis(what, "heads", source.n_heads(), heads)?;
    Error::check_axis(what, "tokens", source.len(), tokens)?;
    Error::check_axis(what, "width", width, actual)?;
    if out.is_empty() || out.index_axis(Axis(0), 0).is_standard_layout() {
        return Ok(());
    }
    let strides = out.strides();
    let (shape, strides) = ([heads, tokens, actual], [strides[0], strides[1], strides[2]]);
    Err(Error::Layout { what, shape, strides })
}

fn head_of<'a>(out: &'a mut ArrayViewMut3<'_, f32>, head: usize) -> &'a mut [f32] {
    let rows = out.index_axis_mut(Axis(0), head);
    rows.into_slice().expect("the numbers of a head were checked to lie in one piece")
}

#[inline]
fn copy<E: KvElement>(
    isa: Isa,
    rows: Rows<'_, E>,
    width: usize,
    start: usize,
    len: usize,
    out: &mut [f32],
) {
    decode_rows_with(isa, rows, [len, width], &mut out[start * width..(start + len) * width]);
}
