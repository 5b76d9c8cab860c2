//! The suite of one bench file: rows, each checked before it is timed.
//!
//! Criterion ids are `row id / variant / shape`. Variants are `ours`, names of SIMD levels, other forms and `probe-*`. A probe that ours is
//! judged by is timed with it in turn, by the suite itself, and its samples stand with the row's description.

use std::{collections::BTreeSet, fs};

use bytemuck::NoUninit;
use criterion::{
    Bencher, BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime,
};
use serde::Serialize;
use squish_kernels::{Isa, SimdLevel, probe as kernels};

use crate::{
    black_box,
    in_turn::{Effort, SAMPLES, in_turn},
    place::{criterion_dir, squish_dir},
    probe::two_buffers,
    row::{Row, Table},
};

/// Set by `cargo xtask bench --filter`: only rows whose id contains the value run.
pub const FILTER_VARIABLE: &str = "SQUISH_BENCH_FILTER";
/// Set by `cargo xtask bench --sweep`: rows of [`Table::Sweep`] run, and no others.
pub const SWEEP_VARIABLE: &str = "SQUISH_BENCH_SWEEP";
/// Set by `cargo xtask bench` for its second build: only rows with `release_profile` run.
pub const RELEASE_VARIABLE: &str = "SQUISH_BENCH_RELEASE";

/// What the process was started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// `cargo bench`: samples are taken.
    Time,
    /// `cargo test --benches`, `--test` or `--list`: each closure runs once at most.
    Test,
}

impl Mode {
    /// Criterion's own rule: samples are taken under `--bench` without `--test`.
    fn of(args: impl Iterator<Item = String>) -> Self {
        let args: BTreeSet<String> = args.collect();
        let runs_once =
            !args.contains("--bench") || args.contains("--test") || args.contains("--list");
        if runs_once { Self::Test } else { Self::Time }
    }
}

/// Which rows run.
#[derive(Clone, Debug, Default)]
struct Selection {
    filter: Option<String>,
    sweep: bool,
    release: bool,
}

impl Selection {
    fn from_env() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        Self {
            filter: std::env::var(FILTER_VARIABLE).ok(),
            sweep: set(SWEEP_VARIABLE),
            release: set(RELEASE_VARIABLE),
        }
    }

    fn takes(&self, row: &Row) -> bool {
        let in_filter = self.filter.as_ref().is_none_or(|part| row.id.contains(part.as_str()));
        in_filter
            && self.sweep == (row.table == Table::Sweep)
            && (!self.release || row.release_profile)
    }
}

/// The rows of one bench file.
pub struct Suite {
    criterion: Criterion,
    effort: Effort,
    mode: Mode,
    selection: Selection,
    seen: BTreeSet<(&'static str, &'static str)>,
}

impl std::fmt::Debug for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Suite")
            .field("mode", &self.mode)
            .field("selection", &self.selection)
            .finish_non_exhaustive()
    }
}

impl Default for Suite {
    fn default() -> Self {
        Self::new()
    }
}

impl Suite {
    /// A suite configured from the command line and the environment.
    ///
    /// Twenty samples in half a second per variant: minima need many short samples rather than long ones, and the whole table must fit
    /// its time limit. Operations above some 5 ms fall to equal samples of one call, since samples of 1, 2, … 20 calls would not fit.
    #[must_use]
    pub fn new() -> Self {
        let effort = Effort::of(std::env::args());
        let criterion = Criterion::default()
            .without_plots()
            .sample_size(SAMPLES)
            .warm_up_time(effort.warm_up)
            .measurement_time(effort.span)
            .nresamples(2000)
            .output_directory(&criterion_dir())
            .configure_from_args();
        Self {
            criterion,
            effort,
            mode: Mode::of(std::env::args()),
            selection: Selection::from_env(),
            seen: BTreeSet::new(),
        }
    }

