//! Stores that go around the caches, for results too large to stay in them.
//!
//! An ordinary store to a line that is in no cache reads the line first. Where source and result exceed the last cache
//! level, that read is a third to a fifth of the traffic of a cast; a non-temporal store leaves it out. Kernels write
//! a tile that stays in L1, and `Stream::copy` sends it on.

use fearless_simd::Simd;

use crate::prefetch;

/// Elements that a kernel computes before they are sent on, 1 KiB of `f32`: the load and the store queue then always
/// have work of both kinds. Tiles of four and sixteen times the size decode at 0.8 and 0.7 of the rate.
pub(crate) const TILE: usize = 256;

/// Room for a tile. It starts on a cache line: where the stack puts an array is chance, and one whose vectors straddle
/// lines is not forwarded from the store to the load, which costs up to three quarters of the rate.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Tile<T>([T; TILE]);

impl<T: bytemuck::Pod> Tile<T> {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self([T::zeroed(); TILE])
    }

    /// The first `len` elements.
    #[inline(always)]
    pub(crate) fn first(&mut self, len: usize) -> &mut [T] {
        &mut self.0[..len]
    }
}

/// Bytes read and written by one call from which on streaming pays. The C library switches its `memcpy` at three
/// quarters of the last cache level, 24 MiB on the machines at hand; below, the result would be found in the cache.
const STREAM_BYTES: usize = 24 << 20;

/// Where results are stored.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stores {
    /// In the caches.
    Cached,
    /// Around them.
    Streamed,
}

impl Stores {
    /// What pays for an operation that touches `bytes` bytes in all, in one call or in many.
    #[must_use]
    pub const fn for_bytes(bytes: usize) -> Self {
        if bytes >= STREAM_BYTES && cfg!(all(target_arch = "x86_64", not(miri))) {
            Self::Streamed
        } else {
            Self::Cached
        }
    }

    /// The stream, if results go around the caches.
    pub(crate) fn stream(self) -> Option<Stream> {
        (self == Self::Streamed).then_some(Stream(()))
    }
}

/// How far ahead of a short slice, in elements, an encoder that streams asks for more of the matrix.
///
/// A codec looks for the largest magnitude of a run, which waits for memory, and then encodes it, which does not; asking
/// for the run behind this one meanwhile keeps the memory busy. A long slice is left to the hardware.
pub(crate) const fn ahead(stores: Stores, len: usize) -> usize {
    if matches!(stores, Stores::Streamed) && len <= 16 * TILE { len } else { 0 }
}

/// Asks for the lines that lie `ahead` elements behind those of `x`, whatever is there.
#[inline(always)]
pub(crate) fn prefetch(x: &[f32], ahead: usize) {
    if ahead > 0 {
        prefetch::lines(bytemuck::cast_slice(x), ahead * size_of::<f32>());
    }
}

/// Copies around the caches while it lives; dropping it makes the copies visible in order to other threads.
#[derive(Debug)]
pub(crate) struct Stream(());

impl Stream {
    /// Copies `src` to `dst`, which must be equally long.
    #[inline(always)]
    #[expect(
        clippy::unused_self,
        reason = "holding a stream is what orders its stores before later ones"
    )]
    pub(crate) fn copy<S: Simd, T: bytemuck::NoUninit + bytemuck::AnyBitPattern>(
        &self,
        simd: S,
        src: &[T],
        dst: &mut [T],
    ) {
        assert_eq!(src.len(), dst.len(), "stream: lengths differ");
        #[cfg(target_arch = "x86_64")]
        x86::copy(simd, bytemuck::cast_slice(src), bytemuck::cast_slice_mut(dst));
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = simd;
            dst.copy_from_slice(src);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        x86::fence();
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;

    use fearless_simd::{Level, Simd};

    /// Whole lines by the widest stores there are: a store occupies an entry of the core's queue until the memory takes
    /// it, whatever its width, and a queue full of narrow ones leaves no room for the work on the next tile.
    #[inline(always)]
    pub(super) fn copy<S: Simd>(simd: S, src: &[u8], dst: &mut [u8]) {
        let head = dst.as_ptr().align_offset(64).min(dst.len());
        let (src_head, src) = src.split_at(head);
        let (dst_head, dst) = dst.split_at_mut(head);
        dst_head.copy_from_slice(src_head);
        let (src_lines, src_tail) = src.as_chunks::<64>();
        let (dst_lines, dst_tail) = dst.as_chunks_mut::<64>();
        for (src, dst) in src_lines.iter().zip(dst_lines) {
            store_line(simd, src, dst);
        }
        dst_tail.copy_from_slice(src_tail);
    }

    #[inline(always)]
    #[expect(
        clippy::cast_ptr_alignment,
        reason = "the loads take any alignment, that of the stores is asserted"
    )]
    fn store_line<S: Simd>(simd: S, src: &[u8; 64], dst: &mut [u8; 64]) {
        assert!(dst.as_ptr().addr().is_multiple_of(64), "stream: line is not aligned");
        let (src, dst) = (src.as_ptr(), dst.as_mut_ptr());
        match simd.level() {
            // SAFETY: `src` and `dst` point to 64 bytes; the load takes any alignment, and the assertion above gave
            // `dst` that of the store. The token of the level shows that the CPU has AVX-512F.
            Level::Avx512(_) => unsafe {
                _mm512_stream_si512(dst.cast(), _mm512_loadu_si512(src.cast()));
            },
            // SAFETY: As above for both halves of 32 bytes, with AVX.
            Level::Avx2(_) => unsafe {
                let (src, dst) = (src.cast::<__m256i>(), dst.cast::<__m256i>());
                _mm256_stream_si256(dst, _mm256_loadu_si256(src));
                _mm256_stream_si256(dst.add(1), _mm256_loadu_si256(src.add(1)));
            },
            // SAFETY: As above for four parts of 16 bytes. SSE2 is x86-64's baseline.
            _ => unsafe {
                let (src, dst) = (src.cast::<__m128i>(), dst.cast::<__m128i>());
                for i in 0..4 {
                    _mm_stream_si128(dst.add(i), _mm_loadu_si128(src.add(i)));
                }
            },
        }
    }

    /// Orders the stores above before later ones, as other threads expect of plain memory.
    #[inline]
    pub(super) fn fence() {
        // SAFETY: SSE is part of x86-64's baseline.
        unsafe { _mm_sfence() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, isa::dispatch};

    #[test]
    fn a_streamed_copy_is_the_copy_at_every_length_and_offset() {
        let src: Vec<u8> = (0..400u16).map(|i| i as u8).collect();
        for (offset, len) in
            (0..70).flat_map(|offset| [0, 1, 63, 64, 65, 128, 300].map(|len| (offset, len)))
        {
            for isa in Isa::available() {
                let mut dst = vec![0xaa; 400];
                let (from, to) = (&src[7..7 + len], &mut dst[offset..offset + len]);
                dispatch!(isa.token(), simd => Stream(()).copy(simd, from, to));
                assert_eq!(dst[offset..offset + len], src[7..7 + len], "{isa:?} {offset} {len}");
                assert!(
                    dst[..offset].iter().chain(&dst[offset + len..]).all(|&x| x == 0xaa),
                    "{isa:?} offset {offset}, len {len}"
                );
            }
        }
    }
}
