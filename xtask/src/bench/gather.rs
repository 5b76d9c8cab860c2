//! From the rounds of a run to its rows: minima over samples and launches, with every row measured and every measurement declared.

use std::collections::BTreeMap;

use super::launch::{Described, RoundResult};
use crate::results::{PeerResult, Results, RowResult, SeedRow, Table, Variant};

/// Group, function and value of a measurement.
type Key = (String, String, String);

/// The rows of all rounds: those of the seed in its order, then the others by id and shape.
///
/// # Errors
///
/// All mismatches at once: variants without measurement, measurements without row, seed rows that the seed does not have, rows that
/// differ between launches.
pub(crate) fn rows(rounds: Vec<RoundResult>, seed: &[SeedRow]) -> Result<Vec<RowResult>, String> {
    let mut faults = Vec::new();
    let mut samples: BTreeMap<Key, Vec<f64>> = BTreeMap::new();
    let mut described: BTreeMap<(String, String), Described> = BTreeMap::new();
    for round in rounds {
        for measured in round.measured {
            samples
                .entry((measured.id, measured.variant, measured.shape))
                .or_default()
                .extend(measured.ns);
        }
        for row in round.described {
            let key = (row.row.id.clone(), row.row.shape.clone());
            for variant in row.variants.iter().filter(|variant| !variant.ns.is_empty()) {
                let key = (key.0.clone(), variant.name.clone(), key.1.clone());
                samples.entry(key).or_default().extend(&variant.ns);
            }
            match described.get(&key) {
                Some(known) if known.row != row.row => {
                    faults.push(format!("`{}` {} differs between launches", key.0, key.1));
                }
                Some(_) => {}
                None => drop(described.insert(key, row)),
            }
        }
    }

    let mut rows = Vec::new();
    for ((id, shape), row) in described {
        if row.row.table == Table::Seed && !seed.iter().any(|seed| seed.id == id) {
            faults.push(format!(
                "`{id}` is declared a seed row, and bench/seed/rows.csv has no such id"
            ));
        }
        let (mut variants, mut ours) = (Vec::new(), Vec::new());
        for variant in row.variants {
            let Some(ns) = samples.remove(&(id.clone(), variant.name.clone(), shape.clone()))
            else {
                faults.push(format!("row `{id}` {shape} has no measurement of `{}`", variant.name));
                continue;
            };
            // Whatever is timed in turn is timed with ours, which stands first.
            let in_turn = !variant.ns.is_empty() && ns.len() == ours.len();
            let over_ours = in_turn.then(|| median_ratio(&ns, &ours));
            if variant.name == "ours" {
                ours.clone_from(&ns);
            }
            variants.push(Variant { over_ours, ..figures(variant.name, variant.bytes, ns) });
        }
        rows.push(RowResult { row: row.row, variants });
    }
    faults.extend(samples.into_keys().map(|(id, variant, shape)| {
        format!("measurement `{id}/{variant}/{shape}` belongs to no row")
    }));
    let mut seed_shapes: BTreeMap<&str, &str> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.row.table == Table::Seed) {
        if let Some(other) = seed_shapes.insert(&row.row.id, &row.row.shape) {
            faults.push(format!(
                "seed row `{}` is declared at {other} and at {}",
                row.row.id, row.row.shape
            ));
        }
    }
    if !faults.is_empty() {
        return Err(faults.join("\n"));
    }

    let place = |row: &RowResult| match row.row.table {
        Table::Seed => seed.iter().position(|seed| seed.id == row.row.id).unwrap_or(seed.len()),
        Table::Llm | Table::Product | Table::Sweep => seed.len(),
    };
    // Stable, and the map was ordered by id and shape.
    rows.sort_by_key(place);
    Ok(rows)
}

/// Why the results of a run of everything are not to be published.
#[must_use]
pub(crate) fn faults(results: &Results) -> Vec<String> {
    let mut faults = strangers(results);
    if results.rows.is_empty() {
        faults.push("no row was measured".to_owned());
    }
    faults
}

/// Peers' figures for rows that this run did not measure: a misspelled id, or a row that was not selected.
#[must_use]
fn strangers(results: &Results) -> Vec<String> {
    let is_known = |peer: &&PeerResult| {
        results.rows.iter().any(|row| row.row.id == peer.row && row.row.shape == peer.shape)
    };
    let strangers = results.peers.iter().filter(|peer| !is_known(peer));
    strangers
        .map(|peer| {
            format!(
                "{} measured `{}` {}, which is no row of this run",
                peer.peer, peer.row, peer.shape
            )
        })
        .collect()
}

fn figures(name: String, bytes: u64, mut ns: Vec<f64>) -> Variant {
    ns.sort_by(f64::total_cmp);
    let rounded = |ns: f64| (ns * 1000.0).round() / 1000.0;
    let (ns_min, ns_median) = (rounded(ns[0]), rounded(ns[ns.len() / 2]));
    Variant { name, bytes, ns_min, ns_median, over_ours: None }
}

