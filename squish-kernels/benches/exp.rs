//! `exp` and the activations of feed-forward layers.

use squish_bench::{Aligned, Limit, Row, Suite, Work, black_box, input};
use squish_kernels::{
    Gelu, Isa, SimdLevel,
    activation::{gelu_erf_scalar, gelu_into_with, gelu_tanh_scalar, silu_into_with, silu_scalar},
    exp::exp_into_with,
    soft_cap::{soft_cap_in_place_with, soft_cap_scalar},
};

const N: usize = 2048;

static EXP: Row = Row {
    id: "kernels/exp",
    module: "squish-kernels",
    operation: "exp_into(x)",
    shape: "2048",
    // Twenty operations per element, of which eleven go to the multipliers; no limit that the probe knows counts them.
    work: Work::bytes(4 * N as u64, 4 * N as u64),
    limit: Limit::None,
    ..Row::LLM
};
static SILU: Row = Row { id: "kernels/silu", operation: "silu_into(x)", ..EXP };
static GELU_ERF: Row = Row { id: "kernels/gelu_erf", operation: "gelu_into(x, Gelu::Erf)", ..EXP };
static GELU_TANH: Row =
    Row { id: "kernels/gelu_tanh", operation: "gelu_into(x, Gelu::Tanh)", ..EXP };
static SOFT_CAP: Row =
    Row { id: "kernels/soft_cap", operation: "a copy, and soft_cap_in_place(x, 30.0)", ..EXP };

type Map = fn(Isa, &[f32], &mut [f32]);
type Definition = fn(f32) -> f64;

fn gelu_erf(isa: Isa, x: &[f32], out: &mut [f32]) {
    gelu_into_with(isa, x, out, Gelu::Erf);
}

fn gelu_tanh(isa: Isa, x: &[f32], out: &mut [f32]) {
    gelu_into_with(isa, x, out, Gelu::Tanh);
}

fn soft_cap(isa: Isa, x: &[f32], out: &mut [f32]) {
    out.copy_from_slice(x);
    soft_cap_in_place_with(isa, out, 30.0);
}

fn main() {
    let rows: [(&'static Row, Map, Definition); 5] = [
        (&EXP, exp_into_with, |x| f64::from(x).exp()),
        (&SILU, silu_into_with, silu_scalar),
        (&GELU_ERF, gelu_erf, gelu_erf_scalar),
        (&GELU_TANH, gelu_tanh, gelu_tanh_scalar),
        (&SOFT_CAP, soft_cap, |x| soft_cap_scalar(x, 30.0)),
    ];
    let mut suite = Suite::new();
    for (row, map, definition) in rows {
        suite.row(row, |row| {
            let (x, mut out) = (input::normal(N, 1), Aligned::<f32>::zeroed(N));
            let mut other = Aligned::<f32>::zeroed(N);
            row.check(|| {
                let mut got = vec![0.0; N];
                map(Isa::detect(), &x, &mut got);
                assert!(x.iter().zip(got).all(|(&x, got)| (f64::from(got) - definition(x)).abs()
                    <= 1e-5 * definition(x).abs()));
            })
            .ours(|bench| bench.iter(|| map(Isa::detect(), black_box(&x), black_box(&mut out))))
            .at_level(SimdLevel::Avx2, |isa, bench| {
                bench.iter(|| map(isa, black_box(&x), black_box(&mut other)));
            })
        });
    }
    suite.finish();
}
