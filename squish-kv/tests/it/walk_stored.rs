//! A stored block that is not one is no hit, and is removed; what is a hit has the numbers that are stored. Shared with the fuzz target.

use std::{cell::RefCell, io};

use sha2::{Digest, Sha256};
use squish_kv::{
    BlockHash, E4M3, KvShape, PagedKvCache, PrefixKey, Retention, Salt, Scaling, Scope,
    disk::BlockStore, ndarray::Array3,
};

/// What is stored under any hash.
#[derive(Default)]
struct One(RefCell<Option<Vec<u8>>>);

impl BlockStore for One {
    fn contains(&self, _: &BlockHash) -> io::Result<bool> {
        Ok(self.0.borrow().is_some())
    }

    fn load(&self, _: &BlockHash, out: &mut [u8]) -> io::Result<bool> {
        let stored = self.0.borrow();
        let Some(bytes) = stored.as_ref().filter(|bytes| bytes.len() == out.len()) else {
            return Ok(false);
        };
        out.copy_from_slice(bytes);
        Ok(true)
    }

    fn store(&self, _: &BlockHash, parts: &mut dyn Iterator<Item = &[u8]>) -> io::Result<()> {
        *self.0.borrow_mut() = Some(parts.collect::<Vec<_>>().concat());
        Ok(())
    }

    fn remove(&self, _: &BlockHash) -> io::Result<()> {
        *self.0.borrow_mut() = None;
        Ok(())
    }
}

/// A block, and the token of which somebody has to compute logits.
const TOKENS: [u32; 3] = [5, 6, 7];
const BLOCK: usize = 2;
const SHAPE: KvShape = KvShape { n_layers: 1, n_heads: 1, key_dim: 3, value_dim: 2 };

/// Codes and scales of the keys and values of a block.
const PAYLOAD: usize = BLOCK * (3 + 4) + BLOCK * (2 + 4);
const SUM: usize = 32;

fn new_cache() -> PagedKvCache<E4M3> {
    PagedKvCache::new(SHAPE, 2, BLOCK, Scaling::Dynamic).unwrap()
}

fn key() -> PrefixKey {
    Scope { model: b"model", adapter: None, layer_group: 0, salt: Salt::Shared }.key()
}

/// A block as it was saved.
fn saved() -> Vec<u8> {
    let mut cache = new_cache();
    let (id, _) = cache.create_with_prefix(&key(), &TOKENS, Retention::All).unwrap();
    let mut step = cache.begin(&[(id, TOKENS.len())]).unwrap();
    let [k, v] = [3, 2].map(|width| {
        Array3::from_shape_fn((3, 1, width), |(token, _, i)| (token * 4 + i) as f32 - 3.0)
    });
    step.write(0, id, k.view(), v.view()).unwrap();
    step.record(id, &TOKENS).unwrap();
    step.commit().unwrap();
    let store = One::default();
    assert_eq!(cache.save_blocks(id, &store).unwrap(), 1);
    store.0.take().unwrap()
}

fn sum_of(content: &[u8]) -> [u8; SUM] {
    Sha256::digest(content).into()
}

/// What `input` makes of a saved block.
fn changed(saved: &[u8], input: &[u8]) -> Vec<u8> {
    let [how, at, bytes @ ..] = input else { return input.to_vec() };
    let at = usize::from(*at) % saved.len();
    match how % 4 {
        0 => bytes.to_vec(),
        1 => [&saved[..at], bytes].concat(),
        with_sum => {
            let mut out = saved.to_vec();
            out[at..].iter_mut().zip(bytes).for_each(|(out, byte)| *out ^= byte);
            if with_sum == 2 {
                let (content, sum) = out.split_last_chunk_mut::<SUM>().unwrap();
                *sum = sum_of(content);
            }
            out
        }
    }
}

/// Looks for a prompt where `input` has changed what is stored; whether it was found.
pub(crate) fn walk_stored(input: &[u8]) -> bool {
    let saved = saved();
    let stored = changed(&saved, input);
    let header = &saved[..saved.len() - PAYLOAD - SUM];
    let is_block = stored.len() == saved.len()
        && stored.starts_with(header)
        && stored.split_last_chunk().is_some_and(|(content, sum)| *sum == sum_of(content));
    let store = One(RefCell::new(Some(stored.clone())));
    let mut cache = new_cache();
    let found = cache.create_with_stored_prefix(&key(), &TOKENS, Retention::All, &store);
    let (id, n_cached) = found.unwrap();
    assert_eq!(n_cached, if is_block { BLOCK } else { 0 });
    assert_eq!(cache.len(id).unwrap(), n_cached);
    if is_block {
        let again = One::default();
        assert_eq!(cache.save_blocks(id, &again).unwrap(), 1);
        assert_eq!(again.0.take(), Some(stored), "the same numbers");
    } else if stored.len() == saved.len() {
        assert_eq!(store.0.take(), None, "it is removed");
    }
    is_block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_is_a_hit_where_it_is_a_number_and_the_sum_is_right() {
        let len = saved().len();
        assert!(u8::try_from(len).is_ok(), "each byte can be changed");
        for at in 0..len {
            for bit in 0..8 {
                let is_number = (len - PAYLOAD - SUM..len - SUM).contains(&at);
                assert!(!walk_stored(&[3, at as u8, 1 << bit]), "byte {at}");
                // A sum that was changed is made right again.
                let is_sum = at >= len - SUM;
                assert_eq!(
                    walk_stored(&[2, at as u8, 1 << bit]),
                    is_number || is_sum,
                    "byte {at}, with a new sum"
                );
            }
        }
        assert!(walk_stored(&[3, 0]), "as it was saved");
    }

    #[test]
    fn other_bytes_are_no_hit_however_many() {
        let saved = saved();
        for len in 0..=saved.len() {
            let is_all = len == saved.len();
            assert_eq!(walk_stored(&[&[0, 0], &saved[..len]].concat()), is_all, "{len} bytes");
        }
        assert!(!walk_stored(&[&[0, 0], &saved[..], &[0]].concat()), "a byte more");
        assert!(!walk_stored(&[]) && !walk_stored(&[1, 40]));
    }
}
