use std::sync::Arc;

use half::{bf16, f16};
use proptest::prelude::*;
use squish_bench::{alloc::count_allocations, input};
use squish_kernels::{
    Isa, SimdLevel, Team,
    panel::{Code, Output},
};
use squish_quant::{
    Activation, ColumnMatrix, Epilogue, Error, Fp8Format, Fp8Quantizer, GlobalDirection,
    Granularity, IntFormat, IntQuantizer, MxFormat, MxQuantizer, NvFp4Quantizer, PackedMatrix,
    PackedView, Product, SmxFormat, SmxQuantizer, Symmetry, Weights, Workspace,
    ndarray::{Array2, ArrayView2, Axis, s},
    packed::{Dense, Gate, Line, Verify, checksum},
};

fn weights(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_vec([rows, cols], input::weights(rows, cols, seed).to_vec()).expect("shape")
}

fn inputs(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_vec([rows, cols], input::normal(rows * cols, seed).to_vec()).expect("shape")
}

fn team(n_threads: usize) -> Workspace {
    Workspace::new(Arc::new(Team::new(n_threads).expect("threads")))
}

fn gemm(packed: &PackedMatrix, workspace: &mut Workspace, x: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut out = Array2::from_elem([x.nrows(), packed.shape()[0]], f32::NAN);
    packed.gemm_into(workspace, x, out.view_mut()).expect("the shapes agree");
    out
}

fn bits(x: &Array2<f32>) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// A matrix in every form that can be packed, with a name.
fn forms(weights: ArrayView2<'_, f32>, test: &mut dyn FnMut(&str, Weights<'_>, &Array2<f32>)) {
    let shape = weights.dim().into();
    let bytes: Vec<u8> = weights.iter().flat_map(|x| x.to_le_bytes()).collect();
    test("f32", Weights::Dense { dense: Dense::F32, shape, bytes: &bytes }, &weights.to_owned());
    let bytes: Vec<u8> = weights.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
    let values = weights.mapv(|x| bf16::from_f32(x).to_f32());
    test("bf16", Weights::Dense { dense: Dense::Bf16, shape, bytes: &bytes }, &values);
    let bytes: Vec<u8> = weights.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
    let values = weights.mapv(|x| f16::from_f32(x).to_f32());
    test("f16", Weights::Dense { dense: Dense::F16, shape, bytes: &bytes }, &values);
    for granularity in [
        Granularity::Tensor,
        Granularity::Channel,
        Granularity::Block1d(64),
        Granularity::Block2d { rows: 48, cols: 128 },
    ] {
        for format in [Fp8Format::E4M3, Fp8Format::E5M2] {
            let quantizer = Fp8Quantizer { format, granularity, ..Fp8Quantizer::default() };
            let tensor = quantizer.encode(weights).expect("finite");
            test(&format!("{format:?} {granularity:?}"), (&tensor).into(), &tensor.decode());
        }
    }
    if weights.ncols().is_multiple_of(32) {
        for format in MxFormat::ALL {
            let quantizer = MxQuantizer { format, ..MxQuantizer::default() };
            let tensor = quantizer.encode(weights).expect("finite");
            test(format.name(), (&tensor).into(), &tensor.decode());
        }
    }
    if weights.ncols().is_multiple_of(16) {
        for format in SmxFormat::ALL {
            let quantizer = SmxQuantizer { format, ..SmxQuantizer::default() };
            let tensor = quantizer.encode(weights).expect("finite");
            test(format.name(), (&tensor).into(), &tensor.decode());
        }
    }
    for (format, symmetry) in [
        (IntFormat::Int8, Symmetry::Symmetric),
        (IntFormat::Int8, Symmetry::Asymmetric),
        (IntFormat::Int4, Symmetry::Symmetric),
        (IntFormat::Int4, Symmetry::Asymmetric),
    ] {
        if format == IntFormat::Int4 && !weights.ncols().is_multiple_of(2) {
            continue;
        }
        for granularity in
            [Granularity::Channel, Granularity::Block1d(32), Granularity::Block1d(128)]
        {
            let quantizer = IntQuantizer { format, granularity, symmetry, ..Default::default() };
            let tensor = quantizer.encode(weights).expect("finite");
            let name = format!("{format:?} {symmetry:?} {granularity:?}");
            test(&name, (&tensor).into(), &tensor.decode());
        }
    }
}