    /// Runs `body` for `row`, if the row is selected: it prepares inputs, checks the answer, and then times variants.
    ///
    /// # Panics
    ///
    /// If the row is malformed or was run before, or if its description cannot be written.
    pub fn row<F>(&mut self, row: &'static Row, body: F)
    where
        F: for<'s> FnOnce(Unchecked<'s>) -> Checked<'s>,
    {
        let fault = row.fault();
        assert!(fault.is_none(), "{}", fault.unwrap_or_default());
        assert!(
            self.seen.insert((row.id, row.shape)),
            "`{}` at {} is declared twice",
            row.id,
            row.shape
        );
        if !self.selection.takes(row) {
            return;
        }
        let group = self.criterion.benchmark_group(row.id);
        let Checked { group, variants, .. } =
            body(Unchecked { row, group, effort: self.effort, mode: self.mode });
        group.finish();
        assert!(variants.iter().any(|v| v.name == "ours"), "`{}` times no variant `ours`", row.id);
        if self.mode == Mode::Time {
            describe(row, &variants);
        }
    }

    /// Prints criterion's closing lines.
    pub fn finish(self) {
        self.criterion.final_summary();
    }
}

/// A row whose answer has not been checked; nothing can be timed on it.
pub struct Unchecked<'s> {
    row: &'static Row,
    group: BenchmarkGroup<'s, WallTime>,
    effort: Effort,
    mode: Mode,
}

impl std::fmt::Debug for Unchecked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unchecked").field("row", &self.row.id).finish_non_exhaustive()
    }
}

impl<'s> Unchecked<'s> {
    /// `full` where samples are taken, `small` where the benches run as tests.
    #[must_use]
    pub fn size(&self, full: usize, small: usize) -> usize {
        match self.mode {
            Mode::Time => full,
            Mode::Test => small,
        }
    }

    /// Runs `check`, which asserts that what will be timed gives the right answer.
    #[must_use]
    pub fn check(self, check: impl FnOnce()) -> Checked<'s> {
        check();
        let Self { row, group, effort, mode } = self;
        Checked { row, group, effort, mode, variants: Vec::new() }
    }
}

/// A row whose answer is right, ready to be timed.
pub struct Checked<'s> {
    row: &'static Row,
    group: BenchmarkGroup<'s, WallTime>,
    effort: Effort,
    mode: Mode,
    variants: Vec<Variant>,
}

impl std::fmt::Debug for Checked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checked")
            .field("row", &self.row.id)
            .field("variants", &self.variants)
            .finish_non_exhaustive()
    }
}

