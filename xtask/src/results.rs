//! What a run leaves behind: `bench/results/<machine>.json`, from which alone BENCHMARKS.md is rendered.

use serde::{Deserialize, Serialize};

/// One run of all suites on one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Where and of what.
    pub machine: Machine,
    /// Before, between and after the launches.
    pub probes: Vec<Probe>,
    /// The seed's rows, all of them, so that a table can say how many are done.
    pub seed: Vec<SeedRow>,
    /// Measured rows: those of the seed in its order, then the others by id and shape.
    pub rows: Vec<RowResult>,
    /// Peers from outside the process.
    pub peers: Vec<PeerResult>,
    /// One line for each peer program that did not run.
    pub missing_peers: Vec<String>,
    /// Rows at cargo's default release profile.
    pub release: Vec<RowResult>,
    /// What each format does to a trained checkpoint.
    pub fixture: Option<Fixture>,
}

/// Machine, compiler and commit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Name of the processor.
    pub cpu: String,
    /// SIMD level and extensions.
    pub isa: String,
    /// Cores that the run could use.
    pub cores: usize,
    /// Operating system and architecture.
    pub os: String,
    /// First line of `rustc --version`.
    pub rustc: String,
    /// Commit, with `+changes` if the tree had uncommitted ones.
    pub commit: String,
    /// Day of the run, UTC.
    pub date: String,
    /// How often each bench process was started.
    pub launches: usize,
}

/// One run of the probe; field names as `squish-bench` writes them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// Name of the processor.
    pub cpu: String,
    /// SIMD level and extensions.
    pub isa: String,
    /// Cores.
    pub cores: usize,
    /// Cache sizes in bytes.
    pub caches: Caches,
    /// One entry per number of threads.
    pub threads: Vec<ThreadLimits>,
}

/// Cache sizes in bytes, 0 where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Caches {
    /// First level, data.
    pub l1: u64,
    /// Second level.
    pub l2: u64,
    /// Third level.
    pub l3: u64,
}

/// Limits at one number of threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThreadLimits {
    /// Number of threads.
    pub threads: usize,
    /// Whether each had a core of its own.
    pub pinned: bool,
    /// The figures.
    pub figures: Vec<Figure>,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// For example `copy_l2`.
    pub name: String,
    /// For example `GB/s`.
    pub unit: String,
    /// Best pass.
    pub best: f64,
    /// Median pass.
    pub median: f64,
}

/// A row of `bench/seed/rows.csv`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeedRow {
    /// `module/operation`.
    pub id: String,
    /// Module as the seed calls it.
    pub module: String,
    /// Operation as the seed calls it.
    pub operation: String,
    /// Sizes in the seed's words.
    pub workload: String,
    /// Published latency in µs (Apple M-series).
    pub seed_us: f64,
    /// The same benchmark on 2 cores of Zen 5, in µs.
    pub reference_us: f64,
}

/// A measured row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowResult {
    /// As its bench declares it.
    #[serde(flatten)]
    pub row: Row,
    /// What was timed.
    pub variants: Vec<Variant>,
}

/// The declaration of a row; `squish_bench::Row` as read back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `module/operation`.
    pub id: String,
    /// Type or module.
    pub module: String,
    /// What is called.
    pub operation: String,
    /// Sizes.
    pub shape: String,
    /// Where it is printed.
    pub table: Table,
    /// Bytes and operations of one call.
    pub work: Work,
    /// The binding limit.
    pub limit: Limit,
    /// What must be reached.
    pub targets: Vec<Target>,
    /// A remark.
    pub note: String,
    /// Whether it is measured again at the default release profile.
    pub release_profile: bool,
}

/// Where a row is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// Among the seed's rows.
    Seed,
    /// Among the rows with shapes of real models.
    Llm,
    /// To the terminal only.
    Sweep,
}

/// What one call moves and computes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Operations.
    pub flops: u64,
}

/// Level of the memory that holds the working set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Residency {
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
pub enum Limit {
    /// Read bandwidth.
    Read(Residency),
    /// Copy bandwidth.
    Copy(Residency),
    /// f32 multiply-add peak.
    Fma,
    /// bf16 dot-product peak.
    Bf16Dot,
    /// int8 dot-product peak.
    Int8Dot,
    /// None that the probe measures.
    None,
}

/// What a row must reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Target {
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
pub struct Variant {
    /// `ours`, a level, `peer-*`, `probe-*`, or another form.
    pub name: String,
    /// Bytes that one call moves.
    pub bytes: u64,
    /// Minimum over samples and launches.
    pub ns_min: f64,
    /// Median over samples of all launches.
    pub ns_median: f64,
}

/// A line that a peer program printed, or several of them merged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerResult {
    /// Id of the row.
    pub row: String,
    /// Name and version, for example `torch 2.15.0`.
    pub peer: String,
    /// Shape of the row.
    pub shape: String,
    /// Minimum.
    pub ns_min: f64,
    /// Median.
    pub ns_median: f64,
    /// Threads it was allowed.
    pub threads: usize,
}

/// The fixture's table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fixture {
    /// One row per format.
    pub rows: Vec<FixtureRow>,
    /// What was measured on.
    #[serde(default)]
    pub note: String,
}

/// One format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FixtureRow {
    /// Name of the format.
    pub format: String,
    /// Scales included.
    pub bits_per_weight: f64,
    /// None where the format is exact.
    pub snr_db: Option<f64>,
    /// Norm of the error over norm of the weights.
    pub relative_error: f64,
    /// GB/s, if measured.
    #[serde(default)]
    pub decode_gbps: Option<f64>,
    /// Perplexity on prose.
    pub ppl_prose: f64,
    /// Perplexity on code.
    pub ppl_code: f64,
}

impl RowResult {
    /// The variant called `name`.
    #[must_use]
    pub fn variant(&self, name: &str) -> Option<&Variant> {
        self.variants.iter().find(|variant| variant.name == name)
    }
}

impl PeerResult {
    /// The name without its version.
    #[must_use]
    pub fn name(&self) -> &str {
        self.peer.split(' ').next().unwrap_or(&self.peer)
    }
}

/// The file name of a machine's results: processor and cores in lower case, words joined by dashes.
#[must_use]
pub fn slug(cpu: &str, cores: usize) -> String {
    let text = format!("{cpu} {cores} cores").to_lowercase();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

/// The rows of the seed's CSV file.
///
/// # Errors
///
/// A message with the line number if a line does not have the eight columns or its figures are no numbers.
pub fn parse_seed(csv: &str) -> Result<Vec<SeedRow>, String> {
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

    #[test]
    fn a_row_is_read_as_squish_bench_describes_it() {
        let text = include_str!("../../squish-bench/tests/row.json");
        let row: Row = serde_json::from_str(text).unwrap();
        assert_eq!((row.limit, row.targets.len()), (Limit::Copy(Residency::L2), 4));
        assert_eq!(serde_json::to_string_pretty(&row).unwrap() + "\n", text);
    }

    #[test]
    fn machines_get_plain_file_names() {
        assert_eq!(
            slug("AMD EPYC (family 25, model 17)", 2),
            "amd-epyc-family-25-model-17-2-cores"
        );
    }
}
