//! What a run leaves behind: `bench/results/<machine>.json`, from which alone BENCHMARKS.md is rendered.

use serde::{Deserialize, Serialize};

/// One run of all suites on one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    /// Where and of what.
    pub(crate) machine: Machine,
    /// Before, between and after the launches.
    pub(crate) probes: Vec<Probe>,
    /// The seed's rows, all of them, so that a table can say how many are done.
    pub(crate) seed: Vec<SeedRow>,
    /// Measured rows: those of the seed in its order, then the others by id and shape.
    pub(crate) rows: Vec<RowResult>,
    /// Peers from outside the process.
    pub(crate) peers: Vec<PeerResult>,
    /// One line for each peer program that did not run.
    pub(crate) missing_peers: Vec<String>,
    /// Rows at cargo's default release profile.
    pub(crate) release: Vec<RowResult>,
}

/// Machine, compiler and commit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Name of the processor.
    pub(crate) cpu: String,
    /// SIMD level and extensions.
    pub(crate) isa: String,
    /// Cores that the run could use.
    pub(crate) cores: usize,
    /// Operating system and architecture.
    pub(crate) os: String,
    /// First line of `rustc --version`.
    pub(crate) rustc: String,
    /// Commit, with `+changes` if the tree had uncommitted ones.
    pub(crate) commit: String,
    /// Day of the run, UTC.
    pub(crate) date: String,
    /// How often each bench process was started.
    pub(crate) launches: usize,
}

/// One run of the probe; field names as `squish-bench` writes them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Probe {
    /// Name of the processor.
    pub(crate) cpu: String,
    /// SIMD level and extensions.
    pub(crate) isa: String,
    /// Cores.
    pub(crate) cores: usize,
    /// Cache sizes in bytes.
    pub(crate) caches: Caches,
    /// One entry per number of threads.
    pub(crate) threads: Vec<ThreadLimits>,
}

/// Cache sizes in bytes, 0 where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Caches {
    /// First level, data.
    pub(crate) l1: u64,
    /// Second level.
    pub(crate) l2: u64,
    /// Third level.
    pub(crate) l3: u64,
}

/// Limits at one number of threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ThreadLimits {
    /// Number of threads.
    pub(crate) threads: usize,
    /// Whether each had a core of its own.
    pub(crate) pinned: bool,
    /// The figures.
    pub(crate) figures: Vec<Figure>,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// For example `copy_l2`.
    pub(crate) name: String,
    /// For example `GB/s`.
    pub(crate) unit: String,
    /// Best pass.
    pub(crate) best: f64,
    /// Median pass.
    pub(crate) median: f64,
}

/// A row of `bench/seed/rows.csv`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SeedRow {
    /// `module/operation`.
    pub(crate) id: String,
    /// Module as the seed calls it.
    pub(crate) module: String,
    /// Operation as the seed calls it.
    pub(crate) operation: String,
    /// Sizes in the seed's words.
    pub(crate) workload: String,
    /// Published latency in µs (Apple M-series).
    pub(crate) seed_us: f64,
    /// The same benchmark on 2 cores of Zen 5, in µs.
    pub(crate) reference_us: f64,
}

/// A measured row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RowResult {
    /// As its bench declares it.
    #[serde(flatten)]
    pub(crate) row: Row,
    /// What was timed.
    pub(crate) variants: Vec<Variant>,
}

/// The declaration of a row; `squish_bench::Row` as read back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// `module/operation`.
    pub(crate) id: String,
    /// Type or module.
    pub(crate) module: String,
    /// What is called.
    pub(crate) operation: String,
    /// Sizes.
    pub(crate) shape: String,
    /// Where it is printed.
    pub(crate) table: Table,
    /// Bytes and operations of one call.
    pub(crate) work: Work,
    /// The binding limit.
    pub(crate) limit: Limit,
    /// Threads of one call.
    #[serde(default = "one")]
    pub(crate) threads: usize,
    /// What must be reached.
    pub(crate) targets: Vec<Target>,
    /// A remark.
    pub(crate) note: String,
    /// Whether it is measured again at the default release profile.
    pub(crate) release_profile: bool,
}

