//! What the numbers were measured on, and with: as far as Linux tells.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

use forebay::Device;
use serde::Serialize;

use super::clock;

/// What is not told is left out.
#[derive(Serialize)]
pub(crate) struct Machine {
    device: String,
    /// The driver's kernel module.
    driver: Option<String>,
    /// The GPU's link: transfers a second and lanes, now (it may rest when it is idle) and at most.
    pcie: Option<String>,
    pcie_at_most: Option<String>,
    gpu_numa_node: Option<String>,
    numa_nodes: usize,
    cpu: Option<String>,
    cores: usize,
    libtorch: Option<String>,
    forebay: &'static str,
    /// `FOREBAY_COMMIT` as it was when this was compiled.
    commit: Option<&'static str>,
    command: Vec<String>,
}

impl Machine {
    pub(crate) fn look(device: Device) -> Self {
        let line = |path: PathBuf| Some(read_to_string(path).ok()?.lines().next()?.trim().to_owned());
        let gpu = clock::pci_address(device).map(|address| Path::new("/sys/bus/pci/devices").join(address));
        let of_gpu = |name: &str| line(gpu.as_ref()?.join(name));
        let link = |which: &str| {
            let (speed, width) = (of_gpu(&format!("{which}_link_speed"))?, of_gpu(&format!("{which}_link_width"))?);
            Some(format!("{speed} x{width}"))
        };
        let nodes = std::fs::read_dir("/sys/devices/system/node").into_iter().flatten().flatten();
        let is_node = |name: &str| name.strip_prefix("node").is_some_and(|number| number.parse::<u32>().is_ok());
        let cpus = read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            device: clock::describe(device).unwrap_or_else(|_| device.to_string()),
            driver: line("/proc/driver/nvidia/version".into()),
            pcie: link("current"),
            pcie_at_most: link("max"),
            gpu_numa_node: of_gpu("numa_node"),
            numa_nodes: nodes.filter(|entry| entry.file_name().to_str().is_some_and(is_node)).count(),
            cpu: model.map(|(_, name)| name.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            libtorch: libtorch(),
            forebay: env!("CARGO_PKG_VERSION"),
            commit: option_env!("FOREBAY_COMMIT"),
            command: std::env::args().collect(),
        }
    }

    pub(crate) fn print(&self) {
        let of = |what: &Option<String>| what.clone().unwrap_or_else(|| "unknown".into());
        println!("on {}; PCIe {}", self.device, of(&self.pcie));
        println!("with {} ({} cores, {} NUMA nodes)", of(&self.cpu), self.cores, self.numa_nodes);
        println!("libtorch {}, forebay {}\n", of(&self.libtorch), self.forebay);
    }
}

/// The version in the folder of the libtorch that this process runs: `build-version` in its archives, `version.py` in Python's package.
fn libtorch() -> Option<String> {
    let maps = read_to_string("/proc/self/maps").ok()?;
    let library = maps.lines().find(|line| line.ends_with("/libtorch_cpu.so"))?;
    let folder = Path::new(&library[library.find('/')?..]).parent()?.parent()?;
    let of_package = || {
        let text = read_to_string(folder.join("version.py")).ok()?;
        Some(text.lines().find_map(|line| line.strip_prefix("__version__ = "))?.trim_matches('\'').to_owned())
    };
    read_to_string(folder.join("build-version")).ok().map(|text| text.trim().to_owned()).or_else(of_package)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libtorch_that_runs_is_found() {
        tch::manual_seed(0);
        assert!(libtorch().is_some_and(|version| version.starts_with("2.")));
    }
}
