//! Sparsity: counts and thresholds against sorting, and the products that skip what the gate leaves out.

use proptest::prelude::*;
use squish_bench::alloc::count_allocations;
use squish_quant::{
    ActSparsityPredictor, Activation, Dense, Error, PackedMatrix, SparseFfnGate, SparsityOptions,
    SparsityStatistic, Weights, Workspace,
    ndarray::{Array2, ArrayView2, s},
};

use crate::int::normal;

fn predictor(widths: &[usize]) -> ActSparsityPredictor {
    ActSparsityPredictor::new(widths, SparsityOptions::default()).expect("options")
}

#[test]
fn thresholds_leave_out_the_share_that_was_asked_for() {
    let layers = [normal(200, 256), normal(100, 300) * 1e-3];
    let mut predictor = predictor(&[256, 300]);
    for (i, x) in layers.iter().enumerate() {
        predictor.record(i, x.slice(s![..70, ..])).unwrap();
        predictor.record(i, x.slice(s![70.., ..])).unwrap();
    }
    for sparsity in [0.0, 0.25, 0.4, 0.5, 0.9, 1.0] {
        let thresholds = predictor.thresholds(sparsity).unwrap();
        for (x, threshold) in layers.iter().zip(&thresholds) {
            let below = x.iter().filter(|x| x.abs() < *threshold).count() as f64 / x.len() as f64;
            assert!((below - sparsity).abs() < 0.004, "{sparsity}: {below} below {threshold}");
        }
    }
    assert_eq!(predictor.thresholds(0.0).unwrap(), [0.0; 2]);
}

#[test]
fn counts_are_those_of_the_definition() {
    let x = Array2::from_shape_fn([37, 21], |(i, j)| match (i + j) % 5 {
        0 => 0.0,
        1 => 0.005,
        2 => -0.01,
        3 if i == 9 => f32::NAN,
        _ => 0.5 * j as f32,
    });
    let mut predictor = predictor(&[3, 21]);
    predictor.record(1, x.view()).unwrap();
    let active = |x: &&f32| x.abs() >= 0.01 || x.is_nan();
    let want: Vec<u32> =
        x.columns().into_iter().map(|c| c.iter().filter(active).count() as u32).collect();
    assert_eq!(predictor.n_active(1), Some(&want[..]));
    assert_eq!(predictor.sparsity_map(), Err(Error::NoData { what: "layer", index: 0 }));
    predictor.record(0, Array2::zeros([1, 3]).view()).unwrap();
    let share = 1.0 - f64::from(want.iter().sum::<u32>()) / (37.0 * 21.0);
    assert_eq!(predictor.sparsity_map().unwrap(), [1.0, share]);

    let hot = predictor.hot_neurons(1, 1.0 / 3.0).unwrap();
    assert_eq!(hot.len(), 7);
    assert!(hot.is_sorted());
    let coldest = hot.iter().map(|&i| want[i as usize]).min().unwrap();
    let others = (0..21).filter(|i| !hot.contains(i)).map(|i| want[i as usize]);
    assert!(others.max().unwrap() <= coldest);
    assert_eq!(predictor.hot_neurons(1, 0.0).unwrap(), [] as [u32; 0]);
    assert_eq!(predictor.hot_neurons(1, 1.0).unwrap().len(), 21);
    // Layers of zeros have a threshold, and nothing above it.
    assert_eq!(predictor.thresholds(0.5).unwrap()[0], 0.0);
}

#[test]
fn recording_allocates_nothing() {
    let x = normal(130, 256);
    let mut predictor = predictor(&[256]);
    let ((), n) = count_allocations(|| predictor.record(0, x.view()).unwrap());
    assert_eq!(n, 0);
}

