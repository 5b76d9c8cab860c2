//! No bytes make the reader of packed matrices panic, or a product with what it accepts.
//!
//! An input is read as it is, and with its marks and checksums put right; then the sizes of the header and the length of the
//! panels become what the reader says that they should be, for as long as that is small: the fuzzer finds no checksum, and
//! hardly a length.

#![no_main]

use std::{
    cell::RefCell,
    sync::{Arc, LazyLock},
};

use libfuzzer_sys::fuzz_target;
use squish_kernels::Team;
use squish_quant::{
    Error, PackedView, Workspace,
    ndarray::Array2,
    packed::{Line, Verify, checksum},
};

/// Bytes of the header.
const HEADER: usize = 128;

/// Bytes of panels, outputs and inputs that are small.
const MOST: u64 = 1 << 16;

static TEAM: LazyLock<Arc<Team>> =
    LazyLock::new(|| Arc::new(Team::new(1).expect("the calling thread")));

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::new(Workspace::new(Arc::clone(&TEAM)));
}

fuzz_target!(|input: &[u8]| {
    let _ = read(input);
    if input.len() < HEADER {
        return;
    }
    let mut bytes = input.to_vec();
    // Half of the headers have sizes of two bytes, and zeros where there is no field.
    if bytes[15] & 1 == 0 {
        for unused in [15..16, 18..24, 26..32, 34..40, 56..HEADER - 8] {
            bytes[unused].fill(0);
        }
    }
    // One for each field that can be put right, and one for the result.
    for _ in 0..4 {
        seal(&mut bytes);
        match read(&bytes) {
            Err(Error::Packed { what: "group", expected, .. }) => {
                bytes[32..40].copy_from_slice(&expected.to_le_bytes());
            }
            Err(Error::Packed { what: "number of bytes", expected, .. }) => {
                bytes[40..48].copy_from_slice(&expected.to_le_bytes());
            }
            Err(Error::Length { what: "panels", expected, .. }) if expected as u64 <= MOST => {
                let panels = input[HEADER..].iter().chain(&[0x5a]).copied().cycle().take(expected);
                bytes.truncate(HEADER);
                bytes.extend(panels);
            }
            _ => break,
        }
    }
});

/// The magic number, the version and both checksums.
fn seal(bytes: &mut [u8]) {
    bytes[..12].copy_from_slice(b"SQUISHPM\x01\0\0\0");
    let of_panels = checksum(&bytes[HEADER..]);
    bytes[48..56].copy_from_slice(&of_panels.to_le_bytes());
    let of_header = checksum(&bytes[..HEADER - 8]);
    bytes[HEADER - 8..HEADER].copy_from_slice(&of_header.to_le_bytes());
}

/// What the reader says, after a product with what it accepts.
fn read(bytes: &[u8]) -> Result<(), Error> {
    let lines = on_a_line(bytes);
    let bytes = &bytemuck::cast_slice(&lines)[..bytes.len()];
    let of_header = PackedView::from_bytes(bytes, Verify::Header);
    let packed = PackedView::from_bytes(bytes, Verify::All);
    match (&of_header, &packed) {
        (Ok(of_header), Ok(packed)) => assert_eq!(of_header, packed),
        (Ok(_), Err(Error::Packed { what: "checksum of the panels", .. })) => {}
        (of_header, packed) => assert_eq!(of_header, packed),
    }
    if let Ok(packed) = of_header {
        multiply(&packed);
    }
    let packed = packed?;
    let mut saved = Vec::new();
    packed.write(&mut saved).expect("memory");
    let saved_lines = on_a_line(&saved);
    let saved = &bytemuck::cast_slice(&saved_lines)[..saved.len()];
    assert_eq!(PackedView::from_bytes(saved, Verify::All), Ok(packed));
    Ok(())
}

/// A copy that starts on a line.
fn on_a_line(bytes: &[u8]) -> Vec<Line> {
    let mut lines = vec![Line([0; 64]); bytes.len().div_ceil(64)];
    bytemuck::cast_slice_mut(&mut lines)[..bytes.len()].copy_from_slice(bytes);
    lines
}

/// The product with one row, which has the same bits beside others.
fn multiply(packed: &PackedView<'_>) {
    let [n_outputs, n_inputs] = packed.shape();
    if n_outputs as u64 > MOST || n_inputs as u64 > MOST {
        return;
    }
    let x = Array2::from_shape_fn([2, n_inputs], |(row, k)| ((row + k) % 17) as f32 - 8.0);
    let mut out = Array2::zeros([2, n_outputs]);
    let mut alone = vec![0.0; n_outputs];
    WORKSPACE.with_borrow_mut(|workspace| {
        packed.gemm_into(workspace, x.view(), out.view_mut()).expect("the shapes agree");
        let row = x.row(1).to_vec();
        packed.gemv_into(workspace, &row, &mut alone).expect("the lengths agree");
    });
    // The bits of a NaN differ between instructions.
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    let (mut rows, mut sparse) = ([0.0; 2], vec![0.0; n_outputs]);
    WORKSPACE.with_borrow_mut(|workspace| {
        let row = x.row(1).to_vec();
        let last = n_outputs.saturating_sub(1);
        let picked = packed.gemv_rows_into(workspace, &[last, 0], &row, &mut rows);
        assert_eq!(picked.is_ok(), n_outputs > 0);
        let indices: Vec<u32> = (0..n_inputs as u32).step_by(3).collect();
        let values = vec![1.0; indices.len()];
        packed.gemv_sparse_into(workspace, &indices, &values, &mut sparse).expect("ascending");
        if n_outputs > 0 {
            assert!(same(rows[0], alone[last]) && same(rows[1], alone[0]), "rows alone");
        }
    });
    assert!(out.row(1).iter().zip(&alone).all(|(&a, &b)| same(a, b)), "a row beside others");
}
