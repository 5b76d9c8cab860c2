//! Integer layouts of compressed-tensors: its own tensors are read and written byte for byte.

use half::bf16;
use proptest::prelude::*;
use squish_quant::{
    Error, Granularity, IntFormat, IntQuantizer, IntTensor, ScaleBytes, ScaleType, Symmetry,
    compressed_tensors::{IntQuantized, PackQuantized, PackedWeight, encode},
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
            granularity,
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
        granularity: Granularity::Channel,
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
    let one_scale = IntQuantized {
        granularity: Granularity::Tensor,
        weight_scale: ScaleBytes::F32(&scales[..4]),
        scale_shape: [1, 1],
        ..weight
    };
    assert_eq!(one_scale.read().unwrap().scales().len(), 1);
    let groups = IntQuantized { granularity: Granularity::Block1d(128), ..weight };
    let expected = Error::Shape { what: "weight_scale", expected: [24, 2], actual: [24, 1] };
    assert_eq!(groups.read().map(|_| ()), Err(expected));
}

/// What becomes of nine rows of INT4 in groups of 32, if the parts have these sizes.
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
        granularity: Granularity::Block1d(32),
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
    // Two bytes each: one too few, one too many, and one byte left over.
    for n_bytes in [34, 38, 37] {
        let expected = length("bytes of the scales", 36, n_bytes);
        assert_eq!(packed([9, 2], 64, 288, n_bytes, None), expected);
    }
    // Nine rows of 4-bit zero points take two words, in two groups.
    assert_eq!(packed([9, 2], 64, 288, 36, Some(15)), length("weight_zero_point", 16, 15));
    assert_eq!(packed([9, 2], 64, 288, 36, Some(17)), length("weight_zero_point", 16, 17));
    assert_eq!(packed([9, 2], 60, 270, 36, None), Error::BlockAlign { len: 60, block: 8 });
    for scale_shape in [[9, 3], [9, 1], [8, 2], [9, 65], [2, 9], [usize::MAX / 2, 8]] {
        let expected = Error::Shape { what: "weight_scale", expected: [9, 2], actual: scale_shape };
        assert_eq!(packed(scale_shape, 64, 288, 36, Some(16)), expected);
    }
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

#[test]
fn groups_of_any_size_come_back_as_written_though_the_shapes_are_the_same() {
    let x = normal(8, 32);
    for group in [16, 24, 30] {
        let granularity = Granularity::Block1d(group);
        let quantizer = IntQuantizer { format: IntFormat::Int4, granularity, ..Default::default() };
        let tensor = encode(quantizer, x.view(), ScaleType::Bf16).unwrap();
        let packed = PackedWeight::write(&tensor.view(), ScaleType::Bf16).unwrap();
        assert_eq!(packed.scale_shape, [8, 2]);
        assert_eq!(packed.view().read().unwrap().decode(), tensor.decode());
    }
}

#[test]
fn packed_zero_points_of_a_whole_tensor_are_refused_where_the_library_has_none() {
    let quantizer = IntQuantizer {
        granularity: Granularity::Tensor,
        symmetry: Symmetry::Asymmetric,
        ..Default::default()
    };
    let tensor = quantizer.encode(normal(4, 8).view()).unwrap();
    let refused =
        Error::Unsupported { format: "pack-quantized", what: "zero points of a whole tensor" };
    assert_eq!(PackedWeight::write(&tensor.view(), ScaleType::Bf16).map(|_| ()), Err(refused));
    let packed = PackQuantized {
        format: IntFormat::Int8,
        granularity: Granularity::Tensor,
        shape: [4, 8],
        weight_packed: tensor.codes(),
        weight_scale: ScaleBytes::F32(&1f32.to_le_bytes()),
        scale_shape: [1, 1],
        weight_zero_point: Some(&[0; 4]),
    };
    assert_eq!(packed.read().map(|_| ()), Err(refused));
    assert!(PackQuantized { weight_zero_point: None, ..packed }.read().is_ok());
}

#[test]
fn shapes_without_elements_are_read_however_long() {
    let granularity = Granularity::Block1d(8);
    let read = |rows: usize| {
        let packed = PackQuantized {
            format: IntFormat::Int4,
            granularity,
            shape: [rows, 0],
            weight_packed: &[],
            weight_scale: ScaleBytes::Bf16(&[]),
            scale_shape: [rows, 0],
            weight_zero_point: Some(&[]),
        };
        packed.read().map(|tensor| tensor.decode().dim())
    };
    let longest = isize::MAX as usize;
    assert_eq!(read(longest), Ok((longest, 0)));
    assert_eq!(read(longest + 1), Err(Error::TooLarge { shape: [longest + 1, 0] }));
}

proptest! {
    #[test]
    fn written_weights_are_read_back(
        rows in 1usize..20,
        words in 1usize..9,
        group in prop_oneof![Just(None), (1usize..80).prop_map(|half| Some(2 * half))],
        int4 in any::<bool>(),
        asymmetric in any::<bool>(),
        seed in any::<u32>(),
    ) {
        let format = if int4 { IntFormat::Int4 } else { IntFormat::Int8 };
        let cols = words * 32 / format.bits();
        let granularity = group.map_or(Granularity::Channel, Granularity::Block1d);
        let [_, groups] = granularity.scales_shape([rows, cols]).unwrap();
        let byte = |i: usize| (seed.wrapping_add(i as u32).wrapping_mul(0x9e37_79b9) >> 24) as u8;
        let codes: Vec<u8> = (0..rows * cols * format.bits() / 8).map(byte).collect();
        let scales: Vec<f32> = (0..rows * groups).map(|i| f32::from(byte(i)) + 0.5).collect();
        let zero_points = asymmetric.then(|| (0..rows * groups).map(|i| byte(i) as i8 >> (8 - format.bits())).collect());
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
        shape in [0usize..9, 0usize..70],
        group in 1usize..40,
        fits in any::<bool>(),
        int4 in any::<bool>(),
    ) {
        let part = |from: usize, to: usize| &bytes[from.min(bytes.len())..to.min(bytes.len()).max(from.min(bytes.len()))];
        let format = if int4 { IntFormat::Int4 } else { IntFormat::Int8 };
        let granularity = Granularity::Block1d(group);
        let scale_shape = if fits { granularity.scales_shape(shape).unwrap() } else { [cut.0, cut.1] };
        let packed = PackQuantized {
            format,
            granularity,
            shape,
            weight_packed: part(0, cut.0),
            weight_scale: ScaleBytes::Bf16(part(cut.0, cut.1)),
            scale_shape,
            weight_zero_point: (cut.1 % 2 == 0).then(|| part(cut.1, 300)),
        };
        if let Ok(tensor) = packed.read() {
            prop_assert_eq!(tensor.decode().dim(), shape.into());
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
        granularity: Granularity::Block1d(8),
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
