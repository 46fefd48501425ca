//! `target/libtorch`: a CPU libtorch assembled from three PyPI wheels.
//!
//! PyPI's torch wheel for Linux is a CUDA build. Of CUDA, its libtorch_cpu.so needs only libcudart.so.13 and libcupti.so.13. Two small wheels contain
//! these, and libtorch_cpu.so finds them in its own folder (its rpath ends in `$ORIGIN`). Its libtorch.so, however, is an empty library that refers
//! to libtorch_cuda.so; a linker script that refers to libtorch_cpu.so and libc10.so takes its place.
//!
//! The build script of `torch-sys` decides against which libtorch to compile. `LIBTORCH_USE_PYTORCH`, set to anything, takes precedence over
//! `LIBTORCH`, so the `LIBTORCH` of `.cargo/config.toml` does not prevent its use. As the latter is not forced, a `LIBTORCH` set by the user takes
//! precedence over it.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{self, Doing, Failure};
use crate::wheels::{self, Wheel};

const TORCH: Wheel = Wheel {
    project: "torch",
    version: "2.11.0",
    file: "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl",
    sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
};
const CUDA_RUNTIME: Wheel = Wheel {
    project: "nvidia-cuda-runtime",
    version: "13.0.96",
    file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
};
const CUPTI: Wheel = Wheel {
    project: "nvidia-cuda-cupti",
    version: "13.0.85",
    file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
    sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
};

/// What is extracted from each wheel, and where to.
const PARTS: &[&[&str]] = &[
    &[
        "torch/include/=include",
        "torch/lib/libtorch_cpu.so=lib/libtorch_cpu.so",
        "torch/lib/libc10.so=lib/libc10.so",
        "torch/lib/libgomp.so.1=lib/libgomp.so.1",
        "*/licenses/LICENSE=licenses/torch/LICENSE",
        "*/licenses/NOTICE=licenses/torch/NOTICE",
    ],
    &[
        "nvidia/cu13/lib/libcudart.so.13=lib/libcudart.so.13",
        "*/licenses/License.txt=licenses/nvidia-cuda-runtime/License.txt",
    ],
    &[
        "nvidia/cu13/lib/libcupti.so.13=lib/libcupti.so.13",
        "*/licenses/License.txt=licenses/nvidia-cuda-cupti/License.txt",
    ],
];

/// Changes whenever the assembled content changes, so that an older `target/libtorch` is rebuilt. It holds the wheels' checksums and the version of
/// the folder's own layout.
fn stamp() -> String {
    format!("layout 1\n{}\n{}\n{}\n", TORCH.sha256, CUDA_RUNTIME.sha256, CUPTI.sha256)
}

/// The libtorch that a compilation in this repository will use.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    /// `target/libtorch`.
    Ours,
    /// The PyTorch of the user's python3.
    Python,
    /// The user's folder with `include` and `lib`; `lib` may be elsewhere.
    Folder { lib: PathBuf },
}

/// Reads the variables that `torch-sys` reads, in its order.
fn choice(root: &Path, variable: impl Fn(&str) -> Option<OsString>) -> Result<Choice, String> {
    if let Some(value) = variable("LIBTORCH_USE_PYTORCH") {
        if value.is_empty() || value == "0" {
            return Err("LIBTORCH_USE_PYTORCH is set, and torch-sys takes any value of it for yes; unset it".into());
        }
        return Ok(Choice::Python);
    }
    let libtorch = variable("LIBTORCH").map(PathBuf::from);
    if libtorch.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
        return Err("LIBTORCH is set but empty; unset it, or name a folder with libtorch 2.11.0".into());
    }
    let ours = root.join("target/libtorch");
    // The same folder by another way, for instance through a link, is still ours.
    let is_ours = |path: &Path| {
        path == ours || fs::canonicalize(path).ok().is_some_and(|p| fs::canonicalize(&ours).is_ok_and(|o| o == p))
    };
    // Cargo gives us, as every program it runs, the LIBTORCH of .cargo/config.toml when the user has set none.
    let base = libtorch.filter(|path| !is_ours(path));
    match (variable("LIBTORCH_LIB").map(PathBuf::from), base) {
        (Some(lib), _) => Ok(Choice::Folder { lib: lib.join("lib") }),
        (None, Some(base)) => Ok(Choice::Folder { lib: base.join("lib") }),
        (None, None) => Ok(Choice::Ours),
    }
}

/// Returns whether nothing has to be downloaded or unpacked: the user provides a libtorch, or ours is assembled.
pub(crate) fn is_settled(root: &Path) -> Result<bool, Failure> {
    Ok(choice(root, |name| env::var_os(name))? != Choice::Ours || is_assembled(root))
}

