//! Reading a histogram of magnitudes: quantiles, and its bins as intervals.

use squish_kernels::histogram::{BINS, edge};

/// A histogram as [`squish_kernels::histogram`] counts it.
#[derive(Clone, Copy)]
pub(crate) struct Bins<'a, C> {
    pub(crate) floor: i32,
    /// At least those of the slots up to the last bin.
    pub(crate) counts: &'a [C],
    /// How many of slot 0 are zeros.
    pub(crate) n_zero: u64,
    /// The largest finite magnitude, at which the last bin ends.
    pub(crate) abs_max: f32,
}

/// A bin with elements.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cell {
    pub(crate) low: f64,
    /// Equal to `low` if that is the largest magnitude.
    pub(crate) high: f64,
    pub(crate) count: f64,
}

impl<C: Copy + Into<u64>> Bins<'_, C> {
    /// The bins with elements that are neither zeros nor below the window, ascending.
    pub(crate) fn cells(&self) -> impl Iterator<Item = Cell> {
        (1..=BINS).filter_map(|slot| {
            let count: u64 = self.counts[slot].into();
            let (low, high) = self.interval(slot);
            (count > 0).then_some(Cell { low, high, count: count as f64 })
        })
    }

    /// The quantile `q`, 0 to 1, of `n` finite magnitudes, `n > 0`: between the elements of rank `⌊q (n − 1)⌋` and the next, in proportion.
    ///
    /// The elements of a bin count as spread evenly over it; those of the last one end with the largest.
    pub(crate) fn quantile(&self, n: u64, q: f64) -> f64 {
        let position = q * (n - 1) as f64;
        let rank = (position as u64).min(n - 1);
        let low = self.ranked(n, rank);
        let fraction = position - rank as f64;
        if fraction <= 0.0 {
            return low;
        }
        low + fraction * (self.ranked(n, (rank + 1).min(n - 1)) - low)
    }

    /// The element of `rank`, counted from the smallest. Looked for from the top, where the ranks of interest are.
    fn ranked(&self, n: u64, rank: u64) -> f64 {
        let mut above = n - 1 - rank;
        let mut is_last = true;
        for slot in (1..=BINS).rev() {
            let count: u64 = self.counts[slot].into();
            if above < count {
                let (low, high) = self.interval(slot);
                let of_bin = (count - 1 - above) as f64;
                let at = if is_last { of_bin + 1.0 } else { of_bin + 0.5 };
                return low + (high - low) * (at / count as f64);
            }
            above -= count;
            is_last &= count == 0;
        }
        // Zeros are the smallest. What is between them and the window is less than its first edge.
        if rank < self.n_zero { 0.0 } else { edge(self.floor, 1).min(self.abs_max).into() }
    }

    fn interval(&self, slot: usize) -> (f64, f64) {
        let (low, high) = (edge(self.floor, slot), edge(self.floor, slot + 1));
        (low.into(), high.min(self.abs_max).into())
    }
}

#[cfg(test)]
mod tests {
    use squish_kernels::histogram::{SLOTS, floor_of, slot_scalar};

    use super::*;

    fn counted(x: &[f32]) -> ([u32; SLOTS], Bins<'static, u32>) {
        let abs_max = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        let (floor, mut counts) = (floor_of(abs_max), [0; SLOTS]);
        for &x in x {
            counts[slot_scalar(x, floor)] += 1;
        }
        let n_zero = x.iter().filter(|&&x| x == 0.0).count() as u64;
        (counts, Bins { floor, counts: &[], n_zero, abs_max })
    }

    #[test]
    fn extremes_are_exact_and_zeros_are_zeros() {
        let x = [0.0, -0.0, 1e-30, 0.75, -3.0, 3.01, 5.6];
        let (counts, bins) = counted(&x);
        let bins = Bins { counts: &counts, ..bins };
        assert_eq!(bins.quantile(7, 1.0), f64::from(5.6f32));
        assert_eq!([0.0, 0.1, 1.0 / 6.0].map(|q| bins.quantile(7, q)), [0.0; 3]);
        // What is too small for the window counts as its end.
        assert_eq!(bins.quantile(7, 2.0 / 6.0), f64::from(edge(bins.floor, 1)));
        let median = bins.quantile(7, 0.5);
        assert!((median / 0.75 - 1.0).abs() < 1.0 / 64.0, "{median}");
    }

    #[test]
    fn cells_end_with_the_largest_magnitude() {
        for abs_max in [1.0f32, 1.01, 1.999, f32::MAX, f32::MIN_POSITIVE] {
            let (counts, bins) = counted(&[abs_max, abs_max / 2.0]);
            let bins = Bins { counts: &counts, ..bins };
            let last = bins.cells().last().unwrap();
            assert_eq!(last.high, f64::from(abs_max));
            assert!(last.low <= last.high && last.count == 1.0);
        }
    }
}
