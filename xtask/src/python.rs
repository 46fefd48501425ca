//! A Python that can import NumPy, for the checks that pass batches to it.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::shell::{self, Doing, Failure};
use crate::{packages, wheels};

/// Any version that supports DLPack; from 2.1 on, its versioned form too.
const NUMPY: &str = "numpy>=1.24,<3";

/// Returns the user's `python3` if it can import NumPy. Otherwise returns the same with a NumPy in `target/python`, which pip installs there once.
///
/// It uses a folder on `PYTHONPATH` instead of a virtual environment, because Debian has the module `venv` in a package of its own, and pip is needed
/// for the wheels of libtorch anyway. PyTorch is never installed: it takes half a gigabyte for what NumPy shows as well. If it can be imported, it is
/// checked too.
pub(crate) fn with_numpy(root: &Path) -> Result<Command, Failure> {
    packages::provide(&packages::FOR_PYTHON)?;
    if imports_numpy(Command::new("python3")) {
        return Ok(Command::new("python3"));
    }
    // Compiled modules are of one version of Python.
    let tag = "import sys; print(sys.implementation.cache_tag)";
    let tag = shell::output_of(Command::new("python3").args(["-c", tag])).unwrap_or_default();
    let folder = root.join("target/python").join(tag.trim());
    if !imports_numpy(with_path(&folder)) {
        packages::provide(&packages::FOR_WHEELS)?;
        install(&folder)?;
    }
    if imports_numpy(with_path(&folder)) {
        return Ok(with_path(&folder));
    }
    Err(format!(
        "python3 cannot import the NumPy in {}; remove that folder, or install NumPy yourself",
        folder.display()
    )
    .into())
}

fn with_path(folder: &Path) -> Command {
    let rest = env::var_os("PYTHONPATH").unwrap_or_default();
    let rest = env::split_paths(&rest).filter(|path| !path.as_os_str().is_empty());
    let mut python = Command::new("python3");
    // Only a folder with a colon in its name cannot be said in such a list; then it stands alone.
    let path = env::join_paths([folder.to_path_buf()].into_iter().chain(rest));
    python.env("PYTHONPATH", path.unwrap_or_else(|_| folder.into()));
    python
}

fn imports_numpy(mut python: Command) -> bool {
    shell::output_of(python.args(["-c", "import numpy; numpy.from_dlpack"])).is_some()
}

/// Installs next to the folder first, so that what an interrupted run leaves is never taken for NumPy.
fn install(folder: &Path) -> Result<(), Failure> {
    let partial = folder.with_extension("partial");
    wheels::clear(&partial)?;
    wheels::clear(folder)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--only-binary=:all:", "--disable-pip-version-check", "--target"])
        .arg(&partial)
        .arg(NUMPY)
        // Nothing is installed into a Python, so a rule that pip may only run in a virtual environment has no object.
        .env("PIP_REQUIRE_VIRTUALENV", "0");
    shell::run(&mut pip).map_err(|failure| Failure {
        message: format!("{failure}; a package index is needed, or a python3 on the PATH that can import numpy"),
        ..failure
    })?;
    fs::rename(&partial, folder).doing(folder.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_in_front_of_what_python_looks_through() {
        let command = with_path(Path::new("/repo/target/python/cpython-311"));
        let path = command.get_envs().find(|(name, _)| *name == "PYTHONPATH").and_then(|(_, value)| value);
        assert_eq!(env::split_paths(path.unwrap()).next().unwrap(), Path::new("/repo/target/python/cpython-311"));
    }

    #[test]
    fn a_module_that_is_not_there_is_not_imported() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("numpy.py"), "").unwrap();
        assert!(!imports_numpy(with_path(folder.path())), "it has no from_dlpack");
        fs::write(folder.path().join("numpy.py"), "from_dlpack = None").unwrap();
        assert!(imports_numpy(with_path(folder.path())));
    }
}