/// Where a row is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Table {
    /// Among the seed's rows.
    Seed,
    /// Among the rows with shapes of real models.
    Llm,
    /// Among the products with packed weights.
    Product,
    /// To the terminal only.
    Sweep,
}

/// What files say that were written before rows had a number of threads.
const fn one() -> usize {
    1
}

/// What one call moves and computes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Work {
    /// Bytes read.
    pub(crate) read: u64,
    /// Bytes written.
    pub(crate) written: u64,
    /// Operations.
    pub(crate) flops: u64,
}

/// Level of the memory that holds the working set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Residency {
    /// First-level cache.
    L1,
    /// Second-level cache.
    L2,
    /// Third-level cache.
    L3,
    /// Main memory.
    Dram,
}

/// The binding limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "residency", rename_all = "snake_case")]
pub(crate) enum Limit {
    /// Read bandwidth.
    Read(Residency),
    /// Copy bandwidth.
    Copy(Residency),
    /// f32 multiply-add peak.
    Fma,
    /// bf16 dot-product peak, or multiply-add peak where it is higher.
    Bf16Dot,
    /// int8 dot-product peak.
    Int8Dot,
    /// None that the probe measures.
    None,
}

/// What a row must reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(clippy::enum_variant_names, reason = "the names of `squish_bench::Target`")]
pub(crate) enum Target {
    /// Limit time over time.
    AtLeastShareOfLimit {
        /// At least this.
        share: f64,
    },
    /// Bytes per second over those of a probe in the same group.
    AtLeastShareOfProbe {
        /// The probe.
        probe: String,
        /// At least this.
        share: f64,
    },
    /// Time over the time of a probe in the same group.
    AtMostTimesProbe {
        /// The probe.
        probe: String,
        /// At most this.
        times: f64,
    },
    /// Time over our time at another shape of the row.
    AtMostTimesShape {
        /// The other shape.
        shape: String,
        /// At most this.
        times: f64,
    },
    /// Time of a peer over time.
    AtLeastTimesPeer {
        /// The peer, without version.
        peer: String,
        /// At least this.
        times: f64,
    },
}

/// One timed variant of a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Variant {
    /// `ours`, a level, `peer-*`, `probe-*`, or another form.
    pub(crate) name: String,
    /// Bytes that one call moves.
    pub(crate) bytes: u64,
    /// Minimum over samples and launches.
    pub(crate) ns_min: f64,
    /// Median over samples of all launches.
    pub(crate) ns_median: f64,
    /// Of a probe that was timed in turn with ours, its time over that of ours: the median over samples of all launches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) over_ours: Option<f64>,
}

/// A line that a peer program printed, or several of them merged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PeerResult {
    /// Id of the row.
    pub(crate) row: String,
    /// Name and version, for example `torch 2.15.0`.
    pub(crate) peer: String,
    /// Shape of the row.
    pub(crate) shape: String,
    /// Minimum.
    pub(crate) ns_min: f64,
    /// Median.
    pub(crate) ns_median: f64,
    /// Threads it was allowed.
    pub(crate) threads: usize,
}

impl RowResult {
    /// The variant called `name`.
    #[must_use]
    pub(crate) fn variant(&self, name: &str) -> Option<&Variant> {
        self.variants.iter().find(|variant| variant.name == name)
    }
}

impl PeerResult {
    /// The name without its version.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        self.peer.split(' ').next().unwrap_or(&self.peer)
    }
}