/// Every form that `activation` can be had for, packed.
fn packed(weights: ArrayView2<'_, f32>, test: &mut dyn FnMut(&str, &PackedMatrix)) {
    forms(weights, &mut |name, weights, _| {
        for activation in Activation::ALL {
            match PackedMatrix::pack(weights, activation) {
                Ok(packed) => test(&format!("{name} {activation:?}"), &packed),
                Err(Error::Unsupported { .. }) => {}
                Err(error) => panic!("{name} {activation:?}: {error}"),
            }
        }
    });
}

#[test]
fn the_exact_mode_is_the_product_of_the_decoded_weights_added_in_order() {
    let fused = !matches!(Isa::detect().level(), SimdLevel::Scalar | SimdLevel::Sse42);
    for [rows, cols] in [[1, 1], [64, 32], [70, 96], [130, 257], [3, 384]] {
        let (weights, x) = (weights(rows, cols, 1), inputs(2, cols, 2));
        forms(weights.view(), &mut |name, form, decoded| {
            let packed = PackedMatrix::pack(form, Activation::F32).expect("every format has it");
            assert_eq!(packed.shape(), [rows, cols]);
            let got = gemm(&packed, &mut Workspace::default(), x.view());
            for ((row, output), got) in got.indexed_iter() {
                let pairs = decoded.row(output).into_iter().zip(x.row(row));
                let want = pairs.fold(
                    0.0,
                    |sum, (w, x)| {
                        if fused { w.mul_add(*x, sum) } else { w * x + sum }
                    },
                );
                assert_eq!(*got, want, "{name} {rows}x{cols}: row {row}, output {output}");
            }
        });
    }
}

