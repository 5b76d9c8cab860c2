//! Deterministic inputs that look like what the kernels meet: weights with heavy tails and outlier channels, normal numbers, and logits
//! with a few clear candidates.
//!
//! Every function takes a seed and returns the same numbers on every machine. Buffers start on a cache line.

use crate::Aligned;

/// The generator behind the inputs: `SplitMix64` (Steele, Lea and Flood, OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator whose numbers depend on `seed` alone.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 uniform bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`, a multiple of 2⁻²⁴.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform in `0..n`; the bias is below `n / 2⁶⁴`.
    ///
    /// # Panics
    ///
    /// If `n` is zero.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "`below` needs a non-empty range");
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// Standard normal (Box and Muller); below 6 in magnitude, since 2⁻²⁴ is the smallest uniform but zero.
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f32::consts::TAU * self.uniform()).cos()
    }
}

/// `len` standard normal numbers.
#[must_use]
pub fn normal(len: usize, seed: u64) -> Aligned<f32> {
    let mut rng = Rng::new(seed);
    Aligned::from_fn(len, |_| rng.normal())
}

/// A weight matrix `[rows, cols]` as trained ones look: standard deviation about 0.02, tails heavier than normal (one element in 64
/// is three times as wide), and one column in 128 that is eight times as large.
#[must_use]
pub fn weights(rows: usize, cols: usize, seed: u64) -> Aligned<f32> {
    let mut rng = Rng::new(seed);
    let columns: Vec<f32> =
        (0..cols).map(|_| if rng.below(128) == 0 { 0.16 } else { 0.02 }).collect();
    Aligned::from_fn(rows * cols, |i| {
        let tail = if rng.below(64) == 0 { 3.0 } else { 1.0 };
        rng.normal() * tail * columns[i % cols]
    })
}

/// Logits of one position: a normal background of deviation 2 around −4, and one candidate per thousand entries (at least one) between 6 and 18.
#[must_use]
pub fn logits(vocab_size: usize, seed: u64) -> Aligned<f32> {
    let mut rng = Rng::new(seed);
    let mut out = Aligned::from_fn(vocab_size, |_| 2.0 * rng.normal() - 4.0);
    for _ in 0..vocab_size.div_ceil(1000) {
        let candidate = rng.below(vocab_size);
        out[candidate] = 6.0 + 12.0 * rng.uniform();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        // The first outputs for seed 1234567 that the algorithm's authors publish with their C code.
        let mut rng = Rng::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| rng.bits()).collect();
        assert_eq!(
            first,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let values = normal(1 << 16, 1);
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }

    #[test]
    fn weights_have_outlier_columns_and_logits_have_clear_candidates() {
        let (rows, cols) = (64, 1024);
        let w = weights(rows, cols, 2);
        let widest = |c: usize| (0..rows).map(|r| w[r * cols + c].abs()).fold(0.0, f32::max);
        let outliers = (0..cols).filter(|&c| widest(c) > 0.25).count();
        assert!((1..cols / 16).contains(&outliers), "{outliers} outlier columns");

        let z = logits(4096, 3);
        let candidates = z.iter().filter(|&&v| v >= 6.0).count();
        assert!((1..=8).contains(&candidates), "{candidates} candidates");
    }
}
