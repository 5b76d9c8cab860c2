//! Prompts with their keys and values, found by their tokens.

use squish_bench::alloc::count_allocations;
use squish_kv::{
    Error, KvShape, KvSource, PrefixHit, PrefixKey, PrefixPool, Salt, Scaling, Scope,
    ndarray::{Array3, Array4, Axis, s},
};

use crate::gqa::{numbers, rows};

const SHAPE: KvShape = KvShape { n_layers: 2, n_heads: 2, key_dim: 6, value_dim: 4 };

fn key(salt: Salt<'_>) -> PrefixKey {
    Scope { model: b"model", adapter: None, layer_group: 0, salt }.key()
}

/// Keys and values of `n` tokens, `[layers, tokens, heads, width]`.
fn arrays(n: usize, seed: usize) -> [Array4<f32>; 2] {
    [SHAPE.key_dim, SHAPE.value_dim].map(|width| {
        let layers = numbers(SHAPE.n_layers * n, SHAPE.n_heads, width, seed);
        layers.into_shape_with_order((SHAPE.n_layers, n, SHAPE.n_heads, width)).unwrap()
    })
}

fn put(pool: &mut PrefixPool<f32>, tokens: &[u32], [k, v]: &[Array4<f32>; 2]) -> usize {
    pool.put(&key(Salt::Shared), tokens, k.view(), v.view()).unwrap()
}

fn get(pool: &mut PrefixPool<f32>, tokens: &[u32]) -> Option<PrefixHit> {
    pool.get(&key(Salt::Shared), tokens).unwrap()
}

/// How many tokens are found, whose rows are those of the arrays.
fn found(pool: &mut PrefixPool<f32>, tokens: &[u32], [k, v]: &[Array4<f32>; 2]) -> usize {
    let Some(hit) = get(pool, tokens) else { return 0 };
    let n = hit.n_tokens();
    for layer in 0..SHAPE.n_layers {
        let mut out = [k, v].map(|x| Array3::zeros((SHAPE.n_heads, n, x.len_of(Axis(3)))));
        let [keys, values] = &mut out;
        pool.gather_into(&hit, layer, keys.view_mut(), values.view_mut()).unwrap();
        for (out, rows) in out.iter().zip([k, v]) {
            assert_eq!(out, rows.slice(s![layer, ..n, .., ..]).permuted_axes([1, 0, 2]));
        }
    }
    pool.release(hit).unwrap();
    n
}

fn pool(n_blocks: usize) -> PrefixPool<f32> {
    PrefixPool::new(SHAPE, n_blocks, 4, Scaling::Dynamic).unwrap()
}

#[test]
fn the_longest_prefix_of_whole_blocks_is_found_whatever_follows_it() {
    let (mut pool, tokens) = (pool(10), (0..14).collect::<Vec<u32>>());
    let mut new = arrays(14, 1);
    let stored = arrays(14, 1);
    assert_eq!(put(&mut pool, &tokens[..3], &arrays(3, 1)), 0);
    assert_eq!(put(&mut pool, &tokens, &new), 12);
    assert_eq!((pool.tables().n_cached_blocks(), pool.tables().n_sequences()), (3, 0));
    // What the caller does with its arrays is its own affair.
    for x in &mut new {
        x.fill(7.0);
    }
    assert_eq!(found(&mut pool, &tokens, &stored), 12);
    assert_eq!(found(&mut pool, &tokens[..12], &stored), 12, "all of a prompt may be found");
    assert_eq!(found(&mut pool, &tokens[..11], &stored), 8);
    assert_eq!(found(&mut pool, &tokens[..3], &stored), 0);
    let mut other = (0..50).collect::<Vec<u32>>();
    assert_eq!(found(&mut pool, &other, &stored), 12);
    other[6] = 99;
    assert_eq!(found(&mut pool, &other, &stored), 4);
    other[0] = 99;
    assert_eq!(found(&mut pool, &other, &stored), 0);
    assert!(pool.get(&key(Salt::Tenant(b"other")), &tokens).unwrap().is_none());

    // What is there is not stored again; what follows is.
    assert_eq!(put(&mut pool, &tokens[..12], &new.map(|x| x.slice_move(s![.., ..12, .., ..]))), 12);
    assert_eq!(pool.tables().n_cached_blocks(), 3);
    let longer: Vec<u32> = (0..20).collect();
    assert_eq!(put(&mut pool, &longer, &arrays(20, 2)), 20);
    assert_eq!(pool.tables().n_cached_blocks(), 5);
    assert_eq!(found(&mut pool, &longer[..15], &stored), 12);
    assert_eq!(pool.tables().pool().n_free(), 10);
}

