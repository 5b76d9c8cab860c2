//! Tables and rotations: what they preserve, how they undo each other, when they change.

use half::{bf16, f16};
use ndarray::{Array2, Array3, Axis, array, s};
use proptest::prelude::*;
use squish_attn::{
    AttnError, FactorSwitch, InvFreq, LengthRule, LongRope, RopeConfig, RopeLayout, RopeMode,
    RopeOptions, RopeScaling, RopeTable, ndarray, rope::permute_rows,
};
use squish_bench::input::Rng;

const LAYOUTS: [RopeLayout; 2] = [RopeLayout::HalfSplit, RopeLayout::Interleaved];

fn table(config: RopeConfig, length: LengthRule, seq_len: usize) -> RopeTable {
    let options = RopeOptions { length, ..RopeOptions::default() };
    let mut table = RopeTable::new(config, options).expect("a valid configuration");
    assert_eq!(table.extend_to(seq_len), Ok(None));
    table
}

fn plain(head_dim: usize, seq_len: usize) -> RopeTable {
    table(RopeConfig::new(head_dim, 10000.0, 4096), LengthRule::Longest, seq_len)
}

fn heads(shape: (usize, usize, usize), seed: u64) -> Array3<f32> {
    let mut rng = Rng::new(seed);
    Array3::from_shape_fn(shape, |_| rng.normal())
}

fn dot(a: ndarray::ArrayView1<'_, f32>, b: ndarray::ArrayView1<'_, f32>) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn close(a: &Array3<f32>, b: &Array3<f32>, error: f32) -> bool {
    a.dim() == b.dim() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= error)
}

fn longrope() -> RopeConfig {
    let lists = |step: f64| (0..16).map(|i| 1.0 + step * f64::from(i)).collect();
    let long = LongRope {
        short_factor: lists(0.01),
        long_factor: lists(0.5),
        original_max_position_embeddings: 32,
        factor: None,
        attention_factor: None,
    };
    RopeConfig { scaling: RopeScaling::LongRope(long), ..RopeConfig::new(32, 10000.0, 128) }
}

