//! The soft cap of scores and logits (Gemma 2, arXiv 2408.00118): `cap · tanh(x / cap)`, see [`soft_cap_in_place`].

use fearless_simd::{Simd, prelude::*};

use crate::{Isa, exp::exp_lanes, isa::dispatch, lanes::map_in_place};

/// Squashes each element between `-cap` and `cap`, within a relative error of 4e-7: `x = cap · tanh(x / cap)`.
///
/// Infinities become `±cap`, NaN stays.
///
/// # Examples
///
/// ```
/// let mut x = [0.0, 1.0, 1e9];
/// squish_kernels::soft_cap_in_place(&mut x, 30.0);
/// assert!(x[0] == 0.0 && (x[1] - 0.999_629_8).abs() < 1e-6 && x[2] == 30.0);
/// ```
pub fn soft_cap_in_place(x: &mut [f32], cap: f32) {
    soft_cap_in_place_with(Isa::detect(), x, cap);
}

#[doc(hidden)]
pub fn soft_cap_in_place_with(isa: Isa, x: &mut [f32], cap: f32) {
    dispatch!(isa.token(), simd => {
        map_in_place::<_, _, 4>(simd, x, 0.0, (), #[inline(always)] |(), x| soft_cap_lanes(simd, x, cap));
    });
}

/// The definition of [`soft_cap_in_place`], in `f64`.
#[doc(hidden)]
#[must_use]
pub fn soft_cap_scalar(x: f32, cap: f32) -> f64 {
    let cap = f64::from(cap);
    cap * (f64::from(x) / cap).tanh()
}

#[inline(always)]
pub(crate) fn soft_cap_lanes<S: Simd>(simd: S, x: S::f32s, cap: f32) -> S::f32s {
    let cap = S::f32s::splat(simd, cap);
    cap * tanh_lanes(simd, x / cap)
}

/// The hyperbolic tangent: near zero `u + u³ · p(u²)`, whose relative error is 2e-7 up to 0.625; else by `e^(2 |u|)`.
#[inline(always)]
fn tanh_lanes<S: Simd>(simd: S, u: S::f32s) -> S::f32s {
    let splat = |x: f32| S::f32s::splat(simd, x);
    let square = u * u;
    let p = splat(-5.704_988_7e-3);
    let p = p.mul_add(square, splat(2.063_908_8e-2));
    let p = p.mul_add(square, splat(-5.373_971_5e-2));
    let p = p.mul_add(square, splat(0.133_314_42));
    let p = p.mul_add(square, splat(-0.333_332_82));
    let near = (u * square).mul_add(p, u);
    let magnitude = u.abs();
    let far = splat(1.0) - splat(2.0) / (exp_lanes(simd, magnitude + magnitude) + splat(1.0));
    let far = far.copysign(u);
    magnitude.simd_lt(splat(0.625)).select(near, far)
}
