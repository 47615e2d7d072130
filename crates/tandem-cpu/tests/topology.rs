//! Core classes, from folders like `/sys` of machines that tests do not run on.
//!
//! What is expected of a machine is what its maker says of it. CPUs are numbered as users of these machines report.

use std::ops::RangeInclusive;
use std::path::Path;

use tandem_cpu::{Core, CoreClass, Topology};
use tandem_testkit::Rng;
use tempfile::TempDir;

/// A folder like `/sys`.
struct Sys(TempDir);

impl Sys {
    fn new(online: &str) -> Self {
        Self(tempfile::tempdir().unwrap()).with("system/cpu/online", online)
    }

    fn with(self, name: &str, text: &str) -> Self {
        let path = self.0.path().join("devices").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // As the kernel does, with a line break at the end.
        std::fs::write(path, format!("{text}\n")).unwrap();
        self
    }

    /// CPUs of the same kind: each with its siblings' list, its caches' levels, and its highest clock in MHz.
    fn cpus(
        self,
        cpus: RangeInclusive<usize>,
        siblings: impl Fn(usize) -> String,
        levels: &[u32],
        mhz: u32,
    ) -> Self {
        cpus.fold(self, |sys, cpu| {
            let folder = format!("system/cpu/cpu{cpu}");
            let sys = sys
                .with(&format!("{folder}/topology/thread_siblings_list"), &siblings(cpu))
                .with(&format!("{folder}/cpufreq/cpuinfo_max_freq"), &format!("{mhz}000"));
            levels.iter().enumerate().fold(sys, |sys, (index, level)| {
                sys.with(&format!("{folder}/cache/index{index}/level"), &level.to_string())
            })
        })
    }

