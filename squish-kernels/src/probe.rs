//! Kernels that run one resource of a core at its limit: multiply-add units, dot-product units, loads, loads and stores.
//!
//! They compute nothing of use. The machine probe times them, and the tables state every kernel of the workspace as a share of what
//! these reach. Not part of the stable interface.

use std::hint::black_box;

use crate::isa::dispatch;
use fearless_simd::{Simd, SimdBase, SimdFloat};

use crate::{Isa, prefetch};

/// Runs `rounds` steps of 16 independent chains of f32 multiply-adds, and returns the number of operations (two per element).
///
/// Two units with a latency of four cycles need 8 chains, four units (Apple's cores) need 16. AVX2 has 16 registers in all, so it takes 12.
#[must_use]
pub fn fma_f32(isa: Isa, rounds: u64) -> u64 {
    dispatch!(isa.token(), simd => fma_at(simd, rounds))
}

#[inline(always)]
fn fma_at<S: Simd>(simd: S, rounds: u64) -> u64 {
    if S::f32s::LEN == 8 {
        fma_chains::<S, 12>(simd, rounds)
    } else {
        fma_chains::<S, 16>(simd, rounds)
    }
}

#[inline(always)]
fn fma_chains<S: Simd, const CHAINS: usize>(simd: S, rounds: u64) -> u64 {
    // Hidden from the compiler, or equal chains would be folded into one. The fixed point of x * 0.999 + 0.001 is 1: no denormals.
    let (factor, addend) =
        (S::f32s::splat(simd, black_box(0.999)), S::f32s::splat(simd, black_box(0.001)));
    let mut chains = [S::f32s::splat(simd, 0.0); CHAINS];
    for (i, chain) in chains.iter_mut().enumerate() {
        *chain = S::f32s::splat(simd, black_box(i as f32));
    }
    for _ in 0..rounds {
        for chain in &mut chains {
            *chain = chain.mul_add(factor, addend);
        }
    }
    for chain in chains {
        black_box(chain.as_slice());
    }
    rounds * (2 * CHAINS * S::f32s::LEN) as u64
}

/// Runs `rounds` steps of independent chains of bf16 dot products (pairs into f32) and returns the number of operations, or `None` if the
/// CPU has no such instruction.
#[must_use]
pub fn dot_bf16(isa: Isa, rounds: u64) -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    if isa.has_bf16_dot() {
        // SAFETY: `has_bf16_dot` is true only at the AVX-512 level of a CPU with AVX512-BF16.
        return Some(unsafe { x86::dot_bf16(rounds) });
    }
    let _ = (isa, rounds);
    None
}

/// Runs `rounds` steps of independent chains of int8 dot products (quadruples into int32) and returns the number of operations, or
/// `None` if the CPU has no such instruction.
#[must_use]
pub fn dot_int8(isa: Isa, rounds: u64) -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    if isa.has_vnni() {
        return Some(if isa.level() == crate::SimdLevel::Avx512 {
            // SAFETY: the AVX-512 level includes VNNI.
            unsafe { x86::dot_int8_512(rounds) }
        } else {
            // SAFETY: below the AVX-512 level `has_vnni` says that the CPU has AVX-VNNI.
            unsafe { x86::dot_int8_256(rounds) }
        });
    }
    #[cfg(target_arch = "aarch64")]
    if isa.has_dotprod() {
        // SAFETY: `has_dotprod` says that the CPU has the dot-product extension.
        return Some(unsafe { neon::dot_int8(rounds) });
    }
    let _ = (isa, rounds);
    None
}

/// Loads every byte of `bytes` once and returns the bitwise or of all of them.
///
/// Or, not add: no latency chain to hide and no denormals. Eight vectors per step.
#[must_use]
pub fn read_bytes(isa: Isa, bytes: &[u8]) -> u8 {
    // A prefetch takes a load slot, which costs a third of the rate in the first-level cache. It gains some percent beyond the second, but for
    // CPUs that read ahead as well.
    if bytes.len() < FETCH_FROM || isa.reads_ahead() {
        dispatch!(isa.token(), simd => read_vectors::<_, false>(simd, bytes))
    } else {
        dispatch!(isa.token(), simd => read_vectors::<_, true>(simd, bytes))
    }
}

