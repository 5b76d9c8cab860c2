//! Prints the tensors of a checkpoint as a table: `cargo run --example inspect -- FOLDER`.
//!
//! Only headers are read, so that this takes no longer for a large model than for a small one.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;

use squish_checkpoint::{Checkpoint, Dtype};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: inspect FOLDER")?;
    let checkpoint = Checkpoint::open(path)?;

    let mut out = std::io::stdout().lock();
    let width = checkpoint.names().map(|name| name.chars().count()).max().unwrap_or(0);
    let mut totals: BTreeMap<Dtype, (usize, usize, usize)> = BTreeMap::new();
    writeln!(out, "{:width$}  {:11}  {:>14}  shard  shape", "tensor", "dtype", "bytes")?;
    for info in &checkpoint {
        let (name, dtype, bytes) = (info.name(), info.dtype(), info.n_bytes());
        let (shard, shape) = (info.shard() + 1, info.shape());
        writeln!(out, "{name:width$}  {dtype:11}  {bytes:>14}  {shard:>5}  {shape:?}")?;
        let total = totals.entry(dtype).or_default();
        *total = (total.0 + 1, total.1 + info.n_elements(), total.2 + bytes);
    }

    writeln!(out)?;
    for (dtype, (n_tensors, n_elements, bytes)) in totals {
        writeln!(out, "{dtype:11}  {n_tensors} tensors, {n_elements} elements, {bytes} bytes")?;
    }
    for (shard_idx, path) in checkpoint.paths().iter().enumerate() {
        writeln!(out, "shard {}: {}", shard_idx + 1, path.display())?;
    }
    for (key, text) in checkpoint.metadata() {
        writeln!(out, "{key}: {text}")?;
    }
    Ok(())
}
