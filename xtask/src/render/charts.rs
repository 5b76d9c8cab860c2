//! The charts of BENCHMARKS.md: what is drawn of the rows.

use super::products::{growth_counts, growth_of};
use crate::{
    charts::{Axis, Chart, Content, Scale, Series},
    results::{Results, RowResult, Table},
    verdict::limit_ns,
};

/// Those that there are rows for.
#[must_use]
pub(crate) fn charts(results: &Results) -> Vec<Chart> {
    [shares(results), decode(results), growth(results)].into_iter().flatten().collect()
}

/// The share of its limit that each row reaches.
fn shares(results: &Results) -> Option<Chart> {
    let bar = |row: &RowResult| {
        let share = limit_ns(results, row)? / row.variant("ours")?.ns_min;
        Some((format!("{} {}", row.row.id, row.row.shape), share))
    };
    let rows = results.rows.iter().filter(|row| row.row.table != Table::Sweep);
    let bars: Vec<(String, f64)> = rows.filter_map(bar).collect();
    let title = "Share of its limit that each row reaches".to_owned();
    (!bars.is_empty()).then_some(Chart { name: "limits", title, content: Content::Bars(bars) })
}

/// Time of a decode step by the tokens of the context.
fn decode(results: &Results) -> Option<Chart> {
    const HEADS: &str = "32q8kv_";
    let tokens =
        |shape: &str| -> Option<f64> { shape.strip_prefix(HEADS)?.split('x').next()?.parse().ok() };
    let mut series: Vec<Series> = Vec::new();
    for row in results.rows.iter().filter(|row| row.row.id.starts_with("attention/decode")) {
        let (Some(tokens), Some(ours)) = (tokens(&row.row.shape), row.variant("ours")) else {
            continue;
        };
        let point = [tokens, ours.ns_min / 1e6];
        match series.iter_mut().find(|series| series.name == row.row.id) {
            Some(series) => series.points.push(point),
            None => series.push(Series { name: row.row.id.clone(), points: vec![point] }),
        }
    }
    series.retain(|series| series.points.len() > 1);
    for series in &mut series {
        series.points.sort_by(|a, b| a[0].total_cmp(&b[0]));
    }
    let axes = [
        Axis { name: "tokens of context", scale: Scale::Log },
        Axis { name: "ms of a step in one layer", scale: Scale::Log },
    ];
    let title = "Time of a decode step of 32 heads, 8 of keys, by the tokens of the context";
    let content = Content::Lines { axes, series };
    let is_empty = matches!(&content, Content::Lines { series, .. } if series.is_empty());
    (!is_empty).then_some(Chart { name: "decode", title: title.to_owned(), content })
}

/// Time of a product by its rows of inputs, in times of one row.
fn growth(results: &Results) -> Option<Chart> {
    let rows: Vec<&RowResult> =
        results.rows.iter().filter(|row| row.row.table == Table::Product).collect();
    let counts = growth_counts(&rows);
    let series: Vec<Series> = growth_of(&rows, &counts)
        .into_iter()
        .map(|(id, times)| Series {
            name: id.to_owned(),
            points: counts.iter().zip(times).map(|(&m, times)| [m as f64, times]).collect(),
        })
        .collect();
    let axes = [
        Axis { name: "rows of inputs, M", scale: Scale::Log },
        Axis { name: "times the time of one row", scale: Scale::Log },
    ];
    let title = "Time of a product by its rows of inputs, in times of one row".to_owned();
    let content = Content::Lines { axes, series };
    let is_empty = matches!(&content, Content::Lines { series, .. } if series.is_empty());
    (!is_empty).then_some(Chart { name: "products", title, content })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::tests::{probe, results, row};

    #[test]
    fn charts_show_the_rows_that_they_are_for() {
        let mut results = results(vec![probe(100.0)], Vec::new());
        let with = |id: &str, shape: &str, table, ns: f64| {
            let mut row = row(Vec::new());
            (row.row.id, row.row.shape, row.row.table) = (id.into(), shape.into(), table);
            row.variants[0].ns_min = ns;
            row
        };
        results.rows = vec![
            with("attention/decode_bf16", "32q8kv_8192x128", Table::Llm, 4e6),
            with("attention/decode_bf16", "32q8kv_2048x128", Table::Llm, 1e6),
            with("attention/decode_f32", "32q8kv_8192x128", Table::Llm, 9e6),
            with("product/a", "m1_4096x4096", Table::Product, 100.0),
            with("product/a", "m8_4096x4096", Table::Product, 150.0),
        ];
        let charts = charts(&results);
        let [limits, decode, products] = &charts[..] else { panic!("{charts:?}") };
        assert!(matches!(&limits.content, Content::Bars(bars) if bars.len() == 5));
        let Content::Lines { series, .. } = &decode.content else { panic!("{decode:?}") };
        // One point is no line.
        assert_eq!(series.len(), 1);
        assert_eq!(series[0].points, [[2048.0, 1.0], [8192.0, 4.0]]);
        let Content::Lines { series, .. } = &products.content else { panic!("{products:?}") };
        assert_eq!(series[0].points, [[1.0, 1.0], [8.0, 1.5]]);
    }

    #[test]
    fn without_rows_there_are_no_charts() {
        let mut results = results(Vec::new(), Vec::new());
        results.rows.clear();
        assert!(charts(&results).is_empty());
    }
}
