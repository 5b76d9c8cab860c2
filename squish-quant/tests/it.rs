//! Public behavior of the crate, module per module.
