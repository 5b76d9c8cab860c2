//! Pinned threads that run the same kernel at the same time.

use std::{
    hint::spin_loop,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use super::{Kernel, cpu};

/// Length of one sample.
const SAMPLE: Duration = Duration::from_micros(300);

/// Work per second.
pub(super) struct Run {
    /// Best pass.
    pub(super) best: f64,
    /// Median pass.
    pub(super) median: f64,
    /// Whether every thread sat on a core of its own.
    pub(super) pinned: bool,
}

/// Runs `passes` times `samples` samples of the kernel on each of `threads` threads.
pub(super) fn run(
    threads: usize,
    passes: usize,
    samples: usize,
    make: &(dyn Fn() -> Kernel + Sync),
) -> Run {
    let gate = Gate { threads, arrived: AtomicUsize::new(0) };
    let repeats = AtomicUsize::new(0);
    let logs: Vec<(bool, Vec<Sample>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|index| {
                let (gate, repeats) = (&gate, &repeats);
                scope.spawn(move || {
                    let pinned = cpu::pin(index);
                    let mut kernel = make();
                    if index == 0 {
                        repeats.store(calibrate(&mut kernel), Ordering::SeqCst);
                    }
                    let mut round = 0;
                    let log = (0..passes * samples)
                        .map(|_| {
                            round += 1;
                            gate.wait(round);
                            let repeats = repeats.load(Ordering::SeqCst) as u64;
                            let start = Instant::now();
                            let work = kernel(repeats);
                            Sample { start, end: Instant::now(), work }
                        })
                        .collect();
                    (pinned, log)
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("the kernels do not panic")).collect()
    });

    let rates: Vec<f64> =
        (0..passes * samples).map(|i| rate(logs.iter().map(|(_, log)| log[i]))).collect();
    let mut of_passes: Vec<f64> = rates.chunks(samples).map(|pass| median(pass.to_vec())).collect();
    of_passes.sort_by(f64::total_cmp);
    let best = of_passes.last().copied().unwrap_or(0.0);
    Run { best, median: median(of_passes), pinned: logs.iter().all(|(pinned, _)| *pinned) }
}

/// One thread's part of one sample.
#[derive(Clone, Copy)]
struct Sample {
    start: Instant,
    end: Instant,
    work: u64,
}

/// Work of all threads over the time from the first start to the last end.
fn rate(parts: impl Iterator<Item = Sample> + Clone) -> f64 {
    let work: u64 = parts.clone().map(|part| part.work).sum();
    match (parts.clone().map(|part| part.start).min(), parts.map(|part| part.end).max()) {
        (Some(start), Some(end)) => work as f64 / (end - start).as_secs_f64().max(1e-9),
        _ => 0.0,
    }
}

/// The upper median.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// How many repeats of the kernel last a sample: doubled until they do, then scaled down.
fn calibrate(kernel: &mut Kernel) -> usize {
    let mut repeats = 1_u64;
    loop {
        let start = Instant::now();
        let _ = kernel(repeats);
        let taken = start.elapsed();
        if taken >= SAMPLE / 2 || repeats >= 1 << 30 {
            let scaled = repeats as f64 * SAMPLE.as_secs_f64() / taken.as_secs_f64().max(1e-9);
            return (scaled as usize).max(1);
        }
        repeats *= 2;
    }
}

/// Lets the threads of a team start together.
struct Gate {
    threads: usize,
    arrived: AtomicUsize,
}

impl Gate {
    /// Waits until all threads have come here `round` times (counted from 1).
    ///
    /// It spins, because waking a thread takes as long as a sample; after a while it yields, in case the others have no core to run on.
    fn wait(&self, round: usize) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        let mut spins = 0_u32;
        while self.arrived.load(Ordering::SeqCst) < self.threads * round {
            spins += 1;
            if spins > 20_000 { std::thread::yield_now() } else { spin_loop() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_team_is_charged_from_the_first_start_to_the_last_end() {
        let zero = Instant::now();
        let at = |start: u64, end: u64| Sample {
            start: zero + Duration::from_millis(start),
            end: zero + Duration::from_millis(end),
            work: 1000,
        };
        let got = rate([at(1, 5), at(3, 11)].into_iter());
        assert!((got - 2000.0 / 0.010).abs() < 1.0, "{got}");
    }

    #[test]
    fn preempted_samples_do_not_reach_the_median() {
        assert_eq!(median(vec![10.0, 1.0, 10.0, 11.0, 2.0]), 10.0);
    }

    #[test]
    fn all_threads_run_all_samples() {
        let run = run(2, 2, 3, &|| {
            Box::new(|repeats| (0..repeats).fold(0, |sum, i| crate::black_box(sum + i % 2)) + 1)
        });
        assert!(run.best >= run.median && run.median > 0.0);
    }
}
