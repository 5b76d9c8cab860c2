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

/// Time by number of rows, in times of one row, and its chart.
fn growth(out: &mut String, rows: &[&RowResult]) {
    const SIZE: &str = "4096x4096";
    let one_thread = |row: &&&RowResult| {
        Shape::parse(&row.row.shape).is_some_and(|s| s.size == SIZE && s.threads == 1)
    };
    let time = |id: &str, m: usize| {
        let row = rows.iter().filter(one_thread).find(|row| {
            row.row.id == id && Shape::parse(&row.row.shape).is_some_and(|s| s.rows == m)
        });
        row.and_then(|row| row.variant("ours")).map(|ours| ours.ns_min)
    };
    let mut counts: Vec<usize> = rows
        .iter()
        .filter(one_thread)
        .filter_map(|row| Some(Shape::parse(&row.row.shape)?.rows))
        .filter(|&m| m <= 64)
        .collect();
    counts.sort_unstable();
    counts.dedup();
    let mut ids: Vec<&str> = rows.iter().map(|row| row.row.id.as_str()).collect();
    ids.dedup();
    ids.retain(|id| counts.iter().all(|&m| time(id, m).is_some()));
    if counts.len() < 2 || counts[0] != 1 || ids.is_empty() {
        return;
    }
    line!(out);
    line!(out, "### What rows cost: r(M) = t(M) / t(1), {SIZE}, one thread");
    line!(out);
    let heads: Vec<String> = counts.iter().map(ToString::to_string).collect();
    line!(out, "| M | {} |", heads.join(" | "));
    line!(out, "|---|{}", "--:|".repeat(counts.len()));
    for id in &ids {
        let first = time(id, counts[0]);
        let cells: Vec<String> = counts
            .iter()
            .map(|&m| cell(first.zip(time(id, m)).map(|(first, time)| time / first)))
            .collect();
        line!(out, "| `{id}` | {} |", cells.join(" | "));
    }
    line!(out);
    line!(out, "```mermaid");
    line!(out, "xychart-beta");
    line!(out, "    title \"r(M), a line for each row of the table above, in its order\"");
    line!(out, "    x-axis \"rows of inputs, M\" [{}]", heads.join(", "));
    line!(out, "    y-axis \"times the time of one row\"");
    for id in &ids {
        let first = time(id, counts[0]).unwrap_or(f64::NAN);
        let points: Vec<String> = counts
            .iter()
            .map(|&m| format!("{:.2}", time(id, m).unwrap_or(f64::NAN) / first))
            .collect();
        line!(out, "    line [{}]", points.join(", "));
    }
    line!(out, "```");
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
        assert!(
            out.contains("    line [1.00, 1.50]") && !out.contains("| `product/b` | 1"),
            "{out}"
        );
    }
}