#[test]
fn rounded_modes_are_those_of_the_definition() {
    let (rows, cols) = (67, 160);
    let (weights, x) = (weights(rows, cols, 3), inputs(1, cols, 4));
    let x_row = x.row(0).to_vec();
    let isa = Isa::detect();
    let check = |name: &str, packed: &PackedMatrix, output: &dyn Fn(usize) -> f32| {
        let got = gemm(packed, &mut Workspace::default(), x.view());
        for (i, got) in got.iter().enumerate() {
            assert_eq!(got.to_bits(), output(i).to_bits(), "{name}: output {i}");
        }
    };
    let tensor = MxQuantizer::default().encode(weights.view()).expect("finite");
    let scales: Vec<f32> = tensor
        .scales()
        .iter()
        .map(|&scale| squish_kernels::element::E8M0::from_bits(scale).to_f32())
        .collect();
    for activation in [Activation::Bf16, Activation::Q8] {
        let packed = PackedMatrix::pack(&tensor, activation).expect("a mode of MXFP4");
        check("mxfp4", &packed, &|i| {
            let row = &tensor.codes()[i * cols / 2..(i + 1) * cols / 2];
            let codes: Vec<u8> = row.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect();
            let scales = Some(&scales[i * cols / 32..(i + 1) * cols / 32]);
            let code = Code::E2M1;
            Output {
                code,
                activation,
                codes: &codes,
                group: 32,
                scales,
                zero_points: None,
                output_scale: None,
            }
            .product(isa, &x_row)
        });
    }
    let granularity = Granularity::Block1d(64);
    let tensor = Fp8Quantizer { granularity, ..Fp8Quantizer::default() }
        .encode(weights.view())
        .expect("finite");
    let packed = PackedMatrix::pack(&tensor, Activation::Bf16).expect("a mode of FP8");
    check("fp8", &packed, &|i| {
        let codes = &tensor.codes()[i * cols..(i + 1) * cols];
        let scales = Some(&tensor.scales()[i * 3..(i + 1) * 3]);
        let (code, activation) = (Code::E4M3, Activation::Bf16);
        Output { code, activation, codes, group: 64, scales, zero_points: None, output_scale: None }
            .product(isa, &x_row)
    });
    for format in [IntFormat::Int8, IntFormat::Int4] {
        let symmetry = Symmetry::Asymmetric;
        let tensor = IntQuantizer { format, granularity, symmetry, ..Default::default() }
            .encode(weights.view())
            .expect("finite");
        let zero_points = tensor.zero_points().expect("asymmetric");
        for activation in [Activation::Bf16, Activation::Q8] {
            let packed = PackedMatrix::pack(&tensor, activation).expect("a mode of integers");
            check("int", &packed, &|i| {
                let (code, codes): (_, Vec<u8>) = if format == IntFormat::Int8 {
                    (Code::Int8, tensor.codes()[i * cols..(i + 1) * cols].to_vec())
                } else {
                    let row = &tensor.codes()[i * cols / 2..(i + 1) * cols / 2];
                    (Code::Int4, row.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect())
                };
                let groups = i * 3..(i + 1) * 3;
                let scales = Some(&tensor.scales()[groups.clone()]);
                let zero_points = Some(&zero_points[groups]);
                Output {
                    code,
                    activation,
                    codes: &codes,
                    group: 64,
                    scales,
                    zero_points,
                    output_scale: None,
                }
                .product(isa, &x_row)
            });
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_with_others_on_any_number_of_threads() {
    // Large enough to be split into tasks.
    let (rows, cols) = (700, 1056);
    let (weights, x) = (weights(rows, cols, 5), inputs(127, cols, 6));
    let mut workspaces: Vec<Workspace> = (1..=4).map(team).collect();
    packed(weights.view(), &mut |name, packed| {
        let alone: Vec<Array2<f32>> = x
            .axis_chunks_iter(Axis(0), 1)
            .take(20)
            .map(|x| gemm(packed, &mut workspaces[0], x))
            .collect();
        for (i, workspace) in workspaces.iter_mut().enumerate() {
            for n_rows in [1, 2, 13, 127].into_iter().skip(i % 2) {
                // In reverse, so that each stands elsewhere.
                let reversed = x.slice(s![..n_rows;-1, ..]).as_standard_layout().into_owned();
                let got = gemm(packed, workspace, reversed.view());
                for (row, alone) in alone.iter().enumerate().take(n_rows) {
                    let got = got.slice(s![n_rows - 1 - row..n_rows - row, ..]).to_owned();
                    assert_eq!(bits(&got), bits(alone), "{name} {n_rows} rows, {} threads", i + 1);
                }
            }
        }
    });
}

#[test]
fn several_products_and_epilogues_are_what_each_is_alone() {
    let (weights_a, weights_b) = (weights(300, 256, 7), weights(300, 256, 8));
    let bias = input::normal(300, 9);
    for n_rows in [1, 5] {
        let (x, residual) = (inputs(n_rows, 256, 10), inputs(n_rows, 300, 11));
        packed(weights_a.view(), &mut |name, a| {
            let b = MxQuantizer::default().encode(weights_b.view()).expect("finite");
            let Ok(b) = PackedMatrix::pack(&b, a.activation()) else { unreachable!("all modes") };
            let mut workspace = team(2);
            let (plain_a, plain_b) =
                (gemm(a, &mut workspace, x.view()), gemm(&b, &mut workspace, x.view()));
            let mut out = [(); 4].map(|()| residual.clone());
            let [stored, added, silu, gelu] = &mut out;
            let gated = |gate| Epilogue::Gated { gate, up: b.view() };
            let mut products = [
                Product::new(&b, stored.view_mut()),
                Product {
                    bias: Some(&bias),
                    epilogue: Epilogue::Add,
                    ..Product::new(a, added.view_mut())
                },
                Product { epilogue: gated(Gate::Silu), ..Product::new(a, silu.view_mut()) },
                Product { epilogue: gated(Gate::GeluTanh), ..Product::new(a, gelu.view_mut()) },
            ];
            workspace.products_into(x.view(), &mut products).expect("the shapes agree");
            assert_eq!(bits(stored), bits(&plain_b), "{name}");
            for ((row, i), got) in added.indexed_iter() {
                let want = residual[[row, i]] + (plain_a[[row, i]] + bias[i]);
                assert_eq!(got.to_bits(), want.to_bits(), "{name}: {row} {i}");
            }
            for (gate, got) in [(Gate::Silu, silu), (Gate::GeluTanh, gelu)] {
                let mut want = plain_a.clone();
                for want in &mut want {
                    let gated = std::slice::from_mut(want);
                    match gate {
                        Gate::Silu => squish_kernels::silu_in_place(gated),
                        Gate::GeluTanh => {
                            squish_kernels::gelu_in_place(gated, squish_kernels::Gelu::Tanh);
                        }
                    }
                }
                assert_eq!(bits(got), bits(&(want * &plain_b)), "{name} {gate:?}");
            }
        });
    }
}

#[test]
fn rows_of_a_product_are_those_of_the_whole() {
    let (weights, x) = (weights(200, 96, 12), inputs(1, 96, 13));
    packed(weights.view(), &mut |name, packed| {
        let mut workspace = Workspace::default();
        let all = gemm(packed, &mut workspace, x.view());
        let rows = [0, 199, 63, 64, 65, 65, 7];
        let mut got = [f32::NAN; 7];
        let x = x.row(0).to_vec();
        packed.gemv_rows_into(&mut workspace, &rows, &x, &mut got).expect("rows that are there");
        assert_eq!(got, rows.map(|row| all[[0, row]]), "{name}");
        let mut untouched = [1.0; 2];
        assert_eq!(
            packed.gemv_rows_into(&mut workspace, &[3, 200], &x, &mut untouched),
            Err(Error::Rows { start: 200, end: 201, n_rows: 200 })
        );
        let last = [usize::MAX];
        assert_eq!(
            packed.gemv_rows_into(&mut workspace, &last, &x, &mut untouched[..1]),
            Err(Error::Rows { start: usize::MAX, end: usize::MAX, n_rows: 200 })
        );
        assert_eq!(untouched, [1.0; 2]);
    });
}

#[test]
fn a_sparse_product_is_the_whole_one_with_zeros() {
    let (weights, mut x) = (weights(300, 256, 22), inputs(1, 256, 23));
    for (i, x) in x.iter_mut().enumerate() {
        *x = if i % 3 == 0 || i % 7 == 0 { *x } else { 0.0 };
    }
    let live = x.iter().enumerate().filter(|(_, x)| **x != 0.0);
    let (indices, values): (Vec<u32>, Vec<f32>) = live.map(|(i, x)| (i as u32, *x)).unzip();
    let mut workspace = team(2);
    packed(weights.view(), &mut |name, packed| {
        let want = gemm(packed, &mut workspace, x.view());
        let mut got = [f32::NAN; 300];
        packed.gemv_sparse_into(&mut workspace, &indices, &values, &mut got).expect("ascending");
        assert_eq!(want.as_slice(), Some(&got[..]), "{name}");
        let mut y = [7.0; 300];
        for (bad, index, value) in [([3, 3], 1, 3), ([4, 2], 1, 2), ([0, 256], 1, 256)] {
            assert_eq!(
                packed.gemv_sparse_into(&mut workspace, &bad, &[1.0; 2], &mut y),
                Err(Error::Indices { what: "indices", index, value, n: 256 })
            );
        }
        assert_eq!(y, [7.0; 300]);
    });
}

#[test]
fn a_product_by_input_has_the_bits_of_the_whole_one_with_zeros() {
    for [n_outputs, n_inputs] in [[300, 256], [2049, 70], [1, 33], [128, 1]] {
        let weights = weights(n_outputs, n_inputs, 22);
        let mut x = inputs(1, n_inputs, 23);
        for (i, x) in x.iter_mut().enumerate() {
            *x = if i % 3 == 0 || i % 7 == 0 { *x } else { 0.0 };
        }
        let live = x.iter().enumerate().filter(|(_, x)| **x != 0.0);
        let (indices, values): (Vec<u32>, Vec<f32>) = live.map(|(i, x)| (i as u32, *x)).unzip();
        let numbers: Vec<u8> = weights.iter().flat_map(|x| x.to_le_bytes()).collect();
        let shape = [n_outputs, n_inputs];
        let narrow: Vec<u8> =
            weights.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        let fp8 = |format, granularity| {
            let quantizer = Fp8Quantizer { format, granularity, ..Fp8Quantizer::default() };
            quantizer.encode(weights.view()).expect("finite")
        };
        let eights = [
            fp8(Fp8Format::E4M3, Granularity::Channel),
            fp8(Fp8Format::E4M3, Granularity::Tensor),
            fp8(Fp8Format::E5M2, Granularity::Channel),
        ];
        let all = eights.iter().map(Weights::from).chain([
            Weights::Dense { dense: Dense::F32, shape, bytes: &numbers },
            Weights::Dense { dense: Dense::Bf16, shape, bytes: &narrow },
        ]);
        for (weights, n_threads) in all.flat_map(|weights| [1, 2].map(|n| (weights, n))) {
            for activation in Activation::ALL {
                let Ok(columns) = ColumnMatrix::pack(weights, activation) else {
                    assert!(PackedMatrix::pack(weights, activation).is_err());
                    continue;
                };
                let packed = PackedMatrix::pack(weights, activation).expect("as by input");
                let mut workspace = team(n_threads);
                let want = gemm(&packed, &mut workspace, x.view());
                let mut got = vec![f32::NAN; n_outputs];
                columns.gemv_sparse_into(&mut workspace, &indices, &values, &mut got).unwrap();
                assert_eq!(want.as_slice(), Some(&got[..]), "{weights:?} {activation:?}");
                let none = columns.gemv_sparse_into(&mut workspace, &[], &[], &mut got);
                assert_eq!((none, got), (Ok(()), vec![0.0; n_outputs]));
                let mut y = vec![7.0; n_outputs];
                let (index, value, n) = (0, n_inputs, n_inputs);
                assert_eq!(
                    columns.gemv_sparse_into(&mut workspace, &[value as u32], &[1.0], &mut y),
                    Err(Error::Indices { what: "indices", index, value, n })
                );
                assert_eq!(y, vec![7.0; n_outputs]);
                assert_eq!(columns.shape(), shape);
            }
        }
    }
    let groups = Fp8Quantizer { granularity: Granularity::Block1d(32), ..Fp8Quantizer::default() };
    let groups = groups.encode(weights(3, 64, 1).view()).expect("finite");
    let mxfp4 = MxQuantizer::default().encode(weights(3, 64, 1).view()).expect("finite");
    for weights in [Weights::from(&groups), Weights::from(&mxfp4)] {
        let refused = ColumnMatrix::pack(weights, Activation::F32);
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    }
    let empty = Weights::Dense { dense: Dense::F32, shape: [0, 0], bytes: &[] };
    assert_eq!(ColumnMatrix::pack(empty, Activation::F32).map(|m| m.n_bytes()), Ok(0));
}

#[test]
fn saved_bytes_are_the_matrix_again() {
    for [rows, cols] in [[1, 1], [65, 160], [0, 32], [7, 0]] {
        packed(weights(rows, cols, 14).view(), &mut |name, packed| {
            let bytes = saved(packed);
            let bytes: &[u8] = bytemuck::cast_slice(&bytes);
            assert_eq!(bytes.len(), packed.n_saved_bytes());
            let view = PackedView::from_bytes(bytes, Verify::All).expect("what was written");
            assert_eq!(&view.to_matrix(), packed, "{name} {rows}x{cols}");
        });
    }
}

/// The bytes of a matrix, on a line.
fn saved(packed: &PackedMatrix) -> Vec<Line> {
    let mut bytes = Vec::new();
    packed.write(&mut bytes).expect("memory takes it");
    on_a_line(&bytes)
}

/// `bytes`, and zeros that fill the last line.
fn on_a_line(bytes: &[u8]) -> Vec<Line> {
    let mut lines = vec![Line([0; 64]); bytes.len().div_ceil(64)];
    bytemuck::cast_slice_mut(&mut lines)[..bytes.len()].copy_from_slice(bytes);
    lines
}

#[test]
fn bytes_that_were_cut_extended_moved_or_changed_are_refused() {
    let tensor = MxQuantizer::default().encode(weights(65, 64, 15).view()).expect("finite");
    let packed = PackedMatrix::pack(&tensor, Activation::Q8).expect("a mode of MXFP4");
    let lines = saved(&packed);
    let bytes: &[u8] = bytemuck::cast_slice(&lines);
    for len in 0..bytes.len() {
        assert!(PackedView::from_bytes(&bytes[..len], Verify::All).is_err(), "{len} bytes");
    }
    let mut longer = lines.clone();
    longer.push(lines[0]);
    let longer = bytemuck::cast_slice(&longer);
    assert!(matches!(
        PackedView::from_bytes(longer, Verify::All),
        Err(Error::Length { what: "panels", .. })
    ));
    let mut moved = vec![lines[0]; lines.len() + 1];
    let moved: &mut [u8] = bytemuck::cast_slice_mut(&mut moved);
    moved[4..4 + bytes.len()].copy_from_slice(bytes);
    assert_eq!(
        PackedView::from_bytes(&moved[4..4 + bytes.len()], Verify::All),
        Err(Error::Alignment { what: "panels", line: 64, offset: 4 })
    );
    let mut flipped = lines.clone();
    for bit in 0..8 * bytes.len() {
        let flipped: &mut [u8] = bytemuck::cast_slice_mut(&mut flipped);
        flipped[bit / 8] ^= 1 << (bit % 8);
        let of_header = bit < 8 * 128;
        assert!(PackedView::from_bytes(flipped, Verify::All).is_err(), "bit {bit}");
        assert_eq!(PackedView::from_bytes(flipped, Verify::Header).is_err(), of_header, "{bit}");
        flipped[bit / 8] ^= 1 << (bit % 8);
    }
    // Two at once: the same bit of two words.
    for bit in 0..64 {
        for (first, second) in [(16, 17), (16, 24), (19, 90)] {
            let flipped: &mut [u8] = bytemuck::cast_slice_mut(&mut flipped);
            for word in [first, second] {
                flipped[8 * word + bit / 8] ^= 1 << (bit % 8);
            }
            assert!(
                PackedView::from_bytes(flipped, Verify::All).is_err(),
                "{bit} of {first}, {second}"
            );
            for word in [first, second] {
                flipped[8 * word + bit / 8] ^= 1 << (bit % 8);
            }
        }
    }
}

#[test]
fn calls_that_make_no_sense_are_refused_and_write_nothing() {
    let matrix = weights(64, 96, 16);
    let dense = |bytes| Weights::Dense { dense: Dense::F32, shape: [64, 96], bytes };
    let bytes: Vec<u8> = matrix.iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(
        PackedMatrix::pack(dense(&bytes[1..]), Activation::F32),
        Err(Error::Length { what: "bytes", expected: 24576, actual: 24575 })
    );
    assert_eq!(
        PackedMatrix::pack(dense(&bytes), Activation::Q8),
        Err(Error::Unsupported { format: "f32", what: "inputs in q8" })
    );
    let granularity = Granularity::Block1d(48);
    let tensor = Fp8Quantizer { granularity, ..Fp8Quantizer::default() }
        .encode(matrix.view())
        .expect("finite");
    assert_eq!(
        PackedMatrix::pack(&tensor, Activation::Bf16),
        Err(Error::BlockAlign { len: 48, block: 32 })
    );
    let huge = Weights::Dense { dense: Dense::F32, shape: [1 << 40, 1 << 40], bytes: &[] };
    assert!(matches!(PackedMatrix::pack(huge, Activation::F32), Err(Error::TooLarge { .. })));

    let packed = PackedMatrix::pack(dense(&bytes), Activation::F32).expect("dense");
    let mut workspace = Workspace::default();
    let mut y = [7.0; 64];
    assert_eq!(
        packed.gemv_into(&mut workspace, &[0.0; 95], &mut y),
        Err(Error::Length { what: "x", expected: 96, actual: 95 })
    );
    let (x, mut out) = (inputs(2, 96, 1), Array2::from_elem([3, 64], 7.0));
    let (expected, actual) = ([2, 64], [3, 64]);
    assert_eq!(
        packed.gemm_into(&mut workspace, x.view(), out.view_mut()),
        Err(Error::Shape { what: "out", expected, actual })
    );
    let mut transposed = Array2::from_elem([64, 2], 7.0);
    assert!(matches!(
        packed.gemm_into(&mut workspace, x.view(), transposed.view_mut().reversed_axes()),
        Err(Error::Layout { what: "out", .. })
    ));
    let tensor = MxQuantizer::default().encode(matrix.view()).expect("finite");
    let q8 = PackedMatrix::pack(&tensor, Activation::Q8).expect("a mode of MXFP4");
    let mut other = Array2::from_elem([2, 64], 7.0);
    let mut out = Array2::from_elem([2, 64], 7.0);
    let mut products = [Product::new(&packed, out.view_mut()), Product::new(&q8, other.view_mut())];
    assert!(matches!(
        workspace.products_into(x.view(), &mut products),
        Err(Error::Unsupported { .. })
    ));
    for written in [out, other, transposed] {
        assert!(written.iter().all(|&x| x == 7.0));
    }
    assert_eq!(y, [7.0; 64]);
}

#[test]
fn a_matrix_without_inputs_gives_zeros_and_one_without_outputs_nothing() {
    let mut workspace = Workspace::default();
    packed(weights(5, 0, 17).view(), &mut |name, packed| {
        let got = gemm(packed, &mut workspace, inputs(3, 0, 1).view());
        assert!(got.iter().all(|&x| x == 0.0), "{name}");
    });
    packed(weights(0, 64, 18).view(), &mut |_, packed| {
        assert_eq!(gemm(packed, &mut workspace, inputs(3, 64, 1).view()).dim(), (3, 0));
    });
    packed(weights(5, 64, 19).view(), &mut |_, packed| {
        assert_eq!(gemm(packed, &mut workspace, inputs(0, 64, 1).view()).dim(), (0, 5));
    });
}

#[test]
fn products_allocate_nothing_after_the_first() {
    let (weights, x) = (weights(256, 512, 20), inputs(9, 512, 21));
    let mut workspace = team(2);
    packed(weights.view(), &mut |name, packed| {
        let mut out = Array2::zeros([9, 256]);
        packed.gemm_into(&mut workspace, x.view(), out.view_mut()).expect("the shapes agree");
        let row = x.row(0).to_vec();
        let (result, n) = count_allocations(|| {
            packed.gemm_into(&mut workspace, x.view(), out.view_mut())?;
            packed.gemv_into(&mut workspace, &row, out.row_mut(0).as_slice_mut().expect("a row"))
        });
        assert_eq!((result, n), (Ok(()), 0), "{name}");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_bytes_are_a_matrix_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        // Past marks, checksum and reserved bytes, with fields and sizes that are small.
        if bytes.len() >= 128 {
            bytes[..12].copy_from_slice(b"SQUISHPM\x01\0\0\0");
            bytes[12..15].iter_mut().for_each(|field| *field %= 9);
            bytes[15] = 0;
            for size in bytes[16..48].chunks_exact_mut(8) {
                size[2..].fill(0);
            }
            bytes[56..120].fill(0);
            let checksum = checksum(&bytes[..120]);
            bytes[120..128].copy_from_slice(&checksum.to_le_bytes());
        }
        let lines = on_a_line(&bytes);
        let aligned: &[u8] = bytemuck::cast_slice(&lines);
        let _ = PackedView::from_bytes(&aligned[..bytes.len()], Verify::All);
    }
}

/// The product in the F32 mode is that of the decoded weights; the others round inputs alone.
#[test]
fn products_of_microscaling_formats_are_those_of_their_values() {
    let (n_outputs, n_inputs, n_rows) = (70, 160, 3);
    let weight = Array2::from_shape_fn([n_outputs, n_inputs], |(row, col)| {
        ((row * n_inputs + col) as f32 * 0.37).sin() * (1.0 + (col % 7) as f32)
    });
    let x = Array2::from_shape_fn([n_rows, n_inputs], |(row, col)| {
        ((row * n_inputs + col) as f32 * 0.11).cos()
    });
    let mut packed = Vec::new();
    for format in MxFormat::ALL {
        let tensor =
            MxQuantizer { format, ..MxQuantizer::default() }.encode(weight.view()).expect("finite");
        for activation in Activation::ALL {
            if let Ok(matrix) = PackedMatrix::pack(&tensor, activation) {
                packed.push((format.name(), activation, matrix, tensor.decode()));
            }
        }
    }
    for direction in [GlobalDirection::Multiply, GlobalDirection::Divide] {
        let quantizer = NvFp4Quantizer { direction, ..NvFp4Quantizer::default() };
        let tensor = quantizer.encode(weight.view()).expect("finite");
        for activation in Activation::ALL {
            let matrix = PackedMatrix::pack(&tensor, activation).expect("all modes");
            packed.push(("nvfp4", activation, matrix, tensor.decode()));
        }
    }
    // Of MXFP8 and MXFP6 two modes each.
    assert_eq!(packed.len(), 2 * 3 + 4 * 2 + 2 * 3);
    let mut workspace = Workspace::default();
    for (format, activation, matrix, values) in packed {
        let mut out = Array2::zeros([n_rows, n_outputs]);
        matrix.gemm_into(&mut workspace, x.view(), out.view_mut()).expect("shapes");
        for ((row, output), &got) in out.indexed_iter() {
            let terms = x
                .row(row)
                .iter()
                .zip(values.row(output))
                .map(|(x, w)| {
                    let product = f64::from(*x) * f64::from(*w);
                    (product, product.abs())
                })
                .collect::<Vec<_>>();
            let exact: f64 = terms.iter().map(|term| term.0).sum();
            let magnitude: f64 = terms.iter().map(|term| term.1).sum();
            let of_inputs = match activation {
                Activation::F32 => 0.0,
                Activation::Bf16 => 2f64.powi(-9),
                Activation::Q8 => 4.0 / 254.0,
            };
            let bound = magnitude * (of_inputs + n_inputs as f64 * f64::from(f32::EPSILON));
            let error = (f64::from(got) - exact).abs();
            assert!(error <= bound, "{format} {activation:?}: {got} is not {exact}");
        }
        // Saved and read again it is the same.
        let mut bytes = Vec::new();
        matrix.write(&mut bytes).expect("memory");
        let lines: Vec<Line> = bytes.as_chunks().0.iter().map(|&line| Line(line)).collect();
        let view =
            PackedView::from_bytes(bytemuck::cast_slice(&lines), Verify::All).expect("saved");
        assert_eq!((view.shape(), view.lines()), (matrix.shape(), matrix.lines()), "{format}");
    }
}
