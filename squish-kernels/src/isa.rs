//! The SIMD level that kernels run at, detected once and passed down.
//!
//! | level | vectors | extensions looked for besides |
//! |---|---|---|
//! | `scalar` | 128-bit blocks in plain Rust | — |
//! | `sse4.2` | 128 bit | — |
//! | `avx2` | 256 bit, FMA, F16C | AVX-VNNI |
//! | `avx512` | 512 bit, the Ice Lake set (VNNI, VBMI, VBMI2, …) | BF16 dot product |
//! | `neon` | 128 bit | dot product |
//!
//! `SQUISH_SIMD=scalar|sse4.2|avx2|avx512|neon` lowers the level of a whole process. It never raises it above what the CPU has.

use std::{fmt, sync::OnceLock};

use fearless_simd::Level;

/// Runs `$op` with the token of `$level` bound to `$simd`, compiled for that level: best level first.
///
/// The library's macro of this name has an arm for SSE2 too, which no [`Isa`] holds; leaving it out saves a sixth of all
/// kernel code.
macro_rules! dispatch {
    ($level:expr, $simd:ident => $op:expr) => {
        match $level {
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            fearless_simd::Level::Avx512($simd) => fearless_simd::Simd::vectorize(
                $simd,
                #[inline(always)]
                || $op,
            ),
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            fearless_simd::Level::Avx2($simd) => fearless_simd::Simd::vectorize(
                $simd,
                #[inline(always)]
                || $op,
            ),
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            fearless_simd::Level::Sse4_2($simd) => fearless_simd::Simd::vectorize(
                $simd,
                #[inline(always)]
                || $op,
            ),
            #[cfg(target_arch = "aarch64")]
            fearless_simd::Level::Neon($simd) => fearless_simd::Simd::vectorize(
                $simd,
                #[inline(always)]
                || $op,
            ),
            fearless_simd::Level::Fallback($simd) => fearless_simd::Simd::vectorize(
                $simd,
                #[inline(always)]
                || $op,
            ),
            _ => unreachable!("an `Isa` holds no other token"),
        }
    };
}
pub(crate) use dispatch;

/// Runs `op` as a function of its own for the level of `simd`: its registers hold nothing of its caller's.
#[inline(never)]
pub(crate) fn outlined<S: fearless_simd::Simd, R>(simd: S, op: impl FnOnce() -> R) -> R {
    simd.vectorize(op)
}

/// Name of the environment variable that lowers the level.
pub const SIMD_VARIABLE: &str = "SQUISH_SIMD";

/// Width class of the vector instructions, in ascending order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SimdLevel {
    /// No vector instructions are asked for.
    Scalar,
    /// x86-64-v2.
    Sse42,
    /// x86-64-v3: AVX2, FMA, F16C, BMI.
    Avx2,
    /// The AVX-512 set of Ice Lake and Zen 4.
    Avx512,
    /// AArch64's baseline.
    Neon,
}

impl SimdLevel {
    const ALL: [Self; 5] = [Self::Scalar, Self::Sse42, Self::Avx2, Self::Avx512, Self::Neon];

    /// The name that `SQUISH_SIMD` understands.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Sse42 => "sse4.2",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }
}

/// `SQUISH_SIMD` holds a name that is no level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{SIMD_VARIABLE}` is `{value}`, expected one of scalar, sse4.2, avx2, avx512, neon")]
pub struct UnknownSimdLevel {
    /// What the variable held.
    pub value: String,
}

/// What there is of `vdpbf16ps`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bf16Dot {
    Absent,
    /// It multiplies less in its time than multiply-adds of `f32`.
    #[cfg_attr(
        not(any(target_arch = "x86", target_arch = "x86_64")),
        expect(dead_code, reason = "an instruction of x86")
    )]
    Slow,
    Fast,
}

/// The SIMD level and extensions that kernels may use on this CPU.
///
/// A value exists only for levels that the CPU has, so passing one to a kernel is always sound.
#[derive(Clone, Copy)]
pub struct Isa {
    level: SimdLevel,
    token: Level,
    bf16_dot: Bf16Dot,
    vnni: bool,
    dotprod: bool,
    reads_ahead: bool,
}

