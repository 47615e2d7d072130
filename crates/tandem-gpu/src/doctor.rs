//! Why a GPU that is in the machine is not seen, and what to install.
//!
//! Every check reads files under a root folder, `/` in earnest and a made-up tree in tests. Sources: the kernel's
//! `Documentation/gpu/drm-uapi.rst` (render nodes), `Documentation/ABI/testing/sysfs-bus-pci`, and the ICD loader's
//! `cl_khr_icd` (vendor files).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Where a loader looks for a library that a vendor file names without a folder.
const LIBRARY_FOLDERS: [&str; 6] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/local/lib",
    "lib/x86_64-linux-gnu",
];
const INTEL: &str = "0x8086";
const NVIDIA: &str = "0x10de";
const AMD: &str = "0x1002";

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whether everything is as it should be.
    pub good: bool,
    /// What there is.
    pub found: String,
    /// What to do, where something is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn good(found: impl Into<String>) -> Self {
        Self { good: true, found: found.into(), advice: None }
    }

    fn bad(found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { good: false, found: found.into(), advice: Some(advice.into()) }
    }
}

/// A GPU on the PCI bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciGpu {
    /// Address on the bus.
    pub address: String,
    /// Vendor's number, as in `0x8086`.
    pub vendor: String,
    /// Device's number.
    pub device: String,
    /// Name of the kernel's driver, where one is bound.
    pub driver: Option<String>,
}

/// All checks, from the hardware up. None of them asks OpenCL itself.
pub fn examine(root: &Path) -> Vec<Finding> {
    let gpus = pci_gpus(root);
    let mut findings = check_gpus(&gpus);
    if !gpus.is_empty() {
        findings.extend(check_render_nodes(root));
    }
    findings.push(check_loader(root));
    findings.extend(check_vendors(root, &gpus));
    findings
}

/// The GPUs on the PCI bus: class 0x03, display controllers.
pub fn pci_gpus(root: &Path) -> Vec<PciGpu> {
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let mut gpus: Vec<_> = entries(&root.join("sys/bus/pci/devices"))
        .into_iter()
        .filter(|slot| read(slot.join("class")).starts_with("0x03"))
        .map(|slot| PciGpu {
            address: name_of(&slot),
            vendor: read(slot.join("vendor")),
            device: read(slot.join("device")),
            driver: fs::read_link(slot.join("driver")).ok().map(|driver| name_of(&driver)),
        })
        .collect();
    gpus.sort_by(|a, b| a.address.cmp(&b.address));
    gpus
}

fn check_gpus(gpus: &[PciGpu]) -> Vec<Finding> {
    if gpus.is_empty() {
        return vec![Finding::bad(
            "no GPU on the PCI bus",
            "nothing to do: Tandem computes on the CPU (in a virtual machine a GPU has to be passed through)",
        )];
    }
    let finding = |gpu: &PciGpu| {
        let PciGpu { address, vendor, device, driver } = gpu;
        let name = format!("{} GPU {vendor}:{device} at {address}", vendor_name(vendor));
        match (driver, vendor.as_str()) {
            (Some(driver), _) => Finding::good(format!("{name}, kernel driver {driver}")),
            (None, INTEL) => Finding::bad(
                format!("{name} has no kernel driver"),
                "expected i915 or xe: use a kernel that knows the GPU (Meteor Lake: Linux 6.8 or newer) and its \
                 firmware (Debian: firmware-misc-nonfree or firmware-intel-graphics)",
            ),
            (None, _) => {
                Finding::bad(format!("{name} has no kernel driver"), "install its vendor's driver")
            }
        }
    };
    gpus.iter().map(finding).collect()
}

fn vendor_name(vendor: &str) -> &str {
    match vendor {
        INTEL => "Intel",
        NVIDIA => "NVIDIA",
        AMD => "AMD",
        _ => "unknown",
    }
}

/// Render nodes are how programs reach a GPU; they belong to a group that users must be in.
fn check_render_nodes(root: &Path) -> Vec<Finding> {
    let nodes: Vec<_> = entries(&root.join("dev/dri"))
        .into_iter()
        .filter(|node| name_of(node).starts_with("renderD"))
        .collect();
    if nodes.is_empty() {
        return vec![Finding::bad(
            "no render node in /dev/dri",
            "expected /dev/dri/renderD128: in a container pass it in (docker run --device /dev/dri)",
        )];
    }
    let user = User::of_process(root);
    let finding = |node: &PathBuf| {
        let name = format!("/dev/dri/{}", name_of(node));
        match fs::metadata(node) {
            Ok(data) if user.may_use(data.mode(), data.uid(), data.gid()) => {
                Finding::good(format!("{name} can be used"))
            }
            Ok(data) => Finding::bad(
                format!("{name} belongs to group {}, which this user is not in", data.gid()),
                "join its group, usually render, and log in again: sudo usermod -aG render $USER",
            ),
            Err(e) => Finding::bad(format!("{name}: {e}"), "look at its permissions"),
        }
    };
    nodes.iter().map(finding).collect()
}

/// Who runs this process.
#[derive(Debug, Default)]
struct User {
    uid: u32,
    groups: Vec<u32>,
}

