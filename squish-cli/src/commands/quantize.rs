//! `squish quantize`: a checkpoint whose matrices are in another format.

use serde::Serialize;
use squish_model::{QuantizeOptions, quantize_with};

use crate::{
    args::QuantizeArgs,
    error::Error,
    output::{bytes, count, print, print_json, progress, table},
};

/// The object of `--json`.
#[derive(Serialize)]
struct Report {
    out: String,
    format: String,
    tensors: usize,
    bytes: u64,
    bytes_read: u64,
    matrices: usize,
    bits_per_weight: Option<f64>,
}

pub(crate) fn quantize(args: &QuantizeArgs) -> Result<(), Error> {
    let options = QuantizeOptions { head: args.head, ..QuantizeOptions::of(args.to) };
    let bar = progress("bytes", 0);
    let made =
        quantize_with(&args.model, &args.out, &options.laid_out(args.layout), &mut |progress| {
            bar.set_length(progress.n_bytes);
            bar.set_position(progress.n_written);
        })?;
    bar.finish_and_clear();
    let report = Report {
        out: args.out.display().to_string(),
        format: args.to.to_string(),
        tensors: made.n_tensors,
        bytes: made.n_bytes,
        bytes_read: made.n_bytes_read,
        matrices: made.n_matrices,
        bits_per_weight: (made.n_weights > 0).then(|| made.bits_per_weight()),
    };
    if args.json {
        return print_json(&report);
    }
    let mut rows = table(["", "value"], &[1]);
    rows.add_row(["folder", &report.out]);
    rows.add_row(["format", &report.format]);
    rows.add_row(["matrices changed", &count(report.matrices)]);
    if let Some(bits) = report.bits_per_weight {
        rows.add_row(["bits per weight of these", &format!("{bits:.2}")]);
    }
    rows.add_row(["tensors", &count(report.tensors)]);
    rows.add_row(["bytes", &bytes(report.bytes as usize)]);
    rows.add_row(["bytes before", &bytes(report.bytes_read as usize)]);
    print(rows)
}
