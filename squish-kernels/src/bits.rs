//! Codes of 3 to 8 bits as a stream of bits: [`pack_into`] and [`unpack_into`].
//!
//! Code `i` of `B` bits takes bits `i · B` to `i · B + B - 1` of the stream, its lowest bit first, and bit `k` of the stream is
//! bit `k % 8` of byte `k / 8`. Eight codes are `B` whole bytes, and are moved together in 64 bits: neighbors are
//! pushed against each other, first codes, then pairs of them, then fours, and the other way round.
//!
//! ```text
//! 8-bit fields of B bits    .....hhh .....ggg .....fff .....eee .....ddd .....ccc .....bbb .....aaa
//! 16-bit fields of 2B       ..........hhhggg  ..........fffeee  ..........dddccc  ..........bbbaaa
//! 32-bit fields of 4B       ....................hhhgggfffeee    ....................dddcccbbbaaa
//! 8B bits                   ........................................hhhgggfffeeedddcccbbbaaa
//! ```

use fearless_simd::{Simd, prelude::*};

use crate::{Isa, isa::dispatch};

/// The low `BITS` bits of each code, as a stream; whole groups of eight.
///
/// # Panics
///
/// If `codes` is no multiple of eight long, or `out` does not hold `BITS` bytes for each eight codes.
pub fn pack_into<const BITS: usize>(codes: &[u8], out: &mut [u8]) {
    pack_with::<BITS>(Isa::detect(), codes, out);
}

/// The codes of a stream, one in the low bits of each byte, with zeros above.
///
/// # Panics
///
/// As [`pack_into`], with `stream` in the place of `out`.
pub fn unpack_into<const BITS: usize>(stream: &[u8], codes: &mut [u8]) {
    unpack_with::<BITS>(Isa::detect(), stream, codes);
}

#[doc(hidden)]
pub fn pack_with<const BITS: usize>(isa: Isa, codes: &[u8], out: &mut [u8]) {
    assert_groups::<BITS>(codes.len(), out.len());
    dispatch!(isa.token(), _simd => {
        for (codes, i) in codes.chunks(8 * AT_ONCE).zip((0..).step_by(AT_ONCE)) {
            let mut fields = [0; AT_ONCE];
            for (fields, codes) in fields.iter_mut().zip(codes.as_chunks().0) {
                *fields = u64::from_le_bytes(*codes);
            }
            let fields = fields.map(pack::<BITS>);
            for (j, fields) in fields[..codes.len() / 8].iter().enumerate() {
                store(*fields, BITS, &mut out[(i + j) * BITS..]);
            }
        }
    });
}

#[doc(hidden)]
pub fn unpack_with<const BITS: usize>(isa: Isa, stream: &[u8], codes: &mut [u8]) {
    assert_groups::<BITS>(codes.len(), stream.len());
    dispatch!(isa.token(), simd => unpack::<_, BITS>(simd, stream, codes));
}

fn assert_groups<const BITS: usize>(n_codes: usize, n_bytes: usize) {
    assert!(n_codes.is_multiple_of(8), "bits: {n_codes} codes are no groups of eight");
    assert_eq!(n_codes / 8 * BITS, n_bytes, "bits: bytes of {n_codes} codes");
}

/// Groups whose fields are moved together, two of the widest vectors: a map that the compiler turns into vector instructions.
const AT_ONCE: usize = 16;

/// Writes the low `n` bytes, and others behind them where there is room: what comes next overwrites these.
#[inline(always)]
pub(crate) fn store(fields: u64, n: usize, out: &mut [u8]) {
    match out.first_chunk_mut() {
        Some(out) => *out = fields.to_le_bytes(),
        None => out[..n].copy_from_slice(&fields.to_le_bytes()[..n]),
    }
}

/// Widths of the fields that are joined in pairs.
const WIDTHS: [u32; 3] = [8, 16, 32];

/// Ones in the low `n_bits` bits of every other field of `width` bits, the lowest one included.
const fn low_fields(width: u32, n_bits: u32) -> u64 {
    let ones = (1 << n_bits) - 1;
    match width {
        8 => 0x0001_0001_0001_0001 * ones,
        16 => 0x0000_0001_0000_0001 * ones,
        _ => ones,
    }
}