impl Checked<'_> {
    /// Times the operation as a user calls it. Every row has this variant, alone or beside a probe.
    #[must_use]
    pub fn ours(self, time: impl FnMut(&mut Bencher<'_>)) -> Self {
        self.time("ours".to_owned(), time)
    }

    /// Times the operation as a user calls it, and in turn with it something else that moves `bytes`, as `probe-{name}`: what the row's
    /// targets compare ours with.
    #[must_use]
    pub fn ours_and_probe<A, B>(
        mut self,
        name: &str,
        bytes: u64,
        mut ours: impl FnMut() -> A,
        mut probe: impl FnMut() -> B,
    ) -> Self {
        let samples = match self.mode {
            Mode::Time => in_turn(self.effort, ours, probe),
            Mode::Test => {
                black_box((ours(), probe()));
                [Vec::new(), Vec::new()]
            }
        };
        let variants =
            [("ours".to_owned(), self.row.work.moved()), (format!("probe-{name}"), bytes)];
        for ((name, bytes), ns) in variants.into_iter().zip(samples) {
            report(self.row, &name, &ns);
            self.variants.push(Variant { name, bytes, ns });
        }
        self
    }

    /// As [`ours_and_probe`](Self::ours_and_probe), with a `memcpy` of `bytes` between two buffers of its own: it moves `2 * bytes`.
    #[must_use]
    pub fn ours_and_memcpy<A>(self, bytes: usize, ours: impl FnMut() -> A) -> Self {
        let (mut storage, second) = two_buffers(bytes);
        let (from, to) = storage.split_at_mut(second);
        self.ours_and_probe("memcpy", 2 * bytes as u64, ours, || {
            kernels::copy_bytes(black_box(&from[..bytes]), black_box(&mut *to));
        })
    }

    /// As [`ours_and_probe`](Self::ours_and_probe), with reading every byte of `buffers` once: pass the operation's own inputs.
    #[must_use]
    pub fn ours_and_read<A, T: NoUninit>(self, buffers: &[&[T]], ours: impl FnMut() -> A) -> Self {
        let isa = Isa::detect();
        let bytes = buffers.iter().map(|buffer| size_of_val(*buffer) as u64).sum();
        self.ours_and_probe("read", bytes, ours, || {
            let read = |buffer| kernels::read_bytes(isa, black_box(bytemuck::cast_slice(buffer)));
            buffers.iter().fold(0, |all, buffer| all | read(*buffer))
        })
    }

    /// Times the operation at a lower SIMD level, as a variant of the level's name; left out where this CPU (or `SQUISH_SIMD`) lacks it.
    #[must_use]
    pub fn at_level(self, level: SimdLevel, mut time: impl FnMut(Isa, &mut Bencher<'_>)) -> Self {
        match Isa::available().find(|isa| isa.level() == level) {
            Some(isa) => self.time(level.name().to_owned(), |bencher| time(isa, bencher)),
            None => self,
        }
    }

    /// Times another form of the operation, such as `with-amax`; the row's work is taken to be the same.
    #[must_use]
    pub fn variant(self, name: &str, time: impl FnMut(&mut Bencher<'_>)) -> Self {
        self.time(name.to_owned(), time)
    }

    fn time(mut self, name: String, mut time: impl FnMut(&mut Bencher<'_>)) -> Self {
        let (bytes, flops) = (self.row.work.moved(), self.row.work.flops);
        match (bytes, flops) {
            (0, 0) => {}
            (0, flops) => drop(self.group.throughput(Throughput::Elements(flops))),
            (bytes, _) => drop(self.group.throughput(Throughput::Bytes(bytes))),
        }
        self.group.bench_function(BenchmarkId::new(&name, self.row.shape), |bencher| time(bencher));
        self.variants.push(Variant { name, bytes, ns: Vec::new() });
        self
    }
}

/// Says what was measured, where criterion does not.
#[expect(clippy::print_stdout, reason = "for who runs the bench, as criterion's lines are")]
fn report(row: &Row, variant: &str, ns: &[f64]) {
    let least = ns.iter().copied().reduce(f64::min);
    let least = least.map_or_else(|| "ran once".to_owned(), |ns| format!("{ns:.1} ns"));
    println!("{}/{variant}/{}: {least}", row.id, row.shape);
}

/// One timed variant and the bytes that one call of it moves.
#[derive(Debug, Serialize)]
struct Variant {
    name: String,
    bytes: u64,
    /// Samples of one that was timed in turn with another.
    ns: Vec<f64>,
}

/// A row with its variants, as written for the tables.
#[derive(Serialize)]
struct Described<'a> {
    #[serde(flatten)]
    row: &'a Row,
    variants: &'a [Variant],
}

/// Writes `squish/{id}@{shape}.json` below criterion's folder.
fn describe(row: &Row, variants: &[Variant]) {
    let path = squish_dir().join(format!("{}@{}.json", row.id, row.shape));
    let text =
        serde_json::to_vec_pretty(&Described { row, variants }).expect("a row is plain data");
    let folder = path.parent().expect("the path was joined from a folder");
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(&path, text));
    assert!(
        written.is_ok(),
        "{}: {}",
        path.display(),
        written.err().map(|e| e.to_string()).unwrap_or_default()
    );
}
