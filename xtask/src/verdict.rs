//! Shares of limits, drift of the probe, and whether a target is met.
//!
//! The passing rule: a target is met by the minimum over at least three launches while the limit that binds the row, as the probe saw it
//! before, between and after, stays within 10 %. Otherwise the run is inconclusive, whatever the figure. What is compared with a probe in
//! the row's own process was timed with it in turn: there the median of their ratios counts, which drift does not touch.

use crate::results::{Limit, Probe, Residency, Results, RowResult, Target};

/// Largest tolerated drift of a limit within a run.
pub(crate) const MOST_DRIFT: f64 = 1.10;
/// Fewest launches for a verdict.
pub(crate) const FEWEST_LAUNCHES: usize = 3;

/// The best figure of one probe for `limit` on so many threads, in units per nanosecond.
fn figure(probe: &Probe, limit: Limit, threads: usize) -> Option<f64> {
    let level = |residency| match residency {
        Residency::L1 => "l1",
        Residency::L2 => "l2",
        Residency::L3 => "l3",
        Residency::Dram => "dram",
    };
    let names = match limit {
        Limit::Read(residency) => vec![format!("read_{}", level(residency))],
        // Whichever copies faster is what the machine can do.
        Limit::Copy(residency) => {
            vec![format!("copy_{}", level(residency)), format!("memcpy_{}", level(residency))]
        }
        // Nothing is computed from it, but the clock that it shows must be steady.
        Limit::Fma | Limit::None => vec!["fma_f32".to_owned()],
        // Whichever multiplies faster: on some CPUs the multiply-adds of widened numbers.
        Limit::Bf16Dot => vec!["dot_bf16".to_owned(), "fma_f32".to_owned()],
        Limit::Int8Dot => vec!["dot_int8".to_owned()],
    };
    let entry = probe.threads.iter().find(|entry| entry.threads == threads)?;
    entry
        .figures
        .iter()
        .filter(|figure| names.contains(&figure.name))
        .map(|figure| figure.best)
        .reduce(f64::max)
}

/// The shortest time in ns that `limit` allows for the row, by the best of the run's probes.
#[must_use]
pub(crate) fn limit_ns(results: &Results, row: &RowResult) -> Option<f64> {
    let (work, limit) = (row.row.work, row.row.limit);
    let amount = match limit {
        Limit::Read(_) => work.read,
        Limit::Copy(_) => work.read + work.written,
        Limit::Fma | Limit::Bf16Dot | Limit::Int8Dot => work.flops,
        Limit::None => return None,
    };
    let figures = results.probes.iter().filter_map(|probe| figure(probe, limit, row.row.threads));
    let best = figures.reduce(f64::max)?;
    Some(amount as f64 / best)
}

/// Largest over smallest figure of a row's limit among the run's probes.
#[must_use]
pub(crate) fn drift(results: &Results, row: &RowResult) -> Option<f64> {
    let figures = || {
        let (limit, threads) = (row.row.limit, row.row.threads);
        results.probes.iter().filter_map(move |probe| figure(probe, limit, threads))
    };
    Some(figures().reduce(f64::max)? / figures().reduce(f64::min)?)
}

/// Whether a target is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The figure reaches it.
    Met,
    /// The figure does not.
    Missed,
    /// The run was too short, or the machine changed during it.
    Inconclusive,
    /// What it is compared with was not measured.
    NotMeasured,
}

/// One target with what was found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Judged {
    /// The target in words.
    pub(crate) wanted: String,
    /// The figure in the target's unit.
    pub(crate) figure: Option<f64>,
    /// How to print the figure.
    pub(crate) unit: Unit,
    /// Met or not.
    pub(crate) verdict: Verdict,
}

/// How a figure is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// As per cent.
    Share,
    /// As a multiple.
    Times,
}

