//! Any bytes as tensors of every layout: an error or a matrix, never a panic. The fuzz target runs the same function.

use squish_quant::{
    Fp8Format, Fp8Tensor, Fp8View, GlobalScale, Granularity, IntFormat, MxFormat, MxView,
    NvFp4View, ScaleBytes, SmxFormat, SmxView,
    compressed_tensors::{IntQuantized, PackQuantized},
    ggml,
};

/// Bits of the byte of choices.
const E5M2: u8 = 1;
const DIVIDE: u8 = 1;
const INT4: u8 = 1;
const ZERO_POINTS: u8 = 1 << 1;
const HUGE_ROWS: u8 = 1 << 2;
const HUGE_COLS: u8 = 1 << 3;
const ANY_SCALE_SHAPE: u8 = 1 << 4;
const SCALES_SHIFT: u8 = 6;

/// Reads `input` as a choice of layout and shape, then as the buffers of a tensor, and decodes what is accepted; whether
/// anything was.
pub(crate) fn walk(input: &[u8]) -> bool {
    let [layout, choices, rows, cols, block, cut, zero_cut, bytes @ ..] = input else {
        return false;
    };
    let chosen = |bit: u8| choices & bit != 0;
    let side = |byte: u8, huge| {
        if chosen(huge) { usize::MAX >> (byte % 64) } else { usize::from(byte) }
    };
    let shape = [side(*rows, HUGE_ROWS), side(*cols, HUGE_COLS)];
    let granularity = match block % 4 {
        0 => Granularity::Tensor,
        1 => Granularity::Channel,
        2 => Granularity::Block1d(usize::from(block / 4)),
        _ => {
            Granularity::Block2d { rows: usize::from(block / 4 % 8), cols: usize::from(block / 32) }
        }
    };
    let (codes, rest) = bytes.split_at(bytes.len() * usize::from(*cut) / 256);
    let (scales, zero_points) =
        rest.split_at(rest.len() - rest.len() * usize::from(*zero_cut) / 256);
    let weight_scale = match choices >> SCALES_SHIFT {
        0 => ScaleBytes::F32(scales),
        1 => ScaleBytes::Bf16(scales),
        2 => ScaleBytes::F16(scales),
        _ => ScaleBytes::E8M0(scales),
    };
    let scale_shape = match granularity.scales_shape(shape) {
        Ok(scale_shape) if !chosen(ANY_SCALE_SHAPE) => scale_shape,
        _ => [usize::from(block & 15), usize::from(block >> 4)],
    };
    let weight_zero_point = chosen(ZERO_POINTS).then_some(zero_points);
    let fp8 = if chosen(E5M2) { Fp8Format::E5M2 } else { Fp8Format::E4M3 };
    let decoded = match layout % 10 {
        0 => {
            let (scales, []) = rest.as_chunks() else { return false };
            let scales: Vec<f32> = scales.iter().map(|&x| f32::from_le_bytes(x)).collect();
            Fp8View::new(fp8, granularity, shape, codes, &scales).map(|view| view.decode())
        }
        1 => Fp8Tensor::from_bytes(fp8, granularity, shape, codes, weight_scale)
            .map(|tensor| tensor.decode()),
        2 => MxView::new(MxFormat::MxFp4, shape, codes, rest).map(|view| view.decode()),
        3 => ggml::mxfp4_from_blocks(bytes, shape).map(|tensor| {
            assert_eq!(ggml::mxfp4_to_blocks(&tensor).as_deref(), Ok(bytes));
            tensor.decode()
        }),
        4 => {
            let format = if chosen(INT4) { IntFormat::Int4 } else { IntFormat::Int8 };
            let packed = PackQuantized {
                format,
                granularity,
                shape,
                weight_packed: codes,
                weight_scale,
                scale_shape,
                weight_zero_point,
            };
            packed.read().map(|tensor| tensor.decode())
        }
        5 => {
            let weight = IntQuantized {
                granularity,
                shape,
                weight: codes,
                weight_scale,
                scale_shape,
                weight_zero_point,
            };
            weight.read().map(|tensor| tensor.decode())
        }
        6 => {
            let format = MxFormat::ALL[usize::from(*block) % MxFormat::ALL.len()];
            MxView::new(format, shape, codes, rest).map(|view| view.decode())
        }
        7 => {
            let Ok(global) = zero_points.try_into() else { return false };
            let global = global_scale(chosen(DIVIDE), global);
            NvFp4View::new(shape, codes, scales, global).map(|view| view.decode())
        }
        8 => {
            let global = GlobalScale::Multiply(1.0);
            ggml::nvfp4_from_blocks(bytes, shape, global).map(|tensor| {
                let blocks = ggml::nvfp4_to_blocks(&tensor);
                assert_eq!(blocks.as_deref(), Ok(bytes));
                tensor.decode()
            })
        }
        _ => {
            let format = SmxFormat::ALL[usize::from(*block) % SmxFormat::ALL.len()];
            SmxView::new(format, shape, bytes).map(|view| view.decode())
        }
    };
    match decoded {
        Ok(decoded) => {
            assert_eq!(decoded.dim(), shape.into());
            true
        }
        Err(_) => false,
    }
}

