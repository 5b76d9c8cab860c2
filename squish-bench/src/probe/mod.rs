//! The limits of this machine: bandwidths per level of the memory and peaks of the arithmetic units, on one thread and on all cores.
//!
//! A sample lasts about 0.3 ms, less than a slice of the scheduler; main memory is walked in chunks of 2 MiB, each a sample. A pass is
//! the median of its samples, so that preempted ones drop out; a figure is the best of its passes, with the median of the passes as a
//! witness of noise. Threads are pinned, start each sample together, and are charged from the first start to the last end.

mod cpu;
mod team;

use serde::Serialize;
use squish_kernels::{Isa, probe as kernels};

use crate::{Aligned, black_box};

pub use cpu::{Caches, caches, cores, cpu_name, pin};

/// How long to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// One short pass with small buffers, to see that everything runs.
    Touch,
    /// About two seconds.
    Quick,
    /// About six seconds.
    Full,
}

/// Everything the probe measured.
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    /// Name of the processor.
    pub cpu: String,
    /// SIMD level and extensions in use.
    pub isa: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Sizes of the data caches.
    pub caches: Caches,
    /// One entry per number of threads: one, and all cores.
    pub threads: Vec<ThreadLimits>,
}

/// The figures at one number of threads.
#[derive(Clone, Debug, Serialize)]
pub struct ThreadLimits {
    /// Number of threads.
    pub threads: usize,
    /// Whether each was pinned to a core of its own.
    pub pinned: bool,
    /// The figures.
    pub figures: Vec<Figure>,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// `fma_f32`, `dot_bf16`, `dot_int8`, or `read_`, `copy_`, `memcpy_` with the level `l1`, `l2`, `l3` or `dram`.
    pub name: String,
    /// `GFLOP/s`, `GOP/s` or `GB/s`; a copy counts bytes read and written.
    pub unit: &'static str,
    /// Best pass.
    pub best: f64,
    /// Median pass.
    pub median: f64,
}

/// Bytes of main memory per sample.
const CHUNK: usize = 2 << 20;
/// The probe asks for no more memory than this.
const MOST: usize = 512 << 20;

/// Measures all limits.
#[must_use]
pub fn measure(effort: Effort) -> Limits {
    let (isa, caches, cores) = (Isa::detect(), caches(), cores());
    let mut counts = vec![1, cores];
    counts.dedup();
    let threads =
        counts.into_iter().map(|threads| measure_threads(effort, isa, caches, threads)).collect();
    Limits { cpu: cpu_name(), isa: format!("{isa:?}"), cores, caches, threads }
}

/// A kernel with its buffers: does `repeats` rounds and returns the work done (operations or bytes).
type Kernel = Box<dyn FnMut(u64) -> u64>;

fn measure_threads(effort: Effort, isa: Isa, caches: Caches, threads: usize) -> ThreadLimits {
    let mut figures = Vec::new();
    let mut pinned = true;
    let mut add = |name: String, unit, samples: usize, make: &(dyn Fn() -> Kernel + Sync)| {
        // A kernel that does no work stands for an instruction that this CPU lacks.
        if make()(1) == 0 {
            return;
        }
        let passes = match effort {
            Effort::Touch => 1,
            Effort::Quick => 3,
            Effort::Full => 9,
        };
        let run =
            team::run(threads, passes, if effort == Effort::Touch { 2 } else { samples }, make);
        pinned &= run.pinned;
        figures.push(Figure { name, unit, best: run.best / 1e9, median: run.median / 1e9 });
    };

    add("fma_f32".to_owned(), "GFLOP/s", 30, &|| {
        Box::new(move |rounds| kernels::fma_f32(isa, rounds))
    });
    add("dot_bf16".to_owned(), "GFLOP/s", 30, &|| {
        Box::new(move |rounds| kernels::dot_bf16(isa, rounds).unwrap_or(0))
    });
    add("dot_int8".to_owned(), "GOP/s", 30, &|| {
        Box::new(move |rounds| kernels::dot_int8(isa, rounds).unwrap_or(0))
    });
    for (level, bytes) in footprints(caches, threads.min(cpu::sharers_of_l3()), threads) {
        let bytes = if effort == Effort::Touch { bytes.min(2 * CHUNK) } else { bytes };
        let samples = bytes.div_ceil(CHUNK).max(30);
        add(format!("read_{level}"), "GB/s", samples, &|| read(isa, bytes));
        add(format!("copy_{level}"), "GB/s", samples, &|| {
            copy(bytes, move |from, to| kernels::copy_vectors(isa, from, to))
        });
        add(format!("memcpy_{level}"), "GB/s", samples, &|| copy(bytes, kernels::copy_bytes));
    }
    ThreadLimits { threads, pinned, figures }
}

/// Working sets of one of `threads` threads that lie well inside each level, or together far outside all caches.
///
/// The third level is shared by `sharers` of the threads: their sets have to fit into it together, and each has to be larger than
/// the second level. Where many threads share a small third level no set is both, and the level is left out.
fn footprints(caches: Caches, sharers: usize, threads: usize) -> Vec<(&'static str, usize)> {
    let mut out = vec![("l1", 16 << 10), ("l2", caches.l2 / 2)];
    let in_l3 = (caches.l3 / 5 / sharers).max(2 * caches.l2);
    if sharers * in_l3 <= caches.l3 / 2 {
        out.push(("l3", in_l3));
    }
    out.push(("dram", (8 * caches.l3.max(caches.l2)).clamp(64 << 20, MOST) / threads));
    out
}

