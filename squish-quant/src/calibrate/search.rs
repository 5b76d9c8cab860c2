//! The clip with the least error, by integrals over the bins of a histogram.
//!
//! For levels `q[0] = 0 < q[1] < …` the error of rounding `x` to the nearest, raised to the power `p`, has an integral in closed form:
//!
//! ```text
//! F(x) = ∫₀ˣ |t − q(t)|^p dt = before[i] + sign(u) |u|^(p+1) / (p + 1)      q[i] nearest to x, u = x − q[i]
//! before[i + 1] = before[i] + 2 (gap/2)^(p+1) / (p + 1)                    gap = q[i + 1] − q[i]
//! ```
//!
//! which holds beyond the last level too, where elements are clipped. The mean error of elements spread evenly over a bin is
//! `(F(high) − F(low)) / (high − low)`. Taking the error at the middle of each bin instead would say little: near the maximum the bins of INT8 are
//! as wide as its steps, and all middles may fall on levels.

use super::{
    MseSearch, Target,
    bins::{Bins, Cell},
    target::MAX_LEVELS,
};
use crate::error::{Error, Result};
use squish_kernels::histogram::BINS;

/// The integral of a target's error, and the candidates.
pub(super) struct Search {
    options: MseSearch,
    max: f64,
    n_levels: usize,
    levels: [f64; MAX_LEVELS],
    before: [f64; MAX_LEVELS],
}

/// Candidates on each side of the best one when its neighborhood is looked at.
const FINE: usize = 8;

impl Search {
    pub(super) fn new(target: Target, options: MseSearch) -> Result<Self> {
        let MseSearch { norm, n_candidates, least } = options;
        if !(norm > 0.0 && norm <= 8.0) {
            let expected = "more than 0, and 8 at most";
            return Err(Error::Value { what: "norm", value: norm, expected });
        }
        if n_candidates < 2 {
            let value = n_candidates as f64;
            return Err(Error::Value { what: "n_candidates", value, expected: "2 or more" });
        }
        if !(least > 0.0 && least < 1.0) {
            return Err(Error::Value { what: "least", value: least, expected: "between 0 and 1" });
        }
        let (mut levels, mut before) = ([0.0; MAX_LEVELS], [0.0; MAX_LEVELS]);
        let n_levels = target.levels(&mut levels);
        for i in 1..n_levels {
            before[i] = before[i - 1] + 2.0 * integral((levels[i] - levels[i - 1]) / 2.0, norm);
        }
        Ok(Self { options, max: target.max().into(), n_levels, levels, before })
    }

    /// The best clip for elements that are not all zeros.
    #[expect(clippy::large_stack_arrays, reason = "18 KB, so that nothing is allocated")]
    pub(super) fn clip<C: Copy + Into<u64>>(&self, bins: &Bins<'_, C>) -> f64 {
        // Magnitudes relative to a power of two near the largest, so that no power of an error leaves the range of `f64`, and a common power of
        // two of all elements changes nothing.
        let unit = power_of_two_below(bins.abs_max);
        let mut cells = [Cell::default(); BINS];
        let mut n_cells = 0;
        for (to, Cell { low, high, count }) in cells.iter_mut().zip(bins.cells()) {
            *to = Cell { low: low / unit, high: high / unit, count };
            n_cells += 1;
        }
        unit * self.best(&cells[..n_cells], f64::from(bins.abs_max) / unit)
    }

    fn best(&self, cells: &[Cell], abs_max: f64) -> f64 {
        let MseSearch { n_candidates, least, .. } = self.options;
        let last = (n_candidates - 1) as f64;
        // The whole for `last`, exactly.
        let clip_at = |at: f64| abs_max * least.powf(1.0 - at / last);
        let mut best = (last, self.error(cells, abs_max));
        let mut look = |at: f64| {
            let error = self.error(cells, clip_at(at));
            if error < best.1 {
                best = (at, error);
            }
            best.0
        };
        let mut coarse = last;
        for i in (0..n_candidates - 1).rev() {
            coarse = look(i as f64);
        }
        for i in (1..2 * FINE).rev().filter(|&i| i != FINE) {
            let at = coarse + i as f64 / FINE as f64 - 1.0;
            if (0.0..last).contains(&at) {
                look(at);
            }
        }
        clip_at(best.0)
    }

