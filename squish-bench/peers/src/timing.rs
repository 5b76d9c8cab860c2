//! Timing and the lines that are printed.

use std::time::Instant;

/// One row and the peer that is timed on it.
pub(crate) struct Peer {
    /// Id of the row in BENCHMARKS.md.
    pub(crate) row: &'static str,
    /// Shape of the row.
    pub(crate) shape: String,
    /// Name and version.
    pub(crate) name: &'static str,
}

/// Times of one call in ns.
#[derive(Clone, Copy)]
pub(crate) struct Figures {
    /// Least of the samples.
    pub(crate) ns_min: f64,
    /// Median of the samples.
    pub(crate) ns_median: f64,
}

impl Peer {
    /// Whether `--filter TEXT` lets the row run.
    pub(crate) fn is_selected(&self) -> bool {
        let args: Vec<String> = std::env::args().collect();
        args.windows(2)
            .find(|pair| pair[0] == "--filter")
            .is_none_or(|pair| self.row.contains(&pair[1]))
    }

    /// Times `f` and prints the figures, if the row is selected.
    pub(crate) fn time(&self, f: impl FnMut()) {
        if self.is_selected() {
            self.print(measure(f));
        }
    }

    /// Prints the line of the row, on one thread.
    pub(crate) fn print(&self, figures: Figures) {
        println!("{}, \"threads\": 1}}", self.line(figures));
    }

    /// Prints the line of the row on so many threads, with a remark on how the answer was found.
    pub(crate) fn print_of(&self, figures: Figures, threads: usize, form: &str) {
        println!("{}, \"threads\": {threads}, \"form\": \"{form}\"}}", self.line(figures));
    }

    /// The line up to the threads.
    fn line(&self, figures: Figures) -> String {
        format!(
            r#"{{"row": "{}", "peer": "{}", "shape": "{}", "ns_min": {:.1}, "ns_median": {:.1}"#,
            self.row, self.name, self.shape, figures.ns_min, figures.ns_median
        )
    }
}

/// How long the samples of a figure take together.
const SPAN: f64 = 0.5;
/// Samples of a figure.
const SAMPLES: u32 = 20;
/// The fewest, of calls that take longer than a twentieth of [`SPAN`].
const FEWEST_SAMPLES: u32 = 5;

/// Times `f` with samples as long as those of the benches, whose minimum would not be comparable to that of shorter ones: of 1, 2, … 20
/// times so many calls that all take half a second (`--quick`: a fifth of one), or of equally many if that would take twice as long.
pub(crate) fn measure(mut f: impl FnMut()) -> Figures {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let span = if quick { 0.4 * SPAN } else { SPAN };
    let (mut n_warm_ups, began) = (0, Instant::now());
    while n_warm_ups < 3 || began.elapsed().as_secs_f64() < span / 10.0 {
        f();
        n_warm_ups += 1;
    }
    let once = began.elapsed().as_secs_f64() / f64::from(n_warm_ups);
    let (steps, samples) = (f64::from(SAMPLES * (SAMPLES + 1) / 2), f64::from(SAMPLES));
    let step = (span / once / steps).ceil();
    let grow = step * steps * once <= 2.0 * span;
    let equal = (span / once / samples).ceil();
    let n_samples =
        if grow { SAMPLES } else { ((span / once) as u32).clamp(FEWEST_SAMPLES, SAMPLES) };
    let mut times: Vec<f64> = (1..=n_samples)
        .map(|i| {
            let calls = if grow { f64::from(i) * step } else { equal };
            let start = Instant::now();
            for _ in 0..calls as u64 {
                f();
            }
            start.elapsed().as_secs_f64() * 1e9 / calls
        })
        .collect();
    times.sort_by(f64::total_cmp);
    Figures { ns_min: times[0], ns_median: times[times.len() / 2] }
}

/// Pins the calling thread to the first processor that it may use, where the system can.
pub(crate) fn pin() {
    #[cfg(target_os = "linux")]
    {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let allowed = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        if let Some(first) = (0..CpuSet::MAX_CPU).find(|&processor| allowed.is_set(processor)) {
            let mut one = CpuSet::new();
            one.set(first);
            // Unpinned, the figures are noisier and no less true.
            let _ = sched_setaffinity(None, &one);
        }
    }
}

/// Normal numbers of the given deviation, the same in every run (SplitMix64, Box and Muller).
pub(crate) fn normal(len: usize, deviation: f32, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / 16_777_216.0
    };
    (0..len)
        .map(|_| {
            deviation
                * (-2.0 * (1.0 - uniform()).ln()).sqrt()
                * (std::f32::consts::TAU * uniform()).cos()
        })
        .collect()
}
