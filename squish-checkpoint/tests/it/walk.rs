//! What must hold of the parser on any bytes; the fuzz target `safetensors` runs this same function.

use std::{fmt, marker::PhantomData};

use safetensors::SafeTensorError;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
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
            // Fields unknown to both are parsed there and skipped here, so that there alone a number in them can be too
            // large, or a list too deep.
            let is_json = matches!(error, SafeTensorError::InvalidHeaderDeserialization(_));
            assert!(
                is_json && has_unknown_field(header(file)),
                "accepted what the official reader refuses: {error}"
            );
        }
        (Err(error), Ok(_)) => {
            let is_stricter = match error {
                Error::DuplicateKey { .. } | Error::Limit { .. } => true,
                Error::Json { .. } => has_entry_of_another_form(header(file)),
                _ => false,
            };
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

/// The JSON of a file that at least one reader accepted, or found to be wrong no earlier than in its JSON.
fn header(file: &[u8]) -> &[u8] {
    let n = u64::from_le_bytes(*file.first_chunk().expect("8 bytes of length"));
    &file[8..][..n as usize]
}

/// Whether a tensor of `header` has a field that the format does not have.
fn has_unknown_field(header: &[u8]) -> bool {
    // Values of fields are skipped, as our reader does: what is wrong in them must not hide their name.
    type Entries = Pairs<Option<Pairs<IgnoredAny>>>;
    let entries: Entries = serde_json::from_slice(header).expect("the header was accepted");
    let mut tensors = entries.0.into_iter().filter(|(name, _)| name != "__metadata__");
    tensors.any(|(_, entry)| {
        let fields = entry.map_or_else(Vec::new, |entry| entry.0);
        fields.iter().any(|(field, _)| !["dtype", "shape", "data_offsets"].contains(&&**field))
    })
}

/// Whether the official reader takes `header` in a form that is refused here on purpose: an entry that is the list of its
/// values, or a dtype that is an object of the name with `null`.
fn has_entry_of_another_form(header: &[u8]) -> bool {
    let entries: Pairs<Value> = serde_json::from_slice(header).expect("the header was accepted");
    entries.0.iter().any(|(_, entry)| entry.is_array() || entry["dtype"].is_object())
}

/// An object of JSON with all of its pairs, where a map would keep the last one of a name.
struct Pairs<V>(Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_map(PairsVisitor(PhantomData))
    }
}

struct PairsVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for PairsVisitor<V> {
    type Value = Pairs<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<V>, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Pairs(pairs))
    }
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
    assert_eq!(8 + header(file).len() + covered, file.len());
}
