//! The scale of a block from its largest magnitude: [`ScaleRule`].

use squish_kernels::stream::Stores;

use super::{MX_BLOCK, MxFormat, coder::Coder};

/// How the scale of a block follows from its largest magnitude; see the [module](crate::mx).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ScaleRule {
    /// The specification's: the largest magnitudes saturate if they exceed the largest element times the scale.
    #[default]
    Floor,
    /// The largest magnitude is rounded as an element before its exponent is taken.
    Even,
    /// The next power of two.
    Ceil,
    /// The smallest scale at which nothing saturates.
    RoundUp,
    /// The better of two by squared error.
    MinMse,
}

/// The largest scale that is a number, 2^127.
const MAX_SCALE: u8 = 254;

impl ScaleRule {
    /// Scales of the blocks of `x`, whose largest magnitudes are `largest`.
    pub(super) fn scales_into(
        self,
        format: MxFormat,
        x: &[f32],
        largest: &[f32],
        scales: &mut [u8],
    ) {
        // What is added to the bits of `amax` carries into the exponent from where the rule begins to round up.
        let carry = match self {
            Self::Floor => 0,
            Self::Even => 1 << (22 - format.mantissa_bits()),
            Self::Ceil => 0x007f_ffff,
            Self::RoundUp => 0x007f_ffff - (format.max().to_bits() & 0x007f_ffff),
            Self::MinMse => return min_mse_scales_into(format, x, largest, scales),
        };
        let max_exponent = format.max_exponent();
        for (scale, amax) in scales.iter_mut().zip(largest) {
            let exponent = ((with_field_of_e8m0(*amax) + carry) >> 23) as u8;
            *scale = exponent.saturating_sub(max_exponent).min(MAX_SCALE);
        }
    }
}

/// The bits of `amax`, with the exponent field zero for 2^-127 as E8M0 has it, where it stands for a mantissa that begins
/// with one; smaller magnitudes count as 2^-127. Only integers have scales small enough to tell the difference.
fn with_field_of_e8m0(amax: f32) -> u32 {
    let bits = amax.to_bits();
    if bits < 0x0080_0000 { bits.saturating_sub(0x0040_0000) << 1 } else { bits }
}

/// Blocks of which [`min_mse_scales_into`] tries the scales at once: what it needs for them stays in L1 beside the run.
const TRIAL_BLOCKS: usize = 32;

/// Scales by the smaller squared error, of the specification's and the next larger.
fn min_mse_scales_into(format: MxFormat, x: &[f32], largest: &[f32], scales: &mut [u8]) {
    let mut trial = Trial {
        coder: Coder::new(format, Stores::Cached),
        block_bytes: format.block_bytes(),
        codes: [0; TRIAL_BLOCKS * MX_BLOCK],
        values: [0.0; TRIAL_BLOCKS * MX_BLOCK],
    };
    let (mut of_floor, mut of_next) = ([0.0; TRIAL_BLOCKS], [0.0; TRIAL_BLOCKS]);
    let mut next_scales = [0; TRIAL_BLOCKS];
    let blocks = x.chunks(TRIAL_BLOCKS * MX_BLOCK).zip(largest.chunks(TRIAL_BLOCKS));
    for ((x, largest), scales) in blocks.zip(scales.chunks_mut(TRIAL_BLOCKS)) {
        ScaleRule::Floor.scales_into(format, x, largest, scales);
        trial.squared_errors_into(x, scales, &mut of_floor);
        let next_scales = &mut next_scales[..scales.len()];
        for (next, scale) in next_scales.iter_mut().zip(&*scales) {
            *next = (scale + 1).min(MAX_SCALE);
        }
        trial.squared_errors_into(x, next_scales, &mut of_next);
        let errors = of_floor.iter().zip(of_next);
        for ((scale, next), (floor_error, next_error)) in
            scales.iter_mut().zip(next_scales).zip(errors)
        {
            if next_error < *floor_error {
                *scale = *next;
            }
        }
    }
}

/// Buffers for encoding some blocks and decoding them again.
struct Trial {
    coder: Coder,
    block_bytes: usize,
    /// Room for the codes of any format.
    codes: [u8; TRIAL_BLOCKS * MX_BLOCK],
    values: [f32; TRIAL_BLOCKS * MX_BLOCK],
}

impl Trial {
    /// What each block loses with its scale, as [`squared_error`].
    fn squared_errors_into(&mut self, x: &[f32], scales: &[u8], errors: &mut [f64]) {
        let codes = &mut self.codes[..scales.len() * self.block_bytes];
        let values = &mut self.values[..x.len()];
        self.coder.encode(x, scales, codes);
        self.coder.decode(codes, scales, values);
        let blocks = x.as_chunks().0.iter().zip(values.as_chunks().0);
        for (error, (x, values)) in errors.iter_mut().zip(blocks) {
            *error = squared_error(x, values);
        }
    }
}

/// Chains of [`squared_error`], which hide the latency of an addition.
const ERROR_LANES: usize = 8;

/// Sum of `(x - value)²` over the elements of a block that are finite: element `i` in lane `i % 8`, then the lanes in
/// order.
fn squared_error(x: &[f32; MX_BLOCK], values: &[f32; MX_BLOCK]) -> f64 {
    let mut sums = [0.0; ERROR_LANES];
    let steps = x.as_chunks::<ERROR_LANES>().0.iter().zip(values.as_chunks::<ERROR_LANES>().0);
    for (x, values) in steps {
        for i in 0..ERROR_LANES {
            // The difference is exact in `f32`: a value is zero, or within a factor of two of what it stands for. The
            // mask is what a branch would be; with one, the compiler does not use vectors.
            let finite = u32::from(x[i].is_finite()).wrapping_neg();
            let error = f64::from(f32::from_bits((x[i] - values[i]).to_bits() & finite));
            sums[i] += error * error;
        }
    }
    sums.into_iter().sum()
}