impl User {
    /// By the kernel's account in `/proc`.
    fn of_process(root: &Path) -> Self {
        let status = fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
        let numbers = |field: &str| -> Vec<u32> {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let numbers = line.unwrap_or_default().split_ascii_whitespace();
            numbers.filter_map(|number| number.parse().ok()).collect()
        };
        // The second number of a kind is the effective one.
        let effective = |field: &str| numbers(field).get(1).copied();
        let groups = effective("Gid:").into_iter().chain(numbers("Groups:")).collect();
        Self { uid: effective("Uid:").unwrap_or(u32::MAX), groups }
    }

    /// Whether a file of that mode and owner can be read and written.
    fn may_use(&self, mode: u32, uid: u32, gid: u32) -> bool {
        const READ_WRITE: u32 = 0o6;
        let allowed = |shift: u32| mode >> shift & READ_WRITE == READ_WRITE;
        match self {
            Self { uid: 0, .. } => true,
            user if user.uid == uid => allowed(6),
            user if user.groups.contains(&gid) => allowed(3),
            _ => allowed(0),
        }
    }
}

/// The library that every program speaks to, and that speaks to drivers.
fn check_loader(root: &Path) -> Finding {
    match find_library(root, "libOpenCL.so.1") {
        Some(path) => Finding::good(format!("OpenCL loader {}", shown(root, &path))),
        None => Finding::bad(
            "no libOpenCL.so.1 in the usual folders",
            "install an OpenCL loader (Debian, Ubuntu: ocl-icd-libopencl1; Fedora: ocl-icd)",
        ),
    }
}

/// Vendor files, each of which names a driver.
fn check_vendors(root: &Path, gpus: &[PciGpu]) -> Vec<Finding> {
    let folder = root.join("etc/OpenCL/vendors");
    let files: Vec<_> = entries(&folder)
        .into_iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "icd"))
        .collect();
    let mut findings: Vec<_> = files.iter().map(|file| check_vendor(root, file)).collect();
    let named = |text: &str| files.iter().any(|file| name_of(file).contains(text));
    let lacks =
        |vendor: &str, text: &str| gpus.iter().any(|gpu| gpu.vendor == vendor) && !named(text);
    if lacks(INTEL, "intel") {
        findings.push(Finding::bad(
            "an Intel GPU, and no Intel driver in /etc/OpenCL/vendors",
            "install Intel's OpenCL driver (Debian, Ubuntu: intel-opencl-icd; Fedora: intel-compute-runtime)",
        ));
    }
    if lacks(NVIDIA, "nvidia") {
        findings.push(Finding::bad(
            "an NVIDIA GPU, and no NVIDIA driver in /etc/OpenCL/vendors",
            "install nvidia-opencl-icd, or write a file nvidia.icd there with the line libnvidia-opencl.so.1",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::bad(
            "no OpenCL driver in /etc/OpenCL/vendors",
            "install your GPU's OpenCL driver",
        ));
    }
    findings
}

fn check_vendor(root: &Path, file: &Path) -> Finding {
    let name = shown(root, file);
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) => return Finding::bad(format!("{name}: {e}"), "look at its permissions"),
    };
    let library = text.trim();
    let there = match library.strip_prefix('/') {
        _ if library.is_empty() => {
            return Finding::bad(
                format!("{name} is empty: expected the name of a library"),
                "install the driver's package again",
            );
        }
        Some(path) => root.join(path).exists(),
        None => find_library(root, library).is_some(),
    };
    if there {
        Finding::good(format!("{name} names {library}"))
    } else {
        Finding::bad(
            format!("{name} names {library}, which is not there"),
            "install the driver's package again, or remove the file",
        )
    }
}

fn find_library(root: &Path, name: &str) -> Option<PathBuf> {
    LIBRARY_FOLDERS.iter().map(|folder| root.join(folder).join(name)).find(|path| path.exists())
}

/// A path as the user knows it.
fn shown(root: &Path, path: &Path) -> String {
    path.strip_prefix(root)
        .map_or_else(|_| path.display().to_string(), |inner| format!("/{}", inner.display()))
}