/// Ensures that there is a libtorch, and returns the folder of its libraries.
pub(crate) fn provide(root: &Path) -> Result<PathBuf, Failure> {
    match choice(root, |name| env::var_os(name))? {
        Choice::Python => {
            eprintln!("LIBTORCH_USE_PYTORCH is set: the PyTorch of python3 is used, nothing is downloaded");
            // The last line, because importing torch may print warnings.
            let script = "import os, torch; print(os.path.join(os.path.dirname(torch.__file__), 'lib'))";
            shell::output_of(Command::new("python3").args(["-c", script]))
                .and_then(|text| text.lines().last().map(PathBuf::from))
                .ok_or_else(|| Failure::from("LIBTORCH_USE_PYTORCH is set, but python3 cannot import torch".to_owned()))
        }
        Choice::Folder { lib } => {
            eprintln!("your libtorch is used, nothing is downloaded: {}", lib.display());
            if !lib.is_dir() {
                return Err(format!("{}: there is no such folder; see LIBTORCH and LIBTORCH_LIB", lib.display()).into());
            }
            Ok(lib)
        }
        Choice::Ours => {
            assemble(root)?;
            Ok(root.join("target/libtorch/lib"))
        }
    }
}

fn is_assembled(root: &Path) -> bool {
    fs::read_to_string(root.join("target/libtorch/stamp")).is_ok_and(|text| text == stamp())
}

fn assemble(root: &Path) -> Result<(), Failure> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")) {
        return Err(
            "the wheels are for Linux on x86-64 with glibc; bring libtorch 2.11.0 for this machine: set LIBTORCH \
                    to its folder, or LIBTORCH_USE_PYTORCH=1 with torch 2.11.0 in python3"
                .to_owned()
                .into(),
        );
    }
    let target = root.join("target");
    fs::create_dir_all(&target).doing(target.display())?;
    // Held to the end of this function: of two runs at a time, the second finds it assembled.
    let lock = File::create(target.join("libtorch.lock")).doing("target/libtorch.lock")?;
    lock.lock().doing("target/libtorch.lock")?;
    let place = target.join("libtorch");
    if is_assembled(root) {
        eprintln!("{} is ready", place.display());
        return Ok(());
    }
    let paths = wheels::fetch(&[TORCH, CUDA_RUNTIME, CUPTI], &target.join("downloads"))?;
    let partial = target.join("libtorch.partial");
    wheels::clear(&partial)?;
    for (path, parts) in paths.iter().zip(PARTS) {
        eprintln!("unpacking {}", path.file_name().unwrap_or_default().display());
        wheels::unpack(path, &partial, parts)?;
    }
    let write = |name: &str, text: &str| fs::write(partial.join(name), text).doing(name);
    write("lib/libtorch.so", "/* libtorch without CUDA is these two. */\nINPUT(-ltorch_cpu -lc10)\n")?;
    // The build script of torch-sys compares this with the version it is made for.
    write("build-version", concat!("2.11.0", "+cpu\n"))?;
    write("stamp", &stamp())?;
    // torch-sys links with -lgomp, for which the linker wants a name without version.
    symlink("libgomp.so.1", partial.join("lib/libgomp.so")).doing("libgomp.so")?;
    wheels::clear(&place)?;
    fs::rename(&partial, &place).doing(place.display())?;
    eprintln!("{} is ready", place.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(variables: &[(&str, &str)]) -> Result<Choice, String> {
        choice(Path::new("/repo"), |name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn libtorch_of_the_cargo_configuration_is_ours() {
        assert_eq!(chosen(&[]), Ok(Choice::Ours));
        assert_eq!(chosen(&[("LIBTORCH", "/repo/target/libtorch")]), Ok(Choice::Ours));
    }

    #[test]
    fn libtorch_of_the_user_has_precedence() {
        assert_eq!(chosen(&[("LIBTORCH", "/opt/lt")]), Ok(Choice::Folder { lib: "/opt/lt/lib".into() }));
        let apart = [("LIBTORCH", "/opt/lt"), ("LIBTORCH_LIB", "/usr")];
        assert_eq!(chosen(&apart), Ok(Choice::Folder { lib: "/usr/lib".into() }));
    }

    #[test]
    fn pytorch_goes_before_libtorch() {
        let both = [("LIBTORCH", "/repo/target/libtorch"), ("LIBTORCH_USE_PYTORCH", "1")];
        assert_eq!(chosen(&both), Ok(Choice::Python));
    }

    #[test]
    fn settings_that_would_mislead_torch_sys_are_refused() {
        for value in ["", "0"] {
            assert!(chosen(&[("LIBTORCH_USE_PYTORCH", value)]).unwrap_err().contains("LIBTORCH_USE_PYTORCH"));
        }
        assert!(chosen(&[("LIBTORCH", "")]).unwrap_err().contains("LIBTORCH"));
    }

    #[test]
    fn folder_without_the_right_stamp_is_not_taken_for_assembled() {
        let root = tempfile::tempdir().unwrap();
        assert!(!is_assembled(root.path()));
        let folder = root.path().join("target/libtorch");
        fs::create_dir_all(&folder).unwrap();
        assert!(!is_assembled(root.path()));
        fs::write(folder.join("stamp"), "layout 0\n").unwrap();
        assert!(!is_assembled(root.path()));
        fs::write(folder.join("stamp"), stamp()).unwrap();
        assert!(is_assembled(root.path()));
    }
}
