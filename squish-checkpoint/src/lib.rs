#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod dtype;
mod error;
mod limits;

mod json;
mod safetensors;
mod tensor;

mod checkpoint;
mod index;
mod mapping;
mod shared;
mod source;

mod layout;
mod writer;

pub use crate::checkpoint::{Checkpoint, Options};
pub use crate::dtype::Dtype;
pub use crate::error::Error;
pub use crate::layout::{Alignment, TensorSpec, WriterOptions};
pub use crate::limits::Limits;
pub use crate::mapping::MappedFile;
pub use crate::safetensors::SafeTensors;
pub use crate::shared::SharedBytes;
pub use crate::source::Source;
pub use crate::tensor::{TensorInfo, TensorView};
pub use crate::writer::CheckpointWriter;
pub use bytemuck;
