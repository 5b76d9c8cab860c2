//! Integer layouts of compressed-tensors: its own tensors are read and written byte for byte.

use half::bf16;
use proptest::prelude::*;
use squish_quant::{
    Error, Granularity, IntFormat, IntQuantizer, IntTensor, ScaleBytes, Symmetry,
    compressed_tensors::{IntQuantized, PackQuantized, PackedWeight, ScaleType, encode},
    ndarray::Array2,
};

use crate::int::{KINDS, golden, input, normal};

fn little_endian(words: Vec<i32>) -> Vec<u8> {
    words.into_iter().flat_map(i32::to_le_bytes).collect()
}

#[test]
fn packed_weights_are_read_and_written_as_the_library_does() {
    let golden = golden();
    for (kind, format, granularity, symmetry) in KINDS {
        let name = |tensor: &str| format!("pack.{kind}.{tensor}");
        let weight_packed = little_endian(golden.i32(&name("weight_packed")));
        let weight_scale: Vec<u8> =
            golden.u16(&name("weight_scale")).into_iter().flat_map(u16::to_le_bytes).collect();
        let weight_zero_point = (symmetry == Symmetry::Asymmetric)
            .then(|| little_endian(golden.i32(&name("weight_zero_point"))));
        let scale_shape = golden.shape(&name("weight_scale"));
        let packed = PackQuantized {
            format,
            shape: [24, 256],
            weight_packed: &weight_packed,
            weight_scale: ScaleBytes::Bf16(&weight_scale),
            scale_shape: [scale_shape[0], scale_shape[1]],
            weight_zero_point: weight_zero_point.as_deref(),
        };
        let tensor = packed.read().unwrap();
        assert_eq!(tensor.granularity(), granularity, "{kind}");
        let decoded: Vec<u16> =
            tensor.decode().iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
        assert_eq!(decoded, golden.u16(&name("decoded")), "{kind}");
        if format == IntFormat::Int4 {
            assert_eq!(
                tensor.codes().as_ptr(),
                weight_packed.as_ptr(),
                "{kind}: codes were copied"
            );
        }

        let written = PackedWeight::write(&tensor.view(), ScaleType::Bf16).unwrap();
        assert_eq!(written.weight_packed, weight_packed, "{kind}");
        assert_eq!(written.weight_scale, weight_scale, "{kind}");
        assert_eq!(written.weight_zero_point, weight_zero_point, "{kind}");
        assert_eq!(written.scale_shape.to_vec(), scale_shape, "{kind}");
        assert_eq!(
            written.weight_shape(),
            *bytemuck::bytes_of(&[24i64.to_le(), 256i64.to_le()]),
            "{kind}"
        );

        // From the weights: all but the scales of groups of zeros, 2^-23 there and 1 here, whose codes are zero in both.
        let quantizer = IntQuantizer { format, granularity, symmetry, ..Default::default() };
        let ours = encode(quantizer, input(&golden, symmetry).view(), ScaleType::Bf16).unwrap();
        assert_eq!(ours.codes(), tensor.codes(), "{kind}");
        assert_eq!(ours.zero_points(), tensor.zero_points(), "{kind}");
        for (ours, theirs) in ours.scales().iter().zip(tensor.scales()) {
            assert!(
                ours == theirs || *ours == 1.0 && *theirs == f32::EPSILON,
                "{kind}: {ours}, not {theirs}"
            );
        }
    }
}

#[test]
fn plain_int8_weights_are_read_where_they_lie() {
    let golden = golden();
    let codes: Vec<u8> =
        golden.i8("int8.channel.codes").into_iter().map(i8::cast_unsigned).collect();
    let scales: Vec<u8> =
        golden.f32("int8.channel.scale").into_iter().flat_map(f32::to_le_bytes).collect();
    let weight = IntQuantized {
        shape: [24, 256],
        weight: &codes,
        weight_scale: ScaleBytes::F32(&scales),
        scale_shape: [24, 1],
        weight_zero_point: None,
    };
    let tensor = weight.read().unwrap();
    assert_eq!(tensor.codes().as_ptr(), codes.as_ptr());
    assert_eq!(tensor.decode().into_raw_vec_and_offset().0, golden.f32("int8.channel.decoded"));
    let zero_points = [5u8.wrapping_neg(); 24];
    let shifted = IntQuantized { weight_zero_point: Some(&zero_points), ..weight }.read().unwrap();
    assert_eq!(shifted.zero_points().unwrap(), [-5; 24]);
    let one_scale =
        IntQuantized { weight_scale: ScaleBytes::F32(&scales[..4]), scale_shape: [1, 1], ..weight };
    assert_eq!(one_scale.read().unwrap().granularity(), Granularity::Tensor);
}

fn packed(
    scale_shape: [usize; 2],
    cols: usize,
    n_codes: usize,
    n_scales: usize,
    n_zero_points: Option<usize>,
) -> Error {
    let (codes, scales, zero_points) =
        (vec![0x88; n_codes], vec![0x3f; n_scales], n_zero_points.map(|n| vec![0x88; n]));
    let packed = PackQuantized {
        format: IntFormat::Int4,
        shape: [9, cols],
        weight_packed: &codes,
        weight_scale: ScaleBytes::F16(&scales),
        scale_shape,
        weight_zero_point: zero_points.as_deref(),
    };
    packed.read().map(|_| ()).expect_err("parts that do not fit")
}