    /// The sum over all elements of the power of their error at `clip`.
    fn error(&self, cells: &[Cell], clip: f64) -> f64 {
        let to_levels = self.max / clip;
        let mut level = 0;
        let mut up_to = |x: f64| {
            while level + 1 < self.n_levels && 2.0 * x > self.levels[level] + self.levels[level + 1]
            {
                level += 1;
            }
            let off = x - self.levels[level];
            (self.before[level] + integral(off, self.options.norm), off)
        };
        let mut sum = 0.0;
        for cell in cells {
            let (low, high) = (cell.low * to_levels, cell.high * to_levels);
            let (from, off) = up_to(low);
            // A bin that begins with the largest magnitude is one point.
            let mean = if high > low {
                (up_to(high).0 - from) / (high - low)
            } else {
                off.abs().powf(self.options.norm)
            };
            sum += cell.count * mean;
        }
        sum * to_levels.recip().powf(self.options.norm)
    }
}

/// `∫₀ˣ |t|^norm dt`.
fn integral(x: f64, norm: f64) -> f64 {
    if norm == 2.0 { x * x * x / 3.0 } else { x.abs().powf(norm + 1.0).copysign(x) / (norm + 1.0) }
}

/// The largest power of two that is at most `x`, a positive number; of subnormals the smallest normal one.
pub(super) fn power_of_two_below(x: f32) -> f64 {
    f32::from_bits((x.to_bits() & 0x7f80_0000).max(0x0080_0000)).into()
}

#[cfg(test)]
mod tests {
    use super::super::target::ALL;
    use super::*;

    fn search(target: Target, norm: f64) -> Search {
        Search::new(target, MseSearch { norm, ..MseSearch::default() }).unwrap()
    }

    #[test]
    fn the_error_of_a_bin_is_the_mean_of_many_points_of_it() {
        for target in ALL {
            for norm in [2.0, 1.0, 2.4] {
                let search = search(target, norm);
                for (low, high) in [(0.03, 0.031), (0.2, 0.21), (0.9, 1.1), (1.0, 1.9)] {
                    let cell = Cell { low, high, count: 3.0 };
                    for clip in [0.15, 0.5, 1.0, 1.9] {
                        let scale = clip / f64::from(target.max());
                        let n = 20_000;
                        let points = (0..n)
                            .map(|i| low + (high - low) * (f64::from(i) + 0.5) / f64::from(n));
                        let mean = points
                            .map(|x| {
                                let rounded = f64::from(target.round((x / scale) as f32));
                                (x - scale * rounded).abs().powf(norm)
                            })
                            .sum::<f64>()
                            / f64::from(n);
                        let got = search.error(&[cell], clip);
                        assert!(
                            (got / (3.0 * mean) - 1.0).abs() < 1e-3,
                            "{target:?}, {norm}, {low} to {high} at {clip}: {got}, not {}",
                            3.0 * mean
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_bin_of_one_point_has_the_error_of_the_point() {
        let int4 = ALL[3];
        let cell = Cell { low: 1.0, high: 1.0, count: 2.0 };
        assert_eq!(search(int4, 2.0).error(&[cell], 1.0), 0.0);
        let got = search(int4, 2.0).error(&[cell], 0.5);
        assert!((got - 2.0 * 0.25).abs() < 1e-12, "{got}");
    }

    #[test]
    fn options_that_are_none_are_refused() {
        for (bad, what) in [
            (MseSearch { norm: 0.0, ..MseSearch::default() }, "norm"),
            (MseSearch { norm: f64::NAN, ..MseSearch::default() }, "norm"),
            (MseSearch { n_candidates: 1, ..MseSearch::default() }, "n_candidates"),
            (MseSearch { least: 1.0, ..MseSearch::default() }, "least"),
            (MseSearch { least: f64::NAN, ..MseSearch::default() }, "least"),
        ] {
            let error = Search::new(ALL[0], bad).err();
            assert!(
                matches!(error, Some(Error::Value { what: got, .. }) if got == what),
                "{error:?}"
            );
        }
    }
}