/// Buffers of this size and more are read with prefetches, where these help.
const FETCH_FROM: usize = 1 << 18;
/// How far ahead, in bytes: over the end of a page, where the hardware stops. Multiples of a page are 5 % slower.
const FETCH_AHEAD: usize = 1024;

#[inline(always)]
fn read_vectors<S: Simd, const FETCH: bool>(simd: S, bytes: &[u8]) -> u8 {
    const STEP: usize = 8;
    let lanes = S::u8s::LEN;
    let mut all = [S::u8s::splat(simd, 0); STEP];
    let mut blocks = bytes.chunks_exact(STEP * lanes);
    for block in &mut blocks {
        for (i, seen) in all.iter_mut().enumerate() {
            let vector = &block[i * lanes..(i + 1) * lanes];
            if FETCH && i * lanes % 64 == 0 {
                prefetch::lines(&vector[..1], FETCH_AHEAD);
            }
            *seen |= S::u8s::from_slice(simd, vector);
        }
    }
    let rest = blocks.remainder().iter().fold(0, |seen, &byte| seen | byte);
    let mut any = all[0];
    for vector in &all[1..] {
        any |= *vector;
    }
    any.as_slice().iter().fold(rest, |seen, &byte| seen | byte)
}

/// Copies `from` to `to` with the platform's `memcpy`.
///
/// # Panics
///
/// If the lengths differ.
pub fn copy_bytes(from: &[u8], to: &mut [u8]) {
    to.copy_from_slice(from);
}

/// Copies `from` to `to` by plain vector loads and stores, four per step: in the first-level cache up to 1.6 times as fast as `memcpy`.
///
/// # Panics
///
/// If the lengths differ.
pub fn copy_vectors(isa: Isa, from: &[u8], to: &mut [u8]) {
    assert_eq!(from.len(), to.len(), "copy_vectors: lengths differ");
    dispatch!(isa.token(), simd => copy_at(simd, from, to));
}

