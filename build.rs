//! Lets this package's own tests, examples and binaries find libtorch at run time.
//!
//! The rpath is that of the libtorch which `torch-sys` was compiled against; its build script hands the folder on.
//! Cargo does not carry link arguments over to packages that depend on this one: they need an rpath or an
//! `LD_LIBRARY_PATH` of their own, see the README.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    let unix = std::env::var_os("CARGO_CFG_UNIX").is_some();
    if let (true, Some(folder)) = (unix, std::env::var_os("DEP_TCH_LIBTORCH_LIB")) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.to_string_lossy());
    }
}