/// Reads a buffer of `bytes` over and over, [`CHUNK`] at a time.
fn read(isa: Isa, bytes: usize) -> Kernel {
    let buffer = Aligned::from_fn(bytes, |i| i as u8);
    let mut at = 0;
    Box::new(move |repeats| {
        let mut work = 0;
        for _ in 0..repeats {
            let piece = &buffer[at..(at + CHUNK).min(bytes)];
            black_box(kernels::read_bytes(isa, black_box(piece)));
            work += piece.len() as u64;
            at = if at + CHUNK < bytes { at + CHUNK } else { 0 };
        }
        work
    })
}

/// Copies one half of a footprint of `bytes` to the other over and over, so that [`CHUNK`] bytes move at a time.
fn copy(bytes: usize, copy: impl Fn(&[u8], &mut [u8]) + 'static) -> Kernel {
    let half = bytes / 2;
    let (mut storage, second) = two_buffers(half);
    let mut at = 0;
    Box::new(move |repeats| {
        let mut work = 0;
        for _ in 0..repeats {
            let piece = at..(at + CHUNK / 2).min(half);
            work += 2 * piece.len() as u64;
            at = if piece.end < half { piece.end } else { 0 };
            let (from, to) = storage.split_at_mut(second);
            copy(black_box(&from[piece.clone()]), black_box(&mut to[piece]));
        }
        work
    })
}

/// Storage that holds two written buffers of `bytes`, and where the second one starts.
///
/// They lie half a page apart modulo the page. Where a store and a later load agree in the low 12 bits of their address, the core takes
/// the one to depend on the other; by chance of placement that cost two thirds of the copy rate in the first-level cache.
pub(crate) fn two_buffers(bytes: usize) -> (Aligned<u8>, usize) {
    const PAGE: usize = 4096;
    let second = bytes.next_multiple_of(PAGE) + PAGE / 2;
    (Aligned::from_fn(second + bytes, |i| i as u8), second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_touch_measures_every_limit_of_this_cpu() {
        let limits = measure(Effort::Touch);
        let isa = Isa::detect();
        for entry in &limits.threads {
            let has = |name: &str| {
                entry.figures.iter().any(|figure| figure.name == name && figure.best > 0.0)
            };
            for name in [
                "fma_f32",
                "read_l1",
                "copy_l1",
                "memcpy_l1",
                "read_l2",
                "read_dram",
                "copy_dram",
                "memcpy_dram",
            ] {
                assert!(has(name), "{name} with {} threads: {:?}", entry.threads, entry.figures);
            }
            assert_eq!(has("dot_bf16"), isa.has_bf16_dot());
            assert!(entry.figures.iter().all(|figure| figure.best >= figure.median));
        }
        assert_eq!(limits.threads[0].threads, 1);
    }

    #[test]
    fn working_sets_lie_inside_their_level_and_main_memory_outside_all() {
        let caches = Caches { l1: 32 << 10, l2: 1 << 20, l3: 32 << 20 };
        let sets = footprints(caches, 1, 1);
        assert_eq!(sets[0], ("l1", 16 << 10));
        assert_eq!(sets[1], ("l2", 512 << 10));
        assert!(sets[2].1 > caches.l2 && sets[2].1 < caches.l3 / 2);
        assert_eq!(sets[3], ("dram", 256 << 20));
        assert_eq!(footprints(Caches { l3: 1 << 30, ..caches }, 1, 1)[3].1, MOST);
        assert_eq!(footprints(Caches { l3: 0, ..caches }, 1, 1).len(), 3);
    }

    #[test]
    fn the_sets_of_all_threads_fit_into_a_shared_third_level_or_it_is_left_out() {
        let caches = Caches { l1: 32 << 10, l2: 1 << 20, l3: 32 << 20 };
        for (sharers, threads) in [(1, 1), (2, 2), (3, 3), (8, 8), (8, 64)] {
            let sets = footprints(caches, sharers, threads);
            assert_eq!(sets[2].0, "l3", "{sharers} of {threads}");
            assert!(sets[2].1 >= 2 * caches.l2 && sharers * sets[2].1 <= caches.l3 / 2, "{sets:?}");
            assert_eq!(sets[3], ("dram", (256 << 20) / threads));
        }
        let has_l3 = |sharers| footprints(caches, sharers, sharers).iter().any(|set| set.0 == "l3");
        assert!(has_l3(8) && !has_l3(9));
    }

    #[test]
    fn a_walk_covers_the_whole_buffer_and_counts_its_bytes() {
        let isa = Isa::detect();
        assert_eq!(read(isa, 3 * CHUNK / 2)(4), 3 * CHUNK as u64);
        assert_eq!(copy(3 * CHUNK, kernels::copy_bytes)(3), 3 * CHUNK as u64);
    }
}