fn dynamic() -> RopeConfig {
    let scaling = RopeScaling::DynamicNtk { factor: 2.0 };
    RopeConfig { scaling, ..RopeConfig::new(32, 10000.0, 64) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn rotation_preserves_norms_and_scores_depend_on_the_distance(
        half in 1..40_usize, m in 0..300_usize, n in 0..300_usize, shift in 0..300_usize, seed: u64,
    ) {
        let table = plain(2 * half, 600);
        let (q, k) = (heads((1, 1, 2 * half), seed), heads((1, 1, 2 * half), !seed));
        for layout in LAYOUTS {
            let at = |x: &Array3<f32>, position| {
                let mut x = x.clone();
                table.apply_in_place(x.view_mut(), &[position], layout).expect("ready");
                x.index_axis_move(Axis(0), 0).index_axis_move(Axis(0), 0)
            };
            let size = |x: &Array3<f32>| x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
            let rotated = at(&q, m);
            let norm = dot(rotated.view(), rotated.view());
            prop_assert!((norm - size(&q)).abs() <= 1e-6 * size(&q), "{norm}");
            let here = dot(at(&q, m).view(), at(&k, n).view());
            let there = dot(at(&q, m + shift).view(), at(&k, n + shift).view());
            // Angles up to 600 are rounded by 3e-5.
            let bound = 2e-4 * (size(&q) * size(&k)).sqrt();
            prop_assert!((here - there).abs() <= bound, "{layout:?}: {here} {there}");
        }
    }

    #[test]
    fn the_opposite_rotation_undoes_one(
        half in 1..40_usize, rest in 0..5_usize, position in 0..200_usize, seed: u64,
    ) {
        let config = RopeConfig { rotary_dim: 2 * half, ..RopeConfig::new(2 * half + rest, 10000.0, 4096) };
        let table = table(config, LengthRule::Longest, 200);
        let x = heads((2, 3, 2 * half + rest), seed);
        for layout in LAYOUTS {
            let mut back = x.clone();
            table.apply_in_place(back.view_mut(), &[position, position], layout).expect("ready");
            prop_assert_eq!(back.slice(s![.., .., 2 * half..]), x.slice(s![.., .., 2 * half..]));
            let mut moved = back.clone();
            table.rotate_by(-(position as isize)).apply_in_place(back.view_mut(), layout).expect("fits");
            prop_assert!(close(&back, &x, 1e-4));
            let shift = table.move_keys(&[position; 2], &[0; 2]).expect("as many");
            shift.apply_in_place(moved.view_mut(), layout).expect("fits");
            prop_assert!(close(&moved, &x, 2e-6), "{:?}", layout);
        }
    }

    #[test]
    fn halves_of_permuted_heads_are_permuted_neighbors(
        half in 1..40_usize, rest in 0..5_usize, position in 0..200_usize, seed: u64,
    ) {
        let (r, d) = (2 * half, 2 * half + rest);
        let config = RopeConfig { rotary_dim: r, ..RopeConfig::new(d, 10000.0, 4096) };
        let table = table(config, LengthRule::Longest, 200);
        let mut neighbors = heads((1, 3, d), seed);
        // Heads as the rows of a matrix with one column.
        let permuted = |x: &Array3<f32>, to| {
            let rows = Array2::from_shape_vec((3 * d, 1), x.iter().copied().collect()).expect("3 d");
            permute_rows(rows.view(), d, r, to).expect("whole heads").into_shape_with_order((1, 3, d)).expect("3 d")
        };
        let mut halves = permuted(&neighbors, RopeLayout::HalfSplit);
        prop_assert_eq!(&permuted(&halves, RopeLayout::Interleaved), &neighbors);
        table.apply_in_place(neighbors.view_mut(), &[position], RopeLayout::Interleaved).expect("ready");
        table.apply_in_place(halves.view_mut(), &[position], RopeLayout::HalfSplit).expect("ready");
        prop_assert_eq!(permuted(&neighbors, RopeLayout::HalfSplit), halves);
    }
}

#[test]
fn a_table_that_grows_is_the_table_made_at_once() {
    let whole = plain(64, 1000);
    let mut grown = plain(64, 0);
    for seq_len in [1, 2, 2, 1, 700, 701, 1000, 3] {
        assert_eq!(grown.extend_to(seq_len), Ok(None));
    }
    assert_eq!(grown.n_positions(), 1000);
    assert!((0..1000).all(|position| grown.row(position) == whole.row(position)));
    assert_eq!(whole.row(1000), None);
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let table = plain(80, 100);
    let (q, k) = (heads((40, 5, 80), 1), heads((40, 1, 80), 2));
    let positions: Vec<usize> = (0..40).map(|i| i * 37 % 100).collect();
    for layout in LAYOUTS {
        let (mut together, mut k_together) = (q.clone(), k.clone());
        table
            .apply_qk_in_place(together.view_mut(), k_together.view_mut(), &positions, layout)
            .expect("ready");
        for (i, position) in positions.iter().enumerate() {
            let mut alone = q.slice(s![i..=i, .., ..]).to_owned();
            table.apply_in_place(alone.view_mut(), &[*position], layout).expect("ready");
            assert_eq!(alone, together.slice(s![i..=i, .., ..]));
        }
    }
}

#[test]
fn rows_that_lie_apart_are_rotated_where_they_lie() {
    let table = plain(16, 10);
    // Queries and keys of one product: four heads and two.
    let all = heads((3, 6, 16), 3);
    let mut fused = all.clone();
    let (q, k) = fused.view_mut().split_at(Axis(1), 4);
    table.apply_qk_in_place(q, k, &[4, 5, 6], RopeLayout::HalfSplit).expect("ready");
    let mut whole = all;
    table.apply_in_place(whole.view_mut(), &[4, 5, 6], RopeLayout::HalfSplit).expect("ready");
    assert_eq!(fused, whole);
    let mut shifted = whole.clone();
    let shift = table.rotate_by(2);
    shift.apply_in_place(shifted.slice_mut(s![.., 4.., ..]), RopeLayout::HalfSplit).expect("fits");
    shift.apply_in_place(whole.view_mut(), RopeLayout::HalfSplit).expect("fits");
    assert_eq!(shifted.slice(s![.., 4.., ..]), whole.slice(s![.., 4.., ..]));
}

#[test]
fn elements_of_16_bits_are_rounded_once() {
    let table = plain(64, 10);
    let x = heads((2, 3, 64), 4);
    let rounded = x.mapv(bf16::from_f32);
    let (mut wide, mut got) = (rounded.mapv(bf16::to_f32), rounded);
    table.apply_in_place(wide.view_mut(), &[3, 9], RopeLayout::Interleaved).expect("ready");
    table.apply_in_place(got.view_mut(), &[3, 9], RopeLayout::Interleaved).expect("ready");
    assert_eq!(got, wide.mapv(bf16::from_f32));
    let rounded = x.mapv(f16::from_f32);
    let (mut wide, mut got) = (rounded.mapv(f16::to_f32), rounded);
    table.apply_in_place(wide.view_mut(), &[3, 9], RopeLayout::HalfSplit).expect("ready");
    table.apply_in_place(got.view_mut(), &[3, 9], RopeLayout::HalfSplit).expect("ready");
    assert_eq!(got, wide.mapv(f16::from_f32));
}

#[test]
fn exact_angles_are_those_of_f64_at_any_position() {
    let options = RopeOptions { mode: RopeMode::Exact, ..RopeOptions::default() };
    let mut table = RopeTable::new(RopeConfig::new(8, 500000.0, 4096), options).expect("valid");
    table.extend_to(131_072).expect("memory");
    for position in [1, 4095, 131_071] {
        let (cos, sin) = table.row(position).expect("ready");
        for i in 0..4 {
            let angle = position as f64 * 500000f64.powf(-f64::from(i) / 4.0);
            let (i, bound) = (i as usize, 1e-7);
            assert!((f64::from(cos[i]) - angle.cos()).abs() < bound, "{position} {i}");
            assert!((f64::from(sin[i]) - angle.sin()).abs() < bound, "{position} {i}");
        }
    }
}

#[test]
fn lengths_are_pinned_unless_told_otherwise() {
    for (config, pinned) in [(longrope(), 128), (dynamic(), 64)] {
        for (length, seq_len) in [(LengthRule::Longest, pinned), (LengthRule::Pinned(100), 100)] {
            let mut table = table(config.clone(), length, 10);
            let want = InvFreq::new(&config, seq_len, RopeMode::HfF32).expect("valid");
            for seq_len in [20, 200, 5] {
                assert_eq!(table.extend_to(seq_len), Ok(None));
                assert_eq!(table.inv_freq(), &want);
            }
        }
    }
}

/// What a table of dynamic length does in calls of these lengths: the lengths that switch, and the lengths of the frequencies.
fn switches(config: &RopeConfig, calls: &[(usize, usize)]) -> Vec<usize> {
    let mut table = table(config.clone(), LengthRule::Dynamic, 10);
    let mut found = Vec::new();
    for &(seq_len, length) in calls {
        let before = table.inv_freq().clone();
        let switch = table.extend_to(seq_len).expect("memory");
        if let Some(FactorSwitch { at, from }) = switch {
            assert_eq!(from, before);
            found.push(at);
        }
        let want = InvFreq::new(config, length, RopeMode::HfF32).expect("valid");
        assert_eq!(table.inv_freq(), &want, "{seq_len}");
        let mut fresh = RopeTable::from_inv_freq(want, 32).expect("fits");
        fresh.extend_to(seq_len).expect("memory");
        assert!((0..seq_len).all(|position| table.row(position) == fresh.row(position)));
    }
    found
}

#[test]
fn longrope_of_dynamic_length_switches_at_the_context_of_pretraining() {
    let calls = [(20, 1), (32, 1), (33, 33), (34, 33), (128, 33), (30, 1), (40, 33)];
    assert_eq!(switches(&longrope(), &calls), [33, 30, 40]);
}

#[test]
fn dynamic_ntk_grows_with_the_sequence_and_starts_anew_with_a_short_one() {
    let calls = [(20, 1), (64, 1), (65, 65), (70, 70), (66, 70), (63, 64), (64, 64)];
    assert_eq!(switches(&dynamic(), &calls), [65, 70, 63]);
}

#[test]
fn a_first_call_of_any_length_is_no_switch() {
    let options = RopeOptions { length: LengthRule::Dynamic, ..RopeOptions::default() };
    let mut table = RopeTable::new(longrope(), options).expect("valid");
    assert_eq!(table.extend_to(100), Ok(None));
    assert_eq!(table.inv_freq(), &InvFreq::new(&longrope(), 100, RopeMode::HfF32).expect("valid"));
}

#[test]
fn keys_of_the_frequencies_before_a_switch_become_those_of_the_ones_after() {
    for (config, calls) in [(longrope(), [32, 33]), (dynamic(), [64, 90])] {
        let positions: Vec<usize> = (0..20).map(|i| 3 * i % 31).collect();
        let k = heads((20, 2, 32), 5);
        for layout in LAYOUTS {
            let mut table = table(config.clone(), LengthRule::Dynamic, calls[0]);
            let mut cached = k.clone();
            table.apply_in_place(cached.view_mut(), &positions, layout).expect("ready");
            let switch = table.extend_to(calls[1]).expect("memory").expect("a switch");
            let shift = table.switch_keys(&switch.from, &positions).expect("as many");
            shift.apply_in_place(cached.view_mut(), layout).expect("fits");
            let mut fresh = k.clone();
            table.apply_in_place(fresh.view_mut(), &positions, layout).expect("ready");
            assert!(close(&cached, &fresh, 3e-6), "{layout:?}");
        }
    }
}

#[test]
fn moved_keys_are_those_rotated_at_the_new_positions() {
    let table = plain(64, 5000);
    let (k, from, to) = (heads((3, 2, 64), 6), [4990, 17, 800], [4000, 4999, 800]);
    let (mut moved, mut fresh) = (k.clone(), k);
    table.apply_in_place(moved.view_mut(), &from, RopeLayout::HalfSplit).expect("ready");
    let shift = table.move_keys(&from, &to).expect("as many");
    shift.apply_in_place(moved.view_mut(), RopeLayout::HalfSplit).expect("fits");
    table.apply_in_place(fresh.view_mut(), &to, RopeLayout::HalfSplit).expect("ready");
    assert!(close(&moved, &fresh, 2e-6));
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let table = plain(16, 10);
    let x = heads((2, 3, 16), 7);
    let (mut q, mut k) = (x.clone(), x.clone());
    let layout = RopeLayout::HalfSplit;
    let error = |result: Result<(), AttnError>| result.expect_err("does not fit").to_string();
    let mut apply = |positions: &[usize]| {
        error(table.apply_qk_in_place(q.view_mut(), k.view_mut(), positions, layout))
    };
    assert_eq!(apply(&[9, 10]), "`positions` holds position 10 at 1, of 10");
    assert_eq!(apply(&[1]), "`q` has n_rows 2, expected 1");
    let mut narrow = heads((2, 3, 8), 8);
    let mut refused = table.apply_qk_in_place(q.view_mut(), narrow.view_mut(), &[1, 2], layout);
    assert_eq!(error(refused), "`k` has head_dim 8, expected 16");
    let mut columns = heads((2, 16, 3), 9);
    let columns = columns.view_mut().permuted_axes([0, 2, 1]);
    refused = table.apply_qk_in_place(q.view_mut(), columns, &[1, 2], layout);
    assert_eq!(
        error(refused),
        "elements of the rows of `k` are not contiguous: shape [2, 3, 16], strides [48, 1, 3]"
    );
    assert_eq!((&q, &k), (&x, &x));

    let shift = table.move_keys(&[1, 2, 3], &[2, 3, 4]).expect("as many");
    assert_eq!(error(shift.apply_in_place(q.view_mut(), layout)), "`k` has n_rows 2, expected 3");
    assert!(matches!(table.move_keys(&[1], &[]), Err(AttnError::Length { what: "to", .. })));
    let other = InvFreq::from_values(&[1.0; 3], 1.0).expect("finite");
    assert!(matches!(table.switch_keys(&other, &[1]), Err(AttnError::Length { what: "from", .. })));
    assert!(RopeTable::from_inv_freq(other, 5).is_err());
    assert!(InvFreq::from_values(&[], 1.0).is_err());
    assert!(InvFreq::from_values(&[f32::NAN], 1.0).is_err());
    assert!(InvFreq::from_values(&[1.0], 0.0).is_err());
    let w = array![[1.0], [2.0], [3.0]];
    assert!(permute_rows(w.view(), 3, 3, layout).is_err());
    assert!(permute_rows(w.view(), 2, 2, layout).is_err());
    assert!(permute_rows(w.view(), 0, 0, layout).is_err());
}

#[test]
fn a_table_that_no_memory_holds_is_refused_and_the_old_one_stays() {
    let mut table = plain(64, 10);
    for seq_len in [usize::MAX, usize::MAX / 300] {
        let result = table.extend_to(seq_len);
        assert!(matches!(result, Err(AttnError::Memory { what: "table", .. })), "{result:?}");
        assert_eq!(table.n_positions(), 10);
    }
}
