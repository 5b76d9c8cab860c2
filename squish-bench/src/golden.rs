//! Golden files: tensors written by `tools/golden/*.py` from a reference implementation, read by the tests.
//!
//! They are parsed by the `safetensors` crate, so that a fault of our own reader cannot hide in them.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

/// The tensors of one golden file.
#[derive(Debug)]
pub struct Golden {
    bytes: Vec<u8>,
    name: String,
}

impl Golden {
    /// Reads `tests/golden/{name}.safetensors` of the crate whose `CARGO_MANIFEST_DIR` is `crate_dir`.
    ///
    /// # Panics
    ///
    /// If the file is missing or no safetensors file.
    #[must_use]
    pub fn load(crate_dir: &str, name: &str) -> Self {
        let path = Path::new(crate_dir).join("tests/golden").join(format!("{name}.safetensors"));
        let bytes =
            std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        SafeTensors::deserialize(&bytes)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { bytes, name: name.to_owned() }
    }

    /// Whether there is a tensor called `tensor`.
    #[must_use]
    pub fn has(&self, tensor: &str) -> bool {
        self.tensors().tensor(tensor).is_ok()
    }

    /// Shape of the tensor called `tensor`.
    #[must_use]
    pub fn shape(&self, tensor: &str) -> Vec<usize> {
        self.view(tensor).1
    }

    /// An F32 tensor in row-major order.
    #[must_use]
    pub fn f32(&self, tensor: &str) -> Vec<f32> {
        self.numbers(tensor, Dtype::F32, f32::from_le_bytes)
    }

    /// An F64 tensor in row-major order.
    #[must_use]
    pub fn f64(&self, tensor: &str) -> Vec<f64> {
        self.numbers(tensor, Dtype::F64, f64::from_le_bytes)
    }

    /// An I64 tensor in row-major order.
    #[must_use]
    pub fn i64(&self, tensor: &str) -> Vec<i64> {
        self.numbers(tensor, Dtype::I64, i64::from_le_bytes)
    }

    /// An I32 tensor in row-major order.
    #[must_use]
    pub fn i32(&self, tensor: &str) -> Vec<i32> {
        self.numbers(tensor, Dtype::I32, i32::from_le_bytes)
    }

    /// An I8 tensor in row-major order.
    #[must_use]
    pub fn i8(&self, tensor: &str) -> Vec<i8> {
        self.numbers(tensor, Dtype::I8, i8::from_le_bytes)
    }

    /// A U8 tensor in row-major order.
    #[must_use]
    pub fn u8(&self, tensor: &str) -> Vec<u8> {
        self.numbers(tensor, Dtype::U8, u8::from_le_bytes)
    }

    /// The bits of a U16, BF16 or F16 tensor in row-major order.
    ///
    /// # Panics
    ///
    /// If the tensor has another type, as all these.
    #[must_use]
    pub fn u16(&self, tensor: &str) -> Vec<u16> {
        let dtype = self.view(tensor).0;
        assert!(
            matches!(dtype, Dtype::U16 | Dtype::BF16 | Dtype::F16),
            "{}: `{tensor}` is {dtype:?}",
            self.name
        );
        self.numbers(tensor, dtype, u16::from_le_bytes)
    }

    fn numbers<T, const N: usize>(
        &self,
        tensor: &str,
        dtype: Dtype,
        read: fn([u8; N]) -> T,
    ) -> Vec<T> {
        let (actual, _, bytes) = self.view(tensor);
        assert_eq!(actual, dtype, "{}: dtype of `{tensor}`", self.name);
        bytes.as_chunks().0.iter().map(|&chunk| read(chunk)).collect()
    }

    fn view(&self, tensor: &str) -> (Dtype, Vec<usize>, &[u8]) {
        let view = self
            .tensors()
            .tensor(tensor)
            .unwrap_or_else(|error| panic!("{}: `{tensor}`: {error}", self.name));
        (view.dtype(), view.shape().to_vec(), view.data())
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).expect("checked by load")
    }
}