#[test]
fn what_was_not_used_for_longest_goes_and_what_is_held_stays() {
    let mut pool = pool(4);
    let prompts = [0, 100, 200].map(|first| (first..first + 8).collect::<Vec<u32>>());
    let new = [1, 2, 3].map(|seed| arrays(8, seed));
    put(&mut pool, &prompts[0], &new[0]);
    put(&mut pool, &prompts[1], &new[1]);
    assert_eq!(found(&mut pool, &prompts[0], &new[0]), 8);
    put(&mut pool, &prompts[2], &new[2]);
    assert_eq!(found(&mut pool, &prompts[1], &new[1]), 0, "the least recently used");
    let held = get(&mut pool, &prompts[0]).unwrap();
    let before = rows(&pool.view(&held, 1).unwrap());
    let also = get(&mut pool, &prompts[0]).unwrap();
    put(&mut pool, &prompts[1], &new[1]);
    assert_eq!(found(&mut pool, &prompts[2], &new[2]), 0);

    // Three blocks are wanted, two are not held.
    let [k, v] = arrays(12, 4);
    let long: Vec<u32> = (300..312).collect();
    let refused = pool.put(&key(Salt::Shared), &long, k.view(), v.view());
    assert_eq!(refused, Err(Error::PoolExhausted { needed: 3, free: 2 }));
    assert_eq!(pool.tables().n_sequences(), 2, "the hits");
    assert_eq!(found(&mut pool, &prompts[1], &new[1]), 8);
    assert_eq!(rows(&pool.view(&held, 1).unwrap()), before);
    pool.release(held).unwrap();
    assert_eq!(pool.tables().pool().n_free(), 2);
    pool.release(also).unwrap();
    assert_eq!(pool.put(&key(Salt::Shared), &long, k.view(), v.view()), Ok(12));
    assert_eq!(found(&mut pool, &long, &[k, v]), 12);
}

#[test]
fn arrays_that_do_not_fit_and_hits_of_others_are_refused() {
    let mut pool = pool(4);
    let key = key(Salt::Shared);
    let tokens: Vec<u32> = (0..8).collect();
    let [k, v] = arrays(8, 1);
    let axis = |what, axis, expected, actual| Err(Error::Axis { what, axis, expected, actual });
    let layers = k.slice(s![..1, .., .., ..]);
    assert_eq!(pool.put(&key, &tokens, layers, v.view()), axis("keys", "layers", 2, 1));
    assert_eq!(pool.put(&key, &tokens, k.view(), k.view()), axis("values", "width", 4, 6));
    assert_eq!(pool.put(&key, &tokens[..7], k.view(), v.view()), axis("keys", "tokens", 7, 8));
    let heads = v.slice(s![.., .., ..1, ..]);
    assert_eq!(pool.put(&key, &tokens, k.view(), heads), axis("values", "heads", 2, 1));
    assert_eq!(pool.tables().n_cached_blocks(), 0);

    pool.put(&key, &tokens, k.view(), v.view()).unwrap();
    let hit = pool.get(&key, &tokens).unwrap().unwrap();
    let error = Error::UnknownLayer { layer: 2, n_layers: 2 };
    assert_eq!(pool.view(&hit, 2).err(), Some(error));
    let mut other = PrefixPool::<f32>::new(SHAPE, 4, 4, Scaling::Dynamic).unwrap();
    assert!(matches!(other.view(&hit, 0).err(), Some(Error::UnknownSequence { .. })));
    assert!(matches!(other.release(hit), Err(Error::UnknownSequence { .. })));
}

#[test]
fn a_hit_allocates_nothing_once_there_is_room() {
    let mut pool = pool(10);
    pool.reserve(2, 40);
    let (tokens, key) = ((0..40).collect::<Vec<u32>>(), key(Salt::Shared));
    put(&mut pool, &tokens, &arrays(40, 1));
    let mut run = || {
        let hit = pool.get(&key, &tokens)?.map_or(0, |hit| {
            let n = pool.view(&hit, 0).map_or(0, |view| view.len());
            pool.release(hit).map_or(0, |()| n)
        });
        Ok::<_, Error>((hit, pool.get(&key, &tokens[1..])?.is_none()))
    };
    assert_eq!(run(), Ok((40, true)));
    assert_eq!(count_allocations(run), (Ok((40, true)), 0));
}
