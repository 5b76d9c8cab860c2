//! Norms against transformers and the kernels; their arithmetic is tested in squish-kernels.

use half::bf16;
use ndarray::{Array2, Array3, array, s};
use squish_attn::{AttnError, FusedRmsNorm, QkNorm, RmsVariant, ndarray};
use squish_bench::golden::Golden;
use squish_kernels::Real;

const VARIANTS: [(&str, RmsVariant, f32); 3] = [
    ("llama", RmsVariant::Llama, 1e-5),
    ("gemma", RmsVariant::Gemma, 1e-6),
    ("gptoss", RmsVariant::GptOss, 1e-5),
];

/// Norm and fused norm of a golden set in both the forms with a result of its own and those in place.
fn golden_rms<T: Real + std::fmt::Debug>(
    dtype: &str,
    load: impl Fn(&Golden, &str) -> Vec<T>,
    close: impl Fn(T, T) -> bool,
) {
    let golden = Golden::load(concat!(env!("CARGO_MANIFEST_DIR"), "/../squish-kernels"), "ops");
    for (set, shape) in [("4x256", (4, 256)), ("3x37", (3, 37))] {
        let tensor = |name: &str| load(&golden, &format!("rms.{set}.{dtype}.{name}"));
        let matrix = |name: &str| Array2::from_shape_vec(shape, tensor(name)).expect("a matrix");
        let (x, residual, h) = (matrix("x"), matrix("r"), matrix("h"));
        for (name, variant, eps) in VARIANTS {
            let norm = FusedRmsNorm::new(tensor("w"), eps, variant).expect("a weight");
            let (want, want_fused) =
                (matrix(&format!("{name}.y")), matrix(&format!("{name}.fused")));
            let assert = |got: &Array2<T>, want: &Array2<T>, what: &str| {
                for (&got, &want) in got.iter().zip(want) {
                    assert!(close(got, want), "{dtype} {set} {name} {what}: {got:?} {want:?}");
                }
            };
            assert(&norm.forward(x.view()).expect("fits"), &want, "forward");
            let mut out = Array2::from_elem(shape, T::default());
            norm.forward_into(x.view(), out.view_mut()).expect("fits");
            assert(&out, &want, "forward_into");
            let (mut place, mut sum) = (x.clone(), residual.clone());
            norm.add_forward_in_place(place.view_mut(), sum.view_mut()).expect("fits");
            assert(&place, &want_fused, "add_forward_in_place");
            assert_eq!(sum, h);
            let mut sum = residual.clone();
            norm.add_forward_into(x.view(), sum.view_mut(), out.view_mut()).expect("fits");
            assert_eq!((&out, &sum), (&place, &h));
        }
    }
}

#[test]
fn norms_are_those_of_transformers() {
    golden_rms("f32", Golden::f32, |a, b| (a - b).abs() <= 5e-7 * b.abs() + 1e-7);
    let load = |g: &Golden, name: &str| g.u16(name).into_iter().map(bf16::from_bits).collect();
    golden_rms("bf16", load, |a: bf16, b| a == b);
}

#[test]
fn the_published_rows_are_normed_as_published() {
    let row = |a: usize, b: usize| {
        Array2::from_shape_fn((1, 8), |(_, i)| ((a * i + b) % 64) as f32 / 32.0 - 1.0)
    };
    let weight = row(13, 5).into_raw_vec_and_offset().0;
    for (variant, eps, want) in [
        (
            RmsVariant::Llama,
            1e-5,
            [
                1.1734401,
                -0.264543653,
                0.0396815501,
                0.272102058,
                0.614119232,
                0.884331703,
                -0.368471533,
                0.0,
            ],
        ),
        (
            RmsVariant::Gemma,
            1e-6,
            [
                -0.217304617,
                0.340128988,
                -1.23013318,
                0.997711658,
                1.40019763,
                -0.204077393,
                0.538537562,
                -0.967477977,
            ],
        ),
    ] {
        let (mut x, mut residual) = (row(37, 11), row(29, 7));
        let norm = FusedRmsNorm::new(weight.clone(), eps, variant).expect("a weight");
        norm.add_forward_in_place(x.view_mut(), residual.view_mut()).expect("fits");
        for (got, want) in x.iter().zip(want) {
            assert!((got - want as f32).abs() < 3e-7, "{variant:?}: {got} {want}");
        }
    }
}

#[test]
fn the_published_rows_of_bf16_are_rounded_as_published() {
    let row = |a: usize, b: usize| {
        Array2::from_shape_fn((1, 8), |(_, i)| {
            bf16::from_f32(((a * i + b) % 64) as f32 / 32.0 - 1.0)
        })
    };
    let llama = [1.171875, -0.265625, 0.039794921875, 0.2734375, 0.61328125, 0.8828125, -0.3671875];
    let mut gptoss = llama;
    (gptoss[1], gptoss[3], gptoss[6]) = (-0.263671875, 0.271484375, -0.369140625);
    for (variant, want) in [(RmsVariant::Llama, llama), (RmsVariant::GptOss, gptoss)] {
        let weight = row(13, 5).into_raw_vec_and_offset().0;
        let norm = FusedRmsNorm::new(weight, 1e-5, variant).expect("a weight");
        let (mut x, mut residual) = (row(37, 11), row(29, 7));
        norm.add_forward_in_place(x.view_mut(), residual.view_mut()).expect("fits");
        for (i, want) in want.into_iter().enumerate() {
            assert_eq!(f64::from(x[[0, i]]), want, "{variant:?} {i}");
        }
    }
}

