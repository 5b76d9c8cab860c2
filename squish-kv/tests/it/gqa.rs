//! The cache in one piece, and what all caches do with the rows that they are given.

use squish_kv::{
    E4M3, E5M2, Error, GqaCache, KvElement, KvShape, KvSource, Scaling, bf16, f16, gather,
    ndarray::{Array3, Axis, s},
};

/// Numbers between -1 and 1, `[tokens, heads, width]`.
pub(crate) fn numbers(n_tokens: usize, n_heads: usize, width: usize, seed: usize) -> Array3<f32> {
    Array3::from_shape_fn((n_tokens, n_heads, width), |(token, head, i)| {
        let bits = ((seed * 1009 + token) * 31 + head) * 257 + i + 1;
        ((bits as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
}

/// The bits of all values that a source holds, keys and then values of each token and head.
pub(crate) fn rows<S: KvSource>(source: &S) -> Vec<Vec<u32>> {
    let (k, v) = gather(source).unwrap();
    let bits = |x: &Array3<f32>, token, head| -> Vec<u32> {
        x.slice(s![head, token, ..]).iter().map(|x: &f32| x.to_bits()).collect()
    };
    let each = (0..source.len()).flat_map(|t| (0..source.n_heads()).map(move |head| (t, head)));
    each.flat_map(|(t, head)| [bits(&k, t, head), bits(&v, t, head)]).collect()
}

const SHAPE: KvShape = KvShape { n_layers: 3, n_heads: 2, key_dim: 6, value_dim: 4 };

/// Writes tokens of `seed` to all layers, and keeps those of `path`.
fn append(cache: &mut GqaCache<f32>, n: usize, seed: usize, path: Option<&[usize]>) {
    let mut step = cache.begin(n).unwrap();
    for layer in 0..SHAPE.n_layers {
        let (k, v) = (numbers(n, 2, 6, seed + layer), numbers(n, 2, 4, seed + layer + 100));
        step.write(layer, k.view(), v.view()).unwrap();
        assert_eq!(step.view(layer).unwrap().len(), step.len_with_new());
    }
    if let Some(path) = path {
        step.accept(path).unwrap();
    }
    step.commit().unwrap();
}

#[test]
fn tokens_are_read_as_they_were_written_until_they_are_cut() {
    let mut cache = GqaCache::<f32>::new(SHAPE, 10, Scaling::Dynamic).unwrap();
    append(&mut cache, 4, 1, None);
    append(&mut cache, 5, 2, Some(&[1, 3, 4]));
    assert_eq!((cache.len(), cache.capacity(), cache.shape()), (7, 10, SHAPE));
    let check = |cache: &GqaCache<f32>| {
        for layer in 0..SHAPE.n_layers {
            let (k, v) = cache.gather(layer).unwrap();
            for (got, width, offset) in [(&k, 6, 0), (&v, 4, 100)] {
                let first = numbers(4, 2, width, 1 + layer + offset);
                let second = numbers(5, 2, width, 2 + layer + offset);
                let kept = second.select(Axis(0), &[1, 3, 4]);
                assert_eq!(got.slice(s![.., ..4, ..]), first.permuted_axes([1, 0, 2]));
                assert_eq!(got.slice(s![.., 4..7, ..]), kept.permuted_axes([1, 0, 2]));
            }
        }
    };
    check(&cache);
    // What is undone leaves nothing behind, and what is made larger keeps what it has.
    let (k, v) = (numbers(3, 2, 6, 9), numbers(3, 2, 4, 9));
    let mut step = cache.begin(3).unwrap();
    step.write(1, k.view(), v.view()).unwrap();
    drop(step);
    check(&cache);
    cache.reserve(5).unwrap();
    assert_eq!(cache.capacity(), 10);
    cache.reserve(33).unwrap();
    assert_eq!((cache.len(), cache.capacity()), (7, 33));
    check(&cache);
    append(&mut cache, 26, 3, None);
    assert_eq!(cache.len(), 33);
    cache.truncate(7).unwrap();
    check(&cache);
    cache.clear();
    assert!(cache.is_empty() && cache.view(0).unwrap().n_runs() == 0);
    append(&mut cache, 4, 1, None);
    append(&mut cache, 3, 5, Some(&[]));
    assert_eq!(cache.len(), 4);
}

#[test]
fn a_refused_call_says_why_and_changes_nothing() {
    let mut cache = GqaCache::<f32>::new(SHAPE, 5, Scaling::Dynamic).unwrap();
    append(&mut cache, 3, 1, None);
    let before = rows(&cache.view(0).unwrap());
    let (k, v) = (numbers(2, 2, 6, 4), numbers(2, 2, 4, 4));
    assert_eq!(cache.begin(3).err(), Some(Error::Full { len: 3, n_new: 3, capacity: 5 }));
    assert_eq!(cache.truncate(4), Err(Error::Truncate { len: 3, to: 4 }));
    assert_eq!(cache.view(3).err(), Some(Error::UnknownLayer { layer: 3, n_layers: 3 }));
    let axis = |what, axis, expected, actual| Err(Error::Axis { what, axis, expected, actual });
    assert_eq!(cache.append(k.view(), v.view()), axis("cache", "layers", 1, 3));

    let mut step = cache.begin(2).unwrap();
    assert_eq!(
        step.write(3, k.view(), v.view()),
        Err(Error::UnknownLayer { layer: 3, n_layers: 3 })
    );
    assert_eq!(step.view(3).err(), Some(Error::UnknownLayer { layer: 3, n_layers: 3 }));
    let one = numbers(1, 2, 6, 4);
    assert_eq!(step.write(0, one.view(), v.view()), axis("keys", "tokens", 2, 1));
    assert_eq!(step.write(0, k.view(), k.view()), axis("values", "width", 4, 6));
    let heads = numbers(2, 3, 4, 4);
    assert_eq!(step.write(0, k.view(), heads.view()), axis("values", "heads", 2, 3));
    let turned = numbers(2, 4, 2, 4);
    let error = step.write(0, k.view(), turned.view().permuted_axes([0, 2, 1]));
    let (shape, strides) = ([2, 2, 4], [8, 1, 2]);
    assert_eq!(error, Err(Error::Layout { what: "values", shape, strides }));

    assert_eq!(step.view(0).err(), Some(Error::NotWritten { layer: 0, index: 0 }));
    step.write(0, k.view(), v.view()).unwrap();
    step.write(2, k.view(), v.view()).unwrap();
    let path = Error::Path { index: 1, node: 0, least: 1, n_new: 2 };
    assert_eq!(step.accept(&[0, 0]), Err(path));
    assert_eq!(step.commit(), Err(Error::NotWritten { layer: 1, index: 0 }));
    assert_eq!((cache.len(), rows(&cache.view(0).unwrap())), (3, before));
}

#[test]
fn shapes_and_sizes_that_cannot_be_are_refused() {
    fn new(shape: KvShape, capacity: usize, scaling: Scaling<'_>) -> Option<Error> {
        GqaCache::<i8>::new(shape, capacity, scaling).err()
    }
    for (what, shape) in [
        ("n_layers", KvShape { n_layers: 0, ..SHAPE }),
        ("n_heads", KvShape { n_heads: 0, ..SHAPE }),
        ("key_dim", KvShape { key_dim: 0, ..SHAPE }),
        ("value_dim", KvShape { value_dim: 0, ..SHAPE }),
    ] {
        assert_eq!(new(shape, 1, Scaling::Dynamic), Some(Error::Zero { what }));
    }
    assert_eq!(new(SHAPE, 0, Scaling::Dynamic), Some(Error::Zero { what: "capacity" }));
    let (n_blocks, max) = (1, u32::MAX as usize - 2);
    assert_eq!(
        new(SHAPE, max + 1, Scaling::Dynamic),
        Some(Error::TooManySlots { n_blocks, block_size: max + 1, max })
    );
    // More bytes than addresses, and more than any machine has.
    let wide = KvShape { key_dim: usize::MAX / 8, ..SHAPE };
    let error = Error::StorageMemory { what: "keys", bytes: usize::MAX };
    assert_eq!(new(wide, 100, Scaling::Dynamic), Some(error));
    let deep = KvShape { n_layers: 1 << 24, value_dim: 1 << 10, ..SHAPE };
    let Some(Error::StorageMemory { what, bytes }) = new(deep, 1 << 20, Scaling::Dynamic) else {
        panic!("there is no such memory");
    };
    assert!(what == "keys" && bytes == (1 << 24) * 2 * 6 * (1 << 20), "{what} {bytes}");

    let scales = [[0.5, 0.25]; 3];
    assert_eq!(new(SHAPE, 1, Scaling::Static(&scales)), None);
    let (what, axis) = ("scales", "layers");
    assert_eq!(
        new(SHAPE, 1, Scaling::Static(&scales[..2])),
        Some(Error::Axis { what, axis, expected: 3, actual: 2 })
    );
    for scale in [0.0, -1.0, f32::INFINITY, 1e-40, 3e38] {
        let scales = [[0.5, 0.25], [0.5, scale], [0.5, 0.25]];
        let error = Error::Scale { what: "values", layer: 1, scale };
        assert_eq!(new(SHAPE, 1, Scaling::Static(&scales)), Some(error));
    }
    assert!(matches!(
        new(SHAPE, 1, Scaling::Static(&[[f32::NAN, 1.0]; 3])),
        Some(Error::Scale { what: "keys", layer: 0, .. })
    ));
    assert_eq!(
        GqaCache::<f16>::new(SHAPE, 1, Scaling::Static(&scales)).err(),
        Some(Error::NotScaled { element: "f16" })
    );
}

/// One layer with one head of 4.
fn one_head<E: KvElement>(scaling: Scaling<'_>) -> GqaCache<E> {
    GqaCache::new(KvShape::new(1, 1, 4), 8, scaling).unwrap()
}

fn values_of<E: KvElement>(cache: &GqaCache<E>) -> Array3<f32> {
    cache.gather(0).unwrap().0
}

#[test]
fn numbers_that_are_not_finite_stay_so_or_are_refused() {
    fn poisons<E: KvElement>(bad: f32) {
        let mut cache = one_head::<E>(Scaling::Dynamic);
        let mut x = numbers(3, 1, 4, 1);
        x[[1, 0, 2]] = bad;
        cache.append(x.view(), x.view()).unwrap();
        let got = values_of(&cache);
        assert!(got.slice(s![0, 1, ..]).iter().all(|x| x.is_nan()), "{}: {got}", E::NAME);
        assert!(got.slice(s![0, ..;2, ..]).iter().all(|x| x.is_finite()), "{}: {got}", E::NAME);
    }
    fn keeps<E: KvElement>(scaling: Scaling<'_>, bad: f32, kept: f32) {
        let mut cache = one_head::<E>(scaling);
        let mut x = numbers(3, 1, 4, 1);
        x[[1, 0, 2]] = bad;
        x[[2, 0, 0]] = 3e4;
        cache.append(x.view(), x.view()).unwrap();
        let got = values_of(&cache);
        let bad = got[[0, 1, 2]];
        assert!(bad == kept || bad.is_nan() && kept.is_nan(), "{}: {got}", E::NAME);
        let n_bad = got.iter().filter(|x| !x.is_finite()).count();
        assert!(n_bad == 1 && got[[0, 2, 0]] > 100.0, "{}: {got}", E::NAME);
    }
    let given = Scaling::Static(&[[0.5, 0.5]]);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        poisons::<i8>(bad);
        poisons::<E4M3>(bad);
        poisons::<E5M2>(bad);
        keeps::<f32>(Scaling::Dynamic, bad, bad);
        keeps::<bf16>(Scaling::Dynamic, bad, bad);
        keeps::<f16>(Scaling::Dynamic, bad, bad);
        keeps::<E4M3>(given, bad, f32::NAN);
        keeps::<E5M2>(given, bad, bad);

        let mut cache = one_head::<i8>(given);
        let (mut x, good) = (numbers(3, 1, 4, 1), numbers(3, 1, 4, 2));
        cache.append(good.view(), good.view()).unwrap();
        x[[2, 0, 3]] = bad;
        let refused = |what| Err(Error::NotFinite { what, element: "int8", token: 2, head: 0 });
        assert_eq!(cache.append(x.view(), good.view()), refused("keys"));
        assert_eq!(cache.append(good.view(), x.view()), refused("values"));
        // Tokens that lie apart.
        let apart = Array3::from_shape_fn((6, 1, 4), |(t, h, i)| x[[t / 2, h, i]]);
        assert_eq!(cache.append(good.view(), apart.slice(s![..;2, .., ..])), refused("values"));
        assert_eq!(cache.len(), 3);
    }
}

#[test]
fn rows_of_zeros_are_zeros_in_every_type() {
    fn check<E: KvElement>() {
        let mut cache = one_head::<E>(Scaling::Dynamic);
        let x = Array3::zeros((2, 1, 4));
        cache.append(x.view(), x.view()).unwrap();
        assert!(values_of(&cache).iter().all(|&x| x == 0.0), "{}", E::NAME);
    }
    check::<f32>();
    check::<bf16>();
    check::<f16>();
    check::<i8>();
    check::<E4M3>();
    check::<E5M2>();
}

#[test]
fn quantized_rows_come_back_within_half_a_step_of_their_scale() {
    /// `most`: relative to the largest magnitude of the row.
    fn check<E: KvElement>(scaling: Scaling<'_>, most: f32) {
        let mut cache = one_head::<E>(scaling);
        let mut x = numbers(8, 1, 4, 1);
        if let Scaling::Dynamic = scaling {
            for (token, mut row) in x.outer_iter_mut().enumerate() {
                row *= 10_f32.powi(3 * token as i32 - 12);
            }
        }
        cache.append(x.view(), x.view()).unwrap();
        let got = values_of(&cache);
        for token in 0..8 {
            let row = x.slice(s![token, 0, ..]);
            let largest = match scaling {
                Scaling::Dynamic => row.iter().fold(0.0_f32, |most, x| most.max(x.abs())),
                Scaling::Static(_) => 1.0,
            };
            for (x, got) in row.iter().zip(got.slice(s![0, token, ..])) {
                assert!((x - got).abs() <= most * largest, "{}: {x} is {got}", E::NAME);
            }
        }
    }
    check::<f32>(Scaling::Dynamic, 0.0);
    check::<bf16>(Scaling::Dynamic, 1.0 / 256.0);
    check::<i8>(Scaling::Dynamic, 0.501 / 127.0);
    check::<E4M3>(Scaling::Dynamic, 0.501 / 14.0);
    check::<E5M2>(Scaling::Dynamic, 0.501 / 7.0);
    check::<i8>(Scaling::Static(&[[1.0 / 127.0; 2]]), 0.501 / 127.0);
    check::<E4M3>(Scaling::Static(&[[1.0 / 448.0; 2]]), 0.501 / 14.0);
    check::<E5M2>(Scaling::Static(&[[1.0 / 57344.0; 2]]), 0.501 / 7.0);
}

#[test]
fn tokens_may_lie_apart_as_in_a_fused_projection() {
    // Queries of 3 heads, keys and values of 2 heads of 6, in one row of each token.
    let all = numbers(5, 7, 6, 1);
    let (k, v) = (all.slice(s![.., 3..5, ..]), all.slice(s![.., 5..7, ..]));
    let shape = KvShape::new(1, 2, 6);
    let apart = |cache: &mut GqaCache<E4M3>| cache.append(k, v).unwrap();
    let whole = |cache: &mut GqaCache<E4M3>| {
        cache.append(k.to_owned().view(), v.to_owned().view()).unwrap();
    };
    let written = |write: &dyn Fn(&mut GqaCache<E4M3>)| {
        let mut cache = GqaCache::new(shape, 5, Scaling::Dynamic).unwrap();
        write(&mut cache);
        rows(&cache.view(0).unwrap())
    };
    assert_eq!(written(&apart), written(&whole));
    // Backwards, too.
    let mut cache = GqaCache::<f32>::new(shape, 5, Scaling::Dynamic).unwrap();
    cache.append(k.slice(s![..;-1, .., ..]), v.slice(s![..;-1, .., ..])).unwrap();
    assert_eq!(cache.gather(0).unwrap().0, k.slice(s![..;-1, .., ..]).permuted_axes([1, 0, 2]));
}

#[test]
fn rows_keep_their_scales_where_room_is_made() {
    fn check(scaling: Scaling<'_>) {
        let mut cache = GqaCache::<i8>::new(KvShape::new(1, 2, 4), 3, scaling).unwrap();
        let (x, y) = (numbers(3, 2, 4, 1), numbers(2, 2, 4, 2));
        cache.append(x.view(), y.view()).unwrap_err();
        cache.append(x.view(), x.view()).unwrap();
        let before = rows(&cache.view(0).unwrap());
        cache.reserve(5).unwrap();
        assert_eq!(rows(&cache.view(0).unwrap()), before);
        cache.append(y.view(), y.view()).unwrap();
        let mut at_once = GqaCache::<i8>::new(KvShape::new(1, 2, 4), 5, scaling).unwrap();
        at_once.append(x.view(), x.view()).unwrap();
        at_once.append(y.view(), y.view()).unwrap();
        assert_eq!(rows(&cache.view(0).unwrap()), rows(&at_once.view(0).unwrap()));
    }
    check(Scaling::Dynamic);
    check(Scaling::Static(&[[0.01, 0.02]]));
}

#[test]
fn a_gather_asks_for_arrays_that_fit() {
    let mut cache = GqaCache::<f32>::new(KvShape::new(1, 2, 4), 8, Scaling::Dynamic).unwrap();
    let x = numbers(3, 2, 4, 1);
    cache.append(x.view(), x.view()).unwrap();
    let mut room = [0, 1].map(|_| Array3::<f32>::zeros((2, 6, 4)));
    let [a, b] = &mut room;
    // The tokens of a head in one piece, heads apart.
    cache.gather_into(0, a.slice_mut(s![.., 1..4, ..]), b.slice_mut(s![.., ..3, ..])).unwrap();
    assert_eq!(a.slice(s![.., 1..4, ..]), x.view().permuted_axes([1, 0, 2]));
    assert!(a.slice(s![.., 4.., ..]).iter().all(|&x| x == 0.0));
    let refused = cache.gather_into(0, a.view_mut(), b.slice_mut(s![.., ..3, ..]));
    let (what, axis) = ("keys", "tokens");
    assert_eq!(refused, Err(Error::Axis { what, axis, expected: 3, actual: 6 }));
    let refused = cache.gather_into(0, a.slice_mut(s![.., ..3, ..]), b.slice_mut(s![.., ..;2, ..]));
    let (shape, strides) = ([2, 3, 4], [24, 8, 1]);
    assert_eq!(refused, Err(Error::Layout { what: "values", shape, strides }));
}