fn global_scale(divides: bool, bytes: [u8; 4]) -> GlobalScale {
    let value = f32::from_le_bytes(bytes);
    if divides { GlobalScale::Divide(value) } else { GlobalScale::Multiply(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F32: u8 = 0;
    const BF16: u8 = 1 << SCALES_SHIFT;
    const F16: u8 = 2 << SCALES_SHIFT;
    const E8M0: u8 = 3 << SCALES_SHIFT;

    const TENSOR: u8 = 0;
    const CHANNEL: u8 = 1;

    const BLOCKS_2X3: u8 = 3 + 4 * 2 + 32 * 3;

    const fn groups(block: u8) -> u8 {
        4 * block + 2
    }

    /// An input of a layout: codes, scales and zero points, cut where they meet.
    fn input(
        layout: u8,
        choices: u8,
        shape: [u8; 2],
        granularity: u8,
        parts: [&[u8]; 3],
    ) -> Vec<u8> {
        let [codes, scales, zero_points] = parts.map(<[u8]>::len);
        // The least byte whose share of `len` comes to `n`.
        let share = |n: usize, len: usize| (n * 256).div_ceil(len.max(1)).min(255) as u8;
        let rest = scales + zero_points;
        let (cut, zero_cut) = (share(codes, codes + rest), share(zero_points, rest));
        let header = [layout, choices, shape[0], shape[1], granularity, cut, zero_cut];
        [&header[..], &parts.concat()].concat()
    }

    const ONE: [u8; 4] = 1f32.to_le_bytes();

    /// Name, layout, choices, shape and granularity; codes, scales and zero points.
    type Case = (&'static str, u8, u8, [u8; 2], u8, [&'static [u8]; 3]);

    /// Every layout and every type of scales at least once, in buffers that fit.
    const CASES: [Case; 25] = [
        ("fp8", 0, 0, [2, 3], TENSOR, [&[0x38; 6], &ONE, &[]]),
        ("fp8, blocks", 0, E5M2, [3, 5], BLOCKS_2X3, [&[0x38; 15], &[0; 16], &[]]),
        ("fp8, f32 scales", 1, F32, [2, 3], TENSOR, [&[0x38; 6], &ONE, &[]]),
        ("fp8, bf16 scales", 1, BF16, [2, 3], CHANNEL, [&[0x38; 6], &[0x3f; 4], &[]]),
        ("fp8, f16 scales", 1, F16 | E5M2, [2, 3], CHANNEL, [&[0x38; 6], &[0x3f; 4], &[]]),
        ("fp8, e8m0 scales", 1, E8M0, [2, 3], groups(2), [&[0x38; 6], &[127; 4], &[]]),
        ("mx", 2, 0, [1, 32], 0, [&[0x25; 16], &[127], &[]]),
        ("ggml", 3, 0, [1, 32], 0, [&[127; 17], &[], &[]]),
        ("packed int4", 4, INT4 | BF16, [1, 8], CHANNEL, [&[0x9a; 4], &[0x3f; 2], &[]]),
        ("ragged groups", 4, INT4 | F16, [2, 8], groups(6), [&[0x9a; 8], &[0x3f; 8], &[]]),
        (
            "packed zero points",
            4,
            INT4 | BF16 | ZERO_POINTS,
            [2, 8],
            groups(4),
            [&[0x9a; 8], &[0x3f; 8], &[0x77; 8]],
        ),
        ("packed int8", 4, F32, [2, 4], TENSOR, [&[0x9a; 8], &ONE, &[]]),
        ("plain int8", 5, F16, [2, 3], CHANNEL, [&[0x9a; 6], &[0x3f; 4], &[]]),
        (
            "plain zero points",
            5,
            BF16 | ZERO_POINTS,
            [2, 3],
            CHANNEL,
            [&[0x9a; 6], &[0x3f; 4], &[5, 250]],
        ),
        ("mxfp4", 6, 0, [1, 64], 0, [&[0x25; 32], &[127; 2], &[]]),
        ("mxfp8 e4m3", 6, 0, [1, 64], 1, [&[0x25; 64], &[127; 2], &[]]),
        ("mxfp8 e5m2", 6, 0, [1, 64], 2, [&[0x25; 64], &[127; 2], &[]]),
        ("mxfp6 e3m2", 6, 0, [1, 64], 3, [&[0x25; 48], &[127; 2], &[]]),
        ("mxfp6 e2m3", 6, 0, [2, 32], 4, [&[0x25; 48], &[127; 2], &[]]),
        ("mxint8", 6, 0, [2, 32], 5, [&[0x25; 64], &[127; 2], &[]]),
        ("nvfp4", 7, 0, [2, 16], 0, [&[0x25; 16], &[0x38; 2], &ONE]),
        ("nvfp4, divided", 7, DIVIDE, [1, 32], 0, [&[0x25; 16], &[0x38; 2], &ONE]),
        ("ggml nvfp4", 8, 0, [1, 64], 0, [&[0x38; 36], &[], &[]]),
        ("smx6", 9, 0, [1, 16], 1, [&[0x11; 12], &[], &[]]),
        ("smx9", 9, 0, [2, 16], 2, [&[0x11; 36], &[], &[]]),
    ];

    #[test]
    fn fitting_bytes_of_every_layout_are_accepted_and_one_more_or_less_is_not() {
        for (name, layout, choices, shape, granularity, parts) in CASES {
            let fitting = input(layout, choices, shape, granularity, parts);
            assert!(walk(&fitting), "{name}");
            for i in (0..3).filter(|&i| !parts[i].is_empty()) {
                let longer = [parts[i], &[0x3f]].concat();
                for part in [&longer, &parts[i][1..]] {
                    let mut parts = parts;
                    parts[i] = part;
                    let input = input(layout, choices, shape, granularity, parts);
                    assert!(!walk(&input), "{name}, part {i} of {} bytes", part.len());
                }
            }
        }
    }

    #[test]
    fn no_bytes_make_a_layout_panic() {
        let mut state = 1u64;
        let mut random = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        for len in (0..400).flat_map(|len| [len; 40]) {
            let mut input: Vec<u8> = (0..len).map(|_| random()).collect();
            // Small shapes, so that some inputs have the lengths that their shape implies.
            for byte in input.iter_mut().skip(2).take(2) {
                *byte %= 9;
            }
            walk(&input);
        }
        for (name, layout, choices, shape, granularity, parts) in CASES {
            let mut input = input(layout, choices, shape, granularity, parts);
            let mut n_accepted = 0;
            for _ in 0..1000 {
                input[7..].fill_with(&mut random);
                n_accepted += usize::from(walk(&input));
            }
            // Half of all scales are negative.
            assert!(n_accepted > 20, "{name}: {n_accepted} of 1000");
        }
    }

    #[test]
    fn huge_shapes_without_elements_are_decoded_or_refused_at_once() {
        for layout in 0..10 {
            for granularity in [TENSOR, CHANNEL, groups(8), BLOCKS_2X3] {
                for zero_points in [0, ZERO_POINTS] {
                    let walk = |choices, shape| {
                        walk(&input(layout, choices | zero_points, shape, granularity, [&[]; 3]))
                    };
                    // Zero points of a tensor and integers in rectangles are refused, whatever the shape.
                    let fits = match layout {
                        4 => granularity != TENSOR || zero_points == 0,
                        // Without a scale of the tensor.
                        7 => false,
                        _ => true,
                    } && (!matches!(layout, 4 | 5) || granularity % 4 != 3);
                    for shift in [1, 2, 63] {
                        assert_eq!(walk(HUGE_ROWS, [shift, 0]), fits, "{layout} {granularity}");
                    }
                    assert!(!walk(HUGE_ROWS, [0, 0]) && !walk(HUGE_COLS, [0, 0]));
                    assert!(!walk(HUGE_ROWS | HUGE_COLS, [1, 1]));
                }
            }
        }
    }
}