/// Eight codes, one in a byte, as a stream. Bits above a code are left out.
#[inline(always)]
pub(crate) const fn pack<const BITS: usize>(codes: u64) -> u64 {
    const { assert!(BITS >= 1 && BITS <= 8) }
    let mut fields = codes;
    let mut i = 0;
    while i < WIDTHS.len() {
        let (width, n_bits) = (WIDTHS[i], WIDTHS[i] / 8 * BITS as u32);
        let low = low_fields(width, n_bits);
        fields = fields & low | fields >> (width - n_bits) & (low << n_bits);
        i += 1;
    }
    fields
}

/// Bytes of the widest vector.
const MAX_BYTES: usize = 64;

/// Where in a stream the bytes of each eight codes begin: in 64 bits of their own, with some that come after.
const fn places<const BITS: usize>() -> [u8; MAX_BYTES] {
    let mut places = [0; MAX_BYTES];
    let mut i = 0;
    while i < MAX_BYTES {
        let within = if i % 8 < BITS { i % 8 } else { 0 };
        places[i] = (i / 8 * BITS + within) as u8;
        i += 1;
    }
    places
}

#[inline(always)]
fn unpack<S: Simd, const BITS: usize>(simd: S, stream: &[u8], codes: &mut [u8]) {
    let lanes = S::u8s::LEN;
    let places = S::u8s::from_slice(simd, &const { places::<BITS>() }[..lanes]);
    for (i, codes) in codes.chunks_mut(lanes).enumerate() {
        let stream = &stream[i * (lanes / 8 * BITS)..];
        let bytes = if let Some(bytes) = stream.get(..lanes) {
            S::u8s::from_slice(simd, bytes)
        } else {
            let mut padded = [0; MAX_BYTES];
            padded[..stream.len()].copy_from_slice(stream);
            S::u8s::from_slice(simd, &padded[..lanes])
        };
        let fields = bytes.swizzle_dyn(places).bitcast();
        let unpacked = unpack_fields::<S, BITS>(simd, fields).bitcast::<S::u8s>();
        codes.copy_from_slice(&unpacked.as_slice()[..codes.len()]);
    }
}

/// The codes that [`pack`] packs. Bits behind the stream are left out.
#[inline(always)]
fn unpack_fields<S: Simd, const BITS: usize>(simd: S, stream: S::u64s) -> S::u64s {
    const { assert!(BITS >= 1 && BITS <= 8) }
    let mut fields = stream;
    for width in WIDTHS.into_iter().rev() {
        let n_bits = width / 8 * BITS as u32;
        let low = S::u64s::splat(simd, low_fields(width, n_bits));
        fields = fields & low | (fields & low << n_bits) << (width - n_bits);
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit by bit, as the module says.
    fn by_definition(n_bits: usize, codes: &[u8]) -> Vec<u8> {
        let mut out = vec![0u8; codes.len() * n_bits / 8];
        for (i, code) in codes.iter().enumerate() {
            for bit in (0..n_bits).filter(|bit| code >> bit & 1 == 1) {
                let k = i * n_bits + bit;
                out[k / 8] |= 1 << (k % 8);
            }
        }
        out
    }

    fn agrees<const BITS: usize>() {
        let mut state = BITS as u64;
        for n_codes in [0, 8, 16, 24, 80, 128, 136, 264] {
            for _ in 0..50 {
                // Bits above a code are left out.
                let codes: Vec<u8> = (0..n_codes)
                    .map(|_| {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                        (state >> 56) as u8
                    })
                    .collect();
                let low: Vec<u8> = codes.iter().map(|code| code & (0xff >> (8 - BITS))).collect();
                for isa in Isa::available() {
                    let mut stream = vec![0xaa; n_codes / 8 * BITS];
                    pack_with::<BITS>(isa, &codes, &mut stream);
                    assert_eq!(stream, by_definition(BITS, &codes), "{isa:?} {BITS} bits");
                    let mut back = vec![0xaa; n_codes];
                    unpack_with::<BITS>(isa, &stream, &mut back);
                    assert_eq!(back, low, "{isa:?} {BITS} bits");
                }
            }
        }
    }

    #[test]
    fn streams_have_every_bit_in_its_place_and_unpack_to_their_codes() {
        agrees::<1>();
        agrees::<2>();
        agrees::<3>();
        agrees::<4>();
        agrees::<5>();
        agrees::<6>();
        agrees::<7>();
        agrees::<8>();
    }
}
