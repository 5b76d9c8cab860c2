//! What must hold of the parser on any bytes; the fuzz target `safetensors` runs this same function.

use safetensors::SafeTensorError;
use squish_checkpoint::{Error, SafeTensors};

/// Whether `file` is accepted, after a look at everything that comes out and a comparison with the official reader.
///
/// # Panics
///
/// If the parser panics or hands out anything that is not so, or accepts what the official reader refuses, or refuses
/// what that one accepts for another reason than those documented.
pub(crate) fn walk(file: &[u8]) -> bool {
    let ours = SafeTensors::parse(file);
    let theirs = safetensors::SafeTensors::deserialize(file);
    match (&ours, &theirs) {
        (Ok(ours), Ok(theirs)) => compare(file, ours, theirs),
        (Ok(_), Err(error)) => {
            // A file with fields unknown to both: they are parsed there and skipped here, so that there alone a number in
            // them can be too large.
            let is_json = matches!(error, SafeTensorError::InvalidHeaderDeserialization(_));
            assert!(is_json, "accepted what the official reader refuses: {error}");
        }
        (Err(error), Ok(_)) => {
            let is_stricter = matches!(
                error,
                Error::DuplicateKey { .. } | Error::Limit { .. } | Error::Json { .. }
            );
            assert!(is_stricter, "refused what the official reader accepts: {error}");
        }
        (Err(_), Err(_)) => {}
    }
    if let Err(error) = &ours {
        let n_bytes = error.to_string().len();
        assert!(n_bytes < 20_000, "a message of {n_bytes} bytes");
    }
    ours.is_ok()
}

fn compare(file: &[u8], ours: &SafeTensors<'_>, theirs: &safetensors::SafeTensors<'_>) {
    assert_eq!(ours.len(), theirs.len());
    let mut covered = 0;
    for view in ours.iter() {
        let their_view = theirs.tensor(view.name()).expect("both have the name");
        assert_eq!(view.dtype().name(), their_view.dtype().to_string());
        assert_eq!(view.shape(), their_view.shape());
        assert_eq!(view.bytes(), their_view.data());
        assert_eq!(view.info().n_elements() * view.dtype().bits(), 8 * view.bytes().len());
        covered += view.bytes().len();

        let bytes: Vec<u8> = view.to_vec().expect("bytes are always there");
        assert_eq!(bytes, view.bytes());
        if let Ok(slice) = view.as_slice::<u32>() {
            assert_eq!(slice, view.to_vec::<u32>().expect("the width is right"));
        }
        assert_eq!(view.to_cow::<u16>().is_ok(), view.dtype().bits() == 16);
        assert_eq!(ours.tensor(view.name()).expect("it has that name").info(), view.info());
    }
    let header =
        u64::from_le_bytes(*file.first_chunk().expect("accepted files have 8 bytes")) as usize;
    assert_eq!(8 + header + covered, file.len());
}
