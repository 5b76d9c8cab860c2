//! Vision tokens against what was recorded from released code, and its steps in numpy, on every SIMD level.

use ndarray::{Array2, ArrayView2, s};
use squish_attn::{
    Assignment, Keep, Mixture, Selection, TokensWorkspace, ndarray,
    tokens::{ClassToken, Merge, PruKeep, PruMerge, Supplement, merge_into, mix_into},
};
use squish_bench::golden::Golden;
use squish_kernels::Isa;

fn golden() -> Golden {
    Golden::load(env!("CARGO_MANIFEST_DIR"), "tokens")
}

fn matrix(golden: &Golden, tensor: &str) -> Array2<f32> {
    let shape = golden.shape(tensor);
    Array2::from_shape_vec((shape[0], shape[1]), golden.f32(tensor)).expect("a matrix")
}

fn assert_close(got: ArrayView2<'_, f32>, want: &[f64], error: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    for (i, (&got, want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(got) - want).abs() <= error * largest, "{what} at {i}: {got} {want}");
    }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn merged(tokens: ArrayView2<'_, f32>, groups: &Assignment, how: Merge) -> (Array2<f32>, Vec<f32>) {
    let mut out = Array2::from_elem((groups.n_groups(), tokens.ncols()), f32::NAN);
    let mut sizes = vec![f32::NAN; groups.n_groups()];
    merge_into(tokens, None, groups, how, out.view_mut(), &mut sizes).expect("fits");
    (out, sizes)
}

#[test]
fn tome_merges_as_its_authors_module() {
    let golden = golden();
    let tokens = matrix(&golden, "tokens");
    for isa in Isa::available() {
        let mut groups = Assignment::default();
        let mut workspace = TokensWorkspace::new_with(isa);
        workspace.tome_into(tokens.view(), 4, ClassToken::Absent, &mut groups).expect("fits");
        let (out, sizes) = merged(tokens.view(), &groups, Merge::Mean);
        assert_eq!(sizes, golden.f32("tome.size"), "{isa:?}");
        assert_close(out.view(), &wide(&golden.f32("tome.out")), 1e-6, &format!("{isa:?}"));
    }
}

#[test]
fn fast_v_keeps_the_half_with_most_attention() {
    let golden = golden();
    let want: Vec<u32> = golden.i64("fast_v").into_iter().map(|i| i as u32).collect();
    let attention = golden.f32("attention");
    // Within a prompt, whose text receives more than any token of the image.
    let prompt = [&[0.9; 5], &attention[..], &[0.8; 3]].concat();
    for isa in Isa::available() {
        let (mut workspace, mut kept) = (TokensWorkspace::new_with(isa), Selection::default());
        workspace.largest_into(&attention, Keep::Share(0.5), &mut kept).expect("finite");
        assert_eq!(kept.indices(), want, "{isa:?}");
        workspace.fast_v_into(&prompt, 5..17, Keep::Share(0.5), &mut kept).expect("finite");
        let all: Vec<u32> = (0..5).chain(want.iter().map(|i| i + 5)).chain(17..20).collect();
        assert_eq!((kept.indices(), kept.n_tokens()), (&all[..], 20), "{isa:?}");
    }
}

#[test]
fn fences_are_those_of_numpy() {
    let golden = golden();
    let want = golden.f64("fences");
    for (tensor, want, outliers) in
        [("attention", &want[..3], &[][..]), ("outliers", &want[3..], &[3, 8][..])]
    {
        let mut kept = Selection::default();
        let got =
            TokensWorkspace::new().outliers_into(&golden.f32(tensor), &mut kept).expect("finite");
        for (got, want) in [got.q1, got.q3, got.upper].into_iter().zip(want) {
            assert!((got - want).abs() <= 1e-14, "{tensor}: {got} {want}");
        }
        assert_eq!(kept.indices(), outliers, "{tensor}");
    }
}

#[test]
fn vision_zip_groups_as_the_released_code() {
    let golden = golden();
    let (hidden, keys) = (matrix(&golden, "visionzip.hidden"), matrix(&golden, "visionzip.keys"));
    let want = wide(&golden.f32("visionzip.out"));
    let (patches, of_patches) = (hidden.slice(s![1.., ..]), keys.slice(s![1.., ..]));
    for isa in Isa::available() {
        let mut groups = Assignment::default();
        TokensWorkspace::new_with(isa)
            .vision_zip_into(&golden.f32("attention"), of_patches, 3, 2, &mut groups)
            .expect("fits");
        assert_eq!(groups.targets(), [1, 3, 9, 0, 6], "{isa:?}");
        let (out, _) = merged(patches, &groups, Merge::TargetPlusMean);
        // The class token stays before all.
        assert_close(out.view(), &want[4..], 1e-6, &format!("{isa:?}"));
    }
}

#[test]
fn pru_merge_sums_as_the_released_code() {
    let golden = golden();
    let (tokens, keys) = (matrix(&golden, "prumerge.tokens"), matrix(&golden, "prumerge.keys"));
    let attention = golden.f32("prumerge.attention");
    let quarter = PruKeep::Largest(Keep::Share(0.25));
    for (tensor, options) in [
        ("out", PruMerge::default()),
        ("plus", PruMerge { supplement: Supplement::Spaced, ..PruMerge::default() }),
        ("quarter", PruMerge { keep: quarter, ..PruMerge::default() }),
    ] {
        let want = golden.f64(&format!("prumerge.{tensor}"));
        for isa in Isa::available() {
            let mut sums = Mixture::default();
            TokensWorkspace::new_with(isa)
                .pru_merge_into(&attention, keys.view(), options, &mut sums)
                .expect("fits");
            let mut out = Array2::zeros((sums.len(), tokens.ncols()));
            mix_into(tokens.view(), &sums, out.view_mut()).expect("fits");
            assert_close(out.view(), &want, 1e-6, &format!("{tensor} {isa:?}"));
        }
    }
}
