//! Timing and the lines that are printed.

use std::time::{Duration, Instant};

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
        println!(
            r#"{{"row": "{}", "peer": "{}", "shape": "{}", "ns_min": {:.1}, "ns_median": {:.1}, "threads": 1}}"#,
            self.row, self.name, self.shape, figures.ns_min, figures.ns_median
        );
    }
}

/// Times `f`: samples of at least 20 µs for half a second (`--quick`: a tenth), and 5 at the least.
pub(crate) fn measure(mut f: impl FnMut()) -> Figures {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let span = Duration::from_millis(if quick { 100 } else { 500 });
    let start = Instant::now();
    f();
    let once = start.elapsed().max(Duration::from_nanos(1));
    let calls = (20_000 / once.as_nanos()).clamp(1, 100_000) as u32;
    let (mut samples, began) = (Vec::new(), Instant::now());
    while samples.len() < 5 || began.elapsed() < span {
        let start = Instant::now();
        for _ in 0..calls {
            f();
        }
        samples.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(calls));
    }
    samples.sort_by(f64::total_cmp);
    Figures { ns_min: samples[0], ns_median: samples[samples.len() / 2] }
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