/// The file name of a machine's results: processor and cores in lower case, words joined by dashes.
#[must_use]
pub(crate) fn slug(cpu: &str, cores: usize) -> String {
    let text = format!("{cpu} {cores} cores").to_lowercase();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

/// The rows of the seed's CSV file.
///
/// # Errors
///
/// A message with the line number if a line does not have the eight columns or its figures are no numbers.
pub(crate) fn parse_seed(csv: &str) -> Result<Vec<SeedRow>, String> {
    let lines = csv.lines().enumerate().skip(1).filter(|(_, line)| !line.is_empty());
    lines
        .map(|(i, line)| {
            let cells = split_csv(line);
            let fault = |what: &str| format!("rows.csv line {}: {what}", i + 1);
            let [id, _wave, module, operation, workload, seed, reference, _notes] =
                cells.as_slice()
            else {
                return Err(fault(&format!("{} columns, expected 8", cells.len())));
            };
            let number = |text: &str| {
                text.parse::<f64>().map_err(|_| fault(&format!("`{text}` is no number")))
            };
            Ok(SeedRow {
                id: id.clone(),
                module: module.clone(),
                operation: operation.clone(),
                workload: workload.clone(),
                seed_us: number(seed)?,
                reference_us: number(reference)?,
            })
        })
        .collect()
}

/// The cells of one line; a cell in double quotes may hold commas.
fn split_csv(line: &str) -> Vec<String> {
    let (mut cells, mut quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            c => cells.last_mut().expect("starts with one cell").push(c),
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_61_seed_rows_are_read_and_have_distinct_ids() {
        let rows = parse_seed(include_str!("../../bench/seed/rows.csv")).unwrap();
        let mut ids: Vec<_> = rows.iter().map(|row| row.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!((rows.len(), ids.len()), (61, 61));
        assert_eq!(
            (rows[2].workload.as_str(), rows[2].reference_us),
            ("x f32 128x128, block 128", 2691.8)
        );
    }

    #[test]
    fn a_bad_seed_line_is_named() {
        assert_eq!(parse_seed("h\na,b\n").unwrap_err(), "rows.csv line 2: 2 columns, expected 8");
        assert_eq!(
            parse_seed("h\na,b,c,d,e,fast,1,n\n").unwrap_err(),
            "rows.csv line 2: `fast` is no number"
        );
    }

    /// Whether `T` holds all that the benches write, and writes it as they do.
    fn assert_reads<T: Serialize + for<'de> Deserialize<'de>>(written: impl Serialize) {
        let written = serde_json::to_value(written).unwrap();
        let read: T = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), written);
    }

    #[test]
    fn what_squish_bench_writes_is_read_in_full() {
        use squish_bench::{
            Limit as L, Residency as R, Row as TheirRow, Table as T, Target as G, Work as W, probe,
        };
        const TARGETS: &[G] = &[
            G::AtLeastShareOfLimit { share: 0.25 },
            G::AtLeastShareOfProbe { probe: "memcpy", share: 0.5 },
            G::AtMostTimesProbe { probe: "memcpy", times: 4.2 },
            G::AtLeastTimesPeer { peer: "torch", times: 3.0 },
        ];
        let copies = [R::L1, R::L2, R::L3, R::Dram].map(L::Copy);
        let others = [L::Read(R::L3), L::Fma, L::Bf16Dot, L::Int8Dot, L::None];
        for limit in copies.into_iter().chain(others) {
            for table in [T::Seed, T::Llm, T::Sweep] {
                assert_reads::<Row>(TheirRow {
                    id: "fp8/decode",
                    module: "Fp8Quantizer",
                    operation: "decode",
                    shape: "128x128",
                    table,
                    work: W::bytes(1, 4).with_flops(2),
                    limit,
                    threads: 2,
                    targets: TARGETS,
                    note: "a note",
                    release_profile: true,
                });
            }
        }
        let figure =
            probe::Figure { name: "copy_l2".to_owned(), unit: "GB/s", best: 2.0, median: 1.0 };
        assert_reads::<Probe>(probe::Limits {
            cpu: "a processor".to_owned(),
            isa: "avx2".to_owned(),
            cores: 2,
            caches: probe::Caches { l1: 1, l2: 2, l3: 3 },
            threads: vec![probe::ThreadLimits { threads: 1, pinned: true, figures: vec![figure] }],
        });
    }

    #[test]
    fn machines_get_plain_file_names() {
        assert_eq!(
            slug("AMD EPYC (family 25, model 17)", 2),
            "amd-epyc-family-25-model-17-2-cores"
        );
    }
}
