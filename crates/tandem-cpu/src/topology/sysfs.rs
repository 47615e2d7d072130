//! What Linux tells about its CPUs in files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::CoreClass;
use crate::affinity::MAX_CPUS;

/// More than any of the files has.
const MAX_BYTES: u64 = 1 << 16;
/// Of a capacity: the fastest core's.
const MAX_SPEED: u64 = 1 << 32;

/// The CPUs that are online.
pub(super) struct Cpus {
    devices: PathBuf,
    online: BTreeSet<usize>,
}

impl Cpus {
    pub(super) fn read(sys: &Path) -> Self {
        let devices = sys.join("devices");
        let online = list(&devices.join("system/cpu/online")).unwrap_or_default();
        Self { devices, online }
    }

    /// The cores: each with its class and its CPUs, in ascending order.
    pub(super) fn cores(&self) -> Vec<(CoreClass, Vec<usize>)> {
        let mut cores: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &cpu in &self.online {
            let siblings = list(&self.file(cpu, "topology/thread_siblings_list"));
            // A list without the CPU itself is none of its.
            let siblings = siblings.filter(|siblings| siblings.contains(&cpu));
            let first =
                siblings.and_then(|siblings| siblings.intersection(&self.online).next().copied());
            cores.entry(first.unwrap_or(cpu)).or_default().push(cpu);
        }
        let classes = self.classes();
        let class = |cpu: &usize| classes.get(cpu).copied().unwrap_or(CoreClass::Performance);
        cores.into_iter().map(|(first, cpus)| (class(&first), cpus)).collect()
    }

    /// The highest clock of a CPU, in kHz.
    pub(super) fn max_frequency(&self, cpu: usize) -> Option<u64> {
        self.speed(cpu, "cpufreq/cpuinfo_max_freq")
    }

    /// The class of every CPU; of none where all are alike.
    fn classes(&self) -> BTreeMap<usize, CoreClass> {
        self.intel_classes()
            .or_else(|| self.classes_by("cpu_capacity"))
            .or_else(|| self.classes_by("cpufreq/cpuinfo_max_freq"))
            .unwrap_or_default()
    }

    fn intel_classes(&self) -> Option<BTreeMap<usize, CoreClass>> {
        let of_kind = |kind: &str| list(&self.devices.join(kind).join("cpus"));
        let performance = of_kind("cpu_core")?;
        let atom = of_kind("cpu_atom").unwrap_or_default();
        let low_power = of_kind("cpu_lowpower").unwrap_or_default();
        let others_have_l3 = atom.iter().any(|&cpu| self.has_l3(cpu) == Some(true));
        let class = |cpu| {
            if performance.contains(&cpu) {
                CoreClass::Performance
            } else if low_power.contains(&cpu) || others_have_l3 && self.has_l3(cpu) == Some(false)
            {
                CoreClass::LowPower
            } else {
                CoreClass::Efficiency
            }
        };
        Some(self.online.iter().map(|&cpu| (cpu, class(cpu))).collect())
    }

    /// Whether a CPU has a third-level cache, where it tells of its caches.
    fn has_l3(&self, cpu: usize) -> Option<bool> {
        let levels: Vec<u32> = (0..16)
            .map_while(|index| number(&self.file(cpu, &format!("cache/index{index}/level"))))
            .collect();
        (!levels.is_empty()).then(|| levels.contains(&3))
    }

    /// Classes by a measure of speed, where every CPU has it and not all the same.
    fn classes_by(&self, file: &str) -> Option<BTreeMap<usize, CoreClass>> {
        let speeds: BTreeMap<usize, u64> = self
            .online
            .iter()
            .map(|&cpu| Some((cpu, self.speed(cpu, file)?)))
            .collect::<Option<_>>()?;
        let (least, most) = (*speeds.values().min()?, *speeds.values().max()?);
        let class = |speed| match speed {
            _ if 5 * speed >= 4 * most => CoreClass::Performance,
            _ if 2 * speed >= most => CoreClass::Efficiency,
            _ => CoreClass::LowPower,
        };
        (least < most).then(|| speeds.iter().map(|(&cpu, &speed)| (cpu, class(speed))).collect())
    }

    fn speed(&self, cpu: usize, file: &str) -> Option<u64> {
        number(&self.file(cpu, file)).filter(|speed| (1..=MAX_SPEED).contains(speed))
    }

    fn file(&self, cpu: usize, name: &str) -> PathBuf {
        self.devices.join(format!("system/cpu/cpu{cpu}")).join(name)
    }
}

/// A list of CPUs in a file.
fn list(path: &Path) -> Option<BTreeSet<usize>> {
    cpu_list(&text(path)?)
}

/// The CPUs of a list as Linux writes it, "0-3,8"; nothing where it is none.
pub fn cpu_list(text: &str) -> Option<BTreeSet<usize>> {
    let mut cpus = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last >= MAX_CPUS || first > last {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

fn number<T: FromStr>(path: &Path) -> Option<T> {
    text(path)?.parse().ok()
}

/// The content of a file, without what surrounds it; nothing where there is no such text.
fn text(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}