/// The median of the ratios of samples that were taken in turn.
fn median_ratio(numerators: &[f64], denominators: &[f64]) -> f64 {
    let mut ratios: Vec<f64> = numerators.iter().zip(denominators).map(|(a, b)| a / b).collect();
    ratios.sort_by(f64::total_cmp);
    (ratios[ratios.len() / 2] * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{launch::DescribedVariant, samples::Measured};
    use crate::verdict::tests::row;

    fn round(ns: &[f64]) -> RoundResult {
        let row = row(Vec::new()).row;
        let measured = Measured {
            id: row.id.clone(),
            variant: "ours".to_owned(),
            shape: row.shape.clone(),
            ns: ns.to_vec(),
        };
        let variants =
            vec![DescribedVariant { name: "ours".to_owned(), bytes: 10, ns: Vec::new() }];
        RoundResult { described: vec![Described { row, variants }], measured: vec![measured] }
    }

    fn seed() -> Vec<SeedRow> {
        crate::results::parse_seed(include_str!("../../../bench/seed/rows.csv")).unwrap()
    }

    #[test]
    fn a_figure_is_the_minimum_over_samples_and_launches_and_the_noise_their_median() {
        let rows = rows(vec![round(&[12.0, 11.0]), round(&[10.0, 30.0]), round(&[13.0])], &seed())
            .unwrap();
        let ours = rows[0].variant("ours").unwrap();
        assert_eq!((ours.ns_min, ours.ns_median), (10.0, 12.0));
    }

    #[test]
    fn what_was_timed_in_turn_is_compared_sample_by_sample_over_all_launches() {
        let launch = |ours: &[f64], probe: &[f64]| {
            let variant = |name: &str, ns: &[f64]| DescribedVariant {
                name: name.to_owned(),
                bytes: 10,
                ns: ns.to_vec(),
            };
            let variants = vec![variant("ours", ours), variant("probe-read", probe)];
            let described = vec![Described { row: row(Vec::new()).row, variants }];
            RoundResult { described, ..RoundResult::default() }
        };
        // The machine is at half its rate for the second sample.
        let rows =
            rows(vec![launch(&[10.0, 20.0], &[9.0, 18.0]), launch(&[10.0], &[5.0])], &seed())
                .unwrap();
        let [ours, probe] = &rows[0].variants[..] else { panic!("two variants") };
        assert_eq!((ours.ns_min, ours.over_ours), (10.0, None));
        assert_eq!((probe.ns_min, probe.over_ours), (5.0, Some(0.9)));
    }

    #[test]
    fn a_row_without_measurement_and_a_measurement_without_row_are_faults() {
        let mut missing = round(&[1.0]);
        missing.measured[0].variant = "scalar".to_owned();
        let faults = rows(vec![missing], &seed()).unwrap_err();
        assert_eq!(
            faults,
            "row `fp8/encode_e4m3_channel` 128x128 has no measurement of `ours`\n\
             measurement `fp8/encode_e4m3_channel/scalar/128x128` belongs to no row"
        );
    }

    #[test]
    fn a_seed_row_must_stand_in_the_seed_and_once() {
        let mut unknown = round(&[1.0]);
        unknown.described[0].row.id = "fp8/encode".to_owned();
        unknown.measured[0].id = "fp8/encode".to_owned();
        assert!(rows(vec![unknown], &seed()).unwrap_err().contains("has no such id"));

        let mut twice = round(&[1.0]);
        let mut other = round(&[1.0]);
        other.described[0].row.shape = "1x1".to_owned();
        other.measured[0].shape = "1x1".to_owned();
        twice.described.append(&mut other.described);
        twice.measured.append(&mut other.measured);
        assert!(rows(vec![twice], &seed()).unwrap_err().contains("declared at 128x128 and at 1x1"));
    }

    #[test]
    fn a_peer_s_figure_for_no_row_is_named() {
        let mut results = crate::verdict::tests::results(Vec::new(), Vec::new());
        assert!(strangers(&results).is_empty());
        results.peers[0].shape = "4x4".to_owned();
        assert_eq!(
            strangers(&results),
            ["torch 2.15.0 measured `fp8/encode_e4m3_channel` 4x4, which is no row of this run"]
        );
    }

    #[test]
    fn a_run_of_everything_without_a_row_is_a_fault() {
        let mut results = crate::verdict::tests::results(Vec::new(), Vec::new());
        assert!(faults(&results).is_empty());
        results.rows.clear();
        results.peers.clear();
        assert_eq!(faults(&results), ["no row was measured"]);
    }

    #[test]
    fn a_row_that_changes_between_launches_is_a_fault() {
        let mut changed = round(&[1.0]);
        changed.described[0].row.work.read += 1;
        assert!(
            rows(vec![round(&[1.0]), changed], &seed())
                .unwrap_err()
                .contains("differs between launches")
        );
    }
}