impl Isa {
    /// The best level of this CPU that `SQUISH_SIMD` allows; detected on the first call, then a load.
    ///
    /// # Panics
    ///
    /// On the first call, if `SQUISH_SIMD` holds an unknown name: a run meant for one level must not pass at another.
    /// [`Isa::try_detect`] returns that as an error.
    #[inline]
    #[must_use]
    #[expect(
        clippy::panic,
        reason = "a wrong environment variable is reported where the process first needs it"
    )]
    pub fn detect() -> Self {
        match Self::cached() {
            Ok(isa) => *isa,
            Err(error) => panic!("{error}"),
        }
    }

    /// [`Isa::detect`], with an unknown name in `SQUISH_SIMD` as an error.
    ///
    /// # Errors
    ///
    /// [`UnknownSimdLevel`] if the variable is set to something that is no level.
    pub fn try_detect() -> Result<Self, UnknownSimdLevel> {
        Self::cached().clone()
    }

    fn cached() -> &'static Result<Isa, UnknownSimdLevel> {
        static DETECTED: OnceLock<Result<Isa, UnknownSimdLevel>> = OnceLock::new();
        DETECTED.get_or_init(|| match std::env::var_os(SIMD_VARIABLE) {
            None => Ok(Self::best()),
            Some(value) => {
                let value = value.to_string_lossy();
                Self::at_most(&value).ok_or_else(|| UnknownSimdLevel { value: value.into_owned() })
            }
        })
    }

    /// Every level that [`Isa::detect`] could return with a lower `SQUISH_SIMD`, worst first, itself last.
    pub fn available() -> impl Iterator<Item = Self> {
        let top = Self::detect();
        SimdLevel::ALL
            .into_iter()
            .filter(move |&level| level <= top.level)
            .filter_map(move |level| top.lowered(level))
    }

    /// The width class.
    #[must_use]
    pub const fn level(self) -> SimdLevel {
        self.level
    }

    /// Whether `vdpbf16ps` may be used (AVX512-BF16).
    #[must_use]
    pub const fn has_bf16_dot(self) -> bool {
        !matches!(self.bf16_dot, Bf16Dot::Absent)
    }

    /// Whether `vdpbf16ps` may be used and multiplies more in its time than multiply-adds of `f32`: not on Intel's CPUs. By the probe
    /// ([`dot_bf16`](crate::probe::dot_bf16), [`fma_f32`](crate::probe::fma_f32)) it does twice as much on Zen 4 and Zen 5, and half as much on a
    /// Xeon of family 6, model 207.
    #[must_use]
    pub const fn prefers_bf16_dot(self) -> bool {
        matches!(self.bf16_dot, Bf16Dot::Fast)
    }

    /// Whether `vpdpbusd` may be used (AVX512-VNNI, or AVX-VNNI at the `avx2` level).
    #[must_use]
    pub const fn has_vnni(self) -> bool {
        self.vnni
    }

    /// Whether `sdot` may be used (NEON dot product).
    #[must_use]
    pub const fn has_dotprod(self) -> bool {
        self.dotprod
    }

    /// Whether the CPU reads ahead of a stream so well that a program's requests only hold it up: AMD's with AVX-512. On Zen 4 products of one
    /// row take 0.65 to 1.0 of the time without them; Zen 5 was not measured.
    #[must_use]
    pub(crate) const fn reads_ahead(self) -> bool {
        self.reads_ahead
    }

    /// Each of [`Isa::available`] with its extensions, preferred or not, and without them where it has any: what tests of kernels run.
    #[doc(hidden)]
    pub fn variants() -> impl Iterator<Item = Self> {
        Self::available()
            .flat_map(|isa| {
                let mut all = isa;
                if isa.has_bf16_dot() {
                    all.bf16_dot = Bf16Dot::Fast;
                }
                // AVX-512's token includes VNNI.
                let vnni = isa.level == SimdLevel::Avx512;
                let bare = Self { bf16_dot: Bf16Dot::Absent, vnni, dotprod: false, ..isa };
                [Some(all), (format!("{all:?}") != format!("{bare:?}")).then_some(bare)]
            })
            .flatten()
    }

    /// The token of the SIMD library, for kernels of this workspace.
    #[doc(hidden)]
    #[inline]
    #[must_use]
    pub const fn token(self) -> Level {
        self.token
    }

    /// The level called `name`, or the best one below it that this CPU has; `None` if no level has that name.
    fn at_most(name: &str) -> Option<Self> {
        let asked = SimdLevel::ALL.into_iter().find(|level| level.name() == name)?;
        let best = Self::best();
        let mut at_or_below = SimdLevel::ALL.into_iter().rev().filter(|&level| level <= asked);
        at_or_below.find_map(|level| best.lowered(level))
    }

    fn best() -> Self {
        let token = Level::new();
        SimdLevel::ALL
            .into_iter()
            .rev()
            .find_map(|level| Self::with_token(level, token))
            .unwrap_or(Self { level: SimdLevel::Scalar, token: Level::fallback(), ..Self::BARE })
    }

    /// This CPU at `level`, if it has it.
    fn lowered(self, level: SimdLevel) -> Option<Self> {
        Self::with_token(level, self.token)
    }

    const BARE: Self = Self {
        level: SimdLevel::Scalar,
        token: Level::fallback(),
        bf16_dot: Bf16Dot::Absent,
        vnni: false,
        dotprod: false,
        reads_ahead: false,
    };

    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    fn with_token(level: SimdLevel, token: Level) -> Option<Self> {
        use std::arch::is_x86_feature_detected as has;
        Some(match level {
            SimdLevel::Scalar => Self::BARE,
            SimdLevel::Sse42 => {
                Self { level, token: Level::Sse4_2(token.as_sse4_2()?), ..Self::BARE }
            }
            SimdLevel::Avx2 => Self {
                level,
                token: Level::Avx2(token.as_avx2()?),
                vnni: has!("avxvnni"),
                ..Self::BARE
            },
            SimdLevel::Avx512 => {
                let vendor = vendor();
                // Of kernels for 64-bit x86 alone.
                let has_bf16_dot = cfg!(target_arch = "x86_64") && has!("avx512bf16");
                Self {
                    level,
                    token: Level::Avx512(token.as_avx512()?),
                    bf16_dot: match (has_bf16_dot, &vendor == b"GenuineIntel") {
                        (false, _) => Bf16Dot::Absent,
                        (true, true) => Bf16Dot::Slow,
                        (true, false) => Bf16Dot::Fast,
                    },
                    vnni: true,
                    dotprod: false,
                    reads_ahead: &vendor == b"AuthenticAMD",
                }
            }
            SimdLevel::Neon => return None,
        })
    }

    #[cfg(target_arch = "aarch64")]
    fn with_token(level: SimdLevel, token: Level) -> Option<Self> {
        use std::arch::is_aarch64_feature_detected as has;
        Some(match level {
            SimdLevel::Scalar => Self::BARE,
            SimdLevel::Neon => Self {
                level,
                token: Level::Neon(token.as_neon()?),
                dotprod: has!("dotprod"),
                ..Self::BARE
            },
            SimdLevel::Sse42 | SimdLevel::Avx2 | SimdLevel::Avx512 => return None,
        })
    }

    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    fn with_token(level: SimdLevel, _token: Level) -> Option<Self> {
        (level == SimdLevel::Scalar).then_some(Self::BARE)
    }
}

