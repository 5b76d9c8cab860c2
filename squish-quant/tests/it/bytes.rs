//! Any bytes as tensors of every layout: an error or a matrix, never a panic. The fuzz target runs the same function.

use squish_quant::{
    Fp8Format, Fp8View, Granularity, IntFormat, MxFormat, MxView, ScaleBytes,
    compressed_tensors::PackQuantized, ggml,
};

/// Reads `input` as a choice of layout and shape, then as the buffers of a tensor, and decodes what is accepted.
pub(crate) fn walk(input: &[u8]) {
    let [choice, rows, cols, block, split, bytes @ ..] = input else { return };
    let shape = [usize::from(*rows), usize::from(*cols)];
    let (codes, rest) = bytes.split_at(bytes.len() * usize::from(*split) / 256);
    let granularity = match block % 4 {
        0 => Granularity::Tensor,
        1 => Granularity::Channel,
        2 => Granularity::Block1d(usize::from(*block)),
        _ => Granularity::Block2d { rows: usize::from(block / 16), cols: usize::from(block % 16) },
    };
    match choice % 4 {
        0 => {
            let scales: Vec<f32> =
                rest.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect();
            let format = if choice & 8 == 0 { Fp8Format::E4M3 } else { Fp8Format::E5M2 };
            if let Ok(view) = Fp8View::new(format, granularity, shape, codes, &scales) {
                assert_eq!(view.decode().dim(), shape.into());
            }
        }
        1 => {
            if let Ok(view) = MxView::new(MxFormat::MxFp4, shape, codes, rest) {
                assert_eq!(view.decode().dim(), shape.into());
            }
        }
        2 => {
            if let Ok(tensor) = ggml::mxfp4_from_blocks(bytes, shape) {
                assert_eq!(ggml::mxfp4_to_blocks(&tensor), bytes);
            }
        }
        _ => {
            let scale_shape = [usize::from(block & 15), usize::from(block >> 4)];
            let format = if choice & 8 == 0 { IntFormat::Int8 } else { IntFormat::Int4 };
            let (scales, zero_points) = rest.split_at(rest.len() * usize::from(choice >> 4) / 16);
            let packed = PackQuantized {
                format,
                shape,
                weight_packed: codes,
                weight_scale: if choice & 4 == 0 {
                    ScaleBytes::Bf16(scales)
                } else {
                    ScaleBytes::F32(scales)
                },
                scale_shape,
                weight_zero_point: (!zero_points.is_empty()).then_some(zero_points),
            };
            if let Ok(matrix) = packed.read() {
                assert_eq!(matrix.decode().dim(), shape.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::walk;

    #[test]
    fn no_bytes_make_a_layout_panic_and_fitting_ones_decode() {
        let mut state = 1u64;
        let mut random = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        for len in (0..400).flat_map(|len| [len; 40]) {
            let mut input: Vec<u8> = (0..len).map(|_| random()).collect();
            // Small shapes, so that some inputs have the lengths that their shape implies.
            for byte in input.iter_mut().skip(1).take(2) {
                *byte %= 9;
            }
            walk(&input);
        }
        // One accepted input of each layout.
        walk(&[&[0, 2, 3, 0, 154][..], &[0x38; 6], &[0, 0, 128, 63]].concat());
        walk(&[&[1, 1, 32, 0, 242][..], &[0x25; 16], &[127]].concat());
        walk(&[&[2, 1, 32, 0, 0][..], &[127; 17]].concat());
        walk(&[&[0xff, 1, 8, 0x11, 128][..], &[0x9a; 4], &[0, 0, 128, 63]].concat());
    }
}