#[test]
fn tensors_of_wrong_sizes_are_refused_with_their_numbers() {
    let length = |what, expected, actual| Error::Length { what, expected, actual };
    assert_eq!(packed([9, 2], 64, 9 * 32 - 1, 36, None), length("codes", 288, 287));
    assert_eq!(packed([9, 2], 64, 9 * 32 + 4, 36, None), length("codes", 288, 292));
    assert_eq!(packed([9, 2], 64, 288, 34, None), length("scales", 18, 17));
    // Nine rows of 4-bit zero points take two words, in two groups.
    assert_eq!(packed([9, 2], 64, 288, 36, Some(15)), length("weight_zero_point", 16, 15));
    assert_eq!(packed([9, 2], 64, 288, 36, Some(17)), length("weight_zero_point", 16, 17));
    assert_eq!(packed([9, 2], 60, 270, 36, None), Error::BlockAlign { len: 60, block: 8 });
    for scale_shape in [[9, 3], [8, 2], [9, 65], [2, 9]] {
        let expected = Error::Shape { what: "weight_scale", expected: [9, 1], actual: scale_shape };
        assert_eq!(packed(scale_shape, 64, 288, 36, None), expected);
    }
    let huge = [usize::MAX / 2, 8];
    assert_eq!(
        packed(huge, 8, 36, 36, Some(4)),
        Error::Shape { what: "weight_scale", expected: [9, 1], actual: huge }
    );
}

#[test]
fn scales_that_their_type_cannot_hold_are_refused() {
    let quantizer = IntQuantizer::default();
    let mut x = normal(4, 64);
    x[[2, 0]] = 1e8;
    let tensor = quantizer.encode(x.view()).unwrap();
    let refused = Err(Error::BadScale { index: 2, value: tensor.scales()[2] });
    assert_eq!(encode(quantizer, x.view(), ScaleType::F16).map(|_| ()), refused);
    assert_eq!(PackedWeight::write(&tensor.view(), ScaleType::F16).map(|_| ()), refused);
    let tiny = encode(quantizer, (&normal(4, 64) * 1e-10).view(), ScaleType::F16);
    assert!(matches!(tiny, Err(Error::BadScale { index: 0, .. })), "{tiny:?}");
    assert!(encode(quantizer, x.view(), ScaleType::Bf16).is_ok());
}

proptest! {
    #[test]
    fn written_weights_are_read_back(
        rows in 1usize..20,
        words in 1usize..9,
        groups in 1usize..3,
        int4 in any::<bool>(),
        asymmetric in any::<bool>(),
        seed in any::<u32>(),
    ) {
        let format = if int4 { IntFormat::Int4 } else { IntFormat::Int8 };
        let cols = words * groups * 32 / format.bits();
        let byte = |i: usize| (seed.wrapping_add(i as u32).wrapping_mul(0x9e37_79b9) >> 24) as u8;
        let codes: Vec<u8> = (0..rows * cols * format.bits() / 8).map(byte).collect();
        let scales: Vec<f32> = (0..rows * groups).map(|i| f32::from(byte(i)) + 0.5).collect();
        let zero_points = asymmetric.then(|| (0..rows * groups).map(|i| byte(i) as i8 >> (8 - format.bits())).collect());
        let granularity = if groups == 1 { Granularity::Channel } else { Granularity::Block1d(cols / groups) };
        let tensor: IntTensor = IntTensor::new(format, granularity, [rows, cols], codes, scales, zero_points).unwrap();
        for scale_type in [ScaleType::F32, ScaleType::F16] {
            let packed = PackedWeight::write(&tensor.view(), scale_type).unwrap();
            let read = packed.view().read().unwrap();
            prop_assert_eq!(read.view(), tensor.view());
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        cut in (0usize..300, 0usize..300),
        rows in 0usize..9,
        cols in 0usize..70,
        scale_shape in [0usize..9, 0usize..5],
        int4 in any::<bool>(),
    ) {
        let part = |from: usize, to: usize| &bytes[from.min(bytes.len())..to.min(bytes.len()).max(from.min(bytes.len()))];
        let format = if int4 { IntFormat::Int4 } else { IntFormat::Int8 };
        let packed = PackQuantized {
            format,
            shape: [rows, cols],
            weight_packed: part(0, cut.0),
            weight_scale: ScaleBytes::Bf16(part(cut.0, cut.1)),
            scale_shape,
            weight_zero_point: (cut.1 % 2 == 0).then(|| part(cut.1, 300)),
        };
        if let Ok(tensor) = packed.read() {
            prop_assert_eq!(tensor.decode().dim(), (rows, cols));
        }
    }
}

#[test]
fn zero_points_run_along_the_rows_of_a_column() {
    // Row r of group g has zero point r - 8 in group 0 and 7 - r in group 1.
    let word = |nibble: &dyn Fn(u32) -> u32| {
        (0..8).fold(0u32, |word, row| word | nibble(row) << (4 * row))
    };
    let words = [word(&|row| row), word(&|row| 15 - row), 8, 7].map(u32::to_le_bytes).concat();
    let packed = PackQuantized {
        format: IntFormat::Int4,
        shape: [9, 16],
        weight_packed: &[0; 72],
        weight_scale: ScaleBytes::F32(&[0; 72]),
        scale_shape: [9, 2],
        weight_zero_point: Some(&words),
    };
    let tensor = packed.read().unwrap();
    let want: Vec<i8> = (0..9).flat_map(|row| [row - 8, 7 - row]).collect();
    assert_eq!(tensor.zero_points().unwrap(), want);
    assert_eq!(tensor.decode(), Array2::<f32>::zeros([9, 16]));
}