/// The maker of a CPU of which AVX-512 is known.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn vendor() -> [u8; 12] {
    #[cfg(target_arch = "x86")]
    use std::arch::x86::__cpuid;
    #[cfg(target_arch = "x86_64")]
    use std::arch::x86_64::__cpuid;

    #[allow(unused_unsafe, reason = "it is safe in later versions of Rust")]
    // SAFETY: the caller has found AVX-512, and with it this instruction.
    let vendor = unsafe { __cpuid(0) };
    let mut name = [0; 12];
    name.copy_from_slice([vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened());
    name
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.level.name())?;
        let bf16 = if self.prefers_bf16_dot() { "+bf16" } else { "+slow-bf16" };
        for (present, name) in
            [(self.has_bf16_dot(), bf16), (self.vnni, "+vnni"), (self.dotprod, "+dotprod")]
        {
            if present {
                f.write_str(name)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_listed_worst_first_and_end_with_the_detected_one() {
        let levels: Vec<_> = Isa::available().map(Isa::level).collect();
        assert!(levels.is_sorted() && levels.first() == Some(&SimdLevel::Scalar), "{levels:?}");
        assert_eq!(levels.last(), Some(&Isa::detect().level()));
    }

    #[test]
    fn an_asked_level_is_never_exceeded_and_an_unknown_one_is_refused() {
        for level in SimdLevel::ALL {
            assert!(Isa::at_most(level.name()).is_some_and(|isa| isa.level() <= level));
        }
        assert!(Isa::at_most("avx3").is_none());
    }
}
