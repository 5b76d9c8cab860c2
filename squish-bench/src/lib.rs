//! What tests and benches of the workspace share: golden files, seeded data, the machine probe and the rows of the tables.

pub mod golden;
