//! The programs that must be installed on the system: found by running them, installed with apt-get if that is allowed.

use std::env;
use std::process::{Command, Stdio};

use crate::shell::{self, Failure};

/// Something that must run on this machine.
pub(crate) struct Requirement {
    /// What it is, for people.
    what: &'static str,
    /// Any one of these must succeed.
    probes: &'static [&'static [&'static str]],
    /// The package that provides it, on Debian and Ubuntu.
    package: &'static str,
}

static PYTHON: Requirement = Requirement { what: "Python 3", probes: &[&["python3", "--version"]], package: "python3" };
static PIP: Requirement =
    Requirement { what: "pip", probes: &[&["python3", "-m", "pip", "--version"]], package: "python3-pip" };
static COMPILER: Requirement = Requirement { what: "a C++ compiler", probes: &[&["c++", "--version"]], package: "g++" };
static MAKE: Requirement =
    Requirement { what: "make", probes: &[&["make", "--version"], &["gmake", "--version"]], package: "make" };
static CMAKE: Requirement = Requirement { what: "cmake", probes: &[&["cmake", "--version"]], package: "cmake" };
static NASM: Requirement = Requirement { what: "nasm", probes: &[&["nasm", "--version"]], package: "nasm" };

/// Needed to download and unpack wheels.
pub(crate) static FOR_WHEELS: [&Requirement; 2] = [&PYTHON, &PIP];

/// Needed to run scripts.
pub(crate) static FOR_PYTHON: [&Requirement; 1] = [&PYTHON];

/// Needed to compile with the default features: the C++ side of `tch`, and libjpeg-turbo.
pub(crate) static FOR_COMPILING: [&Requirement; 4] = [&COMPILER, &MAKE, &CMAKE, &NASM];

/// Installs what is missing, or says what to install: everything at once, so that nobody has to come back for the next one.
pub(crate) fn provide(requirements: &[&Requirement]) -> Result<(), Failure> {
    let missing = missing(requirements, runs);
    if missing.is_empty() {
        eprintln!("found {}", list(requirements));
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|requirement| requirement.package).collect();
    let Some(become_root) = way_to_root() else { return Err(ask_for(&missing).into()) };
    if !runs(&["apt-get", "--version"]) {
        return Err(ask_for(&missing).into());
    }
    eprintln!("installing {} with apt-get", packages.join(" "));
    // A failed update is no reason to stop: the lists that are there may do, for instance from a local mirror.
    if let Err(failure) = shell::run(apt_get(become_root).args(["-q", "update"])) {
        eprintln!("going on with the package lists that are there: {failure}");
    }
    shell::run(apt_get(become_root).args(["-q", "install", "-y", "--no-install-recommends"]).args(&packages))?;
    match self::missing(requirements, runs).as_slice() {
        [] => Ok(()),
        still => Err(format!("installed, but not found: {}", list(still)).into()),
    }
}

fn missing<'a>(requirements: &[&'a Requirement], runs: impl Fn(&[&str]) -> bool) -> Vec<&'a Requirement> {
    requirements.iter().copied().filter(|requirement| !requirement.probes.iter().any(|probe| runs(probe))).collect()
}

fn ask_for(missing: &[&Requirement]) -> String {
    let packages: Vec<&str> = missing.iter().map(|requirement| requirement.package).collect();
    format!(
        "missing on this machine: {}; install it and start again. On Debian and Ubuntu:\n    sudo apt-get install {}",
        list(missing),
        packages.join(" ")
    )
}

fn list(requirements: &[&Requirement]) -> String {
    requirements.iter().map(|requirement| requirement.what).collect::<Vec<_>>().join(", ")
}

fn runs(line: &[&str]) -> bool {
    let mut command = Command::new(line[0]);
    command.args(&line[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Returns the words before a command that make it run as root: none for root itself, `sudo -n` if that needs no password.
fn way_to_root() -> Option<&'static [&'static str]> {
    let user = shell::output_of(Command::new("id").arg("-u"))?;
    if user.trim() == "0" {
        Some(&[])
    } else if runs(&["sudo", "-n", "true"]) {
        Some(&["sudo", "-n"])
    } else {
        None
    }
}

fn apt_get(become_root: &[&str]) -> Command {
    // `env` behind sudo: many sudo policies drop the environment and refuse to keep it, which would lose the proxies.
    let mut words = become_root.iter().copied().chain(["env", "DEBIAN_FRONTEND=noninteractive"]);
    let mut command = Command::new(words.next().expect("env is there"));
    command.args(words);
    for name in ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy"] {
        if let Ok(value) = env::var(name) {
            command.arg(format!("{name}={value}"));
        }
    }
    command.arg("apt-get");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_is_not_missing() {
        let found = |line: &[&str]| ["c++", "gmake", "cmake"].contains(&line[0]);
        let missing: Vec<&str> = missing(&FOR_COMPILING, found).iter().map(|requirement| requirement.what).collect();
        assert_eq!(missing, ["nasm"]);
    }

    #[test]
    fn python_without_pip_lacks_pip_only() {
        let found = |line: &[&str]| line == ["python3", "--version"];
        let missing: Vec<&str> = missing(&FOR_WHEELS, found).iter().map(|requirement| requirement.package).collect();
        assert_eq!(missing, ["python3-pip"]);
    }

    #[test]
    fn request_names_the_packages_and_the_command() {
        let text = ask_for(&[&COMPILER, &NASM]);
        assert!(text.contains("a C++ compiler, nasm") && text.ends_with("sudo apt-get install g++ nasm"), "{text}");
    }

    #[test]
    fn probe_of_a_program_that_fails_or_is_not_there_is_negative() {
        assert!(runs(&["true"]));
        assert!(!runs(&["false"]));
        assert!(!runs(&["no-such-program-anywhere", "--version"]));
    }
}