#[test]
fn refused_calls_change_nothing() {
    let mut predictor = predictor(&[4, 6]);
    predictor.record(0, Array2::ones([2, 4]).view()).unwrap();
    let before = predictor.clone();
    let x = Array2::<f32>::ones([6, 4]);
    assert_eq!(predictor.record(2, x.view()), Err(Error::Index { what: "layer", index: 2, n: 2 }));
    let error = Error::Shape { what: "batch", expected: [6, 6], actual: [6, 4] };
    assert_eq!(predictor.record(1, x.view()), Err(error));
    assert_eq!(predictor.record(1, x.t()), Err(Error::Layout { what: "batch", stride: 4 }));
    let other = self::predictor(&[4, 5]);
    let error = Error::Length { what: "neurons", expected: 6, actual: 5 };
    assert_eq!(predictor.merge(&other), Err(error));
    let error = Error::Length { what: "layers", expected: 2, actual: 1 };
    assert_eq!(predictor.merge(&self::predictor(&[4])), Err(error));
    let options = SparsityOptions { statistic: SparsityStatistic::Counts, ..Default::default() };
    let mut counting = ActSparsityPredictor::new(&[4, 6], options).unwrap();
    assert!(matches!(predictor.merge(&counting), Err(Error::Unsupported { .. })));
    assert!(predictor == before);

    assert_eq!(predictor.thresholds(0.5), Err(Error::NoData { what: "layer", index: 1 }));
    counting.record(0, Array2::ones([1, 4]).view()).unwrap();
    assert!(matches!(counting.thresholds(0.5), Err(Error::Unsupported { .. })));
    for bad in [-0.1, 1.1, f64::NAN] {
        assert!(matches!(predictor.thresholds(bad), Err(Error::Value { what: "sparsity", .. })));
        assert!(matches!(
            predictor.hot_neurons(0, bad),
            Err(Error::Value { what: "fraction", .. })
        ));
    }
    for bad in [-1.0, f32::NAN, f32::INFINITY] {
        assert!(matches!(SparseFfnGate::new(bad), Err(Error::Value { what: "threshold", .. })));
        let options = SparsityOptions { near_zero: bad, ..Default::default() };
        assert!(ActSparsityPredictor::new(&[4], options).is_err());
    }
    let gate = SparseFfnGate::new(0.5).unwrap();
    let (mut indices, mut values) = ([7; 3], [7.0; 3]);
    let error = Error::Length { what: "indices", expected: 2, actual: 3 };
    assert_eq!(gate.select_into(&[1.0; 2], &mut indices, &mut values), Err(error));
    let error = Error::Length { what: "values", expected: 3, actual: 2 };
    assert_eq!(gate.select_into(&[1.0; 3], &mut indices, &mut values[..2]), Err(error));
    assert_eq!((indices, values), ([7; 3], [7.0; 3]));
}

#[test]
fn a_product_of_what_the_gate_selects_is_that_of_what_it_leaves() {
    let (w, mut x) = (normal(96, 256), normal(1, 256));
    let bytes: Vec<u8> = w.iter().flat_map(|x: &f32| x.to_le_bytes()).collect();
    let weights = Weights::Dense { dense: Dense::F32, shape: [96, 256], bytes: &bytes };
    let packed = PackedMatrix::pack(weights, Activation::F32).unwrap();
    let gate = SparseFfnGate::new(0.7).unwrap();
    let (mut workspace, x) = (Workspace::default(), x.as_slice_mut().unwrap());
    let (mut indices, mut values) = (vec![0; 256], vec![0.0; 256]);
    let n = gate.select_into(x, &mut indices, &mut values).unwrap();
    assert!((90..170).contains(&n), "{n}");
    let (mut sparse, mut dense) = (vec![0.0; 96], vec![0.0; 96]);
    packed
        .view()
        .gemv_sparse_into(&mut workspace, &indices[..n], &values[..n], &mut sparse)
        .unwrap();
    assert_eq!(gate.apply_in_place(x), n);
    packed.view().gemv_into(&mut workspace, x, &mut dense).unwrap();
    assert_eq!(sparse, dense);
}

#[test]
fn nan_passes_the_gate() {
    let gate = SparseFfnGate::new(1e9).unwrap();
    let mut x = [1.0, f32::NAN, 0.0];
    let (mut indices, mut values) = ([0; 3], [0.0; 3]);
    assert_eq!(gate.select_into(&x, &mut indices, &mut values), Ok(1));
    assert!(indices[0] == 1 && values[0].is_nan());
    assert_eq!(gate.apply_in_place(&mut x), 1);
    assert!(x[0] == 0.0 && x[1].is_nan());
}

proptest! {
    #[test]
    fn neither_the_order_of_batches_nor_that_of_merges_matters(
        x in prop::collection::vec((-1f32..1.0, -40i32..40), 1..200),
        special in prop::sample::select(vec![0.0, f32::NAN, f32::INFINITY, 1e-40]),
        at in 0usize..200,
        split in 0usize..200,
    ) {
        let mut x: Vec<f32> = x.into_iter().map(|(x, e)| x * (e as f32).exp2()).collect();
        let n = x.len();
        x[at % n] = special;
        let rows = |x: &[f32]| ArrayView2::from_shape([x.len(), 1], x).unwrap().to_owned();
        let mut whole = predictor(&[1]);
        whole.record(0, rows(&x).view()).unwrap();
        let (first, second) = x.split_at(split % n);
        let [mut a, mut b] = [first, second].map(|x| {
            let mut part = predictor(&[1]);
            part.record(0, rows(x).view()).unwrap();
            part
        });
        let (only_a, only_b) = (a.clone(), b.clone());
        a.merge(&only_b).unwrap();
        b.merge(&only_a).unwrap();
        prop_assert!(a == whole && b == whole);
    }
}
