//! What is stored around the keys and values of a block.

use sha2::{Digest, Sha256};

use crate::{BlockHash, CachedBlock, KvElement, KvShape, storage::Arena};

/// First bytes: the format and its version.
const MAGIC: &[u8] = b"SQKVBLK1";

/// Read in another order of bytes it is another number.
const BYTE_ORDER: u16 = 0x0102;

/// Bytes of the sum at the end.
pub(super) const SUM: usize = 32;

/// All that stands before keys and values, into `out`.
pub(super) fn header_into<E: KvElement>(
    arena: &Arena<E>,
    block: CachedBlock<'_>,
    out: &mut Vec<u8>,
) {
    out.clear();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&BYTE_ORDER.to_ne_bytes());
    out.push(E::NAME.len() as u8);
    out.extend_from_slice(E::NAME.as_bytes());
    let scales = arena.scales();
    out.push(u8::from(scales.is_some()));
    for scale in scales.into_iter().flatten().flatten() {
        out.extend_from_slice(&scale.to_ne_bytes());
    }
    let KvShape { n_layers, n_heads, key_dim, value_dim } = arena.shape();
    for n in [n_layers, n_heads, key_dim, value_dim, arena.block_size()] {
        out.extend_from_slice(&(n as u64).to_ne_bytes());
    }
    for BlockHash(hash) in [block.parent, block.hash] {
        out.extend_from_slice(&hash);
    }
    out.extend_from_slice(bytemuck::cast_slice(block.tokens));
}

/// The sum of what precedes it.
pub(super) fn sum<'a>(parts: impl Iterator<Item = &'a [u8]>) -> [u8; SUM] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// Keys and values of a stored block, if it begins with `header` and ends with its sum.
pub(super) fn payload<'a>(stored: &'a [u8], header: &[u8]) -> Option<&'a [u8]> {
    let (content, stored_sum) = stored.split_last_chunk::<SUM>()?;
    let payload = content.strip_prefix(header)?;
    (sum([content].into_iter()) == *stored_sum).then_some(payload)
}