#[inline(always)]
fn copy_at<S: Simd>(simd: S, from: &[u8], to: &mut [u8]) {
    const STEP: usize = 4;
    let lanes = S::u8s::LEN;
    let (mut sources, mut targets) =
        (from.chunks_exact(STEP * lanes), to.chunks_exact_mut(STEP * lanes));
    for (source, target) in (&mut sources).zip(&mut targets) {
        for i in 0..STEP {
            let at = i * lanes..(i + 1) * lanes;
            S::u8s::from_slice(simd, &source[at.clone()]).store_slice(&mut target[at]);
        }
    }
    targets.into_remainder().copy_from_slice(sources.remainder());
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;
    use std::hint::black_box;

    /// `vdpbf16ps`: 32 products added into 16 sums.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn dot_bf16(rounds: u64) -> u64 {
        let (ones, halves) = (_mm512_set1_ps(black_box(1.0)), _mm512_set1_ps(black_box(0.5)));
        let (a, b) = (_mm512_cvtne2ps_pbh(ones, halves), _mm512_cvtne2ps_pbh(halves, ones));
        let mut chains = [_mm512_setzero_ps(); 16];
        for chain in &mut chains {
            *chain = black_box(*chain);
        }
        for _ in 0..rounds {
            for chain in &mut chains {
                *chain = _mm512_dpbf16_ps(*chain, a, b);
            }
        }
        for chain in chains {
            black_box(chain);
        }
        rounds * 16 * 64
    }

    /// `vpdpbusd`: 64 products added into 16 sums.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn dot_int8_512(rounds: u64) -> u64 {
        let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(-5)));
        let mut chains = [_mm512_setzero_si512(); 16];
        for chain in &mut chains {
            *chain = black_box(*chain);
        }
        for _ in 0..rounds {
            for chain in &mut chains {
                *chain = _mm512_dpbusd_epi32(*chain, a, b);
            }
        }
        for chain in chains {
            black_box(chain);
        }
        rounds * 16 * 128
    }

    /// `vpdpbusd` in its 256-bit form; 12 chains leave registers for the operands.
    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) fn dot_int8_256(rounds: u64) -> u64 {
        let (a, b) = (black_box(_mm256_set1_epi8(3)), black_box(_mm256_set1_epi8(-5)));
        let mut chains = [_mm256_setzero_si256(); 12];
        for chain in &mut chains {
            *chain = black_box(*chain);
        }
        for _ in 0..rounds {
            for chain in &mut chains {
                *chain = _mm256_dpbusd_avx_epi32(*chain, a, b);
            }
        }
        for chain in chains {
            black_box(chain);
        }
        rounds * 12 * 64
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    /// `sdot`: 16 products added into 4 sums, in 8 chains. The intrinsic is not stable at our minimum Rust version, so it is written out.
    #[target_feature(enable = "neon,dotprod")]
    pub(super) fn dot_int8(rounds: u64) -> u64 {
        for _ in 0..rounds {
            // SAFETY: the block reads and writes the registers that it names, and no memory.
            unsafe {
                core::arch::asm!(
                    "sdot v16.4s, v24.16b, v25.16b",
                    "sdot v17.4s, v24.16b, v25.16b",
                    "sdot v18.4s, v24.16b, v25.16b",
                    "sdot v19.4s, v24.16b, v25.16b",
                    "sdot v20.4s, v24.16b, v25.16b",
                    "sdot v21.4s, v24.16b, v25.16b",
                    "sdot v22.4s, v24.16b, v25.16b",
                    "sdot v23.4s, v24.16b, v25.16b",
                    out("v16") _, out("v17") _, out("v18") _, out("v19") _,
                    out("v20") _, out("v21") _, out("v22") _, out("v23") _,
                    options(nomem, nostack, preserves_flags),
                );
            }
        }
        rounds * 8 * 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_isa_reads_and_copies_every_byte_at_all_lengths() {
        for isa in Isa::available() {
            for len in [0, 1, 63, 64, 65, 511, 512, 513, 4096 + 7, FETCH_FROM + 3] {
                // One byte carries a bit that no other has; wherever it lies, it must be seen.
                for at in [0, len / 2, len.saturating_sub(1)] {
                    let mut bytes: Vec<u8> = (0..len).map(|i| (i % 128) as u8).collect();
                    let low = bytes.iter().fold(0, |seen, &b| seen | b);
                    assert_eq!(read_bytes(isa, &bytes), low, "{isa:?} {len}");
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = 0x80;
                        assert_eq!(read_bytes(isa, &bytes) & 0x80, 0x80, "{isa:?} {len} {at}");
                    }
                    let mut copy = vec![0; len];
                    copy_vectors(isa, &bytes, &mut copy);
                    assert!(copy == bytes, "{isa:?} {len}");
                    copy.fill(0);
                    copy_bytes(&bytes, &mut copy);
                    assert!(copy == bytes);
                }
            }
        }
    }

    #[test]
    fn counted_operations_follow_the_rounds() {
        for isa in Isa::available() {
            assert_eq!(fma_f32(isa, 30), 10 * fma_f32(isa, 3));
            assert_eq!(dot_bf16(isa, 30), dot_bf16(isa, 3).map(|n| 10 * n));
            assert_eq!(dot_int8(isa, 30), dot_int8(isa, 3).map(|n| 10 * n));
            assert_eq!(dot_bf16(isa, 1).is_some(), isa.has_bf16_dot());
            assert_eq!(dot_int8(isa, 1).is_some(), isa.has_vnni() || isa.has_dotprod());
        }
    }
}
