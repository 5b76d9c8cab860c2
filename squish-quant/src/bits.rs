//! Codes of 3 to 8 bits as a stream of bits: [`pack_into`] and [`unpack_into`].
//!
//! Code `i` of `B` bits takes bits `i · B` to `i · B + B - 1` of the stream, its lowest bit first, and bit `k` of the stream is
//! bit `k % 8` of byte `k / 8`. Eight codes are `B` whole bytes, and are moved together in one register: neighbors are
//! pushed against each other, first codes, then pairs of them, then fours.
//!
//! ```text
//! 8-bit fields of B bits    .....hhh .....ggg .....fff .....eee .....ddd .....ccc .....bbb .....aaa
//! 16-bit fields of 2B       ..........hhhggg  ..........fffeee  ..........dddccc  ..........bbbaaa
//! 32-bit fields of 4B       ....................hhhgggfffeee    ....................dddcccbbbaaa
//! 8B bits                   ........................................hhhgggfffeeedddcccbbbaaa
//! ```

/// The low `BITS` bits of each code, as a stream; whole groups of eight.
///
/// `codes` is a multiple of eight long, and `out` holds `BITS` bytes for each eight codes.
pub(crate) fn pack_into<const BITS: usize>(codes: &[u8], out: &mut [u8]) {
    debug_assert_eq!(codes.len() / 8 * BITS, out.len());
    for (codes, out) in codes.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<BITS>().0) {
        out.copy_from_slice(&pack::<BITS>(*codes).to_le_bytes()[..BITS]);
    }
}

/// The codes of a stream, one in the low bits of each byte, with zeros above.
///
/// `codes` is a multiple of eight long, and `stream` holds `BITS` bytes for each eight codes.
pub(crate) fn unpack_into<const BITS: usize>(stream: &[u8], codes: &mut [u8]) {
    debug_assert_eq!(codes.len() / 8 * BITS, stream.len());
    for (stream, codes) in stream.as_chunks::<BITS>().0.iter().zip(codes.as_chunks_mut::<8>().0) {
        let mut bytes = [0; 8];
        bytes[..BITS].copy_from_slice(stream);
        *codes = unpack::<BITS>(u64::from_le_bytes(bytes));
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

fn pack<const BITS: usize>(codes: [u8; 8]) -> u64 {
    const { assert!(BITS >= 1 && BITS <= 8) }
    let mut fields = u64::from_le_bytes(codes);
    for width in WIDTHS {
        let n_bits = width / 8 * BITS as u32;
        let low = low_fields(width, n_bits);
        fields = fields & low | fields >> (width - n_bits) & (low << n_bits);
    }
    fields
}

fn unpack<const BITS: usize>(stream: u64) -> [u8; 8] {
    const { assert!(BITS >= 1 && BITS <= 8) }
    let mut fields = stream;
    for width in WIDTHS.into_iter().rev() {
        let n_bits = width / 8 * BITS as u32;
        let low = low_fields(width, n_bits);
        fields = fields & low | (fields & (low << n_bits)) << (width - n_bits);
    }
    fields.to_le_bytes()
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
        for n_codes in [0, 8, 16, 24, 80] {
            for _ in 0..200 {
                // Bits above a code are left out.
                let codes: Vec<u8> = (0..n_codes)
                    .map(|_| {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                        (state >> 56) as u8
                    })
                    .collect();
                let mut stream = vec![0xaa; n_codes / 8 * BITS];
                pack_into::<BITS>(&codes, &mut stream);
                assert_eq!(stream, by_definition(BITS, &codes), "{BITS} bits: {codes:x?}");
                let mut back = vec![0xaa; n_codes];
                unpack_into::<BITS>(&stream, &mut back);
                let low: Vec<u8> = codes.iter().map(|code| code & (0xff >> (8 - BITS))).collect();
                assert_eq!(back, low, "{BITS} bits");
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
