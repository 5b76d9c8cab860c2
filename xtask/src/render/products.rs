//! The tables of products with packed weights: by format, shape and number of threads, and how time grows with rows.

use std::fmt::Write;

use super::{cell, heads, noise, number, of_limit, operation, peer_cells, peer_names, share};
use crate::{
    results::{Results, RowResult, Table},
    verdict::share_of_probe,
};

/// Both tables, if there are such rows.
pub(super) fn render(out: &mut String, results: &Results) {
    let rows: Vec<&RowResult> =
        results.rows.iter().filter(|row| row.row.table == Table::Product).collect();
    if rows.is_empty() {
        return;
    }
    line!(out);
    line!(out, "## Products with packed weights");
    line!(out);
    line!(
        out,
        "`m8_4096x4096_t2`: 8 rows of inputs, 4096 outputs, 4096 inputs, 2 threads; the time includes rounding the inputs. `of read` is the \
         rate over that of reading the same buffers in the same process, on as many threads; weights are rotated over more memory than \
         the last cache level holds, but for those of 512x2048, which stay in L2."
    );
    let peers = peer_names(results, &rows);
    line!(out);
    line!(
        out,
        "| row | shape | operation | µs | GB/s | of read | GFLOP/s | limit | of limit | noise |{}",
        heads(&peers)
    );
    line!(out, "|---|---|---|--:|--:|--:|--:|---|--:|--:|{}", "--:|".repeat(peers.len()));
    let mut sorted = rows.clone();
    sorted.sort_by_key(|row| (row.row.id.clone(), Shape::parse(&row.row.shape)));
    for row in &sorted {
        let Some(ours) = row.variant("ours") else { continue };
        let rate = ours.bytes as f64 / ours.ns_min;
        let of_read = share_of_probe(row, "read").map(share);
        line!(
            out,
            "| `{}` | {} | {} | {} | {} | {} | {} | {} | {} |{}",
            row.row.id,
            row.row.shape,
            operation(row),
            number(ours.ns_min / 1e3),
            number(rate),
            of_read.unwrap_or_else(|| "—".into()),
            number(row.row.work.flops as f64 / ours.ns_min),
            of_limit(results, row, ours.ns_min),
            noise(ours.ns_min, ours.ns_median),
            peer_cells(results, row, &peers, ours.ns_min)
        );
    }
    growth(out, &sorted);
}

/// The weights of which it is said what rows cost.
const SIZE: &str = "4096x4096";

/// Time by number of rows, in times of one row.
fn growth(out: &mut String, rows: &[&RowResult]) {
    let counts = growth_counts(rows);
    let growth = growth_of(rows, &counts);
    if growth.is_empty() {
        return;
    }
    line!(out);
    line!(out, "### What rows cost: r(M) = t(M) / t(1), {SIZE}, one thread");
    line!(out);
    let heads: Vec<String> = counts.iter().map(ToString::to_string).collect();
    line!(out, "| M | {} |", heads.join(" | "));
    line!(out, "|---|{}", "--:|".repeat(counts.len()));
    for (id, times) in growth {
        let cells: Vec<String> = times.into_iter().map(|times| cell(Some(times))).collect();
        line!(out, "| `{id}` | {} |", cells.join(" | "));
    }
}

/// The numbers of rows, one first, that the time of one thread grows over.
pub(super) fn growth_counts(rows: &[&RowResult]) -> Vec<usize> {
    let shapes = rows.iter().filter_map(|row| Shape::parse(&row.row.shape));
    let one_thread = shapes.filter(|shape| shape.size == SIZE && shape.threads == 1);
    let mut counts: Vec<usize> =
        one_thread.map(|shape| shape.rows).filter(|&rows| rows <= 64).collect();
    counts.sort_unstable();
    counts.dedup();
    counts
}

/// The times of a row for so many rows of inputs, over that for the first number: of rows that have all of them.
pub(super) fn growth_of<'a>(rows: &[&'a RowResult], counts: &[usize]) -> Vec<(&'a str, Vec<f64>)> {
    if counts.len() < 2 || counts[0] != 1 {
        return Vec::new();
    }
    let time = |id: &str, m: usize| {
        let is_it = |row: &&&RowResult| {
            let wanted = Shape { size: SIZE.to_owned(), threads: 1, rows: m };
            row.row.id == id && Shape::parse(&row.row.shape) == Some(wanted)
        };
        rows.iter().find(is_it).and_then(|row| row.variant("ours")).map(|ours| ours.ns_min)
    };
    let mut ids: Vec<&str> = rows.iter().map(|row| row.row.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter()
        .filter_map(|id| {
            let times: Option<Vec<f64>> = counts.iter().map(|&m| time(id, m)).collect();
            let times = times?;
            Some((id, times.iter().map(|time| time / times[0]).collect()))
        })
        .collect()
}

/// `m{rows}_{size}` or `m{rows}_{size}_t{threads}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    size: String,
    threads: usize,
    rows: usize,
}

impl Shape {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('_');
        let rows = parts.next()?.strip_prefix('m')?.parse().ok()?;
        let size = parts.next()?.to_owned();
        let threads = match parts.next() {
            None => 1,
            Some(part) => part.strip_prefix('t')?.parse().ok()?,
        };
        parts.next().is_none().then_some(Self { size, threads, rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::tests::{results, row};

    #[test]
    fn shapes_are_read_as_the_benches_write_them() {
        let shape = |size: &str, threads, rows| Some(Shape { size: size.into(), threads, rows });
        assert_eq!(Shape::parse("m8_4096x64"), shape("4096x64", 1, 8));
        assert_eq!(Shape::parse("m1_4096x64_t2"), shape("4096x64", 2, 1));
        for bad in ["4096x4096", "m_4096x64", "m1", "m1_4x4_2", "m1_4x4_t2_x"] {
            assert_eq!(Shape::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn growth_is_in_times_of_one_row_and_leaves_out_what_was_not_measured() {
        let product = |id: &str, shape: &str, ns: f64| {
            let mut row = row(Vec::new());
            row.row.table = Table::Product;
            (row.row.id, row.row.shape) = (id.into(), shape.into());
            row.variants[0].ns_min = ns;
            row
        };
        let mut results = results(Vec::new(), Vec::new());
        results.rows = vec![
            product("product/a", "m1_4096x4096", 100.0),
            product("product/a", "m8_4096x4096", 150.0),
            product("product/a", "m8_4096x4096_t2", 1.0),
            product("product/b", "m1_4096x4096", 100.0),
        ];
        let mut out = String::new();
        render(&mut out, &results);
        assert!(out.contains("| M | 1 | 8 |"), "{out}");
        assert!(out.contains("| `product/a` | 1.00 | 1.50 |"), "{out}");
        assert!(!out.contains("| `product/b` | 1"), "{out}");
    }
}