/// Judges one target of a row.
#[must_use]
pub(crate) fn judge(results: &Results, row: &RowResult, target: &Target) -> Judged {
    let ours = row.variant("ours");
    let mut steady = drift(results, row).is_some_and(|drift| drift <= MOST_DRIFT);
    let (wanted, unit, figure, reached) = match target {
        Target::AtLeastShareOfLimit { share } => {
            let figure = ours.and_then(|ours| Some(limit_ns(results, row)? / ours.ns_min));
            (
                format!("≥ {} of the limit", percent(*share)),
                Unit::Share,
                figure,
                figure.map(|f| f >= *share),
            )
        }
        Target::AtLeastShareOfProbe { probe, share } => {
            let figure = share_of_probe(row, probe);
            steady |= figure.is_some();
            (
                format!("≥ {} of {probe}'s GB/s", percent(*share)),
                Unit::Share,
                figure,
                figure.map(|f| f >= *share),
            )
        }
        Target::AtMostTimesProbe { probe, times } => {
            let figure = of_probe(row, probe).map(|over_ours| 1.0 / over_ours);
            steady |= figure.is_some();
            (
                format!("≤ {}× {probe}", multiple(*times)),
                Unit::Times,
                figure,
                figure.map(|f| f <= *times),
            )
        }
        Target::AtMostTimesShape { shape, times } => {
            let other =
                results.rows.iter().find(|r| r.row.id == row.row.id && r.row.shape == *shape);
            let other = other.and_then(|row| row.variant("ours"));
            let figure = ours.zip(other).map(|(ours, other)| ours.ns_min / other.ns_min);
            (
                format!("≤ {}× {shape}", multiple(*times)),
                Unit::Times,
                figure,
                figure.map(|f| f <= *times),
            )
        }
        Target::AtLeastTimesPeer { peer, times } => {
            let figure =
                ours.zip(peer_ns(results, row, peer)).map(|(ours, peer)| peer / ours.ns_min);
            (
                format!("≥ {}× as fast as {peer}", multiple(*times)),
                Unit::Times,
                figure,
                figure.map(|f| f >= *times),
            )
        }
    };
    let verdict = match reached {
        None => Verdict::NotMeasured,
        Some(_) if !steady || results.machine.launches < FEWEST_LAUNCHES => Verdict::Inconclusive,
        Some(true) => Verdict::Met,
        Some(false) => Verdict::Missed,
    };
    Judged { wanted, figure, unit, verdict }
}

/// The time of `probe-{name}` over that of ours, as they were timed in turn.
fn of_probe(row: &RowResult, name: &str) -> Option<f64> {
    row.variant(&format!("probe-{name}"))?.over_ours
}

/// Bytes per second of ours over those of `probe-{name}`.
#[must_use]
pub(crate) fn share_of_probe(row: &RowResult, name: &str) -> Option<f64> {
    let (ours, probe) = (row.variant("ours")?, row.variant(&format!("probe-{name}"))?);
    Some(probe.over_ours? * ours.bytes as f64 / probe.bytes as f64)
}

/// The fastest time of a peer for a row on as many threads, from outside or inside the process.
#[must_use]
pub(crate) fn peer_ns(results: &Results, row: &RowResult, peer: &str) -> Option<f64> {
    let same_row = |p: &&crate::results::PeerResult| {
        p.row == row.row.id
            && p.shape == row.row.shape
            && p.name() == peer
            && p.threads == row.row.threads
    };
    let outside = results.peers.iter().filter(same_row).map(|p| p.ns_min);
    let inside = row.variant(&format!("peer-{peer}")).map(|variant| variant.ns_min);
    outside.chain(inside).reduce(f64::min)
}