#[test]
fn rows_that_lie_apart_give_the_same_bits() {
    let wide = Array2::from_shape_fn((5, 40), |(i, j)| ((i * 40 + j) as f32).sin());
    let weight = (0..24).map(|i| i as f32 * 0.1).collect();
    let norm = FusedRmsNorm::new(weight, 1e-5, RmsVariant::Llama).expect("a weight");
    let want = norm.forward(wide.slice(s![.., 8..32])).expect("fits");

    let mut place = wide.clone();
    norm.forward_in_place(place.slice_mut(s![.., 8..32])).expect("fits");
    assert_eq!(place.slice(s![.., 8..32]), want);
    assert_eq!(place.slice(s![.., ..8]), wide.slice(s![.., ..8]));
    let mut out = Array2::zeros((5, 30));
    norm.forward_into(wide.slice(s![.., 8..32]), out.slice_mut(s![.., 3..27])).expect("fits");
    assert_eq!(out.slice(s![.., 3..27]), want);

    let mut fused = [Array2::zeros((5, 24)), Array2::zeros((5, 24))];
    let mut residuals =
        [wide.slice(s![.., 1..25]).to_owned(), wide.slice(s![.., 1..25]).to_owned()];
    for (fused, residual) in fused.iter_mut().zip(&mut residuals) {
        norm.add_forward_into(wide.slice(s![.., 8..32]), residual.view_mut(), fused.view_mut())
            .expect("fits");
    }
    let (mut x, mut residual) = (wide.clone(), wide.clone());
    norm.add_forward_in_place(x.slice_mut(s![.., 8..32]), residual.slice_mut(s![.., 1..25]))
        .expect("fits");
    assert_eq!(
        (x.slice(s![.., 8..32]), residual.slice(s![.., 1..25])),
        (fused[0].view(), residuals[0].view())
    );
}

#[test]
fn queries_and_keys_are_normed_by_head_or_as_a_whole() {
    let (q, k) = (
        Array3::from_shape_fn((3, 4, 8), |(i, j, l)| ((i * 32 + j * 8 + l) as f32).cos()),
        Array3::from_shape_fn((3, 2, 8), |(i, j, l)| ((i * 16 + j * 8 + l) as f32).sin()),
    );
    for (q_width, k_width) in [(8, 8), (32, 16)] {
        let weight = |n: usize| (0..n).map(|i| 1.0 + i as f32 / 8.0).collect::<Vec<f32>>();
        let norms = QkNorm::new(weight(q_width), weight(k_width), 1e-6, RmsVariant::Gemma)
            .expect("weights");
        let (mut got_q, mut got_k) = (q.clone(), k.clone());
        norms.forward_in_place(got_q.view_mut(), got_k.view_mut()).expect("fits");
        for (x, got, width) in [(&q, got_q, q_width), (&k, got_k, k_width)] {
            let rows = x.to_shape((x.len() / width, width)).expect("whole rows");
            let norm = FusedRmsNorm::new(weight(width), 1e-6, RmsVariant::Gemma).expect("a weight");
            let want = norm.forward(rows.view()).expect("fits");
            assert!(want.iter().eq(got.iter()), "{width}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let norm = FusedRmsNorm::new(vec![1.0_f32; 4], 1e-5, RmsVariant::Llama).expect("a weight");
    let axis = |what, axis, expected, actual| Err(AttnError::Axis { what, axis, expected, actual });
    let x = array![[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]];
    let mut short = Array2::from_elem((1, 4), 9.0);
    assert_eq!(norm.forward_into(x.view(), short.view_mut()), axis("out", "n_rows", 2, 1));
    let mut place = x.clone();
    assert_eq!(
        norm.add_forward_in_place(place.view_mut(), short.view_mut()),
        axis("residual", "n_rows", 2, 1)
    );
    assert_eq!((&place, short[[0, 0]]), (&x, 9.0));
    assert_eq!(norm.forward_in_place(array![[1.0]].view_mut()), axis("x", "hidden_size", 4, 1));
    let mut columns = Array2::zeros((4, 4));
    let error = norm.forward_in_place(columns.view_mut().reversed_axes());
    let (what, shape, strides) = ("x", [4, 1, 4], [1, 1, 4]);
    assert!(
        matches!(&error, Err(AttnError::Layout { what: w, shape: s, .. }) if (*w, *s) == (what, shape)),
        "{error:?} {strides:?}"
    );

    assert!(FusedRmsNorm::<f32>::new(vec![], 1e-5, RmsVariant::Llama).is_err());
    assert!(FusedRmsNorm::new(vec![1.0_f32], f32::NAN, RmsVariant::Llama).is_err());
    let norms =
        QkNorm::new(vec![1.0_f32; 4], vec![1.0; 3], 1e-5, RmsVariant::Llama).expect("weights");
    let (mut q, mut k) = (Array3::ones((2, 2, 4)), Array3::ones((2, 1, 4)));
    assert_eq!(norms.forward_in_place(q.view_mut(), k.view_mut()), axis("k", "head_dim", 3, 4));
    assert!(q.iter().all(|&q| q == 1.0));
}
