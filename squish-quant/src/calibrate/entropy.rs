//! The clip that loses the least information: see [Entropy](super#entropy).
//!
//! With `c[j]` the counts of the linear bins, `P` those below bin `i` with the clipped ones added to its last, and `Q` with the sum of a group of bins
//! of one code spread over those of them that are not empty:
//!
//! ```text
//! KL(P ‖ Q) = (Σ P ln P − Σ P ln Q) / ΣP − ln ΣP + ln ΣQ
//! ```
//!
//! Prefix sums of `c`, `c ln c` and of the bins that are not empty make every candidate as much work as the target has levels.

use super::{Target, bins::Bins, search::power_of_two_below, target::MAX_LEVELS};

/// Bins of equal width.
const LINEAR: usize = 2048;
/// The first candidate, and the distance of candidates.
const FIRST: usize = 128;
const STRIDE: usize = 16;

/// The best clip for elements that are not all zeros.
pub(super) fn clip<C: Copy + Into<u64>>(bins: &Bins<'_, C>, target: Target) -> f64 {
    let unit = power_of_two_below(bins.abs_max);
    let sums = Sums::new(&linear(bins, unit));
    let mut levels = [0.0; MAX_LEVELS];
    let n_levels = target.levels(&mut levels);
    let max = f64::from(target.max());
    // In bins per bin of the candidate: where the next level is nearer than the one before.
    let mut middles = [0.0; MAX_LEVELS];
    for i in 1..n_levels {
        middles[i - 1] = levels[i - 1].midpoint(levels[i]) / max;
    }
    let middles = &middles[..n_levels - 1];
    let mut best = (LINEAR, sums.divergence(LINEAR, middles));
    for i in (FIRST..LINEAR).step_by(STRIDE).rev() {
        let divergence = sums.divergence(i, middles);
        if divergence < best.1 {
            best = (i, divergence);
        }
    }
    f64::from(bins.abs_max) / unit * best.0 as f64 / LINEAR as f64 * unit
}

/// The histogram in bins of equal width up to the largest magnitude. What is in several of them counts in each by its share.
fn linear<C: Copy + Into<u64>>(bins: &Bins<'_, C>, unit: f64) -> [f64; LINEAR] {
    let mut counts = [0.0; LINEAR];
    let to_bins = LINEAR as f64 / (f64::from(bins.abs_max) / unit);
    for cell in bins.cells() {
        let (low, high) = (cell.low / unit * to_bins, cell.high / unit * to_bins);
        let (first, last) = ((low as usize).min(LINEAR - 1), (high as usize).min(LINEAR - 1));
        if first == last {
            counts[first] += cell.count;
            continue;
        }
        for (i, count) in counts[first..=last].iter_mut().enumerate() {
            let bin = (first + i) as f64;
            let share = (high.min(bin + 1.0) - low.max(bin)).max(0.0) / (high - low);
            *count += cell.count * share;
        }
    }
    counts[0] = counts[1];
    counts
}

/// Sums over the first bins, those at index `i` up to bin `i` and with it.
struct Sums {
    count: [f64; LINEAR],
    count_ln: [f64; LINEAR],
    n_filled: [f64; LINEAR],
}

/// A sum over the first `n` bins.
fn first(sums: &[f64; LINEAR], n: usize) -> f64 {
    if n == 0 { 0.0 } else { sums[n - 1] }
}

impl Sums {
    fn new(counts: &[f64; LINEAR]) -> Self {
        let [mut count, mut count_ln, mut n_filled] = [0.0; 3];
        let mut sums = Self { count: *counts, count_ln: [0.0; LINEAR], n_filled: [0.0; LINEAR] };
        for (i, &of_bin) in counts.iter().enumerate() {
            count += of_bin;
            count_ln += times_ln(of_bin, of_bin);
            n_filled += if of_bin > 0.0 { 1.0 } else { 0.0 };
            (sums.count[i], sums.count_ln[i], sums.n_filled[i]) = (count, count_ln, n_filled);
        }
        sums
    }