/// With two decimals at most.
fn multiple(times: f64) -> String {
    let text = format!("{times:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::results::{
        Caches, Figure, Machine, PeerResult, Row, Table, ThreadLimits, Variant, Work,
    };

    pub(crate) fn probe(copy_l2: f64) -> Probe {
        let figure = |name: &str, best| Figure {
            name: name.to_owned(),
            unit: "GB/s".to_owned(),
            best,
            median: best,
        };
        let figures =
            vec![figure("copy_l2", copy_l2), figure("memcpy_l2", 80.0), figure("fma_f32", 118.0)];
        Probe {
            cpu: "CPU".to_owned(),
            isa: "avx512".to_owned(),
            cores: 2,
            caches: Caches { l1: 32768, l2: 1 << 20, l3: 32 << 20 },
            threads: vec![ThreadLimits { threads: 1, pinned: true, figures }],
        }
    }

    pub(crate) fn row(targets: Vec<Target>) -> RowResult {
        let variant = |name: &str, bytes, ns_min| Variant {
            name: name.to_owned(),
            bytes,
            ns_min,
            ns_median: 1.1 * ns_min,
            over_ours: None,
        };
        RowResult {
            row: Row {
                id: "fp8/encode_e4m3_channel".to_owned(),
                module: "Fp8Quantizer".to_owned(),
                operation: "encode".to_owned(),
                shape: "128x128".to_owned(),
                table: Table::Seed,
                work: Work { read: 65_536, written: 16_384, flops: 0 },
                limit: Limit::Copy(Residency::L2),
                threads: 1,
                targets,
                note: String::new(),
                release_profile: true,
            },
            variants: vec![
                variant("ours", 81_920, 2000.0),
                Variant { over_ours: Some(0.5), ..variant("probe-memcpy", 131_072, 1000.0) },
            ],
        }
    }

    pub(crate) fn results(probes: Vec<Probe>, targets: Vec<Target>) -> Results {
        Results {
            machine: Machine { launches: 3, cores: 2, ..Machine::default() },
            probes,
            seed: Vec::new(),
            rows: vec![row(targets)],
            peers: vec![PeerResult {
                row: "fp8/encode_e4m3_channel".to_owned(),
                peer: "torch 2.15.0".to_owned(),
                shape: "128x128".to_owned(),
                ns_min: 9000.0,
                ns_median: 9500.0,
                threads: 1,
            }],
            missing_peers: Vec::new(),
            release: Vec::new(),
        }
    }

    fn verdict(results: &Results) -> (Option<f64>, Verdict) {
        let judged = judge(results, &results.rows[0], &results.rows[0].row.targets[0]);
        (judged.figure.map(|f| (f * 1000.0).round() / 1000.0), judged.verdict)
    }

    #[test]
    fn each_kind_of_target_is_judged_on_its_own_figure() {
        let memcpy = || "memcpy".to_owned();
        let torch = || "torch".to_owned();
        // 81920 B at 100 GB/s take 819.2 ns of 2000; memcpy moves 131 B/ns, ours 41.
        for (target, figure, met) in [
            (Target::AtLeastShareOfLimit { share: 0.40 }, 0.41, Verdict::Met),
            (Target::AtLeastShareOfLimit { share: 0.42 }, 0.41, Verdict::Missed),
            (Target::AtLeastShareOfProbe { probe: memcpy(), share: 0.3 }, 0.313, Verdict::Met),
            (Target::AtLeastShareOfProbe { probe: memcpy(), share: 0.4 }, 0.313, Verdict::Missed),
            (Target::AtMostTimesProbe { probe: memcpy(), times: 2.0 }, 2.0, Verdict::Met),
            (Target::AtMostTimesProbe { probe: memcpy(), times: 1.9 }, 2.0, Verdict::Missed),
            (Target::AtMostTimesShape { shape: "128x128".into(), times: 1.0 }, 1.0, Verdict::Met),
            (
                Target::AtMostTimesShape { shape: "128x128".into(), times: 0.9 },
                1.0,
                Verdict::Missed,
            ),
            (Target::AtLeastTimesPeer { peer: torch(), times: 4.5 }, 4.5, Verdict::Met),
            (Target::AtLeastTimesPeer { peer: torch(), times: 5.0 }, 4.5, Verdict::Missed),
        ] {
            let results = results(vec![probe(100.0), probe(99.0)], vec![target.clone()]);
            assert_eq!(verdict(&results), (Some(figure), met), "{target:?}");
        }
    }

    #[test]
    fn a_drifting_limit_or_too_few_launches_make_a_run_inconclusive_even_where_the_figure_is_good()
    {
        let target = || vec![Target::AtLeastShareOfLimit { share: 0.1 }];
        let drifting = results(vec![probe(100.0), probe(90.0)], target());
        assert_eq!(verdict(&drifting).1, Verdict::Inconclusive);
        let steady = results(vec![probe(100.0), probe(91.0)], target());
        assert_eq!(verdict(&steady).1, Verdict::Met);
        let mut short = results(vec![probe(100.0)], target());
        short.machine.launches = 1;
        assert_eq!(verdict(&short).1, Verdict::Inconclusive);
    }

    #[test]
    fn what_was_timed_in_turn_needs_no_steady_machine_but_launches_enough() {
        let target = || vec![Target::AtLeastShareOfProbe { probe: "memcpy".into(), share: 0.3 }];
        let mut drifting = results(vec![probe(100.0), probe(80.0)], target());
        assert_eq!(verdict(&drifting), (Some(0.313), Verdict::Met));
        // The median of the ratios counts, not the ratio of the minima.
        drifting.rows[0].variants[1].over_ours = Some(0.4);
        assert_eq!(verdict(&drifting), (Some(0.25), Verdict::Missed));
        drifting.machine.launches = 2;
        assert_eq!(verdict(&drifting).1, Verdict::Inconclusive);
    }

    #[test]
    fn a_missing_peer_is_not_a_missed_target() {
        let results = results(
            vec![probe(100.0)],
            vec![Target::AtLeastTimesPeer { peer: "float8".to_owned(), times: 10.0 }],
        );
        assert_eq!(verdict(&results), (None, Verdict::NotMeasured));
    }

    #[test]
    fn peers_on_more_threads_or_at_another_shape_do_not_count() {
        let mut results = results(vec![probe(100.0)], Vec::new());
        assert_eq!(peer_ns(&results, &results.rows[0], "torch"), Some(9000.0));
        results.peers[0].threads = 2;
        assert_eq!(peer_ns(&results, &results.rows[0], "torch"), None);
        results.peers[0].threads = 1;
        results.peers[0].shape = "4096x4096".to_owned();
        assert_eq!(peer_ns(&results, &results.rows[0], "torch"), None);
    }
}
