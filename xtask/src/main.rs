//! Set-up and checks of the repository: `cargo xtask demo`, `cargo xtask test`.
fn main() {}