    /// The divergence if the first `n` bins are kept, +∞ if the last of them is empty and others are clipped to it, or all are empty.
    fn divergence(&self, n: usize, middles: &[f64]) -> f64 {
        let (total, kept) = (self.count[LINEAR - 1], first(&self.count, n));
        let clipped = total - kept;
        let of_last = kept - first(&self.count, n - 1);
        if kept <= 0.0 || of_last <= 0.0 && clipped > 0.0 {
            return f64::INFINITY;
        }
        let last = of_last + clipped;
        let own = first(&self.count_ln, n - 1) + times_ln(last, last);
        let mut shared = 0.0;
        let mut start = 0;
        for &middle in middles.iter().chain(&[f64::INFINITY]) {
            // The first bin whose center has the next code.
            let end = ((middle * n as f64 - 0.5).ceil().clamp(0.0, n as f64) as usize).max(start);
            let filled = first(&self.n_filled, end) - first(&self.n_filled, start);
            if filled > 0.0 {
                let sum = first(&self.count, end) - first(&self.count, start);
                let clipped = if end == n { clipped } else { 0.0 };
                shared += times_ln(sum + clipped, sum / filled);
            }
            start = end;
            if end == n {
                break;
            }
        }
        (own - shared) / total - total.ln() + kept.ln()
    }
}

/// `a ln b`, 0 if `a` is.
fn times_ln(a: f64, b: f64) -> f64 {
    if a > 0.0 { a * b.ln() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: both distributions bin by bin.
    fn by_definition(counts: &[f64; LINEAR], n: usize, middles: &[f64]) -> f64 {
        let mut p = counts[..n].to_vec();
        let code = |j: usize| {
            let center = (j as f64 + 0.5) / n as f64;
            middles.iter().filter(|&&middle| center >= middle).count()
        };
        let mut q = vec![0.0; n];
        for group in 0..=middles.len() {
            let of_group: Vec<usize> = (0..n).filter(|&j| code(j) == group && p[j] > 0.0).collect();
            let sum: f64 = of_group.iter().map(|&j| p[j]).sum();
            for &j in &of_group {
                q[j] = sum / of_group.len() as f64;
            }
        }
        p[n - 1] += counts[n..].iter().sum::<f64>();
        let (p_sum, q_sum) = (p.iter().sum::<f64>(), q.iter().sum::<f64>());
        let terms = p.iter().zip(&q).filter(|(p, _)| **p > 0.0);
        terms.map(|(p, q)| p / p_sum * (p / p_sum / (q / q_sum)).ln()).sum()
    }

    #[test]
    fn prefix_sums_give_the_divergence_of_the_definition() {
        let mut counts = [0.0; LINEAR];
        for (i, count) in counts.iter_mut().enumerate() {
            let x = i as f64 / 300.0;
            *count = if i % 37 == 5 {
                0.0
            } else {
                (1e5 * (-x * x / 2.0).exp()).floor() + (i % 3) as f64
            };
        }
        let sums = Sums::new(&counts);
        for middles in [
            vec![0.5 / 7.0, 1.5 / 7.0, 2.5 / 7.0, 3.5 / 7.0, 0.9],
            (0..127).map(|i| (f64::from(i) + 0.5) / 127.0).collect(),
        ] {
            for n in [128, 144, 640, 1024, 2032, 2048] {
                let (got, want) =
                    (sums.divergence(n, &middles), by_definition(&counts, n, &middles));
                assert!(
                    got == want || (got - want).abs() < 1e-9 * want.max(1e-3),
                    "{n}: {got}, not {want}"
                );
            }
        }
        // Bin 1004 is empty, and what is clipped at 1005 would be where nothing is expected.
        assert_eq!(counts[1004], 0.0);
        assert_eq!(sums.divergence(1005, &[0.5]), f64::INFINITY);
    }
}