    fn capacities(self, cpus: RangeInclusive<usize>, capacity: &str) -> Self {
        cpus.fold(self, |sys, cpu| sys.with(&format!("system/cpu/cpu{cpu}/cpu_capacity"), capacity))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// What a process without limits finds.
    fn read(&self, cpus: usize) -> Topology {
        Topology::read(self.path(), None, cpus)
    }
}

const WITH_L3: [u32; 4] = [1, 1, 2, 3];
const WITHOUT_L3: [u32; 3] = [1, 1, 2];

fn alone(cpu: usize) -> String {
    cpu.to_string()
}

/// Siblings 0-1, 2-3, ...
fn pairs(cpu: usize) -> String {
    let first = cpu / 2 * 2;
    format!("{first}-{}", first + 1)
}

/// A Core Ultra 9 185H as current kernels number it: 6 P cores of two threads, 8 E cores, 2 LP-E cores.
fn meteor_lake() -> Sys {
    Sys::new("0-21")
        .with("cpu_core/cpus", "0-11")
        .with("cpu_atom/cpus", "12-21")
        .cpus(0..=11, pairs, &WITH_L3, 4800)
        // The favoured cores.
        .cpus(6..=9, pairs, &WITH_L3, 5100)
        .cpus(12..=19, alone, &WITH_L3, 3800)
        .cpus(20..=21, alone, &WITHOUT_L3, 2500)
}

/// As many cores of each class.
fn counts(topology: &Topology) -> [usize; 3] {
    [CoreClass::Performance, CoreClass::Efficiency, CoreClass::LowPower]
        .map(|class| topology.cores().iter().filter(|core| core.class == class).count())
}

#[test]
fn meteor_lake_uses_p_and_e_cores() {
    let topology = meteor_lake().read(22);
    assert_eq!(counts(&topology), [6, 8, 2]);
    assert_eq!(topology.default_threads(), 14);
    assert_eq!(topology.describe(14).unwrap(), "6 P + 8 E cores (2 LP-E left out)");
    assert_eq!(topology.describe(6), None);
    let expected: Vec<usize> =
        [6, 8, 0, 2, 4, 10].into_iter().chain(12..=21).chain([7, 9, 1, 3, 5, 11]).collect();
    assert_eq!(topology.pin_order(), expected);
}

/// The same chip under kernels that number CPUs as the firmware lists them: one P core, the E cores, the others.
#[test]
fn meteor_lake_by_firmware_order() {
    let p = |cpu: usize| if cpu < 2 { "0-1".to_owned() } else { pairs(cpu) };
    let sys = Sys::new("0-21")
        .with("cpu_core/cpus", "0-1,10-19")
        .with("cpu_atom/cpus", "2-9,20-21")
        .cpus(0..=1, p, &WITH_L3, 5100)
        .cpus(2..=9, alone, &WITH_L3, 3800)
        .cpus(10..=19, p, &WITH_L3, 4800)
        .cpus(20..=21, alone, &WITHOUT_L3, 2500);
    let topology = sys.read(22);
    assert_eq!((counts(&topology), topology.default_threads()), ([6, 8, 2], 14));
    assert_eq!(topology.pin_order()[..8], [0, 10, 12, 14, 16, 18, 2, 3]);
}

/// Kernels from 6.12 on list the LP-E cores of Arrow Lake by themselves.
#[test]
fn low_power_cores_have_a_list_of_their_own() {
    let sys = Sys::new("0-15")
        .with("cpu_core/cpus", "0-5")
        .with("cpu_atom/cpus", "6-13")
        .with("cpu_lowpower/cpus", "14-15");
    let topology = sys.read(16);
    assert_eq!((counts(&topology), topology.default_threads()), ([6, 8, 2], 14));
}

/// Lunar Lake: no E core has a third-level cache, and they are what the chip has.
#[test]
fn e_cores_without_l3_stay_where_none_has_it() {
    let sys = Sys::new("0-7")
        .with("cpu_core/cpus", "0-3")
        .with("cpu_atom/cpus", "4-7")
        .cpus(0..=3, alone, &WITH_L3, 4800)
        .cpus(4..=7, alone, &WITHOUT_L3, 3700);
    let topology = sys.read(8);
    assert_eq!((counts(&topology), topology.default_threads()), ([4, 4, 0], 8));
    assert_eq!(topology.describe(8).unwrap(), "4 P + 4 E cores");
}

/// Core i9-12900K: 8 P cores of two threads, 8 E cores.
#[test]
fn alder_lake() {
    let sys = Sys::new("0-23")
        .with("cpu_core/cpus", "0-15")
        .with("cpu_atom/cpus", "16-23")
        .cpus(0..=15, pairs, &WITH_L3, 5100)
        .cpus(16..=23, alone, &WITH_L3, 3900);
    let topology = sys.read(24);
    assert_eq!((counts(&topology), topology.default_threads()), ([8, 8, 0], 16));
    assert_eq!(topology.describe(16).unwrap(), "8 P + 8 E cores");
    // Without the lists, clocks tell the same.
    let sys =
        Sys::new("0-23").cpus(0..=15, pairs, &WITH_L3, 5100).cpus(16..=23, alone, &WITH_L3, 3900);
    assert_eq!(counts(&sys.read(24)), [8, 8, 0]);
}

/// Ryzen 7 5800X: 8 cores of two threads, 0 and 8 on the same core; clocks differ from core to core by a little.
#[test]
fn cores_with_smt_get_one_thread() {
    let sys = Sys::new("0-15")
        .cpus(0..=15, |cpu| format!("{},{}", cpu % 8, cpu % 8 + 8), &WITH_L3, 4850)
        .with("system/cpu/cpu3/cpufreq/cpuinfo_max_freq", "4700000")
        .with("system/cpu/cpu11/cpufreq/cpuinfo_max_freq", "4700000");
    let topology = sys.read(16);
    assert_eq!((counts(&topology), topology.default_threads()), ([8, 0, 0], 8));
    assert_eq!(topology.describe(8), None);
    let expected = [0, 1, 2, 4, 5, 6, 7, 3, 8, 9, 10, 12, 13, 14, 15, 11];
    assert_eq!(topology.pin_order(), expected);
}

/// ARM tells of speed by capacity: RK3588 with 4 A55 and 4 A76; Snapdragon 888 with 4 A55, 3 A78 and an X1.
#[test]
fn arm_cores_differ_in_capacity() {
    let sys = Sys::new("0-7").capacities(0..=3, "414").capacities(4..=7, "1024");
    let topology = sys.read(8);
    assert_eq!((counts(&topology), topology.default_threads()), ([4, 0, 4], 4));
    assert_eq!(topology.pin_order(), [4, 5, 6, 7, 0, 1, 2, 3]);
    assert_eq!(topology.describe(4).unwrap(), "4 P cores (4 LP-E left out)");
    let sys =
        Sys::new("0-7").capacities(0..=3, "275").capacities(4..=6, "773").capacities(7..=7, "1024");
    assert_eq!(counts(&sys.read(8)), [1, 3, 4]);
}

#[test]
fn cpus_that_may_not_be_used_do_not_count() {
    let sys = meteor_lake();
    let read = |allowed: &[usize], limit| Topology::read(sys.path(), Some(allowed), limit);
    // A container with two CPUs, by affinity and by quota.
    assert_eq!(read(&[12, 13], 2).default_threads(), 2);
    let all: Vec<usize> = (0..22).collect();
    let quota = read(&all, 2);
    assert_eq!((quota.default_threads(), quota.describe(2)), (2, None));
    // P cores' second threads only.
    let topology = read(&[1, 3, 5], 3);
    assert_eq!((counts(&topology), topology.default_threads()), ([3, 0, 0], 3));
    assert_eq!(topology.pin_order(), [1, 3, 5]);
    // Nothing but one core's two threads, and nothing but LP-E cores: better than nothing.
    assert_eq!(read(&[0, 1], 2).default_threads(), 2);
    assert_eq!(read(&[0, 1], 1).default_threads(), 1);
    assert_eq!(read(&[20, 21], 2).default_threads(), 2);
    assert_eq!(read(&[20], 1).describe(1), None);
}

#[test]
fn offline_cpus_do_not_count() {
    let sys = meteor_lake().with("system/cpu/online", "0-1,3-13");
    let topology = sys.read(13);
    assert_eq!((counts(&topology), topology.default_threads()), ([6, 2, 0], 8));
    // CPU 2 is off: its sibling stands for the core.
    assert!(topology.cores().contains(&Core { class: CoreClass::Performance, cpus: vec![3] }));
}

#[test]
fn without_files_the_limits_are_the_answer() {
    let empty = tempfile::tempdir().unwrap();
    for sys in [empty.path(), Path::new("/nowhere/at/all")] {
        let topology = Topology::read(sys, None, 3);
        assert_eq!((topology.cores().len(), topology.default_threads()), (0, 3));
        assert_eq!((topology.pin_order(), topology.describe(3)), (Vec::new(), None));
        assert_eq!(Topology::read(sys, None, 0).default_threads(), 1);
        // What may be used is better than nothing.
        let topology = Topology::read(sys, Some(&[1, 2, 5]), 2);
        assert_eq!((topology.pin_order(), topology.default_threads()), (vec![1, 2, 5], 2));
    }
    // CPUs alone, as some sandboxes have it.
    assert_eq!(Sys::new("0-3").read(4).default_threads(), 4);
}

#[test]
fn nonsense_is_as_good_as_nothing() {
    let garbage = [
        "",
        ",",
        "-",
        "0-",
        "-1",
        "3-1",
        "0-99999999999999999999",
        "0-4294967295",
        "0,8191,8192",
        "1e3",
        "zero",
        "\u{0}\u{1}",
        "0x1f",
        "0-1-2",
        "NaN",
        "ä",
    ];
    for text in garbage {
        let topology = Sys::new(text).read(5);
        assert_eq!(topology.default_threads(), 5, "online {text:?}");
        let sys = meteor_lake();
        let sys = ["cpu_core/cpus", "cpu_atom/cpus", "cpu_lowpower/cpus"]
            .iter()
            .fold(sys, |sys, file| sys.with(file, text));
        let sys = (0..22).fold(sys, |sys, cpu| {
            let folder = format!("system/cpu/cpu{cpu}");
            ["topology/thread_siblings_list", "cache/index3/level", "cpu_capacity"]
                .iter()
                .fold(sys, |sys, file| sys.with(&format!("{folder}/{file}"), text))
        });
        let topology = sys.read(22);
        assert!((1..=22).contains(&topology.default_threads()), "{text:?}");
        let mut cpus = topology.pin_order();
        cpus.sort_unstable();
        assert_eq!(cpus, (0..22).collect::<Vec<_>>(), "{text:?}");
    }
    // Folders where files should be, and bytes that are no text.
    let sys = Sys::new("0-1").with("system/cpu/cpu0/cpu_capacity/x", "");
    std::fs::write(sys.path().join("devices/system/cpu/online"), [0xff, 0xfe]).unwrap();
    assert_eq!(sys.read(2).default_threads(), 2);
}

/// Siblings' lists that contradict each other still give every CPU one core, and CPUs no core twice.
#[test]
fn contradictions_lose_no_cpu() {
    let mut rng = Rng::new(7);
    for _ in 0..50 {
        let mut sys = Sys::new("0-7");
        for cpu in 0..8 {
            let (a, b) = (rng.below(10), rng.below(10));
            let file = format!("system/cpu/cpu{cpu}/topology/thread_siblings_list");
            sys = sys.with(&file, &format!("{a},{b},{cpu}"));
        }
        let topology = sys.read(8);
        let mut cpus = topology.pin_order();
        cpus.sort_unstable();
        assert_eq!(cpus, (0..8).collect::<Vec<_>>());
        assert!((1..=8).contains(&topology.default_threads()));
    }
}

#[test]
fn this_machine_has_cores() {
    let topology = Topology::detect();
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert!((1..=cpus).contains(&topology.default_threads()));
}