/// What is in a folder, by name; nothing where it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tandem_testkit::{Scratch, scratch};

    /// A made-up system.
    struct Tree(Scratch);

    impl Tree {
        fn new() -> Self {
            let tree = Self(scratch("doctor"));
            // A user that is not root, in groups 1000 and 44.
            tree.file(
                "proc/self/status",
                "Uid:\t1000\t1000\t1000\nGid:\t1000\t1000\nGroups:\t44\n",
            );
            tree
        }

        fn root(&self) -> &Path {
            self.0.path()
        }

        fn file(&self, path: &str, text: &str) -> PathBuf {
            let path = self.root().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        }

        fn gpu(&self, vendor: &str, driver: Option<&str>) {
            let slot = "sys/bus/pci/devices/0000:00:02.0";
            self.file(&format!("{slot}/class"), "0x030000\n");
            self.file(&format!("{slot}/vendor"), &format!("{vendor}\n"));
            self.file(&format!("{slot}/device"), "0x7d55\n");
            if let Some(driver) = driver {
                let link = self.root().join(slot).join("driver");
                symlink(format!("../../../bus/pci/drivers/{driver}"), link).unwrap();
            }
            // What is no GPU does not count.
            self.file("sys/bus/pci/devices/0000:00:1f.3/class", "0x040300\n");
        }

        fn render_node(&self, mode: u32) {
            let node = self.file("dev/dri/renderD128", "");
            fs::set_permissions(node, fs::Permissions::from_mode(mode)).unwrap();
        }

        fn driver(&self, icd: &str, library: &str) {
            self.file("usr/lib/x86_64-linux-gnu/libOpenCL.so.1", "");
            self.file(&format!("etc/OpenCL/vendors/{icd}"), library);
        }

        /// Everything that is wrong, in words.
        fn complaints(&self) -> Vec<String> {
            let bad = examine(self.root()).into_iter().filter(|finding| !finding.good);
            bad.map(|f| format!("{} -> {}", f.found, f.advice.unwrap())).collect()
        }
    }

    #[test]
    fn a_machine_that_is_set_up_has_no_complaints() {
        let tree = Tree::new();
        tree.gpu(INTEL, Some("i915"));
        tree.render_node(0o666);
        tree.driver("intel.icd", "/usr/lib/intel/libigdrcl.so\n");
        tree.file("usr/lib/intel/libigdrcl.so", "");
        assert_eq!(tree.complaints(), [""; 0]);
        let found: Vec<_> = examine(tree.root()).into_iter().map(|f| f.found).collect();
        assert_eq!(found[0], "Intel GPU 0x8086:0x7d55 at 0000:00:02.0, kernel driver i915");
        assert_eq!(
            found.last().unwrap(),
            "/etc/OpenCL/vendors/intel.icd names /usr/lib/intel/libigdrcl.so"
        );
    }

    #[test]
    fn a_gpu_without_opencl_says_what_to_install() {
        let tree = Tree::new();
        tree.gpu(INTEL, Some("xe"));
        tree.render_node(0o666);
        let complaints = tree.complaints();
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints[0].contains("ocl-icd-libopencl1"));
        assert!(complaints[1].contains("intel-opencl-icd"));
        // Another driver is no help to it.
        tree.driver("pocl.icd", "libpocl.so.2\n");
        tree.file("usr/lib/x86_64-linux-gnu/libpocl.so.2", "");
        let complaints = tree.complaints();
        assert!(complaints.len() == 1 && complaints[0].contains("intel-opencl-icd"));
    }

    #[test]
    fn a_render_node_of_another_group_says_which_to_join() {
        let tree = Tree::new();
        tree.gpu(INTEL, Some("i915"));
        tree.driver("intel.icd", "libigdrcl.so");
        tree.file("usr/lib64/libigdrcl.so", "");
        assert!(tree.complaints()[0].contains("no render node in /dev/dri -> expected"));
        // The file is the tester's own: that the process is no owner, is for `may_use` alone to test.
        tree.file("proc/self/status", "Uid:\t4242\t4242\nGid:\t4242\t4242\nGroups:\t\n");
        tree.render_node(0o660);
        let complaints = tree.complaints();
        assert!(complaints.len() == 1 && complaints[0].contains("usermod -aG render"));
    }

    #[test]
    fn rights_are_the_owners_the_groups_or_everyones() {
        let user = User { uid: 7, groups: vec![1, 44] };
        for (mode, uid, gid, expected) in [
            (0o660, 0, 44, true),
            (0o660, 0, 45, false),
            (0o640, 0, 44, false),
            (0o606, 0, 45, true),
            (0o606, 0, 44, false),
            (0o600, 7, 0, true),
            (0o066, 7, 0, false),
        ] {
            assert_eq!(user.may_use(mode, uid, gid), expected, "{mode:o} {uid} {gid}");
        }
        assert!(User::default().may_use(0, 5, 5));
    }

    #[test]
    fn broken_vendor_files_are_named() {
        let tree = Tree::new();
        tree.driver("empty.icd", "\n");
        tree.driver("gone.icd", "/opt/gone.so");
        tree.driver("unfound.icd", "libunfound.so");
        tree.file("etc/OpenCL/vendors/readme.txt", "not one of them");
        let complaints = tree.complaints();
        assert_eq!(complaints.len(), 4, "{complaints:?}");
        assert!(complaints[0].contains("no GPU on the PCI bus"));
        assert!(complaints[1].starts_with("/etc/OpenCL/vendors/empty.icd is empty"));
        assert!(complaints[2].contains("names /opt/gone.so, which is not there"));
        assert!(complaints[3].contains("names libunfound.so, which is not there"));
    }

    #[test]
    fn other_vendors_have_their_own_advice() {
        let tree = Tree::new();
        tree.gpu(NVIDIA, None);
        let complaints = tree.complaints().join("\n");
        assert!(complaints.contains("NVIDIA GPU") && complaints.contains("nvidia-opencl-icd"));
        let bare = scratch("doctor-empty");
        let complaints = examine(bare.path());
        assert!(complaints.iter().all(|finding| !finding.good && finding.advice.is_some()));
    }
}
