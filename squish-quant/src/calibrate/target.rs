//! The formats that scales are made for, as sets of magnitudes.

use squish_kernels::element::{E2M1, E2M3, E3M2, E4M3, E5M2, Element, Overflow};

use crate::{
    fp8::Fp8Format,
    int::{IntFormat, IntQuantizer, IntRange},
};

/// A format that scaled elements are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Target {
    /// Integers, with as much of their range as [`IntRange`] says.
    Int(IntFormat, IntRange),
    /// FP8 with 3 bits of mantissa.
    E4M3,
    /// FP8 with 2 bits of mantissa.
    E5M2,
    /// FP6 with 2 bits of mantissa.
    E3M2,
    /// FP6 with 3 bits of mantissa.
    E2M3,
    /// FP4.
    E2M1,
}

/// As many magnitudes as a format of 8 bits can have.
pub(super) const MAX_LEVELS: usize = 128;

impl Target {
    /// What the clip of a channel becomes when it is divided by the scale: the largest magnitude of the format, or for all codes of an integer
    /// ([`IntRange::Full`]) half of their number, 127.5 or 7.5, as [`IntQuantizer`] has it.
    #[must_use]
    pub fn max(self) -> f32 {
        match self {
            Self::Int(format, range) => {
                let [low, high] = format.limits(range).map(f32::from);
                (high - low) / 2.0
            }
            Self::E4M3 => E4M3::MAX,
            Self::E5M2 => E5M2::MAX,
            Self::E3M2 => E3M2::MAX,
            Self::E2M3 => E2M3::MAX,
            Self::E2M1 => E2M1::MAX,
        }
    }

    /// The number of the format that is nearest to `x`, saturated, ties to the even code: what decoding an encoded `x` gives at scale 1.
    #[must_use]
    pub fn round(self, x: f32) -> f32 {
        fn of<E: Element>(x: f32) -> f32 {
            E::from_f32(x, Overflow::Saturate).to_f32()
        }
        match self {
            Self::Int(format, range) => {
                let [low, high] = format.limits(range).map(f32::from);
                x.clamp(low, high).round_ties_even()
            }
            Self::E4M3 => of::<E4M3>(x),
            Self::E5M2 => of::<E5M2>(x),
            Self::E3M2 => of::<E3M2>(x),
            Self::E2M3 => of::<E2M3>(x),
            Self::E2M1 => of::<E2M1>(x),
        }
    }

    /// The magnitudes of the format, ascending from zero, into the front of `levels`; returns how many there are.
    pub(super) fn levels(self, levels: &mut [f64; MAX_LEVELS]) -> usize {
        fn of<E: Element>(levels: &mut [f64; MAX_LEVELS]) -> usize {
            let values = (0..1 << (E::BITS - 1)).map(|code| E::from_bits(code).to_f32());
            let mut n = 0;
            for (level, value) in levels.iter_mut().zip(values.take_while(|x| x.is_finite())) {
                *level = value.into();
                n += 1;
            }
            n
        }
        match self {
            Self::Int(format, range) => {
                let n = format.limits(range)[1] as usize + 1;
                levels[..n].iter_mut().enumerate().for_each(|(i, level)| *level = i as f64);
                n
            }
            Self::E4M3 => of::<E4M3>(levels),
            Self::E5M2 => of::<E5M2>(levels),
            Self::E3M2 => of::<E3M2>(levels),
            Self::E2M3 => of::<E2M3>(levels),
            Self::E2M1 => of::<E2M1>(levels),
        }
    }
}

impl From<Fp8Format> for Target {
    fn from(format: Fp8Format) -> Self {
        match format {
            Fp8Format::E4M3 => Self::E4M3,
            Fp8Format::E5M2 => Self::E5M2,
        }
    }
}

impl From<IntQuantizer> for Target {
    fn from(quantizer: IntQuantizer) -> Self {
        Self::Int(quantizer.format, quantizer.range)
    }
}

#[cfg(test)]
pub(super) const ALL: [Target; 9] = [
    Target::Int(IntFormat::Int8, IntRange::Full),
    Target::Int(IntFormat::Int8, IntRange::Restricted),
    Target::Int(IntFormat::Int4, IntRange::Full),
    Target::Int(IntFormat::Int4, IntRange::Restricted),
    Target::E4M3,
    Target::E5M2,
    Target::E3M2,
    Target::E2M3,
    Target::E2M1,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_ascend_from_zero_to_the_largest_magnitude_and_are_what_rounding_gives() {
        for target in ALL {
            let mut levels = [0.0; MAX_LEVELS];
            let n = target.levels(&mut levels);
            let levels = &levels[..n];
            assert!(levels.is_sorted_by(|a, b| a < b) && levels[0] == 0.0, "{target:?}");
            let last = levels[n - 1] as f32;
            assert_eq!(target.round(f32::MAX), last, "{target:?}");
            assert!(target.max() == last || target.max() == last + 0.5, "{target:?}");
            for two in levels.windows(2) {
                let (a, b) = (two[0] as f32, two[1] as f32);
                let middle = a.midpoint(b);
                let below = middle.next_down();
                assert_eq!(
                    (target.round(below), target.round(middle.next_up())),
                    (a, b),
                    "{target:?}"
                );
            }
        }
    }
}
